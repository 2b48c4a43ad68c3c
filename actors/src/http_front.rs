//! The HTTP listener of this node.
//!
//! Supervised by [`crate::node`]; supervises nobody. The listening socket is bound before the actor starts and kept over its restarts, so that the
//! port is never lost. A restart leaves the connections at work alone: they are tasks of their own, and count on.
//!
//! While the node stops, clients still come: those that look for it anew, and whoever watches its health. Each is answered, to one request, after
//! which its connection ends; what becomes of the request is [`crate::inference`]'s to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::middleware::map_response;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::address::Address;
use crate::args::HttpConfig;
use crate::inspect::Inspection;

/// Pause after a failed accept: when file descriptors run out, a loop without it would take a whole processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// HTTP/2 connections that do not answer a ping within twice this time are cut off.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Most requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;

/// What the actor is started with.
#[derive(Debug, Clone)]
pub struct HttpFrontArgs {
    /// Its own address.
    pub address: Address<HttpFrontMsg>,
    /// The listening socket.
    pub listener: Arc<std::net::TcpListener>,
    /// What answers.
    pub router: axum::Router,
    /// Limits.
    pub config: HttpConfig,
    /// A connection whose client takes nothing of what it is sent for this long is cut.
    pub client_timeout: Duration,
    /// What its lives have in common.
    doors: Doors,
}

impl HttpFrontArgs {
    /// For an actor at `address`, that answers with `router` whoever comes to `listener`.
    pub fn new(
        address: Address<HttpFrontMsg>,
        listener: Arc<std::net::TcpListener>,
        router: axum::Router,
        config: HttpConfig,
        client_timeout: Duration,
    ) -> Self {
        let doors = Doors {
            places: Arc::new(Semaphore::new(config.connections_max)),
            counters: Arc::default(),
            draining: watch::Sender::new(false),
        };
        Self { address, listener, router, config, client_timeout, doors }
    }
}

/// The connections of all lives of the actor.
#[derive(Debug, Clone)]
struct Doors {
    /// One for each connection that may be open.
    places: Arc<Semaphore>,
    counters: Arc<Counters>,
    /// True once the node stops.
    draining: watch::Sender<bool>,
}

/// What the actor is told.
#[derive(Debug, RactorMessage)]
pub enum HttpFrontMsg {
    /// The node stops: end each connection after the request at hand, and those that come after their first.
    Drain,
    /// Say how you are.
    Inspect(RpcReplyPort<Inspection>),
}

/// The actor: see the module.
#[derive(Debug)]
pub struct HttpFrontActor;

/// What the actor holds. Dropping it ends the accept loop.
#[derive(Debug)]
pub struct HttpFrontState {
    args: HttpFrontArgs,
    _accepting: AbortOnDrop,
}

#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    open: AtomicU64,
}

impl Actor for HttpFrontActor {
    type Msg = HttpFrontMsg;
    type State = HttpFrontState;
    type Arguments = HttpFrontArgs;

    async fn pre_start(&self, myself: ActorRef<HttpFrontMsg>, args: HttpFrontArgs) -> Result<HttpFrontState, ActorProcessingErr> {
        args.address.attach(myself);
        let listener = args.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let times = Times { header: args.config.header_timeout, client: args.client_timeout };
        let loop_ = accept_loop(listener, saying_when_it_ends(args.router.clone(), args.doors.draining.clone()), times, args.doors.clone());
        Ok(HttpFrontState { args, _accepting: AbortOnDrop(tokio::spawn(loop_)) })
    }

    async fn handle(
        &self,
        _myself: ActorRef<HttpFrontMsg>,
        message: HttpFrontMsg,
        state: &mut HttpFrontState,
    ) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        match message {
            HttpFrontMsg::Drain => drop(state.args.doors.draining.send_replace(true)),
            HttpFrontMsg::Inspect(reply) => drop(reply.send(state.inspect())),
        }
        Ok(())
    }
}

