use proptest::prelude::*;

use super::*;

/// Small, so that prompts of a few tokens span blocks.
const LEN: u32 = 4;

fn compute(pool: &mut BlockPool, table: &mut BlockTable, tokens: &[u32]) {
    pool.take_copy(table);
    pool.store(table, tokens.len() as u32, |position| tokens[position as usize]);
}

/// Opens a table for `tokens` and computes all of them. Gives it with the tokens that were found.
fn seat(pool: &mut BlockPool, tokens: &[u32]) -> Option<(BlockTable, u32)> {
    let (mut table, n_cached) = pool.open(tokens, 0)?;
    compute(pool, &mut table, tokens);
    Some((table, n_cached))
}

#[test]
fn what_was_computed_is_found_again_up_to_the_last_token() {
    let mut pool = BlockPool::new(8, LEN);
    let tokens: Vec<u32> = (0..8).collect();
    let (first, n_cached) = seat(&mut pool, &tokens).unwrap();
    assert_eq!((n_cached, pool.available()), (0, 6));
    let (mut second, n_cached) = pool.open(&tokens, 0).unwrap();
    assert_eq!((n_cached, second.blocks()[0], pool.available()), (7, first.blocks()[0], 5), "one block is shared, one copied");
    assert_eq!(pool.take_copy(&mut second), Some(BlockCopy { from: first.blocks()[1], to: second.blocks()[1] }));
    pool.check_invariants([&first, &second]).unwrap();
    pool.release(first);
    pool.release(second);
    assert_eq!((pool.available(), pool.idle(), pool.n_found(&(0..20).collect::<Vec<_>>())), (8, 2, 8));
    pool.check_invariants([]).unwrap();
}

