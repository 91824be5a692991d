//! `longshore takeover`, on a Docker of its own: it ends all that dockershim and cri-dockerd have there.

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    process::Output,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::bed::{Bed, daemon::Daemon, docker, http, pods::with, proxy::Proxy, until};

/// What dockershim and cri-dockerd label a container with.
fn labels(pod: &str, container: &str, kind: &str) -> Value {
    json!({
        "io.kubernetes.docker.type": kind, "io.kubernetes.container.name": container, "io.kubernetes.pod.name": pod,
        "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": format!("uid-of-{pod}"),
        "annotation.io.kubernetes.pod.terminationGracePeriod": "20",
    })
}

/// A container that runs; its ID.
fn run(bed: &Bed, name: &str, labels: Value, more: Value) -> String {
    let body = json!({"Image": docker::image(), "Cmd": ["sleep", "100000"], "Labels": labels,
        "HostConfig": {"NetworkMode": "none"}});
    let body = with(body, more);
    let made = bed.docker.call("POST", &format!("/containers/create?name={name}"), Some(&body));
    assert_eq!(made.status, 201, "{name}: {}", made.text());
    let id = made.json()["Id"].as_str().unwrap().to_owned();
    assert_eq!(bed.docker.call("POST", &format!("/containers/{id}/start"), None).status, 204);
    id
}

/// A pod as both of them make it: its sandbox, and a container in that, which notes when it is asked to end.
fn pod(bed: &Bed, name: &str, suffix: &str) -> [String; 2] {
    let of = |container: &str| format!("k8s_{container}_{name}_default_uid-of-{name}_0{suffix}");
    let sandbox = run(bed, &of("POD"), labels(name, "POD", "podsandbox"), json!({}));
    let label = with(labels(name, "app", "container"), json!({"io.kubernetes.sandbox.id": sandbox}));
    let script =
        format!("trap 'echo asked > /out/{name}; exit 0' TERM; echo > /out/{name}.up; while :; do sleep 0.1; done");
    let binds = format!("{}:/out", bed.folder.join("out").display());
    let more = json!({"Cmd": ["sh", "-c", script],
        "HostConfig": {"NetworkMode": format!("container:{sandbox}"), "Binds": [binds]}});
    let app = run(bed, &of("app"), label, more);
    until("it runs", || bed.folder.join(format!("out/{name}.up")).exists().then_some(()));
    [sandbox, app]
}

/// IDs in the order of their ends since then.
fn ends(bed: &Bed, since: u64) -> Vec<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 1;
    let filters = http::encode(&json!({"event": ["die"]}).to_string());
    let path = format!("/v1.41/events?since={since}&until={now}&filters={filters}");
    let (_, mut reader) = http::open(&bed.docker.socket, "GET", &path, "", b"").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let events = serde_json::Deserializer::from_str(&text).into_iter::<Value>().map_while(Result::ok);
    events.filter_map(|event| event["id"].as_str().map(str::to_owned)).collect()
}

