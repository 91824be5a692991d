//! Who containers run as, what they may do, and where they are counted.

use std::{
    fs,
    io::Write as _,
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::bed::{
    Bed, NODE,
    pods::{SLEEP, container, phase, pod, sleeper, status, uid, waiting, with},
    process, until,
};

fn secured(name: &str, context: Value, spec: Value) -> Value {
    pod(name, json!([with(container("app", SLEEP), json!({"securityContext": context}))]), spec)
}

/// A line of `/proc/1/status` in a container.
fn proc_status(bed: &Bed, name: &str, key: &str) -> String {
    let text = bed.exec(name, "app", "cat /proc/1/status");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
    line.unwrap_or_else(|| panic!("no {key} in {text}")).to_owned()
}

#[test]
fn security_users_and_groups() {
    let Some(bed) = Bed::start() else { return };
    let of_pod = json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "supplementalGroups": [5000]}});
    bed.apply(&secured("a", json!({}), of_pod.clone()));
    bed.apply(&secured("b", json!({"runAsUser": 1001}), of_pod));
    bed.apply(&secured("c", json!({"runAsNonRoot": true}), json!({})));
    bed.apply(&secured("d", json!({"runAsNonRoot": true, "runAsUser": 7}), json!({})));
    bed.wait_ready("a");
    assert_eq!(bed.exec("a", "app", "id -u; id -g").replace('\n', " "), "1000 3000 ");
    assert!(bed.exec("a", "app", "id -G").split_whitespace().any(|group| group == "5000"));
    bed.wait_ready("b");
    assert_eq!(bed.exec("b", "app", "id -u; id -g").replace('\n', " "), "1001 3000 ");
    bed.wait_ready("d");
    let c = bed.wait("c", "refused", |pod| waiting(pod, "app") == "CreateContainerConfigError");
    let message = status(&c, "app")["state"]["waiting"]["message"].to_string();
    assert!(message.contains("container has runAsNonRoot and image will run as root"), "{message}");
    assert_eq!(phase(&c), "Pending");
    bed.wait_event("c", "Failed", "runAsNonRoot");
}

#[test]
fn security_capabilities_and_privileges() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&sleeper("plain"));
    bed.apply(&secured("none", json!({"capabilities": {"drop": ["ALL"]}}), json!({})));
    bed.apply(&secured("one", json!({"capabilities": {"drop": ["all"], "add": ["NET_ADMIN"]}}), json!({})));
    let tight = json!({"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
        "seccompProfile": {"type": "RuntimeDefault"}});
    bed.apply(&secured("tight", tight, json!({})));
    for name in ["plain", "none", "one", "tight"] {
        bed.wait_ready(name);
    }
    let capabilities = |name: &str| u64::from_str_radix(&proc_status(&bed, name, "CapEff"), 16).unwrap();
    assert_eq!(capabilities("none"), 0);
    assert_eq!(capabilities("one"), 1 << 12);
    let plain = capabilities("plain");
    assert!(plain != 0 && plain & 1 << 12 == 0);

    assert_eq!(proc_status(&bed, "plain", "NoNewPrivs"), "0");
    assert_eq!(proc_status(&bed, "tight", "NoNewPrivs"), "1");
    assert_eq!(proc_status(&bed, "tight", "Seccomp"), "2");
    assert_eq!(proc_status(&bed, "plain", "Seccomp"), "0", "unconfined unless asked for");
    let (code, output) = bed.try_exec("tight", "app", "touch /x");
    assert!(code != 0 && output.contains("Read-only"), "{output}");
}

