//! `cargo xtask test`: all set-up, then every check and every test, one line for each with its time; the last
//! line counts them. Must not hold a test itself.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    cluster::{self, Kubernetes, clients},
    compile::{self, CLIPPY, Compiled, Executable, cargo, linting},
    deny, docker,
    docker::Flavor,
    guests,
    place::Place,
    process,
    report::{Outcome, Report, counts, once_more},
    room, say, vm,
    world::{self, World},
};

/// `cargo xtask test`.
#[derive(Args, Debug)]
pub(crate) struct Test {
    /// Only what needs neither root nor Docker: format, lints, units, properties, tidy.
    #[arg(long)]
    fast: bool,
    /// No emulated machine (it takes minutes).
    #[arg(long)]
    no_vm: bool,
    /// No tests of a node in a real cluster, whose control plane is built first (minutes, once).
    #[arg(long)]
    no_cluster: bool,
    /// Also in clusters of the oldest and the newest Kubernetes, on the oldest Docker as well; what takes minutes in a cluster;
    /// Kubernetes' own tests of nodes; and the emulated machine with its clock set, after a power cut, on Docker 29, and as a node:
    /// memory, a full disk, boots without the API server (two hours).
    #[arg(long)]
    long: bool,
    /// Only end-to-end tests whose names contain this; nothing else is checked.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

/// Which machine a run emulates, and fills.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    NoMachine,
    Usual,
    Long,
}

impl Test {
    /// Of this run.
    pub(crate) fn extent(&self) -> Extent {
        match self.fast || self.no_vm || self.only.is_some() {
            true => Extent::NoMachine,
            false if self.long => Extent::Long,
            false => Extent::Usual,
        }
    }
}

/// How the names of tests begin that need a cluster.
const CLUSTER: &str = "cluster_";

/// Those of them that take minutes each, and are for `--long` or for whoever asks for them by that name.
const LONG: &str = "::cluster_long_";

/// End-to-end tests wait more than they work.
const AT_ONCE: &str = "--test-threads=4";

const MINUTE: Duration = Duration::from_secs(60);

/// Runs everything; true when nothing failed.
///
/// # Errors
/// When interrupted, or when not even set-up is possible.
pub(crate) fn run(place: &Place, args: &Test) -> Result<bool> {
    let mut report = Report::default();
    let result = steps(place, args, &mut report);
    if let Err(error) = &result {
        report.note_failure(&format!("{error:#}"));
    }
    report.finish();
    Ok(result.is_ok() && report.is_green())
}

fn steps(place: &Place, args: &Test, report: &mut Report) -> Result<()> {
    if !args.fast {
        // Said at once, not after minutes of compiling.
        world::require()?;
    }
    room::look(place, args);
    let full = args.only.is_none();
    let built = report.step("plugins: build", || {
        guests::build(&place.root)?;
        Ok(Outcome::NOTHING)
    })?;
    if full {
        report.step("format", || check(place, "format", cargo(place).args(["fmt", "--all", "--check"])))?;
        deny::steps(place, args.fast, report)?;
    }
    if !built {
        report.skip("tests", "the plugins do not build");
        return Ok(());
    }
    let mut compiled = None;
    report.step("compile", || {
        compiled = Some(compile::compile(place)?);
        Ok(Outcome::NOTHING)
    })?;
    let Some(Compiled { tests, warnings }) = compiled else {
        report.skip("tests", "they do not compile");
        return Ok(());
    };
    if full {
        report.step("clippy", || match warnings.as_str() {
            "" if !compile::has_clippy() => bail!("{CLIPPY} does not run; `rustup component add clippy`"),
            "" => Ok(Outcome::PASSED),
            warnings => bail!("{}", say::tail(warnings, 80)),
        })?;
    }
    let (on_docker, others): (Vec<_>, Vec<_>) = tests.into_iter().partition(Executable::needs_docker);
    if full {
        for test in &others {
            report.step(&test.title(), || {
                let mut command = Command::new(&test.path);
                test.environment(place, &mut command);
                counted(place, &test.title(), &mut command, 15 * MINUTE)
            })?;
        }
        report.step("documentation examples", || {
            let mut command = linting(place);
            command.args(["test", "--quiet", "--workspace", "--doc"]);
            counted(place, "doc", &mut command, 15 * MINUTE)
        })?;
        plugins(place, report)?;
        examples(place, report)?;
    }
    if args.fast {
        report.skip("end to end", "--fast");
        return Ok(());
    }
    end_to_end(place, args, report, &on_docker)
}

