//! Images that are pulled, or cannot be.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::{Value, json};

use crate::bed::{
    Bed, docker,
    pods::{SLEEP, container, phase, pod, sleeper, status, waiting, with},
    registry, until,
};

fn pulled(name: &str, image: &str, policy: &str, spec: Value) -> Value {
    pod(name, json!([with(container("app", SLEEP), json!({"image": image, "imagePullPolicy": policy}))]), spec)
}

/// A name in the registry that no other test has.
fn unique(bed: &Bed, name: &str) -> String {
    format!("{name}-{}", bed.folder.file_name().unwrap().to_string_lossy().to_lowercase())
}

fn message(pod: &Value) -> String {
    status(pod, "app")["state"]["waiting"]["message"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn pulls_that_cannot_be() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&pulled("never", "longshore.dev/not-here:1", "Never", json!({})));
    bed.apply(&pulled("invalid", "Not/A/Valid//Name:!", "IfNotPresent", json!({})));
    bed.apply(&pulled("refused", "127.0.0.1:1/none:1", "IfNotPresent", json!({})));
    bed.apply(&sleeper("good"));
    let never = bed.wait("never", "ErrImageNeverPull", |pod| waiting(pod, "app") == "ErrImageNeverPull");
    assert_eq!(phase(&never), "Pending");
    assert!(message(&never).contains("is not present with pull policy of Never"), "{}", message(&never));
    bed.wait_event("never", "ErrImageNeverPull", "");
    bed.wait_event("never", "Failed", "Error: ErrImageNeverPull");
    bed.wait("invalid", "InvalidImageName", |pod| waiting(pod, "app") == "InvalidImageName");
    bed.wait("refused", "cannot be pulled", |pod| waiting(pod, "app") == "ErrImagePull");
    bed.wait("refused", "backs off", |pod| waiting(pod, "app") == "ImagePullBackOff");
    let event = bed.wait_event("refused", "BackOff", "Back-off pulling image");
    assert_eq!(event["message"], "Back-off pulling image \"127.0.0.1:1/none:1\"", "without the cause");
    assert_eq!(event["kind"], "Normal");
    bed.wait_event("refused", "Failed", "Error: ImagePullBackOff");
    bed.wait_ready("good");
    assert!(bed.say(&["why", "never"]).contains("not present"));
    let table = bed.say(&["get", "pods"]);
    for reason in ["ErrImageNeverPull", "InvalidImageName"] {
        assert!(table.contains(reason), "{table}");
    }
    // An image that comes is found: it is tried again.
    let repo = format!("longshore.dev/{}", unique(&bed, "late"));
    bed.apply(&pulled("late", &format!("{repo}:1"), "Never", json!({})));
    bed.wait("late", "waits", |pod| waiting(pod, "app") == "ErrImageNeverPull");
    let tag = format!("/images/{}/tag?repo={repo}&tag=1", docker::image());
    assert_eq!(bed.docker.call("POST", &tag, None).status, 201);
    bed.wait_ready("late");
    bed.delete("late");
    bed.wait_gone("late");
    registry::remove(&bed, &format!("{repo}:1"));
}

#[test]
fn pulls_from_a_registry() {
    let Some(address) = registry::address() else { return };
    let Some(bed) = Bed::start() else { return };
    let name = unique(&bed, "public");
    registry::push(&bed, &address, &name);
    let image = format!("{address}/{name}:1");
    bed.apply(&pulled("a", &image, "IfNotPresent", json!({})));
    bed.apply(&pulled("missing", &format!("{address}/{name}:2"), "IfNotPresent", json!({})));
    let a = bed.wait_ready("a");
    bed.wait_event("a", "Pulling", &image);
    bed.wait_event("a", "Pulled", "Successfully pulled image");
    assert!(status(&a, "app")["imageID"].to_string().contains("sha256:"), "{a}");
    assert_eq!(status(&a, "app")["image"], image.as_str());
    let missing = bed.wait("missing", "cannot be pulled", |pod| waiting(pod, "app") == "ErrImagePull");
    let text = message(&missing);
    assert!(text.contains("manifest unknown") || text.contains("not found"), "{text}");
    bed.wait("missing", "backs off", |pod| waiting(pod, "app") == "ImagePullBackOff");
    bed.wait_event("missing", "BackOff", "Back-off pulling image");
    // Pushed later, it is found on a later try.
    bed.delete("a");
    bed.wait_gone("a");
    registry::remove(&bed, &image);
}

