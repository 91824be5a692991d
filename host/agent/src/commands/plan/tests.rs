//! What a plan says.
#![allow(clippy::unwrap_used)]

use longshore_core::backoff::Backoff;
use longshore_core::container::SandboxNetwork;
use longshore_core::manifest::{self, Origin};
use longshore_core::observed::{Container, ContainerState, Sandbox, SandboxState};
use longshore_core::plan::Busy;
use longshore_core::pod::ContainerKind;
use longshore_core::ports::sources::SourceSnapshot;
use longshore_core::record::{ContainerRecord, FailedStart, POST_START_ERROR, PodRecord, Terminal};
use longshore_core::view::Standing;
use longshore_filesystem::FolderObjects;

use super::pods::text;
use super::*;
use crate::config::{ConfigPath, DaemonFlags, Surroundings};
use crate::print::samples::now;

fn pods_of(yaml: &str) -> Vec<Pod> {
    let origin = Origin { source: Source::File, node_name: "node1".to_owned(), place: "/m/web.yaml".to_owned() };
    manifest::parse(yaml.as_bytes(), &origin).pods
}

fn desired_of(pods: Vec<Pod>) -> Desired {
    let snapshot = SourceSnapshot { pods, problems: Vec::new() };
    desired::merge(&BTreeMap::from([(Source::File, Some(snapshot))]))
}

fn world(wanted: Vec<Pod>, stored: &[&Pod]) -> World {
    let (config, _) = Config::build(&DaemonFlags::default(), ConfigPath::None, &Surroundings::default());
    let config = Config { root_dir: "/".into(), ..config };
    let stored = stored.iter().map(|pod| {
        let record = PodRecord { start_time: Some(now()), ..PodRecord::default() };
        let stored = StoredPod {
            source: pod.source.clone(),
            object: (*pod.object).clone(),
            hashes: pod.hashes.clone(),
            sandbox_hash: pod.sandbox_hash.clone(),
            record,
        };
        (pod.id.uid.clone(), stored)
    });
    World {
        desired: desired_of(wanted),
        stored: stored.collect(),
        observed: HashMap::new(),
        views: HashMap::new(),
        holds: HashMap::new(),
        unmounted: HashMap::new(),
        facts: facts::estimate(&config, "node1".to_owned()).unwrap(),
        crash_loop: crash_loop(&config),
        going_down: false,
        drained: false,
        pressure: Pressure::default(),
        in_cluster: false,
        now: now(),
    }
}

fn gate(objects: &FolderObjects) -> Gate<'_> {
    Gate { plugins: None, objects, in_cluster: false }
}

/// Its sandbox and its container run.
fn running(pod: &Pod) -> ObservedPod {
    let id = pod.id.clone();
    let sandbox = Sandbox {
        id: "sandbox".to_owned(),
        pod: id.clone(),
        attempt: 0,
        hash: pod.sandbox_hash.clone(),
        qos: None,
        created_at: now(),
        state: SandboxState::Running,
        network: SandboxNetwork::Default,
        ips: vec!["172.17.0.2".parse().unwrap()],
        pid: None,
    };
    let container = Container {
        id: "container".to_owned(),
        pod: id,
        name: "main".to_owned(),
        kind: ContainerKind::App,
        attempt: 0,
        hash: pod.hashes["main"].clone(),
        sandbox_id: "sandbox".to_owned(),
        image: "nginx".to_owned(),
        image_id: String::new(),
        volume_images: Vec::new(),
        recursive_read_only: None,
        created_at: now(),
        state: ContainerState::Running { started_at: now(), pid: 1 },
        runtime_log: None,
        termination_message_file: None,
        grace_seconds: None,
        resources: None,
        user: None,
    };
    ObservedPod { sandboxes: vec![sandbox], containers: vec![container], unseen: false }
}

/// As the running agent has it.
fn view(pod: &Pod, standing: Standing) -> PodView {
    let object = (*pod.object).clone();
    PodView {
        id: pod.id.clone(),
        source: Source::File,
        object,
        sandbox: None,
        steps: Vec::new(),
        probes: Vec::new(),
        standing,
    }
}

fn record_of<'a>(world: &'a mut World, pod: &Pod) -> &'a mut PodRecord {
    &mut world.stored.get_mut(&pod.id.uid).unwrap().record
}

const WEB: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, uid: one}
spec: {containers: [{name: main, image: nginx}]}
";

/// The same, with a volume.
const MOUNTING: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, uid: one}
spec: {containers: [{name: main, image: nginx, volumeMounts: [{name: v, mountPath: /v}]}]}
";

#[test]
fn a_new_pod_step_by_step() {
    insta::assert_snapshot!(text(&world(pods_of(WEB), &[])));
}

#[test]
fn a_changed_pod_waits_for_the_former_one() {
    let old = pods_of(&WEB.replace("uid: one", "uid: zero"));
    insta::assert_snapshot!(text(&world(pods_of(WEB), &[&old[0]])));
}

