//! What the kubelet knows and longshore does not (yet): fields and flags that are named in a warning, never an
//! error, so that a kubelet's configuration works as it is.

/// Top-level fields of KubeletConfiguration v1beta1 (`staging/src/k8s.io/kubelet/config/v1beta1/types.go`, 1.37)
/// that have no effect here.
pub(crate) const UNSUPPORTED_FIELDS: &[&str] = &[
    "cgroupDriver",
    "cgroupRoot",
    "cgroupsPerQOS",
    "configMapAndSecretChangeDetectionStrategy",
    "containerLogMaxWorkers",
    "containerLogMonitorInterval",
    "containerRuntimeEndpoint",
    "contentType",
    "cpuManagerPolicy",
    "cpuManagerPolicyOptions",
    "cpuManagerReconcilePeriod",
    "defaultPodSysctls",
    "enableContentionProfiling",
    "enableControllerAttachDetach",
    "imageServiceEndpoint",
    "iptablesDropBit",
    "iptablesMasqueradeBit",
    "kernelMemcgNotification",
    "kubeReservedCgroup",
    "kubeletCgroups",
    "maxOpenFiles",
    "memoryManagerPolicy",
    "memoryReservationPolicy",
    "memorySwap",
    "memoryThrottlingFactor",
    "oomScoreAdj",
    "protectKernelDefaults",
    "qosReserved",
    "reservedMemory",
    "reservedSystemCPUs",
    "runOnce",
    "runtimeRequestTimeout",
    "showHiddenMetricsForVersion",
    "syncFrequency",
    "systemCgroups",
    "systemReservedCgroup",
    "tlsCurvePreferences",
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
    "cgroup-driver",
    "cgroup-root",
    "container-runtime-endpoint",
    "cpu-manager-policy",
    "cpu-manager-policy-options",
    "cpu-manager-reconcile-period",
    "housekeeping-interval",
    "image-service-endpoint",
    "iptables-drop-bit",
    "iptables-masquerade-bit",
    "kube-api-content-type",
    "kube-reserved-cgroup",
    "kubelet-cgroups",
    "lock-file",
    "log-dir",
    "log-file",
    "log-file-max-size",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-text-info-buffer-size",
    "max-open-files",
    "memory-manager-policy",
    "network-plugin-mtu",
    "oom-score-adj",
    "qos-reserved",
    "reserved-cpus",
    "reserved-memory",
    "runtime-cgroups",
    "runtime-request-timeout",
    "stderrthreshold",
    "sync-frequency",
    "system-cgroups",
    "system-reserved-cgroup",
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
    "cgroups-per-qos",
    "contention-profiling",
    "enable-controller-attach-detach",
    "exit-on-lock-contention",
    "experimental-allocatable-ignore-eviction",
    "kernel-memcg-notification",
    "log-json-split-stream",
    "log-text-split-stream",
    "logtostderr",
    "protect-kernel-defaults",
];

/// What to do about the flags that cAdvisor brought along.
const CADVISORS: &str = "leave it out: it was cAdvisor's";

