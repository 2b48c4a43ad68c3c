//! `plexus run`: one question, one answer.

use std::io::Read;

use serde_json::{Value, json};

use super::terminal::line;
use super::{connect, terminal};
use crate::cli::RunArgs;
use crate::client::chat::{Piece, Question, Turn};

/// Asks once and prints the answer as it comes, or whole as JSON.
pub(crate) async fn run(args: &RunArgs) -> anyhow::Result<()> {
    let must_read = args.prompt.as_deref().is_none_or(|prompt| prompt == "-");
    let mut piped = String::new();
    if !terminal::is_typed() && (must_read || has_input()) {
        std::io::stdin().read_to_string(&mut piped)?;
    }
    let prompt = prompt(args.prompt.as_deref(), &piped);
    if prompt.is_empty() {
        anyhow::bail!("there is nothing to ask: write plexus run \"your question\", or pipe a text in");
    }
    let client = connect(&args.node).await?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => client.some_model().await?,
    };
    let mut messages: Vec<Turn> = args.answer.system.iter().map(|system| Turn::system(system)).collect();
    messages.push(Turn::user(&prompt));
    let question =
        Question { model: &model, messages: &messages, temperature: args.answer.temperature, max_tokens: args.answer.max_tokens };
    let mut answer = client.ask(&question).await?;
    let (mut text, mut reason, mut usage) = (String::new(), Value::Null, Value::Null);
    while let Some(piece) = answer.next().await? {
        match piece {
            Piece::Text(more) if args.json => text.push_str(&more),
            Piece::Text(more) => terminal::write_text(&more)?,
            Piece::Finish(why) => reason = why.into(),
            Piece::Usage(cost) => usage = cost,
        }
    }
    if args.json {
        let whole = json!({ "model": model, "text": text, "finish_reason": reason, "usage": usage });
        line(serde_json::to_string_pretty(&whole)?)?;
    } else {
        line("")?;
    }
    Ok(())
}

/// Is the standard input a pipe or a file, rather than something that may stay open and silent for ever?
#[cfg(unix)]
fn has_input() -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;
    let Ok(stdin) = std::io::stdin().as_fd().try_clone_to_owned() else { return false };
    let kind = std::fs::File::from(stdin).metadata().map(|metadata| metadata.file_type());
    kind.is_ok_and(|kind| kind.is_fifo() || kind.is_file())
}

#[cfg(not(unix))]
fn has_input() -> bool {
    false
}

/// The question: what was typed, then what was piped in.
fn prompt(typed: Option<&str>, piped: &str) -> String {
    let typed = typed.filter(|typed| *typed != "-").unwrap_or_default().trim();
    let piped = piped.trim();
    match (typed.is_empty(), piped.is_empty()) {
        (false, false) => format!("{typed}\n\n{piped}"),
        (false, true) => typed.to_owned(),
        (true, _) => piped.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::prompt;

    #[test]
    fn what_is_piped_in_follows_what_was_typed() {
        assert_eq!(prompt(Some("sum up"), "a text\n"), "sum up\n\na text");
        assert_eq!(prompt(Some("-"), "a text\n"), "a text");
        assert_eq!(prompt(None, "a text\n"), "a text");
        assert_eq!(prompt(Some("hello"), ""), "hello");
        assert_eq!(prompt(None, " \n"), "");
    }
}
