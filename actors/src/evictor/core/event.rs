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
        /// May it wait for room?
        in_turn: bool,
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
    /// A replica says that it is there, and how far it is: when it begins, and to an evictor that was restarted.
    Here {
        /// Which.
        place: Place,
        /// Which of those that were ever there.
        since: Ask,
        /// How it is served.
        profile: Box<ModelProfile>,
        /// How far it is.
        standing: Standing,
    },
    /// A load says what it was promised: by an evictor that may have ended since.
    Holds {
        /// Whose load.
        place: Place,
        /// By which promise.
        lease: Lease,
        /// How much.
        bytes: Bytes,
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
    /// A replica is no longer on this node, and no other life of it will be. One that was hosted after this is another.
    Dismissed(Place, Ask),
    /// A replica was loaded from other files than count.
    Outdated(Place),
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

/// One time that a replica was hosted, or asked to go. Later ones are greater, over all lives of the evictor, so that what is said late of an
/// earlier replica is not the later one's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ask(pub u64);

/// How far a replica is, as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is being loaded; with what it was promised, if it was already.
    Loading(Option<(Lease, Bytes)>),
    /// It answers.
    Loaded {
        /// By which promise.
        lease: Lease,
        /// What it holds.
        bytes: Bytes,
        /// Has it requests?
        busy: bool,
    },
    /// It could not be loaded.
    Failed,
    /// It has agreed to go, or has given up: it takes nothing, holds nothing, and can only be dismissed.
    Going,
}

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
        /// Tells it from earlier and later ones there.
        since: Ask,
    },
    /// Ask a replica to go, if it has no requests; then [`Event::Retired`].
    Retire(Place, Ask),
    /// End a replica, unless it was hosted after this; then [`Event::Dismissed`].
    Dismiss(Place, Ask),
    /// A load got its memory, or not.
    Granted {
        /// Who asked.
        asker: Asker,
        /// What it gets.
        grant: Result<Grant, NoRoom>,
    },
    /// Whoever asked for memory no longer does.
    Forget(Asker),
    /// An order was begun, or refused.
    Answer {
        /// Who asked.
        asker: Asker,
        /// Why not.
        result: Result<(), RequestError>,
    },
    /// Tell a replica to take nothing new, so that it is idle once it has ended what it has begun; or to take requests again.
    GiveWay(Place, bool),
    /// Tell a replica whether it is pinned.
    Pinned(Place, bool),
    /// Keep what was pinned and unpinned by hand.
    KeepPins(Pins),
    /// Open a device anew.
    RestartDevice(DeviceId),
    /// Tell the router of the devices.
    Publish(Vec<DeviceReport>),
}
