//! The agent, the machine and Docker.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use longshore_core::evict::Signal;
use longshore_core::ports::runtime::{ContainerRuntime, RuntimeError};
use longshore_docker::{Docker, DockerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Report;
use crate::client::{Client, is_forbidden};
use crate::config::{Config, NetworkPlugin};
use crate::facts;
use crate::socket::api::{DRAINED, Info, ProblemList};

/// A local question may take so long.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn check(report: &mut Report, config: &Config, agent: Option<&Info>) -> anyhow::Result<()> {
    docker(report, &config.docker_endpoint).await?;
    selinux(report, config).await?;
    machine(report, config)?;
    disk(report, config)?;
    if let (Some(agent), Some(port)) = (agent, config.server.healthz_port) {
        health(report, agent, SocketAddr::new(config.server.healthz_address, port)).await?;
    }
    Ok(())
}

/// The agent, by what it says of itself.
pub(super) async fn agent(report: &mut Report, client: &Client, info: anyhow::Result<Info>) -> anyhow::Result<()> {
    let endpoint = info.as_ref().map(|info| info.docker.endpoint.clone()).unwrap_or_default();
    match info {
        Ok(info) => {
            report.good("agent", format!("longshore {} runs since {}", info.version, info.started_at))?;
            if info.drained {
                report.warn("drained", "no pod starts on this node", "longshore drain-node --local --cancel")?;
            }
        }
        Err(error) => {
            let advice = match is_forbidden(&error) {
                true => "use sudo",
                false => {
                    "start it: systemctl start longshore, or longshore run; if it has another root folder, use --root-dir"
                }
            };
            report.bad("agent", error.to_string(), advice)?;
            return Ok(());
        }
    }
    let problems = client.get::<ProblemList>("/v1/problems").await.map(|list| list.items).unwrap_or_default();
    for problem in problems.into_iter().filter(|problem| problem.message != DRAINED) {
        let found = format!("{}: {}", problem.place, problem.message);
        match problem.warning {
            // What is wrong with Docker has a line of its own.
            _ if problem.place == endpoint => {}
            true => report.warn("pod sources", found, "")?,
            false => report.bad("pod sources", found, "fix it; it is read again when it changes")?,
        }
    }
    Ok(())
}

/// Docker, where it listens.
pub(super) async fn docker(report: &mut Report, endpoint: &str) -> anyhow::Result<()> {
    let docker = Docker::connect(endpoint, String::new(), DockerOptions::default())?;
    match tokio::time::timeout(LIMIT, docker.foreign()).await {
        Ok(Ok(others)) => {
            report.good("Docker", format!("answers at {endpoint}"))?;
            let others = others.iter().filter(|found| found.longshore_root.is_none()).count();
            if others > 0 {
                let advice = "end them when their agent is gone for good: longshore takeover";
                report.warn("other agents", format!("{others} containers of dockershim or cri-dockerd"), advice)?;
            }
        }
        // What cannot be reached says itself what to do.
        Ok(Err(error @ RuntimeError::Unreachable { .. })) => {
            report.bad("Docker", error.to_string(), "if it listens elsewhere, use --docker-endpoint")?;
        }
        Ok(Err(error)) => report.bad("Docker", error.to_string(), "look at its log: journalctl -u docker")?,
        Err(_) => report.bad("Docker", "it does not answer within 10 s", "look at its log: journalctl -u docker")?,
    }
    Ok(())
}

/// Where Docker does not answer, that has a line already.
async fn selinux(report: &mut Report, config: &Config) -> anyhow::Result<()> {
    let docker = Docker::connect(&config.docker_endpoint, String::new(), DockerOptions::default())?;
    if let Ok(Ok(true)) = tokio::time::timeout(LIMIT, docker.has_selinux()).await {
        let (found, advice) = facts::unlabelled(&config.root_dir);
        report.warn("SELinux", found, &advice)?;
    }
    Ok(())
}

fn machine(report: &mut Report, config: &Config) -> anyhow::Result<()> {
    let findings = facts::check_node(config);
    for problem in findings.problems {
        report.bad("machine", problem.to_string(), "the agent does not start until then")?;
    }
    for warning in findings.warnings {
        report.warn("machine", warning, "")?;
    }
    match std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward") {
        Ok(value) if value.trim() == "1" => report.good("forwarding", "IPv4 is forwarded")?,
        Ok(_) => report.bad(
            "forwarding",
            "net.ipv4.ip_forward is 0: pods reach nothing outside of this machine",
            "sysctl -w net.ipv4.ip_forward=1, and keep it in /etc/sysctl.d",
        )?,
        Err(_) => {}
    }
    if config.joining.in_cluster() && config.network.plugin == NetworkPlugin::Bridge {
        match std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables") {
            Ok(value) if value.trim() != "0" => report.good("bridges", "what goes between pods is filtered")?,
            _ => report.warn(
                "bridges",
                "with kube-proxy a Service does not answer to pods that are on the same node as its own",
                "modprobe br_netfilter, and sysctl -w net.bridge.bridge-nf-call-iptables=1; the agent does it at its start",
            )?,
        }
    }
    Ok(())
}