fn end_to_end(place: &Place, args: &Test, report: &mut Report, tests: &[Executable]) -> Result<()> {
    let mut flavors = Vec::new();
    report.step("docker: the system's", || {
        flavors.push(docker::system()?);
        Ok(Outcome::NOTHING)
    })?;
    flavors.extend(report.obtain("docker: 29", || docker::twenty_nine(place))?);
    for flavor in &flavors {
        for test in tests.iter().filter(|test| args.only.is_none() || test.name == "e2e") {
            in_world(place, args.only.as_deref(), report, test, flavor)?;
        }
    }
    if let (None, Some(flavor)) = (&args.only, flavors.first()) {
        report.step(&format!("{}: demo --once", flavor.name), || demo(place, flavor))?;
    }
    // What depends on how Docker makes its rules for packets.
    let whole = tests.iter().find(|test| test.name == "e2e" && args.only.is_none());
    if let (Some(e2e), Some(flavor)) = (whole, flavors.iter().find(|flavor| flavor.programs.is_some())) {
        in_world(place, Some("own_network"), report, e2e, &docker::with_nftables(flavor.clone()))?;
    }
    let e2e = tests.iter().find(|test| test.name == "e2e");
    if args.no_cluster {
        report.skip("end to end in a cluster", "--no-cluster");
    } else if let (Some(e2e), Some(oldest), Some(newest)) = (e2e, flavors.first(), flavors.last()) {
        in_cluster(place, args, report, e2e, (cluster::KUBERNETES, newest), false)?;
        if args.long || args.only.as_ref().is_some_and(|only| only.contains("long")) {
            in_cluster(place, args, report, e2e, (cluster::KUBERNETES, newest), true)?;
        }
        if args.long {
            for pair in [(cluster::OLDEST, oldest), (cluster::NEWEST, oldest), (cluster::NEWEST, newest)] {
                in_cluster(place, args, report, e2e, pair, false)?;
            }
            let name = format!("conformance: Kubernetes {}", cluster::KUBERNETES);
            report.step(&name, || conformance(place, newest))?;
        }
    }
    if args.no_vm || args.only.is_some() {
        report.skip("virtual machine", "not asked for");
        return Ok(());
    }
    match e2e {
        Some(e2e) => vm::test(place, report, &e2e.path, None, args.long),
        None => {
            report.skip("virtual machine", "the tree has no tests/tests/e2e");
            Ok(())
        }
    }
}

/// A test binary, or those of its tests whose names contain `only`, in a world with that Docker.
fn in_world(place: &Place, only: Option<&str>, report: &mut Report, test: &Executable, flavor: &Flavor) -> Result<()> {
    report.step(&format!("{}: {}", flavor.name, test.title()), || {
        let limit = 20 * MINUTE;
        // Once: what the first run had, the second must not do without.
        let world = World::prepare(place, flavor.clone())?;
        once_more(&|again| {
            let mut command = vec![test.path.display().to_string()];
            if again.is_empty() {
                command.extend(only.map(str::to_owned));
                // Those have a step of their own.
                command.extend(["--skip".to_owned(), CLUSTER.to_owned()]);
                if test.name == "e2e" {
                    command.push(AT_ONCE.to_owned());
                }
            } else {
                command.extend(by_name(again));
            }
            let mut command = world.command(place, &command, limit);
            test.environment(place, &mut command);
            let log = format!("{}-{}{}", flavor.name, test.title(), suffix(again));
            counted(place, &log, &mut command, limit + 2 * MINUTE)
        })
    })?;
    Ok(())
}

