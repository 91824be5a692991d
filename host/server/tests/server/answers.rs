//! What is answered to those who may.

use crate::world::{Caller, World, exchange};

async fn master(change: impl FnOnce(&mut longshore_server::ServerConfig)) -> World {
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
        ("/healthz?verbose", 200, "[+]syncloop ok"),
        ("/healthz/nothing", 404, ""),
        ("/pods", 200, "\"kind\":\"PodList\""),
        ("/runningpods/", 200, "\"name\":\"c\""),
        ("/configz", 200, "{\"kubeletconfig\":{\"kind\":\"KubeletConfiguration\"}}"),
        ("/flagz", 200, "v=2"),
        ("/statusz", 200, "kubelet statusz"),
        ("/metrics", 200, "up 1"),
        ("/metrics/resource", 200, "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 2"),
        ("/metrics/resource", 200, "node_cpu_usage_seconds_total 1.5"),
        ("/metrics/cadvisor", 200, "container_memory_working_set_bytes"),
        ("/stats/summary", 200, "\"podRef\":{\"name\":\"p\",\"namespace\":\"n\",\"uid\":\"u\"}"),
        ("/logs/", 200, "<a href=\"one\">one</a>"),
        ("/logs/one", 200, "a line"),
        ("/logs/../ca.pem", 400, ""),
        ("/logs/%2e%2e/ca.pem", 400, ""),
        ("/logs/?query=docker", 404, ""),
        ("/debug/pprof/heap", 501, ""),
        ("/run/n/p/c", 405, ""),
        ("/checkpoint/n/p/c", 405, ""),
        ("/nothing", 404, ""),
    ] {
        let answer = world.get("t", path).await;
        assert!(answer.code == code && answer.text.contains(part), "{path}: {answer:?}");
    }
    for (path, code, part) in [
        ("/run/n/p/c?cmd=true", 500, "command terminated with exit code 3"),
        ("/run/n/absent/c?cmd=true", 404, "pod does not exist"),
        ("/exec/n/absent/c?command=true&output=1", 404, "pod does not exist"),
        ("/exec/n/p/w?command=true&output=1", 500, "container not found (\"w\")"),
        ("/exec/n/p/c?command=true", 400, ""),
        ("/exec/n/p/c?command=true&output=1", 400, ""),
        ("/portForward/n/absent", 404, "pod does not exist"),
        ("/checkpoint/n/absent/c", 404, ""),
        ("/checkpoint/n/p/absent", 404, ""),
        ("/checkpoint/n/p/c?timeout=x", 404, ""),
        ("/checkpoint/n/p/c", 500, "checkpointing of n/p/c failed"),
        ("/pods", 405, ""),
    ] {
        let answer = world.ask(&Caller::token("t"), "POST", path).await;
        assert!(answer.code == code && answer.text.contains(part), "{path}: {answer:?}");
    }
    let mut stream = world.connect(&Caller::default()).await;
    let answer = exchange(&mut stream, "PUT", "/debug/flags/v", "Authorization: Bearer t\r\n", "4").await;
    assert!(answer.code == 200 && answer.text.contains("verbosity to 4"), "{answer:?}");
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
        assert!(answer.code == 405 && answer.text.ends_with("Debug endpoints are disabled."), "{path}: {answer:?}");
    }
    for path in ["/configz", "/flagz", "/statusz", "/checkpoint/n/p/c"] {
        assert_eq!(world.get("t", path).await.code, 404, "{path}");
    }
    assert_eq!(world.get("t", "/pods").await.code, 200);
}
