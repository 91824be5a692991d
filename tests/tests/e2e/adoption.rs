//! The agent ends at any moment and begins again: nothing restarts, nothing is doubled, nothing is forgotten.

use std::{
    collections::BTreeSet,
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::bed::{
    Bed, NODE, http,
    pods::{SLEEP, container, id, is_ready, job, phase, pod, restarts, sleeper, uid, with},
    until,
};

/// Every running or dead container of the bed, as `<pod>/<container>`.
fn names(bed: &Bed) -> Vec<String> {
    let all = bed.docker.list(&format!("dev.longshore.root={}", bed.root_id()));
    let label = |one: &Value, key: &str| one["Labels"][key].as_str().unwrap_or_default().to_owned();
    let name = |one: &Value| {
        format!("{}/{}", label(one, "io.kubernetes.pod.name"), label(one, "io.kubernetes.container.name"))
    };
    all.iter().map(name).collect()
}

#[test]
fn adoption_after_kills_at_any_moment() {
    let Some(mut bed) = Bed::new() else { return };
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 2, "timeoutSeconds": 20});
    for at in 0..10 {
        let app = with(container("app", SLEEP), json!({"readinessProbe": probe}));
        let mounts = json!({"volumeMounts": [{"name": "e", "mountPath": "/e"}]});
        let spec = json!({"volumes": [{"name": "e", "emptyDir": {"medium": "Memory"}}],
            "initContainers": [container("init", "true")]});
        bed.apply(&pod(&format!("p{at}"), json!([with(app, mounts)]), spec));
    }
    // Not random, so that a failure can be had again; the machine's own pace makes them so.
    for moment in [900, 300, 1300, 2100, 700, 3100] {
        bed.launch();
        thread::sleep(crate::bed::limit(Duration::from_millis(moment)));
        bed.kill();
    }
    bed.begin();
    for at in 0..10 {
        let limit = Duration::from_secs(90);
        let pod = bed.wait_for(&format!("p{at}"), "ready", limit, is_ready);
        assert_eq!(restarts(&pod, "app"), 0, "p{at}:\n{}", bed.log());
    }
    let mut wanted: Vec<String> = Vec::new();
    for at in 0..10 {
        wanted.extend(["POD", "app"].map(|container| format!("p{at}-{NODE}/{container}")));
    }
    wanted.sort();
    until("nothing is doubled", || {
        let mut found = names(&bed);
        found.retain(|name| !name.ends_with("/init"));
        found.sort();
        (found == wanted).then_some(())
    });
}

#[test]
fn adoption_keeps_readiness_and_everything() {
    let Some(mut bed) = Bed::start() else { return };
    let probe =
        json!({"exec": {"command": ["true"]}, "periodSeconds": 5, "initialDelaySeconds": 1, "timeoutSeconds": 20});
    let app = with(
        container("app", SLEEP),
        json!({"readinessProbe": probe, "startupProbe": {"exec": {"command": ["true"]}, "timeoutSeconds": 20}}),
    );
    bed.apply(&pod("a", json!([app]), json!({})));
    bed.apply(&sleeper("b"));
    let before = [bed.wait_ready("a"), bed.wait_ready("b")];
    // A crash between the word and the record may forget the word; what is tested here is what comes after.
    for pod in &before {
        until("the record is written", || {
            let record = fs::read_to_string(bed.pod_folder(pod).join("record.json")).unwrap_or_default();
            let record: Value = serde_json::from_str(&record).unwrap_or_default();
            (record["record"]["conditions"]["Ready"]["status"] == "True").then_some(())
        });
    }
    for gently in [false, true, false] {
        if gently {
            assert_eq!(bed.stop(), Some(0), "{}", bed.log());
        } else {
            bed.kill();
        }
        assert_eq!(names(&bed).len(), 4, "what runs goes on without the agent");
        bed.begin();
        for (name, old) in [("a", &before[0]), ("b", &before[1])] {
            let now = bed.wait_ready(name);
            assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(old, "app"), 0));
            assert_eq!(now["status"]["startTime"], old["status"]["startTime"]);
            let since = |pod: &Value| {
                let all = pod["status"]["conditions"].as_array().unwrap().clone();
                all.into_iter().find(|one| one["type"] == "Ready").unwrap()["lastTransitionTime"].clone()
            };
            assert_eq!(since(&now), since(old), "Ready did not change");
        }
        // Probed again in the meantime, and never shown as not ready.
        let probed = Instant::now() + Duration::from_secs(2);
        bed.watch.wait(Duration::from_secs(2), |_| (Instant::now() > probed).then_some(()));
        let told = bed.watch.told();
        for (_, pod) in told.history.iter().filter(|(kind, _)| kind != "BOOKMARK") {
            assert!(is_ready(pod), "{}: readiness flapped: {}", pod["metadata"]["name"], pod["status"]);
        }
    }
    assert_eq!(names(&bed).len(), 4);
}

