//! Pods' folders from the first file to the last mount.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;

use longshore_core::node::CgroupDriver;
use longshore_core::pod::Source;
use longshore_core::volume::{FsGroup, HostPathKind, PayloadFile, VolumeSpec};

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    files: Files,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        // Through a link, as /var/lib/longshore may be.
        std::fs::create_dir(dir.path().join("disk")).unwrap();
        std::os::unix::fs::symlink("disk", dir.path().join("root")).unwrap();
        let cgroups = CgroupOptions { enabled: false, ..CgroupOptions::new(CgroupDriver::Cgroupfs, false) };
        let at = |name: &str| dir.path().join(name);
        let files = Files::new(at("root/a/b"), at("log/pods"), at("log/containers"), cgroups).unwrap();
        Fixture { files, dir }
    }

    fn pod_folder(&self, uid: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("disk/a/b/pods").join(uid)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = mounts::unmount_below(&self.dir.path().canonicalize().unwrap());
    }
}

fn pod(uid: &str) -> PodId {
    PodId { namespace: "ns".into(), name: "web".into(), uid: uid.into() }
}

fn volume(name: &str, kind: VolumeKind) -> VolumeSpec {
    VolumeSpec { name: name.into(), kind, mount_points: Vec::new() }
}

fn empty_dir(name: &str, memory: bool) -> VolumeSpec {
    volume(name, VolumeKind::EmptyDir { memory, size_limit: memory.then_some(1 << 20) })
}

fn payload(name: &str, text: &str, memory: bool) -> VolumeSpec {
    let file = PayloadFile { data: text.into(), mode: 0o400, user: None };
    let plugin = if memory { "kubernetes.io~secret" } else { "kubernetes.io~configmap" };
    volume(name, VolumeKind::Payload { files: [("key".to_owned(), file)].into(), memory, plugin })
}

fn spec(uid: &str, volumes: Vec<VolumeSpec>, gid: Option<u32>) -> PodFilesSpec {
    let fs_group = gid.map(|gid| FsGroup { gid, on_root_mismatch: false });
    PodFilesSpec {
        pod: pod(uid),
        volumes,
        only: None,
        fs_group,
        resolv_conf: "nameserver 10.0.0.1\n".into(),
        new_resolv_conf: true,
    }
}

#[tokio::test]
async fn names_are_made_once_for_a_sandbox() {
    let fixture = Fixture::new();
    let mut spec = PodFilesSpec { new_resolv_conf: false, ..spec("u1", Vec::new(), None) };
    for (text, new, kept) in [("one", false, "one"), ("two", false, "one"), ("three", true, "three")] {
        (spec.resolv_conf, spec.new_resolv_conf) = (text.to_owned(), new);
        let files = fixture.files.prepare(&spec).await.unwrap();
        assert_eq!(std::fs::read_to_string(&files.resolv_conf).unwrap(), kept);
    }
}

fn stored() -> StoredPod {
    StoredPod {
        source: Source::File,
        object: Default::default(),
        hashes: Default::default(),
        sandbox_hash: String::new(),
        record: Default::default(),
    }
}

fn mode(path: &Path) -> (u32, u32) {
    let meta = std::fs::metadata(path).unwrap();
    (meta.gid(), meta.mode() & 0o7777)
}

#[tokio::test]
async fn a_file_of_a_volume_is_read_also_by_a_path_with_a_slash_before_it() {
    let fixture = Fixture::new();
    let files = fixture.files.prepare(&spec("u1", vec![empty_dir("v", false)], None)).await.unwrap();
    let root = &files.volumes["v"];
    std::fs::write(root.join("env"), "A=b").unwrap();
    for path in ["env", "/env", "//env"] {
        assert_eq!(fixture.files.read_volume(&pod("u1"), root, path, 10).await.unwrap(), b"A=b", "{path}");
    }
}

