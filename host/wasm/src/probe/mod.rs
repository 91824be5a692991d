//! `longshore:probe`: the plugins that probe, by name, and the port that the rest of the house sees. It must not know
//! what any of them probes.

pub(crate) mod outcome;
mod plugin;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::ports::exec::ContainerExec;
use longshore_core::ports::probes::{ProbeAnswer, ProbeCall, ProbeConfigError, ProbeOutcome, ProbePlugins};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use wasmtime::component::{HasSelf, Linker};

use crate::bindings::Probe;
use crate::built_in;
use crate::cache::Cache;
use crate::call::{Aim, Call, address};
use crate::engine::{EngineError, PluginEngine, fits};
use crate::grants::Grants;
use crate::limits::{Limits, MAX_CONFIG, PLACES, VALIDATE_BUDGET};
use crate::source::SourceHost;
use crate::wasi;
use plugin::Plugin;

pub use plugin::ProbeStatistics;

/// The names of the built-in plugins.
pub const BUILT_IN_PROBES: [&str; 4] = ["exec", "tcp", "http", "grpc"];

/// Why a plugin was not loaded. Whatever had its name before is still there.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no engine to load it into.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It is no component, or one that this host cannot run. The plugin's author's to mend.
    #[error("plugin {name:?} is not a component that can be run here")]
    Compile {
        /// Name of the plugin.
        name: String,
        /// What wasmtime said.
        #[source]
        source: wasmtime::Error,
    },
    /// It needs more than it may have. The plugin's author's to mend, or for whoever set its limits.
    #[error("plugin {name:?} needs more than it may have: {message}")]
    TooGreat {
        /// Name of the plugin.
        name: String,
        /// What it needs, and what is allowed.
        message: String,
    },
    /// It is a component, but not one of world `longshore:source/source@0.1`. The plugin's author's to mend.
    #[error(
        "plugin {name:?} is not a source: it must export longshore:source/provider@0.1.0, and import nothing but longshore:* and WASI 0.2"
    )]
    NotASource {
        /// Name of the plugin.
        name: String,
        /// What is missing.
        #[source]
        source: wasmtime::Error,
    },
    /// It is a component, but not one of world `longshore:probe/probe@0.1`. The plugin's author's to mend.
    #[error(
        "plugin {name:?} is not a probe: it must export longshore:probe/prober@0.1.0, and import nothing but longshore:* and WASI 0.2"
    )]
    NotAProbe {
        /// Name of the plugin.
        name: String,
        /// What is missing.
        #[source]
        source: wasmtime::Error,
    },
}

/// The probe plugins of this node.
pub struct ProbeHost {
    engine: Arc<PluginEngine>,
    linker: Linker<Call>,
    cache: Arc<Cache>,
    exec: Arc<dyn ContainerExec>,
    plugins: RwLock<BTreeMap<String, Arc<Plugin>>>,
    places: Semaphore,
}

impl ProbeHost {
    /// Starts the engine and loads the built-in plugins; compiled ones are kept in `cache`, a folder that is ours alone.
    ///
    /// Compiling, when the cache has nothing, takes a fraction of a second of this thread.
    ///
    /// # Errors
    /// When the engine does not start, or a built-in plugin does not load.
    pub fn new(exec: Arc<dyn ContainerExec>, cache: &Path) -> Result<Self, LoadError> {
        let engine = Arc::new(PluginEngine::start()?);
        let mut linker = Linker::new(&engine.engine);
        Probe::add_to_linker::<Call, HasSelf<Call>>(&mut linker, Call::ours)
            .and_then(|()| wasi::link(&mut linker))
            .map_err(|error| LoadError::Engine(EngineError::Engine(error)))?;
        let host = Self {
            engine,
            linker,
            cache: Arc::new(Cache::open(cache)),
            exec,
            plugins: RwLock::default(),
            places: Semaphore::new(PLACES),
        };
        for name in BUILT_IN_PROBES {
            let guest = built_in::guest(&format!("{name}-probe"));
            host.load(name, guest.wasm, guest.sha256, Grants::of_built_in(name), Limits::BUILT_IN)?;
        }
        Ok(host)
    }

    /// The host of source plugins, on the same engine and cache.
    ///
    /// # Errors
    /// When the engine refuses.
    pub fn sources(&self) -> Result<SourceHost, LoadError> {
        SourceHost::new(Arc::clone(&self.engine), Arc::clone(&self.cache), Arc::clone(&self.exec))
    }

