//! `/metrics/resource`, `/metrics/cadvisor`, `/metrics/probes` and `/stats/summary` from the ports. It must not read a
//! cgroup itself.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1;
use longshore_core::ports::stats::{FileSystem, Interface, NodeUsage, PodQuery, PodUsage, Usage};
use longshore_core::view::{PodView, ProbeTally};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::routes::{Api, bare, statuses};

/// Pods that are read at a time.
const AT_ONCE: usize = 8;

/// A pod, and what it uses.
type Read = (Arc<PodView>, PodUsage);

/// A run of a container: its ID, and when it began.
type Run = (String, Option<jiff::Timestamp>);

/// The processes of containers that run.
pub(crate) type Processes = Mutex<HashMap<Run, u32>>;

/// The process of a container. What Docker said once is kept, and it is asked until the deadline only: all other numbers
/// are the kernel's, and are to be had while it hangs.
async fn process(api: &Api, run: Run, deadline: Instant) -> Option<u32> {
    let kept = || api.processes.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(process) = kept().get(&run) {
        return Some(*process);
    }
    let process = tokio::time::timeout_at(deadline, api.parts.streams.process_id(&run.0)).await.ok()?.ok()?;
    kept().insert(run, process);
    Some(process)
}

/// The containers that run and have an ID, by name.
fn running(view: &PodView) -> Vec<(String, Run)> {
    let run = |status: &v1::ContainerStatus| {
        status.state.as_ref()?.running.as_ref()?;
        Some((status.name.clone(), (bare(status.container_id.as_deref()?).to_owned(), began(status))))
    };
    statuses(&view.object).filter_map(run).collect()
}

/// When a container that runs began to.
fn began(status: &v1::ContainerStatus) -> Option<jiff::Timestamp> {
    let running = status.state.as_ref().and_then(|state| state.running.as_ref());
    running.and_then(|running| running.started_at.as_ref()).map(|time| time.0)
}

async fn read(api: &Api) -> (NodeUsage, Vec<Read>) {
    let deadline = Instant::now() + api.config.scrape_limit;
    let pods = api.parts.views.pods().into_iter().map(|view| (running(&view), view));
    let pods: Vec<_> = pods.filter(|(containers, _)| !containers.is_empty()).collect();
    let runs: HashSet<&Run> = pods.iter().flat_map(|(containers, _)| containers).map(|(_, run)| run).collect();
    api.processes.lock().unwrap_or_else(PoisonError::into_inner).retain(|kept, _| runs.contains(kept));
    let read = futures::stream::iter(pods.into_iter().map(|(containers, view)| async move {
        let network = view.object.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default();
        // Every container of a pod is in its network namespace, the first as good as the sandbox.
        let process = match containers.first() {
            Some((_, run)) if !network => process(api, run.clone(), deadline).await,
            _ => None,
        };
        let containers = containers.into_iter().map(|(name, (id, _))| (name, id)).collect();
        let query =
            PodQuery { pod: view.id.clone(), cgroup: (api.parts.cgroup)(&view), sandbox_process: process, containers };
        let usage = api.parts.stats.pod(&query).await;
        (view, usage)
    }));
    let (node, pods) = futures::join!(api.parts.stats.node(), read.buffered(AT_ONCE).collect::<Vec<Read>>());
    (node, pods)
}

