//! From users through the API server back to the node: its address, its port, its certificate, whom it lets in, and a
//! real exec.

use std::path::PathBuf;

use k8s_openapi::api::core::v1;
use longshore_apiserver::{VisitError, Visitor};

use super::Report;
use super::cluster::Known;
use crate::config::Config;

pub(super) async fn check(
    report: &mut Report,
    config: &Config,
    node: &Known,
    kubeconfig: Option<PathBuf>,
    pod: Option<&str>,
) -> anyhow::Result<()> {
    if !config.server.enabled {
        report.bad("server", "--enable-server is false", "without it kubectl logs, exec and the like do not work")?;
        return Ok(());
    }
    address(report, config, node)?;
    let Some(kubeconfig) = kubeconfig else {
        let advice = "use --admin-kubeconfig FILE, or set KUBECONFIG: the kubeconfig of a user who may exec in pods";
        report.skip("way back", "there is nobody to ask as", advice)?;
        return Ok(());
    };
    let visitor = match Visitor::open(&kubeconfig).await {
        Ok(visitor) => visitor,
        Err(error) => {
            report.skip("way back", error.to_string(), "use --admin-kubeconfig FILE")?;
            return Ok(());
        }
    };
    match visitor.name().await {
        Ok(name) => report.good("asking as", name)?,
        Err(error) => {
            report.skip("way back", format!("{}: {error}", kubeconfig.display()), "use another --admin-kubeconfig")?;
            return Ok(());
        }
    }
    match visitor.ask_node(&node.name, "/healthz").await {
        Ok(text) if text.trim() == "ok" => report.good("way back", "the API server reaches the node's port")?,
        Ok(text) => {
            report.bad("way back", format!("something else answers: {text:.80}"), "who listens on that port?")?
        }
        Err(error) => {
            report.bad("way back", error.to_string(), advice(&error))?;
            return Ok(());
        }
    }
    exec(report, &visitor, node, pod).await
}

/// Whether the API server knows where we listen.
fn address(report: &mut Report, config: &Config, node: &Known) -> anyhow::Result<()> {
    let Some(status) = node.object.as_ref().and_then(|object| object.status.as_ref()) else { return Ok(()) };
    let told = status.daemon_endpoints.as_ref().and_then(|all| all.kubelet_endpoint.as_ref()).map(|one| one.port);
    if told != Some(i32::from(config.server.port)) {
        let found =
            format!("the Node names port {}, and the agent has {}", told.unwrap_or_default(), config.server.port);
        report.bad("server", found, "is another kubelet of the same name running?")?;
    }
    let addresses = status.addresses.iter().flatten();
    let own: Vec<&str> =
        addresses.filter(|address| address.type_ == "InternalIP").map(|address| address.address.as_str()).collect();
    match own.is_empty() {
        true => report.bad("address", "the Node has no InternalIP", "use --node-ip")?,
        false => report.good("address", own.join(", "))?,
    }
    Ok(())
}

/// What an error on the way back comes from.
fn advice(error: &VisitError) -> &'static str {
    let text = error.to_string();
    let has = |part: &str| text.contains(part);
    match error {
        _ if has("x509") || has("certificate") || has("tls:") => {
            "the API server (--kubelet-certificate-authority) does not trust the node's certificate: use --rotate-server-certificates \
             and approve its request (kubectl get csr), or --tls-cert-file"
        }
        _ if has("Unauthorized") || matches!(error, VisitError::Refused { code: 401, .. }) => {
            "the node does not know the API server's --kubelet-client-certificate: use --client-ca-file with its CA"
        }
        VisitError::Refused { code: 403, .. } if has("pods is forbidden") => {
            "the user may not list pods: use another --admin-kubeconfig"
        }
        _ if has("403 Forbidden") || matches!(error, VisitError::Refused { code: 403, .. }) => {
            "the user lacks rights on pods/exec or nodes/proxy, or the API server's client certificate on nodes/proxy (ClusterRole \
             system:kubelet-api-admin)"
        }
        _ if has("refused") => "nothing listens there: is the agent running, and --address or --port right?",
        _ if has("timeout") || has("no route") || has("deadline") || matches!(error, VisitError::TimedOut) => {
            "nothing listens there (is the agent running?), or the API server does not reach the node's InternalIP: a firewall, \
             or use another --node-ip"
        }
        _ if has("Debug endpoints are disabled") || has("405 Method Not Allowed") => {
            "the node's configuration says enableDebuggingHandlers: false; with it there is no exec, logs or port-forward"
        }
        VisitError::Refused { code: 404, .. } => {
            "something else answers on the node's port, or the pod went meanwhile: who listens there (ss -ltnp)? else ask again"
        }
        VisitError::Kubeconfig { .. } => "use another --admin-kubeconfig",
        // What is left came from the node, and has its reason there.
        _ => "look at the agent's log (journalctl -u longshore), and at the API server's",
    }
}

