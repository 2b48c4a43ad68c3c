//! The scheduler of a replica alone, on the simulator's device: whatever is shared, evicted, preempted, guessed or cancelled, each answer is the
//! one that the request has on its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use plexus_actors::evictor::plan::BLOCK_LEN;
use plexus_actors::model::scheduler::{Limits, Scheduler};
use plexus_actors::model::sequence::Sequence;
use plexus_engine::batch::{Batch, BatchOutput};
use plexus_engine::{DraftingExecutor, KvPlan, ModelFiles, ModelPath, Slot};
use plexus_tests::sim::model::{SimExecutor, codec, reference_to, settings};
use plexus_types::FinishReason;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

const SLOT: Slot = Slot(0);
/// Time that a step takes, and that each prompt token adds to it.
const STEP: Duration = Duration::from_millis(20);
const PER_PROMPT_TOKEN: Duration = Duration::from_millis(1);

/// A scheduler, its device, and what each sequence was answered.
struct Desk {
    scheduler: Scheduler<u32>,
    device: DraftingExecutor,
    now: Instant,
    answers: BTreeMap<u32, Answer>,
    /// The steps so far: their batches, and when they ended.
    steps: Vec<(Batch, Instant)>,
    n_computed: usize,
    /// Who asks next.
    principal: Option<u64>,
    /// How often each got a place.
    n_places: BTreeMap<u32, usize>,
}

#[derive(Default)]
struct Answer {
    expected: Vec<u32>,
    ids: Vec<u32>,
    end: Option<FinishReason>,
    cached: u32,
    /// When each token came.
    at: Vec<Instant>,
}

impl Desk {
    fn new(running_max: u32, n_blocks: u32, prompt_tokens_max: u32) -> Self {
        Self::with(Limits { running_max, n_blocks, block_len: BLOCK_LEN, prompt_tokens_max, guesses_max: 16, drafts_max: 0 })
    }

    fn with(limits: Limits) -> Self {
        static FILES: OnceLock<ModelFiles> = OnceLock::new();
        let files = FILES.get_or_init(|| ModelFiles::open(&ModelPath::Embedded).unwrap());
        let mut device = DraftingExecutor::new(Box::new(SimExecutor::default()));
        let draft = (limits.drafts_max > 0).then_some(files);
        device.load(SLOT, files, draft, KvPlan { n_blocks: limits.n_blocks, block_len: limits.block_len }).unwrap();
        Self {
            scheduler: Scheduler::new(limits),
            device,
            now: Instant::now(),
            answers: BTreeMap::new(),
            steps: Vec::new(),
            n_computed: 0,
            principal: None,
            n_places: BTreeMap::new(),
        }
    }

    /// Lets it learn that answers are short.
    fn learn_short_answers(&mut self) {
        (10_000..10_010).for_each(|label| self.ask_for(label, &prompt(label, 5), 10));
        self.run();
        self.answers.clear();
    }

    /// Asks under a label for at most `max` tokens after `prompt`, of which `credit` may come at once.
    fn ask(&mut self, label: u32, prompt: &[u32], max: u32, credit: u32) {
        let seed = u64::from(label) + 1;
        let (sequence, end) = Sequence::new(settings(seed), prompt.to_vec(), Vec::new(), codec().decoder(&[]), max, credit);
        assert_eq!(end, None);
        let expected = reference_to(prompt, &[], seed, max).ids;
        self.answers.insert(label, Answer { expected, ..Answer::default() });
        self.scheduler.push(label, sequence, self.principal);
    }

    /// Labels in the order in which their answers ended.
    fn order_of_ends(&self) -> Vec<u32> {
        let mut ends: Vec<(Instant, u32)> = self.answers.iter().map(|(label, answer)| (*answer.at.last().unwrap(), *label)).collect();
        ends.sort();
        ends.into_iter().map(|(_, label)| label).collect()
    }

    /// Asks for a prompt whose answer has exactly `max` tokens: its last token is chosen so.
    fn ask_for(&mut self, label: u32, prompt: &[u32], max: u32) {
        let mut prompt = prompt.to_vec();
        prompt.push(300);
        while reference_to(&prompt, &[], u64::from(label) + 1, max).reason != FinishReason::Length {
            *prompt.last_mut().unwrap() += 1;
        }
        self.ask(label, &prompt, max, u32::MAX);
    }

