//! Sub-paths under attack: links that lead out, and links that are swapped meanwhile.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        for name in ["volume", "outside", "pod"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Fixture { dir }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(path)
    }

    fn sub_path(&self, path: &str) -> SubPath {
        SubPath { volume: "v".into(), root: self.at("volume"), path: path.into(), container: "c".into(), index: 0 }
    }

    fn open(&self, path: &str) -> Result<PathBuf, FilesError> {
        let fd = open(&self.at("volume"), path)?;
        Ok(std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = mounts::unmount_below(&self.at("pod"));
    }
}

#[test]
fn missing_parts_are_made_as_folders() {
    let fixture = Fixture::new();
    assert_eq!(fixture.open("a//./b/").unwrap(), fixture.at("volume/a/b"));
    assert_eq!(std::fs::metadata(fixture.at("volume/a")).unwrap().permissions().mode() & 0o777, 0o750);
    assert_eq!(fixture.open("").unwrap(), fixture.at("volume"));
}

#[test]
fn links_inside_are_followed_and_links_out_refused() {
    let fixture = Fixture::new();
    std::fs::create_dir_all(fixture.at("volume/real/deep")).unwrap();
    std::fs::write(fixture.at("volume/real/file"), "x").unwrap();
    symlink("real/deep/..", fixture.at("volume/in")).unwrap();
    assert_eq!(fixture.open("in/file").unwrap(), fixture.at("volume/real/file"));
    let attacks = [
        ("absolute", "/etc"),
        ("up", ".."),
        ("sideways", "../outside"),
        ("winding", "real/../../outside"),
        ("loop", "loop"),
        ("chain", "sideways"),
        ("proc", "/proc/self/root"),
        ("self", "../volume"),
    ];
    for (name, target) in attacks {
        symlink(target, fixture.at("volume").join(name)).unwrap();
        assert!(fixture.open(name).is_err(), "{name} -> {target}");
        assert!(fixture.open(&format!("{name}/secret")).is_err(), "{name}/secret");
    }
    for path in ["..", "../outside", "real/../../outside", "/etc", "a/..", "a\0b"] {
        assert!(fixture.open(path).is_err(), "{path:?}");
    }
    assert!(fixture.open("real/file/below").unwrap_err().to_string().contains("is not a folder"));
    assert_eq!(std::fs::read_dir(fixture.at("outside")).unwrap().count(), 1);
}

#[test]
fn payload_volumes_keys_are_found_through_their_links() {
    let fixture = Fixture::new();
    let file =
        |text: &str| longshore_core::volume::PayloadFile { data: text.as_bytes().to_vec(), mode: 0o644, user: None };
    let volume = fixture.at("volume");
    crate::payload::update(&volume, &[("key".to_owned(), file("one"))].into(), None).unwrap();
    let place = bind(&fixture.at("pod"), &fixture.sub_path("key")).unwrap();
    assert_eq!(std::fs::read_to_string(&place).unwrap(), "one");
    crate::payload::update(&volume, &[("key".to_owned(), file("two"))].into(), None).unwrap();
    crate::payload::sweep(&volume, 0).unwrap();
    assert_eq!(std::fs::read_to_string(&place).unwrap(), "one");
    assert_eq!(bind(&fixture.at("pod"), &fixture.sub_path("key")).unwrap(), place);
    assert_eq!(std::fs::read_to_string(&place).unwrap(), "two");
}

#[test]
fn a_bind_is_made_once_and_stays_what_it_was() {
    let fixture = Fixture::new();
    std::fs::create_dir_all(fixture.at("volume/data")).unwrap();
    let pod = fixture.at("pod");
    let place = bind(&pod, &fixture.sub_path("data")).unwrap();
    assert_eq!(place, pod.join("volume-subpaths/v/c/0"));
    assert_eq!(bind(&pod, &fixture.sub_path("data")).unwrap(), place);
    assert_eq!(mounts::all().unwrap().iter().filter(|mount| mount.point == place).count(), 1);
    // A container moves the folder away and puts a link there, too late.
    std::fs::rename(fixture.at("volume/data"), fixture.at("volume/moved")).unwrap();
    symlink(fixture.at("outside"), fixture.at("volume/data")).unwrap();
    assert!(!place.join("secret").exists());
    assert!(bind(&pod, &fixture.sub_path("data")).is_err());
    for (volume, container) in [("..", "c"), ("v", "../x"), ("v/w", "c"), ("", "c")] {
        let hostile = SubPath { volume: volume.into(), container: container.into(), ..fixture.sub_path("moved") };
        assert!(bind(&pod, &hostile).is_err());
    }
}

/// A container swaps a folder and a link to the outside as fast as it can; whatever is opened lies inside.
#[test]
fn a_link_swapped_while_it_is_resolved_never_leads_out() {
    let fixture = Fixture::new();
    let volume = fixture.at("volume");
    let outside = fixture.at("outside");
    std::fs::create_dir_all(volume.join("real/leaf")).unwrap();
    symlink(&outside, volume.join("absolute")).unwrap();
    symlink("../outside", volume.join("relative")).unwrap();
    std::fs::create_dir(outside.join("leaf")).unwrap();
    let inner = std::fs::metadata(outside.join("leaf")).unwrap().ino();
    let stop = AtomicBool::new(false);
    let (mut opened, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = |a: &str, b: &str| {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let _ = rustix::fs::renameat_with(CWD, volume.join(a), CWD, volume.join(b), flags);
            };
            while !stop.load(Ordering::Relaxed) {
                exchange("real", "absolute");
                exchange("real", "absolute");
                exchange("real", "relative");
                exchange("real", "relative");
            }
        });
        for _ in 0..20_000 {
            match open(&volume, "real/leaf") {
                Ok(fd) => {
                    opened += 1;
                    assert_ne!(rustix::fs::fstat(&fd).unwrap().st_ino, inner);
                }
                Err(_) => refused += 1,
            }
            if opened > 500 && refused > 500 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(opened > 0 && refused > 0, "both sides of the race were seen: {opened} {refused}");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 2);
}
