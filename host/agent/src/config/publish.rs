//! The configuration as the node tells it: `/configz` and `/flagz`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use longshore_core::evict::Amount;
use serde_json::{Map, Value, json};

use super::{Authorization, Config, DaemonFlags, LogFormat, Reserved, duration};

/// Flags whose value a KubeletConfiguration holds, with the place in it. The others stand in for themselves.
const FIELDS: &[(&str, &str)] = &[
    ("address", "/address"),
    ("anonymous-auth", "/authentication/anonymous/enabled"),
    ("authentication-token-webhook", "/authentication/webhook/enabled"),
    ("authentication-token-webhook-cache-ttl", "/authentication/webhook/cacheTTL"),
    ("authorization-mode", "/authorization/mode"),
    ("authorization-webhook-cache-authorized-ttl", "/authorization/webhook/cacheAuthorizedTTL"),
    ("authorization-webhook-cache-unauthorized-ttl", "/authorization/webhook/cacheUnauthorizedTTL"),
    ("client-ca-file", "/authentication/x509/clientCAFile"),
    ("cluster-domain", "/clusterDomain"),
    ("container-log-max-files", "/containerLogMaxFiles"),
    ("container-log-max-size", "/containerLogMaxSize"),
    ("cpu-cfs-quota", "/cpuCFSQuota"),
    ("cpu-cfs-quota-period", "/cpuCFSQuotaPeriod"),
    ("enable-debugging-handlers", "/enableDebuggingHandlers"),
    ("enable-server", "/enableServer"),
    ("event-burst", "/eventBurst"),
    ("event-qps", "/eventRecordQPS"),
    ("eviction-max-pod-grace-period", "/evictionMaxPodGracePeriod"),
    ("eviction-pressure-transition-period", "/evictionPressureTransitionPeriod"),
    ("fail-cgroupv1", "/failCgroupV1"),
    ("fail-swap-on", "/failSwapOn"),
    ("file-check-frequency", "/fileCheckFrequency"),
    ("hairpin-mode", "/hairpinMode"),
    ("healthz-bind-address", "/healthzBindAddress"),
    ("healthz-port", "/healthzPort"),
    ("http-check-frequency", "/httpCheckFrequency"),
    ("image-gc-high-threshold", "/imageGCHighThresholdPercent"),
    ("image-gc-low-threshold", "/imageGCLowThresholdPercent"),
    ("kube-api-burst", "/kubeAPIBurst"),
    ("kube-api-qps", "/kubeAPIQPS"),
    ("local-storage-capacity-isolation", "/localStorageCapacityIsolation"),
    ("logging-format", "/logging/format"),
    ("make-iptables-util-chains", "/makeIPTablesUtilChains"),
    ("max-parallel-image-pulls", "/maxParallelImagePulls"),
    ("max-pods", "/maxPods"),
    ("minimum-image-ttl-duration", "/imageMinimumGCAge"),
    ("node-status-max-images", "/nodeStatusMaxImages"),
    ("node-status-update-frequency", "/nodeStatusUpdateFrequency"),
    ("pod-logs-dir", "/podLogsDir"),
    ("pod-manifest-path", "/staticPodPath"),
    ("pod-max-pids", "/podPidsLimit"),
    ("pods-per-core", "/podsPerCore"),
    ("port", "/port"),
    ("provider-id", "/providerID"),
    ("read-only-port", "/readOnlyPort"),
    ("register-node", "/registerNode"),
    ("registry-burst", "/registryBurst"),
    ("registry-qps", "/registryPullQPS"),
    ("resolv-conf", "/resolvConf"),
    ("rotate-certificates", "/rotateCertificates"),
    ("rotate-server-certificates", "/serverTLSBootstrap"),
    ("seccomp-default", "/seccompDefault"),
    ("serialize-image-pulls", "/serializeImagePulls"),
    ("streaming-connection-idle-timeout", "/streamingConnectionIdleTimeout"),
    ("tls-cert-file", "/tlsCertFile"),
    ("tls-min-version", "/tlsMinVersion"),
    ("tls-private-key-file", "/tlsPrivateKeyFile"),
    ("v", "/logging/verbosity"),
];

/// Flags whose values may hold what others must not read.
const SECRET: &[&str] = &["manifest-url-header"];

