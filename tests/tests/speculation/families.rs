//! The same with every golden model of the engine: small ones as they are served, and as large ones are held.

#[path = "../../../engine/tests/support/gguf.rs"]
mod gguf;
#[path = "../../../engine/tests/support/wide.rs"]
mod wide;

use std::fs;
use std::path::{Path, PathBuf};

use plexus_engine::{ModelFiles, ModelPath, model::Quantization};
use plexus_kernels::Format;
use plexus_types::{GenerateRequest, Sampling};

use crate::serving::{Answer, Model, PLAIN, Service, greedy, hot, request};

/// Two blocks and a part of a third, of tokens of a byte.
const BEGINNING: &str = "Ring-a-ring-a-roses, a pocket full of posies; ";
/// Together, in chunks, with guesses, in a pool that is too small for all.
const CROWDED: Service = Service { guesses_max: 8, running_max: 6, n_blocks: 14, prompt_tokens_max: 24 };

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden")
}

/// The names of the folders of decoders.
fn names() -> Vec<String> {
    let folders = fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path());
    let decoders = folders.filter(|folder| folder.join("config.v5.json").exists());
    let mut names: Vec<String> = decoders.map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn open_folder(name: &str) -> ModelFiles {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden().join(name).join(file), folder.path().join(file)).unwrap();
    }
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(golden().join(file), folder.path().join(file)).unwrap();
    }
    ModelFiles::open(&ModelPath::Path(folder.path().to_owned())).unwrap() // its files are open: the folder may go
}

fn requests() -> Vec<GenerateRequest> {
    // Some bytes are much likelier than others, so that a random model, too, says things again.
    let repetitive = Sampling { logit_bias: [(101, 6.0), (110, 6.0), (115, 5.0)].into(), ..hot(1) };
    let penalised = Sampling { repetition_penalty: Some(1.1), frequency_penalty: Some(0.2), ..hot(2) };
    let kinds = [
        request(BEGINNING, greedy()),
        request(&format!("{BEGINNING}atishoo"), hot(3)),
        request(&format!("{BEGINNING}atishoo"), hot(4)),
        request("ene, ene, ene, ene, ene,", Sampling { temperature: Some(0.0), ..repetitive.clone() }),
        request(&format!("{BEGINNING}we all"), penalised),
        request(&format!("{BEGINNING}{BEGINNING}"), repetitive),
    ];
    let endless = |sampling| Sampling { ignore_eos: true, ..sampling };
    let logprobs = Some(2);
    kinds.map(|request| GenerateRequest { sampling: endless(request.sampling), max_tokens: Some(45), logprobs, ..request }).into()
}

/// Checks a model, and tells how many guesses were right.
fn check(what: &str, files: ModelFiles, n_threads: usize) -> u64 {
    let mut model = Model::of(files, None, n_threads);
    let requests = requests();
    let whole = |request: &GenerateRequest| (request.clone(), Vec::new());
    let alone: Vec<_> = requests.iter().flat_map(|request| model.serve(&[whole(request)], PLAIN).0).collect();
    assert!(alone.iter().all(|answer| answer.ids.len() == 45 && answer.logprobs.len() == 45 && answer.end.is_some()), "{what}");
    let (shared, counts) = model.serve(&requests.iter().map(whole).collect::<Vec<_>>(), PLAIN);
    assert!(counts.cached_tokens >= 4 * 32 && counts.preemptions == 0 && counts.guessed == 0, "{what}: {counts:?}");
    assert_eq!(shared, alone, "{what}: with beginnings that were read for others");
    // Short answers make the scheduler expect short ones of the others, and let in more than there is room for.
    let short = vec![whole(&GenerateRequest { max_tokens: Some(2), ..requests[0].clone() }); 12];
    let (mut crowded, counts) = model.serve(&[short, requests.iter().map(whole).collect()].concat(), CROWDED);
    assert!(counts.preemptions > 0 && counts.cached_tokens > 0 && counts.guessed > 0, "{what}: {counts:?}");
    assert_eq!(crowded.split_off(12), alone, "{what}: in a crowd");
    let begins = |answer: &Answer| answer.ids == alone[0].ids[..2] && answer.logprobs == alone[0].logprobs[..2];
    assert!(crowded.iter().all(begins), "{what}: in a crowd");
    let begun: Vec<_> = requests.iter().zip(&alone).map(|(request, answer)| (request.clone(), answer.ids[..11].to_vec())).collect();
    let (rest, _) = model.serve(&begun, CROWDED);
    for (rest, whole) in rest.iter().zip(&alone) {
        let (ids, logprobs) = (&whole.ids[11..], &whole.logprobs[11..]);
        assert_eq!((&rest.ids[..], &rest.logprobs[..], &rest.end), (ids, logprobs, &whole.end), "{what}: continued");
    }
    counts.guessed_right
}

#[test]
fn an_answer_is_the_same_however_it_is_served_in_every_family() {
    let names = names();
    assert!(names.len() >= 21, "{names:?}");
    let right: u64 = names.iter().map(|name| check(name, open_folder(name), 1)).sum();
    assert!(right > 20, "{right} guesses were right: the test is about too little");
}

#[test]
fn an_answer_is_the_same_however_it_is_served_where_models_are_held_as_large_ones() {
    let mut n_files = 0;
    for name in names() {
        for kind in ["bf16", "q8_0"] {
            let path = golden().join(&name).join(format!("{name}-{kind}.gguf"));
            if path.exists() {
                check(&format!("{name}-{kind}"), ModelFiles::open(&ModelPath::Path(path)).unwrap().held_as_large(), 2);
                n_files += 1;
            }
        }
    }
    assert!(n_files >= 26, "{n_files} files");
}

/// Rows of 256 and 512 numbers, as the formats of 256 need.
#[test]
fn an_answer_is_the_same_however_it_is_served_in_the_formats_of_256_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wide.gguf");
    let open = |format: Format| {
        fs::write(&path, wide::model(format).bytes()).unwrap();
        ModelFiles::open(&ModelPath::Path(path.clone())).unwrap().held_as_large()
    };
    for format in [Format::Q2K, Format::Q3K, Format::Q4K, Format::Q5K, Format::Q6K, Format::Iq4Xs] {
        check(format.name(), open(format), 2);
    }
    for quantization in [Quantization::Q6K, Quantization::Q4K] {
        check(&format!("BF16 as {quantization}"), open(Format::Bf16).quantized(quantization).unwrap(), 2);
    }
}
