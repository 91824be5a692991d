//! Bringing in what a container is made from: the images of the volumes that it mounts, then its own.
//!
//! As `EnsureImageExists` of `pkg/kubelet/images/image_manager.go`. A volume's image is the pod's, so its events are too; that
//! it cannot be had is told of the container that mounts it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1;
use longshore_core::backoff::{self, Policy};
use longshore_core::credentials::access::{ObjectId, Owner};
use longshore_core::event::EventType;
use longshore_core::pod::Pod;
use longshore_core::ports::runtime::Image;
use longshore_core::{credentials, volume};

use super::Step;
use crate::background;
use crate::inbox::{Failure, Fetched};
use crate::worker::Worker;

/// How often images are looked for while their pulls are backed off: as the kubelet's workers come round (`backOffPeriod`).
const LOOK: Duration = Duration::from_secs(10);

/// An image that a container needs.
struct Wanted {
    reference: String,
    policy: String,
    /// Name of the volume that it is for; `None` for the container's own.
    volume: Option<String>,
}

/// [`longshore_core::action::Action::EnsureImage`].
pub(super) async fn ensure(worker: &mut Worker, container: &str) -> Step {
    let Some(spec) = worker.pod.container(container).map(|container| container.spec) else { return Step::Waits };
    for wanted in wanted(&worker.pod, spec) {
        let had = have(worker, container, &wanted).await;
        if !matches!(had, Step::Done) {
            return had;
        }
    }
    Step::Done
}

fn wanted(pod: &Pod, container: &v1::Container) -> Vec<Wanted> {
    let of_volumes = volume::mounted_images(pod, container).into_iter().map(|of| Wanted {
        reference: of.reference.to_owned(),
        policy: of.policy.to_owned(),
        volume: Some(of.volume.to_owned()),
    });
    let own = Wanted {
        reference: container.image.clone().unwrap_or_default(),
        policy: container.image_pull_policy.clone().unwrap_or_else(|| "IfNotPresent".to_owned()),
        volume: None,
    };
    of_volumes.chain([own]).collect()
}

impl Worker {
    /// When it is to be looked whether images have come in another way while their pulls are backed off, by `docker load` say;
    /// `None` where no pull is.
    pub(crate) fn images_in(&self) -> Option<Duration> {
        let looked = self.looked_for_images.map_or(Duration::ZERO, |at| LOOK.saturating_sub(at.elapsed()));
        (!self.backed_off_images().is_empty()).then_some(looked)
    }

    /// Looks for them: one that is there, and for the pod, is used, whatever its back-off says.
    pub(crate) async fn look_for_images(&mut self) {
        self.looked_for_images = Some(Instant::now());
        for reference in self.backed_off_images() {
            if let Ok(Some(image)) = self.shared.ports.runtime.image(&reference).await
                && may_use(self, &reference, &image).await
            {
                self.record.backoffs.remove(&backoff::image(&reference));
            }
        }
    }

    /// The next start of a container looks for its images again.
    pub(crate) fn forget_images(&mut self, container: &str) {
        self.images.retain(|(name, _), _| name != container);
    }

    /// The images whose pulls are backed off, and that would be used if they were there.
    fn backed_off_images(&self) -> BTreeSet<String> {
        let is_over = self.pod.deletion.is_some() || self.record.terminal.is_some();
        if is_over || !self.record.backoffs.keys().any(|key| backoff::image_of(key).is_some()) {
            return BTreeSet::new();
        }
        let now = jiff::Timestamp::now();
        let containers = self.pod.containers().chain(self.pod.ephemeral_containers());
        let wanted = containers.flat_map(|of| wanted(&self.pod, of.spec));
        let wanted = wanted.filter(|wanted| {
            let backoff = self.record.backoffs.get(&backoff::image(&wanted.reference));
            backoff.is_some_and(|backoff| backoff.is_waiting(Policy::IMAGE_PULL, now))
        });
        let (always, others): (Vec<_>, Vec<_>) = wanted.partition(|wanted| wanted.policy == "Always");
        let mut found: BTreeSet<String> = others.into_iter().map(|wanted| wanted.reference).collect();
        found.retain(|reference| !always.iter().any(|wanted| wanted.reference == *reference));
        found
    }
}

async fn have(worker: &mut Worker, container: &str, wanted: &Wanted) -> Step {
    let Wanted { reference, policy, volume } = wanted;
    let key = (container.to_owned(), reference.clone());
    let about = volume.is_none().then_some(container);
    if !worker.images.contains_key(&key) {
        if let Err(message) = credentials::parse_image(reference) {
            return failed(worker, container, about, &Failure { reason: "InvalidImageName", message });
        }
        let found = match policy.as_str() {
            "Always" => None,
            _ => match worker.shared.ports.runtime.image(reference).await {
                Ok(found) => found,
                Err(error) => {
                    let message = format!("Failed to inspect image {reference:?}: {error}");
                    return failed(worker, container, about, &Failure { reason: "ImageInspectError", message });
                }
            },
        };
        let usable = match found {
            Some(image) => {
                let is_for_it = may_use(worker, reference, &image).await;
                is_for_it.then_some(image)
            }
            None => None,
        };
        let Some(image) = usable else {
            // That it is there is not told to whom it is not for.
            if policy == "Never" {
                let message = format!("Container image {reference:?} is not present with pull policy of Never");
                return failed(worker, container, about, &Failure { reason: "ErrImageNeverPull", message });
            }
            let secrets = pull_secrets(worker).await;
            background::pull(worker, container, reference, volume.as_deref(), &secrets);
            return Step::Waits;
        };
        let mut message = format!("Container image {reference:?} already present on machine");
        if worker.shared.access.is_on() {
            message.push_str(" and can be accessed by the pod");
        }
        worker.event(about, EventType::Normal, "Pulled", &message);
        worker.record.backoffs.remove(&backoff::image(reference));
        worker.images.insert(key.clone(), image);
    }
    match (volume, worker.images.get(&key).cloned()) {
        (Some(volume), Some(image)) => unpacked(worker, container, volume, reference, &image).await,
        _ => Step::Done,
    }
}