#[test]
fn security_privileged() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&secured("all", json!({"privileged": true}), json!({})));
    bed.apply(&sleeper("plain"));
    bed.wait_ready("plain");
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim().to_owned();
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    let pod = bed.wait("all", "ready, or cannot start", |pod| {
        crate::bed::pods::is_ready(pod) || waiting(pod, "app") == "CrashLoopBackOff"
    });
    if u64::from_str_radix(&own, 16).unwrap() != (1 << (last + 1)) - 1 && !crate::bed::pods::is_ready(&pod) {
        // A machine that has not all capabilities itself cannot give them; the pod says so and is tried again.
        assert!(status(&pod, "app")["lastState"]["terminated"]["message"].to_string().contains("caps"), "{pod}");
        return;
    }
    bed.wait_ready("all");
    assert_eq!(proc_status(&bed, "all", "CapEff"), own);
    assert!(bed.exec("all", "app", "ls /dev").lines().count() > bed.exec("plain", "app", "ls /dev").lines().count());
}

#[test]
fn security_seccomp_by_default_when_told() {
    let Some(bed) = Bed::start_with(&["--seccomp-default"]) else { return };
    bed.apply(&sleeper("a"));
    bed.apply(&secured("b", json!({"seccompProfile": {"type": "Unconfined"}}), json!({})));
    let profiles = bed.root().join("seccomp");
    fs::create_dir_all(&profiles).unwrap();
    fs::write(profiles.join("open.json"), "{\"defaultAction\": \"SCMP_ACT_ALLOW\"}").unwrap();
    let local = |name: &str| json!({"seccompProfile": {"type": "Localhost", "localhostProfile": name}});
    bed.apply(&secured("c", local("open.json"), json!({})));
    bed.apply(&secured("d", local("none.json"), json!({})));
    for (name, mode) in [("a", "2"), ("b", "0"), ("c", "2")] {
        bed.wait_ready(name);
        assert_eq!(proc_status(&bed, name, "Seccomp"), mode, "{name}");
    }
    bed.wait("d", "refused", |pod| waiting(pod, "app") == "CreateContainerError");
}

