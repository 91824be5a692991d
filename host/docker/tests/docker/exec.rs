//! Commands in containers.

use std::time::{Duration, Instant};

use futures::StreamExt;
use longshore_core::ports::exec::{ContainerExec, ExecError, ExecOutput, ExecRequest};
use longshore_core::ports::runtime::ContainerRuntime;

use crate::world::World;

fn request(id: &str, command: &[&str], timeout: Duration) -> ExecRequest {
    ExecRequest {
        container_id: id.to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        timeout,
        output_limit: 1000,
    }
}

async fn run(world: &World, id: &str, command: &[&str]) -> ExecOutput {
    world.docker.exec(request(id, command, Duration::from_secs(20))).await.unwrap()
}

/// Runs a command again and again until it ends well.
pub(crate) async fn until(world: &World, id: &str, command: &[&str]) {
    let end = Instant::now() + Duration::from_secs(20);
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
/// process group of its own.
async fn hundred(world: &World, id: &str) {
    let command = ["sh", "-c", "trap '' TERM INT HUP; echo begun; sleep 1000 & (set -m; sleep 1000 &) ; sleep 1000"];
    let results: Vec<_> = futures::stream::iter(0..100)
        .map(|_| world.docker.exec(request(id, &command, Duration::from_millis(300))))
        .buffer_unordered(8)
        .collect()
        .await;
    for result in &results {
        assert_eq!(result.as_ref().unwrap().exit_code, None);
    }
    assert!(results.iter().any(|result| result.as_ref().unwrap().output == b"begun\n"));
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
        let mut config = world.container(&sandbox, if shared { "a" } else { "b" }, &["sleep", "1000"]);
        config.share_process_namespace = shared;
        let id = world.docker.create_container(&config).await.unwrap();
        world.docker.start(&id).await.unwrap();
        let before = processes(&id, shared);
        hundred(&world, &id).await;
        assert_eq!(processes(&id, shared), before, "processes were left in the container");
        assert_eq!(run(&world, &id, &["true"]).await.exit_code, Some(0));
    }
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
    let end = Instant::now() + Duration::from_secs(20);
    let (docker, asked) = (world.docker.clone(), request(&id, &["sleep", "1000"], Duration::from_secs(3)));
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
    let output = world.docker.exec(request(&id, &["sh", "-c", "sleep 1000 & exit 0"], Duration::from_secs(1))).await;
    // Docker may wait for the child's output or not; either way there is an answer in time.
    assert!(matches!(output.unwrap().exit_code, None | Some(0)));
    assert!(begin.elapsed() < Duration::from_secs(10));
    if begin.elapsed() > Duration::from_secs(1) {
        assert_eq!(processes(&id, false), before);
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
