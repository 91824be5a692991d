//! `longshore drain-node --local`: has the agent of this machine end all its pods in order, and says how that goes.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use longshore_core::duration;
use longshore_core::priority::CRITICAL;
use longshore_reconcile::shutdown::Told;

use super::out;
use crate::cli::DrainNodeArgs;
use crate::client::Client;
use crate::socket::api::Resumed;

/// What the process ends with when pods still run after their time.
const SOME_LEFT: u8 = 2;

/// What brings pods back, as it is told after a drain.
const AFTERWARDS: &str =
    "No pod starts until the agent is restarted or `longshore drain-node --local --cancel` is run.\n";

/// Ends all pods, or takes that back.
pub(crate) async fn drain_node(client: &Client, arguments: &DrainNodeArgs) -> anyhow::Result<ExitCode> {
    if arguments.cancel {
        return resume(client).await;
    }
    let limit = match &arguments.timeout {
        None => String::new(),
        Some(text) => {
            let limit = duration::parse(text).map_err(anyhow::Error::msg).context("--timeout")?;
            format!("?limit={}", whole_seconds(limit))
        }
    };
    let mut lines = client.follow_order(&format!("/v1/drain{limit}")).await?;
    while let Some(line) = lines.next_line().await? {
        let told: Told = serde_json::from_slice(&line).context("the agent's answer is not understood")?;
        out::print(&text(&told))?;
        match told {
            Told::Done(outcome) if outcome.left.is_empty() => return Ok(ExitCode::SUCCESS),
            Told::Done(_) => return Ok(ExitCode::from(SOME_LEFT)),
            Told::CalledOff => return Ok(ExitCode::FAILURE),
            _ => {}
        }
    }
    anyhow::bail!(
        "the agent exited before all pods had stopped; those that were already stopping go on when it is started again"
    )
}

async fn resume(client: &Client) -> anyhow::Result<ExitCode> {
    let answer: Resumed = client.order("/v1/resume").await?;
    if !answer.resumed {
        anyhow::bail!("the machine itself is shutting down: pods start again when it is back up");
    }
    out::print("Pods may start again; those of the manifest folder and URL that were stopped do.\n")?;
    Ok(ExitCode::SUCCESS)
}

fn whole_seconds(limit: Duration) -> u64 {
    limit.as_secs() + u64::from(limit.subsec_nanos() > 0)
}

fn text(told: &Told) -> String {
    match told {
        Told::Group { priority, seconds, pods } => {
            let kind = if *priority >= CRITICAL { "critical pods".to_owned() } else { plural(pods.len(), "pod") };
            let of = match *priority {
                0 | CRITICAL => String::new(),
                other => format!(" of priority {other} and above"),
            };
            format!("Ending {kind}{of}, {seconds} s at most: {}\n", pods.join(", "))
        }
        Told::Ended { pod, milliseconds } => format!("{pod} ended after {:.1} s\n", *milliseconds as f64 / 1000.0),
        Told::Late { pods } => format!("Not ended in time: {}\n", pods.join(", ")),
        Told::CalledOff => "Cancelled: pods may start again.\n".to_owned(),
        Told::Done(outcome) if outcome.left.is_empty() => {
            let what = match outcome.ended {
                0 => "No pod runs.".to_owned(),
                ended => format!("{} ended.", plural(ended, "pod")),
            };
            format!("{what} {AFTERWARDS}")
        }
        Told::Done(outcome) => {
            format!("{} ended, {} not: {}\n{AFTERWARDS}", outcome.ended, outcome.left.len(), outcome.left.join(", "))
        }
    }
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use longshore_reconcile::shutdown::Outcome;

    use super::*;

    #[test]
    fn what_is_told_reads_well() {
        let pods = vec!["default/a".to_owned(), "default/b".to_owned()];
        let group = |priority| Told::Group { priority, seconds: 40, pods: pods.clone() };
        assert_eq!(text(&group(0)), "Ending 2 pods, 40 s at most: default/a, default/b\n");
        assert_eq!(text(&group(10)), "Ending 2 pods of priority 10 and above, 40 s at most: default/a, default/b\n");
        assert_eq!(text(&group(CRITICAL)), "Ending critical pods, 40 s at most: default/a, default/b\n");
        assert_eq!(text(&Told::Ended { pod: "default/a".into(), milliseconds: 1250 }), "default/a ended after 1.2 s\n");
        assert!(text(&Told::Done(Outcome::default())).starts_with("No pod runs. No pod starts until"));
        let left = Told::Done(Outcome { ended: 1, left: vec!["default/b".into()] });
        assert!(text(&left).starts_with("1 ended, 1 not: default/b\n"));
        assert_eq!(whole_seconds(Duration::from_millis(1500)), 2);
    }
}
