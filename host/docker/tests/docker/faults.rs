//! A daemon that is not there, answers slowly, with errors, with garbage, or half.

use std::time::{Duration, Instant};

use futures::StreamExt;
use longshore_core::observed::Observation;
use longshore_core::ports::exec::{ContainerExec, ExecError, ExecOutput, ExecRequest, Purpose};
use longshore_core::ports::runtime::{ContainerRuntime, LogOptions, RuntimeChange, RuntimeError, RuntimeEvent};
use longshore_core::ports::streams::{ContainerStreams, StreamedExec, Wants};
use longshore_docker::{Docker, DockerOptions};

use crate::fake::{Fake, Reply, chunk, ok};

fn connect(endpoint: &str) -> Result<Docker, RuntimeError> {
    Docker::connect(endpoint, "r".to_owned(), DockerOptions::default())
}

#[tokio::test]
async fn nobody_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docker.sock");
    let docker = connect(&format!("unix://{}", path.display())).unwrap();
    let Err(RuntimeError::Unreachable { message, .. }) = docker.list().await else { panic!() };
    assert!(message.contains("is Docker installed and started"), "{message}");
    // A socket that was left behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let Err(RuntimeError::Unreachable { message, endpoint }) = docker.list().await else { panic!() };
    assert!(message.contains("is Docker running"), "{message}");
    assert!(endpoint.ends_with("docker.sock"));
    assert!(matches!(connect("npipe://x"), Err(RuntimeError::Unreachable { .. })));
}

