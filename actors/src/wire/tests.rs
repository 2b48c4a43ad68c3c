//! The bytes of each kind of message, and what becomes of bytes that are none.

use std::sync::Arc;
use std::time::Duration;

use plexus_types::{
    ActorReport, Bytes, Delta, DeviceKind, DeviceReport, EmbedInput, EmbedRequest, FilesDigest, FilesFetch, FilesFrom, FilesState,
    FinishReason, GenerateRequest, Journal, ModelKind, NodeSummary, Prompt, ReplicaLoad, ReplicaReport, ReplicaState, RequestError,
    RequestId, Sampling, StreamEvent, Timing, TraceContext, Usage,
};
use proptest::prelude::*;

use super::{Envelope, Head, MESSAGE_MAX, Outcome, WireError, decode, encode, frame, frame_len, message, open_frame, open_message};
use crate::messages::{Answer, Attempt, Generate, Notice, Question, StreamNotice};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The value has these bytes, and these bytes are the value. A change here is a change of the wire: nodes of the last version must
/// still be understood, so nothing but additions at the end may change anything here.
#[track_caller]
fn golden<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T, bytes: &str) {
    let encoded = encode(value).expect("it encodes");
    assert_eq!(hex(&encoded), bytes, "{value:?}");
    assert_eq!(decode::<T>(&encoded).expect("it decodes"), *value);
}

fn request() -> GenerateRequest {
    GenerateRequest {
        principal: None,
        model: "m".parse().expect("a model id"),
        prompt: Prompt::Text("hi".to_owned()),
        sampling: Sampling { temperature: Some(0.5), seed: Some(7), ..Sampling::default() },
        max_tokens: Some(300),
        stop: vec!["x".to_owned()],
        constraint: None,
        logprobs: None,
    }
}

#[test]
fn a_frame_has_a_fixed_envelope() {
    let envelope = Envelope { pass: 1, position: 2, clock_ms: 0x0304 };
    let bytes = frame(envelope, b"abc");
    assert_eq!(hex(&bytes), "08010000000000000002000000000000000403000000000000616263");
    assert_eq!(bytes.len() as u64, frame_len(3));
    assert_eq!(open_frame(&bytes), Ok((envelope, &b"abc"[..])));
    assert_eq!(open_frame(&bytes[..20]), Err(WireError::Short(20)));
    assert_eq!(open_frame(&[&[9], &bytes[1..]].concat()), Err(WireError::Version(9)));
}

#[test]
fn every_head_has_its_bytes() {
    golden(&Head::Hello { from: "a#5".parse().expect("a node id"), pass: 3 }, "0001610503");
    golden(&Head::Welcome { pass: 3, echo: 4 }, "010304");
    golden(&Head::Ack { gateway: 250, sink: 251 }, "02fafbfb00");
    golden(&Head::Call { call: 1, ttl_ms: 1000 }, "0301fbe803");
    for (outcome, byte) in [(Outcome::Answered, "00"), (Outcome::Busy, "01"), (Outcome::Malformed, "02"), (Outcome::TooLarge, "03")] {
        golden(&Head::Reply { call: 1, outcome }, &format!("0401{byte}"));
    }
    golden(&Head::Notice, "05");
    golden(&Head::Events, "06");
    golden(&Head::Forgo { call: 5 }, "0805");
    golden(&Head::Part { message: 1, offset: 2, total: 3, ttl_ms: 4 }, "0701020304");
}

#[test]
fn every_question_and_answer_has_its_bytes() {
    golden(&Question::Ping, "00");
    golden(&Question::Actors, "01");
    golden(&Question::CountTokens(Box::new(request())), "02016d01026869010000003f00000000000000010700000001fb2c01010178000000");
    let inputs = vec![EmbedInput::Text("hi".to_owned())];
    let texts = EmbedRequest { model: "m".parse().expect("a model id"), inputs, dimensions: None, principal: None, indices: Vec::new() };
    golden(&Question::CheckTexts(Box::new(texts), 300), "0c016d0100026869000000fb2c01");
    golden(&Answer::Pong, "00");
    let report = ActorReport {
        path: "node/link".to_owned(),
        state: "linked".to_owned(),
        restarts: 1,
        waiting: 2,
        stalled: Duration::from_millis(500),
        last_error: None,
        counters: [("n".to_owned(), 3)].into(),
    };
    golden(&Answer::Actors(vec![report]), "0101096e6f64652f6c696e6b066c696e6b65640102000000000000e03f0001016e03");
    golden(&Answer::CountTokens(Ok(9)), "020009");
    golden(&Answer::CountTokens(Err(RequestError::Lost { message: "x".to_owned() })), "0201060178");
}

