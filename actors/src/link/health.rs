//! Does a peer still answer? The judgement on pings: pure.

use std::time::Duration;

use tokio::time::Instant;

/// What pings say of one peer.
#[derive(Debug, Clone)]
pub(super) struct PeerHealth {
    /// When it was last heard, or given a fresh start.
    heard: Instant,
    ping_due: Instant,
}

impl PeerHealth {
    /// A peer whose link stands since now.
    pub(super) fn new(now: Instant) -> Self {
        Self { heard: now, ping_due: now }
    }

    /// A ping came back.
    pub(super) fn on_pong(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    /// We were too slow to judge: the peer has all its time again.
    pub(super) fn pardon(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    /// Is a ping due? Notes that it is sent.
    pub(super) fn take_ping(&mut self, now: Instant, interval: Duration) -> bool {
        let due = now >= self.ping_due;
        if due {
            self.ping_due = now + interval;
        }
        due
    }

    /// How long it has not answered.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }
}
