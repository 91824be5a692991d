//! Pods' certificates: a key made here, a PodCertificateRequest for it, the signer's answer, and a new one in time.
//!
//! As `pkg/kubelet/podcertificate`, one task for each source of a volume. Two things differ: a certificate that was kept
//! is used after a restart of the agent, and one that has no successor yet is served for as long as there is none, also
//! an expired one (the pod's owner is told). The spread of refreshes is a tenth of what is left of the certificate's life
//! at most, so that none is refreshed only after its end. Keys are kept as secrets, and nowhere else.

mod keys;
mod request;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;
use longshore_core::ports::archive::ArchiveKey;
use longshore_core::ports::cluster::ApiError;
use longshore_core::ports::objects::{CertificateQuery, CertificateWarning, CertificateWord, ObjectError};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use self::keys::Key;
use self::request::{Issued, Refused, Request, Served, SubmitError, Verdict, Wanted};
use crate::kept::{Kept, KeptCertificate, key, pod_id};
use crate::objects::Whole;
use crate::reflector::random;
use crate::requests::Requests;

/// How long a first certificate is waited for: a signer that is quick spares the pod a failed mount.
const FIRST: Duration = Duration::from_secs(2);
/// Largest spread of the refreshes (`jitterDuration`).
const SPREAD: SignedDuration = SignedDuration::from_mins(5);
/// A request that is not seen for this long, and up to half as long again, is taken for deleted
/// (`assumeDeletedThreshold`).
const UNSEEN: Duration = Duration::from_secs(600);
/// After this much beyond its time a refresh is overdue (`refreshOverdueDuration`).
const OVERDUE: SignedDuration = SignedDuration::from_mins(10);
/// Waits after failures: the first, doubled with each up to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(300));
/// The clock may be set while we sleep.
const NAP: Duration = Duration::from_secs(60);

/// Certificates at hand, and those that are asked for.
pub(crate) struct PodCertificates {
    shared: Arc<Shared>,
    slots: Mutex<BTreeMap<SlotKey, Slot>>,
}

/// UID of the pod, name of the volume, index of the source.
type SlotKey = (String, String, usize);

struct Shared {
    requests: Requests,
    kept: Kept,
    changed: watch::Sender<u64>,
    /// What the API server has, once that is known.
    served: Mutex<Option<Served>>,
    /// All requests of this node, followed while one of them is waited for.
    pending: Mutex<Weak<Followed>>,
    /// Making an RSA key takes a core for seconds: one at a time.
    making: Semaphore,
}

struct Followed {
    of: Served,
    whole: Whole<Request>,
}

/// What is known of one source's certificate.
#[derive(Default)]
struct State {
    at_hand: Option<KeptCertificate>,
    /// Why there is none, or no newer one.
    trouble: Option<String>,
    /// The signer's final word.
    refused: Option<Refused>,
    warnings: Vec<CertificateWarning>,
    told_overdue: bool,
    told_expired: bool,
}

struct Slot {
    state: Arc<watch::Sender<State>>,
    task: JoinHandle<()>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When a certificate is replaced: a while after its signer says, and in time before its end.
fn due(issued: &Issued, random: f64) -> Timestamp {
    let left = issued.expires.duration_since(issued.refresh).max(SignedDuration::ZERO);
    let spread = SPREAD.min(left / 10).as_secs_f64() * random;
    issued.refresh.checked_add(SignedDuration::from_secs_f64(spread)).unwrap_or(issued.refresh)
}

fn delay(failures: u32) -> Duration {
    let doubled = BACK_OFF.0.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(BACK_OFF.1).mul_f64(1.0 + random() / 4.0)
}

impl PodCertificates {
    pub(crate) fn new(requests: Requests, kept: Kept, changed: watch::Sender<u64>) -> Self {
        let shared = Shared {
            requests,
            kept,
            changed,
            served: Mutex::default(),
            pending: Mutex::default(),
            making: Semaphore::new(1),
        };
        Self { shared: Arc::new(shared), slots: Mutex::default() }
    }

