//! What actors believe that were restarted while the world went on: what they were told meanwhile was lost.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use plexus_actors::args::{NodeArgs, RestartBudget};
use plexus_actors::node::RunningNode;
use plexus_actors::secret::ClusterSecret;
use plexus_api::service::{Inference, LoadModel, Place};
use plexus_engine::scripted::Script;
use plexus_types::{GenerateEvent, NodeState, ReplicaState};

use crate::harness::{DEADLINE, answer, ask, counter, loaded, node, replica_state, until, until_counter};

const ROUTER: &str = "node/router";
const EVICTOR: &str = "node/evictor";
const MODEL: &str = "node/model/pip@cpu-0";

/// Actors may end as often as a test likes.
fn patient(args: &mut NodeArgs) {
    args.restarts = RestartBudget { restarts_max: 10_000, within: DEADLINE };
}

/// Keeps an actor from running while `work` is done: whatever it is told meanwhile is lost.
async fn without<T>(node: &RunningNode, path: &str, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    for _ in 0..4 {
        node.inference().kill_actor(path).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        while state(node, path).await == "restarting" {
            tokio::time::sleep(Duration::from_millis(2)).await; // each time it takes twice as long
        }
    }
    loop {
        node.inference().kill_actor(path).await;
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
}

async fn state(node: &RunningNode, path: &str) -> String {
    let nodes = node.inference().actors().await;
    nodes[0].actors.iter().find(|actor| actor.path == path).map_or_else(String::new, |actor| actor.state.clone())
}

async fn until_back(node: &RunningNode, path: &str) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while state(node, path).await == "restarting" {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "{path} does not come back");
}

fn pip() -> plexus_types::ModelId {
    "pip".parse().unwrap()
}

#[tokio::test]
async fn a_request_whose_question_is_lost_with_the_router_is_answered() {
    let node = loaded(Script::default()).await;
    let asked = ask(&node, 5).await;
    assert_eq!(node.inference().kill_actor(ROUTER).await, Some(true)); // its question waits in the mailbox
    let (_, end) = answer(asked).await;
    assert!(matches!(end, GenerateEvent::Done { .. }), "{end:?}");
}

