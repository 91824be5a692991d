//! What is kept comes back, whatever happens to the files; a secret is never on the disk in the clear.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::seal::Unsealable;
use super::*;

fn key(kind: &'static str, name: &str) -> ArchiveKey {
    ArchiveKey { kind, namespace: "default".to_owned(), name: name.to_owned() }
}

fn archive(root: &Path, volatile: &Path, key: Option<[u8; 32]>) -> StateArchive {
    let key = key.map(StateKey);
    StateArchive::open(ArchiveOptions { root: root.to_owned(), volatile: volatile.to_owned(), key }).unwrap()
}

fn files(folder: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

fn holds(folder: &Path, text: &[u8]) -> bool {
    files(folder).iter().any(|file| file.windows(text.len()).any(|part| part == text))
}

/// A folder on a tmpfs; tests that need one are silent where there is none.
fn memory() -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir_in("/dev/shm").ok()?;
    volatile_folder(&dir.path().join("x")).is_ok().then_some(dir)
}

#[tokio::test]
async fn what_was_kept_is_there_after_a_restart_and_secrets_are_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let (map, secret) = (key("ConfigMap", "c"), key("Secret", "../s/ö"));
    let first = archive(dir.path(), &dir.path().join("none"), Some([7; 32]));
    first.put(&map, b"open text".to_vec(), false);
    first.put(&secret, b"hidden text".to_vec(), true);
    assert_eq!(first.get(&secret).await.unwrap(), b"hidden text");
    drop(first);
    let state = dir.path().join("state");
    assert!(holds(&state, b"open text") && !holds(&state, b"hidden text"));
    assert_eq!(std::fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
    let again = archive(dir.path(), &dir.path().join("none"), Some([7; 32]));
    assert_eq!(again.get(&map).await.unwrap(), b"open text");
    assert_eq!(again.get(&secret).await.unwrap(), b"hidden text");
    again.put(&map, b"newer".to_vec(), false);
    again.remove(&secret);
    assert_eq!((again.get(&map).await.unwrap(), again.get(&secret).await), (b"newer".to_vec(), None));
    drop(again);
    assert_eq!(files(&state).len(), 1);
}

#[tokio::test]
async fn another_key_or_none_leaves_the_file_and_reads_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    let secret = key("Secret", "s");
    archive(dir.path(), &none, Some([1; 32])).put(&secret, b"x".to_vec(), true);
    for other in [Some([2; 32]), None] {
        assert_eq!(archive(dir.path(), &none, other).get(&secret).await, None);
    }
    assert_eq!(archive(dir.path(), &none, Some([1; 32])).get(&secret).await.unwrap(), b"x");
}

#[tokio::test]
async fn without_a_key_secrets_stay_off_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let secret = key("Secret", "s");
    let Some(memory) = memory() else { return };
    let volatile = memory.path().join("v");
    let first = archive(dir.path(), &volatile, None);
    assert!(!first.keeps_secrets());
    first.put(&secret, b"hidden text".to_vec(), true);
    drop(first);
    assert!(files(&dir.path().join("state")).is_empty() && holds(&volatile, b"hidden text"));
    assert_eq!(std::fs::metadata(&volatile).unwrap().mode() & 0o777, 0o700);
    assert_eq!(archive(dir.path(), &volatile, None).get(&secret).await.unwrap(), b"hidden text");
    // A key that comes later takes the object over.
    let sealed = archive(dir.path(), &volatile, Some([3; 32]));
    assert_eq!(sealed.get(&secret).await.unwrap(), b"hidden text");
    sealed.put(&secret, b"hidden text".to_vec(), true);
    drop(sealed);
    assert!(files(&volatile).is_empty() && !holds(&dir.path().join("state"), b"hidden text"));
}

#[tokio::test]
async fn what_cannot_be_written_is_tried_again_and_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (map, other) = (key("ConfigMap", "c"), key("ConfigMap", "d"));
    let archive = archive(dir.path(), &dir.path().join("none"), None);
    let state = dir.path().join("state");
    // No file can take the place of a folder.
    let taken = state.join(seal::file_name(&map));
    std::fs::create_dir(&taken).unwrap();
    let wait = async |what: &str, done: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done() {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    archive.put(&map, b"one".to_vec(), false);
    archive.put(&other, b"other".to_vec(), false);
    wait("the other one is written", &|| state.join(seal::file_name(&other)).is_file()).await;
    wait("it is complained about", &|| lock(&archive.shared.reported).contains(&state)).await;
    assert_eq!(archive.get(&map).await.unwrap(), b"one");
    // What is newer takes its place, and waits as well.
    archive.put(&map, b"two".to_vec(), false);
    let waits = |bytes: &[u8]| {
        let waiting = lock(&archive.shared.waiting);
        matches!(waiting.failed.get(&map), Some(Change::Put { bytes: known, .. }) if **known == bytes)
    };
    wait("the newer one waits", &|| waits(b"two")).await;
    assert_eq!(archive.get(&map).await.unwrap(), b"two");
    std::fs::remove_dir(&taken).unwrap();
    wait("it is written", &|| taken.is_file()).await;
    wait("the next time is told, too", &|| !lock(&archive.shared.reported).contains(&state)).await;
    assert_eq!(archive.get(&map).await.unwrap(), b"two");
    assert_eq!(lock(&archive.shared.waiting).bytes, 0);
}

