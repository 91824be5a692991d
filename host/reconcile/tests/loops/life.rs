//! From a manifest to a running pod and back to nothing.

use longshore_core::node::Surroundings;
use longshore_core::pod::{Deletion, Pod, Source};
use longshore_core::ports::probes::ProbeOutcome;
use longshore_tests::pod;

use crate::bed::Bed;

#[tokio::test]
async fn pods_come_up_and_go() {
    let bed = Bed::new();
    let pods: Vec<_> = (0..20).map(|n| pod(&format!("web-{n}"), "{containers: [{name: app, image: app}]}")).collect();
    bed.source.set(pods.clone());
    bed.until_ready(&pods).await;
    assert_eq!(bed.runtime.things().len(), 40, "a sandbox and a container each");
    // One look after each start, none more: events of one's own starts cost nothing.
    assert!(bed.runtime.calls("inspect") <= 3 * 20, "{} inspects", bed.runtime.calls("inspect"));
    bed.source.set(Vec::new());
    bed.until("everything is gone", |bed| bed.runtime.things().is_empty() && bed.views.pods().is_empty()).await;
    assert!(bed.files.stored("web-0").is_none());
}

#[tokio::test]
async fn a_pod_is_gone_when_nothing_of_it_is_left() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("it runs", |bed| bed.is_ready("p")).await;
    *bed.files.failing_to_release.lock().unwrap() = [1, 1];
    bed.runtime.fail("stop", 1);
    bed.source.set(Vec::new());
    // The API server is told of a pod's end when its view goes (`cluster::status`), and never before all this.
    bed.until("it is gone", |bed| bed.views.pods().is_empty()).await;
    assert_eq!(*bed.files.failing_to_release.lock().unwrap(), [0, 0]);
    assert!(bed.files.was_released("p") && bed.runtime.things().is_empty());
}

#[tokio::test]
async fn init_containers_run_one_after_the_other_before_the_app() {
    let bed = Bed::new();
    let spec =
        "{initContainers: [{name: one, image: app}, {name: two, image: app}], containers: [{name: app, image: app}]}";
    bed.source.set(vec![pod("p", spec)]);
    bed.until("one runs", |bed| bed.runtime.container("p", "one").is_some_and(|seen| seen.is_running())).await;
    assert!(bed.runtime.container("p", "two").is_none());
    assert_eq!(bed.phase("p"), "Pending");
    bed.runtime.end(&bed.runtime.container("p", "one").unwrap().id, 0);
    bed.until("two runs", |bed| bed.runtime.container("p", "two").is_some_and(|seen| seen.is_running())).await;
    assert!(bed.runtime.container("p", "app").is_none());
    bed.runtime.end(&bed.runtime.container("p", "two").unwrap().id, 0);
    bed.until("the pod is ready", |bed| bed.is_ready("p")).await;
}

#[tokio::test]
async fn what_ends_is_restarted_as_its_policy_says() {
    let bed = Bed::new();
    bed.source.set(vec![
        pod("always", "{containers: [{name: app, image: app}]}"),
        pod("failure", "{restartPolicy: OnFailure, containers: [{name: app, image: app}]}"),
        pod("never", "{restartPolicy: Never, containers: [{name: app, image: app}]}"),
    ]);
    for uid in ["always", "failure", "never"] {
        bed.until("it runs", |bed| bed.is_ready(uid)).await;
        bed.runtime.end(&bed.runtime.container(uid, "app").unwrap().id, 1);
    }
    bed.until("never failed", |bed| bed.phase("never") == "Failed").await;
    for uid in ["always", "failure"] {
        bed.until("restarted once", |bed| bed.restarts(uid, "app") == 1 && bed.is_ready(uid)).await;
        bed.runtime.end(&bed.runtime.container(uid, "app").unwrap().id, 0);
    }
    bed.until("failure succeeded", |bed| bed.phase("failure") == "Succeeded").await;
    bed.until("always goes on", |bed| bed.restarts("always", "app") == 2 && bed.is_ready("always")).await;
    assert!(bed.has_event("always", "BackOff"));
    bed.runtime.prune();
    bed.until("always is unmoved", |bed| bed.is_ready("always")).await;
    assert_eq!((bed.phase("failure").as_str(), bed.phase("never").as_str()), ("Succeeded", "Failed"));
    assert!(bed.runtime.container("failure", "app").is_none(), "what is done does not run again");
}