#[tokio::test]
async fn errors_come_with_the_daemons_words() {
    let fake = Fake::new(|_, _| Reply::Json(500, r#"{"message":"no space left on device"}"#.to_owned()));
    let Err(RuntimeError::Failed { operation, message }) = fake.docker.list().await else { panic!() };
    assert_eq!((operation, message.as_str()), ("list containers", "no space left on device"));
    let fake = Fake::new(|_, _| Reply::Json(503, String::new()));
    let Err(RuntimeError::Failed { message, .. }) = fake.docker.list().await else { panic!() };
    assert!(message.contains("503"), "{message}");
}

#[tokio::test]
async fn garbage_and_halves_are_errors() {
    for answer in [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n[{\"Id\":".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"a\":[7]}".to_vec(),
        b"SSH-2.0-OpenSSH\r\n".to_vec(),
        Vec::new(),
    ] {
        let fake = Fake::new(move |_, _| Reply::Raw(answer.clone()));
        assert!(fake.docker.list().await.is_err());
        assert!(fake.docker.inspect("abc").await.is_err());
        assert!(fake.docker.info().await.is_err());
        assert!(fake.docker.foreign().await.is_err());
        assert!(fake.docker.image("a/b:1").await.is_err());
        assert!(fake.docker.pull("a/b:1", None, &|_| {}).await.is_err());
        assert!(fake.docker.logs("abc", LogOptions::default()).next().await.unwrap().is_err());
        assert!(fake.docker.start("abc").await.is_err());
    }
}

#[tokio::test]
async fn odd_json_is_passed_over() {
    let list = r#"[{"Id":"a","State":7},{"Id":null},{}]"#;
    let fake = Fake::new(move |_, _| ok(list));
    assert!(fake.docker.list().await.is_err());
    let fake = Fake::new(|request, _| {
        if request.contains("/containers/json") {
            ok(r#"[{"Id":"a","State":"new-word"},{"Id":null},{}]"#)
        } else {
            ok("{}")
        }
    });
    // "a" is there, whatever it is: it must not be taken for gone.
    assert!(fake.docker.list().await.is_err());
    let fake = Fake::new(|_, _| ok(r#"[{"Id":null},{}]"#));
    assert_eq!(fake.docker.list().await.unwrap(), []);
}

/// Its layer is damaged, say; the others are to be seen.
#[tokio::test]
async fn one_container_that_cannot_be_inspected_hides_no_other() {
    let labels = |uid: &str| {
        format!(
            r#"{{"dev.longshore.root":"r","dev.longshore.attempt":"0","io.kubernetes.docker.type":"podsandbox",
            "io.kubernetes.pod.name":"p","io.kubernetes.pod.namespace":"n","io.kubernetes.pod.uid":"{uid}",
            "io.kubernetes.container.name":"POD"}}"#
        )
    };
    let entry = |id: &str, uid: &str| format!(r#"{{"Id":"{id}","State":"running","Labels":{}}}"#, labels(uid));
    let list = format!("[{},{}]", entry("a1", "ua"), entry("b2", "ub"));
    let well =
        format!(r#"{{"Id":"b2","Config":{{"Labels":{}}},"HostConfig":{{"IpcMode":"shareable"}}}}"#, labels("ub"));
    let fake = Fake::new(move |request, _| {
        if request.contains("/containers/json") {
            ok(&list)
        } else if request.contains("/containers/a1/") {
            Reply::Json(500, r#"{"message":"RWLayer of container a1 is unexpectedly nil"}"#.to_owned())
        } else {
            ok(&well)
        }
    });
    let mut seen: Vec<_> = fake.docker.list().await.unwrap();
    seen.sort_by(|a, b| a.id().cmp(b.id()));
    assert!(
        matches!(&seen[..], [Observation::Unseen { id, pod }, Observation::Sandbox(_)] if id == "a1" && pod.uid == "ua")
    );
    let Err(RuntimeError::Failed { message, .. }) = fake.docker.list_pod("ua").await else { panic!() };
    assert!(message.contains("RWLayer"), "{message}");
}

#[tokio::test]
async fn a_daemon_that_hangs_is_given_up() {
    let fake = Fake::new(|_, _| Reply::Stall(Vec::new()));
    let begin = Instant::now();
    let result = fake.docker.info().await;
    assert!(matches!(result, Err(RuntimeError::Timeout { seconds: 10, .. })), "{result:?}");
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn who_waits_while_no_version_is_agreed_shares_the_failure() {
    let fake = Fake::bare(|_, _| Reply::Json(500, String::new()));
    let asked = (0..5).map(|_| fake.docker.foreign());
    let answers = futures::future::join_all(asked).await;
    assert!(answers.iter().all(Result::is_err));
    assert_eq!(fake.count("/version"), 1);
    // Who comes later tries it.
    assert!(fake.docker.foreign().await.is_err());
    assert_eq!(fake.count("/version"), 2);
}

#[tokio::test]
async fn versions_are_negotiated_anew() {
    let old = Fake::bare(|_, _| ok(r#"{"Version":"19.03","ApiVersion":"1.40"}"#));
    let Err(RuntimeError::Failed { message, .. }) = old.docker.list().await else { panic!() };
    assert!(message.contains("upgrade it to Docker 20.10"), "{message}");
    let stranger = Fake::bare(|_, _| ok("{}"));
    let Err(RuntimeError::Failed { message, .. }) = stranger.docker.list().await else { panic!() };
    assert!(message.contains("not a Docker daemon"), "{message}");
    // It is replaced by an older one under our feet.
    let fake = Fake::bare(|request, count| match request {
        "GET /version" if count == 0 => ok(r#"{"Version":"99","ApiVersion":"9.9","MinAPIVersion":"1.40"}"#),
        "GET /version" => ok(r#"{"Version":"20.10","ApiVersion":"1.41","MinAPIVersion":"1.12"}"#),
        old if old.contains("/v1.41/") => ok("[]"),
        _ => Reply::Json(
            400,
            r#"{"message":"client version 1.53 is too new. Maximum supported API version is 1.41"}"#.to_owned(),
        ),
    });
    assert_eq!(fake.docker.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_stop_whose_connection_breaks_ends_in_a_kill() {
    let fake = Fake::new(move |request, _| {
        if request.contains("/stop") {
            Reply::Raw(Vec::new())
        } else if request.contains("/kill") {
            Reply::Json(204, String::new())
        } else {
            ok(OUR_SANDBOX)
        }
    });
    fake.docker.stop("abc", Duration::from_secs(2)).await.unwrap();
    assert!(fake.count("/stop?t=2") >= 1 && fake.count("/stop?t=1") >= 1, "{:?}", fake.seen.lock().unwrap());
    assert_eq!(fake.count("/kill?signal=SIGKILL"), 1);
}

#[tokio::test]
async fn events_go_on_after_a_break() {
    let event = r#"{"Type":"container","Action":"die","Actor":{"ID":"x","Attributes":{"dev.longshore.root":"r",
        "io.kubernetes.pod.name":"p","io.kubernetes.pod.namespace":"n","io.kubernetes.pod.uid":"u"}}}"#
        .replace('\n', "");
    let fake = Fake::new(move |request, count| match count {
        _ if !request.contains("/events") => Reply::Json(500, String::new()),
        // A whole event, then a half one, then the end.
        0..=2 => Reply::Raw(chunk(&format!("{event}\n{{\"Type\":"))),
        3..=6 => Reply::Json(500, String::new()),
        _ => Reply::Stall(chunk(&format!("{event}\nrubbish\n"))),
    });
    let mut events = fake.docker.events();
    let mut next = async || tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap().unwrap();
    assert!(matches!(next().await, RuntimeEvent::Changed { change: RuntimeChange::Died, .. }));
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(next().await);
    }
    assert_eq!(seen[0], RuntimeEvent::Resync);
    assert!(seen.iter().filter(|event| **event == RuntimeEvent::Resync).count() >= 2, "{seen:?}");
}

/// Nothing of the others is lost, and nothing is asked again.
#[tokio::test]
async fn an_event_that_is_too_long_is_passed_over() {
    let event = |note: &str| {
        format!(
            r#"{{"Action":"die","Actor":{{"ID":"x","Attributes":{{"dev.longshore.root":"r","annotation.note":"{note}",
            "io.kubernetes.pod.name":"p","io.kubernetes.pod.namespace":"n","io.kubernetes.pod.uid":"u"}}}}}}"#
        )
        .replace('\n', "")
    };
    let stream = format!("{0}\n{1}\n{0}\n", event(""), event(&"}".repeat(3 << 20)));
    let fake = Fake::new(move |_, _| Reply::Stall(chunk(&stream)));
    let mut events = fake.docker.events();
    let mut next = async || tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap().unwrap();
    assert!(matches!(next().await, RuntimeEvent::Changed { change: RuntimeChange::Died, .. }));
    assert_eq!(next().await, RuntimeEvent::Resync);
    assert!(matches!(next().await, RuntimeEvent::Changed { change: RuntimeChange::Died, .. }));
    assert_eq!(fake.count("/events"), 1);
}

/// An inspect of a container of ours with the ID `abc`.
const OURS: &str = r#"{"Id":"abc","Config":{"Labels":{"dev.longshore.root":"r","dev.longshore.attempt":"0",
    "io.kubernetes.docker.type":"container","io.kubernetes.pod.name":"p","io.kubernetes.pod.namespace":"n",
    "io.kubernetes.pod.uid":"u","io.kubernetes.container.name":"c","io.kubernetes.sandbox.id":"sb"}},
    "HostConfig":{"NetworkMode":"container:sb"}}"#;

/// And one of a sandbox.
const OUR_SANDBOX: &str = r#"{"Id":"abc","Config":{"Labels":{"dev.longshore.root":"r","dev.longshore.attempt":"0",
    "io.kubernetes.docker.type":"podsandbox","io.kubernetes.pod.name":"p","io.kubernetes.pod.namespace":"n",
    "io.kubernetes.pod.uid":"u","io.kubernetes.container.name":"POD"}},"HostConfig":{"IpcMode":"shareable"}}"#;

