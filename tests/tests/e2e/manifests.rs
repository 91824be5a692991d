//! The manifest folder is followed: what is added, edited and removed; what is wrong in it ends no pod.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::bed::{
    Bed, NODE,
    pods::{SLEEP, container, id, is_ready, pod, restarts, sleeper, uid, with},
    until,
};

fn changed_image(pod: &Value, script: &str) -> Value {
    with(pod.clone(), json!({"spec": {"containers": [container("app", script)]}}))
}

#[test]
fn manifests_are_followed_at_once() {
    let Some(bed) = Bed::start() else { return };
    // Past the agent's own start.
    bed.apply(&sleeper("first"));
    bed.wait_ready("first");
    let seen = |what: &str, good: &dyn Fn(Option<&Value>) -> bool| {
        let before = Instant::now();
        let found = bed.watch.wait(Duration::from_secs(20), |told| {
            let name = format!("a-{NODE}");
            let pod = told.pods.values().find(|pod| pod["metadata"]["name"] == name.as_str());
            good(pod).then_some(())
        });
        assert!(found.is_some(), "{what}: not seen:\n{}", bed.log());
        // Noticed at once, not with the rescan every 20 s; machines that test are busy.
        assert!(before.elapsed() < crate::bed::limit(Duration::from_secs(8)), "{what}: took {:?}", before.elapsed());
    };
    bed.apply(&sleeper("a"));
    seen("added", &|pod| pod.is_some());
    let a = bed.wait_ready("a");
    bed.apply(&changed_image(&sleeper("a"), "sleep 100000"));
    seen("edited", &|pod| pod.is_none_or(|pod| uid(pod) != uid(&a) || !pod["metadata"]["deletionTimestamp"].is_null()));
    bed.wait("a", "ready with another UID", |pod| is_ready(pod) && uid(pod) != uid(&a));
    bed.delete("a");
    seen("removed", &|pod| pod.is_none_or(|pod| !pod["metadata"]["deletionTimestamp"].is_null()));
    bed.wait_gone("a");
}

#[test]
fn manifests_an_edited_pod_is_a_new_one_after_the_old_one() {
    let Some(bed) = Bed::start() else { return };
    // Takes a moment to end, so that an overlap would be seen.
    let slow = "trap 'sleep 1; exit 0' TERM; sleep 1000000 & wait";
    bed.apply(&pod("a", json!([container("app", slow)]), json!({"terminationGracePeriodSeconds": 10})));
    let old = bed.wait_ready("a");
    let old_sandbox = bed.sandbox("a")["Id"].as_str().unwrap().to_owned();
    bed.apply(&with(sleeper("a"), json!({"metadata": {"labels": {"changed": "yes"}}})));
    let new = bed.wait("a", "ready again", |pod| is_ready(pod) && uid(pod) != uid(&old));
    assert_eq!(restarts(&new, "app"), 0);
    until("the old sandbox is gone", || bed.docker.inspect(&old_sandbox).is_none().then_some(()));
    // Nothing of the new one was there before the old one was gone.
    let told = bed.watch.told();
    let gone = told.history.iter().position(|(kind, pod)| kind == "DELETED" && uid(pod) == uid(&old));
    let started = told
        .history
        .iter()
        .position(|(_, pod)| uid(pod) == uid(&new) && pod["status"]["podIP"].as_str().is_some_and(|ip| !ip.is_empty()));
    assert!(gone.unwrap() < started.unwrap(), "gone at {gone:?}, started at {started:?}");
}

