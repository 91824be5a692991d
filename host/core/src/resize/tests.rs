//! What is given, to whom first, and how it is told.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::pod::Source;
use crate::testing::{at, node, pod_from};

fn pod(uid: &str, cpu: i64, memory: i64) -> Pod {
    let spec = format!(
        "{{containers: [{{name: c, image: i, resources: {{requests: {{cpu: {cpu}m, memory: {memory}Mi}}, limits: {{cpu: 100}}}}}}]}}"
    );
    let mut pod = pod_from(&spec);
    pod.id.uid = uid.to_owned();
    pod
}

fn wish(wanted: Pod, given: Pod) -> Wish {
    Wish { wanted, given, since: None }
}

fn active(pods: &[Pod]) -> BTreeMap<String, Pod> {
    pods.iter().map(|pod| (pod.id.uid.clone(), pod.clone())).collect()
}

fn one(wish: &Wish, pods: &[Pod]) -> Verdict {
    decide([wish], &active(pods), &node(), None).remove(&wish.wanted.id.uid).unwrap()
}

#[test]
fn it_is_given_deferred_or_infeasible() {
    let given = pod("a", 1000, 64);
    let other = pod("b", 2500, 64);
    let want = |cpu, memory| wish(pod("a", cpu, memory), given.clone());
    let pods = [given.clone(), other];
    assert_eq!(one(&want(1500, 64), &pods), Verdict::Granted);
    let message = "Node didn't have enough resource: cpu, requested: 2000, used: 2500, capacity: 4000";
    let rejection = crate::admit::Rejection { reason: "OutOfcpu".into(), message: message.to_owned() };
    assert_eq!(one(&want(2000, 64), &pods), Verdict::Deferred(rejection));
    let message = "Node didn't have enough capacity: cpu, requested: 4001, capacity: 4000";
    assert_eq!(one(&want(4001, 64), &pods), Verdict::Infeasible(message.to_owned()));
    let message = "Node didn't have enough capacity: memory, requested: 10737418240, capacity: 8589934592";
    assert_eq!(one(&want(4001, 10240), &pods), Verdict::Infeasible(message.to_owned()));
    let none = wish(pod_from("{containers: [{name: c, image: i}]}"), given);
    let Verdict::Infeasible(message) = one(&none, &pods) else { panic!() };
    assert!(
        message.contains("it is Burstable and would be BestEffort; ") && message.contains("metadata.uid"),
        "{message}"
    );
}

#[test]
fn who_comes_first() {
    let given = |uid| pod(uid, 100, 64);
    let mut first = wish(pod("z", 3000, 64), given("z"));
    let mut second = wish(pod("y", 3000, 64), given("y"));
    let pods = [given("z"), given("y"), given("x")];
    let granted = |wishes: [&Wish; 2]| {
        let verdicts = decide(wishes, &active(&pods), &node(), None);
        verdicts.into_iter().filter(|(_, verdict)| *verdict == Verdict::Granted).map(|(uid, _)| uid).collect::<Vec<_>>()
    };
    (first.since, second.since) = (Some(at(1)), Some(at(2)));
    assert_eq!(granted([&second, &first]), ["z"]);
    let priority = |wish: &mut Wish| {
        Arc::make_mut(&mut wish.wanted.object).spec.as_mut().unwrap().priority = Some(1);
    };
    priority(&mut second);
    assert_eq!(granted([&first, &second]), ["y"]);
    // What shrinks is always given, and its room only once it is free.
    let shrinks = wish(pod("z", 50, 64), given("z"));
    assert_eq!(granted([&shrinks, &second]), ["y", "z"]);
}

#[test]
fn what_was_given_stands_in_for_what_is_wanted() {
    let given = pod("a", 1000, 64);
    let allocation = Allocation::of(&given.object);
    let wanted = pod("a", 2000, 64).object;
    let applied = allocation.apply(&wanted);
    assert_eq!(applied.spec, given.object.spec);
    assert!(Arc::ptr_eq(&allocation.apply(&given.object), &given.object));
    let mut other = (*given.object).clone();
    other.spec.as_mut().unwrap().containers[0].resources =
        serde_json::from_value(json!({"requests": {"cpu": "1", "memory": "65536Ki"}, "limits": {"cpu": "100"}}))
            .unwrap();
    assert!(!allocation.differs(&other), "another notation is no other wish");
    let back: Allocation = serde_json::from_str(&serde_json::to_string(&allocation).unwrap()).unwrap();
    assert_eq!(back, allocation);
}

