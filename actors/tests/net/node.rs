//! A node with nothing but its network part, told what to do over standard input.

use std::io::{BufRead, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use plexus_actors::address::Address;
use plexus_actors::gateway::{GatewayActor, GatewayArgs, TokenSinkActor, TokenSinkArgs, Traffic};
use plexus_actors::inbound::{ClusterChange, Inbound, PeerChange};
use plexus_actors::link::{LinkActor, LinkArgs, LinkMsg};
use plexus_actors::membership::{KnownNodes, MembershipActor, MembershipArgs, MembershipMsg, NetTiming};
use plexus_actors::messages::{Answer, Attempt, Notice, Question, StreamNotice};
use plexus_actors::peers::{Peer, PeerError, Peers};
use plexus_actors::secret::ClusterSecret;
use plexus_types::{
    ActorReport, Delta, FinishReason, GenerateRequest, Generation, ModelId, NodeFacts, NodeId, Prompt, RequestId, Sampling, StreamEvent,
    Usage,
};
use ractor::{Actor, ActorRef, Message};
use tokio::task::JoinHandle;

/// Environment variable that makes the test binary a node: its name, its secret, its cluster and its seeds.
pub(crate) const SPEC: &str = "PLEXUS_TEST_NODE";
const DEADLINE: Duration = Duration::from_secs(20);

fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _nobody_listens = writeln!(stdout, "@{line}").and_then(|()| stdout.flush());
}

/// What the rest of a node would do.
struct Rest {
    link: Address<LinkMsg>,
    /// Length of the answer to `Question::Actors`.
    size: AtomicUsize,
    tokens: AtomicU64,
    stream: Mutex<Option<(u32, Instant)>>,
    notices: AtomicU64,
    peers: Peers,
}

#[async_trait]
impl Inbound for Rest {
    async fn answer(&self, _: &NodeId, question: Question) -> Answer {
        match question {
            Question::CountTokens(request) => {
                let Prompt::Text(text) = &request.prompt else { return Answer::CountTokens(Ok(0)) };
                Answer::CountTokens(Ok(text.len() as u32))
            }
            Question::Pull(model) => {
                say(&format!("begins {model}"));
                let _to_the_end = GivesUp(model);
                std::future::pending().await
            }
            Question::Embed(_, _, request) => Answer::Embed(Err(plexus_types::RequestError::model_not_found(&request.model))),
            Question::EmbeddedPieces(..) => Answer::EmbeddedPieces(None),
            Question::Ensure(_)
            | Question::Load(_)
            | Question::Unload(..)
            | Question::Pin(..)
            | Question::CheckTexts(..)
            | Question::Explain(_)
            | Question::Placement(_) => Answer::Done(Ok(())),
            Question::Ping | Question::Actors => Answer::Actors(match self.size.load(Ordering::Relaxed) {
                0 => Vec::new(),
                size => vec![ActorReport {
                    path: String::new(),
                    state: String::new(),
                    restarts: 0,
                    waiting: 0,
                    stalled: Duration::ZERO,
                    last_error: Some("x".repeat(size)),
                    counters: std::collections::BTreeMap::new(),
                }],
            }),
        }
    }

    fn notice(&self, _: &NodeId, _: Notice) {
        self.notices.fetch_add(1, Ordering::Relaxed);
    }

    /// Checks that nothing is missing or out of order, and confirms the end to the sender.
    fn events(&self, from: &NodeId, events: Vec<StreamNotice>) {
        let mut stream = self.stream.lock().expect("no other holder panics");
        for event in events {
            match event.event {
                StreamEvent::Tokens { index, ids, .. } => {
                    let (next, _) = stream.get_or_insert_with(|| (0, Instant::now()));
                    if index != *next {
                        say(&format!("gap at {index}, expected {next}"));
                    }
                    *next = index + ids.len() as u32;
                    self.tokens.fetch_add(ids.len() as u64, Ordering::Relaxed);
                }
                StreamEvent::Done { last_index, .. } => {
                    let received = stream.take().map_or(0, |(next, _)| next);
                    if received != last_index {
                        say(&format!("gap at the end: {received} of {last_index}"));
                    }
                    if let Some(peer) = self.peers.get(from) {
                        let _gone = peer.notify(Notice::Credit { request: event.request, attempt: event.attempt, until: received });
                    }
                }
                _ => {}
            }
        }
    }

