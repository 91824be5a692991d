//! Tokens of ServiceAccounts, bound to pods: asked for, kept while they are fresh, and asked for again in time.
//!
//! As `pkg/kubelet/token/token_manager.go`, but that a token at hand is served while the API server cannot be reached,
//! an expired one as well: the pod then finds out by itself, which is better than a pod that does not start.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::TokenRequest;
use longshore_core::pod::PodId;
use longshore_core::ports::archive::ArchiveKey;
use longshore_core::ports::cluster::ApiError;
use longshore_core::ports::objects::{ObjectError, Token, TokenQuery};
use serde_json::json;
use tokio::time::Instant;

use crate::kept::{Kept, KeptToken, key};
use crate::reflector::random;
use crate::refusal::unless_repeated;
use crate::requests::{JSON, Requests, encoded};

/// A token is asked for again at this age at the latest.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);
/// Spread of the refreshes.
const SPREAD_SECONDS: f64 = 10.0;
/// That a token is due is told so often at most: by a clock that is ahead each new one is due at once.
const TELL: Duration = Duration::from_secs(60);
/// An expired token that nobody has read for this long is forgotten.
const FORGET: SignedDuration = SignedDuration::from_hours(1);

/// Tokens at hand.
pub(crate) struct Tokens {
    requests: Requests,
    kept: Kept,
    slots: Mutex<BTreeMap<(String, TokenQuery), Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    /// Held while a token is asked for, so that it is asked for once.
    asking: tokio::sync::Mutex<()>,
    kept: Mutex<Option<AtHand>>,
    /// When it was told last that its token is due.
    told: Mutex<Option<Instant>>,
}

#[derive(Clone)]
struct AtHand {
    token: Token,
    due: Timestamp,
    read: Timestamp,
    /// Whether it was told that it is due.
    told: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When a token is to be replaced: at 80 % of its life, at 24 h, whichever is first, and a little before. Its life ends as
/// the API server's clock has it or as ours has, whichever is first, as ours may be behind, or jump ahead and back.
fn due(now: Timestamp, expires: Timestamp, life: SignedDuration, spread: f64) -> Timestamp {
    let life = life.max(SignedDuration::ZERO);
    let before = (life / 5).max(life - MAX_AGE) + SignedDuration::from_secs_f64(spread * SPREAD_SECONDS);
    let end = now.checked_add(life).map_or(expires, |own| own.min(expires));
    end.checked_sub(before).unwrap_or(end)
}

impl Tokens {
    pub(crate) fn new(requests: Requests, kept: Kept) -> Self {
        Self { requests, kept, slots: Mutex::default() }
    }

    /// The pod is gone, and with it all that was issued to it.
    pub(crate) fn forget(&self, uid: &str) {
        lock(&self.slots).retain(|(of, _), _| of != uid);
    }

    /// Whether a token has become due that was not told of before. Forgets what is expired and unused.
    pub(crate) fn sweep(&self, now: Timestamp) -> bool {
        let mut any = false;
        lock(&self.slots).retain(|_, slot| {
            let mut kept = lock(&slot.kept);
            // One without a token is being asked for, or its last try failed.
            let Some(kept) = kept.as_mut() else { return Arc::strong_count(slot) > 1 };
            let mut told = lock(&slot.told);
            if now >= kept.due && !kept.told && told.is_none_or(|at| at.elapsed() >= TELL) {
                kept.told = true;
                *told = Some(Instant::now());
                any = true;
            }
            now < kept.token.expires || now.duration_since(kept.read) < FORGET
        });
        any
    }

    pub(crate) async fn get(&self, pod: &PodId, query: &TokenQuery) -> Result<Token, ObjectError> {
        let slot = Arc::clone(lock(&self.slots).entry((pod.uid.clone(), query.clone())).or_default());
        let _asking = slot.asking.lock().await;
        let now = Timestamp::now();
        let at_hand = lock(&slot.kept).as_mut().map(|kept| {
            kept.read = now;
            kept.clone()
        });
        if let Some(kept) = &at_hand
            && now < kept.due
        {
            return Ok(kept.token.clone());
        }
        let key = key::token(pod, query);
        let answer = match &at_hand {
            Some(_) => self.ask(pod, query).await,
            None => self.ask_first(pod, query).await,
        };
        match answer {
            Ok((token, life)) => {
                if let Some(key) = &key {
                    let kept = KeptToken { token: token.token.clone(), expires: token.expires };
                    self.kept.put(key, &kept, true);
                }
                let due = due(now, token.expires, life, random());
                *lock(&slot.kept) = Some(AtHand { token: token.clone(), due, read: now, told: false });
                Ok(token)
            }
            Err(error) => {
                let refused = |error: &ApiError, advice| ObjectError {
                    kind: "ServiceAccount",
                    namespace: pod.namespace.clone(),
                    name: query.service_account.clone(),
                    message: format!("{error}{advice}"),
                };
                match at_hand.map(|kept| kept.token) {
                    Some(token) if token.expires > now => {
                        tracing::warn!(%pod, account = query.service_account, %error, "a token cannot be renewed yet");
                        Ok(token)
                    }
                    _ if !error.is_passing() => Err(refused(&error, "")),
                    Some(token) => {
                        let account = &query.service_account;
                        tracing::warn!(%pod, account, expired = %token.expires, %error, "an expired token is mounted");
                        Ok(token)
                    }
                    None => match self.archived(key.as_ref()).await {
                        Some(kept) => {
                            // Kept as one that is due, so that it is asked for again when there is time for it.
                            let token = kept.into_token(pod, query);
                            *lock(&slot.kept) = Some(AtHand { token: token.clone(), due: now, read: now, told: true });
                            Ok(token)
                        }
                        None => Err(refused(&error, if query.kept { self.kept.advice() } else { "" })),
                    },
                }
            }
        }
    }

