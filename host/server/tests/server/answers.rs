//! What is answered to those who may.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore_core::pod::Source;
use tokio::io::AsyncWriteExt;

use crate::played::{PIECE, other};
use crate::world::{Answer, Caller, World, exchange, plain};

pub(crate) async fn master(change: impl FnOnce(&mut longshore_server::ServerConfig)) -> World {
    let world = World::new(change).await;
    world.allow(
        "master",
        "t",
        &["proxy", "stats", "metrics", "log", "checkpoint", "statusz", "configz", "pods", "healthz"],
    );
    world
}

#[tokio::test]
async fn pages() {
    let world = master(|_| {}).await;
    for (path, code, part) in [
        ("/healthz", 200, "\r\n\r\nok"),
        ("/healthz", 200, "x-content-type-options: nosniff"),
        ("/healthz?verbose", 200, "[+]syncloop ok"),
        ("/healthz/nothing", 404, ""),
        ("/pods", 200, "\"kind\":\"PodList\""),
        ("/runningpods/", 200, "\"name\":\"c\""),
        ("/configz", 200, "x-content-type-options: nosniff"),
        ("/configz", 200, "{\"kubeletconfig\":{\"kind\":\"KubeletConfiguration\"}}"),
        ("/flagz", 200, "v=2"),
        ("/statusz", 200, "kubelet statusz"),
        ("/metrics", 200, "up 1"),
        ("/metrics/resource", 200, "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 2"),
        ("/metrics/resource", 200, "node_cpu_usage_seconds_total 1.5"),
        ("/metrics/resource", 200, "container_swap_limit_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 11"),
        ("/stats/summary", 200, "\"swapAvailableBytes\":8"),
        ("/stats/summary", 200, "\"containerFs\":{\"time\":"),
        (
            "/metrics/probes",
            200,
            "prober_probe_total{container=\"c\",namespace=\"n\",pod=\"p\",probe_type=\"Liveness\",pod_uid=\"u\",\
             result=\"failed\"} 2",
        ),
        (
            "/metrics/probes",
            200,
            "prober_probe_duration_seconds_bucket{container=\"c\",namespace=\"n\",pod=\"p\",probe_type=\"Liveness\",\
             le=\"0.025\"} 0\n",
        ),
        (
            "/metrics/probes",
            200,
            "# TYPE prober_probe_duration_seconds histogram\n\
             prober_probe_duration_seconds_bucket{container=\"c\",namespace=\"n\",pod=\"p\",probe_type=\"Liveness\",\
             le=\"0.005\"} 0\n",
        ),
        (
            "/metrics/probes",
            200,
            "probe_type=\"Liveness\",le=\"+Inf\"} 1\n\
             prober_probe_duration_seconds_sum{container=\"c\",namespace=\"n\",pod=\"p\",\
             probe_type=\"Liveness\"} 0.03\n\
             prober_probe_duration_seconds_count{container=\"c\",namespace=\"n\",pod=\"p\",\
             probe_type=\"Liveness\"} 1\n",
        ),
        ("/metrics/cadvisor", 200, "container_memory_working_set_bytes"),
        ("/stats/summary", 200, "\"podRef\":{\"name\":\"p\",\"namespace\":\"n\",\"uid\":\"u\"}"),
        ("/logs/", 200, "<a href=\"one\">one</a>"),
        ("/logs/one", 200, "a line"),
        ("/logs/one/", 301, "location: ../one\r\n"),
        ("/logs/../ca.pem", 400, ""),
        ("/logs/%2e%2e/ca.pem", 400, ""),
        ("/logs/?query=docker", 200, "<a href=\"one\">one</a>"),
        ("/debug/pprof/heap", 501, ""),
        ("/run/n/p/c", 405, "\r\n\r\n405: Method Not Allowed"),
        ("/checkpoint/n/p/c", 405, "allow: POST"),
        ("/debug/flags/v", 406, "unsupported http method\n"),
        ("/exec/n/p", 404, "\r\n\r\n404: Page Not Found"),
        ("/nothing", 404, "\r\n\r\n404 page not found\n"),
        // With a slash at its end a path of go-restful's is the same, one of a plain handler is none.
        ("/pods/", 200, "PodList"),
        ("/stats/summary/", 200, "podRef"),
        ("/stats/summary?only_cpu_and_memory=1", 200, "rlimit"),
        ("/containerLogs/n/p/c/", 200, "id-c"),
        ("/healthz/", 404, "\r\n\r\n404 page not found\n"),
        ("/healthz/ping/", 404, "404 page"),
        ("/metrics/", 404, "404 page"),
        ("/metrics/resource/", 404, "404 page"),
        ("/configz/", 404, "404 page"),
        ("/flagz/", 404, "404 page"),
        ("/statusz/", 404, "404 page"),
        ("/debug/flags/v/", 404, "404 page"),
    ] {
        let answer = world.get("t", path).await;
        assert!(answer.code == code && answer.text.contains(part), "{path}: {answer:?}");
    }
    assert!(!world.get("t", "/stats/summary?only_cpu_and_memory=true").await.text.contains("rlimit"));
    let answer = world.ask(&Caller::token("t"), "DELETE", "/metrics/slis").await;
    assert!(answer.code == 200 && answer.text.ends_with("\r\n\r\nmetrics reset\n"), "{answer:?}");
    for (path, code, part) in [
        ("/run/n/p/c?cmd=ls+-l", 500, "\r\n\r\ncommand 'ls -l' exited with 3: saiderr"),
        ("/run/n/p/c?cmd=true", 200, "\r\n\r\nsaiderr"),
        ("/run/n/p/other/c?cmd=true", 500, "\r\n\r\ncontainer not found (\"c\")"),
        ("/run/n/absent/c?cmd=true", 404, "pod does not exist"),
        ("/exec/n/absent/c?command=true&output=1", 404, "pod does not exist"),
        ("/exec/n/p/w?command=true&output=1", 500, "container not found (\"w\")"),
        ("/exec/n/p/other/c?command=true&output=1", 500, "container not found (\"c\")"),
        ("/exec/n/p/c?command=true", 400, "\r\n\r\nyou must specify at least 1 of stdin, stdout, stderr"),
        ("/exec/n/p/c?command=true&output=1", 500, "\r\n\r\nUpgrade request required\n"),
        ("/attach/n/p/w?output=1", 500, "\r\n\r\ncontainer w not found in pod p_n"),
        ("/portForward/n/p", 500, "\r\n\r\nUpgrade request required\n"),
        ("/portForward/n/absent", 404, "\r\n\r\npod does not exist"),
        ("/portForward/n/p/other", 404, "\r\n\r\npod not found"),
        ("/checkpoint/n/absent/c", 404, "\r\n\r\npod does not exist"),
        ("/checkpoint/n/p/absent", 404, "\r\n\r\ncontainer absent does not exist"),
        ("/checkpoint/n/p/c?timeout=x", 404, "\r\n\r\ncannot parse value of timeout parameter"),
        ("/checkpoint/n/p/c?timeout=1&timeout=", 404, "cannot parse value of timeout parameter"),
        ("/checkpoint/n/p/c?timeout=1", 500, "\r\n\r\ncheckpointing of n/p/c failed ("),
        ("/pods", 405, ""),
        ("/metrics", 200, "up 1"),
        ("/configz", 200, "KubeletConfiguration"),
    ] {
        let answer = world.ask(&Caller::token("t"), "POST", path).await;
        assert!(answer.code == code && answer.text.contains(part), "{path}: {answer:?}");
    }
    let answer = world.ask(&Caller::token("t"), "POST", "/run/n/p/c?cmd=chatter").await;
    let body = answer.text.split_once("\r\n\r\n").unwrap().1;
    assert_eq!((answer.code, body.len()), (200, 16 << 20), "what is beyond is read, and not answered");
    // A command without its last words is another.
    let long = format!("/exec/n/p/c?{}command=last&output=1", "command=a&".repeat(4_999));
    let answer = world.ask(&Caller::token("t"), "POST", &long).await;
    assert!(answer.code == 500 && answer.text.ends_with("Upgrade request required\n"), "{answer:?}");
    let long = format!("/exec/n/p/c?{}output=1", "a&".repeat(10_000));
    let answer = world.ask(&Caller::token("t"), "POST", &long).await;
    assert!(answer.code == 400 && answer.text.ends_with("the query has more than 10000 parameters"), "{answer:?}");
    let mut stream = world.connect(&Caller::default()).await;
    let answer = exchange(&mut stream, "PUT", "/debug/flags/v", "Authorization: Bearer t\r\n", "4").await;
    assert!(answer.code == 200 && answer.text.contains("verbosity to 4"), "{answer:?}");
    let mut stream = world.connect(&Caller::default()).await;
    // A byte more than is read.
    let long = "4".repeat((1 << 20) + 1);
    let answer = exchange(&mut stream, "PUT", "/debug/flags/v", "Authorization: Bearer t\r\n", &long).await;
    assert!(answer.code == 400 && answer.text.contains("error reading request body"), "{}", answer.code);
}

