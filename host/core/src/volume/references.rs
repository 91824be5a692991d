//! Which objects a pod refers to, and what for. Looking them up is the loops' work.

use k8s_openapi::api::core::v1;

use crate::pod::Pod;

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
    /// What uses it: `volume "x"` or `container "c" env`.
    pub by: String,
    /// Whether a volume uses it; what variables refer to is read anew only when a container is made.
    pub for_volume: bool,
}

/// The objects that a pod's volumes and variables refer to, in order of the spec. One object may come several times.
pub fn references(pod: &Pod) -> Vec<ObjectReference> {
    let mut found = Vec::new();
    for volume in pod.spec().volumes.iter().flatten() {
        of_volume(volume, &mut found);
    }
    for container in pod.containers() {
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

fn of_volume(volume: &v1::Volume, found: &mut Vec<ObjectReference>) {
    let mut add = |kind, name: &str, optional: Option<bool>| {
        found.push(ObjectReference {
            kind,
            name: name.to_owned(),
            optional: optional.unwrap_or(false),
            by: format!("volume {:?}", volume.name),
            for_volume: true,
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
        found.push(ObjectReference {
            kind,
            name: name.to_owned(),
            optional: optional.unwrap_or(false),
            by: format!("container {:?} env", container.name),
            for_volume: false,
        });
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
