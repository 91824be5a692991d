//! Follows a list of the API server: list and watch, bookmarks, resuming, 410, and patience.
//!
//! As client-go's `tools/cache/reflector.go`: a watch that begins with a list where the server offers that, else a list
//! in pages and a watch from its version. What comes is handed on as [`Change`]s; a [`Change::Reset`] is always a
//! complete list. Keeps nothing of its own but the version; must not decide what a change means.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::time::Duration;

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use longshore_core::ports::cluster::ApiError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout_at};

use crate::requests::{Requests, Status, refusal, with_query};

/// Objects of a page of a list.
const PAGE: &str = "500";
/// Longest delay after failures.
const LONGEST: Duration = Duration::from_secs(30);
/// How long a watch's initial events may take before a plain list is tried.
const INITIAL_EVENTS: Duration = Duration::from_secs(15);
/// A watch that ends earlier than this without an event has failed.
const SHORT: Duration = Duration::from_secs(1);
/// A server that sends bookmarks sends one a minute: a watch without a word for this long is dead.
const SILENCE: Duration = Duration::from_secs(180);
/// Annotation on the bookmark after the initial events.
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// Something that happened to the list.
#[derive(Debug)]
pub(crate) enum Change<T> {
    /// All there is.
    Reset(Vec<T>),
    /// Came or changed.
    Put(T),
    /// Went.
    Gone(T),
}

/// Who is told.
pub(crate) trait Follower<T>: Send {
    /// The list changed. `Break` ends the following.
    fn change(&mut self, change: Change<T>) -> ControlFlow<()>;

    /// A request failed, for the given time in a row since one succeeded.
    fn failed(&mut self, error: &ApiError, times: u32);

    /// The server answered again after failures.
    fn recovered(&mut self) {}
}

/// What is followed.
#[derive(Clone, Debug)]
pub(crate) struct Followed {
    /// Path of the list.
    pub(crate) path: String,
    /// Field selector, empty for all.
    pub(crate) fields: String,
    /// Whether to begin the watch with a list where offered: one request less, but a while later.
    pub(crate) watch_list: bool,
    /// First delay after a failure; each further one is twice as long.
    pub(crate) first_delay: Duration,
}

/// Follows until the follower breaks; never ends else. Dropping the future ends the watch.
pub(crate) async fn follow<T>(requests: Requests, followed: Followed, mut follower: impl Follower<T>)
where
    T: DeserializeOwned + Metadata<Ty = ObjectMeta> + Send,
{
    let mut version: Option<String> = None;
    let mut failures = 0;
    // Lists in a row that no watch could go on from.
    let mut useless = 0;
    loop {
        let begun = Instant::now();
        let one_more = |useless: u32| if begun.elapsed() < LONGEST { useless + 1 } else { 1 };
        let known = version.take();
        let watches = known.is_some();
        let result = match known {
            Some(known) => watch(&requests, &followed, known, &mut follower, &mut failures).await,
            None if followed.watch_list && requests.offers_watch_list() => {
                watch_list(&requests, &followed, &mut follower, &mut failures).await
            }
            None => list(&requests, &followed, &mut follower, &mut failures).await,
        };
        let pause = match result {
            Step::Stop => return,
            Step::Resume(next, heard) => {
                version = Some(next);
                if watches && heard {
                    useless = 0;
                }
                if heard || begun.elapsed() >= SHORT { None } else { Some(SHORT) }
            }
            Step::Relist => {
                useless = one_more(useless);
                // Once is what happens to whoever was away. Of a server that forgets at once lists are not asked in a hurry.
                (useless > 1).then(|| delay(followed.first_delay, useless - 1))
            }
            Step::Useless(error) => {
                useless = one_more(useless);
                failures += 1;
                follower.failed(&error, failures);
                Some(delay(followed.first_delay, failures.max(useless)))
            }
            Step::Failed(next, error) => {
                version = next;
                failures += 1;
                follower.failed(&error, failures);
                let own = delay(followed.first_delay, failures);
                Some(if let ApiError::Busy { after } = error { own.max(jitter(after)) } else { own })
            }
        };
        if let Some(pause) = pause {
            sleep(pause).await;
        }
    }
}

/// How a request ended.
enum Step {
    /// The follower has enough.
    Stop,
    /// Go on from that version; whether anything was heard.
    Resume(String, bool),
    /// The version is too old, or there is a better way to list.
    Relist,
    /// The watch failed in a way that a list must mend, and that may come again at once.
    Useless(ApiError),
    /// Failed; the version to go on from if it still holds.
    Failed(Option<String>, ApiError),
}

#[derive(Deserialize)]
struct Page<T> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default = "nothing")]
    items: Option<Vec<T>>,
}

fn nothing<T>() -> Option<Vec<T>> {
    None
}

fn succeeded<T>(follower: &mut impl Follower<T>, failures: &mut u32) {
    if *failures > 0 {
        *failures = 0;
        follower.recovered();
    }
}

