//! Where things are: the tree, the target folder, the cache. Must not put anything there.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// The folders that xtask works in.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The root of the tree.
    pub root: PathBuf,
    /// cargo's target folder.
    pub target: PathBuf,
    /// What is dear to make and good for every clone: `${XDG_CACHE_HOME:-~/.cache}/longshore`.
    pub cache: PathBuf,
}

impl Place {
    /// Finds them.
    ///
    /// # Errors
    /// When neither `XDG_CACHE_HOME` nor `HOME` is set.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .context("host/xtask has no grandparent")?
            .to_owned();
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder));
        let cache = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
            (Some(cache), _) if Path::new(&cache).is_absolute() => PathBuf::from(cache),
            (_, Some(home)) => PathBuf::from(home).join(".cache"),
            _ => bail!("neither XDG_CACHE_HOME nor HOME is set: set one, built Dockers and disk images are kept there"),
        };
        Ok(Self { root, target, cache: cache.join("longshore") })
    }

    /// Our own corner of the target folder.
    pub(crate) fn work(&self) -> PathBuf {
        self.target.join("xtask")
    }

    /// The log of the step called `name`, emptied.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn fresh_log(&self, name: &str) -> Result<PathBuf> {
        let log = self.work().join("logs").join(format!("{}.log", name.replace([' ', '/', ':'], "-")));
        std::fs::create_dir_all(self.work().join("logs"))?;
        std::fs::write(&log, b"").with_context(|| format!("{}", log.display()))?;
        Ok(log)
    }
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this machine has apt and dpkg: Debian, Ubuntu and their children.
pub(crate) fn has_apt() -> bool {
    crate::process::on_path("apt-get").is_some() && crate::process::on_path("dpkg").is_some()
}
