//! A folder that is edited, broken, emptied, unmounted and put back.

#![allow(clippy::unwrap_used)]

mod deaf;
mod faults;

use std::os::unix::fs::symlink;
use std::time::Instant;

use longshore_core::pod::Pod;
use rustix::mount::{MountFlags, UnmountFlags};

use super::*;

const RESCAN: Duration = Duration::from_secs(20);

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: app\n    image: {image}\n"
    )
}

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("manifests")).unwrap();
        Fixture { dir }
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder().join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.folder().join(name)).unwrap();
    }

    fn watch(&self) -> Reader {
        self.watch_every(RESCAN)
    }

    fn watch_every(&self, rescan: Duration) -> Reader {
        Reader::new(ManifestFolder::new(&self.folder(), "node", rescan))
    }
}

struct Reader {
    source: ManifestFolder,
    snapshots: BoxStream<'static, SourceSnapshot>,
    last: SourceSnapshot,
}

impl Reader {
    fn new(source: ManifestFolder) -> Reader {
        Reader { snapshots: source.snapshots(), source, last: SourceSnapshot::default() }
    }

    /// Waits for a snapshot that fits; shows the last one when none comes.
    async fn until(&mut self, what: &str, fits: impl Fn(&SourceSnapshot) -> bool) -> SourceSnapshot {
        let end = tokio::time::Instant::now() + Duration::from_secs(90);
        while let Ok(Some(snapshot)) = tokio::time::timeout_at(end, self.snapshots.next()).await {
            self.last = snapshot;
            if fits(&self.last) {
                return self.last.clone();
            }
        }
        panic!("never seen: {what}; last {:?} {:#?}", names(&self.last), self.last.problems);
    }

    /// Fails when, within that time, a snapshot comes that does not fit.
    async fn stays(&mut self, time: Duration, fits: impl Fn(&SourceSnapshot) -> bool) {
        let end = tokio::time::Instant::now() + time;
        while let Ok(Some(snapshot)) = tokio::time::timeout_at(end, self.snapshots.next()).await {
            assert!(fits(&snapshot), "{:?} {:#?}", names(&snapshot), snapshot.problems);
            self.last = snapshot;
        }
    }

    /// Waits until these pods are wanted, whatever was said meanwhile.
    async fn settles(&mut self, wanted: &[&str]) {
        self.stays(Duration::from_millis(700), |_| true).await;
        if names(&self.last) != wanted {
            self.until("all again", |snapshot| names(snapshot) == wanted).await;
        }
    }
}

fn names(snapshot: &SourceSnapshot) -> Vec<String> {
    let mut names: Vec<String> =
        snapshot.pods.iter().map(|pod| pod.id.name.trim_end_matches("-node").to_owned()).collect();
    names.sort();
    names
}

fn images(snapshot: &SourceSnapshot) -> Vec<String> {
    snapshot.pods.iter().flat_map(|pod| pod.spec().containers.iter().filter_map(|c| c.image.clone())).collect()
}

fn says(snapshot: &SourceSnapshot, text: &str) -> bool {
    snapshot.problems.iter().any(|problem| problem.message.contains(text))
}

#[tokio::test]
async fn files_added_changed_and_removed_are_followed_within_a_second() {
    let fixture = Fixture::new();
    fixture.write(".hidden", &pod("hidden", "i"));
    std::fs::create_dir(fixture.folder().join("folder")).unwrap();
    std::fs::write(fixture.folder().join("folder/deep.yaml"), pod("deep", "i")).unwrap();
    let mut reader = fixture.watch();
    reader.until("nothing", |snapshot| snapshot.pods.is_empty()).await;
    let mut times = Vec::new();
    for round in 0..3 {
        let image = format!("image:{round}");
        let started = Instant::now();
        fixture.write("no-extension", &pod("a", &image));
        reader.until("the pod", |snapshot| images(snapshot) == [image.as_str()]).await;
        times.push(started.elapsed());
        let started = Instant::now();
        fixture.write("no-extension", &pod("a", "other"));
        reader.until("the change", |snapshot| images(snapshot) == ["other"]).await;
        times.push(started.elapsed());
        let started = Instant::now();
        fixture.remove("no-extension");
        reader.until("the end", |snapshot| snapshot.pods.is_empty()).await;
        times.push(started.elapsed());
    }
    // Each by the watch; how soon is to be seen where the machine has the time.
    assert!(times.iter().all(|time| *time < RESCAN / 2), "{times:?}");
    assert!(times.iter().any(|time| *time < Duration::from_secs(1)), "{times:?}");
    assert_eq!(names(&reader.last), [""; 0]);
}

