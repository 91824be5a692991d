//! Rules of ours in the node's packet filter, by the `iptables` programs that Docker itself uses, or by `nft` where there are
//! none. It must not decide what they are (`longshore_core::network::rules`), and touches none without our mark.

pub(crate) mod bridged;
pub(crate) mod chains;
pub(crate) mod hairpin;

use std::io::ErrorKind;
use std::process::Stdio;
use std::time::Duration;

use longshore_core::network::nft;
use longshore_core::network::rules::{self, Changes, PacketFilter, Rule};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// One call; others may hold the lock for a while.
const CALL: Duration = Duration::from_secs(20);
/// Seconds that a call waits for the lock.
const LOCK: &str = "10";

/// What they say where another has the lock, and they wait no longer.
const HELD: [&str; 2] = ["holding the xtables lock.", "Resource temporarily unavailable"];
/// What they say while they wait for it, whatever comes of that.
const WAITS: &str = "holding the xtables lock;";

/// The programs' names.
struct Programs<'a> {
    /// For IPv4 (`true`) and IPv6.
    iptables: [(bool, &'a str); 2],
    nft: &'a str,
}

const PROGRAMS: Programs<'static> = Programs { iptables: [(true, "iptables"), (false, "ip6tables")], nft: "nft" };

/// Why a program did not do what it was told.
#[derive(Debug)]
enum Failure {
    /// It is not there.
    Absent,
    /// It did not get its turn, so nothing is known of what is there; for people.
    Busy(String),
    /// Something else, for people.
    Other(String),
}

/// Strangers' rules that ours were moved behind and that drop packets, of IPv4 and of IPv6, until they were given: they are
/// found once.
pub(crate) type Behind = [Option<String>; 2];

/// Makes these rules, and no others of ours, be there. What fails keeps nothing else from being done; the first failure is
/// given. Else what is in `behind`, with what was found now.
pub(crate) async fn update(root: &str, filter: &PacketFilter, behind: &mut Behind) -> Result<Option<String>, String> {
    update_by(&PROGRAMS, root, &rules::rules(root, filter), behind).await
}

async fn update_by(
    programs: &Programs<'_>,
    root: &str,
    wanted: &[Rule],
    behind: &mut Behind,
) -> Result<Option<String>, String> {
    let mut outcome = Ok(());
    for ((ipv4, program), behind) in programs.iptables.into_iter().zip(behind.iter_mut()) {
        let of_family: Vec<Rule> = wanted.iter().filter(|rule| rule.ipv4 == ipv4).cloned().collect();
        let family = Family { root, ipv4, iptables: program, nft: programs.nft, wanted: &of_family };
        outcome = outcome.and(family.update(behind).await);
    }
    outcome?;
    let behind: Vec<String> = behind.iter_mut().filter_map(Option::take).collect();
    Ok((!behind.is_empty()).then(|| behind.join("; ")))
}

/// Where Docker's own rules are.
const DOCKERS: (&str, &str) = ("filter", "DOCKER-USER");
const NAT: (&str, &str) = ("nat", "POSTROUTING");

/// One family's rules, and what makes them.
struct Family<'a> {
    root: &'a str,
    ipv4: bool,
    iptables: &'a str,
    nft: &'a str,
    wanted: &'a [Rule],
}

