//! resolv.conf, hosts files and host names, case by case, and their limits.

use proptest::prelude::*;

use super::*;
use crate::testing::{node, pod_from};

fn pod(spec: &str) -> Pod {
    pod_from(&format!("{{containers: [{{name: a}}], {spec}}}"))
}

#[test]
fn policies() {
    let cluster = "nameserver 10.96.0.10\n\
                   search ns.svc.cluster.local svc.cluster.local cluster.local example.com\n\
                   options ndots:5\n";
    let host = "nameserver 192.168.1.1\nsearch example.com\n";
    let cases = [
        ("", cluster),
        ("dnsPolicy: ClusterFirst", cluster),
        ("dnsPolicy: ClusterFirst, hostNetwork: true", host),
        ("dnsPolicy: ClusterFirstWithHostNet, hostNetwork: true", cluster),
        ("dnsPolicy: Default", host),
        ("dnsPolicy: None", ""),
        ("dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1]}", "nameserver 1.1.1.1\n"),
    ];
    for (spec, expected) in cases {
        assert_eq!(resolv_conf(&pod(spec), &node()), expected, "{spec}");
    }
}

#[test]
fn without_cluster_dns_the_nodes_own_serves() {
    let mut node = node();
    node.cluster_dns.clear();
    assert_eq!(resolv_conf(&pod(""), &node), "nameserver 192.168.1.1\nsearch example.com\n");
    let told = falls_back_to_default(&pod(""), &node).unwrap();
    assert!(told.ends_with("using \"ClusterFirst\" policy. Falling back to \"Default\" policy."), "{told}");
    assert_eq!(falls_back_to_default(&pod("dnsPolicy: Default"), &node), None);
    assert_eq!(falls_back_to_default(&pod("hostNetwork: true"), &node), None);
}

#[test]
fn what_is_left_out_is_told_in_the_kubelets_words() {
    assert_eq!(left_out(&pod(""), &node()), Vec::<String>::new());
    let servers = pod("dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4]}");
    let told = left_out(&servers, &node());
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("Nameserver limits were exceeded, ") && told[0].ends_with(": 1.1.1.1 1.1.1.2 1.1.1.3"));
    let searches =
        format!("dnsPolicy: None, dnsConfig: {{nameservers: [1.1.1.1], searches: [a, {}]}}", "b".repeat(254));
    let told = left_out(&pod(&searches), &node());
    assert!(told.len() == 1 && told[0].starts_with("Search Line limits were exceeded, ") && told[0].ends_with(": a"));
}

#[test]
fn a_search_line_of_the_node_that_is_too_long_is_told() {
    let told = |domain: &str, searches: &str| {
        let resolv_conf = Some(format!("nameserver 10.0.0.1\nsearch {searches}\n"));
        exceeds_limits(&NodeFacts { cluster_domain: domain.to_owned(), resolv_conf, ..node() }, "/etc/resolv.conf")
    };
    let ends = |told: Option<String>, end: &str| told.unwrap_or_default().ends_with(end);
    assert_eq!(told("cluster.local", &"a ".repeat(29)), None);
    assert!(ends(told("cluster.local", &"a ".repeat(30)), "more than 29 domains!"));
    assert_eq!(told("", &"a ".repeat(32)), None);
    assert!(ends(told("", &"a ".repeat(33)), "more than 32 domains!"));
    assert!(ends(told("", &"a".repeat(254)), "more than allowed 253 chars!"));
    assert!(ends(told("", &format!("{} ", "a".repeat(250)).repeat(9)), "more than allowed 2048 chars!"));
}

#[test]
fn dns_config_is_merged() {
    let spec = "dnsConfig: {nameservers: [1.1.1.1, 10.96.0.10], searches: [mine, example.com],
                options: [{name: ndots, value: '2'}, {name: edns0}]}";
    assert_eq!(
        resolv_conf(&pod(spec), &node()),
        "nameserver 10.96.0.10\nnameserver 1.1.1.1\n\
         search ns.svc.cluster.local svc.cluster.local cluster.local example.com mine\n\
         options ndots:2 edns0\n"
    );
}

