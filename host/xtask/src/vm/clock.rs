//! The emulated machine's clock is set while an agent and its pods run: ahead, and back again. Pods, their counts and their
//! readiness do not go by it.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    machine::{LONG, Machine, SHORT},
    power, unit,
};
use crate::report::Outcome;

/// Two days, in seconds: longer than all that is kept for a time.
const STEP: u32 = 172_800;

/// So many probes of each kind show that they go on.
const PROBES: u32 = 5;

/// What the two probes leave a line in.
const PROBED: [&str; 2] = ["/srv/alive", "/srv/ready"];

const READY: &str = "longshore get pods -A > /tmp/table; grep -E '^default +steady-.* 1/1 +Running +0 ' /tmp/table";

/// Sets it ahead and back.
///
/// # Errors
/// When anything that runs notices.
pub(super) fn steps(machine: &Machine) -> Result<Outcome> {
    let stepped = step(machine);
    // However that went: certificates go by it, and what is tried next begins without the pod.
    let right = machine.run(&format!("date -s @{}", jiff::Timestamp::now().as_second()), SHORT);
    let removed = remove(machine);
    let outcome = stepped?;
    right?;
    removed?;
    Ok(outcome)
}

fn remove(machine: &Machine) -> Result<()> {
    machine.run("rm -f /etc/kubernetes/manifests/clock.yaml", SHORT)?;
    machine.until("! longshore get pods -A | grep -q '^default *steady-'", LONG).map(drop)
}

fn step(machine: &Machine) -> Result<Outcome> {
    power::put(machine, "clock.yaml", PODS)?;
    machine.run("systemctl enable --now longshore", LONG)?;
    machine.until(READY, LONG)?;
    // A pod may be ready before it is probed for its life.
    machine.until(&PROBED.map(|file| format!("test -s {file}")).join(" && "), LONG)?;
    let before = seen(machine)?;
    for (direction, sign) in [("ahead", '+'), ("back", '-')] {
        let counts = PROBED.map(|file| probes(machine, file));
        machine.run(&format!("date -s @$(($(date +%s) {sign} {STEP}))"), SHORT)?;
        for (file, count) in PROBED.into_iter().zip(counts) {
            let more = format!("test $(wc -l < {file}) -ge {}", count? + PROBES);
            machine.until(&more, LONG).with_context(|| format!("the clock was set {direction}: no probe follows"))?;
        }
        machine.run(READY, SHORT).with_context(|| format!("the clock was set {direction}"))?;
        let now = seen(machine)?;
        ensure!(before == now, "the clock was set {direction}, and there is {now:#}\nafter {before:#}");
    }
    machine.run("! journalctl -u longshore -b --no-pager -o cat | grep -i panicked >&2", SHORT)?;
    Ok(Outcome { passed: 2, ..Outcome::PASSED })
}

/// How many probes left a line there.
fn probes(machine: &Machine, file: &str) -> Result<u32> {
    let count = machine.run(&format!("wc -l < {file}"), SHORT)?;
    count.trim().parse().with_context(|| format!("{file} has {count:?} lines"))
}

/// What must stay as it is: the pod, since when it is ready, the agent's process, and every container that runs.
fn seen(machine: &Machine) -> Result<Value> {
    let text = machine.run("longshore get pods -A -o json", SHORT)?;
    let list: Value = serde_json::from_str(&text).context("longshore get pods -o json")?;
    let is_it = |pod: &&Value| pod["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("steady-"));
    let pod = list["items"].as_array().into_iter().flatten().find(is_it);
    let status = &pod.with_context(|| format!("no pod steady: {text}"))?["status"];
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    let ready = conditions.find(|condition| condition["type"] == "Ready").context("no condition Ready")?;
    let container = &status["containerStatuses"][0];
    Ok(json!({
        "phase": status["phase"],
        "ready": [ready["status"], ready["lastTransitionTime"]],
        "container": [container["containerID"], container["restartCount"]],
        "agent": unit::show(machine, "MainPID NRestarts")?,
        "running": machine.run(unit::RUNNING, SHORT)?,
    }))
}

/// A pod that is probed every second, twice.
const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: steady}
spec:
  volumes: [{name: host, hostPath: {path: /srv, type: Directory}}]
  containers:
    - name: app
      image: longshore.dev/busybox:1
      imagePullPolicy: Never
      command: [sleep, '1000000']
      livenessProbe: {exec: {command: [sh, -c, echo >> /host/alive]}, periodSeconds: 1, timeoutSeconds: 20}
      readinessProbe: {exec: {command: [sh, -c, echo >> /host/ready]}, periodSeconds: 1, timeoutSeconds: 20}
      volumeMounts: [{name: host, mountPath: /host}]
";
