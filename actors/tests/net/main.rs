//! The network part of a node among real processes: this test binary starts itself once for each node.
//!
//! Ractor's registries belong to the process, so two nodes cannot share one. Times are printed, not judged: what is judged is that things
//! happen at all, within deadlines that only a broken program misses.

mod harness;
mod node;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use harness::{Cluster, report};

/// Not a test of its own: a node, when started as one by the tests below.
#[test]
fn a_node_as_a_process() {
    if let Ok(spec) = std::env::var(node::SPEC) {
        node::run(&spec);
    }
}

#[test]
fn three_nodes_become_a_full_mesh() {
    let mut cluster = Cluster::new();
    let began = Instant::now();
    for name in ["a", "b", "c"] {
        cluster.start(name);
    }
    let last_start = Instant::now();
    cluster.wait_for_mesh(&["a", "b", "c"]);
    report("full mesh of three, after the first start", began.elapsed());
    report("full mesh of three, after the last start", last_start.elapsed());
}

#[test]
fn a_killed_node_is_noticed_and_its_next_life_is_welcome() {
    let mut cluster = Cluster::mesh(&["a", "b", "c"]);
    for round in 1..=3 {
        for victim in ["a", "b", "c"] {
            let others: Vec<&str> = ["a", "b", "c"].into_iter().filter(|name| *name != victim).collect();
            let killed = Instant::now();
            cluster.kill(victim);
            for other in &others {
                cluster.node(other).wait_for(&format!("down {victim}#"));
            }
            report(&format!("kill -9 of {victim} noticed by both others (round {round})"), killed.elapsed());
            let restarted = Instant::now();
            cluster.start(victim);
            cluster.node(victim).wait_for("ready");
            report(&format!("{victim} runs again"), restarted.elapsed());
            cluster.wait_for_mesh(&["a", "b", "c"]);
            report(&format!("{victim} is in the mesh again under its old name (round {round})"), restarted.elapsed());
        }
    }
}

#[test]
fn a_frozen_node_is_cut_off_and_comes_back() {
    let mut cluster = Cluster::mesh(&["a", "b", "c"]);
    for (victim, frozen_for) in [("c", 4), ("a", 4), ("b", 8)] {
        let others: Vec<&str> = ["a", "b", "c"].into_iter().filter(|name| *name != victim).collect();
        let frozen = Instant::now();
        cluster.signal(victim, "STOP");
        for other in &others {
            cluster.node(other).wait_for(&format!("down {victim}#"));
            report(&format!("SIGSTOP of {victim} noticed by {other}"), frozen.elapsed());
        }
        std::thread::sleep(Duration::from_secs(frozen_for).saturating_sub(frozen.elapsed()));
        for other in &others {
            cluster.node(other).forget();
        }
        let thawed = Instant::now();
        cluster.signal(victim, "CONT");
        for other in &others {
            cluster.node(other).wait_for(&format!("up {victim}#"));
            report(&format!("SIGCONT of {victim}, frozen {frozen_for} s: usable for {other}"), thawed.elapsed());
        }
        cluster.wait_for_mesh(&["a", "b", "c"]);
    }
}

#[test]
fn a_short_freeze_cuts_nobody_off() {
    let mut cluster = Cluster::mesh(&["a", "b", "c"]);
    cluster.signal("b", "STOP");
    std::thread::sleep(Duration::from_millis(600));
    cluster.signal("b", "CONT");
    std::thread::sleep(Duration::from_secs(3));
    for name in ["a", "b", "c"] {
        assert_eq!(cluster.node(name).count("down "), 0, "{name} lost a peer");
    }
}

#[test]
fn what_nobody_waits_for_any_more_is_not_worked_on() {
    let mut cluster = Cluster::mesh(&["a", "b"]);
    cluster.node("a").ask("pull b first");
    cluster.node("b").wait_for("begins first");
    cluster.node("a").ask("forgo");
    cluster.node("b").wait_for("gives up first");
    cluster.node("a").ask("pull b second");
    cluster.node("b").wait_for("begins second");
    assert_eq!(cluster.node("b").count("gives up second"), 0);
    cluster.kill("a");
    cluster.node("b").wait_for("gives up second");
}

#[test]
fn a_node_with_another_secret_reaches_nothing() {
    let mut cluster = Cluster::mesh(&["a", "b"]);
    cluster.start_with("x", &"5a".repeat(32), "the-cluster");
    cluster.start_with("y", harness::SECRET, "another-cluster");
    std::thread::sleep(Duration::from_secs(2));
    for name in ["x", "y"] {
        assert_eq!(cluster.node(name).count("up "), 0, "{name} found peers");
    }
    for name in ["a", "b"] {
        assert_eq!(cluster.node(name).count("up "), 1, "{name} found a stranger");
        let status = cluster.node(name).ask("inspect");
        assert!(!status.contains("datagrams_rejected=0 "), "{status}");
    }
}