async fn exec(report: &mut Report, visitor: &Visitor, node: &Known, wanted: Option<&str>) -> anyhow::Result<()> {
    let pods = match visitor.pods(&node.name).await {
        Ok(pods) => pods,
        Err(error) => {
            report.bad("exec", error.to_string(), advice(&error))?;
            return Ok(());
        }
    };
    let running = pods.iter().filter_map(|pod| Some((pod, running_container(pod)?)));
    let name = |pod: &v1::Pod| {
        let part = |value: &Option<String>| value.clone().unwrap_or_default();
        (part(&pod.metadata.namespace), part(&pod.metadata.name))
    };
    let fits = |pod: &v1::Pod| {
        let (namespace, name) = name(pod);
        wanted.is_none_or(|wanted| wanted == name || wanted == format!("{namespace}/{name}"))
    };
    let Some((pod, container)) = running.into_iter().find(|(pod, _)| fits(pod)) else {
        let found =
            wanted.map_or_else(|| "no container runs here".to_owned(), |pod| format!("{pod} does not run here"));
        report.skip("exec", found, "start a pod on this node, and ask again")?;
        return Ok(());
    };
    let (namespace, pod) = name(pod);
    let what = format!("in {namespace}/{pod} ({container})");
    match visitor.exec((&namespace, &pod), &container, &["true"]).await {
        Ok(0) => report.good("exec", format!("`true` ran {what}"))?,
        // The image has no such program: the way there and back is good all the same.
        Ok(126 | 127) => report.good("exec", format!("reached {what}, which has no `true`"))?,
        // 137 and the like: the container ended meanwhile.
        Ok(code) => {
            let advice =
                "ask again, with --pod NAME of another if it stays so: did that container end or restart just now?";
            report.bad("exec", format!("`true` {what} ended with {code}"), advice)?;
        }
        Err(error) => report.bad("exec", format!("{what}: {error}"), advice(&error))?,
    }
    Ok(())
}

fn running_container(pod: &v1::Pod) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let runs = |status: &&v1::ContainerStatus| status.state.as_ref().is_some_and(|state| state.running.is_some());
    statuses.iter().find(runs).map(|status| status.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_lead_to_what_to_change() {
        let refused = |code, message: &str| VisitError::Refused { code, message: message.to_owned() };
        let x509 =
            refused(500, "error trying to reach service: tls: failed to verify certificate: x509: unknown authority");
        assert!(advice(&x509).contains("--rotate-server-certificates"));
        assert!(advice(&refused(401, "Unauthorized")).contains("--client-ca-file"));
        assert!(advice(&refused(403, "Forbidden (user=x, verb=get)")).contains("nodes/proxy"));
        assert!(advice(&refused(503, "dial tcp 10.0.0.1:10250: connect: connection refused")).contains("--port"));
        assert!(advice(&VisitError::TimedOut).contains("--node-ip"));
        let disabled = refused(500, "unable to upgrade connection: Debug endpoints are disabled.");
        assert!(advice(&disabled).contains("enableDebuggingHandlers"));
        let disabled = VisitError::Failed("failed to switch protocol: 405 Method Not Allowed".to_owned());
        assert!(advice(&disabled).contains("enableDebuggingHandlers"));
        assert!(advice(&refused(404, "404 page not found")).contains("ss -ltnp"));
        assert!(advice(&refused(403, "pods is forbidden: User \"x\" cannot list")).contains("list pods"));
        assert!(advice(&refused(500, "Authorization error (user=x)")).contains("agent's log"));
        assert!(advice(&VisitError::Failed("the stream broke".to_owned())).contains("agent's log"));
    }
}
