//! The node's addresses: those that the default route would send from.
//!
//! Nothing is sent: connecting a datagram socket only asks the kernel's routing table.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// Addresses of the documentation networks, which no machine has: the way to them is the default route.
const FAR: [(&str, &str); 2] = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];

/// The node's addresses, the primary one first; loopback when the machine has no other.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let mut found = usable_addresses();
    if found.is_empty() {
        tracing::warn!("this machine has no address but loopback; give one with --node-ip if pods should see another");
        found.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    found
}

/// The same; none when the machine has no address but loopback.
pub(crate) fn usable_addresses() -> Vec<IpAddr> {
    let routed = FAR.iter().filter_map(|(from, to)| source_address(from, to));
    let mut found: Vec<IpAddr> = routed.filter(usable).collect();
    if found.is_empty() {
        let text = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
        found.extend(local_addresses(&text).into_iter().map(IpAddr::V4).find(usable));
    }
    found
}

fn source_address(from: &str, to: &str) -> Option<IpAddr> {
    let socket = UdpSocket::bind(from).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// What the kubelet takes for a node's address, too: no loopback, link-local, multicast or unspecified one.
fn usable(address: &IpAddr) -> bool {
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
    fn there_always_is_one() {
        assert!(!addresses().is_empty());
    }
}
