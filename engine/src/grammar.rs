//! Answers that must look like something: which tokens may come next, by the grammar of a request.
//!
//! `Grammars` is made once for each model from its vocabulary; `Grammars::compile` makes of a request's constraint a [`Grammar`], which
//! follows one answer. Before each step [`Grammar::masks`] begins to compute, on threads of its own, which tokens may be drawn, while the
//! device computes their logits; the sampler waits for whichever is later. What may come is a function of the grammar and the tokens so far, so
//! that guesses, preemption and a continuation elsewhere, which pushes the tokens of the journal again, change nothing.
//!
//! The grammars themselves are the work of the library `llguidance`: an Earley parser over lazily made automata of derivatives of regular
//! expressions, run over a trie of the vocabulary.

mod masks;
#[cfg(test)]
mod tests;
mod tokens;

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::SimpleVob;
use llguidance::{Matcher, ParserFactory};
use plexus_types::{Constraint, RequestError};
use serde_json::{Value, json};

pub use masks::Masks;
pub(crate) use masks::apply;
pub(crate) use tokens::TokenTable;

/// Longest text of a constraint. Schemas of whole interfaces have some tens of kilobytes.
const TEXT_LEN_MAX: usize = 256 << 10;
/// Longest part of a reason that reaches the client.
const REASON_LEN_MAX: usize = 400;
/// Between two parts of a JSON text a space, or a new line that is indented as formatters do it: a model that writes white space cannot go on
/// with nothing else, and small ones do for as long as they may.
const JSON_SPACE: &str = r"(\x20|\r?\n(\x20{0,20}|\t{0,10}))";

/// What a grammar may cost. A grammar at these limits takes some tens of milliseconds to compile and as long for a mask; usual ones take less
/// than a millisecond for either.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        max_lexer_states: 50_000, // of one to two kilobytes each
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// Makes grammars for one model. For a vocabulary of 151,936 tokens it takes some 10 MB and a few hundred milliseconds to make.
pub(crate) struct Grammars {
    factory: ParserFactory,
}

impl Grammars {
    /// For the tokens in `table`. Errors say why there are no grammars for this model.
    pub(crate) fn new(table: TokenTable) -> Result<Self, String> {
        let tokens = table.into_env()?;
        let mut factory = ParserFactory::new_simple(&tokens).map_err(|error| short(&error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory })
    }

