//! `cargo xtask demo`: everything from a fresh machine to the example pods being Ready, shown live; and its
//! removal. Must not touch containers of anybody else.

mod agent;
pub(crate) mod engine;
mod manifests;
pub(crate) mod pods;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    compile, docker, guests, images,
    place::{self, Place},
    process::{self, Running},
    say,
};

/// `cargo xtask demo`.
#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// End with 0 when all pods are Ready, and remove them again.
    #[arg(long)]
    once: bool,
    /// Remove everything of an earlier demo: pods, agent, images, files, and a dockerd that it started. A service of Docker's (as under
    /// systemd) stays, and so does its package; how to stop the service is said.
    #[arg(long, conflicts_with = "once")]
    stop: bool,
    /// Where the demo's agent keeps its state.
    #[arg(long, default_value = ROOT)]
    root_dir: PathBuf,
    /// How long `--once` waits for all pods to be Ready, seconds.
    #[arg(long, default_value_t = 120)]
    limit: u64,
    /// Use the debug build: quicker to compile, slower to run.
    #[arg(long)]
    debug: bool,
    /// Build nothing: use what was built before.
    #[arg(long)]
    no_build: bool,
}

const ROOT: &str = "/var/lib/longshore-demo";

impl Demo {
    /// What a person types for the same demo, whatever is to be done with it.
    fn command(&self) -> String {
        let mut command = "cargo xtask demo".to_owned();
        if self.debug {
            command.push_str(" --debug");
        }
        if self.root_dir != Path::new(ROOT) {
            command.push_str(&format!(" --root-dir {}", self.root_dir.display()));
        }
        command
    }
}

/// Where a demo has its things.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// The agent's `--root-dir`.
    root: PathBuf,
    /// A copy of `examples/manifests`, to edit at will.
    manifests: PathBuf,
    /// The agent's log.
    log: PathBuf,
    /// The binary.
    binary: PathBuf,
}

/// Runs the demo; true when it went well.
///
/// # Errors
/// When set-up fails.
pub(crate) fn run(place: &Place, args: &Demo) -> Result<bool> {
    if !place::is_root() {
        bail!("the demo runs pods, which needs root: `sudo -E env \"PATH=$PATH\" cargo xtask demo`");
    }
    let profile = if args.debug { "debug" } else { "release" };
    let paths = Paths {
        manifests: args.root_dir.join("manifests"),
        log: args.root_dir.join("longshore.log"),
        binary: place.target.join(profile).join("longshore"),
        root: args.root_dir.clone(),
    };
    if args.stop {
        return stop(&paths);
    }
    let engine = engine::find_or_start(&paths.root)?;
    say!("Docker {} at {}", engine.version, engine.socket.display());
    if !args.no_build {
        build(place, args.debug)?;
    }
    say!("making the images {} and {} (nothing is pulled)", images::BUSYBOX, images::EXAMPLE);
    images::import_all(&engine.socket, &images::roots(place)?)?;
    let kept = manifests::refresh(manifests::Folders {
        examples: &place.root.join("examples/manifests"),
        copy: &paths.manifests,
        shipped: &paths.root.join("shipped-manifests"),
    })?;
    if !kept.is_empty() {
        say!("left as you have them in {}: {}", paths.manifests.display(), kept.join(", "));
        say!("(`{} --stop` takes them away; the next demo begins with the examples again)", args.command());
    }

    let mut agent = start(&paths, &engine.socket)?;
    let expected = fs::read_dir(&paths.manifests)?.count();
    let result = watch(&paths, &mut agent, expected, args);
    if args.once {
        let ready = match result {
            Ok(ready) => ready,
            Err(error) => {
                say!("{error:#}");
                false
            }
        };
        if !ready {
            explain(&paths);
        }
        // The agent itself takes the pods down; Ctrl-C leaves them to `--stop`.
        if process::interrupted() {
            agent.stop(Duration::from_secs(20));
            farewell(&paths, args);
            return Ok(false);
        }
        let removed = pods::remove_all(&paths);
        agent.stop(Duration::from_secs(20));
        removed?;
        if engine.started {
            engine::stop(&paths.root)?;
        }
        engine::clean(&paths.root)?;
        say!("{}", if ready { "all pods were Ready; they are removed again" } else { "not all pods became Ready" });
        return Ok(ready);
    }
    agent.stop(Duration::from_secs(20));
    farewell(&paths, args);
    result.map(|_| true)
}

/// Builds the plugins and the agent.
///
/// # Errors
/// When something does not compile.
pub(crate) fn build(place: &Place, debug: bool) -> Result<()> {
    say!("building the plugins");
    guests::build(&place.root)?;
    say!("building longshore{}", if debug { "" } else { " (release; the first time takes some minutes)" });
    let mut command = compile::cargo(place);
    command.args(["build", "--quiet", "-p", "longshore-agent", "--bin", "longshore"]);
    if !debug {
        command.arg("--release");
    }
    if !Running::start("cargo build", &mut command)?.wait(Duration::from_secs(3600))?.success() {
        bail!("longshore does not compile");
    }
    Ok(())
}

