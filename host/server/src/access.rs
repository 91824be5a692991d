//! Who calls, and whether they may: client certificates, tokens, nobody; SubjectAccessReviews. Everything kept here is
//! bounded and forgotten in time. Tokens are kept as hashes only and appear in no log.

mod attributes;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use longshore_core::ports::reviews::{NodeAccess, Reviews, User};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::config::{AnonymousAccess, Authorization, ServerConfig};
pub(crate) use attributes::{subresources, verb};

/// Answers kept at most, of each kind.
const KEPT: usize = 4096;
/// How long a token that is nobody's counts as such.
const BAD_TOKEN: Duration = Duration::from_secs(10);
/// Longer ones are nobody's.
const TOKEN_LIMIT: usize = 64 << 10;
/// Questions to the API server at a time: strangers must not make us flood it.
const QUESTIONS: usize = 32;
/// How long a question may take, with waiting for its turn.
const QUESTION: Duration = Duration::from_secs(10);

/// Answers that are good for a while.
struct Cache<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    fn new() -> Cache<K, V> {
        Cache(Mutex::new(HashMap::new()))
    }

    fn get(&self, key: &K) -> Option<V> {
        let kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        kept.get(key).filter(|(until, _)| Instant::now() < *until).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V, good_for: Duration) {
        let mut kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        if kept.len() >= KEPT {
            kept.retain(|_, (until, _)| now < *until);
        }
        if kept.len() >= KEPT
            && let Some(soonest) = kept.iter().min_by_key(|(_, (until, _))| *until).map(|(key, _)| key.clone())
        {
            kept.remove(&soonest);
        }
        kept.insert(key, (now + good_for, value));
    }
}

/// Why somebody does not get in, with the kubelet's words (`pkg/kubelet/server/server.go`, InstallAuthFilter).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Unauthorized,
    Forbidden(String),
    Failed(String),
}

/// Decides who gets in.
pub(crate) struct Access {
    reviews: Option<Arc<dyn Reviews>>,
    anonymous: AnonymousAccess,
    authorization: Authorization,
    token_webhook: bool,
    token_cache: Duration,
    authorized_cache: Duration,
    unauthorized_cache: Duration,
    tokens: Cache<[u8; 32], Option<User>>,
    allowed: Cache<(User, NodeAccess), bool>,
    questions: Semaphore,
}

impl Access {
    pub(crate) fn new(config: &ServerConfig, reviews: Option<Arc<dyn Reviews>>) -> Access {
        Access {
            reviews,
            anonymous: config.anonymous,
            authorization: config.authorization,
            token_webhook: config.token_webhook,
            token_cache: config.token_cache,
            authorized_cache: config.authorized_cache,
            unauthorized_cache: config.unauthorized_cache,
            tokens: Cache::new(),
            allowed: Cache::new(),
            questions: Semaphore::new(QUESTIONS),
        }
    }

    /// Lets a request in or not. `certificate` is `Some(None)` where one was shown that is of no CA of ours.
    pub(crate) async fn admit(
        &self,
        certificate: Option<Option<User>>,
        headers: &HeaderMap,
        method: &http::Method,
        path: &str,
    ) -> Result<User, Refusal> {
        let user = self.authenticate(certificate, headers).await?;
        self.authorize(&user, method, path).await?;
        Ok(user)
    }

    /// A bad certificate or token is not nobody: it gets 401 even where nobody may come in.
    async fn authenticate(&self, certificate: Option<Option<User>>, headers: &HeaderMap) -> Result<User, Refusal> {
        if let Some(Some(user)) = certificate {
            return Ok(user);
        }
        let token = bearer(headers).filter(|_| self.token_webhook && self.reviews.is_some());
        if let Some(token) = token
            && let Some(user) = self.review(token).await
        {
            return Ok(user);
        }
        if certificate.is_some() || token.is_some() || self.anonymous == AnonymousAccess::Refused {
            return Err(Refusal::Unauthorized);
        }
        Ok(User {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..User::default()
        })
    }

    async fn review(&self, token: &str) -> Option<User> {
        let reviews = self.reviews.as_ref()?;
        if token.len() > TOKEN_LIMIT {
            return None;
        }
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key) {
            return known;
        }
        let answer = self.ask(reviews.authenticate(token)).await;
        match answer {
            Ok(Some(user)) => {
                self.tokens.put(key, Some(user.clone()), self.token_cache);
                Some(user)
            }
            Ok(None) => {
                self.tokens.put(key, None, BAD_TOKEN.min(self.token_cache));
                None
            }
            Err(error) => {
                tracing::warn!(%error, "a caller's token could not be reviewed; the caller is turned away");
                None
            }
        }
    }

    async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, longshore_core::ports::cluster::ApiError>>,
    ) -> Result<T, String> {
        let work = async {
            let _turn = self.questions.acquire().await;
            question.await
        };
        match tokio::time::timeout(QUESTION, work).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the API server did not answer within {} s", QUESTION.as_secs())),
        }
    }

    async fn authorize(&self, user: &User, method: &http::Method, path: &str) -> Result<(), Refusal> {
        if self.authorization == Authorization::AlwaysAllow {
            return Ok(());
        }
        let (verb, subresources) = (verb(method), subresources(path));
        let asked = format!("user={}, verb={verb}, resource=nodes", user.name);
        let who = format!("({asked}, subresource(s)=[{}])\n", subresources.join(" "));
        let Some(reviews) = &self.reviews else { return Err(Refusal::Forbidden(format!("Forbidden {who}"))) };
        for subresource in subresources {
            let access = NodeAccess { verb, subresource };
            let key = (user.clone(), access);
            let may = match self.allowed.get(&key) {
                Some(known) => known,
                None => match self.ask(reviews.authorize(&key.0, &key.1)).await {
                    Ok(answer) => {
                        let may = answer.is_ok();
                        let keep = if may { self.authorized_cache } else { self.unauthorized_cache };
                        self.allowed.put(key, may, keep);
                        may
                    }
                    Err(error) => {
                        tracing::warn!(%error, user = %user.name, "a caller's right could not be reviewed");
                        let words = format!("Authorization error ({asked}, subresource={subresource})");
                        return Err(Refusal::Failed(words));
                    }
                },
            };
            if may {
                return Ok(());
            }
        }
        Err(Refusal::Forbidden(format!("Forbidden {who}")))
    }
}

/// The token of `Authorization: Bearer …`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
