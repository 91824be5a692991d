//! Images that nobody needs are removed: when their disk is full, when they were not used for long, and when the node needs
//! the space at once.
//!
//! As `pkg/kubelet/images/image_gc_manager.go`. Which ones go is decided in [`longshore_core::collect`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use longshore_core::collect::{self, Images, Policy};
use longshore_core::event::EventType;
use longshore_core::ports::events::EventSink;
use longshore_core::ports::runtime::{RuntimeError, StoredImage};
use tokio::sync::Mutex;

use crate::node::Shared;
use crate::usage;

/// How often it is looked (`ImageGCPeriod`).
const PERIOD: Duration = Duration::from_secs(300);

/// How images are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// When images go.
    pub policy: Policy,
    /// Whether any may go at all, also when the disk is needed at once.
    pub enabled: bool,
    /// How often it is looked.
    pub period: Duration,
}

impl Default for Options {
    /// No image ever goes.
    fn default() -> Self {
        let minimum_age = Duration::from_secs(120);
        let policy = Policy { high_percent: 100, low_percent: 99, minimum_age, maximum_age: None };
        Options { policy, enabled: false, period: PERIOD }
    }
}

/// Why images could not be collected.
#[derive(Debug, thiserror::Error)]
enum CollectError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("the size of the images' file system is not known")]
    Unknown,
    #[error("invalid capacity 0 on image filesystem")]
    NoCapacity,
    #[error("{}freed {freed} bytes space with errors in image deletion: {message}", asked(*.wanted))]
    NotRemoved {
        /// How many bytes were to be free; `None` where all unused images were to go.
        wanted: Option<u64>,
        freed: u64,
        message: String,
    },
    #[error("{0}")]
    NotEnough(String),
}

fn asked(wanted: Option<u64>) -> String {
    wanted.map_or_else(String::new, |wanted| format!("wanted to free {wanted} bytes, but "))
}

/// Removes images, and remembers when each was used.
pub(crate) struct Collector<'a> {
    shared: &'a Shared,
    begun: Instant,
    images: Mutex<Images>,
}

impl<'a> Collector<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        Collector { shared, begun: Instant::now(), images: Mutex::default() }
    }

    fn options(&self) -> &Options {
        &self.shared.options.images
    }

    /// Looks again and again, for ever.
    pub(crate) async fn run(&self) {
        if !self.options().enabled || self.options().policy.is_off() {
            return std::future::pending().await;
        }
        // Before every source has spoken it is not known which images are wanted.
        let mut known = self.shared.ports.views.static_pods();
        if known.wait_for(Option::is_some).await.is_err() {
            return std::future::pending().await;
        }
        let mut failed_before = false;
        loop {
            let failed = self.collect().await.err();
            if let Some(error) = &failed {
                tracing::warn!("images cannot be collected: {error}");
                // At the first time only numbers may be missing yet.
                if failed_before {
                    let message = error.to_string();
                    self.shared.ports.events.record_node(EventType::Warning, "ImageGCFailed", &message);
                }
            }
            failed_before = failed.is_some();
            tokio::time::sleep(self.options().period).await;
        }
    }

    async fn collect(&self) -> Result<(), CollectError> {
        let mut memory = self.images.lock().await;
        let policy = self.options().policy;
        let now = self.begun.elapsed();
        let mut images = self.look(&mut memory, now).await?;
        // Before the agent has watched for that long, it does not know.
        if let Some(age) = policy.maximum_age.filter(|age| now > *age) {
            let old = self.unwanted(memory.removable(&images, &policy, Some(age), now)).await?;
            self.remove(&old, None).await?;
            images.retain(|image| !old.iter().any(|gone| gone.id == image.id));
        }
        let disk = usage::of_node(self.shared).await.image_fs.ok_or(CollectError::Unknown)?;
        let Some(fullness) = collect::fullness(disk, &policy) else {
            let error = CollectError::NoCapacity;
            self.shared.ports.events.record_node(EventType::Warning, "InvalidDiskCapacity", &error.to_string());
            return Err(error);
        };
        let Some(wanted) = fullness.to_free else { return Ok(()) };
        let percent = fullness.percent;
        tracing::info!(percent, wanted, "the images' disk is fuller than it may be, removing images that are not used");
        let unused = self.unwanted(memory.removable(&images, &policy, None, now)).await?;
        let freed = self.remove(&unused, Some(wanted)).await?;
        if freed < wanted {
            let message = collect::not_enough(disk, percent, freed);
            self.shared.ports.events.record_node(EventType::Warning, "FreeDiskSpaceFailed", &message);
            return Err(CollectError::NotEnough(message));
        }
        Ok(())
    }

    /// Removes every image that is not used.
    pub(crate) async fn remove_unused(&self) {
        if !self.options().enabled {
            return;
        }
        let mut memory = self.images.lock().await;
        let now = self.begun.elapsed();
        let removed = async {
            let images = self.look(&mut memory, now).await?;
            let unused = self.unwanted(memory.removable(&images, &self.options().policy, None, now)).await?;
            self.remove(&unused, None).await
        };
        if let Err(error) = removed.await {
            tracing::warn!("unused images cannot be removed: {error}");
        }
    }

    async fn look(&self, memory: &mut Images, now: Duration) -> Result<Vec<StoredImage>, CollectError> {
        let images = self.shared.ports.runtime.stored_images().await?;
        memory.look(&images, now);
        Ok(images)
    }

    /// Leaves out what a pod that is here is yet to start, or mounts. The kubelet would remove and fetch it again.
    async fn unwanted(&self, images: Vec<&StoredImage>) -> Result<Vec<StoredImage>, CollectError> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let mut names: BTreeSet<String> = BTreeSet::new();
        let members = self.shared.roster.members();
        for pod in members.iter().filter(|member| !member.ended).map(|member| &member.pod) {
            let spec = pod.spec();
            let mounted = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.clone());
            names.extend(pod.containers().chain(pod.ephemeral_containers()).filter_map(|of| of.spec.image.clone()));
            names.extend(mounted);
        }
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        for name in names {
            // A name that is none cannot be that of an image.
            if longshore_core::credentials::parse_image(&name).is_ok() || name.starts_with("sha256:") {
                wanted.extend(self.shared.ports.runtime.image(&name).await?.map(|image| image.id));
            }
        }
        Ok(images.into_iter().filter(|image| !wanted.contains(&image.id)).cloned().collect())
    }

    /// Removes images in their order until enough is free, all where `wanted` says nothing. Says how much that is; one that
    /// cannot be removed does not keep the others.
    async fn remove(&self, images: &[StoredImage], wanted: Option<u64>) -> Result<u64, CollectError> {
        let (mut freed, mut errors) = (0u64, Vec::new());
        for image in images {
            if wanted.is_some_and(|wanted| freed >= wanted) {
                break;
            }
            tracing::info!(image = image.id, names = ?image.names, size = image.size, "removing an image to free space");
            match self.shared.ports.runtime.remove_image(image).await {
                Ok(()) => freed = freed.saturating_add(image.size),
                Err(error) => errors.push(error.to_string()),
            }
        }
        match errors.is_empty() {
            true => Ok(freed),
            false => Err(CollectError::NotRemoved { wanted, freed, message: format!("[{}]", errors.join(", ")) }),
        }
    }
}
