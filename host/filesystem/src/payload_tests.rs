//! Payload volumes: replaced as a whole, also under readers.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

fn payload(files: &[(&str, &str, u32)]) -> BTreeMap<String, PayloadFile> {
    files
        .iter()
        .map(|(name, data, mode)| {
            ((*name).to_owned(), PayloadFile { data: data.as_bytes().to_vec(), mode: *mode, user: None })
        })
        .collect()
}

fn read(folder: &Path, name: &str) -> Option<String> {
    std::fs::read_to_string(folder.join(name)).ok()
}

/// What a container sees: names at the top that are no secrets of the writer's.
fn visible(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with("..")).collect();
    names.sort();
    names
}

#[test]
fn files_appear_change_and_vanish() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    assert!(update(at, &payload(&[("a", "1", 0o644), ("d/b", "2", 0o400)]), None).unwrap());
    assert_eq!((read(at, "a").unwrap(), read(at, "d/b").unwrap()), ("1".into(), "2".into()));
    assert_eq!(std::fs::metadata(at.join("d/b")).unwrap().mode() & 0o7777, 0o400);
    assert_eq!(std::fs::read_link(at.join("d")).unwrap(), Path::new("..data/d"));
    assert!(update(at, &payload(&[("a", "3", 0o644), ("c", "4", 0o644)]), None).unwrap());
    assert_eq!(visible(at), ["a", "c"]);
    assert_eq!(read(at, "a").unwrap(), "3");
    assert!(update(at, &payload(&[]), None).unwrap());
    assert_eq!(visible(at), [""; 0]);
}

#[test]
fn unchanged_content_is_not_written_and_a_changed_mode_is() {
    let dir = tempfile::tempdir().unwrap();
    let files = payload(&[("a", "1", 0o644)]);
    update(dir.path(), &files, None).unwrap();
    let before = std::fs::read_link(dir.path().join(DATA)).unwrap();
    assert!(!update(dir.path(), &files, None).unwrap());
    assert_eq!(std::fs::read_link(dir.path().join(DATA)).unwrap(), before);
    assert!(update(dir.path(), &payload(&[("a", "1", 0o600)]), None).unwrap());
    assert!(update(dir.path(), &payload(&[("a", "1", 0o600)]), Some(77)).unwrap());
    assert!(!update(dir.path(), &payload(&[("a", "1", 0o600)]), Some(77)).unwrap());
}

#[test]
fn a_group_may_read_and_owns_what_is_made() {
    let dir = tempfile::tempdir().unwrap();
    update(dir.path(), &payload(&[("d/a", "1", 0o400)]), Some(77)).unwrap();
    let file = std::fs::metadata(dir.path().join("d/a")).unwrap();
    assert_eq!((file.gid(), file.mode() & 0o7777), (77, 0o440));
    let folder = std::fs::metadata(dir.path().join("d")).unwrap();
    assert_eq!((folder.gid(), folder.mode() & 0o7777), (77, 0o2755));
}

#[test]
fn former_sets_go_after_a_while_and_are_few() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..30 {
        update(dir.path(), &payload(&[("a", &n.to_string(), 0o644)]), None).unwrap();
    }
    let sets = || std::fs::read_dir(dir.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
    assert!(has_former(dir.path()));
    // The link "..data" and "a" are no folders of their own, but is_dir follows "..data".
    assert!(sets() <= FORMER_MOST + 2, "{}", sets());
    sweep(dir.path(), 0).unwrap();
    assert!(!has_former(dir.path()));
    assert_eq!(read(dir.path(), "a").unwrap(), "29");
}

