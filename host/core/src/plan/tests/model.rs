//! A model of the runtime, for the properties of plans: it does what actions say, or fails, or the agent dies.

mod upset;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use crate::action::{Action, Planned};
use crate::backoff::{Backoff, Policy};
use crate::cgroup::PodCgroup;
use crate::container::SandboxNetwork;
use crate::node::NodeFacts;
use crate::observed::{Container, ContainerState, Exit, ObservedPod, Sandbox, SandboxState};
use crate::plan::{Busy, Plan, Situation, Unhealthy, plan};
use crate::pod::{ContainerKind, Pod};
use crate::record::PodRecord;
use crate::resize::Progress;
use crate::status;
use crate::testing;

pub(crate) use self::upset::{Upset, any_upset};

/// What goes wrong at an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It is not done, and says so.
    Error,
    /// It is done, and the agent dies before it knows.
    Crash,
    /// It is done and goes unnoticed until the next look.
    LostEvent,
}

/// A pod, its runtime, and the agent's memory of it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) pod: Pod,
    /// What really is.
    pub(crate) world: ObservedPod,
    /// What the agent knows.
    pub(crate) known: ObservedPod,
    pub(crate) record: PodRecord,
    pub(crate) busy: Busy,
    pub(crate) unhealthy: BTreeMap<String, Unhealthy>,
    pub(crate) now: Timestamp,
    pub(crate) released: bool,
    /// Exit code of init containers.
    pub(crate) init_exit: i32,
    /// Exit code of what is stopped.
    pub(crate) stop_exit: i32,
    /// What ends before a container that is being stopped, by ID.
    turns: BTreeMap<String, Vec<String>>,
    /// Sandboxes in which an app container was started.
    begun: BTreeSet<String>,
    serial: u32,
    pub(crate) node: NodeFacts,
    /// The pod's cgroup as the agent knows that it set it.
    pub(crate) cgroup: Option<PodCgroup>,
    /// As it is.
    pub(crate) real_cgroup: Option<PodCgroup>,
    /// Everything that was done, for messages.
    pub(crate) log: Vec<String>,
}

impl Model {
    /// Limits of what runs never exceed the pod's.
    fn assert_within(&self) {
        let Some(cgroup) = &self.real_cgroup else { return };
        for seen in self.world.containers.iter().filter(|seen| seen.is_running()) {
            let Some(has) = seen.resources else { continue };
            let memory = cgroup.memory.is_none_or(|most| has.memory > 0 && has.memory <= most);
            let cpu = cgroup.cpu_quota.is_none_or(|most| has.cpu_quota > 0 && has.cpu_quota <= most);
            assert!(memory && cpu, "{} has more than the pod: {has:?}, {cgroup:?}\n{:#?}", seen.name, self.log);
        }
    }

    pub(crate) fn new(pod: Pod, world: ObservedPod) -> Self {
        let mut model = Model {
            pod,
            known: world.clone(),
            world,
            record: PodRecord::default(),
            busy: Busy::default(),
            unhealthy: BTreeMap::new(),
            now: testing::at(1_000_000),
            released: false,
            init_exit: 0,
            stop_exit: 137,
            turns: BTreeMap::new(),
            begun: BTreeSet::new(),
            serial: 0,
            node: testing::node(),
            cgroup: None,
            real_cgroup: None,
            log: Vec::new(),
        };
        model.world.sort();
        model.look();
        model
    }

    /// The agent looks at everything again, and remembers.
    pub(crate) fn look(&mut self) {
        self.known = self.world.clone();
        let begins_anew = |seen: &Container| seen.kind == ContainerKind::Ephemeral;
        if self.record.restarting_all && self.world.containers.iter().all(begins_anew) {
            self.begun.clear();
        }
        status::remember(&mut self.record, &self.pod, &self.known, &BTreeMap::new(), self.now);
        for known in self.record.containers.values_mut() {
            let runs =
                self.known.containers.iter().any(|seen| Some(&seen.id) == known.id.as_ref() && seen.is_running());
            known.started = runs;
            known.ready = runs;
        }
    }

