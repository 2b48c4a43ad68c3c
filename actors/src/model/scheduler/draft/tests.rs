use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// A device on which a step of one sequence takes a second.
const COSTS: Costs = Costs { plain: 1.0, n_generating: 1.0, round: 0.1, row: 0.05, read: 0.01 };
const MAX: u32 = 8;
/// What a candidate expects where that does not matter.
const FAR_END: f32 = 1e6;

/// A sequence that a draft model guesses for.
#[derive(Debug, Clone, Copy)]
struct Text {
    /// How often its guesses are right.
    right: f32,
    own: Record,
    n_unread: u32,
    n_left: f32,
}

impl Text {
    fn new(right: f32, n_unread: u32) -> Self {
        Self { right, own: Record::default(), n_unread, n_left: FAR_END }
    }
}

/// What a device does, by the costs that it really has.
struct Device {
    costs: Costs,
    speed: DraftSpeed,
    rng: SmallRng,
    seconds: f32,
    n_tokens: u32,
    n_read: u32,
    longest: f32,
}

impl Device {
    fn new(costs: Costs) -> Self {
        let (speed, rng) = (DraftSpeed::default(), SmallRng::seed_from_u64(5));
        Self { costs, speed, rng, seconds: 0.0, n_tokens: 0, n_read: 0, longest: 0.0 }
    }

    /// So many steps for these texts. Gives how much faster tokens came than without guesses.
    fn run(&mut self, texts: &mut [Text], n_steps: u32) -> f32 {
        let Costs { plain, round, row, read, .. } = self.costs;
        (self.seconds, self.n_tokens, self.n_read, self.longest) = (0.0, 0, 0, 0.0);
        for _ in 0..n_steps {
            let candidate = |text: &Text| Candidate { right: self.speed.right(text.own), n_unread: text.n_unread, n_left: text.n_left };
            let candidates: Vec<Candidate> = texts.iter().map(candidate).collect();
            let rations = self.speed.rations(texts.len(), plain, &candidates, MAX);
            let mut did = Drafted::default();
            for (text, Ration { n, n_read }) in texts.iter_mut().zip(rations) {
                let n_read = n_read.min(text.n_unread);
                let n = if n_read == text.n_unread { n } else { 0 };
                let n_right = (0..n).take_while(|_| self.rng.random_bool(f64::from(text.right))).count() as u32;
                text.n_unread = text.n_unread - n_read + 1; // what was guessed rightly is read already
                did.on_work(n_read, n);
                if n > 0 {
                    did.on_guess(n, n_right);
                    text.own.on_guess(n, n_right);
                }
                self.n_tokens += 1 + n_right;
            }
            did.seconds = round * did.n_rounds as f32 + if did.n_read > 20 { read * did.n_read as f32 } else { 0.0 };
            let seconds = plain + row * did.n_rows as f32;
            self.speed.on_step(did, texts.len(), Some(plain), seconds);
            self.seconds += seconds + did.seconds;
            self.n_read += did.n_read;
            self.longest = self.longest.max(seconds + did.seconds);
        }
        self.n_tokens as f32 / texts.len() as f32 / self.seconds * plain
    }
}

/// The gain of the best fixed length.
fn best_gain(costs: Costs, right: f32) -> f32 {
    let gain = |n: u32| {
        let tokens = 1.0 + (1..=n).map(|i| right.powi(i as i32)).sum::<f32>();
        tokens / (1.0 + n as f32 * (costs.round + costs.row) / costs.plain)
    };
    (0..=MAX).map(gain).fold(0.0, f32::max)
}

#[test]
fn as_many_are_guessed_as_gain_most_whatever_they_cost_and_however_often_they_are_right() {
    for (round, row) in [(0.02, 0.02), (0.1, 0.05), (0.3, 0.1), (0.1, 0.6)] {
        for right in [1.0, 0.9, 0.8, 0.5, 0.2, 0.0] {
            let costs = Costs { round, row, ..COSTS };
            let mut device = Device::new(costs);
            let mut text = [Text::new(right, 1)];
            device.run(&mut text, 300);
            let gain = device.run(&mut text, 4000);
            let best = best_gain(costs, right);
            assert!(gain > 0.93 * best, "{gain} of {best} at {costs:?} where {right} are right");
        }
    }
}

#[test]
fn wrong_guesses_cost_little_even_at_first() {
    let mut device = Device::new(COSTS);
    let gain = device.run(&mut [Text::new(0.0, 30)], 400);
    assert!(gain > 0.95, "{gain}");
    let gain = device.run(&mut [Text::new(0.0, 30)], 4000);
    assert!(gain > 0.975, "{gain}");
}

#[test]
fn guesses_that_have_become_right_are_found_out() {
    let mut device = Device::new(COSTS);
    let mut text = [Text::new(0.0, 30)];
    device.run(&mut text, 500);
    text[0].right = 0.95;
    device.run(&mut text, 6000);
    let gain = device.run(&mut text, 500);
    assert!(gain > 0.9 * best_gain(COSTS, 0.95), "{gain}");
}

#[test]
fn of_several_texts_those_are_guessed_that_can_be() {
    let mut device = Device::new(Costs { n_generating: 2.0, ..COSTS });
    let mut texts = [Text::new(0.95, 1), Text::new(0.0, 1)];
    device.run(&mut texts, 200);
    let gain = device.run(&mut texts, 1000);
    let tokens = |n: u32| 2.0 + (1..=n).map(|i| 0.95f32.powi(i as i32)).sum::<f32>();
    let best = (0..=MAX).map(|n| tokens(n) / 2.0 / (1.0 + 0.15 * n as f32)).fold(0.0, f32::max);
    assert!(gain > 0.95 * best, "{gain} of {best}");
}

#[test]
fn a_long_prompt_is_read_only_where_enough_is_to_come() {
    let mut device = Device::new(COSTS);
    device.run(&mut [Text::new(0.9, 1)], 200);
    for (n_left, is_read) in [(20.0, false), (40.0, false), (200.0, true)] {
        device.run(&mut [Text { n_left, ..Text::new(0.9, 3000) }], 60);
        assert_eq!(device.n_read >= 3000, is_read, "with {n_left} tokens to come, {} were read", device.n_read);
        assert!(device.longest < 2.4, "a step took {}", device.longest);
    }
}

#[test]
fn a_long_prompt_is_not_read_for_guesses_that_are_wrong() {
    let mut device = Device::new(COSTS);
    device.run(&mut [Text::new(0.0, 1)], 500);
    let gain = device.run(&mut [Text { n_left: 1000.0, ..Text::new(0.0, 4000) }], 1000);
    assert!(device.n_read == 0 && gain == 1.0, "{} were read, {gain}", device.n_read);
}

#[test]
fn steps_in_which_much_is_read_do_not_make_rounds_seem_dear() {
    let mut speed = DraftSpeed::default();
    let mut step = |n_read: u32, n: u32, seconds: f32| {
        let mut did = Drafted { seconds, ..Drafted::default() };
        did.on_work(n_read, n);
        speed.on_step(did, 1, Some(1.0), 1.0);
        (speed.round.get(1), speed.read)
    };
    assert_eq!(step(1, 4, 0.4), (0.1, 0.0));
    assert_eq!(step(30, 4, 0.9), (0.1, 0.0), "too few to tell");
    let (round, read) = step(100, 4, 1.3);
    assert!(round == 0.1 && (read - 0.01).abs() < 1e-6, "{round} {read}");
}
