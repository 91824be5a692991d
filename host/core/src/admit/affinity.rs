//! `nodeSelector` and required node affinity against this node's labels
//! (`component-helpers/scheduling/corev1/nodeaffinity`). As the kubelet checks them, for static pods too.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

use super::{Rejection, reject};
use crate::node::NodeFacts;
use crate::pod::Pod;

pub(super) fn check(pod: &Pod, node: &NodeFacts) -> Result<(), Rejection> {
    let spec = pod.spec();
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| node.labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    // Terms are alternatives; a selector without a term matches nothing.
    let wanted = required.is_none_or(|selector| selects(selector, node));
    if selected && wanted {
        return Ok(());
    }
    reject("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector")
}

/// Whether a selector picks this node.
pub(crate) fn selects(selector: &v1::NodeSelector, node: &NodeFacts) -> bool {
    selector.node_selector_terms.iter().any(|term| matches(term, node))
}

fn matches(term: &v1::NodeSelectorTerm, node: &NodeFacts) -> bool {
    let expressions = term.match_expressions.iter().flatten();
    let fields = term.match_fields.iter().flatten();
    let name = BTreeMap::from([("metadata.name".to_owned(), node.name.clone())]);
    if expressions.clone().next().is_none() && fields.clone().next().is_none() {
        return false;
    }
    expressions.into_iter().all(|wanted| holds(wanted, &node.labels))
        && fields.into_iter().all(|wanted| holds(wanted, &name))
}

fn holds(wanted: &v1::NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&wanted.key);
    let listed = || value.is_some_and(|value| wanted.values.iter().flatten().any(|v| v == value));
    let compare = |test: fn(i64, i64) -> bool| {
        let bound = wanted.values.as_ref().and_then(|values| values.first()).and_then(|v| v.parse::<i64>().ok());
        let own = value.and_then(|value| value.parse::<i64>().ok());
        own.zip(bound).is_some_and(|(own, bound)| test(own, bound))
    };
    match wanted.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|own, bound| own > bound),
        "Lt" => compare(|own, bound| own < bound),
        _ => false,
    }
}
