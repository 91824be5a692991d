//! What we read of the daemon's answers: only the fields that are used, each of which may be absent or null.
//! It must not interpret them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// `GET /version`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Version {
    pub(crate) version: Option<String>,
    pub(crate) api_version: Option<String>,
    #[serde(rename = "MinAPIVersion")]
    pub(crate) min_api_version: Option<String>,
}

/// `GET /info`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Info {
    #[serde(rename = "ID")]
    pub(crate) id: Option<String>,
    pub(crate) server_version: Option<String>,
    pub(crate) kernel_version: Option<String>,
    pub(crate) cgroup_driver: Option<String>,
    pub(crate) cgroup_version: Option<String>,
    pub(crate) security_options: Option<Vec<String>>,
    pub(crate) runtimes: Option<HashMap<String, serde_json::Value>>,
    #[serde(rename = "NCPU")]
    pub(crate) ncpu: Option<i64>,
    pub(crate) mem_total: Option<i64>,
    pub(crate) logging_driver: Option<String>,
    pub(crate) docker_root_dir: Option<PathBuf>,
}

/// One entry of `GET /containers/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Summary {
    pub(crate) id: Option<String>,
    pub(crate) names: Option<Vec<String>>,
    pub(crate) state: Option<String>,
    #[serde(deserialize_with = "read_labels")]
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) image: Option<String>,
    #[serde(rename = "ImageID")]
    pub(crate) image_id: Option<String>,
    pub(crate) size_rw: Option<i64>,
}

/// Begins of labels that are read of an entry of a list, which has all labels of each container, however large.
const READ: [&str; 2] = ["dev.longshore.", "io.kubernetes."];

fn read_labels<'de, D: Deserializer<'de>>(from: D) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    Ok(Option::<Labels>::deserialize(from)?.map(|labels| labels.0))
}

struct Labels(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Labels, D::Error> {
        from.deserialize_map(LabelsVisitor).map(Labels)
    }
}

struct LabelsVisitor;

impl<'de> Visitor<'de> for LabelsVisitor {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("labels")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut from: M) -> Result<Self::Value, M::Error> {
        let mut labels = BTreeMap::new();
        while let Some(key) = from.next_key::<String>()? {
            if READ.iter().any(|begin| key.starts_with(begin)) {
                labels.insert(key, from.next_value()?);
            } else {
                from.next_value::<IgnoredAny>()?;
            }
        }
        Ok(labels)
    }
}

/// `GET /containers/{id}/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Inspect {
    pub(crate) id: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) created: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) log_path: Option<String>,
    pub(crate) state: Option<State>,
    pub(crate) config: Option<Config>,
    pub(crate) host_config: Option<HostConfig>,
    pub(crate) network_settings: Option<NetworkSettings>,
}

/// `HostConfig` of an inspect.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct HostConfig {
    pub(crate) network_mode: Option<String>,
    pub(crate) ipc_mode: Option<String>,
    pub(crate) cpu_shares: Option<i64>,
    pub(crate) cpu_quota: Option<i64>,
    pub(crate) cpu_period: Option<i64>,
    pub(crate) memory: Option<i64>,
}

/// `State` of an inspect.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct State {
    pub(crate) running: Option<bool>,
    pub(crate) dead: Option<bool>,
    #[serde(rename = "OOMKilled")]
    pub(crate) oom_killed: Option<bool>,
    pub(crate) pid: Option<i64>,
    pub(crate) exit_code: Option<i64>,
    pub(crate) error: Option<String>,
    pub(crate) started_at: Option<String>,
    pub(crate) finished_at: Option<String>,
}

/// `Config` of an inspect.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Config {
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) tty: Option<bool>,
    pub(crate) open_stdin: Option<bool>,
}

/// `NetworkSettings` of an inspect.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct NetworkSettings {
    pub(crate) networks: Option<BTreeMap<String, Option<Network>>>,
}

/// One network of an inspect.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Network {
    #[serde(rename = "IPAddress")]
    pub(crate) ip_address: Option<String>,
    #[serde(rename = "GlobalIPv6Address")]
    pub(crate) global_ipv6_address: Option<String>,
}

/// One of `GET /networks`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct NetworkSummary {
    pub(crate) id: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) options: Option<BTreeMap<String, String>>,
    #[serde(rename = "IPAM")]
    pub(crate) ipam: Option<Ipam>,
}

/// How a network's addresses are given out.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Ipam {
    pub(crate) config: Option<Vec<IpamConfig>>,
}

/// A part of a network's addresses.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct IpamConfig {
    pub(crate) subnet: Option<String>,
}

/// `GET /images/{name}/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Image {
    pub(crate) id: Option<String>,
    pub(crate) repo_digests: Option<Vec<String>>,
    pub(crate) size: Option<i64>,
    pub(crate) config: Option<ImageConfig>,
}

/// One of `GET /images/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ImageSummary {
    pub(crate) id: Option<String>,
    pub(crate) repo_tags: Option<Vec<String>>,
    pub(crate) repo_digests: Option<Vec<String>>,
    pub(crate) size: Option<i64>,
}

/// `Config` of an image.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ImageConfig {
    pub(crate) user: Option<String>,
}

/// `GET /exec/{id}/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Exec {
    pub(crate) running: Option<bool>,
    pub(crate) exit_code: Option<i64>,
    pub(crate) pid: Option<i64>,
}

/// One line of `GET /events`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Event {
    pub(crate) action: Option<String>,
    pub(crate) actor: Option<Actor>,
}

/// Whom an event is about.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Actor {
    #[serde(rename = "ID")]
    pub(crate) id: Option<String>,
    pub(crate) attributes: Option<BTreeMap<String, String>>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_the_labels_that_are_read() {
        let summary =
            r#"{"Id":"a","Labels":{"x":"y","dev.longshore.root":"r","annotation.z":"z","io.kubernetes.pod.uid":"u"}}"#;
        let summary: Summary = serde_json::from_str(summary).unwrap();
        let labels: Vec<(String, String)> = summary.labels.unwrap().into_iter().collect();
        let read = [("dev.longshore.root", "r"), ("io.kubernetes.pod.uid", "u")];
        assert_eq!(labels, read.map(|(key, value)| (key.to_owned(), value.to_owned())));
        for none in ["{}", r#"{"Labels":null}"#] {
            assert!(serde_json::from_str::<Summary>(none).unwrap().labels.is_none());
        }
    }
}
