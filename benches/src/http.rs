//! HTTP/1.1 with as little as possible between the clock and the socket: blocking, keep-alive, one request at a time.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

/// A node that is silent for so long will not answer any more.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// The bytes of a request. A `body` makes it a POST of JSON, none a GET.
pub(crate) fn request_bytes(to: SocketAddr, path: &str, body: Option<&Value>) -> Vec<u8> {
    match body.map(Value::to_string) {
        None => format!("GET {path} HTTP/1.1\r\nhost: {to}\r\n\r\n").into_bytes(),
        Some(body) => {
            let length = body.len();
            format!("POST {path} HTTP/1.1\r\nhost: {to}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
                .into_bytes()
        }
    }
}

/// A connection to a node.
#[derive(Debug)]
pub(crate) struct Connection {
    to: SocketAddr,
    stream: TcpStream,
    response: ResponseReader,
}

impl Connection {
    /// Connects.
    pub(crate) fn open(to: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        Ok(Self { to, stream, response: ResponseReader::default() })
    }

    /// Status and body of a GET.
    pub(crate) fn get(&mut self, path: &str) -> anyhow::Result<(u16, Vec<u8>)> {
        self.whole(path, None)
    }

    /// Status and body of the answer to JSON.
    pub(crate) fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<(u16, Vec<u8>)> {
        self.whole(path, Some(body))
    }

    fn whole(&mut self, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, Vec<u8>)> {
        let mut answer = Vec::new();
        let status = self.exchange(path, body, |part, _| {
            answer.extend_from_slice(part);
            true
        })?;
        Ok((status, answer))
    }

    /// Posts JSON that is answered by server-sent events; shows each event's data as it arrives, with the time of its arrival.
    /// Errors: any status but 200, with the body.
    pub(crate) fn stream(&mut self, path: &str, body: &Value, mut on_event: impl FnMut(&[u8], Instant)) -> anyhow::Result<()> {
        self.stream_while(path, body, |data, arrived| {
            on_event(data, arrived);
            true
        })
    }

    /// The same, given up as soon as `on_event` says so. The connection is of no more use then.
    pub(crate) fn stream_while(
        &mut self,
        path: &str,
        body: &Value,
        mut on_event: impl FnMut(&[u8], Instant) -> bool,
    ) -> anyhow::Result<()> {
        let mut pending = Vec::new();
        let status = self.exchange(path, Some(body), |part, arrived| {
            pending.extend_from_slice(part);
            let mut seen = 0;
            while let Some(length) = find(&pending[seen..], b"\n\n") {
                if let Some(data) = pending[seen..seen + length].strip_prefix(b"data: ")
                    && !on_event(data, arrived)
                {
                    return false;
                }
                seen += length + 2;
            }
            pending.drain(..seen);
            true
        })?;
        if status != 200 {
            bail!("{path} answered {status}: {}", String::from_utf8_lossy(&pending));
        }
        Ok(())
    }

    /// Status of the answer, whose body is shown as it arrives, until `on_part` says that it is enough.
    fn exchange(&mut self, path: &str, body: Option<&Value>, mut on_part: impl FnMut(&[u8], Instant) -> bool) -> anyhow::Result<u16> {
        self.stream.write_all(&request_bytes(self.to, path, body))?;
        let mut input = vec![0; 256 << 10];
        let mut status = 0;
        loop {
            let n = match self.stream.read(&mut input) {
                Ok(0) => bail!("{} closed the connection in the middle of an answer", self.to),
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).with_context(|| format!("waiting for {} to answer {path}", self.to)),
            };
            let arrived = Instant::now();
            let mut ended = false;
            self.response.feed(&input[..n], |piece| match piece {
                Piece::Status(code) => status = code,
                Piece::Body(part) => ended = ended || !on_part(part, arrived),
                Piece::End => ended = true,
            })?;
            if ended {
                return Ok(status);
            }
        }
    }
}

/// A piece of a response, as it is found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A response begins.
    Status(u16),
    /// More of its body.
    Body(&'a [u8]),
    /// It is complete; the next may follow.
    End,
}

