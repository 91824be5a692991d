//! The API server as one node has it, at its worst: TLS ends here, and each request may be answered in the API server's
//! place, come late, or have its answer lost. What goes on does so in the name of whoever asked, as an aggregator's
//! (`X-Remote-User`), so that it is a node's to the real one. Counts what was asked. Must not be used where a
//! [`super::gate::Gate`] will do.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What becomes of a request.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// It goes on.
    Pass,
    /// It goes on after that long.
    Late(Duration),
    /// It goes on, to another path.
    Instead(String),
    /// It goes on, and what the answer's body is made into comes back.
    Told(fn(&str) -> String),
    /// It is answered with that code, header lines and body, and does not go on.
    Answer(u16, String, String),
    /// It is done, and the connection breaks before the answer.
    Lost,
    /// The connection breaks, and it does not go on.
    Gone,
}

/// A request that was made.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// 0 until there is an answer, and for ever where none came.
    pub(crate) code: u16,
}

impl Asked {
    pub(crate) fn is_watch(&self) -> bool {
        self.path.contains("watch=true")
    }

    /// The same for requests that are the same but for where and how long they watch.
    pub(crate) fn kind(&self) -> String {
        let (path, query) = self.path.split_once('?').unwrap_or((&self.path, ""));
        let query = query.split('&').filter(|one| !one.starts_with("timeoutSeconds") && !one.starts_with("resourceV"));
        format!("{} {path} {}", self.method, query.collect::<Vec<_>>().join("&"))
    }
}

type Judge = Arc<dyn Fn(&str, &str) -> Fate + Send + Sync>;

struct State {
    target: SocketAddr,
    connector: TlsConnector,
    judge: Mutex<Judge>,
    asked: Mutex<Vec<Asked>>,
    /// Counts the ends of watches, and the last line of the last ones.
    ends: watch::Sender<(u64, Option<String>)>,
    expired: AtomicUsize,
}

/// See the module. What goes through it ends with it.
pub(crate) struct Front {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(file: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file).unwrap()).unwrap();
    roots
}

