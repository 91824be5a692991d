//! `longshore takeover`: ends the containers of dockershim and cri-dockerd. Never another longshore's, and never
//! anything that is no pod's.

use anyhow::{Context, bail};
use longshore_cni::ForeignAttachments;
use longshore_core::ports::network::PluginError;
use longshore_core::ports::runtime::{ContainerRuntime, ForeignContainer};
use longshore_docker::{Docker, DockerOptions};

use super::out;
use crate::config::Config;
use crate::print::table::{Table, row};

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
    if dry_run {
        let attached = others.iter().filter(|found| found.is_sandbox && attachments.has(&found.id)).count();
        if attached > 0 {
            out::print(&format!("CNI plugins would be told to let go of {}\n", containers(attached)))?;
        }
        out::print(&format!("{} would be stopped and removed\n", containers(others.len())))?;
        return Ok(());
    }
    let count = others.len();
    let (sandboxes, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|found| found.is_sandbox);
    let mut failed = docker.remove_foreign(&others, None).await;
    let (released, held) = release(&docker, &attachments, sandboxes).await;
    failed.extend(docker.remove_foreign(&released, None).await);
    out::print(&format!("{} stopped and removed\n", containers(count - failed.len() - held.len())))?;
    for (found, error) in &held {
        let message = "its sandbox is kept until its CNI plugins have let go of it";
        out::complain(&format!("error: {} of pod {}: {message}: {error}", found.name, found.pod));
    }
    if failed.is_empty() && held.is_empty() {
        return Ok(());
    }
    for (found, error) in &failed {
        out::complain(&format!("error: {} of pod {}: {error}", found.name, found.pod));
    }
    bail!("{} could not be removed; is a kubelet still running? stop it first", containers(failed.len() + held.len()))
}

/// Has CNI plugins let go of sandboxes, for which they hold addresses and rules on the node; of which they did, and of which
/// not, and why. That comes before their removal: what is gone would not be found again.
async fn release(
    docker: &Docker,
    attachments: &ForeignAttachments,
    sandboxes: Vec<ForeignContainer>,
) -> (Vec<ForeignContainer>, Vec<(ForeignContainer, PluginError)>) {
    let (mut released, mut held) = (Vec::new(), Vec::new());
    for sandbox in sandboxes {
        // Where Docker does not say it is as with one that ended: its removal will tell.
        let pid = docker.foreign_pid(&sandbox.id).await.unwrap_or_default();
        match attachments.release(&sandbox.id, pid).await {
            Ok(()) => released.push(sandbox),
            Err(error) => held.push((sandbox, error)),
        }
    }
    (released, held)
}

fn containers(count: usize) -> String {
    if count == 1 { "1 container".to_owned() } else { format!("{count} containers") }
}
