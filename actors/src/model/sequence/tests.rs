use plexus_engine::model::{ModelFiles, ModelPath};
use plexus_types::Sampling;

use super::*;

fn codec() -> Arc<plexus_engine::codec::Codec> {
    static FILES: std::sync::OnceLock<ModelFiles> = std::sync::OnceLock::new();
    FILES.get_or_init(|| ModelFiles::open(&ModelPath::Embedded).unwrap()).codec.clone()
}

fn sequence(n_prompt: u32, sampled: &[u32], sampled_max: u32) -> (Sequence, Option<FinishReason>) {
    let settings = SamplerSettings::resolve(&Sampling::default(), &Sampling::default(), 1);
    Sequence::new(settings, (0..n_prompt).map(|i| 300 + i).collect(), sampled.to_vec(), codec().decoder(&[]), sampled_max, 1000)
}

#[test]
fn a_prompt_is_read_in_chunks_and_drawn_from_only_at_its_end() {
    let (mut one, _) = sequence(10, &[], 5);
    let mut batch = Batch::default();
    one.join(&mut batch, 6);
    assert_eq!((batch.positions.clone(), batch.draws[0].is_none()), ((0..6).collect(), true));
    one.on_step(6, &[]);
    let mut batch = Batch::default();
    one.join(&mut batch, one.pending());
    assert_eq!((batch.positions, batch.draws[0].as_ref().map(|draw| draw.position)), ((6..10).collect(), Some(10)));
}

#[test]
fn the_last_allowed_token_ends_the_sequence_and_what_lies_beyond_is_dropped() {
    let (mut one, _) = sequence(3, &[], 2);
    let progress = one.on_step(3, &[400, 401, 402]);
    assert_eq!((progress.ids, progress.end), (vec![400, 401], Some(FinishReason::Length)));
}

#[test]
fn a_continued_sequence_goes_on_at_the_next_index_with_the_same_text_as_an_unbroken_one() {
    let ids: Vec<u32> = (320..340).collect();
    let (mut whole, _) = sequence(3, &[], 50);
    let mut text = String::new();
    for id in &ids {
        text += &Delta::text_of(&whole.on_step(1, &[*id]).deltas);
    }
    let (mut first, _) = sequence(3, &[], 50);
    let mut pieces: String = ids[..7].iter().map(|id| Delta::text_of(&first.on_step(1, &[*id]).deltas)).collect();
    let (mut second, end) = sequence(3, &ids[..7], 50);
    assert_eq!(end, None);
    for (i, id) in ids[7..].iter().enumerate() {
        let progress = second.on_step(1, &[*id]);
        assert_eq!(progress.index, 7 + i as u32);
        pieces += &Delta::text_of(&progress.deltas);
    }
    assert_eq!(pieces, text);
}

#[test]
fn a_journal_that_has_reached_its_end_ends_at_once() {
    assert_eq!(sequence(3, &[400, 401], 2).1, Some(FinishReason::Length));
}

#[test]
fn a_sequence_without_credit_takes_no_part() {
    let (mut one, _) = sequence(3, &[], 50);
    one.credit_until = 1;
    one.on_step(3, &[400]);
    assert_eq!(one.pending(), 0);
    one.on_credit(2);
    assert_eq!(one.pending(), 1);
}

#[test]
fn right_guesses_need_not_be_computed_again_and_wrong_ones_leave_no_trace() {
    let (mut one, _) = sequence(3, &[], 50);
    one.on_step(3, &[400]);
    for (guesses, drawn, n_computed) in [([401, 402], &[401, 402, 403][..], 6), ([9, 405], &[404], 7), ([405, 9], &[405, 406], 9)] {
        one.guesses = guesses.to_vec();
        let mut batch = Batch::default();
        one.join(&mut batch, one.pending());
        assert_eq!((batch.tokens.len(), batch.draws[0].as_ref().map(|draw| draw.n_guesses)), (3, Some(2)));
        assert_eq!(one.on_step(1, drawn).ids, drawn);
        assert_eq!((one.n_computed, one.pending(), one.guesses.len()), (n_computed, 1, 0));
    }
}

