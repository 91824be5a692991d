//! Names and labels of what we make in the runtime: dockershim's, so that existing tools know them, and ours.
//!
//! As `pkg/kubelet/dockershim/{naming,helpers}.go` and `pkg/kubelet/kuberuntime/labels.go` of Kubernetes 1.20.
//! What is ours carries [`ROOT`]; it is never told by a name or by dockershim's labels.

use std::collections::BTreeMap;

use crate::cgroup::{self, Qos};
use crate::pod::{ContainerKind, Pod, PodId};

/// How the names of all labels of ours begin.
const PREFIX: &str = "dev.longshore.";

/// ID of the root folder whose agent made it. Nothing without it is ever touched.
pub const ROOT: &str = "dev.longshore.root";
/// Number of the hash rules that [`HASH`] was made with.
pub const HASH_VERSION: &str = "dev.longshore.hash-version";
/// Hash of the sandbox's or container's configuration.
pub const HASH: &str = "dev.longshore.hash";
/// The pod's quality of service, which is where its sandbox's cgroup is; absent on those of before it was kept.
pub const QOS: &str = "dev.longshore.qos";
/// How many of the same name came before.
pub const ATTEMPT: &str = "dev.longshore.attempt";
/// `init`, `sidecar`, `app` or `ephemeral`.
pub const KIND: &str = "dev.longshore.kind";
/// The image as the pod named it.
pub const IMAGE: &str = "dev.longshore.image";
/// Path on the node of the file behind the container's termination message; empty where there is none.
pub const TERMINATION_FILE: &str = "dev.longshore.termination-file";

/// IDs of the images that it mounts as volumes, in the order of the volumes' names, separated by commas; empty where there
/// are none, so that the image's own label is not taken for ours.
pub const IMAGES: &str = "dev.longshore.images";

/// Indices of its `volumeMounts` that are read-only with all that is mounted below, separated by commas; absent on those of
/// before it was kept.
pub const RECURSIVE: &str = "dev.longshore.recursive-read-only";

/// `podsandbox` or `container`.
pub const TYPE: &str = "io.kubernetes.docker.type";
/// ID of the container's sandbox.
pub const SANDBOX_ID: &str = "io.kubernetes.sandbox.id";
/// Path below `/var/log/pods` that the container's log is linked from.
pub const LOG_PATH: &str = "io.kubernetes.container.logpath";
/// Name of the pod.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Namespace of the pod.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// UID of the pod.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Name of the container, `POD` for a sandbox.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// dockershim's annotations, which are labels in Docker, carry this before their key.
pub const ANNOTATION_PREFIX: &str = "annotation.";

/// Bytes of labels on one thing that a pod may choose. Docker repeats all labels with each event and in each list.
const OWN: usize = 8 << 10;

/// Version of the hash rules in use, see [`crate::hash`].
pub const CURRENT_HASH_VERSION: &str = "1";

/// Name of a pod's sandbox: `k8s_POD_<pod>_<ns>_<uid>_<attempt>`.
pub fn sandbox_name(pod: &PodId, attempt: u32) -> String {
    container_name(pod, "POD", attempt)
}

/// Name of a container: `k8s_<container>_<pod>_<ns>_<uid>_<attempt>`.
pub fn container_name(pod: &PodId, container: &str, attempt: u32) -> String {
    format!("k8s_{container}_{}_{}_{}_{attempt}", pod.name, pod.namespace, pod.uid)
}

