//! Image volumes: pulled with the container that mounts them, mounted by the runtime or unpacked, and never collected; and
//! what is told of images that are away.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use longshore_core::collect::Policy;
use longshore_core::container::MountSource;
use longshore_core::event::EventType;
use longshore_core::pod::Pod;
use longshore_core::ports::pulls::PullRecords;
use longshore_reconcile::collection;
use longshore_tests::pod;

use crate::bed::{Bed, backed_off};

fn mounting(name: &str, policy: &str) -> Pod {
    let spec = format!(
        "{{containers: [{{name: app, image: app, volumeMounts: [{{name: v, mountPath: /v, subPath: s}}]}}], \
         volumes: [{{name: v, image: {{reference: files, pullPolicy: {policy}}}}}]}}"
    );
    pod(name, &spec)
}

/// What the pod's container has at `/v`.
fn mounted(bed: &Bed, uid: &str) -> MountSource {
    let id = bed.runtime.container(uid, "app").unwrap().id;
    bed.runtime.mounts(&id).into_iter().find(|mount| mount.target == "/v").unwrap().source
}

/// The pod's events of a reason: the container that each is about, and its message.
fn told(bed: &Bed, uid: &str, reason: &str) -> Vec<(Option<String>, String)> {
    let all = bed.events.events(Some(uid)).into_iter().filter(|event| event.reason == reason);
    all.map(|event| (event.container, event.message)).collect()
}

#[tokio::test]
async fn the_runtime_mounts_what_it_can() {
    let bed = Bed::new();
    bed.runtime.can_pull("files");
    let pods = [mounting("a", "IfNotPresent")];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    let source = MountSource::Image { id: "sha256:files".to_owned(), sub_path: Some("s".to_owned()) };
    assert_eq!(mounted(&bed, "a"), source);
    assert_eq!(told(&bed, "a", "Pulling"), [(None, "Pulling image \"files\"".to_owned())]);
    assert_eq!(bed.runtime.calls("image_files"), 0);
    // The volume's is the pod's event, the container's own is the container's.
    let about: Vec<_> = told(&bed, "a", "Pulled").into_iter().map(|(about, _)| about).collect();
    assert_eq!(about, [None, Some("app".to_owned())]);
    let bed = bed.restart().await;
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    assert_eq!(bed.runtime.calls("create_container"), 1, "nothing restarts");
}

#[tokio::test]
async fn what_it_cannot_mount_is_unpacked_once_for_all_pods() {
    let bed = Bed::new();
    bed.runtime.mounts_no_images();
    bed.runtime.has_image("files");
    *bed.files.failing_to_unpack.lock().unwrap() = 1;
    bed.source.set(vec![mounting("a", "Never")]);
    bed.until("it failed", |bed| bed.waiting_reason("a", "app") == "CreateContainerError").await;
    assert!(told(&bed, "a", "Failed").iter().any(|(_, message)| message.contains("it was told to fail")));
    let pods = [mounting("a", "Never"), mounting("b", "IfNotPresent")];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    for uid in ["a", "b"] {
        let path = PathBuf::from(format!("/pods/{uid}/v/sha256:files/s"));
        assert_eq!(mounted(&bed, uid), MountSource::Path(path));
    }
    assert_eq!(bed.runtime.calls("image_files"), 2, "one that failed and one");
}

#[tokio::test]
async fn a_container_waits_for_an_image_that_cannot_be_had_and_others_do_not() {
    let bed = Bed::new();
    let spec =
        "{containers: [{name: free, image: app}, {name: app, image: app, volumeMounts: [{name: v, mountPath: /v}]}],
        volumes: [{name: v, image: {reference: files, pullPolicy: POLICY}}]}";
    bed.source.set(vec![
        pod("pulls", &spec.replace("POLICY", "Always")),
        pod("never", &spec.replace("POLICY", "Never")),
        pod("invalid", &spec.replace("POLICY", "Always").replace("files", "Not:A:Name")),
    ]);
    for (uid, reason) in [("pulls", "ErrImagePull"), ("never", "ErrImageNeverPull"), ("invalid", "InvalidImageName")] {
        bed.until(reason, |bed| bed.waiting_reason(uid, "app") == reason).await;
        bed.until("the other runs", |bed| bed.runtime.container(uid, "free").is_some_and(|seen| seen.is_running()))
            .await;
        assert!(bed.runtime.container(uid, "app").is_none());
        let failed = told(&bed, uid, "Failed");
        assert!(failed.contains(&(Some("app".to_owned()), format!("Error: {reason}"))), "{failed:?}");
    }
    assert!(told(&bed, "pulls", "Failed")[0].1.starts_with("Failed to pull image \"files\""));
    assert_eq!(told(&bed, "never", "ErrImageNeverPull")[0].0, None);
    let (about, message) = told(&bed, "invalid", "InspectFailed").remove(0);
    let wanted = "Failed to apply default image tag \"Not:A:Name\": couldn't parse image name \"Not:A:Name\": ";
    assert!(about.is_none() && message.starts_with(wanted), "{message}");
}

