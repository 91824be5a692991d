//! Commands in containers.

use std::time::{Duration, Instant};

use futures::StreamExt;
use longshore_core::ports::exec::{ContainerExec, ExecError, ExecOutput, ExecRequest, Purpose};
use longshore_core::ports::runtime::ContainerRuntime;
use longshore_docker::DockerOptions;

use crate::world::World;

fn request(id: &str, command: &[&str], timeout: Duration) -> ExecRequest {
    ExecRequest {
        container_id: id.to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        timeout,
        output_limit: 1000,
        purpose: Purpose::Probe,
    }
}

async fn run(world: &World, id: &str, command: &[&str]) -> ExecOutput {
    run_for(world, id, command, Duration::from_secs(20)).await
}

async fn run_for(world: &World, id: &str, command: &[&str], time: Duration) -> ExecOutput {
    world.docker.exec(request(id, command, time)).await.unwrap()
}

/// Runs a command again and again until it ends well.
pub(crate) async fn until(world: &World, id: &str, command: &[&str]) {
    let end = Instant::now() + Duration::from_secs(60);
    while run(world, id, command).await.exit_code != Some(0) {
        assert!(Instant::now() < end, "{command:?} never ends well");
    }
}

/// How many processes are in a container, by the kernel's own count. Zombies of a container whose PID 1 does not reap
/// are that program's fault, and are left out unless `dead` is set.
fn processes(id: &str, dead: bool) -> usize {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(id)))
        .filter(|pid| {
            dead || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| !text.contains(") Z "))
        })
        .count()
}

/// Waits until so many processes are in a container: what was asked last has gone, and all has begun.
async fn until_there_are(id: &str, count: usize, dead: bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while processes(id, dead) != count {
        assert!(Instant::now() < end, "{} processes, not {count}", processes(id, dead));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn results() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let id = world.run(&sandbox, "app", &["sleep", "1000"]).await;
    let output = run(&world, &id, &["sh", "-c", "echo out; echo err >&2; exit 7"]).await;
    assert_eq!(output.exit_code, Some(7));
    let text = String::from_utf8(output.output).unwrap();
    assert!(text.contains("out\n") && text.contains("err\n"), "{text}");
    // Docker 20.10 says 126 of both.
    assert!(matches!(run(&world, &id, &["no-such-program"]).await.exit_code, Some(126 | 127)));
    assert_eq!(run(&world, &id, &["/etc"]).await.exit_code, Some(126));
    let flood = run(&world, &id, &["sh", "-c", "yes | head -n 500000"]).await;
    assert_eq!((flood.exit_code, flood.output.len()), (Some(0), 1000));

    world.docker.stop(&id, Duration::ZERO).await.unwrap();
    let ended = world.docker.exec(request(&id, &["true"], Duration::from_secs(5))).await;
    assert_eq!(ended, Err(ExecError::NotRunning { container_id: id.clone() }));
    world.docker.remove(&id).await.unwrap();
    let gone = world.docker.exec(request(&id, &["true"], Duration::from_secs(5))).await;
    assert_eq!(gone, Err(ExecError::NotRunning { container_id: id }));
}

/// Times a command out a hundred times: it has children in the background, ignores signals, and has a grandchild in a
/// process group of its own, a child in a session of its own, one with children there, an orphan that has closed its output, and one
/// that has cleared its environment.
async fn hundred(world: &World, id: &str) {
    let script = "trap '' TERM INT HUP; echo begun; sleep 1000 & (set -m; sleep 1000 &)
        setsid sleep 1000 & setsid sh -c 'sleep 1000 & setsid sleep 1000 & sleep 1000' &
        (setsid sleep 1000 < /dev/null > /dev/null 2>&1 &) ; (env -i setsid sleep 1000 &) ; sleep 1000";
    let command = ["sh", "-c", script];
    let mut time = Duration::from_millis(300);
    loop {
        let results: Vec<_> = futures::stream::iter(0..100)
            .map(|_| world.docker.exec(request(id, &command, time)))
            .buffer_unordered(8)
            .collect()
            .await;
        for result in &results {
            assert_eq!(result.as_ref().unwrap().exit_code, None);
        }
        if results.iter().any(|result| result.as_ref().unwrap().output == b"begun\n") {
            return;
        }
        // On a busy machine none may have begun in that time.
        assert!(time < Duration::from_secs(5), "none ever begins");
        time *= 3;
    }
}

#[tokio::test]
async fn a_hundred_timeouts_leave_nothing() {
    let Some(world) = World::new().await else { return };
    let mut config = world.sandbox(0);
    config.share_process_namespace = true;
    let sandbox = world.docker.create_sandbox(&config).await.unwrap();
    world.docker.start(&sandbox).await.unwrap();
    // PID 1 of the second is our pause program, which reaps: there not even zombies are left.
    for shared in [false, true] {
        // What the container itself started is spared, in whatever session it is and whoever has adopted it.
        let own = "setsid sleep 1000 & (setsid sleep 1000 &) ; touch /tmp/begun; sleep 1000";
        let mut config = world.container(&sandbox, if shared { "a" } else { "b" }, &["sh", "-c", own]);
        config.share_process_namespace = shared;
        let id = world.docker.create_container(&config).await.unwrap();
        world.docker.start(&id).await.unwrap();
        until(&world, &id, &["test", "-e", "/tmp/begun"]).await;
        // Three times `sleep`: the shell becomes the last.
        until_there_are(&id, 3, shared).await;
        hundred(&world, &id).await;
        // On a busy machine the last of them are killed after the answer.
        until_there_are(&id, 3, shared).await;
        assert_eq!(run(&world, &id, &["true"]).await.exit_code, Some(0));
    }
}

#[tokio::test]
async fn one_that_forks_while_it_is_killed_leaves_nothing() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let id = world.run(&sandbox, "app", &["sleep", "1000"]).await;
    let before = processes(&id, false);
    // Nothing tells what these are of but their parent, while it lives.
    let script = "trap '' TERM; while :; do env -i setsid sleep 1000 < /dev/null > /dev/null 2>&1 & usleep 2000; done";
    for _ in 0..3 {
        let output = run_for(&world, &id, &["sh", "-c", script], Duration::from_millis(300)).await;
        assert_eq!(output.exit_code, None);
        until_there_are(&id, before, false).await;
    }
}

