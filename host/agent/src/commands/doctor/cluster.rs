//! From the node to the API server: reached, who we are there, and what it knows of us.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;
use longshore_apiserver::{Connection, Pace, Settings};
use longshore_core::network::{self, rules};
use longshore_core::ports::cluster::{ApiError, ClusterApi};
use longshore_core::ports::reviews::{NodeAccess, Reviews, User};

use super::Report;
use crate::config::{Config, NetworkPlugin};
use crate::facts;

/// A question to the API server may take so long.
const LIMIT: Duration = Duration::from_secs(20);

/// What the API server knows of the node.
pub(super) struct Known {
    /// Name of the node.
    pub(super) name: String,
    /// The Node, where it could be read.
    pub(super) object: Option<v1::Node>,
}

pub(super) async fn check(report: &mut Report, config: &Config) -> anyhow::Result<Known> {
    let name = facts::node_name(config)?;
    let mut known = Known { name: name.clone(), object: None };
    let joining = &config.joining;
    if let Some(kubeconfig) = &joining.kubeconfig
        && !kubeconfig.exists()
    {
        let advice = match &joining.bootstrap_kubeconfig {
            Some(_) => "the agent has no certificate yet: its log says why; is its request approved? kubectl get csr",
            None => "copy it there, or join with --bootstrap-kubeconfig",
        };
        report.bad("credentials", format!("{} does not exist", kubeconfig.display()), advice)?;
        return Ok(known);
    }
    let settings = Settings {
        kubeconfig: joining.kubeconfig.clone(),
        api_servers: joining.api_servers.clone(),
        bootstrap_kubeconfig: None,
        cert_dir: joining.cert_dir.clone(),
        node_name: name.clone(),
        rotate_certificates: joining.rotate_certificates,
        rotate_server_certificates: false,
        random: Arc::new(|| 0.5),
        pace: Pace::default(),
    };
    let connection = match tokio::time::timeout(LIMIT, Connection::open(settings)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let advice =
                "fix or replace the file that --kubeconfig names; without one join again with --bootstrap-kubeconfig";
            report.bad("credentials", format!("{:#}", anyhow::Error::new(error)), advice)?;
            return Ok(known);
        }
        Err(_) => {
            let advice =
                "does the program or server that the kubeconfig names work, and does a firewall let this node through?";
            report.bad("credentials", "what they name did not answer within 20 s", advice)?;
            return Ok(known);
        }
    };
    certificate(report, &connection)?;
    let version = match tokio::time::timeout(LIMIT, connection.server_version()).await {
        Ok(Ok(version)) => version,
        Ok(Err(error)) => {
            let advice = "is the address right, and does a firewall let this node through?";
            report.bad("API server", error.to_string(), advice)?;
            return Ok(known);
        }
        Err(_) => {
            report.bad("API server", "no answer within 20 s", "does a firewall drop what this node sends?")?;
            return Ok(known);
        }
    };
    let server = connection.status().borrow().server.clone();
    let found = format!("{} at {server}", version.git_version);
    match version.minor {
        33..=37 => report.good("API server", found)?,
        _ => report.warn("API server", found, "longshore is made for Kubernetes 1.33 to 1.37")?,
    }
    let api = connection.node_api(&name);
    node(report, config, &api, &mut known).await?;
    reviews(report, config, &connection, &name).await?;
    Ok(known)
}

fn certificate(report: &mut Report, connection: &Connection) -> std::io::Result<()> {
    let Some(dates) = connection.status().borrow().certificate.clone() else {
        return report.good("credentials", "read; they are not a certificate");
    };
    let left = dates.not_after.duration_since(Timestamp::now());
    if dates.not_before > Timestamp::now() {
        let advice = "is this machine's clock right? timedatectl";
        return report.bad("credentials", format!("{dates}: not valid yet"), advice);
    }
    match left {
        left if left <= SignedDuration::ZERO => {
            let advice = "join again with --bootstrap-kubeconfig (kubeadm token create makes a token)";
            report.bad("credentials", format!("{dates}: expired"), advice)
        }
        left if left < SignedDuration::from_hours(24) => {
            report.warn("credentials", dates.to_string(), "it expires soon: is --rotate-certificates on?")
        }
        _ => report.good("credentials", dates.to_string()),
    }
}

