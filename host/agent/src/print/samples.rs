//! Pods for tests.
#![allow(clippy::unwrap_used)]

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::pod::{PodId, Source};
use longshore_core::view::PodView;

/// Noon of a day that all samples lie in.
pub(crate) fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

/// A pod from YAML; what v1 requires of container statuses is filled in.
pub(crate) fn pod(yaml: &str) -> v1::Pod {
    let mut value: serde_json::Value = serde_saphyr::from_str(yaml).unwrap();
    for key in ["containerStatuses", "initContainerStatuses"] {
        for status in value["status"].get_mut(key).and_then(|list| list.as_array_mut()).into_iter().flatten() {
            let status = status.as_object_mut().unwrap();
            for (field, default) in [("ready", false.into()), ("restartCount", 0.into())] {
                status.entry(field).or_insert(default);
            }
            for field in ["image", "imageID"] {
                status.entry(field).or_insert("".into());
            }
        }
    }
    serde_json::from_value(value).unwrap()
}

/// A view of a running pod on `node1`.
pub(crate) fn view(namespace: &str, name: &str) -> PodView {
    let uid = format!("uid-{namespace}-{name}");
    let yaml = format!(
        "metadata: {{name: {name}, namespace: {namespace}, uid: {uid}}}
spec: {{nodeName: node1, containers: [{{name: main, image: busybox}}]}}
status:
  phase: Running
  podIP: 172.17.0.2
  startTime: '2026-01-01T11:58:00Z'
  containerStatuses:
  - {{name: main, image: busybox, ready: true, started: true, containerID: 'docker://abc', state: {{running: {{startedAt: '2026-01-01T11:58:01Z'}}}}}}
"
    );
    PodView {
        id: PodId { namespace: namespace.to_owned(), name: name.to_owned(), uid },
        source: Source::File,
        object: pod(&yaml),
        sandbox: None,
        steps: Vec::new(),
        probes: Vec::new(),
        standing: Default::default(),
    }
}
