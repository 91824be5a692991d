//! A corpus of configurations, with all that is said about them.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use super::*;

fn build(flags: &[&str], file: Option<&str>) -> (Config, Findings) {
    let line = std::iter::once("longshore").chain(flags.iter().copied());
    let cli = <crate::cli::Cli as clap::Parser>::try_parse_from(line).unwrap();
    let path = match (file, cli.daemon.config.clone()) {
        (Some(text), _) => ConfigPath::File(PathBuf::from("kubelet.yaml"), text.to_owned()),
        (None, Some(folder)) => ConfigPath::Folder(folder),
        (None, None) => ConfigPath::None,
    };
    let around = Surroundings { root_dir: cli.root_dir.clone(), ..Surroundings::default() };
    Config::build(&cli.daemon, path, &around)
}

fn report(findings: &Findings) -> String {
    let problems = findings.problems.iter().map(|problem| format!("error: {problem}"));
    let warnings = findings.warnings.iter().map(|warning| format!("warning: {warning}"));
    problems.chain(warnings).collect::<Vec<_>>().join("\n")
}

const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

#[test]
fn nothing_said_is_the_kubelets_defaults() {
    let (config, findings) = build(&[], None);
    assert_eq!(findings, Findings::default());
    insta::assert_debug_snapshot!(config);
}

#[test]
fn what_kubeadm_writes_works_and_says_little() {
    let kubeadm = "
apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous: {enabled: false}
  webhook: {cacheTTL: 0s, enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}}
cgroupDriver: systemd
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: \"\"
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
kind: KubeletConfiguration
logging: {flushFrequency: 0, options: {json: {infoBufferSize: \"0\"}, text: {infoBufferSize: \"0\"}}, verbosity: 0}
memorySwap: {}
nodeStatusReportFrequency: 0s
resolvConf: /run/systemd/resolve/resolv.conf
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
";
    let (config, findings) = build(&[], Some(kubeadm));
    assert!(findings.problems.is_empty());
    assert_eq!(config.cluster_dns, ["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(config.file_check_frequency, Duration::from_secs(20));
    insta::assert_snapshot!(report(&findings));
}

#[test]
fn every_supported_field_is_read_and_flags_win() {
    let file = format!(
        "{HEAD}
staticPodPath: /m
maxPods: 30
clusterDNS: [10.0.0.1, 'fd00::1']
clusterDomain: example.org.
resolvConf: \"\"
fileCheckFrequency: 1m
seccompDefault: true
allowedUnsafeSysctls: [net.core.*]
maxParallelImagePulls: 7
serializeImagePulls: false
registryPullQPS: 0
registryBurst: 3
crashLoopBackOff: {{maxContainerRestartPeriod: 30s}}
logging: {{format: json, verbosity: 4}}
failSwapOn: false
failCgroupV1: false
podLogsDir: /logs
systemReserved: {{cpu: 500m, memory: 1Gi, pid: 100}}
kubeReserved: {{cpu: 1, ephemeral-storage: 1G}}
"
    );
    let (config, findings) = build(&["--max-pods=5", "--root-dir=/r", "-v", "0"], Some(&file));
    assert_eq!(report(&findings), "");
    insta::assert_debug_snapshot!(config);
}

#[test]
fn all_problems_are_reported_together() {
    let file = "apiVersion: v1
kind: KubeletConfiguration
maxPods: many
clusterDNS: [10.0.0.1, nowhere, 7]
fileCheckFrequency: 20
crashLoopBackOff: {maxContainerRestartPeriod: 10m, jitter: 1}
logging: {format: xml, verbosty: 2}
maxPod: 3
evictionHrad: {}
serializeImagePulls: true
maxParallelImagePulls: 3
registerNode: true
failSwapOn: 'yes'
podLogsDir: logs
systemReserved: {cpu: fast, gpu: 1}
allowedUnsafeSysctls: net.core.*
";
    let flags = [
        "--cluster-dns=x",
        "--max-pods=-1",
        "--docker-endpoint=/var/run/docker.sock",
        "--hostname-override=Bad_Name",
        "--seccomp-default=perhaps",
        "-v=11",
        "--file-check-frequency=1ms",
        "--kube-reserved=cpu",
    ];
    insta::assert_snapshot!(report(&build(&flags, Some(file)).1));
}

#[test]
fn files_that_are_no_configuration() {
    let cases =
        ["", "- a\n", "maxPods: 1\nmaxPods: 2\n", "a: [1\nb: }\n", "apiVersion: v1\nkind: Pod\n", "\tmaxPods: 1\n"];
    let said: Vec<String> =
        cases.iter().map(|text| format!("{text:?}\n{}", report(&build(&[], Some(text)).1))).collect();
    insta::assert_snapshot!(said.join("\n\n"));
    let large = "#".repeat(tree::SIZE_LIMIT + 1);
    assert!(report(&build(&[], Some(&large)).1).contains("larger than"));
    let deep = format!("{HEAD}a: {}", "[".repeat(100_000));
    assert_eq!(build(&[], Some(&deep)).1.problems.len(), 1);
}

#[test]
fn manifest_folders_by_every_name() {
    let folder = |flags: &[&str]| build(flags, None).0.manifests;
    assert_eq!(folder(&[]), PathBuf::from(DEFAULT_MANIFESTS));
    assert_eq!(folder(&["--config", "/m"]), PathBuf::from("/m"));
    assert_eq!(folder(&["--pod-manifest-path", "/m"]), PathBuf::from("/m"));
    assert_eq!(folder(&["--config=/m", "--pod-manifest-path=/m"]), PathBuf::from("/m"));
    let (_, findings) = build(&["--config=/m", "--pod-manifest-path=/n"], None);
    assert_eq!(report(&findings), "error: --config: --pod-manifest-path names another manifest folder: /n");
}

#[test]
fn registering_needs_an_api_server() {
    assert!(build(&["--register-node=false"], None).1.problems.is_empty());
    assert!(report(&build(&["--register-node"], None).1).contains("needs an API server"));
}

#[test]
fn docker_host_is_the_default_endpoint() {
    let with = |host: &str| {
        let around = Surroundings { docker_host: Some(host.to_owned()), ..Surroundings::default() };
        Config::build(&DaemonFlags::default(), ConfigPath::None, &around)
    };
    assert_eq!(with("unix:///d.sock").0.docker_endpoint, "unix:///d.sock");
    assert_eq!(with("").0.docker_endpoint, DEFAULT_DOCKER);
    assert_eq!(with("d.sock").1.problems.len(), 1);
}

#[test]
fn every_supported_field_has_an_effect() {
    // A wrong value for each must be noticed; a field without an arm would pass.
    for field in kubelet::SUPPORTED {
        let (_, findings) = build(&[], Some(&format!("{HEAD}{field}: !!float 1.5\n")));
        assert_eq!(findings.problems.len(), 1, "{field}: {findings:?}");
    }
    for field in known::UNSUPPORTED_FIELDS {
        assert!(!kubelet::SUPPORTED.contains(field), "{field}");
    }
}
