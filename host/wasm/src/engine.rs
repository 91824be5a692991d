//! The engine: how guests are compiled and where their memory comes from. It must not know any extension point.

use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::limits::{MAX_MEMORY, PLACES, SOURCES, TABLE_ELEMENTS};
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
    // wit-component makes up to four core instances and two tables of one guest.
    pool.total_component_instances(places)
        .total_core_instances(places * 4)
        .total_memories(places)
        .total_tables(places * 2)
        .total_stacks(places)
        .table_elements(TABLE_ELEMENTS)
        .max_memory_size(MAX_MEMORY)
        // Clearing what a small guest touched is cheaper than giving it back; idle, this is all that stays resident.
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(16 << 10)
        .max_unused_warm_slots(4);
    pool
}
