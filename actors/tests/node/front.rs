//! The listener: how many connections it has open, and what those hear that come while the node stops.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use plexus_actors::node::RunningNode;

use super::*;

async fn address(node: &RunningNode) -> SocketAddr {
    node.inference().cluster().await.nodes[0].facts.http
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

async fn send(connection: &mut TcpStream, request: &str, body: &str) {
    let head = format!("{request} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
}

/// What a connection says until it ends.
async fn all(mut connection: TcpStream) -> String {
    let mut text = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, connection.read_to_end(&mut text)).await;
    ended.expect("the connection ends").unwrap();
    String::from_utf8(text).unwrap().to_lowercase()
}

/// The first piece of an answer, on a connection that stays.
async fn piece(connection: &mut TcpStream) -> String {
    let mut buffer = vec![0; 4096];
    let n = tokio::time::timeout(DEADLINE, connection.read(&mut buffer)).await.expect("an answer comes").unwrap();
    String::from_utf8_lossy(&buffer[..n]).to_lowercase()
}

async fn asked(address: SocketAddr, request: &str, body: &str) -> String {
    let mut connection = connect(address).await;
    send(&mut connection, request, body).await;
    all(connection).await
}

#[tokio::test]
async fn who_comes_while_a_node_stops_hears_so_at_once() {
    let script = Script { step_time: Duration::from_millis(20), ..Script::default() };
    let node = node(script, |args| args.drain_timeout = DEADLINE).await;
    until(&node, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    let address = address(&node).await;
    let mut idle = connect(address).await;
    send(&mut idle, "GET /health", "").await;
    assert!(piece(&mut idle).await.starts_with("http/1.1 200"));
    let early = connect(address).await;
    let running = tokio::spawn(answer(ask(&node, 300).await));
    until_counter(&node, "node/model/pip@cpu-0", "running", 1).await;
    until_counter(&node, "node/http", "connections", 2).await;

    let view = node.view().clone();
    let stopping = tokio::spawn(node.drain());
    while !view.read().own().draining {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(all(idle).await, "", "a connection without a request ends");
    let health = asked(address, "GET /health", "").await;
    assert!(health.starts_with("http/1.1 503") && health.contains("\"draining\"") && health.contains("connection: close"), "{health}");
    let body = r#"{"model": "pip", "prompt": "a"}"#;
    let refused = asked(address, "POST /v1/completions", body).await;
    assert!(refused.starts_with("http/1.1 503") && refused.contains("retry-after: 5"), "{refused}");
    assert!(refused.contains("the node 'alone' is stopping, and no other node can serve the model 'pip'"), "{refused}");
    let mut early = early;
    send(&mut early, "GET /v1/models", "").await;
    assert!(all(early).await.starts_with("http/1.1 200"), "who had connected before and asked nothing yet is answered once");

    assert!(!running.is_finished(), "all of that while a stream was running");
    assert!(matches!(running.await.unwrap().1, GenerateEvent::Done { .. }));
    assert_eq!(stopping.await.unwrap(), 0);
}

#[tokio::test]
async fn who_comes_late_to_a_node_that_stops_is_refused_and_what_runs_ends() {
    // CX-51
    let gate = Gate::default();
    let node = node(fault(FaultKind::Hang(gate.clone())), |args| args.drain_timeout = Duration::from_secs(6)).await;
    until(&node, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    let address = address(&node).await;
    let running = tokio::spawn(answer(ask(&node, 20).await));
    until_counter(&node, "node/model/pip@cpu-0", "running", 1).await;
    let stopping = tokio::spawn(node.drain());
    let late = "the node 'alone' is stopping and takes nothing more; ask another node";
    let refused = loop {
        let refused = asked(address, "POST /v1/completions", r#"{"model": "pip", "prompt": "a"}"#).await;
        assert!(refused.starts_with("http/1.1 503") && refused.contains("retry-after: 5"), "{refused}");
        if !refused.contains("no other node can serve") {
            break refused;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(refused.contains(late), "{refused}");
    assert!(!running.is_finished(), "it is waited for");
    gate.open();
    assert!(matches!(running.await.unwrap().1, GenerateEvent::Done { .. }));
    assert_eq!(stopping.await.unwrap(), 0);
}

#[tokio::test]
async fn connections_of_the_listeners_former_life_count_against_the_limit() {
    let node = node(Script::default(), |args| args.http.connections_max = 1).await;
    let address = address(&node).await;
    let mut first = connect(address).await;
    send(&mut first, "GET /version", "").await;
    assert!(piece(&mut first).await.starts_with("http/1.1 200"));
    assert_eq!(node.inference().kill_actor("node/http").await, Some(true));
    until_counter(&node, "node/http", "restarts", 1).await;
    let mut second = connect(address).await;
    send(&mut second, "GET /version", "").await;
    let early = tokio::time::timeout(Duration::from_millis(300), second.peek(&mut [0])).await;
    assert!(early.is_err(), "it was answered beside the first");
    assert_eq!(counter(&node, "node/http", "connections").await, 1);
    drop(first);
    assert!(piece(&mut second).await.starts_with("http/1.1 200"));
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed_in_time() {
    let node = node(Script::default(), |args| args.http.header_timeout = Duration::from_millis(200)).await;
    assert_eq!(all(connect(address(&node).await).await).await, "");
    until_counter(&node, "node/http", "connections", 0).await;
}
