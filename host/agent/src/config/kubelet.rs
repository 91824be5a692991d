//! KubeletConfiguration v1beta1: what longshore takes from it, and what it says about the rest.
//!
//! Strict: a wrong value is a problem with line and field, a field that the kubelet does not know is named with
//! the nearest one that it does, and a field that only the kubelet heeds is named in one warning.

use super::draft::{Draft, Findings};
use super::known::UNSUPPORTED_FIELDS;
use longshore_core::document::{Entry, Node, Value};

use super::reader::Reader;
use super::tree;
use super::{gates, values};
use crate::names::nearest;

/// Fields that have an effect here.
pub(super) const SUPPORTED: &[&str] = &[
    "address",
    "allowedUnsafeSysctls",
    "authentication",
    "authorization",
    "clusterDNS",
    "clusterDomain",
    "containerLogMaxFiles",
    "containerLogMaxSize",
    "cpuCFSQuota",
    "cpuCFSQuotaPeriod",
    "crashLoopBackOff",
    "enableDebugFlagsHandler",
    "enableDebuggingHandlers",
    "enableProfilingHandler",
    "enableServer",
    "enableSystemLogHandler",
    "enableSystemLogQuery",
    "enforceNodeAllocatable",
    "eventBurst",
    "eventRecordQPS",
    "evictionHard",
    "evictionMaxPodGracePeriod",
    "evictionMinimumReclaim",
    "evictionPressureTransitionPeriod",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "failCgroupV1",
    "failSwapOn",
    "featureGates",
    "fileCheckFrequency",
    "hairpinMode",
    "healthzBindAddress",
    "healthzPort",
    "httpCheckFrequency",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "imageMaximumGCAge",
    "imageMinimumGCAge",
    "imagePullCredentialsVerificationPolicy",
    "kubeAPIBurst",
    "kubeAPIQPS",
    "kubeReserved",
    "localStorageCapacityIsolation",
    "logging",
    "makeIPTablesUtilChains",
    "maxParallelImagePulls",
    "maxPods",
    "mergeDefaultEvictionSettings",
    "nodeLeaseDurationSeconds",
    "nodeStatusMaxImages",
    "nodeStatusReportFrequency",
    "nodeStatusUpdateFrequency",
    "podCIDR",
    "podLogsDir",
    "podPidsLimit",
    "podsPerCore",
    "port",
    "preloadedImagesVerificationAllowlist",
    "providerID",
    "readOnlyPort",
    "registerNode",
    "registerWithTaints",
    "registryBurst",
    "registryPullQPS",
    "resolvConf",
    "rotateCertificates",
    "seccompDefault",
    "serializeImagePulls",
    "serverTLSBootstrap",
    "shutdownGracePeriod",
    "shutdownGracePeriodByPodPriority",
    "shutdownGracePeriodCriticalPods",
    "singleProcessOOMKill",
    "staticPodPath",
    "staticPodURL",
    "staticPodURLHeader",
    "streamingConnectionIdleTimeout",
    "systemReserved",
    "tlsCertFile",
    "tlsCipherSuites",
    "tlsMinVersion",
    "tlsPrivateKeyFile",
];

/// Fields whose zero or empty value says something: `evictionHard: {}` for no eviction, `healthzPort: 0` for no port.
const ZERO_COUNTS: &[&str] = &[
    "enforceNodeAllocatable",
    "eventRecordQPS",
    "evictionHard",
    "healthzPort",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "maxParallelImagePulls",
    "nodeStatusMaxImages",
    "registerWithTaints",
    "registryPullQPS",
    "resolvConf",
];

/// The kind in a document, if it has one: tells a KubeletConfiguration from what was named by mistake.
pub(crate) fn kind_of(text: &str) -> Option<String> {
    field(&tree::parse(text).ok()?.node, "kind").map(str::to_owned)
}

