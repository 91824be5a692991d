//! Reading a pod's probes: v1's own, and those that annotations write for plugins.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use serde::Deserialize;

use super::{ProbeKind, ProbeSpec};
use crate::pod::{ContainerKind, Pod};

/// Before `<container>.<kind>` in the key of an annotation that holds a probe; `probes` after it holds a list.
pub const ANNOTATION_PREFIX: &str = "probe.longshore.dev/";

/// Shortest period, timeout and delay: the scheduler's grain.
const SHORTEST: Duration = Duration::from_millis(10);

/// A probe that cannot be read: the user's to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key}: {message}")]
pub struct ProbeSpecError {
    /// The annotation's key.
    pub key: String,
    /// What is wrong and what is expected.
    pub message: String,
}

/// All probes of a pod. An annotation takes the place of v1's probe of the same container and kind, so that one
/// manifest serves here and on a kubelet.
pub fn specs(pod: &Pod) -> Result<Vec<ProbeSpec>, ProbeSpecError> {
    let mut found: BTreeMap<(String, ProbeKind), ProbeSpec> = BTreeMap::new();
    for container in pod.containers() {
        let of_kind = [
            (ProbeKind::Liveness, &container.spec.liveness_probe),
            (ProbeKind::Readiness, &container.spec.readiness_probe),
            (ProbeKind::Startup, &container.spec.startup_probe),
        ];
        for (kind, probe) in of_kind {
            if let Some(spec) = probe.as_ref().and_then(|probe| from_v1(container.spec, kind, probe)) {
                found.insert((spec.container.clone(), kind), spec);
            }
        }
    }
    for spec in annotated(pod)? {
        found.insert((spec.container.clone(), spec.kind), spec);
    }
    Ok(found.into_values().collect())
}

fn from_v1(container: &v1::Container, kind: ProbeKind, probe: &v1::Probe) -> Option<ProbeSpec> {
    let (plugin, config) = if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        let command = crate::environment::expand_command(container, &command);
        ("exec", serde_json::json!({ "command": command }).to_string())
    } else if let Some(http) = &probe.http_get {
        ("http", serde_json::to_string(http).ok()?)
    } else if let Some(tcp) = &probe.tcp_socket {
        ("tcp", serde_json::to_string(tcp).ok()?)
    } else if let Some(grpc) = &probe.grpc {
        ("grpc", serde_json::to_string(grpc).ok()?)
    } else {
        return None;
    };
    let seconds =
        |value: Option<i32>, default: i32| Duration::from_secs(value.filter(|v| *v > 0).unwrap_or(default) as u64);
    let count = |value: Option<i32>, default: u32| {
        value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
    };
    Some(ProbeSpec {
        container: container.name.clone(),
        kind,
        plugin: plugin.to_owned(),
        config,
        initial_delay: seconds(probe.initial_delay_seconds, 0),
        period: seconds(probe.period_seconds, 10),
        timeout: seconds(probe.timeout_seconds, 1),
        success_threshold: count(probe.success_threshold, 1),
        failure_threshold: count(probe.failure_threshold, 3),
        grace_seconds: probe.termination_grace_period_seconds,
    })
}

/// What an annotation holds. Times are durations (`200ms`, `1.5s`, `1m`) or v1's whole seconds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    container: Option<String>,
    kind: Option<String>,
    plugin: String,
    #[serde(default)]
    config: Option<serde_json::Value>,
    initial_delay: Option<Time>,
    initial_delay_seconds: Option<u32>,
    period: Option<Time>,
    period_seconds: Option<u32>,
    timeout: Option<Time>,
    timeout_seconds: Option<u32>,
    success_threshold: Option<u32>,
    failure_threshold: Option<u32>,
    termination_grace_period_seconds: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Time {
    Seconds(f64),
    Text(String),
}

