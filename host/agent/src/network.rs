//! The node's address: what its own name stands for, else what the default route would send from.
//!
//! As `NodeAddress` of `pkg/kubelet/nodestatus/setters.go`. For the route nothing is sent: connecting a datagram socket
//! only asks the kernel's routing table.

use std::io;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use longshore_core::network::kernel::local_addresses;

/// Addresses of the documentation networks, which no machine has: the way to them is the default route.
const FAR: [(&str, &str); 2] = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];

/// How long is waited for the resolver's first word; what it says later counts at the next look.
const LOOKUP: Duration = Duration::from_secs(1);
/// The same before a Node is told an address: a resolver whose first server is dead takes five seconds, and the address would
/// change after every start.
const FIRST_LOOKUP: Duration = Duration::from_secs(10);
/// How old its answer may be.
const LOOKUP_AGE: Duration = Duration::from_secs(10);
/// For how long it may fail in a row before its last answer counts no more: the name may have been taken away.
const LOOKUP_FAILURES: Duration = Duration::from_secs(60);

/// What of `--node-ip` names addresses; `0.0.0.0` and `::` only say which family is preferred.
pub(crate) fn named(node_ips: &[IpAddr]) -> Vec<IpAddr> {
    node_ips.iter().copied().filter(|ip| !ip.is_unspecified()).collect()
}

/// The node's addresses, the primary one first: those that `--node-ip` names, else the machine's. Blocks for a second at
/// most.
pub(crate) fn addresses(name: &str, node_ips: &[IpAddr]) -> Vec<IpAddr> {
    let named = named(node_ips);
    if named.is_empty() { usable_address(name, node_ips).into_iter().collect() } else { named }
}

/// The machine's address, of the family that `--node-ip` asks for (IPv4 unless it says `::`) where it has one; none when
/// it has none but loopback. Blocks for a second at most.
pub(crate) fn usable_address(name: &str, node_ips: &[IpAddr]) -> Option<IpAddr> {
    // As the kubelet: one that is the node's name is taken as it is.
    if let Ok(address) = name.parse() {
        return Some(address);
    }
    let ipv4 = node_ips.first().is_none_or(IpAddr::is_ipv4);
    let of_name = LOOKED_UP.ask(name, LOOKUP, resolve).into_iter().filter(|ip| usable(ip) && is_here(*ip)).collect();
    preferred(of_name, ipv4).or_else(|| preferred(routed(), ipv4))
}

/// Waits until the resolver has said what the name stands for, where the address depends on it: what [`addresses`] then tells
/// is not corrected a moment later. Blocks for ten seconds at most.
pub(crate) fn wait_for_name(name: &str, node_ips: &[IpAddr]) {
    if named(node_ips).is_empty() && name.parse::<IpAddr>().is_err() {
        LOOKED_UP.ask(name, FIRST_LOOKUP, resolve);
    }
}

/// The first of that family, else the first.
fn preferred(found: Vec<IpAddr>, ipv4: bool) -> Option<IpAddr> {
    found.iter().copied().find(|ip| ip.is_ipv4() == ipv4).or_else(|| found.first().copied())
}

/// The addresses that the default routes would send from.
fn routed() -> Vec<IpAddr> {
    let routed = FAR.iter().filter_map(|(from, to)| source_address(from, to));
    let mut found: Vec<IpAddr> = routed.filter(usable).collect();
    if found.is_empty() {
        let text = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
        found.extend(local_addresses(&text).into_iter().map(IpAddr::V4).find(usable));
    }
    found
}

/// What a resolver says of the node's name.
struct Lookup(Mutex<Last>);

/// The machine's.
static LOOKED_UP: Lookup = Lookup::new();

/// What it last said.
struct Last {
    name: String,
    found: Vec<IpAddr>,
    asked: Option<Instant>,
    /// Since when it fails.
    failing: Option<Instant>,
    /// A thread waits for it now; there is never a second one.
    asking: bool,
}

impl Last {
    /// Nothing is known of that name yet.
    const fn of(name: String) -> Self {
        Last { name, found: Vec::new(), asked: None, failing: None, asking: false }
    }

