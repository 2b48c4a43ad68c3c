//! What the evictor hears, and what it wants done.

use plexus_types::{Bytes, DeviceId, DeviceReport, ModelFacts, ModelId, ModelProfile, RequestError};

use super::{Asker, Grant, Place};
use crate::evictor::ledger::Lease;
use crate::evictor::pins::Pins;
use crate::evictor::plan::{Needs, NoRoom};

/// What happens to the memory of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A device was opened.
    DeviceUp {
        /// Which.
        id: DeviceId,
        /// What its maker calls it.
        name: String,
        /// Memory that models may use.
        total: Bytes,
    },
    /// A model is to be brought onto a device.
    Load {
        /// Which, and how.
        profile: Box<ModelProfile>,
        /// Where to.
        device: DeviceId,
        /// What its files say, if somebody knows.
        facts: Option<ModelFacts>,
        /// Who hears whether it is begun.
        asker: Asker,
    },
    /// A replica that is being loaded asks for its memory.
    Room {
        /// Which.
        place: Place,
        /// By which promise it will hold it.
        lease: Lease,
        /// What it takes.
        needs: Needs,
        /// Who hears what it gets.
        asker: Asker,
    },
    /// A replica answers.
    Loaded(Place),
    /// A replica could not be loaded.
    Failed(Place),
    /// A model's files came, or were replaced: why it could not be loaded before may be past.
    FilesCame(ModelId),
    /// A replica found no room in time, and goes: it is to be placed anew.
    GaveUp(Place),
    /// A replica got its first request, or ended its last.
    Used {
        /// Which.
        place: Place,
        /// Has it requests?
        busy: bool,
    },
    /// A resident replica says what it holds, to an evictor that was restarted.
    Holds {
        /// Which.
        place: Place,
        /// How it is served.
        profile: Box<ModelProfile>,
        /// By which promise.
        lease: Lease,
        /// How much.
        bytes: Bytes,
        /// Has it requests?
        busy: bool,
    },
    /// What became of [`Effect::Retire`]. After [`Verdict::Silent`] another verdict may follow, however late.
    Retired {
        /// Which.
        place: Place,
        /// Which time it was asked.
        ask: Ask,
        /// What it says.
        verdict: Verdict,
    },
    /// A replica no longer needs what it was promised.
    Released {
        /// Which.
        place: Place,
        /// Which promise.
        lease: Lease,
    },
    /// A replica is no longer on this node, and no other life of it will be.
    Dismissed(Place),
    /// Unload by hand, from one device or from all.
    Unload {
        /// Which model.
        model: ModelId,
        /// From where; absent: from everywhere on this node.
        device: Option<DeviceId>,
        /// Who hears whether it goes.
        asker: Asker,
    },
    /// Pin a model, or let it go again.
    Pin {
        /// Which model.
        model: ModelId,
        /// Pinned?
        pinned: bool,
        /// Who hears whether it is here.
        asker: Asker,
    },
    /// Time passed.
    Tick,
}

/// One time that a replica was asked to go. Later ones are greater, so that what an earlier life of a replica says late is not the later one's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ask(pub u64);

/// What a replica says that was asked to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It takes nothing new from now on, and holds nothing any more: it can only be dismissed.
    Goes,
    /// It has requests.
    Stays,
    /// It has not answered in time; it still may.
    Silent,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Start a replica, which loads itself.
    Host {
        /// How it is served.
        profile: Box<ModelProfile>,
        /// Where.
        device: DeviceId,
    },
    /// Ask a replica to go, if it has no requests; then [`Event::Retired`].
    Retire(Place, Ask),
    /// End a replica.
    Dismiss(Place),
    /// A load got its memory, or not.
    Granted {
        /// Who asked.
        asker: Asker,
        /// What it gets.
        grant: Result<Grant, NoRoom>,
    },
    /// An order was begun, or refused.
    Answer {
        /// Who asked.
        asker: Asker,
        /// Why not.
        result: Result<(), RequestError>,
    },
    /// Tell a replica whether it is pinned.
    Pinned(Place, bool),
    /// Keep what was pinned and unpinned by hand.
    KeepPins(Pins),
    /// Open a device anew.
    RestartDevice(DeviceId),
    /// Tell the router of the devices.
    Publish(Vec<DeviceReport>),
}