    /// One step. False if there was none to do.
    fn step(&mut self) -> bool {
        let n_places = &mut self.n_places;
        let batch = self.scheduler.next_step(self.now, |label| *n_places.entry(*label).or_default() += 1);
        self.scheduler.check_invariants().unwrap();
        let Some(batch) = batch else { return false };
        let output = self.device.step(SLOT, &batch).unwrap();
        let output = BatchOutput { drafting: Duration::ZERO, ..output }; // time passes as this test says
        for (draw, did) in batch.draws.iter().zip(&output.drafts) {
            let (n_catch_up, n_draft) = draw.as_ref().map_or((0, 0), |draw| (draw.n_catch_up, draw.n_draft));
            assert!(did.n_read <= n_catch_up && did.n_guessed <= n_draft, "{did:?} where {n_catch_up} and {n_draft} were allowed");
        }
        let n_prompt = batch.tokens.len().saturating_sub(batch.draws.iter().flatten().map(|draw| 1 + draw.n_guesses as usize).sum());
        self.now += STEP + PER_PROMPT_TOKEN * n_prompt as u32;
        let (now, answers) = (self.now, &mut self.answers);
        self.scheduler.on_step(&output, now, |label, sequence, progress| {
            let answer = answers.get_mut(label).unwrap();
            assert_eq!((progress.index as usize, &answer.end), (answer.ids.len(), &None), "no token is lost, repeated or after the end");
            answer.at.extend(progress.ids.iter().map(|_| now));
            answer.ids.extend(progress.ids);
            answer.end = progress.end;
            answer.cached = sequence.n_cached();
        });
        self.scheduler.check_invariants().unwrap();
        self.n_computed += batch.tokens.len() - batch.draws.iter().flatten().map(|draw| draw.n_guesses as usize).sum::<usize>();
        self.steps.push((batch, self.now));
        true
    }

    fn run(&mut self) {
        while self.step() {}
    }

    /// Every answer is complete and the expected one.
    #[track_caller]
    fn check(&self) {
        for (label, answer) in &self.answers {
            assert_eq!((&answer.ids, answer.end.is_some()), (&answer.expected, true), "answer {label}");
        }
        assert_eq!(self.scheduler.pool().available(), self.scheduler.pool().total());
    }
}

#[test]
fn who_sends_many_requests_does_not_keep_others_from_a_place() {
    // CX-93
    let mut desk = Desk::new(2, 64, 512);
    desk.principal = Some(1);
    (0..6).for_each(|label| desk.ask_for(label, &prompt(label, 20), 20));
    desk.principal = Some(2);
    desk.ask_for(6, &prompt(6, 20), 20);
    desk.run();
    desk.check();
    let before = desk.order_of_ends().iter().position(|label| *label == 6).unwrap();
    assert!(before <= 3, "{before} of the six came before it: two had places already, and one may take the next");
}

#[test]
fn who_sends_no_key_has_what_those_with_a_key_leave() {
    // CX-93
    let mut desk = Desk::new(2, 64, 512);
    (0..4).for_each(|label| desk.ask_for(label, &prompt(label, 20), 20));
    assert!(desk.step());
    for key in [1, 2, 1, 2] {
        desk.principal = Some(key);
        let label = desk.answers.len() as u32;
        desk.ask_for(label, &prompt(label, 20), 20);
    }
    desk.run();
    desk.check();
    let order = desk.order_of_ends();
    let place = |label: u32| order.iter().position(|ended| *ended == label).unwrap();
    assert!((0..2).all(|had_a_place| place(had_a_place) < 2), "nobody loses a place: {order:?}");
    assert!((4..8).all(|keyed| place(keyed) < 6) && (2..4).all(|anonymous| place(anonymous) >= 6), "{order:?}");
}

#[test]
fn who_has_waited_too_long_for_a_place_is_taken_out_and_who_runs_is_not() {
    // CX-93
    let mut desk = Desk::new(1, 64, 512);
    (0..3).for_each(|label| desk.ask_for(label, &prompt(label, 20), 20));
    assert!(desk.step());
    assert_eq!(desk.scheduler.take_late(|label| *label != 1), [2]);
    desk.answers.remove(&2);
    desk.run();
    desk.check();
}

