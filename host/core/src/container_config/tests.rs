//! Containers' configurations, case by case: commands, mounts, users, limits, what is refused.

use proptest::prelude::*;

use super::*;
use crate::container::{HostNamespaces, Resources};
use crate::pod::ContainerKind;
use crate::testing::{node, pod_from};

/// What the container `app` of a spec becomes, on a node where every volume that it names exists.
fn built(spec: &str) -> Result<ContainerConfig, String> {
    let pod = pod_from(spec);
    built_of(&pod, "app", "", &node())
}

fn built_of(pod: &Pod, name: &str, image_user: &str, node: &NodeFacts) -> Result<ContainerConfig, String> {
    let container = pod.container(name).unwrap();
    let files = files(pod);
    let env = [("A".to_owned(), "1".to_owned()), ("EMPTY".to_owned(), String::new())];
    let images = images(pod);
    let wanted = sub_paths(pod, container, &images, &env, &files).map_err(|error| error.to_string())?;
    let opened = |sub_path: &SubPath| (sub_path.index, PathBuf::from(format!("/opened/{}", sub_path.path)));
    build(&ContainerInput {
        pod,
        container,
        node,
        attempt: 3,
        sandbox_id: "sandbox-id",
        image: &image(image_user),
        env: &env,
        files: &files,
        image_volumes: &images,
        sub_paths: &wanted.iter().map(opened).collect(),
        seccomp_profiles: &BTreeMap::new(),
        termination_file: Some(Path::new("/pods/uid/app/message")),
        log_path: Path::new("/var/log/pods/x/app/3.log"),
    })
    .map_err(|error| error.to_string())
}

fn files(pod: &Pod) -> PodFiles {
    let on_disk = |volume: &&v1::Volume| volume.image.as_ref().is_none_or(|image| image.pull_policy.is_some());
    let names = pod.spec().volumes.iter().flatten().filter(on_disk).map(|volume| volume.name.clone());
    PodFiles {
        volumes: names.map(|name| (name.clone(), PathBuf::from(format!("/volumes/{name}")))).collect(),
        resolv_conf: PathBuf::from("/pods/uid/resolv.conf"),
        hosts: PathBuf::from("/pods/uid/etc-hosts"),
        messages: PathBuf::from("/pods/uid/containers"),
    }
}

/// The images of a pod's image volumes; those with a pull policy are taken to be unpacked.
fn images(pod: &Pod) -> BTreeMap<String, String> {
    let volumes = pod.spec().volumes.iter().flatten();
    let with_image =
        volumes.filter_map(|volume| Some((volume.name.clone(), volume.image.as_ref()?.reference.clone()?)));
    with_image.collect()
}

fn image(user: &str) -> Image {
    Image { id: "sha256:1".to_owned(), repo_digests: Vec::new(), user: user.to_owned(), size: 1 }
}

/// Mounts as `source target`, with `ro` and the propagation where they are not the usual.
fn mounts_of(spec: &str) -> Result<Vec<String>, String> {
    let show = |mount: &Mount| {
        let read_only = match (mount.read_only, mount.recursive) {
            (true, true) => " rro",
            (true, false) => " ro",
            _ => "",
        };
        let propagation = match mount.propagation {
            Propagation::Private => "",
            Propagation::HostToContainer => " rslave",
            Propagation::Bidirectional => " rshared",
        };
        let source = match &mount.source {
            MountSource::Path(path) | MountSource::HostPath(path) => path.display().to_string(),
            MountSource::Image { id, sub_path } => format!("image:{id}:{}", sub_path.as_deref().unwrap_or_default()),
        };
        format!("{source} {}{read_only}{propagation}", mount.target)
    };
    Ok(built(spec)?.mounts.iter().map(show).collect())
}

const HOSTS: &str = "/pods/uid/etc-hosts /etc/hosts";
const RESOLV: &str = "/pods/uid/resolv.conf /etc/resolv.conf";
const MESSAGE: &str = "/pods/uid/app/message /dev/termination-log";

#[test]
fn a_plain_container() {
    let config = built("containers: [{name: app, image: busybox}]").unwrap();
    assert_eq!((config.name.as_str(), config.kind, config.attempt), ("app", ContainerKind::App, 3));
    assert_eq!((config.image.as_str(), config.sandbox_id.as_str()), ("sha256:1", "sandbox-id"));
    assert_eq!((config.command, config.args, config.working_dir), (None, None, None));
    assert_eq!(config.env, ["A=1", "EMPTY="]);
    assert_eq!(config.resources, Resources { cpu_shares: 2, ..Resources::default() });
    assert_eq!(config.oom_score_adj, 1000);
    assert_eq!(config.cgroup_parent.as_deref(), Some("/kubepods/besteffort/poduid"));
    assert_eq!((config.user, config.groups), (None, Vec::new()));
    assert_eq!(config.security_options, ["seccomp=unconfined"]);
    assert_eq!(config.host, HostNamespaces::default());
    assert_eq!(config.labels[labels::IMAGE], "busybox");
    assert_eq!(config.labels[labels::TERMINATION_FILE], "/pods/uid/app/message");
    assert_eq!(config.labels[labels::LOG_PATH], "/var/log/pods/x/app/3.log");
    assert_eq!((config.stop_signal, config.runtime), (None, None));
}

