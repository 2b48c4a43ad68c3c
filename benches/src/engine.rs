//! The engine alone, driven as a replica drives it: no actors, no HTTP. What `cpu-vs-llamacpp` puts beside llama.cpp's own bench.

use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use plexus_engine::executor::{Executor, KvPlan, Slot};
use plexus_engine::model::{ModelFiles, ModelPath, Quantization};
use plexus_engine::{Batch, BlockId, CpuExecutor, Draw, SamplerSettings};
use plexus_kernels::Isa;
use plexus_types::{DeviceId, DeviceKind, Sampling};
use serde_json::{Value, json};

use crate::figures::Figure;

/// Tokens in a KV block, as replicas have it.
const BLOCK_LEN: u32 = 16;

/// Steps of decoding that do not count, before those that do.
const WARM_STEPS: u32 = 8;

/// Where the model is put.
const SLOT: Slot = Slot(0);

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The model: a GGUF file, or a folder with safetensors.
    #[arg(long)]
    model: PathBuf,
    /// Threads that compute.
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    /// Quantizes the weights while they are loaded: q8_0, q6k or q4k.
    #[arg(long)]
    quant: Option<Quantization>,
    /// The best instructions that may be used, to see what a lesser machine would do: portable, neon, avx2, avx-vnni or avx512.
    #[arg(long)]
    isa: Option<Isa>,
    /// Lengths of the prompts that are read; none: no prompts.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 512])]
    prefill: Vec<u32>,
    /// Sequences that decode side by side; none: no decoding.
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    streams: Vec<u32>,
    /// Tokens that each sequence decodes, from an empty context on.
    #[arg(long, default_value_t = 128)]
    decode: u32,
    /// Most prompt tokens in a step.
    #[arg(long, default_value = "512")]
    chunk: NonZeroUsize,
    /// How many times each is measured, after a warm-up that does not count.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Ends after the first token of a prompt of one token: the time of the whole process is that of a load.
    #[arg(long)]
    first_token: bool,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Seconds from opening the files to the first token.
    first_token_s: f64,
    /// Prompt length, and tokens per second of each run.
    prefill: Vec<(u32, Vec<f64>)>,
    /// Sequences side by side, and tokens per second of all of them together in each run.
    decode: Vec<(u32, Vec<f64>)>,
    weights_bytes: u64,
    kv_bytes: u64,
    /// Most memory that this process ever had resident.
    peak_resident_bytes: u64,
}

impl Outcome {
    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let rates = |rates: &[(u32, Vec<f64>)]| rates.iter().map(|(key, values)| (key.to_string(), json!(values))).collect::<Value>();
        json!({
            "first_token_s": self.first_token_s,
            "prefill_tokens_per_s": rates(&self.prefill),
            "decode_tokens_per_s": rates(&self.decode),
            "weights_bytes": self.weights_bytes,
            "kv_bytes": self.kv_bytes,
            "peak_resident_bytes": self.peak_resident_bytes,
        })
    }

    /// For people.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let held = format!("weights {:.0} MiB, KV {:.0} MiB", mib(self.weights_bytes), mib(self.kv_bytes));
        let load = Figure::ms("from opening the files to the first token", "", &[self.first_token_s * 1e3]);
        let prefill = |(n, values): &(u32, Vec<f64>)| Figure::tokens_per_s(format!("a prompt of {n} tokens"), "", values);
        let decode = |(n, values): &(u32, Vec<f64>)| Figure::tokens_per_s(format!("{n} sequences decode, together"), "", values);
        let mut figures = vec![load];
        figures.extend(self.prefill.iter().map(prefill));
        figures.extend(self.decode.iter().map(decode));
        figures.push(Figure::mib("most memory resident", "", &[mib(self.peak_resident_bytes)]).beside(held));
        figures
    }
}

