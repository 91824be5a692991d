//! Cgroups laid out as kernels lay them out, in ordinary folders.

#![allow(clippy::unwrap_used)]

use super::*;

/// Writes files into a folder of a tree.
fn write(root: &Path, folder: &str, files: &[(&str, &str)]) {
    let folder = root.join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

const V2: [(&str, &str); 8] = [
    ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n"),
    ("memory.current", "1000000\n"),
    ("memory.max", "2000000\n"),
    ("memory.stat", "anon 600000\nfile 390000\nkernel 10000\ninactive_file 300000\npgfault 12\npgmajfault 3\n"),
    ("memory.swap.current", "4096\n"),
    ("pids.current", "5\n"),
    ("cgroup.procs", "10\n11\n"),
    ("cgroup.controllers", "cpu memory pids\n"),
];

fn expected() -> Usage {
    Usage {
        cpu_nanoseconds: Some(1_500_000),
        memory_usage: Some(1_000_000),
        memory_working_set: Some(700_000),
        memory_rss: Some(600_000),
        memory_limit: Some(2_000_000),
        page_faults: Some((12, 3)),
        swap: Some(4096),
        swap_limit: Some(0),
        processes: Some(2),
        threads: Some(5),
        ..Usage::default()
    }
}

fn usage(cgroups: &Cgroups, path: &str, count: bool) -> Usage {
    Usage { at: None, ..cgroups.usage(path, count) }
}

#[test]
fn v2_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let pod = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podu.slice";
    write(dir.path(), &format!("{pod}/docker-c1.scope"), &V2);
    write(dir.path(), &format!("{pod}/docker-c1.scope/init"), &[("cgroup.procs", "12\n")]);
    let cgroups = Cgroups::find(dir.path(), CgroupDriver::Systemd, true);
    let path = cgroups.container(&format!("/{pod}"), "c1").unwrap();
    assert_eq!(path, format!("/{pod}/docker-c1.scope"));
    assert_eq!(usage(&cgroups, &path, true), Usage { processes: Some(3), ..expected() });
    assert_eq!(usage(&cgroups, &path, false).processes, None);
    write(dir.path(), &path[1..], &[("memory.max", "max\n"), ("memory.stat", "anon 1\ninactive_file 1000001\n")]);
    let found = usage(&cgroups, &path, true);
    assert_eq!((found.memory_limit, found.memory_working_set, found.page_faults), (None, Some(0), None));
    for (text, limit) in [("8192\n", Some(8192)), ("max\n", None)] {
        write(dir.path(), &path[1..], &[("memory.swap.max", text)]);
        assert_eq!(usage(&cgroups, &path, true).swap_limit, limit);
    }
    std::fs::remove_file(dir.path().join(&path[1..]).join("memory.swap.current")).unwrap();
    assert_eq!(usage(&cgroups, &path, true).swap, Some(0));
    assert_eq!(cgroups.pods(), "/kubepods.slice");
}

#[test]
fn the_root_of_v2_uses_what_its_pages_are() {
    let dir = tempfile::tempdir().unwrap();
    let root: Vec<_> = V2.into_iter().filter(|(name, _)| ["cpu.stat", "memory.stat"].contains(name)).collect();
    write(dir.path(), "", &root);
    let found = usage(&Cgroups::find(dir.path(), CgroupDriver::Cgroupfs, true), "/", false);
    assert_eq!((found.cpu_nanoseconds, found.memory_usage), (Some(1_500_000), Some(990_000)));
    assert_eq!((found.memory_working_set, found.swap), (Some(690_000), None));
}

#[test]
fn v1_is_read_with_controllers_mounted_together_or_apart() {
    for cpu in ["cpuacct", "cpu,cpuacct", "cpuacct,cpu"] {
        let dir = tempfile::tempdir().unwrap();
        let pod = "kubepods/burstable/podu/c1";
        write(dir.path(), &format!("{cpu}/{pod}"), &[("cpuacct.usage", "1500000\n")]);
        let stat = "rss 1\ntotal_rss 600000\ntotal_inactive_file 300000\ntotal_cache 390000\n\
            total_pgfault 12\ntotal_pgmajfault 3\ntotal_swap 4096\n";
        let memory =
            [("memory.usage_in_bytes", "1000000\n"), ("memory.limit_in_bytes", "2000000\n"), ("memory.stat", stat)];
        write(dir.path(), &format!("memory/{pod}"), &memory);
        write(dir.path(), &format!("pids/{pod}"), &[("pids.current", "5\n"), ("cgroup.procs", "10\n11\n")]);
        // Beside it v2 has no controllers.
        write(dir.path(), &format!("unified/{pod}"), &[("cpu.stat", "usage_usec 7\n")]);
        write(dir.path(), "unified", &[("cgroup.controllers", "\n")]);
        let cgroups = Cgroups::find(dir.path(), CgroupDriver::Cgroupfs, false);
        let path = cgroups.container("/kubepods/burstable/podu", "c1").unwrap();
        assert_eq!(usage(&cgroups, &path, true), expected(), "{cpu}");
        assert_eq!(cgroups.pods(), "/kubepods");
    }
}

#[test]
fn a_controller_that_v1_gave_to_v2_is_read_there() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "cpuacct/podu", &[("cpuacct.usage", "1500000\n")]);
    write(dir.path(), "unified", &[("cgroup.controllers", "memory pids hugetlb\n")]);
    let given: Vec<_> = V2.into_iter().filter(|(name, _)| !name.starts_with("cpu")).collect();
    write(dir.path(), "unified/podu", &given);
    let cgroups = Cgroups::find(dir.path(), CgroupDriver::Cgroupfs, false);
    assert_eq!(usage(&cgroups, "/podu", true), expected());
}

#[test]
fn a_container_is_found_where_docker_put_it_and_nothing_outside() {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["podu/c1", "podu/docker-c2.scope", "docker/c3", "system.slice/docker-c4.scope"] {
        write(dir.path(), folder, &V2);
    }
    let both = [CgroupDriver::Cgroupfs, CgroupDriver::Systemd].map(|driver| Cgroups::find(dir.path(), driver, true));
    for cgroups in &both {
        assert_eq!(cgroups.container("/podu", "c1").as_deref(), Some("/podu/c1"));
        assert_eq!(cgroups.container("/podu", "c2").as_deref(), Some("/podu/docker-c2.scope"));
        assert_eq!(cgroups.container("/podu", "c5"), None);
        assert_eq!(cgroups.container("/podu/c1", "../docker"), None);
        assert!(!cgroups.exists("/") && !cgroups.exists("") && !cgroups.exists("/../"));
        assert_eq!(usage(cgroups, "/none", true), Usage::default());
        assert_eq!(usage(cgroups, "/podu/../docker/c3", true), Usage::default());
    }
    assert_eq!(both[0].container("/pod", "c3").as_deref(), Some("/docker/c3"));
    assert_eq!(both[1].container("/pod", "c4").as_deref(), Some("/system.slice/docker-c4.scope"));
}

#[test]
fn a_tree_of_cgroups_is_counted_as_far_as_the_bound_goes() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..BELOW + 100 {
        write(dir.path(), &format!("podu/{n}"), &[("cgroup.procs", "1\n")]);
    }
    let cgroups = Cgroups::find(dir.path(), CgroupDriver::Cgroupfs, true);
    let counted = usage(&cgroups, "/podu", true).processes.unwrap();
    assert!((BELOW as u64 - 1..=BELOW as u64).contains(&counted), "{counted}");
}