#[test]
fn those_that_wait_and_those_whose_prompts_are_read_are_without_tokens() {
    let mut desk = Desk::new(2, 64, 16);
    (0..3).for_each(|label| desk.ask_for(label, &prompt(label, 20 + 60 * label), 20));
    let without = |desk: &mut Desk| desk.scheduler.without_tokens().map(|label| *label).collect::<Vec<u32>>();
    assert_eq!(without(&mut desk), [0, 1, 2], "nobody has a place");
    while desk.answers[&0].ids.is_empty() {
        assert!(desk.step());
    }
    assert_eq!(without(&mut desk), [2, 1], "the last waits, the second is read");
    desk.run();
    desk.check();
    assert!(without(&mut desk).is_empty());
}

/// A prompt of `n` tokens unlike those with another `kind`.
fn prompt(kind: u32, n: u32) -> Vec<u32> {
    (0..n).map(|i| 280 + (i * i + kind * 31) % 200).collect()
}

#[test]
fn a_second_turn_computes_only_what_is_new() {
    let mut desk = Desk::new(4, 64, 512);
    desk.ask_for(0, &prompt(0, 99), 40);
    desk.run();
    let mut second: Vec<u32> = desk.steps.iter().flat_map(|(batch, _)| batch.tokens.clone()).take(100).collect();
    second.extend(&desk.answers[&0].ids);
    second.extend(prompt(1, 20));
    desk.ask_for(1, &second, 5);
    desk.run();
    desk.check();
    // The last token of the answer was drawn and never computed, so that of 140 tokens 139 are computed, of which whole blocks are remembered.
    assert_eq!(desk.answers[&1].cached, 128);
    assert_eq!(desk.scheduler.counts().cached_tokens, 128);
}

#[test]
fn simultaneous_requests_with_one_prompt_compute_it_once() {
    let mut desk = Desk::new(8, 256, 64);
    let shared = prompt(0, 320);
    (0..8).for_each(|label| desk.ask(label, &shared, 8, u32::MAX));
    desk.run();
    desk.check();
    let counts = desk.scheduler.counts();
    assert!(counts.cached_tokens >= 7 * 319, "{counts:?}");
    assert!(desk.n_computed < 320 + 8 * 24, "{} tokens were computed", desk.n_computed);
}

#[test]
fn when_blocks_run_out_the_youngest_waits_and_goes_on_exactly() {
    let mut desk = Desk::new(8, 20, 64);
    desk.learn_short_answers();
    (0..6).for_each(|label| desk.ask_for(label, &prompt(label, 30), 200));
    desk.run();
    desk.check();
    assert!(desk.scheduler.counts().preemptions > 0);
    let ends: Vec<Instant> = desk.answers.values().map(|answer| *answer.at.last().unwrap()).collect();
    assert!(ends.is_sorted(), "the oldest is never held up by a younger one");
}

#[test]
fn an_answer_that_is_no_longer_than_usual_is_never_interrupted() {
    // CX-93: whatever others do, and however full the pool is.
    let (mut n_interrupted, mut n_beside) = (0, 0);
    for seed in 0..100 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut desk = Desk::new(8, rng.random_range(20..40), 64);
        desk.learn_short_answers();
        for label in 0..20 {
            let is_short = rng.random_bool(0.7);
            let max = if is_short { rng.random_range(1..=10) } else { rng.random_range(50..200) };
            desk.ask_for(label + 1_000 * u32::from(!is_short), &prompt(label, rng.random_range(1..80)), max);
            (0..rng.random_range(0..20)).for_each(|_| _ = desk.step());
        }
        desk.run();
        desk.check();
        for label in desk.answers.keys() {
            let is_short = *label < 1_000;
            assert!(!is_short || desk.n_places[label] == 1, "{label} of seed {seed} lost its place");
            n_interrupted += desk.n_places[label] - 1;
            n_beside += usize::from(is_short);
        }
    }
    assert!(
        n_interrupted > 50 && n_beside > 1_000,
        "{n_interrupted} places lost beside {n_beside} short answers: the test is about too little"
    );
}

