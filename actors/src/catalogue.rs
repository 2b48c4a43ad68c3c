//! What this node lists, and which of it is here: looks at the files of each model without loading it.
//!
//! Each file is opened once, on the blocking pool, one after the other, those to be loaded at the start first; what they say goes to the router,
//! which tells the others. Files that come, go or change later are looked at again. Supervised by [`crate::node`]; supervises nobody. A restart
//! looks at everything anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use plexus_engine::model::ModelPath;
use plexus_types::{Catalogue, CatalogueEntry, FilesState, ModelId, ModelProfile, ModelSource, RequestError};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use tracing::{info, warn};

use crate::address::Address;
use crate::args::Listing;
use crate::device::chain;
use crate::evictor::EvictorMsg;
use crate::inspect::Inspection;
use crate::model::load;
use crate::router::RouterMsg;
use crate::router::view::SharedView;
use crate::shelf::Shelf;

/// How often files are looked for that were not there, or have changed.
const RESCAN: Duration = Duration::from_secs(5);
/// What is learned of several models within this time is told at once.
const TELL_DELAY: Duration = Duration::from_millis(20);

/// How often fetches are looked at.
const FETCHES: Duration = Duration::from_millis(500);

/// What the actor is started with.
#[derive(Debug, Clone)]
pub struct CatalogueArgs {
    /// Its own address.
    pub address: Address<CatalogueMsg>,
    /// What is listed.
    pub listing: Listing,
    /// Told of what is here.
    pub router: Address<RouterMsg>,
    /// Told of files that came, or were replaced.
    pub evictor: Address<EvictorMsg>,
    /// Where files are.
    pub shelf: Shelf,
    /// What the other nodes list.
    pub view: SharedView,
}

/// What the actor is told.
#[derive(Debug, RactorMessage)]
pub enum CatalogueMsg {
    /// From the blocking pool: a model's files were looked at.
    Looked(ModelId, FilesState, Fingerprint),
    /// From the blocking pool: what lies in the folders.
    Found(Vec<(ModelId, ModelSource)>),
    /// Bring a model's files here, without loading it. Answered when they are here.
    Pull(ModelId, RpcReplyPort<Result<(), RequestError>>),
    /// Tell the router.
    TellDue,
    /// Look for changes, as often as usual.
    RescanDue,
    /// Look for changes now: files came.
    RescanNow,
    /// Look how far fetches are.
    FetchesDue,
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
    /// Models that only others list, whose files were brought here by hand.
    pulled: BTreeSet<ModelId>,
    tell_waiting: bool,
    life: ActorId,
}

impl Actor for CatalogueActor {
    type Msg = CatalogueMsg;
    type State = CatalogueState;
    type Arguments = CatalogueArgs;

    async fn pre_start(&self, myself: ActorRef<CatalogueMsg>, args: CatalogueArgs) -> Result<CatalogueState, ActorProcessingErr> {
        args.address.attach(myself.clone());
        let entries = args.listing.models.iter().map(|profile| (profile.id.clone(), entry(profile.clone(), false))).collect();
        args.address.tell_after(RESCAN, CatalogueMsg::RescanDue);
        args.address.tell_after(FETCHES, CatalogueMsg::FetchesDue);
        let state = CatalogueState { args, entries, pulled: BTreeSet::new(), tell_waiting: false, life: myself.get_id() };
        state.look();
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
            CatalogueMsg::Found(models) => state.on_found(models),
            CatalogueMsg::Pull(model, reply) => state.on_pull(&model, reply),
            CatalogueMsg::RescanDue => {
                state.args.address.tell_after(RESCAN, CatalogueMsg::RescanDue);
                state.forget_changed();
                state.look();
            }
            CatalogueMsg::RescanNow => state.look(),
            CatalogueMsg::FetchesDue => state.on_fetches(),
            CatalogueMsg::Inspect(reply) => drop(reply.send(state.inspect())),
        }
        Ok(())
    }
}

