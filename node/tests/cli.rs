//! The real binary, as people and scripts call it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The binary, in an environment of its own: nothing of the user's settings or nodes reaches it.
fn plexus(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plexus"));
    command.args(arguments).env_clear().env("HOME", home).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(home: &Path, arguments: &[&str]) -> Output {
    plexus(home, arguments).output().expect("the binary runs")
}

/// The words on the standard error of a command that failed.
#[track_caller]
fn refused(output: &Output, parts: &[&str]) {
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it succeeded: {}", String::from_utf8_lossy(&output.stdout));
    for part in parts {
        assert!(words.contains(part), "{words:?} does not name {part:?}");
    }
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

// CX-06
#[test]
fn a_bad_configuration_is_refused_with_its_path_before_anything_is_opened() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("cluster.toml");
    for (text, parts) in [
        ("[http]\nlisten = \"everywhere\"\n", ["http.listen", "\"everywhere\"", "write an IP address"]),
        ("[http]\nport = 80\n", ["http.port", "unknown field", "lists every key"]),
        ("[http\n", ["line 1", "correct", ""]),
        ("[aliases]\n\"a.b\" = \"c\"\nc = \"pip\"\n", ["aliases.a.b", "\"c\"", "name the model itself"]),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = output(home.path(), &["start", "--config", file.to_str().unwrap()]);
        refused(&output, &parts);
        refused(&output, &[file.to_str().unwrap()]);
    }
    refused(&output(home.path(), &["start", "--config", "/nonexistent.toml"]), &["/nonexistent.toml", "--config"]);
    assert!(!home.path().join(".local").exists(), "no directory was made, so no port was bound");
}

#[test]
fn the_usual_configuration_file_is_read() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join(".config/plexus");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("cluster.toml"), "[node]\nname = \"NO\"\n").unwrap();
    refused(&output(home.path(), &["start"]), &["node.name", "\"NO\"", ".config/plexus/cluster.toml"]);
}

// CX-05
#[test]
fn an_unknown_variable_is_refused_by_name() {
    let home = tempfile::tempdir().unwrap();
    let output = plexus(home.path(), &["start"]).env("PLEXUS_HTTP__LISTNE", "x").output().unwrap();
    refused(&output, &["PLEXUS_HTTP__LISTNE", "PLEXUS_HTTP__LISTEN"]);
}

#[test]
fn listening_beyond_this_machine_without_a_secret_is_refused() {
    let home = tempfile::tempdir().unwrap();
    refused(
        &output(home.path(), &["start", "--http", "0.0.0.0:0"]),
        &["http.listen = \"0.0.0.0:0\"", "--http", "plexus secret > cluster.key", "secret_file"],
    );
    assert!(!home.path().join(".local").exists());
}

#[test]
fn an_address_that_is_taken_is_refused_with_its_key() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&output(home.path(), &["start", "--http", &address]), &["http.listen", &address, "--http", "another program"]);
}

#[test]
fn every_command_says_what_to_do_when_no_node_answers() {
    let home = tempfile::tempdir().unwrap();
    // Bound and closed again: nobody is there now.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}");
    for command in
        [&["cluster", "status"][..], &["cluster", "explain", "m"], &["models"], &["models", "load", "m"], &["chat"], &["run", "hello"]]
    {
        let output = output(home.path(), &[command, &["--node", &url]].concat());
        assert_eq!(output.status.code(), Some(1));
        refused(&output, &[&format!("no node answers at {url}: start one with `plexus start`, or name one with --ask URL")]);
    }
    let output = plexus(home.path(), &["models"]).env("PLEXUS_NODE", &url).output().unwrap();
    refused(&output, &[&url, "plexus start"]);
}

#[test]
fn a_new_secret_is_printed_each_time() {
    let home = tempfile::tempdir().unwrap();
    let secrets = [(); 2].map(|()| succeeded(&output(home.path(), &["secret"])));
    assert_eq!(secrets[0].trim().len(), 64);
    assert_ne!(secrets[0], secrets[1]);
}

