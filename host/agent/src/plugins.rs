//! The plugins, compiled once: in a process of its own, so that the compiler's memory goes with it.
//!
//! What the compiler leaves in this process' heap (20 MiB, measured) is more than the agent itself needs. Which plugins
//! there are and what they may do is the plugin host's.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use longshore_core::pod::Pod;
use longshore_core::ports::exec::ContainerExec;
use longshore_docker::{Docker, DockerOptions};
use longshore_reconcile::views::Views;
use longshore_wasm::{PluginSource, ProbeHost, UrlSource};

use crate::config::{Config, DEFAULT_DOCKER, ManifestUrl};
use crate::memory;

/// Name of the command that compiles; it is not for people.
pub(crate) const COMPILE: &str = "compile-plugins";
/// A slow machine takes some seconds.
const COMPILE_LIMIT: Duration = Duration::from_secs(120);

/// Loads the plugins of `root`'s cache, which is filled first when it is not of this binary.
pub(crate) async fn load(root: &Path, exec: Arc<dyn ContainerExec>) -> anyhow::Result<ProbeHost> {
    let cache = root.join("plugins").join("cache");
    let mark = root.join("plugins").join("compiled-by");
    let own = identity();
    if own.is_none() || std::fs::read_to_string(&mark).ok() != own {
        match compile_apart(&cache).await {
            Ok(()) => {
                // Without the mark the next start only looks again.
                let _ = own.map(|own| std::fs::write(&mark, own));
            }
            Err(error) => tracing::warn!("{error:#}; the probe plugins are compiled in the agent itself"),
        }
    }
    let host = tokio::task::spawn_blocking(move || ProbeHost::new(exec, &cache)).await?;
    memory::give_back();
    host.context("the probe plugins")
}

/// Loads them as they were compiled for this binary; `None` when they are not yet. What is damaged
/// in the cache is mended, as at every start.
pub(crate) async fn load_compiled(root: &Path, exec: Arc<dyn ContainerExec>) -> anyhow::Result<Option<ProbeHost>> {
    let cache = root.join("plugins").join("cache");
    let own = identity();
    if own.is_none() || std::fs::read_to_string(root.join("plugins").join("compiled-by")).ok() != own {
        return Ok(None);
    }
    let host = tokio::task::spawn_blocking(move || ProbeHost::new(exec, &cache)).await?;
    host.context("the probe plugins").map(Some)
}

/// Fills the cache: what the process of its own does.
pub(crate) fn compile(cache: &Path) -> anyhow::Result<()> {
    // Nothing is probed here, so nothing is executed; the runtime is never asked.
    let nobody = Docker::connect(DEFAULT_DOCKER, String::new(), DockerOptions::default())?;
    let probes = ProbeHost::new(Arc::new(nobody), cache).context("the probe plugins")?;
    // Most nodes have no manifest URL: its guest is compiled with the others, and loaded only where it is wanted.
    probes.sources().and_then(|sources| sources.compile_built_in()).context("the manifest URL's plugin")
}

/// The manifest URL's source, when there is one. `former` are the pods of it that ran before this start.
pub(crate) fn manifest_url(
    config: &Config,
    probes: &ProbeHost,
    node_name: &str,
    former: Vec<Pod>,
    views: &Arc<Views>,
) -> anyhow::Result<Option<Arc<PluginSource>>> {
    let ManifestUrl { url, headers, ca_file, period } = config.manifest_url.clone();
    let Some(url) = url else { return Ok(None) };
    let (node_name, version) = (node_name.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    let url = UrlSource { url, headers: headers.0, period, ca_file, node_name, version, former };
    let source = probes.sources().and_then(|sources| sources.url(url)).context("the manifest URL's plugin")?;
    // Until it has answered once there is no snapshot that would tell what is wrong with it.
    let (mut unsaid, views) = (source.problems(), Arc::clone(views));
    tokio::spawn(async move {
        while let Some(problems) = unsaid.next().await {
            views.set_problems("the manifest URL", problems);
        }
    });
    Ok(Some(Arc::new(source)))
}

async fn compile_apart(cache: &Path) -> anyhow::Result<()> {
    // The kernel's own name for this binary: it holds also while an upgrade replaces the file.
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command.arg(COMPILE).arg(cache).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    // The child is none of systemd's business.
    command.env_remove("NOTIFY_SOCKET");
    let ended = tokio::time::timeout(COMPILE_LIMIT, command.status()).await;
    let status = ended.context("compiling the probe plugins took too long")?.context("compiling cannot be started")?;
    match status.success() {
        true => Ok(()),
        false => anyhow::bail!("compiling the probe plugins failed ({status})"),
    }
}

/// What tells this binary from others: its place, size and time.
fn identity() -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let path: PathBuf = std::env::current_exe().ok()?;
    let found = std::fs::metadata(&path).ok()?;
    Some(format!("{} {} {}.{}\n", path.display(), found.size(), found.mtime(), found.mtime_nsec()))
}
