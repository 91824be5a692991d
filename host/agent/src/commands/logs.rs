//! `longshore logs`: a container's log, as kubectl prints it.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use jiff::{SignedDuration, Timestamp};
use longshore_core::view::PodView;

use super::{encode, out};
use crate::cli::LogsArgs;
use crate::client::Client;
use crate::config::parse_duration;
use crate::names::{PodName, nearest};

/// A line is held back for no longer: an agent sends them one by one, and a long log is written faster in large pieces.
const UNSENT: Duration = Duration::from_millis(20);

/// Prints a log, to its end, or with `--follow` to the container's.
pub(crate) async fn logs(client: &Client, arguments: &LogsArgs) -> anyhow::Result<()> {
    let name = PodName::parse(&arguments.pod, arguments.namespace.as_deref()).map_err(anyhow::Error::msg)?;
    let mut query = String::new();
    for (key, on) in
        [("follow", arguments.follow), ("previous", arguments.previous), ("timestamps", arguments.timestamps)]
    {
        if on {
            query.push_str(&format!("&{key}=true"));
        }
    }
    match arguments.tail {
        None | Some(-1) => {}
        Some(lines) if lines >= 0 => query.push_str(&format!("&tail={lines}")),
        Some(lines) => bail!("--tail: expected -1 or more lines, got {lines}"),
    }
    if let Some(since) = &arguments.since {
        let ago = parse_duration(since).map_err(|message| anyhow!("--since: {message}"))?;
        let ago = SignedDuration::try_from(ago).context("--since: too long")?;
        let time = Timestamp::now().checked_sub(ago).context("--since: too long")?;
        query.push_str(&format!("&since={}", encode(&time.to_string())));
    }
    let views = super::views(client).await?;
    let view = super::find(client, &name, &views).await?[0];
    let wanted = arguments.container.as_deref().or(arguments.container_name.as_deref());
    let container = container(view, wanted)?;
    let path =
        format!("/v1/logs/{}/{}/{container}?uid={}{query}", view.id.namespace, view.id.name, encode(&view.id.uid));
    let mut parts = client.stream(&path).await?;
    let (mut stdout, mut sent) = (out::stream(), Instant::now());
    loop {
        // Cancel safe: a part that has not come yet is not lost.
        let part = match tokio::time::timeout(UNSENT, parts.next()).await {
            Ok(part) => part?,
            Err(_) => {
                stdout.flush()?;
                parts.next().await?
            }
        };
        let Some(part) = part else { return Ok(stdout.flush()?) };
        stdout.write_all(&part)?;
        if sent.elapsed() >= UNSENT {
            stdout.flush()?;
            sent = Instant::now();
        }
    }
}

/// The container that is meant: the one that is named, the one of `kubectl.kubernetes.io/default-container`, or the
/// first.
fn container<'v>(view: &'v PodView, wanted: Option<&str>) -> anyhow::Result<&'v str> {
    let spec = view.object.spec.as_ref().ok_or_else(|| anyhow!("pod {} has no containers", view.id))?;
    let apps: Vec<&str> = spec.containers.iter().map(|spec| spec.name.as_str()).collect();
    let inits = spec.init_containers.iter().flatten().map(|spec| spec.name.as_str());
    let all: Vec<&str> = apps.iter().copied().chain(inits).collect();
    if let Some(wanted) = wanted {
        return all.iter().find(|name| **name == wanted).copied().ok_or_else(|| {
            let near = nearest(wanted, all.iter().copied());
            let hint = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
            anyhow!("pod {} has no container {wanted:?}; it has: {}{hint}", view.id, all.join(", "))
        });
    }
    let annotations = view.object.metadata.annotations.as_ref();
    let named = annotations.and_then(|all| all.get("kubectl.kubernetes.io/default-container"));
    let named = named.and_then(|named| all.iter().find(|name| *name == named)).copied();
    let chosen = named.or(apps.first().copied()).ok_or_else(|| anyhow!("pod {} has no containers", view.id))?;
    if named.is_none() && all.len() > 1 {
        out::complain(&format!("Defaulted container {chosen:?} out of: {}", all.join(", ")));
    }
    Ok(chosen)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::print::samples::view;

    #[test]
    fn which_container() {
        let mut view = view("default", "web");
        assert_eq!(container(&view, None).unwrap(), "main");
        assert_eq!(
            container(&view, Some("mian")).unwrap_err().to_string(),
            "pod default/web has no container \"mian\"; it has: main; did you mean \"main\"?"
        );
        let spec = view.object.spec.as_mut().unwrap();
        spec.containers.push(k8s_openapi::api::core::v1::Container { name: "log".into(), ..Default::default() });
        let annotation = ("kubectl.kubernetes.io/default-container".to_owned(), "log".to_owned());
        view.object.metadata.annotations = Some([annotation].into());
        assert_eq!(container(&view, None).unwrap(), "log");
    }
}