#[test]
fn every_notice_has_its_bytes() {
    let device = "cpu-0".parse().expect("a device id");
    let summary = NodeSummary {
        revision: 1,
        draining: false,
        devices: vec![DeviceReport { id: device, name: "c".to_owned(), memory_total: Bytes(4), memory_used: Bytes(2) }],
        replicas: vec![ReplicaReport {
            model: "m".parse().expect("a model id"),
            device,
            state: ReplicaState::Loaded,
            context_length: 8,
            memory: Bytes(2),
            load: ReplicaLoad { running_max: 4, ..ReplicaLoad::default() },
            kind: ModelKind::Generate,
            residency_priority: 100,
            pinned: true,
            idle: Some(Duration::from_secs(2)),
            load_time: None,
            progress: 0.5,
            prefixes: Some([7, 300, 70_000].into()),
            digest: Some(FilesDigest::new([0xab; 16])),
            tools: true,
            reasoning: false,
        }],
    };
    assert_eq!(device.kind, DeviceKind::Cpu);
    golden(
        &Notice::Summary(summary),
        "0001000105 6370752d30 0163 04 02 01 016d 05 6370752d30 01 08 02 00 04 00 00 00000000 00000000 00000000 00 64 01 010000000000000040 00 0000003f 01 03 07 fb2c01 fc70110100 01 20 6162616261626162616261626162616261626162616261626162616261626162 01 00".replace(' ', "").as_str(),
    );
    let fetch = FilesFetch {
        done: Bytes(10),
        total: Bytes(20),
        per_second: Some(Bytes(5)),
        from: FilesFrom::Awaited("b".parse().expect("a name")),
        failure: Some("x".to_owned()),
    };
    golden(&FilesState::Fetching(fetch), "020a140105030162010178");
    let journal = Journal { request: Arc::new(request()), seed: 7, prompt_ids: vec![1, 300], sampled_ids: vec![] };
    let generate = Generate {
        request: RequestId(5),
        attempt: Attempt(1),
        model: "m".parse().expect("a model id"),
        journal,
        credit_until: 64,
        trace: TraceContext::default(),
        device: "cpu-0".parse().expect("a device id"),
    };
    golden(
        &Notice::Generate(Box::new(generate)),
        "010501016d016d01026869010000003f00000000000000010700000001fb2c01010178000000 0702 01fb2c01 00 40 0000 056370752d30"
            .replace(' ', "")
            .as_str(),
    );
    golden(&Notice::Cancel { request: RequestId(5), attempt: Attempt(1) }, "020501");
    golden(&Notice::Credit { request: RequestId(5), attempt: Attempt(1), until: 9 }, "03050109");
    golden(&Notice::Forget, "04");
}

#[test]
fn every_stream_event_has_its_bytes() {
    let notice = |event| vec![StreamNotice { request: RequestId(5), attempt: Attempt(1), event }];
    golden(&notice(StreamEvent::Accepted { prompt_ids: vec![1, 2] }), "01050100020102");
    golden(
        &notice(StreamEvent::Tokens { index: 3, ids: vec![4], deltas: Delta::of_text("é".to_owned()), logprobs: Vec::new() }),
        "01050101030104 01 00 02c3a9 00".replace(' ', "").as_str(),
    );
    let usage = Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 2, timing: Timing::default() };
    golden(
        &notice(StreamEvent::Done { last_index: 2, reason: FinishReason::Length, usage }),
        "0105010202020100020000000000 00".replace(' ', "").as_str(),
    );
    golden(&notice(StreamEvent::Failed(RequestError::Internal { message: "x".to_owned() })), "01050103070178");
}

#[test]
fn what_a_newer_version_adds_is_left_alone() {
    let mut bytes = encode(&Notice::Cancel { request: RequestId(5), attempt: Attempt(1) }).expect("it encodes");
    bytes.extend_from_slice(b"something new");
    assert!(decode::<Notice>(&bytes).is_ok());
    assert!(decode::<Notice>(&[77]).is_err(), "a notice that this version does not know");
}

#[test]
fn a_length_that_lies_allocates_nothing() {
    // An `Accepted` that claims 2^60 prompt ids, and an error that claims a text of 2^60 bytes.
    for claim in ["0105010 0fd0000000000000010", "010501 0307fd0000000000000010"] {
        let claim = claim.replace(' ', "");
        let bytes: Vec<u8> =
            (0..claim.len() / 2).map(|at| u8::from_str_radix(&claim[2 * at..2 * at + 2], 16).expect("hexadecimal")).collect();
        assert!(decode::<Vec<StreamNotice>>(&bytes).is_err());
    }
}

#[test]
fn the_longest_message_survives() {
    let text = "x".repeat(MESSAGE_MAX - 64);
    let answer = Answer::CountTokens(Err(RequestError::Lost { message: text }));
    let payload = encode(&answer).expect("it encodes");
    let whole = message(&Head::Reply { call: 1, outcome: Outcome::Answered }, &payload).expect("it encodes");
    let (head, payload) = open_message(&whole).expect("it opens");
    assert_eq!(head, Head::Reply { call: 1, outcome: Outcome::Answered });
    assert_eq!(decode::<Answer>(payload), Ok(answer));
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok((_, message)) = open_frame(&bytes) {
            let _ = open_message(message);
        }
        let _ = open_message(&bytes);
        let _ = decode::<Question>(&bytes);
        let _ = decode::<Answer>(&bytes);
        let _ = decode::<Notice>(&bytes);
        let _ = decode::<Vec<StreamNotice>>(&bytes);
    }

    #[test]
    fn damaged_messages_are_errors_or_other_messages_but_never_panics(at in 0usize..60, byte in any::<u8>(), keep in 0usize..60) {
        let mut bytes = encode(&Question::CountTokens(Box::new(request()))).expect("it encodes");
        let len = bytes.len();
        bytes[at % len] = byte;
        bytes.truncate(len.min(keep + 1));
        let _ = decode::<Question>(&bytes);
    }

    #[test]
    fn tokens_survive(request in any::<u128>(), attempt in any::<u32>(), index in any::<u32>(), ids in prop::collection::vec(any::<u32>(), 0..50), text in ".*") {
        let events = vec![StreamNotice { request: RequestId(request), attempt: Attempt(attempt), event: StreamEvent::Tokens { index, ids, deltas: vec![Delta::Text(text)], logprobs: Vec::new() } }];
        prop_assert_eq!(decode::<Vec<StreamNotice>>(&encode(&events).expect("it encodes")), Ok(events));
    }
}
