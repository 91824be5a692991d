//! What is tested in the emulated machine: a selection of the end-to-end binary, real reboots, and what
//! only such a machine runs short of.

use std::{path::Path, time::Duration};

use anyhow::Result;

use super::{
    alone, clock, fill,
    image::{self, Image},
    joined::{Joined, STATE_KEY},
    machine::{LONG, Machine, SHORT},
    newer, power, short, unit,
};
use crate::{
    cluster::{self, Kubernetes},
    docker::{self, Flavor},
    place::Place,
    report::{Outcome, Report, once_more},
    test::{by_name, counted, suffix},
};

/// Names of the end-to-end tests that run here, as libtest's filters. Each takes five to ten times longer than on
/// the machine itself, so it is a selection.
const SELECTION: &[&str] = &[
    "start_a_pod",
    "start_hosts",
    "probes_exec",
    "probes_that_time_out",
    "volumes_empty_dirs",
    "restart_a_killed",
    "adoption_keeps",
    "adoption_does_not_run",
    "qos",
    "oom_scores",
    "oom_of_a_container",
    "apparmor",
    "node_logs",
];

/// Docker is up.
pub(super) const ANSWERS: &str = "docker version --format '{{.Server.Version}}'";

/// What the tests multiply their time limits by.
const SLOWNESS: &str = "10";

/// Ten minutes on a machine that does other things meanwhile.
const END_TO_END: Duration = Duration::from_secs(1800);

/// What is run, in this order.
const PARTS: [&str; 2] = ["virtual machine: end to end", "virtual machine: off and on again, with logind"];
/// What takes many minutes, after that.
const ALONE: [&str; 3] =
    ["virtual machine: clock steps", "virtual machine: a power cut", "virtual machine: end to end on Docker 29"];
/// And of a machine that joined a cluster.
const IN_CLUSTER: [&str; 4] = [
    "virtual machine: short of memory",
    "virtual machine: a full disk",
    "virtual machine: boots without the API server",
    "virtual machine: boots without the API server and a state key",
];

/// The parts whose names contain `only`; all without it.
fn chosen(only: Option<&str>) -> Result<Vec<&'static str>> {
    let parts = PARTS.into_iter().chain(ALONE).chain(IN_CLUSTER);
    let chosen: Vec<&str> = parts.clone().filter(|name| only.is_none_or(|only| name.contains(only))).collect();
    anyhow::ensure!(
        !chosen.is_empty(),
        "--only {}: no part has that in its name; there are: {}",
        only.unwrap_or_default(),
        parts.map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
    );
    Ok(chosen)
}

/// Boots the machine and runs everything in it, or the parts whose names contain `only`; what takes many
/// minutes or needs a cluster where `long` is set.
///
/// # Errors
/// When interrupted, or when there is no such part.
pub(crate) fn test(place: &Place, report: &mut Report, e2e: &Path, only: Option<&str>, long: bool) -> Result<()> {
    let chosen = chosen(only)?;
    let Some(image) = report.obtain("virtual machine: image", || image::ensure(place))? else { return Ok(()) };
    let newer = match long && chosen.contains(&ALONE[2]) {
        true => report.obtain("virtual machine: Docker 29", || docker::twenty_nine(place))?,
        false => None,
    };
    let mut machine = None;
    report.step("virtual machine: boot", || {
        let payload = place.work().join("vm/payload");
        let program = payload.join("e2e");
        fill(place, &payload, &[&place.target.join("debug/longshore")])?;
        image::copy_stripped(e2e, &program)?;
        if let Some(programs) = newer.as_ref().and_then(|newer| newer.programs.as_ref()) {
            newer::pack(programs, &payload)?;
        }
        let booted = Machine::boot(place, &image, &payload)?;
        prepare(&booted)?;
        machine = Some(booted);
        Ok(Outcome::NOTHING)
    })?;
    let Some(machine) = machine else { return Ok(()) };
    report.step("virtual machine: systemd, cgroup v2, AppArmor", || machine_is_as_meant(&machine))?;
    let end_to_end = || end_to_end(place, &machine, "vm");
    let off_and_on = || explained(&machine, off_and_on(place, &image, &machine));
    let parts: [&dyn Fn() -> Result<Outcome>; 2] = [&end_to_end, &off_and_on];
    for (name, part) in PARTS.into_iter().zip(parts).filter(|(name, _)| chosen.contains(name)) {
        report.step(name, part)?;
    }
    if !long {
        report.skip("virtual machine: clock steps, a power cut, Docker 29, and in a cluster", "not asked for (--long)");
        return Ok(());
    }
    let clock = || explained(&machine, clock::steps(&machine));
    let power_cut = || explained(&machine, power_cut(place, &image, &machine));
    let on_newer = || on_newer(place, &machine, newer.as_ref());
    let parts: [&dyn Fn() -> Result<Outcome>; 3] = [&clock, &power_cut, &on_newer];
    for (name, part) in ALONE.into_iter().zip(parts).filter(|(name, _)| chosen.contains(name)) {
        report.step(name, part)?;
    }
    in_cluster(place, report, &machine, &chosen)
}