/// Starts the agent; it writes to its log alone.
fn start(paths: &Paths, socket: &Path) -> Result<Running> {
    let (out, err) = process::log_pair(&paths.log)?;
    let mut command = Command::new(&paths.binary);
    command
        .arg("run")
        .arg("--config")
        .arg(&paths.manifests)
        .arg("--root-dir")
        .arg(&paths.root)
        .arg("--docker-endpoint")
        .arg(format!("unix://{}", socket.display()))
        .arg("--register-node=false")
        .arg("--pod-logs-dir")
        .arg(paths.root.join("logs/pods"))
        .arg("--container-logs-dir")
        .arg(paths.root.join("logs/containers"))
        .stdout(out)
        .stderr(err);
    let agent = Running::start("longshore", &mut command)?;
    say!("");
    say!("longshore runs on {}", paths.manifests.display());
    say!("  its log     {}", paths.log.display());
    say!("  its state   {}", paths.root.display());
    say!("  pods' logs  {}", paths.root.join("logs").display());
    for socket in sockets(&paths.root) {
        say!("  its socket  {}", socket.display());
    }
    say!("Ask it: {} get pods --root-dir {}", paths.binary.display(), paths.root.display());
    say!("(or describe pod web-…, logs, why, plan in the place of get pods)");
    say!("Edit, add or remove a file there, and it follows within a second.");
    say!("");
    Ok(agent)
}

/// The agent's sockets, once they are there (a few seconds at most).
fn sockets(root: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::FileTypeExt as _;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let found: Vec<_> =
            entries.filter(|it| it.file_type().is_ok_and(|kind| kind.is_socket())).map(|it| it.path()).collect();
        if !found.is_empty() || Instant::now() > deadline || process::interrupted() {
            return found;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Shows the pods until all are Ready (`--once`) or Ctrl-C; true when all are Ready.
fn watch(paths: &Paths, agent: &mut Running, expected: usize, args: &Demo) -> Result<bool> {
    let started = Instant::now();
    let limit = Duration::from_secs(args.limit);
    let mut table = table::Table::new(started);
    let mut told = false;
    loop {
        if process::interrupted() {
            return Ok(false);
        }
        if let Some(status) = agent.try_wait()? {
            let text = fs::read_to_string(&paths.log).unwrap_or_default();
            bail!("longshore ended ({status}); {} ends:\n{}", paths.log.display(), say::tail(&text, 20));
        }
        // Until its socket is there, there is nothing to show.
        let pods = pods::list(paths).unwrap_or_default();
        table.show(&pods);
        let ready = pods.len() >= expected && pods.iter().all(|pod| pod.ready);
        if ready && !told {
            told = true;
            table.note(&format!("all {} pods are Ready after {:.1} s", pods.len(), started.elapsed().as_secs_f32()));
            if args.once {
                return Ok(true);
            }
            table.note("`flaky` turns unhealthy after 30 seconds and is restarted; Ctrl-C ends the show");
        }
        if args.once && started.elapsed() > limit {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Says why each pod that is not Ready is not, and how the log ends.
fn explain(paths: &Paths) {
    for pod in pods::list(paths).unwrap_or_default().iter().filter(|pod| !pod.ready) {
        let name = format!("{}/{}", pod.namespace, pod.name);
        say!("--- longshore why {name}");
        let mut command = Command::new(&paths.binary);
        command.arg("why").arg(&name).arg("--root-dir").arg(&paths.root);
        match process::output("longshore why", &mut command, Duration::from_secs(10)) {
            Ok(text) => say!("{}", text.trim_end()),
            Err(error) => say!("{error:#}"),
        }
    }
    say!("--- the end of {}", paths.log.display());
    say!("{}", say::tail(&fs::read_to_string(&paths.log).unwrap_or_default(), 40));
}

/// What keeps running, and how to stop it.
fn farewell(paths: &Paths, args: &Demo) {
    let command = args.command();
    say!("");
    say!("The agent has stopped. Its pods keep running, as they do through an upgrade:");
    say!("  see them           docker ps --filter label=dev.longshore.root");
    say!("  take them up again {command}        (adopts them: nothing restarts)");
    say!("  remove all of it   {command} --stop (pods, images, {})", paths.root.display());
    say!("{}", engine::owner(&paths.root).keeps_running());
}

/// Removes all that a demo left.
fn stop(paths: &Paths) -> Result<bool> {
    if !paths.root.exists() {
        say!("there is no demo at {}", paths.root.display());
        return Ok(true);
    }
    agent::end(&paths.root)?;
    let engine = engine::find_or_start(&paths.root)?;
    let graceful = if !paths.root.join("id").exists() {
        // No agent ever ran here: there are no pods.
        Ok(())
    } else if paths.binary.is_file() && paths.manifests.is_dir() {
        start(paths, &engine.socket).and_then(|mut agent| {
            let removed = pods::remove_all(paths);
            agent.stop(Duration::from_secs(20));
            removed
        })
    } else {
        Err(anyhow::anyhow!("{} is not built any more", paths.binary.display()))
    };
    if let Err(error) = graceful {
        say!("the pods did not go by themselves ({error:#}); removing the containers of this root dir by force");
        let count = pods::remove_by_force(&engine.socket, &paths.root)?;
        say!("{count} containers removed");
    }
    images::remove_all(&engine.socket)?;
    engine::stop(&paths.root)?;
    engine::clean(&paths.root)?;
    say!("the demo is gone");
    Ok(true)
}

/// Removes the containers that carry `label` in the daemon at `socket`.
///
/// # Errors
/// When the daemon refuses.
fn remove_labelled(socket: &Path, label: &str) -> Result<usize> {
    let filters = format!("%7B%22label%22%3A%5B%22{}%22%5D%7D", label.replace('=', "%3D"));
    docker::remove_containers(socket, &filters)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        demo: Demo,
    }

    #[test]
    fn what_is_to_be_typed_is_for_the_same_demo() {
        let command = |flags: &[&str]| Line::try_parse_from([&["demo"][..], flags].concat()).unwrap().demo.command();
        assert_eq!(command(&["--once"]), "cargo xtask demo");
        assert_eq!(command(&["--debug", "--root-dir", "/tmp/d"]), "cargo xtask demo --debug --root-dir /tmp/d");
    }
}
