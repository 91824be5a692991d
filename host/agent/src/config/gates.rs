//! Feature gates: which there are. But for one ([`verifies`]) and those that settings need ([`refuse`]) none changes anything
//! here: what longshore has is on, what it has not is off.

use std::collections::BTreeMap;

use super::draft::Findings;
use crate::names::nearest;

/// What becomes of a gate here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Here {
    /// longshore does not have the feature.
    Absent,
    /// It has it, and it cannot be turned off.
    Always,
    /// Either value is as good: the feature is the kubelet's own affair, or has settings of its own.
    Silent,
}
use Here::{Absent, Always, Silent};

/// Gates of the kubelet, from 1.33 to 1.37 and some that configurations still name after they have gone.
const KNOWN: &[(&str, Here)] = &[
    ("APIServerTracing", Silent),
    ("AllAlpha", Silent),
    ("AllBeta", Silent),
    ("AllowDNSOnlyNodeCSR", Silent),
    ("AppArmor", Silent),
    ("AppArmorFields", Silent),
    ("AtomicWriteVolumeUserFields", Absent),
    ("AuthorizeNodeWithSelectors", Silent),
    ("CPUCFSQuotaPeriod", Silent),
    ("CPUManager", Absent),
    ("CPUManagerPolicyAlphaOptions", Absent),
    ("CPUManagerPolicyBetaOptions", Absent),
    ("CRIListStreaming", Silent),
    ("CSIMigrationPortworx", Absent),
    ("CSIVolumeFSGroupPolicy", Absent),
    ("CSIVolumeHealth", Absent),
    ("ChangeContainerStatusOnKubeletRestart", Absent),
    ("ClusterTrustBundle", Silent),
    ("ClusterTrustBundleProjection", Always),
    ("ComponentFlagz", Silent),
    ("ComponentStatusz", Silent),
    ("ContainerCheckpoint", Absent),
    ("ContainerRestartRules", Always),
    ("ContainerStopSignals", Silent),
    ("ContextualLogging", Silent),
    ("DRAConsumableCapacity", Absent),
    ("DRAExtendedResource", Absent),
    ("DRANodeAllocatableResources", Absent),
    ("DRAOptionalNodeOperations", Absent),
    ("DRAWorkloadResourceClaims", Absent),
    ("DefaultPodSysctls", Absent),
    ("DevicePluginCDIDevices", Absent),
    ("DisableCPUQuotaWithExclusiveCPUs", Absent),
    ("DisableNodeKubeProxyVersion", Silent),
    ("DynamicKubeletConfig", Absent),
    ("DynamicResourceAllocation", Absent),
    ("EmptyDirVolumeMode", Absent),
    ("EnvFiles", Always),
    ("EphemeralContainers", Always),
    ("EventedPLEG", Silent),
    ("ExecProbeTimeout", Always),
    ("ExpandCSIVolumes", Silent),
    ("ExtendWebSocketsToKubelet", Always),
    ("GRPCContainerProbe", Always),
    ("GRPCContainerProbeTLS", Absent),
    ("GenericWorkload", Silent),
    ("GitRepoVolumeDriver", Absent),
    ("GracefulNodeShutdown", Silent),
    ("GracefulNodeShutdownBasedOnPodPriority", Silent),
    ("H2CContainerProbe", Absent),
    ("HostnameOverride", Silent),
    ("HugepageAwareEviction", Always),
    ("IPv6DualStack", Silent),
    ("ImageMaximumGCAge", Silent),
    ("ImageVolume", Always),
    ("ImageVolumeWithDigest", Silent),
    ("InPlacePodLevelResourcesVerticalScaling", Silent),
    ("InPlacePodVerticalScaling", Always),
    ("InPlacePodVerticalScalingExclusiveCPUs", Absent),
    ("InPlacePodVerticalScalingExclusiveMemory", Absent),
    ("InPlacePodVerticalScalingInitContainers", Silent),
    ("InPlacePodVerticalScalingMemoryBackedVolumes", Absent),
    ("InPlacePodVerticalScalingSchedulerPreemption", Absent),
    ("JobSuccessPolicy", Silent),
    ("KubeletAllocatedPodsEndpoint", Absent),
    ("KubeletCgroupDriverFromCRI", Silent),
    ("KubeletCrashLoopBackOffMax", Silent),
    ("KubeletCredentialProviders", Silent),
    ("KubeletEnsureSecretPulledImages", Silent),
    ("KubeletFineGrainedAuthz", Always),
    ("KubeletInUserNamespace", Absent),
    ("KubeletPSI", Absent),
    ("KubeletPodResources", Absent),
    ("KubeletPodResourcesDynamicResources", Absent),
    ("KubeletPodResourcesGet", Absent),
    ("KubeletPodResourcesListUseActivePods", Absent),
    ("KubeletRegistrationGetOnExistsOnly", Silent),
    ("KubeletSeparateDiskGC", Silent),
    ("KubeletServiceAccountTokenForCredentialProviders", Silent),
    ("KubeletTracing", Absent),
    ("LocalStorageCapacityIsolation", Always),
    ("LocalStorageCapacityIsolationFSQuotaMonitoring", Absent),
    ("LoggingAlphaOptions", Silent),
    ("LoggingBetaOptions", Silent),
    ("MemoryManager", Absent),
    ("MemoryQoS", Absent),
    ("MutableCSINodeAllocatableCount", Silent),
    ("NativeHistograms", Silent),
    ("NodeDeclaredFeatures", Silent),
    ("NodeLogQuery", Silent),
    ("NodeOutOfServiceVolumeDetach", Silent),
    ("NodeSwap", Absent),
    ("PLEGOnDemandRelist", Silent),
    ("PodAndContainerStatsFromCRI", Silent),
    ("PodCertificateRequest", Always),
    ("PodDisruptionConditions", Silent),
    ("PodHostIPs", Silent),
    ("PodLevelResourceManagers", Absent),
    ("PodLevelResources", Always),
    ("PodLevelResourcesFixKubeletQOSClass", Silent),
    ("PodLifecycleSleepAction", Always),
    ("PodLogsQuerySplitStreams", Silent),
    ("PodObservedGenerationTracking", Always),
    ("PodOverhead", Always),
    ("PodReadyToStartContainersCondition", Silent),
    ("PodsAPI", Absent),
    ("PreventStaticPodAPIReferences", Always),
    ("ProcMountType", Silent),
    ("QOSReserved", Absent),
    ("RecoverVolumeExpansionFailure", Silent),
    ("RecursiveReadOnlyMounts", Always),
    ("ReduceDefaultCrashLoopBackOffDecay", Absent),
    ("RelaxedDNSSearchValidation", Silent),
    ("RelaxedEnvironmentVariableValidation", Silent),
    ("ReloadKubeletClientCAFile", Silent),
    ("ReloadKubeletServerCertificateFile", Silent),
    ("ResourceHealthStatus", Absent),
    ("ResourceHealthStatusMessage", Absent),
    ("RestartAllContainersOnContainerExits", Always),
    ("RotateKubeletClientCertificate", Silent),
    ("RotateKubeletServerCertificate", Silent),
    ("RuntimeClassInImageCriAPI", Silent),
    ("RuntimeClassInImageCriApi", Silent),
    ("SELinuxChangePolicy", Silent),
    ("SELinuxMount", Absent),
    ("SELinuxMountReadWriteOncePod", Silent),
    ("SeccompDefault", Silent),
    ("ServiceAccountNodeAudienceRestriction", Silent),
    ("ServiceAccountTokenNodeBinding", Silent),
    ("ServiceAccountTokenPodNodeInfo", Silent),
    ("SidecarContainers", Always),
    ("StatefulSetAutoDeletePVC", Silent),
    ("StrictCostEnforcementForVAP", Silent),
    ("SupplementalGroupsPolicy", Silent),
    ("SystemdWatchdog", Silent),
    ("TaintTolerationComparisonOperators", Silent),
    ("TopologyManager", Absent),
    ("TopologyManagerPolicyAlphaOptions", Absent),
    ("TopologyManagerPolicyBetaOptions", Absent),
    ("TopologyManagerPolicyOptions", Absent),
    ("UserNamespacesHostNetworkSupport", Absent),
    ("UserNamespacesSupport", Absent),
    ("VolumeBindMountOptions", Absent),
    ("WatchListClient", Silent),
    ("WindowsCPUAndMemoryAffinity", Silent),
    ("WindowsGracefulNodeShutdown", Silent),
    ("WindowsHostNetwork", Silent),
];