impl CatalogueState {
    /// Looks for files that have changed since they were looked at last, those to be loaded at the start first, and through the folders.
    fn look(&self) {
        let mut known: Vec<(ModelProfile, Fingerprint, bool)> = self
            .entries
            .values()
            .map(|(entry, print)| (entry.profile.clone(), *print, matches!(entry.files, FilesState::Unknown | FilesState::Fetching { .. })))
            .collect();
        known.sort_by_key(|(profile, ..)| !profile.preload);
        let (address, life, shelf) = (self.args.address.clone(), self.life, self.args.shelf.clone());
        let folders = self.args.listing.folders.clone();
        tokio::task::spawn_blocking(move || {
            for (profile, before, unknown) in known {
                let print = fingerprint(&profile, &shelf);
                if print != before || unknown {
                    let files = look_at(&profile, &shelf);
                    address.tell_life(life, CatalogueMsg::Looked(profile.id, files, print));
                }
            }
            if !folders.is_empty() {
                let models = folders.iter().flat_map(|folder| plexus_store::found(folder)).collect();
                address.tell_life(life, CatalogueMsg::Found(models));
            }
        });
    }

    /// Models that lie in the folders and are not listed; those that lie there no longer are forgotten.
    fn on_found(&mut self, models: Vec<(ModelId, ModelSource)>) {
        let before = self.entries.len();
        let pulled = &self.pulled;
        self.entries.retain(|id, (entry, _)| !entry.found || pulled.contains(id) || models.iter().any(|(found, _)| found == id));
        let mut changed = self.entries.len() != before;
        for (id, source) in models {
            let listed = self.entries.values().any(|(entry, _)| entry.profile.source == source);
            if !listed && !self.entries.contains_key(&id) {
                info!(model = %id, %source, "a model was found");
                self.entries.insert(id.clone(), entry(ModelProfile::new(id, source), true));
                changed = true;
            }
        }
        if changed {
            self.look();
            self.tell_soon();
        }
    }

    /// What only other nodes list is listed here too from now on, as something that was found: a pull shows how far it is, and what it brings
    /// can be had from here.
    fn on_pull(&mut self, model: &ModelId, reply: RpcReplyPort<Result<(), RequestError>>) {
        let profile = match self.entries.get(model) {
            Some((entry, _)) => entry.profile.clone(),
            None => {
                let listed = self.args.view.read().catalogue().models.get(model).map(|merged| merged.profile.clone());
                let Some(profile) = listed else {
                    return drop(reply.send(Err(RequestError::model_not_found(model))));
                };
                self.pulled.insert(model.clone());
                // It is loaded here when it is asked for, whatever those that list it do at their start.
                let here = ModelProfile { preload: false, ..profile.clone() };
                self.entries.insert(model.clone(), entry(here, true));
                profile
            }
        };
        let (shelf, address) = (self.args.shelf.clone(), self.args.address.clone());
        tokio::spawn(async move {
            let _asker_left = reply.send(pull(&profile, &shelf, &address).await);
        });
    }

    /// What was pulled here and is listed with other files by now is no longer this node's to tell of.
    fn forget_changed(&mut self) {
        let view = self.args.view.read();
        let listed = |id: &ModelId| view.catalogue().models.get(id).map(|merged| &merged.profile.source);
        let changed = |id: &&ModelId| {
            self.entries.get(*id).is_some_and(|(entry, _)| listed(id).is_some_and(|source| *source != entry.profile.source))
        };
        let changed: Vec<ModelId> = self.pulled.iter().filter(changed).cloned().collect();
        drop(view);
        for id in changed {
            self.pulled.remove(&id);
            self.entries.remove(&id);
            self.tell_soon();
        }
    }

    fn on_fetches(&mut self) {
        self.args.address.tell_after(FETCHES, CatalogueMsg::FetchesDue);
        let mut changed = false;
        for (source, progress) in self.args.shelf.fetching() {
            for (entry, _) in self.entries.values_mut().filter(|(entry, _)| entry.profile.source == source) {
                let files = FilesState::Fetching { done: progress.done, total: progress.total };
                changed |= entry.files != files;
                entry.files = files;
            }
        }
        if changed {
            self.tell_soon();
        }
    }

    fn tell_soon(&mut self) {
        if !self.tell_waiting {
            self.tell_waiting = true;
            self.args.address.tell_after(TELL_DELAY, CatalogueMsg::TellDue);
        }
    }

