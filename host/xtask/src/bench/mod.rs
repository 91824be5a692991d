//! `cargo xtask bench`: figures against a baseline of the same run, as a table and as JSON under `target/bench/`.
//! Never a test: nothing here fails for being slow.

mod agent;
mod alone;
mod cluster;
mod machine;
mod pods;
mod stream;
mod table;
mod watch;

use std::{env, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use self::table::Row;
use crate::{
    docker, guests,
    place::Place,
    process::{self, Running},
    say,
    world::World,
};

/// `cargo xtask bench`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Bench {
    /// What to measure.
    what: What,
    /// Numbers of pods for `pods`.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 30, 60])]
    counts: Vec<usize>,
    /// Number of pods for `idle`.
    #[arg(long, default_value_t = 60)]
    idle_pods: usize,
    /// How long `idle` looks, seconds.
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
    /// Number of pods for `adopt`.
    #[arg(long, default_value_t = 100)]
    adopt_pods: usize,
    /// How often each thing is done; the best counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Which Docker: `system`, `29` or `29-nftables`.
    #[arg(long, default_value = "29")]
    docker: String,
    /// Use the debug build, to try the benchmark itself.
    #[arg(long)]
    debug: bool,
    /// Build nothing: use what was built before.
    #[arg(long)]
    no_build: bool,
    /// We are in the world already.
    #[arg(long, hide = true)]
    inside: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum What {
    /// Created → Ready, deleted → gone, against Docker alone.
    Pods,
    /// CPU and memory of the agent over pods that do nothing.
    Idle,
    /// Restart of the agent over running pods.
    Adopt,
    /// exec, port-forward and logs through the node's server, against the bare things.
    Stream,
    /// Pods of a real cluster's API server on a node of it (not part of `all`).
    Cluster,
    /// One call of a probe plugin.
    Probe,
    /// One plan.
    Plan,
    /// All of them.
    All,
}

const NEED_DOCKER: [What; 4] = [What::Pods, What::Idle, What::Adopt, What::Stream];

/// Runs the benchmarks; true when they ran.
///
/// # Errors
/// When something cannot be built, started or measured.
pub(crate) fn run(place: &Place, args: &Bench) -> Result<bool> {
    if args.inside {
        return inside(place, args).map(|()| true);
    }
    let all = args.what == What::All;
    if !args.no_build {
        guests::build(&place.root)?;
    }
    if args.what == What::Cluster {
        build(place, args, &["-p", "longshore-agent", "--bin", "longshore"])?;
        return in_cluster(place, args);
    }
    if all || NEED_DOCKER.contains(&args.what) {
        build(place, args, &["-p", "longshore-agent", "--bin", "longshore"])?;
        let world = World::prepare(place, docker::named(place, &args.docker)?)?;
        // The arguments as they were given, to ourselves in a world.
        let mut command = vec![world.program.display().to_string(), "bench".to_owned(), "--inside".to_owned()];
        command.extend(env::args().skip(2));
        let limit = Duration::from_secs(3600);
        let mut command = world.command(place, &command, limit);
        if !Running::start("bench", &mut command)?.wait(limit + Duration::from_secs(120))?.success() {
            bail!("the benchmark failed");
        }
    }
    if all || args.what == What::Probe {
        example(place, args, "longshore-wasm", "bench_probe", "probe")?;
    }
    if all || args.what == What::Plan {
        example(place, args, "longshore-core", "bench_plan", "plan")?;
    }
    Ok(true)
}

/// Ourselves again, beside a node of a cluster that is made for it.
fn in_cluster(place: &Place, args: &Bench) -> Result<bool> {
    let program = env::current_exe().context("our own program")?;
    let mut command = Command::new(&program);
    command.env("LONGSHORE_BIN", place.target.join(profile(args)).join("longshore"));
    command.args(["cluster", "--docker", &args.docker, "--"]).arg(&program).args(["bench", "--inside"]);
    command.args(env::args().skip(2));
    let limit = Duration::from_secs(3600);
    if !Running::start("bench", &mut command)?.wait(limit)?.success() {
        bail!("the benchmark failed");
    }
    Ok(true)
}

fn build(place: &Place, args: &Bench, what: &[&str]) -> Result<()> {
    if args.no_build {
        return Ok(());
    }
    say!("building {}", what[1]);
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&place.root).args(["build", "--quiet"]).args(what);
    if !args.debug {
        command.arg("--release");
    }
    if !Running::start("cargo build", &mut command)?.wait(Duration::from_secs(3600))?.success() {
        bail!("{what:?} does not compile");
    }
    Ok(())
}

