//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use plexus_types::{DeviceId, NodeName};

use crate::config::Override;

/// One binary that serves language models: nodes find each other, and any of them answers for the whole cluster.
#[derive(Debug, Parser)]
#[command(name = "plexus", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a node; it joins the other nodes by itself.
    Start(StartArgs),
    /// Look at the cluster.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// List the models that the cluster serves; load, unload and pin them by hand.
    Models(ModelsArgs),
    /// Talk with a model. Ctrl-C stops the answer, Ctrl-D leaves. In a pipe, every line is a turn.
    Chat(ChatArgs),
    /// Ask once. What is piped in follows the prompt.
    Run(RunArgs),
    /// Print a new cluster secret.
    Secret,
    /// Print which build this is.
    Version(VersionArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show nodes, devices, replicas and actors.
    Status(StatusArgs),
    /// Say why a model, or a request, is where it is.
    Explain(ExplainArgs),
}

/// Which node is asked.
#[derive(Debug, Args)]
pub(crate) struct NodeOption {
    /// The node to ask, by its address, such as http://127.0.0.1:31313 (the default; else a node of yours on this machine).
    #[arg(long = "ask", visible_alias = "node", value_name = "URL", env = "PLEXUS_NODE")]
    pub(crate) url: Option<String>,
}

#[derive(Debug, Default, Args)]
pub(crate) struct StartArgs {
    /// Settings to read; cluster.toml in the repository lists all of them.
    #[arg(long, value_name = "FILE", env = "PLEXUS_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// The node's name, unique in the cluster.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Name of the cluster.
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// Gossip address of a node to join; may be given more than once.
    #[arg(long = "seed", value_name = "HOST:PORT")]
    pub(crate) seeds: Vec<String>,
    /// Where to answer clients.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) http: Option<String>,
    /// Where to gossip.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) gossip: Option<String>,
    /// Where to take links from other nodes.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) link: Option<String>,
    /// Where to serve metrics.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) metrics: Option<String>,
    /// Where the node keeps what outlives it.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The cluster's secret, made by `plexus secret`.
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// A model to serve and to load at once, beside those of the file; may be given more than once.
    #[arg(long = "model", value_name = "ID=SOURCE")]
    pub(crate) models: Vec<String>,
}

impl StartArgs {
    /// The options as settings.
    pub(crate) fn overrides(&self) -> Vec<Override> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let seeds = (!self.seeds.is_empty()).then(|| self.seeds.join(","));
        let options = [
            ("--name", "node", "name", self.name.clone()),
            ("--cluster", "cluster", "name", self.cluster.clone()),
            ("--seed", "cluster", "seeds", seeds),
            ("--http", "http", "listen", self.http.clone()),
            ("--gossip", "gossip", "listen", self.gossip.clone()),
            ("--link", "link", "listen", self.link.clone()),
            ("--metrics", "metrics", "listen", self.metrics.clone()),
            ("--data-dir", "node", "data_dir", path(&self.data_dir)),
            ("--secret-file", "cluster", "secret_file", path(&self.secret_file)),
        ];
        let given = |(option, section, name, value): (_, _, _, Option<String>)| Some(Override { option, section, name, value: value? });
        options.into_iter().filter_map(given).collect()
    }
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Print the node's own JSON: {"cluster": ..., "actors": ...}.
    #[arg(long)]
    pub(crate) json: bool,
    /// Show it again every second until Ctrl-C.
    #[arg(long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) node: NodeOption,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A model, or a request by its id: x-request-id of the answer's headers, or the answer's own id.
    #[arg(value_name = "MODEL | REQUEST")]
    pub(crate) subject: String,
    /// Print the node's own JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) node: NodeOption,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ModelsCommand>,
    #[command(flatten)]
    pub(crate) list: ModelsListArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// List the models that the cluster serves.
    List(ModelsListArgs),
    /// Load a model that the cluster lists, wherever it does best, or at a place of your choice.
    Load(LoadArgs),
    /// Bring a model's files to a node without loading it: from another node that has them, else from its hub.
    Pull(PullArgs),
    /// Unload a model from one place, or from everywhere; requests load it again.
    Unload(UnloadArgs),
    /// Pin a model on one node, or wherever it is loaded: it then stays until it is unpinned.
    Pin(PinArgs),
    /// Let a model go again when others need its room, on one node, or everywhere.
    Unpin(PinArgs),
}

/// The node that is meant, by its name, and the node that is asked, by its address: any node has any other do it.
#[derive(Debug, Args)]
pub(crate) struct OnNode {
    /// Only on this node, by its name, as `plexus cluster status` lists it.
    // An address here is the node to ask, as with the other commands.
    #[arg(long = "node", value_name = "NAME")]
    nodes: Vec<String>,
    /// The node to ask, by its address, such as http://127.0.0.1:31313 (the default; else a node of yours on this machine). It passes on
    /// what is for the node that --node names.
    #[arg(long, value_name = "URL", env = "PLEXUS_NODE")]
    ask: Option<String>,
    /// Print the node's own JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl OnNode {
    /// The node that is meant, if one is named.
    pub(crate) fn name(&self) -> anyhow::Result<Option<NodeName>> {
        let mut names = Vec::new();
        for text in self.nodes.iter().filter(|text| !is_address(text)) {
            let name: NodeName = text
                .parse()
                .map_err(|error| anyhow::anyhow!("--node: {error}; a node's address, such as http://host:31313, goes with --ask"))?;
            names.push(name);
        }
        match &names[..] {
            [] => Ok(None),
            [name] => Ok(Some(name.clone())),
            [first, second, ..] => anyhow::bail!("--node names {first} and {second}: a command is for one node, or without --node for any"),
        }
    }

