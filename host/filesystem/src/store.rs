//! [`Files`]: the port's methods, each a short blocking job with a time limit, one at a time for a pod.
//!
//! Owns order and time; what is done to the disk is in the modules beside it. A job that overruns its limit (a hostPath on a dead
//! NFS server) keeps its thread and its pod's turn until the kernel lets it go: the caller gets an error at once, other pods
//! go on, and a retry waits for its turn without a thread. Of jobs that go on only so many run at a time; one that takes long
//! counts no more, so that however many hang, the others find a place.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use longshore_core::cgroup::{PodCgroup, PodsLimits};
use longshore_core::node::CgroupDriver;
use longshore_core::pod::PodId;
use longshore_core::ports::files::{FileStore, FilesError, Measured, PodFiles, PodFilesSpec, Records, SubPath};
use longshore_core::ports::runtime::ImageFiles;
use longshore_core::record::StoredPod;
use longshore_core::volume::VolumeKind;
use tokio::sync::Semaphore;

use crate::cgroups::{CgroupOptions, Cgroups};
use crate::images::Images;
use crate::layout::{At, Layout, files_of, refuse};
use crate::unpack::{Piece, Pieces};
use crate::{images, logs, mounts, payload, records, remove, seccomp, sub_path, unpack, usage, volumes, write};

/// What a job on the disk may take before its caller gets an error.
const LIMIT: Duration = Duration::from_secs(60);
/// Records are small files of the root folder, whose disk the agent cannot live without.
const RECORD_LIMIT: Duration = Duration::from_secs(30);
/// What counting a folder's bytes may take.
const USAGE_LIMIT: Duration = Duration::from_secs(10);
/// What unpacking an image may take, however large it is.
const UNPACK_LIMIT: Duration = Duration::from_secs(3600);
/// How long records gather before they are flushed together.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// Jobs that run at a time: a disk does no more at once, and each takes a thread.
const PLACES: usize = 16;
/// How long a job keeps its place.
const SLOW: Duration = Duration::from_secs(1);
/// Turns of pods that nobody waits for are forgotten from so many on.
const TURNS: usize = 256;

/// What pods have on this node's disk.
#[derive(Clone)]
pub struct Files {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    layout: Layout,
    cgroups: Cgroups,
    images: Images,
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    places: Semaphore,
    /// Records that a power cut could still undo.
    unflushed: Mutex<Vec<PathBuf>>,
}

impl Files {
    /// The store below `root_dir`, with log links below `log_root` (`/var/log/pods`) and `container_log_root`
    /// (`/var/log/containers`). Makes the root folder; the others when the first log is linked.
    pub fn new(
        root_dir: PathBuf,
        log_root: PathBuf,
        container_log_root: PathBuf,
        cgroups: CgroupOptions,
    ) -> Result<Files, FilesError> {
        write::folders(&root_dir, 0o750)?;
        // mountinfo names mounts without symlinks; so must we.
        let root = root_dir.canonicalize().at(&root_dir)?;
        // What links lead to must not depend on where they are.
        let logs = std::path::absolute(&log_root).at(&log_root)?;
        let container_logs = std::path::absolute(&container_log_root).at(&container_log_root)?;
        let layout = Layout { root, logs, container_logs };
        write::folder(&layout.pods(), 0o750)?;
        let turns = Mutex::new(HashMap::new());
        Ok(Files {
            inner: Arc::new(Inner {
                layout,
                cgroups: Cgroups::new(cgroups),
                images: Images::default(),
                turns,
                places: Semaphore::new(PLACES),
                unflushed: Mutex::default(),
            }),
        })
    }

    pub(crate) fn layout(&self) -> &Layout {
        self.inner.layout()
    }