#[tokio::test]
async fn what_keeps_an_image_away_is_told_in_the_kubelets_words() {
    let bed = Bed::new();
    let spec = |image: &str, policy: &str| {
        pod(image, &format!("{{containers: [{{name: app, image: {image:?}, imagePullPolicy: {policy}}}]}}"))
    };
    bed.source.set(vec![spec("none", "IfNotPresent"), spec("never", "Never"), spec("Not:A:Name", "Always")]);
    for (uid, reason) in
        [("never", "ErrImageNeverPull"), ("Not:A:Name", "InvalidImageName"), ("none", "ImagePullBackOff")]
    {
        bed.until(reason, |bed| bed.waiting_reason(uid, "app") == reason).await;
        bed.until("told", |bed| bed.has_message(uid, &format!("Error: {reason}"))).await;
    }
    // The cause is in the status, and in the event of the pull.
    let backing_off: Vec<_> =
        bed.events.events(Some("none")).into_iter().filter(|one| one.reason == "BackOff").collect();
    let words: Vec<_> = backing_off.iter().map(|one| (one.kind, one.message.as_str())).collect();
    assert_eq!(words, [(EventType::Normal, "Back-off pulling image \"none\"")]);
}

#[tokio::test]
async fn a_mounted_image_is_not_collected() {
    let bed = Bed::with(|options| {
        let policy = Policy { high_percent: 85, low_percent: 80, minimum_age: Duration::ZERO, maximum_age: None };
        options.images = collection::Options { policy, enabled: true, period: Duration::from_millis(20) };
    });
    for name in ["files", "old"] {
        bed.runtime.has_image(name);
    }
    let pods = [mounting("a", "Never")];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.stats.change(|node| node.image_fs.as_mut().unwrap().available = 150);
    bed.until("what nobody uses went", |bed| bed.runtime.images_there().len() == 2).await;
    bed.until("looked again", |bed| bed.runtime.calls("stored_images") > 5).await;
    assert_eq!(bed.runtime.images_there(), ["app", "files"]);
}

#[tokio::test]
async fn a_pull_secret_that_is_not_there_is_told_of_and_the_image_pulled_all_the_same() {
    let bed = Bed::new();
    bed.runtime.can_pull("other");
    let pods = [pod("p", "{imagePullSecrets: [{name: absent}], containers: [{name: app, image: other}]}")];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    let events = told(&bed, "p", "FailedToRetrieveImagePullSecret");
    assert!(events.iter().any(|(_, message)| message.contains("(absent)")), "{events:?}");
}

#[tokio::test]
async fn an_image_that_comes_in_another_way_is_used_whatever_the_back_off_of_its_pulls() {
    let bed = Bed::new();
    let pods = [pod("p", "{containers: [{name: app, image: missing}]}")];
    bed.source.set(pods.to_vec());
    bed.until("it cannot be pulled", |bed| bed.waiting_reason("p", "app") == "ErrImagePull").await;
    let (files, runtime) = (bed.files.clone(), bed.runtime.clone());
    let bed = bed.restart_with(async || runtime.has_image(&backed_off(&files, "p", "image/missing").await)).await;
    let pulls = bed.runtime.calls("pull");
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    assert_eq!(bed.runtime.calls("pull"), pulls);
}

/// An image that can be pulled with a password alone.
const PRIVATE: &str = "reg.io/private:1";

