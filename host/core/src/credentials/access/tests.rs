//! Whose an image is, by how it came.
#![allow(clippy::unwrap_used)]

use super::*;

const NAME: &str = "foo.io/a:1";

fn secret(namespace: &str, uid: &str, password: &str) -> Owner {
    let credentials = RegistryCredentials::Basic { username: "u".to_owned(), password: password.to_owned() };
    let secret = ObjectId { namespace: namespace.to_owned(), name: "pull".to_owned(), uid: uid.to_owned() };
    OwnedCredentials::of_secret(credentials, secret).owner
}

fn account(uid: &str) -> Owner {
    Owner::ServiceAccount(ObjectId { namespace: "a".to_owned(), name: "sa".to_owned(), uid: uid.to_owned() })
}

fn pulled(owners: &[Owner]) -> PullRecord {
    let mut record = PullRecord::new("sha256:1");
    for owner in owners {
        record.note(NAME, owner);
    }
    record
}

fn under(policy: Policy) -> Verification {
    Verification { policy, allowlist: Vec::new() }
}

/// Whether a pod with these may use the image by that name, by the default policy.
fn may(name: &str, record: Option<&PullRecord>, own: &[Owner]) -> bool {
    match judge(name, record, false, &Verification::default()) {
        Verdict::Use => true,
        Verdict::Ask(keepers) => keepers.find(own).is_some(),
        Verdict::Pull => false,
    }
}

#[test]
fn what_was_not_pulled_or_with_nothing_of_a_pods_is_everybodys() {
    assert!(may(NAME, None, &[]));
    assert!(may(NAME, Some(&pulled(&[Owner::Node])), &[]));
    // Whoever pulled it before.
    assert!(may(NAME, Some(&pulled(&[secret("a", "1", "p"), Owner::Node])), &[]));
    // A pull that is under way, or that a crash cut off, tells nothing.
    assert_eq!(judge(NAME, None, true, &Verification::default()), Verdict::Pull);
}

#[test]
fn what_a_secret_brought_is_for_those_who_have_it_or_its_credentials() {
    let record = pulled(&[secret("a", "1", "p")]);
    for (own, wanted) in [
        (secret("a", "1", "p"), true),
        (secret("b", "2", "p"), true),
        (secret("a", "1", "changed"), true),
        (secret("a", "2", "changed"), false),
        (secret("b", "1", "changed"), false),
        (account("1"), false),
        (Owner::Node, false),
    ] {
        assert_eq!(may(NAME, Some(&record), std::slice::from_ref(&own)), wanted, "{own:?}");
    }
    assert!(!may(NAME, Some(&record), &[]));
    assert!(may(NAME, Some(&record), &[secret("b", "3", "x"), secret("b", "2", "p")]));
    // One without a UID may be another by now.
    assert!(!may(NAME, Some(&pulled(&[secret("a", "", "p")])), &[secret("a", "", "changed")]));
    let record = pulled(&[account("1")]);
    assert!(may(NAME, Some(&record), &[account("1")]) && !may(NAME, Some(&record), &[account("2")]));
}

#[test]
fn each_name_is_kept_for_itself() {
    let record = pulled(&[secret("a", "1", "p")]);
    assert!(!may("foo.io/a:2", Some(&record), &[]), "another tag of it");
    assert!(may("other/name:1", Some(&record), &[]), "it came in another way");
    let by_digest = format!("bar.io/x@sha256:{}", "a".repeat(64));
    let by_id = format!("sha256:{}", "b".repeat(64));
    for name in [by_digest.as_str(), by_id.as_str(), "sha256:abc", "abcdef012345"] {
        assert!(!may(name, Some(&record), &[]), "{name}");
        assert!(may(name, Some(&pulled(&[Owner::Node])), &[]), "nobody's alone: {name}");
    }
    let mut record = pulled(&[secret("a", "1", "p")]);
    for at in 0..MAX_NAMES {
        record.note(&format!("zoo.io/{at}"), &Owner::Node);
    }
    assert!(!may(NAME, Some(&record), &[]), "what was forgotten is nobody's");
    assert_eq!(record.names.len(), MAX_NAMES);
}

#[test]
fn a_record_stays_small_and_is_written_only_for_what_is_new() {
    let mut record = pulled(&[secret("a", "1", "p")]);
    assert!(!record.learn(NAME, &secret("a", "1", "p")));
    assert!(record.learn(NAME, &secret("a", "1", "changed")));
    assert!(!may(NAME, Some(&record), &[secret("b", "2", "p")]), "the old password opens nothing any more");
    for at in 0..2 * MAX_KEEPERS {
        record.note(NAME, &secret("a", &format!("u{at}"), &at.to_string()));
        record.note(NAME, &account(&at.to_string()));
    }
    let keepers = &record.names["foo.io/a"];
    assert_eq!((keepers.secrets.len(), keepers.accounts.len()), (MAX_KEEPERS, MAX_KEEPERS));
    assert!(keepers.find(&[secret("x", "y", "199")]).is_some() && keepers.find(&[secret("x", "y", "99")]).is_none());
    assert!(!record.learn(NAME, &secret("b", "2", "199")), "there is no room");
    let text = serde_json::to_string(&record).unwrap();
    assert!(!text.contains("changed") && serde_json::from_str::<PullRecord>(&text).unwrap() == record);
    // What took the place of one that could not be read does not tell that a name was not pulled.
    let mut lost = PullRecord::lost("sha256:1");
    lost.note("other/name:1", &Owner::Node);
    assert!(!may(NAME, Some(&lost), &[]) && may("other/name:2", Some(&lost), &[]));
    assert!(record.note(NAME, &Owner::Node) && !record.note(NAME, &secret("a", "1", "p")));
}

#[test]
fn policies_and_their_allowlist() {
    let kept = pulled(&[secret("a", "1", "p")]);
    assert_eq!(judge(NAME, Some(&kept), true, &under(Policy::NeverVerify)), Verdict::Use);
    assert_eq!(judge(NAME, None, false, &under(Policy::AlwaysVerify)), Verdict::Pull);
    assert_eq!(judge(NAME, Some(&pulled(&[Owner::Node])), false, &under(Policy::AlwaysVerify)), Verdict::Use);
    let allowlist = ["foo.io/*", "nginx", "bar.io:5000/x"].map(str::to_owned).to_vec();
    let listed = Verification { policy: Policy::NeverVerifyAllowlistedImages, allowlist };
    for (name, free) in [
        ("foo.io/a:1", true),
        ("foo.io.evil/a", false),
        ("nginx:1.29", true),
        ("nginx2", false),
        ("docker.io/library/nginx", false),
        ("bar.io:5000/x:1", true),
        ("bar.io:5000/x/y", false),
    ] {
        assert_eq!(judge(name, None, false, &listed) == Verdict::Use, free, "{name}");
    }
    for good in ["nginx", "foo.io/a/b", "foo.io:5000/*", "foo.io/a/*"] {
        check_pattern(good).unwrap();
    }
    for bad in ["", " nginx", "*", "/*", "foo.io/*/b", "foo.*/*", "foo.io*", "nginx:1", "Nginx", "x@sha256:ab"] {
        assert!(check_pattern(bad).is_err(), "{bad}");
    }
    assert_eq!(["nginx", "docker.io/library/nginx:latest"].map(full_name), ["docker.io/library/nginx:latest"; 2]);
    assert!(Policy::ALL.iter().all(|(name, policy)| policy.name() == *name));
}
