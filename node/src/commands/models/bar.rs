//! How far a load is, for a person who waits for it.

use std::io::{self, IsTerminal, Write};
use std::pin::pin;
use std::time::Duration;

use crate::client::{Client, ClientError, ModelEntry};
use crate::commands::terminal::harmless;

/// How often the node is asked.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Places of the bar.
const PLACES: usize = 30;
/// Erases the line and goes to its start.
const ERASE: &str = "\r\u{1b}[K";

/// Waits for a load, and shows meanwhile how far it is; nothing where nobody watches.
pub(super) async fn watched<T>(client: &Client, model: &str, load: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    if !io::stderr().is_terminal() {
        return load.await;
    }
    let mut load = pin!(load);
    let mut shown = false;
    let ended = loop {
        tokio::select! {
            ended = &mut load => break ended,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        let look = async {
            let models = client.models().await.unwrap_or_default(); // the load itself says what is wrong
            models.into_iter().find(|entry| entry.id == model)
        };
        let entry = tokio::select! {
            ended = &mut load => break ended,
            entry = look => entry,
        };
        if let Some(text) = entry.as_ref().and_then(bar) {
            write(&format!("{ERASE}{text}"));
            shown = true;
        }
    };
    if shown {
        write(ERASE);
    }
    ended
}

/// The bar of a model that is being loaded.
fn bar(entry: &ModelEntry) -> Option<String> {
    let progress = entry.progress?.clamp(0.0, 1.0);
    let full = (progress * PLACES as f32).round() as usize;
    let (full, empty) = ("#".repeat(full), ".".repeat(PLACES - full));
    let failure = entry.fetch.as_ref().map_or_else(String::new, |fetch| harmless(&fetch.and_failure()));
    Some(format!("{} {full}{empty} {:.0} %{failure}", entry.id, progress * 100.0))
}

/// A bar that cannot be shown is no reason to stop.
fn write(text: &str) {
    let mut out = io::stderr().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_model_that_is_being_loaded_has_a_bar() {
        let entry = |progress: Option<f32>| -> ModelEntry {
            serde_json::from_value(serde_json::json!({ "id": "big", "loaded": false, "status": "loading", "progress": progress,
                "capabilities": [], "feasible_on": [], "locations": [] }))
            .unwrap()
        };
        assert_eq!(bar(&entry(Some(0.4))).unwrap(), format!("big {}{} 40 %", "#".repeat(12), ".".repeat(18)));
        assert_eq!(bar(&entry(Some(7.0))).unwrap(), format!("big {} 100 %", "#".repeat(30)));
        assert_eq!(bar(&entry(None)), None);
        let fetch = crate::client::ModelFetch { from: "http://hub".to_owned(), failure: Some("status 503".to_owned()) };
        let failing = ModelEntry { fetch: Some(fetch), ..entry(Some(0.0)) };
        assert_eq!(bar(&failing).unwrap(), format!("big {} 0 %; the last try failed: status 503", ".".repeat(30)));
    }
}