#[test]
fn nothing_is_guessed_beyond_the_end_or_what_the_client_takes() {
    let guesses = |sampled_max, credit| {
        let settings = SamplerSettings::resolve(&Sampling::default(), &Sampling::default(), 1);
        let prompt = vec![301, 302, 303, 304, 305, 301, 302];
        let mut one = Sequence::new(settings, prompt, Vec::new(), codec().decoder(&[]), sampled_max, credit).0;
        one.on_step(7, &[303]);
        one.guess(100)
    };
    assert_eq!([guesses(100, 100), guesses(4, 100), guesses(100, 3), guesses(2, 2), guesses(100, 1)], [4, 2, 1, 0, 0]);
}

#[test]
fn a_sequence_that_loses_its_place_knows_all_it_knew() {
    let mut pool = BlockPool::new(4, 16);
    let (mut one, _) = sequence(3, &[], 50);
    let (table, n_cached) = pool.open(&one.known(), 0).unwrap();
    one.give_place(table, n_cached);
    one.on_step(3, &[400]);
    one.on_step(1, &[401]);
    pool.release(one.take_place());
    assert_eq!((one.pending(), one.known(), pool.available()), (5, vec![300, 301, 302, 400, 401], 4));
}

#[test]
fn digests_are_noted_as_far_as_the_prompt_is_stored_and_again_after_a_preemption() {
    let mut pool = BlockPool::new(4, 16);
    let mut prefixes = Prefixes::default();
    let (mut one, _) = sequence(60, &[], 50);
    one.begins_with(vec![(9, 15), (8, 32), (7, 59)]);
    let seat = |one: &mut Sequence, pool: &mut BlockPool| {
        let (table, n_cached) = pool.open(&one.known(), 0).unwrap();
        one.give_place(table, n_cached);
    };
    let step = |one: &mut Sequence, pool: &mut BlockPool, prefixes: &mut Prefixes, n: u32| {
        one.on_step(n, &[]);
        one.store(pool);
        one.note_prefixes(pool, prefixes);
        prefixes.held(pool).to_vec()
    };
    seat(&mut one, &mut pool);
    assert_eq!(step(&mut one, &mut pool, &mut prefixes, 15), [0u32; 0]);
    assert_eq!(step(&mut one, &mut pool, &mut prefixes, 1), [9], "a block holds it, and one token more");
    assert_eq!(step(&mut one, &mut pool, &mut prefixes, 40), [7, 8, 9], "as far as it fills blocks");
    pool.release(one.take_place());
    let (other, _) = pool.open(&[1; 64], 0).unwrap();
    assert!(prefixes.held(&pool).is_empty());
    pool.release(other);
    seat(&mut one, &mut pool);
    assert_eq!(step(&mut one, &mut pool, &mut prefixes, 33), [8, 9]);
}

#[test]
fn a_control_token_has_its_name_among_the_log_probabilities() {
    let (one, _) = sequence(3, &[], 5);
    let end = codec().encode(&plexus_types::Prompt::Text("<|im_end|>".into())).unwrap()[0];
    let word = codec().encode(&plexus_types::Prompt::Text("yes".into())).unwrap()[0];
    let drawn = |top: u32| DrawLogprobs { drawn: -0.5, top: vec![(top, -0.25)] };
    let shown = one.describe(&[word, end], &[drawn(end), drawn(word)]);
    let name = |token: &TokenLogprob| (String::from_utf8(token.bytes.clone()).unwrap(), token.control);
    let ended = || ("<|im_end|>".to_owned(), true);
    assert_eq!((name(&shown[0].top[0]), name(&shown[1].token)), (ended(), ended()));
    assert!(!shown[0].token.control && !shown[1].top[0].control && "yes".starts_with(&name(&shown[0].token).0));
}
