//! `systemctl poweroff` in the emulated machine: logind waits, pods end by priority, and the next boot brings them back.

use anyhow::{Result, ensure};

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
