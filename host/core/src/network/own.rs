//! Our own network in Docker, from the networks that the node has for its pods: whether there is to be one, whether
//! it can be, and which old ones go.

use super::cidrs;
use crate::cidr::Cidr;
use crate::container::SandboxNetwork;

/// A network of Docker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BridgeNetwork {
    /// Its ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub subnets: Vec<Cidr>,
    /// Whether it is this agent's.
    pub ours: bool,
    /// Whether it is the one that containers are on when nothing is said (docker0).
    pub is_default: bool,
    /// Whether the runtime masquerades all that leaves it.
    pub masquerades: bool,
    /// The largest packet, where it is set.
    pub mtu: Option<String>,
}

/// A network to be made: a bridge, on which pods reach each other without masquerade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnNetwork {
    /// Its name.
    pub name: String,
    /// Its addresses: one network, or one of each family.
    pub subnets: Vec<Cidr>,
    /// The largest packet, as the default bridge has it: Docker takes 1500 where a cloud's network may carry less.
    pub mtu: Option<String>,
}

/// What Docker takes where nothing is said.
const MTU: u32 = 1500;

impl OwnNetwork {
    /// The same with no larger packets than the node's own network carries, as far as that is known.
    pub fn carried_by(mut self, mtu: Option<u32>) -> OwnNetwork {
        let own = self.mtu.as_deref().and_then(|mtu| mtu.parse().ok()).unwrap_or(MTU);
        if let Some(mtu) = mtu.filter(|mtu| *mtu < own) {
            self.mtu = Some(mtu.to_string());
        }
        self
    }
}

/// All that the decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// ID of the agent's root folder.
    pub root_id: &'a str,
    /// The networks that the node has for its pods; `None` when that is not known yet.
    pub pod_cidrs: Option<&'a [String]>,
    /// Whether they were waited for as long as pods may wait.
    pub waited: bool,
    /// Docker's networks.
    pub networks: &'a [BridgeNetwork],
    /// Names of those that sandboxes of ours, dead ones aside, are on.
    pub used: &'a [String],
}

/// Where new sandboxes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Nowhere yet: the node's networks for pods may come any moment.
    Wait,
    /// To that one.
    Use(SandboxNetwork),
    /// To one that has to be made first.
    Create(OwnNetwork),
    /// Nowhere, and why and what to do.
    Refuse(String),
}

/// See [`decide`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where new sandboxes go.
    pub choice: Choice,
    /// IDs of networks of ours that nobody needs any more: removed first.
    pub remove: Vec<String>,
}

/// Decides on the network of new sandboxes.
///
/// While the node is not known (its API server is away) a network that was made before serves on. A node without a
/// network for its pods uses the default bridge, after it was waited for. Networks of ours with other addresses go as
/// soon as they are empty.
pub fn decide(situation: &Situation<'_>) -> Decision {
    let Situation { root_id, pod_cidrs, waited, networks, used } = *situation;
    let default = Choice::Use(SandboxNetwork::Default);
    let stay = |choice| Decision { choice, remove: Vec::new() };
    let Some(pod_cidrs) = pod_cidrs else {
        let known = networks.iter().find(|network| network.ours);
        return stay(match known {
            Some(known) => Choice::Use(SandboxNetwork::Named(known.name.clone())),
            None if waited => default,
            None => Choice::Wait,
        });
    };
    if pod_cidrs.is_empty() {
        return stay(if waited { default } else { Choice::Wait });
    }
    let wanted: Vec<Cidr> = match cidrs(pod_cidrs) {
        Ok(wanted) => wanted.iter().map(Cidr::network).collect(),
        Err(error) => return stay(Choice::Refuse(format!("the node's networks for pods cannot be used: {error}"))),
    };
    let fits = |network: &BridgeNetwork| network.ours && same(&network.subnets, &wanted);
    let kept = networks.iter().find(|network| fits(network));
    let is_used = |network: &BridgeNetwork| used.contains(&network.name);
    let stale = |network: &&BridgeNetwork| network.ours && Some(*network) != kept && !is_used(network);
    let remove = networks.iter().filter(stale).map(|network| network.id.clone()).collect();
    let choice = match kept {
        Some(kept) => Choice::Use(SandboxNetwork::Named(kept.name.clone())),
        None => {
            let others: Vec<&BridgeNetwork> = networks.iter().filter(|network| !stale(network)).collect();
            create(root_id, &wanted, &others)
        }
    };
    Decision { choice, remove }
}

