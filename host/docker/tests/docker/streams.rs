//! Streams of commands and of containers.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use longshore_core::ports::runtime::{ContainerRuntime, RuntimeError};
use longshore_core::ports::streams::{Attached, ContainerStreams, StreamedExec, Wants};

use crate::world::World;

const ALL: Wants = Wants { stdin: true, stdout: true, stderr: true, tty: false };

async fn start(world: &World, id: &str, wants: Wants, command: &[&str]) -> Attached {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    world.docker.exec_streams(&StreamedExec { container_id: id.to_owned(), command, wants }).await.unwrap()
}

async fn text(read: Option<longshore_core::ports::streams::Read>) -> String {
    let mut bytes = Vec::new();
    read.unwrap().read_to_end(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn streams_are_apart_and_codes_come_through() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let id = world.run(&sandbox, "app", &["sleep", "1000"]).await;
    let own = Wants { stdin: false, ..ALL };
    let it = start(&world, &id, own, &["sh", "-c", "echo out; echo err >&2; exit 7"]).await;
    let (out, err) = tokio::join!(text(it.stdout), text(it.stderr));
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    assert_eq!(it.control.exit_code().await.unwrap(), Some(7));

    let it = start(&world, &id, own, &["no-such-program"]).await;
    let (out, err) = tokio::join!(text(it.stdout), text(it.stderr));
    assert!((out + &err).contains("no-such-program"));
    assert!(matches!(it.control.exit_code().await.unwrap(), Some(126 | 127)));

    // No tail is lost, and a half-close ends the stdin while the output goes on.
    let mut it = start(&world, &id, ALL, &["cat"]).await;
    let mut stdin = it.stdin.take().unwrap();
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (copy, mut back) = (sent.clone(), Vec::new());
    let mut stdout = it.stdout.take().unwrap();
    tokio::join!(
        async move {
            stdin.write_all(&copy).await.unwrap();
            stdin.close().await.unwrap();
        },
        async { stdout.read_to_end(&mut back).await.unwrap() }
    );
    assert!(back == sent);
    assert_eq!(it.control.exit_code().await.unwrap(), Some(0));

    // A terminal: its size, and everything in one stream.
    let wants = Wants { stdin: true, stdout: true, stderr: false, tty: true };
    let mut it = start(&world, &id, wants, &["sh", "-c", "read line; stty size; echo got $line"]).await;
    it.control.resize(123, 45).await.unwrap();
    let mut stdin = it.stdin.take().unwrap();
    stdin.write_all(b"word\n").await.unwrap();
    let said = text(it.stdout.take()).await;
    assert!(said.contains("45 123") && said.contains("got word"), "{said}");
    assert_eq!(it.control.exit_code().await.unwrap(), Some(0));

    // Whoever leaves ends the stdin.
    let it = start(&world, &id, ALL, &["sh", "-c", "cat >/dev/null; touch /tmp/ended"]).await;
    drop(it);
    crate::exec::until(&world, &id, &["test", "-e", "/tmp/ended"]).await;

    // With a terminal that is the shell's own end, and that of what runs in its foreground.
    let wants = Wants { stdin: true, stdout: true, stderr: false, tty: true };
    let mut it = start(&world, &id, wants, &["sh", "-i"]).await;
    it.stdin.as_mut().unwrap().write_all(b"echo $$ >/tmp/shell; sleep 4321\n").await.unwrap();
    crate::exec::until(&world, &id, &["sh", "-c", "grep -q '43[2]1' /proc/[0-9]*/cmdline"]).await;
    drop(it);
    let over = "test ! -e /proc/$(cat /tmp/shell) && ! grep -q '43[2]1' /proc/[0-9]*/cmdline";
    crate::exec::until(&world, &id, &["sh", "-c", over]).await;

    assert!(world.docker.process_id(&id).await.unwrap() > 1);
    world.docker.stop(&id, Duration::ZERO).await.unwrap();
    let wants = own;
    let exec = StreamedExec { container_id: id.clone(), command: vec!["true".to_owned()], wants };
    assert!(
        matches!(world.docker.exec_streams(&exec).await, Err(RuntimeError::Failed { message, .. }) if message.contains("is not running"))
    );
    assert!(world.docker.attach(&id, own).await.is_err());
    assert!(world.docker.process_id(&id).await.is_err());
    world.docker.remove(&id).await.unwrap();
    assert!(matches!(world.docker.exec_streams(&exec).await, Err(RuntimeError::NotFound { .. })));
}

#[tokio::test]
async fn a_command_that_closes_its_outputs_is_waited_for() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let id = world.run(&sandbox, "app", &["sleep", "1000"]).await;
    let own = Wants { stdin: false, ..ALL };
    let it = start(&world, &id, own, &["sh", "-c", "exec >&- 2>&-; sleep 1; exit 5"]).await;
    tokio::join!(text(it.stdout), text(it.stderr));
    assert_eq!(it.control.exit_code().await.unwrap(), Some(5));
}

