//! Sources from outside: the built-in manifest URL against servers on loopback, over HTTP and TLS, and sources that mean harm.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use longshore_core::pod::Source;
use longshore_core::ports::sources::{PodSource as _, SourceProblem, SourceSnapshot};
use longshore_wasm::{Limits, PluginSource, SourceOptions, UrlSource};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::guests::{SLEEP, source};
use super::server::{answer, held};
use super::support::world;

const PERIOD: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);

fn pod(name: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}},
            "spec": {{"containers": [{{"name": "app", "image": "busybox"}}]}}}}"#
    )
}

fn list(names: &[&str]) -> String {
    let items: Vec<String> = names.iter().map(|name| pod(name)).collect();
    format!(r#"{{"apiVersion": "v1", "kind": "PodList", "items": [{}]}}"#, items.join(","))
}

type Script = Arc<Mutex<Box<dyn Fn(&str) -> Option<Vec<u8>> + Send>>>;

/// A server whose answers can be changed; `None` says nothing, ever.
struct Server {
    port: u16,
    script: Script,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let script: Script = Arc::new(Mutex::new(Box::new(|_| Some(answer(404, "", "")))));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let server = Self { port, script: Arc::clone(&script), heard: Arc::clone(&heard) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, heard, tls) = (Arc::clone(&script), Arc::clone(&heard), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, script, heard).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, script, heard).await;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    fn script(&self, script: impl Fn(&str) -> Option<Vec<u8>> + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    fn says(&self, status: u16, headers: &'static str, body: &str) {
        let body = body.to_owned();
        self.script(move |_| Some(answer(status, headers, &body)));
    }

    fn requests(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, script: Script, heard: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte).await {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let said = script.lock().unwrap()(&head);
    heard.lock().unwrap().push(head);
    match said {
        Some(said) => {
            let _ = stream.write_all(&said).await;
            let _ = stream.shutdown().await;
        }
        None => {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
    }
}

/// A source, and its word.
struct Heard {
    source: PluginSource,
    snapshots: BoxStream<'static, SourceSnapshot>,
    problems: BoxStream<'static, Vec<SourceProblem>>,
}

impl Heard {
    fn new(source: PluginSource) -> Self {
        let (snapshots, problems) = (source.snapshots(), source.problems());
        Self { source, snapshots, problems }
    }

    fn url(url: &str, change: impl FnOnce(&mut UrlSource)) -> Self {
        let mut url = UrlSource {
            url: url.to_owned(),
            headers: Vec::new(),
            period: PERIOD,
            ca_file: None,
            node_name: "n1".to_owned(),
            version: "0.0.1".to_owned(),
            former: Vec::new(),
        };
        change(&mut url);
        Self::new(world().host.sources().unwrap().url(url).unwrap())
    }

    fn plugin(wasm: &[u8], limits: Limits) -> Self {
        let options = SourceOptions {
            source: Source::Plugin("mine".to_owned()),
            node_name: "n1".to_owned(),
            place: "plugin mine".to_owned(),
            config: "{}".to_owned(),
            period: PERIOD,
            budget: Duration::from_millis(300),
            former: Vec::new(),
            hosts: Vec::new(),
            ca_file: None,
        };
        Self::new(world().host.sources().unwrap().plugin("mine", wasm, options, limits).unwrap())
    }

    /// The next word that is as `good` has it.
    async fn until(&mut self, what: &str, good: impl Fn(&SourceSnapshot) -> bool) -> SourceSnapshot {
        let mut last = None;
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let said = self.snapshots.next().await.unwrap();
                if good(&said) {
                    return said;
                }
                last = Some(said);
            }
        });
        found.await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}; the last word was {last:?}"))
    }

    async fn pods(&mut self, wanted: &[&str]) -> SourceSnapshot {
        self.until(&format!("pods {wanted:?}"), |said| names(said) == wanted && said.problems.is_empty()).await
    }

    async fn trouble(&mut self, part: &str) -> SourceSnapshot {
        self.until(part, |said| said.problems.iter().any(|problem| problem.message.contains(part))).await
    }

    /// What it says while it has never answered.
    async fn unsaid(&mut self) -> String {
        let problems = tokio::time::timeout(PATIENCE, self.problems.next()).await.unwrap().unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].message.clone()
    }

    async fn polls(&self, more: u64) {
        let before = self.source.statistics().polls;
        tokio::time::timeout(PATIENCE, async {
            while self.source.statistics().polls < before + more {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    }
}

fn names(said: &SourceSnapshot) -> Vec<&str> {
    said.pods.iter().map(|pod| pod.id.name.as_str()).collect()
}

#[tokio::test]
async fn a_pod_a_list_and_yaml() {
    let server = Server::start(None).await;
    server.says(200, "", &pod("a"));
    let mut heard = Heard::url(&server.url("/pods?x=1"), |url| {
        url.headers = vec![("Metadata-Flavor".to_owned(), "Google".to_owned()), ("X-B".to_owned(), "1".to_owned())];
    });
    let said = heard.pods(&["a-n1"]).await;
    let annotations = said.pods[0].annotations();
    assert_eq!(annotations["kubernetes.io/config.source"], "http");
    assert_eq!(annotations["kubernetes.io/config.hash"], said.pods[0].id.uid);
    assert_eq!(said.pods[0].source, Source::Http);
    assert!(said.pods[0].object.spec.as_ref().unwrap().tolerations.is_none(), "only the folder's pods get one");
    let request = server.requests()[0].clone();
    assert!(request.starts_with("GET /pods?x=1 HTTP/1.1\r\n"), "{request}");
    let mut headers: Vec<&str> = request.trim_end().lines().skip(1).collect();
    headers.sort_unstable();
    let host = format!("Host: 127.0.0.1:{}", server.port);
    assert_eq!(
        headers,
        ["Connection: close", &host, "Metadata-Flavor: Google", "User-Agent: longshore/0.0.1", "X-B: 1"]
    );

    server.says(200, "", &list(&["a", "b"]));
    heard.pods(&["a-n1", "b-n1"]).await;
    server.says(200, "", &list(&["b"]));
    heard.pods(&["b-n1"]).await;
    server.says(
        200,
        "",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: yam}\nspec: {containers: [{name: app, image: busybox}]}\n",
    );
    heard.pods(&["yam-n1"]).await;
    server.says(200, "", &list(&[]));
    heard.pods(&[]).await;
    assert_eq!(heard.source.statistics().instances, 1, "the instance is warm");
    assert_eq!(heard.source.statistics().faults, 0);
}

#[tokio::test]
async fn etags_and_equal_bodies() {
    let server = Server::start(None).await;
    let body = list(&["a"]);
    let tagged = body.clone();
    server.script(move |request| {
        let known = request.contains("If-None-Match: \"one\"");
        Some(if known { answer(304, "ETag: \"one\"\r\n", "") } else { answer(200, "ETag: \"one\"\r\n", &tagged) })
    });
    let mut heard = Heard::url(&server.url("/"), |_| ());
    heard.pods(&["a-n1"]).await;
    heard.polls(3).await;
    let requests = server.requests();
    assert!(
        !requests[0].contains("If-None-Match") && requests[1..].iter().all(|it| it.contains("If-None-Match: \"one\""))
    );
    // A failure in between, and the same again: one word for each, and the tag is still known.
    server.says(503, "", "");
    let said = heard.trouble("503 Service Unavailable").await;
    assert_eq!(names(&said), ["a-n1"]);
    server.says(200, "ETag: \"two\"\r\n", &body);
    heard.pods(&["a-n1"]).await;
    heard.polls(3).await;
    assert!(server.requests().last().unwrap().contains("If-None-Match: \"two\""));
    server.says(200, "", &list(&["b"]));
    heard.pods(&["b-n1"]).await;
}

#[tokio::test]
async fn failures_keep_the_pods() {
    let server = Server::start(None).await;
    server.says(200, "", &list(&["a"]));
    let mut heard = Heard::url(&server.url("/"), |_| ());
    heard.pods(&["a-n1"]).await;
    for (status, headers, body, part) in [
        (500, "", list(&[]), "500 Internal Server Error"),
        (204, "", String::new(), "204 No Content"),
        (200, "", String::new(), "zero-length data received"),
        (200, "", "# nothing\n---\n".to_owned(), "it describes nothing"),
        (200, "", "<html>Welcome</html>".to_owned(), "expected an object with apiVersion and kind"),
        (200, "", "{\"kind\": \"Pod\"".to_owned(), "not valid JSON"),
        (200, "", "a: [b\n".to_owned(), ""),
        (200, "", list(&["c", "Bad_Name"]), "Bad_Name"),
        (302, "Location: http://localhost.localdomain:1/\r\n", String::new(), "only the host of the manifest URL"),
        (302, "Location: ftp://127.0.0.1/\r\n", String::new(), "unsupported protocol scheme"),
        (302, "Location: /\r\n", String::new(), "stopped after 10 redirects"),
        (200, "Content-Encoding: gzip\r\n", "\u{1f}\u{8b}".to_owned(), "control character"),
    ] {
        server.says(status, headers, &body);
        let said = heard.trouble(part).await;
        assert_eq!(names(&said), ["a-n1"], "{part}");
        assert!(said.problems.iter().all(|problem| problem.place.starts_with(&server.url("/"))), "{:?}", said.problems);
        server.says(200, "", &list(&["a"]));
        heard.pods(&["a-n1"]).await;
    }
    // A body that breaks off, and one that is too large.
    server.script(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".to_vec()));
    assert_eq!(names(&heard.trouble("unexpected EOF").await), ["a-n1"]);
    server.says(200, "", &format!("{}{}", list(&[]), " ".repeat(10 << 20)));
    assert_eq!(names(&heard.trouble("more than 10485760 bytes").await), ["a-n1"]);
    // One that is as large as it may be.
    let large = list(&["z"]);
    let large = format!("{large}{}", " ".repeat((10 << 20) - large.len()));
    server.says(200, "", &large);
    heard.pods(&["z-n1"]).await;
    assert_eq!(heard.source.statistics().faults, 0);
}

#[tokio::test]
async fn redirects_on_the_same_host() {
    let server = Server::start(None).await;
    let there = server.url("/c");
    let body = list(&["a"]);
    server.script(move |request| {
        Some(match request.split(' ').nth(1) {
            Some("/a") => answer(301, "Location: b\r\n", ""),
            Some("/b") => answer(307, &format!("Location: {there}\r\n"), ""),
            _ => answer(200, "", &body),
        })
    });
    let mut heard = Heard::url(&server.url("/a"), |url| url.headers = vec![("X-Key".to_owned(), "k".to_owned())]);
    heard.pods(&["a-n1"]).await;
    let requests = server.requests();
    assert!(requests[..3].iter().all(|request| request.contains("X-Key: k")), "{requests:?}");
    assert!(requests[2].contains(&format!("Referer: {}", server.url("/b"))), "{requests:?}");
}

#[tokio::test]
async fn one_that_never_answered_says_nothing_but_why() {
    let socket = held();
    let port = socket.local_addr().unwrap().port();
    let mut heard = Heard::url(&format!("http://me:secret@127.0.0.1:{port}/"), |_| ());
    let message = heard.unsaid().await;
    let url = format!("http://me:xxxxx@127.0.0.1:{port}/");
    assert_eq!(message, format!("Get \"{url}\": dial tcp 127.0.0.1:{port}: connect: connection refused"));
    heard.polls(3).await;
    assert!(futures::poll!(heard.snapshots.next()).is_pending());
    assert!(futures::poll!(heard.problems.next()).is_pending(), "said once");
    let listener = socket.listen(64).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let script: Script = Arc::new(Mutex::new(Box::new(|head| {
                let known = head.contains("Authorization: Basic bWU6c2VjcmV0\r\n");
                Some(if known { answer(200, "", &list(&["a"])) } else { answer(401, "", "") })
            })));
            tokio::spawn(serve(stream, script, Arc::default()));
        }
    });
    heard.pods(&["a-n1"]).await;
    let unsaid = tokio::time::timeout(PATIENCE, heard.problems.next()).await.unwrap().unwrap();
    assert!(unsaid.is_empty(), "{unsaid:?}");
}