impl HttpFrontState {
    fn inspect(&self) -> Inspection {
        let Doors { counters, draining, .. } = &self.args.doors;
        let state = if *draining.borrow() { "draining" } else { "listening" };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Inspection::new(state, [("accepted", count(&counters.accepted)), ("connections", count(&counters.open))])
    }
}

/// What a client has time for.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// To send the headers of a request.
    header: Duration,
    /// To take some of what it is sent.
    client: Duration,
}

/// The same answers; while the node stops, each says that its connection ends with it. A quick answer is written before the connection is told to end.
fn saying_when_it_ends(router: axum::Router, draining: watch::Sender<bool>) -> axum::Router {
    router.layer(map_response(move |mut response: Response| {
        if *draining.borrow() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        std::future::ready(response)
    }))
}

async fn accept_loop(listener: TcpListener, router: axum::Router, times: Times, doors: Doors) {
    loop {
        let Ok(place) = doors.places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                doors.counters.accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(socket, router.clone(), times, doors.clone(), place));
            }
            Err(error) => {
                warn!(%error, "no connection accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(socket: TcpStream, router: axum::Router, times: Times, doors: Doors, _place: OwnedSemaphorePermit) {
    let _counted = Open::count(doors.counters);
    if let Err(error) = socket.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY refused");
    }
    if let Err(error) = cut_when_nothing_is_taken(&socket, times.client) {
        debug!(%error, "TCP_USER_TIMEOUT refused");
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Without a timer hyper keeps no deadline at all.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(times.header);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(STREAMS_MAX);
    let (asked, has_asked) = watch::channel(false);
    let service = Asked { answers: TowerToHyperService::new(router), asked };
    let connection = builder.serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silent(has_asked.clone(), times.header) => return,
        () = answered_while_draining(doors.draining.subscribe(), has_asked) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(error = error.to_string(), "connection ended");
    }
}

/// Has the kernel cut a connection that nothing could be sent on for so long, be it that its client does not read, or is gone without a word.
#[cfg(target_os = "linux")]
fn cut_when_nothing_is_taken(socket: &TcpStream, timeout: Duration) -> std::io::Result<()> {
    socket2::SockRef::from(socket).set_tcp_user_timeout(Some(timeout))
}

/// Other systems have no such option: there a connection stays until its client ends it, but its answer does not.
#[cfg(not(target_os = "linux"))]
fn cut_when_nothing_is_taken(_socket: &TcpStream, _timeout: Duration) -> std::io::Result<()> {
    Ok(())
}

/// Waits until a connection may have no further request: the node stops, and it has had one. A connection that has had none yet is given its first
/// one before it is ended, however long the node has been stopping by then: its client would not know why nobody answers.
async fn answered_while_draining(mut draining: watch::Receiver<bool>, mut has_asked: watch::Receiver<bool>) {
    let is_told = draining.wait_for(|draining| *draining).await.is_ok() && has_asked.wait_for(|asked| *asked).await.is_ok();
    if !is_told {
        std::future::pending::<()>().await; // nobody is left who would tell
    }
}

/// Waits until a connection has been there for `timeout` without a first request: until hyper knows which HTTP it speaks, it keeps no deadline.
async fn silent(mut has_asked: watch::Receiver<bool>, timeout: Duration) {
    if tokio::time::timeout(timeout, has_asked.wait_for(|asked| *asked)).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// What answers a connection, and notes that it was asked.
struct Asked {
    answers: TowerToHyperService<axum::Router>,
    asked: watch::Sender<bool>,
}

impl Service<Request<Incoming>> for Asked {
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = <TowerToHyperService<axum::Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.asked.send_replace(true);
        self.answers.call(request)
    }
}

/// Counts a connection while it lives.
struct Open(Arc<Counters>);

impl Open {
    fn count(counters: Arc<Counters>) -> Self {
        counters.open.fetch_add(1, Ordering::Relaxed);
        Self(counters)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
