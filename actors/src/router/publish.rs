//! What a router tells the other nodes: what this node holds and what it lists.

use std::time::Duration;

use tracing::debug;

use super::{RouterMsg, RouterState};
use crate::messages::Notice;
use crate::peers::{Peer, PeerError};

/// Changes of load alone are gathered for so long before the peers are told.
const LOAD_DELAY: Duration = Duration::from_millis(100);

impl RouterState {
    pub(super) fn publish(&mut self) {
        let refused = self.args.peers.list().iter().filter(|peer| !self.send_summary(peer)).count();
        if refused > 0 {
            self.publish_later(); // else a peer would not know what this node holds until it changes again
        }
    }

    pub(super) fn publish_later(&mut self) {
        if !self.publish_waiting {
            self.publish_waiting = true;
            self.args.address.tell_after(LOAD_DELAY, RouterMsg::PublishDue);
        }
    }

    /// False if the peer takes none now, but may later.
    pub(super) fn send_summary(&self, peer: &Peer) -> bool {
        let summary = self.args.view.read().own().clone();
        let Err(error) = peer.notify(Notice::Summary(summary)) else { return true };
        debug!(node = %peer.id(), %error, "summary not sent");
        error != PeerError::Congested // when the link is gone, the next one brings it
    }

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
