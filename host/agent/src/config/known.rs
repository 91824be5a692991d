//! What the kubelet knows and longshore does not (yet): fields and flags that are named in a warning, never an
//! error, so that a kubelet's configuration works as it is.

/// Top-level fields of KubeletConfiguration v1beta1 (`staging/src/k8s.io/kubelet/config/v1beta1/types.go`, 1.36)
/// that have no effect here.
pub(crate) const UNSUPPORTED_FIELDS: &[&str] = &[
    "address",
    "authentication",
    "authorization",
    "cgroupDriver",
    "cgroupRoot",
    "cgroupsPerQOS",
    "configMapAndSecretChangeDetectionStrategy",
    "containerLogMaxFiles",
    "containerLogMaxSize",
    "containerLogMaxWorkers",
    "containerLogMonitorInterval",
    "containerRuntimeEndpoint",
    "contentType",
    "cpuCFSQuota",
    "cpuCFSQuotaPeriod",
    "cpuManagerPolicy",
    "cpuManagerPolicyOptions",
    "cpuManagerReconcilePeriod",
    "enableContentionProfiling",
    "enableControllerAttachDetach",
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
    "featureGates",
    "hairpinMode",
    "healthzBindAddress",
    "healthzPort",
    "httpCheckFrequency",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "imageMaximumGCAge",
    "imageMinimumGCAge",
    "imagePullCredentialsVerificationPolicy",
    "imageServiceEndpoint",
    "iptablesDropBit",
    "iptablesMasqueradeBit",
    "kernelMemcgNotification",
    "kubeAPIBurst",
    "kubeAPIQPS",
    "kubeReservedCgroup",
    "kubeletCgroups",
    "localStorageCapacityIsolation",
    "makeIPTablesUtilChains",
    "maxOpenFiles",
    "memoryManagerPolicy",
    "memoryReservationPolicy",
    "memorySwap",
    "memoryThrottlingFactor",
    "mergeDefaultEvictionSettings",
    "nodeLeaseDurationSeconds",
    "nodeStatusMaxImages",
    "nodeStatusReportFrequency",
    "nodeStatusUpdateFrequency",
    "oomScoreAdj",
    "podCIDR",
    "podPidsLimit",
    "podsPerCore",
    "port",
    "preloadedImagesVerificationAllowlist",
    "protectKernelDefaults",
    "providerID",
    "qosReserved",
    "readOnlyPort",
    "registerWithTaints",
    "reservedMemory",
    "reservedSystemCPUs",
    "rotateCertificates",
    "runOnce",
    "runtimeRequestTimeout",
    "serverTLSBootstrap",
    "showHiddenMetricsForVersion",
    "shutdownGracePeriod",
    "shutdownGracePeriodByPodPriority",
    "shutdownGracePeriodCriticalPods",
    "singleProcessOOMKill",
    "staticPodURL",
    "staticPodURLHeader",
    "streamingConnectionIdleTimeout",
    "syncFrequency",
    "systemCgroups",
    "systemReservedCgroup",
    "tlsCertFile",
    "tlsCipherSuites",
    "tlsCurvePreferences",
    "tlsMinVersion",
    "tlsPrivateKeyFile",
    "topologyManagerPolicy",
    "topologyManagerPolicyOptions",
    "topologyManagerScope",
    "tracing",
    "userNamespaces",
    "volumePluginDir",
    "volumeStatsAggPeriod",
];

