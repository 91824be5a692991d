//! The emulated machine runs short of memory and of disk, as a node of a cluster: the right pod ends, and nothing is lost.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    joined::{Joined, LONG, NODE, is_true, object, pod, running},
    machine::SHORT,
};
use crate::report::Outcome;

/// What the node keeps free, and what is left to it by the pod that takes too much.
pub(super) const EVICTION: &[&str] =
    &["'--eviction-hard=memory.available<400Mi'", "--eviction-pressure-transition-period=20s"];
const LEFT_MIB: u32 = 220;

/// Fills the disk, what is reserved for root included.
const FILL: &str = "fallocate -l $(($(stat -f -c '%f * %S' /) - 33554432)) /full.1; \
                    dd if=/dev/zero of=/full.2 bs=65536 2>/dev/null; dd if=/dev/zero of=/full.3 bs=512 2>/dev/null; \
                    sync; ! dd if=/dev/zero of=/full.4 bs=4096 count=1 2>/dev/null";

/// A pod that takes the machine's memory is evicted, and no other one.
pub(super) fn memory(joined: &Joined<'_>) -> Result<Outcome> {
    let take = format!(
        "until [ -e /m/go ]; do sleep 0.2; done; \
         dd if=/dev/zero of=/m/f bs=1048576 count=$(awk '/^MemAvailable/{{print int($2/1024)-{LEFT_MIB}}}' /proc/meminfo); \
         sleep 1000000"
    );
    let greedy = json!({"command": ["sh", "-c", take], "volumeMounts": [{"name": "m", "mountPath": "/m"}],
        "resources": {"requests": {"memory": "16Mi"}}});
    let volumes = json!({"volumes": [{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}}]});
    let modest = json!({"resources": {"requests": {"memory": "64Mi"}}});
    joined.apply(&[
        pod("greedy", greedy, volumes),
        pod("modest", modest, json!({})),
        pod("asks-for-nothing", json!({}), json!({})),
    ])?;
    let others = ["modest", "asks-for-nothing"];
    let before = others.map(|name| joined.wait_pod(name));
    let greedy = joined.wait_pod("greedy")?;
    joined.exec(&greedy, "touch /m/go")?;
    joined.wait("node", NODE, "short of memory", |node| is_true(node, "MemoryPressure"))?;
    let greedy = joined.wait("pod", "greedy", "evicted", |pod| pod["status"]["phase"] == "Failed")?;
    ensure!(greedy["status"]["reason"] == "Evicted", "greedy ended as {}", greedy["status"]);
    joined.wait("node", NODE, "at ease again", |node| !is_true(node, "MemoryPressure"))?;
    for (name, before) in others.into_iter().zip(before) {
        let now = joined.wait_pod(name)?;
        ensure!(before? == now, "{name} has another container than before");
    }
    for name in others.into_iter().chain(["greedy"]) {
        joined.delete(name)?;
    }
    Ok(Outcome::PASSED)
}

/// A full disk: what runs goes on, also under another agent; what cannot be done says why, and is done when there is room.
pub(super) fn disk(joined: &mut Joined<'_>) -> Result<Outcome> {
    let mounts = json!({"volumeMounts": [{"name": "c", "mountPath": "/c"}]});
    let volumes = json!({"volumes": [{"name": "c", "configMap": {"name": "words"}}]});
    joined.apply(&[
        object("ConfigMap", "words", "data", "word", "before"),
        pod("reads", mounts.clone(), volumes.clone()),
        pod("simple", json!({}), json!({})),
    ])?;
    let names = ["reads", "simple"];
    let before = [joined.wait_pod("reads")?, joined.wait_pod("simple")?];
    let same = |joined: &Joined<'_>, when: &str| -> Result<()> {
        for (name, before) in names.iter().zip(&before) {
            let now = joined.machine.run(&running(name), SHORT)?;
            ensure!(now.trim() == before, "{when} {name} has the container {now:?}, not {before}");
        }
        Ok(())
    };
    joined.machine.run(FILL, LONG)?;
    joined.apply(&[object("ConfigMap", "words", "data", "word", "during"), pod("late", mounts, volumes)])?;
    joined.wait_event("late", "o space left on device")?;
    joined.machine.until("journalctl -u longshore -o cat --no-pager | grep -qi 'no space left on device'", LONG)?;
    same(joined, "on a full disk")?;
    joined.machine.run("systemctl kill --signal=KILL longshore", SHORT)?;
    joined.machine.until("systemctl is-active longshore && longshore get pods > /dev/null", LONG)?;
    joined.wait_ready()?;
    same(joined, "under another agent, on a full disk,")?;

    joined.machine.run("rm -f /full.*; sync", SHORT)?;
    let late = joined.wait_pod("late")?;
    same(joined, "with room again")?;
    for container in [&before[0], &late] {
        joined.machine.until(&format!("test \"$(docker exec {container} cat /c/word)\" = during"), LONG)?;
    }
    // What was kept is whole again: an agent without an API server has all of it.
    joined.machine.until("grep -lq during /var/lib/longshore/state/*", LONG)?;
    joined.shut();
    joined.machine.run("systemctl restart longshore", LONG)?;
    let ready = "longshore get pods -n default > /tmp/table; \
                 for name in reads simple late; do grep -E \"^$name .* *1/1 \" /tmp/table || exit 1; done";
    joined.machine.until(ready, LONG)?;
    same(joined, "without an API server")?;
    joined.open()?;
    joined.wait_ready()?;
    for name in ["reads", "simple", "late"] {
        joined.delete(name)?;
    }
    Ok(Outcome { passed: 3, ..Outcome::PASSED })
}
