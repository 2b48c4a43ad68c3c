//! JSON that is still being written: where a value ends, and what an object says so far.

/// Why a look at unfinished text gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// It may still become what is looked for.
    More,
    /// It cannot.
    Broken,
}

/// Follows one object or array through its characters.
#[derive(Debug, Clone, Default)]
pub(super) struct Nesting {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    /// Length of the part of `text` that belongs to the value, and whether the value ends there. Begins at its first bracket. What cannot
    /// stand in JSON outside a string, such as a marker, ends it too.
    pub(super) fn take(&mut self, text: &str) -> (usize, bool) {
        for (i, byte) in text.bytes().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'<' | 0x80.. => return (i, true),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return (i + 1, true);
                    }
                }
                _ => {}
            }
        }
        (text.len(), false)
    }
}

/// A place in unfinished JSON.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `text`.
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Bytes passed.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// What follows.
    pub(super) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Passes white space and looks at the character behind it.
    pub(super) fn peek(&mut self) -> Result<char, Stop> {
        self.at = self.text.len() - self.rest().trim_start().len();
        self.rest().chars().next().ok_or(Stop::More)
    }

    /// Passes white space and `wanted`.
    pub(super) fn expect(&mut self, wanted: char) -> Result<(), Stop> {
        if self.peek()? != wanted {
            return Err(Stop::Broken);
        }
        self.at += wanted.len_utf8();
        Ok(())
    }

    /// Passes white space and a whole string, and gives what it says.
    pub(super) fn string(&mut self) -> Result<String, Stop> {
        if self.peek()? != '"' {
            return Err(Stop::Broken);
        }
        let raw = self.value()?;
        serde_json::from_str(raw).map_err(|_| Stop::Broken)
    }

    /// Passes white space and a whole value, and gives it as it is written. A number or word is whole when something follows it.
    pub(super) fn value(&mut self) -> Result<&'a str, Stop> {
        let first = self.peek()?;
        let rest = self.rest();
        let len = match first {
            '{' | '[' => match Nesting::default().take(rest) {
                (len, true) => len,
                _ => return Err(Stop::More),
            },
            '"' => string_len(rest).ok_or(Stop::More)?,
            _ => rest.find(|c: char| matches!(c, ',' | '}' | ']') || c.is_whitespace()).ok_or(Stop::More)?,
        };
        if len == 0 {
            return Err(Stop::Broken);
        }
        self.at += len;
        Ok(&rest[..len])
    }
}

/// Length of the string with which `text` begins, quotes included.
fn string_len(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (i, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(i + 1),
            _ => {}
        }
    }
    None
}

/// The inside of the JSON string that says `text`, without quotes.
pub(super) fn escape(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_ends_where_its_first_bracket_is_closed_whatever_its_strings_say() {
        let text = r#"{"a": "}\"{", "b": [1, {"c": "]"}]}, "#;
        assert_eq!(Nesting::default().take(text), (text.len() - 2, true));
        let mut nesting = Nesting::default();
        let whole: usize = text.chars().map(|c| nesting.clone_take(c)).take_while(|more| *more).count();
        assert_eq!(whole + 1, text.len() - 2);
    }

    impl Nesting {
        fn clone_take(&mut self, c: char) -> bool {
            !self.take(&c.to_string()).1
        }
    }

    #[test]
    fn an_unfinished_string_or_number_is_not_yet_a_value() {
        assert_eq!(Cursor::new(" \"ab\\\"").value(), Err(Stop::More));
        assert_eq!(Cursor::new("12").value(), Err(Stop::More));
        assert_eq!(Cursor::new(" 12 ").value(), Ok("12"));
        assert_eq!(Cursor::new("\"é\\n\" ").string(), Ok("é\n".into()));
        assert_eq!(Cursor::new("nothing").string(), Err(Stop::Broken));
    }
}