impl Config {
    /// The configuration in use as a KubeletConfiguration: what `/configz` has under `kubeletconfig`.
    pub(crate) fn configz(&self) -> Value {
        let mut all = json!({
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "staticPodPath": self.manifests,
            "podLogsDir": self.pod_logs_dir,
            "staticPodURL": self.manifest_url.url.as_deref().map(without_password),
            "staticPodURLHeader": self.shown_headers(),
            "httpCheckFrequency": time(self.manifest_url.period),
            "fileCheckFrequency": time(self.file_check_frequency),
            "registryPullQPS": self.pull_qps as i64,
            "registryBurst": self.pull_burst,
            "imagePullCredentialsVerificationPolicy": self.verification.as_ref().map(|of| of.policy.name()),
            "preloadedImagesVerificationAllowlist": self.verification.as_ref().map(|of| &of.allowlist),
            "serializeImagePulls": self.max_parallel_pulls <= 1,
            "maxParallelImagePulls": self.max_parallel_pulls,
            "maxPods": self.max_pods,
            "clusterDomain": self.cluster_domain,
            "clusterDNS": self.cluster_dns,
            "resolvConf": self.resolv_conf.as_deref().unwrap_or(Path::new("/etc/resolv.conf")),
            "seccompDefault": self.seccomp_default,
            "allowedUnsafeSysctls": self.allowed_unsafe_sysctls,
            "failSwapOn": self.fail_swap_on.unwrap_or(false),
            "failCgroupV1": self.fail_cgroup_v1.unwrap_or(false),
            "singleProcessOOMKill": self.single_process_oom_kill,
            "crashLoopBackOff": { "maxContainerRestartPeriod": time(self.max_restart_delay) },
            "systemReserved": reserved(self.system_reserved),
            "kubeReserved": reserved(self.kube_reserved),
            "containerRuntimeEndpoint": self.docker_endpoint,
            "featureGates": self.feature_gates,
            "logging": {
                "format": match self.log_format {
                    LogFormat::Text => "text",
                    LogFormat::Json => "json",
                },
                "verbosity": self.verbosity,
            },
        });
        let groups =
            [self.cluster_fields(), self.server_fields(), self.limit_fields(), self.eviction_fields(), fixed_fields()];
        if let Value::Object(all) = &mut all {
            all.extend(groups.into_iter().flat_map(|group| match group {
                Value::Object(fields) => fields,
                _ => Map::new(),
            }));
            // As `omitempty`: what is not set is not there.
            all.retain(|_, value| {
                !(value.is_null() || *value == json!("") || *value == json!([]) || *value == json!({}))
            });
        }
        all
    }

    /// The headers of the manifest URL, without their values (`pkg/kubelet/apis/config/helpers.go` masks them as well).
    fn shown_headers(&self) -> Value {
        let mut shown = Map::new();
        for (name, _) in &self.manifest_url.headers.0 {
            shown.insert(name.clone(), json!(["<masked>"]));
        }
        Value::Object(shown)
    }

    fn cluster_fields(&self) -> Value {
        let joining = &self.joining;
        json!({
            "registerNode": joining.register_node,
            "registerWithTaints": joining.taints,
            "providerID": joining.provider_id,
            "rotateCertificates": joining.rotate_certificates,
            "serverTLSBootstrap": joining.server_tls_bootstrap,
            "nodeStatusUpdateFrequency": time(joining.status_update_frequency),
            "nodeStatusReportFrequency": time(joining.status_report_frequency),
            "nodeLeaseDurationSeconds": joining.lease_seconds,
            "nodeStatusMaxImages": joining.status_max_images.map_or(-1, |images| images as i64),
            "kubeAPIQPS": joining.api_qps,
            "kubeAPIBurst": joining.api_burst,
            "eventRecordQPS": joining.event_qps,
            "eventBurst": joining.event_burst,
            "podCIDR": self.network.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            "hairpinMode": self.network.hairpin_mode,
            "makeIPTablesUtilChains": self.network.util_chains,
        })
    }

    fn server_fields(&self) -> Value {
        let server = &self.server;
        let (certificate, key) = server.tls_files.clone().unzip();
        json!({
            "enableServer": server.enabled,
            "address": server.address,
            "port": server.port,
            "readOnlyPort": server.read_only_port.unwrap_or(0),
            "healthzPort": server.healthz_port.unwrap_or(0),
            "healthzBindAddress": server.healthz_address,
            "authentication": {
                "x509": { "clientCAFile": server.client_ca_file.as_deref().unwrap_or(Path::new("")) },
                "webhook": { "enabled": server.token_webhook, "cacheTTL": time(server.token_cache) },
                "anonymous": { "enabled": server.anonymous },
            },
            "authorization": {
                "mode": match server.authorization {
                    Authorization::Webhook => "Webhook",
                    Authorization::AlwaysAllow => "AlwaysAllow",
                },
                "webhook": {
                    "cacheAuthorizedTTL": time(server.authorized_cache),
                    "cacheUnauthorizedTTL": time(server.unauthorized_cache),
                },
            },
            "tlsCertFile": certificate,
            "tlsPrivateKeyFile": key,
            "tlsCipherSuites": server.cipher_suites,
            "tlsMinVersion": server.tls_min_version.name(),
            "enableDebuggingHandlers": server.debugging_handlers,
            "enableSystemLogHandler": server.system_log_handler,
            "enableSystemLogQuery": server.system_log_query,
            "enableProfilingHandler": server.profiling_handler,
            "enableDebugFlagsHandler": server.debug_flags_handler,
            "streamingConnectionIdleTimeout": time(server.streaming_idle_timeout),
        })
    }