/// Families in the order of their first sample.
#[derive(Default)]
struct Page(BTreeMap<&'static str, (&'static str, &'static str, String)>);

impl Page {
    fn add(
        &mut self,
        name: &'static str,
        kind: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: Option<f64>,
        at: Option<jiff::Timestamp>,
    ) {
        let Some(value) = value else { return };
        let samples = &mut self.0.entry(name).or_insert((kind, help, String::new())).2;
        sample(samples, (name, ""), labels, value, at);
    }

    /// A histogram with the bounds of probes.
    fn durations(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], tally: &ProbeTally) {
        let samples = &mut self.0.entry(name).or_insert(("histogram", help, String::new())).2;
        let all = tally.successful as f64;
        let bounds = ProbeTally::BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        let counts = tally.within.iter().map(|count| *count as f64).chain([all]);
        for (bound, count) in bounds.zip(counts) {
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            sample(samples, (name, "_bucket"), &labels, count, None);
        }
        sample(samples, (name, "_sum"), labels, tally.seconds, None);
        sample(samples, (name, "_count"), labels, all, None);
    }

    fn finish(self) -> String {
        let mut page = String::new();
        for (name, (kind, help, samples)) in self.0 {
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        page
    }
}

/// One line: a name of two parts, labels, a value, and when it was so.
fn sample(samples: &mut String, name: (&str, &str), labels: &[(&str, &str)], value: f64, at: Option<jiff::Timestamp>) {
    samples.push_str(name.0);
    samples.push_str(name.1);
    for (index, (key, value)) in labels.iter().enumerate() {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(samples, "{}{key}=\"{value}\"", if index == 0 { "{" } else { "," });
    }
    if !labels.is_empty() {
        samples.push('}');
    }
    let _ = write!(samples, " {value}");
    if let Some(at) = at {
        let _ = write!(samples, " {}", at.as_millisecond());
    }
    samples.push('\n');
}

fn seconds(nanoseconds: Option<u64>) -> Option<f64> {
    nanoseconds.map(|nanoseconds| nanoseconds as f64 / 1e9)
}

fn float(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

/// Whether a pod is the one that its name stands for.
fn is_newest(api: &Api, view: &PodView) -> bool {
    let named = api.pod(&view.id.namespace, &view.id.name, None);
    named.is_ok_and(|newest| newest.id.uid == view.id.uid)
}

/// What metrics-server reads (`pkg/kubelet/metrics/collectors/resource_metrics.go`).
pub(crate) async fn resource(api: &Api) -> String {
    let (node, mut pods) = read(api).await;
    // One that was deleted by force may still end beside its successor, and would have the same labels.
    pods.retain(|(view, _)| is_newest(api, view));
    let mut page = Page::default();
    let names = [
        ("node_cpu_usage_seconds_total", "node_memory_working_set_bytes", "node_swap_usage_bytes"),
        ("pod_cpu_usage_seconds_total", "pod_memory_working_set_bytes", "pod_swap_usage_bytes"),
        ("container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_swap_usage_bytes"),
    ];
    let mut three = |level: usize, labels: &[(&str, &str)], usage: &Usage| {
        let (cpu, memory, swap) = names[level];
        let cpu_help = "[STABLE] Cumulative cpu time consumed in core-seconds";
        page.add(cpu, "counter", cpu_help, labels, seconds(usage.cpu_nanoseconds), usage.at);
        let memory_help = "[STABLE] Current working set in bytes";
        page.add(memory, "gauge", memory_help, labels, float(usage.memory_working_set), usage.at);
        page.add(swap, "gauge", "[ALPHA] Current amount of swap usage in bytes", labels, float(usage.swap), usage.at);
    };
    three(0, &[], &node.usage);
    for (view, usage) in &pods {
        let labels = [("namespace", view.id.namespace.as_str()), ("pod", view.id.name.as_str())];
        three(1, &labels, &usage.usage);
        for (name, usage) in &usage.containers {
            three(2, &[("container", name), labels[0], labels[1]], usage);
        }
    }
    for (view, usage) in &pods {
        for (name, usage) in &usage.containers {
            page.add(
                "container_swap_limit_bytes",
                "gauge",
                "[ALPHA] Current amount of the container swap limit in bytes",
                &[("container", name), ("namespace", &view.id.namespace), ("pod", &view.id.name)],
                float(usage.swap_limit),
                usage.at,
            );
        }
    }
    for (view, _) in &pods {
        for status in statuses(&view.object) {
            page.add(
                "container_start_time_seconds",
                "gauge",
                "[STABLE] Start time of the container since unix epoch in seconds",
                &[("container", &status.name), ("namespace", &view.id.namespace), ("pod", &view.id.name)],
                began(status).map(|began| began.as_millisecond() as f64 / 1e3),
                None,
            );
        }
    }
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    let failed = node.usage.cpu_nanoseconds.is_none() || node.usage.memory_working_set.is_none();
    page.add("resource_scrape_error", "gauge", help, &[], Some(if failed { 1.0 } else { 0.0 }), None);
    page.finish()
}

/// CPU, memory, processes and network in cAdvisor's words.
pub(crate) async fn cadvisor(api: &Api) -> String {
    let (node, pods) = read(api).await;
    let mut page = Page::default();
    let mut all = |labels: &[(&str, &str)], usage: &Usage| {
        let gauge = [
            ("container_memory_usage_bytes", "Current memory usage in bytes.", usage.memory_usage),
            ("container_memory_working_set_bytes", "Current working set in bytes.", usage.memory_working_set),
            ("container_memory_rss", "Size of RSS in bytes.", usage.memory_rss),
            ("container_memory_swap", "Container swap usage in bytes.", usage.swap),
            ("container_processes", "Number of processes running inside the container.", usage.processes),
        ];
        let cpu = seconds(usage.cpu_nanoseconds);
        let help = "Cumulative cpu time consumed in seconds.";
        let with_cpu: Vec<_> = labels.iter().copied().chain([("cpu", "total")]).collect();
        page.add("container_cpu_usage_seconds_total", "counter", help, &with_cpu, cpu, usage.at);
        for (name, help, value) in gauge {
            page.add(name, "gauge", help, labels, float(value), usage.at);
        }
    };
    let none = [("container", ""), ("id", "/"), ("image", ""), ("name", ""), ("namespace", ""), ("pod", "")];
    all(&none, &node.usage);
    for (view, usage) in &pods {
        let (namespace, pod) = (("namespace", view.id.namespace.as_str()), ("pod", view.id.name.as_str()));
        let cgroup = (api.parts.cgroup)(view);
        all(&[("container", ""), ("id", &cgroup), ("image", ""), ("name", ""), namespace, pod], &usage.usage);
        for (name, usage) in &usage.containers {
            let status = statuses(&view.object).find(|status| status.name == *name);
            let id = status.and_then(|status| status.container_id.as_deref()).map(bare).unwrap_or_default();
            let (image, path) =
                (status.map(|status| status.image.as_str()).unwrap_or_default(), format!("{cgroup}/{id}"));
            all(&[("container", name), ("id", &path), ("image", image), ("name", id), namespace, pod], usage);
        }
    }
    let mut network = |labels: &[(&str, &str)], interfaces: &[Interface]| {
        for interface in interfaces {
            let labels: Vec<_> = labels.iter().copied().chain([("interface", interface.name.as_str())]).collect();
            let counters = [
                ("container_network_receive_bytes_total", "Cumulative count of bytes received", interface.received.0),
                (
                    "container_network_receive_errors_total",
                    "Cumulative count of errors while receiving",
                    interface.received.1,
                ),
                ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", interface.sent.0),
                (
                    "container_network_transmit_errors_total",
                    "Cumulative count of errors while transmitting",
                    interface.sent.1,
                ),
            ];
            for (name, help, value) in counters {
                page.add(name, "counter", help, &labels, Some(value as f64), None);
            }
        }
    };
    network(&none, &node.interfaces);
    for (view, usage) in &pods {
        let cgroup = (api.parts.cgroup)(view);
        let labels = [
            ("container", ""),
            ("id", cgroup.as_str()),
            ("image", ""),
            ("name", ""),
            ("namespace", view.id.namespace.as_str()),
            ("pod", view.id.name.as_str()),
        ];
        network(&labels, &usage.interfaces);
    }
    page.finish()
}

/// How the checks of each probe ended, in the kubelet's words (`pkg/kubelet/prober/prober_manager.go`), and in one of
/// ours how long the last one took.
pub(crate) fn probes(api: &Api) -> String {
    let mut page = Page::default();
    for view in api.parts.views.pods().into_iter().filter(|view| is_newest(api, view)) {
        for probe in &view.probes {
            let kind = match probe.kind.as_str() {
                "liveness" => "Liveness",
                "readiness" => "Readiness",
                _ => "Startup",
            };
            let labels = [
                ("container", probe.container.as_str()),
                ("namespace", view.id.namespace.as_str()),
                ("pod", view.id.name.as_str()),
                ("probe_type", kind),
            ];
            let with_result = |result| -> Vec<(&str, &str)> {
                labels.into_iter().chain([("pod_uid", view.id.uid.as_str()), ("result", result)]).collect()
            };
            let tally = &probe.tally;
            let results = [("successful", tally.successful), ("failed", tally.failed)];
            for (result, count) in results.into_iter().filter(|(_, count)| *count > 0) {
                let help =
                    "[ALPHA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
                page.add("prober_probe_total", "counter", help, &with_result(result), float(Some(count)), None);
            }
            if tally.successful > 0 {
                let help = "[ALPHA] Duration in seconds for a probe response.";
                page.durations("prober_probe_duration_seconds", help, &labels, tally);
            }
            let Some(last) = &probe.last else { continue };
            let result = match last.outcome.as_str() {
                "success" | "warning" => "successful",
                "failure" => "failed",
                _ => "unknown",
            };
            let help = "[ALPHA] How long the last check of a probe took.";
            let took = Some(last.took_ms / 1e3);
            page.add("prober_last_duration_seconds", "gauge", help, &with_result(result), took, None);
        }
    }
    page.finish()
}

/// `/metrics/slis`: what came of the checks of `/healthz`.
pub(crate) fn slis(api: &Api) -> String {
    let mut page = Page::default();
    for (check, tally) in api.health.all() {
        let (name, kind) = (("name", check), ("type", "healthz"));
        let help = "[STABLE] This metric records the result of a single healthcheck.";
        let healthy = Some(if tally.healthy { 1.0 } else { 0.0 });
        page.add("kubernetes_healthcheck", "gauge", help, &[name, kind], healthy, None);
        let help = "[STABLE] This metric records the results of all healthcheck.";
        let counts = [("error", tally.errors), ("success", tally.successes)];
        for (status, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            let labels = [name, ("status", status), kind];
            page.add("kubernetes_healthchecks_total", "counter", help, &labels, float(Some(count)), None);
        }
    }
    page.finish()
}

/// `/stats/summary` (`k8s.io/kubelet/pkg/apis/stats/v1alpha1`).
pub(crate) async fn summary(api: &Api, only_cpu_and_memory: bool) -> Value {
    let (node, pods) = read(api).await;
    let now = jiff::Timestamp::now();
    let mut machine = object(json!({
        "nodeName": api.config.node_name,
        "startTime": time(node.started.unwrap_or(now)),
    }));
    usage(&mut machine, &node.usage, node.memory_available);
    let mut kubepods = object(json!({"name": "pods", "startTime": time(node.started.unwrap_or(now))}));
    usage(&mut kubepods, &node.pods, None);
    machine.insert("systemContainers".to_owned(), json!([kubepods]));
    if !only_cpu_and_memory {
        if let Some(found) = node.node_fs {
            machine.insert("fs".to_owned(), file_system(&found, now));
        }
        if let Some(found) = node.image_fs {
            // Writable layers lie where the images do.
            let found = file_system(&found, now);
            machine.insert("runtime".to_owned(), json!({"imageFs": found, "containerFs": found}));
        }
        if let Some((most, used)) = node.processes {
            machine.insert("rlimit".to_owned(), json!({"time": time(now), "maxpid": most, "curproc": used}));
        }
        network(&mut machine, &node.interfaces, now);
    }
    let pods = pods.iter().map(|(view, used)| {
        let started = view.object.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(now, |at| at.0);
        let containers = used.containers.iter().map(|(name, used)| {
            let status = statuses(&view.object).find(|status| status.name == *name);
            let begun = status.and_then(began).unwrap_or(started);
            let mut container = object(json!({"name": name, "startTime": time(begun)}));
            usage(&mut container, used, None);
            Value::Object(container)
        });
        let reference = json!({"name": view.id.name, "namespace": view.id.namespace, "uid": view.id.uid});
        let mut pod = object(json!({
            "podRef": reference,
            "startTime": time(started),
            "containers": containers.collect::<Vec<_>>(),
        }));
        usage(&mut pod, &used.usage, None);
        if !only_cpu_and_memory {
            network(&mut pod, &used.interfaces, now);
            if let Some(count) = used.usage.processes {
                pod.insert("process_stats".to_owned(), json!({"process_count": count}));
            }
        }
        Value::Object(pod)
    });
    json!({"node": machine, "pods": pods.collect::<Vec<_>>()})
}

type Object = serde_json::Map<String, Value>;

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        _ => Object::new(),
    }
}

