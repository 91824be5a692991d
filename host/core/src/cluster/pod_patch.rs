//! The patch that brings a pod's status in the API server up to what it is.
//!
//! A strategic merge patch: conditions are merged by type, so that those of others stay; addresses by `ip`; container
//! statuses are replaced as whole lists. As `pkg/kubelet/status/status_manager.go` (`syncPod`, `mergePodStatus`).

use k8s_openapi::api::core::v1;
use serde_json::{Map, Value, json};

use super::mirror;
use crate::status::{DISRUPTION, OURS};

/// The patch from `known`, the pod as the API server has it, to `status`; `None` when nothing differs.
pub fn patch(known: &v1::Pod, status: &v1::PodStatus) -> Option<Value> {
    let empty = v1::PodStatus::default();
    let before = known.status.as_ref().unwrap_or(&empty);
    // A phase that ended stays: it came from somebody who knew more (an eviction by the API, this node's last life). That of
    // a static pod only mirrors this node, where it may run again after a shutdown.
    let ended = |status: &v1::PodStatus| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended(before) && !ended(status) && !mirror::is_mirror(known) {
        return None;
    }
    let (old, new) = (json!(before), json!(status));
    let mut fields = Map::new();
    let keys = old.as_object().into_iter().chain(new.as_object()).flat_map(Map::keys);
    for key in keys {
        if fields.contains_key(key) {
            continue;
        }
        let (was, is) = (&old[key], &new[key]);
        if agree(was, is) {
            continue;
        }
        let change = match key.as_str() {
            "conditions" => conditions(before, status),
            "podIPs" | "hostIPs" => Some(merged(was, is, "ip")),
            // Others write these: the scheduler, controllers, the API server's resize.
            "nominatedNodeName" | "resourceClaimStatuses" | "extendedResourceClaimStatus" | "resize" => None,
            // Set once.
            "startTime" if !was.is_null() => None,
            "qosClass" if !was.is_null() => None,
            // Said of the phase, by whomever: ours are all of an end, so none of them is stale before the phase is another
            // (`generateAPIPodStatus` in pkg/kubelet/kubelet_pods.go).
            "reason" | "message" if is.is_null() && before.phase == status.phase => None,
            _ => Some(is.clone()),
        };
        if let Some(change) = change {
            fields.insert(key.clone(), change);
        }
    }
    (!fields.is_empty()).then(|| json!({"metadata": {"uid": known.metadata.uid}, "status": fields}))
}

/// Whether a patch is of nothing but what another one holds: what is still due after that one was taken was left out of it, and
/// all else is somebody else's word meanwhile.
pub fn is_part(rest: &Value, of: &Value) -> bool {
    let types = |conditions: &Value| -> Vec<Value> {
        conditions.as_array().into_iter().flatten().map(|condition| condition["type"].clone()).collect()
    };
    rest["status"].as_object().into_iter().flatten().all(|(key, rest)| match (key.as_str(), of["status"].get(key)) {
        (_, None) => false,
        ("conditions", Some(of)) => types(rest).iter().all(|one| types(of).contains(one)),
        _ => true,
    })
}

/// Whether two values say the same. The API server gives back `lastState: {}` where nothing was sent: taken for a
/// difference, that would be patched for ever.
fn agree(was: &Value, is: &Value) -> bool {
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => {
            let mut keys = was.keys().chain(is.keys());
            keys.all(|key| agree(was.get(key).unwrap_or(&Value::Null), is.get(key).unwrap_or(&Value::Null)))
        }
        (Value::Array(was), Value::Array(is)) => {
            was.len() == is.len() && was.iter().zip(is).all(|(was, is)| agree(was, is))
        }
        _ => was == is || (says_nothing(was) && says_nothing(is)),
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(says_nothing),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Our conditions that differ. One that is no longer made is taken away.
fn conditions(before: &v1::PodStatus, now: &v1::PodStatus) -> Option<Value> {
    let empty = Vec::new();
    let (before, now) = (before.conditions.as_ref().unwrap_or(&empty), now.conditions.as_ref().unwrap_or(&empty));
    let ours = |condition: &&v1::PodCondition| {
        let kind = condition.type_.as_str();
        kind == DISRUPTION || OURS.contains(&kind)
    };
    let mut changes = Vec::new();
    for condition in now.iter().filter(ours) {
        let known = before.iter().find(|known| known.type_ == condition.type_);
        if known.is_some_and(|known| same(known, condition)) {
            continue;
        }
        let mut change = json!(condition);
        // What was said before and is not any more would stay without a null.
        for field in ["reason", "message"] {
            if change.get(field).is_none() {
                change[field] = Value::Null;
            }
        }
        changes.push(change);
    }
    for gone in before.iter().filter(ours) {
        // What the scheduler or an evictor wrote is not taken away, only conditions that come and go here.
        let passing = gone.type_.starts_with("PodResize") || gone.type_ == "AllContainersRestarting";
        if passing && !now.iter().any(|condition| condition.type_ == gone.type_) {
            changes.push(json!({"type": gone.type_, "$patch": "delete"}));
        }
    }
    (!changes.is_empty()).then_some(Value::Array(changes))
}

/// Transition times differ by what both sides rounded; they count only with the status.
fn same(known: &v1::PodCondition, now: &v1::PodCondition) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    known.status == now.status
        && text(&known.reason) == text(&now.reason)
        && text(&known.message) == text(&now.message)
        && known.observed_generation == now.observed_generation
}

