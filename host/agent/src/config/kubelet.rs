//! KubeletConfiguration v1beta1: what longshore takes from it, and what it says about the rest.
//!
//! Strict: a wrong value is a problem with line and field, a field that the kubelet does not know is named with
//! the nearest one that it does, and a field that only the kubelet heeds is named in one warning.

use std::path::PathBuf;
use std::time::Duration;

use super::draft::{Draft, Findings};
use super::known::UNSUPPORTED_FIELDS;
use longshore_core::document::{Entry, Node, Value};

use super::tree;
use super::{Reserved, duration, values};
use crate::names::nearest;

/// Fields that have an effect here.
pub(super) const SUPPORTED: &[&str] = &[
    "allowedUnsafeSysctls",
    "clusterDNS",
    "clusterDomain",
    "crashLoopBackOff",
    "failCgroupV1",
    "failSwapOn",
    "fileCheckFrequency",
    "kubeReserved",
    "logging",
    "maxParallelImagePulls",
    "maxPods",
    "podLogsDir",
    "registerNode",
    "registryBurst",
    "registryPullQPS",
    "resolvConf",
    "seccompDefault",
    "serializeImagePulls",
    "staticPodPath",
    "systemReserved",
];

/// The kind in a document, if it has one: tells a KubeletConfiguration from a manifest that was named by mistake.
pub(crate) fn kind_of(text: &str) -> Option<String> {
    let node = tree::parse(text).ok()?;
    let Value::Map(entries) = node.value else { return None };
    let kind = entries.into_iter().find(|entry| entry.key == "kind")?;
    if let Value::String(kind) = kind.node.value { Some(kind) } else { None }
}

/// Reads a KubeletConfiguration; `file` names it in messages.
pub(crate) fn read(file: &str, text: &str, findings: &mut Findings) -> Draft {
    if text.len() > tree::SIZE_LIMIT {
        findings.problem(file, format!("larger than {} bytes; this is no KubeletConfiguration", tree::SIZE_LIMIT));
        return Draft::default();
    }
    let node = match tree::parse(text) {
        Ok(node) => node,
        Err(error) => {
            let place = error.line.map_or(file.to_owned(), |line| format!("{file}:{line}"));
            findings.problem(&place, error.message);
            return Draft::default();
        }
    };
    let Value::Map(entries) = &node.value else {
        findings.problem(file, format!("expected a KubeletConfiguration, got {}", node.describe()));
        return Draft::default();
    };
    let mut reader = Reader { file, findings, unsupported: Vec::new() };
    reader.header(entries);
    let mut draft = Draft::default();
    for entry in entries {
        reader.field(entry, &mut draft);
    }
    reader.warn_unsupported();
    draft
}

struct Reader<'a> {
    file: &'a str,
    findings: &'a mut Findings,
    unsupported: Vec<String>,
}

