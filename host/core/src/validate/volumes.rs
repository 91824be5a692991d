//! A pod's volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

use super::pod::Seen;
use super::{Errors, names, resources};
use crate::quantity;

/// What a volume's content comes from, by the names of the fields; one in a valid volume.
pub fn volume_sources(volume: &v1::Volume) -> Vec<&'static str> {
    let given = [
        ("awsElasticBlockStore", volume.aws_elastic_block_store.is_some()),
        ("azureDisk", volume.azure_disk.is_some()),
        ("azureFile", volume.azure_file.is_some()),
        ("cephfs", volume.cephfs.is_some()),
        ("cinder", volume.cinder.is_some()),
        ("configMap", volume.config_map.is_some()),
        ("csi", volume.csi.is_some()),
        ("downwardAPI", volume.downward_api.is_some()),
        ("emptyDir", volume.empty_dir.is_some()),
        ("ephemeral", volume.ephemeral.is_some()),
        ("fc", volume.fc.is_some()),
        ("flexVolume", volume.flex_volume.is_some()),
        ("flocker", volume.flocker.is_some()),
        ("gcePersistentDisk", volume.gce_persistent_disk.is_some()),
        ("gitRepo", volume.git_repo.is_some()),
        ("glusterfs", volume.glusterfs.is_some()),
        ("hostPath", volume.host_path.is_some()),
        ("image", volume.image.is_some()),
        ("iscsi", volume.iscsi.is_some()),
        ("nfs", volume.nfs.is_some()),
        ("persistentVolumeClaim", volume.persistent_volume_claim.is_some()),
        ("photonPersistentDisk", volume.photon_persistent_disk.is_some()),
        ("portworxVolume", volume.portworx_volume.is_some()),
        ("projected", volume.projected.is_some()),
        ("quobyte", volume.quobyte.is_some()),
        ("rbd", volume.rbd.is_some()),
        ("scaleIO", volume.scale_io.is_some()),
        ("secret", volume.secret.is_some()),
        ("storageos", volume.storageos.is_some()),
        ("vsphereVolume", volume.vsphere_volume.is_some()),
    ];
    given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
}

/// Checks them and gives them by name.
pub(super) fn check<'a>(spec: &'a v1::PodSpec, errors: &mut Errors) -> BTreeMap<&'a str, &'a v1::Volume> {
    let mut seen = Seen::new();
    let mut by_name = BTreeMap::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("spec.volumes[{index}]");
        errors.required_form(format!("{path}.name"), &volume.name, names::dns_label);
        errors.unique(format!("{path}.name"), &volume.name, &mut seen);
        by_name.entry(volume.name.as_str()).or_insert(volume);
        for source in volume_sources(volume).iter().skip(1) {
            errors.forbidden(format!("{path}.{source}"), "may not specify more than 1 volume type");
        }
        check_sources(volume, &path, errors);
    }
    by_name
}