#[test]
fn manifests_with_a_uid_change_in_place() {
    let Some(bed) = Bed::start() else { return };
    let own = format!("e2e-{}-{}", std::process::id(), bed.folder.file_name().unwrap().to_string_lossy());
    let two = |script: &str, more: Value| {
        let containers = json!([container("app", script), container("other", SLEEP)]);
        with(pod("a", containers, json!({})), with(json!({"metadata": {"uid": own.to_lowercase()}}), more))
    };
    bed.apply(&two(SLEEP, json!({})));
    let first = bed.wait_ready("a");
    assert_eq!(uid(&first), own.to_lowercase());
    let sandbox = bed.sandbox("a")["Id"].clone();

    // A label restarts nothing.
    bed.apply(&two(SLEEP, json!({"metadata": {"labels": {"x": "y"}, "annotations": {"n": "m"}}})));
    let second = bed.wait("a", "shows the label", |pod| pod["metadata"]["labels"]["x"] == "y" && is_ready(pod));
    assert_eq!((id(&first, "app"), id(&first, "other")), (id(&second, "app"), id(&second, "other")));

    // Nor do names: their files are written anew.
    let names = json!({"dnsConfig": {"searches": ["in-place.test"]},
        "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["in-place"]}]});
    bed.apply(&two(SLEEP, json!({"metadata": {"labels": {"x": "y"}}, "spec": names.clone()})));
    until("both files tell them", || {
        let text = bed.exec("a", "app", "cat /etc/resolv.conf /etc/hosts");
        (text.contains("in-place.test") && text.contains("192.0.2.1\tin-place")).then_some(())
    });
    assert_eq!(id(&bed.pod("a").unwrap(), "app"), id(&first, "app"));
    // What a pod writes there stays, whatever else of it is brought up to date.
    bed.exec("a", "app", "echo '192.0.2.9 its-own' >> /etc/hosts");
    bed.apply(&two(SLEEP, json!({"metadata": {"labels": {"x": "z"}}, "spec": names})));
    bed.wait("a", "shows another label", |pod| pod["metadata"]["labels"]["x"] == "z" && is_ready(pod));
    assert!(bed.exec("a", "app", "cat /etc/hosts").contains("its-own"));

    // Another command restarts that container alone.
    bed.apply(&two("trap 'exit 0' TERM; sleep 2000000 & wait", json!({"metadata": {"labels": {"x": "y"}}})));
    let third = bed.wait("a", "one container renewed", |pod| is_ready(pod) && id(pod, "app") != id(&second, "app"));
    assert_eq!(id(&third, "other"), id(&second, "other"));
    assert_eq!((restarts(&third, "app"), restarts(&third, "other")), (1, 0));
    assert_eq!(bed.sandbox("a")["Id"], sandbox);

    // What the sandbox is made of renews the pod.
    let host = json!({"metadata": {"labels": {"x": "y"}}, "spec": {"hostNetwork": true}});
    bed.apply(&two("trap 'exit 0' TERM; sleep 2000000 & wait", host.clone()));
    bed.wait("a", "on the host's network", |pod| is_ready(pod) && id(pod, "other") != id(&third, "other"));
    until("the sandbox is another", || {
        let found = bed.sandboxes("a");
        (found.len() == 1 && found[0]["Id"] != sandbox).then_some(())
    });

    // A size of another class it cannot have, and what can be done is said.
    let mut sized = two("trap 'exit 0' TERM; sleep 2000000 & wait", host);
    sized["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "10m"}});
    bed.apply(&sized);
    let advice =
        "it is BestEffort and would be Burstable; for a new pod of that class give the manifest another metadata.uid";
    until("it is said", || bed.say(&["why", "a"]).contains(advice).then_some(()));
    assert!(bed.say(&["describe", "pod", "a"]).contains(advice));
    assert!(String::from_utf8_lossy(&bed.cli(&["get", "pods"]).stderr).contains(advice));
}

#[test]
fn manifests_with_a_uid_move_to_the_class_that_another_container_gives_them() {
    let Some(bed) = Bed::start() else { return };
    let own = format!("e2e-{}", bed.folder.file_name().unwrap().to_string_lossy().to_lowercase());
    let of = |containers: Value| with(pod("a", containers, json!({})), json!({"metadata": {"uid": own}}));
    let app = container("app", SLEEP);
    bed.apply(&of(json!([app])));
    let first = bed.wait_ready("a");
    let sized = with(container("sized", SLEEP), json!({"resources": {"requests": {"cpu": "10m"}}}));
    bed.apply(&of(json!([app, sized])));
    let second = bed.wait("a", "of its new class", |pod| is_ready(pod) && pod["status"]["qosClass"] == "Burstable");
    assert_ne!(id(&second, "app"), id(&first, "app"));
    let parent = |container: &str| bed.inspect("a", container)["HostConfig"]["CgroupParent"].clone();
    assert_eq!(parent("app"), parent("sized"));
    let name = own.replace('-', "_");
    let former = || {
        let all = crate::bed::cgroups().into_iter().map(|path| path.display().to_string());
        let own = all.filter(|path| path.ends_with(&own) || path.ends_with(&format!("{name}.slice")));
        own.filter(|path| path.contains("besteffort")).count()
    };
    until("the former class's cgroup is gone", || (former() == 0).then_some(()));
}

#[test]
fn manifests_a_bad_file_keeps_its_pods_and_is_shown() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&sleeper("a"));
    let a = bed.wait_ready("a");
    bed.write("a.json", "{\"apiVersion\": \"v1\",\n \"kind\": \"Pod\",\n \"metadata\": {\"name\": 7");
    bed.write(
        "b.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec:\n  containers:\n  - name: app\n    image: [1]\n",
    );
    bed.apply(&sleeper("c"));
    bed.wait_ready("c");
    let error = until("both problems are shown", || {
        let output = bed.cli(&["get", "pods", "-A"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (text.contains("a.json") && text.contains("b.yaml")).then_some(text)
    });
    let line = error.lines().find(|line| line.contains("b.yaml")).unwrap();
    assert!(line.contains("b.yaml:7"), "names the line: {line}");
    assert!(line.contains("spec.containers[0].image"), "names the field: {line}");
    assert!(error.lines().any(|line| line.contains("a.json:3")), "{error}");
    assert_eq!(bed.pod("a").map(|now| id(&now, "app")), Some(id(&a, "app")));

    // Mended, it counts again; the others were never touched.
    bed.apply(&sleeper("a"));
    fs::remove_file(bed.manifests().join("b.yaml")).unwrap();
    until("no problem is left", || {
        bed.get("/v1/problems")["items"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    assert_eq!(bed.pod("a").map(|now| id(&now, "app")), Some(id(&a, "app")));
}

#[test]
fn manifests_of_several_documents_and_lists() {
    let Some(bed) = Bed::start() else { return };
    let (one, two) = (sleeper("one"), sleeper("two"));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [sleeper("three"), sleeper("four")]});
    bed.write("many.yaml", format!("# comments and all\n---\n{one}\n---\n---\n{two}\n---\n{list}\n"));
    for name in ["one", "two", "three", "four"] {
        bed.wait_ready(name);
    }
    bed.write("many.yaml", one.to_string());
    for name in ["two", "three", "four"] {
        bed.wait_gone(name);
    }
    assert!(is_ready(&bed.pod("one").unwrap()));
}

#[test]
fn manifests_config_maps_update_volumes_and_nothing_else() {
    let Some(bed) = Bed::start() else { return };
    let map = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"color": value}});
    let secret = |value: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"key": value}});
    bed.apply(&map("blue"));
    bed.apply(&secret("one"));
    let app = with(
        container("app", SLEEP),
        json!({"env": [{"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}}],
            "volumeMounts": [{"name": "m", "mountPath": "/m"}, {"name": "s", "mountPath": "/s"}]}),
    );
    let volumes =
        json!([{"name": "m", "configMap": {"name": "settings"}}, {"name": "s", "secret": {"secretName": "keys"}}]);
    bed.apply(&pod("a", json!([app]), json!({"volumes": volumes})));
    let a = bed.wait_ready("a");
    assert_eq!(bed.exec("a", "app", "cat /m/color /s/key"), "blueone");
    bed.apply(&map("green"));
    bed.apply(&secret("two"));
    until("the volumes show the update", || (bed.exec("a", "app", "cat /m/color /s/key") == "greentwo").then_some(()));
    assert!(bed.exec("a", "app", "cat /proc/1/environ").contains("COLOR=blue"));
    assert_eq!(id(&bed.pod("a").unwrap(), "app"), id(&a, "app"));
}

#[test]
fn manifests_a_folder_that_vanishes_keeps_its_pods() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&sleeper("a"));
    let a = bed.wait_ready("a");
    let same = |what: &str| {
        let now = bed.pod("a").unwrap_or_else(|| panic!("{what}: the pod is gone:\n{}", bed.log()));
        assert_eq!(id(&now, "app"), id(&a, "app"), "{what}");
        assert!(is_ready(&now), "{what}");
    };
    let shown = |part: &str| {
        until(&format!("a problem that says {part:?}"), || {
            bed.get("/v1/problems").to_string().contains(part).then_some(())
        });
    };
    let quiet = || {
        until("no problem", || bed.get("/v1/problems")["items"].as_array().is_some_and(Vec::is_empty).then_some(()));
    };
    let away = bed.folder.join("away");
    fs::rename(bed.manifests(), &away).unwrap();
    shown("cannot be read");
    same("folder removed");
    fs::create_dir(bed.manifests()).unwrap();
    shown("empty folder");
    same("replaced by an empty one");
    fs::remove_dir(bed.manifests()).unwrap();
    fs::rename(&away, bed.manifests()).unwrap();
    quiet();
    same("put back");

    // A disk that is not mounted, or another one in its place.
    let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(bed.manifests()).status().unwrap();
    assert!(mounted.success());
    shown("empty folder");
    same("covered by an empty mount");
    assert!(Command::new("umount").arg(bed.manifests()).status().unwrap().success());
    quiet();
    same("uncovered");

    // What the user removes file by file is meant.
    bed.delete("a");
    fs::remove_file(bed.manifests().join("nothing.json")).unwrap();
    bed.wait_gone("a");
}