    /// Runs a job on a thread of its own, alone among those with the same key.
    pub(crate) async fn job<T: Send + 'static>(
        &self,
        key: String,
        place: &Path,
        limit: Duration,
        job: impl FnOnce(&Inner) -> Result<T, FilesError> + Send + 'static,
    ) -> Result<T, FilesError> {
        let deadline = tokio::time::Instant::now() + limit;
        let seconds = limit.as_secs();
        let turn = self.inner.turn(&key);
        let Ok(turn) = tokio::time::timeout_at(deadline, turn.lock_owned()).await else {
            let message =
                format!("an earlier operation has not ended for {seconds} s; is a disk or network mount hanging?");
            return Err(refuse(place, message));
        };
        let Ok(held) = tokio::time::timeout_at(deadline, self.inner.places.acquire()).await else {
            let message =
                format!("other operations have left no room for {seconds} s; is a disk or network mount hanging?");
            return Err(refuse(place, message));
        };
        let inner = self.inner.clone();
        let mut work = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            job(&inner)
        });
        let soon = tokio::time::timeout_at(deadline.min(tokio::time::Instant::now() + SLOW), &mut work).await;
        drop(held);
        let done = match soon {
            Ok(done) => Ok(done),
            Err(_) => tokio::time::timeout_at(deadline, work).await,
        };
        match done {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => {
                Err(refuse(place, format!("the operation broke off, which is a fault of longshore: {error}")))
            }
            Err(_) => {
                let message =
                    format!("the operation has not ended for {seconds} s; is a disk or network mount hanging?");
                Err(refuse(place, message))
            }
        }
    }

    /// Flushes a record, with all that come in the next moment: the first flush of many does most of their work.
    fn flush_later(&self, path: PathBuf) {
        let first = {
            let mut unflushed = self.inner.unflushed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            unflushed.push(path);
            unflushed.len() == 1
        };
        if !first {
            return;
        }
        let inner = self.inner.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FLUSH_AFTER).await;
            let flushed = tokio::task::spawn_blocking(move || {
                let paths = {
                    let mut unflushed = inner.unflushed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    std::mem::take(&mut *unflushed)
                };
                for path in paths {
                    if let Err(error) = write::flush(&path) {
                        tracing::error!(path = %path.display(), %error, "cannot flush a pod's record to the disk");
                    }
                }
            });
            // A disk that hangs shows with the next record that is saved.
            let _ = flushed.await;
        });
    }

    /// Removes former sets of a pod's payload volumes once nobody can be reading them.
    fn sweep_later(&self, uid: String, folders: Vec<PathBuf>) {
        let files = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(payload::FORMER_STAYS + Duration::from_millis(50)).await;
            let place = files.inner.layout.pods();
            let swept = files.job(uid, &place, LIMIT, move |_| {
                folders.iter().filter(|folder| folder.is_dir()).try_for_each(|folder| payload::sweep(folder, 0))
            });
            if let Err(error) = swept.await {
                tracing::debug!(%error, "former content of a volume stays until its next update");
            }
        });
    }
}

impl Inner {
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if turns.len() >= TURNS {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        turns.entry(key.to_owned()).or_default().clone()
    }

    fn prepare(&self, spec: &PodFilesSpec) -> Result<(PodFiles, Vec<PathBuf>), FilesError> {
        let pod = self.make(&spec.pod.uid)?;
        let mut files = files_of(&pod);
        let mut former = Vec::new();
        for volume in &spec.volumes {
            let folder = volumes::set_up(&pod, volume, spec.fs_group)?;
            if matches!(volume.kind, VolumeKind::Payload { .. }) && payload::has_former(&folder) {
                former.push(folder.clone());
            }
            files.volumes.insert(volume.name.clone(), folder);
        }
        if let Some(names) = &spec.only
            && let Err(error) = volumes::sweep(&pod, names, &files.volumes)
        {
            tracing::warn!(pod = %spec.pod, %error, "a volume that the pod does not have any more stays until it is prepared again");
        }
        if spec.new_resolv_conf || !files.resolv_conf.exists() {
            write::rewrite(&files.resolv_conf, spec.resolv_conf.as_bytes(), 0o644)?;
        }
        Ok((files, former))
    }

