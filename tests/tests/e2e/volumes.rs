//! Volumes: what is mounted, with which modes and owners, and that nothing of it is left.

use std::{fs, os::unix::fs::MetadataExt};

use serde_json::{Value, json};

use crate::bed::{
    Bed, NODE,
    pods::{SLEEP, container, is_ready, pod, uid, with},
    until,
};

/// A pod with volumes, all mounted into one container.
fn mounted(name: &str, volumes: Value, mounts: Value, spec: Value) -> Value {
    let app = with(container("app", SLEEP), json!({"volumeMounts": mounts}));
    pod(name, json!([app]), with(json!({"volumes": volumes}), spec))
}

#[test]
fn volumes_empty_dirs() {
    let Some(bed) = Bed::start() else { return };
    let volumes = json!([
        {"name": "disk", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}},
    ]);
    let mounts = json!([{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"},
        {"name": "disk", "mountPath": "/ro", "readOnly": true}]);
    bed.apply(&mounted("a", volumes, mounts, json!({})));
    let a = bed.wait_ready("a");
    // As the kubelet leaves them: a tmpfs keeps its sticky bit.
    assert_eq!(bed.exec("a", "app", "stat -c %a /disk /memory"), "777\n1777\n");
    assert_eq!(bed.exec("a", "app", "echo x > /disk/f; cat /ro/f"), "x\n");
    let (code, output) = bed.try_exec("a", "app", "echo y > /ro/f");
    assert!(code != 0 && output.contains("Read-only"), "{output}");
    assert!(bed.exec("a", "app", "grep ' /memory ' /proc/mounts").contains("tmpfs"));
    let (code, output) = bed.try_exec("a", "app", "dd if=/dev/zero of=/memory/f bs=1M count=8");
    assert!(code != 0 && output.contains("No space left"), "{output}");
    // It outlives a container, not the pod.
    bed.docker.kill(&crate::bed::pods::id(&a, "app"), "KILL");
    bed.wait("a", "ready again", |pod| is_ready(pod) && crate::bed::pods::restarts(pod, "app") == 1);
    assert_eq!(bed.exec("a", "app", "cat /disk/f"), "x\n");
    let folder = bed.pod_folder(&a);
    assert!(!bed.mounts().is_empty());
    bed.delete("a");
    bed.wait_gone("a");
    until("its folder is removed", || (!folder.exists()).then_some(()));
    until("nothing is mounted", || bed.mounts().is_empty().then_some(()));
}

#[test]
fn volumes_read_only_with_all_that_is_mounted_below() {
    let Some(bed) = Bed::start() else { return };
    let volumes = json!([{"name": "d", "hostPath": {"path": "/dev"}}]);
    let mounts = |mode: &str| {
        let plain = json!({"name": "d", "mountPath": "/plain", "readOnly": true});
        json!([plain, {"name": "d", "mountPath": "/whole", "readOnly": true, "recursiveReadOnly": mode}])
    };
    bed.apply(&mounted("a", volumes.clone(), mounts("IfPossible"), json!({})));
    bed.apply(&mounted("b", volumes, mounts("Enabled"), json!({})));
    let a = bed.wait_ready("a");
    let told = crate::bed::pods::status(&a, "app")["volumeMounts"].clone();
    let mode = |path: &str| {
        let mut all = told.as_array().unwrap().iter();
        all.find(|mount| mount["mountPath"] == path).unwrap()["recursiveReadOnly"].clone()
    };
    assert_eq!(mode("/plain"), "Disabled");
    // There is a tmpfs at /dev/shm on every machine.
    let writes = |name: &str, path: &str| {
        bed.try_exec(name, "app", &format!("touch {path}/shm/longshore && rm {path}/shm/longshore")).0 == 0
    };
    assert!(writes("a", "/plain"));
    let can = mode("/whole") == "Enabled";
    assert_eq!(writes("a", "/whole"), !can);
    let version = bed.docker.call("GET", "/version", None).json()["ApiVersion"].as_str().unwrap().to_owned();
    let minor: u32 = version.split('.').nth(1).unwrap().parse().unwrap();
    assert_eq!(can, minor >= 44, "API {version}");
    if can {
        bed.wait_ready("b");
        assert!(writes("b", "/plain") && !writes("b", "/whole"));
    } else {
        bed.wait("b", "refused", |pod| crate::bed::pods::waiting(pod, "app") == "CreateContainerConfigError");
        bed.wait_event("b", "Failed", "requested recursive read-only mode, but it is not supported by the runtime");
    }
}

