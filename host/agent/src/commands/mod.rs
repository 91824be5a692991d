//! The commands: each asks the agent over its local socket (or looks for itself) and prints.
//!
//! Output is text that people and scripts read; what goes wrong is an `anyhow` error, printed once by `main`.

mod check;
mod describe;
mod describe_status;
mod doctor;
mod drain_node;
mod get;
mod logs;
mod out;
mod plan;
mod takeover;
mod version;
mod why;

pub(crate) use check::check;
pub(crate) use describe::describe;
pub(crate) use doctor::doctor;
pub(crate) use drain_node::drain_node;
pub(crate) use get::get;
pub(crate) use logs::logs;
pub(crate) use out::{complain, is_broken_pipe};
pub(crate) use plan::{crash_loop, plan};
pub(crate) use takeover::takeover;
pub(crate) use version::version;
pub(crate) use why::why;

use longshore_core::event::Event;
use longshore_core::view::PodView;

use crate::client::Client;
use crate::names::PodName;
use crate::socket::api::Info;

/// All pods, as the agent sees them; as it does when it knows them all, if it has just come to.
async fn views(client: &Client) -> anyhow::Result<Vec<PodView>> {
    let was_unknown = unknown(client).await.is_some();
    let views = client.get("/v1/views").await?;
    match was_unknown && unknown(client).await.is_none() {
        true => client.get("/v1/views").await,
        false => Ok(views),
    }
}

/// The pods of that name, the newest first.
async fn find<'v>(client: &Client, name: &PodName, views: &'v [PodView]) -> anyhow::Result<Vec<&'v PodView>> {
    match name.find(views) {
        Ok(found) => Ok(found),
        Err(message) => Err(not_found(message, views, unknown(client).await)),
    }
}

/// Why the agent does not know all its pods yet, if so: what is not found may be there all the same.
async fn unknown(client: &Client) -> Option<String> {
    let waits = client.get::<Info>("/v1/info").await.ok()?.waits?;
    Some(format!("the agent does not know all its pods yet: {waits}"))
}

fn not_found(message: String, views: &[PodView], unknown: Option<String>) -> anyhow::Error {
    anyhow::Error::msg(match unknown {
        Some(unknown) if views.is_empty() => unknown,
        Some(unknown) => format!("{message}; {unknown}"),
        None => message,
    })
}

/// A pod's events, oldest first.
async fn events(client: &Client, view: &PodView) -> anyhow::Result<Vec<Event>> {
    client.get(&format!("/v1/events?uid={}", encode(&view.id.uid))).await
}

/// Makes text safe for a query.
fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
