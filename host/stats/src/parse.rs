//! The kernel's texts as numbers: cgroup files and `/proc`.
//!
//! Pure. A line that is not as it should be costs its own value and no other: kernels add fields, and sandboxes (gVisor,
//! lxcfs) leave some out.

use longshore_core::ports::stats::Interface;

/// From here on a limit of cgroup v1 means none (`cadvisorInfoToCPUandMemoryStats` in `pkg/kubelet/stats/helper.go`).
const NO_LIMIT: u64 = 1 << 62;
/// Interfaces that are told of; a node may have thousands of pods' ends.
const INTERFACES: usize = 256;
/// Not the machine's or pod's way to others (`isIgnoredDevice` in cAdvisor's `container/common/helpers.go`, which drops
/// everything that begins with `lo`).
const INTERNAL: [&str; 3] = ["veth", "docker", "nerdctl"];

/// A file that holds one number.
pub(crate) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A file that holds a limit in bytes: v2 writes `max` for none, v1 a number that no machine has.
pub(crate) fn limit(text: &str) -> Option<u64> {
    number(text).filter(|limit| *limit < NO_LIMIT)
}

/// Values of some keys in lines of `key value`; the first line of a key counts.
pub(crate) fn keyed<const N: usize>(text: &str, keys: [&str; N]) -> [Option<u64>; N] {
    let mut found = [None; N];
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
        if let Some(slot) = keys.iter().position(|wanted| *wanted == key)
            && found[slot].is_none()
        {
            found[slot] = value.parse().ok();
        }
    }
    found
}

/// Bytes of some fields of `/proc/meminfo`, which writes them as `Name:   123 kB`.
pub(crate) fn meminfo<const N: usize>(text: &str, names: [&str; N]) -> [Option<u64>; N] {
    let mut found = [None; N];
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        if let Some(slot) = names.iter().position(|wanted| *wanted == name)
            && found[slot].is_none()
        {
            let value = value.split_whitespace().next().and_then(|value| value.parse::<u64>().ok());
            found[slot] = value.map(|value| value.saturating_mul(1024));
        }
    }
    found
}

/// Ticks that all CPUs spent on something: user, nice, system, irq and softirq of the first line of `/proc/stat`.
/// Guests' time is in user's already; stolen time was others'.
pub(crate) fn busy_ticks(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().take(7).map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _io, irq, soft] = ticks[..] else { return None };
    Some([nice, system, irq, soft].into_iter().fold(user, u64::saturating_add))
}

/// Tasks (processes and threads) that there are: the fourth field of `/proc/loadavg`, `running/all`.
pub(crate) fn tasks(text: &str) -> Option<u64> {
    text.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// Processes listed in `cgroup.procs`.
pub(crate) fn processes(text: &str) -> u64 {
    text.lines().filter(|line| !line.trim().is_empty()).count() as u64
}

/// Interfaces of `/proc/<pid>/net/dev` that lead somewhere, `first` before the others.
pub(crate) fn interfaces(text: &str, first: &str) -> Vec<Interface> {
    let mut found: Vec<Interface> = text.lines().filter_map(interface).take(INTERFACES).collect();
    found.sort_by_key(|interface| interface.name != first);
    found
}

/// `name: bytes packets errs drop fifo frame compressed multicast  bytes packets errs …`
fn interface(line: &str) -> Option<Interface> {
    let (name, numbers) = line.rsplit_once(':')?;
    let name = name.trim();
    if name.is_empty() || name == "lo" || INTERNAL.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let numbers: Vec<u64> = numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let column = |n: usize| numbers.get(n).copied();
    Some(Interface { name: name.to_owned(), received: (column(0)?, column(2)?), sent: (column(8)?, column(10)?) })
}

/// Interface of the default route with the lowest metric in `/proc/net/route`.
pub(crate) fn default_route(text: &str) -> Option<&str> {
    let routes = text.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [name, destination, _gateway, flags, _references, _use, metric, mask, ..] = columns[..] else {
            return None;
        };
        // RTF_UP, and not RTF_REJECT.
        let usable = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x201 == 1);
        let default = destination == "00000000" && mask == "00000000" && usable;
        default.then_some(metric.parse::<u64>().ok().map(|metric| (metric, name))).flatten()
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, name)| name)
}

/// Interface of the default route with the lowest metric in `/proc/net/ipv6_route`.
pub(crate) fn default_route_v6(text: &str) -> Option<&str> {
    let routes = text.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [destination, length, _source, _source_length, _hop, metric, _references, _use, flags, name] = columns[..]
        else {
            return None;
        };
        let usable = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x201 == 1);
        let default = length == "00" && destination.bytes().all(|digit| digit == b'0') && usable && name != "lo";
        default.then_some(u64::from_str_radix(metric, 16).ok().map(|metric| (metric, name))).flatten()
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, name)| name)
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