#[tokio::test]
async fn volumes_have_the_kubelets_places_modes_and_owners() {
    let fixture = Fixture::new();
    let host = fixture.dir.path().join("host");
    let all = vec![
        empty_dir("disk", false),
        empty_dir("ram", true),
        payload("config", "c", false),
        payload("secret", "s", true),
        volume("host", VolumeKind::HostPath { path: host.clone(), kind: HostPathKind::DirectoryOrCreate }),
    ];
    for _ in 0..2 {
        let files = fixture.files.prepare(&spec("u1", all.clone(), None)).await.unwrap();
        let folder = fixture.pod_folder("u1");
        assert_eq!(files.volumes["disk"], folder.join("volumes/kubernetes.io~empty-dir/disk"));
        assert_eq!(mode(&folder), (0, 0o750));
        assert_eq!(mode(&files.volumes["disk"]), (0, 0o777));
        assert_eq!(mode(&files.volumes["ram"]), (0, 0o1777));
        assert_eq!(mode(&files.volumes["config"]), (0, 0o777));
        assert_eq!(std::fs::read_to_string(files.volumes["secret"].join("key")).unwrap(), "s");
        assert_eq!(mode(&files.volumes["secret"].join("key")), (0, 0o400));
        assert_eq!(files.volumes["host"], host);
        assert_eq!(std::fs::read_to_string(&files.resolv_conf).unwrap(), "nameserver 10.0.0.1\n");
        assert!(
            mounts::is_mount(&files.volumes["secret"]).unwrap() && mounts::is_mount(&files.volumes["ram"]).unwrap()
        );
        assert!(!mounts::is_mount(&files.volumes["config"]).unwrap());
    }
}

#[tokio::test]
async fn fs_group_owns_what_the_pod_owns_and_not_the_hosts() {
    let fixture = Fixture::new();
    let host = fixture.dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    let all = vec![
        empty_dir("disk", false),
        empty_dir("ram", true),
        payload("config", "c", false),
        payload("secret", "s", true),
        volume("host", VolumeKind::HostPath { path: host.clone(), kind: HostPathKind::Unset }),
    ];
    let files = fixture.files.prepare(&spec("u1", all.clone(), Some(4321))).await.unwrap();
    assert_eq!(mode(&files.volumes["disk"]), (4321, 0o2777));
    assert_eq!(mode(&files.volumes["ram"]), (4321, 0o3777));
    assert_eq!(mode(&files.volumes["config"]), (4321, 0o2777));
    assert_eq!(mode(&files.volumes["config"].join("key")), (4321, 0o440));
    assert_eq!(mode(&files.volumes["secret"].join("key")), (4321, 0o440));
    assert_eq!(mode(&host).0, 0);
    // A container narrows its volume; the next sync is none of its business.
    let narrow = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&files.volumes["disk"], narrow).unwrap();
    std::fs::write(files.volumes["disk"].join("own"), "").unwrap();
    fixture.files.prepare(&spec("u1", all.clone(), Some(4321))).await.unwrap();
    assert_eq!(mode(&files.volumes["disk"]), (4321, 0o700));
    // Nor is it on every start of an agent that has lost its mark, where that is asked for.
    let mark = fixture.pod_folder("u1").join("plugins/kubernetes.io~empty-dir/disk/fs-group");
    for (on_root_mismatch, own) in [(true, 0), (false, 4321)] {
        std::fs::remove_file(&mark).unwrap();
        std::fs::set_permissions(&files.volumes["disk"], std::os::unix::fs::PermissionsExt::from_mode(0o2770)).unwrap();
        let fs_group = Some(FsGroup { gid: 4321, on_root_mismatch });
        fixture.files.prepare(&PodFilesSpec { fs_group, ..spec("u1", all.clone(), None) }).await.unwrap();
        assert_eq!(mode(&files.volumes["disk"].join("own")).0, own);
    }
    // Another group is.
    fixture.files.prepare(&spec("u1", all, Some(77))).await.unwrap();
    assert_eq!(mode(&files.volumes["disk"]), (77, 0o2770));
    assert_eq!(mode(&files.volumes["disk"].join("own")).0, 77);
    assert_eq!(mode(&files.volumes["secret"].join("key")).0, 77);
}

