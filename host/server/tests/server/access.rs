//! Every route by everybody.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use longshore_server::{AnonymousAccess, Authorization};
use rustls::CipherSuite;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{Answer, Ca, Caller, World, exchange, plain};

/// Method, path, and the subresources that let in.
const ROUTES: &[(&str, &str, &[&str])] = &[
    ("GET", "/healthz", &["healthz", "proxy"]),
    ("GET", "/healthz/ping", &["healthz", "proxy"]),
    ("GET", "/healthz/syncloop", &["healthz", "proxy"]),
    ("GET", "/pods", &["pods", "proxy"]),
    ("GET", "/pods/", &["pods", "proxy"]),
    ("GET", "/runningpods/", &["pods", "proxy"]),
    ("GET", "/configz", &["configz", "proxy"]),
    ("GET", "/flagz", &["configz"]),
    ("GET", "/statusz", &["statusz"]),
    ("GET", "/metrics", &["metrics"]),
    ("GET", "/metrics/resource", &["metrics"]),
    ("GET", "/metrics/cadvisor", &["metrics"]),
    ("GET", "/metrics/probes", &["metrics"]),
    ("GET", "/metrics/slis", &["metrics"]),
    ("GET", "/stats/summary", &["stats"]),
    ("POST", "/stats/summary", &["stats"]),
    ("GET", "/logs/", &["log"]),
    ("GET", "/logs/one", &["log"]),
    ("GET", "/containerLogs/n/p/c", &["proxy"]),
    ("POST", "/run/n/p/c?cmd=true", &["proxy"]),
    ("POST", "/run/n/p/u/c?cmd=true", &["proxy"]),
    ("POST", "/exec/n/p/c?command=true&output=1", &["proxy"]),
    ("GET", "/exec/n/p/u/c?command=true&output=1", &["proxy"]),
    ("GET", "/attach/n/p/c?output=1", &["proxy"]),
    ("POST", "/attach/n/p/u/c?output=1", &["proxy"]),
    ("POST", "/portForward/n/p", &["proxy"]),
    ("GET", "/portForward/n/p/u", &["proxy"]),
    ("POST", "/checkpoint/n/p/c", &["checkpoint"]),
    ("GET", "/debug/pprof/profile", &["proxy"]),
    ("PUT", "/debug/flags/v", &["proxy"]),
    ("HEAD", "/metrics", &["metrics"]),
    ("DELETE", "/pods", &["pods", "proxy"]),
    ("GET", "/nothing", &["proxy"]),
];

const ALL: &[&str] = &["healthz", "pods", "configz", "statusz", "metrics", "stats", "log", "proxy", "checkpoint"];

/// Whether an answer is a refusal, in the kubelet's words.
fn forbidden(answer: &Answer, method: &str, subresources: &[&str]) -> bool {
    let verb = match method {
        "POST" => "create",
        "PUT" => "update",
        "DELETE" => "delete",
        // It has no body that could say anything.
        "HEAD" => return answer.code == 403,
        _ => "get",
    };
    let words = format!("verb={verb}, resource=nodes, subresource(s)=[{}])\n", subresources.join(" "));
    answer.code == 403 && answer.text.contains("\r\n\r\nForbidden (user=") && answer.text.ends_with(&words)
}

