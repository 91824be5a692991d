//! What the node's packet filter is told of our own network: what leaves the cluster is masqueraded, what goes to a pod
//! is let through.
//!
//! Docker would masquerade all that leaves the bridge, also what goes to pods of other nodes, which must see the pod's own
//! address; and it drops what comes from other nodes' pods. A rule is known again by its comment, which says all of it.

use crate::cidr::Cidr;

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether it is for IPv4, else for IPv6.
    pub ipv4: bool,
    /// `nat` or `filter`.
    pub table: &'static str,
    /// The chain that it belongs into.
    pub chain: &'static str,
    /// Before all others, else after them.
    pub first: bool,
    /// What it matches and does, as iptables' arguments.
    pub arguments: Vec<String>,
    /// Its comment, without spaces.
    pub comment: String,
}

/// The chains that rules of ours can be in.
pub const CHAINS: [(&str, &str); 2] = [("nat", "POSTROUTING"), ("filter", "DOCKER-USER")];

/// What comments of this agent's rules begin with.
pub fn mark(root_id: &str) -> String {
    format!("longshore:{}:", root_id.get(..8).unwrap_or(root_id))
}

/// How much larger than a node's network for pods the cluster's is taken to be, in bits: by default a node has a /24 of a
/// /16, and of IPv6 a /64 of what is at most a /48 (the controller manager allows no more than 16 bits between).
const CLUSTER_BITS: (u8, u8) = (8, 16);

/// Where packets from a network for pods keep the pod's address: what `--non-masquerade-cidr` says, or the cluster's pods
/// as far as they can be guessed.
pub fn unmasqueraded(subnet: &Cidr, given: &[Cidr]) -> Cidr {
    let of_family = given.iter().find(|given| given.is_ipv4() == subnet.is_ipv4());
    let guess = || subnet.widened(if subnet.is_ipv4() { CLUSTER_BITS.0 } else { CLUSTER_BITS.1 });
    of_family.copied().unwrap_or_else(guess)
}

/// The rules for the subnets of our own network.
pub fn rules(root_id: &str, subnets: &[Cidr], unmasqueraded_given: &[Cidr]) -> Vec<Rule> {
    let mark = mark(root_id);
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    let of = |subnet: &Cidr| {
        let subnet = &subnet.network();
        let cluster = unmasqueraded(subnet, unmasqueraded_given).network();
        let masquerade = Rule {
            ipv4: subnet.is_ipv4(),
            table: "nat",
            chain: "POSTROUTING",
            first: false,
            arguments: words(&format!("-s {subnet} ! -d {cluster} -m addrtype ! --dst-type LOCAL -j MASQUERADE")),
            comment: format!("{mark}{subnet}!{cluster}"),
        };
        let accept = Rule {
            ipv4: subnet.is_ipv4(),
            table: "filter",
            chain: "DOCKER-USER",
            first: true,
            arguments: words(&format!("-d {subnet} -j ACCEPT")),
            comment: format!("{mark}{subnet}"),
        };
        // Never masqueraded: what is everywhere is inside.
        if cluster.prefix == 0 { vec![accept] } else { vec![masquerade, accept] }
    };
    subnets.iter().flat_map(of).collect()
}

/// What is to be done in one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Rules to be added.
    pub add: Vec<Rule>,
    /// Rules to be taken out: the arguments that name them, without `-A` and the chain.
    pub remove: Vec<Vec<String>>,
}