fn identity(
    pod: &PodId,
    container: &str,
    kind: &str,
    root: &str,
    hash: &str,
    attempt: u32,
) -> BTreeMap<String, String> {
    [
        (ROOT, root.to_owned()),
        (HASH_VERSION, CURRENT_HASH_VERSION.to_owned()),
        (HASH, hash.to_owned()),
        (ATTEMPT, attempt.to_string()),
        (TYPE, kind.to_owned()),
        (POD_NAME, pod.name.clone()),
        (POD_NAMESPACE, pod.namespace.clone()),
        (POD_UID, pod.uid.clone()),
        (CONTAINER_NAME, container.to_owned()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

fn annotate(labels: &mut BTreeMap<String, String>, key: &str, value: String) {
    labels.insert(format!("{ANNOTATION_PREFIX}{key}"), value);
}

/// Those that [`OWN`] has room for. [`parse`] reads none of them, and dockershim goes on without.
fn bounded(labels: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let mut room = OWN;
    let fits = |(key, value): &(String, String)| {
        let left = room.checked_sub(key.len() + value.len());
        room = left.unwrap_or(room);
        left.is_some()
    };
    labels.into_iter().filter(fits).collect()
}

/// All labels of a pod's sandbox: the pod's own and its annotations, as far as there is room, and those that tell who it is.
/// A pod's label under a name of ours would say what only we say: that it may be swept away, for one.
pub fn for_sandbox(pod: &Pod, root: &str, attempt: u32) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    for (key, value) in pod.annotations() {
        annotate(&mut annotations, key, value.clone());
    }
    let own = pod.labels().clone().into_iter().filter(|(key, _)| !key.starts_with(PREFIX));
    let mut labels = bounded(own.chain(annotations));
    labels.extend(identity(&pod.id, "POD", "podsandbox", root, &pod.sandbox_hash, attempt));
    labels.insert(QOS.to_owned(), cgroup::qos(pod.spec()).as_str().to_owned());
    labels
}

/// What [`for_container`] needs to know beside the pod.
#[derive(Clone, Debug)]
pub struct ContainerFacts<'a> {
    /// ID of the root folder.
    pub root: &'a str,
    /// ID of the sandbox.
    pub sandbox_id: &'a str,
    /// How many of the same name came before.
    pub attempt: u32,
    /// Path of the log link, absolute.
    pub log_path: &'a str,
    /// Path on the node of the termination message's file, where one is mounted.
    pub termination_file: Option<&'a str>,
    /// IDs of the images that it mounts.
    pub images: &'a [&'a str],
    /// Indices of its `volumeMounts` that are read-only with all that is mounted below.
    pub recursive: Option<&'a [usize]>,
}

/// All labels of a container.
pub fn for_container(
    pod: &Pod,
    container: crate::pod::ContainerOf<'_>,
    facts: &ContainerFacts<'_>,
) -> BTreeMap<String, String> {
    let spec = container.spec;
    let hash = pod.hashes.get(&spec.name).map_or("", String::as_str);
    let mut labels = identity(&pod.id, &spec.name, "container", facts.root, hash, facts.attempt);
    labels.insert(KIND.to_owned(), kind_word(container.kind).to_owned());
    labels.insert(IMAGE.to_owned(), spec.image.clone().unwrap_or_default());
    labels.insert(SANDBOX_ID.to_owned(), facts.sandbox_id.to_owned());
    labels.insert(LOG_PATH.to_owned(), facts.log_path.to_owned());
    labels.insert(TERMINATION_FILE.to_owned(), facts.termination_file.unwrap_or_default().to_owned());
    labels.insert(IMAGES.to_owned(), facts.images.join(","));
    let recursive: Vec<String> = facts.recursive.unwrap_or_default().iter().map(usize::to_string).collect();
    labels.insert(RECURSIVE.to_owned(), recursive.join(","));
    annotate(&mut labels, "io.kubernetes.container.hash", hash.to_owned());
    annotate(&mut labels, "io.kubernetes.container.restartCount", facts.attempt.to_string());
    let mut own = BTreeMap::new();
    let path = spec.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    annotate(&mut own, "io.kubernetes.container.terminationMessagePath", path.to_owned());
    let policy = spec.termination_message_policy.as_deref().unwrap_or("File");
    annotate(&mut own, "io.kubernetes.container.terminationMessagePolicy", policy.to_owned());
    if let Some(hook) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
        let hook = serde_json::to_string(hook).unwrap_or_default();
        annotate(&mut own, "io.kubernetes.container.preStopHandler", hook);
    }
    if let Some(ports) = spec.ports.as_ref().filter(|ports| !ports.is_empty()) {
        annotate(&mut own, "io.kubernetes.container.ports", serde_json::to_string(ports).unwrap_or_default());
    }
    labels.extend(bounded(own));
    annotate(&mut labels, "io.kubernetes.pod.terminationGracePeriod", pod.own_grace_seconds().to_string());
    labels
}

/// The word for a container's part in [`KIND`].
pub fn kind_word(kind: ContainerKind) -> &'static str {
    match kind {
        ContainerKind::Init => "init",
        ContainerKind::Sidecar => "sidecar",
        ContainerKind::App => "app",
        ContainerKind::Ephemeral => "ephemeral",
    }
}

