//! Three nodes: how long the last to start takes to be one of them.

use crate::figures::{Figure, ms};
use crate::node_process::{Binaries, Place, get, nodes_up};

/// Forms a mesh `runs` times: two nodes that know each other, then a third that knows one of them.
pub(crate) fn measure(binaries: &Binaries, runs: usize) -> anyhow::Result<Vec<Figure>> {
    let (mut healthy, mut mesh) = (vec![], vec![]);
    for _ in 0..runs {
        let place = Place::new(binaries)?;
        let mut first = place.start_plexus(binaries, "n1", &[])?;
        first.wait_ready(1)?;
        let mut second = place.start_plexus(binaries, "n2", &[&first])?;
        second.wait_ready(2)?;
        first.wait_ready(2)?;
        let mut third = place.start_plexus(binaries, "n3", &[&first])?;
        let (_, served) = third.wait_for("healthy answer", |at| get(at, "/health").filter(|(status, _)| *status == 200))?;
        let everywhere = [third.http, first.http, second.http];
        let (_, complete) = third.wait_for("full mesh", |_| everywhere.into_iter().all(|at| nodes_up(at) == Some(3)).then_some(()))?;
        healthy.push(ms(served));
        mesh.push(ms(complete));
    }
    Ok(vec![
        Figure::ms("the third node answers `/health` = 200", "", &healthy),
        Figure::ms("each of the three lists three nodes up, since the start of the third", "≤ 1 s", &mesh),
    ])
}
