//! One request on a replica: from its token ids to its end. Decides, does no I/O.

use std::sync::Arc;

use plexus_engine::batch::{Batch, BlockId, Draw};
use plexus_engine::codec::StreamDecoder;
use plexus_engine::sample::SamplerSettings;
use plexus_types::{Delta, FinishReason};

/// The tokens of a request and how far they have been computed.
#[derive(Debug)]
pub struct Sequence {
    settings: Arc<SamplerSettings>,
    prompt: Arc<[u32]>,
    sampled: Vec<u32>,
    decoder: StreamDecoder,
    /// Most tokens to sample.
    sampled_max: u32,
    /// Tokens with an index below this may be sampled before more credit comes.
    credit_until: u32,
    blocks: Vec<BlockId>,
    /// Tokens whose keys and values are in the blocks.
    n_computed: u32,
}

/// What a step brought.
#[derive(Debug, PartialEq)]
pub struct Progress {
    /// Index of the first of `ids`.
    pub index: u32,
    /// The ids sampled, none beyond the end.
    pub ids: Vec<u32>,
    /// What they add to the answer.
    pub deltas: Vec<Delta>,
    /// Why the sequence ended, if it did.
    pub end: Option<FinishReason>,
}

impl Sequence {
    /// A sequence that continues `prompt` and the `sampled` of a journal: the decoder is brought to where the journal stands by replaying it.
    ///
    /// Returns with it the end, if the journal has reached it already.
    pub fn new(
        settings: SamplerSettings,
        prompt: Vec<u32>,
        sampled: Vec<u32>,
        mut decoder: StreamDecoder,
        sampled_max: u32,
        credit_until: u32,
    ) -> (Self, Option<FinishReason>) {
        let mut end = None;
        for id in &sampled {
            end = end.or(decoder.push(*id).finish);
        }
        if end.is_none() && sampled.len() as u32 >= sampled_max {
            end = Some(FinishReason::Length);
        }
        let prompt = prompt.into();
        let sequence =
            Self { settings: Arc::new(settings), prompt, sampled, decoder, sampled_max, credit_until, blocks: Vec::new(), n_computed: 0 };
        (sequence, end)
    }

    /// Tokens of the prompt.
    pub fn n_prompt(&self) -> u32 {
        self.prompt.len() as u32
    }

    /// Tokens sampled so far, the journal's included.
    pub fn n_sampled(&self) -> u32 {
        self.sampled.len() as u32
    }

    /// Tokens that it will have at most.
    pub fn n_max(&self) -> u32 {
        self.n_prompt() + self.sampled_max
    }

    /// Takes the blocks that it will need to its end.
    pub fn give_blocks(&mut self, blocks: Vec<BlockId>) {
        self.blocks = blocks;
    }

    /// Returns its blocks.
    pub fn take_blocks(&mut self) -> Vec<BlockId> {
        self.n_computed = 0;
        std::mem::take(&mut self.blocks)
    }

    /// The ingress lets it go on.
    pub fn on_credit(&mut self, until: u32) {
        self.credit_until = self.credit_until.max(until);
    }

    /// Tokens to compute before the next can be sampled; 0 while the client is behind.
    pub fn pending(&self) -> u32 {
        if self.n_sampled() >= self.credit_until {
            return 0;
        }
        self.n_prompt() + self.n_sampled() - self.n_computed
    }

    /// True until the whole prompt has been computed.
    pub fn is_prefilling(&self) -> bool {
        self.n_computed < self.n_prompt()
    }

    /// Adds its next `n` tokens to a batch, with a draw if they are its last.
    pub fn join(&self, batch: &mut Batch, n: u32) {
        let (from, to) = (self.n_computed, self.n_computed + n);
        let tokens: Vec<u32> = (from..to).map(|position| self.token(position)).collect();
        let draw = (to == self.n_prompt() + self.n_sampled()).then(|| self.draw(to));
        batch.push(&tokens, from, &self.blocks, draw);
    }

    fn token(&self, position: u32) -> u32 {
        match self.prompt.get(position as usize) {
            Some(id) => *id,
            None => self.sampled[(position - self.n_prompt()) as usize],
        }
    }