#[test]
fn everything_that_a_spec_says() {
    let config = built(
        "{hostPID: true, hostNetwork: true, securityContext: {fsGroup: 9, runAsGroup: 8},
          containers: [{name: app, image: i, command: [$(A), $(NO), $$(A)], args: ['x$(A)'], workingDir: /w,
            stdin: true, stdinOnce: true, tty: true, lifecycle: {stopSignal: SIGUSR1},
            resources: {limits: {cpu: 500m, memory: 64Mi}},
            securityContext: {runAsUser: 7, privileged: true, readOnlyRootFilesystem: true, procMount: Unmasked,
              allowPrivilegeEscalation: false, capabilities: {add: [CAP_SYS_TIME], drop: [ALL]}}}]}",
    )
    .unwrap();
    assert_eq!(config.command.unwrap(), ["1", "$(NO)", "$(A)"]);
    assert_eq!(config.args.unwrap(), ["x1"]);
    assert_eq!(config.working_dir.as_deref(), Some("/w"));
    assert!(config.stdin && config.stdin_once && config.tty);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGUSR1"));
    assert_eq!((config.resources.cpu_quota, config.resources.memory), (50_000, 64 << 20));
    assert_eq!(config.oom_score_adj, -997);
    assert_eq!((config.user.as_deref(), config.groups), (Some("7:8"), vec![9]));
    assert!(config.privileged && config.read_only_rootfs && config.unmasked_proc);
    assert_eq!((config.cap_add, config.cap_drop), (vec!["SYS_TIME".to_owned()], vec!["ALL".to_owned()]));
    assert_eq!(config.security_options, ["no-new-privileges", "seccomp=unconfined"]);
    assert_eq!(config.host, HostNamespaces { network: true, pid: true, ipc: false });
}

#[test]
fn mounts_in_order_then_ours() {
    let spec = "{volumes: [{name: e, emptyDir: {}}, {name: c, configMap: {name: x}}, {name: h, hostPath: {path: /h}}],
        containers: [{name: app, volumeMounts: [
            {name: e, mountPath: /data/}, {name: c, mountPath: config}, {name: h, mountPath: /h, readOnly: true},
            {name: h, mountPath: /s, mountPropagation: HostToContainer},
            {name: h, mountPath: /b, mountPropagation: Bidirectional}, {name: h, mountPath: /n, mountPropagation: None},
            {name: h, mountPath: /i, readOnly: true, recursiveReadOnly: IfPossible}]}]}";
    assert_eq!(
        mounts_of(spec).unwrap(),
        [
            "/volumes/e /data",
            "/volumes/c /config ro",
            "/volumes/h /h ro",
            "/volumes/h /s rslave",
            "/volumes/h /b rshared",
            "/volumes/h /n",
            "/volumes/h /i ro",
            HOSTS,
            RESOLV,
            MESSAGE,
        ]
    );
}

#[test]
fn what_is_mounted_below_is_read_only_where_that_can_be() {
    let mode = |mode: &str, more: &str, recursive_read_only: bool| {
        let mount = format!("{{name: h, mountPath: /h, readOnly: true, recursiveReadOnly: {mode}}}");
        let pod = pod_from(&format!("{{containers: [{{name: a, volumeMounts: [{mount}]}}]{more}}}"));
        let node = NodeFacts { recursive_read_only, ..node() };
        is_recursive(&pod, &node, &pod.spec().containers[0].volume_mounts.as_ref().unwrap()[0]).ok()
    };
    for (name, can, cannot) in
        [("Enabled", Some(true), None), ("IfPossible", Some(true), Some(false)), ("Disabled", Some(false), Some(false))]
    {
        assert_eq!((mode(name, "", true), mode(name, "", false)), (can, cannot), "{name}");
        // What another runtime can do is not known.
        assert_eq!(mode(name, ", runtimeClassName: other", true), cannot, "{name}");
    }
}