/// Whatever is run from an image that was committed of one of ours has its labels.
#[tokio::test]
async fn labels_alone_make_nothing_ours() {
    for ours in [OURS, OUR_SANDBOX] {
        let fake = Fake::new(move |_, _| ok(ours));
        assert!(fake.docker.inspect("abc").await.unwrap().is_some());
        let copy = ours.replace("container:sb", "bridge").replace("shareable", "private");
        let fake = Fake::new(move |request, _| match request.contains("/containers/json") {
            true => ok(r#"[{"Id":"abc","State":"running","Labels":{"dev.longshore.root":"r"}}]"#),
            false => ok(&copy),
        });
        assert_eq!(fake.docker.list().await.unwrap(), []);
        assert_eq!(fake.docker.inspect("abc").await.unwrap(), None);
        fake.docker.stop("abc", Duration::ZERO).await.unwrap();
        assert_eq!(fake.count("/kill"), 0);
    }
}

fn probe() -> ExecRequest {
    ExecRequest {
        container_id: "abc".to_owned(),
        command: vec!["true".to_owned()],
        timeout: Duration::from_secs(1),
        output_limit: 10,
        purpose: Purpose::Probe,
    }
}

#[tokio::test]
async fn a_command_whose_kill_takes_long_has_failed_all_the_same() {
    let fake = Fake::new(|request, _| match request {
        it if it.starts_with("GET") && it.contains("/containers/abc/json") => ok(OURS),
        it if it.contains("/containers/abc/exec") => Reply::Json(201, r#"{"Id":"e1"}"#.to_owned()),
        it if it.contains("/exec/e1/") => Reply::Stall(Vec::new()),
        _ => ok("{}"),
    });
    let request = ExecRequest { timeout: Duration::from_millis(100), ..probe() };
    let result = tokio::time::timeout(Duration::from_secs(60), fake.docker.exec(request)).await;
    assert_eq!(result.unwrap(), Ok(ExecOutput { exit_code: None, output: Vec::new() }));
    assert_eq!(fake.count("/exec/e1/json"), 1);
}

/// For longer than an exit code is waited for whose command has ended.
#[tokio::test]
async fn a_command_that_closes_its_outputs_has_no_time_limit() {
    let options = DockerOptions { cleanup: Duration::from_millis(50), ..DockerOptions::default() };
    let begun = Instant::now();
    let fake = Fake::with(options, move |request, _| match request {
        it if it.ends_with("/containers/abc/json") => ok(OURS),
        it if it.ends_with("/containers/abc/exec") => Reply::Json(201, r#"{"Id":"e1"}"#.to_owned()),
        it if it.ends_with("/exec/e1/start") => {
            Reply::Raw(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".to_vec())
        }
        _ if begun.elapsed() < Duration::from_secs(1) => ok(r#"{"Running":true,"ExitCode":null}"#),
        _ => ok(r#"{"Running":false,"ExitCode":5}"#),
    });
    let wants = Wants { stdout: true, ..Wants::default() };
    let exec = StreamedExec { container_id: "abc".to_owned(), command: vec!["true".to_owned()], wants };
    let it = fake.docker.exec_streams(&exec).await.unwrap();
    assert_eq!(it.control.exit_code().await.unwrap(), Some(5));
}

#[tokio::test]
async fn a_failing_daemon_is_not_a_failing_command() {
    let request = probe();
    let fake = Fake::new(|request, _| match request {
        it if it.starts_with("GET") && it.contains("/containers/abc/json") => ok(OURS),
        it if it.contains("/containers/abc/exec") => Reply::Json(500, r#"{"message":"runc is broken"}"#.to_owned()),
        _ => ok("{}"),
    });
    let result = fake.docker.exec(request.clone()).await;
    assert_eq!(result, Err(ExecError::Runtime { message: "runc is broken".to_owned() }));
    let fake = Fake::new(|request, _| match request {
        it if it.starts_with("GET") && it.contains("/containers/abc/json") => ok(OURS),
        it if it.contains("/containers/abc/exec") => Reply::Json(201, r#"{"Id":"e1"}"#.to_owned()),
        it if it.contains("/exec/e1/start") => Reply::Raw(Vec::new()),
        _ => ok("{}"),
    });
    assert!(matches!(fake.docker.exec(request).await, Err(ExecError::Runtime { .. })));
}

#[tokio::test]
async fn a_name_that_is_always_taken_is_an_error() {
    let fake = Fake::new(|request, _| match request {
        it if it.contains("/containers/create") => Reply::Json(
            409,
            r#"{"message":"Conflict. The container name \"/x\" is already in use by container \"y\"."}"#.to_owned(),
        ),
        it if it.contains("/info") => ok(r#"{"ServerVersion":"99","MemTotal":1}"#),
        _ => Reply::Json(404, r#"{"message":"No such container: x"}"#.to_owned()),
    });
    let config = longshore_core::container::SandboxConfig {
        pod: longshore_core::pod::PodId { namespace: "n".to_owned(), name: "p".to_owned(), uid: "u".to_owned() },
        attempt: 0,
        hash: String::new(),
        hostname: "p".to_owned(),
        labels: Default::default(),
        cgroup_parent: None,
        host: Default::default(),
        network: Default::default(),
        share_process_namespace: false,
        ports: Vec::new(),
        sysctls: Default::default(),
        security_options: Vec::new(),
        user: None,
        groups: Vec::new(),
        oom_score_adj: 0,
        runtime: None,
    };
    let Err(RuntimeError::Failed { message, .. }) = fake.docker.create_sandbox(&config).await else { panic!() };
    assert!(message.contains("already in use"), "{message}");
    assert_eq!(fake.count("/containers/create"), 4);
    assert_eq!(fake.count("/containers/create?name=k8s_POD_p_n_u_0_"), 3);
}

/// A daemon before 23 leaves out the end; it is asked for that once more, from the newest date that was told on, and nothing
/// is told twice.
#[tokio::test]
async fn the_end_of_a_log_that_was_followed_is_looked_at_again() {
    // Of stdout or stderr, at a second; all messages are shorter than 128 bytes.
    let message = |kind: char, second: usize, text: &str| {
        let whole = format!("2026-01-01T00:00:0{second}.5+00:00 {text}");
        format!("{kind}\0\0\0\0\0\0{}{whole}", char::from(u8::try_from(whole.len()).unwrap()))
    };
    let parts = [message('\u{1}', 2, "two "), message('\u{2}', 2, "err\n")].concat();
    let first = [&message('\u{1}', 1, "one\n"), parts.as_str()].concat();
    let rest = [&parts, message('\u{1}', 2, "and more\n").as_str(), &message('\u{1}', 3, "end")].concat();
    for (api, asked) in [("1.41", 2), ("1.42", 1)] {
        let version = format!(r#"{{"Version":"99","ApiVersion":"{api}","MinAPIVersion":"1.24"}}"#);
        let (first, rest) = (first.clone(), rest.clone());
        let fake = Fake::bare(move |request, _| match request {
            "GET /version" => ok(&version),
            it if it.ends_with("/containers/abc/json") => ok(OURS),
            it if it.contains("follow=true&timestamps=true") => ok(&first),
            it if it.ends_with("follow=false&timestamps=true&since=1767225602.500000000") => ok(&rest),
            it => panic!("{it}"),
        });
        for dated in [false, true] {
            if !dated && asked == 1 {
                continue;
            }
            let options = LogOptions { follow: true, timestamps: dated, ..LogOptions::default() };
            let chunks: Vec<_> = fake.docker.logs("abc", options).map(Result::unwrap).collect().await;
            let read = |stderr: bool| {
                let bytes = chunks.iter().filter(|chunk| chunk.stderr == stderr).flat_map(|chunk| chunk.data.to_vec());
                String::from_utf8(bytes.collect()).unwrap()
            };
            let date = |second: usize| match dated {
                true => format!("2026-01-01T00:00:0{second}.5+00:00 "),
                false => String::new(),
            };
            let (one, two, three) = (date(1), date(2), date(3));
            let more = if asked == 2 { format!("and more\n{three}end") } else { String::new() };
            assert_eq!(
                (read(false), read(true)),
                (format!("{one}one\n{two}two {more}"), format!("{two}err\n")),
                "{api}"
            );
        }
        assert_eq!(fake.count("/logs"), if asked == 2 { 4 } else { 1 });
    }
}