    /// The pod's folder, made with the one of all pods, which somebody may have taken away.
    fn make(&self, uid: &str) -> Result<PathBuf, FilesError> {
        let pod = self.layout.pod(uid)?;
        write::folders(&self.layout.pods(), 0o750)?;
        write::folder(&pod, 0o750)?;
        Ok(pod)
    }

    /// The pod's folder, only if it is there: nothing below makes one for a pod that was released.
    fn present(&self, uid: &str) -> Result<PathBuf, FilesError> {
        let pod = self.layout.pod(uid)?;
        if pod.is_dir() {
            return Ok(pod);
        }
        Err(refuse(&pod, "the pod has no folder: its files have not been prepared"))
    }

    fn release(&self, uid: &str) -> Result<(), FilesError> {
        let pod = self.layout.pod(uid)?;
        mounts::unmount_below(&pod)?;
        remove::contents(&pod, &[records::RECORD, records::DAMAGED])?;
        // The pod is rid of what it had; what is left of images is looked at again with the next pod.
        if let Err(error) = self.images.sweep(&self.layout) {
            tracing::warn!(%error, "files of images that no pod uses cannot be removed; tried again when the next pod ends");
        }
        Ok(())
    }

    /// Unpacks an image's files, if they are not there yet.
    fn unpack(&self, image: &str, pieces: Pieces, added: &[&str]) -> Result<(), FilesError> {
        let place = images::place(&self.layout, image)?;
        let Some(_alone) = self.images.alone() else {
            return Err(refuse(&place, "an unpacking that was given up has not ended yet; is the disk hanging?"));
        };
        if place.is_dir() {
            return Ok(());
        }
        let fresh = images::begin(&self.layout, image)?;
        let unpacked = unpack::unpack(&fresh, pieces, added).and_then(|()| images::keep(&self.layout, image, &fresh));
        if unpacked.is_err()
            && let Err(error) = remove::tree(&fresh)
        {
            tracing::warn!(%error, "an image's half unpacked files cannot be removed; they go when the next pod ends");
        }
        unpacked
    }
}

fn record_key(uid: &str) -> String {
    format!("record/{uid}")
}

#[async_trait]
impl FileStore for Files {
    async fn prepare(&self, spec: &PodFilesSpec) -> Result<PodFiles, FilesError> {
        let uid = spec.pod.uid.clone();
        let place = self.inner.layout.pod(&uid)?;
        let spec = spec.clone();
        let (files, former) = self.job(uid.clone(), &place, LIMIT, move |inner| inner.prepare(&spec)).await?;
        if !former.is_empty() {
            self.sweep_later(uid, former);
        }
        Ok(files)
    }

    async fn write_hosts(&self, pod: &PodId, content: &str) -> Result<(), FilesError> {
        let uid = pod.uid.clone();
        let content = content.to_owned();
        let place = files_of(&self.inner.layout.pod(&uid)?).hosts;
        let file = place.clone();
        self.job(uid.clone(), &place, LIMIT, move |inner| {
            inner.present(&uid)?;
            write::rewrite(&file, content.as_bytes(), 0o644)
        })
        .await
    }

    async fn image_volume(&self, pod: &PodId, volume: &str, image: &str) -> Result<Option<PathBuf>, FilesError> {
        let uid = pod.uid.clone();
        let place = self.inner.layout.pod(&uid)?;
        let (volume, image) = (volume.to_owned(), image.to_owned());
        let name = volume.clone();
        let mounted = self.job(uid.clone(), &place, LIMIT, move |inner| {
            let pod = inner.present(&uid)?;
            inner.images.mount(&inner.layout, &pod, &volume, &image)
        });
        mounted.await.map_err(|error| FilesError::Volume { volume: name, message: error.to_string() })
    }