#[tokio::test]
async fn every_route_by_everybody() {
    let world = World::new(|_| {}).await;
    let stranger = Ca::new("strangers");
    world.allow("nobody", "no-right", &[]);
    for one in ALL {
        world.allow(one, &format!("token-{one}"), &[one]);
        // The same rights for one with a certificate.
        world.judge.rights.lock().unwrap().push(("cert".to_owned(), (*one).to_owned()));
    }
    let certificate = |ca: &Ca, name: &str| Caller { token: None, certificate: Some(ca.sign(name, &[])) };
    let (good, powerless, foreign) =
        (certificate(&world.ca, "cert"), certificate(&world.ca, "powerless"), certificate(&stranger, "cert"));
    let foreign_with_token = Caller { token: Some("no-right".to_owned()), ..foreign.clone() };
    for (method, path, subresources) in ROUTES {
        for (who, caller) in [("none", &Caller::default()), ("bad token", &Caller::token("x")), ("foreign", &foreign)] {
            let answer = world.ask(caller, method, path).await;
            let worded = answer.text.ends_with("\r\n\r\nUnauthorized") || *method == "HEAD";
            assert!(answer.code == 401 && worded, "{who} {path}: {answer:?}");
        }
        for caller in [&powerless, &Caller::token("no-right"), &foreign_with_token] {
            let answer = world.ask(caller, method, path).await;
            assert!(forbidden(&answer, method, subresources), "{path}: {answer:?}");
        }
        for one in ALL {
            let answer = world.ask(&Caller::token(&format!("token-{one}")), method, path).await;
            assert_eq!(![401, 403].contains(&answer.code), subresources.contains(one), "{one} {path}: {answer:?}");
        }
        let answer = world.ask(&good, method, path).await;
        assert!(![401, 403, 0].contains(&answer.code), "{path}: {answer:?}");
    }
    // The other ports ask nobody, and serve no more than they should.
    assert_eq!(plain(world.read_only, "/pods").await.code, 200);
    assert_eq!(plain(world.read_only, "/metrics/resource").await.code, 200);
    for path in ["/configz", "/flagz", "/statusz", "/checkpoint/n/p/c", "/nothing"] {
        assert_eq!(plain(world.read_only, path).await.code, 404, "{path}");
    }
    for path in ["/containerLogs/n/p/c", "/logs/", "/exec/n/p/c", "/run/n/p/c", "/runningpods/", "/debug/pprof/"] {
        let answer = plain(world.read_only, path).await;
        assert!(answer.code == 405 && answer.text.ends_with("\r\n\r\nDebug endpoints are disabled.\n"), "{path}");
    }
    assert_eq!(plain(world.healthz, "/healthz").await.code, 200);
    assert_eq!(plain(world.healthz, "/pods").await.code, 404);
}

#[tokio::test]
async fn every_route_by_nobody_where_that_is_allowed() {
    let world = World::new(|config| config.anonymous = AnonymousAccess::Allowed).await;
    for (method, path, subresources) in ROUTES {
        let answer = world.ask(&Caller::default(), method, path).await;
        assert!(forbidden(&answer, method, subresources), "{path}: {answer:?}");
        let words = "Forbidden (user=system:anonymous, ";
        assert!(*method == "HEAD" || answer.text.contains(words), "{path}: {answer:?}");
        let answer = world.ask(&Caller::token("bad"), method, path).await;
        assert_eq!(answer.code, 401, "a bad token is not nobody: {path}");
    }
    let world = World::new(|config| config.anonymous = AnonymousAccess::Allowed).await;
    for one in ALL {
        world.judge.rights.lock().unwrap().push(("system:anonymous".to_owned(), (*one).to_owned()));
    }
    for (method, path, _) in ROUTES {
        let answer = world.ask(&Caller::default(), method, path).await;
        assert!(![401, 403, 0].contains(&answer.code), "{path}: {answer:?}");
    }
}

#[tokio::test]
async fn every_route_by_those_whose_token_ended_or_was_taken() {
    let ttl = Duration::from_secs(1);
    let world = World::new(|config| config.token_cache = ttl).await;
    world.allow("ending", "ending", ALL);
    world.allow("taken", "taken", ALL);
    for (method, path, _) in ROUTES {
        for token in ["ending", "taken"] {
            let answer = world.ask(&Caller::token(token), method, path).await;
            assert!(![401, 403, 0].contains(&answer.code), "{token} {path}: {answer:?}");
        }
    }
    // The API server says of both the same: nobody's.
    world.judge.tokens.lock().unwrap().clear();
    tokio::time::sleep(ttl).await;
    for (method, path, _) in ROUTES {
        for token in ["ending", "taken"] {
            assert_eq!(world.ask(&Caller::token(token), method, path).await.code, 401, "{token} {path}");
        }
    }
}

#[tokio::test]
async fn anonymous_and_always_allow_only_where_written_down() {
    let world = World::new(|config| config.anonymous = AnonymousAccess::Allowed).await;
    let answer = world.ask(&Caller::default(), "GET", "/pods").await;
    assert!(answer.code == 403 && answer.text.contains("user=system:anonymous"), "{answer:?}");
    assert_eq!(world.get("bad", "/pods").await.code, 401, "a bad token is not nobody");
    world.judge.rights.lock().unwrap().push(("system:anonymous".to_owned(), "healthz".to_owned()));
    assert_eq!(world.ask(&Caller::default(), "GET", "/healthz").await.code, 200);

    let world = World::new(|config| config.authorization = Authorization::AlwaysAllow).await;
    world.allow("somebody", "t", &[]);
    assert_eq!(world.get("t", "/pods").await.code, 200);
    assert_eq!(world.ask(&Caller::default(), "GET", "/pods").await.code, 401);
}

