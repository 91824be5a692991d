//! `/metrics`: the agent itself, by the names that the kubelet's and Go's process collectors use.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use k8s_openapi::api::core::v1;
use longshore_core::ports::pods::PodViews;
use longshore_core::status::of_containers;

/// A sample: its labels, as they are written, and its value.
type Sample = (String, f64);

/// The page, in Prometheus' text format. `version` is the one that the Node shows.
pub(crate) fn page(node: &str, version: &str, pods: &dyn PodViews) -> String {
    let mut page = String::new();
    let help = "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, \
                build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.";
    family(&mut page, "kubernetes_build_info", "gauge", help, &[(build(version), 1.0)]);
    let help = "[ALPHA] The node's name. The count is always 1.";
    family(&mut page, "kubelet_node_name", "gauge", help, &[(format!("node=\"{node}\""), 1.0)]);
    let (running, containers) = count(pods);
    let help = "[ALPHA] Number of pods that have a running pod sandbox";
    family(&mut page, "kubelet_running_pods", "gauge", help, &[(String::new(), running as f64)]);
    let samples: Vec<Sample> =
        containers.iter().map(|(state, count)| (format!("container_state=\"{state}\""), *count as f64)).collect();
    family(&mut page, "kubelet_running_containers", "gauge", "[ALPHA] Number of containers by state", &samples);
    for (name, kind, help, value) in process() {
        if let Some(value) = value {
            family(&mut page, name, kind, help, &[(String::new(), value)]);
        }
    }
    page
}

/// The labels of the version's metric, all of the kubelet's; those of a build with Go are empty.
fn build(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let platform = std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64");
    format!(
        "build_date=\"\",compiler=\"\",git_commit=\"\",git_tree_state=\"\",git_version=\"{version}\",go_version=\"\",\
         major=\"{major}\",minor=\"{minor}\",platform=\"linux/{platform}\""
    )
}

fn family(page: &mut String, name: &str, kind: &str, help: &str, samples: &[Sample]) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = match labels.is_empty() {
            true => writeln!(page, "{name} {value}"),
            false => writeln!(page, "{name}{{{labels}}} {value}"),
        };
    }
}

/// Pods with a container that runs, and containers by their state.
fn count(pods: &dyn PodViews) -> (usize, BTreeMap<&'static str, usize>) {
    let mut containers = BTreeMap::from([("created", 0), ("exited", 0), ("running", 0)]);
    let mut running = 0;
    for view in pods.pods() {
        let Some(status) = &view.object.status else { continue };
        let states: Vec<&str> = of_containers(status).filter_map(state).collect();
        running += usize::from(states.contains(&"running"));
        for state in states {
            *containers.entry(state).or_default() += 1;
        }
    }
    (running, containers)
}

fn state(status: &v1::ContainerStatus) -> Option<&'static str> {
    let state = status.state.as_ref()?;
    match (&state.running, &state.terminated) {
        (Some(_), _) => Some("running"),
        (_, Some(_)) => Some("exited"),
        _ => status.container_id.is_some().then_some("created"),
    }
}

/// Name, kind, help and value of what is known of our own process.
fn process() -> [(&'static str, &'static str, &'static str, Option<f64>); 7] {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    let field = |number| stat_field(&stat, number);
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let page = rustix::param::page_size() as f64;
    let booted = boot_time(&std::fs::read_to_string(Path::new("/proc/stat")).unwrap_or_default());
    [
        (
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            field(14).zip(field(15)).map(|(user, system)| (user + system) / ticks),
        ),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory size in bytes.",
            field(24).map(|pages| pages * page),
        ),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", field(23)),
        (
            "process_start_time_seconds",
            "gauge",
            "Start time of the process since unix epoch in seconds.",
            booted.zip(field(22)).map(|(boot, start)| boot + start / ticks),
        ),
        ("process_threads", "gauge", "Number of OS threads in the process.", field(20)),
        ("process_open_fds", "gauge", "Number of open file descriptors.", open),
        ("process_max_fds", "gauge", "Maximum number of open file descriptors.", open_files_limit(&limits)),
    ]
}

/// A field of `/proc/<pid>/stat`, counted from 1 as proc(5) does; the third or a later one.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    // The second is a name in parentheses that may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn open_files_limit(limits: &str) -> Option<f64> {
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use longshore_core::view::PodView;

    use super::*;

    struct None;

    impl PodViews for None {
        fn pods(&self) -> Vec<Arc<PodView>> {
            Vec::new()
        }

        fn pod(&self, _uid: &str) -> Option<Arc<PodView>> {
            Option::None
        }

        fn healthy(&self) -> Result<(), String> {
            Ok(())
        }
    }

    #[test]
    fn names_with_spaces_and_parentheses_shift_nothing() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 12 34 0 0 20 0 5 0 999 4096 3 18446744073709551615";
        assert_eq!(stat_field(stat, 14), Some(12.0));
        assert_eq!(stat_field(stat, 20), Some(5.0));
        assert_eq!(stat_field(stat, 24), Some(3.0));
        assert_eq!(stat_field("", 14), Option::None);
    }

    #[test]
    fn own_process_is_known() {
        let page = page("n1", "v1.36.0+longshore.0.1.0", &None);
        for name in ["cpu_seconds_total", "resident_memory_bytes", "start_time_seconds", "open_fds", "max_fds"] {
            let line = page.lines().find(|line| line.starts_with(&format!("process_{name} ")));
            assert!(line.is_some(), "{name} is missing in\n{page}");
        }
        let build = page.lines().find(|line| line.starts_with("kubernetes_build_info{")).unwrap();
        assert!(build.contains(r#"git_version="v1.36.0+longshore.0.1.0","#), "{build}");
        assert!(build.contains(r#"major="1",minor="36","#), "{build}");
        assert!(page.contains("kubelet_node_name{node=\"n1\"} 1"), "{page}");
        assert!(page.contains("kubelet_running_containers{container_state=\"running\"} 0"), "{page}");
    }
}