#[test]
fn pulls_with_secrets_of_the_folder() {
    let Some(address) = registry::address() else { return };
    let Some(bed) = Bed::start() else { return };
    let name = unique(&bed, "private");
    registry::push(&bed, &address, &name);
    let door = registry::guarded(&address, "captain", "s3cr3t");
    let image = format!("{door}/{name}:1");
    let secret = |name: &str, password: &str| {
        let config = json!({"auths": {&door: {"username": "captain", "password": password}}}).to_string();
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": config}})
    };
    bed.apply(&secret("wrong", "guess"));
    let using =
        |name: &str, secret: &str| pulled(name, &image, "Always", json!({"imagePullSecrets": [{"name": secret}]}));
    bed.apply(&using("wrong-password", "wrong"));
    bed.apply(&pulled("no-password", &image, "Always", json!({})));
    for name in ["wrong-password", "no-password"] {
        bed.wait(name, "ErrImagePull", |pod| waiting(pod, "app") == "ErrImagePull");
        bed.wait(name, "ImagePullBackOff", |pod| waiting(pod, "app") == "ImagePullBackOff");
    }
    bed.apply(&secret("right", "s3cr3t"));
    bed.apply(&using("right-password", "right"));
    bed.wait_ready("right-password");
    let told = bed.log() + &bed.get("/v1/events").to_string() + &bed.get("/v1/pods").to_string();
    assert!(!told.contains("s3cr3t") && !told.contains("guess"), "passwords are told to nobody");
    // The secret is mended: the pod that waits finds it, without being touched.
    bed.apply(&secret("wrong", "s3cr3t"));
    bed.wait_for("wrong-password", "ready", std::time::Duration::from_secs(60), crate::bed::pods::is_ready);
    for name in ["right-password", "wrong-password"] {
        bed.delete(name);
        bed.wait_gone(name);
    }
    registry::remove(&bed, &image);
}

#[test]
fn pulls_with_credentials_of_a_provider() {
    let Some(address) = registry::address() else { return };
    let Some(mut bed) = Bed::new() else { return };
    let name = unique(&bed, "provided");
    registry::push(&bed, &address, &name);
    let door = registry::guarded(&address, "captain", "s3cr3t");
    let provider = |name: &str, images: &str| {
        json!({"name": name, "matchImages": [images], "defaultCacheDuration": "1h", "args": ["get"],
            "env": [{"name": "PASSWORD", "value": "s3cr3t"}], "apiVersion": "credentialprovider.kubelet.k8s.io/v1"})
    };
    let config = json!({"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
        "providers": [provider("broken", "127.0.0.*"), provider("fails", &door), provider("works", &door)]});
    let answer = format!(
        r#"{{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Registry",
        "auth":{{"{door}":{{"username":"captain","password":"$PASSWORD"}}}}}}"#
    );
    let runs = bed.folder.join("runs");
    let write = |name: &str, text: String| {
        let path = bed.folder.join("providers").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    write("broken", "#!/bin/sh\nexit 1\n".to_owned());
    write("fails", "#!/bin/sh\necho no network here >&2; exit 1\n".to_owned());
    write("works", format!("#!/bin/sh\n[ $1 = get ] && cat >> {}\ncat <<END\n{answer}\nEND\n", runs.display()));
    let config = write("config.json", config.to_string());
    bed.flags = vec![
        format!("--image-credential-provider-config={}", config.display()),
        format!("--image-credential-provider-bin-dir={}", bed.folder.join("providers").display()),
    ];
    bed.begin();
    let image = format!("{door}/{name}:1");
    bed.apply(&pulled("provided", &image, "Always", json!({})));
    bed.wait_ready("provided");
    bed.apply(&pulled("again", &image, "Always", json!({})));
    bed.wait_ready("again");
    let asked = fs::read_to_string(&runs).unwrap();
    let question = format!(
        r#"{{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"{door}/{name}"}}"#
    );
    assert_eq!(asked, question, "asked once, and without a tag");
    let told = bed.log() + &bed.get("/v1/events").to_string() + &bed.get("/v1/pods").to_string();
    assert!(told.contains("no network here"), "{told}");
    assert!(!told.contains("s3cr3t"), "passwords are told to nobody");
    for name in ["provided", "again"] {
        bed.delete(name);
        bed.wait_gone(name);
    }
    registry::remove(&bed, &image);
}

