//! The files of an image: whether Docker mounts them itself (API 1.48), and reading them where it cannot.
//!
//! They are read from a container that is made for that, never started, and removed at the end. It carries a label of its
//! own and not our root's, so that nobody takes it for a part of a pod. What Docker puts into every container comes with
//! them: `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of the image itself cannot be had in this way.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig};
use futures::StreamExt;
use futures::stream;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use longshore_core::ports::runtime::{ImageFiles, RuntimeError};
use tokio::sync::mpsc;

use crate::connection::{ASK, CALL, filters};
use crate::docker::Docker;
use crate::fault::Fault;
use crate::wire;

/// Marks the containers that files are read from.
const CONTENT: &str = "dev.longshore.content";
/// The next piece has to come within this time.
const SILENCE: Duration = CALL;
/// Pieces that wait for a reader that is slower than the daemon.
const PIECES: usize = 4;
/// What the daemon puts into a container's root (`setupInitLayer` in moby's `daemon/initlayer/setup_unix.go`).
const ADDED: &[&str] = &[
    ".dockerenv",
    "dev/console",
    "dev/pts",
    "dev/shm",
    "dev",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
    "etc",
    "proc",
    "sys",
];

impl Docker {
    pub(crate) async fn can_mount_images(&self) -> Result<bool, RuntimeError> {
        let session = self.connection().session().await.map_err(|fault| fault.during("ask for the version"))?;
        Ok(session.api >= (1, 48))
    }

    pub(crate) async fn read_image(&self, id: &str) -> Result<ImageFiles, RuntimeError> {
        let alone = self.reading().clone().lock_owned().await;
        self.sweep_content().await;
        let body = ContainerCreateBody {
            image: Some(id.to_owned()),
            // Never run, but no container can be made without a command, and an image of files has none.
            cmd: Some(vec!["-".to_owned()]),
            labels: Some(HashMap::from([(CONTENT.to_owned(), self.root_id().to_owned())])),
            host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..Default::default() }),
            ..Default::default()
        };
        let made = self
            .connection()
            .call(CALL, |docker| {
                let body = body.clone();
                async move { docker.create_container(None, body).await }
            })
            .await
            .map_err(|fault| fault.during("make a container to read an image"))?;
        let export = match self.connection().open(CALL, &format!("/containers/{}/export", made.id)).await {
            Ok(export) => export,
            Err(fault) => {
                self.remove_content(&made.id).await;
                return Err(fault.during("read an image"));
            }
        };
        let (sender, receiver) = mpsc::channel(PIECES);
        let docker = self.clone();
        tokio::spawn(async move {
            docker.pass_on(export, &sender).await;
            docker.remove_content(&made.id).await;
            drop(alone);
        });
        let archive = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
        Ok(ImageFiles { archive: archive.boxed(), added: ADDED })
    }

    /// Hands on what comes, until it ends or nobody wants it any more.
    async fn pass_on(&self, mut export: Incoming, to: &mpsc::Sender<Result<bytes::Bytes, RuntimeError>>) {
        loop {
            let piece = match tokio::time::timeout(SILENCE, export.frame()).await {
                Ok(None) => return,
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Ok(data),
                    Err(_) => continue,
                },
                Ok(Some(Err(error))) => Err(Fault::broken(&error, &self.connection().name)),
                Err(_) => Err(Fault::late(SILENCE)),
            };
            let piece = piece.map_err(|fault| fault.during("read an image"));
            let over = piece.is_err();
            if to.send(piece).await.is_err() || over {
                return;
            }
        }
    }

    /// Removes what a crash left behind, unless an image is being read: it would keep its image for ever.
    pub(crate) async fn sweep_content_if_idle(&self) {
        if let Ok(_alone) = self.reading().try_lock() {
            self.sweep_content().await;
        }
    }

    async fn sweep_content(&self) {
        let label = [format!("{CONTENT}={}", self.root_id())];
        let path = format!("/containers/json?all=true&filters={}", filters(&[("label", &label)]));
        let left: Vec<wire::Summary> = self.connection().ask(ASK, &path).await.unwrap_or_default();
        let is_ours = |summary: &wire::Summary| {
            summary.labels.as_ref().and_then(|labels| labels.get(CONTENT)).is_some_and(|root| root == self.root_id())
        };
        for id in left.into_iter().filter(is_ours).filter_map(|summary| summary.id) {
            self.remove_content(&id).await;
        }
    }

    async fn remove_content(&self, id: &str) {
        if let Err(error) = self.remove_any(id).await {
            tracing::warn!(id, label = CONTENT, %error, "cannot remove a container that an image was read from");
        }
    }
}
