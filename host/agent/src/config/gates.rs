//! Feature gates: which there are. None of them changes anything here: what longshore has is on, what it has not is off.

use std::collections::BTreeMap;

use super::draft::Findings;
use crate::names::nearest;

/// Gates of the kubelet, from 1.33 to 1.37 and some that configurations still name after they have gone.
const KNOWN: &[&str] = &[
    "APIServerTracing",
    "AllAlpha",
    "AllBeta",
    "AllowDNSOnlyNodeCSR",
    "AppArmor",
    "AppArmorFields",
    "AuthorizeNodeWithSelectors",
    "CPUCFSQuotaPeriod",
    "CPUManager",
    "CPUManagerPolicyAlphaOptions",
    "CPUManagerPolicyBetaOptions",
    "CRIListStreaming",
    "CSIMigrationPortworx",
    "CSIVolumeFSGroupPolicy",
    "CSIVolumeHealth",
    "ChangeContainerStatusOnKubeletRestart",
    "ClusterTrustBundleProjection",
    "ComponentFlagz",
    "ComponentStatusz",
    "ContainerCheckpoint",
    "ContainerRestartRules",
    "ContainerStopSignals",
    "ContextualLogging",
    "DRAConsumableCapacity",
    "DRAExtendedResource",
    "DRAWorkloadResourceClaims",
    "DevicePluginCDIDevices",
    "DisableCPUQuotaWithExclusiveCPUs",
    "DisableNodeKubeProxyVersion",
    "DynamicKubeletConfig",
    "DynamicResourceAllocation",
    "EnvFiles",
    "EphemeralContainers",
    "EventedPLEG",
    "ExpandCSIVolumes",
    "ExtendWebSocketsToKubelet",
    "GRPCContainerProbe",
    "GenericWorkload",
    "GitRepoVolumeDriver",
    "GracefulNodeShutdown",
    "GracefulNodeShutdownBasedOnPodPriority",
    "HostnameOverride",
    "IPv6DualStack",
    "ImageMaximumGCAge",
    "ImageVolume",
    "ImageVolumeWithDigest",
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScaling",
    "InPlacePodVerticalScalingExclusiveCPUs",
    "InPlacePodVerticalScalingExclusiveMemory",
    "InPlacePodVerticalScalingInitContainers",
    "JobSuccessPolicy",
    "KubeletCgroupDriverFromCRI",
    "KubeletCrashLoopBackOffMax",
    "KubeletCredentialProviders",
    "KubeletEnsureSecretPulledImages",
    "KubeletFineGrainedAuthz",
    "KubeletInUserNamespace",
    "KubeletPSI",
    "KubeletPodResources",
    "KubeletPodResourcesDynamicResources",
    "KubeletPodResourcesGet",
    "KubeletPodResourcesListUseActivePods",
    "KubeletRegistrationGetOnExistsOnly",
    "KubeletSeparateDiskGC",
    "KubeletServiceAccountTokenForCredentialProviders",
    "KubeletTracing",
    "LocalStorageCapacityIsolation",
    "LocalStorageCapacityIsolationFSQuotaMonitoring",
    "LoggingAlphaOptions",
    "LoggingBetaOptions",
    "MemoryManager",
    "MemoryQoS",
    "MutableCSINodeAllocatableCount",
    "NativeHistograms",
    "NodeDeclaredFeatures",
    "NodeLogQuery",
    "NodeOutOfServiceVolumeDetach",
    "NodeSwap",
    "PLEGOnDemandRelist",
    "PodAndContainerStatsFromCRI",
    "PodCertificateRequest",
    "PodDisruptionConditions",
    "PodHostIPs",
    "PodLevelResourceManagers",
    "PodLevelResources",
    "PodLifecycleSleepAction",
    "PodLogsQuerySplitStreams",
    "PodOverhead",
    "PodReadyToStartContainersCondition",
    "PodsAPI",
    "PreventStaticPodAPIReferences",
    "ProcMountType",
    "QOSReserved",
    "RecoverVolumeExpansionFailure",
    "RecursiveReadOnlyMounts",
    "ReduceDefaultCrashLoopBackOffDecay",
    "RelaxedDNSSearchValidation",
    "RelaxedEnvironmentVariableValidation",
    "ReloadKubeletClientCAFile",
    "ReloadKubeletServerCertificateFile",
    "ResourceHealthStatus",
    "RestartAllContainersOnContainerExits",
    "RotateKubeletClientCertificate",
    "RotateKubeletServerCertificate",
    "RuntimeClassInImageCriApi",
    "SELinuxChangePolicy",
    "SELinuxMount",
    "SELinuxMountReadWriteOncePod",
    "SeccompDefault",
    "ServiceAccountNodeAudienceRestriction",
    "ServiceAccountTokenNodeBinding",
    "ServiceAccountTokenPodNodeInfo",
    "SidecarContainers",
    "StatefulSetAutoDeletePVC",
    "StrictCostEnforcementForVAP",
    "SupplementalGroupsPolicy",
    "TaintTolerationComparisonOperators",
    "TopologyManager",
    "TopologyManagerPolicyAlphaOptions",
    "TopologyManagerPolicyBetaOptions",
    "TopologyManagerPolicyOptions",
    "UserNamespacesHostNetwork",
    "UserNamespacesSupport",
    "WatchListClient",
    "WindowsCPUAndMemoryAffinity",
    "WindowsGracefulNodeShutdown",
    "WindowsHostNetwork",
];

