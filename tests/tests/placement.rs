//! Models come and go on sixteen unequal nodes: invariants over many seeds, and the wait beside what others do.

use plexus_tests::placement::{Outcome, Placement, Workload, baseline};

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

/// Runs a trace to its end, every request of which is answered, or refused with a reason.
fn run(workload: Workload, seed: u64) -> Outcome {
    let n_requests = workload.requests.len();
    let outcome = Placement::new(workload, seed).run().unwrap_or_else(|what| panic!("{what}"));
    assert_eq!(outcome.answered + outcome.refused, n_requests, "seed {seed}");
    eprintln!(
        "seed {seed}: {} answered, {} refused, mean wait {:?}; {} loads, {} beside one of the other side of a cut, {} beside one that nobody \
         knew of; {} gone from beside a pinned one, {} late to say whether they go, {} times one gave way",
        outcome.answered,
        outcome.refused,
        outcome.mean_wait,
        outcome.loads,
        outcome.loaded_on_both_sides,
        outcome.twins,
        outcome.gone_beside_pinned,
        outcome.late_answers,
        outcome.gave_way,
    );
    outcome
}

#[test]
fn sixteen_unequal_nodes_serve_sixty_models_of_which_some_are_pinned_while_nodes_die() {
    // CX-25, CX-26, CX-42, CX-43
    let (mut beside_pinned, mut late, mut displacing) = (0, 0, 0);
    for seed in seeds(6) {
        let workload = Workload::random(NODES, MODELS, 1200, seed).with_failures(seed).with_pins().with_two_devices();
        let outcome = run(workload, seed);
        assert!(outcome.refused * 100 <= outcome.answered, "seed {seed}: {outcome:?}");
        beside_pinned += outcome.gone_beside_pinned;
        late += outcome.late_answers;
        displacing += outcome.displacing_orders;
    }
    assert!(displacing > 0, "there was always room: nobody ever had to go");
    assert!(beside_pinned > 0 && late > 0, "nobody was tempted to evict a pinned model, or nobody answered late");
}

#[test]
fn both_sides_of_a_cut_serve_what_they_can_hold_and_are_one_again_when_it_heals() {
    // CX-42, CX-43
    let mut on_both_sides = 0;
    for seed in seeds(6) {
        let workload = Workload::random(NODES, MODELS, 1200, seed).with_cuts(seed).with_failures(seed).with_pins().with_two_devices();
        let outcome = run(workload, seed);
        assert!(outcome.refused * 20 <= outcome.answered, "seed {seed}: {outcome:?}");
        on_both_sides += outcome.loaded_on_both_sides;
    }
    assert!(on_both_sides > 0, "no side had to load what the other held");
}

#[test]
fn a_model_that_too_many_want_gets_further_replicas_which_go_when_nobody_needs_them() {
    for seed in seeds(4) {
        let outcome = run(Workload::hot(seed), seed);
        assert_eq!(outcome.refused, 0, "seed {seed}: {outcome:?}");
        assert!((2..=4).contains(&outcome.most_replicas[0]), "seed {seed}: {outcome:?}");
        assert_eq!(outcome.most_replicas[1], 1, "seed {seed}: one is enough for few requests: {outcome:?}");
        assert_eq!(outcome.replicas_left, [1, 1], "seed {seed}: {outcome:?}");
    }
}

#[test]
fn clients_wait_at_most_half_as_long_as_with_a_number_of_models_per_node_and_random_places_and_no_more_are_refused() {
    for seed in seeds(3) {
        let calm = Workload::random(NODES, MODELS, 2000, seed);
        let failing = Workload::random(NODES, MODELS, 1200, seed).with_failures(seed);
        assert!(failing.failures.len() > 3, "seed {seed}: {:?}", failing.failures);
        for workload in [calm, failing] {
            let theirs = baseline::run(&workload, seed);
            assert_eq!(theirs.answered + theirs.refused, workload.requests.len(), "seed {seed}");
            let n_failures = workload.failures.len();
            let ours = run(workload, seed);
            eprintln!(
                "seed {seed}, {n_failures} failures: loads per thousand requests {:.1} against {:.1}; mean wait {:?} against {:?}",
                ours.loads_per_thousand(),
                theirs.loads_per_thousand(),
                ours.mean_wait,
                theirs.mean_wait,
            );
            assert!(ours.mean_wait * 2 <= theirs.mean_wait, "seed {seed}, {n_failures} failures: {ours:?} against {theirs:?}");
            assert!(ours.refused <= theirs.refused, "seed {seed}, {n_failures} failures: {ours:?} against {theirs:?}");
        }
    }
}
