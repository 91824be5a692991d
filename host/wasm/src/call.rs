//! One call of a plugin: what its host functions know, and what it has used. It must not outlive the call.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_core::ports::exec::ContainerExec;
use tokio::time::timeout_at;
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, StoreContextMut, StoreLimits, StoreLimitsBuilder, UpdateDeadline};

use crate::fault::Fault;
use crate::grants::{Capability, Denied, Grants};
use crate::limits::{GRACE, Limits, MAX_INSTANCES, MAX_MEMORIES, MAX_RESOURCES, MAX_TABLES, MOMENT, TABLE_ELEMENTS};
use crate::log::{Lines, Voice};
use crate::meter::{Meter, Ticker};
use crate::net::Address;
use crate::net::web::Web;
use crate::wasi::Wasi;

/// Where a call is aimed. The host fixes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aim {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    pub(crate) container_id: String,
    pub(crate) address: Option<Address>,
}

/// What a call has used of the bounds of `limits.rs`.
#[derive(Debug, Default)]
pub(crate) struct Used {
    pub(crate) execs: u32,
    pub(crate) connections: u32,
    pub(crate) read: usize,
    pub(crate) written: usize,
    pub(crate) requests: u32,
}

/// The state of a store.
pub(crate) struct Call {
    pub(crate) memory: StoreLimits,
    pub(crate) table: ResourceTable,
    pub(crate) meter: Arc<Meter>,
    pub(crate) plugin: Arc<str>,
    pub(crate) aim: Aim,
    pub(crate) began: Instant,
    pub(crate) deadline: Instant,
    pub(crate) exec: Arc<dyn ContainerExec>,
    pub(crate) used: Used,
    /// Where the call may send requests by URL; nowhere, unless granted.
    pub(crate) web: Option<Arc<Web>>,
    /// Bytes of memory that the guest has, in all of its memories; they never shrink.
    pub(crate) held: usize,
    /// The most that these may be.
    most: usize,
    /// Made when the guest first calls a function of WASI: most never do.
    pub(crate) wasi: Option<Box<Wasi>>,
    /// Made when the guest first speaks: most never do.
    voice: Option<Arc<Voice>>,
    lines: Arc<Lines>,
    grants: Grants,
}

/// The time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Late;

impl Call {
    pub(crate) fn new(
        plugin: Arc<str>,
        lines: Arc<Lines>,
        grants: Grants,
        limits: Limits,
        aim: Aim,
        budget: Duration,
        exec: Arc<dyn ContainerExec>,
    ) -> Self {
        let began = Instant::now();
        let memory = StoreLimitsBuilder::new()
            .memory_size(limits.memory)
            .table_elements(TABLE_ELEMENTS)
            .memories(MAX_MEMORIES)
            .tables(MAX_TABLES)
            .instances(MAX_INSTANCES)
            .trap_on_grow_failure(true)
            .build();
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        Self {
            memory,
            table,
            meter: Arc::default(),
            plugin,
            aim,
            began,
            deadline: began + budget,
            exec,
            used: Used::default(),
            web: None,
            held: 0,
            most: limits.memory,
            wasi: None,
            voice: None,
            lines,
            grants,
        }
    }

    /// Begins another call in a store that is warm, and hands out its meter.
    pub(crate) fn renew(&mut self, budget: Duration) -> Arc<Meter> {
        self.began = Instant::now();
        self.deadline = self.began + budget;
        self.used = Used::default();
        self.meter = Arc::default();
        if let Some(voice) = &self.voice {
            voice.renew();
        }
        Arc::clone(&self.meter)
    }

    /// The call, for a function of our own.
    pub(crate) fn ours(&mut self) -> &mut Self {
        self.meter.enters_wasi(false);
        self
    }

    /// Whether the plugin has a capability.
    pub(crate) fn ask(&self, capability: Capability) -> Result<(), Denied> {
        self.grants.ask(capability).inspect_err(|_| {
            tracing::debug!(plugin = %self.plugin, %capability, "a plugin asked for what it was not granted");
        })
    }

    /// What is left of the budget.
    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// When a host function must end: with its own time, and with the budget.
    pub(crate) fn end(&self, own_ms: Option<u32>) -> Instant {
        match own_ms {
            None => self.deadline,
            Some(own) => self.deadline.min(Instant::now() + Duration::from_millis(own.into())),
        }
    }

    /// How the guest speaks in our log.
    pub(crate) fn voice(&mut self) -> &Arc<Voice> {
        self.voice.get_or_insert_with(|| Arc::new(Voice::new(&self.plugin, &self.lines, &self.aim)))
    }
}

/// Bounds of memory, over all memories of a guest.
impl ResourceLimiter for Call {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let held = self.held - current + desired;
        if held > self.most {
            return Err(Fault::Memory(self.most).into());
        }
        let may = self.memory.memory_growing(current, desired, maximum)?;
        if may {
            self.held = held;
        }
        Ok(may)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.memory.table_growing(current, desired, maximum)
    }

    fn instances(&self) -> usize {
        self.memory.instances()
    }

    fn tables(&self) -> usize {
        self.memory.tables()
    }

    fn memories(&self) -> usize {
        self.memory.memories()
    }
}

/// `longshore:types` has no functions.
impl crate::bindings::longshore::types::core::Host for Call {}

/// What happens to a guest at a tick: one that has had its time on the CPU is ended, any other lets others have their turn.
pub(crate) fn tick(store: &StoreContextMut<'_, Call>, limits: Limits) -> UpdateDeadline {
    let meter = &store.data().meter;
    // A tick may have passed while the guest waited; only its own time counts.
    if meter.used() > limits.cpu {
        return UpdateDeadline::Interrupt;
    }
    meter.yields();
    UpdateDeadline::Yield(1)
}

/// Runs a call that has begun, within its bounds.
pub(crate) async fn attend<T>(
    meter: &Meter,
    ticker: &Ticker,
    limits: Limits,
    (began, deadline): (Instant, Instant),
    call: impl Future<Output = wasmtime::Result<T>>,
) -> Result<T, Fault> {
    let ended = until(deadline + GRACE, meter.run(ticker, (deadline, MOMENT), call)).await;
    match ended {
        Ok(Some(Ok(answer))) => Ok(answer),
        Ok(Some(Err(error))) => Err(Fault::of(&error, limits)),
        Ok(None) => Err(Fault::Waited(deadline.duration_since(began))),
        Err(Late) => Err(Fault::Idle(began.elapsed())),
    }
}

/// Awaits something until then.
pub(crate) async fn until<F: Future>(end: Instant, future: F) -> Result<F::Output, Late> {
    timeout_at(end.into(), future).await.map_err(|_| Late)
}

impl Aim {
    /// The address as messages have it.
    pub(crate) fn address_text(&self) -> Option<String> {
        self.address.as_ref().map(|address| match address {
            Address::Ip(ip) => ip.to_string(),
            Address::Name(name) => name.clone(),
        })
    }
}

/// The target's address: what the configuration says, where that counts, else the pod's.
pub(crate) fn address(grants: Grants, config: &str, pod_ip: Option<IpAddr>) -> Option<Address> {
    let of_pod = pod_ip.map(Address::Ip);
    if !grants.host_from_config || !config.contains("\"host\"") {
        return of_pod;
    }
    #[derive(serde::Deserialize)]
    struct Host {
        host: Option<String>,
    }
    match serde_json::from_str::<Host>(config) {
        Ok(Host { host: Some(host) }) if !host.is_empty() => Some(Address::parse(&host)),
        _ => of_pod,
    }
}
