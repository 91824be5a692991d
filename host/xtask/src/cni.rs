//! CNI's own plugins to test against: the machine's or Debian's, and new ones. Must not decide what they are used for.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{apt, go, place::Place, say};

/// The first ones that speak version 1.1.0 are of 1.6.
const NEW: &str = "v1.9.1";
const PROGRAMS: [&str; 5] = ["main/bridge", "ipam/host-local", "meta/portmap", "meta/bandwidth", "meta/firewall"];

/// Those of the machine, or Debian's, unpacked.
///
/// # Errors
/// When there are none, and Debian's cannot be had.
pub(crate) fn installed(place: &Place) -> Result<PathBuf> {
    let installed = ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from);
    if let Some(found) = installed.into_iter().find(|folder| folder.join("host-local").is_file()) {
        return Ok(found);
    }
    Ok(apt::unpack(&place.cache, "containernetworking-plugins")?.join("usr/lib/cni"))
}

/// Ones that speak CNI 1.1, from the cache, built there first when they are missing (a quarter of a minute).
///
/// # Errors
/// When they cannot be built: no Go, no network.
pub(crate) fn new(place: &Place) -> Result<PathBuf> {
    let folder = place.cache.join(format!("cni-plugins-{NEW}"));
    if folder.is_dir() {
        return Ok(folder);
    }
    let go = go::program("CNI 1.1")?;
    say!("building CNI's plugins {NEW} into {}", folder.display());
    let beside = |end: &str| folder.with_file_name(format!("cni-plugins-{NEW}.{end}"));
    let partial = beside("partial");
    go::fresh(&partial)?;
    let log = place.fresh_log("cni-plugins-build")?;
    let module = go::Module::open(go, beside("source"), log, Duration::from_secs(600))?;
    let packages = PROGRAMS.map(|program| format!("github.com/containernetworking/plugins/plugins/{program}"));
    let go_mod =
        format!("module longshore.dev/cni\n\ngo 1.26\n\nrequire github.com/containernetworking/plugins {NEW}\n");
    module.write(&go_mod, &packages.each_ref().map(String::as_str))?;
    module.run("go mod tidy", module.command(false).args(["mod", "tidy"]))?;
    let mut command = module.command(false);
    command.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(with_slash(&partial)).args(&packages);
    module.run("go build", &mut command)?;
    module.close();
    fs::rename(&partial, &folder).with_context(|| format!("{}", folder.display()))?;
    Ok(folder)
}

/// Go takes it for a folder then, whatever it is called.
fn with_slash(folder: &Path) -> PathBuf {
    folder.join("")
}
