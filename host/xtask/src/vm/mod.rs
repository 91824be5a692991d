//! `cargo xtask vm`: what most users have and many build machines are not, under emulation: Debian 12 with systemd,
//! cgroup v2, the systemd driver, AppArmor, all capabilities, and a real reboot. Behaviour is tested there, never
//! speed.

mod alone;
mod checks;
mod clock;
mod image;
mod joined;
mod machine;
mod newer;
mod power;
mod short;
mod unit;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use clap::Args;

pub(crate) use self::checks::test;
use self::machine::Machine;
use crate::{place::Place, process, report::Report, say};

/// `cargo xtask vm`.
#[derive(Args, Debug)]
pub(crate) struct Vm {
    /// Make the disk image (in the cache) and end.
    #[arg(long)]
    image: bool,
    /// Run this build of the end-to-end tests in it, as `cargo xtask test` does, and end.
    #[arg(long, value_name = "BINARY")]
    test: Option<PathBuf>,
    /// Of `--test`, only the parts whose names contain this: end to end, off and on, clock steps, a power cut, Docker 29, and as a
    /// node of a cluster memory, disk, without the API server.
    #[arg(long, value_name = "PART", requires = "test")]
    only: Option<String>,
}

/// Opens the machine for a person, until Ctrl-C.
///
/// # Errors
/// When it cannot be made or does not boot.
pub(crate) fn open(place: &Place, args: &Vm) -> Result<bool> {
    let image = image::ensure(place)?;
    if args.image {
        say!("{}", image.folder.display());
        return Ok(true);
    }
    if let Some(e2e) = &args.test {
        let mut report = Report::default();
        test(place, &mut report, e2e, args.only.as_deref(), true)?;
        report.finish();
        return Ok(report.is_green());
    }
    let payload = place.work().join("vm/payload");
    let binary = place.target.join("debug/longshore");
    if !binary.is_file() {
        say!("{} is not built, so it is not in there: `cargo build` first", binary.display());
    }
    fill(place, &payload, &[&binary])?;
    let machine = Machine::boot(place, &image, &payload)?;
    unit::install(&machine)?;
    say!("it runs. A shell in it:");
    say!("  {}", machine.ssh_command());
    say!(
        "longshore is a service there that is not started, the images are in /payload; its console is {}",
        machine.console().display()
    );
    say!("Ctrl-C stops it and forgets its disk.");
    while !process::interrupted() && machine.runs() {
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(true)
}

/// Puts the `programs` that exist, the images and the manifests into `payload`.
fn fill(place: &Place, payload: &Path, programs: &[&Path]) -> Result<()> {
    if payload.exists() {
        fs::remove_dir_all(payload)?;
    }
    fs::create_dir_all(payload.join("manifests"))?;
    for program in programs.iter().filter(|program| program.is_file()) {
        image::copy_stripped(program, &payload.join(program.file_name().unwrap_or_default()))?;
    }
    fs::copy(place.root.join("examples").join(unit::FILE), payload.join(unit::FILE))?;
    let roots = crate::images::roots(place)?;
    fs::copy(&roots.busybox, payload.join("busybox.tar"))?;
    fs::copy(&roots.example, payload.join("example.tar"))?;
    for entry in fs::read_dir(place.root.join("examples/manifests"))? {
        let entry = entry?;
        fs::copy(entry.path(), payload.join("manifests").join(entry.file_name()))?;
    }
    Ok(())
}
