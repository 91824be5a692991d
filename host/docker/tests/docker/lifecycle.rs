//! Making, starting, looking, stopping, removing.

use std::time::{Duration, Instant};

use longshore_core::container::{Mount, MountSource, PortMapping, Propagation, Resources};
use longshore_core::labels;
use longshore_core::observed::{ContainerState, SandboxState};
use longshore_core::ports::runtime::{ContainerRuntime, RuntimeError};
use longshore_docker::DockerOptions;

use crate::world::World;

#[tokio::test]
async fn a_pods_life() {
    let Some(world) = World::new().await else { return };
    let docker = &world.docker;
    let sandbox = docker.create_sandbox(&world.sandbox(0)).await.unwrap();
    // Docker takes a container for a sandbox that does not run yet.
    let app = docker.create_container(&world.container(&sandbox, "app", &["sleep", "1000"])).await.unwrap();
    assert_eq!(world.see_sandbox(&sandbox).await.state, SandboxState::Created);
    assert_eq!(world.see(&app).await.state, ContainerState::Created);
    docker.start(&sandbox).await.unwrap();
    docker.start(&app).await.unwrap();
    docker.start(&app).await.unwrap();
    let seen = world.see_sandbox(&sandbox).await;
    assert_eq!((seen.state, !seen.ips.is_empty(), seen.pid.is_some()), (SandboxState::Running, true, true));
    assert!(seen.ips[0].is_ipv4(), "{:?}", seen.ips);
    let seen = world.see(&app).await;
    let ContainerState::Running { pid, started_at } = seen.state else { panic!("{seen:?}") };
    assert!(pid > 0 && started_at >= seen.created_at);
    assert!(seen.image_id.starts_with("docker"), "{}", seen.image_id);
    assert_eq!((seen.name.as_str(), seen.sandbox_id.as_str(), seen.hash.as_str()), ("app", sandbox.as_str(), "h"));

    let all = docker.list().await.unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(docker.list_pod(&world.pod.uid).await.unwrap().len(), 2);
    assert_eq!(docker.list_pod("other").await.unwrap().len(), 0);

    docker.stop(&app, Duration::from_secs(1)).await.unwrap();
    assert_eq!(world.end(&app).await, (137, "Error".to_owned()));
    docker.stop(&app, Duration::from_secs(1)).await.unwrap();
    let begin = Instant::now();
    docker.stop(&sandbox, Duration::from_secs(30)).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(25), "the pause program did not end when asked to");
    assert_eq!(world.see_sandbox(&sandbox).await.state, SandboxState::Exited);
    docker.remove(&app).await.unwrap();
    docker.remove(&app).await.unwrap();
    docker.remove(&sandbox).await.unwrap();
    assert_eq!(docker.inspect(&app).await.unwrap(), None);
    assert_eq!(docker.list().await.unwrap(), []);
    assert!(matches!(docker.start(&app).await, Err(RuntimeError::NotFound { .. })));
    docker.stop(&app, Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_dead_one_of_ours_makes_way_for_its_name() {
    let Some(world) = World::new().await else { return };
    let first = world.docker.create_sandbox(&world.sandbox(0)).await.unwrap();
    let second = world.docker.create_sandbox(&world.sandbox(0)).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(world.docker.inspect(&first).await.unwrap(), None);
    // One that runs is not touched.
    world.docker.start(&second).await.unwrap();
    let third = world.docker.create_sandbox(&world.sandbox(0)).await.unwrap();
    assert_eq!(world.see_sandbox(&second).await.state, SandboxState::Running);
    assert_eq!(world.docker.list().await.unwrap().len(), 2);
    assert_ne!(second, third);
}

#[tokio::test]
async fn a_strangers_name_gets_a_suffix() {
    let Some(world) = World::new().await else { return };
    let name = labels::sandbox_name(&world.pod, 0);
    let mut stranger = world.sandbox(0);
    stranger.labels = [("longshore-test".to_owned(), world.root.clone())].into();
    let stranger = world.docker.create_sandbox(&stranger).await.unwrap();
    let ours = world.docker.create_sandbox(&world.sandbox(0)).await.unwrap();
    let named = world.raw.inspect_container(&ours, None).await.unwrap().name.unwrap();
    let suffix = named.strip_prefix(&format!("/{name}_")).unwrap();
    assert!(suffix.len() == 8 && u32::from_str_radix(suffix, 16).is_ok(), "{named}");
    assert!(world.raw.inspect_container(&stranger, None).await.is_ok());
}

#[tokio::test]
async fn a_missing_program_is_told() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    for (command, code, words) in [
        ("no-such-program", 127, "executable file not found"),
        ("/no/such/program", 127, "no such file"),
        ("/etc", 126, "permission denied"),
    ] {
        let id = world.docker.create_container(&world.container(&sandbox, "app", &[command])).await.unwrap();
        let Err(RuntimeError::Failed { message, .. }) = world.docker.start(&id).await else {
            panic!("{command} started")
        };
        assert!(message.contains(words), "{message}");
        let ContainerState::Exited(exit) = world.see(&id).await.state else { panic!() };
        assert_eq!((exit.code, exit.reason.as_str()), (code, "ContainerCannotRun"), "{command}");
        assert_eq!(exit.started_at, Some(exit.finished_at), "{command}");
        assert!(exit.message.contains(words), "{}", exit.message);
        world.docker.remove(&id).await.unwrap();
    }
}

