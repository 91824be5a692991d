//! What a plugin gives for ADD: a pod's addresses, in every version of the specification. Pure.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::config::NetworkList;
use crate::version::Version;

/// Reads the answer to an ADD. A version that it lacks is the configuration's.
pub(crate) fn parse(output: &[u8], list: &NetworkList) -> Result<Map<String, Value>, String> {
    let mut result: Map<String, Value> =
        serde_json::from_slice(output).map_err(|error| format!("its result cannot be read: {error}"))?;
    let version = result.get("cniVersion").and_then(Value::as_str).filter(|text| !text.is_empty());
    match version {
        None => {
            result.insert("cniVersion".to_owned(), list.version_text.clone().into());
        }
        Some(text) if Version::parse(text).is_some_and(|version| version <= Version::CURRENT) => {}
        Some(text) => return Err(format!("its result is of an unknown version, {text:?}")),
    }
    Ok(result)
}

/// The pod's addresses: the first of each family, in order.
pub(crate) fn addresses(result: &Map<String, Value>) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let mut add = |text: Option<&str>| {
        let address = text.and_then(|text| text.split('/').next()).and_then(|text| text.parse::<IpAddr>().ok());
        if let Some(address) = address.filter(|address| !found.iter().any(|one| one.is_ipv4() == address.is_ipv4())) {
            found.push(address);
        }
    };
    // Before 0.3.0.
    for family in ["ip4", "ip6"] {
        add(result.get(family).and_then(|one| one.get("ip")).and_then(Value::as_str));
    }
    let interfaces = result.get("interfaces").and_then(Value::as_array);
    for ip in result.get("ips").and_then(Value::as_array).into_iter().flatten() {
        // Addresses of devices on the node's side are none of the pod's.
        let index = ip.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
        let of_node = index
            .and_then(|index| interfaces?.get(index))
            .is_some_and(|device| device.get("sandbox").and_then(Value::as_str).is_none_or(str::is_empty));
        if !of_node {
            add(ip.get("address").and_then(Value::as_str));
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<String> {
        addresses(&serde_json::from_str(text).unwrap()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_in_every_version() {
        assert_eq!(of(r#"{"ip4": {"ip": "10.1.0.5/24"}, "ip6": {"ip": "fd00::5/64"}}"#), ["10.1.0.5", "fd00::5"]);
        assert_eq!(of(r#"{"ips": [{"version": "4", "address": "10.1.0.5/24"}]}"#), ["10.1.0.5"]);
        let devices = r#"{"interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/proc/1/ns/net"}], "ips": [
            {"interface": 0, "address": "10.1.0.1/24"}, {"interface": 1, "address": "fd00::5/64"},
            {"interface": 1, "address": "10.1.0.5/24"}, {"interface": 1, "address": "10.1.0.6/24"},
            {"interface": 9, "address": "nonsense"}]}"#;
        assert_eq!(of(devices), ["fd00::5", "10.1.0.5"]);
        assert!(of("{}").is_empty());
    }

    #[test]
    fn a_result_has_a_version() {
        let list = NetworkList::parse(r#"{"name": "n", "cniVersion": "0.4.0"}"#).unwrap();
        assert_eq!(parse(b"{}", &list).unwrap()["cniVersion"], "0.4.0");
        assert_eq!(parse(br#"{"cniVersion": "1.0.0"}"#, &list).unwrap()["cniVersion"], "1.0.0");
        assert!(parse(br#"{"cniVersion": "9.0.0"}"#, &list).is_err());
        assert!(parse(b"hello", &list).unwrap_err().contains("cannot be read"));
    }
}
