//! Texts to vectors over the cluster: in groups, a few at a time, each by a replica that makes progress.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use plexus_api::service::{Embedded, Place};
use plexus_types::{EmbedInput, EmbedRequest, Embeddings, FilesDigest, ModelId, ReplicaId, ReplicaState, RequestError, RequestId, Retry};
use tokio::time::Instant;
use tracing::{Span, info};

use super::seek::Picked;
use super::{ACTOR_DEADLINE, ClusterInference};
use crate::messages::Question;
use crate::metrics;
use crate::router::RouteRequest;

/// Embedding a group, however many others take turns with it: whether anything goes on is looked at meanwhile.
pub(crate) const EMBED_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// How often a replica that embeds is asked how far it is.
const LOOK: Duration = Duration::from_secs(5);
/// A replica that has computed nothing for so long hangs. A piece takes some seconds on a slow processor, and is computed between the steps of others.
const STALLED: Duration = Duration::from_secs(300);
/// Texts embedded at one replica in one go, so that the vectors fit a message between nodes.
const GROUP_TEXTS: usize = 128;
/// Bytes of these texts; a longer one goes alone.
const GROUP_BYTES: usize = 1 << 20;
/// Tokens that an encoder's vocabulary sets around a text: one at either end.
const SET_AROUND: usize = 2;
/// Groups at a replica: while one is computed the next is already there, and keeps the request's place.
const GROUPS_PER_REPLICA: usize = 2;
/// How long a request goes on asking for a place, or for a replica to come back, once some of its texts are embedded.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a request is begun anew because the model's files were replaced under it.
const BEGUN_ANEW_MAX: u32 = 3;
/// How often it asks.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The texts of a request in groups, as their indices: the longest first, since one that is too long is among these, and since texts of about one
/// length are computed together.
fn groups(inputs: &[EmbedInput]) -> VecDeque<Vec<usize>> {
    let bytes = |index: &usize| match &inputs[*index] {
        EmbedInput::Text(text) => text.len(),
        EmbedInput::Tokens(ids) => size_of_val(ids.as_slice()),
    };
    let mut order: Vec<usize> = (0..inputs.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(bytes(index)));
    let mut groups: VecDeque<Vec<usize>> = VecDeque::new();
    let mut room = 0;
    for index in order {
        match groups.back_mut() {
            Some(group) if group.len() < GROUP_TEXTS && bytes(&index) <= room => {
                group.push(index);
                room -= bytes(&index);
            }
            _ => {
                groups.push_back(vec![index]);
                room = GROUP_BYTES.saturating_sub(bytes(&index));
            }
        }
    }
    groups
}

/// Some texts of a request, whose places in it they know.
fn part(request: &EmbedRequest, group: &[usize]) -> EmbedRequest {
    EmbedRequest {
        model: request.model.clone(),
        inputs: group.iter().map(|index| request.inputs[*index].clone()).collect(),
        dimensions: request.dimensions,
        principal: request.principal,
        indices: if request.inputs.len() > 1 { group.iter().map(|index| *index as u32).collect() } else { Vec::new() },
    }
}

/// Those texts of a request that may have more than `max_tokens`, the longest first; nothing if none may. But for those that
/// are set around a text, a token has a byte at least, or else the replica refuses the text.
pub(super) fn longer_than(request: &EmbedRequest, max_tokens: u32) -> Option<EmbedRequest> {
    let may_be = |index: &usize| match &request.inputs[*index] {
        EmbedInput::Text(text) => text.len() + SET_AROUND > max_tokens as usize,
        EmbedInput::Tokens(ids) => ids.len() > max_tokens as usize,
    };
    let long: Vec<usize> = groups(&request.inputs).into_iter().flatten().filter(may_be).collect();
    (!long.is_empty()).then(|| part(request, &long))
}

/// What is known of how far a replica is.
#[derive(Debug)]
struct Watch {
    pieces: Option<u64>,
    /// When it was first seen so far, or last heard to be so far at first.
    since: Instant,
}