/// A list that is merged by a key: entries that are gone are named for deletion, the order is given.
fn merged(was: &Value, is: &Value, key: &str) -> Value {
    let entries = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let mut change = entries(is);
    for gone in entries(was) {
        if !entries(is).iter().any(|kept| kept[key] == gone[key]) {
            change.push(json!({key: gone[key], "$patch": "delete"}));
        }
    }
    Value::Array(change)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(status: Value) -> v1::Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "status": status})).unwrap()
    }

    fn status(status: Value) -> v1::PodStatus {
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn only_what_differs_is_sent() {
        let known = pod(json!({"phase": "Pending", "qosClass": "BestEffort", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "example.com/gate", "status": "True"}]}));
        let now = status(
            json!({"phase": "Running", "qosClass": "BestEffort", "podIPs": [{"ip": "10.0.0.2"}], "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"},
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"}]}),
        );
        let patch = patch(&known, &now).unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.2"}],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z",
                    "reason": null, "message": null}]}})
        );
    }

    #[test]
    fn an_end_stays_but_for_a_mirror_whose_pod_runs_again() {
        let mut known = pod(json!({"phase": "Failed", "reason": "Terminated"}));
        let now = status(json!({"phase": "Running"}));
        assert_eq!(patch(&known, &now), None);
        known.metadata.annotations = Some([(mirror::MIRROR.to_owned(), "hash".to_owned())].into());
        let expected = json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "reason": null}});
        assert_eq!(patch(&known, &now).unwrap(), expected);
    }

    #[test]
    fn what_the_api_server_fills_in_is_no_difference() {
        let container = |more: Value| {
            let mut container = json!({"name": "a", "ready": true, "image": "i", "imageID": "", "restartCount": 0});
            container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"phase": "Running", "containerStatuses": [container]})
        };
        let known = pod(container(json!({"lastState": {}, "state": {"running": {}}})));
        assert_eq!(patch(&known, &status(container(json!({"state": {"running": {}}})))), None);
        let ended = container(json!({"lastState": {"terminated": {"exitCode": 1}}, "state": {"running": {}}}));
        assert!(patch(&known, &status(ended)).is_some());
    }

    #[test]
    fn an_address_that_changed_replaces_the_old_one() {
        let known = pod(json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}));
        let now = status(json!({"podIP": "10.0.0.3", "podIPs": [{"ip": "10.0.0.3"}]}));
        let patch = patch(&known, &now).unwrap();
        assert_eq!(patch["status"]["podIPs"], json!([{"ip": "10.0.0.3"}, {"ip": "10.0.0.2", "$patch": "delete"}]));
    }

    #[test]
    fn what_is_cleared_is_null_and_an_ended_phase_stays() {
        let known = pod(json!({"phase": "Pending", "reason": "x", "message": "y", "podIP": "10.0.0.2"}));
        let change = patch(&known, &status(json!({"phase": "Running"}))).unwrap();
        assert_eq!(change["status"], json!({"phase": "Running", "reason": null, "message": null, "podIP": null}));
        let ended = pod(json!({"phase": "Failed", "reason": "Evicted"}));
        assert_eq!(patch(&ended, &status(json!({"phase": "Running"}))), None);
    }

    #[test]
    fn what_is_left_out_is_part_of_what_was_sent() {
        let of = |status: Value| json!({"metadata": {"uid": "u"}, "status": status});
        let ready = |status: &str| json!({"conditions": [{"type": "Ready", "status": status}]});
        let sent = of(json!({"podIP": "1", "conditions": [{"type": "Ready", "status": "True"}]}));
        assert!(is_part(&of(json!({"podIP": "1"})), &sent));
        assert!(is_part(&of(ready("True")), &sent));
        assert!(!is_part(&of(ready("True")), &of(json!({"podIP": "1"}))));
        assert!(!is_part(&of(json!({"conditions": [{"type": "Initialized", "status": "True"}]})), &sent));
    }

    #[test]
    fn what_others_say_of_a_phase_stays_with_it() {
        let known = pod(json!({"phase": "Failed", "reason": "NodeLost", "message": "gone", "podIP": "10.0.0.2"}));
        assert_eq!(patch(&known, &status(json!({"phase": "Failed", "podIP": "10.0.0.2"}))), None);
        let ours =
            patch(&known, &status(json!({"phase": "Failed", "reason": "Evicted", "podIP": "10.0.0.2"}))).unwrap();
        assert_eq!(ours["status"], json!({"reason": "Evicted"}));
    }

    proptest! {
        #[test]
        fn an_acknowledged_status_needs_no_patch(
            phase in "Pending|Running|Failed",
            ips in prop::collection::vec("10\\.0\\.0\\.[1-9]", 0..3),
            ready in any::<bool>(),
            message in prop::option::of("[a-z]{1,5}"),
        ) {
            let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
            let mut now = json!({"phase": phase, "conditions": [{"type": "Ready", "status": ready.to_string()}]});
            if !ips.is_empty() {
                now["podIPs"] = ips.into();
            }
            if let Some(message) = message {
                now["message"] = message.into();
            }
            let known = pod(now.clone());
            prop_assert_eq!(patch(&known, &status(now)), None);
        }
    }
}
