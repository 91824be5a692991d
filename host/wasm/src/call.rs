//! One call of a plugin: what its host functions know, and what it has used. It must not outlive the call.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_core::ports::exec::ContainerExec;
use tokio::time::timeout_at;
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, StoreLimits, StoreLimitsBuilder};

use crate::grants::{Capability, Denied, Grants};
use crate::limits::{Limits, MAX_LINES, TABLE_ELEMENTS};
use crate::log::Lines;
use crate::meter::Meter;
use crate::net::Address;
use crate::net::web::Web;

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
    pub(crate) lines: u32,
}

/// The state of a store.
pub(crate) struct Call {
    pub(crate) memory: StoreLimits,
    pub(crate) table: ResourceTable,
    pub(crate) meter: Arc<Meter>,
    pub(crate) plugin: Arc<str>,
    pub(crate) lines: Arc<Lines>,
    pub(crate) aim: Aim,
    pub(crate) began: Instant,
    pub(crate) deadline: Instant,
    pub(crate) exec: Arc<dyn ContainerExec>,
    pub(crate) used: Used,
    /// Where the call may send requests by URL; nowhere, unless granted.
    pub(crate) web: Option<Arc<Web>>,
    /// The most memory that the guest has had.
    pub(crate) grown: usize,
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
            .memories(1)
            .tables(4)
            .instances(8)
            .trap_on_grow_failure(true)
            .build();
        Self {
            memory,
            table: ResourceTable::new(),
            meter: Arc::default(),
            plugin,
            lines,
            aim,
            began,
            deadline: began + budget,
            exec,
            used: Used::default(),
            web: None,
            grown: 0,
            grants,
        }
    }

    /// Begins another call in a store that is warm, and hands out its meter.
    pub(crate) fn renew(&mut self, budget: Duration) -> Arc<Meter> {
        self.began = Instant::now();
        self.deadline = self.began + budget;
        self.used = Used::default();
        self.meter = Arc::default();
        Arc::clone(&self.meter)
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

    /// Counts a log line; whether it may still be written.
    pub(crate) fn may_log(&mut self) -> bool {
        self.used.lines = self.used.lines.saturating_add(1);
        self.used.lines <= MAX_LINES
    }
}

/// Bounds of memory, and a look at how much it became.
impl ResourceLimiter for Call {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let may = self.memory.memory_growing(current, desired, maximum)?;
        if may {
            self.grown = self.grown.max(desired);
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
