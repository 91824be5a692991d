//! What the node's packet filter is told of our own network: what leaves the cluster is masqueraded, what goes to a pod
//! is let through.
//!
//! Docker would masquerade all that leaves the bridge, also what goes to pods of other nodes, which must see the pod's own
//! address; and it drops what comes from other nodes' pods. A rule is known again by its comment, which says all of it.

use crate::cidr::Cidr;

/// What there is to be filtered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketFilter {
    /// The subnets of our own network; none where there is no such network.
    pub subnets: Vec<Cidr>,
    /// Where pods' addresses are kept, if that was said.
    pub unmasqueraded: Vec<Cidr>,
    /// Whether the runtime masquerades all that leaves the network: it was made when the packet filter could not be told.
    pub runtime_masquerades: bool,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether it is for IPv4, else for IPv6.
    pub ipv4: bool,
    /// `nat` or `filter`.
    pub table: &'static str,
    /// The chain that it belongs to.
    pub chain: &'static str,
    /// Before all others, else where [`Changes::before`] says.
    pub first: bool,
    /// What it matches and does, as iptables' arguments.
    pub arguments: Vec<String>,
    /// The same as nft has it; none for what only a chain of Docker's own needs, which there is not where nft is used.
    pub nft: Option<String>,
    /// Its comment, without spaces.
    pub comment: String,
}

/// What comments of all agents' rules begin with.
const MARK: &str = "longshore:";

/// What comments of this agent's rules begin with.
pub fn mark(root_id: &str) -> String {
    format!("{MARK}{}:", root_id.get(..8).unwrap_or(root_id))
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

/// Where Docker has an operator put rules that count before its own.
const DOCKER_USER: &str = "DOCKER-USER";

/// kube-proxy marks what it wants masqueraded, also from pod to pod: that is not ours to keep from it.
const MARKED: &str = "0x4000";

/// The rules for our own network.
pub fn rules(root_id: &str, filter: &PacketFilter) -> Vec<Rule> {
    let mark = mark(root_id);
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    let of = |subnet: &Cidr| {
        let subnet = &subnet.network();
        let cluster = unmasqueraded(subnet, &filter.unmasqueraded).network();
        let (ipv4, ip) = (subnet.is_ipv4(), if subnet.is_ipv4() { "ip" } else { "ip6" });
        // Before the runtime's own rule: what is decided is not decided again. nft has no such word, but an address that is
        // translated to itself is.
        let keep = Rule {
            ipv4,
            table: "nat",
            chain: "POSTROUTING",
            first: true,
            arguments: words(&format!("-s {subnet} -d {cluster} -m mark ! --mark {MARKED}/{MARKED} -j ACCEPT")),
            nft: Some(format!("{ip} saddr {subnet} {ip} daddr {cluster} meta mark & {MARKED} == 0 snat to {ip} saddr")),
            comment: format!("{mark}{subnet}={cluster}"),
        };
        let masquerade = Rule {
            ipv4,
            table: "nat",
            chain: "POSTROUTING",
            first: false,
            arguments: words(&format!("-s {subnet} ! -d {cluster} -m addrtype ! --dst-type LOCAL -j MASQUERADE")),
            nft: Some(format!("{ip} saddr {subnet} {ip} daddr != {cluster} fib daddr type != local masquerade")),
            comment: format!("{mark}{subnet}!{cluster}"),
        };
        // After the operator's own, which may well drop what goes to pods.
        let accept = Rule {
            ipv4,
            table: "filter",
            chain: DOCKER_USER,
            first: false,
            arguments: words(&format!("-d {subnet} -j ACCEPT")),
            nft: None,
            comment: format!("{mark}{subnet}"),
        };
        // Never masqueraded: what is everywhere is inside.
        let leaves = (cluster.prefix != 0).then_some(masquerade);
        let kept = filter.runtime_masquerades.then_some(keep);
        kept.into_iter().chain(leaves).chain([accept])
    };
    filter.subnets.iter().flat_map(of).collect()
}

/// What is to be done in one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Rules to be added.
    pub add: Vec<Rule>,
    /// Rules to be taken out, after the others were added: the arguments that name them, without `-A` and the chain.
    pub remove: Vec<Vec<String>>,
    /// Whether they are taken out before: it is the first that reads so that goes, which would be the new one.
    pub remove_first: bool,
    /// The number, when they are added, of the rule that those of [`Changes::add`] which are not first go before; none where
    /// they go to the end.
    pub before: Option<usize>,
    /// The rule of a stranger's that a rule of ours was before, and that drops packets which it let through.
    pub behind: Option<Vec<String>>,
}