fn known(name: &str) -> Option<Here> {
    let at = KNOWN.binary_search_by_key(&name, |(known, _)| known).ok()?;
    Some(KNOWN[at].1)
}

/// A gate as it is written: a name, and true or false.
pub(super) fn gate(name: &str, value: &str) -> Result<(String, bool), String> {
    let value = super::values::boolean(value).map_err(|problem| format!("{name}: {problem}"))?;
    match name.is_empty() || name.len() > 128 {
        true => Err("expected gates like NodeSwap=true".to_owned()),
        false => Ok((name.to_owned(), value)),
    }
}

/// Whether pods may have to show credentials for images that are there: on, as with the kubelet since 1.35.
pub(super) fn verifies(gates: &BTreeMap<String, bool>) -> bool {
    gates.get("KubeletEnsureSecretPulledImages").copied().unwrap_or(true)
}

/// Settings, each with the gate that it needs and whether it is made: where the gate is turned off the kubelet refuses it
/// (`ValidateKubeletConfiguration`). That is so for all of them in 1.33; later kubelets lock some gates (`ImageMaximumGCAge` from
/// 1.35 on, `NodeLogQuery` from 1.36 on) or have one need another, and refuse the gate that is off, whatever is set.
pub(super) fn refuse(gates: &BTreeMap<String, bool>, settings: &[(&str, &str, bool)], findings: &mut Findings) {
    for (setting, gate, _) in settings.iter().filter(|(_, gate, is_made)| *is_made && is_off(gates, gate)) {
        findings.problem(setting, format!("needs the feature gate {gate}, which is off"));
    }
}

