//! The HTTP listener of this node.
//!
//! Supervised by [`crate::node`]; supervises nobody. The listening socket is bound before the actor starts and kept over its restarts, so that the
//! port is never lost. A restart leaves the connections at work alone: they are tasks of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
}

/// What the actor is told.
#[derive(Debug, RactorMessage)]
pub enum HttpFrontMsg {
    /// Take no more connections, and end each open one after the request at hand.
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
    counters: Arc<Counters>,
    draining: watch::Sender<bool>,
    accepting: AbortOnDrop,
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
        let counters = Arc::new(Counters::default());
        let (draining, drained) = watch::channel(false);
        let loop_ = accept_loop(listener, args.router.clone(), args.config.clone(), counters.clone(), drained);
        Ok(HttpFrontState { args, counters, draining, accepting: AbortOnDrop(tokio::spawn(loop_)) })
    }

    async fn handle(
        &self,
        _myself: ActorRef<HttpFrontMsg>,
        message: HttpFrontMsg,
        state: &mut HttpFrontState,
    ) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        match message {
            HttpFrontMsg::Drain => {
                state.accepting.0.abort();
                state.draining.send_replace(true);
            }
            HttpFrontMsg::Inspect(reply) => drop(reply.send(state.inspect())),
        }
        Ok(())
    }
}

impl HttpFrontState {
    fn inspect(&self) -> Inspection {
        let state = if *self.draining.borrow() { "draining" } else { "listening" };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Inspection::new(state, [("accepted", count(&self.counters.accepted)), ("connections", count(&self.counters.open))])
    }
}

async fn accept_loop(
    listener: TcpListener,
    router: axum::Router,
    config: HttpConfig,
    counters: Arc<Counters>,
    draining: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(config.connections_max));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                counters.accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(socket, router.clone(), config.header_timeout, counters.clone(), place, draining.clone()));
            }
            Err(error) => {
                warn!(%error, "no connection accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(
    socket: TcpStream,
    router: axum::Router,
    header_timeout: Duration,
    counters: Arc<Counters>,
    _place: OwnedSemaphorePermit,
    mut draining: watch::Receiver<bool>,
) {
    let _counted = Open::count(counters);
    if let Err(error) = socket.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY refused");
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Without a timer hyper keeps no deadline at all.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(STREAMS_MAX);
    let connection = builder.serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drained(&mut draining) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(error = error.to_string(), "connection ended");
    }
}

/// Waits until the node stops, or the actor is gone: the connection then serves on alone, as its requests are still answered.
async fn drained(draining: &mut watch::Receiver<bool>) {
    if draining.wait_for(|draining| *draining).await.is_err() {
        std::future::pending::<()>().await;
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
