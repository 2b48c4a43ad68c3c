//! The gossip thread: runs chitchat, restarts it when it fails, and tells what it sees.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState, spawn_chitchat};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info};

use super::seal::{Datagrams, SealedTransport};
use super::view::{LEAVING, Seen, View, keys_of};
use super::{MembershipArgs, NetTiming};
use crate::inspect::Inspection;

/// The failure detector looks back over so many heartbeats.
const SAMPLES: usize = 1000;
/// An interval longer than this is an outage, not an interval.
const INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Deleted keys are remembered for so long. This node deletes none.
const TOMBSTONES: Duration = Duration::from_secs(3600);
/// Seeds that are names are looked up so often while this node is alone, and so often when it is not.
const LOOKUP: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Longest wait before chitchat is started again.
const RESTART_MAX: Duration = Duration::from_secs(5);

/// What the thread is told. When nobody can tell it anything any more, it ends.
#[derive(Debug)]
pub(super) enum Command {
    Leave(oneshot::Sender<()>),
}

/// What the thread says of itself.
#[derive(Debug, Default)]
pub(super) struct Status {
    running: AtomicBool,
    starts: AtomicU64,
    nodes: AtomicU64,
    doubts: AtomicU64,
    datagrams: Arc<Datagrams>,
    replaced_by: Mutex<Option<plexus_types::NodeId>>,
}

impl Status {
    pub(super) fn inspection(&self, leaving: bool) -> Inspection {
        let replaced = self.replaced_by.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let state = match replaced {
            _ if leaving => "leaving".to_owned(),
            Some(id) => format!("replaced by {id}"),
            None if self.running.load(Ordering::Relaxed) => "gossiping".to_owned(),
            None => "starting".to_owned(),
        };
        let datagrams = &self.datagrams;
        let named = [
            ("starts", &self.starts),
            ("nodes", &self.nodes),
            ("doubts", &self.doubts),
            ("datagrams_sent", &datagrams.sent),
            ("datagrams_taken", &datagrams.taken),
            ("datagrams_rejected", &datagrams.rejected),
            ("datagrams_replayed", &datagrams.replayed),
            ("datagrams_malformed", &datagrams.malformed),
        ];
        let counters: BTreeMap<_, _> = named.into_iter().map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed))).collect();
        Inspection { state, counters }
    }
}

/// The thread's work.
pub(super) struct GossipThread {
    args: MembershipArgs,
    status: Arc<Status>,
}

/// Why chitchat no longer runs.
enum End {
    /// It failed: start it again.
    Failed(String),
    /// This node leaves, or its membership actor is gone.
    Over,
}

impl GossipThread {
    pub(super) fn new(args: MembershipArgs, status: Arc<Status>) -> Self {
        Self { args, status }
    }