#[test]
fn a_match_may_end_inside_a_block_which_is_then_copied() {
    let mut pool = BlockPool::new(8, LEN);
    let (first, _) = seat(&mut pool, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let (mut second, n_cached) = pool.open(&[1, 2, 3, 4, 5, 6, 70, 80, 90], 0).unwrap();
    assert_eq!(n_cached, 6);
    pool.check_invariants([&first, &second]).unwrap();
    let copy = pool.take_copy(&mut second).unwrap();
    assert_eq!((copy.from, copy.to), (first.blocks()[1], second.blocks()[1]));
    assert_eq!(pool.take_copy(&mut second), None);
    pool.check_invariants([&first, &second]).unwrap();
}

#[test]
fn of_two_that_computed_the_same_one_block_remains() {
    let mut pool = BlockPool::new(4, LEN);
    let tokens = [1, 2, 3, 4, 5];
    let (mut one, _) = pool.open(&tokens, 0).unwrap();
    let (mut other, n_cached) = pool.open(&tokens, 0).unwrap();
    assert_eq!((n_cached, pool.available()), (0, 0));
    compute(&mut pool, &mut one, &tokens);
    compute(&mut pool, &mut other, &tokens);
    assert_eq!((one.blocks()[0], pool.available()), (other.blocks()[0], 1));
    pool.check_invariants([&one, &other]).unwrap();
}

#[test]
fn what_was_left_longest_ago_is_evicted_first_and_never_what_is_held() {
    let mut pool = BlockPool::new(4, LEN);
    let (old, new) = ([1, 1, 1, 1, 2, 2, 2, 2], [5, 5, 5, 5]);
    let (table, _) = seat(&mut pool, &old).unwrap();
    pool.release(table);
    let (table, _) = seat(&mut pool, &new).unwrap();
    pool.release(table);
    let (held, _) = seat(&mut pool, &[7, 7, 7, 7, 7, 7]).unwrap();
    assert_eq!(pool.available(), 2);
    assert_eq!(pool.n_found(&[1, 1, 1, 1, 2, 2, 2, 2, 9]), 4, "the leaf went, its parent stays");
    assert_eq!(pool.n_found(&[5, 5, 5, 5, 9]), 4);
    assert!(pool.open(&(20..29).collect::<Vec<_>>(), 0).is_none(), "three blocks are wanted");
    assert!(pool.open(&(20..28).collect::<Vec<_>>(), 1).is_none(), "one is to be left");
    let (more, _) = seat(&mut pool, &(20..28).collect::<Vec<_>>()).unwrap();
    pool.check_invariants([&held, &more]).unwrap();
    assert_eq!((pool.n_found(&[1, 1, 1, 1, 9]), pool.n_found(&[5, 5, 5, 5, 9]), pool.available()), (0, 0, 0));
}

#[test]
fn a_copy_for_which_there_is_no_room_is_not_made() {
    let mut pool = BlockPool::new(2, LEN);
    let (table, _) = seat(&mut pool, &[1, 2, 3, 4]).unwrap();
    pool.release(table);
    let (mut table, n_cached) = pool.open(&[1, 2, 3, 9, 9, 9], 0).unwrap();
    assert_eq!((n_cached, pool.take_copy(&mut table)), (0, None), "both blocks are needed, so that the stored one has to go");
    pool.check_invariants([&table]).unwrap();
}

#[test]
fn room_is_given_all_or_nothing() {
    let mut pool = BlockPool::new(3, LEN);
    let (mut table, _) = pool.open(&[1], 0).unwrap();
    assert!(!pool.extend(&mut table, 13));
    assert_eq!((table.blocks().len(), pool.available()), (1, 2));
    assert!(pool.extend(&mut table, 12));
    assert_eq!((table.blocks().len(), pool.available()), (3, 0));
    assert!(pool.extend(&mut table, 3), "it has that already");
}

#[test]
fn a_stored_prefix_is_told_from_what_its_block_holds_later() {
    let mut pool = BlockPool::new(2, LEN);
    let (table, _) = seat(&mut pool, &[1, 2, 3, 4, 5, 6, 7]).unwrap();
    assert_eq!(pool.stored_prefix(&table, 8), None, "its second block is not full");
    let prefix = pool.stored_prefix(&table, 7).unwrap();
    assert_eq!((pool.stored_prefix(&table, 4), pool.stored_prefix(&table, 1)), (Some(prefix), Some(prefix)));
    pool.release(table);
    assert!(pool.still_holds(prefix));
    let (table, _) = seat(&mut pool, &[9, 9, 9, 9, 9, 9, 9, 9]).unwrap();
    assert!(!pool.still_holds(prefix) && pool.n_evicted() == 1);
    pool.release(table);
    let (again, _) = seat(&mut pool, &[1, 2, 3, 4, 5]).unwrap();
    assert!(!pool.still_holds(prefix), "computed anew, it is another");
    assert!(pool.still_holds(pool.stored_prefix(&again, 4).unwrap()));
    pool.release(again);
}

#[derive(Debug, Clone)]
enum Op {
    Open(Vec<u32>, u32),
    Compute(usize),
    Grow(usize, u32),
    Release(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (prop::collection::vec(0u32..2, 1..14), 0u32..3).prop_map(|(tokens, reserve)| Op::Open(tokens, reserve)),
        (0usize..8).prop_map(Op::Compute),
        (0usize..8, 0u32..2).prop_map(|(i, token)| Op::Grow(i, token)),
        (0usize..8).prop_map(Op::Release),
    ]
}

proptest! {
    /// The memory of a device is played along: what is found, shared or copied must be what the sequence would have computed itself.
    #[test]
    fn no_block_is_lost_written_by_two_or_read_with_the_wrong_content(n_blocks in 1u32..10, ops in prop::collection::vec(op(), 0..80)) {
        struct Held { table: BlockTable, tokens: Vec<u32>, n_computed: usize }
        let mut pool = BlockPool::new(n_blocks, LEN);
        // For each place the whole sequence up to it: keys and values depend on all tokens before.
        let mut memory: Vec<Vec<u32>> = vec![Vec::new(); (n_blocks * LEN) as usize];
        let mut all: Vec<Held> = Vec::new();
        let mut noted: Vec<(StoredPrefix, Vec<u32>)> = Vec::new();
        let place = |table: &BlockTable, position: usize| {
            (table.blocks()[position / LEN as usize].0 * LEN) as usize + position % LEN as usize
        };
        for op in ops {
            match op {
                Op::Open(tokens, reserve) => {
                    let before = pool.available();
                    match pool.open(&tokens, reserve) {
                        Some((table, n_cached)) => {
                            prop_assert!((n_cached as usize) < tokens.len() && pool.available() >= reserve);
                            all.push(Held { table, tokens, n_computed: n_cached as usize });
                        }
                        None => prop_assert!(pool.available() == before),
                    }
                }
                Op::Compute(i) if !all.is_empty() => {
                    let i = i % all.len();
                    let Held { table, tokens, n_computed } = &mut all[i];
                    if let Some(copy) = pool.take_copy(table) {
                        for offset in 0..LEN as usize {
                            memory[(copy.to.0 * LEN) as usize + offset] = memory[(copy.from.0 * LEN) as usize + offset].clone();
                        }
                    }
                    for position in *n_computed..tokens.len() {
                        memory[place(table, position)] = tokens[..=position].to_vec();
                    }
                    *n_computed = tokens.len();
                    pool.store(table, tokens.len() as u32, |position| tokens[position as usize]);
                    for position in 0..tokens.len() {
                        prop_assert_eq!(&memory[place(table, position)], &tokens[..=position]);
                    }
                    for n in (LEN..=tokens.len() as u32).step_by(LEN as usize) {
                        noted.extend(pool.stored_prefix(table, n).map(|prefix| (prefix, tokens[..n as usize].to_vec())));
                    }
                }
                Op::Grow(i, token) if !all.is_empty() => {
                    let i = i % all.len();
                    let held = &mut all[i];
                    let could = pool.available() > 0 || held.tokens.len() < held.table.blocks().len() * LEN as usize;
                    prop_assert_eq!(pool.extend(&mut held.table, held.tokens.len() as u32 + 1), could);
                    if could {
                        held.tokens.push(token);
                    }
                }
                Op::Release(i) if !all.is_empty() => {
                    let i = i % all.len();
                    pool.release(all.swap_remove(i).table);
                }
                Op::Compute(_) | Op::Grow(..) | Op::Release(_) => {}
            }
            let checked = pool.check_invariants(all.iter().map(|held| &held.table));
            prop_assert!(checked.is_ok(), "{:?}", checked);
            for (_, tokens) in noted.iter().filter(|(prefix, _)| pool.still_holds(*prefix)) {
                prop_assert!(pool.n_found(&[tokens.as_slice(), &[0]].concat()) as usize >= tokens.len());
            }
        }
        all.into_iter().for_each(|held| pool.release(held.table));
        prop_assert_eq!(pool.available(), n_blocks);
    }
}