/// Seconds are as fine as Kubernetes' `Time` goes.
fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What is known; `null` is not what readers expect.
fn known(at: jiff::Timestamp, fields: &[(&str, Option<u64>)]) -> Value {
    let mut object = object(json!({"time": time(at)}));
    for (name, value) in fields {
        if let Some(value) = value {
            object.insert((*name).to_owned(), json!(value));
        }
    }
    Value::Object(object)
}

fn usage(to: &mut Object, usage: &Usage, available: Option<u64>) {
    let at = usage.at.unwrap_or_else(jiff::Timestamp::now);
    let cpu = [("usageNanoCores", usage.cpu_rate), ("usageCoreNanoSeconds", usage.cpu_nanoseconds)];
    let below_limit = usage.memory_limit.zip(usage.memory_working_set).map(|(limit, used)| limit.saturating_sub(used));
    let memory = [
        ("availableBytes", available.or(below_limit)),
        ("usageBytes", usage.memory_usage),
        ("workingSetBytes", usage.memory_working_set),
        ("rssBytes", usage.memory_rss),
        ("pageFaults", usage.page_faults.map(|faults| faults.0)),
        ("majorPageFaults", usage.page_faults.map(|faults| faults.1)),
    ];
    to.insert("cpu".to_owned(), known(at, &cpu));
    to.insert("memory".to_owned(), known(at, &memory));
    if usage.swap.is_some() {
        let left = usage.swap_limit.zip(usage.swap).map(|(limit, used)| limit.saturating_sub(used));
        to.insert("swap".to_owned(), known(at, &[("swapAvailableBytes", left), ("swapUsageBytes", usage.swap)]));
    }
}

fn file_system(found: &FileSystem, at: jiff::Timestamp) -> Value {
    known(
        at,
        &[
            ("availableBytes", Some(found.available)),
            ("capacityBytes", Some(found.capacity)),
            ("usedBytes", Some(found.used)),
            ("inodesFree", Some(found.inodes_free)),
            ("inodes", Some(found.inodes)),
            ("inodesUsed", Some(found.inodes.saturating_sub(found.inodes_free))),
        ],
    )
}

fn network(to: &mut Object, interfaces: &[Interface], at: jiff::Timestamp) {
    let one = |interface: &Interface| {
        json!({
            "name": interface.name,
            "rxBytes": interface.received.0,
            "rxErrors": interface.received.1,
            "txBytes": interface.sent.0,
            "txErrors": interface.sent.1,
        })
    };
    let Some(first) = interfaces.first() else { return };
    let mut network = object(one(first));
    network.insert("time".to_owned(), json!(time(at)));
    network.insert("interfaces".to_owned(), Value::Array(interfaces.iter().map(one).collect()));
    to.insert("network".to_owned(), Value::Object(network));
}
