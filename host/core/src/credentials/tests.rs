//! Tests of names and keyrings, case by case after `pkg/credentialprovider/keyring_test.go`'s facts.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn secret(json: &str) -> Arc<v1::Secret> {
    Arc::new(v1::Secret {
        type_: Some("kubernetes.io/dockerconfigjson".to_owned()),
        data: Some(BTreeMap::from([(".dockerconfigjson".to_owned(), ByteString(json.as_bytes().to_vec()))])),
        ..Default::default()
    })
}

fn of(places: &[&str]) -> Arc<v1::Secret> {
    let auths: BTreeMap<&str, serde_json::Value> =
        places.iter().map(|place| (*place, serde_json::json!({"username": place, "password": "x"}))).collect();
    secret(&serde_json::json!({ "auths": auths }).to_string())
}

fn users(image: &str, secrets: &[Arc<v1::Secret>]) -> Vec<String> {
    for_image(image, secrets)
        .into_iter()
        .map(|found| match found.credentials {
            RegistryCredentials::Basic { username, .. } => username,
            RegistryCredentials::IdentityToken(token) => token,
        })
        .collect()
}

#[test]
fn names_are_normalised() {
    let name = |text: &str| parse_image(text).unwrap();
    assert_eq!(name("nginx").place(), "docker.io/library/nginx");
    assert_eq!(name("nginx").tag.as_deref(), Some("latest"));
    assert_eq!(name("index.docker.io/a/b:1").place(), "docker.io/a/b");
    assert_eq!(name("localhost:5000/a/b:1").place(), "localhost:5000/a/b");
    let digest = format!("sha256:{}", "a".repeat(64));
    let pinned = name(&format!("k8s.gcr.io/pause@{digest}"));
    assert_eq!((pinned.tag, pinned.digest), (None, Some(digest)));
}

#[test]
fn bad_names_have_the_kubelets_message() {
    for (bad, why) in [
        ("", "invalid reference format"),
        ("a b", "invalid reference format"),
        ("a:b:c/d", "invalid reference format"),
        ("../containers/x", "invalid reference format"),
        ("Foo/bar", "repository name must be lowercase"),
    ] {
        let message = parse_image(bad).unwrap_err();
        assert!(
            message.starts_with(&format!(
                "Failed to apply default image tag \"{bad}\": couldn't parse image name \"{bad}\": "
            )),
            "{message}"
        );
        assert!(message.ends_with(why), "{message}");
    }
    assert!(parse_image(&"a".repeat(64)).is_err());
}

#[test]
fn hosts_ports_paths_and_globs() {
    for (key, image, expected) in [
        ("foo.io", "foo.io/a/b", true),
        ("https://foo.io/v1/", "foo.io/a", true),
        ("foo.io/v2/", "foo.io/a", true),
        ("foo.io/a", "foo.io/a/b", true),
        ("foo.io/a", "foo.io/b", false),
        ("foo.io:5000", "foo.io:5000/a", true),
        ("foo.io", "foo.io:5000/a", false),
        ("foo.io:5000", "foo.io/a", false),
        ("*.foo.io", "x.foo.io/a", true),
        ("*.foo.io", "foo.io/a", false),
        ("*.foo.io", "a.b.foo.io/a", false),
        ("p*.f?o.io", "pre.foo.io/a", true),
        ("bar.io", "foo.io/a", false),
        ("https://index.docker.io/v1/", "nginx", true),
        ("docker.io", "nginx", true),
        ("index.docker.io", "foo.io/nginx", false),
    ] {
        assert_eq!(!users(image, &[of(&[key])]).is_empty(), expected, "{key} for {image}");
    }
}

#[test]
fn the_longest_comes_first() {
    let first = of(&["foo.io", "foo.io/a/b", "foo.io/a"]);
    assert_eq!(users("foo.io/a/b/c", &[first]), ["foo.io/a/b", "foo.io/a", "foo.io"]);
}

#[test]
fn all_shapes_of_an_entry() {
    let json = r#"{"auths":{"foo.io":{"auth":"dTpwOnE="},"foo.io/a":{"auth":"dTpwOnE"},
        "foo.io/b":{"identitytoken":"tok"},"foo.io/c":{"auth":"***"},"foo.io/d":7}}"#;
    let basic = RegistryCredentials::Basic { username: "u".to_owned(), password: "p:q".to_owned() };
    let found = |image: &str| -> Vec<RegistryCredentials> {
        for_image(image, &[secret(json)]).into_iter().map(|found| found.credentials).collect()
    };
    assert_eq!(found("foo.io/a"), std::slice::from_ref(&basic));
    assert_eq!(found("foo.io/b"), [RegistryCredentials::IdentityToken("tok".to_owned()), basic]);
    let old = v1::Secret {
        type_: Some("kubernetes.io/dockercfg".to_owned()),
        data: Some(BTreeMap::from([(".dockercfg".to_owned(), ByteString(br#"{"foo.io":{"username":"u"}}"#.to_vec()))])),
        ..Default::default()
    };
    assert_eq!(users("foo.io/a", &[Arc::new(old)]), ["u"]);
    let opaque = v1::Secret { type_: Some("Opaque".to_owned()), ..(*secret(json)).clone() };
    assert!(users("foo.io/a", &[Arc::new(opaque)]).is_empty());
    assert!(users("foo.io/a", &[secret("{")]).is_empty());
}

proptest! {
    #[test]
    fn nothing_panics(name in "\\PC{0,80}", key in "\\PC{0,40}", auth in "\\PC{0,40}") {
        let json = serde_json::json!({"auths": {key: {"auth": auth}}}).to_string();
        let _ = for_image(&name, &[secret(&json)]);
    }

    #[test]
    fn a_star_matches_what_it_was_made_from(text in "[a-z0-9-]{1,20}", at in 0usize..20, length in 0usize..20) {
        let (at, end) = (at.min(text.len()), at.saturating_add(length).min(text.len()));
        let pattern = format!("{}*{}", &text[..at], &text[end.max(at)..]);
        prop_assert!(glob(pattern.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn order_of_keys_is_from_long_to_short(depth in 1usize..5) {
        let keys: Vec<String> = (0..=depth).map(|n| std::iter::once("foo.io".to_owned()).chain((0..n).map(|i| format!("p{i}"))).collect::<Vec<_>>().join("/")).collect();
        let image = format!("{}/end", keys[depth]);
        let found = users(&image, &[of(&keys.iter().map(String::as_str).collect::<Vec<_>>())]);
        prop_assert!(found.windows(2).all(|pair| pair[0].len() > pair[1].len()));
        prop_assert_eq!(found.len(), depth + 1);
    }
}