fn check_sources(volume: &v1::Volume, path: &str, errors: &mut Errors) {
    if let Some(source) = &volume.empty_dir {
        let path = format!("{path}.emptyDir");
        let medium = source.medium.as_deref().unwrap_or_default();
        if !medium.is_empty() && medium != "Memory" && !medium.starts_with("HugePages") {
            errors.one_of(format!("{path}.medium"), medium, &["Memory", "HugePages"]);
        }
        if let Some(limit) = &source.size_limit {
            resources::check_quantity(limit, &format!("{path}.sizeLimit"), errors);
        }
    }
    if let Some(source) = &volume.host_path {
        let path = format!("{path}.hostPath");
        if source.path.is_empty() {
            errors.required(format!("{path}.path"), "");
        } else {
            errors.form(format!("{path}.path"), &source.path, names::no_backsteps);
        }
        let words =
            ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];
        errors.one_of(format!("{path}.type"), source.type_.as_deref().unwrap_or_default(), &words);
    }
    if let Some(source) = &volume.config_map {
        let path = format!("{path}.configMap");
        errors.required_form(format!("{path}.name"), &source.name, names::dns_subdomain);
        check_mode(source.default_mode, &format!("{path}.defaultMode"), errors);
        check_items(source.items.as_deref(), &path, errors);
    }
    if let Some(source) = &volume.secret {
        let path = format!("{path}.secret");
        let name = source.secret_name.as_deref().unwrap_or_default();
        errors.required_form(format!("{path}.secretName"), name, names::dns_subdomain);
        check_mode(source.default_mode, &format!("{path}.defaultMode"), errors);
        check_items(source.items.as_deref(), &path, errors);
    }
    if let Some(source) = &volume.downward_api {
        let path = format!("{path}.downwardAPI");
        check_mode(source.default_mode, &format!("{path}.defaultMode"), errors);
        check_downward(source.items.as_deref(), &path, errors);
    }
    if let Some(source) = &volume.projected {
        check_projected(source, &format!("{path}.projected"), errors);
    }
    if let Some(source) = &volume.nfs {
        for (field, value) in [("server", &source.server), ("path", &source.path)] {
            if value.is_empty() {
                errors.required(format!("{path}.nfs.{field}"), "");
            }
        }
        if !source.path.is_empty() && !source.path.starts_with('/') {
            errors.invalid(format!("{path}.nfs.path"), &source.path, "must be an absolute path");
        }
    }
    if let Some(source) = &volume.image {
        if source.reference.as_deref().unwrap_or_default().is_empty() {
            errors.required(format!("{path}.image.reference"), "");
        }
        let policy = source.pull_policy.as_deref().unwrap_or_default();
        errors.one_of(format!("{path}.image.pullPolicy"), policy, &["", "Always", "IfNotPresent", "Never"]);
    }
}

fn check_projected<'a>(projected: &'a v1::ProjectedVolumeSource, path: &str, errors: &mut Errors) {
    check_mode(projected.default_mode, &format!("{path}.defaultMode"), errors);
    let mut files = Seen::new();
    for (index, source) in projected.sources.iter().flatten().enumerate() {
        let path = format!("{path}.sources[{index}]");
        let given = [
            ("secret", source.secret.is_some()),
            ("configMap", source.config_map.is_some()),
            ("downwardAPI", source.downward_api.is_some()),
            ("serviceAccountToken", source.service_account_token.is_some()),
            ("clusterTrustBundle", source.cluster_trust_bundle.is_some()),
            ("podCertificate", source.pod_certificate.is_some()),
        ];
        let given: Vec<&str> = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        if given.is_empty() {
            errors.required(path.clone(), "must specify a volume source");
        }
        for name in given.iter().skip(1) {
            errors.forbidden(format!("{path}.{name}"), "may not specify more than 1 volume type per source");
        }
        if let Some(source) = &source.config_map {
            errors.required_form(format!("{path}.configMap.name"), &source.name, names::dns_subdomain);
            check_items(source.items.as_deref(), &format!("{path}.configMap"), errors);
        }
        if let Some(source) = &source.secret {
            errors.required_form(format!("{path}.secret.name"), &source.name, names::dns_subdomain);
            check_items(source.items.as_deref(), &format!("{path}.secret"), errors);
        }
        if let Some(source) = &source.downward_api {
            check_downward(source.items.as_deref(), &format!("{path}.downwardAPI"), errors);
        }
        if let Some(source) = &source.service_account_token {
            errors.required_form(format!("{path}.serviceAccountToken.path"), &source.path, names::local_path);
        }
        let keys = |items: Option<&'a [v1::KeyToPath]>| items.unwrap_or_default().iter().map(|item| item.path.as_str());
        let config_map = source.config_map.iter().flat_map(|source| keys(source.items.as_deref()));
        let secret = source.secret.iter().flat_map(|source| keys(source.items.as_deref()));
        let downward = source.downward_api.iter().flat_map(|source| source.items.iter().flatten());
        let downward = downward.map(|item| item.path.as_str());
        for (field, paths) in [
            ("configMap", config_map.collect::<Vec<_>>()),
            ("secret", secret.collect()),
            ("downwardAPI", downward.collect()),
        ] {
            for (index, file) in paths.into_iter().enumerate().filter(|(_, file)| !file.is_empty()) {
                errors.unique(format!("{path}.{field}.items[{index}].path"), file, &mut files);
            }
        }
    }
}

