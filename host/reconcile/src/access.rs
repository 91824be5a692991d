//! Whose the images of the node are: what is remembered of pulls, and asked when a pod finds an image there.
//!
//! Decisions are [`longshore_core::credentials::access`]'s. Records that cannot be written are kept in memory, for as long as
//! the agent lives, and where they cannot be read the images are everybody's: a disk's fault is said, and stops no pod. One
//! that is damaged is another matter: its image was pulled, and is pulled again with what the pod has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use longshore_core::credentials::access::{
    OwnedCredentials, Owner, PullRecord, Verdict, Verification, full_name, judge,
};
use longshore_core::ports::files::FilesError;
use longshore_core::ports::pulls::PullRecords;
use longshore_core::ports::runtime::{ContainerRuntime, RuntimeError};
use tokio::sync::{Mutex, MutexGuard};

/// How often records of images that are gone are looked for.
const PERIOD: Duration = Duration::from_secs(300);
/// Records that are kept in memory because they cannot be written.
const MAX_UNWRITTEN: usize = 1000;

/// Who may use which image.
pub(crate) struct Access {
    records: Arc<dyn PullRecords>,
    /// `None`: whatever is there is everybody's, and nothing is remembered.
    verification: Option<Verification>,
    state: Mutex<State>,
    /// That records cannot be read or written was said.
    said: AtomicBool,
}

#[derive(Default)]
struct State {
    /// What the last life of the agent left was read.
    read: bool,
    /// Pulls that have begun, by the image's name in full.
    pulls: BTreeMap<String, Pulls>,
    /// Records that could not be written, by the image's ID.
    unwritten: BTreeMap<String, PullRecord>,
    /// IDs of images that were noted since it was last asked which are there.
    noted: BTreeSet<String>,
}

/// Pulls of one name.
#[derive(Default)]
struct Pulls {
    running: usize,
    /// One was cut off, and may have brought the image all the same.
    cut_off: bool,
}

impl Access {
    pub(crate) fn new(records: Arc<dyn PullRecords>, verification: Option<Verification>) -> Self {
        Access { records, verification, state: Mutex::default(), said: AtomicBool::new(false) }
    }

    /// Whether it is asked at all who may use an image.
    pub(crate) fn is_on(&self) -> bool {
        self.verification.is_some()
    }

    /// Whether a pod may use an image that is there by that name and has that ID. What the pod has is looked up where it
    /// matters: whose its pull secrets' credentials are, and its ServiceAccount.
    pub(crate) async fn may_use(
        &self,
        name: &str,
        image: &str,
        secrets: impl Future<Output = Vec<Owner>>,
        account: impl Future<Output = Option<Owner>>,
    ) -> bool {
        let Some(verification) = &self.verification else { return true };
        // First, for a pull that ends meanwhile has left its record.
        let (begun, unwritten) = {
            let state = self.state().await;
            (state.pulls.contains_key(&full_name(name)), state.unwritten.get(image).cloned())
        };
        let (record, begun) = match unwritten {
            Some(record) => (Some(record), begun),
            None => match self.records.pulled(image).await {
                Ok(record) => (record, begun),
                Err(error) => {
                    self.say(&error);
                    (None, begun)
                }
            },
        };
        let keepers = match judge(name, record.as_ref(), begun, verification) {
            Verdict::Use => return true,
            Verdict::Pull => return false,
            Verdict::Ask(keepers) => keepers,
        };
        let mut own = secrets.await;
        if keepers.find(&own).is_none() && keepers.has_accounts() {
            own.extend(account.await);
        }
        let Some(owner) = keepers.find(&own) else { return false };
        if record.as_ref().is_some_and(|record| record.clone().learn(name, owner)) {
            self.note(name, image, owner, true).await;
        }
        true
    }

    /// A pull begins. What it brings is not for everybody until it is known with what it came.
    pub(crate) async fn begins(&self, name: &str) {
        if !self.is_on() {
            return;
        }
        let (mut state, name) = (self.state().await, full_name(name));
        let is_new = !state.pulls.contains_key(&name);
        state.pulls.entry(name).or_default().running += 1;
        if is_new {
            self.keep_pulling(&state).await;
        }
    }

    /// A pull has brought an image, with these credentials or with none.
    pub(crate) async fn brought(&self, name: &str, image: &str, with: Option<&OwnedCredentials>) {
        if !self.is_on() {
            return;
        }
        let owner = with.map_or(&Owner::Node, |with| &with.owner);
        self.note(name, image, owner, false).await;
        self.ends(name, true).await;
    }

    /// A pull has failed. Where the runtime itself failed, it may have brought the image all the same.
    pub(crate) async fn failed(&self, name: &str, by_runtime: bool) {
        if !self.is_on() {
            return;
        }
        if by_runtime && let Some(pulls) = self.state().await.pulls.get_mut(&full_name(name)) {
            pulls.cut_off = true;
        }
        self.ends(name, false).await;
    }

    async fn ends(&self, name: &str, brought: bool) {
        let (mut state, name) = (self.state().await, full_name(name));
        let Some(pulls) = state.pulls.get_mut(&name) else { return };
        pulls.running = pulls.running.saturating_sub(1);
        pulls.cut_off &= !brought;
        if pulls.running == 0 && !pulls.cut_off {
            state.pulls.remove(&name);
            self.keep_pulling(&state).await;
        }
    }