#[tokio::test]
async fn attachments_see_what_comes() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let id = world
        .run(&sandbox, "app", &["sh", "-c", "while ! test -e /tmp/go; do sleep 0.05; done; echo late; exit 3"])
        .await;
    let it = world.docker.attach(&id, Wants { stdin: false, ..ALL }).await.unwrap();
    assert!(it.stdin.is_none());
    // It has no stdin: what comes for it goes nowhere.
    let mut talker = world.docker.attach(&id, ALL).await.unwrap();
    talker.stdin.as_mut().unwrap().write_all(&[b'x'; 1 << 20]).await.unwrap();
    assert_eq!(it.control.exit_code().await.unwrap(), None);
    crate::exec::until(&world, &id, &["touch", "/tmp/go"]).await;
    let (out, _err) = tokio::join!(text(it.stdout), text(it.stderr));
    assert_eq!(out, "late\n");
    talker.stdin.as_mut().unwrap().close().await.unwrap();
    let (out, _err) = tokio::join!(text(talker.stdout), text(talker.stderr));
    assert_eq!(out, "late\n");
}

/// Docker waits two seconds for whoever takes the output of what has ended, and holds 1 MB meanwhile: the rest would be in pipes
/// that it lets go of. (What is so much that it keeps its process from ending until it is read is another matter.)
#[tokio::test]
async fn a_reader_that_pauses_has_all_of_it() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let id = world.run(&sandbox, "app", &["sleep", "1000"]).await;
    let own = Wants { stdin: false, ..ALL };
    let terminal = Wants { stdin: false, stdout: true, stderr: false, tty: true };
    let mut outputs = Vec::new();
    for n in (1_000_000..1_600_000).step_by(50_000) {
        for wants in [own, terminal] {
            let it = start(&world, &id, wants, &["head", "-c", &n.to_string(), "/dev/zero"]).await;
            outputs.push((n, it));
        }
    }
    for n in [1_100_000, 1_200_000, 1_300_000, 1_400_000] {
        let script = format!("while ! test -e /tmp/go; do sleep 0.05; done; head -c {n} /dev/zero");
        let one = world.run(&sandbox, &format!("c{n}"), &["sh", "-c", &script]).await;
        outputs.push((n, world.docker.attach(&one, own).await.unwrap()));
        crate::exec::until(&world, &one, &["touch", "/tmp/go"]).await;
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    let read = outputs.into_iter().map(|(n, it)| async move {
        let Attached { stdout, stderr, .. } = it;
        let stderr = async { if stderr.is_some() { text(stderr).await } else { String::new() } };
        let (out, err) = tokio::join!(text(stdout), stderr);
        (n, out.len(), err)
    });
    let read = futures::future::join_all(read).await;
    let short: Vec<_> = read.iter().filter(|(n, length, err)| length != n || !err.is_empty()).collect();
    assert!(short.is_empty(), "{short:?}");
}
