//! Three hosts with links that can be cut. Skipped, with the reason, where network namespaces are not permitted.

use plexus_tests::lab::Lab;
use plexus_tests::process::new_secret;
use plexus_tests::view::whole;
use plexus_tests::{Home, Node, eventually};
use plexus_types::NodeState;

const FRANCE: &str = "What is the capital of France?";

/// A node on host `host` with a home of its own: hosts share nothing but the secret that a person gave them.
async fn node_on(lab: &Lab, host: u8, secret: &str, seed: Option<&Node>, model: Option<&str>) -> Node {
    let command = lab.inside(host);
    let mut builder = Home::new()
        .node(&format!("h{host}"))
        .env("PLEXUS_CLUSTER__SECRET", secret)
        .inside(&command.each_ref().map(String::as_str), lab.address(host));
    if let Some(seed) = seed {
        builder = builder.seed(seed.addresses().gossip);
    }
    if let Some(model) = model {
        builder = builder.model_from_folder(model);
    }
    builder.start().await
}

async fn answers(node: &Node, model: &str) {
    eventually(&format!("{} answers with {model}", node.name()), async || {
        let reply = node.client().ask(model, FRANCE).await.map_err(|error| error.to_string())?;
        if reply.status == 200 && reply.chat_text().contains("Paris") { Ok(()) } else { Err(reply.text) }
    })
    .await;
}

#[tokio::test]
async fn a_cut_link_is_seen_goes_unnoticed_by_clients_and_heals() {
    let lab = match Lab::build(3) {
        Ok(lab) => lab,
        Err(reason) => {
            eprintln!("SKIPPED: no network namespaces here: {reason}");
            return;
        }
    };
    let secret = new_secret();
    let h1 = node_on(&lab, 1, &secret, None, None).await;
    let h2 = node_on(&lab, 2, &secret, Some(&h1), None).await;
    let h3 = node_on(&lab, 3, &secret, Some(&h1), Some("other")).await;
    let all = [&h1, &h2, &h3];
    whole(&all).await;
    for node in all {
        node.offers("pip").await;
        node.offers("other").await;
        answers(node, "pip").await;
        answers(node, "other").await;
    }

    // One link: gossip still arrives through the third host, so the other end lives but cannot be reached.
    lab.cut(1, 2);
    h1.sees("h2", Some(NodeState::Unreachable)).await;
    h2.sees("h1", Some(NodeState::Unreachable)).await;
    h3.sees_up(&["h1", "h2", "h3"]).await;
    for node in all {
        answers(node, "pip").await;
        answers(node, "other").await;
    }
    lab.heal();
    whole(&all).await;

    // A whole host: each side serves what it has.
    lab.isolate(3);
    h3.sees_up(&["h3"]).await;
    h1.sees_up(&["h1", "h2"]).await;
    h2.sees_up(&["h1", "h2"]).await;
    answers(&h1, "pip").await;
    answers(&h2, "pip").await;
    answers(&h3, "other").await;
    lab.heal();
    whole(&all).await;
    for node in all {
        node.offers("pip").await;
        node.offers("other").await;
        answers(node, "other").await;
    }
}
