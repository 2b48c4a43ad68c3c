use plexus_engine::*;
use plexus_types::*;
use std::sync::Arc;
use std::time::Instant;
#[test]
fn speed() {
    let files = ModelFiles::open(&ModelSource::Embedded).unwrap();
    let mut e = CandleExecutor::open(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, 0.5).unwrap();
    e.load(Slot(0), &files, KvPlan { n_blocks: 256, block_len: 16 }).unwrap();
    let s = Arc::new(SamplerSettings::resolve(&Sampling::default(), &Sampling::default(), 1));
    for n in [1usize, 8] {
        let t = Instant::now();
        for p in 0..200u32 {
            let mut b = Batch::default();
            for i in 0..n {
                let blocks: Vec<BlockId> = (0..16).map(|j| BlockId((i * 16 + j) as u32)).collect();
                b.push(
                    &[5],
                    p,
                    &blocks,
                    Some(Draw { settings: s.clone(), position: p + 1, prompt_history: Arc::new([]), sampled_history: vec![] }),
                );
            }
            e.step(Slot(0), &b).unwrap();
        }
        eprintln!("decode batch {n}: {:.0} tok/s", 200.0 * n as f64 / t.elapsed().as_secs_f64());
    }
    let ids: Vec<u32> = (0..256).collect();
    let blocks: Vec<BlockId> = (0..16).map(BlockId).collect();
    let t = Instant::now();
    for _ in 0..5 {
        let mut b = Batch::default();
        b.push(&ids, 0, &blocks, None);
        e.step(Slot(0), &b).unwrap();
    }
    eprintln!("prefill: {:.0} tok/s", 5.0 * 256.0 / t.elapsed().as_secs_f64());
}
