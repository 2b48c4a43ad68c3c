//! A cluster that does what a test tells it, and the means to ask it over HTTP.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use futures::StreamExt;
use futures::stream;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use plexus_api::service::{
    DeviceHealth, Embedded, Generation, Health, HealthStatus, Inference, LoadModel, LoadedModel, NodeActors, Place, Rejected,
    ReplicaHealth, ReplicaVitals,
};
use plexus_api::{ApiConfig, Cpu, Gpu, Host, LookAtHost, VersionInfo, router};
use plexus_types::{
    ActorReport, Bytes, Chat, ClusterReport, ConsideredPlace, Cost, Delta, DeviceReport, EmbedRequest, Embeddings, Explanation, FilesFetch,
    FilesFrom, FinishReason, GenerateEvent, GenerateRequest, Limits, ModelId, ModelKind, ModelLocation, ModelReport, ModelState, NodeFacts,
    NodeName, NodeReport, NodeState, NodeSummary, Prompt, Quantization, ReplicaLoad, ReplicaReport, ReplicaState, RequestError, RequestId,
    Timing, TokenLogprob, TokenLogprobs, Usage,
};
use tower::ServiceExt;

/// The id of every generation.
pub(crate) const ID: RequestId = RequestId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

/// What a generation does next.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Say(GenerateEvent),
    Wait(Duration),
    /// No more events, and no end either.
    Hang,
}

/// A cluster that follows a script.
pub(crate) struct Scripted {
    pub(crate) script: Vec<Step>,
    pub(crate) health: HealthStatus,
    pub(crate) test_hooks: bool,
    /// Has it models that are called as paths of the API end?
    pub(crate) names_of_paths: bool,
    /// What it was asked.
    pub(crate) asked: Mutex<Vec<GenerateRequest>>,
    /// What it was asked to embed.
    pub(crate) embedded: Mutex<Vec<EmbedRequest>>,
    /// What it was asked to load.
    pub(crate) loads: Mutex<Vec<LoadModel>>,
    /// Generations whose events nobody can take any more.
    pub(crate) dropped: Arc<AtomicUsize>,
}

impl Scripted {
    pub(crate) fn new(script: Vec<Step>) -> Arc<Self> {
        Arc::new(Self {
            script,
            health: HealthStatus::Ok,
            test_hooks: false,
            names_of_paths: false,
            asked: Mutex::default(),
            embedded: Mutex::default(),
            loads: Mutex::default(),
            dropped: Arc::default(),
        })
    }

    /// Says `texts` and ends for `reason`.
    pub(crate) fn saying(texts: &[&str], reason: FinishReason) -> Arc<Self> {
        Self::new(answer(texts, reason).into_iter().map(Step::Say).collect())
    }

    /// Fails at once.
    pub(crate) fn failing(error: RequestError) -> Arc<Self> {
        Self::new(vec![Step::Say(GenerateEvent::Failed(error))])
    }

    /// The only request it was asked.
    pub(crate) fn request(&self) -> GenerateRequest {
        let asked = self.asked.lock().unwrap();
        assert_eq!(asked.len(), 1);
        asked[0].clone()
    }

