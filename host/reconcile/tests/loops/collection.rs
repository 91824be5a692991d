//! Images go when their disk is full, and those that are used or wanted stay.

use std::time::Duration;

use longshore_core::collect::Policy;
use longshore_reconcile::collection;
use longshore_tests::pod;

use crate::bed::Bed;

fn bed(maximum_age: Option<Duration>) -> Bed {
    Bed::with(|options| {
        let policy = Policy { high_percent: 85, low_percent: 80, minimum_age: Duration::ZERO, maximum_age };
        options.images = collection::Options { policy, enabled: true, period: Duration::from_millis(20) };
    })
}

fn node_events(bed: &Bed, reason: &str) -> Vec<String> {
    let all = bed.events.events(None);
    all.iter().filter(|event| event.reason == reason).map(|event| event.message.clone()).collect()
}

#[tokio::test]
async fn a_full_disk_is_freed_of_what_nobody_uses_or_wants() {
    let bed = bed(None);
    for name in ["wanted", "pause", "old", "older"] {
        bed.runtime.has_image(name);
    }
    bed.stats.change(|node| node.image_fs.as_mut().unwrap().available = 150);
    // Before every source has spoken it is not known what is wanted.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bed.runtime.calls("remove_image"), 0);
    // The second container is not made before the first one's image has come.
    let spec = "{initContainers: [{name: slow, image: absent}], containers: [{name: app, image: app}, {name: late, image: wanted}]}";
    bed.source.set(vec![pod("p", spec), pod("q", "{containers: [{name: app, image: app}]}")]);
    bed.until("they went", |bed| bed.runtime.images_there().len() == 3).await;
    assert_eq!(bed.runtime.images_there(), ["app", "pause", "wanted"]);
    // A disk of 1000 bytes: two images of a MiB are more than enough at first, and nothing is left to remove later.
    bed.until("it says so", |bed| !node_events(bed, "FreeDiskSpaceFailed").is_empty()).await;
    bed.until("and that it goes on", |bed| !node_events(bed, "ImageGCFailed").is_empty()).await;
    let message = &node_events(&bed, "FreeDiskSpaceFailed")[0];
    assert!(message.starts_with("Insufficient free disk space on the node's image filesystem (85% of 1000 B used). "));
    assert!(message.contains("(freed 0 bytes)"), "{message}");
    assert!(bed.is_ready("q"));
}

#[tokio::test]
async fn no_more_is_removed_than_is_needed() {
    let bed = Bed::with(|options| {
        let policy = Policy { high_percent: 85, low_percent: 80, minimum_age: Duration::ZERO, maximum_age: None };
        options.images = collection::Options { policy, enabled: true, period: Duration::from_secs(3600) };
    });
    for name in ["a", "b", "c"] {
        bed.runtime.has_image(name);
    }
    bed.stats.change(|node| node.image_fs.as_mut().unwrap().available = 150);
    bed.source.set(vec![pod("q", "{containers: [{name: app, image: app}]}")]);
    bed.until("one went", |bed| bed.runtime.images_there().len() < 4).await;
    bed.until("ready", |bed| bed.is_ready("q")).await;
    assert_eq!(bed.runtime.images_there().len(), 3, "one of a MiB frees 50 bytes");
    assert_eq!(bed.runtime.calls("remove_image"), 1);
}

#[tokio::test]
async fn what_was_not_used_for_long_goes_though_there_is_room() {
    let bed = bed(Some(Duration::from_secs(2)));
    bed.runtime.has_image("old");
    bed.source.set(vec![pod("q", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("q")).await;
    assert_eq!(bed.runtime.images_there().len(), 2);
    bed.until("it went", |bed| bed.runtime.images_there() == ["app"]).await;
    assert!(node_events(&bed, "ImageGCFailed").is_empty());
}

#[tokio::test]
async fn one_failure_is_logged_and_two_are_an_event() {
    let bed = bed(None);
    bed.runtime.fail("stored_images", 1);
    bed.source.set(Vec::new());
    bed.until("looked twice", |bed| bed.runtime.calls("stored_images") > 2).await;
    assert!(node_events(&bed, "ImageGCFailed").is_empty());
    bed.runtime.fail("stored_images", 2);
    bed.until("told", |bed| !node_events(bed, "ImageGCFailed").is_empty()).await;
}
