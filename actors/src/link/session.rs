//! Ractor's node server, and what it says of its sessions.

use plexus_types::NodeId;
use ractor::{Actor, ActorRef, SpawnErr};
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{NodeEventSubscription, NodeServer, NodeServerMessage, NodeSessionMessage};
use tracing::warn;

use super::core::LinkId;
use super::socket::link_of;
use super::{LinkMsg, Own, OwnEvent};
use crate::secret::ClusterSecret;
use crate::wire::FRAME_MAX;

/// Longest frame that ractor takes: ours, and what ractor itself says of its actors and groups, which is far less.
const RACTOR_FRAME_MAX: u64 = 2 * FRAME_MAX as u64;

/// What the node server says of the session on a link.
pub(super) enum SessionEvent {
    /// It began; `number` is what its remote actors are known by here.
    Opened { link: LinkId, number: u64, session: ActorRef<NodeSessionMessage> },
    /// Both sides know each other's actors and groups.
    Ready { link: LinkId, id: NodeId },
    /// It is over.
    Ended { link: LinkId },
}

/// Starts the node server under the link actor. Its own listener is parked on a loopback port that nobody is told.
pub(super) async fn start(
    me: &NodeId,
    secret: &ClusterSecret,
    supervisor: ActorRef<LinkMsg>,
) -> Result<ActorRef<NodeServerMessage>, SpawnErr> {
    // Host and port make the string by which ractor notices that it dialed itself: the host must differ from node to node.
    let server = NodeServer::new(0, secret.link_cookie(), me.to_string(), me.name.to_string(), None, None)
        .with_listen_addr(std::net::Ipv4Addr::LOCALHOST.into())
        .with_max_inbound_frame_size(RACTOR_FRAME_MAX);
    let (server, _handle) = Actor::spawn_linked(None, server, (), supervisor.get_cell()).await?;
    let subscription = Box::new(Subscription(supervisor));
    let _ended = server.cast(NodeServerMessage::SubscribeToEvents { id: "links".to_owned(), subscription });
    Ok(server)
}

struct Subscription(ActorRef<LinkMsg>);

impl Subscription {
    fn tell(&self, event: SessionEvent) {
        let _gone = self.0.cast(LinkMsg::Own(Own(OwnEvent::Session(event))));
    }
}

impl NodeEventSubscription for Subscription {
    fn node_session_opened(&self, session: NodeServerSessionInformation) {
        match link_of(&session.peer_addr) {
            Some(link) => self.tell(SessionEvent::Opened { link, number: session.node_id, session: session.actor }),
            None => session.actor.stop(Some("it came in by the parked listener".to_owned())),
        }
    }

    fn node_session_authenticated(&self, _: NodeServerSessionInformation) {}

    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        let Some(link) = link_of(&session.peer_addr) else { return };
        // `name#generation@host`, as it was given to the node server over there.
        let name = session.peer_name.as_ref().map(|name| name.name.as_str()).unwrap_or_default();
        match name.rsplit_once('@').map_or(name, |(id, _host)| id).parse() {
            Ok(id) => self.tell(SessionEvent::Ready { link, id }),
            Err(error) => {
                warn!(%error, "a session without a node's name is stopped");
                session.actor.stop(Some("it has no name".to_owned()));
            }
        }
    }

    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        if let Some(link) = link_of(&session.peer_addr) {
            self.tell(SessionEvent::Ended { link });
        }
    }
}