    /// The grammar of a request. `param` names the field that it comes from.
    ///
    /// Errors: [`RequestError::Invalid`] if it is malformed, too large, or uses what is not supported, with the reason.
    pub(crate) fn compile(&self, constraint: &Constraint, param: &str) -> Result<Grammar, RequestError> {
        let invalid = |reason: String| RequestError::invalid(param, format!("{param} cannot be used: {}", short(&reason)));
        let grammar = top_level(constraint).map_err(invalid)?;
        let parser = self.factory.create_parser(grammar).map_err(|error| invalid(format!("{error:#}")))?;
        let mut matcher = Matcher::new(Ok(parser));
        let start = matcher.deep_clone();
        // The first mask is made here, so that what is wrong with it is said before the request has begun.
        matcher.compute_mask_or_eos().map_err(|error| invalid(error.to_string()))?;
        let follower = Follower { matcher, start, seen: Vec::new() };
        Ok(Grammar(Arc::new(State { follower: Mutex::new(follower), pending: Mutex::new(Vec::new()) })))
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

/// A constraint in the words of the library.
fn top_level(constraint: &Constraint) -> Result<TopLevelGrammar, String> {
    let text = match constraint {
        Constraint::JsonObject => "",
        Constraint::JsonSchema(text) | Constraint::Regex(text) | Constraint::Lark(text) => text,
    };
    if text.len() > TEXT_LEN_MAX {
        return Err(format!("it has {} bytes; at most {TEXT_LEN_MAX} are taken", text.len()));
    }
    Ok(match constraint {
        Constraint::JsonObject => TopLevelGrammar::from_json_schema(laid_out(json!({ "type": "object" }))),
        Constraint::JsonSchema(schema) => {
            let schema = serde_json::from_str(schema).map_err(|error| format!("the schema is not JSON: {error}"))?;
            TopLevelGrammar::from_json_schema(laid_out(schema))
        }
        Constraint::Regex(regex) => TopLevelGrammar::from_regex(regex),
        Constraint::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
    })
}

/// The schema with a bound on white space, unless it says itself how its text is laid out.
pub(crate) fn laid_out(mut schema: Value) -> Value {
    if schema == Value::Bool(true) {
        schema = json!({}); // the same schema: anything
    }
    if let Some(fields) = schema.as_object_mut() {
        fields.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": JSON_SPACE }));
    }
    schema
}

/// The first line or so of a reason, without the listing of the grammar that the library puts behind it: much of it is ours.
fn short(reason: &str) -> String {
    let is_listing = |line: &str| {
        line == "<non-verbose/>" || line.trim_start().split_once(" | ").is_some_and(|(number, _)| number.parse::<u32>().is_ok())
    };
    let kept: Vec<&str> = reason.lines().take_while(|line| !is_listing(line)).collect();
    let kept = kept.join("\n");
    let reason = kept.trim();
    let reason = match reason.char_indices().nth(REASON_LEN_MAX) {
        Some((end, _)) => format!("{} …", &reason[..end]),
        None => reason.to_owned(),
    };
    match reason.as_str() {
        "NoExtensionBias" => "no text follows it; loosen it".to_owned(),
        _ if reason.contains("Unimplemented keys") => format!("{reason}: these keywords cannot be followed; leave them out of the schema"),
        _ => reason,
    }
}

/// The grammar of one answer, and how far the answer has come. Clones are the same one.
#[derive(Clone)]
pub struct Grammar(Arc<State>);

struct State {
    follower: Mutex<Follower>,
    /// Tokens of the answer that the matcher has yet to see.
    pending: Mutex<Vec<u32>>,
}

impl Grammar {
    /// The answer went on with these tokens.
    pub fn push(&self, ids: &[u32]) {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(ids);
    }

    /// Begins to compute which tokens may come next, and after each of `guesses` for as long as the grammar allows them.
    pub fn masks(&self, guesses: &[u32]) -> Masks {
        let (masks, promise) = Masks::promised();
        let (state, guesses) = (Arc::clone(&self.0), guesses.to_vec());
        workers().spawn(move || promise.keep(state.masks(&guesses)));
        masks
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

impl State {
    fn masks(&self, guesses: &[u32]) -> Result<Vec<SimpleVob>, String> {
        let mut follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        follower.follow(&pending, guesses).map_err(|error| short(&error.to_string()))
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The state of a grammar behind an answer's tokens.
struct Follower {
    matcher: Matcher,
    /// The matcher before the answer.
    start: Matcher,
    /// The answer's tokens so far.
    seen: Vec<u32>,
}

impl Follower {
    /// The masks behind `pending` and along `guesses`; the matcher is then where `pending` ends.
    fn follow(&mut self, pending: &[u32], guesses: &[u32]) -> Result<Vec<SimpleVob>, Failure> {
        self.seen.extend_from_slice(pending);
        consume(&mut self.matcher, pending)?;
        let mut masks = vec![self.matcher.compute_mask_or_eos()?];
        if let Err(reason) = along(&mut self.matcher, guesses, &mut masks) {
            // What failed lies behind a guess, and the answer need not go there: the grammar is followed anew to where the answer is.
            tracing::debug!(%reason, "a grammar cannot be followed along a guess");
            self.matcher = self.start.deep_clone();
            consume(&mut self.matcher, &self.seen)?;
        }
        Ok(masks)
    }
}

/// Goes on with tokens of the answer.
fn consume(matcher: &mut Matcher, ids: &[u32]) -> Result<(), Failure> {
    for id in ids {
        if matcher.is_stopped() && !matcher.is_error() {
            break; // what comes behind the end of the grammar ends the answer
        }
        matcher.consume_token(*id)?;
    }
    Ok(())
}

/// Adds the masks along `guesses`, for as long as the grammar allows them, and goes back.
fn along(matcher: &mut Matcher, guesses: &[u32], masks: &mut Vec<SimpleVob>) -> Result<(), Failure> {
    let mut n_consumed = 0;
    for guess in guesses {
        let allowed = masks.last().is_some_and(|mask| mask.get(*guess as usize));
        if !allowed || matcher.is_stopped() {
            break;
        }
        matcher.consume_token(*guess)?;
        n_consumed += 1;
        masks.push(matcher.compute_mask_or_eos()?);
    }
    matcher.rollback(n_consumed)?;
    Ok(())
}

/// The threads that compute masks: two, beside those of the device.
fn workers() -> &'static rayon::ThreadPool {
    static WORKERS: OnceLock<rayon::ThreadPool> = OnceLock::new();
    WORKERS.get_or_init(|| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).thread_name(|i| format!("grammar-{i}"));
        // A panic is answered by the promise that it drops.
        let pool = pool.panic_handler(|_| tracing::error!("computing a grammar's mask panicked"));
        pool.build().expect("a process that serves can start two threads more")
    })
}