/// The identity that labels give: the pod, the container's name (`POD` for a sandbox), and what is needed to
/// observe it. `None` when the labels are not those of a thing that the agent of `root` made.
pub fn parse(labels: &BTreeMap<String, String>, root: &str) -> Option<Parsed> {
    if labels.get(ROOT).map(String::as_str) != Some(root) {
        return None;
    }
    let text = |key: &str| labels.get(key).cloned();
    let some = |text: &&str| !text.is_empty();
    let annotation = |key: &str| labels.get(&format!("{ANNOTATION_PREFIX}{key}")).cloned();
    Some(Parsed {
        pod: PodId { namespace: text(POD_NAMESPACE)?, name: text(POD_NAME)?, uid: text(POD_UID)? },
        is_sandbox: text(TYPE)? == "podsandbox",
        container: text(CONTAINER_NAME)?,
        kind: match labels.get(KIND).map(String::as_str) {
            Some("init") => ContainerKind::Init,
            Some("sidecar") => ContainerKind::Sidecar,
            Some("ephemeral") => ContainerKind::Ephemeral,
            _ => ContainerKind::App,
        },
        attempt: text(ATTEMPT)?.parse().ok()?,
        hash: match text(HASH_VERSION).as_deref() {
            Some(CURRENT_HASH_VERSION) => text(HASH).unwrap_or_default(),
            _ => String::new(),
        },
        qos: text(QOS).as_deref().and_then(Qos::of),
        sandbox_id: text(SANDBOX_ID).unwrap_or_default(),
        image: text(IMAGE).unwrap_or_default(),
        images: text(IMAGES).iter().flat_map(|images| images.split(',')).filter(some).map(str::to_owned).collect(),
        recursive: text(RECURSIVE).map(|list| list.split(',').filter_map(|index| index.parse().ok()).collect()),
        termination_file: text(TERMINATION_FILE).filter(|file| !file.is_empty()),
        grace_seconds: annotation("io.kubernetes.pod.terminationGracePeriod").and_then(|grace| grace.parse().ok()),
    })
}

