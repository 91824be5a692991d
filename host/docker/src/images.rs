//! Images: looking, pulling, and bringing in the pause image. It must not decide when to pull.

use std::collections::HashMap;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::query_parameters::{CreateImageOptionsBuilder, ImportImageOptionsBuilder};
use futures::StreamExt;
use longshore_core::cluster::node_status::NodeImage;
use longshore_core::credentials::{ImageName, parse_image};
use longshore_core::ports::runtime::{Image, PullError, PullProgress, RegistryCredentials, RuntimeError};
use tokio::time::Instant;

use crate::config::{config_credentials, config_files};
use crate::connection::{CALL, encode, speaks_otherwise};
use crate::docker::Docker;
use crate::fault::Fault;
use crate::{names, pause, wire};

/// Layers of an image are at most 127 in Docker's stores; what claims more is not summed up.
const LAYERS: usize = 1024;

impl Docker {
    pub(crate) async fn find_image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        let failed = |message| RuntimeError::Failed { operation: "inspect image", message };
        let path = if names::is_image_id(reference) {
            encode(reference)
        } else {
            // Checked, and taken as the path that it is: Docker does not decode slashes here.
            parse_image(reference).map_err(failed)?;
            reference.to_owned()
        };
        match self.connection().ask::<wire::Image>(CALL, &format!("/images/{path}/json")).await {
            Ok(found) => Ok(Some(Image {
                id: found.id.ok_or_else(|| failed("an image without an ID".to_owned()))?,
                repo_digests: found.repo_digests.unwrap_or_default(),
                user: found.config.and_then(|config| config.user).unwrap_or_default(),
                size: found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
            })),
            Err(fault) if fault.is_absent() => Ok(None),
            Err(fault) => Err(fault.during("inspect image")),
        }
    }

    /// All images, with the names that they go by.
    pub(crate) async fn all_images(&self) -> Result<Vec<NodeImage>, RuntimeError> {
        let listed: Vec<wire::ImageSummary> =
            self.connection().ask(CALL, "/images/json").await.map_err(|fault| fault.during("list images"))?;
        let image = |summary: wire::ImageSummary| {
            let names = summary.repo_digests.into_iter().flatten().chain(summary.repo_tags.into_iter().flatten());
            NodeImage {
                names: names.filter(|name| !name.starts_with("<none>")).collect(),
                size: summary.size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
            }
        };
        Ok(listed.into_iter().map(image).collect())
    }

    pub(crate) async fn fetch_image(
        &self,
        reference: &str,
        credentials: Option<&RegistryCredentials>,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<Image, PullError> {
        let name = parse_image(reference).map_err(|message| PullError::Failed { message })?;
        // A tag besides a digest says nothing; without either, Docker would pull every tag.
        let tag = name.digest.clone().or_else(|| name.tag.clone()).unwrap_or_else(|| "latest".to_owned());
        let options = CreateImageOptionsBuilder::default().from_image(&name.place()).tag(&tag).build();
        let credentials = credentials.map(|credentials| for_docker(&name, credentials));
        let session =
            self.connection().session().await.map_err(|fault| PullError::Runtime(fault.during("pull image")))?;
        let mut messages = session.client.create_image(Some(options), None, credentials).boxed();
        let stall = self.options().pull_stall;
        let mut layers = Layers::default();
        let mut moved = Instant::now();
        loop {
            let message = match tokio::time::timeout_at(moved + stall, messages.next()).await {
                Ok(None) => break,
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => {
                    let fault = Fault::from_bollard(error, &self.connection().name);
                    if speaks_otherwise(&fault) {
                        self.connection().forget_session();
                    }
                    return Err(pull_error(fault));
                }
                Err(_) => return Err(stalled(reference, stall, layers.progress())),
            };
            let detail = message.progress_detail.unwrap_or_default();
            let status = message.status.unwrap_or_default();
            if layers.take(message.id.unwrap_or_default(), &status, detail.current, detail.total) {
                moved = Instant::now();
                progress(layers.progress());
            } else if moved.elapsed() >= stall {
                // Words keep coming ("Retrying in 5 seconds"), but nothing moves.
                return Err(stalled(reference, stall, layers.progress()));
            }
        }
        self.known().forget_images();
        let found = self.find_image(&format!("{}{}", name.place(), suffix(&name))).await?;
        found.ok_or_else(|| PullError::Failed { message: format!("Docker pulled {reference}, but does not have it") })
    }

    /// The image that sandboxes are made of.
    pub(crate) fn pause_image(&self) -> &str {
        self.options().pause_image.as_deref().unwrap_or(&pause::NAME)
    }

    /// Brings in the pause image. Whoever waits for another's bringing looks whether it is there by then.
    pub(crate) async fn bring_pause_image(&self) -> Result<(), RuntimeError> {
        let _alone = self.pause().lock().await;
        let name = self.pause_image();
        if self.find_image(name).await?.is_some() {
            return Ok(());
        }
        let failed = |message| RuntimeError::Failed { operation: "bring in the pause image", message };
        if self.options().pause_image.is_none() {
            let archive = pause::archive().map_err(|error| failed(error.to_string()))?;
            match self.load(archive).await {
                // Another agent on this daemon was quicker.
                Err(Fault::Answer { message, .. }) if message.contains("already exists") => {}
                loaded => loaded.map_err(|fault| fault.during("load the pause image"))?,
            }
            tracing::info!(image = name, "loaded the pause image into Docker");
            return Ok(());
        }
        let image = parse_image(name).map_err(failed)?;
        let files = config_files(self.options().config_dir.as_deref());
        let found = tokio::task::spawn_blocking(move || config_credentials(&files, &image)).await.unwrap_or_default();
        let mut tries: Vec<Option<RegistryCredentials>> = found.into_iter().map(Some).collect();
        if tries.is_empty() {
            tries.push(None);
        }
        let mut last = String::new();
        for credentials in tries {
            match self.fetch_image(name, credentials.as_ref(), &|_| {}).await {
                Ok(_) => return Ok(()),
                Err(PullError::Runtime(error)) => return Err(error),
                Err(error) => last = error.to_string(),
            }
        }
        Err(failed(format!("pulling {name}: {last}")))
    }

    async fn load(&self, archive: Vec<u8>) -> Result<(), Fault> {
        let options = ImportImageOptionsBuilder::default().quiet(true).build();
        let archive = bytes::Bytes::from(archive);
        self.connection()
            .call(CALL, |docker| {
                let (options, archive) = (options.clone(), archive.clone());
                async move {
                    let mut messages = docker.import_image(options, bollard::body_full(archive), None).boxed();
                    while let Some(message) = messages.next().await {
                        message?;
                    }
                    Ok(())
                }
            })
            .await
    }
}