#[test]
fn adoption_notices_what_happened_meanwhile() {
    let Some(mut bed) = Bed::start() else { return };
    for name in ["stays", "dies", "goes", "changes"] {
        bed.apply(&sleeper(name));
    }
    let stays = bed.wait_ready("stays");
    let dies = bed.wait_ready("dies");
    bed.wait_ready("goes");
    let changes = bed.wait_ready("changes");
    bed.kill();
    bed.docker.kill(&id(&dies, "app"), "KILL");
    bed.delete("goes");
    bed.apply(&with(sleeper("changes"), json!({"metadata": {"labels": {"x": "y"}}})));
    bed.apply(&sleeper("comes"));
    bed.begin();
    bed.wait_ready("comes");
    let dies = bed.wait("dies", "ready again", |pod| is_ready(pod) && restarts(pod, "app") == 1);
    assert_eq!(crate::bed::pods::status(&dies, "app")["lastState"]["terminated"]["exitCode"], 137);
    bed.wait_gone("goes");
    bed.wait("changes", "a new pod", |pod| is_ready(pod) && uid(pod) != uid(&changes));
    assert_eq!(id(&bed.pod("stays").unwrap(), "app"), id(&stays, "app"));
}

#[test]
fn adoption_by_one_agent_alone() {
    let Some(bed) = Bed::start() else { return };
    let second = bed.command().output().unwrap();
    assert!(!second.status.success());
    let text = format!("{}{}", String::from_utf8_lossy(&second.stdout), String::from_utf8_lossy(&second.stderr));
    assert!(text.contains("two agents on one root dir") && text.contains(&bed.pid().to_string()), "{text}");
    bed.apply(&sleeper("a"));
    bed.wait_ready("a");
}

#[test]
fn adoption_does_not_run_finished_pods_again() {
    let Some(mut bed) = Bed::start() else { return };
    let folder = bed.folder.join("notes");
    fs::create_dir(&folder).unwrap();
    let noting = |name: &str, policy: &str, code: u8| {
        let mounts = json!({"volumeMounts": [{"name": "n", "mountPath": "/n"}]});
        let script = format!("echo {name} >> /n/runs; exit {code}");
        let spec = json!({"restartPolicy": policy, "volumes": [{"name": "n", "hostPath": {"path": folder}}]});
        pod(name, json!([with(container("app", &script), mounts)]), spec)
    };
    bed.apply(&noting("never", "Never", 3));
    bed.apply(&noting("onfailure", "OnFailure", 0));
    bed.wait("never", "Failed", |pod| phase(pod) == "Failed");
    bed.wait("onfailure", "Succeeded", |pod| phase(pod) == "Succeeded");
    until("their sandboxes are stopped", || {
        let all = bed.docker.list(&format!("dev.longshore.root={}", bed.root_id()));
        all.iter().all(|one| one["State"] != "running").then_some(())
    });
    // As `docker container prune` does, with the agent there and away.
    let prune = |bed: &Bed| {
        for one in bed.docker.list(&format!("dev.longshore.root={}", bed.root_id())) {
            bed.docker.remove(one["Id"].as_str().unwrap());
        }
    };
    prune(&bed);
    bed.apply(&sleeper("first"));
    bed.wait_ready("first");
    bed.kill();
    prune(&bed);
    bed.begin();
    bed.wait_ready("first");
    bed.apply(&sleeper("second"));
    bed.wait_ready("second");
    assert_eq!(phase(&bed.wait("never", "there", |_| true)), "Failed");
    assert_eq!(phase(&bed.wait("onfailure", "there", |_| true)), "Succeeded");
    let runs = fs::read_to_string(folder.join("runs")).unwrap();
    assert_eq!(runs.lines().collect::<BTreeSet<_>>().len(), runs.lines().count(), "{runs}");
    // A manifest that goes takes its record along: then it is a new pod.
    bed.delete("never");
    bed.wait_gone("never");
    bed.apply(&noting("never", "Never", 3));
    bed.wait("never", "Failed", |pod| phase(pod) == "Failed");
    let runs = fs::read_to_string(folder.join("runs")).unwrap();
    assert_eq!(runs.lines().filter(|line| *line == "never").count(), 2, "{runs}");
}

