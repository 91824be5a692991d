//! What is exchanged with an exec credential provider, and how long its answers are kept.
//!
//! As `pkg/credentialprovider/plugin/plugin.go`. Programs are run by others; the time comes in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::access::{ObjectId, OwnedCredentials, Owner};
use super::providers::Provider;
use super::{Entry, parse_image, pick, registry_key};
use crate::duration;
use crate::ports::runtime::RegistryCredentials;

/// Answers that are kept, of all providers together.
const MAX_KEPT: usize = 1000;

/// User name and password by the images that they are for, as in `auths` of Docker's configuration.
pub type Logins = BTreeMap<String, (String, String)>;

/// The ServiceAccount that a provider is asked on behalf of.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// Namespace of the account and its pod.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The annotations that the provider is told.
    pub annotations: BTreeMap<String, String>,
    /// A token of it, bound to the pod.
    pub token: String,
}

impl Account {
    /// As the owner of the credentials that a provider has for it.
    pub fn owner(&self) -> Owner {
        let (namespace, name, uid) = (self.namespace.clone(), self.name.clone(), self.uid.clone());
        Owner::ServiceAccount(ObjectId { namespace, name, uid })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'a str,
    kind: &'a str,
    image: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account_annotations: Option<&'a BTreeMap<String, String>>,
}

/// What a provider reads: a CredentialProviderRequest.
pub fn request(provider: &Provider, place: &str, account: Option<&Account>) -> String {
    let request = Request {
        api_version: &provider.api_version,
        kind: "CredentialProviderRequest",
        image: place,
        service_account_token: account.map(|account| account.token.as_str()),
        service_account_annotations: account.map(|account| &account.annotations).filter(|map| !map.is_empty()),
    };
    serde_json::to_string(&request).unwrap_or_default()
}

/// What a provider answered.
#[derive(Clone)]
pub struct Answer {
    /// Which images the answer is good for.
    scope: Scope,
    /// How long it is kept; `None` for not at all.
    keep: Option<Duration>,
    /// The credentials.
    pub logins: Arc<Logins>,
}

/// `cacheKeyType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Scope {
    Image,
    Registry,
    Global,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Response {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    kind: String,
    #[serde(default)]
    cache_key_type: String,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, Login>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    #[serde(default)]
    api_version: String,
}

/// Reads a CredentialProviderResponse. The error tells nothing of what may be a password.
pub fn read_answer(provider: &Provider, bytes: &[u8], account: Option<&Account>) -> Result<Answer, String> {
    let unreadable = |_| "error decoding credential provider plugin response from stdout".to_owned();
    let version: Version = serde_json::from_slice(bytes).map_err(unreadable)?;
    if version.api_version != provider.api_version {
        return Err(format!(
            "apiVersion from credential plugin response did not match expected apiVersion:{}, actual apiVersion:{}",
            provider.api_version, version.api_version
        ));
    }
    let response: Response = serde_json::from_slice(bytes).map_err(unreadable)?;
    if response.kind != "CredentialProviderResponse" {
        return Err(format!("its answer is a {:?} and no CredentialProviderResponse", response.kind));
    }
    let scope = match response.cache_key_type.as_str() {
        "Image" => Scope::Image,
        "Registry" => Scope::Registry,
        "Global" => Scope::Global,
        other => return Err(format!("credential provider plugin did not return a valid cacheKeyType: {other}")),
    };
    let keep = match response.cache_duration.as_deref() {
        None => provider.default_cache,
        // What is over at once.
        Some(text) if text.starts_with('-') => Duration::ZERO,
        Some(text) => duration::parse(text).map_err(|message| format!("cacheDuration: {message}"))?,
    };
    let auth = response.auth.unwrap_or_default();
    let per_token = provider.token.as_ref().is_some_and(|token| token.per_token);
    if let Some(account) = account.filter(|_| !per_token)
        && auth.values().any(|login| login.password == account.token)
    {
        let message = "credential provider plugin returned the service account token as the password, which is not \
                       allowed when the service account cache type is not Token";
        return Err(message.to_owned());
    }
    Ok(Answer {
        scope,
        keep: Some(keep).filter(|keep| !keep.is_zero()),
        logins: Arc::new(auth.into_iter().map(|(key, login)| (key, (login.username, login.password))).collect()),
    })
}

/// The credentials for an image among the answers of providers, with whom each was given for, in the order in which they are
/// to be tried.
pub fn choose(reference: &str, answers: &[(Owner, Arc<Logins>)]) -> Vec<OwnedCredentials> {
    let Ok(image) = parse_image(reference) else { return Vec::new() };
    let entries = answers.iter().flat_map(|(owner, logins)| {
        logins.iter().map(|(key, (username, password))| {
            let credentials = RegistryCredentials::Basic { username: username.clone(), password: password.clone() };
            Entry { key: registry_key(key), owned: OwnedCredentials { credentials, owner: owner.clone() } }
        })
    });
    pick(&image, entries.collect())
}

/// Whose answer is kept.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    provider: String,
    /// Image, registry, or nothing for all.
    scope: String,
    account: Option<AccountKey>,
}

type AccountKey = (String, String, String, Vec<(String, String)>, Option<[u8; 32]>);

fn account_key(provider: &Provider, account: &Account) -> AccountKey {
    let annotations = account.annotations.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    let per_token = provider.token.as_ref().is_some_and(|token| token.per_token);
    let token = per_token.then(|| Sha256::digest(account.token.as_bytes()).into());
    (account.namespace.clone(), account.name.clone(), account.uid.clone(), annotations, token)
}

/// Answers that are kept, in memory alone.
#[derive(Default)]
pub struct Cache {
    kept: BTreeMap<Key, (Instant, Arc<Logins>)>,
}

impl Cache {
    /// What is kept of a provider for an image.
    pub fn find(
        &self,
        provider: &Provider,
        place: &str,
        account: Option<&Account>,
        now: Instant,
    ) -> Option<Arc<Logins>> {
        [Scope::Image, Scope::Registry, Scope::Global].into_iter().find_map(|scope| {
            let (until, logins) = self.kept.get(&key(provider, scope, place, account))?;
            (now < *until).then(|| Arc::clone(logins))
        })
    }

    /// Keeps an answer as long as it says. What is over goes, and what is over soonest when there are too many.
    pub fn keep(&mut self, provider: &Provider, place: &str, account: Option<&Account>, answer: &Answer, now: Instant) {
        self.kept.retain(|_, (until, _)| now < *until);
        let Some(until) = answer.keep.and_then(|keep| now.checked_add(keep)) else { return };
        self.kept.insert(key(provider, answer.scope, place, account), (until, Arc::clone(&answer.logins)));
        while self.kept.len() > MAX_KEPT {
            let soonest = self.kept.iter().min_by_key(|(_, (until, _))| *until).map(|(key, _)| key.clone());
            let Some(soonest) = soonest else { break };
            self.kept.remove(&soonest);
        }
    }
}

fn key(provider: &Provider, scope: Scope, place: &str, account: Option<&Account>) -> Key {
    let scope = match scope {
        Scope::Image => place,
        Scope::Registry => place.split('/').next().unwrap_or_default(),
        Scope::Global => "",
    };
    Key {
        provider: provider.name.clone(),
        scope: scope.to_owned(),
        account: account.map(|account| account_key(provider, account)),
    }
}

#[cfg(test)]
mod tests;