    fn draw(&self, position: u32) -> Draw {
        let history = self.settings.needs_history();
        Draw {
            settings: Arc::clone(&self.settings),
            position,
            n_guesses: 0,
            prompt_history: if history { Arc::clone(&self.prompt) } else { Arc::from([]) },
            sampled_history: if history { self.sampled.clone() } else { Vec::new() },
        }
    }

    /// A step computed `n` of its tokens and sampled `ids`.
    pub fn on_step(&mut self, n: u32, ids: &[u32]) -> Progress {
        self.n_computed += n;
        let mut progress = Progress { index: self.n_sampled(), ids: Vec::with_capacity(ids.len()), deltas: Vec::new(), end: None };
        let mut text = String::new();
        for id in ids {
            let decoded = self.decoder.push(*id);
            self.sampled.push(*id);
            progress.ids.push(*id);
            text += &decoded.text;
            progress.end = decoded.finish.or_else(|| (self.n_sampled() >= self.sampled_max).then_some(FinishReason::Length));
            if progress.end.is_some() {
                break; // what a speculating executor sampled beyond the end is dropped
            }
        }
        if matches!(progress.end, Some(FinishReason::Length | FinishReason::Stop)) {
            text += &self.decoder.finish();
        }
        progress.deltas = Delta::of_text(text);
        progress
    }
}

/// Which sequences take part in the next step, with how many tokens each: those that generate first, one sampled token each; then prompts in
/// their order, in chunks, as long as the step has room, so that a long prompt does not stop the others' tokens (CX-95).
pub fn form_step<'a>(sequences: impl Iterator<Item = &'a Sequence> + Clone, step_tokens_max: u32) -> Vec<(usize, u32)> {
    let mut room = step_tokens_max;
    let mut step = Vec::new();
    for generating in [true, false] {
        for (i, sequence) in sequences.clone().enumerate().filter(|(_, sequence)| sequence.is_prefilling() != generating) {
            let n = sequence.pending().min(room);
            if n > 0 {
                room -= n;
                step.push((i, n));
            }
        }
    }
    step
}

#[cfg(test)]
mod tests {
    use plexus_engine::kv::BlockPool;
    use plexus_engine::model::{ModelFiles, ModelSource};
    use plexus_types::Sampling;
    use proptest::prelude::*;

    use super::*;

    fn codec() -> Arc<plexus_engine::codec::Codec> {
        static FILES: std::sync::OnceLock<ModelFiles> = std::sync::OnceLock::new();
        FILES.get_or_init(|| ModelFiles::open(&ModelSource::Embedded).unwrap()).codec.clone()
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
        assert_eq!(form_step([&one].into_iter(), 100), []);
        one.on_credit(2);
        assert_eq!(form_step([&one].into_iter(), 100), [(0, 1)]);
    }

    proptest! {
        #[test]
        fn a_step_never_exceeds_its_room_and_generating_sequences_come_before_prompts(
            lengths in proptest::collection::vec((1u32..40, any::<bool>()), 1..8), room in 1u32..64,
        ) {
            let sequences: Vec<Sequence> = lengths.iter().map(|(n, generating)| {
                let (mut one, _) = sequence(*n, &[], 50);
                if *generating { one.on_step(*n, &[400]); }
                one
            }).collect();
            let step = form_step(sequences.iter(), room);
            prop_assert!(step.iter().map(|(_, n)| n).sum::<u32>() <= room);
            let generating = lengths.iter().filter(|(_, generating)| *generating).count().min(room as usize);
            prop_assert_eq!(step.iter().filter(|(i, _)| lengths[*i].1).count(), generating);
            let mut batch = Batch::default();
            for (i, n) in &step { sequences[*i].join(&mut batch, *n); }
            prop_assert_eq!(batch.len(), step.len());
        }
    }

    #[test]
    fn blocks_come_back_whole() {
        let mut pool = BlockPool::new(4);
        let (mut one, _) = sequence(3, &[], 2);
        one.give_blocks(pool.allocate(4).unwrap());
        pool.free(one.take_blocks());
        assert_eq!(pool.available(), 4);
    }
}
