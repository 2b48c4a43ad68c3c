//! Intervals and deadlines of the network part of a node.

use std::time::Duration;

/// Intervals and deadlines of membership and links. All nodes of a cluster should have the same.
#[derive(Debug, Clone, PartialEq)]
pub struct NetTiming {
    /// A round of gossip begins so often.
    pub gossip_interval: Duration,
    /// What the failure detector takes for the interval between two heartbeats before it has measured any.
    pub initial_interval: Duration,
    /// A node is gone by gossip when it has been silent for `phi` mean intervals.
    pub phi: f64,
    /// A node that is gone is forgotten after this. Longer lets a node that crashes over and over fill every datagram.
    pub dead_node_grace: Duration,
    /// After a start of gossip, or when this process was stopped, nobody is gone by gossip for so long: it has to hear them first.
    pub settle: Duration,
    /// The link's clock: what is due is looked at so often.
    pub tick: Duration,
    /// A tick that comes later than this beyond its time makes the node doubt itself rather than its peers.
    pub lag_max: Duration,
    /// A peer is pinged so often.
    pub ping_interval: Duration,
    /// A ping is waited for so long.
    pub ping_deadline: Duration,
    /// A peer that answered no ping for so long is cut off.
    pub silence_max: Duration,
    /// A TCP connection is waited for so long: less than the second after which TCP itself tries again, because dialing anew finds a path that
    /// is back sooner.
    pub connect_max: Duration,
    /// From the TCP connection to the TLS session, and from there to the greeting, a link may take so long each.
    pub handshake_max: Duration,
    /// A link that is missing is dialed after a time drawn between these two; the second doubles with each failure...
    pub redial: (Duration, Duration),
    /// ...up to this.
    pub redial_max: Duration,
    /// Bytes that the peer's kernel does not acknowledge for so long end a link.
    pub user_timeout: Duration,
}

impl Default for NetTiming {
    fn default() -> Self {
        Self {
            gossip_interval: Duration::from_millis(200),
            initial_interval: Duration::from_millis(400),
            phi: 8.0,
            dead_node_grace: Duration::from_secs(300),
            settle: Duration::from_secs(3),
            tick: Duration::from_millis(50),
            lag_max: Duration::from_millis(200),
            ping_interval: Duration::from_millis(250),
            ping_deadline: Duration::from_secs(1),
            silence_max: Duration::from_millis(1250),
            connect_max: Duration::from_millis(500),
            handshake_max: Duration::from_secs(3),
            redial: (Duration::from_millis(100), Duration::from_millis(250)),
            redial_max: Duration::from_secs(1),
            user_timeout: Duration::from_secs(2),
        }
    }
}
