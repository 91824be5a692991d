//! The URL source against a scripted host.

use super::{Batch, Cursor, FetchRequest, HttpError, Phase, PluginError, Response, Update, config, poll};

type Answer = Result<Response, HttpError>;

fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
    Ok(Response { status, headers, body: body.as_bytes().to_vec(), truncated: false, trailers: vec![] })
}

fn run(config: &str, seen: Option<&Batch>, answers: Vec<Answer>) -> (Result<Batch, PluginError>, Vec<FetchRequest>) {
    let config = config::read(config).unwrap();
    let mut answers = answers.into_iter();
    let mut requests = Vec::new();
    let seen = seen.and_then(|batch| Cursor::read(&batch.cursor));
    let batch = poll(&config, seen, |request| {
        requests.push(request);
        answers.next().unwrap()
    });
    (batch, requests)
}

fn body(batch: &Batch) -> Option<&[u8]> {
    match &batch.update {
        Update::Snapshot(entries) => Some(&entries[0].manifest),
        _ => None,
    }
}

fn failure(result: Result<Batch, PluginError>) -> String {
    match result {
        Err(PluginError::Failed(text) | PluginError::Denied(text)) => text,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("no failure"),
    }
}

fn header<'a>(request: &'a FetchRequest, wanted: &str) -> Vec<&'a str> {
    let matching = request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
    matching.map(|(_, value)| std::str::from_utf8(value).unwrap()).collect()
}

const PLAIN: &str = r#"{"url": "http://h/pods"}"#;

#[test]
fn a_body_is_handed_over_once() {
    let (first, requests) = run(PLAIN, None, vec![answer(200, &[], "pod")]);
    let first = first.unwrap();
    assert_eq!(body(&first), Some(&b"pod"[..]));
    assert_eq!((requests[0].method.as_str(), requests[0].url.as_str()), ("GET", "http://h/pods"));
    assert_eq!(requests[0].headers.len(), 1, "nothing but the agent's name: {:?}", requests[0].headers);
    let (second, requests) = run(PLAIN, Some(&first), vec![answer(200, &[], "pod")]);
    assert!(matches!(second.unwrap().update, Update::Unchanged));
    assert!(header(&requests[0], "If-None-Match").is_empty());
    let (third, _) = run(PLAIN, Some(&first), vec![answer(200, &[], "other")]);
    assert_eq!(body(&third.unwrap()), Some(&b"other"[..]));
    // What is empty is handed over as well: the host knows what that means.
    assert_eq!(body(&run(PLAIN, None, vec![answer(200, &[], "")]).0.unwrap()), Some(&b""[..]));
}

#[test]
fn an_etag_is_asked_with() {
    let (first, _) = run(PLAIN, None, vec![answer(200, &[("ETag", "\"1\"")], "pod")]);
    let first = first.unwrap();
    let (second, requests) = run(PLAIN, Some(&first), vec![answer(304, &[], "")]);
    let second = second.unwrap();
    assert_eq!(header(&requests[0], "If-None-Match"), ["\"1\""]);
    assert!(matches!(second.update, Update::Unchanged));
    assert_eq!(second.cursor, first.cursor);
    let (third, _) = run(PLAIN, Some(&second), vec![answer(200, &[("etag", "\"2\"")], "pod")]);
    let third = third.unwrap();
    assert!(matches!(third.update, Update::Unchanged));
    let (_, requests) = run(PLAIN, Some(&third), vec![answer(304, &[], "")]);
    assert_eq!(header(&requests[0], "If-None-Match"), ["\"2\""]);
    // Nobody asked for this one.
    assert_eq!(failure(run(PLAIN, None, vec![answer(304, &[], "")]).0), "http://h/pods: 304 Not Modified");
}

