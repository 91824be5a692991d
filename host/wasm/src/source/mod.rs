//! `longshore:source`: plugins that say which pods should run, and the port that the rest of the house sees. It must not know where
//! any of them looks, but for the built-in one, whose grants are made here.

mod plugin;
mod state;
mod task;
mod url;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _};
use longshore_core::pod::{Pod, Source};
use longshore_core::ports::exec::ContainerExec;
use longshore_core::ports::sources::{PodSource, SourceProblem, SourceSnapshot};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use wasmtime::component::{HasSelf, Linker};

use crate::bindings::source as world;
use crate::built_in;
use crate::cache::Cache;
use crate::call::Call;
use crate::engine::{EngineError, PluginEngine, fits};
use crate::limits::{Limits, SOURCES};
use crate::net::web::Web;
use crate::probe::LoadError;
use crate::wasi;
use plugin::Plugin;

pub use plugin::SourceStatistics;
pub use url::UrlSource;

/// The name of the built-in guest, in logs and statistics.
const URL_SOURCE: &str = "url-source";

/// How a source is run, whatever it is.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// Which source it is to the rest of the house.
    pub source: Source,
    /// Name of this node: part of the pods' names and UIDs.
    pub node_name: String,
    /// What the source's problems name as their place, and what UIDs of pods are made of: no secrets.
    pub place: String,
    /// Handed to the plugin as it is (JSON).
    pub config: String,
    /// Time between two polls; at least 100 ms.
    pub period: Duration,
    /// Time that a poll may take.
    pub budget: Duration,
    /// Pods of this source that ran before the agent started, from their records: kept until each manifest was read once.
    pub former: Vec<Pod>,
    /// Hosts that the plugin may send requests to.
    pub hosts: Vec<String>,
    /// A file of CA certificates (PEM) that are believed in place of the system's.
    pub ca_file: Option<std::path::PathBuf>,
}

/// Loads source plugins.
pub struct SourceHost {
    engine: Arc<PluginEngine>,
    cache: Arc<Cache>,
    exec: Arc<dyn ContainerExec>,
    linker: Linker<Call>,
    places: Arc<Semaphore>,
}

impl SourceHost {
    pub(crate) fn new(
        engine: Arc<PluginEngine>,
        cache: Arc<Cache>,
        exec: Arc<dyn ContainerExec>,
    ) -> Result<Self, LoadError> {
        let mut linker = Linker::new(&engine.engine);
        world::Source::add_to_linker::<Call, HasSelf<Call>>(&mut linker, Call::ours)
            .and_then(|()| wasi::link(&mut linker))
            .map_err(|error| LoadError::Engine(EngineError::Engine(error)))?;
        Ok(Self { engine, cache, exec, linker, places: Arc::new(Semaphore::new(SOURCES)) })
    }

    /// Compiles the built-in source into the cache, for whoever loads it later.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn compile_built_in(&self) -> Result<(), LoadError> {
        let guest = built_in::guest(URL_SOURCE);
        let compiled = self.cache.component(&self.engine.engine, guest.wasm, guest.sha256);
        compiled.map(drop).map_err(|source| LoadError::Compile { name: URL_SOURCE.to_owned(), source })
    }

    /// Starts the manifest URL. Starts a task: call it in a tokio runtime.
    ///
    /// # Errors
    /// When the URL is none, or the guest does not load.
    pub fn url(&self, url: UrlSource) -> Result<PluginSource, LoadError> {
        let guest = built_in::guest(URL_SOURCE);
        self.load(URL_SOURCE, guest.wasm, guest.sha256, url.into_options(), Limits::SOURCE)
    }

    /// Starts a source of somebody else's. Starts a task: call it in a tokio runtime.
    ///
    /// Compiles on this thread when the cache has nothing: for a great component that may be seconds.
    ///
    /// # Errors
    /// When it is no component, or no source.
    pub fn plugin(
        &self,
        name: &str,
        wasm: &[u8],
        options: SourceOptions,
        limits: Limits,
    ) -> Result<PluginSource, LoadError> {
        self.load(name, wasm, Sha256::digest(wasm).into(), options, limits)
    }

    fn load(
        &self,
        name: &str,
        wasm: &[u8],
        sha256: [u8; 32],
        options: SourceOptions,
        limits: Limits,
    ) -> Result<PluginSource, LoadError> {
        let component = self
            .cache
            .component(&self.engine.engine, wasm, sha256)
            .map_err(|source| LoadError::Compile { name: name.to_owned(), source })?;
        fits(&component, limits).map_err(|message| LoadError::TooGreat { name: name.to_owned(), message })?;
        let web = Arc::new(Web::new(options.hosts.iter().cloned(), options.ca_file.clone()));
        let plugin = Plugin::prepare(name, &self.engine, &self.linker, &component, limits, web, Arc::clone(&self.exec))
            .map_err(|source| LoadError::NotASource { name: name.to_owned(), source })?;
        Ok(PluginSource::start(plugin, options, Arc::clone(&self.places)))
    }
}

/// The last word of a source.
#[derive(Clone, Debug, Default)]
struct Word {
    /// `None` until the source has answered once.
    snapshot: Option<Arc<SourceSnapshot>>,
    snapshot_version: u64,
    /// What is wrong while there is no snapshot that would say so.
    unsaid: Vec<SourceProblem>,
    unsaid_version: u64,
}

/// A source plugin that runs. It ends when this is dropped.
pub struct PluginSource {
    source: Source,
    plugin: Arc<Plugin>,
    words: watch::Receiver<Word>,
    _stop: DropGuard,
}

impl PluginSource {
    fn start(plugin: Plugin, options: SourceOptions, places: Arc<Semaphore>) -> Self {
        let (sender, words) = watch::channel(Word::default());
        let stop = CancellationToken::new();
        let plugin = Arc::new(plugin);
        let source = options.source.clone();
        tokio::spawn(task::Task::new(Arc::clone(&plugin), options, places, sender, stop.clone()).run());
        Self { source, plugin, words, _stop: stop.drop_guard() }
    }

    /// What it did so far.
    pub fn statistics(&self) -> SourceStatistics {
        self.plugin.statistics()
    }

    /// What is wrong while the source has never answered, again whenever that changes; empty once snapshots tell.
    pub fn problems(&self) -> BoxStream<'static, Vec<SourceProblem>> {
        self.stream(|word| word.unsaid_version, |word| Some(word.unsaid.clone()))
    }

    /// Items whenever `version` is another one; the first as soon as it is not 0.
    fn stream<T: Send + 'static>(
        &self,
        version: fn(&Word) -> u64,
        item: fn(&Word) -> Option<T>,
    ) -> BoxStream<'static, T> {
        let start = (self.words.clone(), 0_u64);
        let stream = futures::stream::unfold(start, move |(mut words, seen)| async move {
            // Cancel safe: nothing is taken before the value is there.
            let word = words.wait_for(|word| version(word) != seen).await.ok()?.clone();
            Some((item(&word), (words, version(&word))))
        });
        stream.filter_map(std::future::ready).boxed()
    }
}

impl PodSource for PluginSource {
    fn source(&self) -> Source {
        self.source.clone()
    }

    fn snapshots(&self) -> BoxStream<'static, SourceSnapshot> {
        self.stream(|word| word.snapshot_version, |word| word.snapshot.as_deref().cloned())
    }
}
