//! Annotations that fields have taken the place of: a field is what counts here, whatever they say.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

use super::Errors;

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

pub(super) fn check(annotations: &BTreeMap<String, String>, spec: &v1::PodSpec, errors: &mut Errors) {
    let of_pod = spec.security_context.as_ref();
    let profile = of_pod.and_then(|context| context.seccomp_profile.as_ref());
    if let (Some(annotation), Some(profile)) = (annotations.get(SECCOMP_POD), profile)
        && !is_seccomp(annotation, profile)
    {
        let path = "spec.securityContext.seccompProfile.type";
        errors.forbidden(path, "seccomp type in annotation and field must match");
    }
    let lists = [("initContainers", spec.init_containers.as_deref()), ("containers", Some(spec.containers.as_slice()))];
    for (list, containers) in lists {
        for (index, container) in containers.unwrap_or_default().iter().enumerate() {
            let path = format!("spec.{list}[{index}].securityContext");
            let own = container.security_context.as_ref();
            let seccomp = own.and_then(|context| context.seccomp_profile.as_ref());
            if let (Some(annotation), Some(profile)) =
                (annotations.get(&format!("{SECCOMP}{}", container.name)), seccomp)
                && !is_seccomp(annotation, profile)
            {
                let path = format!("{path}.seccompProfile.type");
                errors.forbidden(path, "seccomp type in annotation and field must match");
            }
            let apparmor = own
                .and_then(|context| context.app_armor_profile.as_ref())
                .or_else(|| of_pod.and_then(|context| context.app_armor_profile.as_ref()));
            if let (Some(annotation), Some(profile)) =
                (annotations.get(&format!("{APPARMOR}{}", container.name)), apparmor)
                && !is(annotation, &profile.type_, profile.localhost_profile.as_deref(), &["runtime/default"])
            {
                let path = format!("{path}.appArmorProfile.type");
                errors.forbidden(path, "apparmor type in annotation and field must match");
            }
        }
    }
}

fn is_seccomp(annotation: &str, profile: &v1::SeccompProfile) -> bool {
    let defaults = ["runtime/default", "docker/default"];
    is(annotation, &profile.type_, profile.localhost_profile.as_deref(), &defaults)
}

/// Whether an annotation means the profile of that type; another type than there is was told of elsewhere.
fn is(annotation: &str, kind: &str, file: Option<&str>, defaults: &[&str]) -> bool {
    match kind {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => defaults.contains(&annotation),
        "Localhost" => annotation.strip_prefix("localhost/").is_some_and(|name| Some(name) == file),
        _ => true,
    }
}
