//! Waiting on predicates.

use std::time::{Duration, Instant};

/// Longest wait for anything that should take seconds at most. Generous: a loaded machine is slow, a hang is for ever.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Pause between two looks at a predicate.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `check` gives a value and returns it with the time that it took; the error that `check` gives meanwhile says what is still missing.
///
/// Panics after [`DEADLINE`], with what is still missing.
pub async fn eventually<T>(what: &str, check: impl AsyncFnMut() -> Result<T, String>) -> T {
    eventually_within(DEADLINE, what, check).await
}

/// The same, for what takes longer by its nature: panics after `deadline`.
pub async fn eventually_within<T>(deadline: Duration, what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        let missing = match check().await {
            Ok(value) => {
                measured(what, started.elapsed());
                return value;
            }
            Err(missing) => missing,
        };
        assert!(started.elapsed() < deadline, "{what}: not within {deadline:?}; last seen: {missing}");
        tokio::time::sleep(POLL).await;
    }
}

/// Prints a time that was measured on the way; shown with `--nocapture` and when the test fails.
pub fn measured(what: &str, took: Duration) {
    eprintln!("measured: {what}: {:.0} ms", took.as_secs_f64() * 1e3);
}