impl Family<'_> {
    async fn update(&self, behind: &mut Option<String>) -> Result<(), String> {
        match self.dockers_iptables().await {
            // Where Docker's rules are, ours count before them.
            Ok(Some(program)) => {
                let accepted = self.chain_updated(&program, DOCKERS, self.wanted).await;
                let masqueraded = self.chain_updated(self.iptables, NAT, self.wanted).await;
                let accepted = accepted.or_failed(&program)?;
                if let Some(stranger) = &accepted.behind {
                    let (_, chain) = DOCKERS;
                    *behind = Some(format!("{program} -A {chain} {}", stranger.join(" ")));
                }
                let masqueraded = masqueraded.or_failed(self.iptables)?;
                // Where none are wanted, a table of ours may be left though nothing changes here.
                let is_settled = !self.wanted.is_empty() && accepted.is_empty() && masqueraded.is_empty();
                if is_settled { Ok(()) } else { self.without_nft().await }
            }
            // Docker makes them with nft, or none: what is decided in iptables' tables, others may decide again, but what a
            // table of ours decides before them is decided.
            Ok(None) => match self.by_nft(self.wanted).await {
                Err(Failure::Absent) => {
                    self.chain_updated(self.iptables, NAT, self.wanted).await.or_failed(self.iptables).map(|_| ())
                }
                done => {
                    done.or_failed(self.nft)?;
                    self.chain_updated(self.iptables, NAT, &[]).await.or_failed(self.iptables).map(|_| ())
                }
            },
            Err(Failure::Absent) => match self.by_nft(self.wanted).await {
                Err(Failure::Absent) if self.wanted.is_empty() => Ok(()),
                Err(Failure::Absent) => {
                    let (iptables, nft) = (self.iptables, self.nft);
                    Err(format!("neither {iptables} nor {nft} is there; install the package iptables"))
                }
                done => done.or_failed(self.nft),
            },
            Err(Failure::Busy(message)) => {
                let masqueraded = self.chain_updated(self.iptables, NAT, self.wanted).await;
                masqueraded.or_failed(self.iptables).and(Err(message))
            }
            Err(Failure::Other(message)) => {
                let masqueraded = self.chain_updated(self.iptables, NAT, self.wanted).await;
                // Where no rule is wanted, there need be no filter.
                if self.wanted.is_empty() { masqueraded.or_failed(self.iptables).map(|_| ()) } else { Err(message) }
            }
        }
    }

    /// Which iptables has Docker's chain: a machine may have two kinds, which do not see each other's rules. `None` where
    /// there is iptables, and no such chain.
    async fn dockers_iptables(&self) -> Result<Option<String>, Failure> {
        let (nft, legacy) = (format!("{}-nft", self.iptables), format!("{}-legacy", self.iptables));
        let mut flushed = None;
        // One of the others is the first.
        for (index, program) in [self.iptables.to_owned(), nft, legacy].into_iter().enumerate() {
            let found = match dockers_chain(&program).await {
                Err(failure @ Failure::Busy(_)) => return Err(failure),
                Err(failure) if index == 0 => return Err(failure),
                found => found.unwrap_or(Chain::Absent),
            };
            match found {
                Chain::Used => return Ok(Some(program)),
                Chain::Unused if self.wanted.is_empty() => return Ok(Some(program)),
                Chain::Unused if self.docker_has_nft().await => {}
                Chain::Unused => flushed = flushed.or(Some(program)),
                Chain::Absent => {}
            }
        }
        match flushed {
            Some(program) => Err(Failure::Other(format!(
                "{program}: no chain leads to DOCKER-USER any more, so Docker's rules are gone: restart Docker"
            ))),
            None => Ok(None),
        }
    }

    /// Whether Docker makes its rules with nft: its chain of iptables is then what is left of a former run.
    async fn docker_has_nft(&self) -> bool {
        let family = if self.ipv4 { "ip" } else { "ip6" };
        run(self.nft, &["list", "table", family, "docker-bridges"], "").await.is_ok()
    }

    /// Brings one chain up to date; what was changed.
    async fn chain_updated(
        &self,
        program: &str,
        (table, chain): (&str, &str),
        wanted: &[Rule],
    ) -> Result<Changes, Failure> {
        let listed = match run(program, &["-t", table, "-S", chain], "").await {
            Ok(listed) => listed,
            Err(Failure::Other(_)) if wanted.is_empty() => return Ok(Changes::default()),
            Err(failure) => return Err(failure),
        };
        let changes = rules::changes(self.root, chain, wanted, &listed);
        if changes.remove_first {
            remove(program, (table, chain), &changes.remove).await?;
        }
        let before = changes.before.map(|number| number.to_string());
        for rule in &changes.add {
            let place = match &before {
                _ if rule.first => vec!["-I", chain],
                Some(before) => vec!["-I", chain, before.as_str()],
                None => vec!["-A", chain],
            };
            let arguments: Vec<&str> = rule.arguments.iter().map(String::as_str).collect();
            let comment = ["-m", "comment", "--comment", &rule.comment];
            run(program, &[&["-t", table], place.as_slice(), comment.as_slice(), arguments.as_slice()].concat(), "")
                .await?;
            tracing::info!(program, table, chain, rule = rule.arguments.join(" "), "the packet filter has a new rule");
        }
        if !changes.remove_first {
            remove(program, (table, chain), &changes.remove).await?;
        }
        Ok(changes)
    }

    /// The rules in a table of our own.
    async fn by_nft(&self, wanted: &[Rule]) -> Result<(), Failure> {
        let Family { root, ipv4, nft: program, .. } = *self;
        let (family, table) = (if ipv4 { "ip" } else { "ip6" }, nft::table(root));
        let listed = match run(program, &["list", "table", family, &table], "").await {
            Ok(listed) => Some(listed),
            Err(failure @ (Failure::Absent | Failure::Busy(_))) => return Err(failure),
            // Not there, or it fails again below.
            Err(Failure::Other(_)) => None,
        };
        let is_current = match &listed {
            Some(listed) => !wanted.is_empty() && nft::is_current(root, ipv4, wanted, listed),
            None => wanted.is_empty(),
        };
        if is_current {
            return Ok(());
        }
        run(program, &["-f", "-"], &nft::script(root, ipv4, wanted)).await?;
        tracing::info!(
            family,
            table,
            rules = wanted.len(),
            "the packet filter has a new table of ours, or none any more"
        );
        Ok(())
    }

    /// Rules that were made where Docker made none by iptables would stay for ever.
    async fn without_nft(&self) -> Result<(), String> {
        match self.by_nft(&[]).await {
            Err(Failure::Absent) => Ok(()),
            done => done.or_failed(self.nft),
        }
    }
}

