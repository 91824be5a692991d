//! Properties and cases of resizes: limits stay within the pod's at every step, nothing restarts but what must, and it
//! comes to an end through any fault.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::model::{Fault, Model, Upset, any_upset};
use super::{any_fault, converge, disturb};
use crate::plan::*;
use crate::resize::Amounts;
use crate::testing::pod_from;

const SIZED: &str = "{restartPolicy: Always, containers: [\
    {name: a, image: i, resources: {limits: {cpu: 100m, memory: 64Mi}, requests: {cpu: 50m, memory: 64Mi}}}, \
    {name: b, image: i, resources: {limits: {cpu: 100m, memory: 64Mi}, requests: {cpu: 50m, memory: 64Mi}}, \
     resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]}], \
    initContainers: [{name: side, image: i, restartPolicy: Always, \
     resources: {limits: {cpu: 100m, memory: 64Mi}, requests: {cpu: 50m, memory: 64Mi}}}]}";

fn sized() -> Model {
    let mut model = Model::new(pod_from(SIZED), ObservedPod::default());
    converge(&mut model, Vec::new());
    model.log.clear();
    model
}

fn any_size() -> impl Strategy<Value = Upset> {
    (0usize..3, 1i64..40, 1i64..40).prop_map(|(which, cpu, memory)| Upset::Resized(which, cpu, memory * 16))
}

/// The same, and no limit of memory at all.
fn any_size_or_none() -> impl Strategy<Value = Upset> {
    (0usize..3, 1i64..40, 0i64..4).prop_map(|(which, cpu, memory)| Upset::Resized(which, cpu, memory * 64))
}

fn done(model: &Model) -> Vec<&str> {
    model.log.iter().map(String::as_str).filter(|line| !line.starts_with("Resized")).collect()
}

/// What runs has what it was given.
fn as_given(model: &Model) -> Result<(), TestCaseError> {
    prop_assert!(model.record.resize.progress.is_none(), "it is done: {:#?}", model.log);
    for container in model.pod.containers() {
        let seen = model.world.container(&container.spec.name).unwrap();
        let wanted = crate::resources::of_container(&model.pod, container.spec, &model.node);
        prop_assert_eq!(seen.resources, Some(wanted), "{}", &container.spec.name);
        let given = Amounts::of(model.pod.spec(), container.spec);
        prop_assert_eq!(model.record.containers[&container.spec.name].actuated, Some(given));
    }
    let cgroup = crate::cgroup::pod_cgroup(&model.pod, &model.node);
    prop_assert_eq!(model.real_cgroup.as_ref(), Some(&cgroup));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_resize_ends_through_any_fault_and_restarts_only_what_must(
        sizes in prop::collection::vec((0usize..3, any_size()), 1..6),
        faults in prop::collection::vec(any_fault(), 0..30),
    ) {
        let mut model = sized();
        let ids = |model: &Model| ["a", "side"].map(|name| model.world.container(name).unwrap().id.clone());
        let before = ids(&model);
        disturb(&mut model, sizes, faults);
        prop_assert!(model.plan().is_empty(), "{:?}", model.plan());
        as_given(&model)?;
        prop_assert_eq!(ids(&model), before, "{:#?}", model.log);
    }

    #[test]
    fn limits_come_and_go(sizes in prop::collection::vec(any_size_or_none(), 1..6)) {
        let mut model = sized();
        for size in sizes {
            model.upset(size);
            converge(&mut model, Vec::new());
            as_given(&model)?;
        }
    }

    #[test]
    fn a_resize_ends_whatever_else_happens(
        upsets in prop::collection::vec((0usize..4, prop_oneof![any_size(), any_upset()]), 1..8),
        faults in prop::collection::vec(any_fault(), 0..20),
    ) {
        let mut model = sized();
        disturb(&mut model, upsets, faults);
        prop_assert!(model.plan().is_empty(), "{:?}", model.plan());
        as_given(&model)?;
    }
}

/// A pod that is limited as a whole: `a` has no limits of its own, `b` has.
const AS_A_WHOLE: &str = "{restartPolicy: Always, \
    resources: {limits: {cpu: 400m, memory: 256Mi}, requests: {cpu: 200m, memory: 128Mi}}, \
    containers: [{name: a, image: i}, \
    {name: b, image: i, resources: {limits: {cpu: 10m, memory: 4Mi}, requests: {cpu: 5m, memory: 4Mi}}}], \
    initContainers: [{name: side, image: i, restartPolicy: Always}]}";

fn whole() -> Model {
    let mut model = Model::new(pod_from(AS_A_WHOLE), ObservedPod::default());
    converge(&mut model, Vec::new());
    model.log.clear();
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_pod_resized_as_a_whole_holds_its_containers_at_every_step(
        sizes in prop::collection::vec((0usize..3, 10i64..80, 20i64..80), 1..6),
        faults in prop::collection::vec(any_fault(), 0..30),
    ) {
        let mut model = whole();
        let ids = |model: &Model| ["a", "b", "side"].map(|name| model.world.container(name).unwrap().id.clone());
        let before = ids(&model);
        let resized = sizes.into_iter().map(|(rounds, cpu, memory)| (rounds, Upset::PodResized(cpu, memory)));
        disturb(&mut model, resized, faults);
        prop_assert!(model.plan().is_empty(), "{:?}", model.plan());
        as_given(&model)?;
        prop_assert_eq!(ids(&model), before, "{:#?}", model.log);
    }
}

