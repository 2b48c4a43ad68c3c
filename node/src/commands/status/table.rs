//! The pages of `plexus cluster status`, `plexus cluster explain` and `plexus models`, as text.

mod models;
mod sheet;

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Color, Table};
use plexus_types::{ActorReport, ClusterReport, DeviceReport, NodeReport, NodeState, ReplicaReport, ReplicaState};

use crate::client::NodeActors;
use crate::commands::terminal::{harmless, wants_colour};
pub(crate) use models::{explanation_page, models_page};
use sheet::{Sheet, paragraph};

/// Places of the bar that shows how much of a memory is used.
const BAR: usize = 10;

/// Fewer columns than this make no table that anybody can read: it is then as wide as it needs to be.
const WIDTH_MIN: u16 = 40;

/// How a page may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// Colours, for eyes.
    pub(crate) colour: bool,
    /// Columns of the terminal; absent where nobody counts them.
    pub(crate) width: Option<u16>,
}

impl Look {
    /// What fits the standard output.
    pub(crate) fn of_stdout() -> Self {
        // A terminal that claims to have no columns has not been told its size.
        Self { colour: wants_colour(), width: Table::new().width().filter(|width| *width >= WIDTH_MIN) }
    }
}

/// What a state means for whoever looks.
enum Mood {
    Good,
    Passing,
    Bad,
}

fn state_cell(word: impl ToString, mood: &Mood) -> Cell {
    Cell::new(word).fg(match mood {
        Mood::Good => Color::Green,
        Mood::Passing => Color::Yellow,
        Mood::Bad => Color::Red,
    })
}

fn number(value: impl ToString) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

/// Everything about the cluster. `now_ms`: milliseconds since 1970.
pub(crate) fn status_page(cluster: &ClusterReport, actors: &[NodeActors], now_ms: u64, look: Look) -> String {
    let count = cluster.nodes.len();
    let mut parts = vec![format!("cluster {}: {count} node{}", cluster.cluster, if count == 1 { "" } else { "s" })];
    let warnings: Vec<String> =
        cluster.conflicts.iter().map(|conflict| paragraph(&format!("warning: {}", harmless(conflict)), look)).collect();
    if !warnings.is_empty() {
        parts.push(warnings.join("\n"));
    }
    parts.push(nodes_table(&cluster.nodes, now_ms, look));
    if cluster.nodes.iter().any(|node| !node.summary.devices.is_empty()) {
        parts.push(devices_table(&cluster.nodes, look));
    }
    if cluster.nodes.iter().any(|node| !node.summary.replicas.is_empty()) {
        parts.push(replicas_table(&cluster.nodes, look));
        let failures: Vec<String> = cluster.nodes.iter().flat_map(failures).map(|failure| paragraph(&failure, look)).collect();
        if !failures.is_empty() {
            parts.push(failures.join("\n"));
        }
    }
    if !cluster.fetches.is_empty() {
        let told = cluster.fetches.iter().map(|one| harmless(&format!("{} on {}: {}", one.model, one.node, one.fetch)));
        parts.push(told.collect::<Vec<_>>().join("\n"));
    }
    parts.extend(actors.iter().map(|node| actors_table(node, look)));
    parts.join("\n\n")
}

fn nodes_table(nodes: &[NodeReport], now_ms: u64, look: Look) -> String {
    let header = ["NODE", "STATE", "VERSION", "UP", "RTT", "SEEN", "HTTP", "LINK", "GOSSIP"];
    let mut table = Sheet::new(look, &header).spare(&["GOSSIP", "LINK", "VERSION", "UP"]);
    for node in nodes {
        let facts = &node.facts;
        let state = match node.state {
            NodeState::Up => state_cell("up", &Mood::Good),
            NodeState::Draining => state_cell("draining", &Mood::Passing),
            NodeState::Unreachable => state_cell("unreachable", &Mood::Bad),
        };
        let up = Duration::from_millis(now_ms.saturating_sub(facts.id.generation.0));
        let name = if node.this_node { format!("{} *", facts.id.name) } else { facts.id.name.to_string() };
        table.add_row(vec![
            Cell::new(name),
            state,
            Cell::new(harmless(&facts.version)),
            number(coarse(up)),
            number(node.round_trip.map_or_else(|| "-".to_owned(), fine)),
            number(if node.this_node { "-".to_owned() } else { format!("{} ago", fine(node.age)) }),
            Cell::new(facts.http),
            Cell::new(facts.link),
            Cell::new(facts.gossip),
        ]);
    }
    table.text()
}

fn devices_table(nodes: &[NodeReport], look: Look) -> String {
    let mut table = Sheet::new(look, &["NODE", "DEVICE", "NAME", "MEMORY FOR MODELS"]).spare(&["NAME"]);
    for node in nodes {
        for device in &node.summary.devices {
            table.add_row(vec![
                Cell::new(&node.facts.id.name),
                Cell::new(device.id),
                Cell::new(harmless(&device.name)),
                Cell::new(memory_bar(device)),
            ]);
        }
    }
    table.text()
}

fn memory_bar(device: &DeviceReport) -> String {
    let share = device.memory_used.0 as f64 / device.memory_total.0.max(1) as f64;
    let full = ((share * BAR as f64).round() as usize).min(BAR);
    format!("{}{} {} of {}", "#".repeat(full), ".".repeat(BAR - full), device.memory_used, device.memory_total)
}