    /// The node to ask.
    pub(crate) fn asked(&self) -> NodeOption {
        let address = self.nodes.iter().find(|text| is_address(text));
        NodeOption { url: address.or(self.ask.as_ref()).cloned() }
    }
}

/// Is this an address, which no name can be?
fn is_address(node: &str) -> bool {
    node.contains([':', '.', '/'])
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The model, as `plexus models` lists it.
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) on: OnNode,
    /// Only on this device, such as cpu-0 or cuda-1.
    #[arg(long)]
    pub(crate) device: Option<DeviceId>,
    /// Return when the load has begun, rather than when the model answers.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The model, as `plexus models` lists it.
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) on: OnNode,
}

#[derive(Debug, Args)]
pub(crate) struct UnloadArgs {
    /// The model.
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) on: OnNode,
    /// Only from this device, such as cpu-0 or cuda-1.
    #[arg(long)]
    pub(crate) device: Option<DeviceId>,
}

#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    /// The model.
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) on: OnNode,
}

#[derive(Debug, Args)]
pub(crate) struct ModelsListArgs {
    /// Print the node's own JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) node: NodeOption,
}

/// How an answer is asked for.
#[derive(Debug, Args)]
pub(crate) struct AnswerOptions {
    /// Instructions that precede the conversation.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// 0 always takes the likeliest token; higher is more varied. The model's own default if absent.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) temperature: Option<f32>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_tokens: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// The model; if absent, the first that is loaded, else the first that is listed.
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) answer: AnswerOptions,
    #[command(flatten)]
    pub(crate) node: NodeOption,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// What to ask; may be left out when something is piped in.
    pub(crate) prompt: Option<String>,
    /// The model; if absent, the first that is loaded, else the first that is listed.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Print the whole answer as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) answer: AnswerOptions,
    #[command(flatten)]
    pub(crate) node: NodeOption,
}

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// Print it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_by_hand_takes_the_name_of_a_node_and_the_address_of_the_one_to_ask() {
        let read = |line: &str| match Cli::parse_from(line.split_whitespace()).command {
            Command::Models(ModelsArgs { command: Some(command), .. }) => match command {
                ModelsCommand::Load(args) => args.on,
                ModelsCommand::Unload(args) => args.on,
                ModelsCommand::Pull(args) => args.on,
                ModelsCommand::Pin(args) | ModelsCommand::Unpin(args) => args.on,
                ModelsCommand::List(args) => panic!("{args:?}"),
            },
            other => panic!("{other:?}"),
        };
        for command in ["load", "unload", "pull", "pin", "unpin"] {
            for (options, node, asked) in [
                ("", None, None),
                ("--node gpu-1", Some("gpu-1"), None),
                ("--ask http://h:1", None, Some("http://h:1")),
                ("--node gpu-1 --ask h:1", Some("gpu-1"), Some("h:1")),
                ("--node http://h:1", None, Some("http://h:1")),
                ("--node 127.0.0.1:4000 --node gpu-1", Some("gpu-1"), Some("127.0.0.1:4000")),
            ] {
                let line = format!("plexus models {command} m {options}");
                let on = read(&line);
                assert_eq!((on.name().unwrap().as_ref().map(NodeName::as_str), on.asked().url.as_deref()), (node, asked), "{line}");
            }
            assert!(read(&format!("plexus models {command} m --node a --node b")).name().is_err());
            let refused = read(&format!("plexus models {command} m --node GPU_1")).name().unwrap_err().to_string();
            assert!(["GPU_1", "a-z", "--ask"].iter().all(|word| refused.contains(word)), "{refused}");
            let device = Cli::try_parse_from(["plexus", "models", command, "m", "--device", "cpu-0"]);
            assert_eq!(device.is_ok(), ["load", "unload"].contains(&command), "what is not for a device takes none: {command}");
        }
        assert!(Cli::try_parse_from("plexus models load m --device gpu".split_whitespace()).is_err());
        assert!(Cli::try_parse_from("plexus models --json load m".split_whitespace()).is_err());
    }

    #[test]
    fn every_command_that_asks_a_node_takes_its_address_in_the_same_way() {
        for command in ["cluster status", "cluster explain m", "models", "models list", "chat", "run hello"] {
            for option in ["--ask", "--node"] {
                let line = format!("plexus {command} {option} http://h:1");
                assert!(format!("{:?}", Cli::parse_from(line.split_whitespace())).contains("http://h:1"), "{line}");
            }
        }
    }

    #[test]
    fn every_option_of_start_sets_its_key() {
        let line = "plexus start --name n1 --cluster c1 --seed 127.0.0.1:5 --seed h:6 --http 127.0.0.1:1 --gossip 127.0.0.1:2 \
                    --link 127.0.0.1:3 --metrics 127.0.0.1:4 --data-dir /d --secret-file /s --model a=/m";
        let Command::Start(args) = Cli::parse_from(line.split_whitespace()).command else { panic!("not start") };
        let valid = load(Sources { overrides: args.overrides(), models: args.models, ..Sources::default() }).unwrap();
        let config = valid.get();
        let ports = [config.http.listen, config.gossip.listen, config.link.listen, config.metrics.listen].map(|address| address.port());
        assert_eq!(ports, [1, 2, 3, 4]);
        assert_eq!(config.cluster.seeds, ["127.0.0.1:5", "h:6"]);
        assert_eq!((config.cluster.name.as_str(), config.node.name.as_ref().unwrap().as_str()), ("c1", "n1"));
        assert_eq!(config.node.data_dir.as_deref(), Some("/d".as_ref()));
        assert_eq!(config.cluster.secret_file.as_deref(), Some("/s".as_ref()));
        assert_eq!(config.models[0].id.as_str(), "a");
    }
}