/// Flags that left the kubelet, or that only dockershim's kubelet had, with whether they take a value and what to use.
const GONE: &[(&str, bool, &str)] = &[
    ("application-metrics-count-limit", true, CADVISORS),
    ("auth-path", true, "use --kubeconfig"),
    ("babysit-daemons", false, "nothing replaces it: systemd does that"),
    ("boot-id-file", true, CADVISORS),
    ("bootstrap-checkpoint-path", true, "static pods belong in --pod-manifest-path"),
    ("cadvisor-port", true, "metrics are served at /metrics of --port"),
    ("cloud-config", true, "configuration of a cloud belongs to its controller manager; set --cloud-provider=external"),
    ("configure-cbr0", true, "leave it out, or use --network-plugin=cni"),
    ("container-hints", true, CADVISORS),
    ("container-runtime", true, "the runtime is always Docker here"),
    ("containerd", true, CADVISORS),
    ("containerd-namespace", true, CADVISORS),
    ("docker-exec-handler", true, "leave it out: Docker's own exec is used"),
    ("dynamic-config-dir", true, "use --config and --config-dir"),
    ("enable-cadvisor-json-endpoints", false, "use /stats/summary"),
    ("enable-load-reader", false, CADVISORS),
    ("event-storage-age-limit", true, CADVISORS),
    ("event-storage-event-limit", true, CADVISORS),
    ("experimental-allowed-unsafe-sysctls", true, "use --allowed-unsafe-sysctls"),
    ("experimental-bootstrap-kubeconfig", true, "use --bootstrap-kubeconfig"),
    ("experimental-check-node-capabilities-before-mount", false, "leave it out"),
    ("experimental-dockershim", false, "leave it out: Docker is used directly"),
    ("experimental-fail-swap-on", false, "use --fail-swap-on"),
    ("experimental-kernel-memcg-notification", false, "leave it out"),
    ("experimental-mounter-path", true, "leave it out"),
    ("global-housekeeping-interval", true, CADVISORS),
    ("image-pull-progress-deadline", true, "leave it out: a pull that makes no progress is ended in any case"),
    ("keep-terminated-pod-volumes", false, "volumes go with their pod"),
    ("log-cadvisor-usage", false, CADVISORS),
    ("low-diskspace-threshold-mb", true, "use --eviction-hard=nodefs.available<SIZE"),
    ("machine-id-file", true, CADVISORS),
    ("master-service-namespace", true, "leave it out"),
    ("maximum-dead-containers", true, "use --eviction-hard or --eviction-soft"),
    ("maximum-dead-containers-per-container", true, "use --eviction-hard or --eviction-soft"),
    ("minimum-container-ttl-duration", true, "use --eviction-hard or --eviction-soft"),
    ("outofdisk-transition-frequency", true, "use --eviction-pressure-transition-period"),
    ("redirect-container-streaming", false, "leave it out: streams go through the node's server"),
    ("register-schedulable", false, "use --register-with-taints=node.kubernetes.io/unschedulable:NoSchedule"),
    ("require-kubeconfig", false, "leave it out: --kubeconfig says it"),
    ("runonce", false, "leave it out: there is no such mode any more"),
    ("seccomp-profile-root", true, "profiles are read from seccomp in the root folder"),
    ("storage-driver-buffer-duration", true, CADVISORS),
    ("storage-driver-db", true, CADVISORS),
    ("storage-driver-host", true, CADVISORS),
    ("storage-driver-password", true, CADVISORS),
    ("storage-driver-secure", false, CADVISORS),
    ("storage-driver-table", true, CADVISORS),
    ("storage-driver-user", true, CADVISORS),
    ("system-container", true, "leave it out"),
];

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
        let argument = dashed(argument);
        let name = argument.strip_prefix("--").map(|flag| flag.split('=').next().unwrap_or(flag));
        let gone = name.and_then(|name| GONE.iter().find(|(gone, ..)| *gone == name));
        let takes_value = name.is_some_and(|name| VALUE_FLAGS.contains(&name)) || gone.is_some_and(|gone| gone.1);
        let is_known = takes_value || gone.is_some() || name.is_some_and(|name| SWITCHES.contains(&name));
        let Some(name) = name.filter(|_| is_known) else {
            kept.push(argument);
            continue;
        };
        warnings.push(match gone {
            Some((_, _, advice)) => format!("--{name} is gone and has no effect: {advice}"),
            None => format!("--{name} is not supported: it is a flag of the kubelet that has no effect here"),
        });
        if takes_value && !argument.contains('=') {
            arguments.next();
        }
    }
    (kept, warnings)
}

/// `--max_pods` is `--max-pods`, as for the kubelet (`WordSepNormalizeFunc` in component-base).
fn dashed(argument: String) -> String {
    let Some(flag) = argument.strip_prefix("--") else { return argument };
    let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
    let is_flag = name.contains('_') && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    match (is_flag, value) {
        (false, _) => argument,
        (true, None) => format!("--{}", name.replace('_', "-")),
        (true, Some(value)) => format!("--{}={value}", name.replace('_', "-")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_other_flags_are_taken_out_and_named() {
        let line = "longshore --cgroup-driver systemd --v=2 --cgroups-per-qos --max_pods=7 --require-kubeconfig \
                    --container-runtime=docker --pod_cidr 10.0.0.0/8 -- --vmodule 1";
        let (kept, warnings) = take_unsupported_flags(line.split_whitespace().map(str::to_owned).collect());
        assert_eq!(kept.join(" "), "longshore --v=2 --max-pods=7 --pod-cidr 10.0.0.0/8 -- --vmodule 1");
        assert_eq!(warnings.len(), 4);
        assert!(warnings[0].contains("--cgroup-driver is not supported"), "{warnings:?}");
        assert!(warnings[2].contains("leave it out: --kubeconfig says it"), "{warnings:?}");
    }

    #[test]
    fn lists_are_sorted_and_disjoint() {
        for list in [UNSUPPORTED_FIELDS, VALUE_FLAGS, SWITCHES] {
            assert!(list.is_sorted());
        }
        assert!(GONE.is_sorted());
        let gone = |name: &&str| GONE.iter().any(|(gone, ..)| gone == name);
        assert!(!SWITCHES.iter().chain(VALUE_FLAGS).any(gone));
        assert!(!SWITCHES.iter().any(|name| VALUE_FLAGS.contains(name)));
    }
}