#[test]
fn volumes_host_paths() {
    let Some(bed) = Bed::start() else { return };
    let host = bed.folder.join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "content").unwrap();
    let path = |name: &str, kind: &str| json!({"path": host.join(name), "type": kind});
    let volumes = json!([
        {"name": "made", "hostPath": path("made/deep", "DirectoryOrCreate")},
        {"name": "touched", "hostPath": path("touched", "FileOrCreate")},
        {"name": "dir", "hostPath": {"path": host}},
        {"name": "file", "hostPath": path("file", "File")},
        {"name": "null", "hostPath": {"path": "/dev/null", "type": "CharDevice"}},
        {"name": "socket", "hostPath": {"path": bed.socket(), "type": "Socket"}},
    ]);
    let mounts = json!([
        {"name": "made", "mountPath": "/made"}, {"name": "touched", "mountPath": "/touched"},
        {"name": "dir", "mountPath": "/host"}, {"name": "file", "mountPath": "/file", "readOnly": true},
        {"name": "null", "mountPath": "/none"}, {"name": "socket", "mountPath": "/s"},
    ]);
    bed.apply(&mounted("a", volumes, mounts, json!({})));
    bed.wait_ready("a");
    assert_eq!(
        bed.exec("a", "app", "cat /file; echo x > /made/f; echo y > /touched; test -S /s && test -c /none"),
        "content"
    );
    assert_eq!(fs::read_to_string(host.join("made/deep/f")).unwrap(), "x\n");
    assert_eq!(fs::read_to_string(host.join("touched")).unwrap(), "y\n");
    assert_eq!(fs::metadata(host.join("made/deep")).unwrap().mode() & 0o777, 0o755);
    assert_eq!(fs::metadata(host.join("touched")).unwrap().mode() & 0o777, 0o644);

    for (name, kind, part) in [
        ("b", "Directory", "not a directory"),
        ("c", "Socket", "not a socket"),
        ("d", "BlockDevice", "not a block device"),
    ] {
        let volumes = json!([{"name": "v", "hostPath": path("file", kind)}]);
        bed.apply(&mounted(name, volumes, json!([{"name": "v", "mountPath": "/v"}]), json!({})));
        bed.wait_event(name, "FailedMount", part);
        assert!(bed.containers(name).is_empty(), "no container is started");
    }
    // It is tried again: what was missing may come.
    let volumes = json!([{"name": "v", "hostPath": path("later", "File")}]);
    bed.apply(&mounted("e", volumes, json!([{"name": "v", "mountPath": "/v"}]), json!({})));
    bed.wait_event("e", "FailedMount", "");
    fs::write(host.join("later"), "late").unwrap();
    bed.wait_ready("e");
    assert_eq!(bed.exec("e", "app", "cat /v"), "late");
    bed.delete("a");
    bed.wait_gone("a");
    assert!(host.join("made/deep/f").exists(), "what is the host's stays");
}