    /// Notes in the record of an image who has it by that name; only where there is room for one that is `learned`.
    async fn note(&self, name: &str, image: &str, owner: &Owner, learned: bool) {
        let mut state = self.state().await;
        state.noted.insert(image.to_owned());
        let mut record = match state.unwritten.get(image) {
            Some(record) => record.clone(),
            None => match self.records.pulled(image).await {
                Ok(record) => record.unwrap_or_else(|| PullRecord::new(image)),
                Err(error) => {
                    self.say(&error);
                    PullRecord::lost(image)
                }
            },
        };
        let is_new = if learned { record.learn(name, owner) } else { record.note(name, owner) };
        if !is_new && !state.unwritten.contains_key(image) {
            return;
        }
        state.unwritten.remove(image);
        self.write(&mut state, record).await;
    }

    /// Writes a record, or keeps it in memory. Says whether it is written.
    async fn write(&self, state: &mut State, record: PullRecord) -> bool {
        let Err(error) = self.records.keep_pulled(&record).await else { return true };
        self.say(&error);
        if state.unwritten.len() >= MAX_UNWRITTEN {
            state.unwritten.pop_first();
        }
        state.unwritten.insert(record.image.clone(), record);
        false
    }

    /// Forgets what is gone, again and again, for ever.
    pub(crate) async fn run(&self, runtime: &dyn ContainerRuntime) {
        if !self.is_on() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(PERIOD).await;
            if let Err(error) = self.tidy(runtime).await {
                tracing::debug!("records of images that are gone stay for now: {error}");
            }
        }
    }

    /// Forgets images that are gone, and pulls of which the last life of the agent saw no end and that brought nothing.
    async fn tidy(&self, runtime: &dyn ContainerRuntime) -> Result<(), RuntimeError> {
        let (known, cut_off) = self.in_doubt().await;
        // Not held meanwhile: the runtime may take its time, and pods are not to wait for that.
        let mut there = BTreeSet::new();
        if !known.is_empty() {
            there.extend(runtime.stored_images().await?.into_iter().map(|image| image.id));
        }
        let mut came_to_nothing = Vec::new();
        for name in cut_off {
            if runtime.image(&name).await?.is_none() {
                came_to_nothing.push(name);
            }
        }
        let mut state = self.state().await;
        for gone in known.difference(&there).filter(|id| !state.noted.contains(*id)).cloned().collect::<Vec<_>>() {
            state.unwritten.remove(&gone);
            if let Err(error) = self.records.forget_pulled(&gone).await {
                self.say(&error);
            }
        }
        let before = state.pulls.len();
        for name in came_to_nothing {
            if state.pulls.get(&name).is_some_and(|pulls| pulls.running == 0) {
                state.pulls.remove(&name);
            }
        }
        if state.pulls.len() != before {
            self.keep_pulling(&state).await;
        }
        Ok(())
    }

    /// Images of which there are records, and the names of pulls that were cut off.
    async fn in_doubt(&self) -> (BTreeSet<String>, Vec<String>) {
        let mut state = self.state().await;
        state.noted.clear();
        while let Some((_, record)) = state.unwritten.pop_first() {
            if !self.write(&mut state, record).await {
                break;
            }
        }
        let mut known: BTreeSet<String> = state.unwritten.keys().cloned().collect();
        match self.records.all_pulled().await {
            Ok(images) => known.extend(images),
            Err(error) => self.say(&error),
        }
        let cut_off = state.pulls.iter().filter(|(_, pulls)| pulls.running == 0);
        (known, cut_off.map(|(name, _)| name.clone()).collect())
    }

    async fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().await;
        if !state.read {
            match self.records.pulling().await {
                Ok(names) => {
                    state.read = true;
                    for name in names {
                        state.pulls.entry(name).or_default().cut_off = true;
                    }
                }
                Err(error) => self.say(&error),
            }
        }
        state
    }

    async fn keep_pulling(&self, state: &State) {
        // What the last life of the agent left is not to be written over.
        if !state.read {
            return;
        }
        let names = state.pulls.keys().cloned().collect();
        if let Err(error) = self.records.keep_pulling(&names).await {
            self.say(&error);
        }
    }

    /// Says once that records cannot be had: every start of a pod would say the same.
    fn say(&self, error: &FilesError) {
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "what is remembered of image pulls cannot be read or written: {error}; until it can, images that came with a \
                 pod's credentials before this start of the agent are for every pod, and later ones after its next"
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use longshore_tests::files::FakeFiles;
    use longshore_tests::runtime::FakeRuntime;

    use super::*;

    #[tokio::test]
    async fn what_is_gone_is_forgotten_and_what_was_not_written_is_written_later() {
        let (files, runtime) = (Arc::new(FakeFiles::default()), FakeRuntime::default());
        let cut_off = ["r.io/here:2", "r.io/gone:2"].map(str::to_owned);
        files.keep_pulling(&BTreeSet::from(cut_off)).await.unwrap();
        runtime.has_image("r.io/here:1");
        runtime.has_image("r.io/here:2");
        let access = Access::new(files.clone(), Some(Verification::default()));
        for name in ["r.io/here:1", "r.io/gone:1"] {
            access.begins(name).await;
            access.brought(name, &format!("sha256:{name}"), None).await;
        }
        *files.pulls_fail.lock().unwrap() = true;
        access.brought("r.io/here:1", "sha256:r.io/here:2", None).await;
        *files.pulls_fail.lock().unwrap() = false;
        assert_eq!(files.all_pulled().await.unwrap(), ["sha256:r.io/gone:1", "sha256:r.io/here:1"]);
        access.tidy(&runtime).await.unwrap();
        assert_eq!(files.all_pulled().await.unwrap(), ["sha256:r.io/here:1", "sha256:r.io/here:2"]);
        assert_eq!(files.pulls_begun(), BTreeSet::from(["r.io/here:2".to_owned()]));
    }
}