fn suffix(name: &ImageName) -> String {
    match (&name.digest, &name.tag) {
        (Some(digest), _) => format!("@{digest}"),
        (None, Some(tag)) => format!(":{tag}"),
        (None, None) => String::new(),
    }
}

fn for_docker(name: &ImageName, credentials: &RegistryCredentials) -> DockerCredentials {
    let serveraddress = match name.registry.as_str() {
        "docker.io" => "https://index.docker.io/v1/".to_owned(),
        registry => registry.to_owned(),
    };
    let serveraddress = Some(serveraddress);
    match credentials {
        RegistryCredentials::Basic { username, password } => DockerCredentials {
            username: Some(username.clone()),
            password: Some(password.clone()),
            serveraddress,
            ..Default::default()
        },
        RegistryCredentials::IdentityToken(token) => {
            DockerCredentials { identitytoken: Some(token.clone()), serveraddress, ..Default::default() }
        }
    }
}

fn stalled(reference: &str, stall: Duration, so_far: PullProgress) -> PullError {
    let PullProgress { current, total } = so_far;
    let seconds = stall.as_secs();
    let message =
        format!("pulling {reference}: nothing moved for {seconds} s, given up after {current} of {total} bytes");
    PullError::Failed { message }
}

/// Sorts a failed pull. Docker gives the registry's and the network's words in one text, so that is what there is. Only what a
/// gateway says for a registry is one that is unavailable (`filterHTTPError` of `pkg/kubelet/dockershim/docker_image.go`).
fn pull_error(fault: Fault) -> PullError {
    const UNAVAILABLE: [&str; 9] = [
        "502 bad gateway",
        "503 service unavailable",
        "504 gateway",
        "http 502 ",
        "http 503 ",
        "http 504 ",
        "status code 502",
        "status code 503",
        "status code 504",
    ];
    match fault {
        Fault::Answer { message, .. } => {
            let lower = message.to_ascii_lowercase();
            if UNAVAILABLE.iter().any(|sign| lower.contains(sign)) {
                PullError::RegistryUnavailable { message }
            } else {
                PullError::Failed { message }
            }
        }
        other => PullError::Runtime(other.during("pull image")),
    }
}