impl Changes {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

/// What a rule can do that keeps no packet from being let through by a later one, or that leaves it to Docker.
const HARMLESS: [&str; 6] = ["ACCEPT", "RETURN", "LOG", "NFLOG", "MARK", "CONNMARK"];

/// Compares the rules that are wanted in a chain with what `iptables -S <chain>` says is there. Only rules with this
/// agent's mark are touched. In Docker's chain for the operator, ours stand behind the last rule by which he may drop what
/// goes to pods, and there before the first that leaves packets to Docker, which drops them.
pub fn changes(root_id: &str, chain: &str, wanted: &[Rule], listed: &str) -> Changes {
    let mark = mark(root_id);
    let mut changes =
        Changes { add: wanted.iter().filter(|rule| rule.chain == chain).cloned().collect(), ..Changes::default() };
    let there: Vec<Vec<String>> = listed.lines().filter_map(|line| in_chain(line, chain)).collect();
    // What comes behind it is never asked. Docker up to 26 ends its chain with one.
    let end = there.iter().position(|arguments| *arguments == ["-j", "RETURN"]).unwrap_or(there.len());
    let does = |arguments: &[String], what: &dyn Fn(&str) -> bool| {
        let is_strangers = comment(arguments).is_none_or(|text| !text.starts_with(MARK));
        is_strangers && target(arguments).is_some_and(what)
    };
    let (after, before) = if chain == DOCKER_USER {
        let last = there[..end].iter().rposition(|rule| does(rule, &|what| !HARMLESS.contains(&what)));
        let after = last.map_or(0, |last| last + 1);
        let leaves = there[after..end].iter().position(|rule| does(rule, &|what| what == "RETURN"));
        (after, leaves.map_or(end, |leaves| after + leaves))
    } else {
        (0, end)
    };
    let (mut removed_before, mut kept): (usize, Vec<(usize, Rule)>) = (0, Vec::new());
    for (index, arguments) in there.iter().enumerate() {
        let Some(comment) = comment(arguments).filter(|comment| comment.starts_with(&mark)) else { continue };
        let is_placed = |rule: &Rule| rule.first || chain != DOCKER_USER || (after..before).contains(&index);
        match changes.add.iter().position(|rule| rule.comment == comment) {
            Some(wanted) if is_placed(&changes.add[wanted]) => {
                kept.push((index, changes.add.remove(wanted)));
                continue;
            }
            Some(_) => {
                changes.remove_first |= index >= before;
                let mut passed = there.get(index..after).unwrap_or_default().iter();
                let drops = passed.rfind(|rule| does(rule, &|what| matches!(what, "DROP" | "REJECT")));
                changes.behind = changes.behind.take().or_else(|| drops.cloned());
            }
            // No longer wanted, or there twice. Of two that read the same the first goes, which here is the one that counts:
            // both go, and it is added anew.
            None => {
                let twin = kept.iter().position(|(first, _)| there[*first] == *arguments);
                if let Some(twin) = twin.filter(|_| chain == DOCKER_USER && index >= before) {
                    let (first, rule) = kept.remove(twin);
                    removed_before += usize::from(first < before);
                    changes.remove.push(there[first].clone());
                    changes.add.push(rule);
                    changes.remove_first = true;
                }
            }
        }
        removed_before += usize::from(index < before);
        changes.remove.push(arguments.clone());
    }
    let removed_before = if changes.remove_first { removed_before } else { 0 };
    changes.before = (before < there.len()).then(|| before - removed_before + 1);
    changes
}

/// What a rule of FORWARD leads to that says nothing of a network of plugins: the words of iptables itself, and the chains of
/// Docker, kube-proxy and ufw.
const OTHERS: [&str; 33] = [
    "ACCEPT",
    "DROP",
    "REJECT",
    "RETURN",
    "LOG",
    "NFLOG",
    "MARK",
    "CONNMARK",
    "TCPMSS",
    "DOCKER",
    "DOCKER-USER",
    "DOCKER-FORWARD",
    "DOCKER-BRIDGE",
    "DOCKER-CT",
    "DOCKER-INTERNAL",
    "DOCKER-INGRESS",
    "DOCKER-ISOLATION-STAGE-1",
    "KUBE-FORWARD",
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-PROXY-FIREWALL",
    "ufw-before-logging-forward",
    "ufw-before-forward",
    "ufw-after-forward",
    "ufw-after-logging-forward",
    "ufw-reject-forward",
    "ufw-track-forward",
    "ufw6-before-logging-forward",
    "ufw6-before-forward",
    "ufw6-after-forward",
    "ufw6-after-logging-forward",
    "ufw6-reject-forward",
    "ufw6-track-forward",
];

/// Whether the packet filter, as `iptables -S` lists it, lets through what goes to pods of that network, which is another's than
/// ours: by its policy, by a rule that names them, their device or nothing at all, or in a chain that whoever made the network
/// has, which is not looked into.
pub fn forwards(listed: &str, subnet: &Cidr) -> bool {
    let lets_through = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["-A", chain, ref arguments @ ..] = words[..] else { return false };
        let is_first = matches!(chain, "FORWARD" | DOCKER_USER);
        let is_ufws = chain.starts_with("ufw") && chain.ends_with("-forward");
        if !is_first && !is_ufws {
            return false;
        }
        let pairs = || arguments.windows(2);
        let target = pairs().find(|pair| matches!(pair[0], "-j" | "-g")).map(|pair| pair[1]);
        // What answers is not what is asked for.
        let (Some(target), false) = (target, arguments.contains(&"--ctstate")) else { return false };
        if target != "ACCEPT" {
            return chain == "FORWARD" && !OTHERS.contains(&target);
        }
        let names = |pair: &[&str]| {
            matches!(pair[0], "-s" | "-d") && pair[1].parse::<Cidr>().is_ok_and(|cidr| cidr.overlaps(subnet))
        };
        let is_dockers = |device: &&str| device.starts_with("docker") || device.starts_with("br-");
        let of_devices = || devices(arguments).is_some_and(|devices| !devices.iter().any(is_dockers));
        // Those of ufw that ask for nothing are of chains that need not be in use.
        pairs().any(names) || (is_first && of_devices())
    };
    let drops = listed.lines().any(|line| line == "-P FORWARD DROP");
    !drops || listed.lines().any(lets_through)
}

