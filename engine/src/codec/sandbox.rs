//! Where chat templates run. They come with models, from anywhere, and one that is written to harm must not harm the node.
//!
//! The template engine counts instructions, which bounds neither memory nor time: one instruction may double a text, indent it by a
//! terabyte, or compare two values without end, and a value nested a million deep ends the process when it is dropped. So whatever may copy,
//! grow or walk values asks for it first:
//!
//! - **An allowance** of bytes for each rendering ([`allowance`]). Who copies or walks values takes as much from it as he may make or visit,
//!   before he does it; when nothing is left, the rendering ends with an error. What a rendering ever makes is therefore bounded, and so is
//!   what it holds.
//! - **Operators** cannot be replaced in the engine, so its instructions are: before each that may grow or walk values stands one that pays
//!   for it ([`guards`]), and lists that would be made while they are read are made at once. Instructions that cannot be paid for
//!   beforehand, and that no chat template uses, are refused.
//! - **Filters, tests and methods** are those that chat templates use, each with its price ([`filters`]). There are no others.
//! - **What the template itself may be** is bounded before it is compiled, as compiling folds constants and goes down into expressions:
//!   its length, the words of a tag, the branches, products of constants.
//! - It compiles and runs on a **thread of its own**, whose stack is large enough for what those bounds allow.
//!
//! Templates are compiled for each rendering (a millisecond for the longest): the engine keeps compiled ones only as it made them.

mod allowance;
mod filters;
mod guards;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use minijinja::machinery::{CodeGenerator, Instructions, Token, eval, make_string_output, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};

pub(super) use allowance::{charge, left, weigh};

/// Instructions that a rendering may execute. The longest conversations take some hundred thousand.
const FUEL: u64 = 5_000_000;
/// Bytes that a rendering may give; no context holds more.
const MAX_OUTPUT: usize = 16 << 20;
/// Bytes of a template. The longest known are below 20,000.
const MAX_LEN: usize = 256 << 10;
/// Words and signs within one tag: each may be a level of an expression, at each of which the compiler tries to compute what is below it.
/// The longest known tag has 600.
const MAX_TAG_TOKENS: usize = 1500;
/// Macros and calls within each other: the compiler looks through all of a macro for each that it is in. Known templates have up to 2.
const MAX_MACRO_DEPTH: usize = 4;
/// Branches by `elif`, each of which is a level of its own. Known templates have up to 20.
const MAX_ELIF: usize = 500;
/// Bytes of a text that is repeated by a constant: the compiler does it, without asking.
const MAX_CONSTANT: u64 = 1024;
/// Names that are no variables.
const CONSTANTS: [&str; 10] = ["true", "True", "false", "False", "none", "None", "not", "and", "or", "in"];
/// Bytes of stack, of which only those that are used take memory.
const STACK: usize = 64 << 20;

/// Compiles and renders templates; holds what they may use.
#[derive(Debug)]
pub(super) struct Sandbox {
    environment: Environment<'static>,
    syntax: SyntaxConfig,
}

impl Sandbox {
    /// A sandbox; further functions and filters come in through [`Sandbox::environment`].
    pub(super) fn new() -> Result<Self, String> {
        let mut environment = Environment::empty();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|error| error.to_string())?;
        environment.set_fuel(Some(FUEL));
        guards::add_to(&mut environment);
        filters::add_to(&mut environment);
        Ok(Self { environment, syntax })
    }

    /// For functions, filters and tests that belong to chat templates alone. They pay for what they make: see [`charge`].
    pub(super) fn environment(&mut self) -> &mut Environment<'static> {
        &mut self.environment
    }

    /// Can `source` be run here? The error says what is wrong with it.
    pub(super) fn check(&self, source: &str) -> Result<(), String> {
        let checked = on_own_stack(|| {
            check_source(source, &self.syntax)?;
            self.compile(source).map(|_| ()).map_err(|error| format!("{error:#}"))
        });
        checked.map_err(|error| format!("{error:#}")).and_then(|result| result)
    }

    /// Renders `source`, which was found good by [`Sandbox::check`].
    pub(super) fn render(&self, source: &str, variables: Value) -> Result<String, Error> {
        on_own_stack(|| {
            allowance::begin(&variables)?;
            let program = self.compile(source)?;
            let mut text = String::new();
            let blocks = BTreeMap::new();
            let result = eval(&self.environment, &program, variables, &blocks, &mut make_string_output(&mut text), AutoEscape::None);
            drop(result?);
            if text.len() > MAX_OUTPUT {
                return Err(Error::new(ErrorKind::WriteFailure, "the rendered conversation is too long"));
            }
            Ok(text)
        })
        .and_then(|result| result)
    }

    fn compile<'source>(&self, source: &'source str) -> Result<Instructions<'source>, Error> {
        let tree = parse(source, "chat", self.syntax.clone())?;
        let mut generator = CodeGenerator::new("chat", source);
        generator.compile_stmt(&tree);
        guards::guarded(&generator.finish().0, source)
    }
}