#[test]
fn volumes_of_objects_with_modes() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"},
        "data": {"one": "1", "two": "2"}, "binaryData": {"bin": "AAEC"}}));
    bed.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "data": {"key": "czNjcjN0"}, "stringData": {"plain": "text"}}));
    let field = |path: &str| json!({"fieldPath": path});
    let volumes = json!([
        {"name": "all", "configMap": {"name": "m"}},
        {"name": "some", "configMap": {"name": "m", "defaultMode": 0o400, "items": [
            {"key": "one", "path": "deep/er/one"}, {"key": "two", "path": "two", "mode": 0o755}]}},
        {"name": "secret", "secret": {"secretName": "s", "defaultMode": 0o600}},
        {"name": "absent", "secret": {"secretName": "none", "optional": true}},
        {"name": "down", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": field("metadata.labels")},
            {"path": "name", "fieldRef": field("metadata.name")},
            {"path": "annotations", "fieldRef": field("metadata.annotations")},
            {"path": "cpu", "resourceFieldRef": {"containerName": "app", "resource": "limits.cpu", "divisor": "1m"}}]}},
        {"name": "mixed", "projected": {"defaultMode": 0o444, "sources": [
            {"configMap": {"name": "m", "items": [{"key": "one", "path": "from/map"}]}},
            {"secret": {"name": "s", "items": [{"key": "key", "path": "from/secret", "mode": 0o400}]}},
            {"downwardAPI": {"items": [{"path": "ns", "fieldRef": field("metadata.namespace")}]}}]}},
    ]);
    let names = ["all", "some", "secret", "absent", "down", "mixed"];
    let mounts: Vec<Value> =
        names.iter().map(|name| json!({"name": name, "mountPath": format!("/v/{name}")})).collect();
    let app = with(
        container("app", SLEEP),
        json!({"env": [{"name": "SEEN", "valueFrom": {"fieldRef": field("metadata.annotations['kubernetes.io/config.seen']")}}],
            "volumeMounts": mounts, "resources": {"limits": {"cpu": "200m", "memory": "32Mi"}}}),
    );
    let whole = pod("a", json!([app]), json!({"volumes": volumes}));
    bed.apply(&with(whole, json!({"metadata": {"labels": {"app": "web", "tier": "x"}}})));
    let a = bed.wait_ready("a");
    let cat = |path: &str| bed.exec("a", "app", &format!("cat /v/{path}"));
    let mode = |path: &str| bed.exec("a", "app", &format!("stat -L -c %a /v/{path}")).trim().to_owned();
    assert_eq!((cat("all/one"), cat("all/two"), mode("all/one")), ("1".into(), "2".into(), "644".into()));
    assert_eq!(bed.exec("a", "app", "wc -c < /v/all/bin").trim(), "3");
    assert_eq!(
        (cat("some/deep/er/one"), mode("some/deep/er/one"), mode("some/two")),
        ("1".into(), "400".into(), "755".into())
    );
    assert_eq!(bed.exec("a", "app", "ls /v/some").trim(), "deep\ntwo");
    assert_eq!(
        (cat("secret/key"), cat("secret/plain"), mode("secret/key")),
        ("s3cr3t".into(), "text".into(), "600".into())
    );
    assert_eq!(bed.exec("a", "app", "ls /v/absent"), "");
    assert_eq!(cat("down/labels"), "app=\"web\"\ntier=\"x\"");
    // What the kubelet adds itself it tells as well.
    let seen = a["metadata"]["annotations"]["kubernetes.io/config.seen"].as_str().unwrap();
    let added = [("hash", uid(&a)), ("seen", seen), ("source", "file")];
    let added: Vec<String> = added.iter().map(|(key, value)| format!("kubernetes.io/config.{key}={value:?}")).collect();
    assert_eq!(cat("down/annotations"), added.join("\n"));
    assert_eq!(bed.exec("a", "app", "echo $SEEN").trim(), seen);
    assert_eq!((cat("down/name"), cat("down/cpu")), (format!("a-{NODE}"), "200".to_owned()));
    assert_eq!(
        (cat("mixed/from/map"), cat("mixed/from/secret"), cat("mixed/ns")),
        ("1".into(), "s3cr3t".into(), "default".into())
    );
    assert_eq!((mode("mixed/from/map"), mode("mixed/from/secret")), ("444".into(), "400".into()));
    assert!(bed.exec("a", "app", "grep ' /v/secret ' /proc/mounts").contains("tmpfs"), "secrets touch no disk");
    let (code, output) = bed.try_exec("a", "app", "echo x > /v/all/one");
    assert!(code != 0 && output.contains("Read-only"), "{output}");
}

