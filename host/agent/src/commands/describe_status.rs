//! The part of `describe` that is about one container: its state, resources, mounts and probes.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::probe::ProbeSpec;
use longshore_core::view::ProbeView;

use super::describe::Page;
use crate::print::age;

/// What is known of a container.
pub(super) fn container_lines(page: &mut Page, spec: &v1::Container, status: Option<&v1::ContainerStatus>) {
    page.field(2, "Container ID", status.and_then(|status| status.container_id.as_deref()).unwrap_or_default());
    page.field(2, "Image", spec.image.as_deref().unwrap_or_default());
    page.field(2, "Image ID", status.map_or("", |status| &status.image_id));
    let ports: Vec<String> = spec.ports.iter().flatten().map(port).collect();
    if !ports.is_empty() {
        page.field(2, "Ports", &ports.join(", "));
    }
    for (name, words) in [("Command", &spec.command), ("Args", &spec.args)] {
        if let Some(words) = words.as_ref().filter(|words| !words.is_empty()) {
            page.field(2, name, &words.join("\n"));
        }
    }
    if let Some(status) = status {
        state(page, "State", status.state.as_ref());
        if status.last_state.as_ref().is_some_and(|state| state.terminated.is_some()) {
            state(page, "Last State", status.last_state.as_ref());
        }
        page.field(2, "Ready", if status.ready { "True" } else { "False" });
        page.field(2, "Restart Count", &status.restart_count.to_string());
    }
    let resources = spec.resources.as_ref();
    for (name, list) in [
        ("Limits", resources.and_then(|resources| resources.limits.as_ref())),
        ("Requests", resources.and_then(|resources| resources.requests.as_ref())),
    ] {
        let pairs: Vec<String> = list.into_iter().flatten().map(|(key, value)| format!("{key}={}", value.0)).collect();
        if !pairs.is_empty() {
            page.field(2, name, &pairs.join(", "));
        }
    }
    let mounts: Vec<String> = spec.volume_mounts.iter().flatten().map(mount).collect();
    if !mounts.is_empty() {
        page.field(2, "Mounts", &mounts.join("\n"));
    }
}

fn port(port: &v1::ContainerPort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let host = port.host_port.filter(|host| *host != 0).map_or(String::new(), |host| format!(" (host {host})"));
    let name = port.name.as_deref().map_or(String::new(), |name| format!(" {name}"));
    format!("{}/{protocol}{name}{host}", port.container_port)
}

fn mount(mount: &v1::VolumeMount) -> String {
    let mode = if mount.read_only == Some(true) { "ro" } else { "rw" };
    let path = mount.sub_path.as_deref().or(mount.sub_path_expr.as_deref());
    let path = path.map_or(String::new(), |path| format!(",path={path:?}"));
    format!("{} from {} ({mode}{path})", mount.mount_path, mount.name)
}

fn state(page: &mut Page, name: &str, state: Option<&v1::ContainerState>) {
    let Some(state) = state else { return };
    let time = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.as_ref().map(|time| time.0.to_string())
    };
    if let Some(running) = &state.running {
        page.field(2, name, "Running");
        page.field(3, "Started", &time(&running.started_at).unwrap_or_default());
    } else if let Some(ended) = &state.terminated {
        page.field(2, name, "Terminated");
        let mut field = |name: &str, value: Option<String>| {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                page.field(3, name, &value);
            }
        };
        field("Reason", ended.reason.clone());
        field("Message", ended.message.clone());
        field("Exit Code", Some(ended.exit_code.to_string()));
        field("Signal", ended.signal.filter(|signal| *signal != 0).map(|signal| signal.to_string()));
        field("Started", time(&ended.started_at));
        field("Finished", time(&ended.finished_at));
    } else if let Some(waiting) = &state.waiting {
        page.field(2, name, "Waiting");
        page.field(3, "Reason", waiting.reason.as_deref().unwrap_or("ContainerCreating"));
        if let Some(message) = waiting.message.as_deref().filter(|message| !message.is_empty()) {
            page.field(3, "Message", message);
        }
    } else {
        page.field(2, name, "Waiting");
    }
}

/// A container's probes: how they are set up, and what they last said. `seen` are those that were checked.
pub(super) fn probe_lines(page: &mut Page, container: &str, specs: &[ProbeSpec], seen: &[ProbeView], now: Timestamp) {
    for spec in specs.iter().filter(|spec| spec.container == container) {
        let set_up = format!(
            "{} {} delay={} timeout={} period={} #success={} #failure={}",
            spec.plugin,
            spec.config,
            duration(spec.initial_delay),
            duration(spec.timeout),
            duration(spec.period),
            spec.success_threshold,
            spec.failure_threshold,
        );
        let seen = seen.iter().find(|view| view.container == container && view.kind == spec.kind.as_str());
        let last = match seen.and_then(|view| Some((view.in_a_row, view.last.as_ref()?))) {
            None => "no check yet".to_owned(),
            Some((in_a_row, check)) => {
                let message = check.message.trim();
                let message = if message.is_empty() { String::new() } else { format!(": {message}") };
                let times = if in_a_row > 1 { format!(", {in_a_row} in a row") } else { String::new() };
                let ago = age::human(now.duration_since(check.at));
                let mut last = format!("last {ago} ago: {} in {:.1}ms{times}{message}", check.outcome, check.took_ms);
                if !check.attrs.is_empty() {
                    // Quoted: they are a plugin's words, on a line with others.
                    let attrs: Vec<String> =
                        check.attrs.iter().map(|(name, value)| format!("{}={value:?}", name.escape_debug())).collect();
                    last.push_str(&format!("\n{}", attrs.join(" ")));
                }
                last
            }
        };
        page.field(2, spec.kind.title(), &format!("{set_up}\n{last}"));
    }
}

/// As Go prints a duration: `10s`, `200ms`, `0s`.
fn duration(value: Duration) -> String {
    if value.is_zero() { "0s".to_owned() } else { format!("{value:?}") }
}
