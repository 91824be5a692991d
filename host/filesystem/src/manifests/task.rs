//! The loop behind a [`super::ManifestFolder`]: wait, look, say.
//!
//! Flow: changes (inotify, gathered for at most 100 ms), the rescan, and files that are not settled wake it; it lists the
//! folder, reads what changed, and publishes the state if it differs. Guarantees: a listing or a file that hangs is waited for once
//! and then only asked whether it has come back, so it holds at most its own thread; everything else goes on.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::StreamExt;
use longshore_core::manifest::{self, Origin};
use longshore_core::pod::Source;
use longshore_core::ports::sources::SourceProblem;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::folder::{self, Content, Listing, Stamp, Unread};
use super::state::State;
use super::watch::Watch;
use super::{Memory, Word};

/// How long the folder, and each file, may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Quiet that ends a burst of changes, and the longest burst.
const QUIET: Duration = Duration::from_millis(5);
const BURST: Duration = Duration::from_millis(100);
/// How often a folder that is not there is looked for.
const MISSING: Duration = Duration::from_secs(1);
/// How soon a file that may be half written is looked at again.
const UNSETTLED: Duration = Duration::from_millis(150);
/// Files that are read at a time, and that hang before no more are tried; some of the former may come on top.
const READERS: usize = 8;
const HANGING: usize = 32;

/// Begins to watch a folder, and wakes on changes.
pub(super) type Hear = Arc<dyn Fn(&Path, Arc<Notify>) -> Result<Watch, String> + Send + Sync>;

pub(super) struct Task {
    pub(super) path: PathBuf,
    pub(super) node_name: String,
    pub(super) rescan: Duration,
    pub(super) memory: Option<Memory>,
    /// How changes are heard of.
    pub(super) hear: Hear,
    pub(super) words: watch::Sender<Word>,
    pub(super) stop: CancellationToken,
}

/// A listing under way, with the watch that was made for it.
type Look = JoinHandle<(Option<Result<Watch, String>>, std::io::Result<Listing>)>;

struct Eyes {
    wake: Arc<Notify>,
    watch: Option<Watch>,
    look: Option<Look>,
    hanging: HashMap<OsString, JoinHandle<Content>>,
}