#[tokio::test]
async fn a_bad_file_disturbs_neither_others_nor_its_own_pods() {
    let fixture = Fixture::new();
    fixture.write("a", &pod("a", "one"));
    fixture.write("b", &pod("b", "one"));
    fixture.write("never-good", "kind: [");
    let mut reader = fixture.watch();
    let first = reader.until("both", |snapshot| names(snapshot) == ["a", "b"]).await;
    assert!(first.problems.iter().any(|problem| problem.place.contains("never-good") && !problem.warning));
    fixture.write("a", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: 7}\n");
    fixture.write("b", &pod("b", "two"));
    let seen =
        reader.until("b anew", |snapshot| images(snapshot).contains(&"two".to_owned()) && says(snapshot, "kept")).await;
    assert_eq!(images(&seen), ["one", "two"]);
    assert!(seen.problems.iter().any(|problem| problem.place.contains("manifests/a") && !problem.warning));
    for broken in ["", "# only a comment\n", "{", "- a\n- b\n"] {
        fixture.write("a", broken);
        tokio::time::sleep(Duration::from_millis(250)).await;
        reader.stays(Duration::from_millis(50), |snapshot| names(snapshot) == ["a", "b"]).await;
        assert!(
            says(&reader.last, "kept until the file is fixed or removed"),
            "{broken:?}: {:?}",
            reader.last.problems
        );
    }
    fixture.write("a", &pod("a", "three"));
    reader.until("mended", |snapshot| images(snapshot) == ["three", "two"] && !says(snapshot, "kept")).await;
    fixture.write("a", "{");
    fixture.remove("a");
    reader.until("removed", |snapshot| names(snapshot) == ["b"]).await;
}

#[tokio::test]
async fn a_document_that_turns_bad_keeps_its_pod_and_the_others_change() {
    let fixture = Fixture::new();
    let both = |a: &str, b: &str| format!("{a}---\n{b}");
    fixture.write("f", &both(&pod("a", "one"), &pod("b", "one")));
    let mut reader = fixture.watch();
    reader.until("both", |snapshot| names(snapshot) == ["a", "b"]).await;
    let bad = "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {containers: 7}\n";
    fixture.write("f", &both(&pod("a", "two"), bad));
    let seen = reader.until("a anew", |snapshot| images(snapshot).contains(&"two".to_owned())).await;
    assert_eq!(names(&seen), ["a", "b"]);
    assert!(says(&seen, "what it described before is kept"));
}

#[tokio::test]
async fn half_a_copy_and_a_file_made_anew_end_no_pod() {
    let fixture = Fixture::new();
    let both = format!("{}---\n{}", pod("a", "one"), pod("b", "one"));
    fixture.write("f", &both);
    let mut reader = fixture.watch();
    let first = reader.until("both", |snapshot| names(snapshot) == ["a", "b"]).await;
    // The first document is all that has arrived. A machine may be too busy to write the rest before half a second is over.
    loop {
        let halved = Instant::now();
        let late = || halved.elapsed() > Duration::from_millis(400);
        fixture.write("f", &pod("a", "one"));
        reader.stays(Duration::from_millis(200), |snapshot| late() || names(snapshot) == ["a", "b"]).await;
        fixture.write("f", &both);
        if !late() {
            break;
        }
        reader.settles(&["a", "b"]).await;
    }
    reader.stays(Duration::from_millis(700), |snapshot| names(snapshot) == ["a", "b"]).await;
    // Nor may it be able to put it back before it is believed to be gone.
    loop {
        let removed = Instant::now();
        fixture.remove("f");
        tokio::time::sleep(Duration::from_millis(40)).await;
        fixture.write("f", &both);
        if removed.elapsed() < Duration::from_millis(90) {
            break;
        }
        reader.settles(&["a", "b"]).await;
    }
    reader.stays(Duration::from_millis(500), |snapshot| names(snapshot) == ["a", "b"]).await;
    let now = read_once(&fixture.folder(), "node").unwrap();
    assert_eq!(
        now.snapshot.pods.iter().map(|pod| &pod.id).collect::<Vec<_>>(),
        first.pods.iter().map(|pod| &pod.id).collect::<Vec<_>>()
    );
    // What stays away is meant.
    fixture.write("f", &pod("a", "one"));
    reader.until("b gone", |snapshot| names(snapshot) == ["a"]).await;
}