#[tokio::test]
async fn a_local_volume_is_handed_to_the_fs_group_once_unless_it_is_only_read() {
    let fixture = Fixture::new();
    let [disk, read] = ["disk1", "disk2"].map(|name| fixture.dir.path().join(name));
    for folder in [&disk, &read] {
        std::fs::create_dir(folder).unwrap();
        std::fs::write(folder.join("file"), "").unwrap();
    }
    let link = fixture.dir.path().join("link");
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    let all = vec![
        volume("data", VolumeKind::Local { path: link.clone(), read_only: false, options: vec![] }),
        volume("read", VolumeKind::Local { path: read.clone(), read_only: true, options: vec![] }),
    ];
    let files = fixture.files.prepare(&spec("u1", all.clone(), Some(4321))).await.unwrap();
    assert_eq!((&files.volumes["data"], &files.volumes["read"]), (&link, &read));
    assert_eq!((mode(&disk).0, mode(&disk.join("file")).0, mode(&read).0), (4321, 4321, 0));
    // What containers make of it then is theirs; the next pod has it handed over again.
    let narrow = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&disk, narrow).unwrap();
    fixture.files.prepare(&spec("u1", all.clone(), Some(4321))).await.unwrap();
    assert_eq!(mode(&disk), (4321, 0o700));
    fixture.files.prepare(&spec("u2", all, Some(77))).await.unwrap();
    assert_eq!(mode(&disk), (77, 0o2770));
    let path = fixture.dir.path().join("none");
    let none = volume("none", VolumeKind::Local { path, read_only: false, options: vec![] });
    assert!(fixture.files.prepare(&spec("u3", vec![none], Some(77))).await.is_err());
}

#[tokio::test]
async fn a_local_volume_with_mount_options_is_mounted_with_them_in_the_pods_folder() {
    let fixture = Fixture::new();
    let disk = fixture.dir.path().join("disk1");
    std::fs::create_dir(&disk).unwrap();
    std::fs::write(disk.join("file"), "kept").unwrap();
    let with = |options: &[&str]| {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        spec(
            "u1",
            vec![volume("data", VolumeKind::Local { path: disk.clone(), read_only: false, options })],
            Some(4321),
        )
    };
    let files = fixture.files.prepare(&with(&["ro", "x-unheard-of"])).await.unwrap();
    let place = &files.volumes["data"];
    assert_eq!(*place, fixture.pod_folder("u1").join("volumes/kubernetes.io~local-volume/data"));
    assert_eq!((std::fs::read_to_string(place.join("file")).unwrap().as_str(), mode(&disk).0), ("kept", 4321));
    let refused = |at: &Path| std::fs::write(at.join("new"), "").unwrap_err().kind();
    assert_eq!(refused(place), std::io::ErrorKind::ReadOnlyFilesystem);
    // An agent that was killed between the mount and its options.
    mounts::unmount(place).unwrap();
    rustix::mount::mount_bind(&disk, place).unwrap();
    fixture.files.prepare(&with(&["ro"])).await.unwrap();
    assert_eq!(refused(place), std::io::ErrorKind::ReadOnlyFilesystem);
    std::fs::write(disk.join("new"), "").unwrap();
    fixture.files.release(&pod("u1")).await.unwrap();
    assert!(!mounts::is_mount(place).unwrap() && disk.join("file").exists());
}

#[tokio::test]
async fn a_block_device_behind_a_local_volume_is_refused() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("device");
    let (kind, number) = (rustix::fs::FileType::BlockDevice, rustix::fs::makedev(7, 250));
    // Not every sandbox lets root make one.
    if rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rustix::fs::Mode::RUSR, number).is_err() {
        return;
    }
    let device = volume("data", VolumeKind::Local { path, read_only: false, options: vec![] });
    let error = fixture.files.prepare(&spec("u1", vec![device], None)).await.unwrap_err().to_string();
    assert!(error.contains("a block device behind a `local` volume is not supported"), "{error}");
}