    /// Loads a plugin under a name. One that had the name before serves until this one can, and finishes what it has begun.
    ///
    /// Compiles on this thread when the cache has nothing: for a great component that may be seconds.
    ///
    /// # Errors
    /// When it is no component, or no probe.
    pub fn load_probe(&self, name: &str, wasm: &[u8], grants: Grants, limits: Limits) -> Result<(), LoadError> {
        self.load(name, wasm, Sha256::digest(wasm).into(), grants, limits)
    }

    fn load(&self, name: &str, wasm: &[u8], sha256: [u8; 32], grants: Grants, limits: Limits) -> Result<(), LoadError> {
        let component = self
            .cache
            .component(&self.engine.engine, wasm, sha256)
            .map_err(|source| LoadError::Compile { name: name.to_owned(), source })?;
        fits(&component, limits).map_err(|message| LoadError::TooGreat { name: name.to_owned(), message })?;
        let plugin = Plugin::prepare(name, &self.linker, &component, grants, limits)
            .map_err(|source| LoadError::NotAProbe { name: name.to_owned(), source })?;
        let mut plugins = self.plugins.write().unwrap_or_else(PoisonError::into_inner);
        plugins.insert(name.to_owned(), Arc::new(plugin));
        Ok(())
    }

    /// Forgets a plugin; calls that it has begun are finished. Whether there was one.
    pub fn unload_probe(&self, name: &str) -> bool {
        self.plugins.write().unwrap_or_else(PoisonError::into_inner).remove(name).is_some()
    }

    /// What each plugin did so far, by name.
    pub fn statistics(&self) -> Vec<(String, ProbeStatistics)> {
        let plugins = self.plugins.read().unwrap_or_else(PoisonError::into_inner);
        plugins.iter().map(|(name, plugin)| (name.clone(), plugin.statistics())).collect()
    }

    fn plugin(&self, name: &str) -> Option<Arc<Plugin>> {
        self.plugins.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn unknown(&self, plugin: &str) -> ProbeConfigError {
        let plugins = self.plugins.read().unwrap_or_else(PoisonError::into_inner);
        ProbeConfigError::UnknownPlugin { plugin: plugin.to_owned(), known: plugins.keys().cloned().collect() }
    }

    fn call(&self, plugin: &Plugin, aim: Aim, budget: Duration) -> Call {
        plugin.call(aim, budget, Arc::clone(&self.exec))
    }
}

#[async_trait]
impl ProbePlugins for ProbeHost {
    async fn validate(&self, name: &str, config: &str) -> Result<(), ProbeConfigError> {
        let plugin = self.plugin(name).ok_or_else(|| self.unknown(name))?;
        if config.len() > MAX_CONFIG {
            let message = format!("it has {} bytes; {MAX_CONFIG} are the most", config.len());
            return Err(ProbeConfigError::Refused { plugin: name.to_owned(), message });
        }
        let _place = self.places.acquire().await;
        let call = self.call(&plugin, Aim::default(), VALIDATE_BUDGET);
        match plugin.validate(&self.engine, call, config).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(message)) => {
                Err(ProbeConfigError::Refused { plugin: name.to_owned(), message: outcome::cut(message) })
            }
            Err(message) => Err(ProbeConfigError::Fault { plugin: name.to_owned(), message }),
        }
    }

    async fn check(&self, call: ProbeCall) -> ProbeAnswer {
        let Some(plugin) = self.plugin(&call.plugin) else {
            return ProbeOutcome::Error { message: self.unknown(&call.plugin).to_string() }.into();
        };
        let ProbeCall { config, target, budget, .. } = call;
        if config.len() > MAX_CONFIG {
            let message = format!("its configuration has more than {MAX_CONFIG} bytes");
            return ProbeOutcome::Error { message }.into();
        }
        let aim = Aim {
            namespace: target.namespace,
            pod: target.pod,
            container: target.container,
            container_id: target.container_id,
            address: address(plugin.grants(), &config, target.pod_ip),
        };
        // Waiting for a place is not charged to the budget, which begins with the call.
        let _place = self.places.acquire().await;
        let call = self.call(&plugin, aim, budget);
        plugin.check(&self.engine, call, target.pod_uid, target.ports, &config, budget).await
    }
}