/// Exit code and all that was printed.
fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn takeover_ends_what_the_others_have_and_nothing_else() {
    let Some(mut bed) = Bed::new() else { return };
    let Some(daemon) = Daemon::run(&bed.folder.join("dk")) else { return };
    bed.docker = daemon.docker();
    let socket = bed.folder.join("p.sock");
    let proxy = Proxy::start(&socket, &bed.docker.socket);
    let endpoint = format!("--docker-endpoint=unix://{}", socket.display());
    let plugins = [("cache", "cache"), ("bin", "plugins")];
    let [cache, bin] = plugins.map(|(flag, name)| format!("--cni-{flag}-dir={}", bed.folder.join(name).display()));
    let flags = ["takeover", endpoint.as_str(), cache.as_str(), bin.as_str()];
    let takeover = |more: &[&str]| told(&bed.cli(&[&flags[..], more].concat()));
    let nothing = "dockershim and cri-dockerd have no containers here\n";
    assert_eq!(takeover(&[]), (Some(0), nothing.to_owned(), String::new()));

    fs::create_dir(bed.folder.join("out")).unwrap();
    // A name that was taken gets a suffix from both of them.
    let (web, cart) = (pod(&bed, "web", ""), pod(&bed, "cart", "_1a2b3c4d"));
    // A network of plugins that one of them is on, as libcni keeps it.
    let (results, let_go) = (bed.folder.join("cache/results"), bed.folder.join("let-go"));
    fs::create_dir_all(&results).unwrap();
    let kept = results.join(format!("pods-{}-eth0", cart[0]));
    let list = STANDARD.encode(r#"{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "noter"}]}"#);
    let entry =
        json!({"kind": "cniCacheV1", "containerId": cart[0], "config": list, "ifName": "eth0", "networkName": "pods"});
    fs::write(&kept, entry.to_string()).unwrap();
    let noter = bed.folder.join("plugins/noter");
    fs::create_dir(bed.folder.join("plugins")).unwrap();
    fs::write(&noter, format!("#!/bin/sh\necho $CNI_COMMAND $CNI_CONTAINERID >> {}\n", let_go.display())).unwrap();
    fs::set_permissions(&noter, fs::Permissions::from_mode(0o755)).unwrap();
    let ended =
        run(&bed, "k8s_job_web_default_uid-of-web_0", labels("web", "job", "container"), json!({"Cmd": ["true"]}));
    until("it has ended", || (bed.docker.inspect(&ended)?["State"]["Running"] == false).then_some(()));
    let longshores = with(labels("ours", "app", "container"), json!({"dev.longshore.root": "0".repeat(32)}));
    let mut half = labels("half", "app", "container");
    half.as_object_mut().unwrap().remove("io.kubernetes.pod.uid");
    let others = [
        run(&bed, "plain", json!({}), json!({})),
        run(&bed, "k8s_app_named_default_so_0", json!({"io.kubernetes.pod.name": "named"}), json!({})),
        run(&bed, "compose-db-1", json!({"com.docker.compose.project": "compose"}), json!({})),
        run(&bed, "of-a-longshore", longshores, json!({})),
        run(&bed, "of-no-pod", half, json!({})),
    ];
    let runs = |id: &str| bed.docker.inspect(id).is_some_and(|seen| seen["State"]["Running"] == true);
    let untouched = || assert!(others.iter().all(|id| runs(id)), "another's container was touched");

    let (code, table, said) = takeover(&["--dry-run"]);
    assert_eq!((code, said.as_str()), (Some(0), "of longshore agents, and left alone: 1 container\n"), "{table}");
    assert!(table.ends_with("5 containers would be stopped and removed\n"), "{table}");
    for (pod, part, id, state) in [
        ("default/web", "(sandbox)", &web[0], "running"),
        ("default/web", "app", &web[1], "running"),
        ("default/web", "job", &ended, "ended"),
        ("default/cart", "(sandbox)", &cart[0], "running"),
        ("default/cart", "app", &cart[1], "running"),
    ] {
        let row = |line: &&str| line.split_whitespace().eq([pod, part, &id[..12], state]);
        assert!(table.lines().any(|line| row(&line)), "no {part} of {pod} in {table}");
    }
    assert!(table.contains("CNI plugins would be told to let go of 1 container\n"), "{table}");
    assert_eq!(table.lines().count(), 8, "{table}");
    assert!(web.iter().chain(&cart).all(|id| runs(id)) && bed.docker.inspect(&ended).is_some());

    // One that Docker does not stop: it is said, with the others ended all the same.
    proxy.protect(Some(&web[1]));
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (code, text, said) = takeover(&[]);
    assert_eq!(code, Some(1), "{text}{said}");
    assert!(text.ends_with("4 containers stopped and removed\n"), "{text}");
    let app = "k8s_app_web_default_uid-of-web_0";
    for part in [app, "of pod default/web", "this container is protected", "1 container could not be removed"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(runs(&web[1]) && !bed.folder.join("out/web").exists());
    assert!([&web[0], &ended, &cart[0], &cart[1]].iter().all(|id| bed.docker.inspect(id).is_none()));
    assert!(bed.folder.join("out/cart").exists(), "it was asked to end");
    // Containers end before the sandboxes that they are in.
    let order: Vec<String> = ends(&bed, since).into_iter().filter(|id| cart.contains(id)).collect();
    assert_eq!(order, [cart[1].clone(), cart[0].clone()]);
    assert_eq!(fs::read_to_string(let_go).unwrap(), format!("DEL {}\n", cart[0]));
    assert!(!kept.exists());
    untouched();

    proxy.protect(None);
    let (code, text, said) = takeover(&[]);
    assert_eq!(code, Some(0), "{text}{said}");
    assert!(text.contains("default/web") && text.ends_with("1 container stopped and removed\n"), "{text}");
    assert!(bed.docker.inspect(&web[1]).is_none() && bed.folder.join("out/web").exists());
    let (code, text, _) = takeover(&[]);
    assert_eq!((code, text.as_str()), (Some(0), nothing));
    untouched();

    let (code, _, said) = told(&bed.cli(&["takeover", "--docker-endpoint=unix:///nowhere/docker.sock"]));
    assert!(code == Some(1) && said.contains("the containers of other agents cannot be listed"), "{code:?} {said}");
}