/// Those of [`KNOWN`] whose feature is not here.
const ABSENT: &[&str] = &[
    "CPUManager",
    "CPUManagerPolicyAlphaOptions",
    "CPUManagerPolicyBetaOptions",
    "CSIMigrationPortworx",
    "CSIVolumeFSGroupPolicy",
    "CSIVolumeHealth",
    "ChangeContainerStatusOnKubeletRestart",
    "ContainerCheckpoint",
    "DRAConsumableCapacity",
    "DRAExtendedResource",
    "DRAWorkloadResourceClaims",
    "DevicePluginCDIDevices",
    "DisableCPUQuotaWithExclusiveCPUs",
    "DynamicKubeletConfig",
    "DynamicResourceAllocation",
    "GitRepoVolumeDriver",
    "InPlacePodVerticalScalingExclusiveCPUs",
    "InPlacePodVerticalScalingExclusiveMemory",
    "KubeletEnsureSecretPulledImages",
    "KubeletInUserNamespace",
    "KubeletPSI",
    "KubeletPodResources",
    "KubeletPodResourcesDynamicResources",
    "KubeletPodResourcesGet",
    "KubeletPodResourcesListUseActivePods",
    "KubeletTracing",
    "LocalStorageCapacityIsolationFSQuotaMonitoring",
    "MemoryManager",
    "MemoryQoS",
    "NodeSwap",
    "PodLevelResourceManagers",
    "PodsAPI",
    "QOSReserved",
    "RecursiveReadOnlyMounts",
    "ReduceDefaultCrashLoopBackOffDecay",
    "ResourceHealthStatus",
    "SELinuxMount",
    "TopologyManager",
    "TopologyManagerPolicyAlphaOptions",
    "TopologyManagerPolicyBetaOptions",
    "TopologyManagerPolicyOptions",
    "UserNamespacesHostNetwork",
    "UserNamespacesSupport",
];

/// Those of [`KNOWN`] whose feature is here and cannot be turned off.
const ALWAYS: &[&str] = &[
    "ClusterTrustBundleProjection",
    "ContainerRestartRules",
    "EnvFiles",
    "EphemeralContainers",
    "ExtendWebSocketsToKubelet",
    "GRPCContainerProbe",
    "ImageVolume",
    "InPlacePodVerticalScaling",
    "KubeletFineGrainedAuthz",
    "LocalStorageCapacityIsolation",
    "PodCertificateRequest",
    "PodLevelResources",
    "PodLifecycleSleepAction",
    "PodOverhead",
    "PreventStaticPodAPIReferences",
    "RestartAllContainersOnContainerExits",
    "SidecarContainers",
];

/// A gate as it is written: a name, and true or false.
pub(super) fn gate(name: &str, value: &str) -> Result<(String, bool), String> {
    let value = super::values::boolean(value).map_err(|problem| format!("{name}: {problem}"))?;
    match name.is_empty() || name.len() > 128 {
        true => Err("expected gates like NodeSwap=true".to_owned()),
        false => Ok((name.to_owned(), value)),
    }
}

/// Warns of gates that no kubelet has, and of those that ask for what longshore does not do.
pub(super) fn check(gates: &BTreeMap<String, bool>, findings: &mut Findings) {
    let unknown: Vec<String> = gates
        .keys()
        .filter(|name| KNOWN.binary_search(&name.as_str()).is_err())
        .map(|name| match nearest(name, KNOWN.iter().copied()) {
            Some(near) => format!("{name} (did you mean {near}?)"),
            None => name.clone(),
        })
        .collect();
    if !unknown.is_empty() {
        findings.warnings.push(format!("featureGates: not known, so without effect: {}", unknown.join(", ")));
    }
    for (list, value, why) in [(ABSENT, true, "longshore does not have it"), (ALWAYS, false, "it is always on")] {
        let named = gates.iter().filter(|(name, set)| **set == value && list.binary_search(&name.as_str()).is_ok());
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
    fn the_lists_are_sorted_and_name_what_is_known() {
        for list in [KNOWN, ABSENT, ALWAYS] {
            assert!(list.is_sorted());
            assert!(list.iter().all(|name| KNOWN.contains(name)));
        }
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
