//! `longshore why POD`: its way from admission to readiness, how long each step took, and what it waits for.

use jiff::Timestamp;
use longshore_core::event::{Event, EventType};
use longshore_core::view::{PodView, Step, StepState};

use super::out;
use crate::cli::WhyArgs;
use crate::client::Client;
use crate::names::PodName;
use crate::print::age;
use crate::print::pod_row::pod_row;

/// Events that are shown below the steps of a pod that is not ready.
const EVENTS: usize = 5;

/// Prints a pod's steps.
pub(crate) async fn why(client: &Client, arguments: &WhyArgs) -> anyhow::Result<()> {
    let name = PodName::parse(&arguments.pod, arguments.namespace.as_deref()).map_err(anyhow::Error::msg)?;
    let views = super::views(client).await?;
    for view in super::find(client, &name, &views).await? {
        let events = super::events(client, view).await?;
        out::print(&text(view, &events, Timestamp::now()))?;
    }
    Ok(())
}

fn text(view: &PodView, events: &[Event], now: Timestamp) -> String {
    let row = pod_row(&view.object, now);
    let mut text = format!("pod {}: {}, {} ready, for {}\n", view.id, row.status, row.ready, row.age);
    let width = view.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
    let mut before: Option<Timestamp> = None;
    for step in &view.steps {
        let mark = match step.state {
            StepState::Done => '✓',
            StepState::Running => '▸',
            StepState::Waiting | StepState::Failed => '✗',
            StepState::Ahead => '·',
        };
        let took = took(step, before, now);
        let detail = step.detail.replace('\n', "\n    ");
        let line = format!("  {mark} {:width$}  {took:>9}  {detail}", step.name);
        text.push_str(line.trim_end());
        text.push('\n');
        before = step.since.or(before);
    }
    if view.steps.is_empty() {
        text.push_str("  nothing is known yet: the pod was only just taken on\n");
    }
    let stuck = view.steps.iter().any(|step| step.state != StepState::Done);
    let warnings: Vec<&Event> = events.iter().filter(|event| event.kind == EventType::Warning).collect();
    if stuck && !warnings.is_empty() {
        text.push_str("last warnings:\n");
        for event in warnings.iter().rev().take(EVENTS).rev() {
            let ago = age::human(now.duration_since(event.at));
            let times = if event.count > 1 { format!(" (x{})", event.count) } else { String::new() };
            let message = event.message.trim().replace('\n', "\n    ");
            text.push_str(&format!("  {ago} ago{times}  {}: {message}\n", event.reason));
        }
    }
    text
}

/// How long a step took, when it is known since when the one before it is done; for what goes on, how long so far.
fn took(step: &Step, before: Option<Timestamp>, now: Timestamp) -> String {
    match (step.state, step.since, before) {
        (StepState::Ahead, ..) | (_, None, _) => String::new(),
        (StepState::Done, Some(since), Some(before)) => age::fine(since.duration_since(before)),
        (StepState::Done, Some(_), None) => String::new(),
        (StepState::Running | StepState::Waiting | StepState::Failed, Some(since), _) => {
            format!("for {}", age::human(now.duration_since(since)))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::print::samples::{now, view};

    #[test]
    fn a_pod_that_waits() {
        let mut view = view("default", "web-node1");
        let step = |name: &str, state, since: Option<&str>, detail: &str| Step {
            name: name.to_owned(),
            state,
            since: since.map(|time| time.parse().unwrap()),
            detail: detail.to_owned(),
            probe: None,
        };
        view.steps = vec![
            step("admitted", StepState::Done, Some("2026-01-01T11:58:00Z"), ""),
            step("sandbox", StepState::Done, Some("2026-01-01T11:58:00.270Z"), "172.17.0.2"),
            step(
                "image of main",
                StepState::Waiting,
                Some("2026-01-01T11:58:30Z"),
                "back-off until 12:01: no such\nimage",
            ),
            step("main ready", StepState::Ahead, None, ""),
        ];
        let event = Event {
            pod: Some(view.id.clone()),
            container: Some("main".into()),
            kind: EventType::Warning,
            reason: "Failed".into(),
            message: "no such image".into(),
            at: "2026-01-01T11:59:00Z".parse().unwrap(),
            first_at: "2026-01-01T11:58:00Z".parse().unwrap(),
            count: 3,
            annotations: Default::default(),
        };
        insta::assert_snapshot!(text(&view, &[event], now()));
    }
    #[test]
    fn a_message_of_several_lines_passes_for_no_other() {
        let mut view = view("default", "web-node1");
        let (name, detail) = ("ready".to_owned(), String::new());
        view.steps = vec![Step { name, state: StepState::Waiting, since: None, detail, probe: None }];
        let event = Event {
            pod: Some(view.id.clone()),
            container: None,
            kind: EventType::Warning,
            reason: "Unhealthy".into(),
            message: "no\n  1s ago  Forged: line\n".into(),
            at: now(),
            first_at: now(),
            count: 1,
            annotations: Default::default(),
        };
        let text = text(&view, &[event], now());
        assert!(text.ends_with("\n  0s ago  Unhealthy: no\n      1s ago  Forged: line\n"), "{text}");
    }
}
