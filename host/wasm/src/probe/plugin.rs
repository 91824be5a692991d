//! One loaded plugin: a new store and instance for every call. It must not keep anything of a guest between calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use longshore_core::ports::exec::ContainerExec;
use longshore_core::ports::probes::{KUBERNETES_VERSION, ProbeAnswer, ProbeOutcome};
use wasmtime::Store;
use wasmtime::component::{Component, Linker};

use super::outcome;
use crate::bindings::ProbePre;
use crate::bindings::longshore::types::core::{NamedPort, Target};
use crate::call::{Aim, Call, attend, tick};
use crate::engine::PluginEngine;
use crate::fault::Fault;
use crate::grants::Grants;
use crate::limits::{HOSTCALL_BYTES, Limits};
use crate::log::Lines;

/// What a plugin did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeStatistics {
    /// Calls that have ended.
    pub calls: u64,
    /// Of these, calls that ended in a fault of the plugin.
    pub faults: u64,
    /// Nanoseconds that the calls spent on a CPU.
    pub cpu_ns: u64,
}

pub(super) struct Plugin {
    name: Arc<str>,
    ready: ProbePre<Call>,
    grants: Grants,
    limits: Limits,
    lines: Arc<Lines>,
    faults_said: Lines,
    calls: AtomicU64,
    faults: AtomicU64,
    cpu_ns: AtomicU64,
}

impl Plugin {
    pub(super) fn prepare(
        name: &str,
        linker: &Linker<Call>,
        component: &Component,
        grants: Grants,
        limits: Limits,
    ) -> wasmtime::Result<Self> {
        let ready = ProbePre::new(linker.instantiate_pre(component)?)?;
        Ok(Self {
            name: name.into(),
            ready,
            grants,
            limits,
            lines: Arc::default(),
            faults_said: Lines::default(),
            calls: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            cpu_ns: AtomicU64::new(0),
        })
    }

    pub(super) fn grants(&self) -> Grants {
        self.grants
    }

    pub(super) fn statistics(&self) -> ProbeStatistics {
        ProbeStatistics {
            calls: self.calls.load(Ordering::Relaxed),
            faults: self.faults.load(Ordering::Relaxed),
            cpu_ns: self.cpu_ns.load(Ordering::Relaxed),
        }
    }

    pub(super) fn call(&self, aim: Aim, budget: Duration, exec: Arc<dyn ContainerExec>) -> Call {
        let (name, lines) = (Arc::clone(&self.name), Arc::clone(&self.lines));
        Call::new(name, lines, self.grants, self.limits, aim, budget, exec)
    }

    pub(super) async fn validate(
        &self,
        engine: &PluginEngine,
        call: Call,
        config: &str,
    ) -> Result<Result<(), String>, String> {
        let said = self
            .within(engine, call, async |store, ready| {
                let guest = ready.instantiate_async(&mut *store).await?;
                guest.longshore_probe_prober().call_validate(store, config).await
            })
            .await;
        said.map_err(|fault| fault.to_string())
    }

    pub(super) async fn check(
        &self,
        engine: &PluginEngine,
        call: Call,
        pod_uid: String,
        ports: Vec<(String, u16)>,
        config: &str,
        budget: Duration,
    ) -> ProbeAnswer {
        let target = Target {
            pod_uid,
            namespace: call.aim.namespace.clone(),
            pod: call.aim.pod.clone(),
            container: call.aim.container.clone(),
            address: call.aim.address_text(),
            ports: ports.into_iter().map(|(name, number)| NamedPort { name, number }).collect(),
            attrs: vec![("kubernetes-version".to_owned(), KUBERNETES_VERSION.to_owned())],
        };
        let (pod, container) = (format!("{}/{}", call.aim.namespace, call.aim.pod), call.aim.container.clone());
        let budget_ms = u32::try_from(budget.as_millis()).unwrap_or(u32::MAX);
        let said = self
            .within(engine, call, async |store, ready| {
                let guest = ready.instantiate_async(&mut *store).await?;
                guest.longshore_probe_prober().call_check(store, &target, config, budget_ms).await
            })
            .await;
        match said.and_then(outcome::of_answer) {
            Ok(answer) => answer,
            Err(fault) => {
                self.faults.fetch_add(1, Ordering::Relaxed);
                if let Some(unsaid) = self.faults_said.take() {
                    tracing::warn!(plugin = %self.name, pod, container, unsaid, %fault, "a probe plugin failed");
                }
                ProbeOutcome::Fault { message: outcome::cut(fault.to_string()) }.into()
            }
        }
    }

    /// Runs one call in a store of its own, within the bounds of a call.
    async fn within<T>(
        &self,
        engine: &PluginEngine,
        call: Call,
        run: impl AsyncFnOnce(&mut Store<Call>, &ProbePre<Call>) -> wasmtime::Result<T>,
    ) -> Result<T, Fault> {
        let meter = Arc::clone(&call.meter);
        let limits = self.limits;
        let times = (call.began, call.deadline);
        let mut store = Store::new(&engine.engine, call);
        store.limiter(|call| call);
        store.set_hostcall_fuel(HOSTCALL_BYTES);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |store| Ok(tick(&store, limits)));
        let ended = attend(&meter, &engine.ticker, limits, times, run(&mut store, &self.ready)).await;
        self.calls.fetch_add(1, Ordering::Relaxed);
        let cpu = u64::try_from(meter.total().as_nanos()).unwrap_or(u64::MAX);
        self.cpu_ns.fetch_add(cpu, Ordering::Relaxed);
        ended
    }
}
