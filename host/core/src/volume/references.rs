//! Which objects a pod refers to, and what for. Looking them up is the loops' work.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1;

use crate::pod::Pod;
use crate::ports::objects::{CertificateQuery, TokenQuery, TrustBundleQuery};

/// What kind of object is referred to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

impl ObjectKind {
    /// The kind as the kubelet's messages have it: `configmap`, `secret`.
    pub fn as_str(self) -> &'static str {
        match self {
            ObjectKind::ConfigMap => "configmap",
            ObjectKind::Secret => "secret",
        }
    }
}

/// A reference to an object of the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectReference {
    /// What kind of object it is.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
    /// Whether the pod does without it.
    pub optional: bool,
    /// Who uses it.
    pub user: User,
}

/// What of a pod uses an object, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A volume.
    Volume(String),
    /// A container, for its variables.
    Container(String),
}

/// The volumes that some container uses, in order of the spec. The others are not made, and nothing is waited for to make them
/// (`GetPodVolumeNames` of `pkg/volume/util`).
pub fn used(pod: &Pod) -> impl Iterator<Item = &v1::Volume> {
    let containers = pod.containers().chain(pod.ephemeral_containers());
    let names: BTreeSet<&str> = containers.flat_map(|container| names_used(container.spec)).collect();
    pod.spec().volumes.iter().flatten().filter(move |volume| names.contains(volume.name.as_str()))
}

fn names_used(container: &v1::Container) -> impl Iterator<Item = &str> {
    let mounts = container.volume_mounts.iter().flatten().map(|mount| mount.name.as_str());
    mounts.chain(container.volume_devices.iter().flatten().map(|device| device.name.as_str()))
}

/// The objects that the volumes that a pod's containers use, and their variables refer to, in order of the spec. One object may
/// come several times.
pub fn references(pod: &Pod) -> Vec<ObjectReference> {
    of_volumes_and_variables(pod, used(pod))
}

/// The same with all its volumes: those that the API server looks at.
pub fn named(pod: &Pod) -> Vec<ObjectReference> {
    of_volumes_and_variables(pod, pod.spec().volumes.iter().flatten())
}

fn of_volumes_and_variables<'a>(pod: &Pod, volumes: impl Iterator<Item = &'a v1::Volume>) -> Vec<ObjectReference> {
    let mut found = Vec::new();
    for volume in volumes {
        of_volume(volume, &mut found);
    }
    for container in pod.containers().chain(pod.ephemeral_containers()) {
        of_container(container.spec, &mut found);
    }
    found.retain(|reference| !reference.name.is_empty());
    found
}

/// Names of the Secrets in `imagePullSecrets`.
pub fn pull_secrets(pod: &Pod) -> Vec<String> {
    let names = pod.spec().image_pull_secrets.iter().flatten().map(|reference| reference.name.clone());
    names.filter(|name| !name.is_empty()).collect()
}

/// Something that the API server issues for a source of a projected volume.
#[derive(Clone, Debug, PartialEq)]
pub struct IssuedReference {
    /// Name of the volume.
    pub volume: String,
    /// Index of the source in the volume.
    pub index: usize,
    /// What is asked for.
    pub kind: IssuedKind,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum IssuedKind {
    /// `serviceAccountToken`.
    Token(TokenQuery),
    /// `clusterTrustBundle`.
    TrustBundles(TrustBundleQuery),
    /// `podCertificate`.
    Certificate(CertificateQuery),
}

/// The pod's ServiceAccount, `default` where it names none.
pub fn service_account(pod: &Pod) -> String {
    let spec = pod.spec();
    let named = spec.service_account_name.clone().or_else(|| spec.service_account.clone());
    named.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned())
}

/// What the API server has to issue for the pod's projected volumes, in order of the spec.
pub fn issued_references(pod: &Pod) -> Vec<IssuedReference> {
    let mut found = Vec::new();
    for volume in used(pod) {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for (index, source) in sources.enumerate() {
            let kind = if let Some(token) = &source.service_account_token {
                IssuedKind::Token(TokenQuery {
                    service_account: service_account(pod),
                    audience: token.audience.clone().unwrap_or_default(),
                    expiration_seconds: token.expiration_seconds.unwrap_or(3600),
                    kept: true,
                })
            } else if let Some(bundle) = &source.cluster_trust_bundle {
                IssuedKind::TrustBundles(match (&bundle.name, &bundle.signer_name) {
                    (Some(name), _) => TrustBundleQuery::Name(name.clone()),
                    (None, signer) => TrustBundleQuery::Signer {
                        signer: signer.clone().unwrap_or_default(),
                        selector: bundle.label_selector.clone(),
                    },
                })
            } else if let Some(certificate) = &source.pod_certificate {
                let (volume, source) = (volume.name.clone(), certificate.clone());
                IssuedKind::Certificate(CertificateQuery { volume, index, source })
            } else {
                continue;
            };
            found.push(IssuedReference { volume: volume.name.clone(), index, kind });
        }
    }
    found
}

/// Name of the claim behind a volume: the one that it names, or the one that is made for it (`ephemeral`).
pub fn claim_of(pod: &Pod, volume: &v1::Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.id.name, volume.name)),
        (None, None) => None,
    }
}

fn of_volume(volume: &v1::Volume, found: &mut Vec<ObjectReference>) {
    let mut add = |kind, name: &str, optional: Option<bool>| {
        found.push(ObjectReference {
            kind,
            name: name.to_owned(),
            optional: optional.unwrap_or(false),
            user: User::Volume(volume.name.clone()),
        });
    };
    if let Some(source) = &volume.config_map {
        add(ObjectKind::ConfigMap, &source.name, source.optional);
    }
    if let Some(source) = &volume.secret {
        add(ObjectKind::Secret, source.secret_name.as_deref().unwrap_or_default(), source.optional);
    }
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        if let Some(source) = &source.config_map {
            add(ObjectKind::ConfigMap, &source.name, source.optional);
        }
        if let Some(source) = &source.secret {
            add(ObjectKind::Secret, &source.name, source.optional);
        }
    }
}

fn of_container(container: &v1::Container, found: &mut Vec<ObjectReference>) {
    let mut add = |kind, name: &str, optional: Option<bool>| {
        let user = User::Container(container.name.clone());
        found.push(ObjectReference { kind, name: name.to_owned(), optional: optional.unwrap_or(false), user });
    };
    for source in container.env_from.iter().flatten() {
        if let Some(reference) = &source.config_map_ref {
            add(ObjectKind::ConfigMap, &reference.name, reference.optional);
        }
        if let Some(reference) = &source.secret_ref {
            add(ObjectKind::Secret, &reference.name, reference.optional);
        }
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        if let Some(reference) = &source.config_map_key_ref {
            add(ObjectKind::ConfigMap, &reference.name, reference.optional);
        }
        if let Some(reference) = &source.secret_key_ref {
            add(ObjectKind::Secret, &reference.name, reference.optional);
        }
    }
}
