//! An API server that is busy, broken, slow or forgetful, and answers as such a one does: the node goes on, asks no more
//! than it should, and catches up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    front::{Asked, Fate},
    node::{MOMENT, Node},
    pods::{SLEEP, condition, container, id, is_ready, job, phase, pod, restarts, sleeper, with},
};

const JSON: &str = "Content-Type: application/json\r\n";

/// An error as the API server words it.
fn error(code: u16, reason: &str) -> String {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "code": code,
        "message": format!("{reason}, said a test")})
    .to_string()
}

/// When each kind of request was made.
fn kinds(asked: &[Asked]) -> BTreeMap<String, Vec<Instant>> {
    let mut kinds: BTreeMap<String, Vec<Instant>> = BTreeMap::new();
    for one in asked {
        kinds.entry(one.kind()).or_default().push(one.at);
    }
    kinds
}

fn is_status_of(asked: &Asked, pod: &str) -> bool {
    asked.method == "PATCH" && asked.path.contains(&format!("/pods/{pod}/status"))
}

fn watches_pods(asked: &Asked) -> bool {
    asked.path.starts_with("/api/v1/pods?") && asked.is_watch()
}

/// With an API server that does nothing but what `judge` has it do, a pod's container dies and another pod is deleted; the
/// node tries to tell until `enough`. Then all is as it should be: what was asked meanwhile.
fn borne(judge: impl Fn(&str, &str) -> Fate + Send + Sync + 'static, enough: impl Fn(&[Asked]) -> bool) -> Vec<Asked> {
    let Some(node) = Node::start_fronted() else { return Vec::new() };
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    node.bind(&pod("a", json!([with(container("app", SLEEP), json!({"readinessProbe": probe}))]), json!({})));
    for name in ["b", "c"] {
        node.bind(&sleeper(name));
    }
    let [a, b, c] = ["a", "b", "c"].map(|name| node.wait_api_ready(name));
    let since = node.ready_since();
    node.front().judge(judge);
    let began = Instant::now();
    node.front().end_watches(None);
    node.told(|| {
        until("the node asks for its pods", || node.front().asked_since(began).iter().any(watches_pods).then_some(()))
    });
    node.docker.kill(&id(&a, "app"), "KILL");
    node.cluster.delete(&node.one("pods", "b"), None);
    node.told(|| until("the node tries again", || enough(&node.front().asked_since(began)).then_some(())));
    let asked = node.front().asked_since(began);
    assert_eq!(node.running(&b), Some(id(&b, "app")), "nobody has told the node that it is to end");
    node.front().pass();
    node.wait_api("a", "told as restarted", |pod| is_ready(pod) && restarts(pod, "app") == 1);
    node.wait_api_gone(&b);
    let now = node.wait_api_ready("c");
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&c, "app"), 0));
    let ready = |pod: &Value| {
        let mut all = pod["status"]["conditions"].as_array().unwrap().iter();
        all.find(|one| one["type"] == "Ready").map(|one| one["lastTransitionTime"].clone())
    };
    assert_eq!(ready(&now), ready(&c));
    assert_eq!(node.ready_since(), since, "the node was not Ready meanwhile");
    asked
}

#[test]
fn cluster_api_faults_busy_says_when_to_ask_again() {
    let wait = Duration::from_secs(3);
    let enough = |asked: &[Asked]| {
        let times = |fits: fn(&Asked) -> bool| asked.iter().filter(|one| fits(one)).count();
        times(watches_pods) >= 3 && times(|one| is_status_of(one, "a")) >= 3
    };
    let headers = format!("{JSON}Retry-After: {}\r\n", wait.as_secs());
    let asked = borne(move |_, _| Fate::Answer(429, headers.clone(), error(429, "TooManyRequests")), enough);
    for (kind, times) in kinds(&asked) {
        for pair in times.windows(2) {
            let between = pair[1] - pair[0];
            assert!(between > wait - Duration::from_millis(100), "{kind}: again after {between:?}");
        }
    }
}