fn profile(args: &Bench) -> &'static str {
    if args.debug { "debug" } else { "release" }
}

/// A room's own benchmark, an example that prints one JSON value: printed as it is, and saved.
fn example(place: &Place, args: &Bench, package: &str, example: &str, name: &str) -> Result<()> {
    build(place, args, &["-p", package, "--example", example])?;
    let program = place.target.join(profile(args)).join("examples").join(example);
    let text = process::output(example, Command::new(&program).current_dir(&place.root), Duration::from_secs(900))?;
    let figures: Value = serde_json::from_str(&text).with_context(|| format!("{example} printed no JSON: {text}"))?;
    say!("{name}:");
    flat("", &figures, &mut |what, value| say!("  {what:<48}  {value}"));
    let file = place.target.join("bench").join(format!("{name}.json"));
    fs::create_dir_all(place.target.join("bench"))?;
    let about = json!({"machine": machine::describe(), "profile": profile(args)});
    fs::write(&file, serde_json::to_string_pretty(&json!({"about": about, "figures": figures}))? + "\n")?;
    say!("saved as {}", file.display());
    say!("");
    Ok(())
}

/// Calls `each` for every leaf of `value`, with its path.
fn flat(path: &str, value: &Value, each: &mut impl FnMut(&str, &Value)) {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| flat(&join(key), value, each)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, value)| flat(&join(&at.to_string()), value, each))
        }
        leaf => each(path, leaf),
    }
}

/// The part that needs pods, in a world.
fn inside(place: &Place, args: &Bench) -> Result<()> {
    let noise = machine::noise()?;
    if noise > 0.1 {
        say!("warning: {noise:.2} cores are busy with something else: the figures will not be worth much");
    }
    let about = json!({
        "machine": machine::describe(),
        "docker": env::var("LONGSHORE_TEST_DOCKER").unwrap_or_default(),
        "profile": profile(args),
        "busy cores before": noise,
    });
    let publish = |name: &str, rows: Vec<Row>| {
        say!("{name}:");
        table::publish(&rows, &about, &place.target.join("bench").join(format!("{name}.json")))
    };
    if args.what == What::Cluster {
        return publish("cluster", cluster::run(&args.counts, args.rounds, args.idle_seconds)?);
    }
    let host = env::var("DOCKER_HOST").context("DOCKER_HOST")?;
    let setting = pods::Setting {
        binary: place.target.join(profile(args)).join("longshore"),
        folder: PathBuf::from("/var/lib/longshore-bench"),
        docker: host.trim_start_matches("unix://").into(),
    };
    pods::empty(&setting.folder)?;
    let all = args.what == What::All;
    if all || args.what == What::Pods {
        publish("pods", pods::start_and_stop(&setting, &args.counts, args.rounds)?)?;
    }
    if all || args.what == What::Idle {
        publish("idle", pods::idle(&setting, args.idle_pods, args.idle_seconds)?)?;
    }
    if all || args.what == What::Adopt {
        publish("adopt", pods::adopt(&setting, args.adopt_pods, args.rounds)?)?;
    }
    if all || args.what == What::Stream {
        publish("stream", stream::run(&setting, args.rounds)?)?;
    }
    crate::demo::engine::clean(&setting.folder)
}
