//! Disks that hang or are missing, files that were never meant to be manifests.

use super::*;

#[tokio::test]
async fn huge_strange_and_many_files_are_coped_with() {
    let fixture = Fixture::new();
    for n in 0..3000 {
        fixture.write(&format!("p{n:04}"), &pod(&format!("p{n}"), "i"));
    }
    let large = std::fs::File::create(fixture.folder().join("large")).unwrap();
    large.set_len(folder::LARGEST + 1).unwrap();
    let comment = format!("# {}\n", "x".repeat(1 << 20)).repeat(9);
    fixture.write("nearly", &format!("{comment}{}", pod("nearly", "i")));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        fixture.folder().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(fixture.folder().join("socket")).unwrap();
    symlink("nowhere", fixture.folder().join("dangling")).unwrap();
    symlink("pipe", fixture.folder().join("piped")).unwrap();
    symlink("/", fixture.folder().join("to-folder")).unwrap();
    symlink("loop", fixture.folder().join("loop")).unwrap();
    symlink("/dev/zero", fixture.folder().join("zero")).unwrap();
    let mut reader = fixture.watch();
    let seen = reader.until("all", |snapshot| snapshot.pods.len() == 3001).await;
    let expected = [
        ("large", "10 MiB"),
        ("pipe", "a pipe"),
        ("socket", "a socket"),
        ("dangling", "leads nowhere"),
        ("piped", "not a file"),
        ("loop", "cannot be read"),
        ("zero", "not a file"),
    ];
    for (name, text) in expected {
        let found = seen.problems.iter().find(|problem| problem.place.ends_with(&format!("manifests/{name}")));
        assert!(found.is_some_and(|problem| problem.message.contains(text)), "{name}: {found:?}");
    }
    assert_eq!(seen.problems.len(), expected.len(), "{:#?}", seen.problems);
    let started = Instant::now();
    fixture.write("p0000", &pod("changed", "i"));
    reader.until("a change among many", |snapshot| names(snapshot).contains(&"changed".to_owned())).await;
    assert!(started.elapsed() < RESCAN / 2, "{:?}", started.elapsed());
}

