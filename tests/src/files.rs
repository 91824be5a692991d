//! A disk in memory: records of pods and pulls are kept, everything else succeeds, unless told otherwise.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use longshore_core::cgroup::{PodCgroup, PodsLimits};
use longshore_core::credentials::access::PullRecord;
use longshore_core::pod::PodId;
use longshore_core::ports::files::{
    DiskUsage, FileStore, FilesError, Measured, PodFiles, PodFilesSpec, Records, SubPath,
};
use longshore_core::ports::pulls::PullRecords;
use longshore_core::ports::runtime::ImageFiles;
use longshore_core::record::StoredPod;
use longshore_core::volume::VolumeSpec;
use tokio::sync::Barrier;

/// The disk.
#[derive(Debug, Default)]
pub struct FakeFiles {
    stored: Mutex<BTreeMap<String, StoredPod>>,
    /// How many more times `prepare` fails for a volume.
    pub failing: Mutex<usize>,
    /// The UID of a pod whose next `prepare` never ends; `None` once that has begun.
    pub hanging: Mutex<Option<String>>,
    /// Whether the next `prepare` fails for the pod's folder.
    pub folder_fails: Mutex<bool>,
    names: Mutex<BTreeMap<String, String>>,
    /// The volumes of each pod as they were last prepared, and how often they were.
    prepared: Mutex<BTreeMap<String, (Vec<VolumeSpec>, usize)>>,
    /// The only volumes that each pod was left, where it was told.
    only: Mutex<BTreeMap<String, BTreeSet<String>>>,
    used: Mutex<u64>,
    /// With whether that is all.
    of_pods: Mutex<BTreeMap<String, (u64, bool)>>,
    /// Where volumes wait to be measured until so many are.
    measuring: Mutex<Option<Arc<Barrier>>>,
    released: Mutex<BTreeSet<String>>,
    unpacked: Mutex<BTreeSet<String>>,
    /// What files of volumes hold, by path, whichever pod's.
    pub in_volumes: Mutex<BTreeMap<String, Vec<u8>>>,
    /// How many more times giving back a pod's volumes, and then removing its cgroup, fails.
    pub failing_to_release: Mutex<[usize; 2]>,
    /// How many more times reading the records fails.
    pub failing_to_load: Mutex<usize>,
    /// How many more times unpacking an image fails.
    pub failing_to_unpack: Mutex<usize>,
    /// What setting the limits of all pods leads to, one after the other, and then to success.
    pub limiting: Mutex<VecDeque<FilesError>>,
    limits: Mutex<Option<PodsLimits>>,
    pulled: Mutex<BTreeMap<String, PullRecord>>,
    pulling: Mutex<BTreeSet<String>>,
    /// Whether records of pulls can be neither read nor written.
    pub pulls_fail: Mutex<bool>,
}

impl FakeFiles {
    /// Every folder holds so many bytes from now on.
    pub fn holds(&self, bytes: u64) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    /// Every folder of that pod holds so many bytes from now on.
    pub fn pod_holds(&self, uid: &str, bytes: u64) {
        self.of_pods.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), (bytes, true));
    }

    /// Volumes of pods are measured so many at a time from now on, or not at all.
    pub fn measures_together(&self, volumes: usize) {
        *self.measuring.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(Barrier::new(volumes)));
    }

    /// So many, and more that cannot be counted.
    pub fn pod_holds_at_least(&self, uid: &str, bytes: u64) {
        self.of_pods.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), (bytes, false));
    }

    fn fail_to_release(&self, which: usize) -> Result<(), FilesError> {
        let mut failing = self.failing_to_release.lock().unwrap_or_else(PoisonError::into_inner);
        if failing[which] > 0 {
            failing[which] -= 1;
            return Err(FilesError::Io { path: "/pods".into(), message: "it was told to fail".to_owned() });
        }
        Ok(())
    }

    fn fail_for_pulls(&self) -> Result<(), FilesError> {
        match *self.pulls_fail.lock().unwrap_or_else(PoisonError::into_inner) {
            true => Err(FilesError::Io { path: "/pulls".into(), message: "it was told to fail".to_owned() }),
            false => Ok(()),
        }
    }

    /// Names of images whose pulls have begun and have not ended.
    pub fn pulls_begun(&self) -> BTreeSet<String> {
        self.pulling.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a pod's resolv.conf says.
    pub fn resolv_conf(&self, uid: &str) -> String {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned().unwrap_or_default()
    }

    /// What a pod's volumes were last told to hold, and how often they were told.
    pub fn prepared(&self, uid: &str) -> (Vec<VolumeSpec>, usize) {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned().unwrap_or_default()
    }

    /// The only volumes that a pod was left when others were last taken away.
    pub fn only(&self, uid: &str) -> BTreeSet<String> {
        self.only.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned().unwrap_or_default()
    }

    /// Whether a pod's volumes were given back.
    pub fn was_released(&self, uid: &str) -> bool {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).contains(uid)
    }

    /// The limits of all pods, once they are set.
    pub fn limits(&self) -> Option<PodsLimits> {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stored pod of that UID.
    pub fn stored(&self, uid: &str) -> Option<StoredPod> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }
}