    pub(crate) fn plan(&self) -> Plan {
        plan(&Situation {
            pod: &self.pod,
            observed: &self.known,
            record: &self.record,
            unhealthy: &self.unhealthy,
            busy: &self.busy,
            blocked: None,
            crash_loop: Policy::CRASH_LOOP,
            node: &self.node,
            cgroup: self.cgroup.as_ref(),
            now: self.now,
        })
    }

    /// Plans once and applies it with the faults that come, one for each action. Says whether there was anything to do.
    pub(crate) fn round(&mut self, mut fault: impl FnMut() -> Fault) -> bool {
        let gaps = crate::resize::gaps(&self.pod, &self.known, &self.record);
        if !gaps.is_empty() && self.record.resize.progress.is_none() {
            self.record.resize.begins_from(self.pod.spec().resources.as_ref());
            self.record.resize.progress = Some(Progress { error: None, generation: 1, since: self.now });
        }
        let plan = self.plan();
        if plan.resized {
            self.record.resize.progress = None;
            self.record.resize.pod = self.pod.spec().resources.clone();
        }
        let longest = self.now + SignedDuration::from_secs(400);
        assert!(plan.wake.is_none_or(|wake| wake <= longest), "waits are bounded: {:?} at {}", plan.waits, self.now);
        status::remember_restarts(&mut self.record, &plan);
        if self.record.terminal.is_none() {
            self.conclude(&plan);
        }
        let mut skipped: Vec<String> = Vec::new();
        let actions: Vec<Planned> = plan.actions().cloned().collect();
        for planned in &actions {
            if planned.action.container().is_some_and(|name| skipped.iter().any(|skip| skip == name)) {
                continue;
            }
            self.log.push(format!("{} ({})", planned.action, planned.why));
            match fault() {
                Fault::None => {
                    self.act(&planned.action);
                    self.look();
                }
                Fault::LostEvent => self.act(&planned.action),
                Fault::Error => match planned.action.container() {
                    Some(name) => {
                        let key = crate::backoff::create(name);
                        self.record.backoffs.insert(key, Backoff::after(None, self.now, "CreateContainerError", ""));
                        skipped.push(name.to_owned());
                    }
                    None if matches!(planned.action, Action::CheckMemory { .. } | Action::SetPodLimits { .. }) => {
                        let backoff = Backoff::after(None, self.now, "Error", "");
                        self.record.backoffs.insert(crate::backoff::RESIZE.to_owned(), backoff);
                        break;
                    }
                    None => {
                        let backoff = Backoff::after(None, self.now, "ContainerCreating", "");
                        self.record.backoffs.insert(crate::backoff::POD.to_owned(), backoff);
                        break;
                    }
                },
                Fault::Crash => {
                    self.act(&planned.action);
                    self.busy = Busy::default();
                    self.cgroup = None;
                    self.unhealthy.clear();
                    self.look();
                    return true;
                }
            }
        }
        // Time passes: what is stopped in the background ends, init containers do their work.
        self.settle();
        let wake = plan.wake.unwrap_or(self.now).max(self.now);
        self.now = if actions.is_empty() {
            wake + SignedDuration::from_secs(1)
        } else {
            self.now + SignedDuration::from_secs(1)
        };
        !actions.is_empty() || plan.wake.is_some()
    }

    /// The pod's end, as the worker concludes it.
    fn conclude(&mut self, plan: &Plan) {
        let node = testing::node();
        let terminal = status::terminal(&status::StatusInput {
            pod: &self.pod,
            observed: &self.known,
            record: &self.record,
            plan,
            busy: &self.busy,
            node: &node,
            now: self.now,
        });
        self.record.terminal = terminal;
    }

