//! The ConfigMaps and Secrets that a pod refers to, looked up. Also for who only says what would be done.

use longshore_core::pod::Pod;
use longshore_core::ports::objects::ObjectStore;
use longshore_core::volume::{self, ObjectKind, Objects, User};

/// An object that a pod refers to and that cannot be told to exist or not.
#[derive(Debug)]
pub struct Unknown {
    /// Who uses it.
    pub user: User,
    /// Its kind and name.
    pub object: (ObjectKind, String),
    /// What went wrong.
    pub message: String,
}

/// Looks them up, as far as they exist; and those that cannot be told to exist or not.
pub async fn look_up(pod: &Pod, store: &dyn ObjectStore) -> (Objects, Vec<Unknown>) {
    let namespace = &pod.id.namespace;
    let (mut objects, mut unknown) = (Objects::default(), Vec::new());
    for reference in volume::references(pod) {
        let found = match reference.kind {
            ObjectKind::ConfigMap if !objects.config_maps.contains_key(&reference.name) => {
                let found = store.config_map(namespace, &reference.name).await;
                found.map(|found| objects.config_maps.extend(found.map(|found| (reference.name.clone(), found))))
            }
            ObjectKind::Secret if !objects.secrets.contains_key(&reference.name) => {
                let found = store.secret(namespace, &reference.name).await;
                found.map(|found| objects.secrets.extend(found.map(|found| (reference.name.clone(), found))))
            }
            ObjectKind::ConfigMap | ObjectKind::Secret => Ok(()),
        };
        if let Err(error) = found {
            let object = (reference.kind, reference.name);
            unknown.push(Unknown { user: reference.user, object, message: error.to_string() });
        }
    }
    (objects, unknown)
}