#[tokio::test]
async fn a_dead_sandbox_begins_the_pod_again() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let first = bed.runtime.container("p", "app").unwrap();
    bed.runtime.end(&first.sandbox_id, 137);
    bed.until("ready in a new sandbox", |bed| {
        bed.is_ready("p") && bed.runtime.container("p", "app").is_some_and(|seen| seen.sandbox_id != first.sandbox_id)
    })
    .await;
    assert!(bed.has_event("p", "SandboxChanged"));
}

#[tokio::test]
async fn another_image_restarts_that_container_alone() {
    let bed = Bed::new();
    bed.runtime.has_image("newer");
    bed.source.set(vec![pod("p", "{containers: [{name: a, image: app}, {name: b, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let b = bed.runtime.container("p", "b").unwrap().id;
    bed.source.set(vec![pod("p", "{containers: [{name: a, image: newer}, {name: b, image: app}]}")]);
    bed.until("a is new", |bed| bed.is_ready("p") && bed.restarts("p", "a") == 1).await;
    assert_eq!(bed.runtime.container("p", "b").unwrap().id, b);
    assert_eq!(bed.restarts("p", "b"), 0);
}

#[tokio::test]
async fn another_image_has_a_back_off_of_its_own() {
    let bed = Bed::new();
    bed.runtime.has_image("newer");
    let counted = |bed: &Bed| bed.files.stored("p").unwrap().record.containers["a"].delayed_restarts;
    let end_of = |bed: &Bed| bed.runtime.end(&bed.runtime.container("p", "a").unwrap().id, 1);
    bed.source.set(vec![pod("p", "{containers: [{name: a, image: app}]}")]);
    for restarts in 0..3 {
        bed.until("it runs again", |bed| bed.is_ready("p") && bed.restarts("p", "a") == restarts).await;
        end_of(&bed);
    }
    bed.until("it fails and fails", |bed| bed.is_ready("p") && counted(bed) == 3).await;
    bed.source.set(vec![pod("p", "{containers: [{name: a, image: newer}]}")]);
    bed.until("begun anew", |bed| bed.is_ready("p") && bed.restarts("p", "a") == 4 && counted(bed) == 1).await;
    end_of(&bed);
    bed.until("and counted from there", |bed| bed.is_ready("p") && counted(bed) == 2).await;
}

#[tokio::test]
async fn too_many_pods_are_rejected_and_stay_so() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app, resources: {requests: {cpu: 100}}}]}")]);
    bed.until("rejected", |bed| bed.phase("p") == "Failed").await;
    assert_eq!(bed.status("p").unwrap().reason.as_deref(), Some("OutOfcpu"));
    assert!(bed.runtime.things().is_empty());
}

#[tokio::test]
async fn an_unknown_probe_plugin_keeps_the_pod_pending_and_says_so() {
    let bed = Bed::new();
    let mut strange = pod("p", "{containers: [{name: app, image: app}]}");
    let mut object = (*strange.object).clone();
    object.metadata.annotations =
        Some([("probe.longshore.dev/app.readiness".to_owned(), "{plugin: redis}".to_owned())].into());
    strange.object = std::sync::Arc::new(object);
    bed.source.set(vec![strange]);
    bed.until("the event is there", |bed| bed.has_event("p", "FailedCreatePodSandBox")).await;
    assert_eq!(bed.phase("p"), "Pending");
    assert!(bed.runtime.things().is_empty());
}