/// The certificate and key of a name below `pki`.
fn pair(pki: &Path, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_file_iter(pki.join(format!("{name}.crt"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(pki.join(format!("{name}.key"))).unwrap();
    (chain.map(Result::unwrap).collect(), key)
}

/// Makes connections to servers of the authority `ca`, as the client `name`: both are files below `pki`.
pub(crate) fn connector(pki: &Path, ca: &str, name: &str) -> TlsConnector {
    let (chain, key) = pair(pki, name);
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(&pki.join(format!("{ca}.crt"))))
        .with_client_auth_cert(chain, key);
    TlsConnector::from(Arc::new(config.unwrap()))
}

impl Front {
    /// One that passes all on to the API server at `target`, on the same address, so that the server's certificate
    /// holds. `folder` is the cluster's.
    pub(crate) fn before(target: SocketAddr, folder: &Path) -> Front {
        let pki = folder.join("pki");
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&pki.join("ca.crt"))), provider());
        let (chain, key) = pair(&pki, "apiserver");
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            // Who joins has no certificate yet, but a token.
            .with_client_cert_verifier(clients.allow_unauthenticated().build().unwrap())
            .with_single_cert(chain, key);
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let state = Arc::new(State {
            target,
            connector: connector(&pki, "ca", "front-proxy-client"),
            judge: Mutex::new(Arc::new(|_, _| Fate::Pass)),
            asked: Mutex::default(),
            ends: watch::Sender::new((0, None)),
            expired: AtomicUsize::new(0),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind((target.ip(), 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let theirs = Arc::clone(&state);
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&theirs));
                tokio::spawn(async move {
                    let Ok(client) = acceptor.accept(client).await else { return };
                    // Whoever goes away amid it is no matter.
                    let _ = serve(client, &state).await;
                });
            }
        });
        Front { address, state, runtime: Some(runtime) }
    }

    /// Requests meet with what this says from now on: method and path.
    pub(crate) fn judge(&self, judge: impl Fn(&str, &str) -> Fate + Send + Sync + 'static) {
        *self.state.judge.lock().unwrap() = Arc::new(judge);
    }

    pub(crate) fn pass(&self) {
        self.judge(|_, _| Fate::Pass);
    }

    /// Ends the watches that are open: with a last event, or else they break.
    pub(crate) fn end_watches(&self, last: Option<&str>) {
        self.state.ends.send_modify(|(count, line)| {
            *count += 1;
            *line = last.map(str::to_owned);
        });
    }

    /// What was asked since.
    pub(crate) fn asked_since(&self, since: Instant) -> Vec<Asked> {
        self.state.asked.lock().unwrap().iter().filter(|asked| asked.at >= since).cloned().collect()
    }

    /// How often the API server itself has said in a watch or instead of one that what was asked for is gone.
    pub(crate) fn expired(&self) -> usize {
        self.state.expired.load(Ordering::Relaxed)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A request: its head's first line apart, the rest of the head, and its body.
struct Request {
    method: String,
    path: String,
    headers: Vec<String>,
    body: Vec<u8>,
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let mut body = bytes.split_off(end + 4);
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<String> = lines.map(str::to_owned).collect();
    let length = headers.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    while body.len() < length.unwrap_or(0) {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Request { method, path, headers, body })
}

/// Header lines that say who the client is, by its certificate.
fn name_of(client: &server::TlsStream<TcpStream>) -> String {
    let Some(certificate) = client.get_ref().1.peer_certificates().and_then(|chain| chain.first()) else {
        return String::new();
    };
    let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
    let user = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let groups = certificate.subject().iter_organization().filter_map(|name| name.as_str().ok());
    let user = user.map(|name| format!("X-Remote-User: {name}\r\n"));
    user.chain(groups.map(|name| format!("X-Remote-Group: {name}\r\n"))).collect()
}

/// One request on a connection: answers end where the connection does.
async fn serve(mut client: server::TlsStream<TcpStream>, state: &State) -> Option<()> {
    let request = read(&mut client).await?;
    let fate = state.judge.lock().unwrap().clone()(&request.method, &request.path);
    let number = {
        let mut asked = state.asked.lock().unwrap();
        let Request { method, path, .. } = &request;
        asked.push(Asked { at: Instant::now(), method: method.clone(), path: path.clone(), code: 0 });
        asked.len() - 1
    };
    let answered = |code| state.asked.lock().unwrap()[number].code = code;
    let mut ends = state.ends.subscribe();
    let path = match &fate {
        Fate::Gone => return None,
        Fate::Answer(code, headers, body) => {
            answered(*code);
            let head =
                format!("HTTP/1.1 {code} So\r\n{headers}Content-Length: {}\r\nConnection: close\r\n", body.len());
            client.write_all(format!("{head}\r\n{body}").as_bytes()).await.ok()?;
            return client.shutdown().await.ok();
        }
        Fate::Late(time) => {
            tokio::time::sleep(*time).await;
            &request.path
        }
        Fate::Instead(path) => path,
        Fate::Pass | Fate::Lost | Fate::Told(_) => &request.path,
    };
    let mut server = forward(state, &request, path, &name_of(&client)).await?;
    if matches!(fate, Fate::Lost) {
        let mut answer = Vec::new();
        let _ = server.read_to_end(&mut answer).await;
        return None;
    }
    if let Fate::Told(tell) = fate {
        let mut answer = Vec::new();
        let _ = server.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let code = head.split(' ').nth(1)?;
        answered(code.parse().ok()?);
        let body = tell(body);
        let head = format!("HTTP/1.1 {code} So\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
        client.write_all(format!("{head}\r\nConnection: close\r\n\r\n{body}").as_bytes()).await.ok()?;
        return client.shutdown().await.ok();
    }
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let mut buffer = vec![0; 65536];
    let mut tail = Vec::new();
    loop {
        tokio::select! {
            read = server.read(&mut buffer) => {
                let Ok(count) = read else { return None };
                if count == 0 {
                    return to_client.shutdown().await.ok();
                }
                if tail.is_empty() {
                    // "HTTP/1.0 200 OK"
                    let code = String::from_utf8_lossy(&buffer[..count]).split(' ').nth(1).and_then(|code| code.parse().ok());
                    answered(code.unwrap_or(1));
                }
                tail.extend_from_slice(&buffer[..count]);
                if request.path.contains("watch=true") && String::from_utf8_lossy(&tail).contains("\"reason\":\"Expired\"") {
                    state.expired.fetch_add(1, Ordering::Relaxed);
                    tail.clear();
                }
                tail.drain(..tail.len().saturating_sub(200));
                to_client.write_all(&buffer[..count]).await.ok()?;
            }
            // It has nothing more to say: it goes away.
            _ = from_client.read_u8() => return None,
            _ = ends.changed(), if request.path.contains("watch=true") => {
                let line = ends.borrow().1.clone()?;
                to_client.write_all(format!("{line}\n").as_bytes()).await.ok()?;
                return to_client.shutdown().await.ok();
            }
        }
    }
}

/// Sends a request on, by HTTP/1.0: the answer is plain up to its end.
async fn forward(state: &State, request: &Request, path: &str, names: &str) -> Option<client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(state.target).await.ok()?;
    let mut server = state.connector.connect(ServerName::from(state.target.ip()), stream).await.ok()?;
    let mut head = format!("{} {path} HTTP/1.0\r\n{names}", request.method);
    for line in &request.headers {
        if !line.to_ascii_lowercase().starts_with("connection:") {
            head.push_str(&format!("{line}\r\n"));
        }
    }
    server.write_all(format!("{head}\r\n").as_bytes()).await.ok()?;
    server.write_all(&request.body).await.ok()?;
    server.flush().await.ok()?;
    Some(server)
}

/// Where the API server listens, as a kubeconfig says.
pub(crate) fn server_of(kubeconfig: &serde_json::Value) -> SocketAddr {
    let server = kubeconfig["clusters"][0]["cluster"]["server"].as_str().unwrap();
    server.strip_prefix("https://").unwrap().parse().unwrap()
}

/// The command line of a part of the cluster.
pub(crate) fn command_line(folder: &Path, part: &str) -> Vec<String> {
    let pid = fs::read_to_string(folder.join(format!("{part}.pid"))).unwrap();
    let line = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap();
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}