/// The devices that a rule names; `None` where it asks for something else as well.
fn devices<'a>(arguments: &[&'a str]) -> Option<Vec<&'a str>> {
    let (mut words, mut found) = (arguments.iter().copied(), Vec::new());
    while let Some(word) = words.next() {
        match word {
            "!" => {}
            "-i" | "-o" => found.push(words.next()?),
            "-j" => {
                words.next();
            }
            "-m" if words.next()? == "comment" => {}
            "--comment" => {
                let first = words.next()?;
                if first.starts_with('"') && (first.len() == 1 || !first.ends_with('"')) {
                    words.find(|word| word.ends_with('"'))?;
                }
            }
            _ => return None,
        }
    }
    Some(found)
}

/// The arguments of a rule of that chain, as `iptables -S` prints it.
fn in_chain(line: &str, chain: &str) -> Option<Vec<String>> {
    let mut words = line.split_whitespace().map(|word| word.trim_matches('"').to_owned());
    (words.next()? == "-A" && words.next()? == chain).then(|| words.collect())
}

/// What a rule does with what it matches, or the chain that it leads to.
fn target(arguments: &[String]) -> Option<&str> {
    arguments.windows(2).find(|pair| matches!(pair[0].as_str(), "-j" | "-g")).map(|pair| pair[1].as_str())
}

