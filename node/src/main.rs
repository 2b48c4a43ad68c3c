//! The `plexus` binary: command line, configuration, telemetry, and the start of a node. The only crate that reads the environment.

mod boot;
mod cli;
mod client;
mod commands;
mod config;
mod devices;
mod host;
mod telemetry;
mod version;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, ClusterCommand, Command};

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) if nobody_reads(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plexus: {}", client::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Did the command only fail to write because its reader has gone, as `| head` does?
fn nobody_reads(error: &anyhow::Error) -> bool {
    // What the network breaks comes as another type of error.
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Start(args) => return commands::start::run(&args),
        Command::Cluster(ClusterCommand::Status(args)) => asking(commands::status::run(&args))?,
        Command::Cluster(ClusterCommand::Explain(args)) => asking(commands::explain::run(&args))?,
        Command::Models(args) => asking(commands::models::run(&args))?,
        Command::Chat(args) => asking(commands::chat::run(&args))?,
        Command::Run(args) => asking(commands::run::run(&args))?,
        Command::Secret => commands::secret()?,
        Command::Version(args) => commands::version(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command that asks a node: one thread is enough.
fn asking(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}