fn replicas_table(nodes: &[NodeReport], look: Look) -> String {
    let header = ["MODEL", "NODE", "DEVICE", "STATE", "CLASS", "IDLE", "RUNNING", "WAITING", "CONTEXT", "MEMORY", "PREFILL/S", "DECODE/S"];
    let mut table = Sheet::new(look, &header).spare(&["PREFILL/S", "DECODE/S", "CLASS", "CONTEXT", "IDLE"]);
    let mut rows: Vec<(&NodeReport, &ReplicaReport)> =
        nodes.iter().flat_map(|node| node.summary.replicas.iter().map(move |replica| (node, replica))).collect();
    rows.sort_by(|(a_node, a), (b_node, b)| (&a.model, &a_node.facts.id.name, a.device).cmp(&(&b.model, &b_node.facts.id.name, b.device)));
    for (node, replica) in rows {
        let state = match &replica.state {
            ReplicaState::Loaded => state_cell("loaded", &Mood::Good),
            ReplicaState::Loading => state_cell(loading(replica.progress), &Mood::Passing),
            ReplicaState::Recovering => state_cell("recovering", &Mood::Passing),
            ReplicaState::Failed(_) => state_cell("failed", &Mood::Bad), // why, is too long for a table
        };
        let load = &replica.load;
        let class = if replica.pinned { format!("{} pinned", replica.residency_priority) } else { replica.residency_priority.to_string() };
        table.add_row(vec![
            Cell::new(&replica.model),
            Cell::new(&node.facts.id.name),
            Cell::new(replica.device),
            state,
            number(class),
            number(replica.idle.map_or_else(|| "-".to_owned(), coarse)),
            number(format!("{}/{}", load.running, load.running_max)),
            number(format!("{}/{}", load.waiting, load.waiting_max)),
            number(known(Some(replica.context_length))),
            number(replica.memory),
            number(speed(load.prefill_tokens_per_s)),
            number(speed(load.decode_tokens_per_s)),
        ]);
    }
    table.text()
}

/// Why replicas of a node failed.
fn failures(node: &NodeReport) -> Vec<String> {
    let failed = node.summary.replicas.iter().filter_map(|replica| match &replica.state {
        ReplicaState::Failed(why) => Some((replica, why)),
        _ => None,
    });
    failed
        .map(|(replica, why)| format!("{} failed on {}/{}: {}", replica.model, node.facts.id.name, replica.device, harmless(why)))
        .collect()
}

fn actors_table(node: &NodeActors, look: Look) -> String {
    if let Some(error) = &node.error {
        return paragraph(&format!("actors of {}: {}", node.node, harmless(error)), look);
    }
    let header = ["ACTOR", "STATE", "RESTARTS", "WAITING", "STALLED", "LAST ERROR"];
    let mut table = Sheet::new(look, &header).spare(&["STALLED", "WAITING"]).wordy();
    for actor in &node.actors {
        let (depth, label) = place(actor, &node.actors);
        let mood = match actor.state.as_str() {
            "not answering" => Mood::Bad,
            "restarting" | "recovering" | "loading" | "draining" => Mood::Passing,
            _ => Mood::Good,
        };
        // Why it is so, is too long for the column.
        let (state, why) = actor.state.split_once(": ").unwrap_or((&actor.state, "-"));
        table.add_row(vec![
            Cell::new(format!("{}{label}", "  ".repeat(depth))),
            state_cell(harmless(state), &mood),
            number(actor.restarts),
            number(actor.waiting),
            number(if actor.stalled.is_zero() { "-".to_owned() } else { fine(actor.stalled) }),
            Cell::new(harmless(actor.last_error.as_deref().unwrap_or(why))),
        ]);
    }
    format!("actors of {}\n{}", node.node, table.text())
}

/// How many of an actor's supervisors are listed, and its path below the nearest of them.
fn place<'a>(actor: &'a ActorReport, all: &[ActorReport]) -> (usize, &'a str) {
    let below = |other: &ActorReport| actor.path.strip_prefix(&other.path).and_then(|rest| rest.strip_prefix('/')).map(str::len);
    let rests: Vec<usize> = all.iter().filter_map(below).collect();
    let label = rests.iter().min().map_or(actor.path.as_str(), |len| &actor.path[actor.path.len() - len..]);
    (rests.len(), label)
}

/// A count, if somebody knows it.
fn known(count: Option<u32>) -> String {
    count.filter(|count| *count > 0).map_or_else(|| "-".to_owned(), |count| count.to_string())
}

/// A load, and how far it is, from 0 to 1.
fn loading(progress: f32) -> String {
    format!("loading {:.0} %", progress.clamp(0.0, 1.0) * 100.0)
}

fn speed(tokens_per_s: f32) -> String {
    if tokens_per_s > 0.0 { format!("{tokens_per_s:.0}") } else { "-".to_owned() }
}

/// A time of hours or days, in its two largest units.
fn coarse(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86400, s % 86400 / 3600),
    }
}

/// A time of milliseconds or seconds.
fn fine(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    match ms {
        ..10.0 => format!("{ms:.1}ms"),
        ..1000.0 => format!("{ms:.0}ms"),
        ..60000.0 => format!("{:.1}s", ms / 1000.0),
        _ => coarse(time),
    }
}

#[cfg(test)]
mod tests;