/// Finds responses in the bytes of a connection, however they are cut.
#[derive(Debug, Default)]
pub(crate) struct ResponseReader {
    state: State,
    /// A head or chunk size of which only a part has come.
    line: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Head,
    /// Bytes of a body of known length that are still to come.
    Sized(usize),
    ChunkSize,
    /// Bytes of a chunk still to come, with the line end behind it.
    Chunk(usize),
    /// After the last chunk: lines up to an empty one.
    Trailer,
}

impl ResponseReader {
    /// Takes the next bytes and shows what they hold.
    pub(crate) fn feed(&mut self, mut input: &[u8], mut on_piece: impl FnMut(Piece<'_>)) -> anyhow::Result<()> {
        while !input.is_empty() {
            match self.state {
                State::Head => {
                    if self.take_through(b"\r\n\r\n", &mut input) {
                        let head = String::from_utf8_lossy(&self.line).to_ascii_lowercase();
                        let status = head.get(9..12).and_then(|code| code.parse().ok()).context("not an HTTP response")?;
                        on_piece(Piece::Status(status));
                        let header = |name| head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| *key == name);
                        self.state = match (header("transfer-encoding"), header("content-length")) {
                            (Some((_, "chunked")), _) => State::ChunkSize,
                            (_, Some((_, length))) => State::Sized(length.parse().context("bad content-length")?),
                            _ => bail!("a response of unknown length: {head}"),
                        };
                        self.line.clear();
                        if let State::Sized(0) = self.state {
                            self.state = State::Head;
                            on_piece(Piece::End);
                        }
                    }
                }
                State::Sized(left) => {
                    let (part, rest) = input.split_at(left.min(input.len()));
                    input = rest;
                    on_piece(Piece::Body(part));
                    self.state = State::Sized(left - part.len());
                    if left == part.len() {
                        self.state = State::Head;
                        on_piece(Piece::End);
                    }
                }
                State::ChunkSize => {
                    if self.take_through(b"\r\n", &mut input) {
                        let text = String::from_utf8_lossy(&self.line);
                        let size = usize::from_str_radix(text.trim(), 16).with_context(|| format!("bad chunk size {text:?}"))?;
                        self.state = if size == 0 { State::Trailer } else { State::Chunk(size + 2) };
                        self.line.clear();
                    }
                }
                State::Chunk(left) => {
                    let (part, rest) = input.split_at(left.min(input.len()));
                    input = rest;
                    let data = part.len().min(left.saturating_sub(2));
                    if data > 0 {
                        on_piece(Piece::Body(&part[..data]));
                    }
                    self.state = if left == part.len() { State::ChunkSize } else { State::Chunk(left - part.len()) };
                }
                State::Trailer => {
                    if self.take_through(b"\r\n", &mut input) {
                        let last = self.line == b"\r\n";
                        self.line.clear();
                        if last {
                            self.state = State::Head;
                            on_piece(Piece::End);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves bytes from `input` to `line` up to and with `end`. False if it has not come yet.
    fn take_through(&mut self, end: &[u8], input: &mut &[u8]) -> bool {
        for (i, byte) in input.iter().enumerate() {
            self.line.push(*byte);
            if self.line.ends_with(end) {
                *input = &input[i + 1..];
                return true;
            }
        }
        *input = &[];
        false
    }
}

/// Where `needle` first is in `text`.
pub(crate) fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::{Piece, ResponseReader};

    #[test]
    fn responses_are_found_however_they_are_cut() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\nHTTP/1.1 204 No\r\ncontent-length: 0\r\n\r\n";
        for size in 1..bytes.len() {
            let mut reader = ResponseReader::default();
            let mut found = String::new();
            for cut in bytes.chunks(size) {
                reader
                    .feed(cut, |piece| match piece {
                        Piece::Status(code) => found += &format!("<{code}>"),
                        Piece::Body(part) => found += std::str::from_utf8(part).unwrap(),
                        Piece::End => found += "|",
                    })
                    .unwrap();
            }
            assert_eq!(found, "<200>hello|<503>abc0123456789|<204>|", "in cuts of {size}");
        }
    }
}
