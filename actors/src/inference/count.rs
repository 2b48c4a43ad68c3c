//! How many tokens a prompt or a text has, for those who ask and for what is longer than a model that is not loaded: a replica says it, or else the vocabulary
//! in the model's files. Nothing is loaded for it where a node has those.

use std::collections::BTreeSet;

use plexus_types::{EmbedRequest, GenerateRequest, ModelId, NodeId, Prompt, ReplicaState, RequestError};

use super::seek::Picked;
use super::{COUNT_DEADLINE, ClusterInference, embed};
use crate::messages::{Answer, Question};
use crate::peers::PeerError;
use crate::prefix::PromptDigests;
use crate::router::RouteRequest;
use crate::router::catalogue::MergedModel;

impl ClusterInference {
    /// The tokens of a prompt, for a model by its own name. What no node has is fetched and loaded first, as for an answer.
    pub(super) async fn counted(&self, request: GenerateRequest) -> Result<u32, RequestError> {
        if let Some(counted) = self.counted_without_loading(&request).await {
            return counted;
        }
        let question = RouteRequest {
            model: request.model.clone(),
            prompt: PromptDigests::default(),
            tried: Vec::new(),
            begun: Vec::new(),
            files: None,
        };
        let mut seeking = self.seeking(None, question);
        loop {
            let Picked { replica, .. } = self.pick(&mut seeking).await?;
            match self.asked(&replica.node, Question::CountTokens(Box::new(request.clone()))).await {
                Err(error) if is_of_the_node(&error) => seeking.on_failed(replica, error)?,
                counted => return counted,
            }
        }
    }

    /// Refuses what is longer than the model can hold, at best, and would be loaded for it first. Errors of the model's template come before its load
    /// as well.
    pub(super) async fn check_length(&self, request: &GenerateRequest) -> Result<(), RequestError> {
        let Some(max_tokens) = self.context_if_cold(&request.model) else { return Ok(()) };
        let prompt_tokens = match &request.prompt {
            Prompt::Tokens(ids) => ids.len() as u32,
            prompt if prompt.text_len() < u64::from(max_tokens) => return Ok(()), // no token has less than a byte
            _ => match self.counted_without_loading(request).await {
                Some(counted) => counted?,
                None => return Ok(()),
            },
        };
        if prompt_tokens >= max_tokens { Err(RequestError::ContextLength { prompt_tokens, max_tokens }) } else { Ok(()) }
    }

    /// As [`MergedModel::context_length`], if no replica of the model is loaded or is being loaded: one that is there refuses what is too long.
    fn context_if_cold(&self, model: &ModelId) -> Option<u32> {
        let view = self.view.read();
        if view.candidates(model).any(|one| matches!(one.report.state, ReplicaState::Loaded | ReplicaState::Loading)) {
            return None;
        }
        view.catalogue().models.get(model)?.context_length()
    }

    /// Refuses texts to embed that are longer than the model can hold, at best, and would have it loaded first.
    pub(super) async fn check_texts(&self, request: &EmbedRequest) -> Result<(), RequestError> {
        let Some(max_tokens) = self.context_if_cold(&request.model) else { return Ok(()) };
        let Some(doubtful) = embed::longer_than(request, max_tokens) else { return Ok(()) };
        let question = || Question::CheckTexts(Box::new(doubtful.clone()), max_tokens);
        self.first_that_knows(&request.model, question).await.unwrap_or(Ok(()))
    }

    async fn counted_without_loading(&self, request: &GenerateRequest) -> Option<Result<u32, RequestError>> {
        self.first_that_knows(&request.model, || Question::CountTokens(Box::new(request.clone()))).await
    }

    /// What the first of [`Self::who_counts`] says that says something of the request, rather than of itself.
    async fn first_that_knows<T>(&self, model: &ModelId, question: impl Fn() -> Question) -> Option<Result<T, RequestError>>
    where
        Result<T, RequestError>: TryFrom<Answer, Error = PeerError>,
    {
        for node in self.who_counts(model) {
            let said = self.asked(&node, question()).await;
            if !said.as_ref().is_err_and(is_of_the_node) {
                return Some(said);
            }
        }
        None
    }

    /// Those that can count without loading: who has a replica before who only has the files, this node before others.
    fn who_counts(&self, model: &ModelId) -> Vec<NodeId> {
        let (view, me) = (self.view.read(), self.nodes.me());
        let loaded = view.candidates(model).filter(|one| one.report.state == ReplicaState::Loaded).map(|one| one.id.node);
        let holders = view.catalogue().models.get(model).into_iter().flat_map(MergedModel::holders);
        let holders = holders.filter(|node| *node == me || view.is_up(node)).cloned();
        let mut nodes: Vec<(bool, bool, NodeId)> = loaded.map(|node| (false, node != *me, node)).collect();
        nodes.extend(holders.map(|node| (true, node != *me, node)));
        nodes.sort();
        let mut seen = BTreeSet::new();
        nodes.into_iter().map(|(.., node)| node).filter(|node| seen.insert(node.clone())).collect()
    }

    async fn asked<T>(&self, node: &NodeId, question: Question) -> Result<T, RequestError>
    where
        Result<T, RequestError>: TryFrom<Answer, Error = PeerError>,
    {
        let lost = |error| RequestError::Lost { message: format!("the node '{}' did not answer: {error}", node.name) };
        self.nodes.ask::<Result<T, RequestError>>(node, question, COUNT_DEADLINE).await.map_err(lost).flatten()
    }
}

/// Says that another may know, rather than what is wrong with the request.
pub(crate) fn is_of_the_node(error: &RequestError) -> bool {
    matches!(error, RequestError::Lost { .. } | RequestError::Unavailable { .. })
}
