//! Server-sent events, as far as chat completions need them: the `data` of each event.

/// Turns the bytes of a stream, however they are cut, into the data of its events.
#[derive(Debug, Default)]
pub(crate) struct EventDecoder {
    line: Vec<u8>,
    data: Vec<String>,
}

impl EventDecoder {
    /// Takes more bytes; gives the data of each event that they complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8_lossy(&line);
            let line = line.strip_suffix('\r').unwrap_or(&line);
            if line.is_empty() {
                if !self.data.is_empty() {
                    events.push(std::mem::take(&mut self.data).join("\n"));
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                self.data.push(data.strip_prefix(' ').unwrap_or(data).to_owned());
            } // comments keep the connection open; other fields say nothing here
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::EventDecoder;

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let stream = ": ping\n\ndata: {\"a\":\"é\"}\n\nevent: x\r\ndata:one\r\ndata: two\r\n\r\ndata: [DONE]\n\ndata: half";
        for size in 1..=stream.len() {
            let mut decoder = EventDecoder::default();
            let events: Vec<String> = stream.as_bytes().chunks(size).flat_map(|bytes| decoder.push(bytes)).collect();
            assert_eq!(events, ["{\"a\":\"é\"}", "one\ntwo", "[DONE]"], "{size}");
        }
    }
}