/// What README begins with, with what was built already.
fn demo(place: &Place, flavor: &Flavor) -> Result<Outcome> {
    let world = World::prepare(place, flavor.clone())?;
    let root = tempfile::Builder::new().prefix("longshore-demo-").tempdir().context("a temporary folder")?;
    let arguments = ["demo", "--once", "--debug", "--no-build", "--root-dir"].map(str::to_owned);
    let mut command = vec![world.program.display().to_string()];
    command.extend(arguments.into_iter().chain([root.path().display().to_string()]));
    check(place, "demo", &mut world.command(place, &command, 5 * MINUTE))
}

/// Kubernetes' own tests of nodes, on the agent that was built already.
fn conformance(place: &Place, flavor: &Flavor) -> Result<Outcome> {
    let mut command = Command::new(World::prepare(place, flavor.clone())?.program);
    command.env("LONGSHORE_BIN", place.target.join("debug/longshore")).arg("conformance");
    check_within(place, "conformance-run", &mut command, 120 * MINUTE)
}

/// The arguments for those tests, one after the other.
pub(crate) fn by_name(names: &[String]) -> impl Iterator<Item = String> {
    ["--exact", "--test-threads=1"].map(str::to_owned).into_iter().chain(names.iter().cloned())
}

/// Keeps the tests' own log of what failed.
pub(crate) fn suffix(again: &[String]) -> &'static str {
    if again.is_empty() { "" } else { "-again" }
}

/// The tests of a node in a cluster of that Kubernetes, on that Docker: in a world with a control plane in it.
fn in_cluster(
    place: &Place,
    args: &Test,
    report: &mut Report,
    e2e: &Executable,
    (kubernetes, flavor): (&str, &Flavor),
    long: bool,
) -> Result<()> {
    let list = process::output("e2e --list", Command::new(&e2e.path).arg("--list"), MINUTE)?;
    let names = list.lines().filter_map(|line| line.strip_suffix(": test")).filter(|name| name.starts_with(CLUSTER));
    let names = names.filter(|name| name.contains(LONG) == long);
    let names: Vec<&str> = names.filter(|name| args.only.as_ref().is_none_or(|only| name.contains(only))).collect();
    if names.is_empty() {
        return Ok(());
    }
    let built = report.obtain(&format!("cluster-{kubernetes}: build"), || Kubernetes::find(place, kubernetes))?;
    let Some(kubernetes) = built else { return Ok(()) };
    report.obtain("cluster: other clients", || clients::fetch(place))?;
    let part = if long { "what takes minutes" } else { "end to end" };
    report.step(&format!("cluster-{} on {}: {part}", kubernetes.version, flavor.name), || {
        let limit = 15 * MINUTE;
        let world = World::prepare(place, flavor.clone())?;
        once_more(&|again| {
            let folder = tempfile::Builder::new().prefix(cluster::PREFIX).tempdir().context("a temporary folder")?;
            let mut tests = vec![e2e.path.display().to_string()];
            if again.is_empty() {
                tests.extend(["--exact", AT_ONCE].map(str::to_owned));
                tests.extend(names.iter().map(|name| (*name).to_owned()));
            } else {
                tests.extend(by_name(again));
            }
            let mut command = vec![world.program.display().to_string()];
            command.extend(cluster::inside(&kubernetes.version, true, limit.as_secs(), folder.path(), &tests));
            let mut command = world.command(place, &command, limit + MINUTE);
            e2e.environment(place, &mut command);
            let kind = if long { "-long" } else { "" };
            let log = format!("cluster-{}{kind}{}", kubernetes.version, suffix(again));
            counted(place, &log, &mut command, limit + 3 * MINUTE)
        })
    })?;
    Ok(())
}