#[test]
fn loopback_resolvers_are_of_no_use_on_the_bridge() {
    let mut node = node();
    let said = |text: &str| Some(text.to_owned());
    node.resolv_conf = said(
        "# by systemd\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 9.9.9.9\noptions edns0 trust-ad\n\
                        options timeout:2 edns0\nsearch a. b\nsearch . c.\n",
    );
    let bridged = resolv_conf(&pod("dnsPolicy: Default"), &node);
    assert_eq!(bridged, "nameserver 9.9.9.9\nsearch c\noptions edns0 trust-ad timeout:2\n");
    let hosted = resolv_conf(&pod("dnsPolicy: Default, hostNetwork: true"), &node);
    assert!(hosted.starts_with("nameserver 127.0.0.53\nnameserver ::1\nnameserver 9.9.9.9\n"));
    for of_no_use in [said("nameserver 127.0.0.11\n"), said("# none yet\n"), None] {
        node.resolv_conf = of_no_use;
        let fallback = resolv_conf(&pod("dnsPolicy: Default"), &node);
        assert_eq!(fallback, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
    }
    assert_eq!(resolv_conf(&pod("dnsPolicy: Default, hostNetwork: true"), &node), "");
    assert!(resolv_conf(&pod(""), &node).starts_with("nameserver 10.96.0.10\nsearch ns.svc.cluster.local"));
    let own = resolv_conf(&pod("dnsPolicy: None, dnsConfig: {nameservers: [127.0.0.1]}"), &node);
    assert_eq!(own, "nameserver 127.0.0.1\n");
    // Names are switched off.
    node.resolv_conf = said("");
    assert_eq!(resolv_conf(&pod("dnsPolicy: Default"), &node), "nameserver 127.0.0.1\nsearch .\n");
}

#[test]
fn hosts_of_a_pod() {
    let ips: Vec<IpAddr> = ["10.0.0.5", "fd00::5"].map(|ip| ip.parse().unwrap()).to_vec();
    let aliases = "hostAliases: [{ip: 1.2.3.4, hostnames: [a, b]}, {ip: 5.6.7.8}]";
    let head = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
    let tail = "\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n5.6.7.8\t\n";
    assert_eq!(hosts_file(&pod(""), &node(), &ips), format!("{head}10.0.0.5\tpod\nfd00::5\tpod\n"));
    assert_eq!(
        hosts_file(&pod(&format!("hostname: web, subdomain: sub, {aliases}")), &node(), &ips[..1]),
        format!("{head}10.0.0.5\tweb.sub.ns.svc.cluster.local\tweb\n{tail}")
    );
    let host = hosts_file(&pod(&format!("hostNetwork: true, {aliases}")), &node(), &ips);
    assert_eq!(host, format!("# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n{tail}"));
}

#[test]
fn host_names() {
    let long = "x".repeat(62);
    let cases = [
        ("".to_owned(), "pod", ""),
        ("hostname: web".to_owned(), "web", ""),
        ("subdomain: sub".to_owned(), "pod", "sub.ns.svc.cluster.local"),
        (format!("hostname: {long}-tail"), &long, ""),
        (format!("hostname: {long}xy"), &format!("{long}x"), ""),
        ("hostnameOverride: some.name, hostname: web, subdomain: sub".to_owned(), "some.name", ""),
    ];
    for (spec, name, domain) in cases {
        assert_eq!(hostname(&pod(&spec), &node()), (name.to_owned(), domain.to_owned()), "{spec}");
    }
    let mut bare = node();
    bare.cluster_domain = String::new();
    assert_eq!(hostname(&pod("subdomain: sub"), &bare).1, "sub.ns.svc");
}

#[test]
fn the_kernel_may_be_told_the_full_name() {
    let told = |spec: &str| kernel_hostname(&pod(spec), &node()).map_err(|error| error.to_string());
    assert_eq!(told("subdomain: sub"), Ok("pod".to_owned()));
    assert_eq!(told("subdomain: sub, setHostnameAsFQDN: true"), Ok("pod.sub.ns.svc.cluster.local".to_owned()));
    assert_eq!(told("setHostnameAsFQDN: true"), Ok("pod".to_owned()));
    let long = format!("hostname: {}, subdomain: sub, setHostnameAsFQDN: true", "x".repeat(50));
    assert!(told(&long).unwrap_err().contains("is too long"));
}

proptest! {
    #[test]
    fn limits_hold(
        servers in proptest::collection::vec("[1-9]\\.1\\.1\\.[1-9]", 0..8),
        searches in proptest::collection::vec("[a-z]{1,300}", 0..60),
        host in "(nameserver|search|options|#|junk)?[ \t.a-z0-9:\n]{0,60}",
    ) {
        let mut node = node();
        node.resolv_conf = Some(host);
        let spec = format!("dnsConfig: {{nameservers: [{}], searches: [{}]}}", servers.join(","),
            searches.iter().map(|s| format!("'{s}'")).collect::<Vec<_>>().join(","));
        let text = resolv_conf(&pod(&spec), &node);
        prop_assert!(text.lines().filter(|line| line.starts_with("nameserver")).count() <= 3);
        let search = text.lines().find(|line| line.starts_with("search ")).unwrap_or_default();
        let domains: Vec<&str> = search.split(' ').skip(1).collect();
        prop_assert!(domains.len() <= 32);
        prop_assert!(domains.iter().all(|domain| domain.len() <= 253));
        prop_assert!(domains.join(" ").len() <= 2048);
        prop_assert!(text.is_empty() || text.ends_with('\n'));
    }

    #[test]
    fn names_fit_the_kernel(name in "[a-z][a-z.-]{0,120}") {
        let (short, _) = hostname(&pod(&format!("hostname: '{name}'")), &node());
        prop_assert!(short.len() <= 63 && name.starts_with(&short));
        prop_assert!(name.len() <= 63 || !short.ends_with(['-', '.']));
    }
}
