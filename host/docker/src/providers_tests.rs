//! Tests with shell scripts as providers.

use std::os::unix::fs::PermissionsExt;

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::credentials::providers::{API_VERSIONS, TokenAttributes};
use longshore_core::ports::objects::{ObjectError, Token};
use longshore_core::ports::runtime::RegistryCredentials;

use super::*;

/// One ServiceAccount, `sa`, and a token that tells what it was asked for.
struct Accounts;

#[async_trait]
impl ObjectStore for Accounts {
    async fn config_map(&self, _: &str, _: &str) -> Result<Option<Arc<v1::ConfigMap>>, ObjectError> {
        Ok(None)
    }

    async fn secret(&self, _: &str, _: &str) -> Result<Option<Arc<v1::Secret>>, ObjectError> {
        Ok(None)
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        Box::pin(futures::stream::pending())
    }

    async fn service_account(&self, _: &str, name: &str) -> Result<Option<v1::ServiceAccount>, ObjectError> {
        let mut account = v1::ServiceAccount::default();
        account.metadata.annotations = Some(BTreeMap::from([("role".to_owned(), "captain".to_owned())]));
        Ok(Some(account).filter(|_| name == "sa"))
    }

    async fn token(&self, pod: &PodId, query: &TokenQuery) -> Result<Token, ObjectError> {
        let token = format!("{}/{}/{}", pod.name, query.service_account, query.audience);
        Ok(Token { token, expires: Timestamp::MAX })
    }
}

struct Bed {
    folder: tempfile::TempDir,
    providers: Vec<Provider>,
}

impl Bed {
    fn new() -> Bed {
        Bed { folder: tempfile::tempdir().unwrap(), providers: Vec::new() }
    }

    fn add(&mut self, script: &str) -> &mut Provider {
        let name = format!("p{}", self.providers.len());
        let path = self.folder.path().join(&name);
        let runs = self.folder.path().join("runs");
        let head = format!("#!/bin/sh\n[ -n \"$PROBE\" ] && exit\necho run >> {}", runs.display());
        std::fs::write(&path, format!("{head}\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        self.providers.push(Provider {
            name,
            match_images: vec!["foo.io".to_owned()],
            default_cache: Duration::ZERO,
            api_version: API_VERSIONS[0].to_owned(),
            args: vec!["an arg".to_owned()],
            env: vec![("LONGSHORE_TEST".to_owned(), "a variable".to_owned())],
            token: None,
        });
        self.providers.last_mut().unwrap()
    }

    fn start(&self, limit: Duration) -> ExecProviders {
        // Another test's thread may fork while a script is open for writing, which makes it busy: wait until it runs.
        for provider in &self.providers {
            let probe =
                || std::process::Command::new(self.folder.path().join(&provider.name)).env("PROBE", "1").status();
            while probe().is_err() {
                std::thread::yield_now();
            }
        }
        ExecProviders::with_limit(self.providers.clone(), self.folder.path().to_owned(), Arc::new(Accounts), limit)
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(self.folder.path().join("runs")).unwrap_or_default().lines().count()
    }
}

/// A script that answers with a user and a password, in which variables are expanded.
fn answers(user: &str, password: &str, rest: &str) -> String {
    format!(
        "question=$(cat)\ncat <<END\n{{\"apiVersion\":\"{}\",\"kind\":\"CredentialProviderResponse\",{rest}\
         \"auth\":{{\"foo.io\":{{\"username\":\"{user}\",\"password\":\"{password}\"}}}}}}\nEND",
        API_VERSIONS[0]
    )
}

const IMAGE: &str = "\"cacheKeyType\":\"Image\",";

async fn ask(providers: &ExecProviders, image: &str, account: &str) -> Vec<(String, String)> {
    let pod = PodId { namespace: "ns".to_owned(), name: "pod".to_owned(), uid: "u".to_owned() };
    let found = providers.credentials(image, &pod, account).await;
    let login = |found: OwnedCredentials| match found.credentials {
        RegistryCredentials::Basic { username, password } => (username, password),
        RegistryCredentials::IdentityToken(token) => (String::new(), token),
    };
    found.into_iter().map(login).collect()
}

#[tokio::test]
async fn a_provider_gets_its_question_arguments_and_variables() {
    let mut bed = Bed::new();
    bed.add(&answers("$1, $LONGSHORE_TEST", "$(echo \"$question\" | tr -d '\"' | tr -d '{}')", IMAGE));
    let providers = bed.start(LIMIT);
    let found =
        ask(&providers, "foo.io/a/b:1@sha256:0000000000000000000000000000000000000000000000000000000000000000", "")
            .await;
    let question = "apiVersion:credentialprovider.kubelet.k8s.io/v1,kind:CredentialProviderRequest,image:foo.io/a/b";
    assert_eq!(found, [("an arg, a variable".to_owned(), question.to_owned())]);
    assert_eq!(ask(&providers, "bar.io/a", "").await, []);
    assert_eq!(bed.runs(), 1);
}