#[test]
fn adoption_touches_no_stranger() {
    let Some(bed) = Bed::start() else { return };
    let own = format!("e2e-{}", bed.folder.file_name().unwrap().to_string_lossy().to_lowercase());
    let mark = json!({"longshore-test": bed.folder});
    // A container with dockershim's labels and a name of ours, another with the label of another root.
    let taken = format!("k8s_app_a-{NODE}_default_{own}_0");
    let labels = json!({"io.kubernetes.docker.type": "container", "io.kubernetes.pod.name": format!("a-{NODE}"),
        "io.kubernetes.pod.namespace": "default", "io.kubernetes.container.name": "app"});
    let stranger = bed.docker.stranger(&taken, &with(labels, mark.clone()));
    let other = bed.docker.stranger(
        &format!("other-{own}"),
        &with(
            json!({"dev.longshore.root": "0".repeat(32), "io.kubernetes.docker.type": "container",
            "io.kubernetes.pod.uid": "another", "io.kubernetes.pod.name": "x", "io.kubernetes.pod.namespace": "default",
            "io.kubernetes.container.name": "app", "dev.longshore.attempt": "0"}),
            mark,
        ),
    );
    bed.apply(&with(sleeper("a"), json!({"metadata": {"uid": own}})));
    bed.wait_ready("a");
    let name = bed.inspect("a", "app")["Name"].as_str().unwrap().to_owned();
    assert!(name.starts_with(&format!("/{taken}_")), "{name}");
    bed.delete("a");
    bed.wait_gone("a");
    for id in [stranger, other] {
        assert_eq!(bed.docker.inspect(&id).unwrap()["State"]["Running"], true);
    }
}

#[test]
fn adoption_of_a_pod_with_a_damaged_record() {
    let Some(mut bed) = Bed::start() else { return };
    bed.apply(&sleeper("a"));
    bed.apply(&sleeper("b"));
    let a = bed.wait_ready("a");
    let b = bed.wait_ready("b");
    for (round, damage) in ["", "{\"half\": ", "\0\0\0\0"].into_iter().enumerate() {
        bed.kill();
        fs::write(bed.pod_folder(&a).join("record.json"), damage).unwrap();
        bed.begin();
        let now = bed.wait_ready("a");
        assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&a, "app"), 0), "round {round}:\n{}", bed.log());
        assert_eq!(id(&bed.wait_ready("b"), "app"), id(&b, "app"));
    }
    bed.delete("a");
    bed.wait_gone("a");
    bed.kill();
    // And one whose manifest went meanwhile.
    fs::write(bed.pod_folder(&b).join("record.json"), "[]").unwrap();
    bed.delete("b");
    bed.begin();
    bed.wait_gone("b");
    until("its folder is removed", || (!bed.pod_folder(&b).exists()).then_some(()));
}

#[test]
fn adoption_goes_on_ending_what_was_ending() {
    let Some(mut bed) = Bed::start() else { return };
    let slow = "trap 'sleep 4; exit 0' TERM; sleep 1000000 & wait";
    bed.apply(&pod("a", json!([container("app", slow)]), json!({"terminationGracePeriodSeconds": 20})));
    let a = bed.wait_ready("a");
    bed.delete("a");
    bed.wait("a", "is ending", |pod| pod["metadata"]["deletionTimestamp"].is_string());
    bed.kill();
    bed.begin();
    bed.wait_gone("a");
    until("its folder is removed", || (!bed.pod_folder(&a).exists()).then_some(()));
}