    /// As [`longshore_core::ports::objects::ObjectStore::certificate`].
    pub(crate) async fn get(&self, pod: &v1::Pod, query: &CertificateQuery) -> CertificateWord {
        let id = pod_id(pod);
        let slot_key = (id.uid.clone(), query.volume.clone(), query.index);
        let begun = || {
            let spec = pod.spec.as_ref();
            let text = |field: Option<&String>| field.cloned().unwrap_or_default();
            let wanted = Wanted {
                pod: id.clone(),
                node: text(spec.and_then(|spec| spec.node_name.as_ref())),
                account: text(spec.and_then(|spec| spec.service_account_name.as_ref())),
                source: query.source.clone(),
            };
            let state = Arc::new(watch::Sender::new(State::default()));
            let archived = key::certificate(&id, &query.volume, query.index);
            let task = tokio::spawn(keep(Arc::clone(&self.shared), wanted, archived, Arc::clone(&state)));
            Slot { state, task }
        };
        let (state, is_new) = {
            let mut slots = lock(&self.slots);
            let is_new = !slots.contains_key(&slot_key);
            (Arc::clone(&slots.entry(slot_key).or_insert_with(begun).state), is_new)
        };
        if is_new {
            let mut known = state.subscribe();
            let settled = |state: &State| state.at_hand.is_some() || state.refused.is_some();
            drop(timeout(FIRST, known.wait_for(settled)).await);
        }
        let mut warnings = Vec::new();
        state.send_if_modified(|state| {
            warnings = std::mem::take(&mut state.warnings);
            false
        });
        let state = state.borrow();
        let certificate = match (&state.refused, &state.at_hand) {
            (Some(refused), _) => Err(refused.permanently()),
            (None, Some(kept)) => Ok(kept.certificate()),
            (None, None) => Err(match &state.trouble {
                Some(trouble) => format!("credential bundle is not issued yet: {trouble}"),
                None => "credential bundle is not issued yet".to_owned(),
            }),
        };
        let certificate = certificate.map_err(|message| ObjectError {
            kind: "PodCertificateRequest",
            namespace: id.namespace.clone(),
            name: format!("of volume {:?}", query.volume),
            message,
        });
        CertificateWord { certificate, warnings }
    }

    /// The pod is gone, and with it all that was issued to it.
    pub(crate) fn forget(&self, uid: &str) {
        lock(&self.slots).retain(|(of, _, _), _| of != uid);
    }

    /// Whether there is more to tell of certificates than before: those whose refresh is overdue, and expired ones.
    pub(crate) fn sweep(&self, now: Timestamp) -> bool {
        let mut any = false;
        for slot in lock(&self.slots).values() {
            slot.state.send_if_modified(|state| {
                any |= state.look_at_the_clock(now);
                false
            });
        }
        any
    }
}

impl State {
    /// Notes what is to be told of the certificate at hand, once.
    fn look_at_the_clock(&mut self, now: Timestamp) -> bool {
        let Some(kept) = &self.at_hand else { return false };
        let overdue = now.duration_since(kept.refresh) > OVERDUE && !std::mem::replace(&mut self.told_overdue, true);
        let expired = now > kept.expires && !std::mem::replace(&mut self.told_expired, true);
        for (is, reason, message) in [
            (overdue, "CertificateOverdueForRefresh", "PodCertificate refresh overdue"),
            (expired, "CertificateExpired", "PodCertificate expired"),
        ] {
            if is {
                let why = self.trouble.as_ref().map(|trouble| format!(": {trouble}")).unwrap_or_default();
                self.warnings.push(CertificateWarning { reason, message: format!("{message}{why}") });
            }
        }
        overdue || expired
    }
}

impl Refused {
    /// What the volume says.
    fn permanently(&self) -> String {
        let Refused { condition, reason, message } = self;
        let word = condition.to_lowercase();
        format!("PodCertificateRequest was permanently {word}: reason={reason:?} message={message:?}")
    }
}

/// Keeps one source's certificate until the signer refuses it for good; dropped with the slot.
async fn keep(shared: Arc<Shared>, wanted: Wanted, archived: ArchiveKey, state: Arc<watch::Sender<State>>) {
    if let Some(kept) = shared.kept.get::<KeptCertificate>(&archived).await {
        state.send_modify(|state| state.at_hand = Some(kept));
    }
    let (mut failures, mut made) = (0, None);
    loop {
        let due = state.borrow().at_hand.as_ref().map(|kept| kept.due);
        if let Some(due) = due {
            until(due).await;
        }
        let tell = |trouble: String| state.send_modify(|state| state.trouble = Some(trouble));
        match shared.issue(&wanted, &mut made, &tell).await {
            Ok(Answer::Issued(kept)) => {
                failures = 0;
                made = None;
                shared.kept.put(&archived, &kept, true);
                state.send_modify(|state| *state = State { at_hand: Some(kept), ..State::default() });
                shared.wake();
            }
            Ok(Answer::Refused { name, refused }) => {
                let namespace = &wanted.pod.namespace;
                let word = if refused.condition == "Denied" { "was denied" } else { "failed" };
                let message = format!(
                    "PodCertificateRequest {namespace}/{name} {word}, reason={:?}, message={:?}",
                    refused.reason, refused.message
                );
                tracing::warn!(pod = %wanted.pod, "{message}");
                shared.kept.remove(&archived);
                state.send_modify(|state| {
                    state.warnings.push(CertificateWarning { reason: refused.condition, message });
                    state.refused = Some(refused);
                });
                return shared.wake();
            }
            Err(trouble) => {
                failures += 1;
                tracing::debug!(pod = %wanted.pod, failures, "no certificate yet: {trouble}");
                tell(trouble);
                sleep(delay(failures)).await;
            }
        }
    }
}

/// Sleeps until that time, whatever is done to the clock.
async fn until(due: Timestamp) {
    while let Ok(left) = Duration::try_from(due.duration_since(Timestamp::now())) {
        if left.is_zero() {
            return;
        }
        sleep(left.min(NAP)).await;
    }
}

/// The end of a request.
enum Answer {
    Issued(KeptCertificate),
    Refused { name: String, refused: Refused },
}

impl Shared {
    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// What the API server has: asked once, and again after it refused something.
    async fn served(&self) -> Result<Served, String> {
        let known = *lock(&self.served);
        match known {
            Some(served) => Ok(served),
            None => {
                let served = Served::ask(&self.requests).await?;
                *lock(&self.served) = Some(served);
                Ok(served)
            }
        }
    }

