//! What this node lists, and which of it is here: looks at the files of each model without loading it.
//!
//! Files are opened on the blocking pool, one after the other, those to be loaded at the start first; what they say goes to the router, which
//! tells the others. Files that come, go or change later are looked at again, those of draft models too. There is one look at a time, however long
//! it takes: a slow disk is not asked for the same by many. Supervised by [`crate::node`]; supervises nobody. A restart looks at everything anew.

mod fetches;
mod known;
mod looks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use plexus_engine::codec::Codec;
use plexus_store::{Found, Names, Unread};
use plexus_types::{
    Catalogue, CatalogueEntry, EmbedRequest, FilesState, GenerateRequest, ModelId, ModelKind, ModelProfile, RequestError, chain,
};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use tokio::time::Instant;
use tracing::{info, warn};

use self::fetches::{Paces, fetch_of, is_fetched};
use self::known::{Known, Look, News};
use self::looks::{LookEnds, Looks};
use crate::address::Address;
use crate::args::Listing;
use crate::evictor::EvictorMsg;
use crate::inspect::Inspection;
use crate::model::{check_kind, encode_texts, prepare};
use crate::router::RouterMsg;
use crate::router::view::SharedView;
use crate::shelf::{Fingerprint, OpenError, Shelf};

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
    Looked(ModelId, Look),
    /// From the blocking pool: what lies in the folders.
    Found(Found),
    /// From the blocking pool: the look is over, whatever became of it.
    LookEnded,
    /// Bring a model's files here, without loading it. Answered when they are here.
    Pull(ModelId, RpcReplyPort<Result<(), RequestError>>),
    /// How many tokens a prompt has, by the files of its model, without loading it.
    CountTokens(Box<GenerateRequest>, RpcReplyPort<Result<u32, RequestError>>),
    /// Whether each of some texts can be embedded and has at most so many tokens, by the files of their model, without loading it.
    CheckTexts(Box<EmbedRequest>, u32, RpcReplyPort<Result<(), RequestError>>),
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

/// The actor: see the module.
#[derive(Debug)]
pub struct CatalogueActor;

/// What the actor holds.
#[derive(Debug)]
pub struct CatalogueState {
    args: CatalogueArgs,
    entries: BTreeMap<ModelId, Known>,
    /// Models that only others list, whose files were brought here by hand.
    pulled: BTreeSet<ModelId>,
    /// Folders that could not be read, or not wholly, when they were looked at last.
    unread: Vec<Unread>,
    /// By which names models were found in folders: those keep them.
    names: Names,
    /// How fast files come.
    paces: Paces,
    tell_waiting: bool,
    looks: Looks,
    life: ActorId,
}

impl Actor for CatalogueActor {
    type Msg = CatalogueMsg;
    type State = CatalogueState;
    type Arguments = CatalogueArgs;

