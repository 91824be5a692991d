//! Chains that the kubelet makes for others: one by which they see which iptables is in use, and one that drops what comes to
//! loopback addresses from elsewhere. As `pkg/kubelet/kubelet_network_linux.go`; like there they stay.

use super::{Chain, Failure, PROGRAMS, dockers_chain, run};

const HINT: &str = "KUBE-IPTABLES-HINT";
const FIREWALL: &str = "KUBE-FIREWALL";
/// In every table: what flushes them takes it along.
const CANARY: &str = "KUBE-KUBELET-CANARY";
/// What [`FIREWALL`] has, as kube-proxy makes it, too.
const DROP: [&str; 14] = [
    "-m",
    "comment",
    "--comment",
    "block incoming localnet connections",
    "-d",
    "127.0.0.0/8",
    "!",
    "-s",
    "127.0.0.0/8",
    "-m",
    "conntrack",
    "!",
    "--ctstate",
    "RELATED,ESTABLISHED,DNAT",
];

/// Makes what is not there, of each family that the machine can filter.
pub(crate) async fn make() -> Result<(), String> {
    make_by(PROGRAMS.iptables).await
}

async fn make_by(programs: [(bool, &str); 2]) -> Result<(), String> {
    let (mut outcome, mut can_filter) = (Ok(()), false);
    for (ipv4, program) in programs {
        let program = dockers_kind(program).await;
        let made = match run(&program, &["-t", "nat", "-S", "POSTROUTING"], "").await {
            Ok(_) => of_family(&program, ipv4).await,
            Err(failure @ Failure::Busy(_)) => Err(failure),
            // A kernel may lack one of the families.
            Err(_) => continue,
        };
        can_filter = true;
        outcome = outcome.and(made.map_err(|failure| match failure {
            Failure::Absent => format!("{program} is not there"),
            Failure::Busy(message) | Failure::Other(message) => message,
        }));
    }
    if can_filter { outcome } else { Err("iptables cannot be used on this machine".to_owned()) }
}

/// Of the kinds of iptables that a machine may have the one that Docker uses, which others are to use, too; where it uses none,
/// the machine's own.
async fn dockers_kind(program: &str) -> String {
    for kind in [program.to_owned(), format!("{program}-nft"), format!("{program}-legacy")] {
        if matches!(dockers_chain(&kind).await, Ok(Chain::Used | Chain::Unused)) {
            return kind;
        }
    }
    program.to_owned()
}

async fn of_family(program: &str, ipv4: bool) -> Result<(), Failure> {
    let mangle: &[&str] = &[CANARY, HINT];
    let filter: &[&str] = if ipv4 { &[CANARY, FIREWALL] } else { &[CANARY] };
    for (table, chains) in [("mangle", mangle), ("nat", &filter[..1]), ("filter", filter)] {
        let listed = run(program, &["-t", table, "-S"], "").await?;
        let has = |wanted: &str| listed.lines().any(|line| line == wanted);
        for &chain in chains {
            if !has(&format!("-N {chain}")) {
                run(program, &["-t", table, "-N", chain], "").await?;
            }
        }
        if table != "filter" || !ipv4 {
            continue;
        }
        for chain in ["OUTPUT", "INPUT"] {
            if !has(&format!("-A {chain} -j {FIREWALL}")) {
                run(program, &["-t", table, "-I", chain, "-j", FIREWALL], "").await?;
            }
        }
        if !listed.lines().any(is_drop) {
            let rule = [&["-t", table, "-A", FIREWALL][..], &DROP[..], &["-j", "DROP"][..]].concat();
            run(program, &rule, "").await?;
        }
    }
    Ok(())
}

/// Whether this is the rule, as a version of iptables prints it.
fn is_drop(line: &str) -> bool {
    let parts = ["! -s 127.0.0.0/8", "-d 127.0.0.0/8", "! --ctstate"];
    line.starts_with(&format!("-A {FIREWALL} "))
        && line.ends_with("-j DROP")
        && parts.iter().all(|part| line.contains(part))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::program;
    use super::*;

    #[tokio::test]
    async fn what_is_not_there_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let told = || {
            let text = std::fs::read_to_string(folder.path().join("told")).unwrap();
            let made = text.lines().filter(|line| !line.contains(" -S")).map(str::to_owned);
            made.collect::<Vec<String>>()
        };
        let absent = folder.path().join("absent").display().to_string();
        let error = make_by([(true, &absent), (false, &absent)]).await.unwrap_err();
        assert!(error.contains("cannot be used"), "{error}");

        let iptables = program(folder.path(), "iptables", "");
        make_by([(true, &iptables), (false, &absent)]).await.unwrap();
        let expected = [
            "iptables -w 10 -t mangle -N KUBE-KUBELET-CANARY",
            "iptables -w 10 -t mangle -N KUBE-IPTABLES-HINT",
            "iptables -w 10 -t nat -N KUBE-KUBELET-CANARY",
            "iptables -w 10 -t filter -N KUBE-KUBELET-CANARY",
            "iptables -w 10 -t filter -N KUBE-FIREWALL",
            "iptables -w 10 -t filter -I OUTPUT -j KUBE-FIREWALL",
            "iptables -w 10 -t filter -I INPUT -j KUBE-FIREWALL",
            "iptables -w 10 -t filter -A KUBE-FIREWALL -m comment --comment block incoming localnet connections -d 127.0.0.0/8 \
             ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        ];
        assert_eq!(told(), expected);

        let there = "echo '-N KUBE-KUBELET-CANARY
-N KUBE-IPTABLES-HINT
-N KUBE-FIREWALL
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" -m conntrack \
                     ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP'";
        let iptables = program(folder.path(), "iptables", there);
        make_by([(true, &iptables), (false, &iptables)]).await.unwrap();
        assert_eq!(told(), Vec::<String>::new(), "what is there is left alone");

        let ip6tables = program(folder.path(), "ip6tables", "");
        make_by([(true, &absent), (false, &ip6tables)]).await.unwrap();
        assert!(told().iter().any(|line| line.ends_with("KUBE-IPTABLES-HINT")), "{:?}", told());
        assert!(!told().iter().any(|line| line.contains("FIREWALL")), "only IPv4's loopback is routed");
    }

    #[tokio::test]
    async fn they_are_made_where_docker_has_its_own_and_a_lock_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent").display().to_string();
        let iptables = program(folder.path(), "iptables", "");
        program(folder.path(), "iptables-legacy", "case \"$*\" in *'filter -S') echo '-N DOCKER-USER' ;; esac");
        make_by([(true, &iptables), (false, &absent)]).await.unwrap();
        let told = std::fs::read_to_string(folder.path().join("told")).unwrap();
        assert!(told.contains("iptables-legacy -w 10 -t mangle -N KUBE-IPTABLES-HINT"), "{told}");

        let folder = tempfile::tempdir().unwrap();
        let held = "echo 'Another app is currently holding the xtables lock.' >&2; exit 4";
        let iptables = program(folder.path(), "iptables", held);
        let error = make_by([(true, &iptables), (false, &absent)]).await.unwrap_err();
        assert!(error.ends_with("lock."), "{error}");
    }
}
