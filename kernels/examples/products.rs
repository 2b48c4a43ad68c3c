//! How fast products are: all weight matrices of one forward pass of m rows, as in a model, and single shapes.
//!
//! `cargo run --release -p plexus-kernels --example products -- MODEL THREADS M...`, MODEL one of those below; `read` instead of M measures the
//! memory's bandwidth, and the name of an instruction set (`avx2`) or `all` chooses for what follows. Prints the median of the passes, what
//! was read from memory, and what was computed.
#![allow(clippy::print_stdout, reason = "a program for a terminal")]

use plexus_kernels::matrix::multiply_as;
use plexus_kernels::{Activations, Format, Forms, Isa, Matrix, Product, Team};
use std::time::Instant;

/// Layers, hidden size, queries, keys, inner size, vocabulary.
type Shape = (usize, usize, usize, usize, usize, usize);
const QWEN3_06B: Shape = (28, 1024, 2048, 1024, 3072, 151_936);
const LLAMA_1B: Shape = (16, 2048, 2048, 512, 8192, 128_256);

/// The formats of a mix: of most matrices, of the values and down projections of some layers, of the head.
fn model(name: &str) -> Option<(Shape, [Format; 3])> {
    let (shape, format) = name.rsplit_once('-')?;
    let shape = match shape {
        "qwen3-0.6b" => QWEN3_06B,
        "llama-1b" => LLAMA_1B,
        _ => return None,
    };
    let formats = match format {
        "q4km" => [Format::Q4K, Format::Q6K, Format::Q6K],
        "q5km" => [Format::Q5K, Format::Q6K, Format::Q6K],
        other => [Format::ALL.into_iter().find(|format| format.name().to_lowercase() == other)?; 3],
    };
    Some((shape, formats))
}

/// Bytes that are rows of `format`, none of whose floats is unusual.
fn bytes(format: Format, rows: usize, columns: usize) -> Option<Vec<u8>> {
    let mut x = 88_172_645_463_325_252u64;
    let some: Vec<u8> = (0..format.block_bytes() * 997)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            // A high byte below 0x1c keeps every f16 small; as bf16 and f32 too.
            (x >> 32) as u8 & 0x1b
        })
        .collect();
    Some(some.into_iter().cycle().take(rows * format.row_bytes(columns)?).collect())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, threads, what @ ..] = args.as_slice() else {
        return Err("products MODEL THREADS M...".into());
    };
    let team = Team::new(threads.parse()?)?;
    let ((layers, hidden, queries, keys, inner, vocabulary), [most, more, head]) = model(name).ok_or("no such model")?;
    let mut packed = (0.0, 0);
    let mut pack = |format: Format, rows: usize, columns: usize| -> Result<Matrix, Box<dyn std::error::Error>> {
        let bytes = bytes(format, rows, columns).ok_or("columns")?;
        let begun = Instant::now();
        let matrix = Matrix::pack(format, rows, columns, &bytes, &team)?;
        packed = (packed.0 + begun.elapsed().as_secs_f64(), packed.1 + bytes.len());
        Ok(matrix)
    };
    // Groups of matrices that share their rows.
    let mut groups: Vec<Vec<Matrix>> = vec![];
    for layer in 0..layers {
        let eighth = layers / 8;
        let precise = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
        let more = if precise { more } else { most };
        groups.push(vec![pack(most, queries, hidden)?, pack(most, keys, hidden)?, pack(more, keys, hidden)?]);
        groups.push(vec![pack(most, hidden, queries)?]);
        groups.push(vec![pack(most, inner, hidden)?, pack(most, inner, hidden)?]);
        groups.push(vec![pack(more, hidden, inner)?]);
    }
    groups.push(vec![pack(head, vocabulary, hidden)?]);
    let total: usize = groups.iter().flatten().map(Matrix::bytes).sum();
    println!(
        "{name} {threads} threads, weights {:.1} MB ({:.3} of the file), packed in {:.3} s ({:.1} GB/s)",
        total as f64 / 1e6,
        total as f64 / packed.1 as f64,
        packed.0,
        packed.1 as f64 / packed.0 * 1e-9
    );
    let mut isas = vec![Isa::best()];
    for what in what {
        match what.as_str() {
            "read" => read(&team, total),
            "all" => isas = Isa::available(),
            what if what.parse::<Isa>().is_ok() => isas = vec![what.parse()?],
            m => {
                for &isa in &isas {
                    pass(isa, &team, &groups, m.parse()?);
                }
            }
        }
    }
    Ok(())
}