#[test]
fn a_container_carries_which_of_its_mounts_are_wholly_read_only() {
    let mode = "readOnly: true, recursiveReadOnly: IfPossible";
    let mounts = format!("{{name: e, mountPath: /a, readOnly: true}}, {{name: e, mountPath: /b, {mode}}}");
    let pod = pod_from(&format!(
        "{{volumes: [{{name: e, emptyDir: {{}}}}], containers: [{{name: app, volumeMounts: [{mounts}]}}]}}"
    ));
    for (recursive_read_only, wholly) in [(true, vec![1]), (false, Vec::new())] {
        let node = NodeFacts { recursive_read_only, ..node() };
        let labels = built_of(&pod, "app", "", &node).unwrap().labels;
        assert_eq!(labels::parse(&labels, &node.root_id).unwrap().recursive, Some(wholly));
    }
}

#[test]
fn what_the_container_mounts_itself_is_left_to_it() {
    let spec = "{volumes: [{name: e, emptyDir: {}}], containers: [{name: app, terminationMessagePath: /log/message,
        volumeMounts: [{name: e, mountPath: /etc/hosts}, {name: e, mountPath: /etc//resolv.conf/}]}]}";
    let message = "/pods/uid/app/message /log/message";
    assert_eq!(mounts_of(spec).unwrap(), ["/volumes/e /etc/hosts", "/volumes/e /etc/resolv.conf", message]);
    let all = "{volumes: [{name: e, emptyDir: {}}], containers: [{name: app,
        volumeMounts: [{name: e, mountPath: /dev/termination-log}]}]}";
    assert_eq!(mounts_of(all).unwrap(), ["/volumes/e /dev/termination-log", HOSTS, RESOLV]);
}

#[test]
fn parts_of_volumes() {
    let spec = |mount: &str| {
        format!(
            "{{volumes: [{{name: e, emptyDir: {{}}}}], containers: [{{name: app, volumeMounts: [
               {{name: e, mountPath: /a}}, {{name: e, mountPath: /b, {mount}}}]}}]}}"
        )
    };
    assert_eq!(mounts_of(&spec("subPath: x/y")).unwrap()[1], "/opened/x/y /b");
    assert_eq!(mounts_of(&spec("subPathExpr: x-$(A)")).unwrap()[1], "/opened/x-1 /b");
    assert_eq!(mounts_of(&spec("subPath: $(A)")).unwrap()[1], "/opened/$(A) /b");
    assert_eq!(mounts_of(&spec("subPath: ''")).unwrap()[1], "/volumes/e /b");
    let place = "(volumeMounts[1] of container \"app\" in pod ns/pod)";
    assert_eq!(
        mounts_of(&spec("subPath: /etc")),
        Err(format!("error SubPath `/etc` must not be an absolute path {place}"))
    );
    assert_eq!(
        mounts_of(&spec("subPath: a/../../b")),
        Err(format!("unable to provision SubPath `a/../../b`: must not contain '..' {place}"))
    );
    assert_eq!(
        mounts_of(&spec("subPathExpr: $(NO)/$(EMPTY)")),
        Err(format!("missing value for EMPTY, NO in subPathExpr \"$(NO)/$(EMPTY)\" {place}"))
    );
}

#[test]
fn sub_paths_say_all_that_opening_them_needs() {
    let pod = pod_from(
        "{volumes: [{name: e, emptyDir: {}}], containers: [{name: app, volumeMounts: [
           {name: e, mountPath: /a}, {name: e, mountPath: /b, subPath: x}]}]}",
    );
    let wanted = sub_paths(&pod, pod.container("app").unwrap(), &BTreeMap::new(), &[], &files(&pod)).unwrap();
    let expected = SubPath {
        volume: "e".to_owned(),
        root: PathBuf::from("/volumes/e"),
        path: "x".to_owned(),
        container: "app".to_owned(),
        index: 1,
    };
    assert_eq!(wanted, [expected]);
}

#[test]
fn a_sub_path_that_was_not_opened_is_never_the_whole_volume() {
    let pod = pod_from(
        "{volumes: [{name: e, emptyDir: {}}], containers: [{name: app, volumeMounts: [
           {name: e, mountPath: /b, subPath: x}]}]}",
    );
    let built = build(&ContainerInput {
        pod: &pod,
        container: pod.container("app").unwrap(),
        node: &node(),
        attempt: 0,
        sandbox_id: "s",
        image: &image(""),
        env: &[],
        files: &files(&pod),
        image_volumes: &BTreeMap::new(),
        sub_paths: &BTreeMap::new(),
        seccomp_profiles: &BTreeMap::new(),
        termination_file: None,
        log_path: Path::new("/l"),
    });
    assert!(built.unwrap_err().to_string().starts_with("failed to prepare subPath"));
}

