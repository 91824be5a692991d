//! `longshore takeover`: ends the containers of dockershim and cri-dockerd. Never another longshore's, and never
//! anything that is no pod's.

use anyhow::{Context, bail};
use futures::stream::{self, StreamExt};
use longshore_cni::ForeignAttachments;
use longshore_core::ports::network::PluginError;
use longshore_core::ports::runtime::{ContainerRuntime, ForeignContainer};
use longshore_docker::{Docker, DockerOptions};

use super::out;
use crate::config::Config;
use crate::print::table::{Table, row};

/// How many sandboxes the plugins are told of at once: each may take minutes.
const AT_ONCE: usize = 8;

/// Lists what would be removed, and without `dry_run` stops and removes it.
pub(crate) async fn takeover(config: &Config, dry_run: bool) -> anyhow::Result<()> {
    // No container has the empty ID, so all of ours are named as such below, whatever root folder they belong to.
    let docker = Docker::connect(&config.docker_endpoint, String::new(), DockerOptions::default())?;
    let found = docker.foreign().await.context("the containers of other agents cannot be listed")?;
    let (ours, others): (Vec<ForeignContainer>, Vec<ForeignContainer>) =
        found.into_iter().partition(|found| found.longshore_root.is_some());
    if !ours.is_empty() {
        out::complain(&format!("of longshore agents, and left alone: {}", containers(ours.len())));
    }
    if others.is_empty() {
        out::print("dockershim and cri-dockerd have no containers here\n")?;
        return Ok(());
    }
    let network = &config.network;
    let attachments = ForeignAttachments::read(&network.cni_cache_dir, network.cni_bin_dirs.clone())
        .context("what CNI plugins attached for them cannot be read, so nothing was touched")?;
    let header = row(["POD", "CONTAINER", "ID", "STATE"]);
    let rows = others.iter().map(|found| {
        let part = if found.is_sandbox { "(sandbox)" } else { found.name.split('_').nth(1).unwrap_or(&found.name) };
        let id = found.id.get(..12).unwrap_or(&found.id);
        row([&found.pod.to_string(), part, id, if found.running { "running" } else { "ended" }])
    });
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    out::print(&Table::default().lines(&rows))?;
    let attached = others.iter().filter(|found| found.is_sandbox && attachments.has(&found.id)).count();
    if dry_run {
        if attached > 0 {
            out::print(&format!("CNI plugins would be told to let go of {}\n", containers(attached)))?;
        }
        out::print(&format!("{} would be stopped and removed\n", containers(others.len())))?;
        return Ok(());
    }
    let count = others.len();
    let (sandboxes, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|found| found.is_sandbox);
    let mut failed = docker.remove_foreign(&others, None).await;
    if attached > 0 {
        out::print(&format!("CNI plugins are told to let go of {}\n", containers(attached)))?;
    }
    let (released, held) = release(&docker, &attachments, sandboxes).await;
    failed.extend(docker.remove_foreign(&released, None).await);
    out::print(&format!("{} stopped and removed\n", containers(count - failed.len() - held.len())))?;
    for (found, error) in &held {
        let message = "its sandbox is kept until its CNI plugins have let go of it";
        out::complain(&format!("error: {} of pod {}: {message}: {error}", found.name, found.pod));
    }
    for (found, error) in &failed {
        out::complain(&format!("error: {} of pod {}: {error}", found.name, found.pod));
    }
    outcome(failed.len(), held.len())
}

/// What to do where some could not be removed, and others are held by plugins.
fn outcome(failed: usize, held: usize) -> anyhow::Result<()> {
    let kubelet = "could not be removed; is a kubelet still running? stop it first";
    let plugins = "kept for CNI plugins; say with --cni-bin-dir where these are, or with --cni-cache-dir an empty folder to go \
                   without them";
    match (failed, held) {
        (0, 0) => Ok(()),
        (failed, 0) => bail!("{} {kubelet}", containers(failed)),
        (0, held) => bail!("{} {plugins}", containers(held)),
        (failed, held) => bail!("{} {kubelet}\n{} {plugins}", containers(failed), containers(held)),
    }
}

/// Has CNI plugins let go of sandboxes, for which they hold addresses and rules on the node; of which they did, and of which
/// not, and why. That comes before their removal: what is gone would not be found again.
async fn release(
    docker: &Docker,
    attachments: &ForeignAttachments,
    sandboxes: Vec<ForeignContainer>,
) -> (Vec<ForeignContainer>, Vec<(ForeignContainer, PluginError)>) {
    let ends: Vec<_> = stream::iter(sandboxes)
        .map(|sandbox| async move {
            // Where Docker does not say it is as with one that ended: its removal will tell.
            let pid = docker.foreign_pid(&sandbox.id).await.unwrap_or_default();
            (attachments.release(&sandbox.id, pid).await, sandbox)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let (mut released, mut held) = (Vec::new(), Vec::new());
    for (end, sandbox) in ends {
        match end {
            Ok(()) => released.push(sandbox),
            Err(error) => held.push((sandbox, error)),
        }
    }
    (released, held)
}

fn containers(count: usize) -> String {
    if count == 1 { "1 container".to_owned() } else { format!("{count} containers") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_own_advice() {
        let said = |failed, held| outcome(failed, held).unwrap_err().to_string();
        assert!(outcome(0, 0).is_ok());
        assert!(said(1, 0).contains("kubelet") && !said(1, 0).contains("--cni"));
        assert!(said(0, 1).contains("--cni-bin-dir") && !said(0, 1).contains("kubelet"));
        assert_eq!(said(1, 2).lines().count(), 2);
    }
}
