use std::collections::BTreeMap;

use plexus_types::{Chat, Delta, FinishReason, Message, Role};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::GgufValue;

/// What a `tokenizer.json` gives.
pub(super) fn codec_of(json: &Value, around: Surroundings, vocab_size: usize) -> Result<Codec, EngineError> {
    let path = Path::new("tokenizer.json");
    Codec::build(path, Parts::from_json(path, &json.to_string())?, around, vocab_size, &[])
}

/// Ids are bytes, 256 is a control token that ends answers, 257 one that does not, 258 a visible added token, 259 two letters.
fn bytes_codec() -> Codec {
    let mut vocab = serde_json::Map::new();
    for (character, byte) in vocabulary::byte_alphabet() {
        vocab.insert(character.to_string(), json!(byte));
    }
    vocab.insert("QQ".into(), json!(259));
    let added = |id: u32, content: &str, special: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special});
    for (id, content) in [(256, "<|im_end|>"), (257, "<|other|>"), (258, "<think>")] {
        vocab.insert(content.into(), json!(id));
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [added(256, "<|im_end|>", true), added(257, "<|other|>", true), added(258, "<think>", true)],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["Q", "Q"]]},
    });
    codec_of(&json, Surroundings::default(), 300).unwrap()
}

/// A small vocabulary in the manner of Llama 2.
fn sentence_piece_codec() -> Codec {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "h", "e", "l", "o", "▁h", "el", "lo", "▁hel", "▁hello"].map(str::to_owned));
    let scores: Vec<f64> = (0..tokens.len()).map(|id| if id < 264 { 0.0 } else { -(id as f64) }).collect();
    let mut kinds = vec![2, 3, 3];
    kinds.extend([6; 256]);
    kinds.extend([1; 10]);
    let metadata = BTreeMap::from([
        ("tokenizer.ggml.model".into(), GgufValue::Text("llama".into())),
        ("tokenizer.ggml.tokens".into(), GgufValue::Texts(tokens.into_iter().collect())),
        ("tokenizer.ggml.scores".into(), GgufValue::Floats(scores)),
        ("tokenizer.ggml.token_type".into(), GgufValue::Ints(kinds)),
        ("tokenizer.ggml.bos_token_id".into(), GgufValue::Int(1)),
        ("tokenizer.ggml.eos_token_id".into(), GgufValue::Int(2)),
        ("tokenizer.ggml.unknown_token_id".into(), GgufValue::Int(0)),
    ]);
    let gguf = Gguf { metadata, tensors: BTreeMap::new() };
    Codec::from_gguf(Path::new("pieces"), gguf, 269, &[2], false).unwrap()
}

/// All text that the ids give, and the end.
fn stream(codec: &Codec, ids: &[u32], stop: &[&str]) -> (String, Option<FinishReason>) {
    let mut decoder = codec.decoder(&stop.iter().map(|stop| (*stop).to_owned()).collect::<Vec<_>>());
    let mut text = String::new();
    for id in ids {
        let decoded = decoder.push(*id);
        text.push_str(&decoded.text());
        if decoded.finish.is_some() {
            assert_eq!((decoder.push(65), decoder.finish()), (Decoded::default(), Vec::new()));
            return (text, decoded.finish);
        }
    }
    text.push_str(&Delta::text_of(&decoder.finish()));
    (text, None)
}

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn half_a_character_is_never_given() {
    let codec = bytes_codec();
    let mut decoder = codec.decoder(&[]);
    let given: Vec<String> = ids("é🙂").iter().map(|id| decoder.push(*id).text()).collect();
    assert_eq!(given, ["", "é", "", "", "", "🙂"]);
    assert_eq!(stream(&codec, &ids("é")[..1], &[]).0, "\u{FFFD}");
    assert_eq!(stream(&codec, &[0xF0, 0x9F, 65], &[]).0, "\u{FFFD}A");
}

