//! Which pods may use an image that is on the node already: what one pod pulled with its Secret is not everybody's.
//!
//! As `pkg/kubelet/images/pullmanager`, but for a name that an image has besides those that it was pulled by: it came in
//! another way, by `docker load` or `docker tag`, and is everybody's under it. Records hold hashes, never credentials; where
//! they are kept is a port's ([`crate::ports::pulls`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{parse_image, reference};
use crate::ports::runtime::RegistryCredentials;

/// Secrets, and accounts, that are remembered for one name of an image. Pods of those that are forgotten pull again.
pub const MAX_KEEPERS: usize = 100;
/// Names that are remembered of an image.
const MAX_NAMES: usize = 100;

/// `imagePullCredentialsVerificationPolicy`: which images need credentials of the pod's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// None that is there.
    NeverVerify,
    /// Those that this agent pulled.
    #[default]
    NeverVerifyPreloadedImages,
    /// All but those of a list.
    NeverVerifyAllowlistedImages,
    /// All.
    AlwaysVerify,
}

impl Policy {
    /// All of them, with the names that the kubelet's configuration has for them.
    pub const ALL: [(&'static str, Policy); 4] = [
        ("NeverVerify", Policy::NeverVerify),
        ("NeverVerifyPreloadedImages", Policy::NeverVerifyPreloadedImages),
        ("NeverVerifyAllowlistedImages", Policy::NeverVerifyAllowlistedImages),
        ("AlwaysVerify", Policy::AlwaysVerify),
    ];

    /// The configuration's name for it.
    pub fn name(self) -> &'static str {
        Policy::ALL.into_iter().find(|(_, policy)| *policy == self).map_or("", |(name, _)| name)
    }
}

/// When a pod must show credentials for an image that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// For which images.
    pub policy: Policy,
    /// `preloadedImagesVerificationAllowlist`: names without tag and digest, or what they begin with, as `foo.io/*`.
    pub allowlist: Vec<String>,
}

impl Verification {
    /// Whether credentials are asked for. `pulled`: by this agent.
    fn is_asked(&self, image: &str, pulled: bool) -> bool {
        match self.policy {
            Policy::NeverVerify => false,
            Policy::NeverVerifyPreloadedImages => pulled,
            Policy::NeverVerifyAllowlistedImages => {
                let name = untagged(image);
                !self.allowlist.iter().any(|allowed| match allowed.strip_suffix('*') {
                    Some(beginning) => name.starts_with(beginning),
                    None => name == allowed,
                })
            }
            Policy::AlwaysVerify => true,
        }
    }
}

/// Checks an entry of the allowlist.
pub fn check_pattern(text: &str) -> Result<(), String> {
    let expected = |what: &str| Err(format!("expected {what}, got {text:?}"));
    if text != text.trim() {
        return expected("no spaces around an image's name");
    }
    if let Some(beginning) = text.strip_suffix("/*") {
        return match !beginning.is_empty() && !beginning.contains('*') {
            true => Ok(()),
            false => expected("a registry, with or without a path, before /*"),
        };
    }
    match reference::parse(text) {
        Ok(name) if name.tag.is_none() && name.digest.is_none() => Ok(()),
        _ => expected("an image's name without tag and digest, or the beginning of names like \"foo.io/*\""),
    }
}

/// An image's name as written, without tag and digest.
fn untagged(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    name[last..].find(':').map_or(name, |colon| &name[..last + colon])
}

/// What records are kept by: registry and repository.
fn place(image: &str) -> String {
    parse_image(image).map_or_else(|_| image.to_owned(), |name| name.place())
}

/// A name in full: the same one however it is written.
pub fn full_name(image: &str) -> String {
    let Ok(name) = parse_image(image) else { return image.to_owned() };
    match (&name.digest, &name.tag) {
        (Some(digest), _) => format!("{}@{digest}", name.place()),
        (None, tag) => format!("{}:{}", name.place(), tag.as_deref().unwrap_or("latest")),
    }
}

/// Whether the runtime finds it by exactly that name, and not by an ID or a digest, which whoever knows it can name.
fn is_name(image: &str) -> bool {
    let id = image.strip_prefix("sha256:").unwrap_or(image);
    !image.contains('@') && id.len() == image.len() && !id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Which Secret or ServiceAccount: a later one of the same name has another UID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID; empty where it has none, as in a manifest folder.
    pub uid: String,
}

impl ObjectId {
    /// Whether it is the same object; what has no UID cannot be told from what took its place.
    fn is(&self, other: &ObjectId) -> bool {
        !self.uid.is_empty() && self == other
    }
}

/// Whose credentials are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The node's, or nobody's: what they bring is for every pod.
    Node,
    /// A pull secret's.
    Secret {
        /// Which one.
        secret: ObjectId,
        /// Hash of the credentials.
        hash: String,
    },
    /// A pod's ServiceAccount's, by way of a credential provider.
    ServiceAccount(ObjectId),
}

/// Credentials, and whose they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedCredentials {
    /// The credentials.
    pub credentials: RegistryCredentials,
    /// Whose.
    pub owner: Owner,
}

impl OwnedCredentials {
    /// The node's own.
    pub fn of_node(credentials: RegistryCredentials) -> Self {
        OwnedCredentials { credentials, owner: Owner::Node }
    }