    fn limit_fields(&self) -> Value {
        let limits = &self.resources;
        let by_priority = limits.shutdown_grace_period.is_zero().then(|| {
            let steps = limits.shutdown.iter();
            steps.map(|step| json!({ "priority": step.priority, "shutdownGracePeriodSeconds": step.seconds })).collect()
        });
        json!({
            "imageGCHighThresholdPercent": limits.image_gc_high_percent,
            "imageGCLowThresholdPercent": limits.image_gc_low_percent,
            "imageMinimumGCAge": time(limits.image_minimum_age),
            "imageMaximumGCAge": time(limits.image_maximum_age.unwrap_or_default()),
            "enforceNodeAllocatable": [if limits.enforce_allocatable { "pods" } else { "none" }],
            "podPidsLimit": limits.pod_pids_limit.unwrap_or(-1),
            "podsPerCore": limits.pods_per_core,
            "cpuCFSQuota": limits.cpu_cfs_quota,
            "cpuCFSQuotaPeriod": time(limits.cpu_cfs_quota_period),
            "localStorageCapacityIsolation": limits.local_storage,
            "containerLogMaxSize": Amount::Absolute(limits.log_max_size).to_string(),
            "containerLogMaxFiles": limits.log_max_files,
            "shutdownGracePeriod": time(limits.shutdown_grace_period),
            "shutdownGracePeriodCriticalPods": time(limits.shutdown_grace_period_critical),
            "shutdownGracePeriodByPodPriority": by_priority.map(Value::Array),
        })
    }

    fn eviction_fields(&self) -> Value {
        let eviction = &self.eviction;
        let (mut hard, mut soft, mut periods, mut reclaim) = (Map::new(), Map::new(), Map::new(), Map::new());
        for threshold in &eviction.thresholds {
            let name = || threshold.signal.name().to_owned();
            let amount = Value::String(threshold.amount.to_string());
            match threshold.grace_period {
                None => hard.insert(name(), amount),
                Some(period) => {
                    periods.insert(name(), time(period));
                    soft.insert(name(), amount)
                }
            };
            if let Some(amount) = threshold.minimum_reclaim {
                reclaim.insert(name(), Value::String(amount.to_string()));
            }
        }
        json!({
            "evictionHard": hard,
            "evictionSoft": soft,
            "evictionSoftGracePeriod": periods,
            "evictionMinimumReclaim": reclaim,
            "evictionPressureTransitionPeriod": time(eviction.transition_period),
            "evictionMaxPodGracePeriod": eviction.max_pod_grace_seconds,
        })
    }

    /// All flags with the values in use, by name, for `/flagz`. What may be secret is not told.
    pub(crate) fn flagz(&self) -> Vec<(String, String)> {
        let configz = self.configz();
        let fields: BTreeMap<&str, &str> = FIELDS.iter().copied().collect();
        let names = DaemonFlags::augment_args(clap::Command::new("longshore"));
        let mut flags: BTreeMap<String, String> = names
            .get_arguments()
            .filter_map(|argument| argument.get_long())
            .map(|name| {
                let value = fields.get(name).and_then(|place| configz.pointer(place)).map(|value| match value {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                });
                (name.to_owned(), value.unwrap_or_default())
            })
            .collect();
        flags.insert("root-dir".to_owned(), self.root_dir.display().to_string());
        flags.insert("docker-endpoint".to_owned(), self.docker_endpoint.clone());
        flags.insert("cert-dir".to_owned(), self.joining.cert_dir.display().to_string());
        flags.extend(self.given_flags.iter().map(|(name, value)| (name.clone(), value.clone())));
        for (name, value) in &mut flags {
            if SECRET.contains(&name.as_str()) && !value.is_empty() {
                *value = "REDACTED".to_owned();
            } else {
                *value = without_password(value);
            }
        }
        flags.into_iter().collect()
    }
}

/// What is so here whatever the configuration says.
fn fixed_fields() -> Value {
    json!({
        "syncFrequency": time(Duration::from_secs(60)),
        "contentType": "application/json",
        "cgroupsPerQOS": true,
        "cpuManagerPolicy": "none",
        "memoryManagerPolicy": "None",
        "topologyManagerPolicy": "none",
        "topologyManagerScope": "container",
    })
}

/// A text in which no URL has a user and a password.
pub(super) fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let host_ends = rest.find('/').unwrap_or(rest.len());
    match rest[..host_ends].rfind('@') {
        Some(at) => format!("{scheme}://REDACTED{}", &rest[at..]),
        None => text.to_owned(),
    }
}

fn time(time: Duration) -> Value {
    Value::String(duration::format(time))
}

fn reserved(reserved: Reserved) -> Value {
    let mut fields = Map::new();
    let amounts = [
        ("cpu", reserved.milli_cpu, "m"),
        ("memory", reserved.memory, ""),
        ("ephemeral-storage", reserved.ephemeral_storage, ""),
        ("pid", reserved.pids, ""),
    ];
    for (name, amount, unit) in amounts {
        if amount != 0 {
            fields.insert(name.to_owned(), Value::String(format!("{amount}{unit}")));
        }
    }
    Value::Object(fields)
}