#[test]
fn manifests_what_is_wrong_is_told() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&sleeper("first"));
    bed.wait_ready("first");
    let output = |parts: &[&str]| {
        until(&format!("a problem with {parts:?}"), || {
            let output = bed.cli(&["get", "pods"]);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            text.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned)
        })
    };
    bed.write("second.json", sleeper("first").to_string());
    output(&["error", "second.json", "first.json"]);
    bed.write("huge.yaml", vec![b'#'; 11 << 20]);
    output(&["error", "huge.yaml", "10"]);
    let text = sleeper("odd").to_string().replace("\"containers\"", "\"colour\": \"blue\", \"containers\"");
    bed.write("odd.json", text);
    output(&["warning", "odd.json", "spec.colour"]);
    bed.wait_ready("odd");
    bed.write("deep.yaml", format!("a: {}{}", "[".repeat(10_000), "]".repeat(10_000)));
    output(&["error", "deep.yaml"]);
    bed.write("twice.yaml", "apiVersion: v1\nkind: Pod\nkind: Pod\nmetadata: {name: x}\n");
    output(&["error", "twice.yaml", "kind"]);
    bed.write("port.json", with(sleeper("port"), json!({"spec": {"containers": [with(container("app", SLEEP), json!({"ports": [{"containerPort": 70000}]}))]}})).to_string());
    output(&["error", "port.json", "containerPort", "65535"]);
    bed.write("name.json", sleeper("Not_A_Name").to_string());
    output(&["error", "name.json", "metadata.name"]);
    bed.write(".hidden.json", sleeper("hidden").to_string());
    bed.apply(&sleeper("last"));
    bed.wait_ready("last");
    assert!(bed.pod("hidden").is_none());
    assert!(is_ready(&bed.pod("first").unwrap()));
}
