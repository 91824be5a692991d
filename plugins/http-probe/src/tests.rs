//! The HTTP probe against a scripted host.

use super::{Health, HttpError, Phase, PluginError, Request, Response, check, config};
use longshore_guest::{NamedPort, Target};

fn target() -> Target {
    Target {
        pod_uid: "u".to_owned(),
        namespace: "default".to_owned(),
        pod: "p".to_owned(),
        container: "c".to_owned(),
        address: Some("10.0.0.1".to_owned()),
        ports: vec![NamedPort { name: "web".to_owned(), number: 8080 }],
        attrs: vec![("kubernetes-version".to_owned(), "1.37".to_owned())],
    }
}

fn answer(status: u16, location: &str, body: &str) -> Result<Response, HttpError> {
    let headers =
        if location.is_empty() { vec![] } else { vec![("location".to_owned(), location.as_bytes().to_vec())] };
    Ok(Response { status, headers, body: body.as_bytes().to_vec(), truncated: false, trailers: vec![] })
}

type Answers = Vec<Result<Response, HttpError>>;

fn run(config: &str, answers: Answers) -> (Result<(Health, String), PluginError>, Vec<Request>) {
    let get = config::read(config).unwrap();
    let mut answers = answers.into_iter();
    let mut requests = Vec::new();
    let report = check(&target(), &get, |request| {
        requests.push(request);
        answers.next().unwrap()
    });
    (report.map(|report| (report.health, report.message)), requests)
}

fn header<'a>(request: &'a Request, wanted: &str) -> Vec<&'a str> {
    let matching = request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
    matching.map(|(_, value)| std::str::from_utf8(value).unwrap()).collect()
}

#[test]
fn the_kubelets_request() {
    let (report, requests) = run(r#"{"port": "web", "path": "/healthz?a=b"}"#, vec![answer(200, "", "fine")]);
    assert_eq!(report.unwrap(), (Health::Healthy, "fine".to_owned()));
    let request = &requests[0];
    assert_eq!((request.port, request.path.as_str(), request.max_body), (8080, "/healthz?a=b", 10240));
    assert_eq!(header(request, "host"), ["10.0.0.1:8080"]);
    assert_eq!(header(request, "user-agent"), ["kube-probe/1.37"]);
    assert_eq!(header(request, "accept"), ["*/*"]);
}

#[test]
fn the_authors_headers_win() {
    let config = r#"{"port": 80, "httpHeaders": [{"name": "host", "value": "shop.example"},
        {"name": "User-Agent", "value": "me"}, {"name": "Accept", "value": ""}, {"name": "X", "value": "1"},
        {"name": "X", "value": "2"}, {"name": "Content-Length", "value": "7"}]}"#;
    let (_, requests) = run(config, vec![answer(200, "", "")]);
    assert_eq!(header(&requests[0], "host"), ["shop.example"]);
    assert_eq!(header(&requests[0], "user-agent"), ["me"]);
    assert!(header(&requests[0], "accept").is_empty());
    assert_eq!(header(&requests[0], "x"), ["1", "2"]);
    assert!(header(&requests[0], "content-length").is_empty());
}

#[test]
fn statuses() {
    for status in [200, 204, 299] {
        assert_eq!(run(r#"{"port": 1}"#, vec![answer(status, "", "")]).0.unwrap().0, Health::Healthy);
    }
    for status in [300, 304, 302] {
        let (health, message) = run(r#"{"port": 1}"#, vec![answer(status, "", "there")]).0.unwrap();
        assert_eq!(health, Health::HealthyWithWarning);
        assert_eq!(message, "Probe terminated redirects, Response body: there");
    }
    for status in [199, 400, 404, 500, 999] {
        let (health, message) = run(r#"{"port": 1}"#, vec![answer(status, "", "secret")]).0.unwrap();
        assert_eq!(health, Health::Unhealthy);
        assert_eq!(message, format!("HTTP probe failed with statuscode: {status}"));
    }
}

#[test]
fn redirects_stay_on_the_host() {
    let config = r#"{"port": 80, "path": "/a", "httpHeaders": [{"name": "Host", "value": "shop.example"}]}"#;
    let answers = vec![
        answer(302, "/b", ""),
        answer(308, "https://10.0.0.1:8443/c", ""),
        answer(301, "http://elsewhere.example/d", "moved"),
    ];
    let (report, requests) = run(config, answers);
    let warning = "Probe terminated redirects, Response body: moved".to_owned();
    assert_eq!(report.unwrap(), (Health::HealthyWithWarning, warning));
    assert_eq!(requests.iter().map(|request| request.port).collect::<Vec<_>>(), [80, 80, 8443]);
    assert_eq!(header(&requests[1], "host"), ["shop.example"]);
    assert_eq!(header(&requests[1], "referer"), ["http://10.0.0.1:80/a"]);
    assert_eq!(header(&requests[2], "host"), ["10.0.0.1:8443"]);
}

#[test]
fn redirects_end() {
    let (report, requests) = run(r#"{"port": 80}"#, (0..10).map(|_| answer(302, "/next", "")).collect());
    assert_eq!(requests.len(), 10);
    let text = r#"Get "http://10.0.0.1:80/next": stopped after 10 redirects"#;
    assert_eq!(report.unwrap(), (Health::Unhealthy, text.to_owned()));
    let (report, _) = run(r#"{"port": 80}"#, vec![answer(302, "/%zz", "")]);
    assert!(report.unwrap().1.contains("failed to parse Location header"));
}

#[test]
fn failures_have_gos_words() {
    for (error, text) in [
        (HttpError::Connect("connection refused".to_owned()), "dial tcp 10.0.0.1:80: connect: connection refused"),
        (
            HttpError::Timeout(Phase::Headers),
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
        ),
        (
            HttpError::Timeout(Phase::Connect),
            "dial tcp 10.0.0.1:80: i/o timeout (Client.Timeout exceeded while awaiting headers)",
        ),
        (HttpError::Closed("EOF".to_owned()), "EOF"),
    ] {
        let (report, _) = run(r#"{"port": 80}"#, vec![Err(error)]);
        assert_eq!(report.unwrap(), (Health::Unhealthy, format!(r#"Get "http://10.0.0.1:80/": {text}"#)));
    }
}

#[test]
fn no_verdict_without_an_answer_to_judge() {
    let broken = run(r#"{"port": 80}"#, vec![Err(HttpError::Body("unexpected EOF".to_owned()))]).0;
    assert!(matches!(broken, Err(PluginError::Failed(_))));
    let streams = run(r#"{"port": 80}"#, vec![Err(HttpError::Timeout(Phase::Body))]).0;
    assert!(matches!(streams, Err(PluginError::Failed(text)) if text.ends_with("while reading body)")));
    let denied = run(r#"{"port": 80}"#, vec![Err(HttpError::Denied)]).0;
    assert!(matches!(denied, Err(PluginError::Denied(_))));
    let (unnamed, requests) = run(r#"{"port": "nope"}"#, vec![]);
    assert!(matches!(unnamed, Err(PluginError::Failed(text)) if text.contains(r#"no port named "nope""#)));
    assert!(requests.is_empty());
}
