//! What a sandbox has of its network although nothing is kept of it: the folder of attachments was emptied, or is another one.
//! By the kernel's tables of its namespace, so nothing is entered. Blocks for a moment.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use longshore_core::network::kernel::{Connected, connected, global_addresses, local_addresses};

use crate::cache::DEVICE;

/// The addresses that it has on the network's device, in `/proc/<pid>/net`; none where there is no such device.
pub(crate) fn addresses(tables: &Path) -> Vec<IpAddr> {
    let read = |name: &str| std::fs::read_to_string(tables.join(name)).unwrap_or_default();
    if !read("dev").lines().any(|line| line.trim_start().strip_prefix(DEVICE).is_some_and(|rest| rest.starts_with(':')))
    {
        return Vec::new();
    }
    let (route, if_inet6) = (read("route"), read("if_inet6"));
    let others: Vec<Connected<'_>> = connected(&route).into_iter().filter(|one| one.device != DEVICE).collect();
    let is_others = |ip: &Ipv4Addr| others.iter().any(|one| one.contains(*ip));
    let ipv4 = local_addresses(&read("fib_trie")).into_iter().filter(|ip| !ip.is_loopback() && !is_others(ip));
    let ipv6 = global_addresses(&if_inet6).into_iter().filter(|(device, _)| *device == DEVICE);
    ipv4.map(IpAddr::V4).chain(ipv6.map(|(_, ip)| IpAddr::V6(ip))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn what_the_networks_device_has() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let local = |ip: &str| format!("        |-- {ip}\n           /32 host LOCAL\n");
        let trie = ["10.88.1.5", "10.99.0.7", "127.0.0.1"].map(local).concat();
        write("fib_trie", &format!("Local:\n{trie}"));
        write("dev", "Inter-|   Receive\n    lo: 0 0\n  eth01: 0 0\n");
        assert!(addresses(folder.path()).is_empty(), "it is not attached");
        write("dev", "Inter-|   Receive\n    lo: 0 0\n  eth0:12 0\n  net1: 0 0\n");
        write(
            "route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
             eth0\t00000000\t0101580A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
             eth0\t0001580A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
             net1\t0000630A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n",
        );
        write(
            "if_inet6",
            "00000000000000000000000000000001 01 80 10 80       lo\n\
             fd000000000000000000000000000002 04 40 00 82     eth0\n\
             fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n\
             fd000000000000000000000000000009 05 40 00 82     net1\n",
        );
        let expected: [IpAddr; 2] = ["10.88.1.5".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(addresses(folder.path()), expected);
    }
}
