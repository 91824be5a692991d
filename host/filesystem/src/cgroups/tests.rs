//! Cgroups of pods under both drivers and both hierarchies, as far as the machine has them.

#![allow(clippy::unwrap_used)]

use longshore_core::cgroup::Qos;

use super::*;

fn cgroup(uid: &str, qos: Qos) -> PodCgroup {
    PodCgroup {
        uid: uid.to_owned(),
        qos,
        cpu_shares: 512,
        cpu_quota: Some(50_000),
        cpu_period: 100_000,
        memory: Some(64 << 20),
        pids: Some(100),
        huge_pages: vec![("2MB", 4 << 20)],
    }
}

#[test]
fn weights_are_the_kubelets() {
    assert_eq!([2, 512, 1024, 262_144, 0, 1 << 40].map(weight), [1, 20, 39, 10_000, 1, 10_000]);
}

#[test]
fn systemd_gets_its_own_words() {
    let mut cgroup = cgroup("u", Qos::Burstable);
    let words = |cgroup: &PodCgroup, v2| systemd::properties(cgroup, v2).join(" ");
    assert_eq!(words(&cgroup, true), "CPUWeight=20 CPUQuota=50% MemoryMax=67108864 TasksMax=100 MemorySwapMax=0");
    assert_eq!(words(&cgroup, false), "CPUShares=512 CPUQuota=50% MemoryLimit=67108864 TasksMax=100");
    (cgroup.cpu_quota, cgroup.memory, cgroup.pids) = (Some(1100), None, None);
    let unlimited = "MemoryMax=infinity TasksMax=infinity MemorySwapMax=0";
    assert_eq!(words(&cgroup, true), format!("CPUWeight=20 CPUQuota=2% {unlimited}"));
    cgroup.cpu_quota = None;
    assert!(words(&cgroup, true).contains("CPUQuota= "));
    (cgroup.cpu_quota, cgroup.cpu_period) = (Some(5_000), 10_000);
    assert_eq!(words(&cgroup, true), format!("CPUWeight=20 CPUQuota=50% {unlimited} CPUQuotaPeriodSec=10000us"));
}

#[test]
fn a_container_ends_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let pod = cgroup("u-1", Qos::BestEffort);
    for (driver, name) in [
        (CgroupDriver::Cgroupfs, "kubepods/besteffort/podu-1/c"),
        (
            CgroupDriver::Systemd,
            "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podu_1.slice/docker-c.scope",
        ),
    ] {
        let folder = dir.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("memory.oom.group"), "0\n").unwrap();
        let cgroups = Cgroups::new(CgroupOptions { driver, v2: true, root: dir.path().to_owned(), enabled: true });
        cgroups.kill_together(&pod, "c").unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("memory.oom.group")).unwrap(), "1\n");
        // It may have ended already.
        cgroups.kill_together(&pod, "d").unwrap();
    }
}

/// Ordinary files stand in for the kernel's: what is written where is what this shows.
#[test]
fn a_unified_hierarchy_is_enabled_from_the_top() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let pod = cgroup("u1", Qos::Burstable);
    let mut folder = root.to_owned();
    for name in std::iter::once(String::new()).chain(pod.names()) {
        folder.push(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("cgroup.controllers"), "cpuset cpu io memory pids").unwrap();
        let memory = ["memory.max", "memory.swap.max"];
        let others = ["cgroup.subtree_control", "cpu.weight", "cpu.max", "pids.max", "hugetlb.2MB.max"];
        for file in memory.into_iter().chain(others) {
            std::fs::write(folder.join(file), "").unwrap();
        }
    }
    let cgroups =
        Cgroups::new(CgroupOptions { driver: CgroupDriver::Cgroupfs, v2: true, root: root.to_owned(), enabled: true });
    cgroups.prepare(&pod).unwrap();
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    for above in ["", "kubepods/", "kubepods/burstable/"] {
        assert!(read(&format!("{above}cgroup.subtree_control")).starts_with('+'));
    }
    assert_eq!(read("kubepods/burstable/podu1/cgroup.subtree_control"), "");
    assert_eq!(read("kubepods/burstable/podu1/cpu.weight"), "20");
    assert_eq!(read("kubepods/burstable/podu1/cpu.max"), "50000 100000");
    assert_eq!(read("kubepods/burstable/podu1/memory.max"), "67108864");
    assert_eq!(read("kubepods/burstable/podu1/memory.swap.max"), "0");
    assert_eq!(read("kubepods/burstable/podu1/pids.max"), "100");
    assert_eq!(read("kubepods/burstable/podu1/hugetlb.2MB.max"), "4194304");
    assert_eq!(read("kubepods/burstable/cpu.weight"), "20");

    // All pods together: set at once, kept up with each pod, and taken away.
    let of_all = || ["cpu.weight", "memory.max", "pids.max"].map(|file| read(&format!("kubepods/{file}")));
    let limits = PodsLimits { cpu_shares: 512, memory: Some((1 << 30) + 5), pids: Some(1000) };
    cgroups.limit_pods(&limits).unwrap();
    assert_eq!(of_all(), ["20", "1073741824", "1000"]);
    std::fs::write(root.join("kubepods/pids.max"), "7").unwrap();
    cgroups.prepare(&pod).unwrap();
    assert_eq!(of_all(), ["20", "1073741824", "1000"]);
    for file in ["memory.max", "pids.max"] {
        // Unlike the kernel's, an ordinary file keeps what is behind a shorter value.
        std::fs::write(root.join("kubepods").join(file), "9").unwrap();
    }
    cgroups.limit_pods(&PodsLimits { memory: None, pids: None, ..limits }).unwrap();
    assert_eq!(of_all(), ["20", "max", "max"]);
}

