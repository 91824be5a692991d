//! What the node lets pods have: processes, CPU quotas, and all of them together.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bed::{
    Bed,
    pods::{SLEEP, container, id, is_ready, pod, restarts, uid, with},
    until,
};

fn sized(name: &str) -> Value {
    let size = json!({"cpu": "200m", "memory": "64Mi"});
    pod(name, json!([with(container("app", SLEEP), json!({"resources": {"limits": size}}))]), json!({}))
}

/// What the first of those files has that is there, in any of the folders.
fn value(folders: impl IntoIterator<Item = PathBuf>, files: &[&str]) -> String {
    let mut files = folders.into_iter().flat_map(|folder| files.iter().map(move |file| folder.join(file)));
    files.find_map(|file| fs::read_to_string(file).ok()).unwrap_or_default().trim().to_owned()
}

/// The same of a pod's own cgroup.
fn of_pod(pod: &Value, files: &[&str]) -> String {
    let names = [format!("pod{}", uid(pod)), format!("pod{}.slice", uid(pod).replace('-', "_"))];
    let own = |folder: &PathBuf| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        names.iter().any(|own| name == *own || name.ends_with(&format!("-{own}")))
    };
    value(crate::bed::cgroups().into_iter().filter(own), files)
}

const QUOTA: [&str; 2] = ["cpu.cfs_quota_us", "cpu.max"];

#[test]
fn node_limits_of_processes_and_quotas_are_the_nodes() {
    let Some(mut bed) = Bed::start_with(&["--pod-max-pids=40", "--cpu-cfs-quota-period=20ms"]) else { return };
    bed.apply(&sized("a"));
    let a = bed.wait_ready("a");
    let quota = |bed: &Bed, name: &str| {
        let host = bed.inspect(name, "app")["HostConfig"].clone();
        (host["CpuQuota"].as_i64().unwrap_or(0), host["CpuPeriod"].as_i64().unwrap_or(0))
    };
    assert_eq!(quota(&bed, "a"), (4_000, 20_000));
    assert!(["4000", "4000 20000"].contains(&of_pod(&a, &QUOTA).as_str()), "{}", of_pod(&a, &QUOTA));
    assert_eq!(of_pod(&a, &["pids.max"]), "40");
    let (code, said) =
        bed.try_exec("a", "app", "i=0; while [ $i -lt 60 ]; do sleep 5 >/dev/null 2>&1 & i=$((i+1)); done; wait");
    assert!(code != 0 && said.contains("fork"), "{code} {said}");

    // A node that is configured anew restarts nothing; what begins from now on is as it says.
    bed.stop();
    bed.flags = vec!["--cpu-cfs-quota=false".to_owned()];
    bed.begin();
    bed.apply(&sized("b"));
    let b = bed.wait_ready("b");
    assert_eq!(quota(&bed, "b"), (0, 0));
    assert!(["-1", "max 100000"].contains(&of_pod(&b, &QUOTA).as_str()), "{}", of_pod(&b, &QUOTA));
    assert_eq!(of_pod(&b, &["pids.max"]), "max");
    let now = bed.wait_ready("a");
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&a, "app"), 0));
    assert_eq!(quota(&bed, "a"), (4_000, 20_000));
}

#[test]
fn node_limits_of_all_pods_are_what_is_not_reserved() {
    let Some(bed) = Bed::start_with(&["--system-reserved=cpu=100m,memory=64Mi,pid=500"]) else { return };
    until("it is enforced", || {
        let events = bed.get("/v1/events").as_array().cloned().unwrap_or_default();
        events.into_iter().find(|event| event["pod"].is_null() && event["reason"] == "NodeAllocatableEnforced")
    });
    let number = |file: &str| fs::read_to_string(file).unwrap().trim().parse::<i64>().unwrap();
    let most = number("/proc/sys/kernel/pid_max").min(number("/proc/sys/kernel/threads-max"));
    let info = fs::read_to_string("/proc/meminfo").unwrap();
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap().trim();
    let total: i64 = total.split(' ').next().unwrap().parse::<i64>().unwrap() << 10;
    let wanted = [(total - (64 << 20)).to_string(), (most - 500).to_string()];
    let found = || {
        [["memory.limit_in_bytes", "memory.max"].as_slice(), &["pids.max"]].map(|files| {
            let roots = ["", "memory", "pids"].map(|controller| Path::new("/sys/fs/cgroup").join(controller));
            let folders = roots.iter().flat_map(|root| [root.join("kubepods"), root.join("kubepods.slice")]);
            value(folders, files)
        })
    };
    // Agents that begin meanwhile take the limits away, since they keep nothing from pods; the next pod of ours brings them back.
    let kept = ["a", "b", "c", "d", "e", "f", "g", "h"].into_iter().any(|name| {
        bed.apply(&sized(name));
        let mut kept = false;
        bed.wait(name, "ready", |pod| {
            kept |= found() == wanted;
            is_ready(pod)
        });
        kept
    });
    assert!(kept, "{:?} instead of {wanted:?}", found());
}