#[async_trait]
impl FileStore for FakeFiles {
    async fn prepare(&self, spec: &PodFilesSpec) -> Result<PodFiles, FilesError> {
        let hangs = self.hanging.lock().unwrap_or_else(PoisonError::into_inner).take_if(|uid| *uid == spec.pod.uid);
        if hangs.is_some() {
            return std::future::pending().await;
        }
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if *failing > 0 {
            *failing -= 1;
            return Err(FilesError::Volume { volume: "v".to_owned(), message: "it was told to fail".to_owned() });
        }
        if std::mem::take(&mut *self.folder_fails.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Err(FilesError::Io { path: "/pods".into(), message: "it was told to fail".to_owned() });
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if spec.new_resolv_conf || !names.contains_key(&spec.pod.uid) {
            names.insert(spec.pod.uid.clone(), spec.resolv_conf.clone());
        }
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let known = prepared.entry(spec.pod.uid.clone()).or_default();
        *known = (spec.volumes.clone(), known.1 + 1);
        if let Some(only) = &spec.only {
            self.only.lock().unwrap_or_else(PoisonError::into_inner).insert(spec.pod.uid.clone(), only.clone());
        }
        let folder = PathBuf::from(format!("/pods/{}/volume", spec.pod.uid));
        let volumes = spec.volumes.iter().map(|volume| (volume.name.clone(), folder.clone()));
        let [resolv_conf, hosts, messages] = ["/resolv.conf", "/hosts", "/messages"].map(PathBuf::from);
        Ok(PodFiles { volumes: volumes.collect(), resolv_conf, hosts, messages })
    }

    async fn write_hosts(&self, _: &PodId, _: &str) -> Result<(), FilesError> {
        Ok(())
    }

    async fn image_volume(&self, pod: &PodId, volume: &str, image: &str) -> Result<Option<PathBuf>, FilesError> {
        let unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(unpacked.contains(image).then(|| PathBuf::from(format!("/pods/{}/{volume}/{image}", pod.uid))))
    }

    async fn unpack_image(&self, image: &str, mut files: ImageFiles) -> Result<(), FilesError> {
        while files.archive.next().await.is_some() {}
        let mut failing = self.failing_to_unpack.lock().unwrap_or_else(PoisonError::into_inner);
        if *failing > 0 {
            *failing -= 1;
            return Err(FilesError::Io { path: image.into(), message: "it was told to fail".to_owned() });
        }
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).insert(image.to_owned());
        Ok(())
    }

    async fn sub_path(&self, _: &PodId, sub_path: &SubPath) -> Result<PathBuf, FilesError> {
        Ok(sub_path.root.join(&sub_path.path))
    }

    async fn read_volume(&self, _: &PodId, root: &Path, path: &str, _: usize) -> Result<Vec<u8>, FilesError> {
        let place = root.join(path);
        let found = self.in_volumes.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        found.ok_or_else(|| FilesError::Io { path: place, message: "No such file or directory".to_owned() })
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

    async fn kill_together(&self, _: &PodCgroup, _: &str) -> Result<(), FilesError> {
        Ok(())
    }

    async fn limit_pods(&self, limits: &PodsLimits) -> Result<(), FilesError> {
        if let Some(error) = self.limiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
            return Err(error);
        }
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = Some(*limits);
        Ok(())
    }

    async fn remove_cgroup(&self, _: &PodCgroup) -> Result<(), FilesError> {
        self.fail_to_release(1)
    }

    async fn release(&self, pod: &PodId) -> Result<(), FilesError> {
        self.fail_to_release(0)?;
        self.released.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.uid.clone());
        Ok(())
    }

    async fn load_all(&self) -> Result<Records, FilesError> {
        let mut failing = self.failing_to_load.lock().unwrap_or_else(PoisonError::into_inner);
        if *failing > 0 {
            *failing -= 1;
            return Err(FilesError::Io { path: "/pods".into(), message: "it was told to fail".to_owned() });
        }
        let pods = self.stored.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        Ok(Records { pods, ..Records::default() })
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

    async fn usage(&self, path: &Path) -> Option<Measured> {
        let uid = path.strip_prefix("/pods").ok().and_then(|rest| rest.iter().next()?.to_str());
        let measuring = self.measuring.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(measuring) = measuring.filter(|_| uid.is_some()) {
            measuring.wait().await;
        }
        let of_pods = self.of_pods.lock().unwrap_or_else(PoisonError::into_inner);
        let own = uid.and_then(|uid| of_pods.get(uid).copied());
        let all = || (*self.used.lock().unwrap_or_else(PoisonError::into_inner), true);
        let (bytes, whole) = own.unwrap_or_else(all);
        Some(Measured { usage: DiskUsage { bytes, inodes: 1 }, whole })
    }
}

#[async_trait]
impl PullRecords for FakeFiles {
    async fn pulled(&self, image: &str) -> Result<Option<PullRecord>, FilesError> {
        self.fail_for_pulls()?;
        Ok(self.pulled.lock().unwrap_or_else(PoisonError::into_inner).get(image).cloned())
    }

    async fn keep_pulled(&self, record: &PullRecord) -> Result<(), FilesError> {
        self.fail_for_pulls()?;
        self.pulled.lock().unwrap_or_else(PoisonError::into_inner).insert(record.image.clone(), record.clone());
        Ok(())
    }

    async fn forget_pulled(&self, image: &str) -> Result<(), FilesError> {
        self.fail_for_pulls()?;
        self.pulled.lock().unwrap_or_else(PoisonError::into_inner).remove(image);
        Ok(())
    }

    async fn all_pulled(&self) -> Result<Vec<String>, FilesError> {
        self.fail_for_pulls()?;
        Ok(self.pulled.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect())
    }

    async fn pulling(&self) -> Result<BTreeSet<String>, FilesError> {
        self.fail_for_pulls()?;
        Ok(self.pulls_begun())
    }

    async fn keep_pulling(&self, names: &BTreeSet<String>) -> Result<(), FilesError> {
        self.fail_for_pulls()?;
        *self.pulling.lock().unwrap_or_else(PoisonError::into_inner) = names.clone();
        Ok(())
    }
}
