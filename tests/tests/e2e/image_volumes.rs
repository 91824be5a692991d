//! Volumes that hold an image: mounted by Docker itself where it can, unpacked below the root folder where not.

use std::fs;

use serde_json::{Value, json};

use crate::bed::{
    Bed,
    pods::{SLEEP, container, id, is_ready, pod, restarts, waiting, with},
    registry, until,
};

/// An image of files, without anything to run.
fn files() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |kind: tar::EntryType, path: &str, mode: u32, content: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(2000);
        if kind == tar::EntryType::Symlink {
            header.set_size(0);
            return tar.append_link(&mut header, path, content).unwrap();
        }
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    };
    add(tar::EntryType::Regular, "file", 0o640, "content");
    add(tar::EntryType::Regular, "run", 0o755, "#!/bin/sh\necho ran\n");
    add(tar::EntryType::Directory, "models", 0o755, "");
    add(tar::EntryType::Directory, "models/deep", 0o755, "");
    add(tar::EntryType::Regular, "models/deep/m", 0o644, "weights");
    add(tar::EntryType::Symlink, "models/link", 0o777, "deep");
    add(tar::EntryType::Symlink, "out", 0o777, "/etc");
    tar.into_inner().unwrap()
}

/// A name that no other test has.
fn unique(bed: &Bed, name: &str) -> String {
    format!("longshore.dev/{name}-{}:1", bed.folder.file_name().unwrap().to_string_lossy().to_lowercase())
}

fn volume(reference: &str, policy: &str) -> Value {
    json!({"volumes": [{"name": "i", "image": {"reference": reference, "pullPolicy": policy}}]})
}

fn mounting(name: &str, mounts: Value, spec: Value) -> Value {
    pod(name, json!([with(container("app", SLEEP), json!({"volumeMounts": mounts}))]), spec)
}

/// The images that are unpacked.
fn unpacked(bed: &Bed) -> usize {
    fs::read_dir(bed.root().join("images")).map_or(0, Iterator::count)
}

fn content_containers(bed: &Bed) -> usize {
    bed.docker.list(&format!("dev.longshore.content={}", bed.root_id())).len()
}

#[test]
fn image_volumes_hold_the_image_and_nothing_else() {
    let Some(mut bed) = Bed::start() else { return };
    let image = unique(&bed, "files");
    bed.docker.import(&image, &files());
    let mounts = json!([
        {"name": "i", "mountPath": "/v"},
        {"name": "i", "mountPath": "/deep", "subPath": "models/deep"},
        {"name": "i", "mountPath": "/linked", "subPath": "models/link"},
        {"name": "i", "mountPath": "/one", "subPath": "file"},
    ]);
    bed.apply(&mounting("a", mounts.clone(), volume(&image, "Never")));
    bed.apply(&mounting("b", mounts, volume(&image, "IfNotPresent")));
    let a = bed.wait_ready("a");
    bed.wait_ready("b");
    bed.wait_event("a", "Pulled", &image);
    let sh = |script: &str| bed.exec("a", "app", script);
    assert_eq!(sh("cat /v/file /deep/m /linked/m /one"), "contentweightsweightscontent");
    assert_eq!(sh("ls -A /v").split_whitespace().collect::<Vec<_>>(), ["file", "models", "out", "run"]);
    assert_eq!(sh("stat -c '%a %u %g' /v/file; readlink /v/out"), "640 1000 2000\n/etc\n");
    for place in ["/v/new", "/deep/new", "/one"] {
        let (code, output) = bed.try_exec("a", "app", &format!("echo x > {place}"));
        assert!(code != 0 && output.contains("Read-only"), "{place}: {output}");
    }
    // Docker's own mounts of images take no options; ours have them.
    if bed.docker.is_20() {
        assert!(bed.try_exec("a", "app", "/v/run").1.contains("denied"), "mounted noexec");
        assert_eq!(unpacked(&bed), 1, "for both pods");
    } else {
        assert_eq!(sh("/v/run"), "ran\n");
        assert_eq!(unpacked(&bed), 0, "nothing is copied");
    }
    assert_eq!(content_containers(&bed), 0);
    // It outlives the container and the agent.
    bed.docker.kill(&id(&a, "app"), "KILL");
    let a = bed.wait("a", "ready again", |pod| is_ready(pod) && restarts(pod, "app") == 1);
    bed.kill();
    bed.begin();
    let again = bed.wait_ready("a");
    assert_eq!((id(&again, "app"), restarts(&again, "app")), (id(&a, "app"), 1), "nothing restarts");
    assert_eq!(bed.exec("a", "app", "cat /v/file"), "content");
    bed.delete("a");
    bed.wait_gone("a");
    assert_eq!(bed.exec("b", "app", "cat /v/file"), "content", "the other pod's");
    bed.delete("b");
    bed.wait_gone("b");
    until("nothing is mounted", || bed.mounts().is_empty().then_some(()));
    until("nothing is unpacked", || (unpacked(&bed) == 0).then_some(()));
    registry::remove(&bed, &image);
}

