//! The defaults that the API server would have put into a pod.
//!
//! As `pkg/apis/core/v1/defaults.go` and `zz_generated.defaults.go`. Applying them twice changes nothing. Must
//! not check anything ([`crate::validate`]) and knows no source.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::admit;

/// Mode of files in configMap, secret, downwardAPI and projected volumes: `0644`.
const FILE_MODE: i32 = 0o644;
/// Seconds that a projected token lives.
const TOKEN_SECONDS: i64 = 3600;

/// Applies all of them.
pub fn apply(pod: &mut v1::Pod) {
    let spec = pod.spec.get_or_insert_default();
    spec.dns_policy = filled(spec.dns_policy.take(), "ClusterFirst");
    spec.restart_policy = filled(spec.restart_policy.take(), "Always");
    spec.scheduler_name = filled(spec.scheduler_name.take(), "default-scheduler");
    spec.security_context.get_or_insert_default();
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    let host_network = spec.host_network.unwrap_or(false);
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        apply_container(container, host_network);
    }
    for volume in spec.volumes.iter_mut().flatten() {
        apply_volume(volume);
    }
    apply_pod_resources(spec);
}

/// Whether an image's name means the moving tag `latest`, spelled out or by leaving tag and digest out.
pub fn is_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_none() && !last.is_empty(),
    }
}

fn filled(value: Option<String>, default: &str) -> Option<String> {
    value.filter(|value| !value.is_empty()).or_else(|| Some(default.to_owned()))
}

fn pull_policy(image: Option<&str>) -> &'static str {
    if is_latest(image.unwrap_or_default()) { "Always" } else { "IfNotPresent" }
}