#[test]
fn adoption_of_back_off_and_restart_counts() {
    let Some(mut bed) = Bed::start() else { return };
    bed.apply(&job("a", "Always", "exit 1"));
    bed.wait_event("a", "BackOff", "");
    // Longer after the second one than after the first: an agent may take long to start.
    let a = bed.wait_for("a", "waits after two restarts", Duration::from_secs(60), |pod| {
        restarts(pod, "app") >= 2 && crate::bed::pods::waiting(pod, "app") == "CrashLoopBackOff"
    });
    until("the record is written", || {
        let record = fs::read_to_string(bed.pod_folder(&a).join("record.json")).unwrap_or_default();
        let record: Value = serde_json::from_str(&record).unwrap_or_default();
        (record["record"]["containers"]["app"]["restarts"] == restarts(&a, "app")).then_some(())
    });
    bed.kill();
    bed.begin();
    let now = bed.wait("a", "waits still", |pod| crate::bed::pods::waiting(pod, "app") == "CrashLoopBackOff");
    assert_eq!(restarts(&now, "app"), restarts(&a, "app"), "the back-off survives:\n{}", bed.log());
    assert!(http::request(&bed.socket(), "GET", "/v1/pods", None).is_ok());
}

#[test]
fn adoption_after_kills_while_pods_end() {
    let Some(mut bed) = Bed::start() else { return };
    let slow = "trap 'sleep 1; exit 0' TERM; sleep 1000000 & wait";
    let mounts = json!({"volumeMounts": [{"name": "e", "mountPath": "/e"}]});
    let spec =
        json!({"terminationGracePeriodSeconds": 10, "volumes": [{"name": "e", "emptyDir": {"medium": "Memory"}}]});
    let names: Vec<String> = (0..6).map(|at| format!("p{at}")).collect();
    for name in &names {
        bed.apply(&pod(name, json!([with(container("app", slow), mounts.clone())]), spec.clone()));
    }
    let pods: Vec<Value> = names.iter().map(|name| bed.wait_ready(name)).collect();
    bed.apply(&sleeper("stays"));
    let stays = bed.wait_ready("stays");
    for name in &names {
        bed.delete(name);
    }
    for moment in [400, 900, 600] {
        thread::sleep(Duration::from_millis(moment));
        bed.kill();
        bed.begin();
    }
    for (name, pod) in names.iter().zip(&pods) {
        bed.wait_gone(name);
        until("its folder is removed", || (!bed.pod_folder(pod).exists()).then_some(()));
    }
    until("nothing is mounted", || bed.mounts().is_empty().then_some(()));
    let now = bed.wait_ready("stays");
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&stays, "app"), 0));
}

#[test]
fn adoption_after_kills_while_containers_restart() {
    let Some(mut bed) = Bed::start() else { return };
    // Ends every second or so, whatever the agent does: counts may not fall, and every start is counted.
    let folder = bed.folder.join("notes");
    fs::create_dir(&folder).unwrap();
    let mounts = json!({"volumeMounts": [{"name": "n", "mountPath": "/n"}]});
    let spec = json!({"volumes": [{"name": "n", "hostPath": {"path": folder}}]});
    bed.apply(&pod("a", json!([with(container("app", "echo x >> /n/runs; sleep 1; exit 1"), mounts)]), spec));
    bed.wait("a", "runs", |pod| crate::bed::pods::status(pod, "app")["started"] == true);
    let mut most = 0;
    for moment in [1000, 300, 200, 500, 100] {
        thread::sleep(Duration::from_millis(moment));
        bed.kill();
        bed.begin();
        let now = bed.wait("a", "there", |pod| restarts(pod, "app") >= 0);
        assert!(restarts(&now, "app") >= most, "{} after {most}:\n{}", restarts(&now, "app"), bed.log());
        most = restarts(&now, "app");
    }
    let limit = Duration::from_secs(60);
    let now = bed.wait_for("a", "restarted twice", limit, |pod| restarts(pod, "app") >= 2);
    let runs = fs::read_to_string(folder.join("runs")).unwrap().lines().count();
    assert!(
        runs as i64 >= restarts(&now, "app") && runs as i64 <= restarts(&now, "app") + 1,
        "{runs} runs: {}",
        now["status"]
    );
}
