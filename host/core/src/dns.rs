//! Names: a pod's resolv.conf, its hosts file and its host name.
//!
//! As `pkg/kubelet/network/dns/dns.go` and `pkg/kubelet/kubelet_pods.go` (ensureHostsFile,
//! GeneratePodHostNameAndDomain). Gives text; writing and mounting it is for others.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use crate::container_config::ConfigError;
use crate::node::NodeFacts;
use crate::pod::Pod;

/// What resolvers read at most (`pkg/apis/core/validation`).
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
/// The longest domain; longer ones make some resolvers abort.
const MAX_DOMAIN: usize = 253;
/// The longest host name, the kernel's 64 with its NUL.
const MAX_HOSTNAME: usize = 63;
/// Where Docker sends bridged containers when the node has loopback resolvers only.
const DOCKER_FALLBACK: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// Nameservers, search domains and options, in order.
#[derive(Debug, Default)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

/// The pod's /etc/resolv.conf by its `dnsPolicy` and `dnsConfig`.
///
/// What exceeds three nameservers, 32 search domains or 2048 characters of them is left out, as the kubelet does.
/// `ClusterFirst` without `--cluster-dns` is `Default`, see [`falls_back_to_default`].
///
/// A node's own loopback resolver (systemd-resolved's 127.0.0.53, Docker's 127.0.0.11, dnsmasq) cannot be reached
/// from the bridge: the kubelet hands it out all the same, and such pods resolve nothing. We do as Docker does: for
/// pods off the node's network loopback nameservers of the node are dropped, and when none is left, or the node has
/// none yet, Docker's public ones (8.8.8.8, 8.8.4.4) stand in. Nameservers in `dnsConfig` and `--cluster-dns` are left
/// as they are.
pub fn resolv_conf(pod: &Pod, node: &NodeFacts) -> String {
    let mut resolver = whole(pod, node);
    resolver.servers.truncate(MAX_NAMESERVERS);
    resolver.searches = fit_searches(resolver.searches);
    render(&resolver)
}

/// What the pod asks for, whatever its size.
fn whole(pod: &Pod, node: &NodeFacts) -> Resolver {
    let spec = pod.spec();
    let mut resolver = match policy(pod) {
        Policy::None => Resolver::default(),
        Policy::Cluster if !node.cluster_dns.is_empty() => cluster(pod, node),
        Policy::Cluster | Policy::Host => host(pod, node),
    };
    if let Some(config) = &spec.dns_config {
        resolver.servers = unique(resolver.servers.into_iter().chain(config.nameservers.iter().flatten().cloned()));
        resolver.searches = unique(resolver.searches.into_iter().chain(config.searches.iter().flatten().cloned()));
        resolver.options = merge_options(&resolver.options, config.options.as_deref().unwrap_or_default());
    }
    resolver
}

/// What a node of a cluster says to a pod that asks for the cluster's DNS and gets the node's, for there is none (event
/// `MissingClusterDNS`).
pub fn falls_back_to_default(pod: &Pod, node: &NodeFacts) -> Option<&'static str> {
    (policy(pod) == Policy::Cluster && node.cluster_dns.is_empty()).then_some(
        "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back \
         to \"Default\" policy.",
    )
}

/// What is left out of the pod's resolv.conf, and what of it is in force (events `DNSConfigForming`).
pub fn left_out(pod: &Pod, node: &NodeFacts) -> Vec<String> {
    let whole = whole(pod, node);
    let mut told = Vec::new();
    if whole.servers.len() > MAX_NAMESERVERS {
        told.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            whole.servers[..MAX_NAMESERVERS].join(" ")
        ));
    }
    let fitting = fit_searches(whole.searches.clone());
    if fitting.len() < whole.searches.len() {
        told.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            fitting.join(" ")
        ));
    }
    told
}

