//! Tests of requests, answers and the cache.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::credentials::providers::{API_VERSIONS, TokenAttributes};

fn provider(per_token: Option<bool>) -> Provider {
    Provider {
        name: "p".to_owned(),
        match_images: vec!["*.io".to_owned()],
        default_cache: Duration::from_secs(60),
        api_version: API_VERSIONS[0].to_owned(),
        args: Vec::new(),
        env: Vec::new(),
        token: per_token.map(|per_token| TokenAttributes {
            audience: "a".to_owned(),
            per_token,
            required: true,
            required_annotations: Vec::new(),
            optional_annotations: Vec::new(),
        }),
    }
}

fn account(name: &str, token: &str) -> Account {
    Account {
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        uid: "u".to_owned(),
        annotations: BTreeMap::new(),
        token: token.to_owned(),
    }
}

fn answer(scope: &str, duration: Option<&str>) -> Answer {
    let body = serde_json::json!({"apiVersion": API_VERSIONS[0], "kind": "CredentialProviderResponse",
        "cacheKeyType": scope, "cacheDuration": duration, "auth": {"foo.io": {"username": "u", "password": "p"}}});
    read_answer(&provider(None), body.to_string().as_bytes(), None).map_err(|error| panic!("{error}")).unwrap()
}

#[test]
fn requests_are_as_the_kubelets() {
    let plain = request(&provider(None), "foo.io/a", None);
    let expected = r#"{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"foo.io/a"}"#;
    assert_eq!(plain, expected);
    let mut of = account("sa", "tok");
    of.annotations.insert("k".to_owned(), "v".to_owned());
    let told: serde_json::Value = serde_json::from_str(&request(&provider(None), "foo.io/a", Some(&of))).unwrap();
    assert_eq!(told["serviceAccountToken"], "tok");
    assert_eq!(told["serviceAccountAnnotations"], serde_json::json!({"k": "v"}));
}

#[test]
fn answers_that_cannot_be_used_say_why_and_tell_no_secret() {
    let read = |text: &str, per_token: Option<bool>| {
        let of = account("sa", "s3cr3t");
        let of = per_token.map(|_| &of);
        read_answer(&provider(per_token), text.as_bytes(), of).map(|_| ()).unwrap_err()
    };
    let with =
        |rest: &str| format!(r#"{{"apiVersion":"{}","kind":"CredentialProviderResponse",{rest}}}"#, API_VERSIONS[0]);
    assert!(read("s3cr3t", None).contains("error decoding"));
    assert!(read(r#"{"apiVersion":"x/v1"}"#, None).contains("did not match expected apiVersion"));
    assert!(read(&with(r#""cacheKeyType":"Pod""#), None).contains("valid cacheKeyType: Pod"));
    assert!(read(&with(r#""auth":{}"#), None).contains("valid cacheKeyType"));
    assert!(read(&with(r#""cacheKeyType":"Image","cacheDuration":"1d""#), None).contains("cacheDuration"));
    let unknown = read(&with(r#""cacheKeyType":"Image","secret":"s3cr3t""#), None);
    assert!(unknown.contains("error decoding") && !unknown.contains("s3cr3t"));
    let echo = with(r#""cacheKeyType":"Image","auth":{"foo.io":{"username":"u","password":"s3cr3t"}}"#);
    assert!(read(&echo, Some(false)).contains("returned the service account token"));
    let of = account("sa", "s3cr3t");
    assert!(read_answer(&provider(Some(true)), echo.as_bytes(), Some(&of)).is_ok());
    let none = with(r#""cacheKeyType":"Global","auth":null"#);
    assert!(read_answer(&provider(None), none.as_bytes(), None).unwrap().logins.is_empty());
}

#[test]
fn the_most_specific_of_all_answers_comes_first() {
    let logins = |keys: &[&str], user: &str| -> Arc<Logins> {
        Arc::new(keys.iter().map(|key| ((*key).to_owned(), (format!("{user}:{key}"), String::new()))).collect())
    };
    let second = account("sa", "t").owner();
    let answers = [
        (Owner::Node, logins(&["foo.io", "*.io"], "first")),
        (second.clone(), logins(&["foo.io/a", "foo.io", "bar.io"], "second")),
    ];
    let found = choose("foo.io/a/b:1", &answers);
    assert_eq!([&found[0].owner, &found[1].owner], [&second, &Owner::Node]);
    let users: Vec<String> = found
        .into_iter()
        .map(|found| match found.credentials {
            RegistryCredentials::Basic { username, .. } => username,
            RegistryCredentials::IdentityToken(token) => token,
        })
        .collect();
    assert_eq!(users, ["second:foo.io/a", "first:foo.io", "second:foo.io", "first:*.io"]);
}

#[test]
fn answers_are_kept_for_what_they_are_good_for() {
    let (of, now) = (provider(None), Instant::now());
    for (scope, good, other_image, other_registry) in
        [("Image", true, false, false), ("Registry", true, true, false), ("Global", true, true, true)]
    {
        let mut cache = Cache::default();
        cache.keep(&of, "foo.io/a", None, &answer(scope, None), now);
        let found = |place: &str, seconds| cache.find(&of, place, None, now + Duration::from_secs(seconds)).is_some();
        assert_eq!(
            (found("foo.io/a", 59), found("foo.io/b", 0), found("bar.io/a", 0)),
            (good, other_image, other_registry)
        );
        assert!(!found("foo.io/a", 60), "the default of 60 s is over");
    }
    let mut cache = Cache::default();
    for never in ["0s", "-5m"] {
        cache.keep(&of, "foo.io/a", None, &answer("Image", Some(never)), now);
        assert!(cache.find(&of, "foo.io/a", None, now).is_none());
    }
}

#[test]
fn accounts_do_not_share() {
    let now = Instant::now();
    for (per_token, same_account) in [(false, true), (true, false)] {
        let of = provider(Some(per_token));
        let mut cache = Cache::default();
        cache.keep(&of, "foo.io/a", Some(&account("sa", "1")), &answer("Global", None), now);
        assert!(cache.find(&of, "foo.io/a", Some(&account("sa", "1")), now).is_some());
        assert_eq!(cache.find(&of, "foo.io/a", Some(&account("sa", "2")), now).is_some(), same_account);
        assert!(cache.find(&of, "foo.io/a", Some(&account("other", "1")), now).is_none());
        assert!(cache.find(&of, "foo.io/a", None, now).is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn the_cache_is_bounded(places in proptest::collection::vec("[a-z]{1,6}", 0..40), extra in 0..1200_usize) {
        let (of, now) = (provider(None), Instant::now());
        let mut cache = Cache::default();
        for index in 0..extra {
            cache.keep(&of, &format!("foo.io/{index}"), None, &answer("Image", None), now);
        }
        for place in &places {
            cache.keep(&of, place, None, &answer("Image", Some("2m")), now);
            prop_assert!(cache.find(&of, place, None, now).is_some());
        }
        prop_assert!(cache.kept.len() <= MAX_KEPT);
    }
}
