//! Tests of configurations: what is read, and that every problem is told.
#![allow(clippy::unwrap_used)]

use super::*;

const GOOD: &str = r#"
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: ecr
  matchImages: ["*.dkr.ecr.*.amazonaws.com", "registry.io:8080/path"]
  defaultCacheDuration: 12h
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  args: [get]
  env: [{name: A, value: "b"}]
  tokenAttributes:
    serviceAccountTokenAudience: ecr
    cacheType: ServiceAccount
    requireServiceAccount: true
    requiredServiceAccountAnnotationKeys: [domain.io/identity]
"#;

#[test]
fn a_configuration_is_read() {
    let providers = parse(GOOD).unwrap();
    let [provider] = providers.as_slice() else { panic!("{providers:?}") };
    assert_eq!((provider.name.as_str(), provider.default_cache.as_secs()), ("ecr", 12 * 3600));
    assert_eq!(provider.env, [("A".to_owned(), "b".to_owned())]);
    let token = provider.token.as_ref().unwrap();
    assert!(token.required && !token.per_token && token.required_annotations == ["domain.io/identity"]);
    for (place, wanted) in [
        ("123.dkr.ecr.us-east-1.amazonaws.com/app", true),
        ("123.dkr.ecr.amazonaws.com/app", false),
        ("registry.io:8080/path/x", true),
        ("registry.io:8080/other", false),
        ("registry.io/path/x", false),
    ] {
        assert_eq!(provider.is_for(place), wanted, "{place}");
    }
    assert!(!format!("{provider:?}").contains("\"b\""), "values of variables are told to nobody");
    assert!(join(vec![providers.clone(), providers]).unwrap_err().contains("ecr"));
}

#[test]
fn every_problem_is_told() {
    let bad = r#"{"apiVersion": "v1", "kind": "CredentialProviderConfig", "providers": [
        {"name": "a/b", "apiVersion": "credentialprovider.kubelet.k8s.io/v1beta1", "matchImages": ["x:y"],
         "tokenAttributes": {"requireServiceAccount": false, "cacheType": "Pod",
            "requiredServiceAccountAnnotationKeys": ["a", "a", "-"]}},
        {"name": "c", "apiVersion": "v1", "defaultCacheDuration": "1d"}, {"name": "c"}]}"#;
    let problems = parse(bad).unwrap_err().join("\n");
    for expected in [
        "apiVersion: expected one of kubelet.config.k8s.io/v1, ",
        "providers[0].name: \"a/b\"",
        "providers[0].matchImages: \"x:y\": \"y\" is not a port",
        "providers[0].defaultCacheDuration: is required",
        "providers[0].tokenAttributes.serviceAccountTokenAudience: is required",
        "providers[0].tokenAttributes.cacheType: expected one of ServiceAccount, Token",
        "providers[0].tokenAttributes: is only supported with",
        "requiredServiceAccountAnnotationKeys: requireServiceAccount cannot be false",
        "requiredServiceAccountAnnotationKeys: \"-\"",
        "annotation key \"a\" is named twice",
        "providers[1].apiVersion: expected one of",
        "providers[1].matchImages: at least one",
        "providers[1].defaultCacheDuration: expected a duration",
        "two are named \"c\"",
    ] {
        assert!(problems.contains(expected), "{expected} in\n{problems}");
    }
    assert!(parse("providers: []").unwrap_err().join(" ").contains("kind: is required"));
    assert!(parse(&GOOD.replace("args", "arguments")).unwrap_err()[0].contains("arguments"));
}
