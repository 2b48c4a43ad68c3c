//! `plexus chat`: a conversation in the terminal, or a script of one through a pipe.

use std::io::BufRead;

use tokio::sync::mpsc;

use super::terminal::line as write_line;
use super::{connect, terminal};
use crate::cli::{AnswerOptions, ChatArgs};
use crate::client::chat::{Piece, Question, Turn};
use crate::client::{Client, ClientError};

/// Lines that may wait while an answer comes: a pipe is read no faster than it is answered.
const LINES_AHEAD: usize = 1;

/// How an answer ended.
enum Ending {
    Complete,
    Stopped,
}

/// Talks until the input ends. In a pipe the first failure ends it; a person may try again.
pub(crate) async fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let client = connect(&args.node).await?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => client.some_model().await?,
    };
    let typed = terminal::is_typed();
    if typed {
        write_line(format_args!("{model} at {}. Ctrl-C stops an answer, Ctrl-D leaves.", client.url()))?;
    }
    let mut turns: Vec<Turn> = args.answer.system.iter().map(|system| Turn::system(system)).collect();
    let mut lines = lines();
    while let Some(line) = next_line(&mut lines, typed).await? {
        if line.trim().is_empty() {
            continue;
        }
        turns.push(Turn::user(line.trim_end()));
        let mut text = String::new();
        let ended = answer(&client, &model, &turns, &args.answer, &mut text).await;
        write_line("")?;
        match ended {
            Ok(Ending::Complete) => turns.push(Turn::assistant(text)),
            // What was said so far stays said.
            Ok(Ending::Stopped) if !text.is_empty() => turns.push(Turn::assistant(text)),
            Ok(Ending::Stopped) => drop(turns.pop()),
            Err(error) if typed => {
                eprintln!("plexus: {error}");
                turns.pop(); // unanswered: asked anew if it is typed again
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Prints an answer as it comes and keeps it in `text`, until it is complete or Ctrl-C stops it.
async fn answer(client: &Client, model: &str, turns: &[Turn], options: &AnswerOptions, text: &mut String) -> Result<Ending, ClientError> {
    let question = Question { model, messages: turns, temperature: options.temperature, max_tokens: options.max_tokens };
    let stopped = tokio::signal::ctrl_c();
    tokio::pin!(stopped);
    let mut answer = tokio::select! {
        answer = client.ask(&question) => answer?,
        _ = &mut stopped => return Ok(Ending::Stopped),
    };
    loop {
        let piece = tokio::select! {
            piece = answer.next() => piece?,
            _ = &mut stopped => return Ok(Ending::Stopped),
        };
        match piece {
            None => return Ok(Ending::Complete),
            Some(Piece::Text(more)) => {
                text.push_str(&more);
                let written = terminal::write_text(&more);
                written.map_err(|error| ClientError::Broken { url: client.url().to_owned(), problem: format!("cannot print: {error}") })?;
            }
            Some(Piece::Finish(_) | Piece::Usage(_)) => {}
        }
    }
}

/// The lines of the standard input. Read on a thread of their own, which ends with the process: a blocked read cannot be called off.
fn lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (send, lines) = mpsc::channel(LINES_AHEAD);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if send.blocking_send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// The next line that was typed; `None` when there are no more. Ctrl-C only begins a new one.
async fn next_line(lines: &mut mpsc::Receiver<std::io::Result<String>>, typed: bool) -> std::io::Result<Option<String>> {
    loop {
        if typed {
            terminal::write_text("> ")?;
        }
        tokio::select! {
            line = lines.recv() => {
                if typed && line.is_none() {
                    write_line("")?;
                }
                return line.transpose();
            }
            _ = tokio::signal::ctrl_c(), if typed => write_line("\n(Ctrl-D leaves)")?,
        }
    }
}
