//! What becomes of a request: one or more choices, generated beside each other, and their events in one stream.
//!
//! A request for `n` choices is `n` generations, each with a seed of its own. They fail together: an answer that lacks a choice is none.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use plexus_types::{Delta, FinishReason, GenerateEvent, GenerateRequest, NodeName, RequestError, TokenLogprobs, ToolCall, Usage};

use crate::service::Generation;

/// What is to be generated: each prompt so often.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    /// One request for each prompt.
    pub(crate) prompts: Vec<GenerateRequest>,
    /// Choices for each prompt; at least 1.
    pub(crate) n: u32,
    /// What the client calls the field that constrains the answer; a word that does not matter where none does.
    pub(crate) constraint_field: &'static str,
}

impl Order {
    /// One choice of one prompt.
    pub(crate) fn one(request: GenerateRequest, constraint_field: &'static str) -> Self {
        Self { prompts: vec![request], n: 1, constraint_field }
    }

    /// One request for each choice, those of the first prompt first. Where the client fixed a seed, the choices of a prompt count up from it.
    pub(crate) fn requests(self) -> Vec<GenerateRequest> {
        let n = self.n;
        let choices = |request: GenerateRequest| {
            (0..n).map(move |choice| {
                let mut request = request.clone();
                request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(u64::from(choice)));
                request
            })
        };
        self.prompts.into_iter().flat_map(choices).collect()
    }
}

/// Who serves a request, and why.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Served {
    pub(crate) node: NodeName,
    pub(crate) route: String,
}

/// What happens to an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ChoiceEvent {
    /// The prompt of this choice has been read.
    Started { choice: u32, prompt_tokens: u32, served: Served },
    /// More of it.
    Tokens { choice: u32, deltas: Vec<Delta>, logprobs: Vec<TokenLogprobs> },
    /// It is complete; if it was the last, so is the answer, and this is what all of it cost.
    Finished { choice: u32, reason: FinishReason, total: Option<Cost> },
    /// The answer failed.
    Failed(RequestError),
}

/// What an answer cost: the prompts once, the choices together. The timing is that of the choice which ended last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) usage: Usage,
    /// Of the tokens generated, those that were thought: a token that closes a thought counts with what follows it.
    pub(crate) reasoning_tokens: u32,
}

/// The choices of an answer under way. Dropping it cancels them all.
pub(crate) struct Choices {
    /// `None` once it is complete.
    generations: Vec<Option<Generation>>,
    n: usize,
    /// Whom to ask first: one after the one that last had something, so that none starves.
    turn: usize,
    cost: Cost,
    ended: bool,
}

impl Choices {
    /// The choices of an [`Order`], `n` of each prompt.
    pub(crate) fn new(generations: Vec<Generation>, n: u32) -> Self {
        let ended = generations.is_empty();
        let generations = generations.into_iter().map(Some).collect();
        Self { generations, n: n.max(1) as usize, turn: 0, cost: Cost::default(), ended }
    }

    fn on_event(&mut self, at: usize, event: GenerateEvent) -> ChoiceEvent {
        let choice = at as u32;
        match event {
            GenerateEvent::Started { prompt_tokens, node, route, .. } => {
                ChoiceEvent::Started { choice, prompt_tokens, served: Served { node, route } }
            }
            GenerateEvent::Tokens { deltas, tokens, logprobs } => {
                if !deltas.is_empty() && deltas.iter().all(|delta| matches!(delta, Delta::Reasoning(_))) {
                    self.cost.reasoning_tokens = self.cost.reasoning_tokens.saturating_add(tokens);
                }
                ChoiceEvent::Tokens { choice, deltas, logprobs }
            }
            GenerateEvent::Done { reason, usage } => {
                self.generations[at] = None;
                let all = &mut self.cost.usage;
                if at.is_multiple_of(self.n) {
                    all.prompt_tokens = all.prompt_tokens.saturating_add(usage.prompt_tokens);
                    all.cached_tokens = all.cached_tokens.saturating_add(usage.cached_tokens);
                }
                all.completion_tokens = all.completion_tokens.saturating_add(usage.completion_tokens);
                all.timing = usage.timing;
                self.ended = self.generations.iter().all(Option::is_none);
                ChoiceEvent::Finished { choice, reason, total: self.ended.then_some(self.cost) }
            }
            GenerateEvent::Failed(error) => {
                self.generations.clear();
                self.ended = true;
                ChoiceEvent::Failed(error)
            }
        }
    }
}

impl Stream for Choices {
    type Item = ChoiceEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ChoiceEvent>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        for step in 0..this.generations.len() {
            let at = (this.turn + step) % this.generations.len();
            let Some(generation) = &mut this.generations[at] else { continue };
            if let Poll::Ready(event) = generation.poll_next_unpin(context) {
                this.turn = at + 1;
                let event = event.unwrap_or_else(|| GenerateEvent::Failed(ended_early()));
                return Poll::Ready(Some(this.on_event(at, event)));
            }
        }
        Poll::Pending
    }
}

/// A generation whose events stop without an end: whoever made them died.
fn ended_early() -> RequestError {
    RequestError::Lost { message: "the generation stopped without an end; ask again".to_owned() }
}

/// An answer in one piece.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) served: Option<Served>,
    pub(crate) choices: Vec<Choice>,
    pub(crate) cost: Cost,
}

/// One choice in one piece.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Choice {
    /// In the order in which the model said them; two of a kind never stand beside each other, except calls.
    pub(crate) blocks: Vec<Block>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// Why it ended. There is none only before the end.
    pub(crate) reason: Option<FinishReason>,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Block {
    Reasoning(String),
    Text(String),
    Call(ToolCall),
}