impl Reader<'_> {
    fn place(&self, line: u64, field: &str) -> String {
        format!("{}:{line}: {field}", self.file)
    }

    fn header(&mut self, entries: &[Entry]) {
        for (key, expected) in [("apiVersion", "kubelet.config.k8s.io/v1beta1"), ("kind", "KubeletConfiguration")] {
            match entries.iter().find(|entry| entry.key == key) {
                Some(entry) if entry.node.value == Value::String(expected.to_owned()) => {}
                Some(entry) => {
                    let message = format!("expected {expected:?}, got {}", entry.node.describe());
                    self.findings.problem(&self.place(entry.at.line, key), message);
                }
                None => self.findings.problem(self.file, format!("has no {key}; expected {expected:?}")),
            }
        }
    }

    fn field(&mut self, entry: &Entry, draft: &mut Draft) {
        let Entry { key, at, node } = entry;
        let key = key.as_str();
        if matches!(key, "apiVersion" | "kind") {
            return;
        }
        if UNSUPPORTED_FIELDS.contains(&key) {
            if !tree::is_unset(&node.value) {
                self.unsupported.push(format!("{key} (line {})", at.line));
            }
            return;
        }
        if !SUPPORTED.contains(&key) {
            let known = SUPPORTED.iter().chain(UNSUPPORTED_FIELDS).copied();
            let hint = nearest(key, known).map_or(String::new(), |near| format!("; did you mean {near}?"));
            let place = self.place(at.line, key);
            self.findings.warnings.push(format!("{place}: no such field in KubeletConfiguration{hint}"));
            return;
        }
        if tree::is_unset(&node.value) && key != "resolvConf" && key != "registryPullQPS" {
            return;
        }
        match key {
            "allowedUnsafeSysctls" => draft.allowed_unsafe_sysctls = self.texts(key, node, values::sysctl),
            "clusterDNS" => draft.cluster_dns = self.texts(key, node, values::address),
            "clusterDomain" => draft.cluster_domain = self.text(key, node, |text| values::domain(&text)),
            "failCgroupV1" => draft.fail_cgroup_v1 = self.boolean(key, node),
            "failSwapOn" => draft.fail_swap_on = self.boolean(key, node),
            "fileCheckFrequency" => {
                draft.file_check_frequency = self.duration(key, node, values::file_check_frequency);
            }
            "kubeReserved" => draft.kube_reserved = self.reserved(key, node),
            "maxParallelImagePulls" => draft.max_parallel_pulls = self.whole(key, node, values::max_parallel_pulls),
            "maxPods" => draft.max_pods = self.whole(key, node, values::max_pods),
            "podLogsDir" => draft.pod_logs_dir = self.text(key, node, absolute),
            "registerNode" => draft.register_node = self.boolean(key, node),
            "registryBurst" => draft.pull_burst = self.whole(key, node, values::pull_burst),
            "registryPullQPS" => draft.pull_qps = self.whole(key, node, values::pull_qps),
            "resolvConf" => draft.resolv_conf = self.text(key, node, |text| Ok(PathBuf::from(text))),
            "seccompDefault" => draft.seccomp_default = self.boolean(key, node),
            "serializeImagePulls" => draft.serialize_pulls = self.boolean(key, node),
            "staticPodPath" => draft.manifests = self.text(key, node, |text| Ok(PathBuf::from(text))),
            "systemReserved" => draft.system_reserved = self.reserved(key, node),
            "crashLoopBackOff" => self.crash_loop(node, draft),
            "logging" => self.logging(node, draft),
            // SUPPORTED and these arms are held together by a test.
            _ => {}
        }
    }

    fn crash_loop(&mut self, node: &Node, draft: &mut Draft) {
        for entry in self.map("crashLoopBackOff", node) {
            let field = format!("crashLoopBackOff.{}", entry.key);
            match entry.key.as_str() {
                "maxContainerRestartPeriod" => {
                    draft.max_restart_delay = self.duration(&field, &entry.node, values::max_restart_delay);
                }
                key => self.unknown(&field, key, entry.at.line, &["maxContainerRestartPeriod"]),
            }
        }
    }

    fn logging(&mut self, node: &Node, draft: &mut Draft) {
        for entry in self.map("logging", node) {
            let field = format!("logging.{}", entry.key);
            if tree::is_unset(&entry.node.value) {
                continue;
            }
            match entry.key.as_str() {
                "format" => draft.log_format = self.text(&field, &entry.node, |text| values::log_format(&text)),
                "verbosity" => draft.verbosity = self.whole(&field, &entry.node, values::verbosity),
                "flushFrequency" | "vmodule" | "options" => {
                    self.unsupported.push(format!("{field} (line {})", entry.at.line));
                }
                key => self.unknown(&field, key, entry.at.line, &["format", "verbosity"]),
            }
        }
    }

    fn unknown(&mut self, field: &str, key: &str, line: u64, known: &[&'static str]) {
        let hint = nearest(key, known.iter().copied()).map_or(String::new(), |near| format!("; did you mean {near}?"));
        let place = self.place(line, field);
        self.findings.warnings.push(format!("{place}: no such field in KubeletConfiguration{hint}"));
    }

    fn warn_unsupported(&mut self) {
        if !self.unsupported.is_empty() {
            let fields = self.unsupported.join(", ");
            let message = format!("{}: these fields have no effect in this version: {fields}", self.file);
            self.findings.warnings.push(message);
        }
    }

    fn wrong(&mut self, field: &str, node: &Node, expected: &str) {
        let message = format!("expected {expected}, got {}", node.describe());
        self.findings.problem(&self.place(node.at.line, field), message);
    }

    fn map<'n>(&mut self, field: &str, node: &'n Node) -> &'n [Entry] {
        match &node.value {
            Value::Map(entries) => entries,
            _ => {
                self.wrong(field, node, "a mapping");
                &[]
            }
        }
    }

    fn text<T>(&mut self, field: &str, node: &Node, check: impl FnOnce(String) -> Result<T, String>) -> Option<T> {
        match &node.value {
            Value::String(text) => {
                let place = self.place(node.at.line, field);
                self.findings.note(&place, check(text.clone()))
            }
            Value::Null => None,
            _ => {
                self.wrong(field, node, "text");
                None
            }
        }
    }

    fn texts<T>(&mut self, field: &str, node: &Node, check: fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        let Value::Seq(items) = &node.value else {
            self.wrong(field, node, "a list");
            return None;
        };
        let items = items.iter().enumerate();
        Some(items.filter_map(|(n, item)| self.text(&format!("{field}[{n}]"), item, |text| check(&text))).collect())
    }

    fn whole<T>(&mut self, field: &str, node: &Node, check: fn(i64) -> Result<T, String>) -> Option<T> {
        match node.value {
            Value::Int(value) => {
                let place = self.place(node.at.line, field);
                // What does not fit is out of every range there is.
                let value = i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX });
                self.findings.note(&place, check(value))
            }
            Value::Null => None,
            _ => {
                self.wrong(field, node, "a whole number");
                None
            }
        }
    }

    fn boolean(&mut self, field: &str, node: &Node) -> Option<bool> {
        match node.value {
            Value::Bool(value) => Some(value),
            _ => {
                self.wrong(field, node, "true or false");
                None
            }
        }
    }

    fn duration(
        &mut self,
        field: &str,
        node: &Node,
        check: fn(Duration) -> Result<Duration, String>,
    ) -> Option<Duration> {
        match &node.value {
            Value::String(text) => {
                let place = self.place(node.at.line, field);
                self.findings.note(&place, duration::parse(text).and_then(check))
            }
            _ => {
                self.wrong(field, node, "a duration like \"20s\"");
                None
            }
        }
    }

    fn reserved(&mut self, field: &str, node: &Node) -> Option<Reserved> {
        let mut reserved = Reserved::default();
        for entry in self.map(field, node) {
            let field = format!("{field}.{}", entry.key);
            // Quantities may be written as bare numbers.
            let text = match &entry.node.value {
                Value::String(text) => text.clone(),
                Value::Int(value) => value.to_string(),
                _ => {
                    self.wrong(&field, &entry.node, "a quantity like 500m or 1Gi");
                    continue;
                }
            };
            let place = self.place(entry.node.at.line, &field);
            self.findings.note(&place, values::reserve(&mut reserved, &entry.key, &text));
        }
        Some(reserved)
    }
}

fn absolute(text: String) -> Result<PathBuf, String> {
    match text.starts_with('/') {
        true => Ok(PathBuf::from(text)),
        false => Err(format!("expected an absolute path, got {text:?}")),
    }
}
