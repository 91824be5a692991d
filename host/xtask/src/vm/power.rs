//! The emulated machine goes off. By `systemctl poweroff`: logind waits, pods end by priority, and the next boot brings them back.
//! And by a power cut, before which nobody was told and nothing flushed.

use anyhow::{Context as _, Result, ensure};

use super::{
    image::Image,
    machine::{LONG, Machine, SHORT},
};
use crate::place::Place;

/// Seconds that pods get, critical ones included. Debian's logind waits for 5 s unless it is made to.
const GRACE: u32 = 120;

/// What the pods write while they end, when the critical one ends after the other has. Docker and systemd would end both
/// at once.
const IN_ORDER: &str = "usual is told\nusual has ended\ncritical is told\ncritical has ended\n";

/// Powers the machine off and on again, with pods that note when they end.
pub(super) fn off_and_on(place: &Place, image: &Image, machine: &Machine) -> Result<()> {
    for (path, text) in [
        ("/etc/longshore.yaml", configuration()),
        ("/etc/systemd/system/longshore.service.d/shutdown.conf", UNIT.to_owned()),
        ("/etc/kubernetes/manifests/.shutdown", format!("{}---\n{}", pod("usual", 0), pod("critical", 2_000_000_000))),
    ] {
        machine.run(&format!("mkdir -p $(dirname {path}) && cat > {path} <<'END'\n{text}END"), SHORT)?;
    }
    machine.run("mv /etc/kubernetes/manifests/.shutdown /etc/kubernetes/manifests/shutdown.yaml", SHORT)?;
    machine.run("systemctl daemon-reload && systemctl enable longshore && systemctl restart longshore", LONG)?;
    let ready = "longshore get pods -A > /tmp/table; grep -E '^default +usual-.* 1/1 ' /tmp/table && \
                 grep -E '^default +critical-.* 1/1 ' /tmp/table";
    machine.until(ready, LONG)?;
    machine.until("systemd-inhibit --list | grep -q longshore", LONG)?;
    let delay = machine.run(
        "busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager \
         InhibitDelayMaxUSec",
        SHORT,
    )?;
    ensure!(delay.trim() == format!("t {GRACE}000000"), "logind waits for {delay}");

    machine.run("rm -f /srv/ended; sync", SHORT)?;
    machine.power_off("systemctl poweroff", LONG)?;
    machine.power_on(place, image)?;
    let ended = machine.run("cat /srv/ended", SHORT)?;
    ensure!(ended == IN_ORDER, "the pods ended like this:\n{ended}");
    machine.until(ready, LONG).map(drop)
}

/// Cuts the power while pods begin, with one that has ended and one that was restarted: no run is forgotten, no count falls,
/// and what was half made is finished.
pub(super) fn cut(place: &Place, image: &Image, machine: &Machine) -> Result<()> {
    put(machine, "cut.yaml", CUT)?;
    let ended = "longshore get pods -A > /tmp/table; grep -E '^default +once-.* Completed ' /tmp/table && \
                 grep -E '^default +often-.* 1/1 +Running +2 ' /tmp/table";
    machine.until(ended, LONG)?;
    put(machine, "begun.yaml", BEGUN)?;
    let begun = "docker ps -aq --filter label=io.kubernetes.pod.namespace=begun";
    machine.until(&format!("test -n \"$({begun})\""), LONG)?;
    machine.cut_power();
    machine.power_on(place, image)?;

    let settled = "longshore get pods -A > /tmp/table; grep -E '^default +once-.* Completed ' /tmp/table && \
                   grep -E '^default +often-.* 1/1 ' /tmp/table && test $(grep -cE '^begun .* 1/1 ' /tmp/table) = 3 && \
                   cat /tmp/table";
    let table = machine.until(settled, LONG)?;
    let often = table.lines().find(|line| line.contains(" often-")).context("no pod often")?;
    let restarts: u32 =
        often.split_whitespace().nth(4).unwrap_or_default().parse().with_context(|| often.to_owned())?;
    ensure!(restarts >= 2, "the count fell: {often}");
    let runs = machine.run("cat /srv/once", SHORT)?;
    ensure!(runs == "ran\n", "once ran again: {runs}");
    // A sandbox and a container of each run, and none is left half made.
    machine.until(&format!("test $({begun} --filter status=running | wc -l) = 6"), LONG)?;
    machine.until(&format!("test -z \"$({begun} --filter status=created)\""), LONG)?;
    machine.run("rm /etc/kubernetes/manifests/cut.yaml /etc/kubernetes/manifests/begun.yaml", SHORT)?;
    machine.until(&format!("test -z \"$({begun})\""), LONG).map(drop)
}

/// Puts a file into the manifest folder, in one step and on the disk.
pub(super) fn put(machine: &Machine, name: &str, text: &str) -> Result<()> {
    let script = format!(
        "cd /etc/kubernetes/manifests && cat > .{name} <<'END'\n{text}END\nsync .{name} && mv .{name} {name} && sync ."
    );
    machine.run(&script, SHORT).map(drop)
}

/// A pod that ends once, and one that stays the third time that it runs. What they note is on the disk before they end.
const CUT: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  volumes: [{name: host, hostPath: {path: /srv, type: Directory}}]
  containers:
    - name: app
      image: longshore.dev/busybox:1
      imagePullPolicy: Never
      command: [sh, -c, echo ran >> /host/once; sync]
      volumeMounts: [{name: host, mountPath: /host}]
---
apiVersion: v1
kind: Pod
metadata: {name: often}
spec:
  volumes: [{name: host, hostPath: {path: /srv, type: Directory}}]
  containers:
    - name: app
      image: longshore.dev/busybox:1
      imagePullPolicy: Never
      command: [sh, -c, 'echo ran >> /host/often; sync; test $(wc -l < /host/often) -ge 3 && exec sleep 1000000']
      volumeMounts: [{name: host, mountPath: /host}]
";

/// Pods that are ready when a file that was written for them is whole.
const BEGUN: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: words, namespace: begun}
data: {word: whole}
---
apiVersion: v1
kind: List
items:
  - &pod
    apiVersion: v1
    kind: Pod
    metadata: {name: one, namespace: begun}
    spec:
      volumes: [{name: words, configMap: {name: words}}]
      containers:
        - name: app
          image: longshore.dev/busybox:1
          imagePullPolicy: Never
          command: [sleep, '1000000']
          readinessProbe: {exec: {command: [grep, -qx, whole, /words/word]}, timeoutSeconds: 10}
          volumeMounts: [{name: words, mountPath: /words}]
  - {<<: *pod, metadata: {name: two, namespace: begun}}
  - {<<: *pod, metadata: {name: three, namespace: begun}}
";

fn configuration() -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: /etc/kubernetes/manifests
shutdownGracePeriod: {GRACE}s
shutdownGracePeriodCriticalPods: {}s
",
        GRACE / 2
    )
}

const UNIT: &str = "\
[Service]
ExecStart=
ExecStart=/usr/local/bin/longshore run --config /etc/longshore.yaml --register-node=false
";

fn pod(name: &str, priority: i32) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  priority: {priority}
  terminationGracePeriodSeconds: 50
  volumes: [{{name: host, hostPath: {{path: /srv, type: Directory}}}}]
  containers:
    - name: app
      image: longshore.dev/busybox:1
      imagePullPolicy: Never
      command:
        - sh
        - -c
        - |
          trap 'echo {name} is told >> /host/ended; sleep 4; echo {name} has ended >> /host/ended; sync; exit 0' TERM
          while :; do sleep 0.2; done
      volumeMounts: [{{name: host, mountPath: /host}}]
"
    )
}