#[tokio::test]
async fn answers_are_kept_and_asked_for_once() {
    let mut bed = Bed::new();
    bed.add(&format!("sleep 0.3\n{}", answers("u", "p", "\"cacheKeyType\":\"Registry\",\"cacheDuration\":\"1h\",")));
    let providers = bed.start(LIMIT);
    let all = join_all((0..20).map(|_| ask(&providers, "foo.io/a", ""))).await;
    assert!(all.iter().all(|found| found.len() == 1));
    assert_eq!(ask(&providers, "foo.io/b", "").await.len(), 1);
    assert_eq!(bed.runs(), 1);
    assert!(lock(&providers.inner.flights).is_empty());
}

#[tokio::test]
async fn a_question_that_nobody_waits_for_any_more_is_not_kept() {
    let mut bed = Bed::new();
    let go = bed.folder.path().join("go");
    bed.add(&format!("until [ -e {} ]; do sleep 0.01; done\n{}", go.display(), answers("u", "p", IMAGE)));
    let providers = bed.start(LIMIT);
    let asked = tokio::time::timeout(Duration::from_millis(20), ask(&providers, "foo.io/a", ""));
    assert!(asked.await.is_err());
    assert_eq!(lock(&providers.inner.flights).len(), 1);
    std::fs::write(go, "").unwrap();
    let landed = async {
        while !lock(&providers.inner.flights).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, landed).await.unwrap();
}

#[tokio::test]
async fn providers_that_fail_hang_or_talk_without_end_hold_up_nobody() {
    let mut bed = Bed::new();
    let hangs = bed.folder.path().join("hangs");
    bed.add("echo no network >&2; exit 3");
    bed.add(&format!("sh -c 'echo $$ > {}; exec sleep 1000' & wait", hangs.display()));
    bed.add("yes");
    bed.add("yes >&2 & echo nonsense");
    bed.add(&answers("u", "p", IMAGE));
    bed.add("").name = "missing".to_owned();
    let last = bed.providers.pop().unwrap();
    let mut providers = bed.start(Duration::from_secs(2));
    Arc::get_mut(&mut providers.inner).unwrap().providers.insert(0, last);
    let begun = Instant::now();
    assert_eq!(ask(&providers, "foo.io/a", "").await, [("u".to_owned(), "p".to_owned())]);
    assert!(begun.elapsed() < Duration::from_secs(20));
    // What a provider started goes with it.
    let pid = std::fs::read_to_string(hangs).unwrap();
    let goes = async {
        let stat = format!("/proc/{}/stat", pid.trim());
        while std::fs::read_to_string(&stat).is_ok_and(|state| !state.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, goes).await.unwrap();
    let error = run(bed.folder.path(), &bed.providers[0], b"", LIMIT).await.unwrap_err();
    assert!(error.contains("exit status: 3") && error.contains("no network"), "{error}");
    let error = run(bed.folder.path(), &bed.providers[2], b"", LIMIT).await.unwrap_err();
    assert!(error.contains("longer than"), "{error}");
}

#[tokio::test]
async fn accounts_opt_in_and_their_tokens_are_told() {
    let mut bed = Bed::new();
    let mut token = TokenAttributes {
        audience: "reg".to_owned(),
        per_token: false,
        required: true,
        required_annotations: vec!["role".to_owned()],
        optional_annotations: vec!["none".to_owned()],
    };
    let words = "$(echo \"$question\" | tr -d '\"' | tr -d '{}' | cut -d, -f4-)";
    bed.add(&answers("required", words, IMAGE)).token = Some(token.clone());
    token.required_annotations = vec!["other".to_owned()];
    bed.add(&answers("lacks", words, IMAGE)).token = Some(token.clone());
    token.required_annotations.clear();
    token.required = false;
    bed.add(&answers("optional", words, IMAGE)).token = Some(token);
    let providers = bed.start(LIMIT);
    let told = |user: &str, words: &str| (user.to_owned(), words.to_owned());
    let token = "serviceAccountToken:pod/sa/reg";
    let annotated = format!("{token},serviceAccountAnnotations:role:captain");
    assert_eq!(ask(&providers, "foo.io/a", "sa").await, [told("required", &annotated), told("optional", token)]);
    assert_eq!(ask(&providers, "foo.io/a", "").await, [told("optional", "")]);
    assert_eq!(ask(&providers, "foo.io/a", "nobody").await, []);
}