#[tokio::test]
async fn payloads_are_updated_and_former_content_goes() {
    let fixture = Fixture::new();
    let files = fixture.files.prepare(&spec("u1", vec![payload("secret", "one", true)], None)).await.unwrap();
    let folder = &files.volumes["secret"];
    fixture.files.prepare(&spec("u1", vec![payload("secret", "two", true)], None)).await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("key")).unwrap(), "two");
    let deadline = Instant::now() + Duration::from_secs(10);
    while payload::has_former(folder) {
        assert!(Instant::now() < deadline, "the old secret stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(std::fs::read_to_string(folder.join("key")).unwrap(), "two");
}

#[tokio::test]
async fn volumes_that_the_pod_has_no_more_go_once_nobody_uses_them() {
    let fixture = Fixture::new();
    let host = fixture.dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("precious"), "x").unwrap();
    let of_host = volume("host", VolumeKind::HostPath { path: host.clone(), kind: HostPathKind::Directory });
    let all = [
        payload("secret", "s", true),
        payload("other", "o", true),
        empty_dir("ram", true),
        empty_dir("disk", false),
        of_host,
    ];
    let before = fixture.files.prepare(&spec("u1", all.to_vec(), Some(77))).await.unwrap().volumes;
    std::fs::write(before["disk"].join("kept"), "").unwrap();
    for (index, name) in ["secret", "disk"].into_iter().enumerate() {
        let (volume, root, path) = (name.to_owned(), before[name].clone(), ["key", "part"][index].to_owned());
        let part = SubPath { volume, root, path, container: "app".into(), index };
        fixture.files.sub_path(&pod("u1"), &part).await.unwrap();
    }
    // `other` is of another kind, and `late` cannot be had now.
    let fewer = vec![payload("other", "o", false), empty_dir("disk", false)];
    let fewer = spec("u1", fewer, Some(77));
    fixture.files.prepare(&fewer).await.unwrap();
    assert!(before.values().all(|place| place.exists()), "somebody may use them");
    let only = ["other", "disk", "late"].map(str::to_owned).into();
    fixture.files.prepare(&spec("u1", vec![empty_dir("late", true)], Some(77))).await.unwrap();
    fixture.files.prepare(&PodFilesSpec { only: Some(only), ..fewer }).await.unwrap();
    let folder = fixture.pod_folder("u1");
    let mut left: Vec<PathBuf> = mounts::all().unwrap().into_iter().map(|mount| mount.point).collect();
    left.retain(|point| point.starts_with(&folder));
    let place = |path: &str| folder.join(path);
    left.sort();
    assert_eq!(left, [place("volume-subpaths/disk/app/1"), place("volumes/kubernetes.io~empty-dir/late")]);
    for gone in ["secret", "other", "ram"] {
        assert!(!before[gone].exists(), "{gone}");
    }
    assert!(!place("plugins/kubernetes.io~empty-dir/ram").exists(), "another one of that name is not the group's yet");
    assert!(before["disk"].join("kept").exists() && place("volumes/kubernetes.io~configmap/other/key").exists());
    assert!(host.join("precious").exists());
}

