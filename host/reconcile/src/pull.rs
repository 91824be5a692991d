//! Pulls: bounded in number and rate, one per image at a time, with progress for all who wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use longshore_core::credentials::access::OwnedCredentials;
use longshore_core::duration;
use longshore_core::ports::runtime::{ContainerRuntime, Image, PullError, PullProgress};
use tokio::sync::{Semaphore, watch};

use crate::access::Access;
use crate::inbox::Failure;
use crate::node::Options;

type Outcome = Option<Result<Pulled, NotPulled>>;

/// An image that was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pulled {
    pub(crate) image: Image,
    /// How long that took, without the wait for its turn.
    took: Duration,
}

impl Pulled {
    /// What is told of it (`pullImage` in `pkg/kubelet/images/image_manager.go`); `with_waiting` is all the time that passed.
    pub(crate) fn message(&self, reference: &str, with_waiting: Duration) -> String {
        let truncated = |time: Duration| {
            duration::format(Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
        };
        format!(
            "Successfully pulled image {reference:?} in {} ({} including waiting). Image size: {} bytes.",
            truncated(self.took),
            // One that joined a pull waited for less than all of it.
            truncated(with_waiting.max(self.took)),
            self.image.size
        )
    }
}

/// Why an image was not pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotPulled {
    /// What was said, for the event.
    pub(crate) said: String,
    /// What the status says.
    pub(crate) failure: Failure,
}

/// How far a pull is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Since when it goes on, waiting for its turn included.
    pub(crate) since: Instant,
    /// Bytes so far.
    pub(crate) bytes: PullProgress,
}

#[derive(Debug)]
struct Pull {
    outcome: watch::Receiver<Outcome>,
    progress: Arc<Mutex<Progress>>,
}

/// Pulls images.
pub(crate) struct Puller {
    runtime: Arc<dyn ContainerRuntime>,
    access: Arc<Access>,
    turns: Arc<Semaphore>,
    rate: Arc<Mutex<Bucket>>,
    pulls: Arc<Mutex<HashMap<(String, String), Pull>>>,
}

impl Puller {
    pub(crate) fn new(runtime: Arc<dyn ContainerRuntime>, access: Arc<Access>, options: &Options) -> Self {
        Puller {
            runtime,
            access,
            turns: Arc::new(Semaphore::new(options.max_parallel_pulls.max(1))),
            rate: Arc::new(Mutex::new(Bucket::new(options.pull_qps, options.pull_burst))),
            pulls: Arc::default(),
        }
    }