async fn node(report: &mut Report, config: &Config, api: &impl ClusterApi, known: &mut Known) -> anyhow::Result<()> {
    let name = known.name.clone();
    let object = match api.node().await {
        Ok(Some(object)) => object,
        Ok(None) => {
            let advice =
                if config.joining.register_node { "is the agent running?" } else { "--register-node is false" };
            report.bad("Node", format!("there is no Node {name}"), advice)?;
            return Ok(());
        }
        Err(error) => {
            report.bad("Node", error.to_string(), advice(&error))?;
            return Ok(());
        }
    };
    let conditions = object.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.clone().find(|condition| condition.type_ == "Ready");
    match ready {
        Some(ready) if ready.status == "True" => report.good("Node", format!("{name} is Ready"))?,
        Some(ready) => {
            let found = format!("{name}: {}", ready.message.clone().unwrap_or_default());
            report.bad(
                "Node",
                found,
                "fix what it says; the agent's log has more, and what fails above may be the cause",
            )?;
        }
        None => report.bad("Node", format!("{name} has no condition Ready"), "is the agent running?")?,
    }
    for pressure in conditions.filter(|condition| condition.type_ != "Ready" && condition.status == "True") {
        report.warn("Node", format!("{}: {}", pressure.type_, pressure.message.clone().unwrap_or_default()), "")?;
    }
    match api.lease().await {
        Ok(Some(lease)) => {
            let renewed = lease.spec.and_then(|spec| spec.renew_time).map(|time| time.0);
            let age = renewed.map(|at| Timestamp::now().duration_since(at).as_secs());
            match age {
                Some(age) if age <= i64::from(config.joining.lease_seconds) => {
                    report.good("Lease", format!("renewed {age} s ago"))?;
                }
                Some(age) => {
                    report.bad("Lease", format!("renewed {age} s ago"), "is the agent running, and its clock right?")?
                }
                None => report.bad("Lease", "never renewed", "is the agent running?")?,
            }
        }
        Ok(None) => report.bad("Lease", "there is none", "is the agent running?")?,
        Err(error) => report.bad("Lease", error.to_string(), advice(&error))?,
    }
    if config.network.plugin == NetworkPlugin::Cni {
        forwarding(report, &object).await?;
    }
    known.object = Some(object);
    Ok(())
}

/// Whether what is forwarded to pods of plugins is let through: Docker has all dropped that it does not know. Nothing is said
/// where that cannot be seen.
async fn forwarding(report: &mut Report, node: &v1::Node) -> anyhow::Result<()> {
    for cidr in network::cidrs(&network::pod_cidrs(node)).unwrap_or_default() {
        let program = if cidr.is_ipv4() { "iptables" } else { "ip6tables" };
        let mut command = tokio::process::Command::new(program);
        command.args(["-w", "5", "-t", "filter", "-S"]).stdin(Stdio::null()).kill_on_drop(true);
        let Ok(Ok(output)) = tokio::time::timeout(LIMIT, command.output()).await else { continue };
        if output.status.success() && !rules::forwards(&String::from_utf8_lossy(&output.stdout), &cidr) {
            let found =
                format!("{program} drops what is forwarded, and no rule lets through what goes to pods of {cidr}");
            let advice = format!(
                "the CNI network's plugins should see to that (the plugin firewall does); else {program} -I DOCKER-USER -d \
                 {cidr} -j ACCEPT, and the same with -s"
            );
            report.warn("forwarding to pods", found, &advice)?;
        }
    }
    Ok(())
}

/// What an error of the API server comes from.
fn advice(error: &ApiError) -> &'static str {
    match error {
        ApiError::Forbidden { .. } => {
            "the credentials must be of user system:node:<name of this node>, group system:nodes; is --hostname-override right?"
        }
        ApiError::Unreachable { .. } => "is the address right, and does a firewall let this node through?",
        ApiError::Busy { .. } => "ask again later; if it stays so the API server has too much to do",
        _ => "look at the API server's log",
    }
}

/// Whether the node may ask who its callers are, which its own server depends on.
async fn reviews(report: &mut Report, config: &Config, connection: &Connection, name: &str) -> anyhow::Result<()> {
    if !config.server.enabled {
        return Ok(());
    }
    let reviews = connection.reviews(name);
    let nobody = User { name: "longshore:doctor".to_owned(), ..User::default() };
    let access = NodeAccess { verb: "get", subresource: "proxy" };
    let asked = async {
        reviews.authenticate("longshore-doctor-asks").await?;
        reviews.authorize(&nobody, &access).await
    };
    match asked.await {
        Ok(_) => report.good("reviews", "the node may ask who its callers are, and what they may")?,
        Err(error @ (ApiError::Unreachable { .. } | ApiError::Busy { .. })) => {
            report.bad("reviews", error.to_string(), advice(&error))?;
        }
        Err(error) => {
            let advice =
                "grant ClusterRole system:node's rights on tokenreviews and subjectaccessreviews (Node authorizer on?)";
            report.bad("reviews", error.to_string(), advice)?;
        }
    }
    Ok(())
}
