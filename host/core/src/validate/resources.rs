//! Quantities, requests and limits.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{Errors, names};
use crate::{admit, quantity};

/// The requests and limits of a container, or of a whole pod by themselves.
pub(super) fn check(resources: &v1::ResourceRequirements, path: &str, errors: &mut Errors) {
    for (field, list) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        for (name, value) in list.iter().flatten() {
            // A request that was defaulted from its limit is not told of twice.
            let defaulted = resources.limits.as_ref().and_then(|limits| limits.get(name)) == Some(value);
            if field == "requests" && defaulted {
                continue;
            }
            check_entry(name, value, &format!("{path}.{field}"), errors);
        }
    }
    // What is left of a page is not used, and the cluster's rule for the rest guards its scheduler.
    errors.warnings(|errors| check_huge_pages(resources, path, errors));
    let empty = BTreeMap::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    for (name, request) in resources.requests.iter().flatten() {
        let path = format!("{path}.requests[{name}]");
        match limits.get(name) {
            Some(limit) => {
                let (more, differ) = compare(request, limit);
                if !overcommits(name) && differ {
                    errors.invalid(path, &request.0, format!("must be equal to {name} limit of {}", limit.0));
                } else if more {
                    errors.invalid(
                        path,
                        &request.0,
                        format!("must be less than or equal to {name} limit of {}", limit.0),
                    );
                }
            }
            None if !overcommits(name) => {
                errors.required(
                    format!("{}.limits", path.trim_end_matches(&format!(".requests[{name}]"))),
                    "Limit must be set for non overcommitable resources",
                );
            }
            None => {}
        }
    }
}

/// Huge pages are whole, and come with memory or CPU of a pod that is more than them.
fn check_huge_pages(resources: &v1::ResourceRequirements, path: &str, errors: &mut Errors) {
    let lists = [("limits", &resources.limits), ("requests", &resources.requests)];
    let entries = || lists.iter().flat_map(|(field, list)| list.iter().flatten().map(move |entry| (*field, entry)));
    let size = |name: &str| name.strip_prefix("hugepages-").map(|size| quantity::parse(size, 0));
    for (field, (name, value)) in entries() {
        // A request is its limit, or told of for that.
        let repeated = field == "requests" && resources.limits.as_ref().is_some_and(|limits| limits.contains_key(name));
        let Some(size) = size(name).filter(|_| !repeated) else { continue };
        let whole = |amount: i64| size.is_some_and(|size| size > 0 && amount % size == 0);
        if quantity::value(value).is_some_and(|amount| !whole(amount)) {
            let detail = format!("{} is not positive integer multiple of {name}", value.0);
            errors.invalid(format!("{path}.{field}[{name}]"), &value.0, detail);
        }
    }
    let any = |wanted: fn(&str) -> bool| entries().any(|(_, (name, _))| wanted(name));
    if any(|name: &str| name.starts_with("hugepages-")) && !any(|name: &str| matches!(name, "cpu" | "memory")) {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
}

/// The requests and limits of a whole pod: of what can be shared, enough for its containers.
pub(super) fn check_pod(spec: &v1::PodSpec, errors: &mut Errors) {
    let Some(whole) = &spec.resources else { return };
    let path = "spec.resources";
    if whole.claims.is_some() {
        errors.forbidden(format!("{path}.claims"), "claims may not be set for Resources at pod-level");
    }
    check(whole, path, errors);
    for (field, list) in [("limits", &whole.limits), ("requests", &whole.requests)] {
        for name in list.iter().flatten().map(|(name, _)| name.as_str()).filter(|name| !name.starts_with("hugepages-"))
        {
            errors.one_of(format!("{path}.{field}[{name}]"), name, &["cpu", "hugepages-<size>", "memory"]);
        }
    }
    let together = admit::container_requests(spec);
    for (name, request) in whole.requests.iter().flatten() {
        // As it was added up: CPU in thousandths.
        let (scale, unit) = if name == "cpu" { (3, "m") } else { (0, "") };
        let Some(needed) = together.get(name) else { continue };
        if quantity::wide(&request.0, scale).is_some_and(|request| request < i128::from(*needed)) {
            let detail = format!("must be greater than or equal to aggregate container requests of {needed}{unit}");
            errors.invalid(format!("{path}.requests[{name}]"), &request.0, detail);
        }
    }
    let empty = BTreeMap::new();
    let limits = whole.limits.as_ref().unwrap_or(&empty);
    for (index, container) in spec.containers.iter().enumerate() {
        let of_container = container.resources.iter().flat_map(|resources| resources.limits.iter().flatten());
        for (name, limit) in of_container {
            let Some(most) = limits.get(name).filter(|most| compare(limit, most).0) else { continue };
            let path = format!("spec.containers[{index}].resources.limits[{name}]");
            errors.invalid(path, &limit.0, format!("must be less than or equal to pod limits of {}", most.0));
        }
    }
}

/// One named quantity, which must not be negative.
pub(super) fn check_entry(name: &str, value: &Quantity, path: &str, errors: &mut Errors) {
    if let Some(detail) = names::qualified_name(name) {
        errors.invalid(format!("{path}[{name}]"), name, detail);
    } else if !name.contains('/') && !is_standard(name) {
        let detail = "must be a standard resource type or fully qualified";
        errors.invalid(format!("{path}[{name}]"), name, detail);
    }
    check_quantity(value, &format!("{path}[{name}]"), errors);
    let whole = !matches!(name, "cpu" | "memory" | "ephemeral-storage");
    if whole && quantity::wide(&value.0, 3).is_some_and(|milli| milli % 1000 != 0) {
        errors.invalid(format!("{path}[{name}]"), &value.0, "must be an integer");
    }
}

/// A quantity that must not be negative.
pub(super) fn check_quantity(value: &Quantity, path: &str, errors: &mut Errors) {
    // The API server cuts what is more than 64 bits hold (`12E`) to that; nothing has so much.
    match quantity::wide(&value.0, 0) {
        None => errors.invalid(
            path,
            &value.0,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$', e.g. 100m, 1.5Gi",
        ),
        Some(number) if number < 0 => errors.invalid(path, &value.0, "must be greater than or equal to 0"),
        Some(_) => {}
    }
}

fn is_standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

fn overcommits(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
}

/// Whether `a` is more than `b`, and whether they differ, to the thousandth.
fn compare(a: &Quantity, b: &Quantity) -> (bool, bool) {
    match (quantity::wide(&a.0, 3), quantity::wide(&b.0, 3)) {
        (Some(a), Some(b)) => (a > b, a != b),
        _ => (false, false),
    }
}