#[test]
fn the_limits_of_a_pod_as_a_whole_grow_first_and_shrink_last() {
    let mut model = whole();
    model.upset(Upset::PodResized(80, 512));
    let set = |line: &&str| line.starts_with("set the pod's limits");
    converge(&mut model, Vec::new());
    let lines: Vec<&str> =
        model.log.iter().map(String::as_str).filter(|line| !line.starts_with("PodResized")).collect();
    assert!(set(&lines[0]) && lines[1..].iter().all(|line| line.starts_with("resize container")), "{lines:?}");
    assert_eq!(lines.len(), 3, "b has limits of its own: {lines:?}");
    model.log.clear();
    model.upset(Upset::PodResized(20, 128));
    // What it gives up is its own until then.
    let held = crate::resize::held(&model.pod, &model.known, &model.record);
    let requests = crate::admit::pod_requests(held.spec());
    assert_eq!((requests["cpu"], requests["memory"]), (400, 512 << 20));
    converge(&mut model, Vec::new());
    let last = model.log.iter().rfind(|line| !line.starts_with("PodResized")).unwrap();
    assert!(set(&last.as_str()), "{:#?}", model.log);
    assert_eq!(crate::resize::held(&model.pod, &model.known, &model.record).object, model.pod.object);
}

#[test]
fn the_pod_grows_first_and_shrinks_last() {
    let mut model = sized();
    model.upset(Upset::Resized(1, 20, 128));
    converge(&mut model, Vec::new());
    let lines = done(&model);
    assert!(lines[0].starts_with("set the pod's limits") && lines[1].starts_with("resize container a"), "{lines:?}");
    assert_eq!(lines.len(), 2);
    model.log.clear();
    model.upset(Upset::Resized(1, 5, 32));
    converge(&mut model, Vec::new());
    let lines = done(&model);
    assert!(lines[0].starts_with("see that memory in use"), "{lines:?}");
    assert!(lines[1].starts_with("resize container a"), "{lines:?}");
    assert!(
        lines[2].starts_with("see that memory in use") && lines[3].starts_with("set the pod's limits"),
        "{lines:?}"
    );
    assert_eq!(lines.len(), 4);
}

#[test]
fn its_policy_restarts_that_container_alone() {
    let mut model = sized();
    let before = model.world.container("a").unwrap().id.clone();
    model.upset(Upset::Resized(2, 10, 96));
    let plan = model.plan();
    let stop = plan.actions().find(|planned| matches!(planned.action, Action::StopContainer { .. })).unwrap();
    assert_eq!(stop.why, "Container b resize requires restart");
    converge(&mut model, Vec::new());
    assert_eq!(model.world.container("a").unwrap().id, before);
    assert_eq!(model.record.containers["b"].restarts, 1);
    // CPU alone needs none.
    model.upset(Upset::Resized(2, 20, 96));
    converge(&mut model, Vec::new());
    assert_eq!(model.record.containers["b"].restarts, 1);
}

#[test]
fn a_memory_limit_that_goes_restarts_that_container_alone() {
    let mut model = sized();
    let before = model.world.container("b").unwrap().id.clone();
    model.upset(Upset::Resized(1, 10, 0));
    let plan = model.plan();
    let stop = plan.actions().find(|planned| matches!(planned.action, Action::StopContainer { .. })).unwrap();
    assert_eq!(stop.why, "Container a resize requires restart");
    converge(&mut model, Vec::new());
    assert_eq!(model.world.container("a").unwrap().resources.map(|has| has.memory), Some(0));
    assert_eq!((model.record.containers["a"].restarts, model.record.containers["b"].restarts), (1, 0));
    assert_eq!(model.world.container("b").unwrap().id, before);
    // So does one that was made with a limit and of which nothing more is known.
    model.record.containers.get_mut("a").unwrap().actuated = None;
    let seen = model.world.containers.iter_mut().find(|seen| seen.name == "a" && seen.is_running()).unwrap();
    seen.resources.as_mut().unwrap().memory = 64 << 20;
    model.look();
    converge(&mut model, Vec::new());
    assert_eq!(model.world.container("a").unwrap().resources.map(|has| has.memory), Some(0));
    assert_eq!(model.record.containers["a"].restarts, 2);
    // A limit that comes needs none.
    model.upset(Upset::Resized(1, 10, 64));
    converge(&mut model, Vec::new());
    assert_eq!(model.record.containers["a"].restarts, 2);
}

#[test]
fn a_record_of_before_resizes_takes_what_runs_for_given() {
    let mut model = sized();
    model.record.containers.values_mut().for_each(|known| known.actuated = None);
    for seen in &mut model.world.containers {
        seen.resources = None;
    }
    model.look();
    assert!(model.plan().is_empty() && !model.round(|| Fault::None), "{:#?}", model.log);
    // Where the runtime has something else, it is changed as it runs.
    model.record.containers.values_mut().for_each(|known| known.actuated = None);
    let of = model.pod.container("a").unwrap();
    let wanted = crate::resources::of_container(&model.pod, of.spec, &model.node);
    let resources = crate::container::Resources { memory: 1 << 20, ..wanted };
    model.world.containers.iter_mut().find(|seen| seen.name == "a").unwrap().resources = Some(resources);
    model.look();
    converge(&mut model, Vec::new());
    assert_eq!(model.record.containers["a"].restarts, 0);
    assert_ne!(model.world.container("a").unwrap().resources, Some(resources));
}
