//! `longshore version`: this binary's version, and that of the agent that runs.

use super::out;
use crate::client::Client;
use crate::socket::api::Info;

/// Prints the versions. An agent that does not run is no error here.
pub(crate) async fn version(client: &Client) -> anyhow::Result<()> {
    out::print(&format!("longshore {}\n", env!("CARGO_PKG_VERSION")))?;
    if let Ok(info) = client.get::<Info>("/v1/info").await {
        let docker = match (&info.docker.version, &info.docker.error) {
            (_, Some(error)) => format!("not usable: {error}"),
            (Some(version), None) => {
                format!("{version} (API {})", info.docker.api_version.as_deref().unwrap_or("unknown"))
            }
            (None, None) => "not asked yet".to_owned(),
        };
        let node = info.node.as_deref().unwrap_or("not known yet");
        out::print(&format!("agent     {} (process {}, node {node})\n", info.version, info.pid))?;
        out::print(&format!("docker    {docker}\n"))?;
    }
    Ok(())
}
