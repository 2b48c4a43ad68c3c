use std::path::Path;

use super::*;
use crate::config::{Sources, load};

/// A configuration for a node in `dir`, on free ports unless `more` says otherwise.
fn configured(dir: &Path, more: &[(&str, &str)]) -> ValidConfig {
    let mut variables = vec![
        ("PLEXUS_NODE__DATA_DIR", dir.to_str().unwrap()),
        ("PLEXUS_HTTP__LISTEN", "127.0.0.1:0"),
        ("PLEXUS_GOSSIP__LISTEN", "127.0.0.1:0"),
        ("PLEXUS_LINK__LISTEN", "127.0.0.1:0"),
        ("PLEXUS_METRICS__LISTEN", "127.0.0.1:0"),
    ];
    variables.extend_from_slice(more);
    let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    load(Sources { variables, ..Sources::default() }).unwrap()
}

fn booted(dir: &Path, more: &[(&str, &str)]) -> Result<Booted, BootError> {
    booted_of(dir, dir, more)
}

/// A node with its data in `dir`, of a user whose usual directory is `user`.
fn booted_of(user: &Path, dir: &Path, more: &[(&str, &str)]) -> Result<Booted, BootError> {
    let valid = configured(dir, more);
    Named::claim(&valid, Some(user))?.boot(&valid)
}

#[test]
fn the_defaults_are_those_of_the_actors() {
    let config = Config::default();
    assert_eq!(timing(&config), NetTiming::default());
    assert_eq!(ApiConfig::new(version::version()).body_max, config.http.body_limit.0);
}

#[test]
fn nodes_of_one_machine_find_each_other_without_being_told() {
    let dir = tempfile::tempdir().unwrap();
    let one = booted(dir.path(), &[]).unwrap();
    let two = booted(dir.path(), &[]).unwrap();
    assert!(one.neighbours.is_empty());
    assert_eq!(two.neighbours, std::slice::from_ref(&one.args.facts.id.name));
    assert_eq!(two.args.seeds, [one.args.facts.gossip.to_string()]);
    assert_ne!(one.args.facts.id.name, two.args.facts.id.name);
    assert_eq!(one.args.secret, two.args.secret);
    drop(one);
    let three = booted(dir.path(), &[]).unwrap();
    assert_eq!(three.neighbours, std::slice::from_ref(&two.args.facts.id.name));
}

#[test]
fn nodes_of_one_user_join_wherever_each_keeps_its_data_also_if_they_start_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let user = dir.path().join("user");
    let nodes: Vec<Booted> = std::thread::scope(|scope| {
        let node = |n: usize| booted_of(&user, &dir.path().join(n.to_string()), &[]).unwrap();
        let nodes: Vec<_> = (0..8).map(|n| scope.spawn(move || node(n))).collect();
        nodes.into_iter().map(|node| node.join().unwrap()).collect()
    });
    let mut seen: Vec<usize> = nodes.iter().map(|node| node.neighbours.len()).collect();
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7]);
    let made = std::fs::read_to_string(user.join("local.key")).unwrap();
    assert!(nodes.iter().all(|node| node.args.secret.expose() == made.trim()));
    assert!((0..8).all(|n| !dir.path().join(n.to_string()).join("local.key").exists()), "it lies in one place");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(user.join("local.key")).unwrap().permissions().mode() & 0o777, 0o600);
    }
    drop(nodes);
    assert!(neighbours::cards(&user.join("nodes")).is_empty());
}

#[test]
fn a_secret_that_a_directory_had_before_becomes_the_users_or_else_counts_there_and_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let [user, first, second, third] = ["user", "first", "second", "third"].map(|name| dir.path().join(name));
    for (data, secret) in [(&first, "ab"), (&second, "cd")] {
        std::fs::create_dir(data).unwrap();
        std::fs::write(data.join("local.key"), secret.repeat(32)).unwrap();
    }
    let first = booted_of(&user, &first, &[]).unwrap();
    let third = booted_of(&user, &third, &[]).unwrap();
    assert_eq!([&first, &third].map(|node| node.args.secret.expose()), ["ab", "ab"].map(|text| text.repeat(32)));
    assert_eq!(third.neighbours, [first.args.facts.id.name]);

    let valid = configured(&second, &[]);
    let named = Named::claim(&valid, Some(&user)).unwrap();
    let told = named.why_apart.clone().unwrap();
    assert!(["second/local.key", "user/local.key", "remove"].iter().all(|word| told.contains(word)), "{told}");
    let node = named.boot(&valid).unwrap();
    assert_eq!((node.args.secret.expose(), node.neighbours), ("cd".repeat(32), vec![]));
    assert_eq!(neighbours::cards(&user.join("nodes")).len(), 2, "it does not show itself to nodes that do not hear it");
}