fn same(a: &[Cidr], b: &[Cidr]) -> bool {
    a.len() == b.len() && a.iter().all(|one| b.iter().any(|other| one.network() == other.network()))
}

/// What of a network that is there keeps another one from having these addresses, and what to do.
fn in_the_way(wanted: &[Cidr], others: &[&BridgeNetwork]) -> Option<String> {
    let of = |network: &&BridgeNetwork| {
        let mut pairs = wanted.iter().flat_map(|one| network.subnets.iter().map(move |other| (one, other)));
        let (one, other) = pairs.find(|(one, other)| one.overlaps(other))?;
        let name = &network.name;
        let what = match network {
            BridgeNetwork { ours: true, .. } => {
                "pods of the node's former network still run on it: drain the node (`kubectl drain`), then it is replaced"
                    .to_owned()
            }
            BridgeNetwork { is_default: true, .. } => {
                "set \"bip\" in Docker's daemon.json to addresses outside of the cluster and restart Docker".to_owned()
            }
            _ => {
                format!("remove it (`docker network rm {name}`), or make it anew with addresses outside of the cluster")
            }
        };
        Some(format!(
            "the node's network for pods, {one}, overlaps with {other} of the Docker network {name:?}; {what}"
        ))
    };
    others.iter().find_map(of)
}

/// What is left of networks of ours where new pods go to another one. See [`leave`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftovers {
    /// IDs of those that nobody needs any more.
    pub remove: Vec<String>,
    /// Why no pod can be on another network yet, and what to do.
    pub refusal: Option<String>,
}

/// A network of ours that is used, and by which pod, as `<namespace>/<name>`; none where that cannot be seen.
pub type Used = (String, Option<String>);

/// So many pods are named.
const NAMED: usize = 10;

/// Decides on networks of ours where pods' network is another one. One that is used is in its way if it has the node's
/// addresses, once these are known.
pub fn leave(pod_cidrs: Option<&[Cidr]>, networks: &[BridgeNetwork], used: &[Used]) -> Leftovers {
    let ours = networks.iter().filter(|network| network.ours);
    let (kept, gone): (Vec<&BridgeNetwork>, Vec<&BridgeNetwork>) =
        ours.partition(|network| used.iter().any(|(name, _)| *name == network.name));
    let wanted = pod_cidrs.unwrap_or_default();
    let overlaps =
        |network: &&&BridgeNetwork| wanted.iter().any(|one| network.subnets.iter().any(|other| one.overlaps(other)));
    Leftovers {
        remove: gone.iter().map(|network| network.id.clone()).collect(),
        refusal: kept.iter().find(overlaps).map(|network| refusal(&network.name, used)),
    }
}

/// Why that network keeps another one from the node's addresses.
fn refusal(name: &str, used: &[Used]) -> String {
    let pods: Vec<&str> = used.iter().filter(|(of, _)| of == name).filter_map(|(_, pod)| pod.as_deref()).collect();
    let rest = match pods.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let which = match pods.is_empty() {
        true => "Docker does not say which".to_owned(),
        false => format!("delete these pods: {}{rest}", pods[..pods.len().min(NAMED)].join(", ")),
    };
    format!(
        "pods still run on the former Docker network {name:?}, which has the addresses that the node's other network is to give; \
         {which}"
    )
}

fn create(root_id: &str, wanted: &[Cidr], others: &[&BridgeNetwork]) -> Choice {
    if let Some(message) = in_the_way(wanted, others) {
        return Choice::Refuse(message);
    }
    let name = name(root_id, wanted);
    if others.iter().any(|network| network.name == name) {
        return Choice::Refuse(format!(
            "the network for pods would have the name of a Docker network that is not ours: remove it (`docker network rm \
             {name}`)"
        ));
    }
    let mtu = others.iter().find(|network| network.is_default).and_then(|network| network.mtu.clone());
    Choice::Create(OwnNetwork { name, subnets: wanted.to_vec(), mtu })
}

