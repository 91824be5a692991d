//! `longshore`: a Kubernetes node agent for machines with Docker; runs the pods of a manifest folder, of a URL, and of a
//! cluster.
//!
//! Owns the process: the command line, the runtime it runs in, and the exit code. Everything else has a file.

mod cli;
mod client;
mod cluster;
mod commands;
mod config;
mod descriptors;
mod facts;
mod late;
mod logging;
mod memory;
mod metrics;
mod names;
mod network;
mod notify;
mod plugins;
mod pod_network;
mod pressure;
mod print;
mod run;
mod serving;
mod socket;
mod supervisor;
mod threads;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use longshore_filesystem::StateKey;

use cli::{Cli, Command, ConfigCommand, TakeoverArgs};
use client::Client;
use config::{DaemonFlags, NetworkFlags, Problem, Surroundings};

/// Bad configuration, as sysexits.h's EX_CONFIG: systemd's RestartPreventExitStatus can name it.
const BAD_CONFIGURATION: u8 = 78;

/// Why the process ends without success.
enum Failure {
    /// The configuration is wrong; all problems.
    Configuration(Vec<Problem>),
    /// Something else.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Other(error.into())
    }
}

fn main() -> ExitCode {
    // The one TLS provider of everything in here; only a second call could fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let (arguments, warnings) = config::take_unsupported_flags(arguments);
    let is_daemon = arguments.get(1).is_none_or(|first| first.starts_with('-') || first == "run");
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed terminal is no reason to fail.
            let _ = error.print();
            return match (error.use_stderr(), is_daemon) {
                (false, _) => ExitCode::SUCCESS,
                (true, true) => ExitCode::from(BAD_CONFIGURATION),
                (true, false) => ExitCode::FAILURE,
            };
        }
    };
    match dispatch(cli, warnings) {
        Ok(code) => code,
        Err(Failure::Configuration(problems)) => {
            for problem in &problems {
                commands::complain(&format!("error: {problem}"));
            }
            let plural = if problems.len() == 1 { "problem" } else { "problems" };
            commands::complain(&format!("longshore does not start: {} {plural} in its configuration", problems.len()));
            ExitCode::from(BAD_CONFIGURATION)
        }
        Err(Failure::Other(error)) if commands::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(Failure::Other(error)) => {
            commands::complain(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Does what the command line says.
fn dispatch(cli: Cli, warnings: Vec<String>) -> Result<ExitCode, Failure> {
    let around = Surroundings { root_dir: cli.root_dir.clone(), docker_host: docker_host(), warnings };
    let client = Client::new(&cli.root());
    let Some(command) = cli.command else {
        return daemon(&cli.daemon, around);
    };
    if cli.daemon != DaemonFlags::default() {
        let message = "these flags belong to the daemon; put them after the command: longshore run|plan …";
        return Err(anyhow::anyhow!(message).into());
    }
    match command {
        Command::Run(flags) => return daemon(&flags, around),
        Command::Get(arguments) => wait(commands::get(&client, &arguments))?,
        Command::Describe(arguments) => wait(commands::describe(&client, &arguments))?,
        Command::Logs(arguments) => wait(commands::logs(&client, &arguments))?,
        Command::Why(arguments) => wait(commands::why(&client, &arguments))?,
        Command::Plan(arguments) => {
            let (config, warnings) = config::load(&arguments.daemon, around).map_err(Failure::Configuration)?;
            for warning in warnings {
                commands::complain(&format!("warning: {warning}"));
            }
            wait(commands::plan(&config, &arguments))?;
        }
        Command::Takeover(arguments) => {
            let TakeoverArgs { dry_run, docker_endpoint, cni_cache_dir, cni_bin_dir } = *arguments;
            let network = NetworkFlags { cni_cache_dir, cni_bin_dir, ..NetworkFlags::default() };
            let flags = DaemonFlags { docker_endpoint, network, ..DaemonFlags::default() };
            let (config, _) = config::load(&flags, around).map_err(Failure::Configuration)?;
            wait(commands::takeover(&config, dry_run))?;
        }
        Command::Doctor(arguments) => {
            let well = wait(commands::doctor(&client, &arguments, around))?;
            return Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::DrainNode(arguments) => return Ok(wait(commands::drain_node(&client, &arguments))?),
        Command::Config(arguments) => match arguments.command {
            ConfigCommand::Check { files } => {
                let sound = commands::check(&files)?;
                return Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(BAD_CONFIGURATION) });
            }
        },
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "longshore", &mut script);
            std::io::stdout().write_all(&script)?;
        }
        Command::CompilePlugins { cache } => plugins::compile(&cache)?,
        Command::Version => wait(commands::version(&client))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn daemon(flags: &DaemonFlags, around: Surroundings) -> Result<ExitCode, Failure> {
    let (config, warnings) = config::load(flags, around).map_err(Failure::Configuration)?;
    let node = facts::check_node(&config);
    if !node.problems.is_empty() {
        return Err(Failure::Configuration(node.problems));
    }
    // From here on whoever reads the log reads it in the format that was chosen.
    logging::start(config.verbosity, config.log_format);
    for warning in warnings.into_iter().chain(node.warnings) {
        tracing::warn!("{warning}");
    }
    if !rustix::process::geteuid().is_root() {
        tracing::warn!("only root may do most of what pods need: run longshore as root");
    }
    // A node alone keeps nothing of an API server.
    let key = match config.joining.in_cluster().then(|| state_key(&config.joining)).transpose() {
        Ok(key) => key.flatten(),
        Err(problem) => {
            tracing::error!("{problem}; longshore does not start");
            return Ok(ExitCode::from(BAD_CONFIGURATION));
        }
    };
    // The loops wait for Docker most of the time; more threads cost memory and win nothing. Of those that wait for a disk or a
    // name server there may be many: who uses them bounds how many go on at a time, and what hangs keeps its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(1024)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .enable_all()
        .build()?;
    let result = runtime.block_on(run::run(config, key));
    // What still reads or writes in the background must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!("{error:#}");
            // What the configuration asks for, and this machine does not have: starting again does not help.
            let wrong = error.downcast_ref::<Problem>().is_some();
            Ok(if wrong { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::FAILURE })
        }
    }
}

/// The key of the state archive. One that was named and cannot be had is a mistake to be mended: without it secrets
/// would not outlive a reboot, which is what it was named for.
fn state_key(joining: &config::Joining) -> Result<Option<StateKey>, Problem> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    StateKey::load(joining.state_key_file.as_deref(), credentials.as_deref()).map_err(|error| {
        let place = if joining.state_key_file.is_some() { "--state-key-file" } else { "$CREDENTIALS_DIRECTORY" };
        Problem { place: place.to_owned(), message: format!("{:#}", anyhow::Error::new(error)) }
    })
}

/// Runs a command to its end.
fn wait<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

fn docker_host() -> Option<String> {
    std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty())
}
