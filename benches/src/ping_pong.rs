//! Limits of this machine: a small message over TCP on the loopback interface and back, and a hand-over to a thread and back.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::Context;

use crate::figures::{median, ms};

/// Bytes of a message: about those of a token's notice between nodes.
const MESSAGE_BYTES: usize = 64;

/// Median round trip in milliseconds over `rounds` of them: two threads, blocking sockets, no delay, nothing else done.
pub(crate) fn round_trip_ms(rounds: usize) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").context("binding the echo")?;
    let address = listener.local_addr()?;
    let echo = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut message = [0; MESSAGE_BYTES];
        for _ in 0..rounds {
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut message = [7; MESSAGE_BYTES];
    let mut round_trips = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        round_trips.push(ms(sent.elapsed()));
    }
    echo.join().expect("the echo does not panic")?;
    Ok(median(&round_trips))
}

/// Hand-overs per second from a task of tokio's to a thread of its own and back, `rounds` of them one after the other, nothing else done: what
/// waking threads alone costs a step of a device. Varies with the cores that the kernel places the two on.
pub(crate) fn hand_overs_per_s(rounds: usize) -> anyhow::Result<f64> {
    let (jobs, inbox) = mpsc::channel::<()>();
    let (results, mut outbox) = tokio::sync::mpsc::unbounded_channel();
    let worker = thread::spawn(move || inbox.iter().try_for_each(|job| results.send(job)));
    let runtime = tokio::runtime::Runtime::new()?;
    let task = runtime.spawn(async move {
        let begun = Instant::now();
        for _ in 0..rounds {
            jobs.send(()).ok()?;
            outbox.recv().await?;
        }
        Some(begun.elapsed())
    });
    let took = runtime.block_on(task)?.context("the thread ended early")?;
    worker.join().expect("the thread does not panic")?;
    Ok(rounds as f64 / took.as_secs_f64())
}