#[test]
fn security_sysctls() {
    let Some(bed) = Bed::start_with(&["--allowed-unsafe-sysctls=kernel.msg*"]) else { return };
    let with_sysctl = |name: &str, sysctl: &str, value: &str| {
        pod(
            name,
            json!([container("app", SLEEP)]),
            json!({"securityContext": {"sysctls": [{"name": sysctl, "value": value}]}}),
        )
    };
    bed.apply(&with_sysctl("safe", "net.ipv4.ip_unprivileged_port_start", "80"));
    bed.apply(&with_sysctl("allowed", "kernel/msgmax", "4096"));
    bed.apply(&with_sysctl("unsafe", "net.core.somaxconn", "100"));
    bed.wait_ready("safe");
    assert_eq!(bed.exec("safe", "app", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").trim(), "80");
    bed.wait_ready("allowed");
    assert_eq!(bed.exec("allowed", "app", "cat /proc/sys/kernel/msgmax").trim(), "4096");
    let refused = bed.wait("unsafe", "Failed", |pod| phase(pod) == "Failed");
    assert_eq!(refused["status"]["reason"], "SysctlForbidden");
    bed.wait_event("unsafe", "SysctlForbidden", "");
    assert!(bed.containers("unsafe").is_empty());
}

#[test]
fn security_namespaces() {
    let Some(bed) = Bed::start() else { return };
    let here = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_string_lossy().into_owned();
    let there =
        |name: &str, kind: &str| bed.exec(name, "app", &format!("readlink /proc/self/ns/{kind}")).trim().to_owned();
    bed.apply(&pod(
        "host",
        json!([container("app", SLEEP)]),
        json!({"hostNetwork": true, "hostPID": true, "hostIPC": true}),
    ));
    let two = json!([container("app", SLEEP), container("other", "trap 'exit 0' TERM; sleep 7654321 & wait")]);
    bed.apply(&pod("shared", two.clone(), json!({"shareProcessNamespace": true})));
    bed.apply(&pod("apart", two, json!({})));
    let host = bed.wait_ready("host");
    for kind in ["net", "pid", "ipc"] {
        assert_eq!(there("host", kind), here(kind), "{kind}");
    }
    assert_eq!(host["status"]["podIP"], host["status"]["hostIP"]);
    let hosts = bed.exec("host", "app", "cat /etc/hosts");
    assert!(hosts.starts_with("# Kubernetes-managed hosts file (host network)."), "{hosts}");
    bed.wait_ready("shared");
    bed.wait_ready("apart");
    let sees_other =
        |name: &str| bed.exec(name, "app", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").contains("sleep 7654321");
    assert!(sees_other("shared") && !sees_other("apart"));
    for kind in ["net", "ipc", "uts"] {
        let of_other = bed.exec("apart", "other", &format!("readlink /proc/self/ns/{kind}")).trim().to_owned();
        if kind != "uts" {
            assert_eq!(there("apart", kind), of_other, "{kind}");
        }
        assert_ne!(there("apart", kind), here(kind), "{kind}");
    }
    assert_eq!(bed.exec("apart", "other", "hostname").trim(), format!("apart-{NODE}"));
}

fn limited(name: &str, resources: Value) -> Value {
    pod(name, json!([with(container("app", SLEEP), json!({"resources": resources}))]), json!({}))
}

#[test]
fn security_qos_cgroups_and_limits() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&limited("guaranteed", json!({"limits": {"cpu": "200m", "memory": "64Mi"}})));
    bed.apply(&limited(
        "burstable",
        json!({"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}}),
    ));
    bed.apply(&sleeper("besteffort"));
    for (name, class, parent) in [
        ("guaranteed", "Guaranteed", ""),
        ("burstable", "Burstable", "burstable"),
        ("besteffort", "BestEffort", "besteffort"),
    ] {
        let pod = bed.wait_ready(name);
        assert_eq!(pod["status"]["qosClass"], class);
        let process = bed.inspect(name, "app")["State"]["Pid"].as_u64().unwrap();
        let cgroup = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap();
        let folder = match parent {
            "" => format!("/kubepods/pod{}/", uid(&pod)),
            parent => format!("/kubepods/{parent}/pod{}/", uid(&pod)),
        };
        let dash = if parent.is_empty() { String::new() } else { format!("-{parent}") };
        let slice = format!("/kubepods{dash}-pod{}.slice/", uid(&pod).replace('-', "_"));
        assert!(cgroup.contains(&folder) || cgroup.contains(&slice), "{name}: {cgroup}");
    }
    let found = bed.inspect("guaranteed", "app")["HostConfig"].clone();
    assert_eq!(found["Memory"], 64 << 20);
    assert_eq!((&found["CpuQuota"], &found["CpuPeriod"]), (&json!(20_000), &json!(100_000)));
    assert_eq!(found["CpuShares"], 204);
    assert_eq!(bed.inspect("burstable", "app")["HostConfig"]["CpuShares"], 102);
    assert_eq!(bed.inspect("besteffort", "app")["HostConfig"]["CpuShares"], 2);
    // The pod's own cgroup has the limits as well, and they are as the kernel has them.
    let pod = bed.pod("guaranteed").unwrap();
    let name = uid(&pod).to_owned();
    let value = |files: [&str; 2]| {
        let folders = crate::bed::cgroups().into_iter().filter(|folder| {
            let own = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            own.contains("pod") && own.contains(&name.replace('-', "_")) || own == format!("pod{name}")
        });
        let found = folders
            .flat_map(|folder| files.map(|file| folder.join(file)))
            .find_map(|file| fs::read_to_string(file).ok());
        found.unwrap_or_default().trim().to_owned()
    };
    assert_eq!(value(["memory.limit_in_bytes", "memory.max"]), (64 << 20).to_string());
    assert!(["20000", "20000 100000"].contains(&value(["cpu.cfs_quota_us", "cpu.max"]).as_str()));
}

#[test]
fn security_out_of_memory_is_shown() {
    let Some(bed) = Bed::start() else { return };
    let eat = container("app", "sleep 1; tail /dev/zero");
    let app = with(eat, json!({"resources": {"limits": {"memory": "16Mi", "cpu": "1"}}}));
    bed.apply(&pod("a", json!([app]), json!({"restartPolicy": "Never"})));
    let a = bed.wait("a", "Failed", |pod| phase(pod) == "Failed");
    let ended = &status(&a, "app")["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("OOMKilled"), &json!(137)));
}

#[test]
fn security_oom_scores() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&limited("guaranteed", json!({"limits": {"cpu": "100m", "memory": "64Mi"}})));
    bed.apply(&limited("burstable", json!({"requests": {"memory": "1Mi"}})));
    bed.apply(&sleeper("besteffort"));
    let score = |name: &str| {
        bed.wait_ready(name);
        let process = bed.inspect(name, "app")["State"]["Pid"].as_u64().unwrap();
        let text = fs::read_to_string(format!("/proc/{process}/oom_score_adj")).unwrap();
        text.trim().parse::<i32>().unwrap()
    };
    assert_eq!(score("besteffort"), 1000);
    assert_eq!(score("burstable"), 999);
    // A machine that may not lower it clamps it, and keeps what it found out.
    let kept: Value = serde_json::from_slice(&fs::read(bed.root().join("docker.json")).unwrap()).unwrap();
    let lowest = kept["min_oom_score_adj"].as_i64().unwrap();
    assert_eq!(i64::from(score("guaranteed")), lowest.max(-997));
    assert_eq!(bed.events_of_node("OOMScoreAdjLimited").len(), usize::from(lowest > -998));
}

#[test]
fn security_apparmor() {
    let Some(bed) = Bed::start() else { return };
    let profile = |kind: &str| json!({"appArmorProfile": {"type": kind}});
    bed.apply(&secured("confined", profile("RuntimeDefault"), json!({})));
    bed.apply(&secured("free", profile("Unconfined"), json!({})));
    bed.wait_ready("free");
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    if !enabled {
        let refused = bed.wait("confined", "Failed", |pod| phase(pod) == "Failed");
        assert_eq!(refused["status"]["reason"], "AppArmor");
        return;
    }
    bed.wait_ready("confined");
    let current = |name: &str| bed.exec(name, "app", "cat /proc/1/attr/current").trim().to_owned();
    until("the profiles", || {
        (current("confined") == "docker-default (enforce)" && current("free") == "unconfined").then_some(())
    });

    // A profile of the node's own: a pod that names one says that it is missing, and starts once somebody has loaded it.
    let own = format!("longshore-test-{}", std::process::id());
    let local = json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": own}});
    bed.apply(&secured("local", local, json!({})));
    bed.wait("local", "refused", |pod| {
        let last = &status(pod, "app")["lastState"]["terminated"];
        last["reason"] == "ContainerCannotRun" && last["message"].to_string().contains("apparmor")
    });
    let profile = Profile::load(&own);
    bed.wait_ready("local");
    until("the node's own profile", || (current("local") == format!("{own} (enforce)")).then_some(()));
    assert_ne!(bed.try_exec("local", "app", "touch /tmp/denied").0, 0);
    assert_eq!(bed.try_exec("local", "app", "touch /tmp/other"), (0, String::new()));
    bed.delete("local");
    bed.wait_gone("local");
    drop(profile);
}

/// A profile that denies `/tmp/denied` and nothing else, until this is dropped.
struct Profile(tempfile::NamedTempFile);

impl Profile {
    fn load(name: &str) -> Profile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let rules = "file, network, capability, mount, umount, ptrace, signal, unix, deny /tmp/denied w,";
        writeln!(file, "profile {name} flags=(attach_disconnected,mediate_deleted) {{ {rules} }}").unwrap();
        let profile = Profile(file);
        let output = profile.parser("--replace");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        profile
    }

    fn parser(&self, action: &str) -> Output {
        let mut parser = Command::new("apparmor_parser");
        process::output(parser.arg(action).arg("--skip-cache").arg(self.0.path()), b"")
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.parser("--remove");
    }
}
