//! Models that come and go on a simulated cluster: how many loads that takes and how long clients wait, beside what others do.

use anyhow::anyhow;
use plexus_tests::placement::{Outcome, Placement, Workload, baseline};

use crate::figures::{Figure, ms};

const NODES: usize = 16;
const MODELS: usize = 60;

/// Runs traces of so many requests, one per seed, without failures and with a node that dies each minute.
///
/// Errors: an invariant of the simulation does not hold.
pub(crate) fn measure(seeds: u64, requests: usize) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (named, fails) in [("no node dies", false), ("a node dies each minute", true)] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for seed in 0..seeds {
            let calm = Workload::random(NODES, MODELS, requests, seed);
            let workload = if fails { calm.with_failures(seed) } else { calm };
            theirs.push(baseline::run(&workload, seed));
            ours.push(Placement::new(workload, seed).run().map_err(|what| anyhow!(what))?);
        }
        let of = |outcomes: &[Outcome], value: fn(&Outcome) -> f64| -> Vec<f64> { outcomes.iter().map(value).collect() };
        let refused = |outcomes: &[Outcome]| format!("{} refused", outcomes.iter().map(|outcome| outcome.refused).sum::<usize>());
        let wait = |outcome: &Outcome| ms(outcome.mean_wait);
        let waits = of(&ours, wait).into_iter().zip(of(&theirs, wait));
        let shares: Vec<f64> = waits.map(|(ours, theirs)| ours / theirs).collect();
        figures.extend([
            Figure::ms(format!("{named}: mean wait for the first step"), "", &of(&ours, wait)).beside(refused(&ours)),
            Figure::ms("&nbsp; the same of the baseline", "", &of(&theirs, wait)).beside(refused(&theirs)),
            Figure::times("&nbsp; the one to the other", "≤ 0.5 ×", &shares),
            Figure::count("&nbsp; loads per thousand requests", "", &of(&ours, Outcome::loads_per_thousand)),
            Figure::count("&nbsp; the same of the baseline", "", &of(&theirs, Outcome::loads_per_thousand)),
        ]);
    }
    Ok(figures)
}
