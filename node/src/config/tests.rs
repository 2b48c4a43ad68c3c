use std::path::Path;

use super::keys::KEYS;
use super::*;

const CLUSTER_TOML: &str = include_str!("../../../cluster.toml");

fn from_text(text: &str) -> Result<ValidConfig, ConfigError> {
    let mut layers = Layers::default();
    layers.file_text(Path::new("test.toml"), text)?;
    let config = understand(&layers)?;
    let valid = ValidConfig { config, layers, file: None, models_file: None };
    validate::validate(&valid)?;
    Ok(valid)
}

fn from_variables(variables: &[(&str, &str)]) -> Result<ValidConfig, ConfigError> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    load(Sources { variables, ..Sources::default() })
}

fn option(section: &'static str, name: &'static str, value: &str) -> Override {
    Override { option: "--option", section, name, value: value.to_owned() }
}

/// The message of an error, which must name all of `parts`.
#[track_caller]
fn refused(result: Result<ValidConfig, ConfigError>, parts: &[&str]) {
    let message = result.expect_err("refused").to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} does not name {part:?}");
    }
}

#[test]
fn the_cluster_toml_of_the_repository_says_the_defaults() {
    assert_eq!(*from_text(CLUSTER_TOML).unwrap().get(), Config::default());
}

#[test]
fn the_cluster_toml_of_the_repository_lists_every_key_and_each_is_known() {
    let table: toml::Table = toml::from_str(CLUSTER_TOML).unwrap();
    let mut listed = Vec::new();
    for (section, keys) in table.iter().filter(|(section, _)| !matches!(section.as_str(), "models" | "aliases")) {
        listed.extend(keys.as_table().unwrap().keys().map(|name| format!("{section}.{name}")));
    }
    let mut known: Vec<String> = KEYS.iter().map(keys::Key::path).collect();
    listed.sort();
    known.sort();
    assert_eq!(listed, known);
}

#[test]
fn every_key_of_the_cluster_toml_has_a_comment_or_stands_below_a_commented_one() {
    let mut commented = false;
    for line in CLUSTER_TOML.lines() {
        match line {
            "" => commented = false,
            line if line.starts_with('#') => commented = true,
            line if line.starts_with('[') => {}
            line => assert!(commented, "{line}"),
        }
    }
}

#[test]
fn nothing_said_means_the_defaults() {
    let valid = load(Sources::default()).unwrap();
    assert_eq!(*valid.get(), Config::default());
    assert!(!valid.is_explicit("http.listen"));
}

// CX-05
#[test]
fn variables_go_over_the_file_and_options_over_variables() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.toml");
    std::fs::write(&file, "[http]\nlisten = \"127.0.0.1:1\"\n[gossip]\nlisten = \"127.0.0.1:2\"\n[link]\nlisten = \"127.0.0.1:3\"\n")
        .unwrap();
    let valid = load(Sources {
        file: Some(file.clone()),
        variables: vec![
            ("PLEXUS_GOSSIP__LISTEN".to_owned(), "127.0.0.1:20".to_owned()),
            ("PLEXUS_LINK__LISTEN".to_owned(), "127.0.0.1:30".to_owned()),
        ],
        overrides: vec![option("link", "listen", "127.0.0.1:300")],
        models: Vec::new(),
    })
    .unwrap();
    let ports = [valid.get().http.listen.port(), valid.get().gossip.listen.port(), valid.get().link.listen.port()];
    assert_eq!(ports, [1, 20, 300]);
    assert_eq!(valid.origin("http.listen"), Origin::File(file));
    assert_eq!(valid.origin("gossip.listen"), Origin::Variable("PLEXUS_GOSSIP__LISTEN".to_owned()));
    assert_eq!(valid.origin("link.listen"), Origin::Option("--option"));
}

#[test]
fn variables_become_what_their_key_is() {
    let valid = from_variables(&[
        ("PLEXUS_CLUSTER__SEEDS", "127.0.0.1:5, localhost:6"),
        ("PLEXUS_NODE__NAME", "123"),
        ("PLEXUS_DEBUG__TEST_HOOKS", "true"),
        ("PLEXUS_DEVICES__CPU_MEMORY_SHARE", "0.5"),
        ("PLEXUS_DEVICES__CPU_THREADS", "3"),
        ("PLEXUS_STREAMS__ATTEMPTS_MAX", "2"),
        ("PLEXUS_SHUTDOWN__DRAIN_TIMEOUT", "1m"),
        ("PLEXUS_HTTP__BODY_LIMIT", "1GiB"),
        ("PLEXUS_NODE", "http://127.0.0.1:1"),
        ("HOME", "/home/somebody__else"),
    ])
    .unwrap();
    let config = valid.get();
    assert_eq!(config.cluster.seeds, ["127.0.0.1:5", "localhost:6"]);
    assert_eq!(config.node.name.as_ref().unwrap().as_str(), "123");
    assert!(config.debug.test_hooks);
    assert_eq!(config.devices.cpu_memory_share.get(), 0.5);
    assert_eq!(config.devices.cpu_threads, Some(3));
    assert_eq!(config.streams.attempts_max, 2);
    assert_eq!(config.shutdown.drain_timeout.as_secs(), 60);
    assert_eq!(config.http.body_limit.0.0, 1 << 30);
}