    fn settle(&mut self) {
        let now = self.now;
        let (init_exit, stop_exit) = (self.init_exit, self.stop_exit);
        let running = self.world.containers.iter().filter(|seen| seen.is_running());
        let running: BTreeSet<String> = running.map(|seen| seen.id.clone()).collect();
        for seen in &mut self.world.containers {
            let deadline = self.busy.stopping.get(&seen.id).copied();
            let mut turn = self.turns.get(&seen.id).into_iter().flatten();
            if deadline.is_some_and(|deadline| deadline > now) && turn.any(|other| running.contains(other)) {
                continue;
            }
            self.busy.stopping.remove(&seen.id);
            if seen.is_running() && (deadline.is_some() || seen.kind == ContainerKind::Init) {
                let code = if deadline.is_some() { stop_exit } else { init_exit };
                seen.state = ContainerState::Exited(ended(code, now));
                self.log.push(format!("ended {}", seen.name));
            }
        }
        let world = &self.world;
        self.busy.stopping.retain(|id, _| world.containers.iter().any(|seen| seen.id == *id && seen.is_running()));
        self.look();
    }

    fn act(&mut self, action: &Action) {
        self.serial += 1;
        let id = format!("made-{}", self.serial);
        match action {
            Action::EnsureImage { .. } | Action::CheckMemory { .. } => {}
            Action::Prepare => {
                let needed = crate::resize::pod_cgroup(&self.pod, &self.known, &self.record, &self.node);
                self.set_cgroup(needed);
            }
            Action::SetPodLimits { cgroup } => self.set_cgroup(cgroup.clone()),
            Action::UpdateContainer { id, container, to, resources } => {
                let seen = self.world.containers.iter_mut().find(|seen| seen.id == *id);
                // It may have ended meanwhile, unnoticed.
                if let Some(seen) = seen.filter(|seen| seen.is_running()) {
                    let had = seen.resources.map_or(0, |had| had.memory);
                    assert!(had == 0 || resources.memory > 0, "Docker takes no memory limit back: {:#?}", self.log);
                    seen.resources = Some(*resources);
                    let known = self.record.containers.get_mut(container);
                    known.expect("what is resized is known").actuated = Some(*to);
                }
                self.assert_within();
            }
            Action::CreateSandbox { attempt } => {
                let sandbox = Sandbox { id, created_at: self.now, ..testing::sandbox(*attempt, SandboxState::Created) };
                self.world.sandboxes.push(sandbox);
            }
            Action::StartSandbox { .. } => {
                let mut older = self.world.sandboxes.iter().skip(1);
                assert!(!older.any(Sandbox::is_running), "two sandboxes run");
                if let Some(sandbox) = self.world.sandboxes.first_mut() {
                    sandbox.state = SandboxState::Running;
                    sandbox.ips = testing::sandbox(0, SandboxState::Running).ips;
                }
            }
            Action::CreateContainer { container, attempt } => {
                let of = self.pod.container(container).expect("an action names a container of the pod");
                let sandbox = self.world.sandbox().expect("a container is made in a sandbox").id.clone();
                let again = of.kind == ContainerKind::Init && self.begun.contains(&sandbox);
                assert!(!again, "an init container runs again beside or after app containers");
                let made = testing::container(of, *attempt, ContainerState::Created);
                let hash = self.pod.hashes.get(container).cloned().unwrap_or_default();
                let resources = Some(crate::resources::of_container(&self.pod, of.spec, &self.node));
                self.world.containers.push(Container {
                    id,
                    sandbox_id: sandbox,
                    created_at: self.now,
                    hash,
                    resources,
                    ..made
                });
            }
            Action::StartContainer { container } => {
                let sandbox = self.world.sandbox().expect("a container is started in a sandbox");
                assert!(sandbox.is_up(), "the sandbox runs first, and is on its network");
                let now = self.now;
                let made = self.world.containers.iter_mut().find(|seen| seen.name == *container);
                let made = made.expect("a container is made before it is started");
                assert_eq!(made.state, ContainerState::Created, "only what was made is started");
                made.state = ContainerState::Running { started_at: now, pid: 1 };
                if made.kind == ContainerKind::App {
                    self.begun.insert(made.sandbox_id.clone());
                }
                if let Some(known) = self.record.containers.get_mut(container) {
                    known.delayed_restarts += 1;
                }
            }
            Action::StopContainer { id, grace_seconds, after, .. } => {
                assert!(self.world.containers.iter().any(|seen| seen.id == *id), "only what is ours is stopped");
                self.turns.insert(id.clone(), after.clone());
                self.busy.stopping.insert(id.clone(), self.now + SignedDuration::from_secs(*grace_seconds));
            }
            Action::StopSandbox { id } => {
                let sandbox = self.world.sandboxes.iter_mut().find(|sandbox| sandbox.id == *id);
                sandbox.expect("only what is ours is stopped").state = SandboxState::Exited;
            }
            Action::RemoveContainer { id, .. } => {
                // What is gone already was removed unnoticed.
                let seen = self.world.containers.iter().find(|seen| seen.id == *id);
                assert!(seen.is_none_or(|seen| !seen.is_running()), "only what is dead is removed");
                self.world.forget(id);
            }
            Action::RemoveSandbox { id } => {
                let seen = self.world.sandboxes.iter().find(|sandbox| sandbox.id == *id);
                assert!(seen.is_none_or(|sandbox| !sandbox.is_running()), "only what is dead is removed");
                self.world.forget(id);
            }
            Action::ReleaseFiles => {
                assert!(!self.world.is_running(), "what runs keeps its volumes");
                assert!(self.record.terminal.is_some(), "only an end that is known for good gives them back");
                self.record.released = true;
            }
            Action::Release => {
                assert!(
                    self.world.sandboxes.is_empty() && self.world.containers.is_empty(),
                    "everything is gone first"
                );
                self.released = true;
            }
        }
        self.world.sort();
    }
}