/// A failure of that program, for people.
trait OrFailed<T> {
    fn or_failed(self, program: &str) -> Result<T, String>;
}

impl<T> OrFailed<T> for Result<T, Failure> {
    fn or_failed(self, program: &str) -> Result<T, String> {
        self.map_err(|failure| match failure {
            Failure::Absent => format!("{program} is not there; install the package iptables"),
            Failure::Busy(message) | Failure::Other(message) => message,
        })
    }
}

/// Takes rules out of a chain.
async fn remove(program: &str, (table, chain): (&str, &str), rules: &[Vec<String>]) -> Result<(), Failure> {
    for arguments in rules {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run(program, &[&["-t", table, "-D", chain], arguments.as_slice()].concat(), "").await?;
    }
    Ok(())
}

/// Docker's chain.
enum Chain {
    Absent,
    /// Docker's rules were flushed.
    Unused,
    Used,
}

/// Docker's chain, by the list of all: what is said of one that is not there is different in every version.
async fn dockers_chain(program: &str) -> Result<Chain, Failure> {
    let (table, chain) = DOCKERS;
    let listed = run(program, &["-t", table, "-S"], "").await?;
    // From FORWARD, or from a chain of the operator's between.
    let leads_there = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.windows(2).any(|pair| matches!(pair[0], "-j" | "-g") && pair[1] == chain)
    };
    Ok(match listed.lines().any(|line| line.strip_prefix("-N ") == Some(chain)) {
        false => Chain::Absent,
        true if listed.lines().any(leads_there) => Chain::Used,
        true => Chain::Unused,
    })
}

