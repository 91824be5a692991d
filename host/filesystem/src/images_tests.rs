//! Images' files: hostile archives, marks, mounts, and that nothing is left.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use bytes::Bytes;
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

use super::*;
use crate::unpack::{Piece, Pieces, unpack};

/// An archive with entries of any name, which tar's own builder would refuse.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn with(mut self, kind: EntryType, path: &str, mode: u32, content: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(mode);
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1_000_000_000);
        let data = if matches!(kind, EntryType::Symlink | EntryType::Link) { "" } else { content };
        if data.is_empty() && !content.is_empty() {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.write_all(header.as_bytes()).unwrap();
        self.0.write_all(data.as_bytes()).unwrap();
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.with(EntryType::Regular, path, 0o644, content)
    }

    fn folder(self, path: &str) -> Self {
        self.with(EntryType::Directory, path, 0o755, "")
    }

    fn link(self, path: &str, to: &str) -> Self {
        self.with(EntryType::Symlink, path, 0o777, to)
    }

    fn ended(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn unpacked_with(bytes: &[u8], to: &Path, added: &[&str], end: Option<Piece>) -> Result<(), FilesError> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::scope(|threads| {
        threads.spawn(move || {
            for piece in bytes.chunks(700) {
                if sender.blocking_send(Piece::Data(Bytes::copy_from_slice(piece))).is_err() {
                    return;
                }
            }
            if let Some(end) = end {
                let _ = sender.blocking_send(end);
            }
        });
        unpack(to, Pieces::new(receiver), added)
    })
}

fn unpacked(bytes: &[u8], to: &Path) -> Result<(), FilesError> {
    unpacked_with(bytes, to, &[], Some(Piece::End))
}

#[test]
fn an_archive_is_unpacked_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("d/{}", "n".repeat(200));
    let mut builder = Builder::new(Archive::default().folder("d/").with(EntryType::Regular, "d/s", 0o4711, "set").0);
    let mut header = Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, &long, &b"far"[..]).unwrap();
    let archive = Archive(builder.into_inner().unwrap());
    // The builder ended it: what follows is written over that end.
    let archive = Archive(archive.0[..archive.0.len() - 1024].to_vec())
        .link("d/abs", "/etc/passwd")
        .with(EntryType::Link, "hard", 0o644, "d/s")
        .with(EntryType::Fifo, "fifo", 0o640, "")
        .with(EntryType::Char, "null", 0o666, "")
        .file("no/folder/before", "x");
    unpacked(&archive.ended(), dir.path()).unwrap();
    let set = std::fs::metadata(dir.path().join("d/s")).unwrap();
    assert_eq!((set.mode() & 0o7777, set.uid(), set.gid(), set.mtime()), (0o4711, 12, 34, 1_000_000_000));
    assert_eq!(std::fs::metadata(dir.path().join("hard")).unwrap().ino(), set.ino());
    assert_eq!(std::fs::read(dir.path().join(&long)).unwrap(), b"far");
    assert_eq!(std::fs::read_link(dir.path().join("d/abs")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(std::fs::metadata(dir.path().join("fifo")).unwrap().mode() & 0o777, 0o640);
    assert!(!dir.path().join("null").exists(), "no devices");
    assert_eq!(std::fs::read(dir.path().join("no/folder/before")).unwrap(), b"x");
}

#[test]
fn nothing_leads_out_of_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().to_str().unwrap();
    std::fs::write(outside.path().join("precious"), "p").unwrap();
    let cases = [
        Archive::default().file("../escaped", "x"),
        Archive::default().link("l", out).file("l/escaped", "x"),
        Archive::default().link("l", out).folder("l/"),
        Archive::default().link("l", &format!("{out}/precious")).file("l", "x"),
        Archive::default().folder("a").link("a/b", "..").file("a/b/c/d", "x"),
        Archive::default().with(EntryType::Link, "h", 0o644, "../../etc/passwd"),
        Archive::default().link("l", out).with(EntryType::Link, "h", 0o644, "l/precious"),
        Archive::default().file("twice", "x").file("twice", "y"),
    ];
    for (at, archive) in cases.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let error = unpacked(&archive.ended(), dir.path()).unwrap_err().to_string();
        assert!(error.contains("cannot be unpacked"), "{at}: {error}");
        assert_eq!(std::fs::read(outside.path().join("precious")).unwrap(), b"p");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "{at}");
        assert!(!dir.path().parent().unwrap().join("escaped").exists());
    }
    // An absolute name is one of the image.
    let dir = tempfile::tempdir().unwrap();
    unpacked(&Archive::default().file("/etc/x", "y").ended(), dir.path()).unwrap();
    assert_eq!(std::fs::read(dir.path().join("etc/x")).unwrap(), b"y");
}

