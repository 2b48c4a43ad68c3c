use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use super::{Bpe, Options};
use crate::embedded::PIP_GGUF;
use crate::model::{Gguf, GgufValue, Storage, Texts};

type Pair<'a> = (&'a str, &'a str);

/// The model section of a `tokenizer.json` with these tokens, of which the first of equal ones counts, and these merges.
fn model_json(tokens: &[&str], merges: &[Pair<'_>], options: &Options) -> Value {
    let mut vocab = serde_json::Map::new();
    for (id, token) in tokens.iter().enumerate() {
        vocab.entry(*token).or_insert_with(|| json!(id));
    }
    json!({
        "dropout": null, "unk_token": options.unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": options.fuse_unknown, "byte_fallback": options.byte_fallback, "ignore_merges": options.ignore_merges,
        "vocab": vocab, "merges": merges,
    })
}

fn built(tokens: &[&str], merges: &[Pair<'_>], options: &Options) -> Bpe {
    let mut bpe = Bpe::new(tokens.iter().collect(), options.clone());
    bpe.merge_texts(merges).unwrap();
    bpe
}

/// An id, its text, and where the token begins and ends in the word.
type Found = (u32, String, (usize, usize));

/// The tokens of a word; none if it cannot be written.
fn tokens_of(model: &impl Model, word: &str) -> Option<Vec<Found>> {
    model.tokenize(word).ok().map(|tokens| tokens.into_iter().map(|token| (token.id, token.value, token.offsets)).collect())
}

fn assert_alike(ours: &Bpe, library: &BPE, words: impl IntoIterator<Item = impl AsRef<str>>) {
    for word in words {
        assert_eq!(tokens_of(ours, word.as_ref()), tokens_of(library, word.as_ref()), "{:?}", word.as_ref());
    }
    assert_eq!((ours.get_vocab(), ours.get_vocab_size()), (library.get_vocab(), library.get_vocab_size()));
    for id in 0..ours.get_vocab_size() as u32 + 3 {
        assert_eq!(ours.id_to_token(id), library.id_to_token(id), "{id}");
    }
}

#[test]
fn a_real_vocabulary_splits_text_as_the_librarys_model_does() {
    let mut gguf = Gguf::read(&Storage::embedded("pip", PIP_GGUF), 0).unwrap();
    let tokens = gguf.take_texts("tokenizer.ggml.tokens").unwrap();
    let merges = gguf.take_texts("tokenizer.ggml.merges").unwrap();
    let tokens: Vec<&str> = tokens.iter().collect();
    let merges: Vec<Pair<'_>> = merges.iter().map(|merge| merge.split_once(' ').unwrap()).collect();
    assert!(tokens.len() > 1000 && merges.len() > 700 && !gguf.metadata.values().any(|value| matches!(value, GgufValue::Texts(_))));
    for options in [Options::default(), Options { ignore_merges: true, ..Options::default() }] {
        let library: BPE = serde_json::from_value(model_json(&tokens, &merges, &options)).unwrap();
        let text = include_str!("../bpe.rs").replace(' ', "\u{120}").replace('\n', "\u{10A}");
        let words = text.split_inclusive('\u{10A}').chain(text.split('\u{120}')).chain([&*text]).chain(tokens.iter().copied());
        assert_alike(&built(&tokens, &merges, &options), &library, words);
    }
}

#[test]
fn ids_of_a_json_may_have_gaps_and_any_order() {
    let json = json!({"vocab": {"c": 900, "a": 7, "ab": 4_000_000_000u32, "b": 3}, "merges": ["a b"]});
    let ours: Bpe = serde_json::from_value(json.clone()).unwrap();
    let library: BPE = serde_json::from_value(json).unwrap();
    assert_alike(&ours, &library, ["abcab", "cab", "ba", "x"]);
    assert_eq!(tokens_of(&ours, "cab"), Some(vec![(900, "c".into(), (0, 1)), (4_000_000_000, "ab".into(), (1, 3))]));
    for id in [2, 3, 7, 8, 900, 3_999_999_999, 4_000_000_000, u32::MAX] {
        assert_eq!(ours.id_to_token(id), library.id_to_token(id));
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    let refused = |json: Value| serde_json::from_value::<Bpe>(json).unwrap_err().to_string();
    for merges in
        [json!([["a", "aaaaaaaa"]]), json!([["a"]]), json!([["a", "b", "c"]]), json!(["a b c"]), json!(["ab"]), json!([3]), json!({})]
    {
        refused(json!({"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": merges}));
    }
    for vocab in [json!({"a": -1}), json!({"a": 1u64 << 32}), json!({"a": "b"}), json!(["a"]), json!(null)] {
        refused(json!({"vocab": vocab, "merges": []}));
    }
    assert!(refused(json!({"vocab": {}})).contains("no merges") && refused(json!({"merges": []})).contains("no vocab"));
    let twice = serde_json::from_str::<Bpe>(r#"{"vocab": {"a": 0, "a": 1}, "merges": []}"#).unwrap_err().to_string();
    assert!(twice.contains("twice"), "{twice}");
}

#[test]
fn a_long_word_takes_no_quadratic_time() {
    let ours = built(&["a", "aa", "aaaa"], &[("a", "a"), ("aa", "aa")], &Options::default());
    assert_eq!(tokens_of(&ours, &"a".repeat(1_000_002)).unwrap().len(), 250_001);
}

/// Tokens of few letters, an unknown one, and bytes; equal ones among them.
fn tokens() -> impl Strategy<Value = Vec<String>> {
    let token =
        prop_oneof![4 => "[abé]{1,4}", 1 => Just("<unk>".to_owned()), 1 => Just("<0xC3>".to_owned()), 1 => Just("<0xA9>".to_owned())];
    prop::collection::vec(token, 1..24)
}

fn options() -> impl Strategy<Value = Options> {
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(unknown, fuse_unknown, byte_fallback, ignore_merges)| Options {
        unknown: unknown.then(|| "<unk>".to_owned()),
        fuse_unknown,
        byte_fallback,
        ignore_merges,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn every_vocabulary_splits_text_as_the_librarys_model_does(
        tokens in tokens(), picks in prop::collection::vec(any::<[prop::sample::Index; 2]>(), 0..80), options in options(),
        words in prop::collection::vec("[abécé漢]{1,12}", 1..8),
    ) {
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let pairs = picks.iter().map(|[left, right]| (*left.get(&tokens), *right.get(&tokens)));
        let merges: Vec<Pair<'_>> = pairs.filter(|(left, right)| tokens.contains(&&*format!("{left}{right}"))).collect();
        let json = model_json(&tokens, &merges, &options);
        let library: BPE = serde_json::from_value(json.clone()).unwrap();
        assert_alike(&built(&tokens, &merges, &options), &library, &words);
        assert_alike(&serde_json::from_value(json).unwrap(), &library, &words);
    }
}

#[test]
fn merges_that_several_threads_look_for_are_ranked_in_the_order_of_the_file() {
    // Words of two and three letters, each made in all ways that there are; so many that several threads have some.
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let longer =
        |words: &[String]| -> Vec<String> { words.iter().flat_map(|word| letters.iter().map(move |c| format!("{word}{c}"))).collect() };
    let two = longer(&letters);
    let three = longer(&two);
    let tokens: Vec<&str> = letters.iter().chain(&two).chain(&three).map(String::as_str).collect();
    let cuts = |word: &&'static str| -> Vec<Pair<'static>> { (1..word.len()).map(|cut| word.split_at(cut)).collect() };
    let words: Vec<&'static str> = tokens[26..].iter().map(|word| &*String::leak((*word).to_owned())).collect();
    let mut merges: Vec<Pair<'_>> = words.iter().flat_map(cuts).collect();
    merges.reverse();
    assert!(merges.len() > 2 * super::PIECE_MIN);
    let options = Options::default();
    let library: BPE = serde_json::from_value(model_json(&tokens, &merges, &options)).unwrap();
    assert_alike(&built(&tokens, &merges, &options), &library, ["thequickbrownfox", "aaaaaaaa", "zyxzyx", "jumpsoverthelazydog"]);
    *merges.last_mut().unwrap() = ("a", "nothing");
    let mut bpe = Bpe::new(tokens.iter().collect(), options);
    assert!(bpe.merge_texts(&merges).unwrap_err().to_string().contains("nothing"));
}

#[test]
fn a_vocabulary_of_no_tokens_gives_none() {
    let none = Bpe::new(Texts::default(), Options::default());
    assert_eq!((tokens_of(&none, "a"), none.tokens().count(), none.id_to_token(0)), (Some(vec![]), 0, None));
}