/// A pod of that image.
fn private(name: &str, secrets: &[&str], policy: &str) -> Pod {
    let secrets: Vec<String> = secrets.iter().map(|secret| format!("{{name: {secret}}}")).collect();
    let secrets = secrets.join(", ");
    pod(
        name,
        &format!(
            "{{imagePullSecrets: [{secrets}], containers: [{{name: app, image: '{PRIVATE}', imagePullPolicy: {policy}}}]}}"
        ),
    )
}

/// Pull secrets of three names, of which the last does not open it.
fn put_secrets(bed: &Bed) {
    for (name, password) in [("first", "p"), ("same", "p"), ("wrong", "x")] {
        bed.objects.put_pull_secret(name, password);
    }
}

const PRESENT: &str = "Container image \"reg.io/private:1\" already present on machine and can be accessed by the pod";

#[tokio::test]
async fn what_came_with_a_pods_secret_is_for_those_who_have_its_credentials() {
    let bed = Bed::new();
    put_secrets(&bed);
    bed.runtime.can_pull_with(PRIVATE, "p");
    let mut pods = vec![private("owner", &["first"], "IfNotPresent")];
    bed.source.set(pods.clone());
    bed.until_ready(&pods).await;
    assert!(bed.files.pulls_begun().is_empty());
    pods.extend([
        private("other", &["wrong", "same"], "Never"),
        private("stranger", &[], "IfNotPresent"),
        private("wrong", &["wrong"], "IfNotPresent"),
        private("never", &[], "Never"),
    ]);
    let refused = [("stranger", "ImagePullBackOff"), ("wrong", "ImagePullBackOff"), ("never", "ErrImageNeverPull")];
    bed.source.set(pods.clone());
    bed.until_ready(&pods[..2]).await;
    assert!(bed.has_message("other", PRESENT));
    for (uid, reason) in refused {
        bed.until(reason, |bed| bed.waiting_reason(uid, "app") == reason).await;
    }
    let message = "Container image \"reg.io/private:1\" is not present with pull policy of Never";
    assert_eq!(told(&bed, "never", "ErrImageNeverPull")[0].1, message);
    let bed = bed.restart().await;
    put_secrets(&bed);
    pods.extend([private("late", &["same"], "IfNotPresent"), private("late-stranger", &[], "Never")]);
    bed.source.set(pods.clone());
    bed.until_ready(&pods[5..6]).await;
    assert!(bed.has_message("late", PRESENT));
    bed.until("refused", |bed| bed.waiting_reason("late-stranger", "app") == "ErrImageNeverPull").await;
}

#[tokio::test]
async fn what_a_pull_that_was_cut_off_brought_is_nobodys() {
    let bed = Bed::new();
    bed.files.keep_pulling(&BTreeSet::from([PRIVATE.to_owned()])).await.unwrap();
    bed.runtime.has_image(PRIVATE);
    let bed = bed.restart().await;
    bed.source.set(vec![private("p", &[], "Never")]);
    bed.until("refused", |bed| bed.waiting_reason("p", "app") == "ErrImageNeverPull").await;
    bed.runtime.can_pull(PRIVATE);
    let pods = [private("p", &[], "Never"), private("q", &[], "IfNotPresent")];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    assert!(bed.files.pulls_begun().is_empty());
}

#[tokio::test]
async fn records_that_cannot_be_had_stop_no_pod_and_are_kept_in_memory() {
    let bed = Bed::new();
    put_secrets(&bed);
    *bed.files.pulls_fail.lock().unwrap() = true;
    bed.runtime.can_pull_with(PRIVATE, "p");
    let pods = [private("owner", &["first"], "IfNotPresent"), pod("p", "{containers: [{name: app, image: app}]}")];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    let stranger = private("stranger", &[], "Never");
    bed.source.set(pods.iter().cloned().chain([stranger]).collect());
    bed.until("refused", |bed| bed.waiting_reason("stranger", "app") == "ErrImageNeverPull").await;
}

#[tokio::test]
async fn with_the_gate_off_what_is_there_is_everybodys() {
    let bed = Bed::with(|options| options.verification = None);
    put_secrets(&bed);
    bed.runtime.can_pull_with(PRIVATE, "p");
    let pods = [private("owner", &["first"], "IfNotPresent")];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    let pods = [pods[0].clone(), private("stranger", &[], "Never")];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    assert!(bed.has_message("stranger", "Container image \"reg.io/private:1\" already present on machine"));
}