// CX-12
#[test]
fn the_version_says_which_build_it_is() {
    let home = tempfile::tempdir().unwrap();
    let version: serde_json::Value = serde_json::from_str(&succeeded(&output(home.path(), &["version", "--json"]))).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    for key in ["git_sha", "build_time", "rustc", "profile"] {
        assert!(version[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {version}");
    }
    assert!(succeeded(&output(home.path(), &["version"])).contains("commit"));
}

fn models() -> serde_json::Value {
    let place = serde_json::json!({ "node": "n1", "device": "cpu-0", "status": "loaded", "memory_bytes": 3_000_000, "pinned": true });
    serde_json::json!({ "data": [
        { "id": "cold", "loaded": false, "status": "loading", "progress": 0.4, "capabilities": ["generate"], "feasible_on": ["n1"],
          "locations": [] },
        { "id": "pip", "loaded": true, "status": "loaded", "max_model_len": 512, "capabilities": ["generate"], "feasible_on": ["n1"],
          "locations": [place] },
    ] })
}

/// What is done by hand comes back in the reason.
fn by_hand(path: &str, order: &serde_json::Value) -> serde_json::Value {
    let status = if order["wait"] == true { "loaded" } else { "loading" };
    let mut answer = explanation();
    answer["status"] = status.into();
    answer["model_id"] = order["model_id"].clone();
    answer["decision"] = format!("{path} {order}").into();
    answer["from"] = serde_json::json!(["n1/cpu-0", order["node"].as_str().unwrap_or("anywhere")]);
    answer["on"] = serde_json::json!([format!("{path} on {}", order["node"].as_str().unwrap_or("all"))]);
    answer
}

fn explanation() -> serde_json::Value {
    serde_json::json!({ "model": "org/cold", "decision": "it is loaded on n2/cpu-0", "age_s": 0.0, "considered": [
        { "place": "n2/cpu-0", "verdict": "fits, 2.00 GiB free", "chosen": true },
        { "place": "n1/cpu-0", "verdict": "its files are not there", "chosen": false },
    ] })
}

/// A node made of a few pages: it answers every question with the questions so far, a word at a time.
fn scripted_node() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || answer_once(connection));
        }
    });
    url
}

fn answer_once(connection: std::net::TcpStream) -> Option<()> {
    let mut reader = BufReader::new(connection);
    let (mut request, mut line) = (String::new(), String::new());
    reader.read_line(&mut request).ok()?;
    let mut length = 0;
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (kind, page) = match request.split(' ').nth(1)? {
        "/version" => ("application/json", "{\"git_sha\":\"x\"}".to_owned()),
        "/v1/models" | "/v1/models?all=true" => ("application/json", models().to_string()),
        path @ ("/v1/models/load" | "/v1/models/unload" | "/v1/models/pin" | "/v1/models/unpin") => {
            ("application/json", by_hand(path, &serde_json::from_slice(&body).ok()?).to_string())
        }
        "/v1/cluster/explain/org%2Fcold" => ("application/json", explanation().to_string()),
        _ => ("text/event-stream", events(&serde_json::from_slice(&body).ok()?)),
    };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", page.len());
    reader.get_mut().write_all(format!("{head}{page}").as_bytes()).ok()
}

/// The events that answer `question`: its model and every turn, then an escape sequence that no terminal should see.
fn events(question: &serde_json::Value) -> String {
    let turns = question["messages"].as_array().into_iter().flatten().map(|turn| format!("{}={}", turn["role"], turn["content"]));
    let words = [question["model"].to_string()].into_iter().chain(turns).chain(["\u{1b}[2J.".to_owned()]);
    let chunks = words.map(|word| serde_json::json!({ "choices": [{ "delta": { "content": format!("{word} ").replace('"', "") } }] }));
    let end = [
        serde_json::json!({ "choices": [{ "delta": {}, "finish_reason": "stop" }] }),
        serde_json::json!({ "choices": [], "usage": { "completion_tokens": 3 } }),
    ];
    let events: String = chunks.chain(end).map(|chunk| format!("data: {chunk}\n\n")).collect();
    format!(": hello\n\n{events}data: [DONE]\n\n")
}

#[test]
fn one_question_gets_one_answer() {
    let home = tempfile::tempdir().unwrap();
    let url = scripted_node();
    let text = succeeded(&output(home.path(), &["run", "hi", "--system", "be brief", "--node", &url]));
    assert_eq!(text, "pip system=be brief user=hi [2J. \n");
    let json = succeeded(&output(home.path(), &["run", "hi", "--model", "other", "--json", "--node", &url]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["model"].as_str(), json["finish_reason"].as_str()), (Some("other"), Some("stop")));
    assert_eq!(json["usage"]["completion_tokens"], 3);
}

#[test]
fn a_conversation_through_a_pipe_keeps_its_turns() {
    let home = tempfile::tempdir().unwrap();
    let url = scripted_node();
    let mut chat = plexus(home.path(), &["chat", "pip", "--node", &url]).stdin(Stdio::piped()).spawn().unwrap();
    chat.stdin.take().unwrap().write_all(b"one\n\ntwo\n").unwrap();
    let text = succeeded(&chat.wait_with_output().unwrap());
    let lines: Vec<&str> = text.lines().collect();
    // The model's own words come back to it as they came, escape sequence and all.
    assert_eq!(lines, ["pip user=one [2J. ", "pip user=one assistant=pip user=one \\u001b[2J.  user=two [2J. "]);
}

#[test]
fn models_are_listed_with_their_state() {
    // CX-08, CX-22
    let home = tempfile::tempdir().unwrap();
    let url = scripted_node();
    let text = succeeded(&output(home.path(), &["models", "--node", &url]));
    for parts in [["pip", "loaded", "n1/cpu-0 pinned", "512"], ["cold", "loading 40 %", "on demand: n1", "generate"]] {
        assert!(text.lines().any(|line| parts.iter().all(|part| line.contains(part))), "{parts:?}: {text}");
    }
    assert!(!text.contains('\u{1b}'));
    assert_eq!(succeeded(&output(home.path(), &["models", "list", "--node", &url])), text);
}