async fn until(mut done: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done().await {
        assert!(Instant::now() < end, "it never comes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn answers_are_kept_for_a_while() {
    let world = World::new(|_| {}).await;
    world.allow("somebody", "t", &["pods"]);
    assert_eq!(world.get("t", "/pods").await.code, 200);
    let asked = world.judge.asked.load(Ordering::SeqCst);
    world.judge.tokens.lock().unwrap().clear();
    assert_eq!(world.get("t", "/pods").await.code, 200, "it is remembered");
    assert_eq!(world.judge.asked.load(Ordering::SeqCst), asked);

    // Without the API server nobody new gets in, and what was not known is not remembered.
    *world.judge.down.lock().unwrap() = true;
    world.allow("late", "late", &["pods"]);
    assert_eq!(world.get("late", "/pods").await.code, 401);
    let certificate = Caller { token: None, certificate: Some(world.ca.sign("cert", &[])) };
    let answer = world.ask(&certificate, "GET", "/pods").await;
    assert!(
        answer.code == 500
            && answer.text.ends_with("Authorization error (user=cert, verb=get, resource=nodes, subresource=pods)"),
        "{answer:?}"
    );
    *world.judge.down.lock().unwrap() = false;
    assert_eq!(world.get("late", "/pods").await.code, 200);
}

/// Who was known, and what they might, counts for as long as it would have anyhow.
#[tokio::test]
async fn who_is_known_stays_for_a_while_when_the_api_server_goes() {
    let world = World::new(|_| {}).await;
    world.allow("somebody", "t", &["pods"]);
    world.judge.rights.lock().unwrap().push(("cert".to_owned(), "pods".to_owned()));
    let certificate = Caller { token: None, certificate: Some(world.ca.sign("cert", &[])) };
    assert_eq!(world.get("t", "/pods").await.code, 200);
    assert_eq!(world.ask(&certificate, "GET", "/pods").await.code, 200);
    *world.judge.down.lock().unwrap() = true;
    assert_eq!(world.get("t", "/pods").await.code, 200);
    assert_eq!(world.ask(&certificate, "GET", "/pods").await.code, 200);
    assert_eq!(world.get("t", "/metrics").await.code, 500, "what was never asked is not known");
}

#[tokio::test]
async fn certificates_follow_their_files() {
    let world = World::new(|_| {}).await;
    let own = |stream: tokio_rustls::client::TlsStream<tokio::net::TcpStream>| {
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let first = own(world.connect(&Caller::default()).await);
    let (chain, key) = Ca::new("servers").sign("node", &["node"]);
    let pki = world.folder.path().join("pki");
    std::fs::write(pki.join("kubelet.crt"), "garbage").unwrap();
    assert_eq!(own(world.connect(&Caller::default()).await), first, "the former one serves on");
    std::fs::write(pki.join("kubelet.key"), key).unwrap();
    std::fs::write(pki.join("kubelet.crt"), chain).unwrap();
    until(async || own(world.connect(&Caller::default()).await) != first).await;

    let other = Ca::new("others");
    let caller = Caller { token: None, certificate: Some(other.sign("cert", &[])) };
    assert_eq!(world.ask(&caller, "GET", "/pods").await.code, 401);
    std::fs::write(world.folder.path().join("ca.pem"), &other.pem).unwrap();
    until(async || world.ask(&caller, "GET", "/pods").await.code == 403).await;
}

/// As the kubelet has it: those that the shortest lines of openssl make are as good as others.
#[tokio::test]
async fn certificates_without_extensions_and_self_signed_ones_count() {
    let world = World::new(|_| {}).await;
    world.judge.rights.lock().unwrap().push(("cert".to_owned(), "pods".to_owned()));
    let code = async |(chain, key): (String, String), version| {
        let caller = Caller { token: None, certificate: Some((chain, key)) };
        let mut stream = world.shake_hands(&caller, &[], &[version], ring::default_provider()).await.unwrap();
        exchange(&mut stream, "GET", "/pods", "", "").await.code
    };
    for version in [&TLS12, &TLS13] {
        assert_eq!(code(world.ca.sign_without_extensions("cert"), version).await, 200);
        assert_eq!(code(world.ca.sign_without_extensions("powerless"), version).await, 403);
        assert_eq!(code(Ca::new("clients").sign_without_extensions("cert"), version).await, 401, "a CA of that name");
        // A key that is not that of the certificate ends the handshake, or the first read after it.
        let (chain, _) = world.ca.sign_without_extensions("cert");
        let thief = Caller { token: None, certificate: Some((chain, Ca::new("thief").key)) };
        let shaken = world.shake_hands(&thief, &[], &[version], ring::default_provider()).await;
        if let Ok(mut stream) = shaken {
            let _ = stream.write_all(b"GET /pods HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let mut answer = Vec::new();
            assert!(stream.read_to_end(&mut answer).await.is_err() && answer.is_empty(), "{answer:?}");
        }
    }
    let own = Ca::new("cert");
    let pair = || (own.pem.clone(), own.key.clone());
    assert_eq!(code(pair(), &TLS13).await, 401);
    std::fs::write(world.folder.path().join("ca.pem"), &own.pem).unwrap();
    until(async || code(pair(), &TLS13).await == 200).await;
    // Who is listed and no CA counts alone.
    let listed = Ca::usurper("cert");
    std::fs::write(world.folder.path().join("ca.pem"), &listed.pem).unwrap();
    until(async || code((listed.pem.clone(), listed.key.clone()), &TLS13).await == 200).await;
    assert_eq!(code(listed.sign("cert", &[]), &TLS13).await, 401);
    assert_eq!(code(listed.sign_without_extensions("cert"), &TLS13).await, 401);
    // The node's own as well.
    let (chain, key) = Ca::new("servers").sign_without_extensions("node");
    let pki = world.folder.path().join("pki");
    std::fs::write(pki.join("kubelet.key"), key).unwrap();
    std::fs::write(pki.join("kubelet.crt"), &chain).unwrap();
    let wanted = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    until(async || {
        let stream = world.connect(&Caller::default()).await;
        stream.get_ref().1.peer_certificates().unwrap()[0] == wanted
    })
    .await;
}

#[tokio::test]
async fn versions_and_suites_are_as_configured() {
    const SUITE: CipherSuite = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
    let all = ring::default_provider;
    let others = || {
        let mut provider = all();
        provider.cipher_suites.retain(|suite| suite.suite() != SUITE);
        provider
    };
    let shake = async |world: &World, version, provider| {
        let stream = world.shake_hands(&Caller::default(), &[], &[version], provider).await.ok()?;
        let session = stream.get_ref().1;
        Some((session.protocol_version()?, session.negotiated_cipher_suite()?.suite()))
    };
    let world = World::new(|_| {}).await;
    for version in [&TLS12, &TLS13] {
        assert_eq!(shake(&world, version, all()).await.map(|agreed| agreed.0), Some(version.version));
    }
    // A hello of TLS 1.1 (RFC 4346), with a suite of that time.
    let hello = [&[3, 2][..], &[7; 32], &[0, 0, 2, 0, 0x2f, 1, 0]].concat();
    let length = u8::try_from(hello.len()).unwrap();
    let mut stream = TcpStream::connect(world.https).await.unwrap();
    stream.write_all(&[&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &hello].concat()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.len() == 7 && (answer[0], answer[5]) == (21, 2), "no fatal alert: {answer:?}");

    let world = World::new(|config| config.tls_min_version = "VersionTLS13".to_owned()).await;
    assert_eq!(shake(&world, &TLS12, all()).await, None);
    assert!(shake(&world, &TLS13, all()).await.is_some());

    let name = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".to_owned();
    let world = World::new(|config| config.tls_cipher_suites = vec![name]).await;
    assert_eq!(shake(&world, &TLS12, all()).await.map(|agreed| agreed.1), Some(SUITE));
    assert_eq!(shake(&world, &TLS12, others()).await, None);
    assert!(shake(&world, &TLS13, others()).await.is_some(), "those of TLS 1.3 cannot be chosen");
}