/// The selection, with the Docker that runs there; its name is for the log.
fn end_to_end(place: &Place, machine: &Machine, docker: &str) -> Result<Outcome> {
    once_more(&|again| {
        let chosen = if again.is_empty() { SELECTION.join(" ") } else { by_name(again).collect::<Vec<_>>().join(" ") };
        let script = format!(
            "cd /tmp && DOCKER_HOST=unix:///var/run/docker.sock LONGSHORE_BIN=/usr/local/bin/longshore \
             LONGSHORE_TEST_DOCKER={docker} LONGSHORE_TEST_IMAGE=longshore.dev/busybox:1 \
             LONGSHORE_TEST_EXAMPLE_IMAGE=longshore.dev/example:1 LONGSHORE_TEST_TARS=/payload \
             LONGSHORE_TEST_SLOWNESS={SLOWNESS} /payload/e2e {chosen} 2>&1"
        );
        counted(place, &format!("{docker}-end-to-end{}", suffix(again)), &mut machine.ssh(&script), END_TO_END)
    })
}

/// The same with Docker 29, if that could be had.
fn on_newer(place: &Place, machine: &Machine, newer: Option<&Flavor>) -> Result<Outcome> {
    match newer {
        Some(_) => newer::with(machine, || end_to_end(place, machine, "vm-docker-29")),
        None => Ok(Outcome::skipped("there is no Docker 29")),
    }
}

/// The parts that need an API server, and its absence.
fn in_cluster(place: &Place, report: &mut Report, machine: &Machine, chosen: &[&str]) -> Result<()> {
    if !IN_CLUSTER.iter().any(|part| chosen.contains(part)) {
        return Ok(());
    }
    let flags = [short::EVICTION, &[STATE_KEY]].concat();
    let mut joined = None;
    report.step("virtual machine: joins a cluster", || {
        let kubernetes = Kubernetes::find(place, cluster::KUBERNETES)?;
        let started = Joined::start(place, &kubernetes, machine, &flags);
        joined = Some(started.or_else(|error| explained(machine, Err(error)))?);
        Ok(Outcome::PASSED)
    })?;
    let Some(mut joined) = joined else { return Ok(()) };
    let mut run = |part: &str, check: &dyn Fn(&mut Joined<'_>) -> Result<Outcome>| -> Result<()> {
        if chosen.contains(&part) {
            report.step(part, || explained(machine, check(&mut joined)))?;
        }
        Ok(())
    };
    run(IN_CLUSTER[0], &|joined| short::memory(joined))?;
    run(IN_CLUSTER[1], &short::disk)?;
    run(IN_CLUSTER[2], &alone::with_a_key)?;
    run(IN_CLUSTER[3], &|joined| alone::without_a_key(joined, short::EVICTION))
}

/// With the end of longshore's journal where something failed.
fn explained<T>(machine: &Machine, checked: Result<T>) -> Result<T> {
    checked.map_err(|error| {
        let journal = machine.run("journalctl -u longshore -n 60 --no-pager -o cat", SHORT).unwrap_or_default();
        error.context(format!("longshore's journal ends:\n{journal}"))
    })
}

fn prepare(machine: &Machine) -> Result<()> {
    unit::install(machine)?;
    machine.until(ANSWERS, LONG)?;
    import_images(machine)
}

/// Puts the images into the Docker that runs there.
pub(super) fn import_images(machine: &Machine) -> Result<()> {
    for (tar, image) in [("busybox", "longshore.dev/busybox:1"), ("example", "longshore.dev/example:1")] {
        let import = format!("docker import -c 'ENV PATH=/bin' -c 'CMD [\"sh\"]' /payload/{tar}.tar {image}");
        machine.run(&import, LONG)?;
    }
    Ok(())
}