/// What a program prints; `input` is told to it.
async fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, Failure> {
    let lock: &[&str] = if arguments.contains(&"-t") { &["-w", LOCK] } else { &[] };
    let mut command = Command::new(program);
    command.args(lock).args(arguments).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let call = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may end without reading: what it then says counts.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let other = |message| Err(Failure::Other(message));
    let output = match tokio::time::timeout(CALL, call).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => return Err(Failure::Absent),
        Ok(Err(error)) => return other(format!("{program} cannot be started: {error}")),
        Err(_) => return Err(Failure::Busy(format!("{program} did not end within {} s", CALL.as_secs()))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let is_busy = HELD.iter().any(|held| said.contains(held));
    // The rest repeats what it was told.
    let said = said.lines().find(|line| !line.starts_with("# Warning") && !line.contains(WAITS)).unwrap_or_default();
    let said = crate::fault::shorten(said.trim());
    let message = format!("{program} {}: {said}", arguments.join(" "));
    Err(if is_busy { Failure::Busy(message) } else { Failure::Other(message) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    /// Packet filters of that name, each with its words on what it is told; what they were told is in the file `told`.
    pub(super) fn program(folder: &Path, name: &str, script: &str) -> String {
        let path = folder.join(name);
        let told = folder.join("told");
        std::fs::write(&path, format!("#!/bin/sh\necho \"${{0##*/}} $*\" >> {}\n{script}\n", told.display())).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Another test's thread may fork while it is open for writing, which makes it busy: wait until it runs.
        while std::process::Command::new(&path).stdin(Stdio::null()).output().is_err() {
            std::thread::yield_now();
        }
        std::fs::write(told, "").unwrap();
        path.display().to_string()
    }

    fn wanted() -> Vec<Rule> {
        let subnets = vec!["10.213.3.0/24".parse().unwrap()];
        rules::rules("root", &PacketFilter { subnets, ..Default::default() })
    }

    /// As a Docker with rules has it.
    const CHAIN: &str =
        "[ \"$*\" != '-w 10 -t filter -S' ] || printf '%s\\n' '-N DOCKER-USER' '-A FORWARD -j DOCKER-USER'";

    struct Bed(tempfile::TempDir);

    impl Bed {
        fn new() -> Bed {
            Bed(tempfile::tempdir().unwrap())
        }

        /// With the programs that were made.
        async fn update(&self, wanted: &[Rule]) -> (Result<(), String>, String) {
            let path = |name: &str| self.0.path().join(name).display().to_string();
            let (iptables, nft) = (path("iptables"), path("nft"));
            let programs = Programs { iptables: [(true, &iptables), (false, &iptables)], nft: &nft };
            let outcome = update_by(&programs, "root", wanted, &mut Behind::default()).await;
            (outcome.map(|_| ()), std::fs::read_to_string(self.0.path().join("told")).unwrap_or_default())
        }

        async fn with(&self, script: &str, wanted: &[Rule]) -> (Result<(), String>, String) {
            program(self.0.path(), "iptables", script);
            self.update(wanted).await
        }
    }

    #[tokio::test]
    async fn programs_that_are_not_there_are_named_with_their_package() {
        let bed = Bed::new();
        let error = bed.update(&wanted()).await.0.unwrap_err();
        assert!(error.starts_with("neither ") && error.ends_with("install the package iptables"), "{error}");
        assert_eq!(bed.update(&[]).await.0, Ok(()), "none is needed");
    }

    #[tokio::test]
    async fn failures_are_told_and_keep_nothing_else_from_being_done() {
        let bed = Bed::new();
        let only = |table: &str| format!("[ \"$4\" = {table} ] || {{ echo held >&2; exit 4; }}\n{CHAIN}");
        let (outcome, told) = bed.with(&only("filter"), &wanted()).await;
        assert!(outcome.unwrap_err().ends_with("-t nat -S POSTROUTING: held"));
        assert!(told.contains("-t filter -A DOCKER-USER"), "{told}");
        // Docker's own chain may be missing, and that is all that may be wrong with it.
        let (outcome, told) = bed.with("", &wanted()).await;
        assert_eq!(outcome, Ok(()));
        assert!(told.contains("-t nat -A POSTROUTING"), "{told}");
        let (outcome, told) = bed.with(&only("nat"), &wanted()).await;
        assert!(outcome.unwrap_err().ends_with("-t filter -S: held"));
        assert!(told.contains("-t nat -A POSTROUTING"), "{told}");
        // So is one that stays where none is wanted any more.
        let stays = format!(
            "{CHAIN}\n[ \"$5\" = -D ] && {{ echo held >&2; exit 4; }}
            echo '-A DOCKER-USER -d 10.0.0.0/8 -m comment --comment longshore:root:10.0.0.0/8 -j ACCEPT'"
        );
        let (outcome, _) = bed.with(&stays, &[]).await;
        assert!(outcome.unwrap_err().ends_with("held"));
    }

    #[tokio::test]
    async fn a_lock_that_another_holds_is_told_even_where_no_rule_is_wanted() {
        let bed = Bed::new();
        let held = "echo 'Another app is currently holding the xtables lock.' >&2; exit 4";
        for script in [held.to_owned(), format!("[ \"$4\" = filter ] || {{ {held}; }}\n{CHAIN}")] {
            let error = bed.with(&script, &[]).await.0.unwrap_err();
            assert!(error.ends_with("lock."), "{error}");
        }
        let waited = "echo 'Another app is currently holding the xtables lock; still 9s 0us time ahead' >&2";
        for before in ["", waited] {
            let script = format!("{before}\necho 'no such table' >&2; exit 3");
            assert_eq!(bed.with(&script, &[]).await.0, Ok(()), "there is nothing to be left");
        }
    }

    #[tokio::test]
    async fn rules_that_nothing_leads_to_are_told() {
        let bed = Bed::new();
        let flushed = CHAIN.replace(" '-A FORWARD -j DOCKER-USER'", "");
        let (outcome, told) = bed.with(&flushed, &wanted()).await;
        assert!(outcome.unwrap_err().ends_with("restart Docker"));
        assert!(told.contains("-t nat -A POSTROUTING") && !told.contains("-A DOCKER-USER"), "{told}");
        assert_eq!(bed.with(&flushed, &[]).await.0, Ok(()), "where there need be no rules, none are missed");
        let between = CHAIN.replace("'-A FORWARD -j", "'-A mine -i eth0 -g");
        let (outcome, told) = bed.with(&between, &wanted()).await;
        assert!(outcome == Ok(()) && told.contains("-A DOCKER-USER"), "{told}");
        // Docker was set to make its rules with nft, and left the chain.
        program(bed.0.path(), "nft", "case \"$*\" in *docker-bridges) ;; list*) exit 1 ;; esac");
        let (outcome, told) = bed.with(&flushed, &wanted()).await;
        assert!(outcome == Ok(()) && told.contains("nft -f -"), "{told}");
        // The table goes when none is wanted any more.
        program(bed.0.path(), "nft", "");
        let (outcome, told) = bed.with(&flushed, &[]).await;
        assert!(outcome == Ok(()) && told.contains("nft -f -"), "{told}");
    }

    #[tokio::test]
    async fn what_ours_were_moved_behind_is_kept_until_all_is_done() {
        let (bed, mut behind) = (Bed::new(), Behind::default());
        let subnets = ["10.213.3.0/24", "fd00:213:3::/64"];
        let filter = PacketFilter { subnets: subnets.map(|text| text.parse().unwrap()).to_vec(), ..Default::default() };
        let wanted = rules::rules("root", &filter);
        let moved = |subnet: &str| {
            let ours = format!("-A DOCKER-USER -d {subnet} -m comment --comment longshore:root:{subnet} -j ACCEPT");
            let drop = "-A DOCKER-USER -i eth0 -j DROP";
            format!("{CHAIN}\n[ \"$5 $6\" != '-S DOCKER-USER' ] || printf '%s\\n' '{ours}' '{drop}'")
        };
        let held = "echo 'Another app is currently holding the xtables lock.' >&2; exit 4".to_owned();
        let mut outcomes = Vec::new();
        for (ipv4, ipv6) in [(moved(subnets[0]), held), (CHAIN.to_owned(), moved(subnets[1]))] {
            let four = program(bed.0.path(), "iptables", &ipv4);
            let six = program(bed.0.path(), "ip6tables", &ipv6);
            let programs = Programs { iptables: [(true, &four), (false, &six)], nft: "/nowhere/nft" };
            outcomes.push(update_by(&programs, "root", &wanted, &mut behind).await);
        }
        assert!(outcomes[0].is_err(), "{outcomes:?}");
        let told = outcomes[1].clone().unwrap().unwrap();
        assert_eq!(told.matches("tables -A DOCKER-USER -i eth0 -j DROP").count(), 2, "{told}");
        assert_eq!(behind, Behind::default(), "it is told once");
    }

    #[tokio::test]
    async fn dockers_chain_may_be_in_the_other_kind_of_iptables() {
        let bed = Bed::new();
        program(bed.0.path(), "iptables-legacy", CHAIN);
        let (outcome, told) = bed.with("", &wanted()).await;
        assert_eq!(outcome, Ok(()));
        assert!(told.contains("iptables -w 10 -t nat -A POSTROUTING"), "{told}");
        assert!(told.contains("iptables-legacy -w 10 -t filter -A DOCKER-USER"), "{told}");
    }

    #[tokio::test]
    async fn where_docker_has_no_iptables_nft_has_the_rules_in_a_table_of_ours() {
        let bed = Bed::new();
        let kept = bed.0.path().join("kept");
        let nft = format!("case $1 in list) cat {0} ;; *) cat > {0} ;; esac", kept.display());
        let nft = format!("[ \"$1 $3\" != 'list ip6' ] || exit 1\n{nft}");
        program(bed.0.path(), "nft", &nft);
        assert_eq!(bed.update(&wanted()).await.0, Ok(()));
        let script = std::fs::read_to_string(&kept).unwrap();
        assert!(script.contains("ip saddr 10.213.3.0/24 ip daddr != 10.213.0.0/16 fib daddr type != local masquerade"));
        let told = bed.update(&wanted()).await.1;
        assert_eq!(told.matches("-f -").count(), 1, "what is there is left alone: {told}");
        // There is iptables, and no chain of Docker's in it.
        let (outcome, told) = bed.with("", &wanted()).await;
        assert!(outcome == Ok(()) && !told.contains("-A POSTROUTING"), "{told}");
        // Docker makes its rules with it.
        assert_eq!(bed.with(CHAIN, &wanted()).await.0, Ok(()));
        let script = std::fs::read_to_string(&kept).unwrap();
        assert!(script.contains("delete table ip longshore-root") && !script.contains("masquerade"), "{script}");
    }
}
