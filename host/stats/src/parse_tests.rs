//! Parsers on what kernels wrote, and on what none ever would.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// Linux 6.18, cgroup v1, shortened.
const STAT_V1: &str = "cache 13524992\nrss 11661312\nrss_huge 0\nswap 0\npgfault 51474\npgmajfault 0\n\
    inactive_file 344064\nhierarchical_memory_limit 9223372036854771712\ntotal_cache 3081383936\n\
    total_rss 286973952\ntotal_rss_huge 0\ntotal_swap 4096\ntotal_pgfault 19177342\ntotal_pgmajfault 1356\n\
    total_inactive_file 1828130816\ntotal_active_file 1244160000\n";
const MEMINFO: &str = "MemTotal:       24684084 kB\nMemFree:        20584936 kB\nMemAvailable:   23693364 kB\n\
    Buffers:           24888 kB\nCached:          3155752 kB\nInactive(file):  1947944 kB\nHugePages_Total:       0\n";
const STAT: &str = "cpu  85159 7 9535 22605 314 2 52 53 11 0\ncpu0 42482 0 4375 11936 43 0 10 22 0 0\n\
    intr 3021 0 9\nctxt 29038\nbtime 1795672581\nprocesses 19814\nsoftirq 118 0 7\n";
const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    3293      31    0    0    0     0          0         0     3293      31    0    0    0     0       0          0
vethb70e13a:  11      9    0    0    0     0          0         0        5       2    0    0    0     0       0          0
docker0:       1       9    0    0    0     0          0         0        5       2    0    0    0     0       0          0
  ifb0:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
  eth0:182342087    9443    3    0    0     0          0         0   631383    6447    4    0    0     0       0          0
";
const ROUTE: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t010200C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
tun0\t00000000\t010200C0\t0003\t0\t0\t0\t00000080\t0\t0\t0
down\t00000000\t010200C0\t0002\t0\t0\t0\t00000000\t0\t0\t0
";
const ROUTE_V6: &str = "\
fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth1
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000002 00000000 00000003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";

#[test]
fn cgroup_files_are_read_exactly() {
    assert_eq!(number("17179869184\n"), Some(17_179_869_184));
    assert_eq!(limit("268435456\n"), Some(268_435_456));
    assert_eq!([limit("max\n"), limit("9223372036854771712\n"), number("")], [None; 3]);
    let keys = ["total_rss", "total_inactive_file", "total_swap", "none"];
    assert_eq!(keyed(STAT_V1, keys), [Some(286_973_952), Some(1_828_130_816), Some(4096), None]);
    let stat = "usage_usec 539086579\nuser_usec 473066591\nsystem_usec 66019988\n";
    assert_eq!(keyed(stat, ["usage_usec"]), [Some(539_086_579)]);
    assert_eq!(processes("1\n22\n333\n"), 3);
    assert_eq!(processes(""), 0);
}

#[test]
fn proc_files_are_read_exactly() {
    let [total, inactive, pages, none] = meminfo(MEMINFO, ["MemTotal", "Inactive(file)", "HugePages_Total", "Mem"]);
    assert_eq!((total, inactive), (Some(24_684_084 * 1024), Some(1_947_944 * 1024)));
    assert_eq!((pages, none), (Some(0), None));
    assert_eq!(keyed(STAT, ["btime"]), [Some(1_795_672_581)]);
    assert_eq!(busy_ticks(STAT), Some(85_159 + 7 + 9535 + 2 + 52));
    assert_eq!(busy_ticks("cpu  1 2 3\n"), None);
    assert_eq!(tasks("2.15 1.75 0.90 3/110 19814\n"), Some(110));
    assert_eq!([tasks(""), tasks("1 2 3 4 5")], [None; 2]);
}

#[test]
fn interfaces_that_lead_out_come_with_the_wanted_one_first() {
    let found = interfaces(DEV, "eth0");
    let eth0 = Interface { name: "eth0".to_owned(), received: (182_342_087, 3), sent: (631_383, 4) };
    assert_eq!(found[0], eth0);
    assert_eq!(found.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["eth0", "ifb0"]);
    assert_eq!(interfaces(DEV, "")[0].name, "ifb0");
}

#[test]
fn the_default_route_is_the_one_that_is_used() {
    assert_eq!(default_route(ROUTE), Some("eth0"));
    assert_eq!(default_route_v6(ROUTE_V6), Some("eth0"));
    assert_eq!(default_route("Iface\tDestination\n"), None);
    assert_eq!(default_route_v6(&ROUTE_V6.replace("00200200", "00000003").replace("eth0", "lo")), None);
}

/// A sample with one part of it replaced.
fn damaged() -> impl Strategy<Value = String> {
    let samples = prop::sample::select(vec![STAT_V1, MEMINFO, STAT, DEV, ROUTE, ROUTE_V6]);
    (samples, any::<prop::sample::Index>(), 0_usize..40, ".{0,12}").prop_map(|(sample, at, length, new)| {
        let from = at.index(sample.len());
        let until = (from + length).min(sample.len());
        format!("{}{new}{}", &sample[..from], &sample[until..])
    })
}

fn all(text: &str) {
    number(text);
    limit(text);
    keyed(text, ["btime", "total_rss", ""]);
    meminfo(text, ["MemTotal", "Cached", ""]);
    busy_ticks(text);
    tasks(text);
    processes(text);
    assert!(interfaces(text, "eth0").len() <= INTERFACES);
    default_route(text);
    default_route_v6(text);
}

proptest! {
    #[test]
    fn no_text_upsets_a_parser(text in any::<String>()) {
        all(&text);
    }

    #[test]
    fn no_damage_upsets_a_parser(text in damaged()) {
        all(&text);
    }

    #[test]
    fn a_value_is_found_among_any_others(
        before in prop::collection::vec(("[a-z_]{1,12}", any::<u64>()), 0..20),
        value in any::<u64>(),
        after in prop::collection::vec(("[a-z_]{1,12}", any::<u64>()), 0..20),
    ) {
        let line = |(key, value): &(String, u64)| format!("x{key} {value}\n");
        let text: String = before.iter().map(line).chain([format!("wanted {value}\n")]).chain(after.iter().map(line)).collect();
        prop_assert_eq!(keyed(&text, ["absent", "wanted"]), [None, Some(value)]);
    }

    #[test]
    fn every_counter_of_an_interface_is_its_own(numbers in prop::collection::vec(any::<u64>(), 16), space in " {0,3}") {
        let words: Vec<String> = numbers.iter().map(u64::to_string).collect();
        let found = interfaces(&format!("  en:o1:{space}{}\n", words.join("  ")), "");
        prop_assert_eq!(&found[0].name, "en:o1");
        prop_assert_eq!(found[0].received, (numbers[0], numbers[2]));
        prop_assert_eq!(found[0].sent, (numbers[8], numbers[10]));
    }
}
