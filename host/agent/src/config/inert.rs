//! Settings that are read and checked but have no effect in this version: named at start, so that nobody relies on them.
//!
//! An entry goes when the room that heeds it is wired in.

use serde_json::Value;

use super::{Config, Draft, Findings, Whole};

/// Fields of a KubeletConfiguration, as places in [`Config::configz`].
const FIELDS: &[&str] = &[
    "/podPidsLimit",
    "/cpuCFSQuota",
    "/cpuCFSQuotaPeriod",
    "/kubeAPIQPS",
    "/kubeAPIBurst",
    "/eventRecordQPS",
    "/eventBurst",
];

impl Config {
    /// Warnings about what was asked for and is not done.
    pub(super) fn without_effect(&self) -> Vec<String> {
        let mut findings = Findings::default();
        let root = self.root_dir.clone();
        let usual = Config::from_draft(Draft::default(), root, None, Whole::FileAlone, &mut findings);
        let (own, usual) = (self.configz(), usual.configz());
        let at = |all: &Value, place: &str| all.pointer(place).cloned().unwrap_or_default();
        let named: Vec<&str> =
            FIELDS.iter().filter(|place| at(&own, place) != at(&usual, place)).map(|place| &place[1..]).collect();
        match named.is_empty() {
            true => Vec::new(),
            false => vec![format!("these settings have no effect in this version: {}", named.join(", "))],
        }
    }
}
