//! Who calls, and whether they may: client certificates, tokens, nobody; SubjectAccessReviews. Everything kept here is
//! bounded and forgotten in time. Tokens are kept as hashes only and appear in no log.

mod attributes;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use longshore_core::ports::cluster::ApiError;
use longshore_core::ports::reviews::{NodeAccess, Reviews, User};
use longshore_streaming::negotiate;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::{AnonymousAccess, Authorization, ServerConfig};
pub(crate) use attributes::{subresources, verb};

/// Answers kept at most, of each kind.
const KEPT: usize = 4096;
/// How long a token that is nobody's counts as such.
const BAD_TOKEN: Duration = Duration::from_secs(10);
/// Longer ones are nobody's.
const TOKEN_LIMIT: usize = 64 << 10;
/// A WebSocket's protocol that is a token.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
/// Questions of each kind to the API server at a time: strangers must not make us flood it. Anybody can have a token
/// asked about, so what known callers may has places of its own.
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
    token_questions: Semaphore,
    right_questions: Semaphore,
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
            token_questions: Semaphore::new(QUESTIONS),
            right_questions: Semaphore::new(QUESTIONS),
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
        let token = token(headers).filter(|_| self.token_webhook && self.reviews.is_some());
        if let Some(Token::Text(token)) = &token
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
        let answer = ask(&self.token_questions, reviews.authenticate(token)).await;
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
                None => match ask(&self.right_questions, reviews.authorize(&key.0, &key.1)).await {
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

async fn ask<T>(places: &Semaphore, question: impl Future<Output = Result<T, ApiError>>) -> Result<T, String> {
    let work = async {
        let _place = places.acquire().await;
        question.await
    };
    match tokio::time::timeout(QUESTION, work).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the API server did not answer within {} s", QUESTION.as_secs())),
    }
}

/// What a request shows for a token.
#[derive(Debug, PartialEq, Eq)]
enum Token {
    Text(String),
    Nonsense,
}