/// Sums up the messages of a pull.
#[derive(Default)]
struct Layers {
    layers: HashMap<String, Layer>,
}

#[derive(Default)]
struct Layer {
    word: String,
    at: i64,
    current: u64,
    total: u64,
}

impl Layers {
    /// Takes in one message; returns whether anything moved by it.
    fn take(&mut self, id: String, status: &str, current: Option<i64>, total: Option<i64>) -> bool {
        if status.starts_with("Retrying in") || (self.layers.len() >= LAYERS && !self.layers.contains_key(&id)) {
            return false;
        }
        let layer = self.layers.entry(id).or_default();
        let at = current.unwrap_or_default();
        let moved = layer.word != status || layer.at != at;
        layer.at = at;
        status.clone_into(&mut layer.word);
        match status {
            "Downloading" => {
                layer.current = u64::try_from(at).unwrap_or_default();
                layer.total = total.and_then(|total| u64::try_from(total).ok()).unwrap_or(layer.total);
            }
            "Download complete" | "Verifying Checksum" | "Pull complete" | "Extracting" => layer.current = layer.total,
            _ => {}
        }
        moved
    }

    fn progress(&self) -> PullProgress {
        self.layers.values().fold(PullProgress::default(), |sum, layer| PullProgress {
            current: sum.current.saturating_add(layer.current),
            total: sum.total.saturating_add(layer.total),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(message: &str) -> bool {
        let fault = Fault::Answer { status: 500, message: message.to_owned() };
        matches!(pull_error(fault), PullError::RegistryUnavailable { .. })
    }

    #[test]
    fn a_registry_that_is_away_behind_its_gateway() {
        assert!(sorted("received unexpected HTTP status: 503 Service Unavailable"));
        assert!(sorted("error parsing HTTP 504 response body: invalid character '<' looking for beginning of value"));
        assert!(sorted("failed to copy: httpReadSeeker: failed open: unexpected status code 502 Bad Gateway"));
        assert!(!sorted("Get \"http://localhost:5/v2/\": dial tcp 127.0.0.1:5: connect: connection refused"));
        assert!(!sorted("Get \"https://r.example/v2/\": dial tcp: lookup r.example: no such host"));
        assert!(!sorted("manifest for localhost:5000/a:b not found: manifest unknown: manifest unknown"));
        assert!(!sorted("pull access denied for x, repository does not exist or may require 'docker login'"));
    }

    #[test]
    fn what_moves_and_what_does_not() {
        let mut layers = Layers::default();
        let mut take = |id: &str, status: &str, current, total| layers.take(id.to_owned(), status, current, total);
        assert!(take("a", "Pulling fs layer", None, None));
        assert!(take("a", "Downloading", Some(5), Some(10)));
        assert!(!take("a", "Downloading", Some(5), Some(10)));
        assert!(!take("a", "Retrying in 5 seconds", None, None));
        assert!(take("b", "Downloading", Some(-1), Some(-7)));
        assert!(take("a", "Download complete", None, None));
        assert_eq!(layers.progress(), PullProgress { current: 10, total: 10 });
    }
}
