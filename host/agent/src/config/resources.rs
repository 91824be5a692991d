//! Images, logs, process IDs, CPU quota and shutdown: what the node allows and when it ends things.

use std::time::Duration;

use clap::Args;
use longshore_core::document::Node;
use longshore_core::priority::CRITICAL;
use longshore_core::quantity;
use longshore_core::shutdown::Step;
use serde::Serialize;

use super::draft::{Findings, FlagNotes};
use super::layer::layer;
use super::reader::Reader;
use super::{duration, values};
use crate::names::nearest;

/// Flags of resources.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct ResourceFlags {
    /// Disk usage in percent at which unused images are removed; 100 for never [default: 85; a node alone removes none
    /// unless image garbage collection is configured]
    #[arg(long, value_name = "PERCENT")]
    pub(crate) image_gc_high_threshold: Option<String>,
    /// Disk usage in percent down to which they are removed [default: 80]
    #[arg(long, value_name = "PERCENT")]
    pub(crate) image_gc_low_threshold: Option<String>,
    /// How long an unused image is kept at least [default: 2m]
    #[arg(long, value_name = "DURATION")]
    pub(crate) minimum_image_ttl_duration: Option<String>,
    /// What the reserved resources are enforced on: pods, or none [default: pods]
    #[arg(long, value_name = "LEVELS")]
    pub(crate) enforce_node_allocatable: Vec<String>,
    /// How many processes a pod may have; -1 for no limit [default: -1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) pod_max_pids: Option<String>,
    /// How many pods may run for each CPU; 0 for no limit [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) pods_per_core: Option<String>,
    /// Hold containers to their CPU limits [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) cpu_cfs_quota: Option<String>,
    /// Period of the CPU quota, 1ms to 1s [default: 100ms]
    #[arg(long, value_name = "DURATION")]
    pub(crate) cpu_cfs_quota_period: Option<String>,
    /// Track pods' ephemeral storage and enforce its limits [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) local_storage_capacity_isolation: Option<String>,
    /// Size at which a container's log is rotated [default: 10Mi]
    #[arg(long, value_name = "SIZE")]
    pub(crate) container_log_max_size: Option<String>,
    /// How many files of a container's log are kept [default: 5]
    #[arg(long, value_name = "N")]
    pub(crate) container_log_max_files: Option<String>,
}

layer! {
    /// What one place says of resources.
    ResourceLayer {
        image_gc_high: u8,
        image_gc_low: u8,
        image_minimum_age: Duration,
        image_maximum_age: Duration,
        enforce_allocatable: Vec<String>,
        pod_pids_limit: i64,
        pods_per_core: u32,
        cpu_cfs_quota: bool,
        cpu_cfs_quota_period: Duration,
        local_storage: bool,
        log_max_size: i64,
        log_max_files: u32,
        shutdown: Duration,
        shutdown_critical: Duration,
        shutdown_by_priority: Vec<Step>,
    }
    tables {}
}

/// What the node allows, and when it ends things; complete.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resources {
    /// Per cent of the images' disk from which unused images are removed; 100 for never.
    pub(crate) image_gc_high_percent: u8,
    /// Per cent that removing them goes down to.
    pub(crate) image_gc_low_percent: u8,
    /// How long an unused image is kept at least.
    pub(crate) image_minimum_age: Duration,
    /// How long an unused image is kept at most; `None` for no limit.
    pub(crate) image_maximum_age: Option<Duration>,
    /// Whether anything was said of removing images.
    pub(crate) image_gc_asked: bool,
    /// Whether the cgroup of all pods gets the allocatable as its limit (`enforceNodeAllocatable` has `pods`).
    pub(crate) enforce_allocatable: bool,
    /// How many processes a pod may have; `None` for no limit.
    pub(crate) pod_pids_limit: Option<i64>,
    /// How many pods may run for each CPU; 0 for no limit.
    pub(crate) pods_per_core: u32,
    /// Whether CPU limits are enforced.
    pub(crate) cpu_cfs_quota: bool,
    /// Period of the CPU quota.
    pub(crate) cpu_cfs_quota_period: Duration,
    /// Whether the disk that pods may use is accounted, and they are held to its limits.
    pub(crate) local_storage: bool,
    /// Size in bytes at which a container's log is rotated.
    pub(crate) log_max_size: i64,
    /// How many files of a container's log are kept, the newest included; at least 2.
    pub(crate) log_max_files: u32,
    /// How long pods get when the machine goes down, from the lowest priority up; empty: graceful shutdown is off.
    pub(crate) shutdown: Vec<Step>,
    /// `shutdownGracePeriod` as written; zero for none.
    pub(crate) shutdown_grace_period: Duration,
    /// `shutdownGracePeriodCriticalPods` as written; zero for none.
    pub(crate) shutdown_grace_period_critical: Duration,
}