    fn take(&mut self, said: io::Result<Vec<IpAddr>>, now: Instant) {
        match said {
            Ok(found) => (self.found, self.failing) = (found, None),
            Err(_) => {
                let since = *self.failing.get_or_insert(now);
                if now.saturating_duration_since(since) >= LOOKUP_FAILURES {
                    self.found.clear();
                }
            }
        }
    }
}

/// Asks the machine's resolver, for as long as that takes.
fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0_u16).to_socket_addrs()?.map(|address| address.ip()).collect())
}

impl Lookup {
    const fn new() -> Self {
        Lookup(Mutex::new(Last::of(String::new())))
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the name stands for, in the resolver's order. One that fails for a moment takes nothing back; one that hangs is
    /// waited for once, for so long.
    fn ask(&'static self, name: &str, wait: Duration, resolve: fn(&str) -> io::Result<Vec<IpAddr>>) -> Vec<IpAddr> {
        let is_first = {
            let mut last = self.last();
            if last.asking {
                return if last.name == name { last.found.clone() } else { Vec::new() };
            }
            if last.name != name {
                *last = Last::of(name.to_owned());
            }
            if last.asked.is_some_and(|asked| asked.elapsed() < LOOKUP_AGE) {
                return last.found.clone();
            }
            last.asking = true;
            last.asked.replace(Instant::now()).is_none()
        };
        let (tell, told) = mpsc::channel::<()>();
        let asked = name.to_owned();
        let thread = std::thread::Builder::new().name("lookup".to_owned()).spawn(move || {
            let found = resolve(&asked);
            let mut last = self.last();
            last.take(found, Instant::now());
            last.asking = false;
            drop(tell);
        });
        match thread {
            Ok(_) if is_first => {
                // Nothing is ever sent: that the thread has let go of its end says that it is done.
                let _ = told.recv_timeout(wait);
            }
            Ok(_) => {}
            Err(_) => self.last().asking = false,
        }
        let last = self.last();
        if last.name == name { last.found.clone() } else { Vec::new() }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    #[test]
    fn an_unspecified_one_is_none_at_all() {
        assert_eq!(addresses("localhost", &["0.0.0.0".parse().unwrap()]), addresses("localhost", &[]));
    }

    #[test]
    fn there_is_one_address_of_the_family_that_is_preferred() {
        let parse = |all: &[&str]| -> Vec<IpAddr> { all.iter().map(|ip| ip.parse().unwrap()).collect() };
        let both = parse(&["10.0.0.1", "fd00::1"]);
        assert_eq!(preferred(both.clone(), true), Some(both[0]));
        assert_eq!(preferred(both.clone(), false), Some(both[1]));
        assert_eq!(preferred(parse(&["fd00::1"]), true), Some(both[1]));
        assert_eq!(preferred(Vec::new(), true), None);
        assert!(addresses("localhost", &[]).len() <= 1);
        assert!(named(&parse(&["::"])).is_empty());
        assert_eq!(named(&parse(&["10.0.0.2"])), parse(&["10.0.0.2"]));
    }

    #[test]
    fn an_answer_outlives_failures_for_a_minute() {
        let begun = Instant::now();
        let mut last = Last::of("one".to_owned());
        let mut at = |seconds, said| {
            last.take(said, begun + Duration::from_secs(seconds));
            last.found.clone()
        };
        let failed = || Err(io::ErrorKind::NotFound.into());
        assert_eq!(at(0, Ok(vec![ONE])), [ONE]);
        assert_eq!(at(100, failed()), [ONE]);
        assert_eq!(at(150, Ok(vec![ONE])), [ONE]);
        assert_eq!(at(200, failed()), [ONE]);
        assert_eq!(at(259, failed()), [ONE]);
        assert!(at(260, failed()).is_empty());
    }

    #[test]
    fn a_name_is_looked_up_or_is_an_address() {
        static LOOKUP: Lookup = Lookup::new();
        let wait = Duration::from_secs(60);
        let found = LOOKUP.ask("one", wait, |name| if name == "one" { Ok(vec![ONE]) } else { Ok(Vec::new()) });
        assert_eq!(found, [ONE]);
        assert!(LOOKUP.ask("two", wait, |_| Ok(Vec::new())).is_empty());
        assert_eq!(addresses("192.0.2.7", &[]), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    }
}
