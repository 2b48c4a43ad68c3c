//! An open loop: requests leave at their intended times whether or not earlier ones are answered, and latency counts from the intended time.
//! A node that falls behind is therefore seen to, which a loop that waits for answers would hide.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::AsyncReadExt;

use crate::figures::ms;
use crate::http::{Piece, ResponseReader};

/// Longest wait for answers after the last request has left.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much is asked of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Keep-alive connections, used in turn.
    pub(crate) connections: usize,
    /// Requests per second over all of them.
    pub(crate) rate: u32,
    /// For how long.
    pub(crate) duration: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// Milliseconds from the intended time of each request to the end of its answer.
    pub(crate) latencies_ms: Vec<f64>,
    /// The same from when the request was written: without what the generator itself was late by.
    pub(crate) since_written_ms: Vec<f64>,
    /// Answers with another status than 200.
    pub(crate) refused: usize,
}

impl Load {
    /// Sends `request` to the node at `to` as planned and waits for every answer.
    ///
    /// The sender is a thread of its own that sleeps until each intended time; readers run beside it. Request `i` leaves at `i / rate` on
    /// connection `i % connections`, so the answers of a connection, which come in order, name their requests.
    pub(crate) fn run(self, to: SocketAddr, request: &[u8]) -> anyhow::Result<Outcome> {
        let n_requests = (f64::from(self.rate) * self.duration.as_secs_f64()) as usize;
        let sockets = (0..self.connections).map(|_| connect(to)).collect::<anyhow::Result<Vec<_>>>()?;
        let start = Instant::now() + Duration::from_millis(50);
        let intended = move |i: usize| start + Duration::from_secs_f64(i as f64 / f64::from(self.rate));
        let readers = sockets.iter().map(TcpStream::try_clone).collect::<Result<Vec<_>, _>>()?;
        let reading = thread::spawn(move || read_all(readers, n_requests, intended, self.duration + PATIENCE));
        let mut lateness_ms = Vec::with_capacity(n_requests);
        let _only_less_punctual = fs::write("/proc/self/timerslack_ns", "1000"); // of 50 µs, by default
        for i in 0..n_requests {
            thread::sleep(intended(i).saturating_duration_since(Instant::now()));
            (&sockets[i % self.connections]).write_all(request).context("the node does not take requests as fast as they come")?;
            lateness_ms.push(ms(intended(i).elapsed()));
        }
        let (latencies, refused) = reading.join().expect("the readers do not panic")?;
        let since_written_ms = latencies.iter().map(|(i, latency)| latency - lateness_ms[*i]).collect();
        Ok(Outcome { latencies_ms: latencies.into_iter().map(|(_, latency)| latency).collect(), since_written_ms, refused })
    }
}

fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?; // for the readers; a request always fits the socket's buffer
    Ok(stream)
}

/// Numbers of requests with their latencies in milliseconds, and how many were refused.
type Answers = (Vec<(usize, f64)>, usize);

fn read_all(
    sockets: Vec<TcpStream>,
    n_requests: usize,
    intended: impl Fn(usize) -> Instant + Copy + Send + 'static,
    limit: Duration,
) -> anyhow::Result<Answers> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let n_connections = sockets.len();
        let mut readers = tokio::task::JoinSet::new();
        for (connection, socket) in sockets.into_iter().enumerate() {
            readers.spawn(read_one(socket, (connection..n_requests).step_by(n_connections), intended));
        }
        let all = async {
            let mut latencies = Vec::with_capacity(n_requests);
            let mut refused = 0;
            while let Some(reader) = readers.join_next().await {
                let (more, refusals) = reader.expect("a reader does not panic")?;
                latencies.extend(more);
                refused += refusals;
            }
            anyhow::Ok((latencies, refused))
        };
        tokio::time::timeout(limit, all).await.context("some requests were never answered")?
    })
}

/// Reads the answers of one connection; `requests` are the numbers of those sent on it.
async fn read_one(
    socket: TcpStream,
    mut requests: impl Iterator<Item = usize>,
    intended: impl Fn(usize) -> Instant,
) -> anyhow::Result<Answers> {
    let mut stream = tokio::net::TcpStream::from_std(socket)?;
    let mut response = ResponseReader::default();
    let mut input = vec![0; 16 << 10];
    let (mut latencies, mut refused) = (Vec::new(), 0);
    let mut waited_for = requests.next();
    while waited_for.is_some() {
        let n = stream.read(&mut input).await?;
        if n == 0 {
            bail!("the node closed a connection under load");
        }
        let arrived = Instant::now();
        response.feed(&input[..n], |piece| match piece {
            Piece::Status(200) | Piece::Body(_) => {}
            Piece::Status(_) => refused += 1,
            Piece::End => {
                latencies.extend(waited_for.map(|i| (i, ms(arrived.saturating_duration_since(intended(i))))));
                waited_for = requests.next();
            }
        })?;
    }
    Ok((latencies, refused))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    use super::Load;
    use crate::figures::quantile;

    #[test]
    fn every_request_is_answered_and_a_stall_is_charged_to_all_that_waited_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let heads = BufReader::new(stream.try_clone().unwrap()).lines().filter(|line| line.as_ref().is_ok_and(String::is_empty));
            for (i, _) in heads.enumerate() {
                if i == 0 {
                    thread::sleep(Duration::from_millis(100));
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
            }
        });
        let load = Load { connections: 1, rate: 100, duration: Duration::from_millis(200) };
        let outcome = load.run(address, b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!((outcome.latencies_ms.len(), outcome.refused), (20, 0));
        assert!(quantile(&outcome.latencies_ms, 0.7) > 20.0, "requests behind the stall waited: {:?}", outcome.latencies_ms);
    }
}