    async fn archived(&self, key: Option<&ArchiveKey>) -> Option<KeptToken> {
        self.kept.get(key?).await
    }

    /// Asks for a pod's first token of that kind: a refusal is the answer only when it is repeated.
    async fn ask_first(&self, pod: &PodId, query: &TokenQuery) -> Result<(Token, SignedDuration), ApiError> {
        let refused = |error: &ApiError| matches!(error, ApiError::Forbidden { .. } | ApiError::NotFound { .. });
        unless_repeated(refused, || self.ask(pod, query)).await
    }

    /// Asks for a token: it, and how long it is good, which the API server may have shortened.
    async fn ask(&self, pod: &PodId, query: &TokenQuery) -> Result<(Token, SignedDuration), ApiError> {
        let audiences: Vec<&str> = Some(query.audience.as_str()).filter(|text| !text.is_empty()).into_iter().collect();
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audiences,
                "expirationSeconds": query.expiration_seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid},
            },
        });
        let path = format!(
            "/api/v1/namespaces/{}/serviceaccounts/{}/token",
            encoded(&pod.namespace),
            encoded(&query.service_account)
        );
        let answer: TokenRequest = self.requests.send(Method::POST, &path, JSON, &request).await?;
        let seconds = answer.spec.and_then(|spec| spec.expiration_seconds).unwrap_or(query.expiration_seconds);
        let status = answer.status.unwrap_or_default();
        match (status.token.filter(|token| !token.is_empty()), status.expiration_timestamp) {
            (Some(token), Some(expires)) => {
                Ok((Token { token, expires: expires.0 }, SignedDuration::from_secs(seconds)))
            }
            _ => Err(ApiError::Refused { code: 502, message: "the answer to a TokenRequest has no token".to_owned() }),
        }
    }
}

/// How often dues are looked at.
pub(crate) const SWEEP: Duration = Duration::from_secs(10);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);
    const ISSUED: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn tokens_are_due_at_four_fifths_and_after_a_day_at_most() {
        let after = |life: SignedDuration, spread| {
            let due = due(ISSUED, ISSUED + life, life, spread);
            due.duration_since(ISSUED).as_secs()
        };
        assert_eq!(after(HOUR, 0.0), 2880);
        assert_eq!(after(HOUR * 24 * 7, 0.0), 24 * 3600);
        assert_eq!(after(HOUR, 1.0), 2870);
        assert!(after(SignedDuration::from_secs(5), 1.0) < 0);
    }

    #[test]
    fn a_clock_that_is_wrong_puts_nothing_off() {
        let days = HOUR * 24 * 3;
        let end = ISSUED + HOUR;
        // Ahead: back again, it is as by the API server's clock.
        assert_eq!(due(ISSUED + days, end, HOUR, 0.0), due(ISSUED, end, HOUR, 0.0));
        // Behind: as old as it may become.
        assert_eq!(due(ISSUED - days, end, HOUR, 0.0), due(ISSUED, end, HOUR, 0.0) - days);
        assert_eq!(due(ISSUED, end, SignedDuration::MAX, 0.0), end);
    }

    #[tokio::test]
    async fn tokens_that_are_due_at_once_are_told_of_once_a_minute() {
        let fake = Fake::start().await;
        let tokens = Tokens::new(Requests::new(fake.client.clone()), Kept(None));
        let pod = PodId { namespace: "n".into(), name: "p".into(), uid: "u".into() };
        let query = TokenQuery {
            service_account: "default".into(),
            audience: String::new(),
            expiration_seconds: 3600,
            kept: true,
        };
        let renewed = async || {
            let ended = r#"{"spec":{},"status":{"token":"t","expirationTimestamp":"2001-01-01T00:00:00Z"}}"#;
            fake.whole("POST", 201, ended);
            tokens.get(&pod, &query).await.unwrap();
        };
        let told = || tokens.sweep(Timestamp::now());
        renewed().await;
        assert!(told());
        renewed().await;
        assert!(!told());
        tokio::time::pause();
        tokio::time::advance(TELL).await;
        assert!(told());
        assert!(!told());
    }
}
