//! Pods' status on its way to the API server: sent at once, one request per pod at a time, what changes meanwhile
//! together in the next one; and the end of pods that were to be deleted.
//!
//! As `pkg/kubelet/status/status_manager.go`, without its reads: what the API server has is known from the watch and from
//! its answers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1;
use longshore_core::cluster::pod_patch::{is_part, patch};
use longshore_core::pod::{PodId, Source};
use longshore_core::ports::cluster::ApiError;
use longshore_core::view::PodView;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Cluster, Patience, Said, version};

/// Requests at a time.
const IN_FLIGHT: usize = 8;
/// How often all are compared, whatever was heard.
const RESYNC: Duration = Duration::from_secs(30);
/// How long an answer of our own is believed against a watch that has not caught up.
const CATCH_UP: Duration = Duration::from_secs(60);
/// When what was left out is sent again without a reason: of several API servers one may be older while they are upgraded, and a gate
/// may have been turned on.
const TRY_AGAIN: Duration = Duration::from_secs(3600);

/// Carries pods' status to the API server for ever; `server` is its version.
pub(super) async fn run(cluster: &Cluster, mut server: watch::Receiver<Option<(u32, u32)>>) {
    let mut writer = Writer {
        cluster,
        acknowledged: HashMap::new(),
        left_out: HashMap::new(),
        servers: 0,
        level: HashMap::new(),
        waiting: HashMap::new(),
        rest: Rest::default(),
        refused: Refused::default(),
        in_flight: HashSet::new(),
        tasks: JoinSet::new(),
        patience: Patience::new(Duration::from_secs(10)),
        said: Said::default(),
    };
    cluster.views.set_reported(0);
    let mut views = cluster.views.subscribe();
    let mut heard = cluster.pods.changes();
    let mut known = *server.borrow_and_update();
    loop {
        let version = *views.borrow_and_update();
        let next = writer.turn();
        if writer.is_done() {
            cluster.views.set_reported(version);
        }
        // Cancel safe: all of these keep what they did not yield.
        tokio::select! {
            Ok(()) = views.changed() => {}
            Some(()) = heard.next() => {}
            Ok(()) = server.changed() => {
                // The first word is no other one.
                let now = *server.borrow_and_update();
                if std::mem::replace(&mut known, now).is_some() {
                    writer.try_all();
                }
            }
            Some(done) = writer.tasks.join_next() => writer.ended(done),
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

/// What a request did.
struct Done {
    pod: PodId,
    result: Result<Answer, ApiError>,
}

enum Answer {
    /// The pod as the API server has it now.
    Patched {
        pod: Box<v1::Pod>,
        /// What it was told.
        view: Arc<PodView>,
        /// What is still due, as a patch.
        rest: Option<Value>,
        /// Whether that is only what it left out of what it was sent.
        is_left_out: bool,
        /// [`Writer::servers`] when it was sent.
        servers: u64,
    },
    /// It is gone, or it is another one's name now.
    Gone,
}

struct Level {
    known: Arc<v1::Pod>,
    view: Arc<PodView>,
    at: Instant,
}

/// Until when nothing is sent, since the API server is away or asked for time: that is no fault of one pod's, and sixty are
/// not to ask sixty times.
#[derive(Debug, Default)]
struct Rest(Option<Instant>);

impl Rest {
    fn until(&self, now: Instant) -> Option<Instant> {
        self.0.filter(|until| *until > now)
    }

    /// When what failed is tried again. What fails while it rests was under way before: all of that is one failure.
    fn failed(&mut self, error: &ApiError, patience: &mut Patience, now: Instant) -> Instant {
        let passing = matches!(error, ApiError::Unreachable { .. } | ApiError::Busy { .. });
        let until = match self.until(now).filter(|_| passing) {
            None => now + patience.after(error),
            Some(until) => match error {
                // What it asked for counts all the same.
                ApiError::Busy { after } => until.max(now + (*after).min(super::LONGEST)),
                _ => until,
            },
        };
        if passing {
            self.0 = Some(until);
        }
        until
    }
}

/// What the API server has against a pod's status, by UID: it may be for good, and is said once.
#[derive(Debug, Default)]
struct Refused(HashMap<String, String>);

impl Refused {
    /// Whether that was not said yet.
    fn is_news(&mut self, pod: &PodId, error: &ApiError) -> bool {
        let text = error.to_string();
        self.0.insert(pod.uid.clone(), text.clone()) != Some(text)
    }

    fn told(&mut self, pod: &PodId, error: &ApiError) {
        if self.is_news(pod, error) {
            tracing::warn!(pod = %pod, "the pod's status is not taken: {error}; trying again");
        }
    }
}

struct Writer<'a> {
    cluster: &'a Cluster,
    /// What the API server answered last, by UID, until the watch shows it.
    acknowledged: HashMap<String, (Arc<v1::Pod>, Instant)>,
    /// The patch that is still due after a status was taken, by UID, of servers that drop a part of it (fields of a newer
    /// version, or of a gate that is off), and since when: alone it is not sent, for it would be for ever. Of one version of the
    /// server.
    left_out: HashMap<String, (Value, Instant)>,
    /// How often the server's version changed.
    servers: u64,
    /// What was found to need no patch, by UID: not compared again until one of them changes.
    level: HashMap<String, Level>,
    /// When a pod that failed is tried again.
    waiting: HashMap<String, Instant>,
    rest: Rest,
    refused: Refused,
    in_flight: HashSet<String>,
    tasks: JoinSet<Done>,
    patience: Patience,
    said: Said,
}

impl Writer<'_> {
    /// Starts what is to be sent. Returns when to look again at the latest.
    fn turn(&mut self) -> Instant {
        let now = Instant::now();
        let mut next = now + RESYNC;
        if !self.cluster.pods.synced() {
            return next;
        }
        self.waiting.retain(|_, until| *until > now);
        if let Some(soonest) = self.waiting.values().min() {
            next = next.min(*soonest);
        }
        if let Some(until) = self.rest.until(now) {
            return next.min(until);
        }
        let mirrors = self.cluster.pods.mirrors();
        for view in self.cluster.views.published() {
            if self.tasks.len() >= IN_FLIGHT {
                return next;
            }
            match view.source {
                Source::Api => self.report(&view, view.id.clone()),
                _ => {
                    let own = mirrors.iter().find(|mirror| is_named(mirror, &view.id));
                    let uid = own.and_then(|mirror| mirror.metadata.uid.clone());
                    if let Some(uid) = uid {
                        self.report(&view, PodId { uid, ..view.id.clone() });
                    }
                }
            }
        }
        for view in self.cluster.views.ended() {
            if self.tasks.len() >= IN_FLIGHT {
                return next;
            }
            self.finish(&view);
        }
        self.acknowledged.retain(|_, (_, at)| at.elapsed() < CATCH_UP);
        self.left_out.retain(|uid, (_, at)| at.elapsed() < TRY_AGAIN && self.cluster.pods.pod(uid).is_some());
        self.refused.0.retain(|uid, _| self.cluster.pods.pod(uid).is_some());
        self.level.retain(|_, level| level.at.elapsed() < RESYNC);
        next
    }

    /// What was left out is sent again: an API server of another version may keep it.
    fn try_all(&mut self) {
        self.servers += 1;
        self.left_out.clear();
        self.level.clear();
    }

    /// Whether the API server knows all that there was at the last turn.
    fn is_done(&self) -> bool {
        self.cluster.pods.synced()
            && self.rest.until(Instant::now()).is_none()
            && self.in_flight.is_empty()
            && self.waiting.is_empty()
    }

    fn may(&self, uid: &str) -> bool {
        !self.in_flight.contains(uid) && !self.waiting.contains_key(uid)
    }

    /// The pod as the API server has it: its last answer, until the watch shows something newer.
    fn known(&self, uid: &str) -> Option<Arc<v1::Pod>> {
        let seen = self.cluster.pods.pod(uid)?;
        match self.acknowledged.get(uid) {
            Some((answer, _)) if version(&answer.metadata) >= version(&seen.metadata) => Some(answer.clone()),
            _ => Some(seen),
        }
    }

    fn report(&mut self, view: &Arc<PodView>, pod: PodId) {
        if !self.may(&pod.uid) {
            return;
        }
        let Some(known) = self.known(&pod.uid) else { return };
        let is_level = |level: &Level| Arc::ptr_eq(&level.known, &known) && Arc::ptr_eq(&level.view, view);
        if self.level.get(&pod.uid).is_some_and(is_level) {
            return;
        }
        let Some(due) = self.due(&known, view) else {
            self.level.insert(pod.uid, Level { known, view: view.clone(), at: Instant::now() });
            return;
        };
        let (api, view, servers) = (self.cluster.api.clone(), Arc::clone(view), self.servers);
        self.in_flight.insert(pod.uid.clone());
        self.tasks.spawn(async move {
            let result = api.patch_pod_status(&pod, &due).await.map(|pod| {
                let rest = view.object.status.as_ref().and_then(|status| patch(&pod, status));
                let is_left_out = rest.as_ref().is_some_and(|rest| is_part(rest, &due));
                Answer::Patched { pod: Box::new(pod), view, rest, is_left_out, servers }
            });
            Done { pod, result }
        });
    }

    /// The patch that a pod's status needs in the API server, which has the pod as `known`.
    fn due(&self, known: &v1::Pod, view: &PodView) -> Option<Value> {
        let due = patch(known, view.object.status.as_ref()?)?;
        let left_out = known.metadata.uid.as_ref().and_then(|uid| self.left_out.get(uid));
        (left_out.map(|(left_out, _)| left_out) != Some(&due)).then_some(due)
    }

    /// The last status of a pod of which nothing is left here, and then its deletion. A pod that nobody wants to be
    /// deleted, or that is gone already, is done.
    fn finish(&mut self, view: &PodView) {
        let uid = &view.id.uid;
        if !self.may(uid) {
            return;
        }
        let Some(known) = self.known(uid) else {
            self.cluster.views.forget_ended(uid);
            self.acknowledged.remove(uid);
            self.left_out.remove(uid);
            return;
        };
        if known.metadata.deletion_timestamp.is_none() {
            return;
        }
        let last = self.due(&known, view);
        let (api, pod) = (self.cluster.api.clone(), view.id.clone());
        self.in_flight.insert(uid.clone());
        self.tasks.spawn(async move {
            if let Some(patch) = last
                && let Err(error) = api.patch_pod_status(&pod, &patch).await
                && !matches!(error, ApiError::NotFound { .. } | ApiError::Conflict { .. })
            {
                return Done { pod, result: Err(error) };
            }
            let result = api.delete_pod(&pod, 0).await.map(|()| Answer::Gone);
            Done { pod, result }
        });
    }

    fn ended(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let Done { pod, result } = match done {
            Ok(done) => done,
            Err(error) => {
                // Nothing in there panics; should it, all are tried again.
                tracing::error!("a status request failed: {error}");
                self.in_flight.clear();
                return;
            }
        };
        self.in_flight.remove(&pod.uid);
        match result {
            Ok(Answer::Patched { pod: answer, view, rest, is_left_out, servers }) => {
                self.said.worked("pods' status");
                self.patience.reset();
                self.refused.0.remove(&pod.uid);
                let (known, at) = (Arc::new(*answer), Instant::now());
                // The former server's word says nothing of this one.
                let is_left_out = is_left_out && servers == self.servers;
                // Somebody else's word that came meanwhile is not level: the next turn answers it.
                if rest.is_none() || is_left_out {
                    self.level.insert(pod.uid.clone(), Level { known: known.clone(), view, at });
                }
                match rest.filter(|_| is_left_out) {
                    Some(left_out) => drop(self.left_out.insert(pod.uid.clone(), (left_out, at))),
                    None => drop(self.left_out.remove(&pod.uid)),
                }
                self.acknowledged.insert(pod.uid, (known, at));
            }
            Ok(Answer::Gone) => {
                self.said.worked("pods' status");
                self.patience.reset();
                self.cluster.views.forget_ended(&pod.uid);
                self.acknowledged.remove(&pod.uid);
                self.left_out.remove(&pod.uid);
            }
            Err(error @ (ApiError::NotFound { .. } | ApiError::Conflict { .. })) => {
                // The watch will say what became of it.
                tracing::debug!(pod = %pod, "its status was not taken: {error}");
                self.waiting.insert(pod.uid, Instant::now() + Duration::from_secs(1));
            }
            Err(error) => {
                match &error {
                    ApiError::Refused { code, .. } if *code < 500 => self.refused.told(&pod, &error),
                    error => self.said.failed("pods' status cannot be written", error),
                }
                let until = self.rest.failed(&error, &mut self.patience, Instant::now());
                self.waiting.insert(pod.uid, until);
            }
        }
    }
}

fn is_named(mirror: &v1::Pod, id: &PodId) -> bool {
    mirror.metadata.name.as_deref() == Some(id.name.as_str())
        && mirror.metadata.namespace.as_deref() == Some(id.namespace.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_told_once_of_each_pod() {
        let mut refused = Refused::default();
        let pod = |uid: &str| PodId { namespace: "d".to_owned(), name: uid.to_owned(), uid: uid.to_owned() };
        let error = |message: &str| ApiError::Refused { code: 422, message: message.to_owned() };
        let news =
            [("a", "x"), ("b", "x"), ("a", "x"), ("a", "y")].map(|(uid, why)| refused.is_news(&pod(uid), &error(why)));
        assert_eq!(news, [true, true, false, true]);
    }

    #[test]
    fn requests_that_fail_together_are_one_failure() {
        let (mut rest, mut patience) = (Rest::default(), Patience::new(Duration::from_secs(10)));
        let away = ApiError::Unreachable { message: "reset".to_owned() };
        let now = Instant::now();
        for _ in 0..8 {
            assert_eq!(rest.failed(&away, &mut patience, now), now + Duration::from_millis(200));
        }
        let later = now + Duration::from_millis(200);
        assert_eq!(rest.until(later), None);
        // Nobody comes sooner than the API server asked for.
        let busy = ApiError::Busy { after: Duration::from_secs(3) };
        let mut other = Rest(Some(later));
        assert_eq!(other.failed(&busy, &mut patience, now), now + Duration::from_secs(3));
        assert_eq!(other.failed(&away, &mut patience, now), now + Duration::from_secs(3));
        assert_eq!(rest.failed(&away, &mut patience, later), later + Duration::from_millis(400));
        // What is one pod's own fault holds up no other.
        let later = later + Duration::from_secs(1);
        let refused = ApiError::Refused { code: 422, message: "no".to_owned() };
        assert_eq!(rest.failed(&refused, &mut patience, later), later + Duration::from_millis(800));
        assert_eq!(rest.until(later), None);
    }
}