impl ResourceLayer {
    pub(super) fn from_flags(flags: &ResourceFlags, note: &mut FlagNotes<'_>) -> ResourceLayer {
        let percent = |text: &str| percent(values::whole(text)?);
        ResourceLayer {
            image_gc_high: note.read("--image-gc-high-threshold", &flags.image_gc_high_threshold, percent),
            image_gc_low: note.read("--image-gc-low-threshold", &flags.image_gc_low_threshold, percent),
            image_minimum_age: note.read(
                "--minimum-image-ttl-duration",
                &flags.minimum_image_ttl_duration,
                duration::parse,
            ),
            enforce_allocatable: note.all("--enforce-node-allocatable", &flags.enforce_node_allocatable, |text| {
                values::list(text).map(enforcement).collect()
            }),
            pod_pids_limit: note.read("--pod-max-pids", &flags.pod_max_pids, values::whole),
            pods_per_core: note
                .read("--pods-per-core", &flags.pods_per_core, |text| values::count(values::whole(text)?)),
            cpu_cfs_quota: note.read("--cpu-cfs-quota", &flags.cpu_cfs_quota, values::boolean),
            cpu_cfs_quota_period: note.read("--cpu-cfs-quota-period", &flags.cpu_cfs_quota_period, |text| {
                quota_period(duration::parse(text)?)
            }),
            local_storage: note.read(
                "--local-storage-capacity-isolation",
                &flags.local_storage_capacity_isolation,
                values::boolean,
            ),
            log_max_size: note.read("--container-log-max-size", &flags.container_log_max_size, log_size),
            log_max_files: note.read("--container-log-max-files", &flags.container_log_max_files, |text| {
                log_files(values::whole(text)?)
            }),
            ..ResourceLayer::default()
        }
    }

    /// Reads a field of this group; false when it is of another.
    pub(super) fn field(&mut self, reader: &mut Reader<'_>, key: &str, node: &Node) -> bool {
        match key {
            "containerLogMaxFiles" => self.log_max_files = reader.whole(key, node, log_files),
            "containerLogMaxSize" => self.log_max_size = reader.text(key, node, |text| log_size(&text)),
            "cpuCFSQuota" => self.cpu_cfs_quota = reader.boolean(key, node),
            "cpuCFSQuotaPeriod" => self.cpu_cfs_quota_period = reader.duration(key, node, quota_period),
            "enforceNodeAllocatable" => self.enforce_allocatable = reader.texts(key, node, enforcement),
            "imageGCHighThresholdPercent" => self.image_gc_high = reader.whole(key, node, percent),
            "imageGCLowThresholdPercent" => self.image_gc_low = reader.whole(key, node, percent),
            "imageMaximumGCAge" => self.image_maximum_age = reader.duration(key, node, Ok),
            "imageMinimumGCAge" => self.image_minimum_age = reader.duration(key, node, Ok),
            "localStorageCapacityIsolation" => self.local_storage = reader.boolean(key, node),
            "podPidsLimit" => self.pod_pids_limit = reader.whole(key, node, Ok),
            "podsPerCore" => self.pods_per_core = reader.whole(key, node, values::count),
            "shutdownGracePeriod" => self.shutdown = reader.duration(key, node, shutdown_period),
            "shutdownGracePeriodByPodPriority" => self.shutdown_by_priority = steps(reader, key, node),
            "shutdownGracePeriodCriticalPods" => self.shutdown_critical = reader.duration(key, node, shutdown_period),
            _ => return false,
        }
        true
    }

