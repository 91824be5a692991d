//! What happens to a pod from outside, in the model: all that is not the agent's doing.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use proptest::prelude::*;

use super::{Model, ended};
use crate::observed::{Container, ContainerState, Sandbox, SandboxState};
use crate::plan::{Cause, Unhealthy};
use crate::probe::ProbeKind;
use crate::resize::Progress;

/// What happens to a pod from outside. Numbers choose among `side`, `a` and `b`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Upset {
    /// Its liveness probe fails.
    Unhealthy(usize),
    /// Its definition changes.
    Changed(usize),
    /// It ends.
    Ends(usize, i32),
    /// Everything dead is removed.
    Pruned,
    /// It is removed by force.
    Removed(usize),
    /// The sandbox dies, alone.
    SandboxDies,
    /// The clock steps back, by seconds.
    ClockBack(i64),
    /// It is given other limits: hundredths of a core, and MiB, 0 for no limit of memory.
    Resized(usize, i64, i64),
    /// The pod as a whole is, the same way.
    PodResized(i64, i64),
}

pub(crate) fn any_upset() -> impl Strategy<Value = Upset> {
    prop_oneof![
        (0usize..3).prop_map(Upset::Unhealthy),
        (0usize..3).prop_map(Upset::Changed),
        (0usize..3, 0i32..2).prop_map(|(which, code)| Upset::Ends(which, code)),
        Just(Upset::Pruned),
        (0usize..3).prop_map(Upset::Removed),
        Just(Upset::SandboxDies),
        (1i64..200_000).prop_map(Upset::ClockBack),
    ]
}

impl Model {
    /// Lets something happen, and the agent see it.
    pub(crate) fn upset(&mut self, upset: Upset) {
        self.log.push(format!("{upset:?}"));
        self.serial += 1;
        let name = |which: usize| ["side", "a", "b", "debug"][which];
        match upset {
            Upset::Unhealthy(which) => {
                let running = self.known.container(name(which)).filter(|seen| seen.is_running());
                let unhealthy = Unhealthy { cause: Cause::Probe(ProbeKind::Liveness), grace_seconds: None };
                self.unhealthy.extend(running.map(|seen| (seen.id.clone(), unhealthy)));
            }
            Upset::Changed(which) => {
                self.pod.hashes.insert(name(which).to_owned(), format!("new-{}", self.serial));
            }
            Upset::Ends(which, code) => {
                let now = self.now;
                for seen in self.world.containers.iter_mut().filter(|seen| seen.name == name(which)) {
                    if seen.is_running() {
                        seen.state = ContainerState::Exited(ended(code, now));
                    }
                }
            }
            Upset::Pruned => {
                self.world.containers.retain(Container::is_running);
                self.world.sandboxes.retain(Sandbox::is_running);
            }
            Upset::Removed(which) => self.world.containers.retain(|seen| seen.name != name(which)),
            Upset::SandboxDies => {
                self.world.sandboxes.iter_mut().for_each(|sandbox| sandbox.state = SandboxState::Exited);
            }
            Upset::ClockBack(seconds) => self.now -= SignedDuration::from_secs(seconds),
            Upset::Resized(which, cpu, memory) => self.resize(Some(name(which)), cpu, memory),
            Upset::PodResized(cpu, memory) => self.resize(None, cpu, memory),
        }
        self.look();
    }

    fn resize(&mut self, name: Option<&str>, cpu: i64, memory: i64) {
        self.record.resize.begins_from(self.pod.object.spec.as_ref().and_then(|spec| spec.resources.as_ref()));
        let list = |part: i64| {
            let cpu = ("cpu".to_owned(), Quantity(format!("{}m", cpu * 10 / part)));
            let memory = (memory > 0).then(|| ("memory".to_owned(), Quantity(format!("{memory}Mi"))));
            Some(std::iter::once(cpu).chain(memory).collect::<BTreeMap<_, _>>())
        };
        let resources = ResourceRequirements { limits: list(1), requests: list(2), ..Default::default() };
        let spec = Arc::make_mut(&mut self.pod.object).spec.as_mut().expect("a spec");
        match name {
            None => spec.resources = Some(resources),
            Some(name) => {
                let mut all = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
                let container = all.find(|container| container.name == name);
                container.expect("a container of the pod").resources = Some(resources);
            }
        }
        self.record.resize.progress = Some(Progress { error: None, generation: 1, since: self.now });
    }
}