#[test]
fn stop_texts_are_held_back_and_never_given() {
    let codec = bytes_codec();
    let mut decoder = codec.decoder(&["STOP".into()]);
    let given: Vec<String> = ids("aSTxST").iter().map(|id| decoder.push(*id).text()).collect();
    assert_eq!(given, ["a", "", "", "STx", "", ""]);
    assert_eq!(Delta::text_of(&decoder.finish()), "ST");
    let stopped = |text: &str, stop| stream(&codec, &ids(text), stop);
    assert_eq!(stopped("one STOP two", &["STOP"]), ("one ".into(), Some(FinishReason::StopSequence("STOP".into()))));
    assert_eq!(stopped("ab", &["b", "ab"]), ("".into(), Some(FinishReason::StopSequence("ab".into()))));
    assert_eq!(stopped("abcd", &["abcd", "bc"]), ("a".into(), Some(FinishReason::StopSequence("bc".into()))));
    assert_eq!(stopped("naïve é", &["é"]), ("naïve ".into(), Some(FinishReason::StopSequence("é".into()))));
    assert_eq!(stopped("abc", &[""]), ("abc".into(), None));
}

#[test]
fn a_stop_text_ends_no_answer_before_its_least_number_of_tokens() {
    let codec = bytes_codec();
    let stopped = |text: &str, stop: &[&str], min_tokens| {
        let stop: Vec<String> = stop.iter().map(|stop| (*stop).to_owned()).collect();
        let mut decoder = codec.decoder(&stop).of_at_least(min_tokens);
        let mut given = String::new();
        for id in ids(text) {
            let decoded = decoder.push(id);
            given.push_str(&decoded.text());
            if let Some(FinishReason::StopSequence(stop)) = decoded.finish {
                return format!("{given}!{stop}");
            }
        }
        given + &Delta::text_of(&decoder.finish())
    };
    assert_eq!(stopped("abcbd", &["b"], 0), "a!b");
    assert_eq!(stopped("abcbd", &["b"], 2), "abc!b");
    assert_eq!(stopped("abcbd", &["b"], 4), "abcbd");
    // What ends behind them ends it, wherever it begins.
    assert_eq!(stopped("abcd", &["cd"], 3), "ab!cd");
    assert_eq!(stopped("ababx", &["ab", "abab"], 2), "!abab");
    assert_eq!(stopped("abacx", &["ab", "abab", "c"], 2), "aba!c");
    assert_eq!(stopped("éébé", &["é"], 4), "ééb!é");
}

#[test]
fn a_stop_text_is_found_inside_a_token_and_across_tokens() {
    let codec = bytes_codec();
    let found = |ids: &[u32], stop: &str| stream(&codec, ids, &[stop]);
    assert_eq!(found(&[97, 259, 98], "Q"), ("a".into(), Some(FinishReason::StopSequence("Q".into()))));
    assert_eq!(found(&[97, 259, 98], "Qb"), ("aQ".into(), Some(FinishReason::StopSequence("Qb".into()))));
}

#[test]
fn control_tokens_end_or_are_left_out_and_reasoning_marks_stay() {
    let codec = bytes_codec();
    assert_eq!(stream(&codec, &[258, 97, 257, 98, 256, 99], &[]), ("<think>ab".into(), Some(FinishReason::Stop)));
    assert_eq!(stream(&codec, &[83, 256], &["ST"]), ("S".into(), Some(FinishReason::Stop)));
    assert!(codec.is_stop(256) && !codec.is_stop(257));
}

#[test]
fn special_tokens_in_text_are_recognised() {
    let codec = bytes_codec();
    assert_eq!(codec.encode(&Prompt::Text("a<|im_end|><think>QQ".into())).unwrap(), [97, 256, 258, 259]);
}

#[test]
fn a_model_without_a_template_says_what_to_use_instead() {
    let chat = Chat { messages: vec![Message::text(Role::User, "hi")], ..Chat::default() };
    let Err(RequestError::Invalid { message, .. }) = bytes_codec().encode(&Prompt::Chat(chat)) else { panic!("it was taken") };
    assert!(message.contains("/v1/completions"), "{message}");
}

