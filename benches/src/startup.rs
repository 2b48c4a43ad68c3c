//! From `plexus start` to the first answers of the embedded model.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context;

use crate::figures::{Figure, median, ms};
use crate::http::Connection;
use crate::node_process::{Binaries, CHAT, Place, chat, get, has_text};

/// Starts a node `runs` times, each with an empty data folder; the binary is in the page cache after the first.
pub(crate) fn measure(binaries: &Binaries, runs: usize) -> anyhow::Result<Vec<Figure>> {
    let (mut exec, mut answer, mut healthy, mut token, mut whole) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..runs {
        let begun = Instant::now();
        Command::new(&binaries.plexus).arg("version").stdout(Stdio::null()).status().context("running plexus version")?;
        exec.push(ms(begun.elapsed()));

        let place = Place::new(binaries)?;
        let mut node = place.start_plexus(binaries, "n1", &[])?;
        answer.push(ms(node.wait_for("HTTP answer", |at| get(at, "/health"))?.1));
        healthy.push(ms(node.wait_for("healthy answer", |at| get(at, "/health").filter(|(status, _)| *status == 200))?.1));
        let mut first = None;
        Connection::open(node.http)?.stream(CHAT, &chat(16, true), |data, arrived| {
            if first.is_none() && has_text(data) {
                first = Some(arrived);
            }
        })?;
        whole.push(ms(node.started.elapsed()));
        token.push(ms(first.context("the answer had no text")?.duration_since(node.started)));
    }
    let floor = median(&exec);
    let beside = |values: &[f64]| format!("{:.1} × `plexus version`", median(values) / floor);
    Ok(vec![
        Figure::ms("`plexus version`, start to end: floor", "", &exec),
        Figure::ms("`plexus start` to the first HTTP answer", "≤ 1 s", &answer).beside(beside(&answer)),
        Figure::ms("`plexus start` to `/health` = 200", "≤ 1 s", &healthy).beside(beside(&healthy)),
        Figure::ms("`plexus start` to the first token of the embedded model", "≤ 1 s", &token).beside(beside(&token)),
        Figure::ms("`plexus start` to the end of its first chat answer", "≤ 1 s", &whole).beside(beside(&whole)),
    ])
}
