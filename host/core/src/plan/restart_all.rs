//! All containers of a pod begin anew in its sandbox: stopped at once and removed; then the pod is like one that is new.
//!
//! As `computePodActions` and `getContainersToReset` of `pkg/kubelet/kuberuntime/kuberuntime_manager.go` (KEP-5532). What is
//! remembered of the containers begins anew in [`crate::status::remember`], once none is left.

use super::ending::stop_action;
use super::{Plan, Situation, planned};
use crate::action::Action;
use crate::observed::Container;
use crate::pod::ContainerKind;
use crate::restart;

/// Shown of containers that are removed and not made again yet.
pub(crate) const REASON: &str = "RestartingAllContainers";
/// What is said of them.
pub(crate) const MESSAGE: &str = "The container is removed because RestartAllContainers in place";

/// What is to be done before the containers can begin anew; `None` when they need not, or nothing is left of them.
/// Ephemeral containers stay.
pub(super) fn clear(situation: &Situation<'_>) -> Option<Plan> {
    let Situation { pod, observed, record, .. } = *situation;
    if !record.restarting_all {
        return None;
    }
    let of = |seen: &Container| pod.container(&seen.name).filter(|of| of.kind != ContainerKind::Ephemeral);
    let left: Vec<&Container> = observed.containers.iter().filter(|seen| of(seen).is_some()).collect();
    if left.is_empty() {
        return None;
    }
    let mut plan = Plan::default();
    for container in pod.containers().filter(|of| observed.container(&of.spec.name).is_none()) {
        plan.wait(&container.spec.name, REASON, MESSAGE.to_owned(), None);
    }
    let why = |seen: &Container| format!("Container {} will begin anew with all containers of the pod", seen.name);
    if left.iter().any(|seen| seen.is_running()) {
        let running = left.into_iter().filter(|seen| seen.is_running());
        let stops: Vec<_> = running
            .filter_map(|seen| {
                let told = Some("killing".to_owned());
                let action = stop_action(situation, seen, 0, Vec::new(), told, &mut plan)?;
                Some(vec![planned(action, why(seen))])
            })
            .collect();
        plan.stage(stops);
        return Some(plan);
    }
    // Those that caused it stay until nothing else is left: they tell of it, whatever becomes of the record.
    let causes = |seen: &&Container| {
        let code = seen.exit().map(|exit| exit.code);
        of(seen).zip(code).is_some_and(|(of, code)| restart::restarts_all(of.spec, code))
    };
    let (sources, targets): (Vec<&Container>, Vec<&Container>) = left.into_iter().partition(causes);
    let mut next = if targets.is_empty() { sources } else { targets };
    next.sort_by_key(|seen| seen.kind != ContainerKind::App);
    let removals = next.into_iter().map(|seen| {
        let action = Action::RemoveContainer { id: seen.id.clone(), container: seen.name.clone() };
        vec![planned(action, why(seen))]
    });
    plan.stage(removals.collect());
    Some(plan)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use crate::observed::{ContainerState, ObservedPod};
    use crate::plan::tests::model::{Fault, Model, Upset, any_upset, ended};
    use crate::plan::tests::{any_fault, converge, disturb};
    use crate::status::{self, StatusInput};
    use crate::testing::pod_from;

    /// Exit code 42 of `a`, `side` or `setup` begins the pod anew.
    const ANEW: &str = "{restartPolicy: Never, \
        containers: [{name: a, image: i, RULES}, {name: b, image: i}], \
        initContainers: [{name: setup, image: i, RULES}, {name: side, image: i, restartPolicy: Always, \
            restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]}]}";
    const RULES: &str = "restartPolicy: Never, restartPolicyRules: \
        [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]";

    fn running() -> Model {
        let mut model = Model::new(pod_from(&ANEW.replace("RULES", RULES)), ObservedPod::default());
        while model.round(|| Fault::None) {}
        assert!(["a", "b", "side"].iter().all(|name| model.world.container(name).unwrap().is_running()));
        model.log.clear();
        model
    }

    fn ids(model: &Model) -> Vec<String> {
        ["setup", "side", "a", "b"].map(|name| model.world.container(name).unwrap().id.clone()).into()
    }

    fn done(model: &Model, what: &str) -> Vec<usize> {
        let lines = model.log.iter().enumerate();
        lines.filter(|(_, line)| line.starts_with(what)).map(|(index, _)| index).collect()
    }

    /// Phase, and the condition that says that all begin anew.
    fn told(model: &Model) -> (String, String) {
        let plan = model.plan();
        let status = status::compute(&StatusInput {
            pod: &model.pod,
            observed: &model.known,
            record: &model.record,
            plan: &plan,
            busy: &model.busy,
            node: &model.node,
            now: model.now,
        });
        let conditions = status.conditions.unwrap();
        let found = conditions.iter().find(|condition| condition.type_ == crate::record::RESTARTING_ALL).unwrap();
        (status.phase.unwrap(), found.status.clone())
    }

    #[test]
    fn all_begin_anew_in_the_same_sandbox() {
        // `side`, then `a`: where it came from makes no difference.
        for which in [0, 1] {
            let mut model = running();
            assert_eq!(told(&model), ("Running".to_owned(), "False".to_owned()));
            let (before, sandbox) = (ids(&model), model.world.sandbox().unwrap().id.clone());
            model.upset(Upset::Ends(which, 42));
            assert_eq!(told(&model), ("Running".to_owned(), "True".to_owned()));
            let stops: Vec<String> = model.plan().actions().map(|planned| planned.action.to_string()).collect();
            assert!(stops.len() == 2 && stops.iter().all(|stop| stop.ends_with("within 0 s")), "{stops:?}");
            while model.round(|| Fault::None) {}
            assert_eq!(model.world.sandbox().unwrap().id, sandbox);
            assert!(ids(&model).iter().all(|id| !before.contains(id)), "{:#?}", model.log);
            let starts = ["setup", "side", "a", "b"].map(|name| done(&model, &format!("start container {name}")));
            assert!(starts.iter().all(|found| found.len() == 1) && starts.is_sorted(), "{:#?}", model.log);
            // What caused it goes last.
            let last = *done(&model, "remove container").last().unwrap();
            let cause = format!("remove container {} ", ["side", "a"][which]);
            assert!(model.log[last].starts_with(&cause), "{:#?}", model.log);
            assert!(["setup", "side", "a", "b"].iter().all(|name| model.record.containers[*name].restarts == 1));
            assert_eq!(model.world.container("a").unwrap().attempt, 1);
            let last_exit = |name: &str| model.record.containers[name].last_exit.as_ref().unwrap().exit.clone();
            assert_eq!(last_exit(["side", "a"][which]).code, 42);
            assert_eq!(last_exit("b").reason, super::REASON);
            assert_eq!(last_exit("setup").reason, "Completed");
            assert_eq!(told(&model), ("Running".to_owned(), "False".to_owned()));
        }
    }

    #[test]
    fn again_and_again_it_takes_longer() {
        let mut model = running();
        let mut waits = Vec::new();
        for _ in 0..4 {
            model.upset(Upset::Ends(1, 42));
            let begun = model.now;
            while model.round(|| Fault::None) {}
            waits.push(model.now.duration_since(begun).as_secs());
        }
        assert!(waits[0] < 10 && waits.is_sorted() && waits[3] >= 40, "{waits:?}");
        assert_eq!(model.record.containers["setup"].restarts, 4);
    }

    #[test]
    fn another_exit_code_is_an_end_and_one_that_fails_to_begin_begins_all_anew() {
        let mut model = running();
        model.upset(Upset::Ends(1, 1));
        while model.round(|| Fault::None) {}
        assert!(!model.world.container("a").unwrap().is_running() && !model.record.restarting_all);
        model.upset(Upset::Ends(2, 0));
        while model.round(|| Fault::None) {}
        assert_eq!(model.record.terminal.as_ref().unwrap().phase, "Failed");
        // Once it has ended, nothing begins anew.
        let seen = model.world.containers.iter_mut().find(|seen| seen.name == "a").unwrap();
        seen.state = ContainerState::Exited(ended(42, model.now));
        model.look();
        assert!(!model.record.restarting_all && model.plan().is_empty());

        let mut model = Model::new(pod_from(&ANEW.replace("RULES", RULES)), ObservedPod::default());
        model.init_exit = 42;
        for _ in 0..6 {
            model.round(|| Fault::None);
        }
        model.init_exit = 0;
        while model.round(|| Fault::None) {}
        assert!(model.world.container("a").unwrap().is_running());
        assert!(model.record.containers["setup"].restarts > 0 && model.record.containers["a"].restarts == 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn it_comes_to_an_end_whatever_else_happens(
            upsets in prop::collection::vec(
                (0usize..5, prop_oneof![1 => any_upset(), 2 => (0usize..3).prop_map(|which| Upset::Ends(which, 42))]),
                1..8,
            ),
            faults in prop::collection::vec(any_fault(), 0..30),
        ) {
            let mut model = running();
            disturb(&mut model, upsets, faults);
            prop_assert!(model.plan().is_empty(), "{:?}", model.plan());
            prop_assert!(!model.record.restarting_all);
            if model.record.terminal.is_some() {
                prop_assert!(!model.world.is_running());
            } else {
                prop_assert!(model.world.container("side").unwrap().is_running(), "{:#?}", model.log);
            }
            prop_assert!(model.record.containers.values().all(|known| known.restarts < 40));
        }

        #[test]
        fn each_begins_anew_once_through_any_fault(which in 0usize..2, faults in prop::collection::vec(any_fault(), 0..30)) {
            let mut model = running();
            let (before, sandbox) = (ids(&model), model.world.sandbox().unwrap().id.clone());
            model.upset(Upset::Ends(which, 42));
            converge(&mut model, faults);
            prop_assert!(model.plan().is_empty() && !model.record.restarting_all);
            prop_assert_eq!(&model.world.sandbox().unwrap().id, &sandbox);
            let after = ids(&model);
            prop_assert!(after.iter().all(|id| !before.contains(id)), "{:#?}", model.log);
            for name in ["side", "a", "b"] {
                prop_assert!(model.world.container(name).unwrap().is_running(), "{}", name);
                prop_assert_eq!(model.record.containers[name].restarts, 1, "{}: {:#?}", name, model.log);
            }
        }
    }
}