#[tokio::test]
async fn a_model_that_goes_while_the_router_is_away_is_loaded_again_for_whoever_asks() {
    let node = node(Script::default(), patient).await;
    until(&node, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    let gone = without(&node, ROUTER, node.inference().unload_model(&pip(), &Place::default())).await;
    assert_eq!(gone.unwrap().len(), 1);
    until_back(&node, ROUTER).await;
    until(&node, "the replica is no longer shown", |node| replica_state(node).is_none()).await;
    let (_, end) = answer(ask(&node, 3).await).await;
    assert!(matches!(end, GenerateEvent::Done { .. }), "{end:?}");
}

#[tokio::test]
async fn a_model_that_is_loaded_while_the_router_is_away_is_known_to_be_loaded() {
    let node = node(Script { load_time: Duration::from_millis(300), ..Script::default() }, |args| {
        patient(args);
        args.catalogue.models[0].preload = false;
    })
    .await;
    until(&node, "the device is open", |node| !node.view().read().own().devices.is_empty()).await;
    let load = LoadModel { model: pip(), place: Place::default(), wait: false };
    node.inference().load_model(load).await.unwrap();
    until_counter(&node, "node/device/cpu-0", "loads", 1).await;
    without(&node, ROUTER, until_state(&node, MODEL, "loaded")).await;
    until_back(&node, ROUTER).await;
    until(&node, "the model is known to be loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
}

async fn until_state(node: &RunningNode, path: &str, expected: &str) {
    while state(node, path).await != expected {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn an_evictor_that_is_restarted_during_a_load_knows_what_it_holds_and_lets_it_be_unloaded() {
    let node = node(Script { load_time: Duration::from_millis(700), ..Script::default() }, patient).await;
    until_counter(&node, "node/device/cpu-0", "loads", 1).await;
    assert_eq!(node.inference().kill_actor(EVICTOR).await, Some(true));
    until_counter(&node, EVICTOR, "restarts", 1).await;
    until_counter(&node, EVICTOR, "residents", 1).await;
    assert_eq!(state(&node, MODEL).await, "loading", "what it was promised counts before it is loaded");
    until(&node, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    assert!(counter(&node, EVICTOR, "bytes_promised").await > 0);
    assert_eq!(node.inference().pin_model(&pip(), None, true).await.unwrap().len(), 1);
    assert_eq!(node.inference().pin_model(&pip(), None, false).await.unwrap().len(), 1);
    assert_eq!(node.inference().unload_model(&pip(), &Place::default()).await.unwrap().len(), 1);
    until_counter(&node, EVICTOR, "residents", 0).await;
    until_counter(&node, "node/device/cpu-0", "held_models", 0).await;
}

#[tokio::test]
async fn a_model_that_is_killed_while_it_is_loaded_is_loaded_once_more_and_nothing_is_left_behind() {
    let node = node(Script { load_time: Duration::from_millis(300), ..Script::default() }, patient).await;
    until_counter(&node, "node/device/cpu-0", "loads", 1).await;
    assert_eq!(node.inference().kill_actor(MODEL).await, Some(true));
    until_counter(&node, "node/device/cpu-0", "loads", 2).await;
    until(&node, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    until_counter(&node, "node/device/cpu-0", "held_models", 1).await;
    until_counter(&node, EVICTOR, "residents", 1).await;
    assert_eq!(counter(&node, EVICTOR, "waiting_for_room").await, 0);
    assert!(matches!(answer(ask(&node, 3).await).await.1, GenerateEvent::Done { .. }));
}

/// Two nodes that know each other: the first has no device, the second serves the model.
async fn pair(script: Script) -> (RunningNode, RunningNode) {
    let (ingress, gossip, secret) = lone_ingress().await;
    let serving = serving(script, gossip, secret).await;
    until(&ingress, "the model is offered", |node| n_loaded(node) == 1).await;
    (ingress, serving)
}

async fn lone_ingress() -> (RunningNode, std::net::SocketAddr, ClusterSecret) {
    let secret = ClusterSecret::generate();
    let (mut gossip, own) = (None, secret.clone());
    let ingress = node(Script::default(), |args| {
        patient(args);
        args.cluster = "pair".into();
        args.secret = own;
        args.devices.clear();
        args.catalogue.models.clear();
        gossip = Some(args.facts.gossip);
    });
    let ingress = ingress.await;
    (ingress, gossip.unwrap(), secret)
}

async fn serving(script: Script, seed: std::net::SocketAddr, secret: ClusterSecret) -> RunningNode {
    node(script, |args| {
        patient(args);
        args.cluster = "pair".into();
        args.secret = secret;
        args.facts.id.name = "serving".parse().unwrap();
        args.seeds = vec![seed.to_string()];
        args.drain_timeout = Duration::ZERO;
    })
    .await
}

fn n_loaded(node: &RunningNode) -> usize {
    let view = node.view().read();
    view.candidates(&pip()).filter(|one| one.report.state == ReplicaState::Loaded && one.node == NodeState::Up).count()
}

#[tokio::test]
async fn a_node_that_comes_while_the_router_is_away_is_used() {
    let (ingress, gossip, secret) = lone_ingress().await;
    let came = async {
        let serving = serving(Script::default(), gossip, secret).await;
        until(&serving, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
        until(&serving, "it has a link", |node| node.peers().list().len() == 1).await;
        until(&ingress, "so has the other", |node| node.peers().list().len() == 1).await;
        tokio::time::sleep(Duration::from_millis(100)).await; // what they say to each other is under way
        serving
    };
    let _serving = without(&ingress, ROUTER, came).await;
    until_back(&ingress, ROUTER).await;
    until(&ingress, "the model is offered", |node| n_loaded(node) == 1).await;
    until(&ingress, "it is listed", |node| node.view().read().catalogue().models.contains_key(&pip())).await;
    assert!(matches!(answer(ask(&ingress, 3).await).await.1, GenerateEvent::Done { .. }));
}

#[tokio::test]
async fn a_node_that_goes_while_the_router_is_away_is_forgotten() {
    let (ingress, serving) = pair(Script::default()).await;
    let gone = async {
        serving.drain().await;
        until(&ingress, "the link is gone", |node| node.peers().list().is_empty()).await;
        tokio::time::sleep(Duration::from_millis(500)).await; // gossip says so, too
    };
    without(&ingress, ROUTER, gone).await;
    until_back(&ingress, ROUTER).await;
    until(&ingress, "the node is no longer shown", |node| node.view().read().nodes().count() == 1).await;
    assert!(ingress.view().read().catalogue().models.is_empty());
}

#[tokio::test]
async fn a_stream_whose_link_is_lost_and_found_while_the_router_is_away_goes_on_at_once() {
    let (ingress, serving) = pair(Script { step_time: Duration::from_millis(20), ..Script::default() }).await;
    let mut stream = ask(&ingress, 100).await;
    for _ in 0..3 {
        stream.next().await.unwrap();
    }
    let flaps = async {
        assert_eq!(serving.inference().kill_actor("node/link").await, Some(true));
        until(&ingress, "the link is lost", |node| node.peers().list().is_empty()).await;
        until(&ingress, "the link is back", |node| node.peers().list().len() == 1).await;
        until(&serving, "on both sides", |node| node.peers().list().len() == 1).await;
    };
    without(&ingress, ROUTER, flaps).await;
    let (_, end) = tokio::time::timeout(DEADLINE / 2, answer(stream)).await.expect("nobody waits for the silence to last too long");
    assert!(matches!(end, GenerateEvent::Done { .. }), "{end:?}");
}