    async fn unpack_image(&self, image: &str, mut files: ImageFiles) -> Result<(), FilesError> {
        let place = images::place(&self.inner.layout, image)?;
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let (inner, image, added) = (self.inner.clone(), image.to_owned(), files.added);
        let work = tokio::task::spawn_blocking(move || inner.unpack(&image, Pieces::new(receiver), added));
        let feed = async {
            while let Some(piece) = files.archive.next().await {
                let piece = piece.map_or_else(|error| Piece::Failed(error.to_string()), Piece::Data);
                // Who reads may have failed, and says why.
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
            let _ = sender.send(Piece::End).await;
        };
        // Given up, the sender goes and with it the thread's archive.
        let unpacked = tokio::time::timeout(UNPACK_LIMIT, async { tokio::join!(feed, work).1 });
        match unpacked.await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => {
                Err(refuse(&place, format!("unpacking broke off, which is a fault of longshore: {error}")))
            }
            Err(_) => Err(refuse(&place, format!("the image was not unpacked within {} s", UNPACK_LIMIT.as_secs()))),
        }
    }

    async fn sub_path(&self, pod: &PodId, sub_path: &SubPath) -> Result<PathBuf, FilesError> {
        let uid = pod.uid.clone();
        let place = self.inner.layout.pod(&uid)?;
        let sub_path = sub_path.clone();
        let volume = sub_path.volume.clone();
        let bound = self.job(uid.clone(), &place, LIMIT, move |inner| {
            let pod = inner.present(&uid)?;
            sub_path::bind(&pod, &sub_path)
        });
        bound
            .await
            .map_err(|error| FilesError::Volume { volume, message: format!("failed to prepare subPath: {error}") })
    }

    async fn read_volume(&self, pod: &PodId, root: &Path, path: &str, limit: usize) -> Result<Vec<u8>, FilesError> {
        // `fileKeyRef.path` may begin with a slash, and is in the volume all the same.
        let path = path.trim_start_matches('/');
        let (place, root, path) = (root.join(path), root.to_owned(), path.to_owned());
        self.job(pod.uid.clone(), &place, LIMIT, move |_| sub_path::read(&root, &path, limit)).await
    }

    async fn termination_file(&self, pod: &PodId, container: &str, attempt: u32) -> Result<PathBuf, FilesError> {
        let uid = pod.uid.clone();
        let place = self.inner.layout.pod(&uid)?;
        let container = container.to_owned();
        self.job(uid.clone(), &place, LIMIT, move |inner| {
            let pod = inner.present(&uid)?;
            logs::termination_file(&pod, &container, attempt)
        })
        .await
    }

    async fn read_termination_message(&self, file: &Path, limit: usize) -> String {
        // No turn to wait for: it is one small read, and a container's end must not wait for another's volumes.
        let file = file.to_owned();
        let read = tokio::task::spawn_blocking(move || logs::termination_message(&file, limit));
        match tokio::time::timeout(RECORD_LIMIT, read).await {
            Ok(Ok(message)) => message,
            Ok(Err(_)) | Err(_) => String::new(),
        }
    }

    async fn link_log(
        &self,
        pod: &PodId,
        container: &str,
        attempt: u32,
        id: &str,
        runtime_log: &Path,
    ) -> Result<(), FilesError> {
        let (owner, container, id) = (pod.clone(), container.to_owned(), id.to_owned());
        let runtime_log = runtime_log.to_owned();
        let place = self.inner.layout.log(pod, &container, attempt);
        self.job(format!("log/{}", pod.uid), &place, LIMIT, move |inner| {
            logs::link(&inner.layout, &owner, &container, attempt, &id, &runtime_log)
        })
        .await
    }

    async fn unlink_log(&self, pod: &PodId, container: &str, attempt: u32, id: &str) {
        let (owner, container, id) = (pod.clone(), container.to_owned(), id.to_owned());
        let place = self.inner.layout.log(pod, &container, attempt);
        let unlinked = self.job(format!("log/{}", pod.uid), &place, LIMIT, move |inner| {
            logs::unlink(&inner.layout, &owner, &container, attempt, &id);
            Ok(())
        });
        if let Err(error) = unlinked.await {
            tracing::warn!(%pod, %error, "cannot remove a log link");
        }
    }

    fn log_path(&self, pod: &PodId, container: &str, attempt: u32) -> PathBuf {
        self.inner.layout.log(pod, container, attempt)
    }

