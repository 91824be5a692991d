//! One source's guest: a warm instance that is polled, one poll after the other. It must not know what a poll's answer means.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use longshore_core::ports::exec::ContainerExec;
use wasmtime::Store;
use wasmtime::component::{Component, Linker};

use crate::bindings::longshore::types::core::PluginError;
use crate::bindings::source::exports::longshore::source::provider::Batch;
use crate::bindings::source::{Source, SourcePre};
use crate::call::{Aim, Call, attend, tick};
use crate::engine::PluginEngine;
use crate::fault::Fault;
use crate::grants::Grants;
use crate::limits::{Limits, RECYCLE_MEMORY, RECYCLE_POLLS, SOURCE_BYTES};
use crate::log::Lines;
use crate::net::web::Web;

/// What a source did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceStatistics {
    /// Polls that have ended.
    pub polls: u64,
    /// Of these, polls that ended in a fault of the plugin.
    pub faults: u64,
    /// Instances that were made.
    pub instances: u64,
    /// Nanoseconds that polls spent on a CPU.
    pub cpu_ns: u64,
}

pub(super) struct Plugin {
    pub(super) name: Arc<str>,
    engine: Arc<PluginEngine>,
    ready: SourcePre<Call>,
    limits: Limits,
    web: Arc<Web>,
    exec: Arc<dyn ContainerExec>,
    lines: Arc<Lines>,
    polls: AtomicU64,
    faults: AtomicU64,
    instances: AtomicU64,
    cpu_ns: AtomicU64,
}

/// An instance that has been polled, and may be again.
pub(super) struct Warm {
    store: Store<Call>,
    guest: Source,
    polls: u32,
}

impl Plugin {
    pub(super) fn prepare(
        name: &str,
        engine: &Arc<PluginEngine>,
        linker: &Linker<Call>,
        component: &Component,
        limits: Limits,
        web: Arc<Web>,
        exec: Arc<dyn ContainerExec>,
    ) -> wasmtime::Result<Self> {
        Ok(Self {
            name: name.into(),
            engine: Arc::clone(engine),
            ready: SourcePre::new(linker.instantiate_pre(component)?)?,
            limits,
            web,
            exec,
            lines: Arc::default(),
            polls: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            instances: AtomicU64::new(0),
            cpu_ns: AtomicU64::new(0),
        })
    }

    pub(super) fn statistics(&self) -> SourceStatistics {
        SourceStatistics {
            polls: self.polls.load(Ordering::Relaxed),
            faults: self.faults.load(Ordering::Relaxed),
            instances: self.instances.load(Ordering::Relaxed),
            cpu_ns: self.cpu_ns.load(Ordering::Relaxed),
        }
    }

    /// Counts a fault that is found in an answer.
    pub(super) fn at_fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// One poll, in the warm instance when there is one. After a fault there is none any more.
    pub(super) async fn poll(
        &self,
        warm: &mut Option<Warm>,
        config: &str,
        cursor: Option<&[u8]>,
        max_wait: Duration,
        budget: Duration,
    ) -> Result<Result<Batch, PluginError>, Fault> {
        let mut store = None;
        let (guest, polls) = match warm.take() {
            Some(Warm { store: its, guest, polls }) => {
                store = Some(its);
                (Some(guest), polls)
            }
            None => (None, 0),
        };
        let mut store = store.unwrap_or_else(|| self.store(budget));
        let meter = store.data_mut().renew(budget);
        store.set_epoch_deadline(1);
        let times = (store.data().began, store.data().deadline);
        let max_wait_ms = u32::try_from(max_wait.as_millis()).unwrap_or(u32::MAX);
        let call = async {
            let guest = match guest {
                Some(guest) => guest,
                None => {
                    self.instances.fetch_add(1, Ordering::Relaxed);
                    self.ready.instantiate_async(&mut store).await?
                }
            };
            let provider = guest.longshore_source_provider();
            let answer = provider.call_poll(&mut store, config, cursor, max_wait_ms).await?;
            Ok((guest, answer))
        };
        let ended = attend(&meter, &self.engine.ticker, self.limits, times, call).await;
        self.polls.fetch_add(1, Ordering::Relaxed);
        let cpu = u64::try_from(meter.total().as_nanos()).unwrap_or(u64::MAX);
        self.cpu_ns.fetch_add(cpu, Ordering::Relaxed);
        match ended {
            Ok((guest, answer)) => {
                let polls = polls + 1;
                // What lasts is in the cursor, so that a new instance loses nothing.
                if polls < RECYCLE_POLLS && store.data().held < RECYCLE_MEMORY {
                    *warm = Some(Warm { store, guest, polls });
                }
                Ok(answer)
            }
            Err(fault) => {
                self.at_fault();
                Err(fault)
            }
        }
    }

    fn store(&self, budget: Duration) -> Store<Call> {
        let (name, lines, exec) = (Arc::clone(&self.name), Arc::clone(&self.lines), Arc::clone(&self.exec));
        let limits = self.limits;
        let mut call = Call::new(name, lines, Grants::default(), limits, Aim::default(), budget, exec);
        call.web = Some(Arc::clone(&self.web));
        let mut store = Store::new(&self.engine.engine, call);
        store.limiter(|call| call);
        store.set_hostcall_fuel(SOURCE_BYTES);
        store.epoch_deadline_callback(move |store| Ok(tick(&store, limits)));
        store
    }
}
