//! What others do: a fixed number of models per device, the least recently used goes, and a cold model goes to a random one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Outcome, RETRY, Workload};

/// Requests served at once by a replica.
const RUNNING_MAX: usize = 8;

#[derive(Debug, Default)]
struct Replica {
    ready_at: Duration,
    last_used: Duration,
    /// When each of the running ends.
    running: Vec<Duration>,
}

/// One device: nodes with two are none of this.
#[derive(Debug)]
struct Node {
    memory: u64,
    /// Models that it holds at a time.
    slots: usize,
    held: BTreeMap<usize, Replica>,
    /// What was begun, or is to begin: which requests, and when each ends.
    under_way: Vec<(usize, Duration)>,
    down_until: Duration,
}

/// Runs the trace with its failures, but without its cuts. Each device holds as many models at a time as its memory holds of the largest that fits
/// it at all, so that it never runs out of memory; a model is loaded on one device, chosen at random among those that could hold it and are up, and
/// served there. What a node served that dies begins anew elsewhere.
pub fn run(workload: &Workload, seed: u64) -> Outcome {
    let mut rng = StdRng::seed_from_u64(seed);
    // Weights, one context and what steps work in, as the facts of the trace say.
    let need = |model: usize| (workload.weights[model].0 as f64 * 1.19) as u64;
    let new_node = |total: u64| {
        let largest = (0..workload.models.len()).map(need).filter(|need| *need <= total).max().unwrap_or(1);
        let slots = (total / largest).max(1) as usize;
        Node { memory: total, slots, held: BTreeMap::new(), under_way: Vec::new(), down_until: Duration::ZERO }
    };
    let mut nodes: Vec<Node> = workload.nodes.iter().flatten().map(|total| new_node(total.0)).collect();
    assert_eq!(nodes.len(), workload.nodes.len(), "nodes of one device each");
    let mut failures = workload.failures.clone();
    failures.sort_unstable();
    let mut failures = failures.into_iter().peekable();
    let mut agenda: BinaryHeap<Reverse<(Duration, usize)>> =
        workload.requests.iter().enumerate().map(|(i, (at, ..))| Reverse((*at, i))).collect();
    let mut waits: Vec<Option<Duration>> = vec![None; workload.requests.len()];
    let mut outcome = Outcome::default();
    loop {
        let next = agenda.peek().map(|Reverse((at, _))| *at);
        if let Some((at, node, down)) = failures.next_if(|(at, ..)| next.is_none_or(|next| *at <= next)) {
            let node = &mut nodes[node];
            if node.down_until <= at {
                let (memory, again) = (node.memory, std::mem::take(&mut node.under_way));
                *node = Node { down_until: at + down, ..new_node(memory) };
                for (request, _) in again.into_iter().filter(|(_, end)| *end > at) {
                    waits[request] = None;
                    agenda.push(Reverse((at + RETRY, request)));
                }
            }
            continue;
        }
        let Some(Reverse((at, request))) = agenda.pop() else { break };
        let (arrived, model, _, service) = workload.requests[request];
        let able: Vec<usize> = (0..nodes.len()).filter(|node| need(model) <= nodes[*node].memory).collect();
        let places: Vec<usize> = able.iter().copied().filter(|node| nodes[*node].down_until <= at).collect();
        let Some(first_back) = able.iter().map(|node| nodes[*node].down_until).min() else {
            outcome.refused += 1;
            continue;
        };
        if places.is_empty() {
            agenda.push(Reverse((first_back, request)));
            continue;
        }
        let holder = nodes.iter().position(|node| node.held.contains_key(&model));
        let (node, mut now) = match holder {
            Some(node) => (&mut nodes[node], at),
            None => {
                let node = &mut nodes[places[rng.random_range(0..places.len())]];
                let mut now = at;
                if node.held.len() >= node.slots {
                    // The least recently used goes, once it has nothing to do.
                    let (victim, replica) = node.held.iter().min_by_key(|(_, replica)| replica.last_used).expect("it is full");
                    let idle_at = replica.running.iter().copied().max().unwrap_or(now).max(replica.ready_at);
                    now = now.max(idle_at);
                    let victim = *victim;
                    node.held.remove(&victim);
                }
                outcome.loads += 1;
                let ready_at = now + workload.load_time(&workload.models[model].id);
                node.held.insert(model, Replica { ready_at, ..Replica::default() });
                (node, now)
            }
        };
        let replica = node.held.get_mut(&model).expect("it is there");
        now = now.max(replica.ready_at);
        replica.running.retain(|end| *end > now);
        if replica.running.len() >= RUNNING_MAX {
            replica.running.sort_unstable();
            now = replica.running[replica.running.len() - RUNNING_MAX];
        }
        replica.running.push(now + service);
        replica.last_used = now;
        node.under_way.retain(|(_, end)| *end > at);
        node.under_way.push((request, now + service));
        waits[request] = Some(now - arrived);
    }
    let waits: Vec<Duration> = waits.into_iter().flatten().collect();
    outcome.answered = waits.len();
    outcome.mean_wait = waits.iter().sum::<Duration>() / waits.len().max(1) as u32;
    outcome
}