    fn on_looked(&mut self, model: &ModelId, files: FilesState, fingerprint: Fingerprint) {
        let Some((entry, known)) = self.entries.get_mut(model) else { return };
        *known = fingerprint;
        let is_fetched = || self.args.shelf.fetching().iter().any(|(source, _)| *source == entry.profile.source);
        if entry.files == files || (is_still_coming(&entry.files, &files) && is_fetched()) {
            return;
        }
        match &files {
            FilesState::Refused(reason) => warn!(%model, reason, "the model's files cannot be served"),
            FilesState::Present(facts) => {
                info!(%model, bytes = %facts.file_bytes, "the model's files are here");
                self.args.evictor.tell(EvictorMsg::FilesCame(model.clone()));
                if let Some(wanted) = entry.profile.context_length.filter(|wanted| *wanted > facts.context_length) {
                    warn!(%model, wanted, context_length = facts.context_length, "the model was not made for so long a context: it has its own");
                }
            }
            FilesState::Absent => info!(%model, source = %entry.profile.source, "the model's files are not here"),
            FilesState::Unknown | FilesState::Fetching { .. } => {}
        }
        entry.files = files;
        self.tell_soon();
    }

    fn tell(&self) {
        let here = self.entries.values().filter(|(entry, _)| matches!(entry.files, FilesState::Present(_)));
        self.args.shelf.share(here.flat_map(|(entry, _)| std::iter::once(&entry.profile.source).chain(&entry.profile.draft)).cloned());
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

/// Brings here what is missing of a model.
async fn pull(profile: &ModelProfile, shelf: &Shelf, address: &Address<CatalogueMsg>) -> Result<(), RequestError> {
    let missing = shelf.find_missing(profile).await;
    for source in missing.map_err(|panicked| RequestError::Internal { message: format!("the model '{}': {panicked}", profile.id) })? {
        let fetched = shelf.fetch(&source, |_| {}).await;
        address.tell(CatalogueMsg::RescanNow);
        fetched.map_err(|error| RequestError::Unavailable {
            message: format!("{source} cannot be fetched: {}", chain(&*error)),
            retry_after: Duration::from_secs(60),
        })?;
    }
    Ok(())
}

fn entry(profile: ModelProfile, found: bool) -> (CatalogueEntry, Fingerprint) {
    (CatalogueEntry { profile, found, files: FilesState::Unknown }, Fingerprint::default())
}

/// Opens a model's files, if they are here. Blocks.
fn look_at(profile: &ModelProfile, shelf: &Shelf) -> FilesState {
    if !shelf.missing(profile).is_empty() {
        return FilesState::Absent;
    }
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let opened = load::open(profile, shelf)?;
        if let (narrow @ 1.., matrices) = opened.too_narrow() {
            warn!(model = %profile.id, quant = profile.quant.map(tracing::field::display), narrow, matrices,
                "rows of some matrices are no multiple of 256: those are held in q8_0, or as the files have them, and take more memory than the quant says");
        }
        Ok(opened.facts())
    }));
    match opened.unwrap_or_else(|_| Err("reading them panicked".into())) {
        Ok(facts) => FilesState::Present(facts),
        Err(reason) => FilesState::Refused(reason),
    }
}

/// Files that are being fetched are not here yet: that says nothing new, while the fetch goes on.
fn is_still_coming(before: &FilesState, now: &FilesState) -> bool {
    matches!((before, now), (FilesState::Fetching { .. }, FilesState::Absent))
}

fn fingerprint(profile: &ModelProfile, shelf: &Shelf) -> Fingerprint {
    let Some(ModelPath::Path(path)) = shelf.locate(&profile.source) else { return Fingerprint(None) };
    let print = std::fs::metadata(path).and_then(|metadata| Ok((metadata.modified()?, metadata.len())));
    Fingerprint(print.ok())
}

#[cfg(test)]
mod tests {
    use plexus_types::Bytes;

    use super::*;

    #[test]
    fn while_files_are_being_fetched_that_they_are_not_here_is_no_news() {
        let fetching = FilesState::Fetching { done: Bytes(1), total: Bytes(2) };
        assert!(is_still_coming(&fetching, &FilesState::Absent));
        for (before, now) in [
            (&fetching, FilesState::Refused("damaged".into())),
            (&FilesState::Unknown, FilesState::Absent),
            (&FilesState::Absent, fetching.clone()),
        ] {
            assert!(!is_still_coming(before, &now), "{before:?} {now:?}");
        }
    }
}
