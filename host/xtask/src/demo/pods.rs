//! The demo's pods as the agent tells them, and their removal. Must not ask Docker what the agent can say.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Paths;
use crate::{process, say};

/// What stays in the manifest folder when the pods are to go: an emptied folder might be an unmounted disk, and
/// the agent does not take it for "no pods".
pub(super) const EMPTY: &str = "no-pods.yaml";

/// One pod, as the table shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Shown {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether its condition Ready is True.
    pub ready: bool,
    /// `1/2`.
    pub containers: String,
    /// As kubectl shows it: a waiting reason, or the phase.
    pub status: String,
    /// All restarts of its containers.
    pub restarts: u64,
    /// Its address.
    pub ip: String,
}

/// The agent's socket, under its root dir.
pub(crate) const SOCKET: &str = "longshore.sock";

/// Asks `longshore get pods`.
///
/// # Errors
/// When the agent does not answer (yet).
pub(crate) fn list(paths: &Paths) -> Result<Vec<Shown>> {
    let mut command = Command::new(&paths.binary);
    command.args(["get", "pods", "-A", "-o", "json", "--root-dir"]).arg(&paths.root);
    let text = process::output("longshore get pods", &mut command, Duration::from_secs(10))?;
    let list: Value = serde_json::from_str(&text).context("longshore get pods -o json")?;
    let mut pods: Vec<_> = list["items"].as_array().into_iter().flatten().map(shown).collect();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(pods)
}

/// Reads a pod object as the table shows it.
pub(crate) fn shown(pod: &Value) -> Shown {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let status = &pod["status"];
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let ready = conditions.filter(|it| it["type"] == "Ready").any(|it| it["status"] == "True");
    let mut containers: Vec<&Value> = status["containerStatuses"].as_array().into_iter().flatten().collect();
    let inits: Vec<&Value> = status["initContainerStatuses"].as_array().into_iter().flatten().collect();
    let all: Vec<&Value> = inits.iter().chain(&containers).copied().collect();
    // Sidecars count among the containers, other init containers do not.
    let sidecar = |one: &Value| {
        let specs = pod["spec"]["initContainers"].as_array().into_iter().flatten();
        specs.filter(|it| it["name"] == one["name"]).any(|it| it["restartPolicy"] == "Always")
    };
    containers.extend(inits.into_iter().filter(|one| sidecar(one)));
    let mut reason = status["reason"].as_str().or(status["phase"].as_str()).unwrap_or("Pending").to_owned();
    let mut restarts = 0;
    for one in all {
        restarts += one["restartCount"].as_u64().unwrap_or(0);
        let waiting = one["state"]["waiting"]["reason"].as_str().filter(|it| *it != "PodInitializing");
        if let Some(waiting) = waiting {
            waiting.clone_into(&mut reason);
        }
    }
    Shown {
        namespace: text(&pod["metadata"]["namespace"]),
        name: text(&pod["metadata"]["name"]),
        ready,
        containers: format!("{}/{}", containers.iter().filter(|it| it["ready"] == true).count(), containers.len()),
        status: reason,
        restarts,
        ip: text(&status["podIP"]),
    }
}

/// Takes every manifest out of the folder and waits until the agent has removed the pods.
///
/// # Errors
/// When they are not gone in a minute.
pub(super) fn remove_all(paths: &Paths) -> Result<()> {
    say!("removing the pods");
    let nothing = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: no-pods}\ndata: {why: the demo was stopped}\n";
    fs::write(paths.manifests.join(format!(".{EMPTY}")), nothing)?;
    fs::rename(paths.manifests.join(format!(".{EMPTY}")), paths.manifests.join(EMPTY))?;
    for entry in fs::read_dir(&paths.manifests)? {
        let path = entry?.path();
        if !path.ends_with(EMPTY) {
            fs::remove_file(&path).with_context(|| format!("{}", path.display()))?;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let left = list(paths);
        if left.as_ref().is_ok_and(Vec::is_empty) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let left = left?;
            bail!("{} pods are still there after a minute", left.len());
        }
        process::check_interrupted()?;
        thread::sleep(Duration::from_millis(100));
    }
}

/// Removes by force the containers that carry the id of this root dir.
///
/// # Errors
/// When the id is not there, or Docker refuses.
pub(super) fn remove_by_force(socket: &Path, root: &Path) -> Result<usize> {
    let file = root.join("id");
    let id =
        fs::read_to_string(&file).with_context(|| format!("{}: which containers are the demo's?", file.display()))?;
    super::remove_labelled(socket, &format!("dev.longshore.root={}", id.trim()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_shown_as_kubectl_shows_it() {
        let pod = json!({
            "metadata": {"name": "web-node", "namespace": "default"},
            "spec": {"initContainers": [{"name": "first"}, {"name": "side", "restartPolicy": "Always"}]},
            "status": {
                "phase": "Running",
                "podIP": "10.0.0.2",
                "conditions": [{"type": "Ready", "status": "False"}],
                "initContainerStatuses": [
                    {"name": "first", "restartCount": 0, "state": {"terminated": {"reason": "Completed"}}},
                    {"name": "side", "ready": true, "restartCount": 0, "state": {"running": {}}},
                ],
                "containerStatuses": [
                    {"ready": true, "restartCount": 1, "state": {"running": {}}},
                    {"ready": false, "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
                ],
            },
        });
        let shown = shown(&pod);
        assert_eq!(shown.containers, "2/3");
        assert_eq!(shown.status, "CrashLoopBackOff");
        assert_eq!(shown.restarts, 3);
        assert!(!shown.ready);
    }
}
