//! The folder of compiled plugins: used again, never trusted when somebody else could have written to it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_wasm::ProbeHost;

use super::support::{World, success, world_in};

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

fn again(world: &World, cache: &Path) -> World {
    let host = ProbeHost::new(Arc::clone(&world.runtime) as _, cache).unwrap();
    World { host: Arc::new(host), runtime: Arc::clone(&world.runtime) }
}

async fn works(world: &World) {
    assert_eq!(world.check("exec", r#"{"command": ["true"]}"#).await, success("ok"));
}

fn modified(path: &Path) -> std::time::SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

#[tokio::test]
async fn a_second_start_compiles_nothing() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("wasm");
    let world = world_in(&folder);
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let before = entries(&folder);
    assert_eq!(before.len(), 4);
    let times: Vec<_> = before.iter().map(|path| modified(path)).collect();
    works(&again(&world, &folder)).await;
    assert_eq!(entries(&folder), before);
    assert_eq!(before.iter().map(|path| modified(path)).collect::<Vec<_>>(), times);
}

#[tokio::test]
async fn damaged_and_foreign_entries_are_made_again() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("wasm");
    let world = world_in(&folder);
    let files = entries(&folder);
    let whole: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    let damaged = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        // A new file, as the old one is mapped by the host that made it.
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    damaged(&files[0], &|bytes| bytes.truncate(1000));
    damaged(&files[1], &|bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
    });
    damaged(&files[2], &|bytes| bytes.clear());
    fs::set_permissions(&files[3], fs::Permissions::from_mode(0o666)).unwrap();
    works(&again(&world, &folder)).await;
    assert_eq!(files.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>(), whole);
    assert_eq!(fs::metadata(&files[3]).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_folder_that_others_can_write_to_is_not_used() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("wasm");
    let world = world_in(&folder);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    for path in entries(&folder) {
        fs::remove_file(path).unwrap();
    }
    works(&again(&world, &folder)).await;
    assert!(entries(&folder).is_empty());
    fs::remove_dir(&folder).unwrap();
    std::os::unix::fs::symlink(place.path(), &folder).unwrap();
    works(&again(&world, &folder)).await;
    assert_eq!(entries(place.path()), [folder]);
}
