//! The images that the runtime in memory has, and those that it can pull.

use longshore_core::observed::Observation;
use longshore_core::ports::runtime::Image;

use super::FakeRuntime;

impl FakeRuntime {
    /// Makes an image present.
    pub fn has_image(&self, name: &str) {
        self.world().images.insert(name.to_owned());
    }

    /// The images that are there.
    pub fn images_there(&self) -> Vec<String> {
        self.world().images.iter().cloned().collect()
    }

    /// The writable layer of a container takes so many bytes.
    pub fn layer_takes(&self, id: &str, bytes: u64) {
        self.world().layers.insert(id.to_owned(), bytes);
    }

    /// From now on it mounts no images itself.
    pub fn mounts_no_images(&self) {
        self.world().mounts_no_images = true;
    }

    /// Makes an image one that can be pulled.
    pub fn can_pull(&self, name: &str) {
        self.world().pullable.insert(name.to_owned());
    }

    /// Makes an image one that can be pulled with that password alone.
    pub fn can_pull_with(&self, name: &str, password: &str) {
        self.can_pull(name);
        self.world().passwords.insert(name.to_owned(), password.to_owned());
    }
}

/// The image that something was made from.
pub(super) fn image_of(thing: &Observation) -> Option<&str> {
    match thing {
        Observation::Container(container) => Some(&container.image),
        Observation::Sandbox(_) | Observation::Unseen { .. } => None,
    }
}

/// An image by its name.
pub(super) fn image(reference: &str) -> Image {
    Image { id: format!("sha256:{reference}"), repo_digests: Vec::new(), user: String::new(), size: 1 }
}
