//! Security contexts of pods and containers.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1;

use super::{Errors, names};
use crate::admit::sysctls;

/// Highest user and group ID: 32 bits, signed.
const MAX_ID: i64 = i32::MAX as i64;

/// The pod's.
pub(super) fn check_pod(spec: &v1::PodSpec, errors: &mut Errors) {
    let path = "spec.securityContext";
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        errors.invalid("spec.shareProcessNamespace", true, "ShareProcessNamespace and HostPID cannot both be enabled");
    }
    if spec.host_users == Some(false) {
        for (field, host) in
            [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)]
        {
            if host == Some(true) {
                errors.forbidden(format!("spec.{field}"), "when `hostUsers` is false");
            }
        }
    }
    let Some(security) = &spec.security_context else { return };
    for (field, id) in
        [("fsGroup", security.fs_group), ("runAsUser", security.run_as_user), ("runAsGroup", security.run_as_group)]
    {
        check_id(id, &format!("{path}.{field}"), errors);
    }
    for (index, group) in security.supplemental_groups.iter().flatten().enumerate() {
        check_id(Some(*group), &format!("{path}.supplementalGroups[{index}]"), errors);
    }
    if let Some(policy) = &security.fs_group_change_policy {
        errors.one_of(format!("{path}.fsGroupChangePolicy"), policy, &["Always", "OnRootMismatch"]);
    }
    if let Some(policy) = &security.supplemental_groups_policy {
        errors.one_of(format!("{path}.supplementalGroupsPolicy"), policy, &["Merge", "Strict"]);
    }
    let mut seen = BTreeSet::new();
    for (index, sysctl) in security.sysctls.iter().flatten().enumerate() {
        let path = format!("{path}.sysctls[{index}].name");
        errors.required_form(path.clone(), &sysctl.name, names::sysctl);
        errors.unique(path.clone(), &sysctl.name, &mut seen);
        if let Some(field) = sysctls::of_the_node(&sysctl.name, spec) {
            errors.invalid(path, &sysctl.name, format!("may not be specified when '{field}' is true"));
        }
    }
    check_seccomp(security.seccomp_profile.as_ref(), &format!("{path}.seccompProfile"), errors);
    check_apparmor(security.app_armor_profile.as_ref(), &format!("{path}.appArmorProfile"), errors);
}

/// A container's.
pub(super) fn check_container(security: &v1::SecurityContext, spec: &v1::PodSpec, path: &str, errors: &mut Errors) {
    check_id(security.run_as_user, &format!("{path}.runAsUser"), errors);
    check_id(security.run_as_group, &format!("{path}.runAsGroup"), errors);
    let privileged = security.privileged == Some(true);
    let added = security.capabilities.iter().flat_map(|capabilities| capabilities.add.iter().flatten());
    // As the API server: the short name of it passes.
    let sys_admin = added.clone().any(|name| name == "CAP_SYS_ADMIN");
    if security.allow_privilege_escalation == Some(false) {
        let path = format!("{path}.allowPrivilegeEscalation");
        if privileged {
            errors.invalid(
                path.clone(),
                false,
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        if sys_admin {
            errors.invalid(
                path,
                false,
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    let dropped = security.capabilities.iter().flat_map(|capabilities| capabilities.drop.iter().flatten());
    for (field, capabilities) in [("add", added.collect::<Vec<_>>()), ("drop", dropped.collect())] {
        for (index, name) in capabilities.into_iter().enumerate() {
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                errors.invalid(
                    format!("{path}.capabilities.{field}[{index}]"),
                    name,
                    "must be the name of a capability",
                );
            }
        }
    }
    if let Some(mount) = &security.proc_mount {
        let path = format!("{path}.procMount");
        errors.one_of(path.clone(), mount, &["Default", "Unmasked"]);
        if mount == "Unmasked" && spec.host_users != Some(false) {
            errors.invalid(path, mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    check_seccomp(security.seccomp_profile.as_ref(), &format!("{path}.seccompProfile"), errors);
    check_apparmor(security.app_armor_profile.as_ref(), &format!("{path}.appArmorProfile"), errors);
}

fn check_id(id: Option<i64>, path: &str, errors: &mut Errors) {
    if let Some(id) = id.filter(|id| !(0..=MAX_ID).contains(id)) {
        errors.invalid(path, id, "must be between 0 and 2147483647, inclusive");
    }
}

fn check_seccomp(profile: Option<&v1::SeccompProfile>, path: &str, errors: &mut Errors) {
    let Some(profile) = profile else { return };
    let file = profile.localhost_profile.as_deref().unwrap_or_default();
    errors.one_of(format!("{path}.type"), &profile.type_, &["Localhost", "RuntimeDefault", "Unconfined"]);
    if profile.type_ == "Localhost" {
        if file.is_empty() {
            errors.required(format!("{path}.localhostProfile"), "must be set when seccomp type is Localhost");
        } else {
            errors.form(format!("{path}.localhostProfile"), file, names::local_path);
        }
    } else if !file.is_empty() {
        errors.invalid(format!("{path}.localhostProfile"), file, "can only be set when seccomp type is Localhost");
    }
}

fn check_apparmor(profile: Option<&v1::AppArmorProfile>, path: &str, errors: &mut Errors) {
    let Some(profile) = profile else { return };
    let name = profile.localhost_profile.as_deref().unwrap_or_default();
    errors.one_of(format!("{path}.type"), &profile.type_, &["Localhost", "RuntimeDefault", "Unconfined"]);
    let field = format!("{path}.localhostProfile");
    if profile.type_ == "Localhost" {
        if name.trim().is_empty() {
            errors.required(field, "must be set when AppArmor type is Localhost");
        } else if name.trim() != name {
            errors.invalid(field, name, "must not be padded with whitespace");
        } else if name.len() > 4095 {
            errors.invalid(field, name, names::too_long(4095));
        }
    } else if !name.is_empty() {
        errors.invalid(field, name, "can only be set when AppArmor type is Localhost");
    }
}