#[tokio::test]
async fn ends_have_reasons() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let good = world.run(&sandbox, "good", &["true"]).await;
    let bad = world.run(&sandbox, "bad", &["sh", "-c", "exit 3"]).await;
    assert_eq!(world.end(&good).await, (0, "Completed".to_owned()));
    assert_eq!(world.end(&bad).await, (3, "Error".to_owned()));
    // Docker 20.10 may tell of the kill by an event alone, which may come later than the end, the more so on a busy machine.
    let _events = world.docker.events();
    let mut hungry = world.container(&sandbox, "hungry", &["tail", "/dev/zero"]);
    hungry.resources.memory = 16 << 20;
    let hungry = world.docker.create_container(&hungry).await.unwrap();
    world.docker.start(&hungry).await.unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while world.end(&hungry).await == (137, "Error".to_owned()) && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.end(&hungry).await, (137, "OOMKilled".to_owned()));
}

#[tokio::test]
async fn sizes_change_while_a_container_runs() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let size = |cpu: i64, memory: i64| Resources {
        cpu_shares: cpu * 1024,
        cpu_quota: cpu * 100_000,
        cpu_period: 100_000,
        memory: memory << 20,
    };
    let mut config = world.container(&sandbox, "app", &["sleep", "1000"]);
    config.resources = size(1, 32);
    let app = world.docker.create_container(&config).await.unwrap();
    world.docker.start(&app).await.unwrap();
    let before = world.see(&app).await;
    assert_eq!(before.resources, Some(size(1, 32)));
    for size in [size(2, 256), size(1, 16)] {
        world.docker.update(&app, &size).await.unwrap();
        let now = world.see(&app).await;
        assert_eq!((now.resources, &now.state), (Some(size), &before.state));
        let raw = world.raw.inspect_container(&app, None).await.unwrap().host_config.unwrap();
        assert_eq!(raw.memory_swap, Some(size.memory), "no swap comes with it");
    }
    // What is zero stays, but for the quota, which is then none.
    world.docker.update(&app, &Resources { cpu_shares: 512, ..Resources::default() }).await.unwrap();
    let now = Resources { cpu_shares: 512, cpu_quota: -1, ..size(1, 16) };
    assert_eq!(world.see(&app).await.resources, Some(now));
    let absent = world.docker.update(&"0".repeat(64), &size(1, 16)).await;
    assert!(matches!(absent, Err(RuntimeError::NotFound { .. })), "{absent:?}");
}

