//! The gRPC probe's verdicts on answers.

use super::{Guest, Health, HttpError, Phase, Plugin, PluginError, Response, connected, verdict};

fn answer(status: u16, body: &[u8], trailers: &[(&str, &str)]) -> Result<Response, HttpError> {
    let trailers = trailers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
    Ok(Response { status, headers: vec![], body: body.to_vec(), truncated: false, trailers })
}

fn said(answer: Result<Response, HttpError>) -> (Health, String) {
    let report = verdict("10.0.0.1", 50051, 1000, answer).unwrap();
    (report.health, report.message)
}

#[test]
fn serving_statuses() {
    let ok = [("grpc-status", "0")];
    assert_eq!(said(answer(200, &[0, 0, 0, 0, 2, 8, 1], &ok)), (Health::Healthy, "service healthy".to_owned()));
    for (body, name) in
        [(&[0, 0, 0, 0, 2, 8, 2][..], "NOT_SERVING"), (&[0, 0, 0, 0, 0], "UNKNOWN"), (&[0, 0, 0, 0, 2, 8, 9], "9")]
    {
        let text = format!("service unhealthy (responded with {name:?})");
        assert_eq!(said(answer(200, body, &ok)), (Health::Unhealthy, text));
    }
}

#[test]
fn statuses_of_the_call() {
    let unknown = said(answer(200, &[], &[("grpc-status", "5"), ("grpc-message", "unknown%20service%")]));
    let text = "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service%";
    assert_eq!(unknown, (Health::Unhealthy, text.to_owned()));
    let unimplemented = said(answer(200, &[], &[("grpc-status", "12"), ("grpc-message", "no")])).1;
    let text = "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): no";
    assert_eq!(unimplemented, text);
    let late = said(answer(200, &[], &[("grpc-status", "4")])).1;
    assert_eq!(late, "timeout: health rpc did not complete within 1s");
    assert!(said(answer(404, &[], &[])).1.contains("unexpected HTTP status code received from server: 404"));
    assert!(said(answer(200, &[], &[])).1.contains("without sending trailers"));
}

#[test]
fn whatever_goes_wrong_on_the_way_is_a_failure() {
    let (health, text) = said(Err(HttpError::Timeout(Phase::Connect)));
    assert_eq!(health, Health::Unhealthy);
    let expected = r#"timeout: failed to connect service "10.0.0.1:50051" within 1s: context deadline exceeded"#;
    assert_eq!(text, expected);
    let broken = said(Err(HttpError::Body("connection reset by peer".to_owned())));
    assert_eq!(broken.0, Health::Unhealthy);
    assert!(broken.1.contains("code = Unavailable"), "{}", broken.1);
    let denied = verdict("10.0.0.1", 1, 1000, Err(HttpError::Denied)).unwrap_err();
    assert!(matches!(denied, PluginError::Denied(_)));
}

#[test]
fn a_port_that_refuses_is_dialed_again_until_the_time_is_over() {
    let mut tries = 0;
    let mut late = |wait: fn(u32) -> bool, first: u32| {
        let answer = connected(
            || {
                tries += 1;
                if tries < first {
                    return Err(HttpError::Connect("connection refused".to_owned()));
                }
                answer(200, &[0, 0, 0, 0, 2, 8, 1], &[("grpc-status", "0")])
            },
            wait,
        );
        (said(answer), std::mem::take(&mut tries))
    };
    assert_eq!(late(|_| true, 3), ((Health::Healthy, "service healthy".to_owned()), 3));
    let text = r#"timeout: failed to connect service "10.0.0.1:50051" within 1s: context deadline exceeded"#;
    assert_eq!(late(|_| false, 3), ((Health::Unhealthy, text.to_owned()), 1));
    // As many as the host lets one call send.
    assert_eq!(late(|_| true, 100), ((Health::Unhealthy, text.to_owned()), 16));
}

#[test]
fn a_server_that_speaks_http2_and_ends_the_call_is_asked_once_or_again_where_it_did_not_look_at_it() {
    let mut tries = 0;
    let mut ends = |text: &str| {
        let answer = connected(
            || {
                tries += 1;
                Err(HttpError::Protocol(text.to_owned()))
            },
            |_| true,
        );
        (said(answer).1, std::mem::take(&mut tries))
    };
    for (text, tries) in [
        ("stream error received: unspecific protocol error detected", 1),
        ("connection error received: unspecific protocol error detected", 1),
        ("stream error received: refused stream before processing any application logic", 2),
        ("connection error received: not a result of an error", 2),
        ("connection error received: not a result of an error (b\"max_age\")", 2),
    ] {
        let words = format!("error: health rpc probe failed: rpc error: code = Unavailable desc = {text}");
        assert_eq!(ends(text), (words, tries));
    }
    // Who does not speak it.
    let (words, tries) = ends("connection error detected: frame with invalid size");
    assert!(words.starts_with("timeout: failed to connect service") && tries == 16, "{words} {tries}");
}

#[test]
fn configurations() {
    let validate = |config: &str| Plugin::validate(config.to_owned());
    assert_eq!(validate(r#"{"port": 50051, "service": null}"#), Ok(()));
    assert_eq!(validate(r#"{"port": 50051, "service": "a.b"}"#), Ok(()));
    let named = r#"port: expected a port's number, found the text "grpc""#;
    assert_eq!(validate(r#"{"port": "grpc"}"#), Err(named.to_owned()));
    assert_eq!(
        validate(r#"{"port": 1, "servce": ""}"#),
        Err(r#"servce: unknown field; did you mean "service"?"#.to_owned())
    );
}