    fn cluster_changed(&self, change: ClusterChange) {
        match &change {
            ClusterChange::Up(facts) => say(&format!("gossip up {}", facts.id)),
            ClusterChange::Changed(facts) => say(&format!("gossip changed {}", facts.id)),
            ClusterChange::Gone(id) => say(&format!("gossip gone {id}")),
        }
        self.link.tell(LinkMsg::ClusterChange(change));
    }

    fn peer_changed(&self, change: PeerChange) {
        match change {
            PeerChange::Up(id) => say(&format!("up {id}")),
            PeerChange::Down { id, why } => say(&format!("down {id} {why}")),
            PeerChange::RoundTrip(..) => {}
        }
    }
}

/// Says that a question is worked on no longer.
struct GivesUp(ModelId);

impl Drop for GivesUp {
    fn drop(&mut self) {
        say(&format!("gives up {}", self.0));
    }
}

struct TestNode {
    membership: MembershipArgs,
    link: LinkArgs,
    gateway: GatewayArgs,
    tokens: TokenSinkArgs,
    rest: Arc<Rest>,
    peers: Peers,
    /// A question whose answer is waited for.
    asked: Mutex<Option<JoinHandle<()>>>,
}

/// Runs a node until its standard input ends.
pub(crate) fn run(spec: &str) {
    let _log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .try_init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let node = TestNode::new(spec);
        node.start().await;
        say("ready");
        let (commands, mut to_do) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if commands.send(line).is_err() {
                    return;
                }
            }
        });
        while let Some(command) = to_do.recv().await {
            let answer = node.obey(&command).await;
            say(&format!("= {answer}"));
        }
    });
}

impl TestNode {
    fn new(spec: &str) -> Self {
        let words: Vec<&str> = spec.split(' ').collect();
        let [name, secret, cluster, seeds] = words[..] else { panic!("{spec:?} is not a node") };
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (gossip, link) = (socket.local_addr().expect("bound"), listener.local_addr().expect("bound"));
        say(&format!("bound {gossip} {link}"));
        let generation = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis() as u64;
        let id = NodeId { name: name.parse().expect("a name"), generation: Generation(generation) };
        let facts = NodeFacts { id: id.clone(), version: "test".to_owned(), link, http: link, gossip };
        let secret = ClusterSecret::parse(secret).expect("a secret");
        let (timing, known, peers) = (NetTiming::default(), KnownNodes::default(), Peers::new(id.clone()));
        let address = Address::new();
        let rest = Arc::new(Rest {
            link: address.clone(),
            size: AtomicUsize::new(0),
            tokens: AtomicU64::new(0),
            stream: Mutex::default(),
            notices: AtomicU64::new(0),
            peers: peers.clone(),
        });
        let inbound: Arc<dyn Inbound> = rest.clone();
        Self {
            membership: MembershipArgs {
                address: Address::new(),
                facts,
                cluster: cluster.to_owned(),
                secret: secret.clone(),
                socket: Arc::new(socket),
                seeds: seeds.split(',').filter(|seed| !seed.is_empty()).map(str::to_owned).collect(),
                timing: timing.clone(),
                known: known.clone(),
                inbound: inbound.clone(),
                on_replaced: Arc::new(|by| say(&format!("replaced by {by}"))),
            },
            link: LinkArgs {
                address,
                me: id,
                secret,
                listener: Arc::new(listener),
                timing,
                known,
                peers: peers.clone(),
                inbound: inbound.clone(),
                store: None,
            },
            gateway: GatewayArgs { address: Address::new(), peers: peers.clone(), inbound: inbound.clone(), traffic: Traffic::default() },
            tokens: TokenSinkArgs { address: Address::new(), peers: peers.clone(), inbound, traffic: Traffic::default() },
            rest,
            peers,
            asked: Mutex::default(),
        }
    }

