//! What the built-in guests share: the bindings of `wit/`, reading v1's configuration, and the kubelet's wording.
//! It must not know any one probe, and nothing of the host.

pub mod config;
pub mod wording;

/// The bindings of world `longshore:probe/probe`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod bindings {
    wit_bindgen::generate!({
        path: ["../../wit/types", "../../wit/log", "../../wit/clock", "../../wit/exec", "../../wit/dial",
            "../../wit/http", "../../wit/probe"],
        world: "longshore:probe/probe",
        pub_export_macro: true,
        default_bindings_module: "longshore_guest::bindings",
        generate_all,
    });
}

pub use bindings::export;
pub use bindings::exports::longshore::probe::prober::{Guest, Health, Report};
pub use bindings::longshore::clock::clock;
pub use bindings::longshore::dial::tcp;
pub use bindings::longshore::exec::runner;
pub use bindings::longshore::http::client;
pub use bindings::longshore::types::core::{NamedPort, PluginError, Target};

/// A report without attributes.
#[must_use]
pub fn report(health: Health, message: impl Into<String>) -> Report {
    Report { health, message: message.into(), attrs: Vec::new() }
}

/// The address of the target, for messages and `Host` headers.
///
/// # Errors
/// When the pod has none yet: no verdict can be reached.
pub fn address(target: &Target) -> Result<&str, PluginError> {
    target.address.as_deref().ok_or_else(|| PluginError::Failed("the pod has no IP address yet".to_owned()))
}

/// The kubelet's `User-Agent` for probes (`pkg/probe/http/request.go`, `userAgent`).
#[must_use]
pub fn user_agent(target: &Target) -> String {
    let version = target.attrs.iter().find(|(name, _)| name == "kubernetes-version");
    format!("kube-probe/{}", version.map_or("1", |(_, version)| version.as_str()))
}