#[tokio::test]
async fn releasing_unmounts_and_removes_all_but_the_record_and_what_is_elsewhere() {
    let fixture = Fixture::new();
    let host = fixture.dir.path().join("host");
    std::fs::create_dir_all(host.join("sub")).unwrap();
    std::fs::write(host.join("sub/precious"), "x").unwrap();
    let all = vec![
        empty_dir("disk", false),
        empty_dir("ram", true),
        payload("secret", "s", true),
        volume("host", VolumeKind::HostPath { path: host.clone(), kind: HostPathKind::Directory }),
    ];
    let files = fixture.files.prepare(&spec("u1", all, Some(4321))).await.unwrap();
    let sub = |volume: &str, path: &str, index| SubPath {
        volume: volume.into(),
        root: files.volumes[volume].clone(),
        path: path.into(),
        container: "app".into(),
        index,
    };
    for (n, (volume, path)) in [("host", "sub"), ("disk", "x/y"), ("secret", "key")].into_iter().enumerate() {
        fixture.files.sub_path(&pod("u1"), &sub(volume, path, n)).await.unwrap();
    }
    assert!(fixture.files.sub_path(&pod("u1"), &sub("host", "../..", 9)).await.is_err());
    let message = fixture.files.termination_file(&pod("u1"), "app", 0).await.unwrap();
    fixture.files.write_hosts(&pod("u1"), "127.0.0.1 localhost\n").await.unwrap();
    fixture.files.save("u1", &stored()).await.unwrap();
    // A container with Bidirectional propagation mounts something of the node's into its volume.
    std::fs::create_dir(files.volumes["disk"].join("mnt")).unwrap();
    rustix::mount::mount_bind(&host, files.volumes["disk"].join("mnt")).unwrap();
    std::os::unix::fs::symlink(&host, files.volumes["disk"].join("link")).unwrap();
    // And a process of the node sits in one.
    let held = std::fs::File::create(files.volumes["ram"].join("held")).unwrap();
    fixture.files.release(&pod("u1")).await.unwrap();
    drop(held);
    let left: Vec<_> = std::fs::read_dir(fixture.pod_folder("u1")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["record.json"]);
    assert!(!message.exists());
    assert_eq!(std::fs::read_to_string(host.join("sub/precious")).unwrap(), "x");
    assert!(mounts::all().unwrap().iter().all(|mount| !mount.point.starts_with(fixture.pod_folder("u1"))));
    assert_eq!(fixture.files.load_all().await.unwrap().pods.len(), 1);
    assert_eq!(fixture.files.pod_folders().await, ["u1"]);
    fixture.files.release(&pod("u1")).await.unwrap();
    fixture.files.forget("u1").await.unwrap();
    fixture.files.forget("u1").await.unwrap();
    assert!(fixture.files.pod_folders().await.is_empty());
    // Nothing makes a folder for a pod that is gone.
    assert!(fixture.files.write_hosts(&pod("u1"), "x").await.is_err());
    assert!(fixture.files.termination_file(&pod("u1"), "app", 1).await.is_err());
}

#[tokio::test]
async fn a_folder_of_pods_that_was_taken_away_is_made_again() {
    let fixture = Fixture::new();
    let pods = fixture.pod_folder("");
    std::fs::remove_dir(&pods).unwrap();
    fixture.files.save("u1", &stored()).await.unwrap();
    std::fs::remove_dir_all(&pods).unwrap();
    fixture.files.prepare(&spec("u1", Vec::new(), None)).await.unwrap();
    assert_eq!((mode(&pods), mode(&pods.join("u1"))), ((0, 0o750), (0, 0o750)));
}

#[tokio::test]
async fn names_that_lead_elsewhere_touch_nothing() {
    let fixture = Fixture::new();
    for uid in ["..", "../..", "a/b", "", "."] {
        assert!(fixture.files.prepare(&spec(uid, vec![], None)).await.is_err());
        assert!(fixture.files.release(&pod(uid)).await.is_err());
        assert!(fixture.files.forget(uid).await.is_err());
        assert!(fixture.files.save(uid, &stored()).await.is_err());
    }
    for name in ["..", "../x", "a/b", ""] {
        assert!(fixture.files.prepare(&spec("u1", vec![empty_dir(name, false)], None)).await.is_err());
        assert!(fixture.files.prepare(&spec("u1", vec![payload(name, "x", true)], None)).await.is_err());
    }
    assert!(fixture.dir.path().join("disk").exists());
}

#[tokio::test]
async fn a_wrong_host_path_is_an_error_of_the_volume() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("none");
    let wrong = volume("data", VolumeKind::HostPath { path, kind: HostPathKind::Directory });
    let error = fixture.files.prepare(&spec("u1", vec![wrong], None)).await.unwrap_err();
    assert!(
        matches!(&error, FilesError::Volume { volume, message } if volume == "data" && message.ends_with("does not exist"))
    );
}

