//! Image volumes: which images the mounts of a container need.
//!
//! As `getImageVolumes` of `pkg/kubelet/kuberuntime/kuberuntime_manager.go`. They are no [`super::VolumeSpec`]s: an image
//! comes when a container that mounts it is about to be made, as the container's own image does.

use k8s_openapi::api::core::v1;

use crate::pod::Pod;

/// A volume whose content is an image's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageVolume<'a> {
    /// Name of the volume in the pod's spec.
    pub volume: &'a str,
    /// The image, as the pod names it.
    pub reference: &'a str,
    /// `Always`, `IfNotPresent` or `Never`.
    pub policy: &'a str,
}

/// The image volumes that a container mounts, in order of the pod's volumes, each once.
pub fn mounted_images<'a>(pod: &'a Pod, container: &v1::Container) -> Vec<ImageVolume<'a>> {
    let mounts = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    let volumes = pod.spec().volumes.iter().flatten().filter(|volume| mounts(&volume.name));
    volumes
        .filter_map(|volume| {
            let source = volume.image.as_ref()?;
            let policy = source.pull_policy.as_deref().filter(|policy| !policy.is_empty());
            Some(ImageVolume {
                volume: &volume.name,
                reference: source.reference.as_deref().unwrap_or_default(),
                policy: policy.unwrap_or("IfNotPresent"),
            })
        })
        .collect()
}