/// The text of a document's field.
fn field<'a>(document: &'a Node, key: &str) -> Option<&'a str> {
    let Value::Map(entries) = &document.value else { return None };
    let entry = entries.iter().find(|entry| entry.key == key)?;
    if let Value::String(text) = &entry.node.value { Some(text) } else { None }
}

/// Whether a text says that it is a configuration, and no manifest; of a broken one a line that says it is enough.
pub(crate) fn is_configuration(text: &str) -> bool {
    let is_kind = |kind: &str| matches!(kind, "KubeletConfiguration" | "CredentialProviderConfig");
    let Ok(parsed) = tree::parse(text) else {
        let quotes = ['"', '\'', ',', ' ', '\t'];
        let fields = text.lines().filter_map(|line| line.split(" #").next()?.split_once(':'));
        let mut fields = fields.map(|(key, value)| (key.trim_matches(quotes), value.trim_matches(quotes)));
        return fields.any(|(key, value)| key == "kind" && is_kind(value));
    };
    field(&parsed.node, "kind").is_some_and(is_kind)
        || field(&parsed.node, "apiVersion").is_some_and(|version| version.starts_with("kubelet.config.k8s.io/"))
}

/// Reads a KubeletConfiguration; `file` names it in messages.
pub(crate) fn read(file: &str, text: &str, findings: &mut Findings) -> Draft {
    if text.len() > tree::SIZE_LIMIT {
        findings.problem(file, format!("larger than {} bytes; this is not a KubeletConfiguration", tree::SIZE_LIMIT));
        return Draft::default();
    }
    let place = |line: Option<u64>| line.map_or(file.to_owned(), |line| format!("{file}:{line}"));
    let tree::Parsed { node, remarks } = match tree::parse(text) {
        Ok(parsed) => parsed,
        Err(error) => {
            findings.problem(&place(error.line), error.message);
            return Draft::default();
        }
    };
    findings.warnings.extend(remarks.into_iter().map(|(line, remark)| format!("{}: {remark}", place(line))));
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

impl Reader<'_> {
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
        if tree::is_unset(&node.value) && (node.value == Value::Null || !ZERO_COUNTS.contains(&key)) {
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
            "imagePullCredentialsVerificationPolicy" => {
                draft.verification = self.text(key, node, |text| values::verification(&text));
            }
            "kubeReserved" => draft.kube_reserved = self.table(key, node, values::reserve),
            "maxParallelImagePulls" => draft.max_parallel_pulls = self.whole(key, node, values::max_parallel_pulls),
            "maxPods" => draft.max_pods = self.whole(key, node, values::max_pods),
            "podLogsDir" => draft.pod_logs_dir = self.path(key, node),
            "preloadedImagesVerificationAllowlist" => {
                draft.verification_allowlist = self.texts(key, node, values::image_pattern);
            }
            "registerNode" => draft.register_node = self.boolean(key, node),
            "registryBurst" => draft.pull_burst = self.whole(key, node, values::pull_burst),
            "registryPullQPS" => draft.pull_qps = self.whole(key, node, values::pull_qps),
            "resolvConf" => draft.resolv_conf = self.path(key, node),
            "seccompDefault" => draft.seccomp_default = self.boolean(key, node),
            "singleProcessOOMKill" => draft.single_process_oom_kill = self.boolean(key, node),
            "serializeImagePulls" => draft.serialize_pulls = self.boolean(key, node),
            "staticPodPath" => draft.manifests = self.path(key, node),
            "systemReserved" => draft.system_reserved = self.table(key, node, values::reserve),
            "crashLoopBackOff" => self.crash_loop(node, draft),
            "logging" => self.logging(node, draft),
            "featureGates" => draft.feature_gates = self.table(key, node, gates::gate),
            // SUPPORTED, these arms and the groups' are held together by a test.
            _ => {
                let _ = draft.joining.field(self, key, node)
                    || draft.server.field(self, key, node)
                    || draft.manifest_url.field(self, key, node)
                    || draft.network.field(self, key, node)
                    || draft.resources.field(self, key, node)
                    || draft.eviction.field(self, key, node);
            }
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
}
