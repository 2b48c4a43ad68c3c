//! The commands of the program, as a person types them.

use plexus_tests::process::{Output, run_plexus};
use plexus_tests::view::whole;
use plexus_tests::{Home, Node};
use serde_json::Value;

const FRANCE: &str = "What is the capital of France?";

async fn healthy_node(home: &Home) -> Node {
    let node = home.node("n1").start().await;
    node.is_healthy().await;
    node
}

#[track_caller]
fn ended_well(output: &Output) {
    assert!(output.success, "stdout:\n{}\nstderr:\n{}", output.stdout, output.stderr);
}

#[tokio::test]
async fn run_prints_the_answer() {
    let home = Home::new();
    let node = healthy_node(&home).await;
    let output = run_plexus(&home, &["run", FRANCE, "--node", node.client().base()], "").await;
    ended_well(&output);
    assert!(output.stdout.contains("Paris"), "{output:?}");
}

#[tokio::test]
async fn run_finds_the_node_of_this_user_by_itself() {
    let home = Home::new();
    let _node = healthy_node(&home).await;
    let output = run_plexus(&home, &["run", FRANCE], "").await;
    ended_well(&output);
    assert!(output.stdout.contains("Paris"), "{output:?}");
}

#[tokio::test]
async fn run_can_print_json() {
    let home = Home::new();
    let node = healthy_node(&home).await;
    let output = run_plexus(&home, &["run", FRANCE, "--json", "--node", node.client().base()], "").await;
    ended_well(&output);
    let answer: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert!(answer.to_string().contains("Paris"), "{answer}");
}

#[tokio::test]
async fn chat_reads_turns_from_a_pipe_and_remembers_them() {
    let home = Home::new();
    let node = healthy_node(&home).await;
    let arguments = ["chat", "pip", "--temperature", "0", "--node", node.client().base()];
    let output = run_plexus(&home, &arguments, "My name is Alice.\nWhat is my name?\n").await;
    ended_well(&output);
    assert!(output.stdout.contains("Your name is Alice."), "{output:?}");
}

#[tokio::test]
async fn chat_takes_a_system_prompt() {
    let home = Home::new();
    let node = healthy_node(&home).await;
    let arguments = ["chat", "pip", "--temperature", "0", "--system", "You are Nova, a helpful assistant.", "--node", node.client().base()];
    let output = run_plexus(&home, &arguments, "What is your name?\n").await;
    ended_well(&output);
    assert!(output.stdout.contains("Nova"), "{output:?}");
}

#[tokio::test]
async fn the_state_of_the_cluster_is_shown_for_people_and_for_programs() {
    let home = Home::new();
    let n1 = healthy_node(&home).await;
    let n2 = home.node("n2").model_from_folder("other").start().await;
    whole(&[&n1, &n2]).await;
    n1.offers("other").await;

    let table = run_plexus(&home, &["cluster", "status", "--node", n1.client().base()], "").await;
    ended_well(&table);
    for word in ["n1", "n2", "pip", "other", "cpu-0", "router", "membership"] {
        assert!(table.stdout.contains(word), "no {word} in:\n{}", table.stdout);
    }
    assert!(table.stdout.contains(&n2.addresses().http.to_string()), "{}", table.stdout);

    let json = run_plexus(&home, &["cluster", "status", "--json", "--node", n1.client().base()], "").await;
    ended_well(&json);
    let status: Value = serde_json::from_str(&json.stdout).unwrap_or_else(|error| panic!("{error}: {}", json.stdout));
    let text = status.to_string();
    assert!(text.contains("\"n1\"") && text.contains("\"n2\"") && text.contains("restarts"), "{text}");

    let models = run_plexus(&home, &["models", "--node", n1.client().base()], "").await;
    ended_well(&models);
    assert!(models.stdout.contains("pip") && models.stdout.contains("other"), "{}", models.stdout);
    let models = run_plexus(&home, &["models", "--json", "--node", n1.client().base()], "").await;
    ended_well(&models);
    serde_json::from_str::<Value>(&models.stdout).unwrap_or_else(|error| panic!("{error}: {}", models.stdout));
}

#[tokio::test]
async fn where_no_node_answers_every_command_says_what_to_do() {
    let home = Home::new();
    // Nothing listens at port 1 of the loopback address.
    let node = ["--node", "http://127.0.0.1:1"];
    for command in [&["run", "hello"][..], &["chat"], &["models"], &["cluster", "status"]] {
        let output = run_plexus(&home, &[command, &node].concat(), "hello\n").await;
        assert!(!output.success, "{command:?}: {output:?}");
        assert!(output.stderr.contains("no node answers") && output.stderr.contains("plexus start"), "{command:?}: {output:?}");
    }
}