#[test]
fn sentence_piece_vocabularies_merge_by_score_and_fall_back_to_bytes() {
    let codec = sentence_piece_codec();
    let piece = |text: &str| codec.tokenizer.token_to_id(text).unwrap();
    assert_eq!(codec.encode(&Prompt::Text("hello".into())).unwrap(), [1, piece("▁hello")]);
    assert_eq!(codec.encode(&Prompt::Text("hell".into())).unwrap(), [1, piece("▁hel"), piece("l")]);
    assert_eq!(codec.encode(&Prompt::Text("é".into())).unwrap(), [1, piece("▁"), piece("<0xC3>"), piece("<0xA9>")]);
    let ids = codec.encode(&Prompt::Text("hello é hello".into())).unwrap();
    assert_eq!(codec.decode(&ids[1..]), "hello é hello");
    assert_eq!(stream(&codec, &ids[1..], &[]).0, "hello é hello");
}

#[test]
fn a_tokenizer_that_merges_unknown_tokens_is_refused() {
    let json = json!({"decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "aaaaaaaaaaa"]]}});
    let result = codec_of(&json, Surroundings::default(), 10);
    assert!(matches!(result, Err(EngineError::Malformed { .. })));
}

proptest! {
    #[test]
    fn text_given_in_pieces_is_the_text_given_at_once(ids in prop::collection::vec(0u32..305, 0..60)) {
        let codec = bytes_codec();
        let ids: Vec<u32> = ids.into_iter().filter(|id| *id != 256).collect();
        let streamed = stream(&codec, &ids, &[]).0;
        prop_assert_eq!(&streamed, &codec.decode(&ids));
        // The library leaves out all control tokens; those that stay visible here are ours.
        let known: Vec<u32> = ids.iter().copied().filter(|id| *id < 256 || *id == 259).collect();
        prop_assert_eq!(codec.decode(&known), codec.tokenizer.decode(&known));
    }

    #[test]
    fn stop_texts_cut_the_same_place_however_the_text_arrives(text in "[abQ]{0,24}", stops in prop::collection::vec("[abQ]{1,3}", 0..3)) {
        let codec = bytes_codec();
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let one_by_one = stream(&codec, &ids(&text), &stops);
        let merged = stream(&codec, &codec.encode(&Prompt::Text(text.clone())).unwrap(), &stops);
        prop_assert_eq!(&one_by_one, &merged);
        prop_assert!(stops.iter().all(|stop| !one_by_one.0.contains(stop)));
        match one_by_one.1 {
            Some(FinishReason::StopSequence(stop)) => { let cut = one_by_one.0 + &stop; prop_assert!(text.starts_with(&cut)) },
            _ => prop_assert_eq!(one_by_one.0, text),
        }
    }
}

#[test]
fn a_text_far_beyond_what_a_model_holds_is_refused_by_samples_of_it_and_one_that_may_fit_is_taken_apart() {
    let codec = bytes_codec();
    let refused = |text: String, max_tokens| match codec.encode_within(&Prompt::Text(text), max_tokens) {
        Err(RequestError::ContextLength { prompt_tokens, .. }) => Some(prompt_tokens),
        other => other.map(|_| None).unwrap(),
    };
    // Two letters make a token in the second half, one in the first; characters of several bytes stand at the places of samples.
    let text = "é".repeat(SAMPLED_FROM / 2) + &"QQ".repeat(SAMPLED_FROM / 2);
    let n_tokens = (SAMPLED_FROM + SAMPLED_FROM / 2) as u32;
    let estimated = refused(text.clone(), 1000).unwrap();
    assert!(estimated.abs_diff(n_tokens) < n_tokens / 20, "{estimated} of {n_tokens}");
    assert_eq!(refused(text.clone(), n_tokens), None);
    assert_eq!(refused(text, n_tokens * 3 / 4), None, "samples are no proof");
    assert_eq!(refused("QQ".repeat(1000), 10), None, "short ones are not worth it");
}
