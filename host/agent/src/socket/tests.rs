//! The local socket end to end: our server, our client, fake views.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser;
use futures::StreamExt;
use k8s_openapi::List;
use k8s_openapi::api::core::v1;
use longshore_core::event::{Event, EventType};
use longshore_core::ports::events::EventSink;
use longshore_core::ports::runtime::{LogChunk, RuntimeError};
use longshore_core::ports::sources::SourceProblem;
use longshore_core::view::PodView;
use longshore_reconcile::events::EventRing;
use longshore_reconcile::views::Views;
use tokio_util::sync::CancellationToken;

use super::api::{AgentState, Api, DockerInfo, Info, ProblemList, WatchEvent};
use crate::cli::{Cli, Command, WhyArgs};
use crate::client::Client;
use crate::commands;
use crate::print::samples::{now, view};

struct Fixture {
    root: tempfile::TempDir,
    api: Arc<Api>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl Fixture {
    fn start() -> Fixture {
        Self::start_in(tempfile::tempdir().unwrap(), "")
    }

    fn start_in(root: tempfile::TempDir, below: &str) -> Fixture {
        let info = Info {
            version: "0".into(),
            pid: 1,
            started_at: now(),
            root_dir: root.path().to_owned(),
            manifests: "/manifests".into(),
            node: None,
            cni_cache_dir: None,
            in_cluster: false,
            going_down: false,
            drained: false,
            waits: None,
            pressure: Default::default(),
            docker: DockerInfo {
                endpoint: "unix:///d.sock".into(),
                error: Some("absent".into()),
                ..Default::default()
            },
        };
        let api = Arc::new(Api {
            views: Arc::new(Views::default()),
            events: EventRing::new(),
            flags: Default::default(),
            logs: Box::new(|id, options| {
                if id == "broken" {
                    let error = RuntimeError::NotFound { what: "container broken".into() };
                    return futures::stream::iter([Err(error)]).boxed();
                }
                let text = format!("{id} {options:?}\n");
                futures::stream::iter([Ok(LogChunk { stderr: false, data: Bytes::from(text) })]).boxed()
            }),
            state: AgentState::new(info),
            shutdown: Arc::default(),
            health: Arc::default(),
        });
        let folder = root.path().join(below);
        std::fs::create_dir_all(&folder).unwrap();
        let stop = CancellationToken::new();
        let listener = super::bind(&folder).unwrap();
        let server = tokio::spawn(super::serve(listener, folder, api.clone(), stop.clone()));
        Fixture { root, api, stop, server }
    }

    fn client(&self) -> Client {
        Client::new(self.root.path())
    }
}

#[tokio::test]
async fn what_is_published_is_answered() {
    let fixture = Fixture::start();
    fixture.api.views.publish(view("default", "web"));
    fixture.api.views.publish(view("shop", "cart"));
    let problem = SourceProblem { place: "a.yaml:3".into(), message: "no".into(), warning: false };
    fixture.api.views.set_problems("file", vec![problem]);
    let pod = view("shop", "cart").id;
    fixture.api.events.record(&pod, None, EventType::Normal, "Started", "Started container main");

    let client = fixture.client();
    let list: List<v1::Pod> = client.get("/v1/pods").await.unwrap();
    assert_eq!(list.items.len(), 2);
    let list: List<v1::Pod> = client.get("/v1/pods?namespace=shop").await.unwrap();
    assert_eq!(list.items[0].metadata.name.as_deref(), Some("cart"));
    let views: Vec<PodView> = client.get("/v1/views").await.unwrap();
    assert_eq!(views[1], view("shop", "cart"));
    let one: PodView = client.get("/v1/views/default/web").await.unwrap();
    assert_eq!(one, view("default", "web"));
    let events: Vec<Event> = client.get("/v1/events?uid=uid-shop-cart").await.unwrap();
    assert_eq!(events[0].reason, "Started");
    assert!(client.get::<Vec<Event>>("/v1/events?uid=other").await.unwrap().is_empty());
    let problems: ProblemList = client.get("/v1/problems").await.unwrap();
    assert_eq!(problems.items.iter().map(|p| p.place.as_str()).collect::<Vec<_>>(), ["unix:///d.sock", "a.yaml:3"]);
    let info: Info = client.get("/v1/info").await.unwrap();
    assert_eq!(info.docker.error.as_deref(), Some("absent"));
}

#[tokio::test]
async fn a_pod_that_is_asked_for_too_early_is_not_told_to_be_absent() {
    let fixture = Fixture::start();
    let client = fixture.client();
    let why = WhyArgs { pod: "web".to_owned(), namespace: None };
    let Some(Command::Get(get)) = Cli::parse_from(["longshore", "get", "pods"]).command else {
        panic!("another command")
    };
    let unknown = "the agent does not know all its pods yet: it waits for Docker: absent";
    assert_eq!(commands::why(&client, &why).await.unwrap_err().to_string(), unknown);
    assert_eq!(commands::get(&client, &get).await.unwrap_err().to_string(), unknown);
    fixture.api.views.publish(view("default", "cart"));
    let error = commands::why(&client, &why).await.unwrap_err().to_string();
    assert_eq!(error, format!("pod \"web\" not found; {unknown}"));
    fixture.api.state.update(|info| info.docker.error = None);
    let info: Info = client.get("/v1/info").await.unwrap();
    assert_eq!(info.waits.as_deref(), Some("it waits for Docker's first answer"));
    fixture.api.health.synced(true);
    assert_eq!(commands::why(&client, &why).await.unwrap_err().to_string(), "pod \"web\" not found");
    fixture.api.views.remove("uid-default-cart");
    commands::get(&client, &get).await.unwrap();
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let fixture = Fixture::start();
    fixture.api.views.publish(view("default", "web"));
    let client = fixture.client();
    let error = |path: &'static str| {
        let client = client.clone();
        async move { client.get::<serde_json::Value>(path).await.unwrap_err().to_string() }
    };
    assert!(error("/v2/pods").await.contains("/v1/pods"));
    assert_eq!(error("/v1/views/default/x").await, "pod default/x not found");
    assert_eq!(error("/v1/logs/default/web/x").await, "pod \"web\" has no container \"x\"; it has: main");
    assert!(error("/v1/logs/default/web/main?previous").await.contains("previous terminated container"));
    assert!(error("/v1/logs/default/web/main?tail=x").await.contains("a number of lines"));
}