#[tokio::test]
async fn a_changed_manifest_is_a_new_pod_and_the_old_one_ends_first() {
    let bed = Bed::new();
    bed.source.set(vec![pod("old", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("old")).await;
    let mut new = pod("new", "{containers: [{name: app, image: app}]}");
    new.id.name = "old".to_owned();
    let mut object = (*new.object).clone();
    object.metadata.name = Some("old".to_owned());
    new.object = std::sync::Arc::new(object);
    bed.source.set(vec![new]);
    bed.until("the new one is ready", |bed| {
        let old = bed.runtime.things().iter().any(|thing| thing.pod().uid == "old");
        let new = bed.runtime.things().iter().any(|thing| thing.pod().uid == "new");
        assert!(!(old && new), "the two never live at once");
        bed.is_ready("new")
    })
    .await;
}

fn with_sidecars(policy: &str, grace: i64) -> String {
    let side = |name: &str| {
        format!(
            "{{name: {name}, image: app, restartPolicy: Always, lifecycle: {{preStop: {{exec: {{command: [bye]}}}}}}}}"
        )
    };
    format!(
        "{{restartPolicy: {policy}, terminationGracePeriodSeconds: {grace}, containers: [{{name: app, image: app}}], \
         initContainers: [{}, {}]}}",
        side("first"),
        side("second")
    )
}

#[tokio::test]
async fn hooks_of_sidecars_run_at_the_start_and_they_end_in_their_turn() {
    let bed = Bed::new();
    bed.runtime.commands_exit("second", 1);
    bed.source.set(vec![pod("p", &with_sidecars("Always", 30))]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    // While the app does not end, nothing but hooks and its own stop may happen.
    bed.runtime.is_deaf("app");
    bed.source.set(Vec::new());
    bed.until("hooks and the app's stop", |bed| bed.runtime.story().len() == 3).await;
    let mut story = bed.runtime.story();
    story.sort();
    assert_eq!(story, ["exec first", "exec second", "stop app"]);
    bed.until("the hook's failure is told", |bed| bed.has_event("p", "FailedPreStopHook")).await;
    bed.runtime.end(&bed.runtime.container("p", "app").unwrap().id, 0);
    bed.until("gone", |bed| bed.runtime.things().is_empty()).await;
    assert_eq!(bed.runtime.story()[3..], ["stop second", "stop first"]);
}

#[tokio::test(start_paused = true)]
async fn all_containers_of_a_pod_share_one_grace_period() {
    let bed = Bed::new();
    bed.source.set(vec![pod("job", &with_sidecars("Never", 10)), pod("gone", &with_sidecars("Always", 6))]);
    bed.until("ready", |bed| bed.is_ready("job") && bed.is_ready("gone")).await;
    for name in ["app", "first", "second"] {
        bed.runtime.is_deaf(name);
    }
    // One that is done, and whose sidecars are ended for that: the first waits for the second, which never ends by
    // itself.
    let begun = tokio::time::Instant::now();
    bed.runtime.end(&bed.runtime.container("job", "app").unwrap().id, 0);
    let runs =
        |bed: &Bed, uid: &str, name: &str| bed.runtime.container(uid, name).is_some_and(|seen| seen.is_running());
    bed.until("the job's are killed", |bed| !["first", "second"].iter().any(|name| runs(bed, "job", name))).await;
    let took = begun.elapsed().as_secs();
    assert!((10..=13).contains(&took), "{took} s");
    // One that is deleted: nobody ends, and the sidecars get two seconds when the time is over.
    let begun = tokio::time::Instant::now();
    bed.source.set(vec![pod("job", &with_sidecars("Never", 10))]);
    bed.until("all are killed", |bed| !["app", "first", "second"].iter().any(|name| runs(bed, "gone", name))).await;
    let took = begun.elapsed().as_secs();
    assert!((6..=9).contains(&took), "{took} s");
}

#[tokio::test]
async fn a_pod_is_asked_to_end_however_little_time_it_has() {
    for grace in [0, 1] {
        let bed = Bed::new();
        let hook = "lifecycle: {preStop: {exec: {command: [bye]}}}";
        let app = format!("{{name: app, image: app, {hook}}}");
        bed.source.set(vec![pod("p", &format!("{{terminationGracePeriodSeconds: {grace}, containers: [{app}]}}"))]);
        bed.until("ready", |bed| bed.is_ready("p")).await;
        bed.source.set(Vec::new());
        bed.until("gone", |bed| bed.runtime.things().is_empty()).await;
        assert_eq!(bed.runtime.stops(), [("p".to_owned(), 2)]);
        assert_eq!(bed.runtime.story(), ["exec app", "stop app"]);
    }
}

#[tokio::test]
async fn a_pod_given_back_while_it_ends_comes_back() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let first = bed.runtime.container("p", "app").unwrap().id;
    bed.source.set(Vec::new());
    bed.until("it ends", |bed| bed.views.pod("p").is_none_or(|view| view.object.metadata.deletion_timestamp.is_some()))
        .await;
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready again", |bed| {
        bed.is_ready("p") && bed.runtime.container("p", "app").is_some_and(|seen| seen.id != first)
    })
    .await;
}