/// The guests' workspace: its format, its lints as it is built and as it is tested, and its own tests. They run natively: what they
/// decide needs no WebAssembly.
fn plugins(place: &Place, report: &mut Report) -> Result<()> {
    let cargo = |arguments: &[&str]| cargo_in(place, "plugins", "plugins-native", arguments);
    report.step("plugins: format", || check(place, "plugins-format", &mut cargo(&["fmt", "--all", "--check"])))?;
    report.step("plugins: clippy", || {
        // As they are tested. A guest from which nothing is exported is dead code, for WebAssembly alone it is not.
        let lints = ["-D", "warnings", "-A", "dead_code"];
        let arguments = [&["clippy", "--quiet", "--workspace", "--tests", "--locked", "--"], lints.as_slice()].concat();
        check(place, "plugins-clippy", &mut cargo(&arguments))
    })?;
    report.step("plugins: clippy for WebAssembly", || {
        check(place, "plugins-clippy-wasm", &mut guests::clippy(&place.root)?)
    })?;
    report.step("plugins, natively", || {
        let arguments = ["test", "--quiet", "--workspace", "--locked"];
        counted(place, "plugins", &mut cargo(&arguments), 15 * MINUTE)
    })?;
    Ok(())
}

/// The server of the examples, which is a workspace of its own as well and has no tests: its format and its lints.
fn examples(place: &Place, report: &mut Report) -> Result<()> {
    let cargo = |arguments: &[&str]| cargo_in(place, "examples/servers", "examples", arguments);
    report.step("examples: format", || check(place, "examples-format", &mut cargo(&["fmt", "--check"])))?;
    report.step("examples: clippy", || {
        let arguments = ["clippy", "--quiet", "--all-targets", "--locked", "--", "-D", "warnings"];
        check(place, "examples-clippy", &mut cargo(&arguments))
    })?;
    Ok(())
}

/// cargo in the workspace of that folder, with a target folder of its own below ours.
fn cargo_in(place: &Place, folder: &str, target: &str, arguments: &[&str]) -> Command {
    let mut command = cargo(place);
    command.current_dir(place.root.join(folder)).args(arguments);
    command.env("CARGO_TARGET_DIR", place.target.join(target));
    command
}

/// A check that passes or fails as a whole; what it printed is shown when it fails.
pub(crate) fn check(place: &Place, name: &str, command: &mut Command) -> Result<Outcome> {
    check_within(place, name, command, 30 * MINUTE)
}

fn check_within(place: &Place, name: &str, command: &mut Command, limit: Duration) -> Result<Outcome> {
    let log = place.fresh_log(name)?;
    if process::logged(name, command, &log, limit)? {
        return Ok(Outcome::PASSED);
    }
    bail!("{}", say::tail(&fs::read_to_string(&log)?, 80))
}

/// Test binaries: their `test result:` lines are added up; what failed is shown.
pub(crate) fn counted(place: &Place, name: &str, command: &mut Command, limit: Duration) -> Result<Outcome> {
    let log = place.fresh_log(name)?;
    let skips = log.with_extension("skips");
    let _ = fs::remove_file(&skips);
    let started = Instant::now();
    let ended = process::logged(name, command.env("LONGSHORE_TEST_SKIPS", &skips), &log, limit);
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let mut outcome = counts(&text);
    outcome.leave_out(&fs::read_to_string(&skips).unwrap_or_default());
    match ended {
        Ok(true) => Ok(outcome),
        Ok(false) => {
            outcome.failed = outcome.failed.max(1);
            outcome.details = Some(format!("{}\n(whole log: {})", say::tail(&text, 120), log.display()));
            Ok(outcome)
        }
        Err(error) => {
            process::check_interrupted()?;
            let seconds = started.elapsed().as_secs();
            bail!("after {seconds} s: {error:#}\n{}\n(whole log: {})", say::tail(&text, 60), log.display())
        }
    }
}