/// Loads the model and measures it.
pub(crate) fn measure(options: &Options) -> anyhow::Result<Outcome> {
    if let Some(isa) = options.isa {
        Isa::set_limit(isa)?;
    }
    let mut executor = open(options.threads)?;
    let begun = Instant::now();
    let mut files = ModelFiles::open(&ModelPath::Path(options.model.clone()))?;
    if let Some(quantization) = options.quant {
        files = files.quantized(quantization)?;
    }
    let per_stream = (1 + options.decode).div_ceil(BLOCK_LEN);
    let for_decode = options.streams.iter().copied().max().unwrap_or(0) * per_stream;
    let for_prefill = options.prefill.iter().copied().max().unwrap_or(0).div_ceil(BLOCK_LEN);
    let n_blocks = if options.first_token { 1 } else { for_decode.max(for_prefill).max(1) };
    let pool = KvPlan { n_blocks, block_len: BLOCK_LEN };
    let (weights_bytes, kv_bytes) = (files.weights_bytes.0, files.footprint(pool).0 - files.weights_bytes.0);
    let vocab_size = u32::try_from(files.config.vocab_size)?;
    executor.load(SLOT, &files, pool)?;
    let mut engine = Engine { executor, settings: greedy(), vocab_size };
    engine.prefill(1, options.chunk)?;
    let first_token_s = begun.elapsed().as_secs_f64();
    let mut outcome = Outcome { first_token_s, prefill: vec![], decode: vec![], weights_bytes, kv_bytes, peak_resident_bytes: 0 };
    if !options.first_token {
        for &length in &options.prefill {
            engine.prefill(length, options.chunk)?;
            let rates = runs(options.runs, length, || engine.prefill(length, options.chunk))?;
            outcome.prefill.push((length, rates));
        }
        for &n_streams in &options.streams {
            engine.decode(n_streams, WARM_STEPS.min(options.decode), per_stream)?;
            let rates = runs(options.runs, n_streams * options.decode, || engine.decode(n_streams, options.decode, per_stream))?;
            outcome.decode.push((n_streams, rates));
        }
    }
    outcome.peak_resident_bytes = peak_resident_bytes()?;
    Ok(outcome)
}

/// Opens the processors with so many threads.
fn open(threads: NonZeroUsize) -> anyhow::Result<Box<dyn Executor>> {
    Ok(Box::new(CpuExecutor::open(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, 0.9, Some(threads.get()))?))
}

/// Tokens per second of `n_tokens` tokens, `n_runs` times.
fn runs(n_runs: usize, n_tokens: u32, mut run: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    let timed = |_| {
        let begun = Instant::now();
        run()?;
        Ok(f64::from(n_tokens) / begun.elapsed().as_secs_f64())
    };
    (0..n_runs).map(timed).collect()
}

fn greedy() -> Arc<SamplerSettings> {
    let sampling = Sampling { temperature: Some(0.0), ..Sampling::default() };
    Arc::new(SamplerSettings::resolve(&sampling, &Sampling::default(), 0))
}

/// A loaded model.
struct Engine {
    executor: Box<dyn Executor>,
    settings: Arc<SamplerSettings>,
    vocab_size: u32,
}

impl Engine {
    /// Reads a prompt of `n_tokens` and draws the token after it.
    fn prefill(&mut self, n_tokens: u32, chunk: NonZeroUsize) -> anyhow::Result<()> {
        let prompt: Vec<u32> = (0..n_tokens).map(|i| self.some_token(i)).collect();
        let blocks: Vec<BlockId> = (0..n_tokens.div_ceil(BLOCK_LEN)).map(BlockId).collect();
        let mut first = 0;
        for part in prompt.chunks(chunk.get()) {
            let end = first + part.len() as u32;
            let mut batch = Batch::default();
            batch.push(part, first, &blocks, (end == n_tokens).then(|| self.draw(end)));
            self.executor.step(SLOT, &batch)?;
            first = end;
        }
        Ok(())
    }

    /// `n_streams` sequences decode `n_tokens` each, side by side, from a context of one token on.
    fn decode(&mut self, n_streams: u32, n_tokens: u32, blocks_each: u32) -> anyhow::Result<()> {
        let mut last: Vec<u32> = (0..n_streams).map(|i| self.some_token(i)).collect();
        for position in 0..n_tokens {
            let mut batch = Batch::default();
            for (sequence, token) in (0..).zip(&last) {
                let blocks: Vec<BlockId> = (sequence * blocks_each..(sequence + 1) * blocks_each).map(BlockId).collect();
                batch.push(&[*token], position, &blocks, Some(self.draw(position + 1)));
            }
            let output = self.executor.step(SLOT, &batch)?;
            ensure!(output.sampled.iter().all(|ids| ids.len() == 1), "a step gave {:?}", output.sampled);
            last = output.sampled.concat();
        }
        Ok(())
    }

    fn draw(&self, position: u32) -> Draw {
        Draw::new(self.settings.clone(), position)
    }

    /// The `i`-th of tokens spread over the vocabulary (Fibonacci hashing).
    fn some_token(&self, i: u32) -> u32 {
        (i + 1).wrapping_mul(2_654_435_769) % self.vocab_size
    }
}

/// Most memory that this process ever had resident, as Linux tells it.
fn peak_resident_bytes() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the kernel tells no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().with_context(|| format!("VmHWM is {line:?}"))?;
    Ok(kib << 10)
}
