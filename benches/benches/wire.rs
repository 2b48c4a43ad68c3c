//! The codec of links: a frame of token notices, encoded and decoded, beside a copy of its bytes, which no codec can undercut.
#![allow(missing_docs, reason = "criterion's macros make items without documentation")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use plexus_actors::messages::{Attempt, StreamNotice};
use plexus_actors::wire::{Envelope, Head, WireError, decode, encode, frame, message, open_frame, open_message};
use plexus_types::{Delta, RequestId, StreamEvent};

/// Notices in a frame, and tokens in a notice: a lone token, many streams at once, a burst of one stream.
const SHAPES: [(usize, usize); 3] = [(1, 1), (64, 1), (1, 64)];

fn notices(n_notices: usize, n_tokens: usize) -> Vec<StreamNotice> {
    let event = |index| StreamEvent::Tokens {
        index,
        ids: (500..).take(n_tokens).collect(),
        deltas: Delta::of_text(" word".repeat(n_tokens)),
        logprobs: Vec::new(),
    };
    let notice = |i| StreamNotice { request: RequestId(0x1234_5678 << 64 | i as u128), attempt: Attempt(1), event: event(1000 + i as u32) };
    (0..n_notices).map(notice).collect()
}

fn write(notices: &Vec<StreamNotice>) -> Result<Vec<u8>, WireError> {
    let envelope = Envelope { pass: 0x1122_3344_5566_7788, position: 1 << 30, clock_ms: 1 << 40 };
    Ok(frame(envelope, &message(&Head::Events, &encode(notices)?)?))
}

fn read(bytes: &[u8]) -> Result<Vec<StreamNotice>, WireError> {
    let (_, body) = open_frame(bytes)?;
    let (_, payload) = open_message(body)?;
    decode(payload)
}

fn frames(c: &mut Criterion) {
    for (n_notices, n_tokens) in SHAPES {
        let notices = notices(n_notices, n_tokens);
        let bytes = write(&notices).expect("notices can be encoded");
        assert_eq!(read(&bytes).as_ref(), Ok(&notices));
        let mut group = c.benchmark_group(format!("wire/{n_notices} notices of {n_tokens} tokens, {} bytes", bytes.len()));
        group.throughput(Throughput::Elements((n_notices * n_tokens) as u64));
        group.bench_function("floor: copy", |b| b.iter(|| black_box(&bytes).clone()));
        group.bench_function("encode", |b| b.iter(|| write(black_box(&notices)).expect("notices can be encoded")));
        group.bench_function("decode", |b| b.iter(|| read(black_box(&bytes)).expect("what was encoded can be decoded")));
        group.finish();
    }
}

criterion_group!(benches, frames);
criterion_main!(benches);
