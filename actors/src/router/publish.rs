//! What a router tells the other nodes: what this node holds and what it lists.

use std::time::Duration;

use plexus_types::NodeSummary;
use tracing::debug;

use super::{RouterMsg, RouterState};
use crate::messages::Notice;
use crate::peers::{Peer, PeerError};

/// Changes of load alone are gathered for so long before the peers are told.
const LOAD_DELAY: Duration = Duration::from_millis(100);

impl RouterState {
    /// Tells all peers what changed.
    pub(super) fn publish(&mut self) {
        let news = self.args.view.read().own_news();
        let refused = self.args.nodes.peers.list().iter().filter(|peer| !send_summary(peer, news.clone())).count();
        if refused > 0 {
            self.publish_later(); // else a peer would not know what this node holds until it changes again
        } else {
            self.args.view.write().on_own_said();
        }
    }

    /// Tells a peer that has come all there is.
    pub(super) fn introduce(&mut self, peer: &Peer) {
        self.send_catalogue(peer);
        let summary = self.args.view.write().own_in_full();
        if !send_summary(peer, summary) {
            self.args.view.write().on_own_unsaid();
            self.publish_later();
        }
    }

    pub(super) fn publish_later(&mut self) {
        if !self.publish_waiting {
            self.publish_waiting = true;
            self.args.address.tell_after(LOAD_DELAY, RouterMsg::PublishDue);
        }
    }

    /// Has a peer say anew all there is: what it said before is lost.
    pub(super) fn ask_for_all(&self, peer: &Peer) {
        if let Err(error) = peer.notify(Notice::Announce) {
            debug!(node = %peer.id(), %error, "not asked what it has");
            if error == PeerError::Congested {
                self.args.address.tell_after(LOAD_DELAY, RouterMsg::AskDue(peer.id().clone()));
            }
        }
    }

    /// Tells a peer what this node lists.
    pub(super) fn send_catalogue(&self, peer: &Peer) {
        let catalogue = self.args.view.read().own_catalogue().clone();
        if let Err(error) = peer.notify(Notice::Catalogue(catalogue)) {
            debug!(node = %peer.id(), %error, "catalogue not sent");
            if error == PeerError::Congested {
                let (address, me) = (self.args.address.clone(), peer.id().clone());
                address.tell_after(LOAD_DELAY, RouterMsg::CatalogueDue(me));
            }
        }
    }
}

/// False if the peer takes none now, but may later.
fn send_summary(peer: &Peer, summary: NodeSummary) -> bool {
    let Err(error) = peer.notify(Notice::Summary(summary)) else { return true };
    debug!(node = %peer.id(), %error, "summary not sent");
    error != PeerError::Congested // when the link is gone, the next one brings it
}
