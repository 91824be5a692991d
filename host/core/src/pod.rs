//! A pod that should run, whatever source it came from.
//!
//! Owns the identity and the narrow questions that the other decisions ask of a v1.Pod. It must not parse
//! manifests ([`crate::manifest`]) and holds nothing that was observed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};

/// The longest grace period, in seconds: what takes the time of a stop is a signed number of 32 bits at places.
pub const MOST_GRACE_SECONDS: i64 = i32::MAX as i64;

/// Who a pod is. Two pods are the same pod when their UIDs are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodId {
    /// Namespace, never empty.
    pub namespace: String,
    /// Name, never empty.
    pub name: String,
    /// UID, never empty; unique over time.
    pub uid: String,
}

impl PodId {
    /// As the kubelet's messages have it: `name_namespace(uid)` (`format.Pod` of `pkg/kubelet/util/format`).
    pub fn in_messages(&self) -> String {
        format!("{}_{}({})", self.name, self.namespace, self.uid)
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Annotation with the time when this node first saw the pod, kept over restarts of the agent; the kubelet's is since its own
/// start (`pkg/kubelet/types/pod_update.go`).
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";

/// Where a pod came from: the value of the annotation `kubernetes.io/config.source`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The manifest folder.
    File,
    /// The manifest URL.
    Http,
    /// The API server.
    Api,
    /// A source plugin, by its name.
    Plugin(String),
}

impl Source {
    /// The word that stands in `kubernetes.io/config.source`.
    pub fn as_str(&self) -> &str {
        match self {
            Source::File => "file",
            Source::Http => "http",
            Source::Api => "api",
            Source::Plugin(name) => name,
        }
    }
}

/// What part a container plays in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ContainerKind {
    /// An init container that runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`, which keeps running beside the app containers.
    Sidecar,
    /// A container of `spec.containers`.
    App,
    /// One of `spec.ephemeralContainers`: added to a running pod to look into it, started once.
    Ephemeral,
}

/// One container of a pod's spec, with the part that it plays.
#[derive(Clone, Copy, Debug)]
pub struct ContainerOf<'a> {
    /// The part that it plays.
    pub kind: ContainerKind,
    /// Its spec.
    pub spec: &'a v1::Container,
}

/// A request that a pod ends, as the API server or a source that dropped the pod makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// Grace period in seconds; it may only shrink. With 0 it has one, as with the kubelet.
    pub grace_seconds: i64,
}

impl Deletion {
    /// What a node does that heard of `asked` at `now`, and of `before` earlier: the grace period begins when the node hears of
    /// it, whatever another machine's clock says and however long the node was away (`pkg/kubelet/pod_workers.go`). Another
    /// word may only end it sooner.
    pub fn heard(asked: Deletion, before: Option<Deletion>, now: Timestamp) -> Deletion {
        let heard = Deletion { requested_at: now, grace_seconds: asked.grace_seconds };
        match before {
            Some(before) if asked.grace_seconds >= before.grace_seconds => before,
            Some(before) if asked.grace_seconds > 0 && heard.ends() >= before.ends() => before,
            _ => heard,
        }
    }

    fn ends(&self) -> Timestamp {
        let grace = jiff::SignedDuration::from_secs(self.grace_seconds);
        self.requested_at.checked_add(grace).unwrap_or(Timestamp::MAX)
    }
}

/// A pod that should run.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Who it is.
    pub id: PodId,
    /// Where it came from.
    pub source: Source,
    /// The object, defaults applied, annotations of the source added.
    pub object: Arc<v1::Pod>,
    /// Hash of each container by name: a running container with another hash is replaced.
    pub hashes: BTreeMap<String, String>,
    /// Hash of all that needs a new sandbox (namespaces, host ports, sysctls, hostname …).
    pub sandbox_hash: String,
    /// Set once the pod should end.
    pub deletion: Option<Deletion>,
    /// Its ephemeral containers as containers, from [`ephemeral`].
    pub ephemeral: Vec<v1::Container>,
}

impl PartialEq for Pod {
    /// A source says all of its pods again when one changes: the others' objects are the same ones, and are not gone through.
    fn eq(&self, other: &Self) -> bool {
        let Pod { id, source, object, hashes, sandbox_hash, deletion, ephemeral } = self;
        (id, source, hashes, sandbox_hash, deletion, ephemeral)
            == (&other.id, &other.source, &other.hashes, &other.sandbox_hash, &other.deletion, &other.ephemeral)
            && (Arc::ptr_eq(object, &other.object) || *object == other.object)
    }
}

/// A pod's ephemeral containers, each as the container that it is but for its target.
pub fn ephemeral(object: &v1::Pod) -> Vec<v1::Container> {
    let all = object.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    all.map(|of| v1::Container {
        args: of.args.clone(),
        command: of.command.clone(),
        env: of.env.clone(),
        env_from: of.env_from.clone(),
        image: of.image.clone(),
        image_pull_policy: of.image_pull_policy.clone(),
        name: of.name.clone(),
        security_context: of.security_context.clone(),
        stdin: of.stdin,
        stdin_once: of.stdin_once,
        termination_message_path: of.termination_message_path.clone(),
        termination_message_policy: of.termination_message_policy.clone(),
        tty: of.tty,
        volume_devices: of.volume_devices.clone(),
        volume_mounts: of.volume_mounts.clone(),
        working_dir: of.working_dir.clone(),
        ..v1::Container::default()
    })
    .collect()
}