/// The token of `Authorization: Bearer …`, else the one that a browser sends beside a WebSocket's protocol, since it can
/// set no headers (`k8s.io/apiserver/pkg/authentication/request/websocket`).
fn token(headers: &HeaderMap) -> Option<Token> {
    let own = bearer(headers).map(|token| Token::Text(token.to_owned()));
    own.or_else(|| if negotiate::is_websocket(headers) { in_protocols(headers) } else { None })
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Another protocol has to be beside it: one of those that were offered is answered, and it must not be this.
fn in_protocols(headers: &HeaderMap) -> Option<Token> {
    let texts = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|text| text.to_str().ok());
    let (tokens, others): (Vec<&str>, Vec<&str>) =
        texts.flat_map(|text| text.split(',')).map(str::trim).partition(|name| name.starts_with(TOKEN_PROTOCOL));
    let encoded = tokens.first()?.strip_prefix(TOKEN_PROTOCOL)?;
    let decoded = URL_SAFE_NO_PAD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded {
        Some(text) if tokens.len() == 1 && !others.is_empty() => (!text.is_empty()).then_some(Token::Text(text)),
        _ => Some(Token::Nonsense),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;
    use futures::FutureExt as _;
    use http::HeaderName;
    use tokio::time::advance;

    use super::*;
    use crate::config::Certificates;

    #[test]
    fn what_is_kept_is_bounded_and_what_ends_first_goes_first() {
        let cache = Cache::new();
        let hour = Duration::from_secs(3600);
        cache.put(0, (), hour - Duration::from_secs(1));
        for key in 1..=KEPT {
            cache.put(key, (), hour);
        }
        assert_eq!((cache.get(&0), cache.get(&1), cache.get(&KEPT)), (None, Some(()), Some(())));
        // What is over makes room before anything that is not.
        cache.put(1, (), Duration::ZERO);
        cache.put(KEPT + 1, (), hour);
        assert_eq!(cache.0.lock().unwrap().len(), KEPT);
        assert_eq!((cache.get(&1), cache.get(&2)), (None, Some(())));
    }

    /// An API server that is slow with tokens.
    struct Slow;

    #[async_trait]
    impl Reviews for Slow {
        async fn authenticate(&self, _: &str) -> Result<Option<User>, ApiError> {
            pending().await
        }

        async fn authorize(&self, _: &User, _: &NodeAccess) -> Result<Result<(), String>, ApiError> {
            Ok(Ok(()))
        }
    }

    /// One that answers nothing.
    struct Silent;

    #[async_trait]
    impl Reviews for Silent {
        async fn authenticate(&self, _: &str) -> Result<Option<User>, ApiError> {
            pending().await
        }

        async fn authorize(&self, _: &User, _: &NodeAccess) -> Result<Result<(), String>, ApiError> {
            pending().await
        }
    }

    fn by(reviews: impl Reviews + 'static) -> Access {
        let certificates = Certificates::SelfSigned { folder: std::path::PathBuf::new() };
        Access::new(&ServerConfig::new("node", certificates), Some(Arc::new(reviews)))
    }

    /// More tokens than are asked about at a time.
    fn strangers() -> Vec<HeaderMap> {
        let tokens = (0..QUESTIONS + 8).map(|n| format!("Bearer {n}").parse().unwrap());
        tokens.map(|token| HeaderMap::from_iter([(AUTHORIZATION, token)])).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn reviews_that_never_come_are_waited_for_so_long_and_not_remembered() {
        let (access, begun) = (by(Silent), Instant::now());
        let tokens = strangers();
        let asked = tokens.iter().map(|token| access.admit(None, token, &http::Method::GET, "/pods"));
        let answers = futures::future::join_all(asked).await;
        assert!(answers.iter().all(|answer| *answer == Err(Refusal::Unauthorized)), "{answers:?}");
        // Those whose turn never came as well.
        assert_eq!(begun.elapsed().as_secs(), QUESTION.as_secs());
        let (known, nothing) = (User { name: "known".to_owned(), ..User::default() }, HeaderMap::new());
        let answer = access.admit(Some(Some(known)), &nothing, &http::Method::GET, "/pods").await;
        let words = "Authorization error (user=known, verb=get, resource=nodes, subresource=pods)";
        assert_eq!(answer, Err(Refusal::Failed(words.to_owned())));
        assert_eq!(begun.elapsed().as_secs(), 2 * QUESTION.as_secs());
        assert!(access.tokens.0.lock().unwrap().is_empty() && access.allowed.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn strangers_tokens_keep_nobody_who_is_known_waiting() {
        let (access, tokens) = (by(Slow), strangers());
        let mut strangers: Vec<_> =
            tokens.iter().map(|token| Box::pin(access.admit(None, token, &http::Method::GET, "/pods"))).collect();
        assert!(strangers.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
        let (known, nothing) = (User { name: "known".to_owned(), ..User::default() }, HeaderMap::new());
        let admitted = access.admit(Some(Some(known)), &nothing, &http::Method::GET, "/pods").now_or_never();
        assert!(matches!(admitted, Some(Ok(_))), "{admitted:?}");
    }

    /// One that knows everybody and lets them do all, or nobody.
    struct Fickle(Arc<AtomicBool>);

    #[async_trait]
    impl Reviews for Fickle {
        async fn authenticate(&self, token: &str) -> Result<Option<User>, ApiError> {
            Ok(self.0.load(Ordering::SeqCst).then(|| User { name: token.to_owned(), ..User::default() }))
        }

        async fn authorize(&self, _: &User, _: &NodeAccess) -> Result<Result<(), String>, ApiError> {
            Ok(if self.0.load(Ordering::SeqCst) { Ok(()) } else { Err("no".to_owned()) })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_kept_for_as_long_as_they_are_good_and_no_longer() {
        let knows = Arc::new(AtomicBool::new(true));
        let access = by(Fickle(knows.clone()));
        let (token, nothing) = (strangers().remove(0), HeaderMap::new());
        let known = || Some(Some(User { name: "known".to_owned(), ..User::default() }));
        let by_token = async || access.admit(None, &token, &http::Method::GET, "/pods").await;
        let by_certificate = async || access.admit(known(), &nothing, &http::Method::GET, "/pods").await;
        assert!(by_token().await.is_ok() && by_certificate().await.is_ok());
        knows.store(false, Ordering::SeqCst);
        let short = Duration::from_secs(1);
        advance(access.token_cache - short).await;
        assert!(by_token().await.is_ok() && by_certificate().await.is_ok());
        advance(short).await;
        assert_eq!(by_token().await, Err(Refusal::Unauthorized));
        advance(access.authorized_cache - access.token_cache - short).await;
        assert!(by_certificate().await.is_ok());
        advance(short).await;
        assert!(matches!(by_certificate().await, Err(Refusal::Forbidden(_))));
        knows.store(true, Ordering::SeqCst);
        advance(access.unauthorized_cache - short).await;
        assert!(matches!(by_certificate().await, Err(Refusal::Forbidden(_))));
        advance(short).await;
        assert!(by_token().await.is_ok() && by_certificate().await.is_ok());
    }

    #[test]
    fn tokens_where_they_may_be() {
        let read = |given: &[(&str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            token(&headers)
        };
        let text = |text: &str| Some(Token::Text(text.to_owned()));
        let socket = |protocols: &str| {
            read(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-protocol", protocols)])
        };
        let encoded = format!("{TOKEN_PROTOCOL}{}", URL_SAFE_NO_PAD.encode("a token?"));
        assert_eq!(read(&[("authorization", "bEarer  x ")]), text("x"));
        assert_eq!(read(&[("authorization", "Basic x")]), None);
        assert_eq!(socket(&format!("v4.channel.k8s.io, {encoded}")), text("a token?"));
        assert_eq!(socket("v4.channel.k8s.io"), None);
        assert_eq!(socket(&format!("v4.channel.k8s.io, {TOKEN_PROTOCOL}")), None);
        assert_eq!(socket(&encoded), Some(Token::Nonsense));
        assert_eq!(socket(&format!("a, {encoded}, {encoded}")), Some(Token::Nonsense));
        assert_eq!(socket(&format!("a, {TOKEN_PROTOCOL}=")), Some(Token::Nonsense));
        assert_eq!(read(&[("sec-websocket-protocol", &format!("a, {encoded}"))]), None);
    }
}