    async fn start(&self) {
        start(GatewayActor, self.gateway.clone(), &self.gateway.address).await;
        start(TokenSinkActor, self.tokens.clone(), &self.tokens.address).await;
        start(LinkActor, self.link.clone(), &self.link.address).await;
        start(MembershipActor, self.membership.clone(), &self.membership.address).await;
    }

    async fn obey(&self, command: &str) -> String {
        let words: Vec<&str> = command.split(' ').collect();
        let number = |at: usize| words[at].parse::<usize>().expect("a number");
        match words[0] {
            "peers" => self.peers.list().iter().map(|peer| format!("{} ", peer.id().name)).collect(),
            "size" => {
                self.rest.size.store(number(1), Ordering::Relaxed);
                "ok".to_owned()
            }
            "forgo" => {
                let asked = self.asked.lock().expect("no other holder panics").take();
                asked.map_or_else(
                    || "error nothing is asked".to_owned(),
                    |asked| {
                        asked.abort();
                        "ok".to_owned()
                    },
                )
            }
            "inspect" => self.inspect().await,
            "restart" => self.restart(words[1]).await,
            "leave" => {
                let told = self.membership.address.call(|reply| MembershipMsg::Leave { reply }, DEADLINE).await;
                let closed = self.link.address.actor().expect("it runs").stop_and_wait(None, None).await;
                say(&format!("left {told:?} {}", closed.is_ok()));
                "ok".to_owned()
            }
            _ => {
                let Some(peer) = self.peers.list().into_iter().find(|peer| peer.id().name.as_str() == words[1]) else {
                    return "error no such peer".to_owned();
                };
                match words[0] {
                    "ask" => ask(&peer).await,
                    "pull" => {
                        let pull = Question::Pull(words[2].parse().expect("a model id"));
                        let asked = tokio::spawn(async move { drop(peer.ask(pull, 30 * DEADLINE).await) });
                        *self.asked.lock().expect("no other holder panics") = Some(asked);
                        "ok".to_owned()
                    }
                    "count" => count(&peer, number(2)).await,
                    "rtt" => round_trips(&peer, number(2)).await,
                    "flood" => flood(&peer, number(2)).await,
                    "stuff" => stuff(&peer),
                    "stream" => self.stream(&peer, number(2), number(3)).await,
                    _ => format!("error {command:?} is no command"),
                }
            }
        }
    }

    async fn inspect(&self) -> String {
        let membership = self.membership.address.call(MembershipMsg::Inspect, DEADLINE).await.expect("it answers");
        let link = self.link.address.call(LinkMsg::Inspect, DEADLINE).await.expect("it answers");
        let all = [membership, link, self.gateway.traffic.inspection(), self.tokens.traffic.inspection()];
        let counters = all.iter().flat_map(|one| &one.counters).map(|(name, count)| format!("{name}={count} "));
        format!("{} {} {}", all[0].state, all[1].state, counters.collect::<String>())
    }

    async fn restart(&self, actor: &str) -> String {
        match actor {
            "gateway" => restart(GatewayActor, self.gateway.clone(), &self.gateway.address).await,
            "tokens" => restart(TokenSinkActor, self.tokens.clone(), &self.tokens.address).await,
            "membership" => restart(MembershipActor, self.membership.clone(), &self.membership.address).await,
            _ => restart(LinkActor, self.link.clone(), &self.link.address).await,
        }
        "ok".to_owned()
    }