/// What of the search line of the node's own `file` is more than pods can have (event `CheckLimitsForResolvConf` of the node).
/// Three domains are kept for the cluster's.
pub fn exceeds_limits(node: &NodeFacts, file: &str) -> Option<String> {
    let searches = parse(node.resolv_conf.as_deref().unwrap_or_default()).searches;
    let most = if node.cluster_domain.is_empty() { MAX_SEARCHES } else { MAX_SEARCHES - 3 };
    if searches.len() > most {
        return Some(format!("Resolv.conf file '{file}' contains search line consisting of more than {most} domains!"));
    }
    if searches.iter().any(|domain| domain.len() > MAX_DOMAIN) {
        return Some(format!(
            "Resolv.conf file {file:?} contains a search path which length is more than allowed {MAX_DOMAIN} chars!"
        ));
    }
    (searches.join(" ").len() > MAX_SEARCH_CHARS).then(|| {
        format!(
            "Resolv.conf file '{file}' contains search line which length is more than allowed {MAX_SEARCH_CHARS} chars!"
        )
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Cluster,
    Host,
    None,
}

fn policy(pod: &Pod) -> Policy {
    match pod.spec().dns_policy.as_deref() {
        Some("None") => Policy::None,
        Some("Default") => Policy::Host,
        Some("ClusterFirstWithHostNet") => Policy::Cluster,
        _ if pod.host_network() => Policy::Host,
        _ => Policy::Cluster,
    }
}

fn cluster(pod: &Pod, node: &NodeFacts) -> Resolver {
    let domain = &node.cluster_domain;
    let own = match domain.is_empty() {
        true => Vec::new(),
        false => vec![format!("{}.svc.{domain}", pod.id.namespace), format!("svc.{domain}"), domain.clone()],
    };
    Resolver {
        servers: node.cluster_dns.iter().map(IpAddr::to_string).collect(),
        searches: unique(own.into_iter().chain(parse(node.resolv_conf.as_deref().unwrap_or_default()).searches)),
        options: vec!["ndots:5".to_owned()],
    }
}

fn host(pod: &Pod, node: &NodeFacts) -> Resolver {
    // `--resolv-conf ""` switches names off, by a resolver on the pod's own loopback and a search for nothing.
    if node.resolv_conf.as_ref().is_some_and(|text| text.trim().is_empty()) {
        return Resolver { servers: vec!["127.0.0.1".to_owned()], searches: vec![".".to_owned()], options: Vec::new() };
    }
    let mut resolver = parse(node.resolv_conf.as_deref().unwrap_or_default());
    if !pod.host_network() {
        resolver.servers.retain(|server| !is_loopback(server));
        if resolver.servers.is_empty() {
            resolver.servers = DOCKER_FALLBACK.map(str::to_owned).to_vec();
        }
    }
    resolver
}

fn is_loopback(server: &str) -> bool {
    server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Nameservers and options add up; of `search` the last line counts (`parseResolvConf` of `pkg/kubelet/network/dns`).
fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolver.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                // The root alone keeps musl from finding any name (kubernetes#112135).
                let domains = words.filter(|domain| *domain != ".");
                resolver.searches =
                    domains.map(|domain| domain.strip_suffix('.').unwrap_or(domain).to_owned()).collect();
            }
            Some("options") => {
                let own = words.map(|option| option.split_once(':').unwrap_or((option, "")));
                resolver.options = merge(&resolver.options, own);
            }
            _ => {}
        }
    }
    resolver
}

fn unique(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    texts.filter(|text| seen.insert(text.clone())).collect()
}

/// The pod's options win over those of the same name, in their place.
fn merge_options(existing: &[String], own: &[v1::PodDNSConfigOption]) -> Vec<String> {
    let own = own
        .iter()
        .map(|option| (option.name.as_deref().unwrap_or_default(), option.value.as_deref().unwrap_or_default()));
    merge(existing, own)
}

fn merge<'a>(existing: &'a [String], own: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let mut merged: Vec<(String, String)> = Vec::new();
    let existing = existing.iter().map(|option| option.split_once(':').unwrap_or((option, "")));
    for (name, value) in existing.chain(own).filter(|(name, _)| !name.is_empty()) {
        match merged.iter_mut().find(|(known, _)| known == name) {
            Some(known) => known.1 = value.to_owned(),
            None => merged.push((name.to_owned(), value.to_owned())),
        }
    }
    let text = |(name, value): (String, String)| if value.is_empty() { name } else { format!("{name}:{value}") };
    merged.into_iter().map(text).collect()
}

