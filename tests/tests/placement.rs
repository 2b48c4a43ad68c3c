//! Models come and go on sixteen unequal nodes: invariants over many seeds, and the wait beside what others do.

use plexus_tests::placement::{Placement, Workload, baseline};

const NODES: usize = 16;
const MODELS: usize = 60;

/// Seeds of a run: `PLEXUS_SEEDS=1000` for more, `PLEXUS_SEED=7` for one.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("PLEXUS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PLEXUS_SEEDS").unwrap_or(usual),
    }
}

#[test]
fn sixteen_unequal_nodes_serve_sixty_models_while_nodes_die() {
    // CX-25, CX-26, CX-42, CX-43
    for seed in seeds(6) {
        let workload = Workload::random(NODES, MODELS, 1200, true, seed);
        let n_requests = workload.requests.len();
        let outcome = Placement::new(workload, seed).run().unwrap_or_else(|what| panic!("{what}"));
        assert_eq!(outcome.answered + outcome.refused, n_requests, "seed {seed}");
        assert!(outcome.refused * 100 <= n_requests, "seed {seed}: {outcome:?}");
    }
}

#[test]
fn clients_wait_at_most_half_as_long_as_with_a_number_of_models_per_node_and_random_places() {
    for seed in seeds(3) {
        let workload = Workload::random(NODES, MODELS, 2000, false, seed);
        let theirs = baseline::run(&workload, seed);
        let ours = Placement::new(workload, seed).run().unwrap_or_else(|what| panic!("{what}"));
        println!(
            "seed {seed}: loads per thousand requests {:.1} against {:.1}; mean wait {:?} against {:?}",
            ours.loads_per_thousand(),
            theirs.loads_per_thousand(),
            ours.mean_wait,
            theirs.mean_wait,
        );
        assert!(ours.mean_wait * 2 <= theirs.mean_wait, "seed {seed}: {ours:?} against {theirs:?}");
    }
}
