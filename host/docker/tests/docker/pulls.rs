//! Pulls from a daemon whose registry does as a test wants it to.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use longshore_core::ports::runtime::{ContainerRuntime, PullError, PullProgress, RegistryCredentials};

use longshore_docker::DockerOptions;

use crate::fake::{Fake, Reply, chunk, ok};
use crate::world::World;

const IMAGE: &str = r#"{"Id":"sha256:aa","RepoDigests":["r.example/a@sha256:bb"],"Size":7,"Config":{"User":"9"}}"#;

#[tokio::test]
async fn progress_and_result() {
    let fake = Fake::new(|request, _| {
        if request.contains("/images/create") {
            ok("{\"id\":\"l1\",\"status\":\"Downloading\",\"progressDetail\":{\"current\":3,\"total\":9}}\r\n\
                {\"id\":\"l1\",\"status\":\"Download complete\",\"progressDetail\":{}}\r\n{\"status\":\"Digest: x\"}\r\n")
        } else {
            ok(IMAGE)
        }
    });
    let seen = Mutex::new(Vec::new());
    let credentials = RegistryCredentials::Basic { username: "u".to_owned(), password: "???>>>".to_owned() };
    let image =
        fake.docker.pull("r.example/a", Some(&credentials), &|now| seen.lock().unwrap().push(now)).await.unwrap();
    assert_eq!((image.id.as_str(), image.user.as_str(), image.size), ("sha256:aa", "9", 7));
    assert_eq!(seen.lock().unwrap()[0], PullProgress { current: 3, total: 9 });
    assert_eq!(*seen.lock().unwrap().last().unwrap(), PullProgress { current: 9, total: 9 });
    // Without a tag Docker would fetch them all.
    assert_eq!(fake.count("fromImage=r.example%2Fa&"), 1);
    assert_eq!(fake.count("tag=latest"), 1);
    assert!(matches!(fake.docker.pull("A b", None, &|_| {}).await, Err(PullError::Failed { .. })));
}

#[tokio::test]
async fn refusals() {
    let fake =
        Fake::new(|_, _| ok("{\"errorDetail\":{\"message\":\"manifest unknown\"},\"error\":\"manifest unknown\"}\r\n"));
    let error = fake.docker.pull("a/b", None, &|_| {}).await.unwrap_err();
    assert_eq!(error, PullError::Failed { message: "manifest unknown".to_owned() });
    let fake = Fake::new(|_, _| {
        Reply::Json(
            500,
            r#"{"message":"Get \"http://r/v2/\": dial tcp 127.0.0.1:1: connect: connection refused"}"#.to_owned(),
        )
    });
    assert!(matches!(fake.docker.pull("a/b", None, &|_| {}).await, Err(PullError::Failed { .. })));
    let fake = Fake::new(|_, _| Reply::Raw(Vec::new()));
    assert!(matches!(fake.docker.pull("a/b", None, &|_| {}).await, Err(PullError::Runtime(_))));
}

#[tokio::test]
async fn what_does_not_move_is_given_up() {
    let options = DockerOptions { pull_stall: Duration::from_secs(2), ..Default::default() };
    let fake = Fake::with(options.clone(), |_, _| {
        Reply::Stall(chunk(
            "{\"id\":\"l\",\"status\":\"Downloading\",\"progressDetail\":{\"current\":1,\"total\":2}}\r\n",
        ))
    });
    let begin = Instant::now();
    let error = fake.docker.pull("a/b", None, &|_| {}).await.unwrap_err();
    assert!(begin.elapsed() >= Duration::from_millis(1900));
    let PullError::Failed { message } = error else { panic!("{error:?}") };
    assert!(message.contains("1 of 2 bytes"), "{message}");
    // Words without movement do not count.
    let retrying = "{\"id\":\"l\",\"status\":\"Retrying in 5 seconds\"}\r\n".repeat(3);
    let fake = Fake::with(options, move |_, _| Reply::Stall(chunk(&retrying)));
    assert!(matches!(fake.docker.pull("a/b", None, &|_| {}).await, Err(PullError::Failed { .. })));
}

#[tokio::test]
async fn a_registry_that_nobody_serves() {
    let Some(world) = World::new().await else { return };
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = world.docker.pull(&format!("127.0.0.1:{free}/a:b"), None, &|_| {}).await.unwrap_err();
    assert!(matches!(error, PullError::Failed { .. }), "{error:?}");
}