#[tokio::test]
async fn a_job_that_hangs_delays_no_other_pod() {
    let fixture = Fixture::new();
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let limit = Duration::from_millis(50);
    let place = fixture.pod_folder("u1");
    let hung = fixture.files.job("u1".into(), &place, limit, move |_| {
        let _ = wait.recv();
        Ok(())
    });
    assert!(hung.await.unwrap_err().to_string().contains("hanging"));
    let next = fixture.files.job("u1".into(), &place, limit, |_| Ok(())).await;
    assert!(next.unwrap_err().to_string().contains("earlier operation"));
    fixture.files.prepare(&spec("u2", vec![], None)).await.unwrap();
    fixture.files.save("u1", &stored()).await.unwrap();
    drop(release);
    fixture.files.job("u1".into(), &place, Duration::from_secs(10), |_| Ok(())).await.unwrap();
}

#[tokio::test]
async fn however_many_jobs_hang_the_others_go_on() {
    let fixture = Fixture::new();
    let place = fixture.pod_folder("hung");
    let release = Arc::new((Mutex::new(false), std::sync::Condvar::new()));
    let hung: Vec<_> = (0..3 * PLACES)
        .map(|at| {
            let (files, place, release) = (fixture.files.clone(), place.clone(), release.clone());
            tokio::spawn(async move {
                let job = files.job(format!("hung-{at}"), &place, Duration::from_secs(60), move |_| {
                    let (released, told) = &*release;
                    drop(told.wait_while(released.lock().unwrap(), |released| !*released));
                    Ok(())
                });
                job.await
            })
        })
        .collect();
    let others = async {
        fixture.files.prepare(&spec("u2", vec![], None)).await.unwrap();
        fixture.files.save("u2", &stored()).await.unwrap();
    };
    let others = tokio::time::timeout(Duration::from_secs(30), others).await;
    let hung_still = hung.iter().all(|job| !job.is_finished());
    // First, or a failed test would never end.
    *release.0.lock().unwrap() = true;
    release.1.notify_all();
    others.unwrap();
    assert!(hung_still);
    for job in hung {
        job.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn places_for_other_volumes_are_made_and_stay() {
    let fixture = Fixture::new();
    for memory in [false, true] {
        let uid = if memory { "m" } else { "d" };
        let with = |text: &str| VolumeSpec {
            mount_points: vec!["sub".to_owned(), "a/b".to_owned()],
            ..payload("v", text, memory)
        };
        let files = fixture.files.prepare(&spec(uid, vec![with("one")], None)).await.unwrap();
        fixture.files.prepare(&spec(uid, vec![with("two")], None)).await.unwrap();
        let folder = &files.volumes["v"];
        assert!(folder.join("sub").is_dir() && folder.join("a/b").is_dir());
        assert_eq!(std::fs::read(folder.join("key")).unwrap(), b"two");
    }
    let taken = VolumeSpec { mount_points: vec!["../x".to_owned()], ..payload("v", "one", false) };
    assert!(fixture.files.prepare(&spec("out", vec![taken], None)).await.is_err());
}

#[test]
fn an_image_is_unpacked_by_one_at_a_time() {
    let Fixture { files, .. } = &Fixture::new();
    let unpack = || {
        // An empty archive.
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        for piece in [Piece::Data(vec![0; 1024].into()), Piece::End] {
            sender.try_send(piece).ok().unwrap();
        }
        files.inner.unpack("sha256:1f", Pieces::new(receiver), &[])
    };
    {
        // Given up, it may still be at it.
        let _other = files.inner.images.alone().unwrap();
        let error = unpack().unwrap_err();
        assert!(error.to_string().contains("has not ended yet"), "{error}");
    }
    unpack().unwrap();
    assert!(images::place(&files.inner.layout, "sha256:1f").unwrap().is_dir());
}