/// Its mirror has another UID, and that is the one that people see.
#[tokio::test]
async fn a_static_pod_goes_by_any_uid() {
    let world = master(|_| {}).await;
    let mut fixed = (*other("static", "id-c")).clone();
    fixed.source = Source::File;
    world.pods.others.lock().unwrap().push(Arc::new(fixed));
    world.pods.others.lock().unwrap().push(other("api", "id-c"));
    for (path, code, part) in [
        ("/run/n/static/mirror/c?cmd=true", 200, "saiderr"),
        ("/exec/n/static/mirror/c?command=true&output=1", 500, "Upgrade request required"),
        ("/run/n/api/mirror/c?cmd=true", 500, "container not found (\"c\")"),
    ] {
        let answer = world.ask(&Caller::token("t"), "POST", path).await;
        assert!(answer.code == code && answer.text.contains(part), "{path}: {answer:?}");
    }
}

#[tokio::test]
async fn health_that_fails() {
    let world = master(|_| {}).await;
    *world.pods.sick.lock().unwrap() = Some("a worker stands still".to_owned());
    for (path, code, part) in [
        ("/healthz", 500, "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n"),
        ("/healthz/syncloop", 500, "internal server error: a worker stands still\n"),
        ("/healthz/ping", 200, "\r\n\r\nok"),
        ("/healthz?exclude=syncloop", 200, "\r\n\r\nok"),
        ("/healthz?verbose&exclude=syncloop", 200, "[+]syncloop excluded: ok\nhealthz check passed\n"),
        ("/healthz?exclude=other", 500, "warn: some health checks cannot be excluded: no matches for \"other\"\n"),
    ] {
        // For those who are let in, and for the machine itself.
        for answer in [world.get("t", path).await, plain(world.healthz, path).await] {
            assert!(answer.code == code && answer.text.contains(part), "{path}: {answer:?}");
        }
    }
    *world.pods.sick.lock().unwrap() = None;
    assert_eq!(plain(world.healthz, "/healthz").await.code, 200);
}