#[test]
fn image_volumes_are_mounted_by_the_runtime_or_bound_where_they_are_unpacked() {
    let spec = "{volumes: [{name: i, image: {reference: x}}, {name: u, image: {reference: y, pullPolicy: Never}}],
       containers: [{name: app, volumeMounts: [
         {name: i, mountPath: /a}, {name: i, mountPath: /b, subPath: deep/er}, {name: i, mountPath: /e, subPathExpr: $(A)},
         {name: u, mountPath: /c}, {name: u, mountPath: /d, subPath: s, readOnly: true}]}]}";
    let mounts = mounts_of(spec).unwrap();
    let expected = ["image:x: /a ro", "image:x:deep/er /b ro", "image:x:1 /e ro", "/volumes/u /c", "/opened/s /d"];
    assert_eq!(mounts[..5], expected);
    let labels = built(spec).unwrap().labels;
    assert_eq!(labels[labels::IMAGES], "x,y");
    let out = spec.replace("deep/er", "../x");
    assert!(mounts_of(&out).unwrap_err().contains("must not contain '..'"));
    assert_eq!(built("{containers: [{name: app}]}").unwrap().labels[labels::IMAGES], "");
}

#[test]
fn problems_say_their_field() {
    let volume = "volumes: [{name: e, emptyDir: {}}]";
    let cases = [
        (
            format!("{{{volume}, containers: [{{name: app, volumeMounts: [{{name: no, mountPath: /a}}]}}]}}"),
            "cannot find volume \"no\" to mount into container \"app\"",
        ),
        (
            format!(
                "{{{volume}, containers: [{{name: app, volumeMounts: [{{name: e, mountPath: /a}}, {{name: e, mountPath: /a/}}]}}]}}"
            ),
            "volumeMounts[1].mountPath of container \"app\": \"/a\" is mounted twice",
        ),
        (
            format!(
                "{{{volume}, containers: [{{name: app, volumeMounts: [{{name: e, mountPath: /a, mountPropagation: Odd}}]}}]}}"
            ),
            "volumeMounts[0] of container \"app\": invalid MountPropagation mode: \"Odd\"",
        ),
        (
            format!(
                "{{{volume}, containers: [{{name: app, volumeMounts: [{{name: e, mountPath: /a, readOnly: true, recursiveReadOnly: Enabled}}]}}]}}"
            ),
            "failed to resolve recursive read-only mode: volume \"e\" requested recursive read-only mode, but it is not \
             supported by the runtime: that is Docker's own from version 25 on, with Linux 5.12 or later (volumeMounts[0] of \
             container \"app\")",
        ),
        (
            format!("{{{volume}, containers: [{{name: app, volumeMounts: [{{name: e, mountPath: ./}}]}}]}}"),
            "volumeMounts[0] of container \"app\": mountPath \"./\" is the container's root",
        ),
        (
            "containers: [{name: app, volumeDevices: [{name: d, devicePath: /dev/x}]}]".to_owned(),
            "volumeDevices of container \"app\" are not supported",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(built(&spec).unwrap_err(), expected);
    }
}

#[test]
fn the_images_user_counts() {
    let pod = pod_from("{securityContext: {runAsNonRoot: true}, containers: [{name: app}]}");
    assert!(built_of(&pod, "app", "", &node()).unwrap_err().contains("image will run as root"));
    assert_eq!(built_of(&pod, "app", "1000:1000", &node()).unwrap().user, None);
    let pod = pod_from("{securityContext: {runAsGroup: 5}, containers: [{name: app}]}");
    assert_eq!(built_of(&pod, "app", "1000:1000", &node()).unwrap().user.as_deref(), Some("1000:5"));
}

proptest! {
    #[test]
    fn no_two_mounts_share_a_target(paths in proptest::collection::vec(
        prop_oneof![Just("/etc/hosts".to_owned()), Just("/etc/./hosts/".to_owned()), Just("/dev/termination-log".to_owned()),
                    Just("etc/resolv.conf".to_owned()), "[/ab.]{1,6}"], 0..5), message in "(/[ab]|/etc/hosts)?") {
        let mounts: Vec<String> = paths.iter().map(|path| format!("{{name: e, mountPath: '{path}'}}")).collect();
        let spec = format!(
            "{{volumes: [{{name: e, emptyDir: {{}}}}], containers: [{{name: app, terminationMessagePath: '{message}',
               volumeMounts: [{}]}}]}}",
            mounts.join(",")
        );
        if let Ok(config) = built(&spec) {
            let mut targets: Vec<&String> = config.mounts.iter().map(|mount| &mount.target).collect();
            prop_assert!(targets.iter().all(|target| target.starts_with('/')));
            let all = targets.len();
            targets.sort();
            targets.dedup();
            prop_assert_eq!(targets.len(), all);
        }
    }
}