fn disk(report: &mut Report, config: &Config) -> anyhow::Result<()> {
    let existing = config.root_dir.ancestors().find(|folder| folder.exists());
    let Some(folder) = existing else { return Ok(()) };
    let stat = rustix::fs::statvfs(folder)?;
    let size = |blocks: u64| i64::try_from(blocks.saturating_mul(stat.f_frsize)).unwrap_or(i64::MAX);
    let (capacity, free) = (size(stat.f_blocks), size(stat.f_bavail));
    let kept = config.eviction.hard_reserve(Signal::NodeFsAvailable, capacity);
    let gib = |bytes: i64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let found = format!("{} of {} free on the disk of {}", gib(free), gib(capacity), config.root_dir.display());
    if free < kept {
        let advice =
            format!("pods are evicted below {}: free some space, or lower --eviction-hard nodefs.available", gib(kept));
        report.bad("disk", found, &advice)?;
    } else {
        report.good("disk", found)?;
    }
    Ok(())
}

/// The health port, as a probe of systemd or a cloud's asks it.
async fn health(report: &mut Report, agent: &Info, address: SocketAddr) -> anyhow::Result<()> {
    if agent.docker.version.is_none() {
        return Ok(report.skip("health", format!("http://{address}/healthz is served once Docker answers"), "")?);
    }
    if listens(agent.pid, address.port()) == Some(false) {
        if let Some(waits) = &agent.waits {
            return Ok(report.skip("health", format!("http://{address}/healthz is served later: {waits}"), "")?);
        }
        let found = format!("http://{address}/healthz is not served by this agent");
        return Ok(report.warn("health", found, "does another agent or kubelet have the port? use --healthz-port")?);
    }
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /healthz?verbose HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
        let mut answer = String::new();
        stream.take(64 << 10).read_to_string(&mut answer).await?;
        Ok::<String, std::io::Error>(answer)
    };
    match tokio::time::timeout(LIMIT, ask).await {
        Ok(Ok(answer)) if answer.split(' ').nth(1) == Some("200") => {
            report.good("health", format!("http://{address}/healthz is ok"))?
        }
        Ok(Ok(answer)) => {
            let body =
                answer.split_once("\r\n\r\n").map_or(answer.as_str(), |(_, body)| body).trim().replace('\n', "; ");
            report.bad("health", body, "restart the agent: its pods go on meanwhile")?;
        }
        Ok(Err(error)) => {
            report.warn("health", format!("{address}: {error}"), "is another kubelet running? use --healthz-port")?
        }
        Err(_) => {
            report.bad("health", format!("{address} does not answer"), "restart the agent: its pods go on meanwhile")?
        }
    }
    Ok(())
}

/// Whether a process listens on that TCP port; `None` where the kernel does not tell.
fn listens(pid: u32, port: u16) -> Option<bool> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let sockets = files.filter_map(|file| std::fs::read_link(file.path()).ok()).filter_map(|target| {
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        Some(inode.to_owned())
    });
    let sockets: HashSet<String> = sockets.collect();
    let table = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}"));
    // Where there is no IPv6 there is no such table.
    let tables = [table("tcp").ok()?, table("tcp6").unwrap_or_default()];
    let end = format!(":{port:04X}");
    let is_it = |line: &str| {
        // sl, local address, remote address, state (0A: LISTEN), …, inode as the tenth
        let words: Vec<&str> = line.split_whitespace().take(10).collect();
        matches!(words[..], [_, local, _, "0A", .., inode] if local.ends_with(&end) && sockets.contains(inode))
    };
    Some(tables.iter().flat_map(|table| table.lines()).any(is_it))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn whose_port_it_is() {
        let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = own.local_addr().unwrap().port();
        assert_eq!(listens(std::process::id(), port), Some(true));
        // Its parent has another's files.
        assert_ne!(listens(std::os::unix::process::parent_id(), port), Some(true));
        drop(own);
        assert_eq!(listens(std::process::id(), port), Some(false));
    }
}