/// One whose container is between two runs has its ports while its sandbox runs; one that has ended, nothing on the node's
/// loopback any more.
#[tokio::test]
async fn a_pod_of_the_nodes_network_without_a_container_that_runs() {
    let world = master(|_| {}).await;
    for (name, sandbox, words) in [
        ("between", Some("s"), "\r\n\r\nUpgrade request required\n"),
        ("ended", None, "\r\n\r\npod not found (\"ended_n\")"),
    ] {
        let mut pod = (*other(name, "id")).clone();
        pod.object.spec.as_mut().unwrap().host_network = Some(true);
        let status = &mut pod.object.status.as_mut().unwrap().container_statuses.as_mut().unwrap()[0];
        let state = serde_json::json!({"terminated": {"exitCode": 0, "containerID": "docker://id"}});
        status.state = Some(serde_json::from_value(state).unwrap());
        pod.sandbox = sandbox.map(str::to_owned);
        world.pods.others.lock().unwrap().push(Arc::new(pod));
        let answer = world.ask(&Caller::token("t"), "POST", &format!("/portForward/n/{name}")).await;
        assert!(answer.code == 500 && answer.text.ends_with(words), "{name}: {answer:?}");
    }
}

/// Numbers are there while Docker hangs, and it is asked for a process once.
#[tokio::test]
async fn numbers_do_not_wait_for_docker() {
    let world = master(|config| config.scrape_limit = Duration::from_millis(50)).await;
    for (name, id) in [("hangs", "hung"), ("answers", "good")] {
        world.pods.others.lock().unwrap().push(other(name, id));
    }
    for path in ["/metrics/resource", "/metrics/cadvisor", "/stats/summary"] {
        let asked = tokio::time::timeout(Duration::from_secs(30), world.get("t", path)).await;
        let answer = asked.unwrap_or_else(|_| panic!("{path} never comes"));
        assert!(answer.code == 200 && answer.text.contains("hangs") && answer.text.contains("answers"), "{answer:?}");
    }
    assert_eq!(world.echo.asked.load(Ordering::SeqCst), 4, "three times of the one, once of the other");
}

