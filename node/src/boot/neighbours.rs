//! How the nodes of one user on one machine find each other without being told: each leaves a card that says where it answers.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use plexus_types::NodeName;
use serde::{Deserialize, Serialize};

use super::home::{Home, replace};
use super::name::is_alive;

/// Most addresses of other machines that are kept for the next start.
const PEERS_MAX: usize = 16;

/// Where a node of this machine answers, as seen from this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Card {
    /// Its name.
    pub(crate) name: NodeName,
    /// Its cluster.
    pub(crate) cluster: String,
    /// Where it answers HTTP.
    pub(crate) http: SocketAddr,
    /// Where it gossips.
    pub(crate) gossip: SocketAddr,
}

/// A card in its place. Removed when dropped.
#[derive(Debug)]
pub(crate) struct CardInPlace(Vec<PathBuf>);

impl Card {
    /// Leaves the card in each of these directories.
    pub(crate) fn leave(&self, nodes: &[PathBuf]) -> io::Result<CardInPlace> {
        let mut card = CardInPlace(Vec::new());
        for nodes in nodes {
            let path = nodes.join(format!("{}.json", self.name));
            replace(&path, &serde_json::to_string(self).expect("a card is JSON"))?;
            card.0.push(path);
        }
        Ok(card)
    }
}

impl Drop for CardInPlace {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path); // a card that stays is found stale by the next node
        }
    }
}

/// All cards, of living nodes or not, in the order of their names.
pub(crate) fn cards(nodes: &Path) -> Vec<Card> {
    let Ok(entries) = fs::read_dir(nodes) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.extension().is_some_and(|end| end == "json"));
    let mut cards: Vec<Card> = paths.filter_map(|path| serde_json::from_str(&fs::read_to_string(path).ok()?).ok()).collect();
    cards.sort_by(|a, b| a.name.cmp(&b.name));
    cards
}

/// The other living nodes of `cluster` that show themselves in one of these directories. Cards of dead ones are removed. Only under the boot locks.
pub(crate) fn living(nodes: &[PathBuf], own: &NodeName, cluster: &str) -> Vec<Card> {
    let mut all: Vec<Card> = nodes.iter().flat_map(|nodes| living_in(nodes, own, cluster)).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all.dedup_by(|a, b| a.name == b.name);
    all
}

fn living_in(nodes: &Path, own: &NodeName, cluster: &str) -> Vec<Card> {
    let mut others = cards(nodes);
    others.retain(|card| {
        let alive = card.name == *own || is_alive(nodes, &card.name);
        if !alive {
            let _ = fs::remove_file(nodes.join(format!("{}.json", card.name)));
        }
        alive && card.name != *own && card.cluster == cluster
    });
    others
}

/// The address at which this machine itself reaches a socket bound to `address`.
pub(crate) fn from_here(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn peers_path(home: &Home, cluster: &str) -> PathBuf {
    home.file(&format!("peers-{cluster}.json"))
}

/// Gossip addresses of nodes of `cluster` on other machines, as the last node of this user knew them.
pub(crate) fn remembered_peers(home: &Home, cluster: &str) -> Vec<SocketAddr> {
    let text = fs::read_to_string(peers_path(home, cluster)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Keeps the gossip addresses of nodes on other machines for the next start. Loopback ones are found by their cards.
pub(crate) fn remember_peers(home: &Home, cluster: &str, gossip: impl IntoIterator<Item = SocketAddr>) -> io::Result<()> {
    let mut peers: Vec<SocketAddr> = gossip.into_iter().filter(|address| !address.ip().is_loopback()).collect();
    peers.sort_unstable();
    peers.dedup();
    peers.truncate(PEERS_MAX);
    if peers.is_empty() || peers == remembered_peers(home, cluster) {
        return Ok(()); // alone: what was known may help yet
    }
    replace(&peers_path(home, cluster), &serde_json::to_string(&peers).expect("addresses are JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::name::NameClaim;

    fn card(name: &NodeName, cluster: &str, port: u16) -> Card {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Card { name: name.clone(), cluster: cluster.to_owned(), http: address, gossip: address }
    }

    #[test]
    fn a_node_sees_the_living_nodes_of_its_cluster_and_sweeps_up_after_the_dead() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = [dir.path().to_owned()];
        let claim = |name: &str| NameClaim::exactly(&nodes, &name.parse().unwrap()).unwrap();
        let (own, living_node, stranger, dead) = (claim("own"), claim("living"), claim("stranger"), claim("dead"));
        let _cards = [&own, &living_node].map(|claim| card(&claim.name, "plexus", 1).leave(&nodes).unwrap());
        let _stranger_card = card(&stranger.name, "other", 2).leave(&nodes).unwrap();
        let dead_card = card(&dead.name, "plexus", 3).leave(&nodes).unwrap();
        drop(dead);
        assert_eq!(cards(dir.path()).len(), 4);
        assert_eq!(living(&nodes, &own.name, "plexus"), [card(&living_node.name, "plexus", 1)]);
        assert!(!dead_card.0[0].exists());
    }

    #[test]
    fn a_card_is_gone_when_its_node_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = [dir.path().to_owned()];
        drop(card(&"n1".parse().unwrap(), "plexus", 1).leave(&nodes).unwrap());
        assert!(cards(dir.path()).is_empty());
    }

    #[test]
    fn peers_of_other_machines_are_remembered_until_better_ones_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let far: SocketAddr = "10.0.0.2:31315".parse().unwrap();
        remember_peers(&home, "plexus", [far, "127.0.0.1:31325".parse().unwrap(), far]).unwrap();
        remember_peers(&home, "plexus", []).unwrap();
        assert_eq!(remembered_peers(&home, "plexus"), [far]);
        assert!(remembered_peers(&home, "other").is_empty());
    }
}