#[test]
fn silent_connections_do_not_keep_others_out() {
    let mut cluster = Cluster::mesh(&["b", "c"]);
    let address = cluster.node("c").link();
    let mut silent: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(address).expect("the listener takes it")).collect();
    for stream in silent.iter_mut().step_by(2) {
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("the kernel takes it");
    }
    let began = Instant::now();
    cluster.start("a");
    cluster.wait_for_mesh(&["a", "b", "c"]);
    report("a node joins beside 60 silent or foreign connections", began.elapsed());
}

#[test]
fn a_node_that_leaves_is_dropped_at_once() {
    let mut cluster = Cluster::mesh(&["a", "b", "c"]);
    let began = Instant::now();
    cluster.node("b").tell("leave");
    for other in ["a", "c"] {
        cluster.node(other).wait_for("down b#");
    }
    report("a node that leaves is dropped by both others", began.elapsed());
    cluster.node("b").wait_for("left");
    report("and has left", began.elapsed());
}

#[test]
fn a_namesake_takes_over_and_the_older_one_is_told() {
    let mut cluster = Cluster::mesh(&["a", "b"]);
    let older = cluster.rename("b", "older");
    cluster.start("b");
    cluster.node(&older).wait_for("replaced");
    cluster.kill(&older);
    cluster.wait_for_mesh(&["a", "b"]);
}

#[test]
fn large_answers_pass_and_larger_ones_are_refused() {
    let mut cluster = Cluster::mesh(&["a", "b"]);
    for bytes in [0, 100, 61_000, 1_000_000, 10_000_000] {
        cluster.node("b").ask(&format!("size {bytes}"));
        let began = Instant::now();
        assert_eq!(cluster.node("a").ask("ask b"), format!("answer {bytes}"));
        report(&format!("an answer of {bytes} bytes"), began.elapsed());
    }
    cluster.node("b").ask("size 17000000");
    assert_eq!(cluster.node("a").ask("ask b"), "error TooLarge");
    for bytes in [100, 61_000, 10_000_000] {
        assert_eq!(cluster.node("a").ask(&format!("count b {bytes}")), format!("count {bytes}"));
    }
    assert_eq!(cluster.node("a").ask("count b 17000000"), "error TooLarge");
    for name in ["a", "b"] {
        assert_eq!(cluster.node(name).count("down "), 0, "{name} lost a peer");
    }
}

#[test]
fn questions_notices_and_streams_are_quick() {
    let mut cluster = Cluster::mesh(&["a", "b"]);
    for line in ["rtt b 5000", "stream b 100000 1", "stream b 200000 4", "stream b 400000 16", "flood b 200"] {
        let figures = cluster.node("a").ask(line);
        eprintln!("{line}: {figures}");
        assert!(!figures.starts_with("error"), "{figures}");
    }
    for name in ["a", "b"] {
        assert_eq!(cluster.node(name).count("down "), 0, "{name} lost a peer");
    }
}

#[test]
fn a_sender_hears_at_once_that_a_frozen_peer_is_congested() {
    let mut cluster = Cluster::mesh(&["a", "b"]);
    cluster.signal("b", "STOP");
    let answer = cluster.node("a").ask("stuff b");
    cluster.signal("b", "CONT");
    eprintln!("stuffing a frozen peer: {answer}");
    assert!(answer.contains("Congested"), "{answer}");
}

#[test]
fn actors_that_are_restarted_are_found_again() {
    let mut cluster = Cluster::mesh(&["a", "b"]);
    for round in 0..3 {
        for actor in ["gateway", "tokens", "membership"] {
            cluster.node("b").ask(&format!("restart {actor}"));
        }
        let began = Instant::now();
        assert_eq!(cluster.node("a").ask_until("ask b", "answer 0"), "answer 0");
        report(&format!("the next gateway answers (round {round})"), began.elapsed());
        let figures = cluster.node("a").ask("stream b 1000 1");
        assert!(!figures.starts_with("error"), "{figures}");
    }
    std::thread::sleep(Duration::from_secs(5));
    for name in ["a", "b"] {
        assert_eq!(cluster.node(name).count("down "), 0, "{name} lost a peer");
    }
    cluster.node("b").ask("restart link");
    cluster.node("a").wait_for("down b#");
    cluster.wait_for_mesh(&["a", "b"]);
    assert_eq!(cluster.node("a").ask_until("ask b", "answer 0"), "answer 0");
}
