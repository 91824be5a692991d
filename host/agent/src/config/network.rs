//! The pods' network: Docker's bridge or CNI plugins, and the addresses that pods get.

use std::path::PathBuf;

use clap::Args;
use longshore_core::cidr::Cidr;
use longshore_core::document::Node;
use longshore_core::network;
use serde::Serialize;

use super::draft::{Findings, FlagNotes};
use super::joining::given;
use super::layer::layer;
use super::reader::Reader;
use super::values;

/// Where plugins lie: by CNI's convention, and in Debian's package.
const BIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// Flags of the network.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct NetworkFlags {
    /// "cni" for CNI plugins, else empty for Docker's bridge
    #[arg(long, value_name = "NAME")]
    pub(crate) network_plugin: Option<String>,
    /// Folder of CNI's network configurations [default: /etc/cni/net.d]
    #[arg(long, value_name = "DIR")]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// Folders of the CNI plugins, separated by commas [default: /opt/cni/bin,/usr/lib/cni]
    #[arg(long, value_name = "DIRS")]
    pub(crate) cni_bin_dir: Vec<String>,
    /// Folder that results of CNI plugins are kept in [default: /var/lib/cni/cache]
    #[arg(long, value_name = "DIR")]
    pub(crate) cni_cache_dir: Option<PathBuf>,
    /// Networks of the pods of a node without an API server: one, or one of IPv4 and one of IPv6
    #[arg(long, value_name = "CIDRS")]
    pub(crate) pod_cidr: Option<String>,
    /// Where pods keep their own addresses on Docker's network: the cluster's pods; 0.0.0.0/0 for everywhere [default: the
    /// node's podCIDR with 8 bits less, 10.244.0.0/16 for 10.244.3.0/24; of IPv6 16 bits less]
    #[arg(long, value_name = "CIDRS")]
    pub(crate) non_masquerade_cidr: Option<String>,
    /// "none" where no pod of Docker's network need reach itself through its own Service; "hairpin-veth" and
    /// "promiscuous-bridge" are the same here [default: promiscuous-bridge]
    #[arg(long, value_name = "MODE")]
    pub(crate) hairpin_mode: Option<String>,
    /// Make the packet filter's chains that others of a cluster look for [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) make_iptables_util_chains: Option<String>,
}

layer! {
    /// What one place says of the network.
    NetworkLayer {
        plugin: NetworkPlugin,
        cni_conf_dir: PathBuf,
        cni_bin_dirs: Vec<PathBuf>,
        cni_cache_dir: PathBuf,
        pod_cidrs: Vec<Cidr>,
        unmasqueraded: Vec<Cidr>,
        hairpin_mode: String,
        util_chains: bool,
    }
    tables {}
}

/// What makes the pods' network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NetworkPlugin {
    /// Docker.
    #[default]
    Bridge,
    /// CNI plugins.
    Cni,
}

/// The pods' network, complete.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Network {
    /// What makes it.
    pub(crate) plugin: NetworkPlugin,
    /// Folder of CNI's network configurations.
    pub(crate) cni_conf_dir: PathBuf,
    /// Folders of the CNI plugins, in the order in which they are looked through; at least one.
    pub(crate) cni_bin_dirs: Vec<PathBuf>,
    /// Folder that results of CNI plugins are kept in.
    pub(crate) cni_cache_dir: PathBuf,
    /// Networks of the pods of a node that is alone; in a cluster the Node's count.
    pub(crate) pod_cidrs: Vec<Cidr>,
    /// Where pods' addresses are not masqueraded; empty where that is to be guessed.
    pub(crate) unmasqueraded: Vec<Cidr>,
    /// As the kubelet has it; any but `none` turns it on.
    pub(crate) hairpin_mode: String,
    /// Whether the kubelet's chains of the packet filter are made in a cluster (`makeIPTablesUtilChains`).
    pub(crate) util_chains: bool,
}

impl NetworkLayer {
    pub(super) fn from_flags(flags: &NetworkFlags, note: &mut FlagNotes<'_>) -> NetworkLayer {
        NetworkLayer {
            plugin: note.read("--network-plugin", &flags.network_plugin, plugin),
            cni_conf_dir: given(&flags.cni_conf_dir),
            cni_bin_dirs: note
                .all("--cni-bin-dir", &flags.cni_bin_dir, |text| Ok(values::list(text).map(PathBuf::from).collect())),
            cni_cache_dir: given(&flags.cni_cache_dir),
            pod_cidrs: note.read("--pod-cidr", &flags.pod_cidr, cidrs),
            unmasqueraded: note.read("--non-masquerade-cidr", &flags.non_masquerade_cidr, cidrs),
            hairpin_mode: note.read("--hairpin-mode", &flags.hairpin_mode, hairpin_mode),
            util_chains: note.read("--make-iptables-util-chains", &flags.make_iptables_util_chains, values::boolean),
        }
    }