    async fn pre_start(&self, myself: ActorRef<CatalogueMsg>, args: CatalogueArgs) -> Result<CatalogueState, ActorProcessingErr> {
        args.address.attach(myself.clone());
        let entries = args.listing.models.iter().map(|profile| (profile.id.clone(), Known::new(profile.clone(), false))).collect();
        args.address.tell_after(RESCAN, CatalogueMsg::RescanDue);
        args.address.tell_after(FETCHES, CatalogueMsg::FetchesDue);
        let (looks, life) = (Looks::default(), myself.get_id());
        let names = args.listing.names.load();
        let mut state = CatalogueState {
            args,
            entries,
            pulled: BTreeSet::new(),
            unread: Vec::new(),
            names,
            paces: Paces::default(),
            tell_waiting: false,
            looks,
            life,
        };
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
            CatalogueMsg::Looked(model, look) => state.on_looked(&model, look),
            CatalogueMsg::TellDue => {
                state.tell_waiting = false;
                state.tell();
            }
            CatalogueMsg::Found(found) => state.on_found(found),
            CatalogueMsg::LookEnded => {
                if state.looks.on_end() {
                    state.look();
                }
            }
            CatalogueMsg::Pull(model, reply) => state.on_pull(&model, reply),
            CatalogueMsg::CountTokens(request, reply) => {
                let (model, n_bytes) = (request.model.clone(), request.prompt.text_len());
                state.by_files(&model, ModelKind::Generate, n_bytes, move |codec| codec.token_count(&request.prompt), reply);
            }
            CatalogueMsg::CheckTexts(texts, max_tokens, reply) => {
                let (model, n_bytes) = (texts.model.clone(), texts.text_len());
                let check = move |codec: &Codec| encode_texts(codec, max_tokens, *texts).map(drop);
                state.by_files(&model, ModelKind::Embed, n_bytes, check, reply);
            }
            CatalogueMsg::RescanDue => {
                state.args.address.tell_after(RESCAN, CatalogueMsg::RescanDue);
                if let Some(long) = state.looks.is_long(Instant::now()) {
                    warn!(
                        ?long,
                        "looking at the files of the models takes long: is their disk slow, or a network's file system out of reach?"
                    );
                }
                state.args.shelf.close_unused(Instant::now());
                state.forget_changed();
                state.drop_outdated();
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
    /// Looks for files that have changed since they were looked at last, or could not be read then, those to be loaded at the start first, and
    /// through the folders; or does so again when the look under way has ended.
    fn look(&mut self) {
        let now = Instant::now();
        if !self.looks.begin(now) {
            return;
        }
        let mut known: Vec<(ModelProfile, Option<Fingerprint>)> =
            self.entries.values().map(|known| (known.entry.profile.clone(), known.unchanged_if(now))).collect();
        known.sort_by_key(|(profile, _)| !profile.preload);
        let (address, life, shelf) = (self.args.address.clone(), self.life, self.args.shelf.clone());
        let (listing, given) = (self.args.listing.clone(), self.names.clone());
        let ends = LookEnds::new(address.clone(), life);
        tokio::task::spawn_blocking(move || {
            let _ends = ends;
            for (profile, unchanged_if) in known {
                let look = match shelf.fingerprint(&profile) {
                    Ok(print) if unchanged_if == Some(print) => continue,
                    Ok(print) => look_at(&profile, &shelf, print),
                    Err(error) => Look::Unseen(error.to_string()),
                };
                address.tell_life(life, CatalogueMsg::Looked(profile.id, look));
            }
            if !listing.folders.is_empty() {
                let listed = listing.models.into_iter().map(|profile| (profile.id, profile.source)).collect();
                let found = plexus_store::found(&listing.folders, &listed, &given);
                if found.given != given {
                    listing.names.save(&found.given); // before anybody hears of them
                }
                address.tell_life(life, CatalogueMsg::Found(found));
            }
        });
    }

    /// Models that lie in the folders and are not listed; those that lie there no longer are forgotten.
    fn on_found(&mut self, Found { models, given, unread }: Found) {
        for unread in unread.iter().filter(|unread| !self.unread.contains(unread)) {
            warn!(folder = %unread.folder.display(), why = unread.why, "a model folder could not be read, or not wholly");
        }
        for before in self.unread.iter().filter(|before| !unread.iter().any(|unread| unread.folder == before.folder)) {
            info!(folder = %before.folder.display(), "a model folder is read again");
        }
        (self.unread, self.names) = (unread, given);
        let before = self.entries.len();
        let served = self.args.view.read().served_here();
        self.entries.retain(|id, known| self.pulled.contains(id) || known.stays(&models, &self.unread, served.contains(id)));
        let mut changed = self.entries.len() != before;
        for (id, source) in models {
            // It may have been pulled here under a name that others list it by.
            let is_known = self.entries.values().any(|known| known.entry.profile.source == source);
            if !is_known && !self.entries.contains_key(&id) {
                info!(model = %id, %source, "a model was found");
                self.entries.insert(id.clone(), Known::new(ModelProfile::new(id, source), true));
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
            Some(known) => known.entry.profile.clone(),
            None => {
                let listed = self.args.view.read().catalogue().models.get(model).map(|merged| merged.profile.clone());
                let Some(profile) = listed else {
                    return drop(reply.send(Err(RequestError::model_not_found(model))));
                };
                self.pulled.insert(model.clone());
                // It is loaded here when it is asked for, whatever those that list it do at their start.
                let here = ModelProfile { preload: false, ..profile.clone() };
                self.entries.insert(model.clone(), Known::new(here, true));
                profile
            }
        };
        let (shelf, view, address) = (self.args.shelf.clone(), self.args.view.clone(), self.args.address.clone());
        tokio::spawn(async move {
            let _asker_left = reply.send(pull(&profile, &shelf, &view, &address).await);
        });
    }

    /// What the vocabulary in a model's files says of so many bytes, if they are here and are made for that.
    fn by_files<T: Send + 'static>(
        &self,
        model: &ModelId,
        kind: ModelKind,
        n_bytes: u64,
        ask: impl FnOnce(&Codec) -> Result<T, RequestError> + Send + 'static,
        reply: RpcReplyPort<Result<T, RequestError>>,
    ) {
        let present = self.entries.get(model).map(|known| &known.entry).filter(|entry| matches!(entry.files, FilesState::Present(_)));
        let Some(CatalogueEntry { profile, .. }) = present else {
            let message = format!("the files of the model '{model}' are not on this node");
            return drop(reply.send(Err(RequestError::soon(message))));
        };
        let (profile, shelf) = (profile.clone(), self.args.shelf.clone());
        let reply = Arc::new(reply);
        let asker = Arc::clone(&reply);
        let n_bytes = if shelf.is_open(&profile) { n_bytes } else { prepare::READS_VOCABULARY };
        let said = prepare::in_turn(n_bytes, move || {
            if asker.is_closed() {
                return Err(RequestError::Lost { message: "nobody waits for it any more".into() }); // as nobody hears
            }
            let opened = shelf.keep_open(&profile).map_err(|error| match error {
                OpenError::Refused(message) => RequestError::Unservable { message },
                OpenError::Unreadable(message) => RequestError::Unavailable { message, retry_after: RESCAN },
            })?;
            check_kind(&profile.id, opened.facts().kind, kind)?;
            ask(opened.codec())
        });
        tokio::spawn(async move {
            let said = said.await;
            let _asker_left = Arc::into_inner(reply).map(|reply| reply.send(said));
        });
    }

    /// What was pulled here and is listed with other files by now is no longer this node's to tell of.
    fn forget_changed(&mut self) {
        let view = self.args.view.read();
        let listed = |id: &ModelId| view.catalogue().models.get(id).map(|merged| &merged.profile.source);
        let changed = |id: &&ModelId| {
            self.entries.get(*id).is_some_and(|known| listed(id).is_some_and(|source| *source != known.entry.profile.source))
        };
        let changed: Vec<ModelId> = self.pulled.iter().filter(changed).cloned().collect();
        drop(view);
        for id in changed {
            self.pulled.remove(&id);
            self.entries.remove(&id);
            self.tell_soon();
        }
    }

    /// Copies of files that are others by now where they came from go, and so does what was loaded from other files than count, once it is idle.
    fn drop_outdated(&self) {
        let view = self.args.view.read();
        for replica in view.own().replicas.iter().filter(|replica| view.is_outdated(replica)) {
            self.args.evictor.tell(EvictorMsg::Outdated(replica.model.clone(), replica.device));
        }
        let outdated = self.entries.values().filter_map(|known| {
            let FilesState::Present(facts) = &known.entry.files else { return None };
            let merged = view.catalogue().models.get(&known.entry.profile.id)?;
            let is_outdated = facts.is_copy && !merged.fits(facts.digest);
            merged.digest.filter(|_| is_outdated).map(|counts| (known.entry.profile.source.clone(), counts))
        });
        let copies: Vec<_> = outdated.collect();
        if copies.is_empty() {
            return;
        }
        let (shelf, address) = (self.args.shelf.clone(), self.args.address.clone());
        tokio::task::spawn_blocking(move || {
            for (source, counts) in copies {
                if let Err(error) = shelf.discard_outdated(&source, counts) {
                    warn!(%source, %error, "a copy of files that are others by now cannot be taken away");
                }
            }
            address.tell(CatalogueMsg::RescanNow);
        });
    }

    fn on_fetches(&mut self) {
        self.args.address.tell_after(FETCHES, CatalogueMsg::FetchesDue);
        let mut changed = false;
        let fetching = self.paces.on_fetches(self.args.shelf.fetching(), Instant::now());
        for entry in self.entries.values_mut().map(|known| &mut known.entry) {
            if let Some(fetch) = fetch_of(&entry.profile, &fetching, self.args.shelf.hub()) {
                let files = FilesState::Fetching(fetch);
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

    fn on_looked(&mut self, model: &ModelId, look: Look) {
        let Some(known) = self.entries.get_mut(model) else { return };
        let is_fetched = is_fetched(&known.entry.profile, &self.args.shelf.fetching());
        let Some(news) = known.on_look(look, is_fetched, Instant::now()) else { return };
        let CatalogueEntry { profile, files, .. } = &known.entry;
        match (news, files) {
            (News::Unseen(why), _) => return warn!(%model, why, "the model's files cannot be looked at: what is known of them stays"),
            (News::Files, FilesState::Refused(reason)) => warn!(%model, reason, "the model's files cannot be served"),
            (News::Files, FilesState::Present(facts)) => {
                info!(%model, bytes = %facts.file_bytes, "the model's files are here");
                self.args.evictor.tell(EvictorMsg::FilesCame(model.clone()));
                if let Some(wanted) = profile.context_length.filter(|wanted| *wanted > facts.context_length) {
                    warn!(%model, wanted, context_length = facts.context_length, "the model was not made for so long a context: it has its own");
                }
            }
            (News::Files, FilesState::Absent) => info!(%model, source = %profile.source, "the model's files are not here"),
            (News::Files, FilesState::Unknown | FilesState::Fetching(_)) => {}
        }
        self.tell_soon();
    }

    fn tell(&self) {
        let here = self.entries.values().map(|known| &known.entry).filter(|entry| matches!(entry.files, FilesState::Present(_)));
        self.args.shelf.share(here.flat_map(|entry| std::iter::once(&entry.profile.source).chain(&entry.profile.draft)).cloned());
        let Listing { modified_ms, aliases, .. } = &self.args.listing;
        let entries = self.entries.values().map(|known| known.entry.clone()).collect();
        let catalogue = Catalogue { revision: 0, modified_ms: *modified_ms, entries, aliases: aliases.clone() };
        self.args.router.tell(RouterMsg::OwnCatalogue(catalogue));
    }

    fn inspect(&self) -> Inspection {
        let count = |is: fn(&FilesState) -> bool| self.entries.values().filter(|known| is(&known.entry.files)).count() as u64;
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
async fn pull(profile: &ModelProfile, shelf: &Shelf, view: &SharedView, address: &Address<CatalogueMsg>) -> Result<(), RequestError> {
    let missing = shelf.find_missing(profile).await;
    for source in missing.map_err(|panicked| RequestError::Internal { message: format!("the model '{}': {panicked}", profile.id) })? {
        let fetched = shelf.fetch(&source, |node| view.read().may_give(&profile.id, &source, node), |_| {}).await;
        address.tell(CatalogueMsg::RescanNow);
        fetched.map_err(|error| RequestError::Unavailable {
            message: format!("{source} cannot be fetched: {}", chain(&*error)),
            retry_after: Duration::from_secs(60),
        })?;
    }
    let (model, shelf) = (profile.clone(), shelf.clone());
    let opened = tokio::task::spawn_blocking(move || shelf.open(&model).map(drop)).await;
    let why = match opened {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(OpenError::Refused(why) | OpenError::Unreadable(why))) => why,
        Err(panicked) => panicked.to_string(),
    };
    let message = format!("the files of the model '{}' are here, but cannot be served: {why}; delete them and pull it again", profile.id);
    Err(RequestError::Unservable { message })
}

/// Opens a model's files, if they are here, whose fingerprint is this. Blocks.
fn look_at(profile: &ModelProfile, shelf: &Shelf, print: Fingerprint) -> Look {
    if !shelf.missing(profile).is_empty() {
        return Look::Seen(FilesState::Absent, print);
    }
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let opened = shelf.open(profile)?;
        if let (narrow @ 1.., matrices) = opened.too_narrow() {
            warn!(model = %profile.id, quant = profile.quant.map(tracing::field::display), narrow, matrices,
                "rows of some matrices are no multiple of 256: those are held in q8_0, or as the files have them, and take more memory than the quant says");
        }
        Ok(shelf.told_of(profile, opened, print)?.0)
    }));
    match opened.unwrap_or_else(|_| Err(OpenError::Refused("reading them panicked".into()))) {
        Ok(facts) => Look::Seen(FilesState::Present(facts), print),
        Err(OpenError::Refused(reason)) => Look::Seen(FilesState::Refused(reason), print),
        Err(OpenError::Unreadable(why)) => Look::Unreadable(why, print),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use plexus_types::ModelSource;
    use tokio::runtime::Builder;

    use super::*;
    use crate::router::view::ClusterView;
    use crate::router::view::tests::facts;
    use crate::shelf;

    /// What a catalogue is started with that lists one model and speaks to nobody.
    fn args(source: ModelSource, store: &std::path::Path) -> CatalogueArgs {
        CatalogueArgs {
            address: Address::new(),
            listing: Listing { models: vec![ModelProfile::new("m".parse().unwrap(), source)], ..Listing::default() },
            router: Address::new(),
            evictor: Address::new(),
            shelf: shelf::tests::alone(facts("a").id, store),
            view: SharedView::new(ClusterView::new("test".into(), facts("a"))),
        }
    }

    #[test]
    fn a_disk_that_does_not_answer_costs_one_thread_however_often_it_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let silent = folder.path().join("silent.gguf");
        // Whoever opens a pipe waits until somebody writes into it.
        assert!(Command::new("mkfifo").arg(&silent).status().unwrap().success());
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(2).build().unwrap();
        runtime.block_on(async {
            let args = args(ModelSource::Path(silent.clone()), folder.path());
            let address = args.address.clone();
            let (_actor, _task) = Actor::spawn(None, CatalogueActor, args).await.unwrap();
            (0..10).for_each(|_| address.tell(CatalogueMsg::RescanNow));
            let said = address.call(CatalogueMsg::Inspect, Duration::from_secs(10)).await.unwrap();
            assert_eq!(said.state, "looking");
            let other_work = tokio::time::timeout(Duration::from_secs(10), tokio::task::spawn_blocking(|| ())).await;
            assert!(other_work.is_ok(), "no thread is left for anything else that blocks");
        });
        runtime.shutdown_background();
    }
}