    /// The conversation of the only request it was asked.
    pub(crate) fn chat(&self) -> Chat {
        match self.request().prompt {
            Prompt::Chat(chat) => chat,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }
}

/// The first event of a good generation.
pub(crate) fn started() -> GenerateEvent {
    GenerateEvent::Started {
        prompt_tokens: 12,
        node: "n1".parse().unwrap(),
        route: "it goes to n1/cpu-0 (n1/cpu-0: first token expected in 5 ms)".to_owned(),
        cold_start: false,
    }
}

pub(crate) fn text(text: &str) -> GenerateEvent {
    GenerateEvent::Tokens { deltas: Delta::of_text(text.to_owned()), tokens: 1, logprobs: Vec::new() }
}

pub(crate) fn said(delta: Delta) -> GenerateEvent {
    GenerateEvent::Tokens { deltas: vec![delta], tokens: 1, logprobs: Vec::new() }
}

/// A thought, a word, and two calls, one of them without arguments.
pub(crate) fn calling() -> Vec<Step> {
    let call = |index, name: &str| Delta::ToolCall { index, id: format!("call_{index}"), name: name.to_owned() };
    let arguments = |index, json: &str| Delta::ToolArguments { index, json: json.to_owned() };
    let deltas = [
        Delta::Reasoning("I should ".to_owned()),
        Delta::Reasoning("look.".to_owned()),
        Delta::Text("One moment.".to_owned()),
        call(0, "get_weather"),
        arguments(0, r#"{"city": "#),
        arguments(0, r#""Oslo", "days": 1.0}"#),
        call(1, "get_time"),
    ];
    let usage = Usage { prompt_tokens: 12, cached_tokens: 8, completion_tokens: 9, timing: Timing::default() };
    let mut events = vec![started()];
    events.extend(deltas.into_iter().map(said));
    events.push(GenerateEvent::Done { reason: FinishReason::ToolCalls, usage });
    events.into_iter().map(Step::Say).collect()
}

/// Two tokens with log probabilities, the second half a character.
pub(crate) fn measured() -> Vec<Step> {
    let token = |id, bytes: &[u8], logprob| TokenLogprob { id, bytes: bytes.to_vec(), control: false, logprob };
    let tokens = |text: &str, drawn, other| GenerateEvent::Tokens {
        deltas: Delta::of_text(text.to_owned()),
        tokens: 1,
        logprobs: vec![TokenLogprobs { token: drawn, top: vec![other] }],
    };
    let usage = Usage { prompt_tokens: 12, cached_tokens: 8, completion_tokens: 2, timing: Timing::default() };
    let events = [
        started(),
        tokens("é", token(7, "é".as_bytes(), -0.25), token(8, b"e", -1.5)),
        tokens("", token(9, &[0xE2, 0x82], -0.5), token(8, b"e", -1.0)),
        GenerateEvent::Done { reason: FinishReason::Length, usage },
    ];
    events.into_iter().map(Step::Say).collect()
}

fn answer(texts: &[&str], reason: FinishReason) -> Vec<GenerateEvent> {
    let timing = Timing { queue: Duration::from_micros(250), prefill: Duration::from_millis(20), decode: Duration::from_micros(12_345) };
    let usage = Usage { prompt_tokens: 12, cached_tokens: 8, completion_tokens: texts.len() as u32 + 1, timing };
    let mut events = vec![started()];
    events.extend(texts.iter().map(|more| text(more)));
    events.push(GenerateEvent::Done { reason, usage });
    events
}

struct CountDrop(Arc<AtomicUsize>);
impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Inference for Scripted {
    async fn generate(&self, request: GenerateRequest) -> Generation {
        self.asked.lock().unwrap().push(request);
        let guard = CountDrop(Arc::clone(&self.dropped));
        let events = stream::iter(self.script.clone()).filter_map(move |step| {
            let _held = &guard;
            async move {
                match step {
                    Step::Say(event) => Some(event),
                    Step::Wait(time) => {
                        tokio::time::sleep(time).await;
                        None
                    }
                    Step::Hang => std::future::pending().await,
                }
            }
        });
        Generation::new(ID, events)
    }

    async fn count_tokens(&self, request: GenerateRequest) -> Result<u32, RequestError> {
        if request.model.as_str() != "pip" {
            return Err(RequestError::model_not_found(&request.model));
        }
        self.asked.lock().unwrap().push(request);
        Ok(42)
    }

    async fn embed(&self, _id: RequestId, request: EmbedRequest) -> Result<Embedded, RequestError> {
        if let Some(Step::Say(GenerateEvent::Failed(error))) = self.script.first() {
            return Err(error.clone());
        }
        let vectors: Vec<_> = (0..request.inputs.len()).map(|index| vec![0.6, -0.8, index as f32]).collect();
        self.embedded.lock().unwrap().push(request);
        let embeddings = Embeddings { prompt_tokens: 5 * vectors.len() as u32, vectors };
        Ok(Embedded {
            embeddings,
            node: "n1".parse().unwrap(),
            route: "it goes to n1/cpu-0 (n1/cpu-0: first token expected in 5 ms)".to_owned(),
        })
    }

    async fn models(&self) -> Vec<ModelReport> {
        let location = |node: &str, device: &str, state| ModelLocation {
            node: node.to_owned(),
            device: device.parse().unwrap(),
            state,
            memory: Bytes::mib(700),
            pinned: device == "cuda-1",
        };
        let model = |id: &str, locations: Vec<ModelLocation>| ModelReport {
            id: id.parse().unwrap(),
            loaded: locations.iter().any(|location| location.state == ReplicaState::Loaded),
            context_length: 32_768,
            created: 1_760_000_000,
            kind: if id == "shelf" { ModelKind::Embed } else { ModelKind::Generate },
            state: match &locations[..] {
                [] => ModelState::Unloaded,
                [one] => match &one.state {
                    ReplicaState::Failed(why) => ModelState::Failed(why.clone()),
                    _ => ModelState::Loading(0.4),
                },
                _ => ModelState::Loaded,
            },
            tools: id.starts_with("Qwen"),
            reasoning: id.starts_with("Qwen"),
            capabilities: Vec::new(),
            limit: Limits::default(),
            cost: Cost::default(),
            alias_of: None,
            quant: None,
            feasible_on: vec!["n1".to_owned(), "n2".to_owned()],
            locations,
            fetch: None,
            warning: None,
        };
        let qwen = ModelReport {
            capabilities: vec!["vision".to_owned(), "tools".to_owned()],
            limit: Limits { output: Some(1024), ..Limits::default() },
            cost: Cost { input: Some(0.0), output: Some(0.4), ..Cost::default() },
            quant: Some(Quantization::Q8_0),
            ..model(
                "Qwen/Qwen3-0.6B:Q8_0",
                vec![location("n1", "cpu-0", ReplicaState::Loading), location("n2", "cuda-0", ReplicaState::Loaded)],
            )
        };
        let called_so = ["load", "pip/endpoint"].map(|id| model(id, vec![]));
        let mut models = vec![
            ModelReport { id: "fast".parse().unwrap(), alias_of: Some(qwen.id.clone()), ..qwen.clone() },
            qwen,
            model("pip", vec![location("n1", "cpu-0", ReplicaState::Failed("a reason".to_owned()))]),
            model("shelf", vec![]),
            ModelReport {
                context_length: 0,
                fetch: Some(FilesFetch {
                    done: Bytes(80),
                    total: Bytes(100),
                    per_second: None,
                    from: FilesFrom::Hub("http://hub".to_owned()),
                    failure: Some("http://hub/x: status 503".to_owned()),
                }),
                ..model("slow", vec![location("n1", "cpu-0", ReplicaState::Loading)])
            },
        ];
        models.extend(called_so.into_iter().filter(|_| self.names_of_paths));
        models
    }

    async fn cluster(&self) -> ClusterReport {
        let facts = NodeFacts {
            id: "n1#1760000000000".parse().unwrap(),
            version: "0.1.0".to_owned(),
            link: "127.0.0.1:4001".parse().unwrap(),
            http: "127.0.0.1:31313".parse().unwrap(),
            gossip: "127.0.0.1:4000".parse().unwrap(),
        };
        let summary = NodeSummary { revision: 3, draining: false, devices: vec![device()], replicas: vec![replica("cpu-0", 0)] };
        let node =
            NodeReport { facts: facts.clone(), state: NodeState::Up, this_node: true, age: Duration::ZERO, round_trip: None, summary };
        let facts = NodeFacts { id: "n2#1760000000001".parse().unwrap(), http: "127.0.0.1:31323".parse().unwrap(), ..facts };
        let summary = NodeSummary { replicas: vec![replica("cuda-0", 2)], ..NodeSummary::default() };
        let (age, round_trip) = (Duration::from_millis(250), Some(Duration::from_millis(1)));
        let other = NodeReport { facts, state: NodeState::Up, this_node: false, age, round_trip, summary };
        ClusterReport { cluster: "home".to_owned(), nodes: vec![node, other], conflicts: Vec::new(), fetches: Vec::new() }
    }

    async fn actors(&self) -> Vec<NodeActors> {
        let actor = ActorReport {
            path: "node/router".to_owned(),
            state: "routing".to_owned(),
            restarts: 1,
            waiting: 0,
            stalled: Duration::ZERO,
            last_error: Some("killed".to_owned()),
            counters: [("requests".to_owned(), 7)].into(),
        };
        vec![
            NodeActors { node: "n1".parse().unwrap(), actors: vec![actor], error: None },
            NodeActors { node: "n2".parse().unwrap(), actors: vec![], error: Some("no answer in time".to_owned()) },
        ]
    }

    async fn load_model(&self, load: LoadModel) -> Result<LoadedModel, RequestError> {
        let model = load.model.clone();
        if model.as_str() == "none" {
            return Err(RequestError::model_not_found(&model));
        }
        self.loads.lock().unwrap().push(load.clone());
        if model.as_str() == "pip" {
            let message = "the model 'pip' cannot be loaded now (n1/cpu-0: 3.00 GiB needed, 1.00 GiB free)".to_owned();
            return Err(RequestError::Unavailable { message, retry_after: Duration::from_secs(60) });
        }
        let considered = ConsideredPlace { place: "n1/cpu-0".to_owned(), verdict: "fits, 1.00 GiB free".to_owned(), chosen: true };
        let decision = "it is loaded on n1/cpu-0".to_owned();
        let explanation = Explanation { model, decision, considered: vec![considered], age: Duration::ZERO };
        Ok(LoadedModel { loaded: load.wait, explanation })
    }

    async fn pull_model(&self, model: &ModelId, node: Option<&NodeName>) -> Result<(), RequestError> {
        match node {
            Some(node) => Err(RequestError::invalid("node", format!("there is no link to a node '{node}'"))),
            None if model.as_str() == "shelf" => Ok(()),
            None => Err(RequestError::model_not_found(model)),
        }
    }

    async fn unload_model(&self, model: &ModelId, place: &Place) -> Result<Vec<String>, RequestError> {
        match (model.as_str(), &place.node) {
            ("shelf", node) if node.as_ref().is_none_or(|node| node.as_str() == "n1") => Ok(vec!["n1/cpu-0".to_owned()]),
            _ => Err(RequestError::invalid("model", format!("the model '{model}' is not loaded there"))),
        }
    }

    async fn pin_model(&self, model: &ModelId, node: Option<&NodeName>, pinned: bool) -> Result<Vec<String>, RequestError> {
        let place = Place { node: node.cloned(), device: None };
        if pinned { self.unload_model(model, &place).await } else { Ok(Vec::new()) }
    }

    async fn explain(&self, subject: &str) -> Option<Explanation> {
        if ![format!("chatcmpl-{ID}").as_str(), "shelf", "Qwen/Qwen3-0.6B:Q8_0"].contains(&subject) {
            return None;
        }
        let load = LoadModel { model: "shelf".parse().unwrap(), place: Place::default(), wait: true };
        let explanation = self.load_model(load).await.ok()?.explanation;
        Some(Explanation { age: Duration::from_millis(1500), ..explanation })
    }

    async fn kill_actor(&self, path: &str) -> Option<bool> {
        self.test_hooks.then_some(path == "node/router")
    }

    async fn health(&self) -> Health {
        Health {
            status: self.health,
            node: "n1".parse().unwrap(),
            nodes_up: 2,
            models_loaded: 1,
            streams: 0,
            uptime_s: 5,
            activation: plexus_api::service::Activation::default(),
            devices: vec![DeviceHealth { report: device(), utilization_pct: Some(12.5) }],
            replicas: vec![
                ReplicaHealth {
                    report: replica("cuda-0", 2),
                    vitals: Some(ReplicaVitals {
                        rejected: Rejected { full: 3, key_limit: 1, late: 2, too_long: 4, not_loaded: 0 },
                        kv_budget_mb: Some(1792.0),
                        kv_available_mb: Some(1234.5),
                    }),
                },
                ReplicaHealth { report: replica("cpu-0", 0), vitals: None },
            ],
        }
    }

    async fn gpus(&self) -> Vec<Gpu> {
        let known =
            Gpu { index: 0, name: Some("A GPU".to_owned()), vram_total_mb: Some(81_559), compute_capability: Some("9.0".to_owned()) };
        vec![known, Gpu { index: 1, name: None, vram_total_mb: None, compute_capability: None }]
    }
}

fn device() -> DeviceReport {
    DeviceReport {
        id: "cpu-0".parse().unwrap(),
        name: "A processor".to_owned(),
        memory_total: Bytes::mib(1024),
        memory_used: Bytes::mib(700),
    }
}

/// A replica of the largest model: loaded on the GPU, being loaded on the processor.
fn replica(device: &str, running: u32) -> ReplicaReport {
    let loaded = device == "cuda-0";
    ReplicaReport {
        model: "Qwen/Qwen3-0.6B:Q8_0".parse().unwrap(),
        device: device.parse().unwrap(),
        state: if loaded { ReplicaState::Loaded } else { ReplicaState::Loading },
        context_length: if loaded { 32_768 } else { 0 },
        memory: Bytes::mib(700),
        load: ReplicaLoad { running, running_max: 8, waiting: 0, waiting_max: 64, ..ReplicaLoad::default() },
        kind: ModelKind::Generate,
        residency_priority: 100,
        pinned: false,
        idle: None,
        load_time: loaded.then_some(Duration::from_secs(4)),
        progress: if loaded { 1.0 } else { 0.4 },
        prefixes: None,
        digest: None,
        tools: false,
        reasoning: false,
    }
}

pub(crate) fn config() -> ApiConfig {
    let version = VersionInfo {
        version: "0.1.0".to_owned(),
        git_sha: "0123456789abcdef".to_owned(),
        build_time: "2026-01-02T03:04:05Z".to_owned(),
        rustc: "1.95.0".to_owned(),
        profile: "debug".to_owned(),
        features: vec!["cuda".to_owned()],
    };
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
    let host = Host {
        hostname: Some("box".to_owned()),
        os: Some("Linux (A distribution 1)".to_owned()),
        kernel: Some("6.1.0".to_owned()),
        architecture: Some("x86_64".to_owned()),
        cpu: Cpu { name: Some("A processor".to_owned()), threads: Some(8), instruction_sets: words(&["portable", "avx2"]) },
        memory_total_mb: Some(16_000),
        memory_available_mb: Some(9_000),
        cuda_version: Some("12.8".to_owned()),
        driver_version: None,
        cuda_unavailable_reason: None,
        families: words(&["llama", "bert"]),
        weight_formats: words(&["F32", "Q8_0"]),
    };
    let host = LookAtHost::new(move || host.clone());
    ApiConfig { host, now: || SystemTime::UNIX_EPOCH + Duration::from_secs(1_770_000_000), ..ApiConfig::new(version) }
}

pub(crate) fn app(cluster: &Arc<Scripted>) -> Router {
    router(Arc::clone(cluster) as Arc<dyn Inference>, config())
}

pub(crate) fn post(path: &str, json: impl Into<String>) -> Request<Body> {
    let request = Request::post(path).header("host", "127.0.0.1:31313").header("content-type", "application/json");
    request.body(Body::from(json.into())).unwrap()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "localhost:31313").body(Body::empty()).unwrap()
}

pub(crate) async fn send(cluster: &Arc<Scripted>, request: Request<Body>) -> Response {
    app(cluster).oneshot(request).await.unwrap()
}

/// An answer, read to its end.
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answered {
    pub(crate) async fn of(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Self { status: parts.status, headers: parts.headers, body: String::from_utf8(body).unwrap() }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Status, headers and bytes, with the request's id fixed where it was drawn at random.
    pub(crate) fn shown(&self) -> String {
        let mut headers: Vec<_> = self.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        headers.sort();
        let shown = format!("{}\n{}\n\n{}", self.status, headers.join("\n"), self.body);
        let id = ["x-request-id", "request-id"].iter().find_map(|name| self.headers.get(*name)).unwrap().to_str().unwrap();
        assert!(id.len() == 36 && id.starts_with("req_"), "{id}");
        if id == format!("req_{ID}") { shown } else { shown.replace(id, "req_(random)") }
    }
}

pub(crate) async fn ask(cluster: &Arc<Scripted>, request: Request<Body>) -> Answered {
    Answered::of(send(cluster, request).await).await
}