#[tokio::test]
async fn what_ran_before_is_wanted_until_a_manifest_was_read() {
    let server = Server::start(None).await;
    server.says(200, "", "");
    let mut former = Heard::url(&server.url("/"), |_| ()).trouble("zero-length").await;
    server.says(200, "", &list(&["a", "b"]));
    former.pods = Heard::url(&server.url("/"), |_| ()).pods(&["a-n1", "b-n1"]).await.pods;
    server.says(200, "", "");
    let mut heard = Heard::url(&server.url("/"), |url| url.former = former.pods.clone());
    let said = heard.trouble("zero-length").await;
    assert_eq!(said.pods, former.pods);
    server.says(200, "", &list(&["b"]));
    assert_eq!(heard.pods(&["b-n1"]).await.pods, former.pods[1..]);
}

/// A CA's certificate in a file, and what a server with a certificate of it for 127.0.0.1 accepts with.
fn authority(folder: &std::path::Path) -> (std::path::PathBuf, TlsAcceptor) {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let file = folder.join("ca.pem");
    std::fs::write(&file, ca.pem()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    (file, TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn certificates_are_verified() {
    let folder = tempfile::tempdir().unwrap();
    let (file, acceptor) = authority(folder.path());
    let server = Server::start(Some(acceptor)).await;
    server.says(200, "", &list(&["a"]));
    let url = format!("https://127.0.0.1:{}/", server.port);
    Heard::url(&url, |url| url.ca_file = Some(file.clone())).pods(&["a-n1"]).await;
    // By the system's roots it is a stranger's, and by its name as well.
    let message = Heard::url(&url, |_| ()).unsaid().await;
    assert!(message.contains("tls: "), "{message}");
    let named = format!("https://localhost:{}/", server.port);
    let message = Heard::url(&named, |url| url.ca_file = Some(file.clone())).unsaid().await;
    assert!(message.contains("tls: ") && message.contains("localhost"), "{message}");
    let missing = folder.path().join("missing.pem");
    let message = Heard::url(&url, |url| url.ca_file = Some(missing)).unsaid().await;
    assert!(message.contains("missing.pem cannot be read"), "{message}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_waited_for_ten_seconds() {
    let server = Server::start(None).await;
    server.script(|_| None);
    let began = std::time::Instant::now();
    let mut heard = Heard::url(&server.url("/"), |_| ());
    let message = heard.unsaid().await;
    assert!(message.ends_with("timed out while awaiting headers"), "{message}");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(20), "{took:?}");
}

#[tokio::test]
async fn a_trap_takes_no_pod_away() {
    // The first poll has no cursor, and answers; the second has one, and crashes.
    let body = "(if (local.get $again) (then unreachable)) (call $pods)";
    let mut heard = Heard::plugin(&source("", body, &pod("a")), Limits::SOURCE);
    let said = heard.pods(&["a-n1"]).await;
    assert_eq!(said.pods[0].source, Source::Plugin("mine".to_owned()));
    assert_eq!(said.pods[0].annotations()["kubernetes.io/config.source"], "mine");
    for _ in 0..2 {
        assert_eq!(names(&heard.trouble("it crashed").await), ["a-n1"]);
        heard.pods(&["a-n1"]).await;
    }
    let statistics = heard.source.statistics();
    assert!(statistics.faults >= 2 && statistics.instances >= 3, "{statistics:?}");
}

#[tokio::test]
async fn sources_that_mean_harm() {
    let limits = Limits { memory: 4 << 20, cpu: Duration::from_millis(100) };
    for (imports, body, part) in [
        ("", "unreachable", "it crashed"),
        ("", "(loop $again (br $again)) (i32.const 0)", "100 ms on the CPU"),
        (
            "",
            "(loop $again (drop (memory.grow (i32.const 16))) (br $again)) (i32.const 0)",
            "more than 4096 KiB of memory",
        ),
        ("", "(i32.const -1)", "it crashed"),
        ("", "(call $answer (i32.const 1) (i32.const 100000))", "a cursor of 100000 bytes"),
        (
            "",
            "(drop (call $answer (i32.const 2000) (i32.const 1))) (i32.store (i32.const 72) (i32.const 30000)) (i32.const 64)",
            "2000 manifests",
        ),
        ("", "(drop (call $pods)) (i32.store8 (i32.const 68) (i32.const 0)) (i32.const 64)", "must be a snapshot"),
        // Its sleep ends at once when the budget is over: whichever bound comes first, the clock's or the CPU's.
        (SLEEP, "(loop $again (call $sleep (i32.const 1)) (br $again)) (i32.const 0)", ""),
    ] {
        let mut heard = Heard::plugin(&source(imports, body, &pod("a")), limits);
        let message = heard.unsaid().await;
        // By the CPU, or by the clock where the machine is so busy that it never gets so much of one.
        let said = message.contains(part) || (part.ends_with("on the CPU") && message.contains("did not end"));
        assert!(said && message.contains("plugin mine failed"), "{message}");
        assert!(futures::poll!(heard.snapshots.next()).is_pending());
    }
}

#[tokio::test]
async fn instances_are_made_anew() {
    // Grown beyond what is kept warm: each poll has an instance of its own.
    let body = "(drop (memory.grow (i32.const 200))) (call $pods)";
    let mut heard = Heard::plugin(&source("", body, &pod("a")), Limits::SOURCE);
    heard.pods(&["a-n1"]).await;
    heard.polls(3).await;
    let statistics = heard.source.statistics();
    assert!(statistics.instances >= statistics.polls && statistics.faults == 0, "{statistics:?}");
}
