//! Small servers on loopback: raw answers over TCP, and hyper for HTTP/2. Each ends with its test's runtime.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;

pub(crate) struct Raw {
    pub(crate) port: u16,
    /// Connections so far.
    pub(crate) connections: Arc<AtomicUsize>,
    /// What clients said.
    pub(crate) heard: Arc<std::sync::Mutex<Vec<String>>>,
}

/// What a raw server does after it has heard a request.
#[derive(Clone)]
pub(crate) enum Then {
    Close,
    /// Keeps the connection open and says nothing more.
    Hold,
}

async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut heard = Vec::new();
    // The first byte of a TLS handshake is enough for a server that speaks none.
    while !heard.windows(4).any(|window| window == b"\r\n\r\n") && heard.first() != Some(&22) {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => heard.extend_from_slice(&buffer[..read]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&heard).into_owned()
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: Vec<u8>, then: Then) -> String {
    let heard = hear(&mut stream).await;
    let _ = stream.write_all(&answer).await;
    let _ = stream.flush().await;
    match then {
        Then::Close => {
            let _ = stream.shutdown().await;
        }
        Then::Hold => {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
    }
    heard
}

/// Answers each connection's request with what `answer` makes of it (its number, and the request).
pub(crate) async fn raw(answer: impl Fn(u16) -> Vec<u8> + Send + Sync + 'static, then: Then, tls: bool) -> Raw {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (connections, heard) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let raw = Raw { port, connections: Arc::clone(&connections), heard: Arc::clone(&heard) };
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            let (answer, heard, then) = (answer(port), Arc::clone(&heard), then.clone());
            tokio::spawn(async move {
                let said = if tls {
                    match acceptor(&[]).accept(stream).await {
                        Ok(stream) => serve(stream, answer, then).await,
                        Err(error) => error.to_string(),
                    }
                } else {
                    serve(stream, answer, then).await
                };
                heard.lock().unwrap().push(said);
            });
        }
    });
    raw
}

/// A plain HTTP/1.1 answer.
pub(crate) fn answer(status: u16, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Any\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub(crate) fn acceptor(alpn: &[&str]) -> TlsAcceptor {
    let certificate = CertificateDer::from(&include_bytes!("tls/certificate.der")[..]);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&include_bytes!("tls/key.der")[..]));
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// An HTTP/2 server, with TLS (and ALPN) or with prior knowledge, that answers with a body and trailers.
pub(crate) async fn http2(
    handle: impl Fn(Request<Bytes>) -> (Vec<u8>, Vec<(&'static str, String)>) + Clone + Send + Sync + 'static,
    tls: bool,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let handle = handle.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let handle = handle.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let (body, trailers) = handle(Request::from_parts(head, body));
                        let mut map = HeaderMap::new();
                        for (name, value) in trailers {
                            map.insert(name, value.parse().unwrap());
                        }
                        let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from(body))), Ok(Frame::trailers(map))];
                        let body = StreamBody::new(futures::stream::iter(frames));
                        Ok::<_, Infallible>(
                            Response::builder().header("content-type", "application/grpc").body(body).unwrap(),
                        )
                    }
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                if tls {
                    let Ok(stream) = acceptor(&["h2"]).accept(stream).await else { return };
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                } else {
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                }
            });
        }
    });
    port
}

/// An HTTP/2 server with prior knowledge that resets each request's stream.
pub(crate) async fn resetting() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|_: Request<Incoming>| async {
                Err::<Response<Full<Bytes>>, _>(std::io::Error::other("no answer"))
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    port
}

/// A port where nobody listens, nor will: the tests of other threads get no port that somebody has.
pub(crate) fn closed() -> u16 {
    let socket = held();
    let port = socket.local_addr().unwrap().port();
    // For as long as the process lives.
    std::mem::forget(socket);
    port
}

/// A port that is taken and refuses connections, until it is listened to.
pub(crate) fn held() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket
}
