//! How fast weights are quantized where a matrix is loaded, and what they lose.
//!
//! `cargo run --release -p plexus-kernels --example quantize -- THREADS,... [LLAMA_QUANTIZE FILE]`. Loads a matrix of bfloat16 numbers of a normal
//! distribution from memory in each format, several times, and prints the median rate and the mean squared error as a share of the mean square;
//! as it is, for comparison. With the program `llama-quantize` and a GGUF file of bfloat16 numbers it then lets that program do the same with the
//! file, the result in memory, and prints what it says about its time.
#![allow(clippy::print_stdout, reason = "a program for a terminal")]

use plexus_kernels::format::{dequantize, quantize};
use plexus_kernels::{Format, Matrix, Team};
use std::error::Error;
use std::process::Command;
use std::time::Instant;

const COLUMNS: usize = 2048;
const ROWS: usize = 16384;
const RUNS: usize = 7;

/// Numbers of a normal distribution with a standard deviation of 1/50, by Box and Muller, from a fixed seed.
fn normal(n: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut unit = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    };
    (0..n).map(|_| 0.02 * (-2.0 * unit().ln()).sqrt() * (std::f32::consts::TAU * unit()).cos()).collect()
}

/// Mean squared error of `x` in `format`, over the mean square of `x`.
fn loss(format: Format, x: &[f32]) -> Result<f64, Box<dyn Error>> {
    let mut bytes = vec![0; format.row_bytes(x.len()).ok_or("no whole blocks")?];
    quantize(format, x, &mut bytes);
    let mut back = vec![0.0; x.len()];
    dequantize(format, &bytes, &mut back);
    let error: f64 = x.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    Ok(error / x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>())
}

/// Milliseconds that `llama-quantize` says it took to read, quantize and write all matrices of a file.
fn quantize_time(program: &str, file: &str, format: Format, threads: usize) -> Result<f64, Box<dyn Error>> {
    let out = format!("/dev/shm/plexus-quantize-{}.gguf", std::process::id());
    let run = Command::new(program).args(["--pure", file, &out, format.name(), &threads.to_string()]).output();
    let removed = std::fs::remove_file(&out);
    let run = run?;
    removed?;
    let text = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
    let time =
        text.lines().find_map(|line| line.split_once("quantize time =")).ok_or_else(|| format!("{program} tells no time: {text}"))?;
    Ok(time.1.trim().trim_end_matches("ms").trim().parse()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (threads, peer) = match args.as_slice() {
        [threads] => (threads, None),
        [threads, program, file] => (threads, Some((program, file))),
        _ => return Err("quantize THREADS,... [LLAMA_QUANTIZE FILE]".into()),
    };
    let teams = threads.split(',').map(|n| Ok(Team::new(n.parse()?)?)).collect::<Result<Vec<Team>, Box<dyn Error>>>()?;
    let x = normal(ROWS * COLUMNS);
    let mut bytes = vec![0; 2 * x.len()];
    quantize(Format::Bf16, &x, &mut bytes);
    let mut stored = vec![0.0; x.len()];
    dequantize(Format::Bf16, &bytes, &mut stored);
    for format in [Format::Bf16, Format::Q8_0, Format::Q6K, Format::Q4K] {
        let loss = loss(format, &stored)?;
        for team in &teams {
            let mut seconds = vec![];
            for _ in 0..RUNS {
                let begun = Instant::now();
                let matrix = Matrix::convert(Format::Bf16, format, ROWS, COLUMNS, &bytes, team)?;
                seconds.push(begun.elapsed().as_secs_f64());
                drop(matrix);
            }
            seconds.sort_by(f64::total_cmp);
            let rate = x.len() as f64 / seconds[RUNS / 2] * 1e-6;
            println!("{format:<5} {} threads: {rate:7.1} million weights/s, error {loss:.6} of the square", team.n_threads());
            if let Some((program, file)) = peer {
                let ms = quantize_time(program, file, format, team.n_threads())?;
                let weights = std::fs::metadata(file)?.len() as f64 / 2.0;
                println!("{format:<5} {} threads: {:7.1} million weights/s, {program}", team.n_threads(), weights / ms * 1e-3);
            }
        }
    }
    Ok(())
}
