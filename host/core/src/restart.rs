//! Whether a container that ended is started again, and when.
//!
//! As `pkg/kubelet/container/helpers.go` (`ShouldContainerBeRestarted`) and `kuberuntime_manager.go` (`doBackOff`),
//! with per-container policies and rules of KEP-5307 and KEP-5532.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;

use crate::backoff::Policy;
use crate::hash;
use crate::observed::{Container, Exit};
use crate::pod::{ContainerKind, ContainerOf, Pod};
use crate::record::ContainerRecord;
use crate::resize::Amounts;

/// After a run of this length the crash-loop delay starts anew (twice the kubelet's longest delay).
pub const FORGET_AFTER: SignedDuration = SignedDuration::from_mins(10);

/// The action of a rule that begins the whole pod anew in its sandbox (KEP-5532).
const RESTART_ALL: &str = "RestartAllContainers";

/// The first rule that is about that exit code (`FindMatchingContainerRestartRule`).
fn matching_rule(container: &v1::Container, exit_code: i32) -> Option<&v1::ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    })
}

/// Whether a container that ended like this begins all containers of its pod anew.
pub fn restarts_all(container: &v1::Container, exit_code: i32) -> bool {
    matching_rule(container, exit_code).is_some_and(|rule| rule.action == RESTART_ALL)
}

/// Whether the end of any container may begin all of them anew (`AllContainersCouldRestart`).
pub fn could_restart_all(spec: &v1::PodSpec) -> bool {
    let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.any(|container| container.restart_policy_rules.iter().flatten().any(|rule| rule.action == RESTART_ALL))
}

/// Whether a container that ended like this is to run again.
pub fn should_restart(pod: &Pod, container: ContainerOf<'_>, exit: &Exit) -> bool {
    match container.kind {
        ContainerKind::Sidecar => return true,
        ContainerKind::Ephemeral => return false,
        // One that did its work is not run again, whatever the policies and rules.
        ContainerKind::Init if !exit.is_failure() => return false,
        ContainerKind::Init | ContainerKind::App => {}
    }
    if let Some(rule) = matching_rule(container.spec, exit.code) {
        return rule.action == "Restart" || rule.action == RESTART_ALL;
    }
    match policy(pod, container) {
        "Never" => false,
        "OnFailure" => exit.code != 0,
        _ => true,
    }
}

/// Whether a container whose probe fails as it runs is stopped only to be started again. Its rules are about exits: they are not asked
/// (`computePodActions`).
pub fn restarts_by_probe(pod: &Pod, container: ContainerOf<'_>) -> bool {
    match container.kind {
        ContainerKind::Sidecar => true,
        ContainerKind::Ephemeral => false,
        ContainerKind::Init | ContainerKind::App => policy(pod, container) != "Never",
    }
}

/// A container's own policy, or its pod's.
fn policy<'a>(pod: &'a Pod, container: ContainerOf<'a>) -> &'a str {
    container.spec.restart_policy.as_deref().unwrap_or_else(|| pod.restart_policy())
}

/// Whether the newest container, which ended like this, is followed by another one: because it was stopped for that,
/// or because its policy says so.
pub fn runs_again(pod: &Pod, container: ContainerOf<'_>, known: Option<&ContainerRecord>, exit: &Exit) -> bool {
    known.is_some_and(|known| known.restarting) || should_restart(pod, container, exit)
}

/// How many restarts count for the delay, when a container is restarted that ended like this.
pub fn counted_restarts(record: &ContainerRecord, exit: &Exit) -> u32 {
    let started = exit.started_at.or(record.started_at);
    let ran_long = started.is_some_and(|started| exit.finished_at.duration_since(started) > FORGET_AFTER);
    if ran_long { 0 } else { record.delayed_restarts }
}

/// Whether the one that follows a container is made from another definition, or for another size: its delay is one of its own
/// (the kubelet's key has its image and resources in it, `GetBackoffKey`).
pub fn is_another(pod: &Pod, container: ContainerOf<'_>, seen: &Container, known: Option<&ContainerRecord>) -> bool {
    let changed = pod.hashes.get(&container.spec.name).is_some_and(|hash| !hash::fits(&seen.hash, hash));
    let given = Amounts::of(pod.spec(), container.spec);
    changed || known.is_some_and(|known| known.actuated.is_some_and(|actuated| actuated != given))
}

