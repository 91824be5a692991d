//! Debian packages: installed after saying so, or unpacked into the cache without installing.
//! Must not decide what is needed.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{place, process, say};

const LIMIT: Duration = Duration::from_secs(600);

/// Installs `packages`, which `why` is said for; the lists are fetched when they are missing or stale.
///
/// # Errors
/// When this is not a machine with apt, we are not root, or apt fails.
pub(crate) fn install(packages: &[&str], why: &str) -> Result<()> {
    if !place::has_apt() || !place::is_root() {
        bail!(
            "{why} needs the packages {} (named as in Debian): install them, or run this as root where apt-get is",
            packages.join(", ")
        );
    }
    say!("{why}: installing {} with apt-get", packages.join(", "));
    let install = || {
        let mut command = apt();
        command.args(["install", "-y", "--no-install-recommends"]).args(packages);
        process::output("apt-get install", &mut command, LIMIT)
    };
    if install().is_err() {
        update()?;
        install()?;
    }
    Ok(())
}

/// Downloads `package` and unpacks it (no scripts run, no service starts) into a folder of the cache.
/// Gives that folder; what is there already is used.
///
/// # Errors
/// When this is not a machine with apt, or the package cannot be had.
pub(crate) fn unpack(cache: &Path, package: &str) -> Result<PathBuf> {
    let folder = cache.join("debian").join(package);
    if folder.is_dir() {
        return Ok(folder);
    }
    if !place::has_apt() {
        bail!("{package} is fetched with apt-get, which this machine lacks");
    }
    say!("fetching Debian's {package} into {}", folder.display());
    let partial = cache.join("debian").join(format!("{package}.partial"));
    let _ = std::fs::remove_dir_all(&partial);
    std::fs::create_dir_all(&partial).with_context(|| format!("{}", partial.display()))?;
    download(&partial, &[package])?;
    for deb in debs(&partial)? {
        process::output("dpkg -x", Command::new("dpkg").arg("-x").arg(&deb).arg(&partial), LIMIT)?;
        std::fs::remove_file(deb)?;
    }
    std::fs::rename(&partial, &folder).with_context(|| format!("{}", folder.display()))?;
    Ok(folder)
}

/// Downloads `packages` as .deb files into `folder`.
///
/// # Errors
/// When apt fails, also after fetching its lists anew.
pub(crate) fn download(folder: &Path, packages: &[&str]) -> Result<()> {
    let download = || {
        let mut command = apt();
        // As root, apt drops to a user who may not write to our folder; it says so and goes on.
        command.current_dir(folder).args(["-o", "APT::Sandbox::User=root", "download"]).args(packages);
        process::output("apt-get download", &mut command, LIMIT)
    };
    if download().is_err() {
        update()?;
        download()?;
    }
    Ok(())
}

/// The .deb files of `folder`.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut debs = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "deb") {
            debs.push(path);
        }
    }
    Ok(debs)
}

fn update() -> Result<()> {
    process::output("apt-get update", apt().arg("update"), LIMIT)?;
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    command
}
