//! The plugin host: wasmtime, limits, grants, and one folder for each extension point and capability of `wit/`.
//! It must not decide when a probe is due or what its outcome does to a pod, and nobody else may name wasmtime.

mod bindings;
mod built_in;
mod cache;
mod call;
mod clock;
mod dial;
mod engine;
mod exec;
mod fault;
mod grants;
mod http;
mod limits;
mod log;
mod meter;
mod net;
mod probe;
mod source;
mod wasi;

pub use engine::EngineError;
pub use grants::Grants;
pub use limits::Limits;
pub use probe::{BUILT_IN_PROBES, LoadError, ProbeHost, ProbeStatistics};
pub use source::{PluginSource, SourceHost, SourceOptions, SourceStatistics, UrlSource};