#[test]
fn what_breaks_off_is_an_error() {
    let whole = Archive::default().file("a", "content").file("b", "x").ended();
    let error = |bytes: &[u8], end: Option<Piece>| {
        let dir = tempfile::tempdir().unwrap();
        unpacked_with(bytes, dir.path(), &[], end).unwrap_err().to_string()
    };
    assert!(error(&whole[..1024], Some(Piece::End)).contains("broke off"), "at the end of an entry");
    assert!(error(&whole[..700], Some(Piece::End)).contains("cannot be unpacked"), "within one");
    assert!(error(&whole, None).contains("given up"));
    assert!(error(&whole[..1024], Some(Piece::Failed("no more disk".to_owned()))).contains("no more disk"));
    let mut said = whole[..1024].to_vec();
    said.extend(br#"{"message":"layer is gone"}"#);
    assert!(error(&said, Some(Piece::End)).contains("cannot be unpacked"), "an error's text in the place of an entry");
}

#[test]
fn what_the_runtime_added_goes_where_it_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::default()
        .file(".dockerenv", "")
        .folder("dev")
        .file("dev/console", "")
        .folder("dev/pts")
        .folder("etc")
        .file("etc/hosts", "")
        .file("etc/hostname", "kept")
        .link("etc/mtab", "/proc/mounts")
        .folder("proc")
        .file("proc/own", "kept");
    let added =
        [".dockerenv", "dev/console", "dev/pts", "dev", "etc/hostname", "etc/hosts", "etc/mtab", "etc", "proc", "sys"];
    unpacked_with(&archive.ended(), dir.path(), &added, Some(Piece::End)).unwrap();
    let left = |folder: &str| {
        let names = std::fs::read_dir(dir.path().join(folder)).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(
        (left(""), left("etc"), left("proc")),
        (vec!["etc".to_owned(), "proc".to_owned()], vec!["hostname".to_owned()], vec!["own".to_owned()])
    );
}

struct Place {
    dir: tempfile::TempDir,
    layout: Layout,
    images: Images,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let layout = Layout { root: root.clone(), logs: root.join("l"), container_logs: root.join("c") };
        std::fs::create_dir(layout.pods()).unwrap();
        Place { dir, layout, images: Images::default() }
    }

    fn pod(&self, uid: &str) -> PathBuf {
        let pod = self.layout.pods().join(uid);
        std::fs::create_dir_all(&pod).unwrap();
        pod
    }

    fn put(&self, image: &str, content: &str) {
        let fresh = begin(&self.layout, image).unwrap();
        unpacked(&Archive::default().file("f", content).ended(), &fresh).unwrap();
        keep(&self.layout, image, &fresh).unwrap();
    }

    fn mount(&self, pod: &Path, image: &str) -> Option<PathBuf> {
        self.images.mount(&self.layout, pod, "v", image).unwrap()
    }

    fn there(&self) -> usize {
        std::fs::read_dir(self.layout.root.join("images")).unwrap().count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = mounts::unmount_below(&self.dir.path().canonicalize().unwrap());
    }
}

#[test]
fn files_are_shared_read_only_and_go_with_the_last_pod() {
    let place = Place::new();
    let (one, two) = (place.pod("one"), place.pod("two"));
    assert_eq!(place.mount(&one, "sha256:aa"), None, "not there yet");
    // What is being unpacked for a pod that waits for it is left alone.
    let fresh = begin(&place.layout, "sha256:aa").unwrap();
    place.images.sweep(&place.layout).unwrap();
    assert!(fresh.is_dir());
    place.put("sha256:aa", "x");
    let volume = place.mount(&one, "sha256:aa").unwrap();
    assert_eq!(volume, one.join("volumes/kubernetes.io~image/v"));
    assert_eq!(std::fs::read(volume.join("f")).unwrap(), b"x");
    let refused = std::fs::write(volume.join("g"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(place.mount(&one, "sha256:aa"), Some(volume.clone()), "again is the same");
    assert_eq!(mounts::all().unwrap().iter().filter(|mount| mount.point == volume).count(), 1);
    place.mount(&two, "sha256:aa").unwrap();
    mounts::unmount_below(&one).unwrap();
    remove::contents(&one, &[]).unwrap();
    place.images.sweep(&place.layout).unwrap();
    assert_eq!(place.there(), 1, "the other pod has it");
    // The name stands for another image by now.
    place.put("sha256:bb", "y");
    let volume = place.mount(&two, "sha256:bb").unwrap();
    assert_eq!(std::fs::read(volume.join("f")).unwrap(), b"y");
    mounts::unmount_below(&two).unwrap();
    remove::contents(&two, &[]).unwrap();
    place.images.sweep(&place.layout).unwrap();
    assert_eq!(place.there(), 0);
}

#[test]
fn nothing_of_an_image_runs_as_another_user() {
    let place = Place::new();
    let pod = place.pod("one");
    place.put("sha256:aa", "x");
    let program = images_program(&place);
    let volume = place.mount(&pod, "sha256:aa").unwrap();
    let error = std::process::Command::new(volume.join("true")).status().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "mounted noexec: {program:?}");
}

/// A program among an image's files.
fn images_program(place: &Place) -> PathBuf {
    let program = super::place(&place.layout, "sha256:aa").unwrap().join("true");
    std::fs::write(&program, "#!/bin/true\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn names_that_are_no_ids_are_refused() {
    let place = Place::new();
    let pod = place.pod("one");
    for id in ["", "..", "sha256:../../x", "a/b", ".hidden"] {
        assert!(place.images.mount(&place.layout, &pod, "v", id).is_err(), "{id}");
        assert!(begin(&place.layout, id).is_err(), "{id}");
    }
    place.put("sha256:aa", "x");
    assert!(place.images.mount(&place.layout, &pod, "../v", "sha256:aa").is_err());
    // A link in the place of what is removed is not followed.
    let gone = place.layout.root.join("images/.gone-aa");
    symlink(place.layout.root.join("pods"), &gone).unwrap();
    remove::contents(&pod, &[]).unwrap();
    assert!(place.images.sweep(&place.layout).is_err() || place.layout.pods().is_dir());
    assert!(place.layout.pods().is_dir());
}