    /// The group, complete, with the kubelet's defaults and its checks (`apis/config/validation/validation.go`).
    pub(super) fn finish(self, findings: &mut Findings) -> Resources {
        let ages = [self.image_minimum_age, self.image_maximum_age];
        let image_gc_asked =
            [self.image_gc_high, self.image_gc_low].iter().any(Option::is_some) || ages.iter().any(Option::is_some);
        let (high, low) = (self.image_gc_high.unwrap_or(85), self.image_gc_low.unwrap_or(80));
        if low >= high {
            findings.problem(
                "imageGCLowThresholdPercent",
                format!("{low} must be below imageGCHighThresholdPercent, {high}"),
            );
        }
        let minimum_age = self.image_minimum_age.unwrap_or(Duration::from_secs(120));
        let maximum_age = self.image_maximum_age.filter(|age| !age.is_zero());
        if let Some(age) = maximum_age.filter(|age| *age <= minimum_age) {
            let message = format!("{age:?} must be above imageMinimumGCAge, {minimum_age:?}");
            findings.problem("imageMaximumGCAge", message);
        }
        let levels = self.enforce_allocatable.unwrap_or_else(|| vec!["pods".to_owned()]);
        let has = |level: &str| levels.iter().any(|other| other == level);
        if has("none") && levels.len() > 1 {
            findings.problem("enforceNodeAllocatable", "\"none\" stands alone: leave out the others");
        }
        let twice = levels.iter().enumerate().find(|(n, level)| levels[..*n].contains(level));
        if let Some((_, level)) = twice {
            findings.problem("enforceNodeAllocatable", format!("{level:?} stands there more than once"));
        }
        let others: Vec<&str> =
            levels.iter().map(String::as_str).filter(|level| !matches!(*level, "pods" | "none")).collect();
        if !others.is_empty() {
            let message = format!("enforceNodeAllocatable: {} has no effect here, only pods has", others.join(", "));
            findings.warnings.push(message);
        }
        let shutdown = self.shutdown.unwrap_or_default();
        let critical = self.shutdown_critical.unwrap_or_default();
        if critical > shutdown {
            let message = format!("{critical:?} must not be above shutdownGracePeriod, {shutdown:?}");
            findings.problem("shutdownGracePeriodCriticalPods", message);
        }
        let mut steps = self.shutdown_by_priority.unwrap_or_default();
        if !steps.is_empty() && !shutdown.is_zero() {
            findings.problem("shutdownGracePeriodByPodPriority", "contradicts shutdownGracePeriod: set one of them");
        }
        if steps.is_empty() && !shutdown.is_zero() {
            // As migrateConfig of `nodeshutdown`: the others first, then the critical ones.
            let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
            steps.push(Step { priority: 0, seconds: Some(seconds(shutdown.saturating_sub(critical))) });
            steps.push(Step { priority: CRITICAL, seconds: Some(seconds(critical)) });
        }
        steps.sort_by_key(|step| step.priority);
        Resources {
            image_gc_high_percent: high,
            image_gc_low_percent: low,
            image_minimum_age: minimum_age,
            image_maximum_age: maximum_age,
            image_gc_asked,
            enforce_allocatable: has("pods"),
            pod_pids_limit: self.pod_pids_limit.filter(|limit| *limit > 0),
            pods_per_core: self.pods_per_core.unwrap_or(0),
            cpu_cfs_quota: self.cpu_cfs_quota.unwrap_or(true),
            cpu_cfs_quota_period: self.cpu_cfs_quota_period.unwrap_or(Duration::from_millis(100)),
            local_storage: self.local_storage.unwrap_or(true),
            log_max_size: self.log_max_size.unwrap_or(10 << 20),
            log_max_files: self.log_max_files.unwrap_or(5),
            shutdown: steps,
            shutdown_grace_period: shutdown,
            shutdown_grace_period_critical: critical,
        }
    }
}

fn percent(value: i64) -> Result<u8, String> {
    values::number(0..=100)(value).map(|value| value as u8)
}

fn log_files(value: i64) -> Result<u32, String> {
    values::number(2..=i64::from(i32::MAX))(value).map(|value| value as u32)
}

fn log_size(text: &str) -> Result<i64, String> {
    let size = quantity::parse(text, 0).filter(|size| *size > 0);
    size.ok_or_else(|| format!("expected a size above 0 like 10Mi, got {text:?}"))
}

fn quota_period(period: Duration) -> Result<Duration, String> {
    match (Duration::from_millis(1)..=Duration::from_secs(1)).contains(&period) {
        true => Ok(period),
        false => Err(format!("expected a duration from 1ms to 1s, got {period:?}")),
    }
}

fn shutdown_period(period: Duration) -> Result<Duration, String> {
    match period.is_zero() || period >= Duration::from_secs(1) {
        true => Ok(period),
        false => Err(format!("expected 0s or at least 1s, got {period:?}")),
    }
}

fn enforcement(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = [
        "pods",
        "system-reserved",
        "system-reserved-compressible",
        "kube-reserved",
        "kube-reserved-compressible",
        "none",
    ];
    let hint = || nearest(text, LEVELS).map_or(String::new(), |near| format!("; did you mean {near}?"));
    match LEVELS.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("expected one of {}, got {text:?}{}", LEVELS.join(", "), hint())),
    }
}

fn steps(reader: &mut Reader<'_>, field: &str, node: &Node) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for (n, item) in reader.items(field, node).iter().enumerate() {
        let field = format!("{field}[{n}]");
        let mut step = Step { priority: 0, seconds: Some(0) };
        for entry in reader.map(&field, item) {
            let inner = format!("{field}.{}", entry.key);
            let range = |low: i64, high: i64| values::number(low..=high);
            match entry.key.as_str() {
                "priority" => {
                    let priority = reader.whole(&inner, &entry.node, range(i32::MIN.into(), i32::MAX.into()));
                    step.priority = priority.map_or(0, |priority| priority as i32);
                }
                "shutdownGracePeriodSeconds" => {
                    step.seconds = reader.whole(&inner, &entry.node, range(0, 1 << 31)).or(Some(0));
                }
                other => reader.unknown(&inner, other, entry.at.line, &["priority", "shutdownGracePeriodSeconds"]),
            }
        }
        steps.push(step);
    }
    Some(steps)
}
