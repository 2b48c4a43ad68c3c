//! The filter `tojson`.

use std::io;

use minijinja::value::{Kwargs, Value, from_args};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::float;
use crate::codec::sandbox::{charge, left, weigh};

/// How the filter `tojson` writes: `ensure_ascii`, `indent`, `separators` and `sort_keys` of Python's `json.dumps`, in this order.
#[derive(Debug, Default)]
struct JsonStyle {
    ascii: bool,
    indent: Option<String>,
    /// Between values, and between a key and its value.
    separators: Option<(String, String)>,
    sorted: bool,
}

impl JsonStyle {
    /// Reads the arguments of `tojson`. Errors: one that it does not have, or that is not what it should be.
    fn read(args: &[Value]) -> Result<Self, Error> {
        let (positional, named): (&[Value], Kwargs) = from_args(args)?;
        if positional.len() > 4 {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        let given = |at: usize, name: &str| match positional.get(at) {
            Some(value) => Ok(Some(value.clone())),
            None => named.get::<Option<Value>>(name),
        };
        let (ascii, indent) = (given(0, "ensure_ascii")?, given(1, "indent")?);
        let (separators, sorted) = (given(2, "separators")?, given(3, "sort_keys")?);
        named.assert_all_used()?;
        let indent = match indent.filter(|indent| !indent.is_none()) {
            Some(indent) if indent.as_str().is_none() => {
                let width = usize::try_from(indent)?;
                charge(width as u64)?;
                Some(" ".repeat(width))
            }
            indent => indent.as_ref().and_then(Value::as_str).map(str::to_owned),
        };
        let separators = match separators.filter(|separators| !separators.is_none()) {
            Some(pair) => match (pair.get_item_by_index(0)?.as_str(), pair.get_item_by_index(1)?.as_str()) {
                (Some(between), Some(behind)) => Some((between.to_owned(), behind.to_owned())),
                _ => return Err(Error::new(ErrorKind::InvalidOperation, "separators of JSON are two texts")),
            },
            None => None,
        };
        Ok(Self { ascii: ascii.is_some_and(|it| it.is_true()), indent, separators, sorted: sorted.is_some_and(|it| it.is_true()) })
    }
}

/// Writes JSON as Python's `json.dumps` does.
struct PythonFormatter<'a> {
    ascii: bool,
    indent: Option<&'a str>,
    between: &'a str,
    behind_key: &'a str,
    depth: usize,
    /// Has the list or object that ends next any values?
    filled: bool,
}

impl<'a> PythonFormatter<'a> {
    fn new(style: &'a JsonStyle) -> Self {
        let between = if style.indent.is_some() { "," } else { ", " };
        let (between, behind_key) = style.separators.as_ref().map_or((between, ": "), |(between, behind)| (between, behind));
        Self { ascii: style.ascii, indent: style.indent.as_deref(), between, behind_key, depth: 0, filled: false }
    }

    fn line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }

    fn open<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(writer)?;
        }
        self.filled = true;
        writer.write_all(bracket)
    }

    fn next<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.filled = true;
        writer.write_all(if first { b"" } else { self.between.as_bytes() })?;
        self.line(writer)
    }
}

impl Formatter for PythonFormatter<'_> {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.behind_key.as_bytes())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ascii {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            match c {
                ' '..='~' => writer.write_all(&[c as u8])?,
                _ => c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?,
            }
        }
        Ok(())
    }
}

/// The filter `tojson` as Hugging Face's library defines it; `args` are those behind the value.
/// Errors: more than the rendering may still make, arguments that it does not have.
pub(in crate::codec) fn to_json(value: &Value, args: &[Value]) -> Result<String, Error> {
    let style = JsonStyle::read(args)?;
    weigh(value)?;
    let failed = |error| Error::new(ErrorKind::BadSerialization, "cannot be written as JSON").with_source(error);
    let mut out = Limited { bytes: Vec::new(), left: left() };
    let mut serializer = Serializer::with_formatter(&mut out, PythonFormatter::new(&style));
    if style.sorted {
        weigh(value)?;
        let mut value = serde_json::to_value(value).map_err(failed)?;
        value.sort_all_objects();
        value.serialize(&mut serializer).map_err(failed)?;
    } else {
        value.serialize(&mut serializer).map_err(failed)?;
    }
    charge(out.bytes.len() as u64)?;
    Ok(String::from_utf8(out.bytes).expect("JSON is text"))
}

/// A buffer that refuses to grow beyond a length.
struct Limited {
    bytes: Vec<u8>,
    left: u64,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| io::Error::other("it is longer than its conversation can need"))?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