/// What [`parse`] reads from labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The pod that it belongs to.
    pub pod: PodId,
    /// Whether it is a sandbox.
    pub is_sandbox: bool,
    /// Name of the container, `POD` for a sandbox.
    pub container: String,
    /// The part that the container plays.
    pub kind: ContainerKind,
    /// How many of the same name came before.
    pub attempt: u32,
    /// Hash when it was made; empty where other rules made it ([`HASH_VERSION`]).
    pub hash: String,
    /// The quality of service that a sandbox was made for, where it says so.
    pub qos: Option<Qos>,
    /// ID of the container's sandbox, empty for a sandbox.
    pub sandbox_id: String,
    /// The image as the pod named it.
    pub image: String,
    /// IDs of the images that it mounts as volumes, in the order of the volumes' names.
    pub images: Vec<String>,
    /// Indices of its `volumeMounts` that are read-only with all that is mounted below.
    pub recursive: Option<Vec<usize>>,
    /// File on the node behind the termination message.
    pub termination_file: Option<String>,
    /// Grace period in seconds of the pod when it was made.
    pub grace_seconds: Option<i64>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::pod_from;

    /// Docker adds the labels of its image to those that a container is made with.
    #[test]
    fn an_image_says_nothing_of_its_container() {
        let pod = pod_from("{containers: [{name: a, image: i}]}");
        let container = pod.containers().next().unwrap();
        let facts = ContainerFacts {
            root: "root",
            sandbox_id: "sb",
            attempt: 0,
            log_path: "/l",
            termination_file: None,
            images: &[],
            recursive: None,
        };
        let own = for_container(&pod, container, &facts);
        let of_image = [(IMAGES, "sha256:x"), (RECURSIVE, "0"), (TERMINATION_FILE, "/etc/shadow")];
        let mut labels: BTreeMap<String, String> =
            of_image.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        labels.extend(own.clone());
        let parsed = parse(&labels, "root").unwrap();
        assert_eq!((parsed.images, parsed.recursive, parsed.termination_file), (Vec::new(), Some(Vec::new()), None));
        // One of before they were always written.
        let before: BTreeMap<String, String> =
            own.into_iter().filter(|(key, _)| !of_image.iter().any(|(of, _)| of == key)).collect();
        let parsed = parse(&before, "root").unwrap();
        assert_eq!((parsed.images, parsed.recursive, parsed.termination_file), (Vec::new(), None, None));
    }

    #[test]
    fn a_negative_grace_period_is_told_as_a_second() {
        let pod = pod_from("{terminationGracePeriodSeconds: -5, containers: [{name: a, image: i}]}");
        let facts = ContainerFacts {
            root: "root",
            sandbox_id: "s",
            attempt: 0,
            log_path: "l",
            termination_file: None,
            images: &[],
            recursive: None,
        };
        let labels = for_container(&pod, pod.containers().next().unwrap(), &facts);
        assert_eq!(parse(&labels, "root").unwrap().grace_seconds, Some(1));
    }

    #[test]
    fn a_hash_of_other_rules_is_none() {
        let pod = pod_from("{containers: [{name: a, image: i}]}");
        let mut labels = for_sandbox(&pod, "root", 3);
        let parsed = parse(&labels, "root").unwrap();
        assert_eq!((parsed.hash.as_str(), parsed.attempt), (pod.sandbox_hash.as_str(), 3));
        assert_eq!(parse(&labels, "another"), None);
        for version in [Some("2"), Some("0"), None] {
            labels.remove(HASH_VERSION);
            labels.extend(version.map(|version| (HASH_VERSION.to_owned(), version.to_owned())));
            assert_eq!(parse(&labels, "root"), Some(Parsed { hash: String::new(), ..parsed.clone() }), "{version:?}");
        }
    }

    #[test]
    fn a_pod_does_not_speak_for_us() {
        let mut pod = pod_from("{containers: [{name: a, image: i}]}");
        let own = ["dev.longshore.trial", "dev.longshore.content", TERMINATION_FILE, "app"];
        let labels = own.map(|key| (key.to_owned(), "root".to_owned()));
        std::sync::Arc::make_mut(&mut pod.object).metadata.labels = Some(labels.into());
        let labels = for_sandbox(&pod, "root", 0);
        assert_eq!(own.map(|key| labels.contains_key(key)), [false, false, false, true]);
        assert!(parse(&labels, "root").is_some());
    }

    /// An event of Docker's with more than 1 MiB is not read, nor a list in which each entry is that long.
    #[test]
    fn what_a_pod_makes_large_is_left_out() {
        let mut pod = pod_from("{containers: [{name: a, image: i, lifecycle: {preStop: {exec: {command: [x]}}}}]}");
        let large = "x".repeat(OWN);
        let metadata = &mut std::sync::Arc::make_mut(&mut pod.object).metadata;
        metadata.labels = Some((0..1000).map(|n| (format!("label{n:03}"), "x".repeat(63))).collect());
        metadata.annotations =
            Some(BTreeMap::from([("large".to_owned(), large.clone()), ("note".to_owned(), "x".to_owned())]));
        let labels = for_sandbox(&pod, "root", 0);
        let size: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert!(size < 2 * OWN, "{size}");
        assert!(labels.contains_key("label000") && !labels.contains_key("annotation.large"));
        assert!(parse(&labels, "root").is_some());
        std::sync::Arc::make_mut(&mut pod.object).metadata.labels = None;
        assert_eq!(for_sandbox(&pod, "root", 0)["annotation.note"], "x");

        let facts = ContainerFacts {
            root: "root",
            sandbox_id: "s",
            attempt: 0,
            log_path: "l",
            termination_file: None,
            images: &[],
            recursive: None,
        };
        let hook = "annotation.io.kubernetes.container.preStopHandler";
        let of = |pod: &Pod| for_container(pod, pod.containers().next().unwrap(), &facts);
        assert_eq!(of(&pod)[hook], r#"{"exec":{"command":["x"]}}"#);
        let spec = std::sync::Arc::make_mut(&mut pod.object).spec.as_mut().unwrap();
        let lifecycle = spec.containers[0].lifecycle.as_mut().unwrap();
        lifecycle.pre_stop.as_mut().unwrap().exec.as_mut().unwrap().command = Some(vec![large]);
        let labels = of(&pod);
        assert!(!labels.contains_key(hook) && parse(&labels, "root").is_some_and(|it| it.grace_seconds == Some(30)));
    }
}