#[test]
fn volumes_that_a_pod_drops_in_place_go() {
    let Some(bed) = Bed::start() else { return };
    let own = format!("e2e-{}", bed.folder.file_name().unwrap().to_string_lossy().to_lowercase());
    bed.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "v"}}));
    let volumes =
        json!([{"name": "s", "secret": {"secretName": "s"}}, {"name": "e", "emptyDir": {"medium": "Memory"}}]);
    let keeps = with(container("keeps", SLEEP), json!({"volumeMounts": [{"name": "e", "mountPath": "/e"}]}));
    let mounts = json!([{"name": "s", "mountPath": "/s"}, {"name": "s", "mountPath": "/k", "subPath": "k"}]);
    let drops = |more: Value| with(container("drops", SLEEP), more);
    let of = |drops: Value, volumes: &[Value]| {
        let pod = pod("a", json!([keeps, drops]), json!({"volumes": volumes}));
        with(pod, json!({"metadata": {"uid": own}}))
    };
    bed.apply(&of(drops(json!({"volumeMounts": mounts})), volumes.as_array().unwrap()));
    let a = bed.wait_ready("a");
    assert_eq!((bed.exec("a", "drops", "cat /k"), bed.mounts().len()), ("v".to_owned(), 3));
    bed.exec("a", "keeps", "echo x > /e/f");
    bed.apply(&of(drops(json!({})), &volumes.as_array().unwrap()[1..]));
    until("only what it has is mounted", || {
        let mounts = bed.mounts();
        (mounts.len() == 1 && mounts[0].ends_with("kubernetes.io~empty-dir/e")).then_some(())
    });
    bed.wait("a", "ready again", |pod| is_ready(pod) && crate::bed::pods::restarts(pod, "drops") == 1);
    assert_eq!(bed.exec("a", "keeps", "cat /e/f"), "x\n");
    assert_eq!(crate::bed::pods::id(&bed.pod("a").unwrap(), "keeps"), crate::bed::pods::id(&a, "keeps"));
}

#[test]
fn volumes_that_miss_an_object_wait_for_it() {
    let Some(bed) = Bed::start() else { return };
    let volumes = json!([{"name": "v", "configMap": {"name": "late"}}]);
    bed.apply(&mounted("a", volumes, json!([{"name": "v", "mountPath": "/v"}]), json!({})));
    bed.wait_event("a", "FailedMount", "late");
    assert!(bed.containers("a").is_empty());
    assert!(bed.say(&["why", "a"]).contains("late"));
    bed.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}, "data": {"k": "v"}}));
    bed.wait_ready("a");
    assert_eq!(bed.exec("a", "app", "cat /v/k"), "v");
}

