//! What keeps a pod from being started although the kubelet would not reject it: what its probes' plugins, the node, the
//! manifest folder and other agents say. It waits, and is asked about again; what runs of it already goes on.
//!
//! Shared by who starts pods and who only says what would be done. What must be asked first is the caller's to ask.

use crate::node::NodeFacts;
use crate::observed::ObservedPod;
use crate::pod::{Pod, PodId, Source};
use crate::ports::runtime::ForeignContainer;
use crate::probe::{self, ProbeSpec};
use crate::support;
use crate::volume::{self, ObjectKind};

const FAILED_SANDBOX: &str = "FailedCreatePodSandBox";

/// Why a pod may not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Reason of the event that tells of it.
    pub event: &'static str,
    /// What is in the way, and what to do.
    pub message: String,
}

/// The pod's probes, whose plugins are to be asked next ([`refused`]).
///
/// # Errors
/// What is wrong with one of them.
pub fn probes(pod: &Pod) -> Result<Vec<ProbeSpec>, Hold> {
    probe::specs(pod).map_err(|error| Hold { event: FAILED_SANDBOX, message: error.to_string() })
}

/// A plugin does not take a probe's configuration.
pub fn refused(spec: &ProbeSpec, error: &impl std::fmt::Display) -> Hold {
    let message = format!("{} probe of container {}: {error}", spec.kind.as_str(), spec.container);
    Hold { event: FAILED_SANDBOX, message }
}

/// What the node cannot do for the pod.
pub fn unsupported(pod: &Pod, node: &NodeFacts, in_cluster: bool) -> Option<Hold> {
    let support::Unsupported { event, message, .. } = support::unsupported(pod, node, in_cluster)?;
    Some(Hold { event, message })
}

/// The objects that must lie in the folder for a pod of another source than the API server to run in a cluster: it may
/// not refer to what only that could have. As `HasAPIObjectReference` (gate PreventStaticPodAPIReferences), but for what
/// lies in the folder. One that runs already goes on.
pub fn of_the_folder(pod: &Pod, observed: &ObservedPod, in_cluster: bool) -> Vec<(ObjectKind, String)> {
    if !in_cluster || pod.source == Source::Api || observed.sandbox().is_some() {
        return Vec::new();
    }
    let named = volume::references(pod).into_iter().filter(|reference| !reference.optional);
    let named = named.map(|reference| (reference.kind, reference.name));
    let pulls = volume::pull_secrets(pod).into_iter().map(|name| (ObjectKind::Secret, name));
    named.chain(pulls).collect()
}

/// One of those does not.
pub fn not_in_the_folder(pod: &Pod, kind: ObjectKind, name: &str) -> Hold {
    let message = format!(
        "static pods may not reference {kind}s of the API server, and {kind} {namespace}/{name} is not in the manifest \
         folder: put it there, or make this a pod of the API server",
        namespace = pod.id.namespace,
        kind = kind.as_str()
    );
    Hold { event: "FailedValidation", message }
}

/// Another agent's containers of this pod run: two agents on one pod would fight. Nothing is in the way of a pod of
/// which this agent has something already.
pub fn foreign(pod: &Pod, observed: &ObservedPod, others: &[ForeignContainer]) -> Option<Hold> {
    if !observed.containers.is_empty() || !observed.sandboxes.is_empty() {
        return None;
    }
    let other = others.iter().find(|other| other.pod.uid == pod.id.uid && other.running)?;
    // A takeover leaves other longshores alone.
    let (whose, advice) = match &other.longshore_root {
        Some(root) => (
            format!("the longshore agent of root {root}"),
            "end the pod through that agent, or, where that is gone for good, remove its containers (docker rm -f)",
        ),
        None => (
            "another agent (dockershim or cri-dockerd)".to_owned(),
            "stop that agent's pod, or run `longshore takeover`",
        ),
    };
    let message = format!("container {} of this pod runs already under {whose}; {advice}", other.name);
    Some(Hold { event: FAILED_SANDBOX, message })
}

/// Whether another agent's containers of it run cannot be told.
pub fn unknown(error: &str) -> Hold {
    let message = format!("cannot determine whether another agent runs containers of this pod: {error}");
    Hold { event: FAILED_SANDBOX, message }
}

/// The pod of the same name that must have ended before this one begins: a changed manifest is a new pod. One of the API server
/// waits for nobody, or a pod that is deleted by force would hold up who takes its place (`allowPodStart` of
/// `pkg/kubelet/pod_workers.go`). `others` are the pods that the node looks after.
pub fn predecessor<'a>(pod: &Pod, mut others: impl Iterator<Item = &'a PodId>) -> Option<&'a PodId> {
    if pod.source == Source::Api {
        return None;
    }
    let id = &pod.id;
    others.find(|other| other.name == id.name && other.namespace == id.namespace && other.uid != id.uid)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::admit::testing::pod;

    fn foreigner(pod: &Pod, running: bool, root: Option<&str>) -> ForeignContainer {
        ForeignContainer {
            id: "1".to_owned(),
            name: "k8s_a".to_owned(),
            pod: pod.id.clone(),
            is_sandbox: false,
            running,
            longshore_root: root.map(str::to_owned),
        }
    }

    #[test]
    fn containers_of_others_hold_a_pod_back_while_they_run() {
        let (pod, nothing) = (pod("{containers: [{name: c, image: i}]}"), ObservedPod::default());
        let held = |others: &[ForeignContainer]| foreign(&pod, &nothing, others).map(|hold| hold.message);
        assert_eq!(held(&[foreigner(&pod, false, None)]), None);
        let shim = held(&[foreigner(&pod, true, None)]).unwrap();
        assert!(shim.contains("dockershim or cri-dockerd") && shim.contains("takeover"), "{shim}");
        let longshore = held(&[foreigner(&pod, true, Some("r7"))]).unwrap();
        assert!(longshore.contains("the longshore agent of root r7") && !longshore.contains("takeover"), "{longshore}");
        let mut other = foreigner(&pod, true, None);
        other.pod.uid = "another".to_owned();
        assert_eq!(held(&[other]), None);
    }

    #[test]
    fn what_the_folder_must_have_is_asked_in_a_cluster_alone_and_not_of_what_is_optional() {
        let spec = "{imagePullSecrets: [{name: pull}], volumes: [{name: v, configMap: {name: map}}, {name: o, secret: \
                    {secretName: maybe, optional: true}}], containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}, {name: o, mountPath: /o}]}]}";
        let pod = Pod { source: Source::File, ..pod(spec) };
        let asked = |pod: &Pod, in_cluster| of_the_folder(pod, &ObservedPod::default(), in_cluster);
        let all = [(ObjectKind::ConfigMap, "map".to_owned()), (ObjectKind::Secret, "pull".to_owned())];
        assert_eq!(asked(&pod, true), all);
        assert_eq!(asked(&pod, false), []);
        assert_eq!(asked(&Pod { source: Source::Api, ..pod.clone() }, true), []);
    }

    #[test]
    fn only_another_pod_of_the_name_comes_first() {
        let pod = pod("{containers: [{name: c, image: i}]}");
        let old = PodId { uid: "old".to_owned(), ..pod.id.clone() };
        let other = PodId { name: "other".to_owned(), ..old.clone() };
        assert_eq!(predecessor(&pod, [&other, &pod.id].into_iter()), None);
        assert_eq!(predecessor(&pod, [&other, &pod.id, &old].into_iter()), Some(&old));
        let of_the_api = Pod { source: Source::Api, ..pod };
        assert_eq!(predecessor(&of_the_api, [&old].into_iter()), None, "it was deleted by force");
    }
}