#[test]
fn both_classes_are_there_before_their_first_pod() {
    let limits = PodsLimits { cpu_shares: 512, memory: Some(1 << 30), pids: None };
    for (v2, file, least) in [(true, "cpu.weight", "1"), (false, "cpu.shares", "2")] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let limit = |limits: &PodsLimits| match v2 {
            true => v2::limit_pods(root, limits).unwrap(),
            false => {
                let controllers = vec!["cpu".to_owned()];
                v1::limit_pods(&[v1::Hierarchy { root: root.to_owned(), controllers }], limits).unwrap();
            }
        };
        std::fs::write(root.join("cgroup.controllers"), "").unwrap();
        limit(&PodsLimits { memory: None, ..limits });
        assert!(!root.join(PODS).exists(), "nothing is kept from pods");
        std::fs::create_dir(root.join(PODS)).unwrap();
        std::fs::write(root.join(PODS).join("cgroup.controllers"), "").unwrap();
        limit(&limits);
        let classes = CLASSES.map(|class| root.join(PODS).join(class));
        assert!(classes.iter().all(|class| class.is_dir()));
        std::fs::write(classes[1].join(file), "").unwrap();
        limit(&limits);
        assert_eq!(std::fs::read_to_string(classes[1].join(file)).unwrap(), least);
    }
}

#[test]
fn where_there_are_none_pods_go_without() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        CgroupOptions { driver: CgroupDriver::Cgroupfs, v2: true, root: dir.path().to_owned(), enabled: true };
    let cgroups = Cgroups::new(options);
    cgroups.prepare(&cgroup("u1", Qos::Guaranteed)).unwrap();
    cgroups.remove(&cgroup("u1", Qos::Guaranteed)).unwrap();
    assert!(cgroups.prepare(&cgroup("../u1", Qos::Guaranteed)).is_err());
    let limits = PodsLimits { cpu_shares: 512, memory: Some(1 << 30), pids: None };
    assert!(matches!(cgroups.limit_pods(&limits), Err(FilesError::NotAllowed(_))));
}

/// The kernel's own hierarchies, where this machine has those of v1 and lets us write them.
#[test]
fn hierarchies_of_v1_get_limits_and_are_removed() {
    let hierarchies = v1::hierarchies(&mounts::all().unwrap());
    let writable = |hierarchy: &v1::Hierarchy| {
        let probe = hierarchy.root.join(format!("longshore-test-{}", std::process::id()));
        std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).is_ok()
    };
    if hierarchies.is_empty() || !hierarchies.iter().all(writable) {
        return;
    }
    let cgroups = Cgroups::new(CgroupOptions::new(CgroupDriver::Cgroupfs, false));
    let pod = cgroup(&format!("test-{}", std::process::id()), Qos::Burstable);
    cgroups.prepare(&pod).unwrap();
    cgroups.prepare(&pod).unwrap();
    let path = |controller: &str| {
        let hierarchy = hierarchies.iter().find(|found| found.controllers.iter().any(|name| name == controller));
        hierarchy.map(|found| found.root.join(pod.path(CgroupDriver::Cgroupfs).trim_start_matches('/')))
    };
    let read = |controller: &str, file: &str| {
        path(controller).map(|path| std::fs::read_to_string(path.join(file)).unwrap().trim().to_owned())
    };
    let expected = [
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("pids", "pids.max", "100"),
    ];
    let found = expected.map(|(controller, file, _)| read(controller, file));
    // Another period: the cgroup keeps its own, and no less than the quota.
    cgroups.prepare(&PodCgroup { cpu_quota: Some(3_333), cpu_period: 7_000, ..pod.clone() }).unwrap();
    let rescaled = (read("cpu", "cpu.cfs_period_us"), read("cpu", "cpu.cfs_quota_us"));
    cgroups.prepare(&PodCgroup { cpu_quota: None, ..pod.clone() }).unwrap();
    cgroups.prepare(&PodCgroup { cpu_quota: Some(3_500), cpu_period: 7_000, ..pod.clone() }).unwrap();
    let anew = (read("cpu", "cpu.cfs_period_us"), read("cpu", "cpu.cfs_quota_us"));
    let cpus = read("cpuset", "cpuset.cpus");
    let folder = path("memory").unwrap();
    std::fs::create_dir(folder.join("container")).unwrap();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    std::fs::write(folder.join("container/cgroup.procs"), child.id().to_string()).unwrap();
    let busy = cgroups.remove(&pod);
    child.kill().unwrap();
    child.wait().unwrap();
    let removed = cgroups.remove(&pod);
    for ((controller, file, wanted), found) in expected.into_iter().zip(found) {
        if path(controller).is_some() {
            assert_eq!(found.as_deref(), Some(wanted), "{file}");
        }
    }
    if path("cpu").is_some() {
        let kept = rescaled.1.unwrap().parse::<i64>().unwrap();
        assert!(rescaled.0.as_deref() == Some("100000") && (47_615..47_640).contains(&kept), "{kept}");
        assert_eq!(anew, (Some("7000".to_owned()), Some("3500".to_owned())));
    }
    assert!(cpus.is_none_or(|cpus| !cpus.is_empty()));
    assert!(busy.unwrap_err().to_string().contains("processes still run"));
    removed.unwrap();
    assert!(!folder.exists());
    cgroups.remove(&pod).unwrap();
}