impl Model {
    fn set_cgroup(&mut self, cgroup: PodCgroup) {
        self.cgroup = Some(cgroup.clone());
        self.real_cgroup = Some(cgroup);
        self.assert_within();
    }
}

pub(crate) fn ended(code: i32, now: Timestamp) -> Exit {
    Exit {
        code,
        reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
        message: String::new(),
        started_at: Some(now),
        finished_at: now,
    }
}

const WEB: &str = "{restartPolicy: POLICY, containers: [{name: a, image: i}, {name: b, image: i}], \
     initContainers: [{name: setup, image: i}, {name: side, image: i, restartPolicy: Always}]}";

pub(crate) fn web(policy: &str) -> Pod {
    testing::pod_from(&WEB.replace("POLICY", policy))
}

/// Any state that a runtime can be in, whatever led to it.
pub(crate) fn any_world() -> impl Strategy<Value = ObservedPod> {
    let sandboxes = prop::collection::vec((0u32..3, 0u8..4, any::<bool>()), 0..3);
    let containers = prop::collection::vec((0usize..4, 0u32..3, 0u8..4, 0u32..3, any::<bool>()), 0..6);
    (sandboxes, containers).prop_map(|(sandboxes, containers)| {
        let pod = web("Always");
        let mut world = ObservedPod::default();
        for (index, (attempt, state, stale)) in sandboxes.into_iter().enumerate() {
            // At most one runs: the runtime never started two.
            let runs = world.sandboxes.iter().any(Sandbox::is_running);
            // One that runs may be one that plugins did not attach to the end.
            let detached = state == 3;
            let state = match state {
                0 => SandboxState::Created,
                1 | 3 if !runs => SandboxState::Running,
                _ => SandboxState::Exited,
            };
            let mut made = testing::sandbox(attempt, state);
            if detached {
                (made.network, made.ips) = (SandboxNetwork::Detached, Vec::new());
            }
            let hash = if stale { "old".to_owned() } else { made.hash.clone() };
            world.sandboxes.push(Sandbox { id: format!("s{index}"), hash, ..made });
        }
        for (index, (which, attempt, state, sandbox, stale)) in containers.into_iter().enumerate() {
            let of = pod.containers().nth(which).expect("one of four");
            let state = match state {
                0 => ContainerState::Created,
                1 => testing::running(50),
                2 => ContainerState::Exited(ended(0, testing::at(60))),
                _ => ContainerState::Exited(ended(1, testing::at(60))),
            };
            let made = testing::container(of, attempt, state);
            let hash = if stale { "old".to_owned() } else { made.hash.clone() };
            world.containers.push(Container {
                id: format!("c{index}"),
                sandbox_id: format!("s{sandbox}"),
                hash,
                ..made
            });
        }
        world
    })
}