/// `longshore-<root>-<network>`, in letters that Docker takes.
fn name(root_id: &str, subnets: &[Cidr]) -> String {
    let root = root_id.get(..8).unwrap_or(root_id);
    let subnet = subnets.first().map(Cidr::to_string).unwrap_or_default();
    format!("longshore-{root}-{}", subnet.replace('/', "_").replace(':', "-"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOT: &str = "0123456789abcdef0123456789abcdef";

    fn network(name: &str, subnets: &[&str], ours: bool) -> BridgeNetwork {
        BridgeNetwork {
            id: format!("id-of-{name}"),
            name: name.to_owned(),
            subnets: subnets.iter().map(|text| text.parse().unwrap()).collect(),
            ours,
            ..Default::default()
        }
    }

    fn docker0() -> BridgeNetwork {
        let mtu = Some("1450".to_owned());
        BridgeNetwork { is_default: true, mtu, ..network("bridge", &["172.17.0.0/16"], false) }
    }

    fn of(pod_cidrs: Option<&[&str]>, waited: bool, networks: &[BridgeNetwork], used: &[&str]) -> Decision {
        let pod_cidrs = pod_cidrs.map(|list| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        let used: Vec<String> = used.iter().map(|&name| name.to_owned()).collect();
        decide(&Situation { root_id: ROOT, pod_cidrs: pod_cidrs.as_deref(), waited, networks, used: &used })
    }

    fn named(name: &str) -> Choice {
        Choice::Use(SandboxNetwork::Named(name.to_owned()))
    }

    #[test]
    fn it_is_waited_for_and_then_done_without() {
        for unknown in [None, Some(&[][..])] {
            assert_eq!(of(unknown, false, &[docker0()], &[]).choice, Choice::Wait);
            assert_eq!(of(unknown, true, &[docker0()], &[]).choice, Choice::Use(SandboxNetwork::Default));
        }
        let old = network("old", &["10.1.0.0/24"], true);
        assert_eq!(of(None, false, &[docker0(), old.clone()], &[]).choice, named("old"));
        // Its addresses may be another node's by now.
        assert_eq!(of(Some(&[]), true, &[old], &[]).choice, Choice::Use(SandboxNetwork::Default));
    }

    #[test]
    fn it_is_made_once() {
        let Choice::Create(made) = of(Some(&["10.244.3.0/24", "fd00:1::/64"]), false, &[docker0()], &[]).choice else {
            panic!()
        };
        assert_eq!(made.name, "longshore-01234567-10.244.3.0_24");
        assert_eq!(made.mtu.as_deref(), Some("1450"));
        let there = BridgeNetwork { name: made.name.clone(), subnets: made.subnets, ours: true, ..Default::default() };
        let decision = of(Some(&["fd00:1::/64", "10.244.3.0/24"]), false, &[docker0(), there], &[]);
        assert_eq!(decision, Decision { choice: named(&made.name), remove: Vec::new() });
        let Choice::Create(six) = of(Some(&["fd00:1::/64"]), false, &[], &[]).choice else { panic!() };
        assert_eq!(six.name, "longshore-01234567-fd00-1--_64");
    }

    #[test]
    fn its_packets_are_no_larger_than_what_the_nodes_network_carries() {
        let carried = |own: Option<&str>, mtu| {
            let own = OwnNetwork { name: String::new(), subnets: Vec::new(), mtu: own.map(str::to_owned) };
            own.carried_by(mtu).mtu
        };
        assert_eq!(carried(None, Some(1450)).as_deref(), Some("1450"));
        assert_eq!(carried(Some("1400"), Some(1450)).as_deref(), Some("1400"));
        assert_eq!(carried(Some("9000"), Some(8950)).as_deref(), Some("8950"));
        assert_eq!((carried(None, Some(9000)), carried(None, None)), (None, None));
    }

    #[test]
    fn what_is_in_the_way_is_named_with_what_to_do() {
        let refusal = |networks: &[BridgeNetwork], used: &[&str]| match of(
            Some(&["10.244.3.0/24"]),
            false,
            networks,
            used,
        )
        .choice
        {
            Choice::Refuse(message) => message,
            other => panic!("{other:?}"),
        };
        let other = network("other", &["10.0.0.0/8"], false);
        assert!(refusal(&[other], &[]).contains("`docker network rm other`"));
        let bip = BridgeNetwork { is_default: true, ..network("bridge", &["10.244.3.0/26"], false) };
        assert!(refusal(&[bip], &[]).contains("\"bip\""));
        let former = network("former", &["10.244.0.0/16"], true);
        assert!(refusal(&[former], &["former"]).contains("drain"));
        let squatter = network("longshore-01234567-10.244.3.0_24", &["10.1.0.0/24"], false);
        assert!(refusal(&[squatter], &[]).contains("not ours"));
        let Choice::Refuse(message) = of(Some(&["10.244.3.0"]), true, &[], &[]).choice else { panic!() };
        assert!(message.contains("expected a network"), "{message}");
    }

    #[test]
    fn a_former_one_goes_when_it_is_empty() {
        let former = network("former", &["10.1.0.0/24"], true);
        let networks = [docker0(), former];
        let decision = of(Some(&["10.244.3.0/24"]), false, &networks, &["former"]);
        assert!(matches!(decision.choice, Choice::Create(_)) && decision.remove.is_empty());
        assert_eq!(of(Some(&["10.1.0.0/23"]), false, &networks, &[]).remove, ["id-of-former"]);
    }

    #[test]
    fn where_pods_are_on_another_network_ours_goes() {
        let cidrs = |text: &str| -> Vec<Cidr> { vec![text.parse().unwrap()] };
        let networks = [docker0(), network("a", &["10.1.0.0/24"], true), network("b", &["10.2.0.0/24"], true)];
        let now = |cidrs: Option<&[Cidr]>, used: &[&str]| {
            let pods =
                used.iter().flat_map(|&name| (0..12).map(move |pod| (name.to_owned(), Some(format!("x/{pod}")))));
            leave(cidrs, &networks, &pods.collect::<Vec<Used>>())
        };
        let all = Leftovers { remove: vec!["id-of-a".to_owned(), "id-of-b".to_owned()], refusal: None };
        assert_eq!(now(None, &[]), all);
        assert_eq!(now(Some(&cidrs("172.17.0.0/16")), &[]), all, "another's is not ours to judge");
        let kept = now(Some(&cidrs("10.2.0.0/24")), &["a"]);
        assert_eq!((kept.remove, kept.refusal), (vec!["id-of-b".to_owned()], None));
        assert_eq!(now(None, &["a"]).refusal, None, "plugins need not use what the node has");
        let refusal = now(Some(&cidrs("10.1.0.0/24")), &["a"]).refusal.unwrap();
        assert!(
            refusal.contains("\"a\"")
                && refusal.ends_with("delete these pods: x/0, x/1, x/2, x/3, x/4, x/5, x/6, x/7, x/8, x/9 and 2 more"),
            "{refusal}"
        );
        let unseen = leave(Some(&cidrs("10.1.0.0/24")), &networks, &[("a".to_owned(), None)]);
        assert!(unseen.refusal.unwrap().ends_with("Docker does not say which"));
    }

    fn any_networks() -> impl Strategy<Value = Vec<BridgeNetwork>> {
        prop::collection::vec((0u8..4, 16u8..=26, any::<bool>()), 0..5).prop_map(|list| {
            let each = list.into_iter().enumerate().map(|(index, (third, prefix, ours))| {
                network(&format!("n{index}"), &[&format!("10.244.{third}.0/{prefix}")], ours)
            });
            each.collect()
        })
    }

    proptest! {
        /// What is decided is safe, and deciding again after it was done gives that it is there.
        #[test]
        fn it_settles(
            networks in any_networks(),
            used in prop::collection::vec("n[0-4]", 0..3),
            third in 0u8..4,
        ) {
            let wanted = format!("10.244.{third}.0/24");
            let used: Vec<&str> = used.iter().map(String::as_str).collect();
            let decision = of(Some(&[&wanted]), false, &networks, &used);
            let mut after = networks.clone();
            for id in &decision.remove {
                let gone = networks.iter().find(|network| network.id == *id).unwrap();
                prop_assert!(gone.ours && !used.contains(&gone.name.as_str()));
                after.retain(|network| network.id != *id);
            }
            match decision.choice {
                Choice::Create(own) => {
                    for other in &after {
                        prop_assert!(!other.subnets[0].overlaps(&own.subnets[0]));
                    }
                    after.push(BridgeNetwork { name: own.name.clone(), subnets: own.subnets, ours: true, ..Default::default() });
                    let again = of(Some(&[&wanted]), false, &after, &used);
                    prop_assert_eq!(again, Decision { choice: named(&own.name), remove: Vec::new() });
                }
                choice => prop_assert_eq!(of(Some(&[&wanted]), false, &after, &used), Decision { choice, remove: Vec::new() }),
            }
        }
    }
}