#[tokio::test]
async fn an_ephemeral_container_is_added_to_a_running_pod() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let app = bed.runtime.container("p", "app").unwrap().id;
    let debug = "ephemeralContainers: [{name: debug, image: app, targetContainerName: app}]";
    bed.source.set(vec![pod("p", &format!("{{containers: [{{name: app, image: app}}], {debug}}}"))]);
    let shown = |bed: &Bed| bed.status("p").and_then(|status| status.ephemeral_container_statuses).unwrap_or_default();
    bed.until("it is shown to run", |bed| {
        shown(bed).iter().any(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
    })
    .await;
    let debug = bed.runtime.container("p", "debug").unwrap().id;
    bed.runtime.end(&debug, 2);
    bed.until("it is shown to have ended", |bed| {
        shown(bed).iter().any(|status| status.state.as_ref().is_some_and(|state| state.terminated.is_some()))
    })
    .await;
    let bed = bed.restart().await;
    bed.until("it is adopted", |bed| !shown(bed).is_empty()).await;
    assert!(bed.is_ready("p"));
    assert_eq!(bed.runtime.container("p", "debug").unwrap().id, debug, "it does not run again");
    assert_eq!(bed.runtime.container("p", "app").unwrap().id, app);
}

#[tokio::test]
async fn names_and_addresses_of_the_node_are_those_of_now() {
    let bed = Bed::with(|options| options.resync = std::time::Duration::from_millis(100));
    let spec = "{containers: [{name: app, image: app}]}";
    bed.source.set(vec![pod("p", spec)]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let host_ip = |bed: &Bed, uid: &str| bed.status(uid).and_then(|status| status.host_ip).unwrap_or_default();
    assert_eq!(
        (bed.files.resolv_conf("p"), host_ip(&bed, "p")),
        ("nameserver 192.168.0.254\n".into(), "192.168.0.1".into())
    );
    let moved = Surroundings {
        ips: vec![[10, 1, 1, 1].into()],
        resolv_conf: Some("nameserver 10.1.1.254\n".to_owned()),
        ..Surroundings::default()
    };
    *bed.surroundings.lock().unwrap() = moved;
    bed.until("what runs tells the new address", |bed| host_ip(bed, "p") == "10.1.1.1").await;
    bed.source.set(vec![pod("p", spec), pod("q", spec)]);
    bed.until("another is ready", |bed| bed.is_ready("q")).await;
    assert_eq!((bed.files.resolv_conf("q"), host_ip(&bed, "q")), ("nameserver 10.1.1.254\n".into(), "10.1.1.1".into()));
    // Its container starts again; its names are its sandbox's.
    bed.runtime.end(&bed.runtime.container("p", "app").unwrap().id, 1);
    bed.until("restarted", |bed| bed.restarts("p", "app") == 1 && bed.is_ready("p")).await;
    assert_eq!(bed.files.resolv_conf("p"), "nameserver 192.168.0.254\n");
}

#[tokio::test]
async fn names_that_a_pod_asks_for_later_reach_what_runs() {
    let mut bed = Bed::new();
    let asking = |search: &str| {
        pod("p", &format!("{{dnsConfig: {{searches: [{search}]}}, containers: [{{name: app, image: app}}]}}"))
    };
    bed.source.set(vec![asking("one")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let app = bed.runtime.container("p", "app").unwrap().id;
    for (search, away) in [("two", false), ("three", true), ("one", false)] {
        if away {
            bed = bed.restart().await;
        }
        bed.source.set(vec![asking(search)]);
        let wanted = format!("nameserver 192.168.0.254\nsearch {search}\n");
        bed.until(search, |bed| bed.files.resolv_conf("p") == wanted).await;
    }
    assert_eq!(bed.runtime.container("p", "app").unwrap().id, app, "nothing is restarted for it");
}

/// Which of two that have no room beside each other runs is no chance.
#[tokio::test]
async fn new_pods_are_let_in_in_order() {
    let pods: Vec<_> = (0..20)
        .map(|n| {
            pod(
                &format!("p{n:02}"),
                "{containers: [{name: app, image: app, ports: [{containerPort: 80, hostPort: 80}]}]}",
            )
        })
        .collect();
    let bed = Bed::new();
    bed.source.set(pods.iter().rev().cloned().collect());
    bed.until("the first runs", |bed| bed.is_ready("p00")).await;
    let rejected =
        |bed: &Bed, name: &str| bed.status(name).is_some_and(|status| status.reason.as_deref() == Some("NodePorts"));
    bed.until("the others are rejected", |bed| pods[1..].iter().all(|pod| rejected(bed, &pod.id.name))).await;
}

#[tokio::test]
async fn a_volume_that_is_dropped_goes_when_nothing_that_runs_has_it() {
    let bed = Bed::new();
    let mut had = pod(
        "p",
        "{volumes: [{name: v, emptyDir: {}}, {name: w, emptyDir: {}}], \
         containers: [{name: app, image: app, volumeMounts: [{name: w, mountPath: /w}]}, \
         {name: user, image: app, volumeMounts: [{name: v, mountPath: /v}]}]}",
    );
    had.hashes.insert("user".to_owned(), "with-v".to_owned());
    let only = |bed: &Bed| bed.files.only("p").into_iter().collect::<Vec<_>>().join(" ");
    bed.source.set(vec![had.clone()]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    assert_eq!(only(&bed), "v w");
    // Once the container that has it is gone, which nothing else is started for.
    bed.runtime.is_deaf("user");
    let spec = "{terminationGracePeriodSeconds: 2, volumes: [{name: w, emptyDir: {}}], \
                containers: [{name: app, image: app, volumeMounts: [{name: w, mountPath: /w}]}]}";
    bed.source.set(vec![pod("p", spec)]);
    bed.until("it was prepared and is stopped", |bed| bed.runtime.stops().len() == 1).await;
    assert_eq!(only(&bed), "v w");
    bed.until("it is gone", |bed| only(bed) == "w").await;
    assert!(!bed.runtime.container("p", "user").unwrap().is_running());
}

#[tokio::test]
async fn an_https_hook_that_meets_a_plain_server_is_repeated_without_tls() {
    let bed = Bed::new();
    let said = |message: &str| ProbeOutcome::Failure { message: message.to_owned() };
    bed.probes.answer_to("8444", said("Get \"https://x\": dial tcp: connection refused"));
    bed.probes.answer_to("\"HTTPS\"", said("Get \"https://x\": http: server gave HTTP response to HTTPS client"));
    bed.probes.answer_to("\"HTTP\"", said("HTTP probe failed with statuscode: 404"));
    let hooked = |name: &str, port: u16| {
        let get = format!("{{port: {port}, scheme: HTTPS, httpHeaders: [{{name: Authorization, value: secret}}]}}");
        let hook = format!("lifecycle: {{postStart: {{httpGet: {get}}}}}");
        pod(name, &format!("{{containers: [{{name: app, image: app, {hook}}}]}}"))
    };
    bed.source.set(vec![hooked("p", 8443), hooked("q", 8444)]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let asked: Vec<String> = bed.probes.checks_of("p").into_iter().map(|check| check.call.config).collect();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|config| config.contains("kube-lifecycle/")), "{asked:?}");
    assert!(asked[0].contains("\"HTTPS\"") && asked[0].contains("secret"), "{asked:?}");
    assert!(asked[1].contains("\"HTTP\"") && !asked[1].contains("secret"), "{asked:?}");
    let ip = bed.status("p").unwrap().pod_ip.unwrap();
    let told = format!("request to HTTPS lifecycle hook {ip}:8443 got HTTP response, retry with HTTP succeeded");
    assert!(bed.has_message("p", &told));
    // No answer at all is no reason to do so.
    bed.until("failed", |bed| bed.has_event("q", "FailedPostStartHook")).await;
    assert!(bed.probes.checks_of("q").iter().all(|check| check.call.config.contains("\"HTTPS\"")));
    assert!(!bed.has_event("q", "LifecycleHTTPFallback"));
}

#[tokio::test]
async fn all_begin_anew_when_one_ends_as_its_rule_says() {
    let bed = Bed::new();
    let spec = "{restartPolicy: Never, initContainers: [{name: setup, image: app}], containers: [{name: b, image: app}, \
                {name: a, image: app, restartPolicy: Never, restartPolicyRules: \
                [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]}]}";
    bed.source.set(vec![pod("p", spec)]);
    let runs = |bed: &Bed, name: &str| bed.runtime.container("p", name).is_some_and(|seen| seen.is_running());
    let id = |bed: &Bed, name: &str| bed.runtime.container("p", name).unwrap().id;
    bed.until("the init container runs", |bed| runs(bed, "setup")).await;
    bed.runtime.end(&id(&bed, "setup"), 0);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let (setup, b) = (id(&bed, "setup"), id(&bed, "b"));
    bed.runtime.end(&id(&bed, "a"), 42);
    bed.until("the init container runs again", |bed| runs(bed, "setup") && id(bed, "setup") != setup).await;
    assert!(bed.runtime.container("p", "b").is_none(), "they wait for it again");
    assert!(bed.has_event("p", "Killing"));
    // The next agent goes on with it.
    let bed = bed.kill().await;
    bed.source.set(vec![pod("p", spec)]);
    bed.runtime.end(&id(&bed, "setup"), 0);
    bed.until("ready again", |bed| bed.is_ready("p") && bed.restarts("p", "b") == 1).await;
    assert!(id(&bed, "b") != b && bed.restarts("p", "a") == 1);
    let conditions = bed.status("p").unwrap().conditions.unwrap();
    assert!(conditions.iter().any(|it| it.type_ == "AllContainersRestarting" && it.status == "False"));
}

#[tokio::test]
async fn a_grace_period_begins_when_the_node_hears_of_it() {
    let bed = Bed::new();
    let mut it = pod("p", "{containers: [{name: app, image: app}], terminationGracePeriodSeconds: 30}");
    bed.source.set(vec![it.clone()]);
    bed.until_ready(std::slice::from_ref(&it)).await;
    // By a clock that goes otherwise, or while the node was away.
    let requested_at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
    it.deletion = Some(Deletion { requested_at, grace_seconds: 30 });
    bed.source.set(vec![it]);
    bed.until("stopped", |bed| !bed.runtime.stops().is_empty()).await;
    let (_, grace) = bed.runtime.stops().remove(0);
    assert!((20..=30).contains(&grace), "{grace} s");
}

fn of_api(uid: &str) -> Pod {
    let mut it = pod(uid, "{containers: [{name: app, image: app}]}");
    (it.source, it.id.name) = (Source::Api, "same".to_owned());
    it
}

/// It may have been deleted by force, and its containers not end.
#[tokio::test]
async fn a_pod_of_the_api_server_waits_for_no_other_of_its_name() {
    let bed = Bed::new();
    bed.source.set(vec![of_api("first")]);
    bed.until_ready(&[of_api("first")]).await;
    bed.runtime.fail("stop", usize::MAX);
    bed.source.set(vec![of_api("second")]);
    bed.until_ready(&[of_api("second")]).await;
    assert!(bed.runtime.container("first", "app").unwrap().is_running());
    bed.runtime.fail("stop", 0);
    bed.until("the first is gone", |bed| bed.runtime.container("first", "app").is_none()).await;
    assert!(bed.is_ready("second"));
}

#[tokio::test]
async fn less_grace_is_heard_of_after_a_restart_of_the_agent() {
    let bed = Bed::new();
    let ends = |grace_seconds| {
        let deletion = Some(Deletion { requested_at: jiff::Timestamp::now(), grace_seconds });
        vec![Pod { deletion, ..of_api("p") }]
    };
    bed.source.set(vec![of_api("p")]);
    bed.until_ready(&[of_api("p")]).await;
    bed.runtime.is_deaf("app");
    bed.source.set(ends(1000));
    bed.until("told to end", |bed| bed.runtime.calls("stop") > 0).await;
    let bed = bed.restart().await;
    bed.source.set(ends(1000));
    let stops = bed.runtime.calls("stop");
    bed.until("told again", |bed| bed.runtime.calls("stop") > stops).await;
    bed.source.set(ends(1));
    bed.until("it ended", |bed| bed.runtime.container("p", "app").is_none()).await;
}
