//! A disk in memory: records are kept, everything else succeeds, unless told otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use longshore_core::cgroup::PodCgroup;
use longshore_core::pod::PodId;
use longshore_core::ports::files::{DiskUsage, FileStore, FilesError, PodFiles, PodFilesSpec, SubPath};
use longshore_core::record::StoredPod;

/// The disk.
#[derive(Debug, Default)]
pub struct FakeFiles {
    stored: Mutex<BTreeMap<String, StoredPod>>,
    /// How many more times `prepare` fails.
    pub failing: Mutex<usize>,
    used: Mutex<u64>,
    of_pods: Mutex<BTreeMap<String, u64>>,
    released: Mutex<BTreeSet<String>>,
}

impl FakeFiles {
    /// Every folder holds so many bytes from now on.
    pub fn holds(&self, bytes: u64) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    /// Every folder of that pod holds so many bytes from now on.
    pub fn pod_holds(&self, uid: &str, bytes: u64) {
        self.of_pods.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), bytes);
    }

    /// Whether a pod's volumes were given back.
    pub fn was_released(&self, uid: &str) -> bool {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).contains(uid)
    }

    /// The stored pod of that UID.
    pub fn stored(&self, uid: &str) -> Option<StoredPod> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }
}

#[async_trait]
impl FileStore for FakeFiles {
    async fn prepare(&self, spec: &PodFilesSpec) -> Result<PodFiles, FilesError> {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if *failing > 0 {
            *failing -= 1;
            return Err(FilesError::Volume { volume: "v".to_owned(), message: "it was told to fail".to_owned() });
        }
        let folder = PathBuf::from(format!("/pods/{}/volume", spec.pod.uid));
        let volumes = spec.volumes.iter().map(|volume| (volume.name.clone(), folder.clone()));
        Ok(PodFiles { volumes: volumes.collect(), resolv_conf: "/resolv.conf".into(), hosts: "/hosts".into() })
    }

    async fn write_hosts(&self, _: &PodId, _: &str) -> Result<(), FilesError> {
        Ok(())
    }

    async fn sub_path(&self, _: &PodId, sub_path: &SubPath) -> Result<PathBuf, FilesError> {
        Ok(sub_path.root.join(&sub_path.path))
    }

    async fn termination_file(&self, _: &PodId, container: &str, _: u32) -> Result<PathBuf, FilesError> {
        Ok(PathBuf::from("/termination").join(container))
    }

    async fn read_termination_message(&self, _: &Path, _: usize) -> String {
        String::new()
    }

    async fn link_log(&self, _: &PodId, _: &str, _: u32, _: &str, _: &Path) -> Result<(), FilesError> {
        Ok(())
    }

    async fn unlink_log(&self, _: &PodId, _: &str, _: u32, _: &str) {}

    fn log_path(&self, pod: &PodId, container: &str, attempt: u32) -> PathBuf {
        PathBuf::from(format!("/log/{}/{container}/{attempt}.log", pod.uid))
    }

    async fn prepare_cgroup(&self, _: &PodCgroup) -> Result<(), FilesError> {
        Ok(())
    }

    async fn remove_cgroup(&self, _: &PodCgroup) -> Result<(), FilesError> {
        Ok(())
    }

    async fn release(&self, pod: &PodId) -> Result<(), FilesError> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.uid.clone());
        Ok(())
    }

    async fn load_all(&self) -> (Vec<StoredPod>, Vec<FilesError>) {
        (self.stored.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect(), Vec::new())
    }

    async fn save(&self, uid: &str, stored: &StoredPod) -> Result<(), FilesError> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), stored.clone());
        Ok(())
    }

    async fn forget(&self, uid: &str) -> Result<(), FilesError> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        Ok(())
    }

    async fn pod_folders(&self) -> Vec<String> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    async fn seccomp_profile(&self, _: &str) -> Result<String, FilesError> {
        Ok("{}".to_owned())
    }

    async fn usage(&self, path: &Path) -> Option<DiskUsage> {
        let uid = path.strip_prefix("/pods").ok().and_then(|rest| rest.iter().next()?.to_str());
        let of_pods = self.of_pods.lock().unwrap_or_else(PoisonError::into_inner);
        let own = uid.and_then(|uid| of_pods.get(uid).copied());
        let bytes = own.unwrap_or_else(|| *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        Some(DiskUsage { bytes, inodes: 1 })
    }
}