    async fn prepare_cgroup(&self, cgroup: &PodCgroup) -> Result<(), FilesError> {
        let cgroup = cgroup.clone();
        let place = PathBuf::from(cgroup.path(CgroupDriver::Cgroupfs));
        self.job(format!("cgroup/{}", cgroup.uid), &place, LIMIT, move |inner| inner.cgroups.prepare(&cgroup)).await
    }

    async fn kill_together(&self, cgroup: &PodCgroup, container: &str) -> Result<(), FilesError> {
        let (cgroup, container) = (cgroup.clone(), container.to_owned());
        let place = PathBuf::from(cgroup.path(CgroupDriver::Cgroupfs));
        let key = format!("cgroup/{}", cgroup.uid);
        self.job(key, &place, LIMIT, move |inner| inner.cgroups.kill_together(&cgroup, &container)).await
    }

    async fn limit_pods(&self, limits: &PodsLimits) -> Result<(), FilesError> {
        let limits = *limits;
        let place = PathBuf::from("/kubepods");
        self.job("cgroup".to_owned(), &place, LIMIT, move |inner| inner.cgroups.limit_pods(&limits)).await
    }

    async fn remove_cgroup(&self, cgroup: &PodCgroup) -> Result<(), FilesError> {
        let cgroup = cgroup.clone();
        let place = PathBuf::from(cgroup.path(CgroupDriver::Cgroupfs));
        self.job(format!("cgroup/{}", cgroup.uid), &place, LIMIT, move |inner| inner.cgroups.remove(&cgroup)).await
    }

    async fn release(&self, pod: &PodId) -> Result<(), FilesError> {
        let uid = pod.uid.clone();
        let place = self.inner.layout.pod(&uid)?;
        self.job(uid.clone(), &place, LIMIT, move |inner| inner.release(&uid)).await
    }

    async fn load_all(&self) -> Result<Records, FilesError> {
        let place = self.inner.layout.pods();
        self.job("records".to_owned(), &place, LIMIT, |inner| records::load_all(&inner.layout)).await
    }

    async fn save(&self, uid: &str, stored: &StoredPod) -> Result<(), FilesError> {
        let place = self.inner.layout.pod(uid)?;
        let (uid, stored) = (uid.to_owned(), stored.clone());
        let saved =
            self.job(record_key(&uid), &place, RECORD_LIMIT, move |inner| records::save(&inner.make(&uid)?, &stored));
        if let Some(path) = saved.await? {
            self.flush_later(path);
        }
        Ok(())
    }

    async fn forget(&self, uid: &str) -> Result<(), FilesError> {
        let place = self.inner.layout.pod(uid)?;
        let uid = uid.to_owned();
        // Both turns: what is released, and the record.
        let released = uid.clone();
        self.job(uid.clone(), &place, LIMIT, move |inner| inner.release(&released)).await?;
        self.job(record_key(&uid), &place, RECORD_LIMIT, move |inner| {
            logs::forget(&inner.layout, &uid);
            remove::tree(&inner.layout.pod(&uid)?)
        })
        .await
    }

    async fn pod_folders(&self) -> Vec<String> {
        let place = self.inner.layout.pods();
        let listed = self.job("folders".to_owned(), &place, LIMIT, |inner| records::uids(&inner.layout));
        listed.await.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot list the pods' folders");
            Vec::new()
        })
    }

    async fn seccomp_profile(&self, name: &str) -> Result<String, FilesError> {
        let place = self.inner.layout.root.join("seccomp").join(name);
        let name = name.to_owned();
        self.job("seccomp".to_owned(), &place, LIMIT, move |inner| seccomp::read(&inner.layout.root, &name)).await
    }

    async fn usage(&self, path: &Path) -> Option<Measured> {
        let path = path.to_owned();
        let measured = tokio::task::spawn_blocking(move || usage::measure(&path, Instant::now() + USAGE_LIMIT));
        let Ok(Ok(measured)) = tokio::time::timeout(USAGE_LIMIT * 2, measured).await else {
            return Some(Measured::default());
        };
        measured
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
