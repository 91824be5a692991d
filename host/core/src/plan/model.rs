//! A model of the runtime, for the properties of plans: it does what actions say, or fails, or the agent dies.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{Busy, Plan, Situation, Unhealthy, plan};
use crate::action::{Action, Planned};
use crate::backoff::{Backoff, Policy};
use crate::observed::{Container, ContainerState, Exit, ObservedPod, Sandbox, SandboxState};
use crate::pod::{ContainerKind, Pod};
use crate::record::PodRecord;
use crate::status;
use crate::testing;

/// What goes wrong at an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
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
pub(super) struct Model {
    pub(super) pod: Pod,
    /// What really is.
    pub(super) world: ObservedPod,
    /// What the agent knows.
    pub(super) known: ObservedPod,
    pub(super) record: PodRecord,
    pub(super) busy: Busy,
    pub(super) unhealthy: BTreeMap<String, Unhealthy>,
    pub(super) now: Timestamp,
    pub(super) released: bool,
    /// Exit code of init containers.
    pub(super) init_exit: i32,
    serial: u32,
    /// Everything that was done, for messages.
    pub(super) log: Vec<String>,
}

impl Model {
    pub(super) fn new(pod: Pod, world: ObservedPod) -> Self {
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
            serial: 0,
            log: Vec::new(),
        };
        model.world.sort();
        model.look();
        model
    }

    /// The agent looks at everything again, and remembers.
    pub(super) fn look(&mut self) {
        self.known = self.world.clone();
        status::remember(&mut self.record, &self.pod, &self.known, &BTreeMap::new(), self.now);
        for known in self.record.containers.values_mut() {
            let runs =
                self.known.containers.iter().any(|seen| Some(&seen.id) == known.id.as_ref() && seen.is_running());
            known.started = runs;
            known.ready = runs;
        }
    }

    pub(super) fn plan(&self) -> Plan {
        plan(&Situation {
            pod: &self.pod,
            observed: &self.known,
            record: &self.record,
            unhealthy: &self.unhealthy,
            busy: &self.busy,
            blocked: None,
            crash_loop: Policy::CRASH_LOOP,
            now: self.now,
        })
    }

    /// Plans once and applies it with the faults that come, one for each action. Says whether there was anything to do.
    pub(super) fn round(&mut self, mut fault: impl FnMut() -> Fault) -> bool {
        let plan = self.plan();
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
                        let key = format!("create/{name}");
                        self.record.backoffs.insert(key, Backoff::after(None, self.now, "CreateContainerError", ""));
                        skipped.push(name.to_owned());
                    }
                    None => {
                        let backoff = Backoff::after(None, self.now, "ContainerCreating", "");
                        self.record.backoffs.insert("pod".to_owned(), backoff);
                        break;
                    }
                },
                Fault::Crash => {
                    self.act(&planned.action);
                    self.busy = Busy::default();
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
        let init_exit = self.init_exit;
        for seen in &mut self.world.containers {
            let stopping = self.busy.stopping.contains_key(&seen.id);
            if seen.is_running() && (stopping || seen.kind == ContainerKind::Init) {
                let code = if stopping { 137 } else { init_exit };
                seen.state = ContainerState::Exited(ended(code, now));
            }
        }
        self.busy.stopping.clear();
        self.look();
    }

    fn act(&mut self, action: &Action) {
        self.serial += 1;
        let id = format!("made-{}", self.serial);
        match action {
            Action::Prepare | Action::EnsureImage { .. } => {}
            Action::CreateSandbox { attempt } => {
                let sandbox = Sandbox { id, created_at: self.now, ..testing::sandbox(*attempt, SandboxState::Created) };
                self.world.sandboxes.push(sandbox);
            }
            Action::StartSandbox { .. } => {
                let mut older = self.world.sandboxes.iter().skip(1);
                assert!(!older.any(|other| other.state == SandboxState::Running), "two sandboxes run");
                if let Some(sandbox) = self.world.sandboxes.first_mut() {
                    sandbox.state = SandboxState::Running;
                }
            }
            Action::CreateContainer { container, attempt } => {
                let of = self.pod.container(container).expect("an action names a container of the pod");
                let sandbox = self.world.sandbox().expect("a container is made in a sandbox").id.clone();
                let made = testing::container(of, *attempt, ContainerState::Created);
                self.world.containers.push(Container { id, sandbox_id: sandbox, created_at: self.now, ..made });
            }
            Action::StartContainer { container } => {
                let sandbox = self.world.sandbox().expect("a container is started in a sandbox");
                assert_eq!(sandbox.state, SandboxState::Running, "the sandbox runs first");
                let now = self.now;
                let made = self.world.containers.iter_mut().find(|seen| seen.name == *container);
                let made = made.expect("a container is made before it is started");
                assert_eq!(made.state, ContainerState::Created, "only what was made is started");
                made.state = ContainerState::Running { started_at: now, pid: 1 };
                if let Some(known) = self.record.containers.get_mut(container) {
                    known.delayed_restarts += 1;
                }
            }
            Action::StopContainer { id, grace_seconds, .. } => {
                assert!(self.world.containers.iter().any(|seen| seen.id == *id), "only what is ours is stopped");
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
                assert!(
                    seen.is_none_or(|sandbox| sandbox.state != SandboxState::Running),
                    "only what is dead is removed"
                );
                self.world.forget(id);
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

pub(super) fn ended(code: i32, now: Timestamp) -> Exit {
    Exit {
        code,
        reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
        message: String::new(),
        started_at: Some(now),
        finished_at: now,
    }
}
