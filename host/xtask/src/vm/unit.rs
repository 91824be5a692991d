//! The unit that is shipped, `examples/longshore.service`, as it is: installed in the emulated machine, and what it says
//! of hangs and wrong configurations kept by its systemd. What a test needs beside it are drop-ins.

use anyhow::{Result, ensure};

use super::machine::{LONG, Machine, SHORT};

/// Its name, in `examples` and in the payload.
pub(super) const FILE: &str = "longshore.service";

/// A drop-in of these tests.
const DROP_IN: &str = "/etc/systemd/system/longshore.service.d/test.conf";

/// What runs in Docker, and since when: one line a container.
pub(super) const RUNNING: &str =
    "docker ps -q --no-trunc | sort | xargs -r docker inspect -f '{{.Id}} {{.State.StartedAt}}'";

/// Puts the program and the unit in their places, as the unit's first lines say.
pub(super) fn install(machine: &Machine) -> Result<()> {
    let script = format!(
        "mkdir -p /etc/kubernetes/manifests && cp /payload/{FILE} /etc/systemd/system/ && \
         if test -e /payload/longshore; then cp /payload/longshore /usr/local/bin/; fi && systemctl daemon-reload"
    );
    machine.run(&script, SHORT).map(drop)
}

/// The agent hangs: systemd ends and restarts it, and no pod notices.
pub(super) fn watched(machine: &Machine) -> Result<()> {
    let said = show(machine, "Type WatchdogUSec Delegate KillMode NotifyAccess")?;
    ensure!(said == "notify 2min yes process main", "the unit is not the one that is shipped: {said}");
    with(machine, "WatchdogSec=20")?;
    machine.run("systemctl restart longshore", LONG)?;
    machine.until("longshore get pods > /dev/null", LONG)?;
    let (before, agent) = (machine.run(RUNNING, SHORT)?, show(machine, "MainPID")?);
    machine.run(&format!("kill -STOP {agent}"), SHORT)?;
    let again = format!(
        "test \"$(systemctl show -P NRestarts longshore)\" -ge 1 && test \"$(systemctl show -P MainPID longshore)\" != \
         {agent} && systemctl is-active longshore && longshore get pods > /dev/null"
    );
    machine.until(&again, LONG)?;
    machine.run("journalctl -u longshore --no-pager -o cat | grep -i 'watchdog timeout'", SHORT)?;
    let after = machine.run(RUNNING, SHORT)?;
    ensure!(!before.is_empty() && before == after, "pods noticed; before:\n{before}after:\n{after}");
    without(machine)
}

/// The configuration is wrong: the agent ends with 78, and is not tried again. Nor is it of its pods' concern.
pub(super) fn wrong_configuration(machine: &Machine) -> Result<()> {
    let before = machine.run(RUNNING, SHORT)?;
    with(machine, "ExecStart=\nExecStart=/usr/local/bin/longshore run --max-pods=many")?;
    machine.run("! systemctl restart longshore", LONG)?;
    let state = "ActiveState ExecMainStatus NRestarts";
    machine.until("test \"$(systemctl show -P ActiveState longshore)\" = failed", SHORT)?;
    // Longer than RestartSec: it would have been started again by now.
    machine.run("sleep 4", SHORT)?;
    let said = show(machine, state)?;
    ensure!(said == "failed 78 0", "the service is not left alone ({state}): {said}");
    without(machine)?;
    machine.run("systemctl restart longshore", LONG)?;
    machine.until("longshore get pods > /dev/null", LONG)?;
    let after = machine.run(RUNNING, SHORT)?;
    ensure!(before == after, "pods noticed; before:\n{before}after:\n{after}");
    Ok(())
}

/// Properties of the service, in that order.
pub(super) fn show(machine: &Machine, properties: &str) -> Result<String> {
    let script = format!("for name in {properties}; do systemctl show -P $name longshore; done | xargs");
    Ok(machine.run(&script, SHORT)?.trim().to_owned())
}

/// Adds lines to the service.
fn with(machine: &Machine, lines: &str) -> Result<()> {
    let script = format!("mkdir -p $(dirname {DROP_IN}) && printf '[Service]\\n{lines}\\n' > {DROP_IN}");
    machine.run(&format!("{script} && systemctl daemon-reload"), SHORT).map(drop)
}

fn without(machine: &Machine) -> Result<()> {
    machine.run(&format!("rm -f {DROP_IN} && systemctl daemon-reload"), SHORT).map(drop)
}
