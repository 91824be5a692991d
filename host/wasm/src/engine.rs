//! The engine: how guests are compiled and where their memory comes from. It must not know any extension point.

use wasmtime::component::Component;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::limits::{Limits, MAX_INSTANCES, MAX_MEMORIES, MAX_MEMORY, MAX_TABLES, PLACES, SOURCES, TABLE_ELEMENTS};
use crate::meter::Ticker;

/// Why there is no engine: the node's to mend, or ours.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// wasmtime refuses this machine or our settings.
    #[error("the WebAssembly engine does not start on this machine")]
    Engine(#[source] wasmtime::Error),
    /// The thread that stops runaway plugins could not be started.
    #[error("cannot start the thread that interrupts plugins")]
    Ticker(#[source] std::io::Error),
}

/// An engine with its ticker.
pub(crate) struct PluginEngine {
    pub(crate) engine: Engine,
    pub(crate) ticker: Ticker,
}

impl PluginEngine {
    /// Starts an engine. Where address space is too short for the pool, instances are allocated one by one.
    pub(crate) fn start() -> Result<Self, EngineError> {
        let engine = match Engine::new(&config(true)) {
            Ok(engine) => engine,
            Err(error) => {
                tracing::warn!(error = %error.root_cause(), "no pool of instances for plugins: each probe will cost more");
                Engine::new(&config(false)).map_err(EngineError::Engine)?
            }
        };
        let weak = engine.weak();
        let tick = move || {
            if let Some(engine) = weak.upgrade() {
                engine.increment_epoch();
            }
        };
        let ticker = Ticker::start(tick).map_err(EngineError::Ticker)?;
        Ok(Self { engine, ticker })
    }
}

/// Whether an instance can be had within the bounds; otherwise every call would fail.
pub(crate) fn fits(component: &Component, limits: Limits) -> Result<(), String> {
    const PAGE: u64 = 64 << 10;
    // Nothing is known of one that imports modules, and nobody links such.
    let Some(needed) = component.resources_required() else { return Ok(()) };
    let memory = needed.max_initial_memory_size.unwrap_or_default().saturating_mul(PAGE);
    let elements = needed.max_initial_table_size.unwrap_or_default();
    if memory > limits.memory as u64 {
        Err(format!("it begins with {} KiB of memory, its limit is {} KiB", memory >> 10, limits.memory >> 10))
    } else if needed.num_memories as usize > MAX_MEMORIES {
        Err(format!("it has {} memories, {MAX_MEMORIES} are the most", needed.num_memories))
    } else if needed.num_tables as usize > MAX_TABLES {
        Err(format!("it has {} tables, {MAX_TABLES} are the most", needed.num_tables))
    } else if elements > TABLE_ELEMENTS as u64 {
        Err(format!("it has a table of {elements} elements, {TABLE_ELEMENTS} are the most"))
    } else {
        Ok(())
    }
}

fn config(pooling: bool) -> Config {
    let mut config = Config::new();
    config
        // Component-model async (WASI 0.3) makes every call slower, and is not ready in 48.
        .concurrency_support(false)
        .epoch_interruption(true)
        .wasm_memory64(false)
        // One compilation at a start, if any: worker threads would stay, and cost more memory than they save time.
        .parallel_compilation(false)
        .native_unwind_info(false)
        // Bounds are checked in code, not by 4 GiB of address space for each instance: guests here are small and brief.
        .memory_reservation(MAX_MEMORY as u64)
        .memory_guard_size(64 << 10)
        .memory_may_move(false);
    if pooling {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    }
    config
}

fn pool() -> PoolingAllocationConfig {
    let places = PLACES as u32 + SOURCES as u32;
    let mut pool = PoolingAllocationConfig::default();
    // Whatever one guest may have, all may have at once: none can make another one's instance fail. Instances are counted only, and a
    // table costs address space.
    pool.total_component_instances(places)
        .total_core_instances(places * MAX_INSTANCES as u32)
        .total_memories(places * MAX_MEMORIES as u32)
        .total_tables(places * MAX_TABLES as u32)
        .total_stacks(places)
        .max_tables_per_module(MAX_TABLES as u32)
        .table_elements(TABLE_ELEMENTS)
        .max_memory_size(MAX_MEMORY)
        // Clearing what a small guest touched is cheaper than giving it back; idle, this is all that stays resident.
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(16 << 10)
        .max_unused_warm_slots(4);
    pool
}
