//! The adapter on this machine's own kernel: processes in cgroups that the tests make. Where cgroups may not be made
//! (no root, no hierarchies) those tests have nothing to say.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use longshore_core::node::CgroupDriver;
use longshore_core::pod::PodId;
use longshore_core::ports::stats::{PodQuery, Stats, Usage};
use longshore_stats::{MachineStats, StatsOptions};

const ROOT: &str = "/sys/fs/cgroup";

fn v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// A pod's cgroup with one container's, and a process in it.
struct Pod {
    path: String,
    id: String,
    folders: Vec<PathBuf>,
    child: Child,
}

impl Pod {
    /// `script` runs in the container's cgroup from its first line on and prints a line when it is where it shall be.
    fn start(name: &str, driver: CgroupDriver, script: &str) -> Option<Pod> {
        let path = format!("/longshore-stats-{name}-{}", std::process::id());
        let (id, folder) = match driver {
            CgroupDriver::Cgroupfs => ("c0ffee", "c0ffee"),
            CgroupDriver::Systemd => ("c0ffee", "docker-c0ffee.scope"),
        };
        let roots = if v2() { vec![PathBuf::from(ROOT)] } else { v1() };
        let mut folders = Vec::new();
        for root in &roots {
            let pod = root.join(&path[1..]);
            if v2() {
                let _ = std::fs::write(root.join("cgroup.subtree_control"), "+cpu +memory +pids");
            }
            std::fs::create_dir(&pod).ok()?;
            if v2() {
                std::fs::write(pod.join("cgroup.subtree_control"), "+cpu +memory +pids").ok()?;
            }
            std::fs::create_dir(pod.join(folder)).ok()?;
            folders.push(pod.join(folder));
        }
        if folders.is_empty() {
            return None;
        }
        let mut child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for folder in &folders {
            std::fs::write(folder.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "there\n");
        Some(Pod { path, id: id.to_owned(), folders, child })
    }

    fn query(&self) -> PodQuery {
        PodQuery {
            pod: PodId { uid: "u".to_owned(), namespace: "default".to_owned(), name: "p".to_owned() },
            cgroup: self.path.clone(),
            sandbox_process: Some(self.child.id()),
            containers: vec![("main".to_owned(), self.id.clone()), ("gone".to_owned(), "dead".to_owned())],
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for folder in &self.folders {
            // A child of the shell may outlive it by a moment.
            for _ in 0..500 {
                if std::fs::remove_dir(folder).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = folder.parent().map(std::fs::remove_dir);
        }
    }
}

/// The hierarchies of v1 whose numbers are read.
fn v1() -> Vec<PathBuf> {
    let all = ["cpuacct", "memory", "pids"].map(|name| Path::new(ROOT).join(name));
    all.into_iter().filter(|root| root.is_dir()).collect()
}

fn options(driver: CgroupDriver) -> StatsOptions {
    StatsOptions { root_dir: PathBuf::from("/"), images_dir: None, driver, v2: v2() }
}

fn stats(driver: CgroupDriver) -> MachineStats {
    MachineStats::new(options(driver))
}

async fn rated(stats: &MachineStats, query: &PodQuery) -> (Usage, Usage) {
    loop {
        let found = stats.pod(query).await;
        let (name, main) = found.containers[0].clone();
        assert_eq!(name, "main");
        if main.cpu_rate.is_some() && found.usage.cpu_rate.is_some() {
            assert_eq!(found.containers[1], ("gone".to_owned(), Usage::default()));
            return (found.usage, main);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_a_container_burns_and_holds_is_seen() {
    for driver in [CgroupDriver::Cgroupfs, CgroupDriver::Systemd] {
        let script = "x=$(head -c 40000000 /dev/zero | tr '\\0' a); echo there; while :; do :; done";
        let Some(pod) = Pod::start(&format!("burn-{driver:?}"), driver, script) else { return };
        let (whole, main) = rated(&stats(driver), &pod.query()).await;
        for usage in [&whole, &main] {
            let rate = usage.cpu_rate.unwrap();
            assert!((20_000_000..1_500_000_000).contains(&rate), "{rate}");
            assert!(usage.cpu_nanoseconds.unwrap() >= rate / 4);
            let (rss, set) = (usage.memory_rss.unwrap(), usage.memory_working_set.unwrap());
            assert!((40_000_000..200_000_000).contains(&rss), "{rss}");
            assert!(set >= 40_000_000 && set <= usage.memory_usage.unwrap());
            assert!(usage.page_faults.unwrap().0 > 0);
            assert_eq!((usage.processes, usage.threads), (Some(1), Some(1)));
            assert_eq!(usage.memory_limit, None);
        }
        let file = if v2() { "memory.max" } else { "memory.limit_in_bytes" };
        let folder = pod.folders.iter().find(|folder| folder.join(file).exists()).unwrap();
        std::fs::write(folder.join(file), (256 << 20).to_string()).unwrap();
        assert_eq!(stats(driver).pod(&pod.query()).await.containers[0].1.memory_limit, Some(256 << 20));
    }
}

#[tokio::test]
async fn an_idle_one_uses_nothing_and_has_its_own_network() {
    let script = "exec unshare -n sh -c 'echo there; read end'";
    let Some(pod) = Pod::start("idle", CgroupDriver::Cgroupfs, script) else { return };
    let stats = stats(CgroupDriver::Cgroupfs);
    let (whole, main) = rated(&stats, &pod.query()).await;
    assert!(main.cpu_rate.unwrap() < 20_000_000 && whole.cpu_rate.unwrap() < 20_000_000);
    let (own, machine) = (stats.pod(&pod.query()).await.interfaces, stats.node().await.interfaces);
    assert_ne!(own, machine);
    assert!(own.iter().all(|interface| interface.received == (0, 0)), "{own:?}");
    let shared = PodQuery { sandbox_process: Some(std::process::id()), ..pod.query() };
    let names = |list: &[longshore_core::ports::stats::Interface]| {
        let mut names: Vec<_> = list.iter().map(|interface| interface.name.clone()).collect();
        names.sort();
        names
    };
    // Others may add and remove some between the two looks.
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while names(&stats.pod(&shared).await.interfaces) != names(&stats.node().await.interfaces) {
        assert!(std::time::Instant::now() < end, "they are never the same");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let query = pod.query();
    drop(pod);
    let gone = stats.pod(&query).await;
    assert_eq!((gone.usage, gone.interfaces), (Usage::default(), vec![]));
}

#[tokio::test]
async fn a_pod_without_a_cgroup_is_the_sum_of_its_containers() {
    let Some(pod) = Pod::start("sum", CgroupDriver::Cgroupfs, "echo there; read end") else { return };
    let (stats, mut query) = (stats(CgroupDriver::Cgroupfs), pod.query());
    query.cgroup = String::new();
    let id = format!("{}/{}", pod.path.trim_start_matches('/'), pod.id);
    query.containers = vec![("a".to_owned(), id.clone()), ("b".to_owned(), id)];
    let found = stats.pod(&query).await;
    let used = |n: usize| found.containers[n].1.memory_usage.unwrap();
    assert!(used(0) > 0);
    assert_eq!(found.usage.memory_usage, Some(used(0) + used(1)));
    assert_eq!(found.usage.processes, Some(2));
}

#[tokio::test]
async fn the_machine_is_what_it_is() {
    let images_dir = Some(PathBuf::from("/none/of/it"));
    let stats = MachineStats::new(StatsOptions { images_dir, ..options(CgroupDriver::Cgroupfs) });
    let node = stats.node().await;
    let info = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = info.lines().next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(node.memory_capacity, Some(total * 1024));
    let (set, available) = (node.usage.memory_working_set.unwrap(), node.memory_available.unwrap());
    let huge_pages = info.lines().find_map(|line| line.strip_prefix("Hugetlb:")).unwrap_or("0 kB");
    let huge_pages: u64 = huge_pages.split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(set + available + huge_pages * 1024, total * 1024);
    assert!(set > 0 && available > 0);
    let (most, used) = node.processes.unwrap();
    assert!(used > 0 && used < most);
    let file_system = node.node_fs.unwrap();
    assert!(file_system.capacity > 0 && file_system.used > 0);
    assert_eq!(node.image_fs.map(|found| found.capacity), Some(file_system.capacity));
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let since = (jiff::Timestamp::now() - node.started.unwrap()).total(jiff::Unit::Second).unwrap();
    assert!((since - uptime).abs() < 5.0, "{since} {uptime}");
    assert!(node.interfaces.iter().all(|interface| interface.name != "lo"));
    let again = loop {
        let again = stats.node().await;
        if again.usage.cpu_rate.is_some() {
            break again;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(again.usage.cpu_nanoseconds >= node.usage.cpu_nanoseconds);
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(again.usage.cpu_rate.unwrap() <= cpus * 1_100_000_000);
}