/// Whether a gate is turned off.
pub(super) fn is_off(gates: &BTreeMap<String, bool>, gate: &str) -> bool {
    gates.get(gate) == Some(&false)
}

/// Warns of gates that no kubelet has, and of those that ask for what longshore does not do.
pub(super) fn check(gates: &BTreeMap<String, bool>, findings: &mut Findings) {
    let unknown: Vec<String> = gates
        .keys()
        .filter(|name| known(name).is_none())
        .map(|name| match nearest(name, KNOWN.iter().map(|(known, _)| *known)) {
            Some(near) => format!("{name} (did you mean {near}?)"),
            None => name.clone(),
        })
        .collect();
    if !unknown.is_empty() {
        findings.warnings.push(format!("featureGates: not known, so without effect: {}", unknown.join(", ")));
    }
    for (here, value, why) in [(Absent, true, "longshore does not have it"), (Always, false, "it is always on")] {
        let named = gates.iter().filter(|(name, set)| **set == value && known(name) == Some(here));
        let named: Vec<String> = named.map(|(name, value)| format!("{name}={value}")).collect();
        if !named.is_empty() {
            findings.warnings.push(format!("featureGates: without effect, {why}: {}", named.join(", ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted() {
        assert!(KNOWN.is_sorted_by_key(|(name, _)| name));
    }

    #[test]
    fn gates_without_effect_are_named() {
        let set = [
            ("NodeSwap", true),
            ("MemoryQoS", false),
            ("EnvFiles", true),
            ("PodOverhead", false),
            ("CPUManager", true),
        ];
        let gates = set.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let mut findings = Findings::default();
        check(&gates, &mut findings);
        let wanted = [
            "featureGates: without effect, longshore does not have it: CPUManager=true, NodeSwap=true",
            "featureGates: without effect, it is always on: PodOverhead=false",
        ];
        assert_eq!(findings.warnings, wanted);
    }

    #[test]
    fn unknown_gates_are_named_with_the_nearest() {
        let gates = BTreeMap::from([("NodeSwap".to_owned(), false), ("EnvFile".to_owned(), true)]);
        let mut findings = Findings::default();
        check(&gates, &mut findings);
        assert_eq!(findings.warnings, ["featureGates: not known, so without effect: EnvFile (did you mean EnvFiles?)"]);
    }
}