/// With `config.json` of the root folder, whose keys are as in a pull secret.
#[test]
fn pulls_with_the_nodes_own_credentials_its_pause_image_too() {
    let Some(address) = registry::address() else { return };
    let Some(mut bed) = Bed::start() else { return };
    bed.apply(&sleeper("old"));
    let old = bed.wait_ready("old");
    let ours = bed.sandbox("old")["Config"]["Image"].as_str().unwrap().to_owned();
    let (app, pause) = (unique(&bed, "team/app"), unique(&bed, "team/pause"));
    registry::push(&bed, &address, &app);
    registry::push_as(&bed, &ours, &address, &pause);
    let door = registry::guarded(&address, "captain", "s3cr3t");
    let image = format!("{door}/{app}:1");
    bed.apply(&pulled("early", &image, "Always", json!({})));
    bed.wait("early", "ErrImagePull", |pod| waiting(pod, "app") == "ErrImagePull");
    let key = format!("{door}/team");
    let auths = json!({"auths": {key: {"username": "captain", "password": "s3cr3t"}}});
    fs::write(bed.root().join("config.json"), auths.to_string()).unwrap();
    assert_eq!(bed.stop(), Some(0));
    bed.flags = vec![format!("--pod-infra-container-image={door}/{pause}:1")];
    bed.begin();
    bed.apply(&pulled("new", &image, "Always", json!({})));
    bed.wait_ready("new");
    assert_eq!(bed.sandbox("new")["Config"]["Image"], format!("{door}/{pause}:1").as_str());
    bed.wait_for("early", "ready", std::time::Duration::from_secs(60), crate::bed::pods::is_ready);
    let adopted = bed.wait_ready("old");
    assert_eq!(status(&adopted, "app")["containerID"], status(&old, "app")["containerID"]);
    assert_eq!(bed.sandbox("old")["Config"]["Image"], ours.as_str(), "what runs keeps its sandbox");
    assert!(!(bed.log() + &bed.get("/v1/events").to_string()).contains("s3cr3t"), "passwords are told to nobody");
    for name in ["old", "early", "new"] {
        bed.delete(name);
        bed.wait_gone(name);
    }
    registry::remove(&bed, &image);
    registry::remove(&bed, &format!("{door}/{pause}:1"));
}