async fn list<T>(requests: &Requests, followed: &Followed, follower: &mut impl Follower<T>, failures: &mut u32) -> Step
where
    T: DeserializeOwned,
{
    let mut items = Vec::new();
    let mut next = String::new();
    loop {
        let mut query = vec![("limit", PAGE)];
        if !followed.fields.is_empty() {
            query.push(("fieldSelector", &followed.fields));
        }
        if !next.is_empty() {
            query.push(("continue", &next));
        }
        let page: Page<T> = match requests.list(&with_query(&followed.path, query)).await {
            Ok(page) => page,
            // The pages to come are those of a version that is gone: from the start.
            Err(ApiError::Refused { code: 410, .. }) if !next.is_empty() => {
                items.clear();
                next.clear();
                *failures += 1;
                sleep(delay(followed.first_delay, *failures)).await;
                continue;
            }
            Err(error) => return Step::Failed(None, error),
        };
        items.extend(page.items.into_iter().flatten());
        match page.metadata.continue_.filter(|more| !more.is_empty()) {
            Some(more) => next = more,
            None => {
                let version = page.metadata.resource_version.unwrap_or_default();
                succeeded(follower, failures);
                return match follower.change(Change::Reset(items)) {
                    ControlFlow::Break(()) => Step::Stop,
                    ControlFlow::Continue(()) => Step::Resume(version, true),
                };
            }
        }
    }
}

async fn watch_list<T>(
    requests: &Requests,
    followed: &Followed,
    follower: &mut impl Follower<T>,
    failures: &mut u32,
) -> Step
where
    T: DeserializeOwned + Metadata<Ty = ObjectMeta> + Send,
{
    let seconds = watch_seconds().to_string();
    let mut query = vec![
        ("watch", "true"),
        ("allowWatchBookmarks", "true"),
        ("sendInitialEvents", "true"),
        ("resourceVersionMatch", "NotOlderThan"),
        ("timeoutSeconds", &seconds),
    ];
    if !followed.fields.is_empty() {
        query.push(("fieldSelector", &followed.fields));
    }
    let path = with_query(&followed.path, query);
    let mut events = match requests.watch(&path).await {
        Ok(events) => events,
        Err(ApiError::Refused { code: 400..=499, message }) => {
            tracing::debug!(path = followed.path, message, "no watch that begins with a list; lists instead");
            requests.watch_list_refused();
            return Step::Relist;
        }
        Err(error) => return Step::Failed(None, error),
    };
    let limit = Instant::now() + INITIAL_EVENTS;
    let mut items: BTreeMap<(Option<String>, Option<String>), T> = BTreeMap::new();
    loop {
        let line = match timeout_at(limit, events.next()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => {
                let message = "a watch ended amid its initial events".to_owned();
                return Step::Failed(None, ApiError::Unreachable { message });
            }
            Ok(Err(error)) => return Step::Failed(None, error),
            // A server that does not know the parameter sends events and no end of them.
            Err(_) => {
                requests.watch_list_refused();
                return Step::Relist;
            }
        };
        match decode::<T>(&line, &followed.path) {
            Ok(Heard::Put(object)) => {
                let metadata = object.metadata();
                items.insert((metadata.namespace.clone(), metadata.name.clone()), object);
            }
            Ok(Heard::Gone(object)) => {
                let metadata = object.metadata();
                items.remove(&(metadata.namespace.clone(), metadata.name.clone()));
            }
            Ok(Heard::Bookmark { version, end_of_list: true }) => {
                succeeded(follower, failures);
                if follower.change(Change::Reset(items.into_values().collect())).is_break() {
                    return Step::Stop;
                }
                return hear(&mut events, followed, version, follower, true).await;
            }
            Ok(Heard::Bookmark { .. }) => {}
            Err(error @ ApiError::Busy { .. }) => return Step::Failed(None, error),
            // A server over an etcd without progress notices (before 3.4.25) begins the watch and then says 500: a
            // list is better than trying that for ever (client-go does so, too).
            Err(error) => {
                tracing::debug!(path = followed.path, %error, "no watch that begins with a list; lists instead");
                requests.watch_list_refused();
                return Step::Relist;
            }
        }
    }
}

async fn watch<T>(
    requests: &Requests,
    followed: &Followed,
    version: String,
    follower: &mut impl Follower<T>,
    failures: &mut u32,
) -> Step
where
    T: DeserializeOwned + Metadata<Ty = ObjectMeta> + Send,
{
    let seconds = watch_seconds().to_string();
    let mut query = vec![
        ("watch", "true"),
        ("allowWatchBookmarks", "true"),
        ("resourceVersion", version.as_str()),
        ("timeoutSeconds", &seconds),
    ];
    if !followed.fields.is_empty() {
        query.push(("fieldSelector", &followed.fields));
    }
    match requests.watch(&with_query(&followed.path, query)).await {
        Ok(mut events) => {
            succeeded(follower, failures);
            hear(&mut events, followed, version, follower, false).await
        }
        Err(error) if is_expired(&error) => Step::Relist,
        // A version that the server does not take (another etcd behind it) is no good for ever.
        Err(error @ ApiError::Refused { code: 400..=499, .. }) => Step::Useless(error),
        Err(error) => Step::Failed(Some(version), error),
    }
}