/// The machine is what it is for; otherwise all that follows proves nothing.
fn machine_is_as_meant(machine: &Machine) -> Result<Outcome> {
    for check in [
        "test \"$(stat -fc %T /sys/fs/cgroup)\" = cgroup2fs",
        "docker info --format '{{.CgroupDriver}}' | grep -qx systemd",
        "docker info --format '{{.SecurityOptions}}' | grep -q apparmor",
        "test \"$(cat /proc/1/comm)\" = systemd",
    ] {
        machine.run(check, SHORT)?;
    }
    Ok(Outcome::PASSED)
}

/// A service and a job beside pods that end in order; at the next boot the service is there again and the job has not run
/// again.
fn off_and_on(place: &Place, image: &Image, machine: &Machine) -> Result<Outcome> {
    let write = format!(
        "cat > /etc/kubernetes/manifests/.pods <<'END'\n{PODS}END\nmv /etc/kubernetes/manifests/.pods /etc/kubernetes/manifests/pods.yaml"
    );
    machine.run(&write, SHORT)?;
    machine.run("systemctl enable --now longshore", LONG)?;
    let name = machine.run("hostname", SHORT)?;
    let name = name.trim();
    let settled = format!(
        "longshore get pods -A -o json > /tmp/pods.json && \
         test \"$(docker ps -q --filter label=io.kubernetes.pod.name=service-{name} --filter label=io.kubernetes.docker.type=container | wc -l)\" = 1 && \
         test \"$(cat /srv/runs)\" = ran && longshore get pods -A | tee /tmp/table | grep service- | grep -q '1/1' && \
         grep job- /tmp/table | grep -q Completed && cat /tmp/table"
    );
    machine.until(&settled, LONG)?;

    // What only such a machine shows: the systemd driver's slices, scores below zero, the profile.
    let pid = format!(
        "$(docker inspect -f '{{{{.State.Pid}}}}' $(docker ps -q --filter label=io.kubernetes.pod.name=service-{name} --filter label=io.kubernetes.docker.type=container))"
    );
    machine.run(&format!("grep -q 'kubepods.*slice' /proc/{pid}/cgroup"), SHORT)?;
    machine.run(&format!("test \"$(cat /proc/{pid}/oom_score_adj)\" = -997"), SHORT)?;
    machine.run(&format!("grep -q 'docker-default (enforce)' /proc/{pid}/attr/current"), SHORT)?;

    unit::watched(machine)?;
    unit::wrong_configuration(machine)?;
    machine.until(&settled, LONG)?;

    power::off_and_on(place, image, machine)?;
    machine.until("systemctl is-active docker longshore", LONG)?;
    machine.until(&settled, LONG)?;
    Ok(Outcome { passed: 7, ..Outcome::PASSED })
}

fn power_cut(place: &Place, image: &Image, machine: &Machine) -> Result<Outcome> {
    machine.run("systemctl enable --now longshore", LONG)?;
    power::cut(place, image, machine)?;
    Ok(Outcome::PASSED)
}

/// Guaranteed, so that its score is below zero; and a job that leaves a line whenever it runs.
const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: service}
spec:
  containers:
    - name: web
      image: longshore.dev/example:1
      imagePullPolicy: Never
      command: [httpd, -f, -p, '8080', -h, /www]
      resources: {limits: {cpu: 100m, memory: 64Mi}}
      readinessProbe: {tcpSocket: {port: 8080}, timeoutSeconds: 10}
---
apiVersion: v1
kind: Pod
metadata: {name: job}
spec:
  restartPolicy: Never
  volumes: [{name: host, hostPath: {path: /srv, type: Directory}}]
  containers:
    - name: job
      image: longshore.dev/busybox:1
      imagePullPolicy: Never
      command: [sh, -c, echo ran >> /host/runs]
      volumeMounts: [{name: host, mountPath: /host}]
";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_there_is_not_is_an_error() {
        assert_eq!(chosen(None).unwrap().len(), PARTS.len() + ALONE.len() + IN_CLUSTER.len());
        assert_eq!(chosen(Some("logind")).unwrap(), ["virtual machine: off and on again, with logind"]);
        let error = chosen(Some("restart")).unwrap_err().to_string();
        assert!(error.contains("--only restart") && error.contains("with logind"), "{error}");
    }
}