    /// Reads a field of this group; false when it is of another.
    pub(super) fn field(&mut self, reader: &mut Reader<'_>, key: &str, node: &Node) -> bool {
        match key {
            "podCIDR" => self.pod_cidrs = reader.text(key, node, |text| cidrs(&text)),
            "makeIPTablesUtilChains" => self.util_chains = reader.boolean(key, node),
            "hairpinMode" => self.hairpin_mode = reader.text(key, node, |text| hairpin_mode(&text)),
            _ => return false,
        }
        true
    }

    /// The group, complete, with dockershim's defaults (`pkg/kubelet/config/flags.go` of 1.20).
    pub(super) fn finish(self, in_cluster: bool, findings: &mut Findings) -> Network {
        let plugin = self.plugin.unwrap_or_default();
        let names_cni = self.cni_conf_dir.is_some() || self.cni_bin_dirs.is_some() || self.cni_cache_dir.is_some();
        if plugin == NetworkPlugin::Bridge && names_cni {
            let message =
                "--cni-conf-dir, --cni-bin-dir and --cni-cache-dir have no effect without --network-plugin=cni";
            findings.warnings.push(message.to_owned());
        }
        if in_cluster && self.pod_cidrs.as_ref().is_some_and(|cidrs| !cidrs.is_empty()) {
            let message = "--pod-cidr (podCIDR) has no effect in a cluster: pods get addresses of the Node's podCIDRs";
            findings.warnings.push(message.to_owned());
        }
        Network {
            plugin,
            cni_conf_dir: self.cni_conf_dir.unwrap_or_else(|| PathBuf::from("/etc/cni/net.d")),
            cni_bin_dirs: self
                .cni_bin_dirs
                .filter(|folders| !folders.is_empty())
                .unwrap_or_else(|| BIN_DIRS.map(PathBuf::from).into()),
            cni_cache_dir: self.cni_cache_dir.unwrap_or_else(|| PathBuf::from("/var/lib/cni/cache")),
            pod_cidrs: self.pod_cidrs.unwrap_or_default(),
            unmasqueraded: self.unmasqueraded.unwrap_or_default(),
            hairpin_mode: self.hairpin_mode.unwrap_or_else(|| "promiscuous-bridge".to_owned()),
            util_chains: self.util_chains.unwrap_or(true),
        }
    }
}

fn plugin(text: &str) -> Result<NetworkPlugin, String> {
    match text {
        "" => Ok(NetworkPlugin::Bridge),
        "cni" => Ok(NetworkPlugin::Cni),
        "kubenet" => {
            Err("kubenet is gone since Kubernetes 1.24; leave the flag out: Docker's bridge is used instead".to_owned())
        }
        _ => Err(format!("expected \"cni\" or nothing, got {text:?}")),
    }
}

fn hairpin_mode(text: &str) -> Result<String, String> {
    match text {
        "none" | "hairpin-veth" | "promiscuous-bridge" => Ok(text.to_owned()),
        _ => Err(format!("expected none, hairpin-veth or promiscuous-bridge, got {text:?}")),
    }
}

fn cidrs(text: &str) -> Result<Vec<Cidr>, String> {
    let texts: Vec<String> = values::list(text).map(str::to_owned).collect();
    network::cidrs(&texts).map_err(|error| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let both = cidrs("10.244.1.0/24,fd00:1::/64").unwrap();
        assert_eq!(both.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.244.1.0/24", "fd00:1::/64"]);
        for wrong in ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "x/8", "10.0.0.0/8,10.1.0.0/16", "10.0.0.0/-1"] {
            assert!(cidrs(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hairpin_modes() {
        assert_eq!(hairpin_mode("hairpin-veth").as_deref(), Ok("hairpin-veth"));
        assert!(hairpin_mode("").is_err() && hairpin_mode("veth").is_err());
    }

    #[test]
    fn plugins() {
        assert_eq!((plugin(""), plugin("cni")), (Ok(NetworkPlugin::Bridge), Ok(NetworkPlugin::Cni)));
        assert!(plugin("kubenet").unwrap_err().contains("gone"));
        assert!(plugin("weave").is_err());
    }
}
