//! How fast matrices are loaded from a file in the page cache: read and packed, beside only read.
//!
//! `cargo run --release -p plexus-kernels --example pack -- THREADS,... [FORMAT,...]`. Writes a file of the shape of a matrix to the folder for
//! temporary files, loads it several times into memory that the matrix before had, and prints medians, in GB of the file per second.
#![allow(clippy::print_stdout, reason = "a program for a terminal")]

use plexus_kernels::{Format, Matrix, Team};
use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Instant;

const COLUMNS: usize = 2048;
const ROWS: usize = 65536;
const RUNS: usize = 11;
const FORMATS: [Format; 14] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q2K,
    Format::Q3K,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
    Format::Iq4Xs,
];

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Seconds that `work` takes, each of several times after one that does not count.
fn times(mut work: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    work()?;
    let run = |_| {
        let begun = Instant::now();
        work().map(|()| begun.elapsed().as_secs_f64())
    };
    (0..RUNS).map(run).collect::<Result<_, _>>().map(median)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (threads, formats) = match args.as_slice() {
        [threads] => (threads, FORMATS.to_vec()),
        [threads, names] => {
            let named = |name| FORMATS.into_iter().find(|format| format.name() == name).ok_or_else(|| format!("no format {name}"));
            (threads, names.split(',').map(named).collect::<Result<_, _>>()?)
        }
        _ => return Err("pack THREADS,... [FORMAT,...]".into()),
    };
    let teams = threads.split(',').map(|n| Ok(Team::new(n.parse()?)?)).collect::<Result<Vec<Team>, Box<dyn Error>>>()?;
    let path = std::env::temp_dir().join(format!("plexus-pack-{}", std::process::id()));
    for format in formats {
        let row_bytes = format.row_bytes(COLUMNS).ok_or("no whole blocks")?;
        let bytes: Vec<u8> = (0..ROWS * row_bytes).map(|i| (i as u32).wrapping_mul(0x9E37_79B9).to_be_bytes()[0]).collect();
        fs::write(&path, &bytes)?;
        let file = File::open(&path)?;
        fs::remove_file(&path)?;
        let read = |rows: Range<usize>, out: &mut [u8]| file.read_exact_at(out, (rows.start * row_bytes) as u64);
        for team in &teams {
            let only_read = times(|| {
                let n_tasks = bytes.len().div_ceil(256 << 10);
                team.run_on(n_tasks, &|_, task| {
                    thread_local!(static ROOM: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; 256 << 10]));
                    let at = task * (256 << 10);
                    let len = (bytes.len() - at).min(256 << 10);
                    let done: io::Result<()> = ROOM.with_borrow_mut(|room| file.read_exact_at(&mut room[..len], at as u64));
                    done.expect("the file is as long as was written");
                });
                Ok(())
            })?;
            let loaded = times(|| {
                drop(Matrix::load(format, format, ROWS, COLUMNS, team, &read)?);
                Ok(())
            })?;
            let rate = |seconds: f64| bytes.len() as f64 / seconds * 1e-9;
            let n_threads = team.n_threads();
            println!("{format:<6} {n_threads} threads: {:5.1} GB/s, only read {:5.1} GB/s", rate(loaded), rate(only_read));
        }
    }
    Ok(())
}