#[test]
fn a_secret_that_cannot_be_used_is_refused_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let [user, data] = ["user", "data"].map(|name| dir.path().join(name));
    for bad in [&user, &data] {
        std::fs::create_dir_all(bad).unwrap();
        std::fs::write(bad.join("local.key"), "hunter2").unwrap();
        let error = booted_of(&user, &data, &[]).unwrap_err().to_string();
        let told = [bad.to_str().unwrap(), "cluster.secret_file", "32 bytes", "remove the file"].iter().all(|word| error.contains(word));
        assert!(told && !error.contains("hunter2"), "{error}");
        std::fs::remove_file(bad.join("local.key")).unwrap();
    }
}

#[test]
fn a_node_with_a_configured_secret_leaves_the_users_directory_alone() {
    let dir = tempfile::tempdir().unwrap();
    let user = dir.path().join("user");
    let secret = ("PLEXUS_CLUSTER__SECRET", "ab".repeat(32));
    let _node = booted_of(&user, &dir.path().join("data"), &[(secret.0, &secret.1)]).unwrap();
    assert!(!user.exists());
}

#[test]
fn a_cluster_of_another_name_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let _one = booted(dir.path(), &[]).unwrap();
    assert!(booted(dir.path(), &[("PLEXUS_CLUSTER__NAME", "other")]).unwrap().neighbours.is_empty());
}

#[test]
fn a_name_that_a_running_node_has_is_refused_and_free_again_when_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let named = [("PLEXUS_NODE__NAME", "n1")];
    let first = booted(dir.path(), &named).unwrap();
    let error = booted(dir.path(), &named).unwrap_err().to_string();
    assert!(error.contains("node.name = \"n1\"") && error.contains("PLEXUS_NODE__NAME") && error.contains("another name"), "{error}");
    let generation = first.args.facts.id.generation;
    drop(first);
    assert!(booted(dir.path(), &named).unwrap().args.facts.id.generation > generation);
}

#[test]
fn nodes_that_boot_at_once_get_different_names_and_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let nodes: Vec<Booted> = std::thread::scope(|scope| {
        let nodes: Vec<_> = (0..8).map(|_| scope.spawn(|| booted(dir.path(), &[]).unwrap())).collect();
        nodes.into_iter().map(|node| node.join().unwrap()).collect()
    });
    let mut seen: Vec<usize> = nodes.iter().map(|node| node.neighbours.len()).collect();
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_configured_secret_is_used_and_a_bad_one_is_refused_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.key");
    std::fs::write(&file, "ab".repeat(32)).unwrap();
    let node = booted(dir.path(), &[("PLEXUS_CLUSTER__SECRET_FILE", file.to_str().unwrap())]).unwrap();
    assert_eq!(node.args.secret.expose(), "ab".repeat(32));
    assert!(!dir.path().join("local.key").exists());

    let error = booted(dir.path(), &[("PLEXUS_CLUSTER__SECRET", "hunter2")]).unwrap_err().to_string();
    assert!(error.contains("cluster.secret = (hidden)") && error.contains("plexus secret") && !error.contains("hunter2"), "{error}");
    let error = booted(dir.path(), &[("PLEXUS_CLUSTER__SECRET_FILE", "/nonexistent.key")]).unwrap_err().to_string();
    assert!(error.contains("cluster.secret_file = \"/nonexistent.key\"") && error.contains("plexus secret"), "{error}");
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = booted(&file, &[]).unwrap_err().to_string();
    assert!(error.contains(file.to_str().unwrap()) && error.contains("--data-dir"), "{error}");
}

#[test]
fn a_node_without_devices_lists_its_models_for_others_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let node = booted(dir.path(), &[("PLEXUS_DEVICES__CPU", "false"), ("PLEXUS_DEVICES__CUDA", "off")]).unwrap();
    assert!(node.args.devices.is_empty());
    let listed: Vec<&str> = node.args.catalogue.models.iter().map(|model| model.id.as_str()).collect();
    assert_eq!(listed, ["pip"]);
}

#[test]
fn pages_may_call_this_machine_only_by_names_that_are_known() {
    let mut config = Config::default();
    config.http.allowed_hosts = vec!["models.example".to_owned()];
    assert_eq!(http_config(&config, ["Box", "n1"], LookAtHost::default()).api.host_names.unwrap(), ["box", "n1", "models.example"]);
    config.http.allowed_hosts = vec!["*".to_owned()];
    assert!(http_config(&config, ["box", "n1"], LookAtHost::default()).api.host_names.is_none());
}