#[test]
fn nobody_gets_a_place_whose_answer_would_not_fit_beside_the_others() {
    // CX-93: answers of 200 tokens are expected where nothing is known, and 20 blocks have room for one of them with its prompt.
    let mut desk = Desk::new(8, 20, 64);
    (0..4).for_each(|label| desk.ask_for(label, &prompt(label, 30), 200));
    desk.run();
    desk.check();
    assert_eq!(desk.scheduler.counts().preemptions, 0);
    assert!(desk.steps.iter().all(|(batch, _)| batch.len() == 1));
}

#[test]
fn one_whose_client_is_behind_holds_up_nobody() {
    let mut desk = Desk::new(4, 16, 64);
    desk.ask(0, &prompt(0, 150), 90, 3); // takes ten of sixteen blocks, and stands still after three tokens
    desk.run();
    desk.ask_for(1, &prompt(1, 180), 60);
    desk.run();
    assert_eq!((desk.answers[&1].end.is_some(), desk.answers[&0].ids.len()), (true, 3));
    desk.scheduler.credit(|label| *label == 0, u32::MAX);
    desk.run();
    desk.check();
}

#[test]
fn one_whose_client_is_behind_keeps_no_place_from_those_that_wait() {
    let mut desk = Desk::new(1, 64, 64);
    desk.ask(0, &prompt(0, 20), 90, 3); // has the only place, and stands still after three tokens
    desk.run();
    desk.ask_for(1, &prompt(1, 20), 60);
    assert!(desk.step(), "nobody gives way to the one that waits");
    desk.scheduler.credit(|label| *label == 0, u32::MAX);
    desk.run();
    desk.check();
    assert_eq!(desk.order_of_ends(), [1, 0], "who had to give way waits for a place in turn");
    assert_eq!(desk.scheduler.counts().preemptions, 1);
}

#[test]
fn one_whose_client_is_behind_keeps_its_place_while_nobody_else_can_use_it() {
    let mut desk = Desk::new(2, 64, 64);
    (0..3).for_each(|label| desk.ask(label, &prompt(label, 20), 90, 3 + label)); // each stands still after a while
    desk.run();
    assert_eq!(desk.scheduler.counts().preemptions, 1, "the third took the place of one, and then nobody wanted any");
    assert_eq!((desk.scheduler.n_running(), desk.scheduler.n_waiting()), (2, 1));
    (0..3).for_each(|label| desk.scheduler.credit(|other| *other == label, u32::MAX));
    desk.run();
    desk.check();
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let mut desk = Desk::new(4, 400, 128);
    desk.ask_for(0, &prompt(0, 4_000), 20);
    desk.step();
    desk.ask_for(1, &prompt(1, 40), 20);
    let asked = desk.now;
    desk.run();
    desk.check();
    let waited = desk.answers[&1].at[0] - asked;
    assert!(waited <= 2 * (STEP + 128 * PER_PROMPT_TOKEN), "{waited:?}");
}

#[test]
fn tokens_keep_coming_while_a_long_prompt_is_read() {
    // CX-95
    let mut desk = Desk::new(4, 400, 512);
    (0..3).for_each(|label| desk.ask_for(label, &prompt(label, 20), 200));
    (0..10).for_each(|_| _ = desk.step());
    desk.ask_for(3, &prompt(7, 4_000), 20);
    desk.run();
    desk.check();
    for label in 0..3 {
        let at = &desk.answers[&label].at;
        let widest = at[10..].windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(widest <= 3 * STEP, "{widest:?} between two tokens of {label}");
    }
}

#[test]
fn guesses_from_the_text_take_fewer_steps_for_the_same_tokens() {
    let mut desk = Desk::new(1, 64, 64);
    desk.ask_for(0, &prompt(0, 20), 400);
    desk.run();
    desk.check();
    let counts = desk.scheduler.counts();
    assert!(desk.steps.len() < 300 && counts.guessed_right > 100, "{} steps, {counts:?}", desk.steps.len());
}

#[test]
fn where_many_generate_nothing_is_guessed() {
    let mut desk = Desk::new(12, 400, 512);
    (0..12).for_each(|label| desk.ask_for(label, &prompt(label, 20), 30));
    desk.run();
    desk.check();
    let guessed = desk.steps.iter().filter(|(batch, _)| batch.len() >= 12).flat_map(|(batch, _)| batch.draws.iter().flatten());
    assert_eq!(guessed.map(|draw| draw.n_guesses).sum::<u32>(), 0);
}