impl Choice {
    /// All text that was said, without what was thought.
    pub(crate) fn text(&self) -> String {
        self.blocks.iter().filter_map(|block| if let Block::Text(text) = block { Some(text.as_str()) } else { None }).collect()
    }

    /// All that was thought.
    pub(crate) fn reasoning(&self) -> String {
        self.blocks.iter().filter_map(|block| if let Block::Reasoning(text) = block { Some(text.as_str()) } else { None }).collect()
    }

    /// The tools called.
    pub(crate) fn calls(&self) -> impl Iterator<Item = &ToolCall> {
        self.blocks.iter().filter_map(|block| if let Block::Call(call) = block { Some(call) } else { None })
    }

    fn push(&mut self, delta: Delta) {
        match (delta, self.blocks.last_mut()) {
            (Delta::Text(more), Some(Block::Text(text))) | (Delta::Reasoning(more), Some(Block::Reasoning(text))) => text.push_str(&more),
            (Delta::ToolArguments { json, .. }, Some(Block::Call(call))) => call.arguments.push_str(&json),
            (Delta::Text(text), _) => self.blocks.push(Block::Text(text)),
            (Delta::Reasoning(text), _) => self.blocks.push(Block::Reasoning(text)),
            (Delta::ToolCall { id, name, .. }, _) => self.blocks.push(Block::Call(ToolCall { id, name, arguments: String::new() })),
            (Delta::ToolArguments { .. }, _) => debug_assert!(false, "arguments follow the call that they belong to"),
        }
    }
}

/// Waits for the whole answer.
pub(crate) async fn collect(mut choices: Choices) -> Result<Answer, RequestError> {
    let mut served = None;
    let mut answers = vec![Choice::default(); choices.generations.len()];
    while let Some(event) = choices.next().await {
        match event {
            ChoiceEvent::Started { served: by, .. } => served = served.or(Some(by)),
            ChoiceEvent::Tokens { choice, deltas, logprobs } => {
                let answer = &mut answers[choice as usize];
                deltas.into_iter().for_each(|delta| answer.push(delta));
                answer.logprobs.extend(logprobs);
            }
            ChoiceEvent::Finished { choice, reason, total } => {
                answers[choice as usize].reason = Some(reason);
                if let Some(cost) = total {
                    return Ok(Answer { served, choices: answers, cost });
                }
            }
            ChoiceEvent::Failed(error) => return Err(error),
        }
    }
    Err(ended_early())
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use plexus_types::{Prompt, RequestId, Sampling};

    use super::*;

    fn request(seed: Option<u64>) -> GenerateRequest {
        GenerateRequest {
            principal: None,
            model: "m".parse().unwrap(),
            prompt: Prompt::Text("a".to_owned()),
            sampling: Sampling { seed, ..Sampling::default() },
            max_tokens: None,
            stop: Vec::new(),
            constraint: None,
            logprobs: None,
        }
    }

    fn generation(text: &str, prompt_tokens: u32) -> Generation {
        let usage = Usage { prompt_tokens, cached_tokens: 1, completion_tokens: 2, ..Usage::default() };
        let events = [
            GenerateEvent::Started { prompt_tokens, node: "n1".parse().unwrap(), route: String::new(), cold_start: false },
            GenerateEvent::Tokens { deltas: vec![Delta::Reasoning("hm".to_owned())], tokens: 1, logprobs: Vec::new() },
            GenerateEvent::Tokens { deltas: Delta::of_text(text.to_owned()), tokens: 1, logprobs: Vec::new() },
            GenerateEvent::Done { reason: FinishReason::Stop, usage },
        ];
        Generation::new(RequestId(1), stream::iter(events))
    }

    #[test]
    fn the_choices_of_a_prompt_count_up_from_its_seed_and_without_one_each_draws_its_own() {
        let seeds = |seed| {
            let order = Order { prompts: vec![request(seed), request(seed)], n: 2, constraint_field: "" };
            order.requests().into_iter().map(|request| request.sampling.seed).collect::<Vec<_>>()
        };
        assert_eq!(seeds(Some(u64::MAX)), [Some(u64::MAX), Some(0), Some(u64::MAX), Some(0)]);
        assert_eq!(seeds(None), [None; 4]);
    }

    #[tokio::test]
    async fn prompts_are_counted_once_and_choices_together() {
        let generations = ["a", "b", "c", "d"].iter().zip([10, 10, 5, 5]).map(|(text, tokens)| generation(text, tokens)).collect();
        let answer = collect(Choices::new(generations, 2)).await.unwrap();
        let usage = answer.cost.usage;
        assert_eq!((usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens), (15, 2, 8));
        assert_eq!(answer.cost.reasoning_tokens, 4);
        assert_eq!(answer.choices.iter().map(Choice::text).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    }

    #[tokio::test]
    async fn no_choice_waits_for_another_and_one_that_fails_ends_all() {
        let silent = Generation::new(RequestId(1), stream::pending());
        let broken = Generation::new(
            RequestId(2),
            stream::iter([GenerateEvent::Started {
                prompt_tokens: 1,
                node: "n1".parse().unwrap(),
                route: String::new(),
                cold_start: false,
            }]),
        );
        let mut choices = Choices::new(vec![silent, broken], 2);
        assert!(matches!(choices.next().await, Some(ChoiceEvent::Started { choice: 1, .. })));
        assert!(matches!(choices.next().await, Some(ChoiceEvent::Failed(RequestError::Lost { .. }))));
        assert_eq!(choices.next().await, None);
        assert!(choices.generations.is_empty(), "the silent one goes on");
    }
}
