//! Rules of ours in the node's packet filter, by the `iptables` programs that Docker itself uses. It must not decide what
//! they are (`longshore_core::network::rules`), and touches none without our mark.

use std::process::Stdio;
use std::time::Duration;

use longshore_core::cidr::Cidr;
use longshore_core::network::rules::{self, CHAINS, Rule};
use tokio::process::Command;

/// One call; others may hold the lock for a while.
const CALL: Duration = Duration::from_secs(20);
/// Seconds that a call waits for the lock.
const LOCK: &str = "10";

/// Makes the rules for these subnets, and no others of ours, be there.
pub(crate) async fn update(root: &str, subnets: &[Cidr], unmasqueraded: &[Cidr]) -> Result<(), String> {
    let wanted = rules::rules(root, subnets, unmasqueraded);
    for (ipv4, program) in [(true, "iptables"), (false, "ip6tables")] {
        let of_family: Vec<Rule> = wanted.iter().filter(|rule| rule.ipv4 == ipv4).cloned().collect();
        for (table, chain) in CHAINS {
            let updated = chain_updated(root, program, table, chain, &of_family).await;
            // Where no rule is wanted, there need be no filter; and Docker makes its own chain or does without it.
            if let Err(error) = updated
                && !of_family.is_empty()
                && table == "nat"
            {
                return Err(error);
            }
        }
    }
    Ok(())
}

async fn chain_updated(root: &str, program: &str, table: &str, chain: &str, wanted: &[Rule]) -> Result<(), String> {
    let listed = run(program, &["-t", table, "-S", chain]).await?;
    let changes = rules::changes(root, chain, wanted, &listed);
    for arguments in &changes.remove {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run(program, &[&["-t", table, "-D", chain], arguments.as_slice()].concat()).await?;
    }
    for rule in &changes.add {
        let how = if rule.first { "-I" } else { "-A" };
        let arguments: Vec<&str> = rule.arguments.iter().map(String::as_str).collect();
        let comment = ["-m", "comment", "--comment", &rule.comment];
        run(program, &[&["-t", table, how, chain], comment.as_slice(), arguments.as_slice()].concat()).await?;
        tracing::info!(table, chain, rule = rule.arguments.join(" "), "the packet filter has a new rule");
    }
    Ok(())
}

async fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let call =
        Command::new(program).args(["-w", LOCK]).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(CALL, call).await {
        Ok(output) => output.map_err(|error| format!("{program} cannot be started: {error}"))?,
        Err(_) => return Err(format!("{program} did not end within {} s", CALL.as_secs())),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = crate::fault::shorten(String::from_utf8_lossy(&output.stderr).trim());
    Err(format!("{program} {}: {said}", arguments.join(" ")))
}