fn annotated(pod: &Pod) -> Result<Vec<ProbeSpec>, ProbeSpecError> {
    let mut specs = Vec::new();
    for (key, text) in pod.annotations() {
        let Some(name) = key.strip_prefix(ANNOTATION_PREFIX) else { continue };
        let fail = |message: String| ProbeSpecError { key: key.clone(), message };
        let parsed = |text: &str| fail(format!("this is not a probe as YAML: {text}"));
        if name == "probes" {
            let list: Vec<Written> =
                serde_saphyr::from_str(text).map_err(|error| parsed(&first_line(&error.to_string())))?;
            for written in list {
                specs.push(one(pod, None, written).map_err(fail)?);
            }
        } else {
            let written: Written =
                serde_saphyr::from_str(text).map_err(|error| parsed(&first_line(&error.to_string())))?;
            let place = name.rsplit_once('.');
            let place =
                place.ok_or_else(|| fail("the key must end in <container>.<liveness|readiness|startup>".to_owned()))?;
            specs.push(one(pod, Some(place), written).map_err(fail)?);
        }
    }
    for (index, spec) in specs.iter().enumerate() {
        if specs[..index].iter().any(|other| other.container == spec.container && other.kind == spec.kind) {
            let key = format!("{ANNOTATION_PREFIX}{}.{}", spec.container, spec.kind.as_str());
            return Err(ProbeSpecError { key, message: "this probe is written twice".to_owned() });
        }
    }
    Ok(specs)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn one(pod: &Pod, place: Option<(&str, &str)>, written: Written) -> Result<ProbeSpec, String> {
    let (container, kind) = match place {
        Some((container, kind)) => {
            for (field, value, said) in [("container", &written.container, container), ("kind", &written.kind, kind)] {
                if value.as_ref().is_some_and(|value| value != said) {
                    return Err(format!("{field}: the key says {said:?}: leave it out here, or write both the same"));
                }
            }
            (container.to_owned(), kind.to_owned())
        }
        None => (
            written.container.ok_or("container: required: the name of the container that is probed")?,
            written.kind.ok_or("kind: required: liveness, readiness or startup")?,
        ),
    };
    let kind = match kind.as_str() {
        "liveness" => ProbeKind::Liveness,
        "readiness" => ProbeKind::Readiness,
        "startup" => ProbeKind::Startup,
        other => return Err(format!("{other:?} is not a kind of probe; there are liveness, readiness and startup")),
    };
    match pod.container(&container).map(|found| found.kind) {
        None => {
            let names: Vec<&str> = pod.containers().map(|container| container.spec.name.as_str()).collect();
            return Err(format!("the pod has no container {container:?}; it has {}", names.join(", ")));
        }
        Some(ContainerKind::Init) => {
            return Err(format!(
                "container {container:?} is an init container that runs to its end: only those with restartPolicy: Always are probed"
            ));
        }
        Some(ContainerKind::Ephemeral) => {
            return Err(format!("container {container:?} is an ephemeral container: these are not probed"));
        }
        Some(ContainerKind::App | ContainerKind::Sidecar) => {}
    }
    let grace_seconds = written.termination_grace_period_seconds;
    if kind == ProbeKind::Readiness && grace_seconds.is_some() {
        return Err("terminationGracePeriodSeconds: a readiness probe ends no container: leave it out".to_owned());
    }
    if let Some(seconds) = grace_seconds.filter(|seconds| *seconds < 1) {
        return Err(format!("terminationGracePeriodSeconds: must be at least 1, found {seconds}"));
    }
    let success_threshold = written.success_threshold.unwrap_or(1);
    let failure_threshold = written.failure_threshold.unwrap_or(3);
    if success_threshold == 0 || failure_threshold == 0 {
        return Err("successThreshold and failureThreshold must be at least 1".to_owned());
    }
    if kind != ProbeKind::Readiness && success_threshold != 1 {
        return Err(format!("successThreshold must be 1 for a {} probe", kind.as_str()));
    }
    Ok(ProbeSpec {
        container,
        kind,
        plugin: written.plugin,
        config: written.config.unwrap_or_else(|| serde_json::json!({})).to_string(),
        initial_delay: time("initialDelay", written.initial_delay, written.initial_delay_seconds, 0, true)?,
        period: time("period", written.period, written.period_seconds, 10, false)?,
        timeout: time("timeout", written.timeout, written.timeout_seconds, 1, false)?,
        success_threshold,
        failure_threshold,
        grace_seconds,
    })
}

fn time(field: &str, time: Option<Time>, seconds: Option<u32>, default: u64, zero: bool) -> Result<Duration, String> {
    if time.is_some() && seconds.is_some() {
        return Err(format!("{field} and {field}Seconds say the same: keep one"));
    }
    let value = match (time, seconds) {
        (None, None) => return Ok(Duration::from_secs(default)),
        (None, Some(seconds)) => Duration::from_secs(seconds.into()),
        (Some(Time::Seconds(seconds)), _) => {
            Duration::try_from_secs_f64(seconds).map_err(|_| format!("{field}: {seconds} is not a time in seconds"))?
        }
        (Some(Time::Text(text)), _) => {
            let parsed: jiff::SignedDuration =
                text.parse().map_err(|_| format!("{field}: {text:?} is not a duration such as 200ms, 5s or 1m"))?;
            Duration::try_from(parsed).map_err(|_| format!("{field}: {text:?} is negative"))?
        }
    };
    if value < SHORTEST && !(zero && value.is_zero()) {
        return Err(format!("{field}: {value:?} is shorter than {SHORTEST:?}, the shortest time there is"));
    }
    if value > Duration::from_secs(7 * 24 * 3600) {
        return Err(format!("{field}: {value:?} is longer than a week"));
    }
    Ok(value)
}