#[tokio::test]
async fn a_missing_source_is_told_and_made_only_where_that_is_wanted() {
    let Some(world) = World::new().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let sandbox = world.running_sandbox().await;
    let mut config = world.container(&sandbox, "app", &["ls", "/data"]);
    let mount = |source: std::path::PathBuf| Mount {
        source: source.into(),
        target: "/data".to_owned(),
        read_only: true,
        recursive: false,
        propagation: Propagation::Private,
    };
    config.mounts = vec![mount(folder.path().join("absent"))];
    let Err(RuntimeError::Failed { message, .. }) = world.docker.create_container(&config).await else { panic!() };
    assert!(message.contains("does not exist"), "{message}");
    assert!(!folder.path().join("absent").exists());
    let made = folder.path().join("made");
    config.mounts = vec![Mount { source: MountSource::HostPath(made.clone()), ..mount(made.clone()) }];
    let id = world.docker.create_container(&config).await.unwrap();
    world.docker.start(&id).await.unwrap();
    assert_eq!(world.end(&id).await.0, 0);
    assert!(made.is_dir());
    "again".clone_into(&mut config.name);
    config.mounts = vec![mount(folder.path().to_owned())];
    let id = world.docker.create_container(&config).await.unwrap();
    world.docker.start(&id).await.unwrap();
    assert_eq!(world.end(&id).await.0, 0);
}

#[tokio::test]
async fn a_missing_image_is_told() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let mut config = world.container(&sandbox, "app", &["true"]);
    config.image = "longshore.dev/no-such-image:1".to_owned();
    assert!(matches!(world.docker.create_container(&config).await, Err(RuntimeError::NotFound { .. })));
    assert_eq!(world.docker.image(&config.image).await.unwrap(), None);
    let image = world.docker.image(crate::world::IMAGE).await.unwrap().unwrap();
    assert_eq!(world.docker.image(&image.id).await.unwrap().unwrap().id, image.id);
    assert!(image.size > 0);
    assert!(world.docker.image("../containers/json").await.is_err());
}

#[tokio::test]
async fn a_pause_image_that_was_removed_comes_back() {
    let Some(world) = World::new().await else { return };
    let id = world.docker.create_sandbox(&world.sandbox(0)).await.unwrap();
    let image = world.raw.inspect_container(&id, None).await.unwrap().config.unwrap().image.unwrap();
    assert!(image.starts_with("longshore.dev/pause:"), "{image}");
    let options = bollard::query_parameters::RemoveImageOptionsBuilder::default().force(true).build();
    world.raw.remove_image(&image, Some(options), None).await.unwrap();
    let id = world.docker.create_sandbox(&world.sandbox(1)).await.unwrap();
    world.docker.start(&id).await.unwrap();
    assert_eq!(world.see_sandbox(&id).await.state, SandboxState::Running);
}

#[tokio::test]
async fn stopping_asks_first_and_keeps_no_slot() {
    let options = DockerOptions { in_flight: 1, ..Default::default() };
    let Some(world) = World::with(options).await else { return };
    let sandbox = world.running_sandbox().await;
    let kind = world
        .run(&sandbox, "kind", &["sh", "-c", "trap 'exit 5' TERM; touch /tmp/ready; while true; do sleep 0.1; done"])
        .await;
    let deaf = world.run(&sandbox, "deaf", &["sh", "-c", "trap '' TERM; while true; do sleep 1; done"]).await;
    let slow = tokio::spawn({
        let (docker, deaf) = (world.docker.clone(), deaf.clone());
        async move {
            let begin = Instant::now();
            docker.stop(&deaf, Duration::from_millis(9500)).await.unwrap();
            begin.elapsed()
        }
    });
    crate::exec::until(&world, &kind, &["test", "-e", "/tmp/ready"]).await;
    world.docker.stop(&kind, Duration::from_secs(30)).await.unwrap();
    assert_eq!(world.end(&kind).await, (5, "Error".to_owned()));
    world.run(&sandbox, "other", &["true"]).await;
    assert!(!slow.is_finished(), "the stop held a slot");
    let took = slow.await.unwrap();
    assert!(took >= Duration::from_millis(9900) && took < Duration::from_secs(60), "{took:?}");
    assert_eq!(world.end(&deaf).await, (137, "Error".to_owned()));
}

