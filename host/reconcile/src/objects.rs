//! The ConfigMaps and Secrets that a pod refers to, looked up. Also for who only says what would be done.

use longshore_core::pod::Pod;
use longshore_core::ports::objects::{ObjectError, ObjectStore};
use longshore_core::volume::{self, ObjectKind, Objects};

/// An object that a pod refers to and that cannot be told to exist or not.
#[derive(Debug)]
pub struct Unknown {
    /// The volume that it is for; `None` for a variable.
    pub volume: Option<String>,
    /// What went wrong.
    pub message: String,
}

/// Looks them up, as far as they exist.
///
/// # Errors
/// One of them cannot be told to exist or not.
pub async fn look_up(pod: &Pod, store: &dyn ObjectStore) -> Result<Objects, Unknown> {
    let namespace = &pod.id.namespace;
    let mut objects = Objects::default();
    for reference in volume::references(pod) {
        let unknown = |error: ObjectError| Unknown { volume: reference.volume.clone(), message: error.to_string() };
        match reference.kind {
            ObjectKind::ConfigMap if !objects.config_maps.contains_key(&reference.name) => {
                let found = store.config_map(namespace, &reference.name).await.map_err(unknown)?;
                objects.config_maps.extend(found.map(|found| (reference.name.clone(), found)));
            }
            ObjectKind::Secret if !objects.secrets.contains_key(&reference.name) => {
                let found = store.secret(namespace, &reference.name).await.map_err(unknown)?;
                objects.secrets.extend(found.map(|found| (reference.name.clone(), found)));
            }
            ObjectKind::ConfigMap | ObjectKind::Secret => {}
        }
    }
    Ok(objects)
}