#[tokio::test]
async fn what_is_too_large_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path(), &dir.path().join("none"), None);
    archive.put(&key("ConfigMap", "c"), vec![0; OBJECT_LIMIT + 1], false);
    assert_eq!(archive.get(&key("ConfigMap", "c")).await, None);
}

#[test]
fn the_oldest_go_when_there_is_too_much() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut index = Index::default();
    for name in ["a", "b", "c"] {
        std::fs::write(path(name), name).unwrap();
        index.note(path(name), TOTAL_LIMIT / 2).unwrap();
    }
    assert!(!path("a").exists() && path("b").exists() && path("c").exists());
    assert_eq!(index.bytes, TOTAL_LIMIT);
}

#[test]
fn keys_as_they_may_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("k");
    let load = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        StateKey::load(Some(&file), None)
    };
    let raw: [u8; 32] = std::array::from_fn(|n| n as u8 * 7);
    let digits: String = raw.iter().map(|byte| format!("{byte:02X}")).collect();
    let base64 = "AAcOFRwjKjE4P0ZNVFtiaXB3foWMk5qhqK+2vcTL0tk=\n";
    for written in [raw.as_slice(), digits.as_bytes(), base64.as_bytes(), format!("{digits}\n").as_bytes()] {
        assert_eq!(load(written).unwrap().unwrap().0, raw);
    }
    for wrong in [b"".as_slice(), b"short", &[0; 33], &[0; 5000]] {
        let message = load(wrong).unwrap_err().to_string();
        assert!(message.contains("openssl rand -base64 32"), "{message}");
    }
    assert!(StateKey::load(Some(&dir.path().join("none")), None).is_err());
    assert!(StateKey::load(None, Some(dir.path())).unwrap().is_none() && StateKey::load(None, None).unwrap().is_none());
    std::fs::write(dir.path().join(STATE_KEY_CREDENTIAL), raw).unwrap();
    assert_eq!(StateKey::load(None, Some(dir.path())).unwrap().unwrap().0, raw);
}

proptest! {
    #[test]
    fn sealed_comes_back_and_any_change_is_noticed(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        name in ".{0,40}",
        secret: [u8; 32],
        other: [u8; 32],
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let object = key("Secret", &name);
        let seal = Seal::new(&StateKey(secret)).unwrap();
        let file = seal.seal(&object, &bytes).unwrap();
        let open = |file: &[u8], object: &ArchiveKey| seal::open(Some(&seal), object, file);
        prop_assert_eq!(open(&file, &object), Ok(bytes.clone()));
        let mut changed = file.clone();
        changed[at.index(file.len())] ^= 1 << bit;
        prop_assert!(open(&changed, &object).is_err());
        prop_assert!(open(&file[..at.index(file.len())], &object).is_err());
        prop_assert_eq!(open(&file, &key("Secret", &format!("{name}x"))), Err(Unsealable::Damaged));
        prop_assert_eq!(seal::open(None, &object, &file), Err(Unsealable::NoKey));
        if other != secret {
            let foreign = Seal::new(&StateKey(other)).unwrap();
            let problem = seal::open(Some(&foreign), &object, &file).unwrap_err();
            prop_assert_eq!(problem, Unsealable::ForeignKey);
        }
        let plain = seal::clear(&object, &bytes);
        prop_assert_eq!(open(&plain, &object), Ok(bytes));
        let mut changed = plain.clone();
        changed[at.index(plain.len())] ^= 1 << bit;
        prop_assert!(open(&changed, &object).is_err());
    }

    #[test]
    fn no_file_brings_it_down(file in prop::collection::vec(any::<u8>(), 0..100), head in any::<bool>()) {
        let seal = Seal::new(&StateKey([0; 32])).unwrap();
        let file = if head { [b"LSA1".as_slice(), &file].concat() } else { file };
        prop_assert!(seal::open(Some(&seal), &key("Secret", "s"), &file).is_err());
    }
}
