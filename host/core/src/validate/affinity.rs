//! The nodes that a pod must be on; which it would rather be on matters to a scheduler alone.

use k8s_openapi::api::core::v1;

use super::{Errors, names};

const PATH: &str = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";

pub(super) fn check(spec: &v1::PodSpec, errors: &mut Errors) {
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let Some(selector) = required else { return };
    if selector.node_selector_terms.is_empty() {
        errors.required(PATH, "must have at least one node selector term");
    }
    for (index, term) in selector.node_selector_terms.iter().enumerate() {
        for (number, wanted) in term.match_expressions.iter().flatten().enumerate() {
            check_label(wanted, &format!("{PATH}[{index}].matchExpressions[{number}]"), errors);
        }
        for (number, wanted) in term.match_fields.iter().flatten().enumerate() {
            check_field(wanted, &format!("{PATH}[{index}].matchFields[{number}]"), errors);
        }
    }
}

fn check_label(wanted: &v1::NodeSelectorRequirement, path: &str, errors: &mut Errors) {
    let values = wanted.values.as_deref().unwrap_or_default();
    let operator = wanted.operator.as_str();
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(format!("{path}.values"), "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.forbidden(format!("{path}.values"), detail);
        }
        "Gt" | "Lt" if values.len() != 1 => {
            let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.required(format!("{path}.values"), detail);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => errors.invalid(format!("{path}.operator"), operator, "not a valid selector operator"),
    }
    errors.form(format!("{path}.key"), &wanted.key, names::qualified_name);
    for (index, value) in values.iter().enumerate() {
        errors.form(format!("{path}.values[{index}]"), value, names::label_value);
    }
}

fn check_field(wanted: &v1::NodeSelectorRequirement, path: &str, errors: &mut Errors) {
    let values = wanted.values.as_deref().unwrap_or_default();
    match wanted.operator.as_str() {
        "In" | "NotIn" if values.len() != 1 => {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.required(format!("{path}.values"), detail);
        }
        "In" | "NotIn" => {}
        other => errors.invalid(format!("{path}.operator"), other, "not a valid selector operator"),
    }
    if wanted.key != "metadata.name" {
        return errors.invalid(format!("{path}.key"), &wanted.key, "not a valid field selector key");
    }
    for (index, value) in values.iter().enumerate() {
        errors.form(format!("{path}.values[{index}]"), value, names::dns_subdomain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_must_have_is_said_in_full() {
        let cases: [(&str, &[&str]); 12] = [
            ("matchExpressions: [{key: a/b, operator: In, values: [c, '']}]", &[]),
            ("matchExpressions: [{key: a, operator: DoesNotExist}, {key: b, operator: Gt, values: ['1']}]", &[]),
            ("matchFields: [{key: metadata.name, operator: NotIn, values: [node]}]", &[]),
            ("{}", &[]),
            ("matchExpressions: [{key: a, operator: In}]", &["matchExpressions[0].values"]),
            ("matchExpressions: [{key: a, operator: NotIn, values: []}]", &["matchExpressions[0].values"]),
            ("matchExpressions: [{key: a, operator: Exists, values: [b]}]", &["matchExpressions[0].values"]),
            ("matchExpressions: [{key: a, operator: Lt, values: ['1', '2']}]", &["matchExpressions[0].values"]),
            (
                "matchExpressions: [{key: a b, operator: in, values: [c d]}]",
                &["matchExpressions[0].operator", "matchExpressions[0].key", "matchExpressions[0].values[0]"],
            ),
            ("matchFields: [{key: spec.x, operator: In, values: [node]}]", &["matchFields[0].key"]),
            (
                "matchFields: [{key: metadata.name, operator: In, values: [node, Node]}]",
                &["matchFields[0].values", "matchFields[0].values[1]"],
            ),
            ("matchFields: [{key: metadata.name, operator: Exists}]", &["matchFields[0].operator"]),
        ];
        for (term, expected) in cases {
            let term = if term.starts_with('{') { term.to_owned() } else { format!("{{{term}}}") };
            let expected: Vec<String> = expected.iter().map(|path| format!("{PATH}[0].{path}")).collect();
            assert_eq!(paths(&format!("[{term}]")), expected, "{term}");
        }
        assert_eq!(paths("[]"), [PATH]);
    }

    fn paths(terms: &str) -> Vec<String> {
        let selector = format!("requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: {terms}}}");
        let spec = format!("{{affinity: {{nodeAffinity: {{{selector}}}}}, containers: []}}");
        let mut errors = Errors::default();
        check(&serde_saphyr::from_str(&spec).expect("a pod spec"), &mut errors);
        errors.0.into_iter().map(|error| error.path).collect()
    }
}
