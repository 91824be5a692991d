//! cargo-deny on each workspace that has a lock of its own: walls, licences, sources, advisories. Must not know the rules, which
//! are in `.deny.toml`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{
    compile::{self, cargo},
    place::Place,
    process,
    report::{Outcome, Report},
    say,
    test::check,
};

/// The version that is installed when none is on the PATH.
const VERSION: &str = "0.20.2";

/// The workspaces: what our steps and logs call each, its manifest, and what it is built for where that is not what `.deny.toml` says.
/// (That of `examples/servers` has no dependencies.)
const WORKSPACES: [(&str, &str, &[&str]); 2] = [
    ("deny", "Cargo.toml", &[]),
    // cargo-deny takes the option once.
    ("plugins-deny", "plugins/Cargo.toml", &["--target", "wasm32-unknown-unknown"]),
];

/// Walls, licences and sources always; advisories when their database can be fetched.
///
/// # Errors
/// Only when we were interrupted.
pub(crate) fn steps(place: &Place, fast: bool, report: &mut Report) -> Result<()> {
    let program = match found(place) {
        Some(program) => program,
        None if fast => {
            report.skip("deny", "cargo-deny is not installed, and this is --fast");
            return Ok(());
        }
        None => match report.obtain("deny: set-up", || install(place))? {
            Some(program) => program,
            None => return Ok(()),
        },
    };
    for (name, manifest, targets) in WORKSPACES {
        let run = |what: &[&str]| {
            let mut command = Command::new(&program);
            command.current_dir(&place.root).env("CARGO", compile::program());
            command.arg("--manifest-path").arg(place.root.join(manifest)).args(["--workspace", "--all-features"]);
            command.args(targets).arg("--config").arg(place.root.join(".deny.toml")).arg("check").args(what);
            check(place, &format!("{name}-{}", what[0]), &mut command)
        };
        report.step(&format!("{name}: bans, licences, sources"), || run(&["bans", "licenses", "sources"]))?;
        report.step(&format!("{name}: advisories"), || match run(&["advisories"]) {
            Err(error) if format!("{error:#}").contains("failed to fetch advisory database") => {
                Ok(Outcome::skipped("the RustSec database cannot be fetched"))
            }
            other => other,
        })?;
    }
    Ok(())
}

fn found(place: &Place) -> Option<PathBuf> {
    process::on_path("cargo-deny").or_else(|| Some(program(&cached(place))).filter(|program| program.is_file()))
}

fn cached(place: &Place) -> PathBuf {
    place.cache.join(format!("cargo-deny-{VERSION}"))
}

fn program(folder: &Path) -> PathBuf {
    folder.join("bin/cargo-deny")
}

fn install(place: &Place) -> Result<PathBuf> {
    let folder = cached(place);
    say!("installing cargo-deny into {} (two or three minutes, once)", folder.display());
    let built = place.work().join("cargo-deny");
    let mut command = cargo(place);
    // It runs for seconds and compiles for minutes.
    command.args(["install", "--debug", "--locked", "--quiet", "--root"]).arg(&folder);
    command.arg(format!("cargo-deny@{VERSION}")).env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_TARGET_DIR", &built);
    let installed = check(place, "cargo-deny-install", &mut command);
    let _ = fs::remove_dir_all(built);
    installed?;
    Ok(program(&folder))
}