#[tokio::test]
async fn hooks_hold_up_no_probe() {
    let options = DockerOptions { execs: 1, ..DockerOptions::default() };
    let Some(world) = World::with(options).await else { return };
    let sandbox = world.running_sandbox().await;
    let id = world.run(&sandbox, "app", &["sleep", "1000"]).await;
    let hooks: Vec<_> = (0..3)
        .map(|_| {
            let hook = request(&id, &["sleep", "1000"], Duration::from_secs(1000));
            let (docker, hook) = (world.docker.clone(), ExecRequest { purpose: Purpose::Hook, ..hook });
            tokio::spawn(async move { docker.exec(hook).await })
        })
        .collect();
    until_there_are(&id, 4, false).await;
    assert_eq!(run(&world, &id, &["true"]).await.exit_code, Some(0));
    assert!(hooks.iter().all(|hook| !hook.is_finished()));
}

#[tokio::test]
async fn what_the_container_starts_meanwhile_is_spared_though_it_writes_where_the_command_does() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let own = "while :; do sleep 0.1 || touch /tmp/killed; touch /tmp/begun; done";
    let id = world.run(&sandbox, "app", &["sh", "-c", own]).await;
    until(&world, &id, &["test", "-e", "/tmp/begun"]).await;
    let script = "exec > /proc/1/fd/1 2>&1; (env -i setsid sleep 1000 &) ; sleep 1000";
    for _ in 0..3 {
        let output = run_for(&world, &id, &["sh", "-c", script], Duration::from_millis(300)).await;
        assert_eq!(output.exit_code, None);
    }
    assert_eq!(run(&world, &id, &["test", "!", "-e", "/tmp/killed"]).await.exit_code, Some(0));
}

#[tokio::test]
async fn times_of_nothing_and_callers_that_leave() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let id = world.run(&sandbox, "app", &["sleep", "1000"]).await;
    let before = processes(&id, false);
    let output = world.docker.exec(request(&id, &["sleep", "1000"], Duration::ZERO)).await.unwrap();
    assert_eq!(output.exit_code, None);
    // The caller leaves once the command runs, long before its time is over.
    let end = Instant::now() + Duration::from_secs(60);
    let (docker, asked) = (world.docker.clone(), request(&id, &["sleep", "1000"], Duration::from_secs(8)));
    let caller = tokio::spawn(async move { docker.exec(asked).await });
    while processes(&id, false) == before {
        assert!(Instant::now() < end, "the command never ran");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    caller.abort();
    assert!(caller.await.is_err_and(|error| error.is_cancelled()), "the caller left before the command's end");
    while processes(&id, false) != before {
        assert!(Instant::now() < end, "a command outlived its caller");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_child_that_keeps_the_output_open_is_ended() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let id = world.run(&sandbox, "app", &["sleep", "1000"]).await;
    let before = processes(&id, false);
    let begin = Instant::now();
    let asked = request(&id, &["sh", "-c", "sleep 1000 & exit 0"], Duration::from_secs(1));
    let exit_code = world.docker.exec(asked).await.unwrap().exit_code;
    // Docker may wait for the child's output or not; either way there is an answer in time.
    assert!(matches!(exit_code, None | Some(0)));
    assert!(begin.elapsed() < Duration::from_secs(60));
    if exit_code.is_none() {
        until_there_are(&id, before, false).await;
    }
}

#[tokio::test]
async fn others_containers_are_out_of_reach() {
    let Some(world) = World::new().await else { return };
    let Some(other) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let id = world.run(&sandbox, "app", &["sleep", "1000"]).await;
    let result = other.docker.exec(request(&id, &["true"], Duration::from_secs(5))).await;
    assert!(matches!(result, Err(ExecError::NotRunning { .. })));
}