    /// Sends so many tokens in batches of so many, and waits until the receiver confirms the last.
    async fn stream(&self, peer: &Peer, tokens: usize, batch: usize) -> String {
        let confirmed = self.rest.notices.load(Ordering::Relaxed);
        let began = Instant::now();
        let (mut congested, mut index) = (0u64, 0);
        let last_index = tokens as u32;
        let notice = |event| vec![StreamNotice { request: RequestId(1), attempt: Attempt(1), event }];
        while index <= last_index {
            let ids: Vec<u32> = (index..last_index.min(index + batch as u32)).collect();
            let next = index + ids.len() as u32;
            let event = if ids.is_empty() {
                StreamEvent::Done { last_index, reason: FinishReason::Stop, usage: Usage::default() }
            } else {
                StreamEvent::Tokens { index, ids, deltas: Delta::of_text("token ".repeat(batch)), logprobs: Vec::new() }
            };
            let end = matches!(event, StreamEvent::Done { .. });
            match peer.send_events(notice(event)) {
                Ok(()) if end => break,
                Ok(()) => index = next,
                Err(PeerError::Congested) => {
                    congested += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) => return format!("error {error:?}"),
            }
            if index % 256 == 0 {
                tokio::task::yield_now().await;
            }
        }
        // Whoever reads slowly is waited for as long as it takes a congested sender to send, and from then on for its last tokens alone.
        let sent = Instant::now();
        while self.rest.notices.load(Ordering::Relaxed) == confirmed {
            if sent.elapsed() > DEADLINE {
                return format!("error the end was not confirmed; sent within {:?}", sent - began);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        format!("{:.0} tokens/s, {congested} times congested", tokens as f64 / began.elapsed().as_secs_f64())
    }
}

async fn start<A>(actor: A, args: A::Arguments, address: &Address<A::Msg>) -> ActorRef<A::Msg>
where
    A: Actor,
    A::Msg: Message,
{
    let (actor, _handle) = Actor::spawn(None, actor, args).await.expect("the actor starts");
    address.attach(actor.clone());
    actor
}

async fn restart<A: Actor>(actor: A, args: A::Arguments, address: &Address<A::Msg>) {
    if let Some(former) = address.actor() {
        former.stop_and_wait(None, None).await.expect("it stops");
    }
    address.detach();
    start(actor, args, address).await;
}

async fn ask(peer: &Peer) -> String {
    match peer.ask(Question::Actors, DEADLINE).await {
        Ok(Answer::Actors(reports)) => format!("answer {}", reports.first().and_then(|one| one.last_error.as_ref()).map_or(0, String::len)),
        Ok(other) => format!("error {other:?}"),
        Err(error) => format!("error {error:?}"),
    }
}

async fn count(peer: &Peer, bytes: usize) -> String {
    let request = GenerateRequest {
        principal: None,
        model: "m".parse().expect("a model id"),
        prompt: Prompt::Text("x".repeat(bytes)),
        sampling: Sampling::default(),
        max_tokens: None,
        stop: Vec::new(),
        constraint: None,
        logprobs: None,
    };
    match peer.ask(Question::CountTokens(Box::new(request)), DEADLINE).await {
        Ok(Answer::CountTokens(Ok(count))) => format!("count {count}"),
        Ok(other) => format!("error {other:?}"),
        Err(error) => format!("error {error:?}"),
    }
}

async fn round_trips(peer: &Peer, rounds: usize) -> String {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let began = Instant::now();
        if let Err(error) = peer.ask(Question::Actors, DEADLINE).await {
            return format!("error {error:?}");
        }
        times.push(began.elapsed().as_micros());
    }
    times.sort_unstable();
    format!("p50 {} us, p99 {} us, max {} us", times[rounds / 2], times[rounds * 99 / 100], times[rounds - 1])
}

/// Asks so many questions at the same time: more than are answered at once, so that some are refused in words.
async fn flood(peer: &Peer, questions: usize) -> String {
    let asked = (0..questions).map(|_| async { peer.ask(Question::Actors, DEADLINE).await });
    let answers = futures::future::join_all(asked).await;
    let good = answers.iter().filter(|answer| answer.is_ok()).count();
    let refused = answers.iter().filter(|answer| matches!(answer, Err(PeerError::Congested))).count();
    if good + refused == questions { format!("{good} answered, {refused} refused") } else { format!("error {answers:?}") }
}

/// Sends large notices until it is refused.
fn stuff(peer: &Peer) -> String {
    let event = StreamEvent::Tokens { index: 0, ids: Vec::new(), deltas: Delta::of_text("x".repeat(50_000)), logprobs: Vec::new() };
    let mut sent = 0;
    loop {
        let events = vec![StreamNotice { request: RequestId(9), attempt: Attempt(1), event: event.clone() }];
        match peer.send_events(events) {
            Ok(()) if sent < 1000 => sent += 1,
            Ok(()) => return format!("all {sent} sent"),
            Err(error) => return format!("{error:?} after {sent} messages, {} bytes in flight", peer.in_flight()),
        }
    }
}