#[tokio::test]
async fn what_the_node_cannot_do_or_refuses() {
    let claim = MOUNTING.replace("spec: {", "spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: c}}], ");
    let foreign = "
apiVersion: v1
kind: Pod
metadata: {name: win, uid: two}
spec: {os: {name: windows}, containers: [{name: main, image: nginx}]}
";
    let all = pods_of(&claim).into_iter().chain(pods_of(foreign)).collect();
    let mut world = world(all, &[]);
    world.ask(&gate(&FolderObjects::default()), None).await.unwrap();
    insta::assert_snapshot!(text(&world));
}

#[test]
fn what_runs_without_a_record_ends_before_the_new_pod_of_its_name() {
    let old = pods_of(&WEB.replace("uid: one", "uid: zero")).remove(0);
    let mut world = world(pods_of(WEB), &[]);
    world.observed.insert("zero".to_owned(), running(&old));
    let text = text(&world);
    assert!(text.contains("stop container main"), "{text}");
    assert!(text.contains("waits: the former pod of that name (zero) ends first"), "{text}");
}

#[test]
fn what_a_running_agent_knows_is_what_is_waited_for() {
    let pods = pods_of(WEB);
    let mut world = world(pods.clone(), &[&pods[0]]);
    let standing = Standing { blocked: Some("no such plugin".to_owned()), ..Standing::default() };
    world.views.insert("one".to_owned(), view(&pods[0], standing));
    let blocked = text(&world);
    assert!(blocked.contains("the pod waits: ContainerCreating: no such plugin\nnothing to do"), "{blocked}");
    // It speaks of another definition of the pod: that says nothing of this one.
    world.views.get_mut("one").unwrap().object.spec.as_mut().unwrap().containers[0].image = Some("other".to_owned());
    assert!(text(&world).contains("create sandbox"));

    world.observed.insert("one".to_owned(), running(&pods[0]));
    let stopping = [("container".to_owned(), now())].into();
    let standing = Standing { blocked: None, busy: Busy { stopping, ..Busy::default() } };
    world.views.insert("one".to_owned(), view(&pods[0], standing));
    world.desired.pods.clear();
    insta::assert_snapshot!(text(&world), @r#"
    pod default/web-node1 (one)
      container main is being stopped, and killed at 2026-01-01T12:00:00Z
    nothing to do; 0 pods up to date
    "#);
    let busy = Busy { post_start: ["container".to_owned()].into(), ..Busy::default() };
    world.views.insert("one".to_owned(), view(&pods[0], Standing { blocked: None, busy }));
    world.desired.pods.insert("one".to_owned(), pods[0].clone());
    assert!(text(&world).contains("  container main: its postStart hook runs\n"), "{}", text(&world));
    let (id, message) = ("container".to_owned(), String::new());
    let failed_start = FailedStart { id: id.clone(), reason: POST_START_ERROR.to_owned(), message };
    let known = ContainerRecord { id: Some(id), failed_start: Some(failed_start), ..ContainerRecord::default() };
    record_of(&mut world, &pods[0]).containers.insert("main".to_owned(), known);
    assert!(text(&world).contains("its postStart hook failed, it is to be stopped\n"), "{}", text(&world));
    record_of(&mut world, &pods[0]).containers.clear();
    let pulling = [("main".to_owned(), "nginx".to_owned())].into();
    let standing = Standing { blocked: None, busy: Busy { pulling, ..Busy::default() } };
    world.views.insert("one".to_owned(), view(&pods[0], standing));
    world.observed.get_mut("one").unwrap().containers.clear();
    insta::assert_snapshot!(text(&world), @r#"
    pod default/web-node1 (one)
      container main waits: ContainerCreating: pulling image "nginx"
    nothing to do; 0 pods up to date
    "#);
}

#[test]
fn a_new_pod_waits_for_the_room_of_one_that_ends() {
    let large = "{containers: [{name: main, image: nginx, resources: {requests: {memory: 1Gi}}}]}";
    let large = |uid: &str| {
        let text = WEB.replace("{containers: [{name: main, image: nginx}]}", large);
        pods_of(&text.replace("name: web, uid: one", &format!("name: {uid}, uid: {uid}"))).remove(0)
    };
    let mut world = world(vec![large("two")], &[&large("one")]);
    world.facts.allocatable_memory = 3 << 29;
    world.observed.insert("one".to_owned(), running(&large("one")));
    insta::assert_snapshot!(text(&world), @r#"
    pod default/one-node1 (one)
      stop container main container within 30 s: the pod is deleted
    pod default/two-node1 (two)
      the pod waits: ContainerCreating: waiting for pods that are stopping to free resources: default/one-node1
    1 action; 0 pods up to date
    "#);
    // One that nobody asks to end keeps its own: on a node alone every pod is critical.
    world.desired = desired_of(vec![large("one"), large("two")]);
    insta::assert_snapshot!(text(&world), @r#"
    pod default/two-node1 (two)
      reject: the pod would be Failed (OutOfmemory: Node didn't have enough resource: memory, requested: 1073741824, used: 1073741824, capacity: 1610612736)
    nothing to do; 1 pod up to date
    "#);
    // Of two new ones each would have room, but not both.
    world.stored.clear();
    world.observed.clear();
    let both = text(&world);
    assert!(both.contains("create sandbox") && both.contains("reject: the pod would be Failed (OutOfmemory"), "{both}");
}

#[test]
fn a_node_that_goes_down_or_is_short_of_something_takes_no_pod() {
    let mut world = world(pods_of(WEB), &[]);
    world.going_down = true;
    assert!(text(&world).contains("reject: the pod would be Failed (NodeShutdown"), "{}", text(&world));
    assert!(!text(&world).contains("--cancel"));
    world.drained = true;
    assert!(text(&world).starts_with("this node is drained: ") && text(&world).contains("--cancel"));
    // Those that are there are their workers' to end.
    let pods = pods_of(WEB);
    world.views.insert("one".to_owned(), view(&pods[0], Standing::default()));
    assert!(!text(&world).contains("reject"));
}

#[test]
fn an_agent_that_comes_up_has_pods_run_again_that_ended_for_the_machines_end() {
    let pods = pods_of(WEB);
    let mut world = world(pods.clone(), &[&pods[0]]);
    let ended = |reason: &str| Terminal {
        phase: "Failed".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(String::new()),
    };
    *record_of(&mut world, &pods[0]) =
        PodRecord { start_time: Some(now()), terminal: Some(ended("Evicted")), released: true, ..PodRecord::default() };
    world.comes_up();
    assert_eq!(text(&world), "nothing to do; 1 pod up to date\n");
    record_of(&mut world, &pods[0]).terminal = Some(ended("Terminated"));
    assert_eq!(text(&world), "nothing to do; 1 pod up to date\n");
    world.comes_up();
    assert!(text(&world).contains("create sandbox"), "{}", text(&world));
}

#[test]
fn back_offs_say_until_when() {
    let pods = pods_of(WEB);
    let mut world = world(pods.clone(), &[&pods[0]]);
    let pull = Backoff::after(None, now(), "ErrImagePull", "no such image");
    let mount = Backoff::after(None, now(), "ContainerCreating", "no such disk");
    record_of(&mut world, &pods[0]).backoffs.insert("image/nginx".to_owned(), pull);
    let image = text(&world);
    record_of(&mut world, &pods[0]).backoffs = [("pod".to_owned(), mount)].into();
    insta::assert_snapshot!(image + &text(&world), @r#"
    pod default/web-node1 (one)
      prepare folder, cgroup and volumes: containers are about to start
      create sandbox 0: the pod has no sandbox
      start sandbox 0: the pod has no sandbox
      container main waits: ErrImagePull: no such image, until 2026-01-01T12:00:10Z
    3 actions; 0 pods up to date
    pod default/web-node1 (one)
      the pod waits: ContainerCreating: no such disk, until 2026-01-01T12:00:01Z
    nothing to do; 0 pods up to date
    "#);
}

#[tokio::test]
async fn a_pod_without_its_objects_waits_for_them() {
    let volume = "spec: {volumes: [{name: v, secret: {secretName: lost}}], ";
    let mut world = world(pods_of(&MOUNTING.replace("spec: {", volume)), &[]);
    world.ask(&gate(&FolderObjects::default()), None).await.unwrap();
    insta::assert_snapshot!(text(&world), @r#"
    pod default/web-node1 (one)
      the pod waits: ContainerCreating: MountVolume.SetUp failed for volume "v" : secret "lost" not found
    nothing to do; 0 pods up to date
    "#);
    world.unmounted.clear();
    world.in_cluster = true;
    world.ask(&Gate { in_cluster: true, ..gate(&FolderObjects::default()) }, None).await.unwrap();
    let of_a_cluster = text(&world);
    assert!(of_a_cluster.contains("static pods may not reference secrets"), "{of_a_cluster}");
}

#[tokio::test]
async fn before_the_first_start_a_folder_that_need_not_be_there_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let (config, _) = Config::build(&DaemonFlags::default(), ConfigPath::None, &Surroundings::default());
    let (root_dir, manifests) = (folder.path().join("root"), folder.path().join("manifests"));
    let mut config = Config { root_dir, manifests, ..config };
    let cli = <crate::cli::Cli as clap::Parser>::try_parse_from(["longshore", "plan"]).unwrap();
    let Some(crate::cli::Command::Plan(arguments)) = cli.command else { panic!("a plan") };
    plan(&config, &arguments).await.unwrap();
    // One that was named must be there.
    config.manifests_optional = false;
    let error = plan(&config, &arguments).await.unwrap_err();
    assert!(format!("{error:#}").contains("never taken for an empty one"), "{error:#}");
}