#[tokio::test]
async fn logs() {
    let world = master(|_| {}).await;
    for (query, code, part) in [
        ("c?tailLines=3&follow=true", 200, "id-c tail=Some(3) follow=true\n"),
        ("c?previous=true", 200, "id-before"),
        ("c?stream=Stderr", 200, "to stderr"),
        ("c?tailLines=x", 400, "Unable to decode query."),
        ("c?tailLines=-1", 422, "Invalid request."),
        ("absent", 404, "container \"absent\" not found in pod \"p\""),
        ("w", 400, "container \"w\" in pod \"p\" is waiting to start: CreateContainerConfigError"),
        ("w?previous=true", 400, "previous terminated container \"w\" in pod \"p\" not found"),
    ] {
        let answer = world.get("t", &format!("/containerLogs/n/p/{query}")).await;
        assert!(answer.code == code && answer.text.contains(part), "{query}: {answer:?}");
    }
    let answer = world.get("t", "/containerLogs/n/absent/c").await;
    assert!(answer.code == 404 && answer.text.contains("pod \"absent\" does not exist"), "{answer:?}");
    assert!(!world.get("t", "/containerLogs/n/p/c?stream=Stdout").await.text.contains("to stderr"));
    assert!(!world.get("t", "/containerLogs/n/p/c?limitBytes=4").await.text.contains("tail"));
}

/// A log that is followed has neither its answer nor its end wait for what the container writes next.
#[tokio::test]
async fn logs_that_stay_silent() {
    let world = master(|_| {}).await;
    let ask = async |query: &str| {
        let path = format!("/containerLogs/n/p/{query}");
        tokio::time::timeout(Duration::from_secs(10), world.get("t", &path))
            .await
            .unwrap_or_else(|_| panic!("{query} never ends"))
    };
    let answer = ask("silent?follow=true&limitBytes=4").await;
    assert!(answer.code == 200 && answer.text.contains("some"), "{answer:?}");
    for query in ["broken?follow=true", "broken"] {
        let answer = ask(query).await;
        let words = "\r\n\r\nunable to retrieve container logs for docker://broken";
        assert!(answer.code == 400 && answer.text.ends_with(words), "{answer:?}");
    }
}

/// Nothing is read ahead of a client but what the sockets hold.
#[tokio::test]
async fn a_client_that_does_not_read_its_log() {
    let world = master(|_| {}).await;
    let mut stream = world.connect(&Caller::default()).await;
    let head = "GET /containerLogs/n/p/endless?follow=true HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer t\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let taken = world.logs.taken.load(Ordering::SeqCst);
        assert!(taken * PIECE < 32 << 20, "{taken} pieces");
        if taken > 0 && taken == before {
            break;
        }
        before = taken;
    }
}

