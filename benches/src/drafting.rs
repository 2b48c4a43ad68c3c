//! What a draft model gains, by how often it is right: scheduler, executor and both models as a replica has them, without actors and HTTP.
//!
//! One process holds the weights once and answers with the draft model and without in turn, so that neither has luck with its memory. The answers
//! must be the very same.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use plexus_actors::evictor::plan::BLOCK_LEN;
use plexus_actors::model::scheduler::{Counts, DRAFTS_MAX, Limits, PROMPT_TOKENS_MAX, Scheduler};
use plexus_actors::model::sequence::Sequence;
use plexus_engine::{CpuExecutor, DraftingExecutor, KvPlan, ModelFiles, ModelPath, SamplerSettings, Slot};
use plexus_types::{DeviceId, DeviceKind, Sampling};
use tokio::time::Instant;

use crate::figures::Figure;

/// Where the model is put.
const SLOT: Slot = Slot(0);

/// The command's options.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The model: a GGUF file of `cpu-vs-llamacpp/make_pair.py`.
    #[arg(long)]
    model: PathBuf,
    /// Draft models, for one after the other: files of the same.
    #[arg(long, value_delimiter = ',', required = true)]
    draft: Vec<PathBuf>,
    /// Threads that compute.
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    /// Streams at a time.
    #[arg(long, default_value_t = 1)]
    streams: u32,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 200)]
    tokens: u32,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 32)]
    prompt: u32,
    /// Takes always the likeliest token, instead of drawing among 40 at a temperature of 1.
    #[arg(long)]
    greedy: bool,
    /// How many times each is measured, after one time in which it is learned what guesses cost and bring.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// The model with each of the draft models and without, in turn.
pub(crate) fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let files = open(&options.model)?;
    let mut figures = vec![];
    for draft in &options.draft {
        let name = draft.file_stem().unwrap_or(draft.as_os_str()).to_string_lossy();
        figures.extend(Bench::new(options, &files, &open(draft)?)?.compare(&name)?);
    }
    Ok(figures)
}

fn open(path: &Path) -> anyhow::Result<ModelFiles> {
    ModelFiles::open(&ModelPath::Path(path.to_owned())).with_context(|| format!("opening {}", path.display()))
}

/// A device with a model and its draft model.
struct Bench<'a> {
    options: &'a Options,
    files: &'a ModelFiles,
    device: DraftingExecutor,
    /// With the draft model, and without.
    schedulers: [Scheduler<u32>; 2],
}

/// Answers to requests that came together.
struct Answered {
    ids: Vec<Vec<u32>>,
    n_steps: u32,
    tokens_per_s: f64,
}

impl<'a> Bench<'a> {
    fn new(options: &'a Options, files: &'a ModelFiles, draft: &ModelFiles) -> anyhow::Result<Self> {
        let device = CpuExecutor::open(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, 0.9, Some(options.threads.get()))?;
        let mut device = DraftingExecutor::new(Box::new(device));
        let n_blocks = options.streams * (options.prompt + options.tokens).div_ceil(BLOCK_LEN);
        device.load(SLOT, files, Some(draft), KvPlan { n_blocks, block_len: BLOCK_LEN })?;
        let limits = |drafts_max| Limits {
            running_max: options.streams,
            n_blocks,
            block_len: BLOCK_LEN,
            prompt_tokens_max: PROMPT_TOKENS_MAX,
            guesses_max: 0,
            drafts_max,
        };
        Ok(Self { options, files, device, schedulers: [DRAFTS_MAX, 0].map(|max| Scheduler::new(limits(max))) })
    }

    fn compare(&mut self, name: &str) -> anyhow::Result<Vec<Figure>> {
        let (mut rates, mut first, mut n_steps) = ([vec![], vec![]], vec![], 0);
        let mut learned = Counts::default();
        for run in 0..=self.options.runs {
            // The first of a pair finds the processor as the second of the pair before left it: they take turns.
            let order = if run % 2 == 0 { [0, 1] } else { [1, 0] };
            let mut answered = [None, None];
            for which in order {
                answered[which] = Some(self.answer(run as u32, which)?);
            }
            let [Some(with), Some(without)] = answered else { unreachable!("both were asked") };
            ensure!(with.ids == without.ids, "{name}: with the draft model {:?}, without {:?}", with.ids, without.ids);
            if run == 0 {
                first.push(with.tokens_per_s / without.tokens_per_s);
                learned = self.schedulers[0].counts();
                continue;
            }
            n_steps += with.n_steps;
            rates[0].push(with.tokens_per_s);
            rates[1].push(without.tokens_per_s);
        }
        let counts = self.schedulers[0].counts();
        let (n, n_right) = (counts.drafted - learned.drafted, counts.drafted_right - learned.drafted_right);
        let gains: Vec<f64> = rates[0].iter().zip(&rates[1]).map(|(with, without)| with / without).collect();
        let n_tokens = self.options.tokens as usize * self.options.streams as usize * self.options.runs;
        Ok(vec![
            Figure::tokens_per_s(format!("{name}: without it"), "", &rates[1]),
            Figure::tokens_per_s(format!("{name}: with it"), "", &rates[0]).beside(format!("{n_tokens} tokens in {n_steps} steps")),
            Figure::times(format!("{name}: with it to without, of each run"), "", &gains)
                .beside(format!("{n_right} of {n} guesses were right")),
            Figure::times(format!("{name}: the same of its first answers"), "", &first),
        ])
    }

    /// Answers the requests of a run with one of the schedulers. The rate is that of all tokens from the first of any to the last: prompts are not
    /// what is measured.
    fn answer(&mut self, run: u32, which: usize) -> anyhow::Result<Answered> {
        let scheduler = &mut self.schedulers[which];
        for stream in 0..self.options.streams {
            let seed = run * self.options.streams + stream;
            let vocab_size = self.files.codec.vocab_size() as u32;
            // Tokens spread over the vocabulary (Fibonacci hashing), others for each seed.
            let prompt = (0..self.options.prompt).map(|i| (seed * self.options.prompt + i + 1).wrapping_mul(2_654_435_769) % vocab_size);
            let temperature = if self.options.greedy { 0.0 } else { 1.0 };
            let sampling = Sampling { temperature: Some(temperature), top_k: Some(40), ignore_eos: true, ..Sampling::default() };
            let settings = SamplerSettings::resolve(&sampling, &Sampling::default(), u64::from(seed));
            let decoder = self.files.codec.decoder(&[]).ignoring_end(true);
            let (sequence, _) = Sequence::new(settings, prompt.collect(), Vec::new(), decoder, self.options.tokens, u32::MAX);
            scheduler.push(stream, sequence, None);
        }
        let mut ids = vec![Vec::new(); self.options.streams as usize];
        let (mut first, mut n_steps) = (None, 0);
        let mut now = Instant::now();
        while let Some(batch) = scheduler.next_step(now, |_| {}) {
            let output = self.device.step(SLOT, &batch)?;
            now = Instant::now();
            scheduler.on_step(&output, now, |stream, _, progress| ids[*stream as usize].extend(progress.ids));
            n_steps += u32::from(first.is_some());
            if ids.iter().any(|ids| !ids.is_empty()) {
                first.get_or_insert(now);
            }
        }
        let first = first.context("no tokens came")?;
        let n_tokens: usize = ids.iter().map(Vec::len).sum();
        ensure!(n_tokens == (self.options.tokens * self.options.streams) as usize, "{n_tokens} tokens came");
        Ok(Answered { tokens_per_s: (n_tokens - ids.len()) as f64 / now.duration_since(first).as_secs_f64(), ids, n_steps })
    }
}