impl Pod {
    /// The spec. A pod without one cannot be built by [`crate::manifest`]; an empty one stands in for it.
    pub fn spec(&self) -> &v1::PodSpec {
        static EMPTY: std::sync::LazyLock<v1::PodSpec> = std::sync::LazyLock::new(v1::PodSpec::default);
        self.object.spec.as_ref().unwrap_or(&EMPTY)
    }

    /// Init containers and sidecars in the order of the spec, then the app containers.
    pub fn containers(&self) -> impl Iterator<Item = ContainerOf<'_>> {
        let spec = self.spec();
        let init = spec.init_containers.iter().flatten().map(|spec| ContainerOf { kind: init_kind(spec), spec });
        init.chain(spec.containers.iter().map(|spec| ContainerOf { kind: ContainerKind::App, spec }))
    }

    /// The ephemeral containers, which are none of [`Pod::containers`]: they count for nothing that the pod is.
    pub fn ephemeral_containers(&self) -> impl Iterator<Item = ContainerOf<'_>> {
        self.ephemeral.iter().map(|spec| ContainerOf { kind: ContainerKind::Ephemeral, spec })
    }

    /// The container of that name, of whatever kind.
    pub fn container(&self, name: &str) -> Option<ContainerOf<'_>> {
        self.containers().chain(self.ephemeral_containers()).find(|container| container.spec.name == name)
    }

    /// The container whose processes an ephemeral one is to see (`targetContainerName`).
    pub fn target_of(&self, name: &str) -> Option<&str> {
        let mut all = self.spec().ephemeral_containers.iter().flatten();
        let target = all.find(|of| of.name == name)?.target_container_name.as_deref();
        target.filter(|target| !target.is_empty())
    }

    /// `spec.restartPolicy`, `Always` where absent.
    pub fn restart_policy(&self) -> &str {
        self.spec().restart_policy.as_deref().unwrap_or("Always")
    }

    /// Whether the pod shares the node's network namespace.
    pub fn host_network(&self) -> bool {
        self.spec().host_network.unwrap_or(false)
    }

    /// Annotations, empty where absent.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        static EMPTY: BTreeMap<String, String> = BTreeMap::new();
        self.object.metadata.annotations.as_ref().unwrap_or(&EMPTY)
    }

    /// Labels, empty where absent.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        static EMPTY: BTreeMap<String, String> = BTreeMap::new();
        self.object.metadata.labels.as_ref().unwrap_or(&EMPTY)
    }

    /// The grace period in seconds of the spec, else 30. A negative one is a second.
    pub fn own_grace_seconds(&self) -> i64 {
        let own = self.spec().termination_grace_period_seconds.unwrap_or(30);
        if own < 0 { 1 } else { own }
    }

    /// The grace period in seconds that ends the pod: the deletion's, else the spec's ([`Pod::own_grace_seconds`]); at most
    /// [`MOST_GRACE_SECONDS`].
    pub fn grace_seconds(&self) -> i64 {
        let own = self.own_grace_seconds();
        self.deletion.map_or(own, |deletion| deletion.grace_seconds).clamp(0, MOST_GRACE_SECONDS)
    }
}

/// What part an init container plays.
pub fn init_kind(spec: &v1::Container) -> ContainerKind {
    if spec.restart_policy.as_deref() == Some("Always") { ContainerKind::Sidecar } else { ContainerKind::Init }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    #[test]
    fn a_negative_grace_period_is_a_second() {
        for (written, expected) in [(-5, 1), (0, 0), (7, 7)] {
            let spec = format!("{{terminationGracePeriodSeconds: {written}, containers: [{{name: c, image: i}}]}}");
            assert_eq!(crate::admit::testing::pod(&spec).grace_seconds(), expected);
        }
    }

    #[test]
    fn a_grace_period_begins_when_it_is_heard_of_and_another_word_only_ends_it_sooner() {
        let of = |second, grace_seconds| Deletion { requested_at: at(second), grace_seconds };
        let heard = |asked, before, now| Deletion::heard(asked, before, at(now));
        // Long ago, or by a clock that is ahead.
        assert_eq!(heard(of(-1000, 30), None, 0), of(0, 30));
        assert_eq!(heard(of(1000, 30), None, 0), of(0, 30));
        // The same word again, a longer one, and one that is shorter and ends later.
        for asked in [of(0, 30), of(10, 60), of(25, 29)] {
            assert_eq!(heard(asked, Some(of(0, 30)), 25), of(0, 30));
        }
        assert_eq!(heard(of(5, 10), Some(of(0, 30)), 5), of(5, 10));
        // By force, also when the grace is over.
        assert_eq!(heard(of(50, 0), Some(of(0, 30)), 50), of(50, 0));
    }
}