fn apply_container(container: &mut v1::Container, host_network: bool) {
    let policy = pull_policy(container.image.as_deref());
    container.image_pull_policy = filled(container.image_pull_policy.take(), policy);
    container.termination_message_path = filled(container.termination_message_path.take(), "/dev/termination-log");
    container.termination_message_policy = filled(container.termination_message_policy.take(), "File");
    for port in container.ports.iter_mut().flatten() {
        port.protocol = filled(port.protocol.take(), "TCP");
        if host_network && port.host_port.unwrap_or(0) == 0 {
            port.host_port = Some(port.container_port);
        }
    }
    let selectors = container.env.iter_mut().flatten().filter_map(|env| env.value_from.as_mut()?.field_ref.as_mut());
    selectors.for_each(apply_field_ref);
    if let Some(lifecycle) = &mut container.lifecycle {
        for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
            handler.http_get.iter_mut().for_each(apply_http_get);
        }
    }
    let probes = [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    probes.into_iter().flatten().for_each(apply_probe);
    if let Some(resources) = &mut container.resources {
        // What is limited and not requested is requested up to its limit.
        for (name, limit) in resources.limits.iter().flatten() {
            let requests = resources.requests.get_or_insert_default();
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
}

fn apply_field_ref(selector: &mut v1::ObjectFieldSelector) {
    selector.api_version = filled(selector.api_version.take(), "v1");
}

fn apply_http_get(action: &mut v1::HTTPGetAction) {
    action.path = filled(action.path.take(), "/");
    action.scheme = filled(action.scheme.take(), "HTTP");
}

fn apply_probe(probe: &mut v1::Probe) {
    let or = |value: Option<i32>, default| value.filter(|value| *value != 0).or(Some(default));
    probe.timeout_seconds = or(probe.timeout_seconds, 1);
    probe.period_seconds = or(probe.period_seconds, 10);
    probe.success_threshold = or(probe.success_threshold, 1);
    probe.failure_threshold = or(probe.failure_threshold, 3);
    probe.http_get.iter_mut().for_each(apply_http_get);
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn apply_volume(volume: &mut v1::Volume) {
    if crate::validate::volume_sources(volume).is_empty() {
        volume.empty_dir = Some(v1::EmptyDirVolumeSource::default());
    }
    if let Some(source) = &mut volume.secret {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut volume.config_map {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut volume.downward_api {
        source.default_mode.get_or_insert(FILE_MODE);
        apply_downward_items(source.items.as_mut());
    }
    if let Some(source) = &mut volume.projected {
        source.default_mode.get_or_insert(FILE_MODE);
        for projection in source.sources.iter_mut().flatten() {
            if let Some(token) = &mut projection.service_account_token {
                token.expiration_seconds.get_or_insert(TOKEN_SECONDS);
            }
            if let Some(downward) = &mut projection.downward_api {
                apply_downward_items(downward.items.as_mut());
            }
        }
    }
    if let Some(source) = &mut volume.host_path {
        source.type_.get_or_insert_default();
    }
    if let Some(source) = &mut volume.image {
        let policy = pull_policy(source.reference.as_deref());
        source.pull_policy = filled(source.pull_policy.take(), policy);
    }
}

fn apply_downward_items(items: Option<&mut Vec<v1::DownwardAPIVolumeFile>>) {
    items.into_iter().flatten().filter_map(|file| file.field_ref.as_mut()).for_each(apply_field_ref);
}

/// `defaultPodRequests`: what a pod as a whole is limited to and does not request, it requests as its containers
/// do together, else up to the limit.
fn apply_pod_resources(spec: &mut v1::PodSpec) {
    let containers: BTreeMap<String, i64> = admit::container_requests(spec);
    let Some(resources) = &mut spec.resources else { return };
    for (name, limit) in resources.limits.iter().flatten() {
        if !matches!(name.as_str(), "cpu" | "memory") && !name.starts_with("hugepages-") {
            continue;
        }
        let requests = resources.requests.get_or_insert_default();
        let sum = containers.get(name).filter(|_| !name.starts_with("hugepages-"));
        let request = match (name.as_str(), sum) {
            ("cpu", Some(milli)) => Quantity(format!("{milli}m")),
            (_, Some(value)) => Quantity(value.to_string()),
            (_, None) => limit.clone(),
        };
        requests.entry(name.clone()).or_insert(request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_is_told_from_ports_and_digests() {
        for image in ["nginx", "nginx:latest", "registry:5000/nginx", "a/b:latest@sha256:0"] {
            assert!(is_latest(image), "{image}");
        }
        for image in ["nginx:1.27", "registry:5000/nginx:1", "nginx@sha256:0", ""] {
            assert!(!is_latest(image), "{image}");
        }
    }

    fn with_spec(spec: &str) -> v1::Pod {
        let spec = serde_saphyr::from_str(spec).expect("a pod spec");
        v1::Pod { spec: Some(spec), ..Default::default() }
    }

    #[test]
    fn a_pod_gets_what_the_api_server_would_give_it() {
        let mut pod = with_spec(
            r#"
hostNetwork: true
containers:
- name: web
  image: nginx
  ports: [{containerPort: 80}]
  env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
  resources: {limits: {cpu: "1", memory: 1Gi}, requests: {cpu: 100m}}
  readinessProbe: {httpGet: {port: 80}}
  livenessProbe: {grpc: {port: 80}, periodSeconds: 3}
  lifecycle: {preStop: {httpGet: {port: 80, path: /stop}}}
resources: {limits: {cpu: "2", memory: 2Gi, hugepages-2Mi: 4Mi}}
volumes:
- {name: scratch}
- {name: config, configMap: {name: c}}
- {name: host, hostPath: {path: /x}}
- {name: all, projected: {sources: [{downwardAPI: {items: [{path: n, fieldRef: {fieldPath: metadata.name}}]}}]}}
"#,
        );
        apply(&mut pod);
        insta::assert_snapshot!(serde_json::to_string_pretty(&pod.spec).expect("JSON"));
        let once = pod.clone();
        apply(&mut pod);
        assert_eq!(pod, once);
    }
}