#[test]
fn custom_headers_are_sent_as_they_are() {
    let config = r#"{"url": "http://h/", "userAgent": "longshore/1", "headers":
        [["X-A", "1"], ["X-A", "2"], ["Host", "elsewhere"], ["Metadata-Flavor", "Google"]]}"#;
    let (_, requests) = run(config, None, vec![answer(200, &[], "")]);
    assert_eq!(header(&requests[0], "X-A"), ["1", "2"]);
    assert_eq!(header(&requests[0], "User-Agent"), ["longshore/1"]);
    assert_eq!(header(&requests[0], "Metadata-Flavor"), ["Google"]);
    assert!(header(&requests[0], "Host").is_empty());
    let own = r#"{"url": "http://h/", "headers": [["user-agent", "me"], ["authorization", "Bearer x"]]}"#;
    let (_, requests) = run(own, None, vec![answer(200, &[], "")]);
    assert_eq!(header(&requests[0], "User-Agent"), ["me"]);
    assert_eq!(header(&requests[0], "Authorization"), ["Bearer x"]);
    for (config, why) in [
        ("{}", "url: required"),
        (r#"{"url": "x"}"#, "url: expected a URL like https://host/pods.yaml"),
        (
            r#"{"url": "http://h/", "headers": [["a b", "secret"]]}"#,
            "headers[0]: \"a b\" is not an HTTP header name (like X-Header-Name)",
        ),
        (
            r#"{"url": "http://h/", "headers": [["a", "secret\n"]]}"#,
            "headers[0]: the value of a has control characters, which no header may have",
        ),
    ] {
        assert_eq!(config::read(config).err().unwrap(), why);
    }
}

#[test]
fn redirects_as_gos_client_follows_them() {
    let to = |location: &str| answer(302, &[("Location", location)], "");
    let config = r#"{"url": "http://u:p@h/a", "headers": [["X-A", "1"]]}"#;
    let (batch, requests) =
        run(config, None, vec![to("/b"), to("https://h/c"), to("http://h/d"), answer(200, &[], "x")]);
    assert_eq!(body(&batch.unwrap()), Some(&b"x"[..]));
    let urls: Vec<&str> = requests.iter().map(|request| request.url.as_str()).collect();
    assert_eq!(urls, ["http://h/a", "http://h/b", "https://h/c", "http://h/d"]);
    let sent = |wanted| requests.iter().map(|request| header(request, wanted).concat()).collect::<Vec<_>>();
    assert_eq!(sent("X-A"), ["1", "1", "1", "1"]);
    assert_eq!(sent("Referer"), ["", "http://h/a", "http://h/b", ""]);
    assert_eq!(sent("Authorization"), ["Basic dTpw", "Basic dTpw", "", ""]);
    let (batch, requests) = run(PLAIN, None, (0..20).map(|_| to("/x")).collect());
    assert_eq!(failure(batch), "Get \"http://h/x\": stopped after 10 redirects");
    assert_eq!(requests.len(), 10);
    assert_eq!(failure(run(PLAIN, None, vec![answer(301, &[], "")]).0), "http://h/pods: 301 Moved Permanently");
    let denied = failure(run(PLAIN, None, vec![to("http://other/"), Err(HttpError::Denied)]).0);
    assert!(denied.contains("\"other\" is another"), "{denied}");
}

#[test]
fn failures_are_no_empty_sets() {
    let config = r#"{"url": "http://u:secret@h:81/a", "headers": [["X-A", "secret"]]}"#;
    for (answer, text) in [
        (answer(500, &[], "pods"), "http://u:xxxxx@h:81/a: 500 Internal Server Error"),
        (answer(204, &[], ""), "http://u:xxxxx@h:81/a: 204 No Content"),
        (answer(299, &[], ""), "http://u:xxxxx@h:81/a: 299 (expected 200)"),
        (
            Err(HttpError::Connect("connection refused".to_owned())),
            "Get \"http://u:xxxxx@h:81/a\": dial tcp h:81: connect: connection refused",
        ),
        (Err(HttpError::Timeout(Phase::Body)), "Get \"http://u:xxxxx@h:81/a\": timed out while reading the body"),
    ] {
        assert_eq!(failure(run(config, None, vec![answer]).0), text);
    }
    let large = Ok(Response { status: 200, headers: vec![], body: vec![b' '], truncated: true, trailers: vec![] });
    assert!(failure(run(config, None, vec![large]).0).contains("more than 10485760 bytes"));
}
