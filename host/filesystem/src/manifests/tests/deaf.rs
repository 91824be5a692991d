//! A folder whose changes nobody tells of: no inotify is left, or its file system has no events.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::*;

/// What the kernel says when `fs.inotify.max_user_instances` is used up.
const NONE_LEFT: &str = "Too many open files (os error 24)";

fn reader(fixture: &Fixture, rescan: Duration, hear: Hear) -> Reader {
    Reader::new(ManifestFolder::start(&fixture.folder(), "node", rescan, None, hear))
}

async fn follows(fixture: &Fixture, reader: &mut Reader) {
    fixture.write("a.yaml", &pod("a", "one"));
    reader.until("the pod", |snapshot| images(snapshot) == ["one"]).await;
    fixture.write("a.yaml", &pod("a", "two"));
    reader.until("the change", |snapshot| images(snapshot) == ["two"]).await;
    std::fs::rename(fixture.folder().join("a.yaml"), fixture.folder().join("b.yaml")).unwrap();
    fixture.write("c.yaml", &pod("c", "three"));
    reader.until("another one", |snapshot| names(snapshot) == ["a", "c"]).await;
    fixture.remove("b.yaml");
    reader.until("one less", |snapshot| names(snapshot) == ["c"]).await;
    fixture.remove("c.yaml");
    reader.until("none", |snapshot| snapshot.pods.is_empty()).await;
}

#[tokio::test]
async fn files_are_followed_by_looking_where_no_watch_is_left_and_it_is_said() {
    let fixture = Fixture::new();
    let left = Arc::new(AtomicBool::new(false));
    let is_left = left.clone();
    let hear: Hear = Arc::new(move |folder, wake| match is_left.load(Ordering::Acquire) {
        true => watch::Watch::new(folder, wake),
        false => Err(NONE_LEFT.to_owned()),
    });
    let mut reader = reader(&fixture, Duration::from_millis(200), hear);
    follows(&fixture, &mut reader).await;
    let said =
        |snapshot: &SourceSnapshot| says(snapshot, "changes are found by looking only") && says(snapshot, NONE_LEFT);
    assert!(said(&reader.last), "{:?}", reader.last.problems);
    assert!(reader.last.problems.iter().all(|problem| problem.warning), "it goes on: {:?}", reader.last.problems);
    // Another program has ended, and gave its watches back.
    left.store(true, Ordering::Release);
    reader.until("it hears again", |snapshot| !said(snapshot)).await;
    follows(&fixture, &mut reader).await;
}

#[tokio::test]
async fn files_are_followed_by_looking_where_a_file_system_has_no_events() {
    let fixture = Fixture::new();
    // It is watched, and nobody is ever woken.
    let hear: Hear = Arc::new(|folder, _| watch::Watch::new(folder, Arc::new(Notify::new())));
    let mut reader = reader(&fixture, Duration::from_millis(200), hear);
    follows(&fixture, &mut reader).await;
    assert!(reader.last.problems.is_empty(), "{:?}", reader.last.problems);
}
