//! Images are removed when their disk is full, and what is used stays; on a Docker of the test's own, since it loses images.

use std::{process::Command, time::Duration};

use serde_json::json;

use crate::bed::{
    Bed,
    daemon::Daemon,
    docker::image,
    pods::{SLEEP, container, pod, with},
};

/// A small image, of one file.
fn tar(content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", content).unwrap();
    tar.into_inner().unwrap()
}

/// Per cent of the folder's file system that is in use, as the kubelet reckons it.
fn used(folder: &std::path::Path) -> u64 {
    let found = rustix::fs::statvfs(folder).unwrap();
    100 - found.f_bavail * 100 / found.f_blocks
}

#[test]
fn collection_removes_images_that_nobody_uses() {
    let Some(mut bed) = Bed::new() else { return };
    let Some(daemon) = Daemon::run(&bed.folder.join("dk")) else { return };
    bed.docker = daemon.docker();
    for name in ["one:1", "two:1", "kept:1", "mounted:1"] {
        bed.docker.import(&format!("collect/{name}"), &tar(name.as_bytes()));
    }
    let has = |bed: &Bed, name: &str| bed.docker.call("GET", &format!("/images/{name}/json"), None).status == 200;
    let stranger = json!({"Image": "collect/kept:1", "Cmd": ["none"], "HostConfig": {"NetworkMode": "none"}});
    assert_eq!(bed.docker.call("POST", "/containers/create?name=kept", Some(&stranger)).status, 201);
    let volume = json!([{"name": "v", "image": {"reference": "collect/mounted:1", "pullPolicy": "Never"}}]);
    let app = with(container("app", SLEEP), json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    bed.apply(&pod("a", json!([app]), json!({"hostNetwork": true, "volumes": volume})));
    // With room enough nothing goes.
    let own = ["--minimum-image-ttl-duration=0s", "--eviction-hard=memory.available<100Mi"].map(str::to_owned);
    bed.flags = own.to_vec();
    if used(&bed.folder) < 3 {
        let ballast = Command::new("fallocate").args(["-l", "2G"]).arg(bed.folder.join("ballast")).status();
        assert!(ballast.unwrap().success());
    }
    let percent = used(&bed.folder);
    let marks =
        |high: u64, low: u64| [format!("--image-gc-high-threshold={high}"), format!("--image-gc-low-threshold={low}")];
    bed.flags.extend(marks(99.max(percent + 1).min(100), 98));
    bed.begin();
    bed.wait_ready("a");
    assert!(has(&bed, "collect/one:1") && has(&bed, "collect/two:1"));
    bed.stop();
    // Others use the disk as well.
    let percent = used(&bed.folder);
    bed.flags = own.to_vec();
    bed.flags.extend(marks(percent.saturating_sub(1).max(1), percent.saturating_sub(2)));
    bed.begin();
    let gone = |bed: &Bed| !has(bed, "collect/one:1") && !has(bed, "collect/two:1");
    crate::bed::until("the two are gone", || gone(&bed).then_some(()));
    bed.wait_ready("a");
    // What runs, what somebody else made a container of, and the sandbox's.
    assert!(has(&bed, &image()) && has(&bed, "collect/kept:1") && has(&bed, "collect/mounted:1"));
    bed.delete("a");
    bed.wait_gone("a");
    bed.apply(&pod("b", json!([container("app", SLEEP)]), json!({"hostNetwork": true})));
    bed.wait_for("b", "ready, without any pull", Duration::from_secs(60), crate::bed::pods::is_ready);
}