/// Requests that begin alike, in a pool much too small for all, with clients that leave, stall, and come back.
fn ordeal(seed: u64, drafts_max: u32) -> Desk {
    let mut rng = SmallRng::seed_from_u64(seed);
    let n_blocks = rng.random_range(8..40);
    let context = n_blocks * BLOCK_LEN;
    let (running_max, prompt_tokens_max) = (rng.random_range(1..8), rng.random_range(16..100));
    let mut desk = Desk::with(Limits { running_max, n_blocks, block_len: BLOCK_LEN, prompt_tokens_max, guesses_max: 16, drafts_max });
    desk.learn_short_answers();
    let mut left = Vec::new();
    for label in 0..rng.random_range(4..24) {
        let shared = rng.random_range(0..context / 2);
        let mut own = prompt(rng.random_range(0..2), shared);
        own.extend(prompt(rng.random_range(0..4), rng.random_range(1..20)));
        let max = rng.random_range(1..=context - own.len() as u32).min(120);
        let credit = if rng.random_bool(0.2) { rng.random_range(1..30) } else { u32::MAX };
        desk.ask(label, &own, max, credit);
        for _ in 0..rng.random_range(0..30) {
            desk.step();
        }
        if rng.random_bool(0.3) {
            let gone = rng.random_range(0..=label);
            desk.scheduler.cancel(|other| *other == gone, |_| {});
            left.push(gone);
        }
        if rng.random_bool(0.3) {
            let slow = rng.random_range(0..=label);
            desk.scheduler.credit(|other| *other == slow, 60);
        }
    }
    desk.run();
    desk.answers.keys().copied().collect::<Vec<_>>().into_iter().for_each(|label| desk.scheduler.credit(|other| *other == label, u32::MAX));
    desk.run();
    for gone in left {
        if let Some(answer) = desk.answers.get_mut(&gone).filter(|answer| answer.end.is_none()) {
            assert!(answer.expected.starts_with(&answer.ids), "what {gone} had was right");
            desk.answers.remove(&gone);
        }
    }
    desk
}

#[test]
fn whatever_happens_each_answer_is_the_one_it_has_alone() {
    let mut total = (0, 0, 0);
    for seed in 0..300 {
        let desk = ordeal(seed, 0);
        desk.check();
        let counts = desk.scheduler.counts();
        total = (total.0 + counts.preemptions, total.1 + counts.cached_tokens, total.2 + counts.guessed_right);
    }
    assert!(total.0 > 300 && total.1 > 10_000 && total.2 > 3_000, "{total:?}: the ordeal is about too little");
}

#[test]
fn whatever_a_draft_model_says_each_answer_is_the_one_it_has_alone() {
    let mut total = (0, 0, 0);
    for seed in 0..200 {
        let desk = ordeal(seed, 5);
        desk.check();
        let counts = desk.scheduler.counts();
        total = (total.0 + counts.preemptions, total.1 + counts.drafted - counts.drafted_right, total.2 + counts.drafted_right);
    }
    assert!(total.0 > 200 && total.1 > 1_000 && total.2 > 3_000, "{total:?}: the ordeal is about too little");
}

#[test]
fn a_draft_model_takes_fewer_steps_for_the_same_tokens() {
    let mut desk =
        Desk::with(Limits { running_max: 2, n_blocks: 64, block_len: BLOCK_LEN, prompt_tokens_max: 64, guesses_max: 0, drafts_max: 8 });
    (0..2).for_each(|label| desk.ask_for(label, &prompt(label, 20), 300));
    desk.run();
    desk.check();
    let counts = desk.scheduler.counts();
    assert!(desk.steps.len() < 150 && counts.drafted_right > 400, "{} steps, {counts:?}", desk.steps.len());
}

#[test]
fn a_step_that_fails_ends_its_members_and_the_others_go_on() {
    let mut desk = Desk::new(2, 40, 64);
    (0..3).for_each(|label| desk.ask_for(label, &prompt(label, 50), 30));
    (0..5).for_each(|_| _ = desk.step());
    drop(desk.scheduler.next_step(desk.now, |_| {}));
    let mut failed = desk.scheduler.on_step_failed();
    failed.sort_unstable();
    assert_eq!(failed, [0, 1]);
    failed.iter().for_each(|label| drop(desk.answers.remove(label)));
    desk.run();
    desk.check();
}
