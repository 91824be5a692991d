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
fn what_has_no_effect_is_named() {
    let says = |arguments: &[&str], file: Option<&str>| report(&build(arguments, file).1);
    let cluster = "--kubeconfig=/etc/kubernetes/kubelet.conf";
    assert!(says(&["--state-key-file=/key"], None).contains("warning: --state-key-file has no effect"));
    assert!(!says(&["--state-key-file=/key", cluster], None).contains("--state-key-file"));
    assert!(says(&["--pod-cidr=10.1.0.0/16", cluster], None).contains("warning: --pod-cidr (podCIDR) has no effect"));
    assert_eq!(says(&["--pod-cidr=10.1.0.0/16"], None), "");
    let soft = "--eviction-soft=containerfs.available<10%";
    let soft = [soft, "--eviction-soft-grace-period=containerfs.available=1m"];
    assert!(says(&soft, None).contains("warning: thresholds of containerfs have no effect"));
    let hard = format!("{HEAD}evictionHard: {{containerfs.inodesFree: '5%'}}");
    assert!(says(&[], Some(&hard)).contains("warning: thresholds of containerfs have no effect"));
    assert_eq!(says(&["--eviction-hard=containerfs.available<0%"], None), "");
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
staticPodURL: https://me:secret@example.com/pods
staticPodURLHeader: {{X-Token: [secret, secret], X-Zone: [z1]}}
httpCheckFrequency: 1m30s
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
imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages
preloadedImagesVerificationAllowlist: [foo.io/*]
crashLoopBackOff: {{maxContainerRestartPeriod: 30s}}
logging: {{format: json, verbosity: 4}}
failSwapOn: false
failCgroupV1: false
localStorageCapacityIsolation: false
podLogsDir: /logs
singleProcessOOMKill: true
systemReserved: {{cpu: 500m, memory: 1Gi, pid: 100}}
kubeReserved: {{cpu: 1, ephemeral-storage: 1G}}
"
    );
    let (config, findings) = build(&["--max-pods=5", "--root-dir=/r", "-v", "0"], Some(&file));
    assert_eq!(report(&findings), "");
    assert!(!format!("{config:?}{}", config.configz()).contains("secret"));
    insta::assert_debug_snapshot!(config);
}

/// None of them has its default.
#[test]
fn every_field_of_the_server_is_read() {
    let file = format!(
        "{HEAD}
address: 10.0.0.9
port: 1
readOnlyPort: 2
healthzPort: 3
healthzBindAddress: 10.0.0.8
authentication: {{x509: {{clientCAFile: /ca}}, webhook: {{enabled: true, cacheTTL: 4s}}, anonymous: {{enabled: true}}}}
authorization: {{mode: AlwaysAllow, webhook: {{cacheAuthorizedTTL: 5s, cacheUnauthorizedTTL: 6s}}}}
tlsCertFile: /crt
tlsPrivateKeyFile: /key
tlsMinVersion: VersionTLS13
tlsCipherSuites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]
enableDebuggingHandlers: false
enableSystemLogHandler: false
enableSystemLogQuery: true
enableProfilingHandler: false
enableDebugFlagsHandler: false
streamingConnectionIdleTimeout: 7s
"
    );
    let (config, findings) = build(&[], Some(&file));
    let [problem] = findings.problems.as_slice() else { panic!("{}", report(&findings)) };
    assert_eq!(problem.to_string(), "enableSystemLogQuery: needs enableSystemLogHandler: true");
    insta::assert_debug_snapshot!(config.server);
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
fn sysctls_of_the_node_are_no_pods_to_set() {
    let said = "the sysctls \"vm.\" are not known to be namespaced";
    assert!(report(&build(&["--allowed-unsafe-sysctls=net.core.*,vm.*"], None).1).contains(said));
    let file = format!("{HEAD}allowedUnsafeSysctls: [vm/*]\n");
    assert!(report(&build(&[], Some(&file)).1).contains(said));
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
fn what_the_kubelet_lets_pass_is_only_warned_of() {
    let (config, findings) = build(&[], Some(&format!("{HEAD}maxPods: 1\npodLogsDir: logs\nmaxPods: 2\n---\na: b\n")));
    assert!(findings.problems.is_empty() && findings.warnings.len() == 2, "{}", report(&findings));
    assert_eq!((config.max_pods, config.pod_logs_dir), (2, PathBuf::from("logs")));
    let path = ConfigPath::File(PathBuf::from("/etc/k/kubelet.yaml"), format!("{HEAD}podLogsDir: logs\n"));
    let (config, _) = Config::build(&DaemonFlags::default(), path, &Surroundings::default());
    assert_eq!(config.pod_logs_dir, PathBuf::from("/etc/k/logs"));
}

#[test]
fn what_the_kubelet_refuses_is_a_problem() {
    let says = |fields: &str| report(&build(&[], Some(&format!("{HEAD}{fields}\n"))).1);
    assert_eq!(
        says("maxParallelImagePulls: 0"),
        "error: kubelet.yaml:3: maxParallelImagePulls: expected a number from 1 to 1000, got 0"
    );
    let twice = "error: enforceNodeAllocatable: \"pods\" stands there more than once";
    assert_eq!(says("enforceNodeAllocatable: [pods, pods]"), twice);
    for (setting, name, gate) in [
        (
            "crashLoopBackOff: {maxContainerRestartPeriod: 30s}",
            ".maxContainerRestartPeriod",
            "KubeletCrashLoopBackOffMax",
        ),
        ("shutdownGracePeriod: 30s", "", "GracefulNodeShutdown"),
        ("shutdownGracePeriodByPodPriority: [{priority: 1}]", "", "GracefulNodeShutdownBasedOnPodPriority"),
        ("imageMaximumGCAge: 1h", "", "ImageMaximumGCAge"),
        ("enableSystemLogQuery: true", "", "NodeLogQuery"),
    ] {
        let field = setting.split(':').next().unwrap();
        let wanted = format!("error: {field}{name}: needs the feature gate {gate}, which is off");
        let said = says(&format!("{setting}\nfeatureGates: {{{gate}: false}}"));
        assert!(said.lines().any(|line| line == wanted), "{said}");
        assert!(!says(setting).contains("error"), "{setting}");
    }
    let file = format!(
        "{HEAD}shutdownGracePeriodByPodPriority: [{{priority: 1}}]\nfeatureGates: {{GracefulNodeShutdown: false}}\n"
    );
    assert!(build(&[], Some(&file)).0.resources.shutdown.is_empty());
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
    // In a file it says nothing of a node that is alone, as for the kubelet.
    let (config, findings) = build(&[], Some(&format!("{HEAD}registerNode: true\n")));
    assert_eq!((report(&findings).as_str(), config.joining.register_node), ("", false));
    assert!(build(&["--kubeconfig=/k"], None).0.joining.register_node);
    assert!(!build(&["--kubeconfig=/k", "--register-node=false"], None).0.joining.register_node);
}

#[test]
fn alone_there_is_no_server_but_for_who_names_its_port() {
    let server = |flags: &[&str]| build(flags, None).0.server;
    assert!(!server(&[]).enabled);
    assert_eq!(server(&[]).healthz_port, Some(10248));
    assert!(server(&["--port=1250"]).enabled);
    assert!(server(&["--kubeconfig=/k"]).enabled);
    assert!(server(&["--api-servers=10.0.0.1:6443"]).enabled);
    assert!(!server(&["--kubeconfig=/k", "--enable-server=false"]).enabled);
    assert_eq!(server(&["--healthz-port=0"]).healthz_port, None);
    assert!(report(&build(&["--port=1250"], None).1).contains("refuses everybody"));
    assert!(report(&build(&["--port=0"], None).1).contains("--enable-server=false"));
}

#[test]
fn how_often_a_status_is_posted_follows_a_file_and_no_flag() {
    let file = format!("{HEAD}\nnodeStatusUpdateFrequency: 20s\n");
    let seconds = |flags: &[&str], file: Option<&str>| {
        let joining = build(flags, file).0.joining;
        (joining.status_update_frequency.as_secs(), joining.status_report_frequency.as_secs())
    };
    let flag = ["--node-status-update-frequency=10s"];
    assert_eq!(seconds(&flag, None), (10, 300));
    assert_eq!(seconds(&[], Some(&file)), (20, 20));
    assert_eq!(seconds(&flag, Some(&file)), (10, 20));
}

#[test]
fn a_nodes_address_is_one_that_others_reach_or_left_to_the_machine() {
    let says = |ip: &str, cluster: bool| {
        let api = cluster.then_some("--api-servers=https://10.0.0.1");
        let flags: Vec<String> = [format!("--node-ip={ip}")].into_iter().chain(api.map(str::to_owned)).collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        report(&build(&flags, None).1)
    };
    for ip in ["0.0.0.0", "::", "10.0.0.2"] {
        assert_eq!(says(ip, true), "", "{ip}");
    }
    assert!(says("127.0.0.1", true).contains("no other machine"));
    assert!(says("fe80::1", true).contains("no other machine"));
    assert_eq!(says("127.0.0.1", false), "");
    assert!(says("0.0.0.0,::", false).contains("cannot include"));
}

#[test]
fn flags_may_come_twice_as_kubeadms_and_ones_own_do() {
    let line = [
        "--node-ip=10.0.0.1",
        "--node-labels=a=b",
        "--eviction-hard=memory.available<1Gi",
        "--node-ip=10.0.0.2",
        "--node-labels=c=d",
        "--eviction-hard=nodefs.available<5%",
        "--register-node",
        "--register-node=false",
    ];
    let (config, findings) = build(&line, None);
    assert_eq!(report(&findings), "");
    assert_eq!(config.node_ips, ["10.0.0.2".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(config.joining.labels.len(), 2);
    assert_eq!(config.eviction.thresholds.len(), 2);
}

#[test]
fn what_kubeadm_passes_as_flags_is_taken() {
    let line = "longshore --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
                --kubeconfig=/etc/kubernetes/kubelet.conf \
                --container-runtime-endpoint=unix:///var/run/containerd/containerd.sock --node-ip=10.0.0.1 \
                --pod-infra-container-image=registry.k8s.io/pause:3.10 --hostname-override=worker \
                --cgroup-driver=systemd --register-with-taints=node-role.kubernetes.io/control-plane:NoSchedule";
    let (kept, warnings) = take_unsupported_flags(line.split_whitespace().map(str::to_owned).collect());
    let named: Vec<&str> = warnings.iter().map(|warning| warning.split(' ').next().unwrap()).collect();
    assert_eq!(named, ["--container-runtime-endpoint", "--cgroup-driver"]);
    let kept: Vec<&str> = kept.iter().skip(1).map(String::as_str).collect();
    let (config, findings) = build(&kept, None);
    assert_eq!(report(&findings), "");
    assert_eq!(config.joining.taints[0].key, "node-role.kubernetes.io/control-plane");
    assert!(config.joining.rotate_certificates && config.joining.in_cluster());
}

#[test]
fn drop_ins_lie_over_the_file_and_flags_over_both() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), format!("{HEAD}{text}")).unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    write("config.yaml", "maxPods: 1\nclusterDNS: [10.0.0.1, 10.0.0.2]\nsystemReserved: {cpu: 1, memory: 1Gi}\n");
    write("d/10.conf", "maxPods: 2\nclusterDNS: [10.0.0.3]\nsystemReserved: {cpu: 2}\npodsPerCore: 7\n");
    write("d/20.conf", "maxPods: 3\nauthentication: {x509: {clientCAFile: ca.crt}}\nauthorisation: {}\n");
    write("d/no.yaml", "maxPods: 4\n");
    let flags = |more: &[&str]| {
        let paths = ["config.yaml", "d"].map(|name| dir.path().join(name).display().to_string());
        let line = ["longshore".to_owned(), format!("--config={}", paths[0]), format!("--config-dir={}", paths[1])];
        let line = line.into_iter().chain(more.iter().map(|&flag| flag.to_owned()));
        <crate::cli::Cli as clap::Parser>::try_parse_from(line).unwrap().daemon
    };
    let (config, warnings) = load(&flags(&["--pods-per-core=8"]), Surroundings::default()).unwrap();
    assert_eq!((config.max_pods, config.resources.pods_per_core), (3, 8));
    assert_eq!(config.cluster_dns.len(), 1);
    assert_eq!((config.system_reserved.milli_cpu, config.system_reserved.memory), (2000, 1 << 30));
    assert_eq!(config.server.client_ca_file, Some(dir.path().join("d/ca.crt")));
    assert!(warnings[0].contains("20.conf:5: authorisation") && warnings[0].contains("authorization?"), "{warnings:?}");
    let (config, _) = load(&flags(&["--system-reserved=memory=2Gi"]), Surroundings::default()).unwrap();
    assert_eq!((config.reserved.milli_cpu, config.reserved.memory), (0, 2 << 30));
    write("d/30.conf", "maxPods: x\n");
    let problems = load(&flags(&[]), Surroundings::default()).unwrap_err();
    assert!(problems[0].to_string().contains("30.conf:3: maxPods"), "{problems:?}");
    assert!(is_drop_in_folder(&dir.path().join("d")) && !is_drop_in_folder(&dir.path().join("config.yaml")));
    assert_eq!(check_drop_ins(&dir.path().join("d")).problems.len(), 1);
}

#[test]
fn what_belongs_together_is_checked_together() {
    let file = format!(
        "{HEAD}
imageGCHighThresholdPercent: 50
imageMaximumGCAge: 1m
shutdownGracePeriod: 10s
shutdownGracePeriodCriticalPods: 20s
shutdownGracePeriodByPodPriority: [{{priority: 1, shutdownGracePeriodSeconds: 5}}]
evictionSoft: {{memory.available: 1Gi}}
enforceNodeAllocatable: [none, pods]
tlsCertFile: /c
tlsCipherSuites: [TLS_RSA_WITH_AES_128_CBC_SHA]
tlsMinVersion: VersionTLS10
registerWithTaints: [{{key: a, effect: NoSched}}]
readOnlyPort: 70000
authorization: {{mode: RBAC}}
evictionHard: {{memory.free: 1Gi, nodefs.available: 200%}}
featureGates: {{NodeSwap: true, EnvFile: true}}
"
    );
    let flags = [
        "--image-credential-provider-config=/c",
        "--cloud-provider=gce",
        "--cni-bin-dir=/x",
        "--node-labels=k8s.io/a=b",
    ];
    insta::assert_snapshot!(report(&build(&flags, Some(&file)).1));
}

#[test]
fn the_configuration_it_tells_is_one_that_it_would_take() {
    let flags = [
        "--kubeconfig=/k",
        "--node-labels=a=b",
        "--eviction-hard=memory.available<5%",
        "--tls-cert-file=/c",
        "--tls-private-key-file=/p",
        "--api-servers=https://host:6443",
        "--max-pods=7",
        "--system-reserved=cpu=1500m",
        "--register-with-taints=a=b:NoExecute",
    ];
    let (config, findings) = build(&flags, None);
    assert_eq!(report(&findings), "");
    let told = config.configz();
    let (again, findings) = build(&["--kubeconfig=/k"], Some(&told.to_string()));
    assert_eq!(findings.problems, []);
    assert_eq!(again.configz(), told);
    insta::assert_snapshot!(serde_json::to_string_pretty(&told).unwrap());
    let flagz: std::collections::BTreeMap<_, _> = config.flagz().into_iter().collect();
    assert_eq!(flagz["kubeconfig"], "/k");
    assert_eq!(flagz["port"], "10250");
    assert_eq!(flagz["max-pods"], "7");
    assert_eq!(flagz["node-labels"], "a=b");
    assert_eq!(flagz["network-plugin"], "");
}

#[test]
fn who_may_use_an_image_that_is_there_is_the_policys_unless_the_gate_is_off() {
    let says = |text: &str| {
        let (config, findings) = build(&[], Some(&format!("{HEAD}{text}")));
        (config.verification, report(&findings))
    };
    let (list, gate) = ("preloadedImagesVerificationAllowlist: [foo.io/*]\n", "KubeletEnsureSecretPulledImages: false");
    let off = format!("featureGates: {{{gate}}}\n");
    assert_eq!(says(&off), (None, String::new()));
    let policy = "imagePullCredentialsVerificationPolicy: AlwaysVerify\n";
    assert_eq!(says(policy).0.unwrap().policy.name(), "AlwaysVerify");
    let both = says(&format!("{off}{policy}{list}")).1;
    assert!(both.contains("error: imagePullCredentialsVerificationPolicy: needs the feature gate"), "{both}");
    assert!(both.contains("error: preloadedImagesVerificationAllowlist: needs the feature gate"), "{both}");
    assert!(says(list).1.contains("needs imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages"));
    assert!(says("imagePullCredentialsVerificationPolicy: Often\n").1.contains("expected one of NeverVerify, "));
    let tagged = says("preloadedImagesVerificationAllowlist: ['nginx:1']\n").1;
    assert!(tagged.contains("preloadedImagesVerificationAllowlist[0]: expected an image's name"), "{tagged}");
}

#[test]
fn docker_host_is_the_default_endpoint() {
    let with = |host: &str| {
        let around = Surroundings { docker_host: Some(host.to_owned()), ..Surroundings::default() };
        Config::build(&DaemonFlags::default(), ConfigPath::None, &around)
    };
    assert_eq!(with("unix:///d.sock").0.docker_endpoint, "unix:///d.sock");
    assert_eq!(with("").0.docker_endpoint, DEFAULT_DOCKER);
    assert_eq!(with("tcp://d:2375").0.docker_endpoint, "tcp://d:2375");
    for wrong in ["d.sock", "tcp://1.2.3.4", "https://d:2376"] {
        assert_eq!(with(wrong).1.problems.len(), 1, "{wrong}");
    }
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