/// Hands on events until the watch ends.
async fn hear<T>(
    events: &mut crate::requests::Events,
    followed: &Followed,
    mut version: String,
    follower: &mut impl Follower<T>,
    mut heard: bool,
) -> Step
where
    T: DeserializeOwned + Metadata<Ty = ObjectMeta> + Send,
{
    // The server ends the watch after at most ten minutes; one that it forgets is ended here.
    let limit = Instant::now() + Duration::from_secs(660);
    // A balancer between us keeps a connection whose server is gone. Of a server that sends no bookmarks silence says nothing.
    let mut marked = false;
    loop {
        let until = if marked { limit.min(Instant::now() + SILENCE) } else { limit };
        let line = match timeout_at(until, events.next()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) | Err(_) => return Step::Resume(version, heard),
            Ok(Err(error)) => return Step::Failed(Some(version), error),
        };
        let change = match decode::<T>(&line, &followed.path) {
            Ok(Heard::Bookmark { version: newer, .. }) => {
                heard = true;
                marked = true;
                version = newer;
                continue;
            }
            Ok(Heard::Put(object)) => Change::Put(object),
            Ok(Heard::Gone(object)) => Change::Gone(object),
            Err(error) if is_expired(&error) => return Step::Relist,
            Err(error) if error.is_passing() && !is_garbage(&error) => return Step::Failed(Some(version), error),
            // What was missed is found out by a list.
            Err(error) => return Step::Useless(error),
        };
        heard = true;
        if let Change::Put(object) | Change::Gone(object) = &change
            && let Some(newer) = &object.metadata().resource_version
        {
            version.clone_from(newer);
        }
        if follower.change(change).is_break() {
            return Step::Stop;
        }
    }
}

enum Heard<T> {
    Put(T),
    Gone(T),
    Bookmark { version: String, end_of_list: bool },
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct With<O> {
    object: O,
}

#[derive(Deserialize)]
struct Marked {
    #[serde(default)]
    metadata: ObjectMeta,
}

fn decode<T: DeserializeOwned>(line: &[u8], path: &str) -> Result<Heard<T>, ApiError> {
    fn object<O: DeserializeOwned>(line: &[u8]) -> Result<O, serde_json::Error> {
        serde_json::from_slice::<With<O>>(line).map(|event| event.object)
    }
    let garbage = |error: serde_json::Error| ApiError::Refused {
        code: 502,
        message: format!("an event of a watch of {path} is not what it should be: {error}"),
    };
    let kind: Kind = serde_json::from_slice(line).map_err(garbage)?;
    match kind.kind.as_str() {
        "ADDED" | "MODIFIED" => object(line).map(Heard::Put).map_err(garbage),
        "DELETED" => object(line).map(Heard::Gone).map_err(garbage),
        "BOOKMARK" => {
            let Marked { metadata } = object(line).map_err(garbage)?;
            let end = metadata.annotations.as_ref().and_then(|known| known.get(END_OF_LIST));
            let end_of_list = end.is_some_and(|end| end == "true");
            Ok(Heard::Bookmark { version: metadata.resource_version.unwrap_or_default(), end_of_list })
        }
        "ERROR" => {
            let status: Status = object(line).map_err(garbage)?;
            let expired = matches!(status.reason.as_deref(), Some("Expired" | "Gone"));
            let code = if expired { 410 } else { status.code.unwrap_or(500) };
            Err(refusal(code, status, None, path))
        }
        other => Err(ApiError::Refused { code: 502, message: format!("{other:?} is not a kind of watch event") }),
    }
}

fn is_expired(error: &ApiError) -> bool {
    matches!(error, ApiError::Refused { code: 410, .. })
}

fn is_garbage(error: &ApiError) -> bool {
    matches!(error, ApiError::Refused { code: 502, .. })
}

/// Five to ten minutes, so that watches do not all end at once.
fn watch_seconds() -> u64 {
    300 + (random() * 300.0) as u64
}

/// `first`, doubled with each failure after the first one up to 30 s, and up to half as much again.
fn delay(first: Duration, failures: u32) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(12));
    jitter(doubled.min(LONGEST))
}

fn jitter(delay: Duration) -> Duration {
    delay.mul_f64(1.0 + random() / 2.0)
}

/// From 0 to 1, good enough to spread things over time.
pub(crate) fn random() -> f64 {
    (RandomState::new().hash_one(0u8) >> 11) as f64 / (1u64 << 53) as f64
}