/// Compares the rules that are wanted in a chain with what `iptables -S <chain>` says is there. Only rules with this
/// agent's mark are touched.
pub fn changes(root_id: &str, chain: &str, wanted: &[Rule], listed: &str) -> Changes {
    let mark = mark(root_id);
    let mut changes =
        Changes { add: wanted.iter().filter(|rule| rule.chain == chain).cloned().collect(), ..Changes::default() };
    for line in listed.lines() {
        let words: Vec<String> = line.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect();
        let [append, of_chain, arguments @ ..] = words.as_slice() else { continue };
        let comment = arguments.windows(2).find(|pair| pair[0] == "--comment").map(|pair| pair[1].as_str());
        let Some(comment) = comment.filter(|comment| comment.starts_with(&mark)) else { continue };
        if append != "-A" || of_chain != chain {
            continue;
        }
        match changes.add.iter().position(|rule| rule.comment == comment) {
            Some(index) => {
                changes.add.remove(index);
            }
            // No longer wanted, or there twice.
            None => changes.remove.push(arguments.to_vec()),
        }
    }
    changes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOT: &str = "0123456789abcdef0123456789abcdef";

    fn of(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    /// As `iptables -S` prints a rule.
    fn printed(rule: &Rule) -> String {
        format!("-A {} {} -m comment --comment {:?}", rule.chain, rule.arguments.join(" "), rule.comment)
    }

    #[test]
    fn pods_keep_their_address_in_the_cluster() {
        assert_eq!(unmasqueraded(&of("10.244.3.0/24"), &[]), of("10.244.0.0/16"));
        assert_eq!(unmasqueraded(&of("fd00:1:2:3::/64"), &[]), of("fd00:1:2::/48"));
        let given = [of("10.0.0.0/8")];
        assert_eq!(unmasqueraded(&of("10.244.3.0/24"), &given), of("10.0.0.0/8"));
        assert_eq!(unmasqueraded(&of("fd00:1:2:3::/64"), &given), of("fd00:1:2::/48"));
        let rules = rules(ROOT, &[of("10.244.3.0/24")], &given);
        let masquerade = "-s 10.244.3.0/24 ! -d 10.0.0.0/8 -m addrtype ! --dst-type LOCAL -j MASQUERADE";
        assert_eq!(rules[0].arguments.join(" "), masquerade);
        assert_eq!(rules[0].comment, "longshore:01234567:10.244.3.0/24!10.0.0.0/8");
        assert_eq!(rules[1].arguments.join(" "), "-d 10.244.3.0/24 -j ACCEPT");
        let never = super::rules(ROOT, &[of("10.244.3.0/24")], &[of("0.0.0.0/0")]);
        assert_eq!(never.len(), 1);
    }

    #[test]
    fn strangers_rules_are_left_alone() {
        let listed = "-P POSTROUTING ACCEPT\n\
                      -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n\
                      -A POSTROUTING -m comment --comment \"longshore:ffffffff:10.1.0.0/24\" -j MASQUERADE\n\
                      -A POSTROUTING -m comment --comment longshore:01234567:old -j MASQUERADE\n";
        let changes = changes(ROOT, "POSTROUTING", &[], listed);
        assert!(changes.add.is_empty());
        assert_eq!(changes.remove.len(), 1);
        assert_eq!(changes.remove[0].join(" "), "-m comment --comment longshore:01234567:old -j MASQUERADE");
    }

    proptest! {
        /// Whatever was there, after the changes exactly what is wanted is.
        #[test]
        fn it_settles(before in prop::collection::vec(0u8..5, 0..5), now in prop::collection::vec(0u8..5, 0..2)) {
            let all = |list: &[u8]| -> Vec<Rule> {
                let subnets: Vec<Cidr> = list.iter().map(|third| of(&format!("10.244.{third}.0/24"))).collect();
                rules(ROOT, &subnets, &[]).into_iter().filter(|rule| rule.chain == "POSTROUTING").collect()
            };
            let (there, wanted) = (all(&before), all(&now));
            let mut lines: Vec<String> = there.iter().map(printed).collect();
            let changes = changes(ROOT, "POSTROUTING", &wanted, &lines.join("\n"));
            for arguments in &changes.remove {
                let at = lines.iter().position(|line| line.replace('"', "").ends_with(&arguments.join(" "))).unwrap();
                lines.remove(at);
            }
            lines.extend(changes.add.iter().map(printed));
            let mut expected: Vec<String> = wanted.iter().map(printed).collect();
            lines.sort();
            expected.sort();
            prop_assert_eq!(lines, expected);
        }
    }
}