#[test]
fn cluster_api_faults_errors_are_asked_about_less_and_less() {
    let enough = |asked: &[Asked]| asked.iter().filter(|one| is_status_of(one, "a")).count() >= 7;
    let count = AtomicUsize::new(0);
    let judge = move |_: &str, _: &str| match count.fetch_add(1, Ordering::Relaxed) % 3 {
        0 => Fate::Answer(500, JSON.to_owned(), error(500, "InternalError")),
        1 => Fate::Answer(500, "Content-Type: text/plain\r\n".to_owned(), "etcdserver: leader changed".to_owned()),
        _ => Fate::Answer(503, String::new(), String::new()),
    };
    let asked = borne(judge, enough);
    let Some((first, last)) = asked.first().zip(asked.last()) else { return };
    let took = (last.at - first.at).as_secs();
    let kinds = kinds(&asked);
    for (kind, times) in &kinds {
        // Waits that double, from a tenth of a second on, and are ten seconds at the most.
        assert!(times.len() as u64 <= 8 + took / 5, "{kind}: {} times in {took} s", times.len());
    }
    assert!(asked.len() as u64 <= 40 + 3 * took, "{} requests in {took} s: {:#?}", asked.len(), kinds.keys());
}

#[test]
fn cluster_api_faults_gone_is_listed_anew_and_ends_no_pod() {
    let Some(node) = Node::start_fronted() else { return };
    let names = ["a", "b", "c", "d"];
    for name in names {
        node.bind(&sleeper(name));
    }
    let before = names.map(|name| node.wait_api_ready(name));
    let since = node.ready_since();
    let (held, continued, watched) = (Arc::new(AtomicBool::new(true)), AtomicUsize::new(0), AtomicUsize::new(0));
    let holds = Arc::clone(&held);
    node.front().judge(move |_, path| {
        let first = |most: usize, count: &AtomicUsize| count.fetch_add(1, Ordering::Relaxed) < most;
        let gone = || Fate::Answer(410, JSON.to_owned(), error(410, "Expired"));
        if !path.starts_with("/api/v1/pods?") {
            Fate::Pass
        } else if path.contains("sendInitialEvents") {
            Fate::Answer(400, JSON.to_owned(), error(400, "BadRequest"))
        } else if holds.load(Ordering::Relaxed) {
            Fate::Answer(500, JSON.to_owned(), error(500, "InternalError"))
        } else if path.contains("watch=true") {
            if first(3, &watched) { gone() } else { Fate::Pass }
        } else if path.contains("continue=") && first(1, &continued) {
            gone()
        } else {
            Fate::Instead(path.replace("limit=500", "limit=2"))
        }
    });
    let began = Instant::now();
    let gone: Value = serde_json::from_str(&error(410, "Expired")).unwrap();
    node.front().end_watches(Some(&json!({"type": "ERROR", "object": gone}).to_string()));
    let asked = || {
        let asked = node.front().asked_since(began).into_iter();
        asked.filter(|one| one.path.starts_with("/api/v1/pods?")).collect::<Vec<_>>()
    };
    let lists = || asked().iter().filter(|one| !one.is_watch()).count();
    node.told(|| until("it asks for a list", || (lists() >= 1).then_some(())));
    // What happens while there is none, the node cannot know.
    node.cluster.delete(&node.one("pods", "b"), None);
    node.told(|| until("it asks again", || (lists() >= 3).then_some(())));
    for pod in &before {
        assert_eq!(node.running(pod), Some(id(pod, "app")));
    }
    // Then in pages, the second of which is gone first; and three times no watch goes on from there either.
    held.store(false, Ordering::Relaxed);
    node.wait_api_gone(&before[1]);
    node.bind(&sleeper("e"));
    node.wait_api_ready("e");
    // A server that forgets at once is asked for lists less and less.
    let forgotten = |asked: &[Asked]| -> Vec<usize> {
        (0..asked.len()).filter(|at| asked[*at].is_watch() && asked[*at].code == 410).collect()
    };
    let asked = node.told(|| {
        until("a list after the last one", || {
            Some(asked()).filter(|asked| forgotten(asked).get(2).is_some_and(|last| asked.len() > last + 1))
        })
    });
    let forgotten = forgotten(&asked);
    assert_eq!(forgotten.len(), 3, "{asked:#?}");
    for (at, least) in [(forgotten[1], 800), (forgotten[2], 1600)] {
        let between = asked[at + 1].at - asked[at].at;
        assert!(between >= Duration::from_millis(least), "{between:?}, then {}", asked[at + 1].path);
    }
    assert!(asked.iter().any(|one| one.code == 410 && one.path.contains("continue=")), "{asked:#?}");
    assert!(asked.iter().any(|one| one.code == 200 && one.path.contains("continue=")), "{asked:#?}");
    for name in ["a", "c", "d"] {
        let at = names.iter().position(|one| *one == name).unwrap();
        let now = node.wait_api_ready(name);
        assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&before[at], "app"), 0), "{name}");
    }
    assert_eq!(node.ready_since(), since);
}

