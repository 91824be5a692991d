//! `longshore takeover`: ends the containers of dockershim and cri-dockerd. Never another longshore's, and never
//! anything that is no pod's.

use anyhow::{Context, bail};
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
    let header = row(["POD", "CONTAINER", "ID", "STATE"]);
    let rows = others.iter().map(|found| {
        let part = if found.is_sandbox { "(sandbox)" } else { found.name.split('_').nth(1).unwrap_or(&found.name) };
        let id = found.id.get(..12).unwrap_or(&found.id);
        row([&found.pod.to_string(), part, id, if found.running { "running" } else { "ended" }])
    });
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    out::print(&Table::default().lines(&rows))?;
    if dry_run {
        out::print(&format!("{} would be stopped and removed\n", containers(others.len())))?;
        return Ok(());
    }
    let failed = docker.remove_foreign(&others, None).await;
    out::print(&format!("{} stopped and removed\n", containers(others.len() - failed.len())))?;
    if failed.is_empty() {
        return Ok(());
    }
    for (found, error) in &failed {
        out::complain(&format!("error: {} of pod {}: {error}", found.name, found.pod));
    }
    bail!("{} could not be removed; is a kubelet still running? stop it first", containers(failed.len()))
}

fn containers(count: usize) -> String {
    if count == 1 { "1 container".to_owned() } else { format!("{count} containers") }
}