    /// Runs until told to leave, or until nobody can tell anything any more.
    pub(super) fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return error!(%error, "gossip cannot start"),
        };
        runtime.block_on(async {
            let mut view = View::new(self.args.facts.id.clone(), self.args.known.list(), Instant::now());
            let (mut start, mut pause) = (0, Duration::from_millis(100));
            loop {
                start = start_after(start, self.args.facts.id.generation.0);
                view.doubt(Instant::now() + self.args.timing.settle);
                let began = Instant::now();
                let end = self.gossip(start, &mut view, &mut commands).await;
                self.status.running.store(false, Ordering::Relaxed);
                let End::Failed(error) = end else { return };
                pause = if began.elapsed() > RESTART_MAX { Duration::from_millis(100) } else { (pause * 2).min(RESTART_MAX) };
                error!(%error, again_in = ?pause, "gossip failed and is started again");
                tokio::time::sleep(pause).await;
            }
        });
    }

    /// One life of chitchat.
    async fn gossip(&mut self, start: u64, view: &mut View, commands: &mut mpsc::UnboundedReceiver<Command>) -> End {
        let transport =
            SealedTransport::new(Arc::clone(&self.args.socket), &self.args.secret, &self.args.cluster, Arc::clone(&self.status.datagrams));
        let keys = match keys_of(&self.args.facts) {
            Ok(keys) => keys,
            Err(error) => return End::Failed(error.to_string()),
        };
        let handle = match spawn_chitchat(self.config(start, view), keys, &transport).await {
            Ok(handle) => handle,
            Err(error) => return End::Failed(format!("{error:#}")),
        };
        self.status.starts.fetch_add(1, Ordering::Relaxed);
        self.status.running.store(true, Ordering::Relaxed);
        let mut live = handle.chitchat().lock().await.live_nodes_watcher();
        let mut ended = Box::pin(handle.termination_watcher());
        let timing = self.args.timing.clone();
        let mut ticks = tokio::time::interval(timing.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticked = Instant::now();
        let mut lookup_due = Instant::now();
        let (found, mut to_seeds) = mpsc::unbounded_channel::<SocketAddr>();
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Leave(told)) => {
                        leave(&handle, &live, &timing).await;
                        let _gone = told.send(());
                        let _ended = handle.shutdown().await;
                        return End::Over;
                    }
                    None => {
                        let _ended = handle.shutdown().await;
                        return End::Over;
                    }
                },
                result = &mut ended => return End::Failed(result.map_or_else(|error| format!("{error:#}"), |()| "it ended".to_owned())),
                changed = live.changed() => match changed {
                    Ok(()) => self.look(&mut live, view),
                    Err(_) => return End::Failed("it was dropped".to_owned()),
                },
                Some(seed) = to_seeds.recv() => {
                    let _ended = handle.gossip(seed);
                }
                now = ticks.tick() => {
                    if now.saturating_duration_since(ticked) > timing.tick + timing.lag_max || Instant::now() > now + timing.lag_max {
                        // This process was stopped or starved: what it missed says nothing about the others.
                        self.status.doubts.fetch_add(1, Ordering::Relaxed);
                        view.doubt(Instant::now() + timing.settle);
                    }
                    ticked = Instant::now();
                    if view.is_due(ticked) {
                        self.look(&mut live, view);
                    }
                    if ticked >= lookup_due {
                        lookup_due = ticked + if view.nodes().is_empty() { LOOKUP.0 } else { LOOKUP.1 };
                        self.look_up_seeds(&found);
                    }
                }
            }
        }
    }

    fn config(&self, start: u64, view: &View) -> ChitchatConfig {
        let (facts, timing) = (&self.args.facts, &self.args.timing);
        // Names are looked up by this thread: chitchat would come back to one that is not known yet after a minute.
        let numeric = self.args.seeds.iter().filter(|seed| seed.parse::<SocketAddr>().is_ok()).cloned();
        let met = view.nodes().values().map(|node| node.gossip.to_string());
        ChitchatConfig {
            chitchat_id: ChitchatId::new(facts.id.name.as_str(), start, facts.gossip),
            cluster_id: self.args.cluster.clone(),
            gossip_interval: timing.gossip_interval,
            listen_addr: facts.gossip,
            seed_nodes: numeric.chain(met).collect(),
            failure_detector_config: FailureDetectorConfig::new(
                timing.phi,
                SAMPLES,
                INTERVAL_MAX,
                timing.initial_interval,
                timing.dead_node_grace,
            ),
            marked_for_deletion_grace_period: TOMBSTONES,
            catchup_callback: None,
            extra_liveness_predicate: None,
        }
    }

    fn look(&self, live: &mut watch::Receiver<BTreeMap<ChitchatId, NodeState>>, view: &mut View) {
        let seen = live
            .borrow_and_update()
            .iter()
            .filter_map(|(id, state)| Seen::read(&id.node_id, id.generation_id, |key| state.get(key)))
            .collect();
        let was_replaced_by = view.replaced_by().cloned();
        let changes = view.update(seen, Instant::now());
        self.status.nodes.store(view.nodes().len() as u64, Ordering::Relaxed);
        if view.replaced_by() != was_replaced_by.as_ref() {
            *self.status.replaced_by.lock().unwrap_or_else(PoisonError::into_inner) = view.replaced_by().cloned();
            if let Some(newer) = view.replaced_by() {
                error!(me = %self.args.facts.id, %newer, "another node has taken this node's name; give each node its own");
                (self.args.on_replaced)(newer.clone());
            }
        }
        if !changes.is_empty() {
            self.args.known.replace(view.nodes().clone());
        }
        for change in changes {
            info!(?change, "the cluster changed");
            self.args.inbound.cluster_changed(change);
        }
    }

    /// Looks up the seeds that are names, beside the thread's other work.
    fn look_up_seeds(&self, found: &mpsc::UnboundedSender<SocketAddr>) {
        for seed in self.args.seeds.iter().filter(|seed| seed.parse::<SocketAddr>().is_err()) {
            let (seed, found, me) = (seed.clone(), found.clone(), self.args.facts.gossip);
            tokio::spawn(async move {
                // A name that is not known yet is asked for again soon: in a fleet that starts, that is no news.
                if let Ok(addresses) = tokio::net::lookup_host(seed).await {
                    let addresses: HashSet<SocketAddr> = addresses.filter(|address| *address != me).collect();
                    addresses.into_iter().for_each(|address| _ = found.send(address));
                }
            });
        }
    }
}

/// Says that this node leaves, to all at once, and gives them two rounds to pass it on.
async fn leave(handle: &ChitchatHandle, live: &watch::Receiver<BTreeMap<ChitchatId, NodeState>>, timing: &NetTiming) {
    let chitchat = handle.chitchat();
    chitchat.lock().await.self_node_state().set(LEAVING, "1");
    let everyone: Vec<SocketAddr> =
        live.borrow().keys().filter(|id| *id != handle.chitchat_id()).map(|id| id.gossip_advertise_addr).collect();
    for address in everyone {
        let _ended = handle.gossip(address);
    }
    tokio::time::sleep(timing.gossip_interval * 2).await;
}

/// A generation for the next start of chitchat: newer than the last one, than the node's, and, if clocks are right, than any before.
fn start_after(last: u64, generation: u64) -> u64 {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    now_ms.max(generation).max(last + 1)
}
