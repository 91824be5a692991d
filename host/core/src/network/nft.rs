//! The rules of [`super::rules`] for machines that have nft and no iptables: a table of our own for each family, replaced as a
//! whole.

use super::rules::{Rule, mark};

/// The table's name.
pub fn table(root_id: &str) -> String {
    mark(root_id).trim_end_matches(':').replace(':', "-")
}

/// What `nft -f -` is told: one transaction, after which the table has these rules alone, or is not there.
pub fn script(root_id: &str, ipv4: bool, rules: &[Rule]) -> String {
    let table = format!("{} {}", if ipv4 { "ip" } else { "ip6" }, table(root_id));
    // What is not there cannot be deleted.
    let mut script = format!("add table {table}\ndelete table {table}\n");
    let mut chains = Vec::new();
    // 100 is where others masquerade. Words of nft's own cannot be names.
    for (first, name, priority) in [(true, "keeps", 99), (false, "leaves", 100)] {
        let of_chain = rules.iter().filter(|rule| rule.ipv4 == ipv4 && rule.first == first);
        let lines: Vec<String> = of_chain
            .filter_map(|rule| rule.nft.as_ref().map(|words| format!("{words} comment {:?}\n", rule.comment)))
            .collect();
        if !lines.is_empty() {
            let hook = format!("type nat hook postrouting priority {priority}; policy accept;\n");
            chains.push(format!("chain {name} {{\n{hook}{}}}\n", lines.concat()));
        }
    }
    if !chains.is_empty() {
        script.push_str(&format!("table {table} {{\n{}}}\n", chains.concat()));
    }
    script
}

/// Whether what `nft list table` says has just what is wanted.
pub fn is_current(root_id: &str, ipv4: bool, rules: &[Rule], listed: &str) -> bool {
    let mark = mark(root_id);
    let mut there: Vec<&str> = listed.split('"').filter(|part| part.starts_with(&mark)).collect();
    let wanted = rules.iter().filter(|rule| rule.ipv4 == ipv4 && rule.nft.is_some());
    let mut wanted: Vec<&str> = wanted.map(|rule| rule.comment.as_str()).collect();
    there.sort_unstable();
    wanted.sort_unstable();
    there == wanted
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::rules::{PacketFilter, rules};
    use super::*;

    const ROOT: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_table_for_each_family() {
        let subnets = vec!["10.244.3.0/24".parse().unwrap(), "fd00:1:2:3::/64".parse().unwrap()];
        let filter = PacketFilter { subnets, runtime_masquerades: true, ..Default::default() };
        let rules = rules(ROOT, &filter);
        assert_eq!(table(ROOT), "longshore-01234567");
        let expected = "add table ip6 longshore-01234567\n\
            delete table ip6 longshore-01234567\n\
            table ip6 longshore-01234567 {\n\
            chain keeps {\n\
            type nat hook postrouting priority 99; policy accept;\n\
            ip6 saddr fd00:1:2:3::/64 ip6 daddr fd00:1:2::/48 meta mark & 0x4000 == 0 snat to ip6 saddr \
            comment \"longshore:01234567:fd00:1:2:3::/64=fd00:1:2::/48\"\n\
            }\n\
            chain leaves {\n\
            type nat hook postrouting priority 100; policy accept;\n\
            ip6 saddr fd00:1:2:3::/64 ip6 daddr != fd00:1:2::/48 fib daddr type != local masquerade \
            comment \"longshore:01234567:fd00:1:2:3::/64!fd00:1:2::/48\"\n\
            }\n\
            }\n";
        let script = script(ROOT, false, &rules);
        assert_eq!(script, expected);
        assert!(is_current(ROOT, false, &rules, &script) && !is_current(ROOT, true, &rules, &script));
        let without = super::script(ROOT, true, &[]);
        assert_eq!(without, "add table ip longshore-01234567\ndelete table ip longshore-01234567\n");
        assert!(is_current(ROOT, true, &[], &without));
    }
}