fn comment(arguments: &[String]) -> Option<&str> {
    arguments.windows(2).find(|pair| pair[0] == "--comment").map(|pair| pair[1].as_str())
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

    fn filter(subnets: &[&str], unmasqueraded: &[Cidr]) -> PacketFilter {
        let subnets = subnets.iter().map(|&text| of(text)).collect();
        PacketFilter { subnets, unmasqueraded: unmasqueraded.to_vec(), runtime_masquerades: false }
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
        let rules = rules(ROOT, &filter(&["10.244.3.0/24"], &given));
        let masquerade = "-s 10.244.3.0/24 ! -d 10.0.0.0/8 -m addrtype ! --dst-type LOCAL -j MASQUERADE";
        assert_eq!(rules[0].arguments.join(" "), masquerade);
        assert_eq!(rules[0].comment, "longshore:01234567:10.244.3.0/24!10.0.0.0/8");
        assert_eq!(rules[1].arguments.join(" "), "-d 10.244.3.0/24 -j ACCEPT");
        let never = super::rules(ROOT, &filter(&["10.244.3.0/24"], &[of("0.0.0.0/0")]));
        assert_eq!(never.len(), 1);
    }

    #[test]
    fn where_the_runtime_masquerades_it_is_kept_from_it() {
        let filter = PacketFilter { runtime_masquerades: true, ..filter(&["10.244.3.0/24", "fd00:1:2:3::/64"], &[]) };
        let rules = rules(ROOT, &filter);
        let [keep, .., keep6, _, _] = rules.as_slice() else { panic!("{rules:?}") };
        assert!(keep.first && keep.table == "nat");
        let expected = "-s 10.244.3.0/24 -d 10.244.0.0/16 -m mark ! --mark 0x4000/0x4000 -j ACCEPT";
        assert_eq!(keep.arguments.join(" "), expected);
        let expected = "ip6 saddr fd00:1:2:3::/64 ip6 daddr fd00:1:2::/48 meta mark & 0x4000 == 0 snat to ip6 saddr";
        assert_eq!(keep6.nft.as_deref(), Some(expected));
        let comments: std::collections::BTreeSet<&str> = rules.iter().map(|rule| rule.comment.as_str()).collect();
        assert_eq!(comments.len(), 6, "each is known by its own");
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

    #[test]
    fn what_is_forwarded_to_pods_of_plugins() {
        let subnet = of("10.244.3.0/24");
        let dockers = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n\
                       -A FORWARD -j KUBE-FORWARD\n-A DOCKER -d 172.17.0.2/32 -p tcp -j ACCEPT\n-A DOCKER-USER -j RETURN\n";
        assert!(!forwards(dockers, &subnet));
        assert!(forwards(&dockers.replace("-P FORWARD DROP", "-P FORWARD ACCEPT"), &subnet));
        for more in [
            "-A FORWARD -j cali-FORWARD",
            "-A FORWARD -j KUBE-ROUTER-FORWARD",
            "-A DOCKER-USER -d 10.244.0.0/16 -j ACCEPT",
            "-A FORWARD -m comment --comment \"for all pods\" -j ACCEPT",
            "-A FORWARD -o cni0 -j ACCEPT",
            "-A DOCKER-USER -o cni0 -j ACCEPT",
            "-A ufw-user-forward -d 10.244.0.0/16 -j ACCEPT",
        ] {
            assert!(forwards(&[dockers, more].concat(), &subnet), "{more}");
        }
        for more in [
            "-A DOCKER-USER -d 10.245.0.0/16 -j ACCEPT",
            "-A DOCKER-USER -d 10.244.0.0/16 -j DROP",
            "-A INPUT -s 10.244.0.0/16 -j ACCEPT",
            "-A ufw-user-input -s 10.244.0.0/16 -j ACCEPT",
            "-A ufw-skip-to-policy-forward -j ACCEPT",
            "-A FORWARD -i eth0 -p tcp -m tcp --dport 80 -j ACCEPT",
            "-A FORWARD -s 10.244.0.0/16 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ] {
            assert!(!forwards(&[dockers, more].concat(), &subnet), "{more}");
        }
    }

    /// Docker's chain after the changes.
    fn changed(listed: &[&str], changes: &Changes) -> Vec<String> {
        let mut lines: Vec<String> = listed.iter().map(|&line| line.to_owned()).collect();
        let remove = |lines: &mut Vec<String>| {
            for arguments in &changes.remove {
                let named = format!("-A DOCKER-USER {}", arguments.join(" "));
                let at = lines.iter().position(|line| line.replace('"', "") == named).unwrap();
                lines.remove(at);
            }
        };
        if changes.remove_first {
            remove(&mut lines);
        }
        for rule in &changes.add {
            let at = changes.before.map_or(lines.len(), |number| number - 1);
            lines.insert(at, printed(rule));
        }
        if !changes.remove_first {
            remove(&mut lines);
        }
        lines
    }

    #[test]
    fn an_operators_rules_count_before_ours() {
        let wanted = rules(ROOT, &filter(&["10.244.3.0/24"], &[]));
        let ours = printed(&wanted[1]);
        let ours = ours.as_str();
        let another = "-A DOCKER-USER -d 10.245.3.0/24 -m comment --comment longshore:ffffffff:10.245.3.0/24 -j ACCEPT";
        let (drop, end) = ("-A DOCKER-USER -s 198.51.100.0/24 -j DROP", "-A DOCKER-USER -j RETURN");
        let (leave, log) = ("-A DOCKER-USER -s 10.0.0.0/8 -j RETURN", "-A DOCKER-USER -j LOG");
        let own = "-A DOCKER-USER -j mine";
        // What is listed, what is there afterwards, and whether ours was moved behind what drops.
        for (listed, expected, behind) in [
            (vec![], vec![ours], false),
            (vec![end], vec![ours, end], false),
            (vec![drop, end], vec![drop, ours, end], false),
            (vec![drop, ours, end], vec![drop, ours, end], false),
            (vec![drop, ours, another], vec![drop, ours, another], false),
            (vec![ours, drop], vec![drop, ours], true),
            (vec![ours, drop, end], vec![drop, ours, end], true),
            (vec![ours, own, end], vec![own, ours, end], false),
            (vec![drop, end, ours], vec![drop, ours, end], false),
            (vec![ours, end, drop], vec![ours, end, drop], false),
            (vec![leave, end], vec![ours, leave, end], false),
            (vec![leave, ours, end], vec![ours, leave, end], false),
            (vec![log, leave, log], vec![log, ours, leave, log], false),
            (vec![leave, drop, leave, end], vec![leave, drop, ours, leave, end], false),
            (vec![ours, drop, leave, ours], vec![drop, ours, leave], true),
            (vec![ours, end, ours], vec![ours, end], false),
            (vec![drop, ours, leave, ours, ours], vec![drop, ours, leave], false),
        ] {
            let changes = |listed: &[&str]| {
                let listed = [&["-N DOCKER-USER"][..], listed].concat().join("\n");
                changes(ROOT, "DOCKER-USER", &wanted, &listed)
            };
            let found = changes(&listed);
            assert_eq!(changed(&listed, &found), expected, "{listed:?}");
            assert_eq!(found.behind.is_some(), behind, "{listed:?}");
            assert!(changes(&expected).is_empty(), "{expected:?}");
        }
    }

    proptest! {
        /// Whatever was there, after the changes exactly what is wanted is.
        #[test]
        fn it_settles(before in prop::collection::vec(0u8..5, 0..5), now in prop::collection::vec(0u8..5, 0..2)) {
            let all = |list: &[u8]| -> Vec<Rule> {
                let subnets: Vec<Cidr> = list.iter().map(|third| of(&format!("10.244.{third}.0/24"))).collect();
                rules(ROOT, &PacketFilter { subnets, ..Default::default() }).into_iter().filter(|rule| rule.chain == "POSTROUTING").collect()
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