#[test]
fn image_volumes_are_pulled_with_the_pods_secrets_and_wait_with_reasons() {
    let Some(address) = registry::address() else { return };
    let Some(bed) = Bed::start() else { return };
    let name = format!("volume-{}", bed.folder.file_name().unwrap().to_string_lossy().to_lowercase());
    registry::push(&bed, &address, &name);
    let door = registry::guarded(&address, "captain", "s3cr3t");
    let image = format!("{door}/{name}:1");
    let config = json!({"auths": {&door: {"username": "captain", "password": "s3cr3t"}}}).to_string();
    bed.apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "right"}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config}}),
    );
    let mounts = json!([{"name": "i", "mountPath": "/v"}]);
    let secret = json!({"imagePullSecrets": [{"name": "right"}]});
    bed.apply(&mounting("pulled", mounts.clone(), with(volume(&image, "IfNotPresent"), secret)));
    bed.apply(&mounting("refused", mounts.clone(), volume(&image, "Always")));
    bed.apply(&mounting("missing", mounts.clone(), volume(&format!("{address}/{name}:2"), "IfNotPresent")));
    bed.apply(&mounting("never", mounts.clone(), volume("longshore.dev/not-here:1", "Never")));
    // A container that does not mount it does not wait for it.
    let two = json!([container("free", SLEEP), with(container("app", SLEEP), json!({"volumeMounts": mounts}))]);
    bed.apply(&pod("half", two, volume("longshore.dev/not-here:1", "Never")));
    for name in ["refused", "missing"] {
        bed.wait(name, "ErrImagePull", |pod| waiting(pod, "app") == "ErrImagePull");
        bed.wait(name, "ImagePullBackOff", |pod| waiting(pod, "app") == "ImagePullBackOff");
        bed.wait_event(name, "Failed", "Error: ErrImagePull");
    }
    for name in ["never", "half"] {
        bed.wait(name, "ErrImageNeverPull", |pod| waiting(pod, "app") == "ErrImageNeverPull");
        bed.wait_event(name, "ErrImageNeverPull", "not-here");
    }
    bed.wait("half", "the other one runs", |pod| crate::bed::pods::status(pod, "free")["state"]["running"].is_object());
    bed.wait_for("pulled", "ready", std::time::Duration::from_secs(60), is_ready);
    bed.wait_event("pulled", "Pulling", &image);
    bed.wait_event("pulled", "Pulled", "Successfully pulled image");
    assert_eq!(bed.exec("pulled", "app", "ls /v/bin/busybox"), "/v/bin/busybox\n");
    for name in ["pulled", "refused", "missing", "never", "half"] {
        bed.delete(name);
        bed.wait_gone(name);
    }
    registry::remove(&bed, &image);
}

#[test]
fn image_volumes_that_cannot_be_mounted_say_so() {
    let Some(bed) = Bed::start() else { return };
    let image = unique(&bed, "parts");
    bed.docker.import(&image, &files());
    for (name, part) in [("absent", "not/here"), ("out", "out"), ("through", "out/ssl")] {
        let mounts = json!([{"name": "i", "mountPath": "/v", "subPath": part}]);
        bed.apply(&mounting(name, mounts, volume(&image, "Never")));
    }
    for name in ["absent", "out", "through"] {
        bed.wait_event(name, "Failed", "");
        bed.wait(name, "does not run", |pod| {
            let waits = crate::bed::pods::status(pod, "app")["state"]["running"].is_null();
            waits && !matches!(waiting(pod, "app"), "" | "ContainerCreating")
        });
        bed.delete(name);
        bed.wait_gone(name);
    }
    until("nothing is mounted", || bed.mounts().is_empty().then_some(()));
    registry::remove(&bed, &image);
}
