//! The terminal, or what stands in for it.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

/// Writes a line. An error if nobody reads any more, as behind `| head`: a command then has nothing left to do.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Writes a model's text as it comes, with what could command the terminal taken out.
pub(crate) fn write_text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(harmless(text).as_bytes())?;
    out.flush()
}

/// The text without control characters other than tabs and line ends: an escape sequence in an answer must not reach the terminal.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// Is the standard output watched by a person who has not asked for plain text (<https://no-color.org>)?
pub(crate) fn wants_colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Does a person type?
pub(crate) fn is_typed() -> bool {
    io::stdin().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn an_answer_cannot_command_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\r\u{9b}c\n\td\u{7}é"), "a[2Jbc\n\tdé");
    }
}