/// Flags of the kubelet, dockershim's included, that take a value and have no effect here.
const VALUE_FLAGS: &[&str] = &[
    "address",
    "api-servers",
    "authentication-token-webhook-cache-ttl",
    "authorization-mode",
    "authorization-webhook-cache-authorized-ttl",
    "authorization-webhook-cache-unauthorized-ttl",
    "bootstrap-kubeconfig",
    "cadvisor-port",
    "cert-dir",
    "cgroup-driver",
    "cgroup-root",
    "client-ca-file",
    "cloud-config",
    "cloud-provider",
    "cni-bin-dir",
    "cni-cache-dir",
    "cni-conf-dir",
    "config-dir",
    "container-log-max-files",
    "container-log-max-size",
    "container-runtime",
    "container-runtime-endpoint",
    "cpu-cfs-quota-period",
    "cpu-manager-policy",
    "cpu-manager-policy-options",
    "cpu-manager-reconcile-period",
    "enforce-node-allocatable",
    "event-burst",
    "event-qps",
    "eviction-hard",
    "eviction-max-pod-grace-period",
    "eviction-minimum-reclaim",
    "eviction-pressure-transition-period",
    "eviction-soft",
    "eviction-soft-grace-period",
    "feature-gates",
    "hairpin-mode",
    "healthz-bind-address",
    "healthz-port",
    "http-check-frequency",
    "image-credential-provider-bin-dir",
    "image-credential-provider-config",
    "image-gc-high-threshold",
    "image-gc-low-threshold",
    "image-pull-progress-deadline",
    "image-service-endpoint",
    "iptables-drop-bit",
    "iptables-masquerade-bit",
    "kube-api-burst",
    "kube-api-content-type",
    "kube-api-qps",
    "kube-reserved-cgroup",
    "kubeconfig",
    "kubelet-cgroups",
    "lock-file",
    "log-dir",
    "log-file",
    "log-file-max-size",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-text-info-buffer-size",
    "manifest-url",
    "manifest-url-header",
    "master-service-namespace",
    "max-open-files",
    "maximum-dead-containers",
    "maximum-dead-containers-per-container",
    "memory-manager-policy",
    "minimum-container-ttl-duration",
    "minimum-image-ttl-duration",
    "network-plugin",
    "network-plugin-mtu",
    "node-labels",
    "node-status-max-images",
    "node-status-update-frequency",
    "non-masquerade-cidr",
    "oom-score-adj",
    "pod-cidr",
    "pod-max-pids",
    "pods-per-core",
    "port",
    "provider-id",
    "qos-reserved",
    "read-only-port",
    "register-with-taints",
    "reserved-cpus",
    "reserved-memory",
    "runtime-cgroups",
    "runtime-request-timeout",
    "stderrthreshold",
    "streaming-connection-idle-timeout",
    "sync-frequency",
    "system-cgroups",
    "system-reserved-cgroup",
    "tls-cert-file",
    "tls-cipher-suites",
    "tls-min-version",
    "tls-private-key-file",
    "topology-manager-policy",
    "topology-manager-policy-options",
    "topology-manager-scope",
    "vmodule",
    "volume-plugin-dir",
    "volume-stats-agg-period",
];

/// Flags of the kubelet that are switches and have no effect here.
const SWITCHES: &[&str] = &[
    "allow-privileged",
    "alsologtostderr",
    "anonymous-auth",
    "authentication-token-webhook",
    "cgroups-per-qos",
    "contention-profiling",
    "cpu-cfs-quota",
    "enable-controller-attach-detach",
    "enable-debugging-handlers",
    "enable-server",
    "exit-on-lock-contention",
    "keep-terminated-pod-volumes",
    "kernel-memcg-notification",
    "local-storage-capacity-isolation",
    "log-json-split-stream",
    "log-text-split-stream",
    "logtostderr",
    "make-iptables-util-chains",
    "protect-kernel-defaults",
    "rotate-certificates",
    "rotate-server-certificates",
    "runonce",
];

/// Flags that would make the node part of a cluster: leaving them out in silence would surprise most.
const CLUSTER_FLAGS: &[&str] = &["api-servers", "bootstrap-kubeconfig", "kubeconfig"];

/// Takes the kubelet's flags that longshore does not support out of a command line, and says so, one warning each.
pub(crate) fn take_unsupported_flags(arguments: Vec<String>) -> (Vec<String>, Vec<String>) {
    let mut kept = Vec::with_capacity(arguments.len());
    let mut warnings = Vec::new();
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            kept.push(argument);
            kept.extend(arguments.by_ref());
            break;
        }
        let name = argument.strip_prefix("--").map(|flag| flag.split('=').next().unwrap_or(flag));
        let takes_value = name.is_some_and(|name| VALUE_FLAGS.contains(&name));
        let is_switch = name.is_some_and(|name| SWITCHES.contains(&name));
        let Some(name) = name.filter(|_| takes_value || is_switch) else {
            kept.push(argument);
            continue;
        };
        let effect = match CLUSTER_FLAGS.contains(&name) {
            true => "this version runs a node without an API server, so it does not join a cluster",
            false => "it is a flag of the kubelet that has no effect here",
        };
        warnings.push(format!("--{name} is not supported: {effect}"));
        if takes_value && !argument.contains('=') {
            arguments.next();
        }
    }
    (kept, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_other_flags_are_taken_out_and_named() {
        let line = "longshore --kubeconfig /k --v=2 --cgroups-per-qos --max-pods 7 --cloud-provider= -- --port 1";
        let (kept, warnings) = take_unsupported_flags(line.split(' ').map(str::to_owned).collect());
        assert_eq!(kept.join(" "), "longshore --v=2 --max-pods 7 -- --port 1");
        assert_eq!(warnings.len(), 3);
        assert!(warnings[0].contains("--kubeconfig") && warnings[0].contains("API server"), "{warnings:?}");
    }

    #[test]
    fn lists_are_sorted_and_disjoint() {
        for list in [UNSUPPORTED_FIELDS, VALUE_FLAGS, SWITCHES] {
            assert!(list.is_sorted());
        }
        assert!(!SWITCHES.iter().any(|name| VALUE_FLAGS.contains(name)));
    }
}
