//! What developers run: `cargo xtask demo | test | cluster | conformance | world | bench | fuzz | plugins | vm`. Owns
//! set-up, so that nobody needs a second command. Must not depend on any room of the host: it builds and runs them as a user would.

mod apt;
mod bench;
mod cluster;
mod cni;
mod compile;
mod conformance;
mod demo;
mod deny;
mod docker;
mod fuzz;
mod go;
mod guests;
mod http;
mod images;
mod place;
mod process;
mod report;
mod room;
mod say;
mod test;
mod vm;
mod world;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::place::Place;

/// Tasks of longshore's developers.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Xtask {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the built-in plugins (WebAssembly components).
    Plugins,
    /// Do all set-up and run the example pods, shown live.
    Demo(demo::Demo),
    /// Do all set-up and run every test.
    Test(test::Test),
    /// Open the emulated machine with systemd, cgroup v2 and AppArmor for a person.
    Vm(vm::Vm),
    /// Start a Kubernetes control plane and a node, until Ctrl-C or a command's end.
    Cluster(cluster::Cluster),
    /// Run Kubernetes' own end-to-end tests of nodes against a node in a cluster.
    Conformance(conformance::Conformance),
    /// Run a command with a private Docker, registry and images, all gone when it ends.
    World(world::Open),
    /// Take figures, against a baseline of the same run.
    Bench(bench::Bench),
    /// Try hostile bytes on what reads bytes of strangers.
    Fuzz(fuzz::Fuzz),
    #[command(hide = true)]
    Inside(world::Inside),
}

fn main() -> ExitCode {
    let task = Xtask::parse().task;
    match process::hear_signals().and_then(|()| run(&task)) {
        Ok(code) => code,
        // A person who ends it knows that.
        Err(error) if process::interrupted() && format!("{error:#}").ends_with("interrupted") => ExitCode::from(130),
        Err(error) => {
            say!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<ExitCode> {
    let place = Place::find()?;
    let green = match task {
        Task::Plugins => {
            guests::build(&place.root)?;
            true
        }
        Task::Demo(args) => demo::run(&place, args)?,
        Task::Test(args) => test::run(&place, args)?,
        Task::Bench(args) => bench::run(&place, args)?,
        Task::Vm(args) => vm::open(&place, args)?,
        Task::Cluster(args) => return cluster::run(&place, args),
        Task::Conformance(args) => return conformance::run(&place, args),
        Task::Fuzz(args) => fuzz::run(&place, args)?,
        Task::World(args) => world::open(&place, args)?,
        Task::Inside(args) => {
            let code = world::inside(args)?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
    };
    Ok(if green { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