#[tokio::test]
async fn disabled() {
    let world = master(|config| config.debugging_handlers = false).await;
    for path in [
        "/exec/n/p/c",
        "/attach/n/p/c",
        "/run/n/p/c",
        "/portForward/n/p",
        "/containerLogs/n/p/c",
        "/runningpods/",
        "/debug/pprof/",
        "/logs/",
    ] {
        let answer = world.get("t", path).await;
        assert!(
            answer.code == 405 && answer.text.ends_with("\r\n\r\nDebug endpoints are disabled.\n"),
            "{path}: {answer:?}"
        );
    }
    for path in ["/configz", "/flagz", "/statusz", "/checkpoint/n/p/c", "/debug/flags/v"] {
        assert_eq!(world.get("t", path).await.code, 404, "{path}");
    }
    assert_eq!(world.ask(&Caller::token("t"), "POST", "/exec/n/p/c").await.code, 405);
    assert_eq!(world.get("t", "/pods").await.code, 200);

    let world = master(|config| {
        (config.system_log_handler, config.profiling_handler, config.debug_flags_handler) = (false, false, false);
    })
    .await;
    for (path, what) in [("/logs/", "logs"), ("/debug/pprof/heap", "profiling"), ("/debug/flags/v", "flags")] {
        let answer = world.get("t", path).await;
        let words = format!("\r\n\r\n{what} endpoint is disabled.\n");
        assert!(answer.code == 405 && answer.text.ends_with(&words), "{path}: {answer:?}");
    }
}

/// What browsers and those who fetch large files again ask for.
#[tokio::test]
async fn files_of_the_log_folder() {
    let world = master(|_| {}).await;
    std::fs::create_dir(world.folder.path().join("log/deep")).unwrap();
    let ask = async |path: &str, header: &str| {
        let headers = format!("Authorization: Bearer t\r\n{header}");
        exchange(&mut world.connect(&Caller::default()).await, "GET", path, &headers, "").await
    };
    let answer = ask("/logs/deep?x=1", "").await;
    assert!(answer.code == 301 && answer.text.contains("location: deep/?x=1\r\n"), "{answer:?}");
    let whole = ask("/logs/one", "").await;
    assert!(whole.code == 200 && whole.text.ends_with("\r\n\r\na line\n"), "{whole:?}");
    assert!(whole.text.contains("content-length: 7\r\n") && whole.text.contains("accept-ranges: bytes\r\n"));
    let date = whole.text.lines().find_map(|line| line.strip_prefix("last-modified: ")).unwrap();
    assert!(date.ends_with(" GMT"), "{date}");
    for (header, code, part) in [
        ("Range: bytes=2-3".to_owned(), 206, "\r\n\r\nli"),
        (format!("Range: bytes=2-\r\nIf-Range: {date}"), 206, "content-range: bytes 2-6/7\r\n"),
        ("Range: bytes=2-\r\nIf-Range: Sat, 01 Jan 2000 00:00:00 GMT".to_owned(), 200, "\r\n\r\na line\n"),
        ("Range: bytes=7-".to_owned(), 416, "content-range: bytes */7\r\n"),
        (format!("If-Modified-Since: {date}"), 304, ""),
        ("If-Modified-Since: Sat, 01 Jan 2000 00:00:00 GMT".to_owned(), 200, "a line"),
    ] {
        let answer = ask("/logs/one", &format!("{header}\r\n")).await;
        assert!(answer.code == code && answer.text.contains(part), "{header}: {answer:?}");
    }
}

pub(crate) async fn accepting(world: &World, path: &str, accept: &str) -> Answer {
    let headers = format!("Authorization: Bearer t\r\nAccept: {accept}\r\n");
    exchange(&mut world.connect(&Caller::default()).await, "GET", path, &headers, "").await
}