/// What one pod's Secret brought is not everybody's on the node, also after a restart of the agent.
#[test]
fn an_image_that_came_with_a_secret_is_for_those_who_have_its_credentials() {
    let Some(address) = registry::address() else { return };
    let Some(mut bed) = Bed::start() else { return };
    let name = unique(&bed, "kept");
    registry::push(&bed, &address, &name);
    let door = registry::guarded(&address, "captain", "s3cr3t");
    let image = format!("{door}/{name}:1");
    let config = json!({"auths": {&door: {"username": "captain", "password": "s3cr3t"}}}).to_string();
    for (name, namespace) in [("of-a", "default"), ("of-c", "elsewhere")] {
        bed.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
            "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config}}));
    }
    let elsewhere = |name: &str, policy: &str, secrets: Value| {
        let pod = pulled(name, &image, policy, json!({"imagePullSecrets": secrets}));
        with(pod, json!({"metadata": {"namespace": "elsewhere"}}))
    };
    bed.apply(&pulled("a", &image, "IfNotPresent", json!({"imagePullSecrets": [{"name": "of-a"}]})));
    bed.wait_ready("a");
    bed.wait_event("a", "Pulled", "Successfully pulled image");
    let look = |bed: &Bed, names: [&str; 3]| {
        let [b, c, never] = names;
        bed.apply(&elsewhere(b, "IfNotPresent", json!([])));
        bed.apply(&elsewhere(never, "Never", json!([])));
        bed.apply(&elsewhere(c, "IfNotPresent", json!([{"name": "of-c"}])));
        bed.wait(b, "ErrImagePull", |pod| waiting(pod, "app") == "ErrImagePull");
        bed.wait(b, "ImagePullBackOff", |pod| waiting(pod, "app") == "ImagePullBackOff");
        let refused = bed.wait(never, "ErrImageNeverPull", |pod| waiting(pod, "app") == "ErrImageNeverPull");
        assert!(message(&refused).contains("is not present with pull policy of Never"), "{}", message(&refused));
        bed.wait_ready(c);
        bed.wait_event(c, "Pulled", "already present on machine and can be accessed by the pod");
    };
    look(&bed, ["b1", "c1", "never1"]);
    assert_eq!(bed.stop(), Some(0));
    bed.begin();
    look(&bed, ["b2", "c2", "never2"]);
    bed.wait_ready("a");
    let records = bed.root().join("image_manager/pulled");
    assert_eq!(fs::metadata(&records).unwrap().permissions().mode() & 0o777, 0o700);
    for record in fs::read_dir(&records).unwrap().flatten() {
        assert_eq!(record.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!fs::read_to_string(record.path()).unwrap().contains("s3cr3t"), "hashes only");
    }
    for name in ["a", "b1", "c1", "never1", "b2", "c2", "never2"] {
        bed.delete(name);
        bed.wait_gone(name);
    }
    registry::remove(&bed, &image);
}

/// Four pulls may go on at a time here. One that hangs is given up after a minute, and with it its turn.
#[test]
fn pulls_that_hang_hold_up_nobody() {
    let Some(address) = registry::address() else { return };
    let Some(bed) = Bed::start_with(&["--max-parallel-image-pulls=4", "--serialize-image-pulls=false"]) else { return };
    let silent = registry::silent();
    let hang = |at: usize| {
        bed.apply(&pulled(&format!("hangs{at}"), &format!("{silent}/none{at}:1"), "IfNotPresent", json!({})));
        bed.wait_event(&format!("hangs{at}"), "Pulling", "");
    };
    let names = [unique(&bed, "good"), unique(&bed, "late")];
    for name in &names {
        registry::push(&bed, &address, name);
    }
    let images = names.map(|name| format!("{address}/{name}:1"));
    (0..3).for_each(hang);
    bed.apply(&pulled("good", &images[0], "IfNotPresent", json!({})));
    bed.wait_ready("good");
    let text =
        until("why tells of the pull", || Some(bed.say(&["why", "hangs0"])).filter(|text| text.contains("pull")));
    assert!(text.contains(&silent), "{text}");
    (3..6).for_each(hang);
    bed.apply(&pulled("late", &images[1], "IfNotPresent", json!({})));
    bed.wait_for("late", "ready after a turn", std::time::Duration::from_secs(150), crate::bed::pods::is_ready);
    // A pod whose pull hangs can be removed.
    bed.delete("hangs0");
    bed.wait_gone("hangs0");
    for (name, image) in ["good", "late"].iter().zip(&images) {
        bed.delete(name);
        bed.wait_gone(name);
        registry::remove(&bed, image);
    }
}