#[test]
fn cluster_api_faults_slow_and_answers_lost() {
    let Some(mut node) = Node::new_fronted() else { return };
    // The first of each kind of request that changes something is done, but nobody says so; all else is late.
    let known = Mutex::new(BTreeSet::new());
    node.front().judge(move |method, path| {
        let bare = path.split('?').next().unwrap_or_default();
        // Each event has its own name, but is written to one list.
        match method != "GET" && known.lock().unwrap().insert(format!("{method} {bare}")) {
            true => Fate::Lost,
            false => Fate::Late(Duration::from_millis(300)),
        }
    });
    let began = Instant::now();
    node.begin();
    node.wait_node_ready();
    let since = node.ready_since();
    node.apply(&sleeper("static"));
    node.bind(&sleeper("a"));
    node.bind(&job("done", "Never", "true"));
    let a = node.wait_api_ready("a");
    node.wait_api("done", "done", |pod| phase(pod) == "Succeeded");
    let mirrors = || {
        let all = node.cluster.list(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", node.name));
        let mirrors = all.into_iter().filter(|pod| pod["metadata"]["name"].as_str().unwrap().starts_with("static-"));
        mirrors.collect::<Vec<_>>()
    };
    node.told(|| until("one mirror that is Ready", || matches!(&mirrors()[..], [one] if is_ready(one)).then_some(())));
    // Said once each, though the first answer was lost.
    node.wait_api_event("a", "Started", "");
    let started: Vec<Value> = node.events_of("a").into_iter().filter(|event| event["reason"] == "Started").collect();
    assert!(matches!(&started[..], [one] if one["count"] == 1), "{started:#?}");
    node.cluster.delete(&node.one("pods", "a"), None);
    node.wait_api_gone(&a);
    node.bind(&sleeper("a"));
    let again = node.wait_api_ready("a");
    assert_ne!(id(&again, "app"), id(&a, "app"));
    node.delete("static");
    node.told(|| until("no mirror", || mirrors().is_empty().then_some(())));
    // The heartbeat, too, has lost an answer by now, and has found out what there is.
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", node.name);
    let beats = || {
        let asked = node.front().asked_since(began).into_iter();
        asked.filter(|one| one.method == "PUT" && one.path.starts_with(&lease) && one.code == 200).count()
    };
    node.told(|| until("the lease is renewed", || (beats() >= 1).then_some(())));
    thread::sleep(MOMENT);
    let node_now = node.object();
    assert!(condition(&node_now, "Ready"));
    assert_eq!(node.ready_since(), since);
    assert_eq!(restarts(&node.wait_api_ready("a"), "app"), 0);
}
