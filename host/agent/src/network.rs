//! The node's addresses: those that the default route would send from.
//!
//! Nothing is sent: connecting a datagram socket only asks the kernel's routing table.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// Addresses of the documentation networks, which no machine has: the way to them is the default route.
const FAR: [(&str, &str); 2] = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];

/// What of `--node-ip` names addresses; `0.0.0.0` and `::` only say which family comes first.
pub(crate) fn named(node_ips: &[IpAddr]) -> Vec<IpAddr> {
    node_ips.iter().copied().filter(|ip| !ip.is_unspecified()).collect()
}

/// The node's addresses, the primary one first: those that `--node-ip` names, else the machine's.
pub(crate) fn addresses(node_ips: &[IpAddr]) -> Vec<IpAddr> {
    let named = named(node_ips);
    if named.is_empty() { usable_addresses(node_ips) } else { named }
}

/// The machine's addresses, in the order of families that `--node-ip` asks for; none when it has none but loopback.
pub(crate) fn usable_addresses(node_ips: &[IpAddr]) -> Vec<IpAddr> {
    let routed = FAR.iter().filter_map(|(from, to)| source_address(from, to));
    let mut found: Vec<IpAddr> = routed.filter(usable).collect();
    if found.is_empty() {
        let text = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
        found.extend(local_addresses(&text).into_iter().map(IpAddr::V4).find(usable));
    }
    sort(&mut found, node_ips);
    found
}

fn sort(found: &mut [IpAddr], node_ips: &[IpAddr]) {
    if let Some(first) = node_ips.first() {
        found.sort_by_key(|ip| ip.is_ipv4() != first.is_ipv4());
    }
}

/// Whether the machine has that address.
pub(crate) fn is_here(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

fn source_address(from: &str, to: &str) -> Option<IpAddr> {
    let socket = UdpSocket::bind(from).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// What the kubelet takes for a node's address, too: no loopback, link-local, multicast or unspecified one.
pub(crate) fn usable(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast() && !link_local
}

/// The machine's own addresses in `/proc/net/fib_trie`: a line with the address, then one that says `host LOCAL`.
fn local_addresses(trie: &str) -> Vec<Ipv4Addr> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
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

    #[test]
    fn an_unspecified_one_is_none_at_all() {
        assert_eq!(addresses(&["0.0.0.0".parse().unwrap()]), addresses(&[]));
    }

    #[test]
    fn an_unspecified_one_says_which_family_comes_first() {
        let parse = |all: &[&str]| -> Vec<IpAddr> { all.iter().map(|ip| ip.parse().unwrap()).collect() };
        let sorted = |node_ip: &str| {
            let mut found = parse(&["10.0.0.1", "fd00::1"]);
            sort(&mut found, &parse(&[node_ip]));
            found
        };
        assert_eq!(sorted("0.0.0.0"), parse(&["10.0.0.1", "fd00::1"]));
        assert_eq!(sorted("::"), parse(&["fd00::1", "10.0.0.1"]));
        assert!(named(&parse(&["::"])).is_empty());
        assert_eq!(named(&parse(&["10.0.0.2"])), parse(&["10.0.0.2"]));
    }
}