impl Watch {
    fn new(now: Instant) -> Self {
        Self { pieces: None, since: now }
    }

    /// It has computed so many pieces since it was loaded, or does not say. True as long as it may be at work.
    fn on_look(&mut self, pieces: Option<u64>, now: Instant) -> bool {
        if pieces.is_some() && pieces != self.pieces {
            *self = Self { pieces, since: now };
        }
        now.saturating_duration_since(self.since) < STALLED
    }
}

/// What was done so far of a request.
#[derive(Debug, Default)]
struct Begun {
    sent: Mutex<Sent>,
    /// The vectors of some texts are here.
    some_done: AtomicBool,
}

#[derive(Debug, Default)]
struct Sent {
    to: BTreeSet<ReplicaId>,
    /// What the first of them was loaded from of which that is known: vectors by other files cannot be compared with its vectors.
    files: Option<FilesDigest>,
}

impl Begun {
    /// A part of the request is to be sent to a replica that was loaded from `files`. False if others were sent to one of other files: then it must
    /// not be.
    fn on_sent(&self, replica: &ReplicaId, files: Option<FilesDigest>) -> bool {
        let mut sent = self.sent();
        let agrees = sent.files.zip(files).is_none_or(|(known, files)| known == files);
        if agrees {
            sent.files = sent.files.or(files);
            sent.to.insert(replica.clone());
        }
        agrees
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClusterInference {
    /// The vectors of all texts of a request, all by the same files: where these are replaced and gone before the end, it is begun anew by the others.
    pub(super) async fn embed_all(&self, id: RequestId, request: EmbedRequest) -> Result<Embedded, RequestError> {
        let mut begun_anew = 0;
        loop {
            let begun = Begun::default();
            match self.embed_once(id, &request, &begun).await {
                Err(error) if begun_anew < BEGUN_ANEW_MAX && self.is_replaced(&request.model, &begun) => {
                    info!(model = %request.model, %error, "the model's files were replaced while it embedded: it begins anew");
                    begun_anew += 1;
                }
                embedded => return embedded,
            }
        }
    }

    /// Are the files gone by which a request was begun, and others there?
    fn is_replaced(&self, model: &ModelId, begun: &Begun) -> bool {
        let files = begun.sent().files;
        files.is_some_and(|files| self.view.read().is_replaced(model, files))
    }

    /// The vectors of all texts of a request, by the files of the first replica that is asked.
    async fn embed_once(&self, id: RequestId, request: &EmbedRequest, begun: &Begun) -> Result<Embedded, RequestError> {
        let mut left = groups(&request.inputs);
        let mut vectors = vec![Vec::new(); request.inputs.len()];
        let (mut prompt_tokens, mut cold_start, mut first) = (0, false, None);
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < self.groups_at_once(&request.model)
                && let Some(group) = left.pop_front()
            {
                let part = part(request, &group);
                under_way.push(async move { (group, self.embed_group(id, part, begun).await) });
            }
            let Some((group, embedded)) = under_way.next().await else { break };
            let (embeddings, picked) = embedded?;
            prompt_tokens += embeddings.prompt_tokens;
            cold_start |= picked.cold_start;
            group.into_iter().zip(embeddings.vectors).for_each(|(index, vector)| vectors[index] = vector);
            first.get_or_insert(picked);
            begun.some_done.store(true, Ordering::Relaxed);
        }
        let Picked { replica, route, .. } = first.ok_or_else(|| RequestError::invalid("input", "there is nothing to embed"))?;
        let node = replica.node.name;
        if cold_start {
            Span::current().record("cold_start", true);
            metrics::on_cold_start(request.model.as_str(), node.as_str());
        }
        Ok(Embedded { embeddings: Embeddings { vectors, prompt_tokens }, node, route })
    }

    /// So many groups of a request are sent out before the first of them has come back.
    fn groups_at_once(&self, model: &ModelId) -> usize {
        let loaded = self.states(model, &Place::default()).into_iter().filter(|(_, state)| *state == ReplicaState::Loaded).count();
        loaded.max(1) * GROUPS_PER_REPLICA
    }

    /// The vectors of some texts, and whose they are; a replica that is lost, hangs or has no place is passed over for the next. If some texts of
    /// the request are done, work would be lost with it: then all of them are asked again for a while.
    async fn embed_group(&self, id: RequestId, part: EmbedRequest, begun: &Begun) -> Result<(Embeddings, Picked), RequestError> {
        let mut since = None;
        loop {
            match self.embed_anywhere(id, &part, begun).await {
                Err(error)
                    if error.retry() != Retry::Never
                        && begun.some_done.load(Ordering::Relaxed)
                        && !self.is_replaced(&part.model, begun) =>
                {
                    if since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                        return Err(error);
                    }
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                embedded => return embedded,
            }
        }
    }

    /// As [`Self::embed_group`], in one search.
    async fn embed_anywhere(&self, id: RequestId, part: &EmbedRequest, begun: &Begun) -> Result<(Embeddings, Picked), RequestError> {
        let mut seeking = self.seeking(Some(id), RouteRequest::embed(part));
        loop {
            let (sent_to, files) = {
                let sent = begun.sent();
                (sent.to.iter().cloned().collect(), sent.files)
            };
            seeking.has_begun(sent_to, files);
            let picked = self.pick(&mut seeking).await?;
            if !begun.on_sent(&picked.replica, picked.files) {
                continue; // another part was quicker, and had it sent to other files: now those are known
            }
            match self.embed_at(&picked.replica, id, part).await {
                Ok(_) if self.view.read().with_other_files(&part.model, picked.files).contains(&picked.replica) => {
                    let message = format!("the files of the model '{}' were replaced while it embedded", part.model);
                    seeking.on_failed(picked.replica, RequestError::Lost { message })?;
                }
                Ok(embeddings) => return Ok((embeddings, picked)),
                Err(error) => seeking.on_failed(picked.replica, error)?,
            }
        }
    }

    async fn embed_at(&self, replica: &ReplicaId, id: RequestId, part: &EmbedRequest) -> Result<Embeddings, RequestError> {
        let at = format!("{} on {}", replica.device, replica.node.name);
        let lost = |why: &str| RequestError::Lost { message: format!("the model '{}' at {at} {why}", replica.model) };
        let question = Question::Embed(id, replica.device, Box::new(part.clone()));
        let asked = async {
            let embedded: Result<Result<Embeddings, RequestError>, _> = self.nodes.ask(&replica.node, question, EMBED_DEADLINE).await;
            embedded.map_err(|error| lost(&format!("was lost while it embedded: {error}"))).flatten()
        };
        let stalled = || lost(&format!("has computed nothing for {} s", STALLED.as_secs()));
        let embedded = self.watched(replica, asked).await.ok_or_else(stalled).flatten()?;
        let expected = (part.inputs.len(), embedded.vectors.len());
        if expected.0 == expected.1 { Ok(embedded) } else { Err(lost(&format!("gave {} vectors for {} texts", expected.1, expected.0))) }
    }

    /// What `asked` comes to, as long as the replica makes progress; else nothing.
    async fn watched<T>(&self, replica: &ReplicaId, asked: impl Future<Output = T>) -> Option<T> {
        let mut asked = pin!(asked);
        let mut watch = Watch::new(Instant::now());
        loop {
            let look = async {
                tokio::time::sleep(LOOK).await;
                self.pieces(replica).await
            };
            tokio::select! {
                answer = &mut asked => return Some(answer),
                pieces = look => if !watch.on_look(pieces, Instant::now()) {
                    return None;
                },
            }
        }
    }

    /// How many pieces of texts a replica has embedded, whosever they were.
    async fn pieces(&self, replica: &ReplicaId) -> Option<u64> {
        let question = Question::EmbeddedPieces(replica.model.clone(), replica.device);
        self.nodes.ask(&replica.node, question, ACTOR_DEADLINE).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: usize) -> EmbedInput {
        EmbedInput::Text("a".repeat(bytes))
    }

    #[test]
    fn groups_hold_each_text_once_the_longest_first_and_are_bounded() {
        let inputs: Vec<EmbedInput> = (0..2048).map(|i| text(1 + i * 7 % 501)).collect();
        let groups = groups(&inputs);
        assert_eq!(groups.len(), 16);
        let order: Vec<usize> = groups.into_iter().flatten().collect();
        let lens: Vec<usize> = order.iter().map(|index| 1 + index * 7 % 501).collect();
        assert!(lens.is_sorted_by(|a, b| a >= b));
        let mut each = order;
        each.sort_unstable();
        assert_eq!(each, (0..2048).collect::<Vec<_>>());
        let long = super::groups(&[text(9), text(GROUP_BYTES - 4), EmbedInput::Tokens(vec![7]), text(GROUP_BYTES + 1)]);
        assert_eq!(long, [vec![3], vec![1], vec![0, 2]]);
        assert!(super::groups(&[]).is_empty());
    }

    #[test]
    fn the_texts_of_a_group_keep_the_places_that_the_client_knows() {
        let inputs = vec![text(1), text(2), text(3)];
        let request = EmbedRequest { model: "m".parse().unwrap(), inputs, dimensions: None, principal: Some(4), indices: Vec::new() };
        let one = part(&request, &[2, 0]);
        assert_eq!((one.inputs, one.indices, one.principal), (vec![text(3), text(1)], vec![2, 0], Some(4)));
        let alone = EmbedRequest { inputs: vec![text(1)], ..request };
        assert_eq!(part(&alone, &[0]), alone, "there is nothing to tell it from");
    }

    #[test]
    fn the_parts_of_a_request_agree_on_the_files_that_are_known_first() {
        let replica = |node: &str| ReplicaId {
            node: format!("{node}#1").parse().unwrap(),
            device: "cpu-0".parse().unwrap(),
            model: "m".parse().unwrap(),
        };
        let digest = |n: u8| Some(FilesDigest::new([n; 16]));
        let begun = Begun::default();
        assert!(begun.on_sent(&replica("a"), None), "nothing is known to differ");
        assert!(begun.on_sent(&replica("b"), digest(1)) && begun.on_sent(&replica("c"), digest(1)));
        assert!(!begun.on_sent(&replica("d"), digest(2)));
        let sent = begun.sent();
        assert_eq!((sent.to.len(), sent.files), (3, digest(1)), "and it is not sent there");
    }

    #[test]
    fn texts_that_may_be_too_long_are_told_from_others_by_their_bytes() {
        let inputs = vec![text(8), text(9), EmbedInput::Tokens(vec![1; 10]), EmbedInput::Tokens(vec![1; 11]), text(12)];
        let request = EmbedRequest { model: "m".parse().unwrap(), inputs, dimensions: None, principal: None, indices: Vec::new() };
        assert_eq!(longer_than(&request, 10).unwrap().indices, [3, 4, 1], "the longest first");
        assert_eq!(longer_than(&request, 44), None);
    }

    #[test]
    fn a_replica_hangs_once_it_has_computed_nothing_for_long_however_often_it_answers() {
        let begun = Instant::now();
        let mut watch = Watch::new(begun);
        for looks in 1..1000 {
            assert!(watch.on_look(Some(u64::from(looks) / 2), begun + LOOK * looks), "it is slow and goes on");
        }
        for silent in [None, Some(499)] {
            let mut watch = Watch { pieces: Some(499), since: begun };
            let looks = (1..).find(|looks| !watch.on_look(silent, begun + LOOK * *looks));
            assert_eq!(looks.map(u64::from), Some(STALLED.as_secs() / LOOK.as_secs()));
        }
    }
}