/// A file system whose server never answers: what is opened there hangs until `server` is dropped.
#[tokio::test]
async fn a_file_that_hangs_stalls_no_other() {
    let fixture = Fixture::new();
    let Ok(server) = std::fs::File::options().read(true).write(true).open("/dev/fuse") else { return };
    let hung = fixture.dir.path().join("hung");
    std::fs::create_dir(&hung).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&server);
    let data = std::ffi::CString::new(format!("fd={fd},rootmode=40000,user_id=0,group_id=0")).unwrap();
    if rustix::mount::mount("longshore-test", &hung, "fuse", MountFlags::empty(), data.as_c_str()).is_err() {
        return;
    }
    fixture.write("a", &pod("a", "one"));
    symlink(hung.join("x"), fixture.folder().join("hanging")).unwrap();
    let mut reader = fixture.watch();
    let seen = reader.until("the other", |snapshot| names(snapshot) == ["a"]).await;
    assert!(says(&seen, "does not answer"));
    let started = Instant::now();
    fixture.write("a", &pod("a", "two"));
    reader.until("the change", |snapshot| images(snapshot) == ["two"]).await;
    let took = started.elapsed();
    drop(server);
    rustix::mount::unmount(&hung, UnmountFlags::DETACH).unwrap();
    // Less than a file is waited for.
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// Nobody named it: as the kubelet, which has no folder then.
#[tokio::test]
async fn a_folder_that_need_not_be_there_is_one_without_pods_until_it_is() {
    let fixture = Fixture::new();
    std::fs::remove_dir(fixture.folder()).unwrap();
    let memory = |optional, former: &[Pod]| {
        let memory = Memory { former: former.to_vec(), optional, file: fixture.dir.path().join("memory") };
        ManifestFolder::with_memory(&fixture.folder(), "node", Duration::from_millis(200), memory)
    };
    let named = memory(false, &[]);
    let told = async {
        while named.problems().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
    let message = named.problems()[0].message.clone();
    assert!(message.ends_with("make it, or name another one with --config"), "{message}");
    assert!(named.words.borrow().snapshot.is_none());
    let mut reader = Reader::new(memory(true, &[]));
    let first = reader.until("no pods", |snapshot| snapshot.pods.is_empty()).await;
    assert!(says(&first, "there is no such folder") && first.problems[0].warning);
    std::fs::create_dir(fixture.folder()).unwrap();
    fixture.write("a", &pod("a", "one"));
    let seen = reader.until("the pod", |snapshot| names(snapshot) == ["a"]).await;
    assert_eq!(seen.problems, []);
    // With pods from it, one that is gone is not "no pods".
    std::fs::remove_dir_all(fixture.folder()).unwrap();
    let after = memory(true, &seen.pods);
    let told = async {
        while after.problems().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
    assert!(after.problems()[0].message.ends_with("put it back") && after.words.borrow().snapshot.is_none());
}

#[tokio::test]
async fn what_takes_the_folders_place_ends_no_pod_before_a_good_manifest_is_in_it() {
    let fixture = Fixture::new();
    fixture.write("a", &pod("a", "one"));
    let mut reader = fixture.watch_every(Duration::from_millis(200));
    let ran = reader.until("the pod", |snapshot| names(snapshot) == ["a"]).await.pods;
    std::fs::rename(fixture.folder(), fixture.dir.path().join("away")).unwrap();
    std::fs::write(fixture.folder(), "x").unwrap();
    let is_another = |snapshot: &SourceSnapshot| {
        assert_eq!(snapshot.pods, ran);
        says(snapshot, "is another folder or file")
    };
    reader.until("a file that is none", is_another).await;
    std::fs::remove_file(fixture.folder()).unwrap();
    std::fs::create_dir(fixture.folder()).unwrap();
    fixture.write("b", "{");
    let broken = |snapshot: &SourceSnapshot| {
        is_another(snapshot) && snapshot.problems.iter().any(|problem| problem.place.contains("manifests/b"))
    };
    let seen = reader.until("a broken manifest", broken).await;
    assert!(says(&seen, "the pod from it is kept"), "{:?}", seen.problems);
    fixture.write("b", &pod("b", "one"));
    reader.until("what is there now", |snapshot| names(snapshot) == ["b"] && snapshot.problems.is_empty()).await;
}

fn restart(fixture: &Fixture, former: &[Pod]) -> Reader {
    let memory = Memory { former: former.to_vec(), optional: false, file: fixture.dir.path().join("memory") };
    Reader::new(ManifestFolder::with_memory(&fixture.folder(), "node", Duration::from_millis(200), memory))
}

#[tokio::test]
async fn a_disk_that_is_not_mounted_after_a_reboot_ends_no_pod() {
    let fixture = Fixture::new();
    rustix::mount::mount("tmpfs", fixture.folder(), "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
    fixture.write("a", &pod("a", "one"));
    let mut reader = restart(&fixture, &[]);
    let ran = reader.until("the pod", |snapshot| names(snapshot) == ["a"]).await.pods;
    let end = Instant::now() + Duration::from_secs(30);
    while !fixture.dir.path().join("memory").exists() {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(reader);
    rustix::mount::unmount(fixture.folder(), UnmountFlags::DETACH).unwrap();
    let mut reader = restart(&fixture, &ran);
    let seen = reader.until("the first word", |_| true).await;
    assert_eq!(seen.pods, ran);
    assert!(
        says(&seen, "another, empty folder") && says(&seen, "memory and restart longshore"),
        "{:#?}",
        seen.problems
    );
    fixture.write("b", &pod("b", "one"));
    let seen = reader.until("what is there", |snapshot| names(snapshot) == ["b"]).await;
    assert!(seen.problems.is_empty());
    drop(reader);
    // Emptied by its user while the agent was down: the same folder.
    fixture.remove("b");
    let mut reader = restart(&fixture, &ran);
    assert!(reader.until("the first word", |_| true).await.pods.is_empty());
}

#[tokio::test]
async fn a_folder_that_could_not_be_remembered_is_once_it_can() {
    let fixture = Fixture::new();
    fixture.write("a", &pod("a", "one"));
    let root = fixture.dir.path().join("root");
    let memory = Memory { former: Vec::new(), optional: false, file: root.join("memory") };
    let source = ManifestFolder::with_memory(&fixture.folder(), "node", Duration::from_millis(100), memory);
    let mut reader = Reader::new(source);
    reader.until("the pod", |snapshot| names(snapshot) == ["a"]).await;
    std::fs::create_dir(&root).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while !root.join("memory").exists() {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_file_broken_while_the_agent_was_down_ends_no_pod() {
    let fixture = Fixture::new();
    fixture.write("a", &pod("a", "one"));
    fixture.write("b", &pod("b", "one"));
    let ran = read_once(&fixture.folder(), "node").unwrap().snapshot.pods;
    fixture.write("a", "{");
    fixture.write("b", &pod("b", "two"));
    let mut reader = restart(&fixture, &ran);
    let seen = reader.until("the first word", |_| true).await;
    assert_eq!(images(&seen), ["two", "one"]);
    assert!(says(&seen, "no file describes now"));
    fixture.write("a", &pod("a", "three"));
    reader.until("mended", |snapshot| images(snapshot) == ["three", "two"] && snapshot.problems.is_empty()).await;
    drop(reader);
    // Removed while it was down, and nothing else is wrong.
    fixture.remove("a");
    let mut reader = restart(&fixture, &ran);
    assert_eq!(names(&reader.until("the first word", |_| true).await), ["b"]);
    drop(reader);
    fixture.write("junk", "");
    let mut reader = restart(&fixture, &ran);
    assert_eq!(names(&reader.until("the first word", |_| true).await), ["a", "b"]);
    fixture.remove("junk");
    reader.until("the end", |snapshot| names(snapshot) == ["b"]).await;
}
