//! The four built-in probes, through WebAssembly and the network.

use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore_core::ports::probes::{ProbeConfigError, ProbeOutcome, ProbePlugins as _};

use super::server::{Then, answer, closed, http2, raw, resetting};
use super::support::{Script, call, failure, success, world};

/// In which a peer on loopback hears a request and answers, be the machine ever so busy.
const ENOUGH: Duration = Duration::from_millis(1500);
/// Longer than any check may take that ends with its budget, and shorter than what it would wait for.
const PATIENCE: Duration = Duration::from_secs(15);

#[tokio::test]
async fn exec() {
    let world = world();
    let config = r#"{"command": ["sh", "-c", "true"]}"#;
    assert_eq!(world.check("exec", config).await, success("ok"));
    let asked = world.runtime.asked.lock().unwrap().pop().unwrap();
    assert_eq!((asked.container_id.as_str(), asked.command.join(" ").as_str()), ("c0ffee", "sh -c true"));
    assert!(asked.timeout <= Duration::from_secs(5) && asked.timeout > Duration::from_secs(2));
    *world.runtime.script.lock().unwrap() = Script::Exit(126, vec![b'x'; 20_000]);
    assert_eq!(world.check("exec", config).await, failure(&"x".repeat(10_240)));
    *world.runtime.script.lock().unwrap() = Script::Fail;
    let failed = world.check("exec", config).await;
    assert!(matches!(&failed, ProbeOutcome::Error { message } if message.contains("no such container")), "{failed:?}");
    *world.runtime.script.lock().unwrap() = Script::Timeout;
    let (late, _) = world.timed("exec", config, Duration::from_millis(200)).await;
    assert_eq!(late, failure(r#"command timed out: "sh -c true" timed out after 200ms"#));
}

#[tokio::test]
async fn an_exec_whose_runtime_hangs_is_an_error() {
    let world = world();
    *world.runtime.script.lock().unwrap() = Script::Hang;
    let (hung, took) = world.timed("exec", r#"{"command": ["x"]}"#, Duration::from_millis(100)).await;
    assert!(matches!(&hung, ProbeOutcome::Error { message } if message.contains("did not answer")), "{hung:?}");
    assert!(took < PATIENCE, "{took:?}");
}

#[tokio::test]
async fn tcp() {
    let world = world();
    let server = raw(|_| Vec::new(), Then::Close, false).await;
    let config = format!(r#"{{"port": {}}}"#, server.port);
    assert_eq!(world.check("tcp", &config).await, success(""));
    let port = closed();
    let refused = failure(&format!("dial tcp 127.0.0.1:{port}: connect: connection refused"));
    assert_eq!(world.check("tcp", &format!(r#"{{"port": {port}}}"#)).await, refused);
    let mut named = call("tcp", r#"{"port": "web"}"#, Duration::from_secs(5));
    named.target.ports = vec![("web".to_owned(), server.port)];
    assert_eq!(world.host.check(named).await.outcome, success(""));
    let unnamed = world.check("tcp", r#"{"port": "web"}"#).await;
    assert!(matches!(&unnamed, ProbeOutcome::Error { message } if message.contains(r#""web""#)), "{unnamed:?}");
}

#[tokio::test]
async fn the_host_of_the_configuration_counts_where_v1_has_it() {
    let world = world();
    let server = raw(|_| answer(200, "", "here"), Then::Close, false).await;
    for (plugin, message) in [("tcp", ""), ("http", "here")] {
        for host in ["127.0.0.1", "localhost"] {
            let config = format!(r#"{{"port": {}, "host": "{host}"}}"#, server.port);
            let mut elsewhere = call(plugin, &config, Duration::from_secs(5));
            // A pod without an address, as one on the host's network before its status is known.
            elsewhere.target.pod_ip = None;
            assert_eq!(world.host.check(elsewhere).await.outcome, success(message), "{plugin} {host}");
        }
    }
    assert!(
        server
            .heard
            .lock()
            .unwrap()
            .iter()
            .any(|heard| heard.contains(&format!("Host: localhost:{}\r\n", server.port)))
    );
    let mut nowhere = call("tcp", &format!(r#"{{"port": {}}}"#, server.port), Duration::from_secs(5));
    nowhere.target.pod_ip = None;
    assert!(matches!(world.host.check(nowhere).await.outcome, ProbeOutcome::Error { .. }));
    let unknown = world.check("tcp", r#"{"port": 1, "host": "no.such.name.invalid"}"#).await;
    assert_eq!(unknown, failure("dial tcp: lookup no.such.name.invalid: no such host"));
}

#[tokio::test]
async fn tcp_without_an_answer_times_out() {
    let world = world();
    // TEST-NET-1: packets to it go nowhere, or are refused by a router at once.
    let (outcome, took) = world.timed("tcp", r#"{"port": 9, "host": "192.0.2.1"}"#, Duration::from_millis(150)).await;
    let ProbeOutcome::Failure { message } = outcome else { panic!("{outcome:?}") };
    assert!(message.starts_with("dial tcp 192.0.2.1:9: "), "{message}");
    assert!(took < PATIENCE, "{took:?}");
}

#[tokio::test]
async fn http_says_what_the_kubelet_says() {
    let world = world();
    let server = raw(|_| answer(200, "", "fine"), Then::Close, false).await;
    let config = format!(
        r#"{{"port": {}, "path": "/healthz?full", "httpHeaders": [{{"name": "X-A", "value": "b"}}]}}"#,
        server.port
    );
    assert_eq!(world.check("http", &config).await, success("fine"));
    let heard = server.heard.lock().unwrap().pop().unwrap();
    let mut lines: Vec<&str> = heard.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "GET /healthz?full HTTP/1.1");
    lines.sort_unstable();
    let host = format!("Host: 127.0.0.1:{}", server.port);
    assert_eq!(lines, ["Accept: */*", "Connection: close", &host, "User-Agent: kube-probe/1.37", "X-A: b"]);
    let teapot = raw(|_| answer(418, "", "secret"), Then::Close, false).await;
    let outcome = world.check("http", &format!(r#"{{"port": {}}}"#, teapot.port)).await;
    assert_eq!(outcome, failure("HTTP probe failed with statuscode: 418"));
    let port = closed();
    let refused = format!(r#"Get "http://127.0.0.1:{port}/": dial tcp 127.0.0.1:{port}: connect: connection refused"#);
    assert_eq!(world.check("http", &format!(r#"{{"port": {port}}}"#)).await, failure(&refused));
}

#[tokio::test]
async fn http_redirects() {
    let world = world();
    let last = raw(|_| answer(200, "", "arrived"), Then::Close, false).await;
    let to = last.port;
    let local =
        raw(move |_| answer(302, &format!("Location: http://127.0.0.1:{to}/x\r\n"), ""), Then::Close, false).await;
    assert_eq!(world.check("http", &format!(r#"{{"port": {}}}"#, local.port)).await, success("arrived"));
    let away = raw(|_| answer(301, "Location: http://elsewhere.example/\r\n", "moved"), Then::Close, false).await;
    let warning = ProbeOutcome::Warning { message: "Probe terminated redirects, Response body: moved".to_owned() };
    assert_eq!(world.check("http", &format!(r#"{{"port": {}}}"#, away.port)).await, warning);
    let endless =
        raw(|port| answer(302, &format!("Location: http://127.0.0.1:{port}/\r\n"), ""), Then::Close, false).await;
    let ProbeOutcome::Failure { message } = world.check("http", &format!(r#"{{"port": {}}}"#, endless.port)).await
    else {
        panic!("an endless redirect must fail")
    };
    assert!(message.ends_with("stopped after 10 redirects"), "{message}");
    assert_eq!(endless.connections.load(Ordering::SeqCst), 10);
}

#[tokio::test]
async fn http_bodies_are_capped_and_never_waited_for_in_vain() {
    let world = world();
    let great = raw(|_| answer(200, "", &"x".repeat(100_000)), Then::Close, false).await;
    assert_eq!(world.check("http", &format!(r#"{{"port": {}}}"#, great.port)).await, success(&"x".repeat(10_240)));
    let endless = raw(|_| [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 20_000]].concat(), Then::Hold, false).await;
    let (outcome, _) = world.timed("http", &format!(r#"{{"port": {}}}"#, endless.port), ENOUGH).await;
    assert_eq!(outcome, success(&"x".repeat(10_240)));
    let cut = raw(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx".to_vec(), Then::Close, false).await;
    let outcome = world.check("http", &format!(r#"{{"port": {}}}"#, cut.port)).await;
    assert!(matches!(&outcome, ProbeOutcome::Error { message } if message == "unexpected EOF"), "{outcome:?}");
}

#[tokio::test]
async fn http_timeouts_have_the_kubelets_words() {
    let world = world();
    let silent = raw(|_| Vec::new(), Then::Hold, false).await;
    let (outcome, took) = world.timed("http", &format!(r#"{{"port": {}}}"#, silent.port), ENOUGH).await;
    let text = format!(
        r#"Get "http://127.0.0.1:{}/": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"#,
        silent.port
    );
    assert_eq!(outcome, failure(&text));
    assert!(took >= ENOUGH && took < PATIENCE, "{took:?}");
    let slow = raw(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx".to_vec(), Then::Hold, false).await;
    let (outcome, _) = world.timed("http", &format!(r#"{{"port": {}}}"#, slow.port), ENOUGH).await;
    let ProbeOutcome::Error { message } = outcome else { panic!("{outcome:?}") };
    assert!(message.ends_with("(Client.Timeout or context cancellation while reading body)"), "{message}");
}

#[tokio::test]
async fn http_answers_that_are_none() {
    let world = world();
    let closes = raw(|_| Vec::new(), Then::Close, false).await;
    let outcome = world.check("http", &format!(r#"{{"port": {}}}"#, closes.port)).await;
    assert_eq!(outcome, failure(&format!(r#"Get "http://127.0.0.1:{}/": EOF"#, closes.port)));
    let garbage = raw(|_| b"220 mail.example ESMTP\r\n\r\n".to_vec(), Then::Close, false).await;
    let ProbeOutcome::Failure { message } = world.check("http", &format!(r#"{{"port": {}}}"#, garbage.port)).await
    else {
        panic!("garbage must fail")
    };
    assert!(message.contains("malformed HTTP response"), "{message}");
    let headers = "X: y\r\n".repeat(100_000);
    let flood = raw(move |_| answer(200, &headers, ""), Then::Close, false).await;
    let outcome = world.check("http", &format!(r#"{{"port": {}}}"#, flood.port)).await;
    assert!(matches!(outcome, ProbeOutcome::Failure { .. }), "{outcome:?}");
}

#[tokio::test]
async fn https_without_verification() {
    let world = world();
    let secure = raw(|_| answer(200, "", "secure"), Then::Close, true).await;
    let config = format!(r#"{{"port": {}, "scheme": "HTTPS"}}"#, secure.port);
    assert_eq!(world.check("http", &config).await, success("secure"));
    let chosen = http2(|request| (format!("{:?}", request.version()).into_bytes(), vec![]), true).await;
    let config = format!(r#"{{"port": {chosen}, "scheme": "HTTPS"}}"#);
    assert_eq!(world.check("http", &config).await, success("HTTP/2.0"));
    let plain = raw(|_| answer(400, "", ""), Then::Close, false).await;
    let config = format!(r#"{{"port": {}, "scheme": "HTTPS"}}"#, plain.port);
    let ProbeOutcome::Failure { message } = world.check("http", &config).await else { panic!("no TLS there") };
    assert!(message.ends_with(": http: server gave HTTP response to HTTPS client"), "{message}");
    let other = raw(|_| b"220 mail.example\r\n".to_vec(), Then::Close, false).await;
    let config = format!(r#"{{"port": {}, "scheme": "HTTPS"}}"#, other.port);
    let ProbeOutcome::Failure { message } = world.check("http", &config).await else { panic!("no TLS there") };
    assert!(message.ends_with("tls: first record does not look like a TLS handshake"), "{message}");
}

#[tokio::test]
async fn grpc() {
    let world = world();
    let port = http2(
        |request| {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.headers()["te"], "trailers");
            let ok = vec![("grpc-status", "0".to_owned())];
            match &request.body()[..] {
                [0, 0, 0, 0, 0] => (vec![0, 0, 0, 0, 2, 8, 1], ok),
                body if body.ends_with(b"sick") => (vec![0, 0, 0, 0, 2, 8, 2], ok),
                _ => (vec![], vec![("grpc-status", "5".to_owned()), ("grpc-message", "unknown service".to_owned())]),
            }
        },
        false,
    )
    .await;
    let ask =
        async |service: &str| world.check("grpc", &format!(r#"{{"port": {port}, "service": "{service}"}}"#)).await;
    assert_eq!(ask("").await, success("service healthy"));
    assert_eq!(ask("sick").await, failure(r#"service unhealthy (responded with "NOT_SERVING")"#));
    let text = "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service";
    assert_eq!(ask("other").await, failure(text));
    // Told at once, and by the words that the plugin knows it by.
    let port = resetting().await;
    let ProbeOutcome::Failure { message } = world.check("grpc", &format!(r#"{{"port": {port}}}"#)).await else {
        panic!()
    };
    let text = "error: health rpc probe failed: rpc error: code = Unavailable desc = stream error received: ";
    assert!(message.starts_with(text), "{message}");
    let http1 = raw(|_| answer(200, "", ""), Then::Close, false).await;
    let unconnected = |port: u16, within: &str| {
        let place = format!("127.0.0.1:{port}");
        failure(&format!("timeout: failed to connect service {place:?} within {within}: context deadline exceeded"))
    };
    let seconds = Duration::from_secs(3);
    let (outcome, _) = world.timed("grpc", &format!(r#"{{"port": {}}}"#, http1.port), seconds).await;
    assert_eq!(outcome, unconnected(http1.port, "3s"));
    // It is dialed again.
    assert!(http1.connections.load(Ordering::SeqCst) > 1);
    let silent = raw(|_| Vec::new(), Then::Hold, false).await;
    let (outcome, _) = world.timed("grpc", &format!(r#"{{"port": {}}}"#, silent.port), ENOUGH).await;
    assert_eq!(outcome, failure("timeout: health rpc did not complete within 1.5s"));
    let port = closed();
    let (outcome, _) = world.timed("grpc", &format!(r#"{{"port": {port}}}"#), ENOUGH).await;
    assert_eq!(outcome, unconnected(port, "1.5s"));
}

#[tokio::test]
async fn configurations() {
    let world = world();
    assert_eq!(world.host.validate("http", r#"{"port": "web", "path": "/"}"#).await, Ok(()));
    let refused = world.host.validate("http", r#"{"port": 80, "pth": "/"}"#).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        r#"probe plugin "http" refuses its configuration: pth: unknown field; did you mean "path"?"#
    );
    let unknown = world.host.validate("htp", "{}").await.unwrap_err();
    assert_eq!(unknown.to_string(), r#"no probe plugin is called "htp"; there are: exec, grpc, http, tcp"#);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = world.host.validate("http", &deep).await.unwrap_err();
    assert!(matches!(deep, ProbeConfigError::Refused { .. }), "{deep}");
    assert!(matches!(world.check("nope", "{}").await, ProbeOutcome::Error { .. }));
}

#[tokio::test]
async fn many_at_once() {
    let world = world();
    let silent = raw(|_| Vec::new(), Then::Hold, false).await;
    let config = format!(r#"{{"port": {}}}"#, silent.port);
    let checks = (0..400).map(|_| world.host.check(call("http", &config, ENOUGH)));
    let outcomes = futures::future::join_all(checks).await;
    // Waiting for a place is not charged: each of them got as far as the server, which says nothing.
    assert!(outcomes.iter().all(
        |answer| matches!(&answer.outcome, ProbeOutcome::Failure { message } if message.contains("awaiting headers"))
    ));
    assert_eq!(silent.connections.load(Ordering::SeqCst), 400);
}