/// systemd itself, where it runs this machine.
#[test]
fn slices_get_limits_and_are_removed() {
    if !Path::new("/run/systemd/system").exists() {
        return;
    }
    let options = CgroupOptions::detect(CgroupDriver::Systemd);
    let v2 = options.v2;
    let cgroups = Cgroups::new(options);
    let pod = cgroup(&format!("test-{}", std::process::id()), Qos::Burstable);
    cgroups.prepare(&pod).unwrap();
    cgroups.prepare(&pod).unwrap();
    let folder = cgroups.folder_of("cpu", &pod.path(CgroupDriver::Systemd)).unwrap();
    let read = |folder: &Path, file: &str| std::fs::read_to_string(folder.join(file)).unwrap().trim().to_owned();
    let class = folder.parent().unwrap().to_owned();
    let node = class.parent().unwrap().to_owned();
    let found = if v2 {
        [("cpu.weight", "20"), ("cpu.max", "50000 100000"), ("memory.max", "67108864"), ("pids.max", "100")].to_vec()
    } else {
        [("cpu.shares", "512"), ("cpu.cfs_quota_us", "50000")].to_vec()
    };
    for (file, wanted) in found {
        assert_eq!(read(&folder, file), wanted, "{file}");
    }
    if v2 {
        assert_eq!(read(&class, "cpu.weight"), "20");
        assert_eq!(read(&node, "cpu.weight"), weight(unlimited().cpu_shares).to_string());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::create_dir(folder.join("container")).unwrap();
        std::fs::write(folder.join("container/cgroup.procs"), child.id().to_string()).unwrap();
        let busy = cgroups.remove(&pod);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(busy.unwrap_err().to_string().contains("still has processes"));
    }
    cgroups.remove(&pod).unwrap();
    assert!(!folder.exists());
    let drop_ins = std::fs::read_dir("/run/systemd/system.control").map(|list| {
        list.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(&pod.systemd_slice()))
            .count()
    });
    assert_eq!(drop_ins.unwrap_or(0), 0);
    cgroups.remove(&pod).unwrap();
}

/// The kernel's unified hierarchy, where this machine has one and lets us write it.
#[test]
fn the_kernels_unified_hierarchy_takes_limits() {
    let options = CgroupOptions::detect(CgroupDriver::Cgroupfs);
    let probe = options.root.join(format!("longshore-test-{}", std::process::id()));
    if !options.v2 || std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).is_err() {
        return;
    }
    let root = options.root.clone();
    let cgroups = Cgroups::new(options);
    let pod = cgroup(&format!("v2-{}", std::process::id()), Qos::Burstable);
    cgroups.prepare(&pod).unwrap();
    cgroups.prepare(&pod).unwrap();
    let folder = root.join(pod.path(CgroupDriver::Cgroupfs).trim_start_matches('/'));
    for (file, wanted) in
        [("cpu.weight", "20"), ("cpu.max", "50000 100000"), ("memory.max", "67108864"), ("pids.max", "100")]
    {
        assert_eq!(std::fs::read_to_string(folder.join(file)).unwrap().trim(), wanted, "{file}");
    }
    // A kernel may be without an account of swap.
    let swap = std::fs::read_to_string(folder.join("memory.swap.max"));
    assert!(swap.as_ref().is_ok_and(|most| most.trim() == "0") || swap.is_err(), "{swap:?}");
    assert_eq!(std::fs::read_to_string(root.join("kubepods/burstable/cpu.weight")).unwrap().trim(), "20");
    cgroups.remove(&pod).unwrap();
    assert!(!folder.exists());
}
