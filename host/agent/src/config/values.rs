//! How single values are read, whether they come from a flag or a file: each function takes what was written and says
//! what was expected where it is wrong.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use longshore_core::admit::sysctls;
use longshore_core::credentials::access;
use longshore_core::quantity;

use super::LogFormat;
use super::layer::Table;

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
    let is_socket = text.strip_prefix("unix://").is_some_and(|path| path.starts_with('/'));
    let host = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://"));
    let host = host.and_then(|host| host.trim_end_matches('/').rsplit_once(':'));
    match is_socket || host.is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok()) {
        true => Ok(text.to_owned()),
        false => Err(format!("expected a URL like unix:///var/run/docker.sock or tcp://127.0.0.1:2375, got {text:?}")),
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

/// What `--node-ip` says: one address, or one of IPv4 and one of IPv6; `0.0.0.0` or `::` alone leave the choice to the
/// machine (`ParseNodeIPArgument` in `component-helpers/node/util`).
pub(super) fn node_ips(text: &str) -> Result<Vec<IpAddr>, String> {
    let ips = addresses(text)?;
    if ips.len() == 2 && ips.iter().any(IpAddr::is_unspecified) {
        return Err(format!("two addresses cannot include 0.0.0.0 or ::, got {text:?}"));
    }
    match ips.len() > 2 || (ips.len() == 2 && ips[0].is_ipv4() == ips[1].is_ipv4()) {
        true => Err(format!("expected one IP address, or one of IPv4 and one of IPv6, got {text:?}")),
        false => Ok(ips),
    }
}

pub(super) fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    list(text).map(address).collect()
}

/// As `pkg/kubelet/sysctl/allowlist.go`: a name, or a prefix that ends in `.*` or `*`.
pub(super) fn sysctl(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('*').unwrap_or(text);
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    match !name.is_empty() && name.len() <= 253 && name.chars().all(valid) {
        true => sysctls::allowable(text),
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

/// What `imagePullCredentialsVerificationPolicy` says.
pub(super) fn verification(text: &str) -> Result<access::Policy, String> {
    let known = access::Policy::ALL.into_iter().find(|(name, _)| *name == text);
    known.map(|(_, policy)| policy).ok_or_else(|| {
        let names = access::Policy::ALL.map(|(name, _)| name);
        format!("expected one of {}, got {text:?}", names.join(", "))
    })
}

/// An item of `preloadedImagesVerificationAllowlist`.
pub(super) fn image_pattern(text: &str) -> Result<String, String> {
    access::check_pattern(text).map(|()| text.to_owned())
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

/// What is kept back of one resource: CPU in thousandths, the others in bytes or numbers.
pub(super) fn reserve(name: &str, value: &str) -> Result<(&'static str, i64), String> {
    const KNOWN: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pid"];
    let scale = if name == "cpu" { 3 } else { 0 };
    let amount = quantity::parse(value, scale).filter(|amount| *amount >= 0);
    let amount = amount.ok_or_else(|| format!("expected a quantity like 500m or 1Gi for {name}, got {value:?}"))?;
    let known = KNOWN.into_iter().find(|known| *known == name);
    Ok((known.ok_or_else(|| format!("{name:?} cannot be reserved; there are: {}", KNOWN.join(", ")))?, amount))
}

/// Reads a key and a value, or says what was expected.
pub(super) type PairCheck<K, V> = fn(&str, &str) -> Result<(K, V), String>;

/// Pairs in one text, like `cpu=500m,memory=1Gi`; each is read by `check`. As pflag's maps, what a flag says is whole.
pub(super) fn pairs<K: Ord, V>(
    text: &str,
    separator: char,
    example: &str,
    check: PairCheck<K, V>,
) -> Result<Table<K, V>, String> {
    let mut table = Table { whole: true, ..Table::default() };
    for pair in list(text) {
        let (key, value) = pair.split_once(separator).ok_or_else(|| format!("expected {example}, got {pair:?}"))?;
        let (key, value) = check(key.trim(), value.trim())?;
        table.entries.insert(key, value);
    }
    Ok(table)
}

/// What `--system-reserved` and `--kube-reserved` say.
pub(super) fn reserved_list(text: &str) -> Result<Table<&'static str, i64>, String> {
    pairs(text, '=', "resources like cpu=500m,memory=1Gi", reserve)
}

/// A whole number within a range.
pub(super) fn number(range: RangeInclusive<i64>) -> impl Fn(i64) -> Result<i64, String> {
    move |value| within(value, range.clone())
}

/// A count as KubeletConfiguration has it: an `int32` that is not negative.
pub(super) fn count(value: i64) -> Result<u32, String> {
    within(value, 0..=i64::from(i32::MAX)).map(|value| value as u32)
}

/// A port, 0 for none.
pub(super) fn port(value: i64) -> Result<u16, String> {
    within(value, 0..=65_535).map(|value| value as u16)
}

/// A duration that is not zero.
pub(super) fn positive(value: Duration) -> Result<Duration, String> {
    if value.is_zero() { Err("expected more than 0s".to_owned()) } else { Ok(value) }
}

/// A key of a label or taint: an optional DNS prefix, a slash and a name (`IsQualifiedName` of the apimachinery).
pub(super) fn qualified_name(text: &str) -> Result<(), String> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let prefix_is_fine = prefix.is_none_or(|prefix| node_name(prefix).is_ok_and(|lower| lower == prefix));
    match prefix_is_fine && !name.is_empty() && is_label_text(name) {
        true => Ok(()),
        false => Err(format!("{text:?} is not a valid key: expected a name like \"tier\" or \"example.com/tier\"")),
    }
}

/// A value of a label or taint; may be empty.
pub(super) fn label_value(text: &str) -> Result<(), String> {
    match text.is_empty() || is_label_text(text) {
        true => Ok(()),
        false => Err(format!(
            "{text:?} is not a valid value: expected at most 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"
        )),
    }
}

fn is_label_text(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.len() <= 63 && ends(text.chars().next()) && ends(text.chars().last()) && text.chars().all(inside)
}
