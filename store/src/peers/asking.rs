//! Asking the other nodes for a model, until one has it or it is this node's turn to go outside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use plexus_types::{Bytes, ModelSource, NodeName};
use tokio::time::Instant;
use tracing::debug;

use super::session::{Answer, Session};
use super::turn::{Turn, goes_on, turn};
use crate::error::FetchError;
use crate::manifest::Manifest;
use crate::progress::{Meter, Origin, Progress, Stage};
use crate::serve::{NOT_HERE, NOT_SHARED, Soon, WAITS};
use crate::store::Inner;

/// How often a node that is getting the model itself is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Until a node that asks this one as well may have heard its answer.
const SETTLE: Duration = Duration::from_millis(100);
/// A node whose own download stands still for so long is no longer waited for.
const STILL_MAX: Duration = Duration::from_secs(90);

/// A model that nodes offer.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) manifest: Manifest,
    /// Those who may have it: all that have not said that they do not.
    pub(super) able: Vec<NodeName>,
}

/// Nodes that are not asked again, and why.
type GivenUp = Vec<(NodeName, String)>;

/// Who asks, and for what.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) source: &'a ModelSource,
    pub(super) meter: Meter<'a>,
}

/// Since when each node has said the same of how far it is.
type Still = BTreeMap<NodeName, (Bytes, Instant)>;

impl Asking<'_> {
    /// The manifest of the first node that has one. Waits for nodes that will have one.
    ///
    /// Errors: [`FetchError::Peers`] if none has it and none is to be waited for.
    pub(super) async fn offer(self, peers: &[NodeName], given_up: &mut GivenUp) -> Result<Offer, FetchError> {
        let me = Some(self.inner.connect.me()).filter(|_| self.inner.may_go_outside(self.source));
        let mut still = Still::new();
        loop {
            self.meter.0.send_modify(|flight| (flight.progress, flight.stage) = (Progress::START, Stage::Asking));
            let others: Vec<&NodeName> = peers.iter().filter(|peer| !given_up.iter().any(|(gone, _)| gone == *peer)).collect();
            let mut not_able = BTreeSet::new();
            let (mut wanting, mut tried) = (Vec::new(), Vec::new());
            let mut asked: FuturesUnordered<_> = others.iter().map(|peer| async move { (*peer, self.ask(peer).await) }).collect();
            while let Some((peer, answer)) = asked.next().await {
                match answer {
                    Ok(Answer::Manifest(manifest)) => {
                        let able = others.iter().copied().filter(|peer| !not_able.contains(peer)).cloned().collect();
                        return Ok(Offer { manifest, able });
                    }
                    Ok(Answer::Soon(soon)) => match still_for(&mut still, peer, soon) {
                        Some(why) => given_up.push((peer.clone(), why)),
                        None => {
                            wanting.push((peer, soon));
                            if let Turn::Wait(_, stage) = turn(me, &stages(&wanting)) {
                                self.meter.stage(stage); // another answer may take long, and all are asked again before this node goes
                            }
                        }
                    },
                    Err(why) => {
                        debug!(%peer, model = %self.source, why, "a node does not have a model");
                        let list = if [NOT_HERE, NOT_SHARED].contains(&why.as_str()) { &mut tried } else { &mut *given_up };
                        list.push((peer.clone(), why));
                    }
                }
                not_able.insert(peer);
            }
            drop(asked);
            match turn(me, &stages(&wanting)) {
                Turn::Wait(on, stage) => {
                    self.meter.stage(stage);
                    wanting.iter().filter(|(peer, _)| on.first() == Some(peer)).for_each(|(peer, soon)| self.show(peer, *soon));
                    if let Some(offer) = self.wait_for(stage, me, &on, &mut still, given_up).await {
                        return Ok(offer);
                    }
                    still.clear(); // the others were not asked meanwhile
                }
                Turn::Unsettled => tokio::time::sleep(SETTLE).await,
                Turn::Own => {
                    tried.extend(wanting.into_iter().map(|(peer, _)| (peer.clone(), WAITS.to_owned())));
                    tried.append(given_up);
                    return Err(FetchError::Peers { tried });
                }
            }
        }
    }

    /// Asks these again and again, until one has the model, or this node, which is at the stage `own`, waits for none of them any more.
    async fn wait_for(
        self,
        own: Stage,
        me: Option<&NodeName>,
        on: &[&NodeName],
        still: &mut Still,
        given_up: &mut GivenUp,
    ) -> Option<Offer> {
        let mut on: Vec<&NodeName> = on.to_vec();
        while !on.is_empty() {
            tokio::time::sleep(ASK_EVERY).await;
            let asked = on.iter().map(|peer| async move { (*peer, self.ask(peer).await) });
            let mut ahead = Vec::new();
            for (peer, answer) in futures::future::join_all(asked).await {
                match answer {
                    Ok(Answer::Manifest(manifest)) => return Some(Offer { manifest, able: vec![peer.clone()] }),
                    Ok(Answer::Soon(soon)) => {
                        self.show(peer, soon);
                        if let Some(why) = still_for(still, peer, soon) {
                            given_up.push((peer.clone(), why));
                        } else if goes_on(own, me, peer, soon.stage) {
                            ahead.push(peer);
                        }
                    }
                    Err(why) => debug!(%peer, model = %self.source, why, "a node that was waited for does not get a model"),
                }
            }
            on = ahead;
        }
        None
    }

    /// Shows how far a node is that is waited for.
    fn show(self, peer: &NodeName, soon: Soon) {
        self.meter.set(Progress { done: soon.done, total: soon.total, from: Origin::Awaited(peer.clone()), came: soon.done });
    }

    async fn ask(self, peer: &NodeName) -> Result<Answer, String> {
        Session::open(&*self.inner.connect, peer).await?.manifest(self.source).await
    }
}

fn stages<'a>(wanting: &[(&'a NodeName, Soon)]) -> Vec<(&'a NodeName, Stage)> {
    wanting.iter().map(|(peer, soon)| (*peer, soon.stage)).collect()
}

/// Says so if a node has been where it is for too long.
fn still_for(still: &mut Still, peer: &NodeName, soon: Soon) -> Option<String> {
    let now = Instant::now();
    let (done, since) = still.entry(peer.clone()).or_insert((soon.done, now));
    if *done != soon.done {
        (*done, *since) = (soon.done, now);
    }
    (now.saturating_duration_since(*since) > STILL_MAX).then(|| format!("it has {} of {} and stands still", soon.done, soon.total))
}
