//! What a container's status tells of it beside its state: messages, sizes; and the conditions of a resize.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::*;
use crate::container::Resources;
use crate::record::FailedStart;
use crate::resize::{Pending, Progress};

#[test]
fn a_termination_message_is_kept_with_the_exit() {
    let mut pod = one("Never").with("a", 0, running(50));
    pod.observed.containers[0].state = ended(1);
    let messages = BTreeMap::from([("a-0".to_owned(), "out of cheese".to_owned())]);
    remember(&mut pod.record, &pod.pod, &pod.observed, &messages, pod.now);
    let message = |pod: &mut Case| of(&pod.status(), "a").state.clone().unwrap().terminated.unwrap().message;
    assert_eq!(message(&mut pod).as_deref(), Some("out of cheese"));
    let mut pod = pod.gone("a");
    assert_eq!(message(&mut pod).as_deref(), Some("out of cheese"));
}

#[test]
fn that_there_was_no_memory_may_be_told_after_the_end() {
    let mut pod = one("Never").with("a", 0, running(50));
    pod.observed.containers[0].state = ended(137);
    let messages = BTreeMap::from([("a-0".to_owned(), "last words".to_owned())]);
    remember(&mut pod.record, &pod.pod, &pod.observed, &messages, pod.now);
    let ContainerState::Exited(exit) = &mut pod.observed.containers[0].state else { panic!("it ended") };
    exit.reason = Exit::OUT_OF_MEMORY.to_owned();
    remember(&mut pod.record, &pod.pod, &pod.observed, &BTreeMap::new(), pod.now);
    let ended = of(&pod.status(), "a").state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.reason.as_deref(), ended.message.as_deref()), (Some("OOMKilled"), Some("last words")));
}

#[test]
fn an_init_container_that_lost_a_process_for_want_of_memory_did_not_do_its_work() {
    for (policy, made) in [("Always", vec!["create container init, attempt 1"]), ("Never", vec![])] {
        let killed = Exit { reason: Exit::OUT_OF_MEMORY.to_owned(), ..exit(0, 50, 60) };
        let mut pod = init(policy).with("init", 0, ContainerState::Exited(killed));
        let plan = pod.plan();
        let actions: Vec<String> = plan.actions().map(|planned| planned.action.to_string()).collect();
        let creations: Vec<&str> = actions.iter().map(String::as_str).filter(|it| it.starts_with("create")).collect();
        assert_eq!(creations, made, "{policy}");
        let status = pod.status();
        assert_eq!(status.phase.as_deref(), Some(if made.is_empty() { "Failed" } else { "Pending" }));
        assert!(told(&status, "Initialized").starts_with("False"), "{policy}");
    }
}

#[test]
fn a_start_that_failed_is_shown_before_its_back_off() {
    let failed =
        || Some(FailedStart { id: "a-0".to_owned(), reason: "RunContainerError".to_owned(), message: "no".to_owned() });
    let state = |policy: &str, second: i64, restarts: u32| {
        let mut pod = one(policy).with("a", 0, ended(127));
        pod.now = at(second);
        (pod.known("a").delayed_restarts, pod.known("a").failed_start) = (restarts, failed());
        states(&pod.status(), "a")
    };
    let shown = ("waiting RunContainerError".to_owned(), "ended 127 Error".to_owned());
    assert_eq!(state("Always", 61, 0), shown, "as it is started again at once");
    assert_eq!(state("Always", 61, 1), shown);
    assert_eq!(state("Always", 65, 1).0, "waiting CrashLoopBackOff");
    assert_eq!(state("Always", 70, 1).0, "ended 127 Error");
    assert_eq!(state("Never", 61, 0).0, "ended 127 Error");
    let mut pod = one("Always").with("a", 0, ended(127));
    pod.known("a").failed_start = failed();
    let pod = pod.with("a", 1, running(62));
    assert_eq!(pod.record.containers["a"].failed_start, None, "of another one than the newest");
}

#[test]
fn a_pod_that_was_initialized_stays_so_in_another_sandbox() {
    let mut pod = init("Always").with("init", 0, ended(0));
    assert_eq!(told(&pod.status(), "Initialized"), "True");
    pod.observed.sandboxes = vec![sandbox(1, SandboxState::Running)];
    let mut pod = pod.with("init", 1, running(90));
    assert_eq!(told(&pod.status(), "Initialized"), "True");
}

#[test]
fn the_first_init_container_counts_as_begun_at_the_pods_end() {
    let spec = "{containers: [{name: a, image: i}], initContainers: [{name: one, image: i}, {name: two, image: i}]}";
    let mut pod = case(spec);
    let reason = Some("DeadlineExceeded".to_owned());
    pod.record.terminal = Some(Terminal { phase: "Failed".to_owned(), reason, message: None });
    let status = pod.status();
    assert_eq!(states(&status, "one").0, "ended 137 ContainerStatusUnknown");
    assert_eq!(
        ["two", "a"].map(|name| states(&status, name).0),
        ["waiting PodInitializing", "waiting PodInitializing"]
    );
}