impl Task {
    pub(super) async fn run(mut self) {
        let mut state = State::new(self.path.clone());
        let (mut remembered, mut unsaved) = (None, String::new());
        if let Some(memory) = &mut self.memory {
            remembered = memory.load().await;
            state.remember(memory.clone(), remembered);
            memory.former = Vec::new();
        }
        let mut eyes = Eyes { wake: Arc::new(Notify::new()), watch: None, look: None, hanging: HashMap::new() };
        loop {
            let looked = now();
            let listed = tokio::select! {
                // Nothing is lost: the state is this loop's own, and it ends.
                () = self.stop.cancelled() => return,
                listed = self.scan(&mut state, &mut eyes, looked) => listed,
            };
            // First remembered, then said: no pod runs from a folder that a restart would not know.
            if let (Some(memory), Some(identity)) = (&self.memory, state.identity())
                && remembered != Some(identity)
            {
                match memory.save(identity).await {
                    Ok(()) => (remembered, unsaved) = (Some(identity), String::new()),
                    // Tried again with the next look.
                    Err(error) if error == unsaved => {}
                    Err(error) => {
                        tracing::warn!(
                            error,
                            "cannot remember the manifest folder: a disk missing after a reboot would go unnoticed"
                        );
                        unsaved = error;
                    }
                }
            }
            if !listed || !state.awaits(looked) {
                self.publish(&mut state);
            }
            let pause = match listed {
                false => MISSING.min(self.rescan),
                true if state.unsettled() => UNSETTLED.min(self.rescan),
                true => self.rescan,
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                // A notification that came in meanwhile is kept for the next turn.
                () = eyes.wake.notified() => gather(&eyes.wake).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Looks once at everything, from `looked` on; whether the folder could be read.
    async fn scan(&self, state: &mut State, eyes: &mut Eyes, looked: i128) -> bool {
        let listing = match self.list(eyes).await {
            Ok(listing) => listing,
            Err(reason) => {
                eyes.watch = None;
                state.unreadable(&reason);
                return false;
            }
        };
        let look = state.listed(listing.0, looked);
        if let Some(reason) = listing.1 {
            state.unwatched(&reason);
        }
        self.read(state, eyes, look).await;
        true
    }

    /// The listing, and why there is no watch on the folder.
    async fn list(&self, eyes: &mut Eyes) -> Result<(Listing, Option<String>), Unread> {
        let mut reason = None;
        // A second round, when the watch turns out to be on a folder that is no longer there.
        for _ in 0..2 {
            let look = eyes.look.get_or_insert_with(|| {
                let (path, wake, watched) = (self.path.clone(), eyes.wake.clone(), eyes.watch.is_some());
                let hear = self.hear.clone();
                tokio::task::spawn_blocking(move || {
                    // First the watch, then the look: what changes in between wakes us.
                    let watch = (!watched).then(|| hear(watched_folder(&path), wake));
                    (watch, folder::list(&path))
                })
            });
            let Ok(looked) = tokio::time::timeout(ANSWER, look).await else {
                return Err(Unread::Other(format!("it does not answer within {} s", ANSWER.as_secs())));
            };
            eyes.look = None;
            let (watch, listing) =
                looked.map_err(|error| Unread::Other(format!("looking at it broke off: {error}")))?;
            match watch {
                Some(Ok(watch)) => eyes.watch = Some(watch),
                Some(Err(error)) => reason = Some(error),
                None => {}
            }
            let listing = listing.map_err(Unread::from)?;
            match &eyes.watch {
                Some(watch) if !watch.holds(listing.identity) => eyes.watch = None,
                _ => return Ok((listing, reason)),
            }
        }
        Err(Unread::Other("it is being replaced over and over".to_owned()))
    }

    async fn read(&self, state: &mut State, eyes: &mut Eyes, look: Vec<(OsString, PathBuf, Option<Stamp>)>) {
        eyes.hanging.retain(|_, reading| !reading.is_finished());
        let look: Vec<_> = look.into_iter().filter(|(name, ..)| !eyes.hanging.contains_key(name)).collect();
        let hanging = AtomicUsize::new(eyes.hanging.len());
        let mut contents = futures::stream::iter(look)
            .map(|(name, path, known)| {
                let few = hanging.load(Ordering::Relaxed) < HANGING;
                async move {
                    let place = path.clone();
                    if !few {
                        return (name, place, Err(None));
                    }
                    let mut reading = tokio::task::spawn_blocking(move || folder::read(&path, known));
                    let content = tokio::time::timeout(ANSWER, &mut reading).await;
                    (name, place, content.map_err(|_| Some(reading)))
                }
            })
            .buffer_unordered(READERS);
        while let Some((name, place, content)) = contents.next().await {
            match content {
                Ok(Ok(content)) => self.take(state, &name, &place, content).await,
                Ok(Err(error)) => state.file_unreadable(&name, format!("reading it broke off: {error}")),
                Err(Some(reading)) => {
                    state.file_unreadable(&name, format!("does not answer within {} s", ANSWER.as_secs()));
                    hanging.fetch_add(1, Ordering::Relaxed);
                    eyes.hanging.insert(name, reading);
                }
                Err(None) => {
                    state.file_unreadable(
                        &name,
                        format!("is not read while {HANGING} files of the folder do not answer"),
                    );
                }
            }
        }
    }

    async fn take(&self, state: &mut State, name: &OsString, place: &Path, content: Content) {
        match content {
            Content::Unchanged => {}
            Content::Folder => state.file_ignored(name),
            Content::Unreadable(reason) => state.file_unreadable(name, reason),
            Content::Bytes(stamp, bytes) => {
                let origin = origin(place, &self.node_name);
                // A manifest of 10 MiB takes longer than a runtime's thread may be held.
                match tokio::task::spawn_blocking(move || manifest::parse(&bytes, &origin)).await {
                    Ok(parsed) => state.file_read(name, stamp, parsed, now()),
                    Err(error) => {
                        state.file_unreadable(name, format!("parsing it broke off, a fault of longshore: {error}"));
                    }
                }
            }
        }
    }

    fn publish(&self, state: &mut State) {
        let (snapshot, objects) = state.snapshot();
        let spoke = state.spoke();
        let before = self.words.borrow().clone();
        for problem in snapshot.problems.iter().filter(|problem| !before.problems.contains(problem)) {
            let SourceProblem { place, message, warning } = problem;
            if *warning {
                tracing::warn!(place, "{message}");
            } else {
                tracing::error!(place, "{message}");
            }
        }
        self.words.send_if_modified(|word| {
            let objects_differ = spoke && word.objects.as_deref() != Some(&objects);
            let pods_differ = spoke && word.snapshot.as_deref() != Some(&snapshot);
            if objects_differ {
                word.objects = Some(Arc::new(objects));
                word.objects_version += 1;
            }
            let problems_differ = word.problems != snapshot.problems;
            if problems_differ {
                word.problems = snapshot.problems.clone();
            }
            if pods_differ {
                word.snapshot = Some(Arc::new(snapshot));
                word.snapshot_version += 1;
            }
            objects_differ || pods_differ || problems_differ
        });
    }
}

/// The folder to watch for a path: itself, or its parent when it is a file, which editors replace.
fn watched_folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if path.is_file() => parent,
        _ => path,
    }
}

/// Waits until a burst of changes ends.
async fn gather(wake: &Notify) {
    let end = tokio::time::Instant::now() + BURST;
    loop {
        let quiet = (tokio::time::Instant::now() + QUIET).min(end);
        // Cancel-safe: a notification that is not consumed stays for the next call.
        if tokio::time::timeout_at(quiet, wake.notified()).await.is_err() {
            return;
        }
    }
}

pub(super) fn origin(place: &Path, node_name: &str) -> Origin {
    Origin { source: Source::File, node_name: node_name.to_owned(), place: place.to_string_lossy().into_owned() }
}

/// Nanoseconds since the epoch.
pub(super) fn now() -> i128 {
    jiff::Timestamp::now().as_nanosecond()
}
