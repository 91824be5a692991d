//! Many pods at once, and pods that come and go at random: nothing flaps, the API server, Docker and the disk agree
//! exactly, and nothing is left over.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::bed::{
    cgroups,
    front::Fate,
    node::Node,
    pods::{SLEEP, container, is_ready, job, phase, pod, restarts, sleeper, uid, with},
};

/// How long many pods may take until all is calm.
const CALM: Duration = Duration::from_secs(240);

/// The number at which any trouble is over.
const OVER: u64 = 200;

/// Waits for `look`, whose error says what is not so yet.
fn settled<T>(node: &Node, what: &str, look: impl Fn() -> Result<T, String>) -> T {
    node.told(|| {
        let deadline = Instant::now() + crate::bed::limit(CALM);
        loop {
            match look() {
                Ok(found) => return found,
                Err(why) => assert!(Instant::now() < deadline, "{what}: not within {CALM:?}: {why}"),
            }
            thread::sleep(Duration::from_millis(500));
        }
    })
}

fn ensure(good: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if good { Ok(()) } else { Err(why()) }
}

/// The IDs that a pod's status names: those that run, and those that ran before.
fn containers(pod: &Value) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut now, mut before) = (BTreeSet::new(), BTreeSet::new());
    for list in ["initContainerStatuses", "containerStatuses"] {
        for status in pod["status"][list].as_array().into_iter().flatten() {
            let bare = |id: &Value| id.as_str().and_then(|id| id.strip_prefix("docker://")).map(str::to_owned);
            match bare(&status["state"]["running"]).or(bare(&status["containerID"])) {
                Some(id) if status["state"]["running"].is_object() => drop(now.insert(id)),
                Some(id) => drop(before.insert(id)),
                None => {}
            }
            before.extend(bare(&status["lastState"]["terminated"]["containerID"]));
        }
    }
    (now, before)
}

/// The UIDs that the names in a folder of the node end with.
fn named(node: &Node, folder: &str) -> BTreeSet<String> {
    let all = fs::read_dir(node.folder.join(folder)).into_iter().flatten().flatten();
    let names = all.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.map(|name| name.rsplit('_').next().unwrap_or_default().to_owned()).collect()
}

/// The API server's pods, when none of them is under way, and Docker, the disk and the agent have them and no others.
fn agreed(node: &Node) -> Result<Vec<Value>, String> {
    let pods = node.cluster.list(&node.all("pods"));
    for pod in &pods {
        let calm = (is_ready(pod) || ["Succeeded", "Failed"].contains(&phase(pod)))
            && pod["metadata"]["deletionTimestamp"].is_null();
        ensure(calm, || format!("{} is under way: {}", pod["metadata"]["name"], pod["status"]))?;
    }
    let known: BTreeSet<String> = pods.iter().map(|pod| uid(pod).to_owned()).collect();
    let live: BTreeSet<String> = pods.iter().filter(|pod| is_ready(pod)).map(|pod| uid(pod).to_owned()).collect();

    let mut there: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for one in node.containers_of_node() {
        let of = one["Labels"]["io.kubernetes.pod.uid"].as_str().unwrap_or_default().to_owned();
        ensure(known.contains(&of), || format!("Docker has {} of a pod that is gone", one["Names"]))?;
        there.entry(of).or_default().push(one);
    }
    for pod in &pods {
        let (now, before) = containers(pod);
        let all = there.remove(uid(pod)).unwrap_or_default();
        let (sandboxes, all): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|one| one["Labels"]["io.kubernetes.docker.type"] == "podsandbox");
        let ids = |runs: bool| -> BTreeSet<String> {
            let fits = all.iter().filter(|one| (one["State"] == "running") == runs);
            fits.map(|one| one["Id"].as_str().unwrap().to_owned()).collect()
        };
        let (name, running) = (&pod["metadata"]["name"], ids(true));
        ensure(running == now, || format!("{name}: {running:?} run, and the API server has {now:?}"))?;
        ensure(ids(false).is_subset(&before), || format!("{name}: {:?} are there, of {before:?}", ids(false)))?;
        let runs = sandboxes.iter().filter(|one| one["State"] == "running").count();
        ensure(runs == usize::from(is_ready(pod)), || format!("{name}: {runs} sandboxes run"))?;
    }
    for folder in ["r/pods", "l/pods"] {
        let found = named(node, folder);
        ensure(found.is_subset(&known), || format!("{folder} has {found:?}, of {known:?}"))?;
        ensure(live.is_subset(&found), || format!("{folder} lacks one of {live:?}: {found:?}"))?;
    }
    for entry in fs::read_dir(node.folder.join("l/containers")).unwrap().flatten() {
        ensure(entry.path().exists(), || format!("{} leads nowhere", entry.path().display()))?;
    }
    let told: Value = serde_json::from_str(&node.say(&["get", "pods", "-A", "-o", "json"])).unwrap();
    let told = told["items"].as_array().cloned().unwrap_or_else(|| vec![told]);
    let told: BTreeSet<String> = told.iter().map(|pod| uid(pod).to_owned()).filter(|uid| !uid.is_empty()).collect();
    ensure(told == known, || format!("the agent has {told:?}, the API server {known:?}"))?;
    Ok(pods)
}

