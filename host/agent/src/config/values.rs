//! How single values are read, whether they come from a flag or a file: each function takes what was written and says
//! what was expected where it is wrong.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use longshore_core::quantity;

use super::{LogFormat, Reserved};

pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

pub(super) fn within(value: i64, range: RangeInclusive<i64>) -> Result<i64, String> {
    match range.contains(&value) {
        true => Ok(value),
        false => Err(format!("expected a number from {} to {}, got {value}", range.start(), range.end())),
    }
}

pub(super) fn whole(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("expected a whole number, got {text:?}"))
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    // As Go's strconv.ParseBool.
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("expected true or false, got {text:?}")),
    }
}

pub(super) fn endpoint(text: &str) -> Result<String, String> {
    let socket = text.strip_prefix("unix://");
    let known = socket.is_some_and(|path| path.starts_with('/')) || text.starts_with("tcp://");
    match known || text.starts_with("http://") || text.starts_with("https://") {
        true => Ok(text.to_owned()),
        false => Err(format!("expected a URL like unix:///var/run/docker.sock, got {text:?}")),
    }
}

pub(super) fn node_name(text: &str) -> Result<String, String> {
    let name = text.trim().to_lowercase();
    let label = |label: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        ends(label.chars().next())
            && ends(label.chars().last())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    match name.len() <= 253 && name.split('.').all(label) {
        true => Ok(name),
        false => Err(format!("expected a DNS name (letters, digits, '-' and '.'), got {text:?}")),
    }
}

pub(super) fn domain(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { node_name(text.trim_end_matches('.')) }
}

pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("expected an IP address, got {text:?}"))
}

pub(super) fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    list(text).map(address).collect()
}

/// As `pkg/kubelet/sysctl/allowlist.go`: a name, or a prefix that ends in `.*` or `*`.
pub(super) fn sysctl(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('*').unwrap_or(text);
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    match !name.is_empty() && name.len() <= 253 && name.chars().all(valid) {
        true => Ok(text.replace('/', ".")),
        false => Err(format!("expected a sysctl like \"net.core.somaxconn\" or \"kernel.msg*\", got {text:?}")),
    }
}

pub(super) fn max_pods(value: i64) -> Result<u32, String> {
    within(value, 0..=100_000).map(|value| value as u32)
}

pub(super) fn max_parallel_pulls(value: i64) -> Result<usize, String> {
    within(value, 1..=1_000).map(|value| value as usize)
}

pub(super) fn pull_qps(value: i64) -> Result<f64, String> {
    within(value, 0..=i64::from(i32::MAX)).map(|value| value as f64)
}

pub(super) fn pull_burst(value: i64) -> Result<u32, String> {
    within(value, 0..=i64::from(i32::MAX)).map(|value| value as u32)
}

pub(super) fn verbosity(value: i64) -> Result<u8, String> {
    within(value, 0..=10).map(|value| value as u8)
}

pub(super) fn file_check_frequency(value: Duration) -> Result<Duration, String> {
    match value >= Duration::from_millis(100) {
        true => Ok(value),
        false => Err(format!("expected at least 100ms, got {value:?}")),
    }
}

/// As the kubelet's validation: 1 s to 300 s.
pub(super) fn max_restart_delay(value: Duration) -> Result<Duration, String> {
    match (Duration::from_secs(1)..=Duration::from_secs(300)).contains(&value) {
        true => Ok(value),
        false => Err(format!("expected a duration from 1s to 300s, got {value:?}")),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" | "" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("expected text or json, got {text:?}")),
    }
}

pub(super) fn reserved_list(text: &str) -> Result<Reserved, String> {
    let pairs = list(text).map(|pair| {
        pair.split_once('=').ok_or_else(|| format!("expected resources like cpu=500m,memory=1Gi, got {pair:?}"))
    });
    let mut reserved = Reserved::default();
    for pair in pairs {
        let (name, value) = pair?;
        reserve(&mut reserved, name, value)?;
    }
    Ok(reserved)
}

/// Notes what is kept of one resource.
pub(super) fn reserve(reserved: &mut Reserved, name: &str, value: &str) -> Result<(), String> {
    let scale = if name == "cpu" { 3 } else { 0 };
    let amount = quantity::parse(value, scale).filter(|amount| *amount >= 0);
    let amount = amount.ok_or_else(|| format!("expected a quantity like 500m or 1Gi for {name}, got {value:?}"))?;
    match name {
        "cpu" => reserved.milli_cpu = amount,
        "memory" => reserved.memory = amount,
        "ephemeral-storage" => reserved.ephemeral_storage = amount,
        // Process IDs are not reserved here; the kubelet takes the name, so it is no mistake.
        "pid" => {}
        other => {
            let known = ["cpu", "memory", "ephemeral-storage", "pid"];
            return Err(format!("{other:?} cannot be reserved; there are: {}", known.join(", ")));
        }
    }
    Ok(())
}