#[test]
fn volumes_sub_paths() {
    let Some(bed) = Bed::start() else { return };
    let host = bed.folder.join("host");
    fs::create_dir_all(host.join("in/side")).unwrap();
    fs::write(host.join("in/side/file"), "content").unwrap();
    std::os::unix::fs::symlink("/etc", host.join("out")).unwrap();
    bed.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"one": "1"}}));
    let app = with(
        container("app", SLEEP),
        json!({"env": [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "volumeMounts": [
            {"name": "h", "mountPath": "/side", "subPath": "in/side"},
            {"name": "h", "mountPath": "/file", "subPath": "in/side/file", "readOnly": true},
            {"name": "h", "mountPath": "/mine", "subPathExpr": "logs/$(WHO)"},
            {"name": "m", "mountPath": "/etc/one.conf", "subPath": "one"},
        ]}),
    );
    let volumes = json!([{"name": "h", "hostPath": {"path": host}}, {"name": "m", "configMap": {"name": "m"}}]);
    bed.apply(&pod("a", json!([app]), json!({"volumes": volumes})));
    bed.wait_ready("a");
    assert_eq!(bed.exec("a", "app", "cat /side/file /file /etc/one.conf; echo x > /mine/f"), "contentcontent1");
    assert_eq!(fs::read_to_string(host.join(format!("logs/a-{NODE}/f"))).unwrap(), "x\n");

    // A link that leads out of the volume opens nothing of the host.
    let app =
        with(container("app", SLEEP), json!({"volumeMounts": [{"name": "h", "mountPath": "/x", "subPath": "out"}]}));
    bed.apply(&pod("b", json!([app]), json!({"volumes": [{"name": "h", "hostPath": {"path": host}}]})));
    bed.wait("b", "refused", |pod| crate::bed::pods::waiting(pod, "app") == "CreateContainerConfigError");

    bed.delete("a");
    bed.delete("b");
    bed.wait_gone("a");
    bed.wait_gone("b");
    until("nothing is mounted", || bed.mounts().is_empty().then_some(()));
    assert_eq!(fs::read_to_string(host.join("in/side/file")).unwrap(), "content");
}

#[test]
fn volumes_mounts_of_later_on_are_seen_as_the_container_asks() {
    let Some(bed) = Bed::start() else { return };
    let shared = bed.folder.join("shared");
    fs::create_dir(&shared).unwrap();
    let mount = |arguments: &[&str], at: &std::path::Path| {
        assert!(
            std::process::Command::new("mount").args(arguments).arg(at).status().unwrap().success(),
            "{arguments:?}"
        );
    };
    // Taken away with the bed's folder.
    mount(&["-t", "tmpfs", "none"], &shared);
    mount(&["--make-shared"], &shared);
    for name in ["later", "inside"] {
        fs::create_dir(shared.join(name)).unwrap();
    }
    let volumes = json!({"volumes": [{"name": "h", "hostPath": {"path": shared}}]});
    let may_mount = json!({"capabilities": {"add": ["SYS_ADMIN"]}, "appArmorProfile": {"type": "Unconfined"}});
    for (name, propagation, security) in [
        ("none", "None", may_mount.clone()),
        ("slave", "HostToContainer", may_mount),
        ("shared", "Bidirectional", json!({"privileged": true})),
    ] {
        let mounts = json!([{"name": "h", "mountPath": "/h", "mountPropagation": propagation}]);
        let app = with(container("app", SLEEP), json!({"volumeMounts": mounts, "securityContext": security}));
        bed.apply(&pod(name, json!([app]), volumes.clone()));
    }
    bed.wait_ready("none");
    bed.wait_ready("slave");
    let pod = bed.wait("shared", "ready, or cannot start", |pod| {
        is_ready(pod) || crate::bed::pods::waiting(pod, "app") == "CrashLoopBackOff"
    });
    let mut pods = vec!["none", "slave"];
    if is_ready(&pod) {
        pods.push("shared");
    } else {
        // An old runc cannot give all capabilities on a machine that has not got them itself.
        let last = &crate::bed::pods::status(&pod, "app")["lastState"]["terminated"]["message"];
        assert!(last.to_string().contains("caps"), "{pod}");
    }
    mount(&["-t", "tmpfs", "none"], &shared.join("later"));
    fs::write(shared.join("later/file"), "later").unwrap();
    let seen = |name: &str, path: &str| bed.exec(name, "app", &format!("cat {path} 2>/dev/null || true"));
    for name in &pods {
        assert_eq!(seen(name, "/h/later/file"), if *name == "none" { "" } else { "later" }, "{name}");
    }
    // And the other way.
    for name in pods {
        bed.exec(name, "app", &format!("mount -t tmpfs none /h/inside && echo -n {name} > /h/inside/file"));
        let of_host = fs::read_to_string(shared.join("inside/file")).unwrap_or_default();
        assert_eq!(of_host, if name == "shared" { "shared" } else { "" });
        assert_eq!(seen(name, "/h/inside/file"), name);
    }
}

