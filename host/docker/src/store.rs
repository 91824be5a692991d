//! What Docker keeps on the disk: images with whether they are used, removing one, and the size of writable layers. It must
//! not choose what goes.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use bollard::query_parameters::RemoveImageOptionsBuilder;
use longshore_core::labels;
use longshore_core::ports::runtime::{RuntimeError, StoredImage};

use crate::connection::{CALL, filters};
use crate::docker::Docker;
use crate::fault::Fault;
use crate::{pause, wire};

/// Time limit of a look through all writable layers, which Docker counts file by file.
const MEASURE: Duration = Duration::from_secs(300);

impl Docker {
    /// All images. One is in use when any container was made from it, by its ID or by a name that it has.
    pub(crate) async fn list_stored_images(&self) -> Result<Vec<StoredImage>, RuntimeError> {
        self.sweep_content_if_idle().await;
        // The images first: one that comes with a container in between is not in this list at all.
        let listed: Vec<wire::ImageSummary> =
            self.connection().ask(CALL, "/images/json").await.map_err(|fault| fault.during("list images"))?;
        let pinned = [self.pause_image(), pause::NAME.as_str()];
        let mut pinned_ids = Vec::new();
        for name in pinned {
            pinned_ids.extend(self.find_image(name).await?.map(|image| image.id));
        }
        let used = self.used_images().await?;
        let image = |summary: wire::ImageSummary| {
            let names = names_of(summary.repo_tags, summary.repo_digests);
            let id = summary.id?;
            Some(StoredImage {
                in_use: used.contains(&id) || names.iter().any(|name| used.contains(name)),
                pinned: pinned_ids.contains(&id),
                size: summary.size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
                names,
                id,
            })
        };
        Ok(listed.into_iter().filter_map(image).collect())
    }

    /// IDs and names that containers were made from, whoever made them, and IDs of images that those of this agent or of
    /// another on the same Docker mount.
    async fn used_images(&self) -> Result<HashSet<String>, RuntimeError> {
        let listed: Vec<wire::Summary> = self
            .connection()
            .ask_list(CALL, "/containers/json?all=true")
            .await
            .map_err(|fault| fault.during("list containers"))?;
        let mut used: HashSet<String> = HashSet::new();
        for summary in listed {
            let parse = |of: &BTreeMap<String, String>| labels::parse(of, of.get(labels::ROOT)?);
            let labels = summary.labels.as_ref().and_then(parse);
            used.extend(labels.into_iter().flat_map(|labels| labels.images));
            used.extend([summary.image_id, summary.image].into_iter().flatten());
        }
        Ok(used)
    }

    /// Takes an image's names away, the last of which takes the image with it. Docker refuses to take the last name of one
    /// that a container uses; so that such a one does not lose the others before, it is looked once more whether there
    /// is any.
    pub(crate) async fn remove_stored_image(&self, image: &StoredImage) -> Result<(), RuntimeError> {
        let used = self.used_images().await?;
        if used.contains(&image.id) || image.names.iter().any(|name| used.contains(name)) {
            let message = format!("image {} is used by a container", image.id);
            return Err(RuntimeError::Failed { operation: "remove image", message });
        }
        let by_id = [image.id.clone()];
        let names = if image.names.is_empty() { &by_id[..] } else { &image.names[..] };
        for name in names {
            let options = RemoveImageOptionsBuilder::default().build();
            let removed = self
                .connection()
                .call(CALL, |docker| {
                    let options = options.clone();
                    async move { docker.remove_image(name, Some(options), None).await }
                })
                .await;
            match removed {
                Ok(_) => {}
                // A digest goes with the last tag of its repository.
                Err(fault) if fault.is_absent() => {}
                Err(fault) => return Err(fault.during("remove image")),
            }
        }
        self.known().forget_images();
        Ok(())
    }

    /// Sizes of our containers' writable layers, or of one pod's.
    pub(crate) async fn measure_layers(&self, uid: Option<&str>) -> Result<BTreeMap<String, u64>, RuntimeError> {
        let mut ours = vec![format!("{}={}", labels::ROOT, self.root_id())];
        ours.extend(uid.map(|uid| format!("{}={uid}", labels::POD_UID)));
        let path = format!("/containers/json?all=true&size=true&filters={}", filters(&[("label", &ours)]));
        let listed: Result<Vec<wire::Summary>, Fault> = self.connection().ask_list(MEASURE, &path).await;
        let listed = listed.map_err(|fault| fault.during("measure containers"))?;
        let size = |summary: wire::Summary| {
            // Docker leaves the size out where a container has written nothing.
            let bytes = summary.size_rw.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
            Some((summary.id?, bytes))
        };
        Ok(listed.into_iter().filter_map(size).collect())
    }
}

/// Tags before digests: with a repository's last tag its digests go.
fn names_of(tags: Option<Vec<String>>, digests: Option<Vec<String>>) -> Vec<String> {
    let all = tags.into_iter().flatten().chain(digests.into_iter().flatten());
    all.filter(|name| !name.starts_with("<none>")).collect()
}
