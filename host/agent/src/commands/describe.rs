//! `longshore describe pod`: a pod in full, in kubectl's layout, with probes' plugins and last results.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::bail;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::event::Event;
use longshore_core::pod::Pod;
use longshore_core::probe::{self, ProbeSpec};
use longshore_core::view::PodView;

use super::describe_status::{container_lines, probe_lines};
use super::out;
use crate::cli::DescribeArgs;
use crate::client::Client;
use crate::names::PodName;
use crate::print::age;
use crate::print::pod_row::{born, pending_resize, pod_row};
use crate::print::table::{Table, row};

/// Prints pods in full.
pub(crate) async fn describe(client: &Client, arguments: &DescribeArgs) -> anyhow::Result<()> {
    let is_kind = |text: &str| matches!(text, "pod" | "pods" | "po");
    let pods = match arguments.pods.as_slice() {
        [kind] if is_kind(kind) => bail!("which pod? longshore describe pod NAME"),
        [kind, rest @ ..] if is_kind(kind) => rest,
        all => all,
    };
    let views = super::views(client).await?;
    let mut first = true;
    for pod in pods {
        let name = PodName::parse(pod, arguments.namespace.as_deref()).map_err(anyhow::Error::msg)?;
        for view in super::find(client, &name, &views).await? {
            let events = super::events(client, view).await?;
            let gap = if std::mem::take(&mut first) { "" } else { "\n\n" };
            out::print(&format!("{gap}{}", text(view, &events, Timestamp::now())))?;
        }
    }
    Ok(())
}

fn text(view: &PodView, events: &[Event], now: Timestamp) -> String {
    let pod = &view.object;
    let mut page = Page::default();
    head(&mut page, view, now);
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let probes = probe_specs(view);
    let lists = [
        ("Init Containers", spec.init_containers.unwrap_or_default(), status.init_container_statuses),
        ("Containers", spec.containers, status.container_statuses),
    ];
    for (title, containers, statuses) in lists {
        if containers.is_empty() {
            continue;
        }
        page.line(0, &format!("{title}:"));
        for container in &containers {
            let status = statuses.iter().flatten().find(|status| status.name == container.name);
            page.line(1, &format!("{}:", container.name));
            container_lines(&mut page, container, status);
            probe_lines(&mut page, &container.name, &probes, &view.probes, now);
        }
    }
    if let Some(conditions) = status.conditions.filter(|conditions| !conditions.is_empty()) {
        page.line(0, "Conditions:");
        let header = row(["Type", "Status", "Reason"]);
        let lines = conditions.iter().map(|condition| {
            row([&condition.type_, &condition.status, condition.reason.as_deref().unwrap_or_default()])
        });
        page.table(1, header.into_iter_rows(lines));
    }
    volumes(&mut page, spec.volumes.as_deref().unwrap_or_default());
    page.field(0, "QoS Class", status.qos_class.as_deref().unwrap_or("<none>"));
    event_table(&mut page, events, now);
    page.text
}

/// The probes that the pod asks for. An annotation that cannot be read is told by the pod's status and events.
fn probe_specs(view: &PodView) -> Vec<ProbeSpec> {
    let pod = Pod {
        id: view.id.clone(),
        source: view.source.clone(),
        object: Arc::new(view.object.clone()),
        hashes: BTreeMap::new(),
        sandbox_hash: String::new(),
        deletion: None,
        ephemeral: Vec::new(),
    };
    probe::specs(&pod).unwrap_or_default()
}

/// A header before its rows.
trait IntoIterRows {
    fn into_iter_rows(self, rows: impl Iterator<Item = Vec<String>>) -> Vec<Vec<String>>;
}

impl IntoIterRows for Vec<String> {
    fn into_iter_rows(self, rows: impl Iterator<Item = Vec<String>>) -> Vec<Vec<String>> {
        std::iter::once(self).chain(rows).collect()
    }
}

fn head(page: &mut Page, view: &PodView, now: Timestamp) {
    let pod = &view.object;
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    page.field(0, "Name", &view.id.name);
    page.field(0, "Namespace", &view.id.namespace);
    page.field(0, "UID", &view.id.uid);
    page.field(0, "Source", view.source.as_str());
    if let Some(priority) = spec.and_then(|spec| spec.priority) {
        page.field(0, "Priority", &priority.to_string());
    }
    let host = status.and_then(|status| status.host_ip.as_deref()).unwrap_or_default();
    let node = spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or("<none>");
    page.field(0, "Node", format!("{node}/{host}").trim_end_matches('/'));
    let start =
        born(pod).map_or("<unknown>".to_owned(), |time| format!("{time} ({} ago)", age::since(Some(time), now)));
    page.field(0, "Start Time", &start);
    page.map("Labels", pod.metadata.labels.as_ref());
    page.map("Annotations", pod.metadata.annotations.as_ref());
    let row = pod_row(pod, now);
    let state = match &pod.metadata.deletion_timestamp {
        Some(since) => {
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
            format!("Terminating (for {}, grace period {grace}s)", age::since(Some(since.0), now))
        }
        None => row.status,
    };
    page.field(0, "Status", &state);
    for (name, value) in [
        ("Reason", status.and_then(|status| status.reason.as_deref())),
        ("Message", status.and_then(|status| status.message.as_deref())),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            page.field(0, name, value);
        }
    }
    if let Some((reason, message)) = pending_resize(pod) {
        page.field(0, "Resize", &format!("{reason}: {message}"));
    }
    page.field(0, "IP", status.and_then(|status| status.pod_ip.as_deref()).unwrap_or_default());
}