const SIZED: &str = "{containers: [{name: a, image: i, resources: {limits: {cpu: 200m, memory: 64Mi}, requests: {cpu: '0.1', memory: 32Mi}}}]}";

fn resources(pod: &mut Case) -> Value {
    let status = pod.status();
    let of = of(&status, "a");
    json!([of.allocated_resources, of.resources])
}

#[test]
fn what_was_given_and_what_the_runtime_has() {
    assert_eq!(resources(&mut case(SIZED)), json!([null, null]), "nothing of what was never made");
    let given = json!({"cpu": "100m", "memory": "32Mi"});
    let mut pod = case(SIZED).with("a", 0, running(50));
    let all = json!({"requests": given, "limits": {"cpu": "200m", "memory": "64Mi"}});
    assert_eq!(resources(&mut pod), json!([given, all]));
    // Resized, and not yet done.
    pod.observed.containers[0].resources =
        Some(Resources { cpu_shares: 51, cpu_quota: 15_000, cpu_period: 100_000, memory: 48 << 20 });
    let has = json!({"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"cpu": "150m", "memory": "48Mi"}});
    assert_eq!(resources(&mut pod), json!([given, has]));
    pod.observed.containers[0].state = ended(0);
    assert_eq!(resources(&mut pod), json!([given, all]), "one that does not run has what it was given");
    let mut none = case("{containers: [{name: a, image: i}]}").with("a", 0, running(50));
    assert_eq!(resources(&mut none), json!([null, {}]), "an API server takes none for a node that cannot resize");
}

#[test]
fn a_pod_as_a_whole_has_what_its_containers_name_until_it_runs() {
    let disk = "{limits: {cpu: 200m, ephemeral-storage: 2Mi, x.io/y: 3}, requests: {cpu: 100m, ephemeral-storage: 1Mi, x.io/y: 3}}";
    let spec = format!("{{containers: [{{name: a, image: i, resources: {disk}}}, {{name: b, image: i}}]}}");
    let given = json!({"cpu": "100m", "ephemeral-storage": "1Mi", "x.io/y": "3"});
    let limits = json!({"cpu": "200m", "ephemeral-storage": "2Mi", "x.io/y": "3"});
    let of_pod = |pod: &mut Case| {
        let status = pod.status();
        json!([status.allocated_resources, status.resources])
    };
    assert_eq!(of_pod(&mut case(&spec)), json!([given, {"requests": given, "limits": limits}]));
    let mut up = case(&spec).with("a", 0, running(50)).with("b", 0, running(50));
    assert_eq!(of_pod(&mut up), json!([given, {"requests": {"cpu": "100m"}}]), "of a cgroup without limits");
}

#[test]
fn the_least_amounts_are_shown_as_given() {
    let tiny = SIZED.replace("200m", "5m").replace("0.1", "1m");
    let mut pod = case(&tiny).with("a", 0, running(50));
    pod.observed.containers[0].resources =
        Some(Resources { cpu_shares: 2, cpu_quota: 1000, cpu_period: 100_000, memory: 64 << 20 });
    let status = pod.status();
    let shown = of(&status, "a").resources.clone().unwrap();
    assert_eq!(shown.requests.unwrap()["cpu"], Quantity("1m".to_owned()));
    assert_eq!(shown.limits.unwrap()["cpu"], Quantity("5m".to_owned()));
}

#[test]
fn a_resize_is_a_condition_only_while_it_goes_on() {
    let mut pod = case(SIZED).with("a", 0, running(50));
    let of_resize = |pod: &mut Case| -> Vec<Value> {
        let conditions = pod.status().conditions.unwrap();
        let resize = conditions.iter().filter(|condition| condition.type_.starts_with("PodResize"));
        resize.map(|it| json!([it.type_, it.status, it.reason, it.message, it.observed_generation])).collect()
    };
    assert!(of_resize(&mut pod).is_empty());
    let (reason, message) = ("Deferred".to_owned(), "no room".to_owned());
    pod.record.resize.pending = Some(Pending { reason, message, generation: 3, since: at(900) });
    pod.record.resize.progress = Some(Progress { error: None, generation: 2, since: at(900) });
    let expected = [
        json!(["PodResizePending", "True", "Deferred", "no room", 3]),
        json!(["PodResizeInProgress", "True", null, null, 2]),
    ];
    assert_eq!(of_resize(&mut pod), expected);
    // What the API server was told is not taken for somebody else's.
    let mut object = (*pod.pod.object).clone();
    object.status = Some(pod.status());
    pod.pod.object = Arc::new(object);
    pod.record.resize = crate::resize::ResizeRecord::default();
    assert!(of_resize(&mut pod).is_empty());
}

#[test]
fn who_it_runs_as_and_how_volumes_are_mounted() {
    let mounts = "volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /r, readOnly: true}]";
    let mut pod = case(&format!("{{containers: [{{name: a, image: i, {mounts}}}]}}")).with("a", 0, running(50));
    let user = |uid| crate::observed::User { uid, gid: 2, groups: vec![2, 3] };
    pod.observed.containers[0].user = Some(user(1));
    pod.look();
    // What it makes of itself afterwards is its own.
    pod.observed.containers[0].user = Some(user(9));
    pod.look();
    let status = pod.status();
    let told = of(&status, "a");
    assert_eq!(json!(told.user), json!({"linux": {"uid": 1, "gid": 2, "supplementalGroups": [2, 3]}}));
    let read_only = json!({"name": "v", "mountPath": "/r", "readOnly": true, "recursiveReadOnly": "Disabled"});
    assert_eq!(json!(told.volume_mounts), json!([{"name": "v", "mountPath": "/v"}, read_only]));
}

#[test]
fn a_mount_is_told_as_it_was_made_whatever_the_node_can_do_by_now() {
    let mount = |path: &str| format!("{{name: v, mountPath: {path}, readOnly: true, recursiveReadOnly: IfPossible}}");
    let spec = format!("{{containers: [{{name: a, image: i, volumeMounts: [{}, {}]}}]}}", mount("/a"), mount("/b"));
    let modes = |pod: &mut Case| -> Vec<String> {
        let status = pod.status();
        let mounts = of(&status, "a").volume_mounts.iter().flatten();
        mounts.map(|mount| mount.recursive_read_only.clone().unwrap()).collect()
    };
    let mut pod = case(&spec);
    for (can, told) in [(false, "Disabled"), (true, "Enabled")] {
        pod.node.recursive_read_only = can;
        assert_eq!(modes(&mut pod), [told; 2], "none was made yet");
    }
    let mut pod = pod.with("a", 0, running(50));
    assert_eq!(modes(&mut pod), ["Enabled"; 2], "one of before that was kept");
    pod.observed.containers[0].recursive_read_only = Some(Vec::new());
    assert_eq!(modes(&mut pod), ["Disabled"; 2]);
    pod.observed.containers[0].recursive_read_only = Some(vec![1]);
    pod.node.recursive_read_only = false;
    assert_eq!(modes(&mut pod), ["Disabled", "Enabled"]);
}

#[test]
fn a_mount_of_an_image_says_which_it_is() {
    let spec =
        "{volumes: [{name: z, image: {reference: x}}, {name: b, image: {reference: y}}, {name: e, emptyDir: {}}],
        containers: [{name: a, image: i, volumeMounts: [{name: z, mountPath: /z}, {name: e, mountPath: /e},
            {name: b, mountPath: /b}, {name: z, mountPath: /part, subPath: part}]}]}";
    let mut pod = case(spec).with("a", 0, running(50));
    let images = |pod: &mut Case| -> Vec<Value> {
        let status = pod.status();
        let mounts = of(&status, "a").volume_mounts.clone().unwrap();
        mounts.iter().map(|mount| json!(mount)["volumeStatus"]["image"]["imageRef"].clone()).collect()
    };
    assert_eq!(images(&mut pod), vec![Value::Null; 4], "of one that another agent made it is not known");
    pod.observed.containers[0].id = "other".to_owned();
    pod.observed.containers[0].volume_images = vec!["sha256:b".to_owned(), "sha256:z".to_owned()];
    pod.look();
    let told = [json!("sha256:z"), Value::Null, json!("sha256:b"), json!("sha256:z")];
    assert_eq!(images(&mut pod), told);
    let mut pod = pod.gone("a");
    assert_eq!(images(&mut pod), told, "also once it is gone");
}

#[test]
fn containers_share_what_a_pod_may_say_at_its_end() {
    let spec = "{restartPolicy: Never, containers: [{name: d, image: i}, {name: c, image: i}, {name: b, image: i},
        {name: a, image: i}]}";
    let mut pod = case(spec).with("d", 0, running(50)).with("a", 0, running(50));
    for seen in &mut pod.observed.containers {
        seen.state = ended(1);
    }
    let messages = BTreeMap::from([
        ("d-0".to_owned(), "x".repeat(4096)),
        ("a-0".to_owned(), format!("x{}", "\u{20ac}".repeat(1200))),
    ]);
    remember(&mut pod.record, &pod.pod, &pod.observed, &messages, pod.now);
    let status = pod.status();
    let names: Vec<&str> = status.container_statuses.iter().flatten().map(|status| &*status.name).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
    let length = |name| of(&status, name).state.clone().unwrap().terminated.unwrap().message.unwrap().len();
    assert_eq!((length("d"), length("a")), (3072, 3070));
}