#[tokio::test]
async fn one_file_in_the_place_of_another_is_told_when_that_is_known_to_be_gone() {
    let fixture = Fixture::new();
    fixture.write("a", &pod("a", "one"));
    let mut reader = fixture.watch();
    reader.until("the first", |snapshot| names(snapshot) == ["a"]).await;
    fixture.remove("a");
    fixture.write("b", &pod("b", "one"));
    // The room of the first may be what the second needs.
    let apart = |snapshot: &SourceSnapshot| {
        assert_ne!(names(snapshot), ["a", "b"]);
        names(snapshot) == ["b"]
    };
    reader.until("the second", apart).await;
    // A pod whose file is renamed is no duplicate of itself.
    std::fs::rename(fixture.folder().join("b"), fixture.folder().join("c")).unwrap();
    reader.stays(Duration::from_millis(700), |snapshot| snapshot.problems.is_empty()).await;
}

#[tokio::test]
async fn of_two_equal_pods_the_one_that_runs_counts_and_both_files_are_named() {
    let fixture = Fixture::new();
    fixture.write("m", &pod("web", "first"));
    let mut reader = fixture.watch();
    reader.until("the pod", |snapshot| names(snapshot) == ["web"]).await;
    fixture.write("a", &pod("web", "second"));
    let seen = reader.until("a duplicate", |snapshot| says(snapshot, "is described in")).await;
    assert_eq!(images(&seen), ["first"]);
    let problem = seen.problems.iter().find(|problem| problem.message.contains("is described in")).unwrap();
    assert!(problem.place.ends_with("manifests/a") && problem.message.contains("manifests/m"), "{problem:?}");
    assert!(!problem.warning);
    fixture.remove("m");
    let seen = reader.until("the other", |snapshot| images(snapshot) == ["second"]).await;
    assert!(!says(&seen, "is described in"));
    // From the start, the first by name counts; and a UID is one pod's alone.
    let with_uid = |name: &str| pod(name, "i").replace("metadata:\n", "metadata:\n  uid: same\n");
    fixture.write("x", &with_uid("x"));
    fixture.write("y", &with_uid("y"));
    fixture.write("z", &pod("web", "third"));
    let read = read_once(&fixture.folder(), "node").unwrap();
    assert_eq!(names(&read.snapshot), ["web", "x"]);
    assert_eq!(images(&read.snapshot)[0], "second");
    assert_eq!(read.snapshot.problems.len(), 2, "{:#?}", read.snapshot.problems);
}