#[test]
fn models_are_loaded_unloaded_and_pinned_by_hand_each_told_in_a_sentence() {
    // CX-43, CX-44
    let home = tempfile::tempdir().unwrap();
    let url = scripted_node();
    for (arguments, expected) in [
        (
            "load m --node n2 --device cpu-0",
            r#"m answers: /v1/models/load {"model_id":"m","node":"n2","device":"cpu-0","wait":true} (fits, 2.00 GiB free)"#,
        ),
        ("load m --no-wait", r#"m is being loaded: /v1/models/load {"model_id":"m","wait":false} (fits, 2.00 GiB free); `plexus models`"#),
        ("unload m --node n2", "m is unloaded from n1/cpu-0, n2"),
        ("pin m --node n2", "m is pinned on /v1/models/pin on n2: it stays until it is unpinned"),
        ("unpin m", "m is no longer pinned on /v1/models/unpin on all: it goes when others need the room"),
    ] {
        let arguments: Vec<&str> = ["models"].into_iter().chain(arguments.split(' ')).chain(["--node", url.as_str()]).collect();
        let output = output(home.path(), &arguments);
        assert!(succeeded(&output).starts_with(expected), "{output:?}");
        assert!(output.stderr.is_empty(), "a bar for nobody: {output:?}");
    }
    for (arguments, status) in [("load m --no-wait --json", "loading"), ("unload m --json", "loaded"), ("pin m --json", "loaded")] {
        let arguments: Vec<&str> = ["models"].into_iter().chain(arguments.split(' ')).chain(["--ask", url.as_str()]).collect();
        let json: serde_json::Value = serde_json::from_str(&succeeded(&output(home.path(), &arguments))).expect("it is JSON");
        assert_eq!((&json["status"], &json["model_id"]), (&status.into(), &"m".into()), "{json}");
    }
    let asked_by_variable = plexus(home.path(), &["models", "load", "m", "--node", "n2"]).env("PLEXUS_NODE", &url).output().unwrap();
    assert!(succeeded(&asked_by_variable).contains(r#""node":"n2""#));
}

#[test]
fn an_explanation_is_a_table_with_the_chosen_place_marked() {
    let home = tempfile::tempdir().unwrap();
    let url = scripted_node();
    let text = succeeded(&output(home.path(), &["cluster", "explain", "org/cold", "--node", &url]));
    assert!(text.starts_with("org/cold: it is loaded on n2/cpu-0\n"), "{text}");
    let marked: Vec<&str> = text.lines().filter(|line| line.contains('*')).collect();
    assert!(marked.len() == 1 && marked[0].contains("n2/cpu-0") && text.contains("its files are not there"), "{text}");
    let json = succeeded(&output(home.path(), &["cluster", "explain", "org/cold", "--json", "--node", &url]));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["considered"][0]["chosen"], true);
}

// CX-51
#[cfg(unix)]
#[test]
fn a_node_starts_without_configuration_answers_and_stops_when_asked() {
    let home = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:0";
    let mut node = plexus(home.path(), &["start", "--name", "n1", "--http", any, "--gossip", any, "--link", any, "--metrics", any]);
    let mut node = node.stderr(Stdio::inherit()).spawn().unwrap();
    let mut lines = BufReader::new(node.stdout.take().unwrap()).lines().map(|line| line.expect("a line of text"));
    let mut line_with = |word: &str| lines.find(|line| line.contains(word)).unwrap_or_else(|| panic!("it never said {word:?}"));
    assert!(line_with("node").ends_with("n1"));
    let url = line_with("http://").split_whitespace().last().unwrap().to_owned();
    let metrics = line_with("/metrics").split_whitespace().last().unwrap().to_owned();
    line_with("curl");

    // Nobody names the node: its card does. Unless another node has the usual address, which would be asked first.
    let usual_is_free = TcpListener::bind("127.0.0.1:31313").is_ok();
    let asked = if usual_is_free { Vec::new() } else { vec!["--node", url.as_str()] };
    let status = |more: &[&str]| succeeded(&output(home.path(), &[&["cluster", "status"], asked.as_slice(), more].concat()));
    let page = status(&[]);
    assert!(page.contains("n1 *") && page.contains(url.strip_prefix("http://").unwrap()), "{page}");
    let json: serde_json::Value = serde_json::from_str(&status(&["--json"])).unwrap();
    assert_eq!(json["cluster"]["nodes"][0]["id"]["name"], "n1");
    let mut page = String::new();
    let mut connection = std::net::TcpStream::connect(metrics.trim_start_matches("http://").trim_end_matches("/metrics")).unwrap();
    connection.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    connection.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");

    Command::new("kill").arg(node.id().to_string()).status().unwrap();
    assert!(node.wait().unwrap().success());
    assert_eq!(std::fs::read_dir(home.path().join(".local/share/plexus/nodes")).unwrap().flatten().filter(is_card).count(), 0);
}

fn is_card(entry: &std::fs::DirEntry) -> bool {
    entry.path().extension().is_some_and(|end| end == "json")
}