/// Sees that a volume's image can be mounted: by the runtime, or because its files are there.
async fn unpacked(worker: &mut Worker, container: &str, volume: &str, reference: &str, image: &Image) -> Step {
    let there = match worker.shared.ports.runtime.mounts_images().await {
        Ok(true) => Ok(true),
        Ok(false) => {
            let mounted = worker.shared.ports.files.image_volume(&worker.pod.id, volume, &image.id).await;
            mounted.map(|place| place.is_some()).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    match there {
        Ok(true) => Step::Done,
        Ok(false) => {
            background::unpack(worker, Fetched::new(container, reference, Some(volume)), image);
            Step::Waits
        }
        Err(message) => not_mounted(worker, container, &message),
    }
}

/// A volume's image that is there and cannot be mounted.
pub(crate) fn not_mounted(worker: &mut Worker, container: &str, message: &str) -> Step {
    worker.event(Some(container), EventType::Warning, "Failed", &format!("Error: {message}"));
    worker.failed(&format!("create/{container}"), "CreateContainerError", message);
    Step::Waits
}

/// An image that cannot be had without any pull: looked for again as anything that failed, not as a pull.
fn failed(worker: &mut Worker, container: &str, about: Option<&str>, failure: &Failure) -> Step {
    let event = match failure.reason {
        "ErrImageNeverPull" => "ErrImageNeverPull",
        "InvalidImageName" | "ImageInspectError" => "InspectFailed",
        _ => "Failed",
    };
    worker.event(about, EventType::Warning, event, &failure.message);
    worker.event(Some(container), EventType::Warning, "Failed", &format!("Error: {}", failure.reason));
    worker.failed(&format!("create/{container}"), failure.reason, &failure.message);
    Step::Waits
}

/// The pod's pull secrets for a pull; of those that are not there it is told.
async fn pull_secrets(worker: &Worker) -> Vec<Arc<v1::Secret>> {
    let (secrets, missing) = find_secrets(worker).await;
    if !missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        worker.event(None, EventType::Warning, "FailedToRetrieveImagePullSecret", &message);
    }
    secrets
}

/// The pod's pull secrets, and the names of those that are not there.
async fn find_secrets(worker: &Worker) -> (Vec<Arc<v1::Secret>>, Vec<String>) {
    let (mut secrets, mut missing) = (Vec::new(), Vec::new());
    for name in volume::pull_secrets(&worker.pod) {
        match worker.store().secret(&worker.pod.id.namespace, &name).await {
            Ok(Some(secret)) => secrets.push(secret),
            Ok(None) => missing.push(name),
            Err(error) => tracing::warn!(pod = %worker.pod.id, "{error}"),
        }
    }
    (secrets, missing)
}

/// Whether an image that is there is for the pod, as it is.
async fn may_use(worker: &Worker, reference: &str, image: &Image) -> bool {
    let secrets = async {
        let (secrets, _) = find_secrets(worker).await;
        credentials::for_image(reference, &secrets).into_iter().map(|found| found.owner).collect::<Vec<_>>()
    };
    worker.shared.access.may_use(reference, &image.id, secrets, account(worker)).await
}

/// The pod's ServiceAccount, in whose name a credential provider may have given credentials.
async fn account(worker: &Worker) -> Option<Owner> {
    let name = worker.pod.spec().service_account_name.clone().filter(|name| !name.is_empty())?;
    let namespace = worker.pod.id.namespace.clone();
    let found = worker.store().service_account(&namespace, &name).await.ok()??;
    let uid = found.metadata.uid.unwrap_or_default();
    Some(Owner::ServiceAccount(ObjectId { namespace, name, uid }))
}

/// The images of the volumes that a container mounts, by volume, and where their files are, where the runtime does not mount
/// them itself.
pub(super) async fn of_volumes(
    worker: &Worker,
    container: &v1::Container,
) -> Result<(BTreeMap<String, String>, BTreeMap<String, PathBuf>), String> {
    let (mut ids, mut places) = (BTreeMap::new(), BTreeMap::new());
    for of in volume::mounted_images(&worker.pod, container) {
        let key = (container.name.clone(), of.reference.to_owned());
        let image = worker.images.get(&key).ok_or_else(|| format!("the image of volume {:?} went away", of.volume))?;
        if !worker.shared.ports.runtime.mounts_images().await.map_err(|error| error.to_string())? {
            let place = worker.shared.ports.files.image_volume(&worker.pod.id, of.volume, &image.id).await;
            let place = place.map_err(|error| error.to_string())?;
            let place = place.ok_or_else(|| format!("the files of volume {:?} went away", of.volume))?;
            places.insert(of.volume.to_owned(), place);
        }
        ids.insert(of.volume.to_owned(), image.id.clone());
    }
    Ok((ids, places))
}