#[tokio::test]
async fn what_is_paused_is_stopped_too() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    for (name, grace) in [("a", 0), ("b", 1)] {
        let mut config = world.container(&sandbox, name, &["sleep", "1000"]);
        config.stop_signal = Some("SIGUSR1".to_owned());
        let id = world.docker.create_container(&config).await.unwrap();
        world.docker.start(&id).await.unwrap();
        world.raw.pause_container(&id).await.unwrap();
        assert!(world.see(&id).await.is_running());
        world.docker.stop(&id, Duration::from_secs(grace)).await.unwrap();
        assert!(!world.see(&id).await.is_running());
    }
}

#[tokio::test]
async fn ports_of_the_node_lead_into_the_pod() {
    let Some(world) = World::new().await else { return };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut config = world.sandbox(0);
    config.ports = vec![PortMapping {
        host_port: free,
        container_port: 80,
        protocol: "TCP".to_owned(),
        host_ip: Some("127.0.0.1".parse().unwrap()),
    }];
    let sandbox = world.docker.create_sandbox(&config).await.unwrap();
    world.docker.start(&sandbox).await.unwrap();
    world.run(&sandbox, "web", &["httpd", "-f", "-p", "80"]).await;
    let end = Instant::now() + Duration::from_secs(30);
    while tokio::net::TcpStream::connect(("127.0.0.1", free)).await.is_err() {
        assert!(Instant::now() < end, "nobody answers on port {free}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn namespaces_are_shared_as_asked() {
    let Some(world) = World::new().await else { return };
    let mut config = world.sandbox(0);
    config.share_process_namespace = true;
    let sandbox = world.docker.create_sandbox(&config).await.unwrap();
    world.docker.start(&sandbox).await.unwrap();
    let mut config = world.container(
        &sandbox,
        "app",
        &["sh", "-c", "test \"$(cat /proc/1/comm)\" = pause && test \"$(hostname)\" = p"],
    );
    config.share_process_namespace = true;
    let id = world.docker.create_container(&config).await.unwrap();
    world.docker.start(&id).await.unwrap();
    assert_eq!(world.end(&id).await.0, 0);
    let mut host = world.sandbox(1);
    host.host = longshore_core::container::HostNamespaces { network: true, pid: true, ipc: true };
    host.network = longshore_core::container::SandboxNetwork::Host;
    let sandbox = world.docker.create_sandbox(&host).await.unwrap();
    world.docker.start(&sandbox).await.unwrap();
    assert!(world.see_sandbox(&sandbox).await.ips.is_empty());
    let mut config = world.container(
        &sandbox,
        "host",
        &["sh", "-c", &format!("test -d /proc/{} && test \"$(hostname)\" != p", std::process::id())],
    );
    config.host = host.host;
    let id = world.docker.create_container(&config).await.unwrap();
    world.docker.start(&id).await.unwrap();
    assert_eq!(world.end(&id).await.0, 0);
}

#[tokio::test]
async fn information_is_complete_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let options = DockerOptions { cache: Some(folder.path().join("docker.json")), ..Default::default() };
    let Some(world) = World::with(options.clone()).await else { return };
    let info = world.docker.info().await.unwrap();
    assert!(!info.version.is_empty() && info.api_version.starts_with("1.") && info.memory > 0 && info.cpus > 0);
    assert!(info.runtimes.contains(&"runc".to_owned()), "{:?}", info.runtimes);
    assert!([-1000, 0].contains(&info.min_oom_score_adj) || info.min_oom_score_adj > 0, "{info:?}");
    // What was found out holds.
    let mut config = world.sandbox(0);
    config.oom_score_adj = (-998).max(info.min_oom_score_adj);
    let id = world.docker.create_sandbox(&config).await.unwrap();
    world.docker.start(&id).await.unwrap();
    let Some(again) = World::with(options).await else { return };
    let begin = Instant::now();
    assert_eq!(again.docker.info().await.unwrap().min_oom_score_adj, info.min_oom_score_adj);
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(again.docker.list().await.unwrap(), []);
}
