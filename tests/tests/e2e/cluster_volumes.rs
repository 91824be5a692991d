//! PersistentVolumes behind pods' claims, and RuntimeClasses: what pods get of objects that are the whole cluster's.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::bed::{
    node::Node,
    pods::{SLEEP, container, id, is_ready, phase, pod, restarts, waiting, with},
};

const VOLUMES: &str = "/api/v1/persistentvolumes";
const CLASSES: &str = "/apis/node.k8s.io/v1/runtimeclasses";

/// A node with objects of the whole cluster, which end with the test.
struct World {
    node: Node,
    made: Vec<String>,
}

impl Drop for World {
    fn drop(&mut self) {
        for path in &self.made {
            self.node.cluster.delete(path, None);
        }
    }
}

impl World {
    fn start() -> Option<World> {
        Node::start().map(|node| World { node, made: Vec::new() })
    }

    /// A PersistentVolume for a claim of this test, made of that source.
    fn volume(&mut self, claim: &str, source: Value) {
        let name = format!("{}-{claim}", self.node.name);
        let spec = json!({
            "capacity": {"storage": "1Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": self.node.name, "name": claim},
        });
        let object = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": with(spec, source)});
        self.node.cluster.create(VOLUMES, &object);
        self.made.push(format!("{VOLUMES}/{name}"));
    }

    fn claim(&self, name: &str) {
        let object = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": claim_spec()});
        self.node.cluster.create(&self.node.all("persistentvolumeclaims"), &object);
    }

    fn class(&mut self, handler: &str) -> String {
        let name = format!("{}-{handler}", self.node.name);
        let object = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name},
            "handler": handler, "overhead": {"podFixed": {"cpu": "10m", "memory": "8Mi"}}});
        self.node.cluster.create(CLASSES, &object);
        self.made.push(format!("{CLASSES}/{name}"));
        name
    }

    /// A folder for a volume, on this machine.
    fn folder(&self, name: &str) -> String {
        let folder = self.node.folder.join(name);
        fs::create_dir(&folder).unwrap();
        folder.display().to_string()
    }
}

fn claim_spec() -> Value {
    json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Mi"}}})
}

/// A pod with that volume at `/v`.
fn with_volume(name: &str, volume: Value, more: Value) -> Value {
    let app = with(container("app", SLEEP), json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    let spec = json!({"volumes": [with(json!({"name": "v"}), volume)]});
    pod(name, json!([app]), with(spec, more))
}

fn of_claim(name: &str, claim: &str, more: Value) -> Value {
    with_volume(name, json!({"persistentVolumeClaim": {"claimName": claim}}), more)
}

#[test]
fn cluster_volumes_local_one_is_the_fs_groups_and_outlives_its_claims_deletion() {
    let Some(mut world) = World::start() else { return };
    let disk = world.folder("disk");
    let here = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [world.node.name]});
    let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}});
    world.volume("data", json!({"local": {"path": disk}, "nodeAffinity": affinity, "mountOptions": ["noexec"]}));
    world.claim("data");
    let node = &world.node;
    let user = json!({"securityContext": {"runAsUser": 1000, "fsGroup": 4321}});
    // The scheduler sees to it that the volume is where the pod is.
    let a = with(of_claim("a", "data", user.clone()), json!({"spec": node.selector()}));
    node.cluster.create(&node.all("pods"), &a);
    let a = node.wait_api_ready("a");
    assert_eq!(node.sh("a", "echo kept > /v/file && cat /v/file").1, "kept\n");
    let options = node.sh("a", "grep ' /v ' /proc/mounts").1;
    assert!(options.contains("noexec"), "the volume's own option: {options}");
    let file = fs::metadata(format!("{disk}/file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (1000, 4321));
    // Its claim stays as long as the pod, which goes on as if nothing had been said; another one gets nothing of it.
    node.cluster.delete(&node.one("persistentvolumeclaims", "data"), None);
    node.docker.kill(&id(&a, "app"), "KILL");
    node.wait_api("a", "restarted", |pod| is_ready(pod) && restarts(pod, "app") == 1);
    node.bind(&of_claim("b", "data", user));
    node.wait_api_event("b", "FailedMount", "being deleted");
    assert_eq!(node.sh("a", "cat /v/file").1, "kept\n");
}

#[test]
fn cluster_volumes_claim_is_waited_for_until_it_is_bound() {
    let Some(mut world) = World::start() else { return };
    let host = world.folder("host");
    fs::write(format!("{host}/word"), "here").unwrap();
    for claim in ["late", "driver"] {
        world.claim(claim);
    }
    world.node.bind(&of_claim("late", "late", json!({})));
    world.node.bind(&of_claim("none", "none", json!({})));
    let ephemeral = json!({"ephemeral": {"volumeClaimTemplate": {"spec": claim_spec()}}});
    world.node.bind(&with_volume("own", ephemeral, json!({})));
    world.node.wait_api_event("late", "FailedMount", "failed to process volumes=[v]: error processing PVC");
    world.node.wait_api_event("none", "FailedMount", "not found");
    world.volume("late", json!({"hostPath": {"path": host}}));
    world.volume("own-v", json!({"hostPath": {"path": host}}));
    for name in ["late", "own"] {
        world.node.wait_api_ready(name);
        assert_eq!(world.node.sh(name, "cat /v/word").1, "here");
    }
    // What needs a driver waits for ever, and says so.
    world.volume("driver", json!({"csi": {"driver": "example.com", "volumeHandle": "h"}}));
    world.node.bind(&of_claim("driver", "driver", json!({})));
    world.node.wait_api_event("driver", "FailedMount", "needs a driver");
    let driver = world.node.wait_api("driver", "waits", |pod| waiting(pod, "app") == "ContainerCreating");
    assert_eq!(phase(&driver), "Pending");
}

#[test]
fn cluster_runtime_class_names_the_runtime_and_its_overhead_counts() {
    let Some(mut world) = World::start() else { return };
    let [good, bad] = ["runc", "nowhere"].map(|handler| world.class(handler));
    let node = &world.node;
    let limits = json!({"resources": {"limits": {"memory": "32Mi", "cpu": "100m"}}});
    let of = |name: &str, class: &str| {
        let app = with(container("app", SLEEP), limits.clone());
        pod(name, json!([app]), json!({"runtimeClassName": class}))
    };
    node.bind(&of("good", &good));
    node.bind(&of("bad", &bad));
    let pod = node.wait_api_ready("good");
    assert_eq!(pod["spec"]["overhead"]["memory"], "8Mi");
    let inspected = node.docker.inspect(&id(&pod, "app")).expect("the container is in Docker");
    assert_eq!(inspected["HostConfig"]["Runtime"], "runc");
    let own = crate::bed::cgroups().into_iter().filter(|folder| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().replace('_', "-");
        name.trim_end_matches(".slice").ends_with(&format!("pod{}", pod["metadata"]["uid"].as_str().unwrap()))
    });
    let read = |folder: std::path::PathBuf| {
        let files = ["memory.max", "memory.limit_in_bytes"].into_iter();
        files.filter_map(|file| fs::read_to_string(folder.join(file)).ok()).next()
    };
    let most: Vec<u64> = own.filter_map(read).map(|text| text.trim().parse().unwrap()).collect();
    assert_eq!(most, [40 << 20], "the pod's own cgroup has room for the overhead");
    node.wait_api_event("bad", "FailedCreatePodSandBox", "nowhere");
    node.wait_api("bad", "waits", |pod| waiting(pod, "app") == "ContainerCreating");
}