    /// Asks for a certificate and waits for the answer; who is waited for is told meanwhile. A key that was made for it
    /// serves the next try, too.
    async fn issue(
        &self,
        wanted: &Wanted,
        made: &mut Option<Arc<Key>>,
        tell: &(impl Fn(String) + Sync),
    ) -> Result<Answer, String> {
        let served = self.served().await?;
        let key = match made {
            Some(key) => Arc::clone(key),
            None => {
                let key = Arc::new(self.make(&wanted.source.key_type).await?);
                *made = Some(Arc::clone(&key));
                key
            }
        };
        let name = wanted.submit(&self.requests, served, &key).await.map_err(|error| {
            // Another server, or another version of it.
            if let SubmitError::Api(cause) = &error
                && !cause.is_passing()
                && !matches!(cause, ApiError::Forbidden { .. })
            {
                *lock(&self.served) = None;
            }
            error.to_string()
        })?;
        let (namespace, signer) = (&wanted.pod.namespace, &wanted.source.signer_name);
        tell(format!("PodCertificateRequest {namespace}/{name} waits for its signer, {signer}"));
        let answer = self.wait(served, wanted, &name).await?;
        Ok(match answer {
            Verdict::Issued(issued) => {
                let due = due(&issued, random());
                let Issued { chain, refresh, expires } = issued;
                tracing::info!(pod = %wanted.pod, request = name, %expires, "a pod's certificate was issued");
                Answer::Issued(KeptCertificate { key: key.pem(), chain, refresh, due, expires })
            }
            Verdict::Refused(refused) => Answer::Refused { name, refused },
            Verdict::Pending => return Err(format!("PodCertificateRequest {name} is undecided")),
        })
    }

    async fn make(&self, key_type: &str) -> Result<Key, String> {
        let _turn = self.making.acquire().await.map_err(|error| error.to_string())?;
        let key_type = key_type.to_owned();
        let made = tokio::task::spawn_blocking(move || Key::generate(&key_type)).await;
        made.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// The requests of the node, followed for as long as somebody holds them.
    fn follow(&self, served: Served, node: &str) -> Arc<Followed> {
        let mut pending = lock(&self.pending);
        if let Some(followed) =
            pending.upgrade().filter(|followed| followed.of == served && !followed.whole.is_absent())
        {
            return followed;
        }
        let fields = format!("spec.nodeName={node}");
        let whole = Whole::start(self.requests.clone(), served.list(), fields, watch::Sender::new(0));
        let followed = Arc::new(Followed { of: served, whole });
        *pending = Arc::downgrade(&followed);
        followed
    }

    /// Waits until the signer has decided, which may take as long as it likes.
    async fn wait(&self, served: Served, wanted: &Wanted, name: &str) -> Result<Verdict, String> {
        let followed = self.follow(served, &wanted.node);
        let mut known = followed.whole.known();
        let key = (wanted.pod.namespace.clone(), name.to_owned());
        let unseen = Instant::now() + UNSEEN.mul_f64(1.0 + random() / 2.0);
        let mut seen = false;
        loop {
            let (found, absent) = {
                let known = known.borrow_and_update();
                (known.listed.as_ref().map(|listed| listed.get(&key).cloned()), known.absent)
            };
            if absent {
                *lock(&self.served) = None;
                return Err(format!("PodCertificateRequest {name}: the API server serves another version of them now"));
            }
            match &found {
                Some(Some(request)) => {
                    seen = true;
                    match request.verdict() {
                        Ok(Verdict::Pending) => {}
                        Ok(verdict) => return Ok(verdict),
                        Err(error) => return Err(format!("PodCertificateRequest {name}: {error}")),
                    }
                }
                // What was never seen may have been made after the list.
                Some(None) if seen || Instant::now() >= unseen => {
                    *lock(&self.served) = None;
                    return Err(format!("PodCertificateRequest {name} appears to have been deleted"));
                }
                _ => {}
            }
            let more = match (seen, found) {
                (false, Some(_)) => timeout_at(unseen, known.changed()).await.unwrap_or(Ok(())),
                _ => known.changed().await,
            };
            more.map_err(|_| "PodCertificateRequests are followed no longer".to_owned())?;
        }
    }
}