    /// A Secret's.
    pub fn of_secret(credentials: RegistryCredentials, secret: ObjectId) -> Self {
        let hash = digest(&credentials);
        OwnedCredentials { credentials, owner: Owner::Secret { secret, hash } }
    }
}

/// A hash of credentials, by which the same are known again.
fn digest(credentials: &RegistryCredentials) -> String {
    let text = match credentials {
        RegistryCredentials::Basic { username, password } => json!([username, password]),
        RegistryCredentials::IdentityToken(token) => json!([token]),
    };
    Sha256::digest(text.to_string().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How an image came to the node: by each name that this agent pulled it by, with what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRecord {
    /// The image's ID.
    pub image: String,
    /// Who may use it under which name, without tag and digest.
    names: BTreeMap<String, Keepers>,
    /// There may have been more names than are remembered.
    #[serde(default)]
    more: bool,
}

/// Who may use an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keepers {
    /// Every pod.
    #[serde(default)]
    everybody: bool,
    /// Pods that have one of these Secrets, or its credentials.
    #[serde(default)]
    secrets: Vec<KeptSecret>,
    /// Pods that run as one of these.
    #[serde(default)]
    accounts: Vec<ObjectId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptSecret {
    secret: ObjectId,
    hash: String,
}

impl PullRecord {
    /// What is known of an image that was never pulled.
    pub fn new(image: &str) -> Self {
        PullRecord { image: image.to_owned(), ..PullRecord::default() }
    }

    /// What is known of an image whose record cannot be read: it may have been pulled by any name.
    pub fn lost(image: &str) -> Self {
        PullRecord { more: true, ..PullRecord::new(image) }
    }

    /// The image was pulled by that name with credentials of that owner. Says whether that is new.
    pub fn note(&mut self, name: &str, owner: &Owner) -> bool {
        let place = place(name);
        if !self.names.contains_key(&place) && self.names.len() >= MAX_NAMES {
            self.names.pop_first();
            self.more = true;
        }
        self.names.entry(place).or_default().add(owner)
    }

    /// A pod may use the image because of that owner, who is remembered where there is room: else a namespace after the
    /// other would have it written. Says whether that is new.
    pub fn learn(&mut self, name: &str, owner: &Owner) -> bool {
        let full = self.names.get(&place(name)).is_some_and(|keepers| keepers.secrets.len() >= MAX_KEEPERS);
        !full && self.note(name, owner)
    }
}

impl Keepers {
    fn add(&mut self, owner: &Owner) -> bool {
        if self.everybody {
            return false;
        }
        match owner {
            Owner::Node => *self = Keepers { everybody: true, ..Keepers::default() },
            Owner::Secret { secret, hash } => {
                let kept = KeptSecret { secret: secret.clone(), hash: hash.clone() };
                if self.secrets.contains(&kept) {
                    return false;
                }
                self.secrets.retain(|other| other.secret != *secret);
                self.secrets.push(kept);
                let surplus = self.secrets.len().saturating_sub(MAX_KEEPERS);
                self.secrets.drain(..surplus);
            }
            Owner::ServiceAccount(account) => {
                if self.accounts.contains(account) {
                    return false;
                }
                self.accounts.push(account.clone());
                let surplus = self.accounts.len().saturating_sub(MAX_KEEPERS);
                self.accounts.drain(..surplus);
            }
        }
        true
    }

    /// Whether pods may have it because of their ServiceAccounts.
    pub fn has_accounts(&self) -> bool {
        !self.accounts.is_empty()
    }

    /// Which of a pod's own opens the image to it; `None` when none does.
    pub fn find<'a>(&self, own: &'a [Owner]) -> Option<&'a Owner> {
        own.iter().find(|owner| match owner {
            Owner::Node => false,
            Owner::Secret { secret, hash } => {
                self.secrets.iter().any(|kept| kept.hash == *hash || kept.secret.is(secret))
            }
            Owner::ServiceAccount(account) => self.accounts.iter().any(|kept| kept.is(account)),
        })
    }
}

/// Whether a pod may use an image that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It may, whatever it has.
    Use,
    /// It may if one of these is its own, else it has to pull.
    Ask(&'a Keepers),
    /// It has to pull, with what it has.
    Pull,
}

/// Judges whether an image that is there by that name is for a pod. `begun`: a pull by that name began and it is not known
/// how it ended.
pub fn judge<'a>(name: &str, record: Option<&'a PullRecord>, begun: bool, verification: &Verification) -> Verdict<'a> {
    let keepers = record.and_then(|record| record.names.get(&place(name)));
    // By an ID or a digest it may be meant by any of its names.
    let is_kept = |record: &PullRecord| {
        record.more || (!is_name(name) && record.names.values().any(|keepers| !keepers.everybody))
    };
    let pulled = begun || keepers.is_some() || record.is_some_and(is_kept);
    match keepers {
        _ if !verification.is_asked(name, pulled) => Verdict::Use,
        Some(keepers) if keepers.everybody => Verdict::Use,
        Some(keepers) => Verdict::Ask(keepers),
        None => Verdict::Pull,
    }
}

#[cfg(test)]
mod tests;