    /// Pulls an image, or joins a pull of it that goes on with the same credentials. Each of the credentials is tried
    /// in turn, and none at the end.
    pub(crate) async fn pull(
        &self,
        image: &str,
        credentials: Vec<OwnedCredentials>,
        owner: &str,
    ) -> Result<Pulled, NotPulled> {
        // Pods with secrets of their own do not share a pull: one's access is not another's.
        let owner = if credentials.is_empty() { String::new() } else { owner.to_owned() };
        let key = (image.to_owned(), owner);
        let mut outcome = {
            let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            match pulls.get(&key) {
                Some(pull) => pull.outcome.clone(),
                None => {
                    let (sender, outcome) = watch::channel(None);
                    let progress =
                        Arc::new(Mutex::new(Progress { since: Instant::now(), bytes: PullProgress::default() }));
                    pulls.insert(key.clone(), Pull { outcome: outcome.clone(), progress: progress.clone() });
                    self.spawn(key, credentials, sender, progress);
                    outcome
                }
            }
        };
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(abandoned())),
            Err(_) => Err(abandoned()),
        }
    }

    /// How far the pull of an image is, if one goes on.
    pub(crate) fn progress(&self, image: &str) -> Option<Progress> {
        let pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        let pull = pulls.iter().find(|((pulled, _), _)| pulled == image)?.1;
        Some(*pull.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn spawn(
        &self,
        key: (String, String),
        credentials: Vec<OwnedCredentials>,
        sender: watch::Sender<Outcome>,
        progress: Arc<Mutex<Progress>>,
    ) {
        let (runtime, access, turns, rate, pulls) =
            (self.runtime.clone(), self.access.clone(), self.turns.clone(), self.rate.clone(), self.pulls.clone());
        tokio::spawn(async move {
            let turn = turns.acquire_owned().await;
            let wait = rate.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
            tokio::time::sleep(wait).await;
            let begun = Instant::now();
            let report = |bytes| progress.lock().unwrap_or_else(PoisonError::into_inner).bytes = bytes;
            let mut attempts: Vec<Option<&OwnedCredentials>> = credentials.iter().map(Some).collect();
            if attempts.is_empty() {
                attempts.push(None);
            }
            access.begins(&key.0).await;
            let (mut brought, mut errors) = (None, Vec::new());
            for attempt in attempts {
                let credentials = attempt.map(|of| &of.credentials);
                match runtime.pull(&key.0, credentials, &report).await {
                    Ok(image) => {
                        brought = Some((image, attempt));
                        break;
                    }
                    Err(error) => errors.push(error),
                }
            }
            let took = begun.elapsed();
            drop(turn);
            let result = match brought {
                Some((image, with)) => {
                    access.brought(&key.0, &image.id, with).await;
                    Ok(Pulled { image, took })
                }
                None => {
                    let by_runtime = errors.iter().any(|error| matches!(error, PullError::Runtime(_)));
                    access.failed(&key.0, by_runtime).await;
                    Err(not_pulled(&key.0, &errors))
                }
            };
            pulls.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            // Nobody waits any more when the pods were deleted meanwhile; the image is there all the same.
            let _ = sender.send(Some(result));
        });
    }
}

fn abandoned() -> NotPulled {
    let said = "the pull was given up because the agent stops".to_owned();
    NotPulled { failure: Failure { reason: "ErrImagePull", message: said.clone() }, said }
}

/// What came of the attempts to pull an image, with the credentials in turn: unequal errors are told together (`NewAggregate` of
/// `k8s.io/apimachinery/pkg/util/errors`), and a registry is unavailable where nothing else was said (`evalCRIPullErr`).
fn not_pulled(image: &str, errors: &[PullError]) -> NotPulled {
    let mut unequal: Vec<&PullError> = Vec::new();
    for error in errors {
        if !unequal.contains(&error) {
            unequal.push(error);
        }
    }
    let texts: Vec<String> = unequal.iter().map(ToString::to_string).collect();
    let said = if texts.len() == 1 { texts.concat() } else { format!("[{}]", texts.join(", ")) };
    let failure = match unequal[..] {
        [PullError::RegistryUnavailable { message }] => Failure {
            reason: "RegistryUnavailable",
            message: format!("image pull failed for {image} because the registry is unavailable: {message}"),
        },
        _ => Failure { reason: "ErrImagePull", message: said.clone() },
    };
    NotPulled { said, failure }
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    last: Option<Instant>,
}

impl Bucket {
    fn new(rate: f64, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        Bucket { rate, burst, tokens: burst, last: None }
    }

    /// Takes a token; says how long to wait until it is there.
    fn take(&mut self, now: Instant) -> Duration {
        if self.rate <= 0.0 {
            return Duration::ZERO;
        }
        let passed = self.last.map_or(0.0, |last| now.saturating_duration_since(last).as_secs_f64());
        self.last = Some(now);
        self.tokens = (self.tokens + passed * self.rate).min(self.burst) - 1.0;
        if self.tokens >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.tokens / self.rate) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_told_in_the_kubelets_words() {
        let image = Image { id: String::new(), repo_digests: Vec::new(), user: String::new(), size: 7 };
        let pulled = Pulled { image, took: Duration::from_micros(39_356_999) };
        let wanted =
            "Successfully pulled image \"reg.io/a:1\" in 39.356s (1m2.3s including waiting). Image size: 7 bytes.";
        assert_eq!(pulled.message("reg.io/a:1", Duration::from_micros(62_300_001)), wanted);
        assert_eq!(wanted.split_whitespace().count(), 13, "as tests of Kubernetes read it");
    }

    #[test]
    fn failures_are_told_in_the_kubelets_words() {
        let unavailable = PullError::RegistryUnavailable { message: "502 Bad Gateway".to_owned() };
        let failed = PullError::Failed { message: "denied".to_owned() };
        let of = |errors: &[PullError]| {
            let NotPulled { said, failure } = not_pulled("a:1", errors);
            (said, failure.reason, failure.message)
        };
        let message = "image pull failed for a:1 because the registry is unavailable: 502 Bad Gateway".to_owned();
        let said = "RegistryUnavailable: 502 Bad Gateway".to_owned();
        assert_eq!(of(&[unavailable.clone(), unavailable.clone()]), (said, "RegistryUnavailable", message));
        assert_eq!(of(&[failed.clone(), failed.clone()]), ("denied".to_owned(), "ErrImagePull", "denied".to_owned()));
        let both = "[denied, RegistryUnavailable: 502 Bad Gateway]".to_owned();
        assert_eq!(of(&[failed.clone(), unavailable, failed]), (both.clone(), "ErrImagePull", both));
    }

    #[test]
    fn the_burst_is_free_and_the_rest_is_paced() {
        let mut bucket = Bucket::new(5.0, 2);
        let now = Instant::now();
        assert_eq!(bucket.take(now), Duration::ZERO);
        assert_eq!(bucket.take(now), Duration::ZERO);
        assert_eq!(bucket.take(now), Duration::from_millis(200));
        assert_eq!(bucket.take(now + Duration::from_secs(10)), Duration::ZERO);
    }
}