#[test]
fn wreckage_of_a_crash_or_a_container_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let files = payload(&[("a", "1", 0o644), ("b", "2", 0o644)]);
    update(at, &files, None).unwrap();
    std::fs::remove_file(at.join("a")).unwrap();
    std::fs::remove_file(at.join("b")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", at.join("b")).unwrap();
    std::os::unix::fs::symlink("nowhere", at.join(DATA_NEXT)).unwrap();
    assert!(!update(at, &files, None).unwrap());
    assert_eq!((read(at, "a").unwrap(), read(at, "b").unwrap()), ("1".into(), "2".into()));
    let set = at.join(std::fs::read_link(at.join(DATA)).unwrap());
    std::fs::remove_dir_all(set).unwrap();
    assert!(update(at, &files, None).unwrap());
    assert_eq!(read(at, "a").unwrap(), "1");
    std::fs::remove_file(at.join(DATA)).unwrap();
    std::os::unix::fs::symlink("/etc", at.join(DATA)).unwrap();
    assert!(update(at, &files, None).unwrap());
    assert_eq!(read(at, "a").unwrap(), "1");
}

#[test]
fn paths_that_lead_out_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["", "/a", "../a", "a/../../b", "..data", "..x/a", "a/./../b", &"x".repeat(256)] {
        let refused = update(dir.path(), &payload(&[(path, "", 0o644)]), None);
        assert!(refused.is_err(), "{path:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Readers that resolve `..data` once see one version in every file; readers of any name always find it.
#[test]
fn concurrent_readers_never_see_a_mix_or_a_missing_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let version = |n: u64| {
        let text = n.to_string().repeat(600);
        payload(&[("a", &text, 0o644), ("b", &text, 0o644), ("d/c", &text, 0o644)])
    };
    update(at, &version(1), None).unwrap();
    let stop = AtomicBool::new(false);
    let reads = [const { AtomicU64::new(0) }; 3];
    std::thread::scope(|scope| {
        for reads in &reads {
            let stop = &stop;
            scope.spawn(move || {
                let _ends = StopOnPanic(stop);
                while !stop.load(Ordering::Relaxed) {
                    let set = rustix::fs::open(
                        at.join(DATA),
                        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                        rustix::fs::Mode::empty(),
                    )
                    .expect("..data must always be there");
                    let base = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&set));
                    let one = |name: &str| {
                        std::fs::read(Path::new(&base).join(name)).expect("a set stays whole while it is read")
                    };
                    let (a, b, c) = (one("a"), one("b"), one("d/c"));
                    assert!(a == b && b == c, "a mix of two versions");
                    for name in ["a", "b", "d/c"] {
                        let text = std::fs::read_to_string(at.join(name)).expect("a name must always be there");
                        assert!(!text.is_empty() && text.len().is_multiple_of(600), "a file half written");
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for n in 2..400 {
            // No faster than readers read: one that sleeps through many updates may find its set gone.
            let before: Vec<u64> = reads.iter().map(|reads| reads.load(Ordering::Relaxed)).collect();
            update(at, &version(n), None).unwrap();
            let late = |(reads, before): (&AtomicU64, &u64)| reads.load(Ordering::Relaxed) == *before;
            while !stop.load(Ordering::Relaxed) && reads.iter().zip(&before).any(late) {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn any_payload() -> impl Strategy<Value = BTreeMap<String, PayloadFile>> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("x/p"), Just("x/q"), Just("y/z/w")];
    let file = (proptest::collection::vec(any::<u8>(), 0..8), prop_oneof![Just(0o644_u32), Just(0o400), Just(0o755)]);
    proptest::collection::btree_map(
        name.prop_map(str::to_owned),
        file.prop_map(|(data, mode)| PayloadFile { data, mode, user: None }),
        0..6,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever came before, the volume shows just what was asked for.
    #[test]
    fn the_last_update_is_what_is_seen(steps in proptest::collection::vec(any_payload(), 1..6)) {
        let dir = tempfile::tempdir().unwrap();
        for files in &steps {
            update(dir.path(), files, None).unwrap();
            let mut tops: Vec<&str> = files.keys().filter_map(|name| name.split('/').next()).collect();
            tops.dedup();
            prop_assert_eq!(visible(dir.path()), tops);
            for (name, file) in files {
                prop_assert_eq!(&std::fs::read(dir.path().join(name)).unwrap(), &file.data);
                let mode = std::fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
                prop_assert_eq!(mode, file.mode);
            }
        }
    }
}
