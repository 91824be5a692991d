//! `cargo xtask fuzz`: the targets of `tests/fuzz` under libFuzzer, which begins with their seeds and with what it found
//! before (`target/fuzz/<target>`). Our own crates are instrumented, those of others are the usual build's, so that
//! nothing is built twice; without sanitizers, for there is hardly any unsafe code, and any toolchain will do.

use std::{env, fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    place::Place,
    process::{self, Running},
    say,
};

/// `cargo xtask fuzz`.
#[derive(Args, Debug)]
pub(crate) struct Fuzz {
    /// Which targets; all of them, one after the other, when none is named.
    targets: Vec<String>,
    /// How long each is tried.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// What rustc is told besides: the coverage that libFuzzer goes by.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// Bytes of an input at most: more than any bound that is to be tried.
const INPUT: u32 = 128 << 10;
/// Seconds that one input may take, and MiB that it may need.
const LIMITS: (u32, u32) = (10, 1024);

/// Runs them; true when they found nothing.
///
/// # Errors
/// When a target is not known, or the fuzzer cannot be built or started.
pub(crate) fn run(place: &Place, args: &Fuzz) -> Result<bool> {
    let folder = place.target.join("fuzz");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let known = targets(place)?;
    let chosen = if args.targets.is_empty() { known.clone() } else { args.targets.clone() };
    if let Some(name) = chosen.iter().find(|name| !known.contains(name)) {
        bail!("there is no target {name:?}, only {}", known.join(", "));
    }
    let program = build(place)?;
    let mut found = Vec::new();
    for name in &chosen {
        say!("{name}, for {} s:", args.seconds);
        let corpus = folder.join(name);
        fs::create_dir_all(&corpus)?;
        let mut command = Command::new(&program);
        command
            .env("LONGSHORE_FUZZ_TARGET", name)
            .env("LONGSHORE_FUZZ_SEEDS", &corpus)
            .arg(&corpus)
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-max_len={INPUT}"))
            .arg(format!("-timeout={}", LIMITS.0))
            .arg(format!("-rss_limit_mb={}", LIMITS.1))
            .arg(format!("-artifact_prefix={}/{name}-", folder.display()))
            .args(["-print_final_stats=1", "-verbosity=0"]);
        let limit = Duration::from_secs(args.seconds + 120);
        if !Running::start(name, &mut command)?.wait(limit)?.success() {
            found.push(name.as_str());
        }
    }
    if !found.is_empty() {
        say!("found something: {}. Try it again with", found.join(", "));
        say!("  cargo run -p longshore-fuzz -- TARGET {}/TARGET-…", folder.display());
    }
    Ok(found.is_empty())
}

/// The targets' names, as the program that is not instrumented says them.
fn targets(place: &Place) -> Result<Vec<String>> {
    let mut command = cargo(place);
    command.args(["run", "--quiet", "--package", "longshore-fuzz", "--", "--list"]);
    let names = process::output("the targets", &mut command, Duration::from_secs(3600))?;
    Ok(names.lines().map(str::to_owned).collect())
}

fn cargo(place: &Place) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&place.root);
    command
}

/// The fuzzer.
fn build(place: &Place) -> Result<PathBuf> {
    if ["c++", "g++", "clang++"].iter().all(|name| process::on_path(name).is_none()) {
        bail!("libFuzzer needs a C++ compiler: install g++");
    }
    say!("building the fuzzer");
    let wrapper = place.target.join("fuzz/instrument");
    // Build scripts are programs of their own, without libFuzzer.
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *\" --crate-name build_script_\"*) exec \"$@\";; esac\nexec \"$@\" {COVERAGE}\n"
    );
    if fs::read_to_string(&wrapper).is_ok_and(|there| there != script) || !wrapper.exists() {
        fs::write(&wrapper, script)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    }
    let mut command = cargo(place);
    command.args(["build", "--quiet", "--package", "longshore-fuzz", "--features", "libfuzzer"]);
    command.env("RUSTC_WORKSPACE_WRAPPER", &wrapper).env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    if !Running::start("cargo build", &mut command)?.wait(Duration::from_secs(3600))?.success() {
        bail!("the fuzzer does not compile");
    }
    // The usual build puts its own program at the same place.
    let (built, kept) = (place.target.join("debug/longshore-fuzz"), place.target.join("fuzz/longshore-fuzz"));
    fs::copy(&built, &kept).with_context(|| built.display().to_string())?;
    Ok(kept)
}
