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
        let fd = open(&self.at("volume"), path, true)?;
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
    assert_eq!(fixture.open("").unwrap(), fixture.at("volume"));
}

#[test]
fn what_is_made_has_the_volumes_mode_and_what_is_there_keeps_its_own() {
    let fixture = Fixture::new();
    let mode = |path: &str| std::fs::metadata(fixture.at(path)).unwrap().permissions().mode() & 0o7777;
    let set = |path: &str, mode| std::fs::set_permissions(fixture.at(path), PermissionsExt::from_mode(mode)).unwrap();
    for (name, wanted) in [("open", 0o777), ("group", 0o2770), ("sticky", 0o1777), ("closed", 0o700)] {
        set("volume", wanted);
        fixture.open(&format!("{name}/deep")).unwrap();
        assert_eq!((mode(&format!("volume/{name}")), mode(&format!("volume/{name}/deep"))), (wanted, wanted));
    }
    set("volume", 0o777);
    fixture.open("closed/deep/er").unwrap();
    assert_eq!((mode("volume/closed"), mode("volume/closed/deep/er")), (0o700, 0o777));
    // setgid gives them the group, too.
    rustix::fs::chown(fixture.at("volume"), None, Some(rustix::fs::Gid::from_raw(4321))).unwrap();
    set("volume", 0o2770);
    fixture.open("ours/deep").unwrap();
    assert_eq!(std::fs::metadata(fixture.at("volume/ours/deep")).unwrap().gid(), 4321);
}

#[test]
fn absolute_links_that_stay_in_the_volume_are_followed() {
    let fixture = Fixture::new();
    std::fs::create_dir_all(fixture.at("volume/releases/7")).unwrap();
    symlink(fixture.at("volume/releases/7"), fixture.at("volume/current")).unwrap();
    assert_eq!(fixture.open("current").unwrap(), fixture.at("volume/releases/7"));
    assert_eq!(fixture.open("current/new").unwrap(), fixture.at("volume/releases/7/new"));
    // The volume by another name of the node's own.
    symlink(fixture.at("volume"), fixture.at("alias")).unwrap();
    symlink(fixture.at("alias/releases"), fixture.at("volume/by-alias")).unwrap();
    let fd = open(&fixture.at("alias"), "by-alias/7", false).unwrap();
    let real = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    assert_eq!(real, fixture.at("volume/releases/7"));
    // What begins like the volume and leads out, or only begins with its name.
    std::fs::create_dir(fixture.at("volume-2")).unwrap();
    for (name, target) in
        [("out", "volume/../outside"), ("deep", "volume/releases/../../outside"), ("like", "volume-2")]
    {
        symlink(fixture.at("").join(target), fixture.at("volume").join(name)).unwrap();
        assert!(fixture.open(name).is_err(), "{name} -> {target}");
    }
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
            match open(&volume, "real/leaf", true) {
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

#[test]
fn files_are_read_and_nothing_else() {
    let fixture = Fixture::new();
    let volume = fixture.at("volume");
    std::fs::create_dir(volume.join("in")).unwrap();
    std::fs::write(volume.join("in/file"), "content").unwrap();
    symlink("in/file", volume.join("link")).unwrap();
    symlink(fixture.at("outside/secret"), volume.join("out")).unwrap();
    symlink("../outside/secret", volume.join("up")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, volume.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    assert_eq!(read(&volume, "in/file", 7).unwrap(), b"content");
    assert_eq!(read(&volume, "link", 100).unwrap(), b"content");
    assert!(read(&volume, "in/file", 6).unwrap_err().to_string().contains("larger than 6 bytes"));
    for path in ["out", "up", "pipe", "in", "none", "../outside/secret"] {
        assert!(read(&volume, path, 100).is_err(), "{path}");
    }
    assert!(!volume.join("none").exists(), "nothing is made");
}