fn volumes(page: &mut Page, volumes: &[v1::Volume]) {
    if volumes.is_empty() {
        return;
    }
    page.line(0, "Volumes:");
    for volume in volumes {
        page.line(1, &format!("{}:", volume.name));
        // The one other key of a volume is its kind.
        let value = serde_json::to_value(volume).unwrap_or_default();
        let source = value.as_object().into_iter().flatten().find(|(key, _)| *key != "name");
        if let Some((kind, source)) = source {
            page.field(2, "Type", kind);
            for (key, value) in source.as_object().into_iter().flatten() {
                page.field(2, key, value.as_str().map_or_else(|| value.to_string(), str::to_owned).as_str());
            }
        }
    }
}

fn event_table(page: &mut Page, events: &[Event], now: Timestamp) {
    if events.is_empty() {
        page.field(0, "Events", "<none>");
        return;
    }
    page.line(0, "Events:");
    let mut rows = vec![row(["Type", "Reason", "Age", "From", "Message"])];
    rows.push(row(["----", "------", "----", "----", "-------"]));
    let mut sorted: Vec<&Event> = events.iter().collect();
    sorted.sort_by_key(|event| event.at);
    for event in sorted {
        let last = age::human(now.duration_since(event.at));
        let ages = match event.count {
            1 => last,
            count => format!("{last} (x{count} over {})", age::human(now.duration_since(event.first_at))),
        };
        let message = event.message.trim().replace('\n', " ");
        let kind = format!("{:?}", event.kind);
        rows.push(row([&kind, &event.reason, &ages, "longshore", &message]));
    }
    page.table(1, rows);
}

/// A page of `Name:  value` lines.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    /// A line on its own.
    pub(super) fn line(&mut self, level: usize, text: &str) {
        self.text.push_str(&"  ".repeat(level));
        self.text.push_str(text);
        self.text.push('\n');
    }

    /// A name and what belongs to it; further lines of it are put under the first.
    pub(super) fn field(&mut self, level: usize, name: &str, value: &str) {
        // Values stand below each other, those of containers and volumes a little further right.
        let width: usize = if level == 0 { 18 } else { 20 - 2 * level.min(4) };
        let name = format!("{name}:");
        let indent = " ".repeat(2 * level + width.max(name.len() + 1));
        let value = value.trim_end().replace('\n', &format!("\n{indent}"));
        let line = format!("{name:width$} {value}", width = width.max(name.len() + 1) - 1);
        self.line(level, line.trim_end());
    }

    /// Key and value pairs, one a line.
    fn map(&mut self, name: &str, pairs: Option<&BTreeMap<String, String>>) {
        let pairs: Vec<String> = pairs.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
        let value = if pairs.is_empty() { "<none>".to_owned() } else { pairs.join("\n") };
        self.field(0, name, &value);
    }

    fn table(&mut self, level: usize, rows: Vec<Vec<String>>) {
        for line in Table::default().lines(&rows).lines() {
            self.line(level, line.trim_end());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use longshore_core::event::EventType;
    use longshore_core::view::{ProbeCheckView, ProbeView};

    use super::*;
    use crate::print::samples::{now, view};

    #[test]
    fn a_page() {
        let mut view = view("default", "web-node1");
        view.object.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
        let probe = serde_json::json!({"httpGet": {"path": "/", "port": 80}, "initialDelaySeconds": 5});
        let spec = view.object.spec.as_mut().unwrap();
        spec.containers[0].readiness_probe = serde_json::from_value(probe).unwrap();
        let annotation = "{plugin: tcp, config: {port: 80}, period: 200ms}".to_owned();
        view.object.metadata.annotations = Some([("probe.longshore.dev/main.liveness".to_owned(), annotation)].into());
        let volume = serde_json::json!({"name": "site", "hostPath": {"path": "/srv", "type": "Directory"}});
        spec.volumes = Some(vec![serde_json::from_value(volume).unwrap()]);
        view.probes = vec![ProbeView {
            container: "main".into(),
            kind: "readiness".into(),
            plugin: "http".into(),
            config: "{\"path\":\"/\",\"port\":80}".into(),
            period_ms: 10_000,
            timeout_ms: 1_000,
            failure_threshold: 3,
            success_threshold: 1,
            last: Some(ProbeCheckView {
                at: "2026-01-01T11:59:56Z".parse().unwrap(),
                took_ms: 1.25,
                outcome: "success".into(),
                message: "HTTP 200".into(),
                attrs: [("body".to_owned(), "two\nlines".to_owned()), ("version".to_owned(), "7.2".to_owned())].into(),
            }),
            in_a_row: 12,
            tally: Default::default(),
        }];
        let pending = serde_json::json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible", "message": "no"}]);
        view.object.status.as_mut().unwrap().conditions = serde_json::from_value(pending).unwrap();
        let event = Event {
            pod: Some(view.id.clone()),
            container: Some("main".into()),
            kind: EventType::Normal,
            reason: "Started".into(),
            message: "Started container main".into(),
            at: "2026-01-01T11:58:01Z".parse().unwrap(),
            first_at: "2026-01-01T11:58:01Z".parse().unwrap(),
            count: 1,
            annotations: Default::default(),
        };
        insta::assert_snapshot!(text(&view, &[event], now()));
    }
}