#[tokio::test]
async fn pages_for_people_and_for_programs() {
    let world = master(|_| {}).await;
    let answer = accepting(&world, "/flagz", "*/*").await;
    let words = "\r\n\r\n\nkubelet flagz\nWarning: This endpoint is not meant to be machine parseable, has no formatting \
                 compatibility guarantees and is for debugging purposes only.\nv=2\n";
    assert!(answer.code == 200 && answer.text.ends_with(words), "{answer:?}");
    let answer = accepting(&world, "/statusz", "text/plain").await;
    assert!(answer.code == 200 && answer.text.contains("\n\nStarted: ") && answer.text.contains("\nUp: 0 hr 00 min "));
    for version in ["v1alpha1", "v1beta1"] {
        let accept = |media: &str, kind: &str| format!("application/{media};v={version};g=config.k8s.io;as={kind}");
        let answer = accepting(&world, "/statusz", &accept("json", "Statusz")).await;
        let (head, body) = answer.text.split_once("\r\n\r\n").unwrap();
        let object: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&object["kind"], &object["metadata"]["name"]), (&"Statusz".into(), &"kubelet".into()));
        assert_eq!(object["apiVersion"], format!("config.k8s.io/{version}"));
        assert_eq!(object["paths"], serde_json::json!(["/configz", "/debug", "/flagz", "/healthz", "/metrics"]));
        assert!(object["uptimeSeconds"].is_u64() && object["startTime"].is_string(), "{object}");
        assert_eq!(head.contains("warning: 299 - \"This version of the statusz"), version == "v1alpha1", "{head}");
        let answer = accepting(&world, "/flagz", &accept("yaml", "Flagz")).await;
        assert!(answer.text.contains("content-type: application/yaml"), "{answer:?}");
        let (_, body) = answer.text.split_once("\r\n\r\n").unwrap();
        let object: serde_json::Value = serde_saphyr::from_str(body).unwrap();
        assert_eq!((&object["kind"], &object["flags"]), (&"Flagz".into(), &serde_json::json!({"v": "2"})));
    }
    for accept in ["application/json", "application/xml", "application/json;v=v1;g=config.k8s.io;as=Statusz"] {
        let answer = accepting(&world, "/statusz", accept).await;
        assert!(
            answer.code == 406 && answer.text.contains("only the following media types are accepted"),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn logs_of_services() {
    let world = master(|config| config.system_log_query = true).await;
    std::fs::create_dir(world.folder.path().join("log/deep")).unwrap();
    std::fs::write(world.folder.path().join("log/deep/deep.log"), "a deep line\n").unwrap();
    let large = std::fs::File::create(world.folder.path().join("log/large.log")).unwrap();
    large.set_len(17 << 20).unwrap();
    for (path, code, part) in [
        ("/logs/", 200, "<a href=\"one\">one</a>"),
        ("/logs/one", 200, "a line"),
        ("/logs/?query=one", 200, "\r\na line\n"),
        ("/logs/?query=deep", 200, "\r\na deep line\n"),
        ("/logs/?query=%2Fone", 200, "a line\n"),
        ("/logs/?query=none", 200, "\nlog not found for none\n"),
        ("/logs/?query=one&tailLines=1", 200, "\noptions present and query resolved to log files for [one]\n"),
        ("/logs/?query=%2F..%2Fca.pem", 406, "no such file or directory"),
        ("/logs/?query=", 400, "may not be empty"),
        ("/logs/?query=%3Bls", 406, "input contains unsupported characters"),
        ("/logs/one?query=one", 406, "path not allowed in query mode"),
        ("/logs/?tailLines=1", 406, "cannot be empty with options"),
    ] {
        let answer = world.get("t", path).await;
        assert!(answer.code == code && answer.text.contains(part), "{path}: {answer:?}");
    }
    let answer = world.get("t", "/logs/?query=large").await;
    assert!(answer.code == 200 && answer.text.len() > 17 << 20, "{}", answer.text.len());
}
