//! What the kernel's tables say of a network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A machine's, or a pod's, own addresses in `/proc/net/fib_trie`: a line with the address, then one that says `host LOCAL`.
pub fn local_addresses(trie: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in trie.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line.ends_with("host LOCAL")
            && let Some(address) = last
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// A network of IPv4 that a device is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected<'a> {
    /// The device.
    pub device: &'a str,
    /// As the kernel has them in memory.
    network: u32,
    mask: u32,
}

impl Connected<'_> {
    /// Whether that address is one of it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from_ne_bytes(address.octets()) & self.mask == self.network
    }
}

/// The routes of `/proc/net/route` that lead through no gateway.
pub fn connected(route: &str) -> Vec<Connected<'_>> {
    let routes = route.lines().filter_map(route_of);
    routes.filter(|(one, gateway)| *gateway == "00000000" && one.mask != 0).map(|(one, _)| one).collect()
}

/// A route, and its gateway.
fn route_of(line: &str) -> Option<(Connected<'_>, &str)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [device, network, gateway, _, _, _, _, mask, ..] = words[..] else { return None };
    let bits = |text| u32::from_str_radix(text, 16).ok();
    Some((Connected { device, network: bits(network)?, mask: bits(mask)? }, gateway))
}

/// Global addresses of `/proc/net/if_inet6`, each with its device.
pub fn global_addresses(if_inet6: &str) -> Vec<(&str, Ipv6Addr)> {
    if_inet6.lines().filter_map(global_address).collect()
}

fn global_address(line: &str) -> Option<(&str, Ipv6Addr)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [address, _, _, "00", _, device] = words[..] else { return None };
    Some((device, Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?)))
}

/// The device that an address of this machine is on, by both tables; where none is on its network, as with an address of its
/// own alone, that of the default route.
pub fn device_of<'a>(address: IpAddr, route: &'a str, if_inet6: &'a str) -> Option<&'a str> {
    match address {
        IpAddr::V4(address) => {
            let of_network = connected(route).into_iter().filter(|one| one.contains(address));
            let default = || route.lines().filter_map(route_of).find(|(one, _)| one.network == 0 && one.mask == 0);
            let smallest = of_network.min_by_key(|one| one.mask.count_zeros());
            smallest.or_else(|| default().map(|(one, _)| one)).map(|one| one.device)
        }
        IpAddr::V6(address) => global_addresses(if_inet6)
            .into_iter()
            .find(|(_, of_device)| *of_device == address)
            .map(|(device, _)| device),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_trie() {
        let trie = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.0.0/24 2 0 2
        |-- 10.0.0.5
           /32 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
Local:
        |-- 10.0.0.5
           /32 host LOCAL
";
        assert_eq!(local_addresses(trie), [Ipv4Addr::new(10, 0, 0, 5), Ipv4Addr::LOCALHOST]);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn devices_of_addresses() {
        let route = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            wg0\t0000630A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            wg1\t0003630A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let if_inet6 = "00000000000000000000000000000001 01 80 10 80       lo\n\
            fd000000000000000000000000000002 04 40 00 82     eth1\n";
        let device = |address: &str| address.parse().ok().and_then(|address| device_of(address, route, if_inet6));
        assert_eq!(device("192.168.2.7"), Some("eth0"));
        assert_eq!(device("10.99.0.7"), Some("wg0"));
        assert_eq!(device("10.99.3.7"), Some("wg1"), "the smaller network");
        assert_eq!(device("203.0.113.9"), Some("eth0"), "an address that is a network of its own");
        assert_eq!((device("fd00::2"), device("fd00::3")), (Some("eth1"), None));
    }
}