fn check_items(items: Option<&[v1::KeyToPath]>, path: &str, errors: &mut Errors) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        if item.key.is_empty() {
            errors.required(format!("{path}.key"), "");
        }
        check_file(&item.path, &path, errors);
        check_mode(item.mode, &format!("{path}.mode"), errors);
    }
}

/// The path of a file in a volume: relative, inside, and not one of the atomic writer's own. Of several with one path the
/// last is the file.
fn check_file(file: &str, path: &str, errors: &mut Errors) {
    let path = format!("{path}.path");
    errors.required_form(path.clone(), file, names::local_path);
    if file.starts_with("..") && names::no_backsteps(file).is_none() {
        errors.invalid(path, file, "must not start with '..'");
    }
}

fn check_downward(items: Option<&[v1::DownwardAPIVolumeFile]>, path: &str, errors: &mut Errors) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        check_file(&item.path, &path, errors);
        check_mode(item.mode, &format!("{path}.mode"), errors);
        match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), None) => check_field(field, VOLUME_FIELDS, &format!("{path}.fieldRef"), errors),
            (None, Some(resource)) => {
                let path = format!("{path}.resourceFieldRef");
                if resource.container_name.as_deref().unwrap_or_default().is_empty() {
                    errors.required(format!("{path}.containerName"), "");
                }
                check_resource(resource, &path, errors);
            }
            (Some(_), Some(_)) => {
                errors.invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
            }
            (None, None) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
        }
    }
}

const VOLUME_FIELDS: &[&str] =
    &["metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "metadata.uid"];

/// Fields of the pod that an environment variable can hold.
pub(super) const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// A reference to a field of the pod.
pub(super) fn check_field(field: &v1::ObjectFieldSelector, fields: &[&str], path: &str, errors: &mut Errors) {
    let name = field.field_path.as_str();
    if name.is_empty() {
        return errors.required(format!("{path}.fieldPath"), "");
    }
    let key = name.strip_suffix("']").and_then(|name| name.split_once("['"));
    // The node's name as it was called in v1beta3.
    let name = if name == "spec.host" { "spec.nodeName" } else { name };
    match key {
        Some(("metadata.labels" | "metadata.annotations", key)) => {
            errors.form(format!("{path}.fieldPath"), key, |key| names::qualified_name(&key.to_lowercase()));
        }
        Some((other, _)) => {
            errors.invalid(format!("{path}.fieldPath"), other, "does not support subscript");
        }
        None => errors.one_of(format!("{path}.fieldPath"), name, fields),
    }
    errors.one_of(format!("{path}.apiVersion"), field.api_version.as_deref().unwrap_or("v1"), &["v1"]);
}

/// A reference to a request or limit.
pub(super) fn check_resource(reference: &v1::ResourceFieldSelector, path: &str, errors: &mut Errors) {
    let resource = reference.resource.as_str();
    if resource.is_empty() {
        return errors.required(format!("{path}.resource"), "");
    }
    let huge = |prefix: &str| resource.strip_prefix(prefix).is_some_and(|size| !size.is_empty());
    if !huge("limits.hugepages-") && !huge("requests.hugepages-") {
        let words = [
            "limits.cpu",
            "limits.ephemeral-storage",
            "limits.memory",
            "requests.cpu",
            "requests.ephemeral-storage",
            "requests.memory",
        ];
        errors.one_of(format!("{path}.resource"), resource, &words);
    }
    if let Some(divisor) = &reference.divisor {
        let path = format!("{path}.divisor");
        resources::check_quantity(divisor, &path, errors);
        let units: &[&str] = match resource.split_once('.') {
            Some((_, "cpu")) => &["1m", "1"],
            _ => &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"],
        };
        let unset = quantity::wide(&divisor.0, 3).is_none_or(|milli| milli == 0);
        if !unset && !units.contains(&quantity::canonical(divisor).0.as_str()) {
            let detail = format!("only divisor's values {} are supported with {resource}", units.join(", "));
            errors.warnings(|errors| errors.invalid(path, &divisor.0, detail));
        }
    }
}

fn check_mode(mode: Option<i32>, path: &str, errors: &mut Errors) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}