fn fit_searches(mut searches: Vec<String>) -> Vec<String> {
    searches.truncate(MAX_SEARCHES);
    searches.retain(|domain| domain.len() <= MAX_DOMAIN);
    let mut length = 0;
    let fitting = searches.iter().take_while(|domain| {
        length += domain.len() + usize::from(length > 0);
        length <= MAX_SEARCH_CHARS
    });
    let count = fitting.count();
    searches.truncate(count);
    searches
}

fn render(resolver: &Resolver) -> String {
    let mut text = String::new();
    for server in &resolver.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !resolver.searches.is_empty() {
        let _ = writeln!(text, "search {}", resolver.searches.join(" "));
    }
    if !resolver.options.is_empty() {
        let _ = writeln!(text, "options {}", resolver.options.join(" "));
    }
    text
}

/// The pod's /etc/hosts. Pods on the node's network see the node's file with their aliases; the others their own
/// addresses, which must be known.
pub fn hosts_file(pod: &Pod, node: &NodeFacts, pod_ips: &[IpAddr]) -> String {
    let mut text = String::new();
    if pod.host_network() {
        text.push_str("# Kubernetes-managed hosts file (host network).\n");
        text.push_str(&node.hosts_file);
        if !node.hosts_file.is_empty() && !node.hosts_file.ends_with('\n') {
            text.push('\n');
        }
    } else {
        text.push_str("# Kubernetes-managed hosts file.\n");
        text.push_str("127.0.0.1\tlocalhost\n");
        text.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
        text.push_str("fe00::0\tip6-localnet\n");
        text.push_str("fe00::0\tip6-mcastprefix\n");
        text.push_str("fe00::1\tip6-allnodes\n");
        text.push_str("fe00::2\tip6-allrouters\n");
        let (name, domain) = hostname(pod, node);
        for ip in pod_ips {
            let _ = if domain.is_empty() {
                writeln!(text, "{ip}\t{name}")
            } else {
                writeln!(text, "{ip}\t{name}.{domain}\t{name}")
            };
        }
    }
    let aliases = pod.spec().host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
        }
    }
    text
}

/// The pod's host name, cut to 63 characters, and its domain, empty where it has none: `spec.hostnameOverride`, else
/// `spec.hostname`, else the pod's name; a domain comes with `spec.subdomain`.
pub fn hostname(pod: &Pod, node: &NodeFacts) -> (String, String) {
    let spec = pod.spec();
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if let Some(name) = given(&spec.hostname_override) {
        return (truncate(&name), String::new());
    }
    let name = given(&spec.hostname).unwrap_or_else(|| pod.id.name.clone());
    let domain = given(&spec.subdomain).map(|subdomain| {
        let domain = format!("{subdomain}.{}.svc.{}", pod.id.namespace, node.cluster_domain);
        domain.trim_end_matches('.').to_owned()
    });
    (truncate(&name), domain.unwrap_or_default())
}

/// The name that the kernel is told: the host name, with its domain where `setHostnameAsFQDN` asks for it.
pub fn kernel_hostname(pod: &Pod, node: &NodeFacts) -> Result<String, ConfigError> {
    let (name, domain) = hostname(pod, node);
    let is_override = pod.spec().hostname_override.as_deref().is_some_and(|name| !name.is_empty());
    if pod.spec().set_hostname_as_fqdn != Some(true) || domain.is_empty() || is_override {
        return Ok(name);
    }
    let full = format!("{name}.{domain}");
    // The kernel takes 64 characters (`pkg/kubelet/util` GetNodenameForKernel).
    if full.len() > MAX_HOSTNAME + 1 {
        return Err(ConfigError::new(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long ({} is the max, \
             {} characters are requested): shorten spec.hostname or spec.subdomain, or unset spec.setHostnameAsFQDN",
            MAX_HOSTNAME + 1,
            full.len()
        )));
    }
    Ok(full)
}

fn truncate(name: &str) -> String {
    if name.len() <= MAX_HOSTNAME {
        return name.to_owned();
    }
    let end = (0..=MAX_HOSTNAME).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    name[..end].trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