/// How many restarts count for the delay once the one that follows such a container was made. Another one begins with the shortest
/// delay; with none where nothing of the name had ended but what was stopped for it (`doBackOff` sees no exit then).
pub fn counted_with_next(record: &ContainerRecord, exit: &Exit, is_another: bool) -> u32 {
    match is_another {
        true => u32::from(!record.restarting || record.last_exit.is_some()),
        false => counted_restarts(record, exit).saturating_add(1),
    }
}

/// When a container that ended like this may be started again: at once the first time, then later and later.
/// A time in the future (the clock stepped back) counts as now.
pub fn restart_at(record: &ContainerRecord, exit: &Exit, policy: Policy, now: Timestamp) -> Timestamp {
    let delay = policy.delay(counted_restarts(record, exit));
    exit.finished_at.min(now).checked_add(delay).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{exit, pod_from};

    fn decide(policy: &str, container: &str, code: i32) -> bool {
        let pod = pod_from(&format!(
            "{{restartPolicy: {policy}, containers: [{{name: c, image: i, {container}}}], initContainers: [{{name: i, image: i}}, {{name: s, image: i, restartPolicy: Always}}]}}"
        ));
        should_restart(&pod, pod.container("c").expect("it is there"), &exit(code, 0, 1))
    }

    #[test]
    fn the_pods_policy_decides() {
        assert!(decide("Always", "", 0) && decide("Always", "", 1));
        assert!(!decide("OnFailure", "", 0) && decide("OnFailure", "", 1));
        assert!(!decide("Never", "", 0) && !decide("Never", "", 1));
    }

    #[test]
    fn a_containers_own_rules_come_first() {
        let rules =
            "restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]";
        assert!(decide("Never", rules, 42));
        assert!(!decide("Always", rules, 1));
        assert!(decide("Never", "restartPolicy: OnFailure", 1));
    }

    #[test]
    fn init_containers_run_again_only_on_failure() {
        let pod = pod_from(
            "{restartPolicy: Always, containers: [{name: c, image: i}], initContainers: [{name: i, image: i}, {name: s, image: i, restartPolicy: Always}]}",
        );
        let init = pod.container("i").expect("it is there");
        assert!(!should_restart(&pod, init, &exit(0, 0, 1)) && should_restart(&pod, init, &exit(1, 0, 1)));
        let killed = Exit { reason: Exit::OUT_OF_MEMORY.to_owned(), ..exit(0, 0, 1) };
        assert!(should_restart(&pod, init, &killed), "one of its processes was killed");
        let sidecar = pod.container("s").expect("it is there");
        assert!(should_restart(&pod, sidecar, &exit(0, 0, 1)));
        let ruled = pod_from(
            "{containers: [{name: c, image: i}], initContainers: [{name: i, image: i, restartPolicy: Never, \
             restartPolicyRules: [{action: Restart, exitCodes: {operator: NotIn, values: [42]}}]}]}",
        );
        let init = ruled.container("i").expect("it is there");
        let again = |code| should_restart(&ruled, init, &exit(code, 0, 1));
        assert!(!again(0) && again(1) && !again(42), "its rules are asked of failures alone");
    }

    #[test]
    fn the_first_restart_is_at_once_and_a_long_run_forgets() {
        let mut record = ContainerRecord::default();
        let short = exit(1, 100, 110);
        let now = Timestamp::from_second(1_000).expect("valid");
        assert_eq!(restart_at(&record, &short, Policy::CRASH_LOOP, now).as_second(), 110);
        record.delayed_restarts = 3;
        assert_eq!(restart_at(&record, &short, Policy::CRASH_LOOP, now).as_second(), 150);
        assert_eq!(restart_at(&record, &exit(1, 100, 900), Policy::CRASH_LOOP, now).as_second(), 900);
        assert_eq!(counted_with_next(&record, &short, false), 4);
        assert_eq!(counted_with_next(&record, &short, true), 1);
        record.restarting = true;
        assert_eq!(
            counted_with_next(&record, &short, true),
            0,
            "it was stopped for the other one, and none had failed"
        );
    }
}