#[tokio::test]
async fn an_unmounted_disk_ends_no_pod_and_removed_files_do() {
    let fixture = Fixture::new();
    let mount = || rustix::mount::mount("tmpfs", fixture.folder(), "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
    let unmount = || rustix::mount::unmount(fixture.folder(), UnmountFlags::empty()).unwrap();
    mount();
    fixture.write("a", &pod("a", "one"));
    fixture.write("b", &pod("b", "one"));
    let mut reader = fixture.watch_every(Duration::from_millis(200));
    reader.until("both", |snapshot| names(snapshot) == ["a", "b"]).await;
    unmount();
    let seen = reader.until("a problem", |snapshot| says(snapshot, "another, empty folder")).await;
    assert_eq!(names(&seen), ["a", "b"]);
    assert!(says(&seen, "the 2 pods from it are kept"));
    reader.stays(Duration::from_millis(600), |snapshot| names(snapshot) == ["a", "b"]).await;
    // Another disk, with other manifests: those count.
    mount();
    fixture.write("a", &pod("a", "two"));
    reader.until("what is there now", |snapshot| images(snapshot) == ["two"] && snapshot.problems.is_empty()).await;
    // The same folder, emptied by its user.
    fixture.remove("a");
    reader.until("the end", |snapshot| snapshot.pods.is_empty()).await;
    unmount();
}

#[tokio::test]
async fn a_folder_removed_and_put_back_keeps_its_pods_and_is_watched_again() {
    let fixture = Fixture::new();
    fixture.write("a", &pod("a", "one"));
    let mut reader = fixture.watch();
    reader.until("the pod", |snapshot| names(snapshot) == ["a"]).await;
    let away = fixture.dir.path().join("away");
    std::fs::rename(fixture.folder(), &away).unwrap();
    // The watch follows the folder, so a change in it wakes us.
    std::fs::write(away.join("a"), pod("a", "elsewhere")).unwrap();
    let seen = reader.until("a problem", |snapshot| says(snapshot, "cannot be read")).await;
    assert_eq!(names(&seen), ["a"]);
    std::fs::rename(&away, fixture.folder()).unwrap();
    reader.until("mended", |snapshot| images(snapshot) == ["elsewhere"] && snapshot.problems.is_empty()).await;
    std::fs::remove_dir_all(fixture.folder()).unwrap();
    let seen = reader.until("a problem", |snapshot| says(snapshot, "cannot be read")).await;
    assert_eq!(names(&seen), ["a"]);
    std::fs::create_dir(fixture.folder()).unwrap();
    let seen = reader.until("another folder", |snapshot| says(snapshot, "another, empty folder")).await;
    assert_eq!(names(&seen), ["a"]);
    fixture.write("b", &pod("b", "one"));
    reader.until("what is there now", |snapshot| names(snapshot) == ["b"]).await;
    let started = Instant::now();
    fixture.write("c", &pod("c", "one"));
    reader.until("a watch on the new folder", |snapshot| names(snapshot) == ["b", "c"]).await;
    assert!(started.elapsed() < RESCAN / 2);
    // A file in its place.
    std::fs::rename(fixture.folder(), &away).unwrap();
    std::os::unix::net::UnixListener::bind(fixture.folder()).unwrap();
    let seen = reader.until("a problem", |snapshot| says(snapshot, "neither a folder nor a file")).await;
    assert_eq!(names(&seen), ["b", "c"]);
}

#[tokio::test]
async fn a_folder_that_was_never_there_says_nothing_until_it_is() {
    let fixture = Fixture::new();
    std::fs::remove_dir(fixture.folder()).unwrap();
    let mut reader = fixture.watch();
    let end = Instant::now() + Duration::from_secs(30);
    while reader.source.problems().is_empty() {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(reader.source.problems()[0].message.contains("nothing is started or stopped"));
    assert!(reader.source.config_map("default", "x").await.is_err());
    assert!(tokio::time::timeout(Duration::from_millis(300), reader.snapshots.next()).await.is_err());
    std::fs::create_dir(fixture.folder()).unwrap();
    let seen = reader.until("the first word", |_| true).await;
    assert!(seen.pods.is_empty() && seen.problems.is_empty());
    assert!(reader.source.config_map("default", "x").await.unwrap().is_none());
    assert!(read_once(&fixture.dir.path().join("none"), "node").is_err());
}

#[tokio::test]
async fn linked_files_and_a_folder_that_is_a_volume_are_followed() {
    let fixture = Fixture::new();
    let elsewhere = fixture.dir.path().join("elsewhere");
    std::fs::write(&elsewhere, pod("a", "one")).unwrap();
    symlink(&elsewhere, fixture.folder().join("a")).unwrap();
    let file = |image: &str| longshore_core::volume::PayloadFile {
        data: pod("b", image).into_bytes(),
        mode: 0o644,
        user: None,
    };
    crate::payload::update(&fixture.folder(), &[("b".to_owned(), file("one"))].into(), None).unwrap();
    let mut reader = fixture.watch_every(Duration::from_millis(200));
    reader.until("both", |snapshot| images(snapshot) == ["one", "one"]).await;
    std::fs::write(&elsewhere, pod("a", "two")).unwrap();
    reader.until("the link's target", |snapshot| images(snapshot) == ["two", "one"]).await;
    crate::payload::update(&fixture.folder(), &[("b".to_owned(), file("two"))].into(), None).unwrap();
    reader.until("the volume's content", |snapshot| images(snapshot) == ["two", "two"]).await;
}

#[tokio::test]
async fn config_maps_and_secrets_are_served_and_their_changes_told() {
    let fixture = Fixture::new();
    let map = |value: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{k: {value}}}\n");
    fixture.write("m", &map("one"));
    fixture.write("s", "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: other}\nstringData: {k: v}\n");
    let mut reader = fixture.watch();
    reader.until("the first word", |_| true).await;
    let mut changes = reader.source.changes();
    assert_eq!(changes.next().await, Some(()));
    let data = |map: Option<Arc<v1::ConfigMap>>| map.and_then(|map| map.data.as_ref()?.get("k").cloned());
    assert_eq!(data(reader.source.config_map("default", "m").await.unwrap()).as_deref(), Some("one"));
    assert!(reader.source.secret("other", "s").await.unwrap().is_some());
    assert!(reader.source.secret("default", "s").await.unwrap().is_none());
    fixture.write("m", &map("two"));
    tokio::time::timeout(Duration::from_secs(30), changes.next()).await.unwrap();
    assert_eq!(data(reader.source.config_map("default", "m").await.unwrap()).as_deref(), Some("two"));
    fixture.write("m", "kind: [");
    reader.until("a problem", |snapshot| says(snapshot, "kept")).await;
    assert_eq!(data(reader.source.config_map("default", "m").await.unwrap()).as_deref(), Some("two"));
    fixture.write("n", &map("three"));
    reader.until("a duplicate", |snapshot| says(snapshot, "ConfigMap default/m is described in")).await;
    fixture.remove("m");
    reader.until("the other", |snapshot| !says(snapshot, "is described in")).await;
    assert_eq!(data(reader.source.config_map("default", "m").await.unwrap()).as_deref(), Some("three"));
    let read = read_once(&fixture.folder(), "node").unwrap();
    assert_eq!(read.objects.len(), 2);
}

#[tokio::test]
async fn a_single_file_is_a_source_too_and_has_several_readers() {
    let fixture = Fixture::new();
    fixture.write("one.yaml", &pod("a", "one"));
    fixture.write("other.yaml", &pod("other", "one"));
    let path = fixture.folder().join("one.yaml");
    let mut reader = Reader::new(ManifestFolder::new(&path, "node", RESCAN));
    reader.until("its pod", |snapshot| names(snapshot) == ["a"]).await;
    let mut second = reader.source.snapshots();
    assert_eq!(names(&second.next().await.unwrap()), ["a"]);
    // As editors save.
    std::fs::write(fixture.folder().join("new"), pod("a", "two")).unwrap();
    std::fs::rename(fixture.folder().join("new"), &path).unwrap();
    reader.until("the change", |snapshot| images(snapshot) == ["two"]).await;
    assert_eq!(images(&second.next().await.unwrap()), ["two"]);
    fixture.remove("one.yaml");
    let seen = reader.until("a problem", |snapshot| says(snapshot, "cannot be read")).await;
    assert_eq!(names(&seen), ["a"]);
    fixture.write("one.yaml", &pod("a", "three"));
    reader.until("put back", |snapshot| images(snapshot) == ["three"] && snapshot.problems.is_empty()).await;
}
