//! What this node lists, and which of it is here: looks at the files of each model without loading it.
//!
//! Each file is opened once, on the blocking pool, one after the other, those to be loaded at the start first; what they say goes to the router,
//! which tells the others. Files that come, go or change later are looked at again. Supervised by [`crate::node`]; supervises nobody. A restart
//! looks at everything anew.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use plexus_types::{Catalogue, CatalogueEntry, FilesState, ModelId, ModelProfile, ModelSource};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use tracing::{info, warn};

use crate::address::Address;
use crate::args::Listing;
use crate::inspect::Inspection;
use crate::model::load;
use crate::router::RouterMsg;

/// How often files are looked for that were not there, or have changed.
const RESCAN: Duration = Duration::from_secs(5);
/// What is learned of several models within this time is told at once.
const TELL_DELAY: Duration = Duration::from_millis(20);

/// What the actor is started with.
#[derive(Debug, Clone)]
pub struct CatalogueArgs {
    /// Its own address.
    pub address: Address<CatalogueMsg>,
    /// What is listed.
    pub listing: Listing,
    /// Told of what is here.
    pub router: Address<RouterMsg>,
}

/// What the actor is told.
#[derive(Debug, RactorMessage)]
pub enum CatalogueMsg {
    /// From the blocking pool: a model's files were looked at.
    Looked(ModelId, FilesState, Fingerprint),
    /// Tell the router.
    TellDue,
    /// Look for changes.
    RescanDue,
    /// Say how you are.
    Inspect(RpcReplyPort<Inspection>),
}

/// Tells whether files are the same as before, without reading them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fingerprint(Option<(SystemTime, u64)>);

/// The actor: see the module.
#[derive(Debug)]
pub struct CatalogueActor;

/// What the actor holds.
#[derive(Debug)]
pub struct CatalogueState {
    args: CatalogueArgs,
    entries: BTreeMap<ModelId, (CatalogueEntry, Fingerprint)>,
    tell_waiting: bool,
    life: ActorId,
}

impl Actor for CatalogueActor {
    type Msg = CatalogueMsg;
    type State = CatalogueState;
    type Arguments = CatalogueArgs;

    async fn pre_start(&self, myself: ActorRef<CatalogueMsg>, args: CatalogueArgs) -> Result<CatalogueState, ActorProcessingErr> {
        args.address.attach(myself.clone());
        let unknown = |profile: &ModelProfile| CatalogueEntry { profile: profile.clone(), found: false, files: FilesState::Unknown };
        let entries = args.listing.models.iter().map(|profile| (profile.id.clone(), (unknown(profile), Fingerprint::default()))).collect();
        args.address.tell_after(RESCAN, CatalogueMsg::RescanDue);
        let state = CatalogueState { args, entries, tell_waiting: false, life: myself.get_id() };
        let mut profiles: Vec<ModelProfile> = state.entries.values().map(|(entry, _)| entry.profile.clone()).collect();
        profiles.sort_by_key(|profile| !profile.preload);
        state.look(profiles);
        state.tell();
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<CatalogueMsg>,
        message: CatalogueMsg,
        state: &mut CatalogueState,
    ) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        match message {
            CatalogueMsg::Looked(model, files, fingerprint) => state.on_looked(&model, files, fingerprint),
            CatalogueMsg::TellDue => {
                state.tell_waiting = false;
                state.tell();
            }
            CatalogueMsg::RescanDue => state.on_rescan(),
            CatalogueMsg::Inspect(reply) => drop(reply.send(state.inspect())),
        }
        Ok(())
    }
}

impl CatalogueState {
    fn look(&self, profiles: Vec<ModelProfile>) {
        let (address, life) = (self.args.address.clone(), self.life);
        tokio::task::spawn_blocking(move || {
            for profile in profiles {
                let (files, fingerprint) = look_at(&profile);
                address.tell_life(life, CatalogueMsg::Looked(profile.id, files, fingerprint));
            }
        });
    }

    fn on_looked(&mut self, model: &ModelId, files: FilesState, fingerprint: Fingerprint) {
        let Some((entry, known)) = self.entries.get_mut(model) else { return };
        *known = fingerprint;
        if entry.files == files {
            return;
        }
        match &files {
            FilesState::Refused(reason) => warn!(%model, reason, "the model's files cannot be served"),
            FilesState::Present(facts) => info!(%model, bytes = %facts.file_bytes, "the model's files are here"),
            FilesState::Absent => info!(%model, source = %entry.profile.source, "the model's files are not here"),
            FilesState::Unknown | FilesState::Fetching { .. } => {}
        }
        entry.files = files;
        if !self.tell_waiting {
            self.tell_waiting = true;
            self.args.address.tell_after(TELL_DELAY, CatalogueMsg::TellDue);
        }
    }

    fn on_rescan(&mut self) {
        self.args.address.tell_after(RESCAN, CatalogueMsg::RescanDue);
        let looked_at = self.entries.values().filter(|(entry, _)| entry.files != FilesState::Unknown);
        let changed = looked_at.filter(|(entry, known)| fingerprint(&entry.profile.source) != *known);
        let changed: Vec<ModelProfile> = changed.map(|(entry, _)| entry.profile.clone()).collect();
        if !changed.is_empty() {
            self.look(changed);
        }
    }

    fn tell(&self) {
        let Listing { modified_ms, aliases, .. } = &self.args.listing;
        let entries = self.entries.values().map(|(entry, _)| entry.clone()).collect();
        let catalogue = Catalogue { revision: 0, modified_ms: *modified_ms, entries, aliases: aliases.clone() };
        self.args.router.tell(RouterMsg::OwnCatalogue(catalogue));
    }

    fn inspect(&self) -> Inspection {
        let count = |is: fn(&FilesState) -> bool| self.entries.values().filter(|(entry, _)| is(&entry.files)).count() as u64;
        let looking = count(|files| *files == FilesState::Unknown);
        Inspection::new(
            if looking > 0 { "looking" } else { "watching" },
            [
                ("listed", self.entries.len() as u64),
                ("present", count(|files| matches!(files, FilesState::Present(_)))),
                ("refused", count(|files| matches!(files, FilesState::Refused(_)))),
                ("unknown", looking),
            ],
        )
    }
}

/// Opens a model's files. Blocks.
fn look_at(profile: &ModelProfile) -> (FilesState, Fingerprint) {
    let print = fingerprint(&profile.source);
    let files = match &profile.source {
        ModelSource::Path(_) if print == Fingerprint(None) => FilesState::Absent,
        ModelSource::Hub(_) => FilesState::Absent,
        ModelSource::Embedded | ModelSource::Path(_) => {
            let opened = std::panic::catch_unwind(|| load::open(profile).map(|opened| opened.facts()));
            match opened.unwrap_or_else(|_| Err("reading them panicked".into())) {
                Ok(facts) => FilesState::Present(facts),
                Err(reason) => FilesState::Refused(reason),
            }
        }
    };
    (files, print)
}

fn fingerprint(source: &ModelSource) -> Fingerprint {
    let ModelSource::Path(path) = source else { return Fingerprint(None) };
    let print = std::fs::metadata(path).and_then(|metadata| Ok((metadata.modified()?, metadata.len())));
    Fingerprint(print.ok())
}