/// All products of a pass of `m` rows: groups of matrices that share their rows, the head last.
fn pass(isa: Isa, team: &Team, groups: &[Vec<Matrix>], m: usize) {
    // The head is for the last row alone when there are many.
    let n = |group: usize| if group + 1 == groups.len() && m > 16 { 1 } else { m };
    let widest = groups.iter().map(|group| group[0].columns()).max().unwrap_or(0);
    let longest = groups.iter().enumerate().flat_map(|(i, group)| group.iter().map(move |matrix| n(i) * matrix.rows())).max().unwrap_or(0);
    let x: Vec<f32> = (0..m * widest).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut outs = vec![vec![0f32; longest]; 3];
    let mut activations = Activations::new();
    let mut times = vec![];
    let mut converting = 0.0;
    let reps = (400 / m).clamp(5, 40);
    for rep in 0..=reps {
        let begun = Instant::now();
        for (i, group) in groups.iter().enumerate() {
            let (n, columns) = (n(i), group[0].columns());
            let forms = group.iter().fold(Forms::default(), |forms, matrix| forms.and(Forms::of(matrix.format())));
            let convert = Instant::now();
            activations.load(team, &x[..n * columns], columns, forms);
            converting += convert.elapsed().as_secs_f64() * f64::from(u8::from(rep > 0));
            let mut products: Vec<Product<'_>> =
                group.iter().zip(&mut outs).map(|(matrix, out)| Product { matrix, out: &mut out[..n * matrix.rows()] }).collect();
            multiply_as(isa, team, &mut products, &activations);
        }
        if rep > 0 {
            times.push(begun.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let (median, best) = (times[reps / 2], times[0]);
    let all = || groups.iter().enumerate().flat_map(|(i, group)| group.iter().map(move |matrix| (n(i), matrix)));
    let work: f64 = all().map(|(n, matrix)| 2.0 * (n * matrix.rows() * matrix.columns()) as f64).sum();
    let bytes: usize = all().map(|(_, matrix)| matrix.bytes()).sum();
    println!(
        "{isa:<9} m={m:<4} {:9.3} ms  {:8.1} rows/s  {:6.1} GB/s  {:7.1} GOP/s   (best {:.3} ms; {:.1} % of it converting rows)",
        median * 1e3,
        m as f64 / median,
        bytes as f64 / median * 1e-9,
        work / median * 1e-9,
        best * 1e3,
        converting / reps as f64 / median * 100.0
    );
}

/// The bandwidth of reading `bytes` with the whole team.
fn read(team: &Team, bytes: usize) {
    let data: Vec<u64> = (0..bytes as u64 / 8).collect();
    let mut times: Vec<f64> = (0..15)
        .map(|_| {
            let begun = Instant::now();
            team.run(data.len().div_ceil(1 << 15), &|task| {
                let chunk = &data[task << 15..data.len().min((task + 1) << 15)];
                let mut sums = [0u64; 32];
                chunk.as_chunks::<32>().0.iter().for_each(|x| sums.iter_mut().zip(x).for_each(|(sum, x)| *sum ^= x));
                std::hint::black_box(sums);
            });
            begun.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("reading memory: {:.1} GB/s", bytes as f64 / times[times.len() / 2] * 1e-9);
}