#[test]
fn an_unknown_variable_is_refused_by_name_with_the_nearest_known_one() {
    refused(from_variables(&[("PLEXUS_HTTP__LISTN", "x")]), &["PLEXUS_HTTP__LISTN", "PLEXUS_HTTP__LISTEN", "unset it"]);
}

#[test]
fn what_was_expected_is_said_in_words() {
    let model = |line: &str| format!("[[models]]\nid = \"m\"\nsource = \"/m\"\n{line}\n");
    for (text, said) in [
        (model("running_max = -1"), "expected a whole number from 0 to 4294967295"),
        (model("running_max = \"many\""), "expected a whole number from 0 to 4294967295"),
        (model("context_length = 1.5"), "expected a whole number from 0 to 4294967295"),
        (model("cost.input = \"free\""), "expected a number"),
        (model("preload = 1"), "expected true or false"),
        (model("source2 = 1"), "unknown field `source2`"),
        ("[http]\nconnections_max = -1\n".to_owned(), "expected a whole number from 0 to 9223372036854775807"),
        ("http = 3\n".to_owned(), "expected a table"),
        ("models = 3\n".to_owned(), "expected a list"),
    ] {
        refused(from_text(&text), &[said]);
    }
}

// CX-06
#[test]
fn every_wrong_value_is_refused_with_its_key_its_value_and_a_remedy() {
    let wrong = [
        ("cluster.name", "\"No Name\"", "write"),
        ("node.name", "\"Big_Node\"", "write"),
        ("node.advertise", "\"example\"", "write"),
        ("http.listen", "\"localhost\"", "127.0.0.1:31313"),
        ("http.body_limit", "\"lots\"", "16MiB"),
        ("http.connections_max", "-1", "at least 1"),
        ("http.connections_max", "0", "at least 1"),
        ("http.header_timeout", "\"soon\"", "10s"),
        ("http.header_timeout", "\"0s\"", "10s"),
        ("http.allowed_hosts", "\"all\"", "list"),
        ("metrics.enabled", "\"yes\"", "true or false"),
        ("gossip.interval", "\"1ms\"", "10ms"),
        ("link.ping_interval", "7", "250ms"),
        ("devices.cpu_memory_share", "1.5", "0.7"),
        ("devices.cpu_threads", "-1", "at least 1"),
        ("devices.cuda", "\"all\"", "auto"),
        ("eviction.strategy", "\"oldest\"", "lru"),
        ("eviction.keep_warm", "\"long\"", "0s"),
        ("http.connections_max", "9223372036854775807", "at most 1048576"),
        ("streams.attempts_max", "0", "at least 1"),
        ("streams.window_tokens", "4294967295", "at most 1048576"),
        ("streams.client_timeout", "\"0s\"", "10s"),
        ("telemetry.log_filter", "\"plexus=loud\"", "info"),
        ("telemetry.log_format", "\"xml\"", "json"),
        ("telemetry.otlp_endpoint", "\"https://collector\"", "http://"),
        ("telemetry.otlp_sample_ratio", "1.5", "0 to 1"),
        ("http.port", "80", "every key"),
    ];
    for (key, value, remedy) in wrong {
        let (section, name) = key.split_once('.').unwrap();
        refused(from_text(&format!("[{section}]\n{name} = {value}\n")), &[key, value, remedy, "test.toml"]);
    }
    for key in ["streams.load_timeout", "eviction.idle_unload", "shutdown.drain_timeout", "http.header_timeout"] {
        let (section, name) = key.split_once('.').unwrap();
        from_text(&format!("[{section}]\n{name} = \"365days\"\n")).unwrap();
        refused(from_text(&format!("[{section}]\n{name} = \"1000years\"\n")), &[key, "1000years", "365days", "test.toml"]);
    }
    for (name, value, remedy) in
        [("waiting_max", "4294967295", "1048576"), ("running_max", "1048577", "1048576"), ("waiting_time", "\"2years\"", "365days")]
    {
        let text = format!("[[models]]\nid = \"m\"\nsource = \"embedded:pip\"\n{name} = {value}\n");
        refused(from_text(&text), &[&format!("the model 'm': {name} = "), value, remedy, "test.toml"]);
    }
    refused(from_text("[cluster]\nseeds = [\"nowhere\"]\n"), &["cluster.seeds", "\"nowhere\"", "host:port"]);
    refused(from_text("[engine]\nx = 1\n"), &["engine", "unknown field", "every key"]);
    refused(from_text("http = 3\n"), &["http", "3", "test.toml"]);
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line_and_without_quoting_it() {
    let result = from_text("[cluster]\nname = \"a\"\nsecret = \"correct horse\n");
    let message = result.expect_err("refused").to_string();
    assert!(message.contains("test.toml, line 3") && !message.contains("horse"), "{message}");
}

#[test]
fn a_file_that_is_not_there_is_refused_with_its_path() {
    let sources = Sources { file: Some("/nonexistent/cluster.toml".into()), ..Sources::default() };
    refused(load(sources), &["/nonexistent/cluster.toml", "--config"]);
}

#[test]
fn listening_beyond_this_machine_without_a_secret_is_refused() {
    for section in ["http", "link", "gossip"] {
        let link = if section == "gossip" { "[link]\nlisten = \"0.0.0.0:5\"\n" } else { "" };
        let text = format!("[{section}]\nlisten = \"0.0.0.0:4000\"\n{link}");
        refused(from_text(&text), &[".listen = \"0.0.0.0:", "plexus secret > cluster.key", "cluster.secret_file", "127.0.0.1:"]);
        from_text(&format!("{text}[cluster]\nsecret_file = \"cluster.key\"\n")).unwrap();
    }
}

#[test]
fn the_secret_itself_is_never_shown() {
    let valid = from_text("[cluster]\nsecret = \"correct horse\"\n").unwrap();
    assert!(!format!("{:?}", valid.get()).contains("horse"));
    refused(from_text("[cluster]\nsecret = 12345\n"), &["cluster.secret = (hidden)"]);
    let both = from_text("[cluster]\nsecret = \"correct horse\"\nsecret_file = \"cluster.key\"\n").expect_err("refused").to_string();
    assert!(both.contains("cluster.secret_file") && both.contains("remove one") && !both.contains("horse"), "{both}");
}

#[test]
fn the_address_of_a_hub_holds_no_password() {
    for address in ["https://me:hunter2@mirror", "http://hunter2@mirror:8080/hf", "https://mirror/?token=hunter2"] {
        let message = from_text(&format!("[store]\nendpoint = \"{address}\"\n")).expect_err("refused").to_string();
        assert!(message.contains("store.endpoint = (hidden)") && message.contains("store.auth_env"), "{message}");
        assert!(!message.contains("hunter2") && message.contains("test.toml"), "{message}");
    }
    refused(from_text("[store]\nendpoint = \"mirror\"\n"), &["store.endpoint", "\"mirror\"", "http://mirror:8080"]);
    from_text("[store]\nendpoint = \"https://mirror/hf\"\n").unwrap();
}

#[test]
fn a_node_that_gossips_beyond_this_machine_takes_links_there_too() {
    let text = "[cluster]\nsecret = \"x\"\n[gossip]\nlisten = \"0.0.0.0:31315\"\n";
    refused(from_text(text), &["link.listen", "127.0.0.1:31316", "write link.listen = \"0.0.0.0:31316\""]);
}

#[test]
fn two_addresses_that_were_both_asked_for_may_not_share_a_port() {
    let text = "[http]\nlisten = \"127.0.0.1:4000\"\n[metrics]\nlisten = \"127.0.0.1:4000\"\n";
    refused(from_text(text), &["metrics.listen", "http.listen", "\"127.0.0.1:4000\"", "own port"]);
    // A default gives way by itself.
    from_text("[http]\nlisten = \"127.0.0.1:31314\"\n").unwrap();
}

#[test]
fn a_seed_on_another_machine_is_refused_while_gossip_stays_on_this_one() {
    refused(from_text("[cluster]\nseeds = [\"10.0.0.2:31315\"]\n"), &["cluster.seeds", "10.0.0.2:31315", "gossip.listen"]);
    from_text("[cluster]\nseeds = [\"127.0.0.1:31325\"]\n").unwrap();
}

#[test]
fn models_of_the_file_replace_the_embedded_one_and_options_add_to_them() {
    let text = "[[models]]\nid = \"a\"\nsource = \"/models/a.gguf\"\nrunning_max = 2\n";
    let valid = from_text(text).unwrap();
    assert_eq!(valid.get().models.len(), 1);
    assert_eq!((valid.get().models[0].running_max, valid.get().models[0].waiting_max), (2, 64));
    assert_eq!((valid.get().models[0].prompt_lookup, &valid.get().models[0].draft), (true, &None));
    let valid = from_text(&format!("{text}prompt_lookup = false\ndraft = \"/models/small.gguf\"\n")).unwrap();
    assert_eq!((valid.get().models[0].prompt_lookup, &valid.get().models[0].draft), (false, &Some("/models/small.gguf".parse().unwrap())));
    assert!(from_text("models = []\n").unwrap().get().models.is_empty());

    let valid = load(Sources { models: vec!["b=/models/b".to_owned()], ..Sources::default() }).unwrap();
    assert_eq!(valid.get().models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ["b"]);
    refused(load(Sources { models: vec!["b".to_owned()], ..Sources::default() }), &["models", "\"b\"", "--model", "ID=SOURCE"]);
}

#[test]
fn wrong_models_are_refused_by_name_or_with_their_place_in_the_list() {
    let entry = |rest: &str| format!("[[models]]\nid = \"a\"\nsource = \"/a\"\n[[models]]\n{rest}\n");
    refused(from_text(&entry("id = \"a\"\nsource = \"/b\"")), &["the model 'a': id = \"a\"", "own id"]);
    refused(from_text(&entry("id = \"../b\"\nsource = \"/b\"")), &["the model '../b': id"]);
    refused(from_text(&entry("id = \"b\"\nsource = \"file:\"")), &["the model 'b': source = ", "\"file:\"", "embedded:pip"]);
    refused(from_text(&entry("id = \"b\"\nsource = \"/b\"\nrunning_max = 0")), &["the model 'b': running_max = ", "at least 1"]);
    refused(from_text(&entry("id = \"b\"\nsource = \"/b\"\ndevice = \"cpu-1\"")), &["the model 'b': device = ", "\"cpu-1\"", "[devices]"]);
    refused(from_text(&entry("id = \"b\"\nsource = \"/b\"\ndraft = \"file:\"")), &["the model 'b': draft = ", "\"file:\"", "embedded:pip"]);
    refused(from_text(&entry("id = \"b\"\nsource = \"/b\"\nquant = \"q5\"")), &["the model 'b': quant = ", "\"q5\"", "q8_0, q6k or q4k"]);
    refused(from_text(&entry("id = \"b\"")), &["the model 'b' (from ", "missing field `source`"]);
    refused(from_text(&entry("source = \"/b\"")), &["entry 2 of [[models]] (from ", "missing field `id`"]);
}

#[test]
fn what_is_wrong_with_an_entry_is_said_of_the_file_that_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, models) = (folder.path().join("cluster.toml"), folder.path().join("models.toml"));
    let entry = |id: &str, quant: &str| format!("[[models]]\nid = \"{id}\"\nsource = \"/{id}\"\nquant = \"{quant}\"\n");
    for (in_settings, in_models, of) in [("q5", "q4k", &settings), ("q4k", "q5", &models)] {
        std::fs::write(&settings, entry("a", in_settings)).unwrap();
        std::fs::write(&models, entry("b", in_models)).unwrap();
        let sources = Sources { file: Some(settings.clone()), models: vec!["c=embedded:pip".to_owned()], ..Sources::default() };
        let refusal = load(sources).unwrap_err().to_string();
        assert!(refusal.contains(&format!("quant = \"q5\" (from {})", of.display())), "{refusal}");
    }
    std::fs::write(&settings, entry("a", "q4k")).unwrap();
    std::fs::write(&models, "[[models]]\nsource = \"/b\"\n").unwrap();
    let refusal = load(Sources { file: Some(settings.clone()), ..Sources::default() }).unwrap_err().to_string();
    assert!(refusal.starts_with(&format!("entry 1 of [[models]] (from {})", models.display())), "it is the first in its file: {refusal}");
    std::fs::write(&models, entry("b", "q4k")).unwrap();
    let sources = Sources { file: Some(settings), models: vec!["c=file:".to_owned()], ..Sources::default() };
    let refusal = load(sources).unwrap_err().to_string();
    assert!(refusal.contains("(from --model)"), "{refusal}");
}