/// What most charts do: a folder of an empty volume, for somebody who is not root.
#[test]
fn volumes_sub_paths_are_for_whom_the_volume_is() {
    let Some(bed) = Bed::start() else { return };
    let volumes = json!([{"name": "e", "emptyDir": {}}]);
    let mounts = json!([{"name": "e", "mountPath": "/data", "subPath": "a/b"}]);
    for (name, security) in [("a", json!({"runAsUser": 1000})), ("b", json!({"runAsUser": 1000, "fsGroup": 2000}))] {
        bed.apply(&mounted(name, volumes.clone(), mounts.clone(), json!({"securityContext": security})));
        bed.wait_ready(name);
        bed.exec(name, "app", "echo x > /data/f");
    }
    assert_eq!(bed.exec("b", "app", "stat -c '%g %a' /data; stat -c %g /data/f"), "2000 2777\n2000\n");
}

#[test]
fn volumes_belong_to_the_group() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "v"}}));
    let volumes =
        json!([{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}}]);
    let mounts = json!([{"name": "e", "mountPath": "/e"}, {"name": "s", "mountPath": "/s"}]);
    let security = json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000}});
    bed.apply(&mounted("a", volumes, mounts, security));
    bed.wait_ready("a");
    assert_eq!(bed.exec("a", "app", "stat -c '%g' /e; stat -L -c '%g %a' /s/k"), "2000\n2000 440\n");
    assert_eq!(bed.exec("a", "app", "cat /s/k; echo x > /e/f; stat -c %g /e/f"), "v2000\n");
    assert!(bed.exec("a", "app", "id -G").split_whitespace().any(|group| group == "2000"));
}

#[test]
fn volumes_a_full_empty_dir_evicts_the_pod() {
    let Some(bed) = Bed::start() else { return };
    let volumes = json!([{"name": "e", "emptyDir": {"sizeLimit": "1Mi"}}]);
    let app = with(
        container("app", &format!("dd if=/dev/zero of=/e/f bs=1M count=4 2>/dev/null; {SLEEP}")),
        json!({"volumeMounts": [{"name": "e", "mountPath": "/e"}]}),
    );
    bed.apply(&pod("a", json!([app]), json!({"volumes": volumes})));
    let limit = std::time::Duration::from_secs(60);
    let a = bed.wait_for("a", "evicted", limit, |pod| crate::bed::pods::phase(pod) == "Failed");
    assert_eq!(a["status"]["reason"], "Evicted");
    assert!(a["status"]["message"].to_string().contains("exceeds the limit"), "{}", a["status"]);
}

#[test]
fn volumes_are_mounted_below_others_that_are_read_only() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"one": "1"}}));
    bed.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"two": "2"}}));
    let volumes = json!([
        {"name": "m", "configMap": {"name": "m"}},
        {"name": "s", "secret": {"secretName": "s"}},
        {"name": "p", "projected": {"sources": [{"configMap": {"name": "m"}}]}},
        {"name": "e", "emptyDir": {}},
    ]);
    let mounts = json!([
        {"name": "m", "mountPath": "/m"}, {"name": "e", "mountPath": "/m/e"},
        {"name": "s", "mountPath": "/s"}, {"name": "m", "mountPath": "/s/in/m"},
        {"name": "p", "mountPath": "/p"}, {"name": "s", "mountPath": "/p/s"},
    ]);
    bed.apply(&mounted("a", volumes, mounts, json!({})));
    bed.wait_ready("a");
    let told = bed.exec("a", "app", "echo x > /m/e/f; cat /m/one /m/e/f /s/two /s/in/m/one /p/one /p/s/two");
    assert_eq!(told, "1x\n2112");
    bed.delete("a");
    bed.wait_gone("a");
    until("nothing is mounted", || bed.mounts().is_empty().then_some(()));
}