#[tokio::test]
async fn logs_are_asked_for_by_container_id() {
    let fixture = Fixture::start();
    fixture.api.views.publish(view("default", "web"));
    let path = "/v1/logs/default/web/main?tail=5&timestamps&since=2026-01-01T12%3A00:00Z";
    let mut parts = fixture.client().stream(path).await.unwrap();
    let line = parts.next_line().await.unwrap().unwrap();
    let line = String::from_utf8_lossy(&line).into_owned();
    assert!(line.starts_with("abc LogOptions") && line.contains("Some(5)") && line.contains("timestamps: true"));
    assert!(line.contains("2026-01-01T12:00:00Z"), "{line}");
    assert!(parts.next_line().await.unwrap().is_none());

    let mut broken = view("default", "web");
    let status = broken.object.status.as_mut().unwrap();
    status.container_statuses.as_mut().unwrap()[0].container_id = Some("docker://broken".into());
    fixture.api.views.publish(broken);
    let error = fixture.client().stream(path).await.err().unwrap().to_string();
    assert!(error.contains("container broken does not exist"), "{error}");
}

#[tokio::test]
async fn a_watch_tells_what_changes() {
    let fixture = Fixture::start();
    fixture.api.views.publish(view("default", "web"));
    let mut lines = fixture.client().stream("/v1/pods?watch=1&namespace=default").await.unwrap();
    let mut next = async || {
        let line = lines.next_line().await.unwrap().unwrap();
        let event: WatchEvent = serde_json::from_slice(&line).unwrap();
        (event.kind, event.object.metadata.name.unwrap_or_default())
    };
    assert_eq!(next().await, ("ADDED".into(), "web".into()));
    assert_eq!(next().await, ("BOOKMARK".into(), String::new()));
    fixture.api.views.publish(view("shop", "unseen"));
    let mut changed = view("default", "web");
    changed.object.status.as_mut().unwrap().phase = Some("Failed".into());
    fixture.api.views.publish(changed);
    assert_eq!(next().await, ("MODIFIED".into(), "web".into()));
    fixture.api.views.publish(view("default", "new"));
    assert_eq!(next().await, ("ADDED".into(), "new".into()));
    fixture.api.views.remove("uid-default-web");
    assert_eq!(next().await, ("DELETED".into(), "web".into()));
}

#[tokio::test]
async fn the_socket_is_roots_alone_replaces_a_stale_one_and_goes_with_the_agent() {
    let root = tempfile::tempdir().unwrap();
    // What a killed agent leaves.
    drop(std::os::unix::net::UnixListener::bind(super::path(root.path())).unwrap());
    let error = Client::new(root.path()).get::<Info>("/v1/info").await.unwrap_err().to_string();
    assert!(error.contains("has ended") && error.contains("longshore run --root-dir"), "{error}");

    let fixture = Fixture::start_in(root, "");
    let path = super::path(fixture.root.path());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fixture.client().get::<Info>("/v1/info").await.unwrap();
    fixture.stop.cancel();
    fixture.server.await.unwrap();
    assert!(!path.exists());
    let error = Client::new(fixture.root.path()).get::<Info>("/v1/info").await.unwrap_err().to_string();
    assert!(error.contains("longshore.sock") && error.contains("no agent runs"), "{error}");
}

#[tokio::test]
async fn paths_longer_than_an_address_work() {
    let deep = "d/".repeat(80);
    let fixture = Fixture::start_in(tempfile::tempdir().unwrap(), &deep);
    let root = fixture.root.path().join(Path::new(&deep));
    Client::new(&root).get::<Info>("/v1/info").await.unwrap();
}