#[test]
fn a_lost_record_takes_what_the_api_server_was_told() {
    let object: v1::Pod = serde_json::from_value(json!({
        "status": {"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
            "allocatedResources": {"cpu": "1"}, "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}}}]}}))
    .unwrap();
    let told = Allocation::told(&object.status.unwrap()).unwrap();
    assert_eq!(json!(told.containers["c"]), json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}));
    assert_eq!(Allocation::told(&v1::PodStatus::default()), None);
}

#[test]
fn a_node_configured_anew_leaves_alone_what_runs() {
    let pod = pod("a", 1000, 64);
    let container = &pod.spec().containers[0];
    let at = |period: Option<i64>| {
        let node = NodeFacts { cpu_quota_period: period, ..node() };
        crate::resources::of_container(&pod, container, &node)
    };
    for period in [Some(100_000), Some(7_000), None] {
        assert!(!drifted(&pod, container, &at(period)), "{period:?}");
    }
    let other = Resources { cpu_shares: 7, ..at(None) };
    assert!(drifted(&pod, container, &other));
}

#[test]
fn events_say_it_as_the_kubelet() {
    let object: v1::Pod = serde_json::from_value(json!({
        "spec": {"containers": [{"name": "c1", "resources": {"requests": {"memory": "4500Mi", "cpu": "5"}}}]}}))
    .unwrap();
    assert_eq!(
        pending(&object, 2, "Infeasible", "no room"),
        r#"Pod resize Infeasible: {"containers":[{"name":"c1","resources":{"requests":{"cpu":"5","memory":"4500Mi"}}}],"generation":2,"error":"no room"}"#
    );
    assert!(started(&object, 3).ends_with(r#""generation":3}"#));
    assert!(completed(&object, 3).starts_with("Pod resize completed: {"));
    assert!(failed(&object, 3, "x").starts_with("Pod resize error: {"));
}

proptest! {
    /// What is granted together fits together, in whatever order the wishes come.
    #[test]
    fn grants_never_exceed_the_node(
        sizes in prop::collection::vec((1i64..3000, 1i64..3000, 0i32..3, prop::option::of(0i64..9)), 1..8),
        order in any::<prop::sample::Index>(),
    ) {
        let mut used = 0;
        let mut wishes = Vec::new();
        for (index, (has, wants, priority, since)) in sizes.into_iter().enumerate() {
            let has = has.min(4000 - used);
            if has <= 0 {
                break;
            }
            used += has;
            let uid = format!("p{index}");
            let mut wish = wish(pod(&uid, wants, 64), pod(&uid, has, 64));
            wish.wanted.source = Source::Api;
            Arc::make_mut(&mut wish.wanted.object).spec.as_mut().unwrap().priority = Some(priority);
            wish.since = since.map(at);
            wishes.push(wish);
        }
        let pods: Vec<Pod> = wishes.iter().map(|wish| wish.given.clone()).collect();
        let verdicts = decide(&wishes, &active(&pods), &node(), None);
        let cpu = |pod: &Pod| crate::admit::pod_requests(pod.spec())["cpu"];
        let sum: i64 = wishes.iter().map(|wish| match verdicts[&wish.wanted.id.uid] {
            Verdict::Granted => cpu(&wish.wanted).max(cpu(&wish.given)),
            _ => cpu(&wish.given),
        }).sum();
        prop_assert!(sum <= 4000);
        let turn = order.index(wishes.len());
        wishes.rotate_left(turn);
        prop_assert_eq!(decide(&wishes, &active(&pods), &node(), None), verdicts.clone());
        // Whatever shrinks is granted; a deferred one would not have fitted beside what was granted.
        for wish in &wishes {
            let verdict = &verdicts[&wish.wanted.id.uid];
            if cpu(&wish.wanted) <= cpu(&wish.given) {
                prop_assert_eq!(verdict, &Verdict::Granted);
            } else if matches!(verdict, Verdict::Deferred(_)) {
                prop_assert!(sum - cpu(&wish.given) + cpu(&wish.wanted) > 4000);
            }
        }
    }
}