/// Runs `task` on a thread with [`STACK`] bytes. A panic of the engine is an error too.
fn on_own_stack<T: Send>(task: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("template".into()).stack_size(STACK).spawn_scoped(scope, task);
        let thread = thread.map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("no thread for the template: {error}")))?;
        thread.join().map_err(|_| Error::new(ErrorKind::InvalidOperation, "the template engine failed on it"))
    })
}

/// Bounds what the compiler will do.
fn check_source(source: &str, syntax: &SyntaxConfig) -> Result<(), String> {
    if source.len() > MAX_LEN {
        return Err(format!("it has {} bytes; at most {MAX_LEN} are accepted", source.len()));
    }
    let mut tag = Vec::new();
    let (mut n_elif, mut macro_depth) = (0, 0usize);
    for token in tokenize(source, false, syntax.clone()) {
        let (token, _) = token.map_err(|error| error.to_string())?;
        match token {
            Token::VariableStart | Token::BlockStart => tag.clear(),
            Token::VariableEnd | Token::BlockEnd => check_products(&tag)?,
            Token::Ident("elif") => n_elif += 1,
            Token::Ident("macro" | "call") if matches!(tag[..], [Token::BlockStart]) => macro_depth += 1,
            Token::Ident("endmacro" | "endcall") if matches!(tag[..], [Token::BlockStart]) => macro_depth = macro_depth.saturating_sub(1),
            _ => {}
        }
        tag.push(token);
        if tag.len() > MAX_TAG_TOKENS {
            return Err(format!("one of its tags has more than {MAX_TAG_TOKENS} words and signs"));
        }
        if macro_depth > MAX_MACRO_DEPTH {
            return Err(format!("it has more than {MAX_MACRO_DEPTH} macros and calls within each other"));
        }
    }
    if n_elif > MAX_ELIF {
        return Err(format!("it has {n_elif} elif branches; at most {MAX_ELIF} are accepted"));
    }
    Ok(())
}

/// The compiler computes what consists of constants. Products are what could make that large: one is accepted where a factor has a
/// variable, so that it is none of constants, between two numbers, and for a text that a number repeats, within [`MAX_CONSTANT`].
fn check_products(tag: &[Token<'_>]) -> Result<(), String> {
    let number = |token: &Token<'_>| matches!(token, Token::Int(_) | Token::Int128(_) | Token::Float(_));
    let text_len = |token: &Token<'_>| match token {
        Token::Str(text) => Some(text.len() as u64),
        Token::String(text) => Some(text.len() as u64),
        _ => None,
    };
    for at in (1..tag.len().saturating_sub(1)).filter(|at| matches!(tag[*at], Token::Mul)) {
        let (left, right) = (&tag[at - 1], &tag[at + 1]);
        if has_variable(tag[..at].iter().rev()) || has_variable(tag[at + 1..].iter()) || number(left) && number(right) {
            continue;
        }
        let goes_on = |at: usize| tag.get(at).is_some_and(|token| matches!(token, Token::Mul | Token::Pow) || text_len(token).is_some());
        let repeated = match (text_len(left), left, text_len(right), right) {
            (Some(len), _, _, Token::Int(n)) | (_, Token::Int(n), Some(len), _) => len.saturating_mul(*n),
            _ => u64::MAX,
        };
        if repeated > MAX_CONSTANT || at >= 2 && goes_on(at - 2) || goes_on(at + 2) {
            return Err("it multiplies constants: write what they give, or a variable".into());
        }
    }
    Ok(())
}

/// Is the factor that these tokens begin with a variable, or something in brackets with one? What stands behind the brackets is not looked at.
fn has_variable<'a, 's: 'a>(tokens: impl Iterator<Item = &'a Token<'s>>) -> bool {
    let mut depth = 0;
    for token in tokens {
        match token {
            Token::Ident(name) if !CONSTANTS.contains(name) => return true,
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => depth += 1,
            Token::ParenClose | Token::BracketClose | Token::BraceClose => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return false;
        }
    }
    false
}