/// That nothing is left of pods of these UIDs, nor of any other of this node.
fn nothing(node: &Node, uids: &BTreeSet<String>) -> Result<(), String> {
    let pods = agreed(node)?;
    ensure(pods.is_empty(), || format!("{} pods are left", pods.len()))?;
    for folder in ["r/pods", "l/pods", "l/containers"] {
        let found = named(node, folder);
        ensure(found.is_empty(), || format!("{folder} has {found:?}"))?;
    }
    ensure(node.mounts().is_empty(), || format!("mounts are left: {:?}", node.mounts()))?;
    let of_pod = |folder: &&std::path::PathBuf| {
        let name = folder.display().to_string();
        uids.iter().any(|uid| name.contains(uid) || name.contains(&uid.replace('-', "_")))
    };
    let all = cgroups();
    let left: Vec<_> = all.iter().filter(of_pod).collect();
    ensure(left.is_empty(), || format!("cgroups are left: {left:?}"))
}

/// Numbers that are the same for the same seed: Marsaglia's xorshift.
struct Dice(u64);

impl Dice {
    /// Of `LONGSHORE_TEST_SEED`, which is told for when the test fails.
    fn new() -> Dice {
        let given = std::env::var("LONGSHORE_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or(20_261_127);
        eprintln!("LONGSHORE_TEST_SEED={seed}");
        Dice(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// A pod of one kind or another.
fn any(name: &str, dice: &mut Dice) -> Value {
    let mounted = |app: Value| with(app, json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    let volume = json!({"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}]});
    match dice.below(8) {
        0 => job(name, "Never", "exit 0"),
        1 => job(name, "Never", "exit 3"),
        2 => {
            let init = json!({"initContainers": [container("init", "exit 0")]});
            pod(name, json!([container("app", SLEEP), container("other", SLEEP)]), init)
        }
        3 => {
            let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
            pod(name, json!([with(container("app", SLEEP), json!({"readinessProbe": probe}))]), json!({}))
        }
        4 => pod(name, json!([mounted(container("app", &format!("echo x > /v/x; {SLEEP}")))]), volume),
        // It does not end before it must.
        5 => pod(name, json!([container("app", "trap '' TERM; while :; do sleep 1; done")]), json!({})),
        _ => sleeper(name),
    }
}

/// Pods come and go at random until `done`, at most `most` of them at a time and `pause` apart; `trouble` is called now and
/// then. After that all agree, and when the last pods are deleted nothing is left of any.
fn churn(
    node: &mut Node,
    most: usize,
    pause: Duration,
    done: impl Fn(usize) -> bool,
    trouble: impl Fn(&mut Node, u64),
) {
    let mut dice = Dice::new();
    let mut live: Vec<String> = Vec::new();
    let mut uids = BTreeSet::new();
    let mut turns = 0;
    while !done(turns) {
        // Many at first, then as many as go.
        if live.is_empty() || live.len() < most && dice.below(most as u64 * 2) as usize >= live.len() {
            let name = format!("p{turns}");
            uids.insert(uid(&node.bind(&any(&name, &mut dice))).to_owned());
            live.push(name);
        } else {
            let name = live.swap_remove(dice.below(live.len() as u64) as usize);
            // Some of these have not begun, some are half way; some are gone at once.
            let grace = [None, None, Some(1), Some(0)][dice.below(4) as usize];
            node.cluster.delete(&node.one("pods", &name), grace);
        }
        turns += 1;
        trouble(node, dice.below(1000));
        thread::sleep(pause.mul_f64(dice.below(200) as f64 / 100.0));
    }
    trouble(node, OVER);
    let left = settled(node, "all agree", || agreed(node));
    let names: BTreeSet<&str> = left.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, live.iter().map(String::as_str).collect());
    for pod in &left {
        assert_eq!(restarts(pod, "app"), 0, "{pod:#}");
    }
    node.cluster.delete(&node.all("pods"), None);
    settled(node, "nothing is left", || nothing(node, &uids));
    eprintln!("{turns} turns, {} pods, {} left at the end of them", uids.len(), left.len());
}

#[test]
fn cluster_churn_leaves_nothing() {
    let Some(mut node) = Node::start() else { return };
    let since = node.ready_since();
    churn(&mut node, 16, Duration::from_millis(50), |turns| turns >= 60, |_, _| {});
    assert_eq!(node.ready_since(), since);
}

/// For minutes, with 100 pods; the agent is killed, the API server goes away and answers with errors meanwhile.
#[test]
fn cluster_long_churn_of_100_pods() {
    let Some(mut node) = Node::start_fronted() else { return };
    let since = node.ready_since();
    let began = Instant::now();
    let trouble = |node: &mut Node, number: u64| match number {
        0..=2 => {
            node.kill();
            node.begin();
        }
        3..=7 => node.front().end_watches(None),
        8..=11 => {
            let error = json!({"kind": "Status", "code": 500, "message": "said a test"}).to_string();
            node.front().judge(move |_, _| Fate::Answer(500, String::new(), error.clone()));
        }
        12..=15 => node.front().judge(|_, _| Fate::Gone),
        16..=20 => node.front().judge(|_, _| Fate::Late(Duration::from_millis(500))),
        // Whatever it was, it is over soon.
        21..=OVER => node.front().pass(),
        _ => {}
    };
    churn(&mut node, 100, Duration::from_millis(150), |_| began.elapsed() > Duration::from_secs(200), trouble);
    assert_eq!(node.ready_since(), since);
}

#[test]
fn cluster_long_60_pods_at_once_leave_the_node_ready() {
    let Some(node) = Node::start() else { return };
    let since = node.ready_since();
    let mut uids = BTreeSet::new();
    for number in 0..60 {
        let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 10});
        let app = with(container("app", SLEEP), json!({"readinessProbe": probe}));
        uids.insert(uid(&node.bind(&pod(&format!("p{number}"), json!([app]), json!({})))).to_owned());
    }
    let pods = settled(&node, "all are Ready", || agreed(&node));
    assert_eq!(pods.len(), 60);
    assert_eq!(node.ready_since(), since, "the node was not Ready meanwhile");
    node.cluster.delete(&node.all("pods"), None);
    settled(&node, "nothing is left", || nothing(&node, &uids));
    assert_eq!(node.ready_since(), since);
    assert!(node.node_events("NodeNotReady").is_empty());
}
