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

use crate::kept::{Kept, KeptToken, key};
use crate::reflector::random;
use crate::refusal::unless_repeated;
use crate::requests::{JSON, Requests, encoded};

/// A token is asked for again at this age at the latest.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);
/// Spread of the refreshes.
const SPREAD_SECONDS: f64 = 10.0;
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

/// When a token is to be replaced: at 80 % of its life, at 24 h, whichever is first, and a little before.
fn due(issued: Timestamp, expires: Timestamp, spread: f64) -> Timestamp {
    let life = expires.duration_since(issued);
    let after = SignedDuration::from_millis((life.as_millis() * 8 / 10) as i64).min(MAX_AGE);
    let after = after - SignedDuration::from_secs_f64(spread * SPREAD_SECONDS);
    issued.checked_add(after.max(SignedDuration::ZERO)).unwrap_or(expires)
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
            if now >= kept.due && !kept.told {
                kept.told = true;
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
            Ok(token) => {
                if let Some(key) = &key {
                    let kept = KeptToken { token: token.token.clone(), expires: token.expires };
                    self.kept.put(key, &kept, true);
                }
                let due = due(now, token.expires, random());
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
    async fn ask_first(&self, pod: &PodId, query: &TokenQuery) -> Result<Token, ApiError> {
        let refused = |error: &ApiError| matches!(error, ApiError::Forbidden { .. } | ApiError::NotFound { .. });
        unless_repeated(refused, || self.ask(pod, query)).await
    }

    async fn ask(&self, pod: &PodId, query: &TokenQuery) -> Result<Token, ApiError> {
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
        let status = answer.status.unwrap_or_default();
        match (status.token.filter(|token| !token.is_empty()), status.expiration_timestamp) {
            (Some(token), Some(expires)) => Ok(Token { token, expires: expires.0 }),
            _ => Err(ApiError::Refused { code: 502, message: "the answer to a TokenRequest has no token".to_owned() }),
        }
    }
}

/// How often dues are looked at.
pub(crate) const SWEEP: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_due_at_four_fifths_and_after_a_day_at_most() {
        let issued = Timestamp::UNIX_EPOCH;
        let after = |seconds| due(issued, Timestamp::constant(seconds, 0), 0.0).as_second();
        assert_eq!(after(3600), 2880);
        assert_eq!(after(7 * 24 * 3600), 24 * 3600);
        assert_eq!(due(issued, Timestamp::constant(3600, 0), 1.0).as_second(), 2870);
        assert_eq!(due(issued, Timestamp::constant(5, 0), 1.0), issued);
    }
}
