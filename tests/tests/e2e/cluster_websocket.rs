//! WebSockets by hand, frame by frame, through the API server: every protocol of channels that clients ever had, as
//! Kubernetes' conformance tests speak them, and many at once.

use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::bed::{
    cluster::LONG,
    front::{connector, server_of},
    inside, limit,
    node::Node,
    pods::sleeper,
};

/// Channels of a command.
const IN: u8 = 0;
const OUT: usize = 1;
const ERR: usize = 2;
const STATUS: usize = 3;
/// How many commands run side by side.
const MANY: usize = 20;
/// What each of these says.
const SAID: usize = 300_000;

/// The administrator at the API server's door.
struct Door {
    connector: TlsConnector,
    kubeconfig: Value,
    pods: String,
}

impl Door {
    fn of(node: &Node) -> Door {
        node.wait_server();
        let kubeconfig = serde_json::from_slice(&fs::read(node.cluster.kubeconfig()).unwrap()).unwrap();
        let connector = connector(&node.cluster.folder.join("pki"), "ca", "admin");
        Door { connector, kubeconfig, pods: node.all("pods") }
    }

    /// A WebSocket at the path below the pods'; an empty protocol is none at all.
    async fn open(&self, path: &str, protocol: &str) -> Socket {
        let server = server_of(&self.kubeconfig);
        let stream = TcpStream::connect(server).await.unwrap();
        let mut stream = self.connector.connect(ServerName::from(server.ip()), stream).await.unwrap();
        let offer = match protocol {
            "" => String::new(),
            protocol => format!("Sec-WebSocket-Protocol: {protocol}\r\n"),
        };
        let head = format!(
            "GET {}/{path} HTTP/1.1\r\nHost: {server}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{offer}\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.pods
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
        let agreed = answer.lines().find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        assert_eq!(agreed.unwrap_or_default(), protocol);
        Socket { stream, base64: protocol.contains("base64") }
    }
}

struct Socket {
    stream: TlsStream<TcpStream>,
    base64: bool,
}

impl Socket {
    async fn frame(&mut self, opcode: u8, payload: &[u8]) {
        let length = u8::try_from(payload.len()).unwrap();
        assert!(length < 126);
        // A mask of zeros.
        self.stream.write_all(&[&[0x80 | opcode, 0x80 | length, 0, 0, 0, 0], payload].concat()).await.unwrap();
    }

    async fn send(&mut self, channel: u8, data: &[u8]) {
        match self.base64 {
            true => self.frame(1, format!("{channel}{}", STANDARD.encode(data)).as_bytes()).await,
            false => self.frame(2, &[&[channel], data].concat()).await,
        }
    }

    /// All that comes until the server's close, by channel; then it is answered.
    async fn rest(mut self) -> [Vec<u8>; 4] {
        let mut channels: [Vec<u8>; 4] = Default::default();
        loop {
            let [first, short] = [self.stream.read_u8().await.unwrap(), self.stream.read_u8().await.unwrap()];
            let length = match short {
                126 => u64::from(self.stream.read_u16().await.unwrap()),
                127 => self.stream.read_u64().await.unwrap(),
                short => u64::from(short),
            };
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.stream.read_exact(&mut payload).await.unwrap();
            match first {
                0x81 if self.base64 => {
                    let data = STANDARD.decode(&payload[1..]).unwrap();
                    channels[usize::from(payload[0] - b'0')].extend(data);
                }
                0x82 if !self.base64 => channels[usize::from(payload[0])].extend(&payload[1..]),
                0x88 => {
                    self.frame(8, &payload).await;
                    return channels;
                }
                0x89 => self.frame(10, &payload).await,
                other => panic!("a frame that begins with {other:#x}"),
            }
        }
    }
}

async fn timely<T>(what: &str, work: impl Future<Output = T>) -> T {
    let within = tokio::time::timeout(limit(LONG), work).await;
    within.unwrap_or_else(|_| panic!("{what}: not within {:?}", limit(LONG)))
}

/// The path of a script's exec, with its outputs.
fn running(script: &str) -> String {
    let encoded: String = script.bytes().map(|byte| format!("%{byte:02x}")).collect();
    format!("a/exec?command=sh&command=-c&command={encoded}&stdout=true&stderr=true")
}

/// A command's input, both outputs and its end, in a protocol's own way.
async fn exec(door: &Door, protocol: &str) {
    let script = "read line; echo got $line; echo err >&2; exit 3";
    let path = format!("{}&stdin=true", running(script));
    let mut socket = door.open(&path, protocol).await;
    socket.send(IN, b"a word\n").await;
    let channels = socket.rest().await;
    let text = |channel: usize| String::from_utf8(channels[channel].clone()).unwrap();
    assert_eq!((text(OUT).as_str(), text(ERR).as_str()), ("got a word\n", "err\n"), "{protocol}: {}", text(STATUS));
    if protocol.contains("v4") {
        let status: Value = serde_json::from_slice(&channels[STATUS]).unwrap();
        assert_eq!(
            (&status["reason"], &status["details"]["causes"][0]["message"]),
            (&"NonZeroExitCode".into(), &"3".into())
        );
    } else {
        assert_eq!(text(STATUS), "command terminated with non-zero exit code: exit status 3", "{protocol}");
    }
}

async fn forward(door: &Door, protocol: &str) {
    let mut socket = door.open("a/portforward?ports=8080", protocol).await;
    socket.send(0, b"GET / HTTP/1.0\r\n\r\n").await;
    let [data, error, ..] = socket.rest().await;
    let port = 8080u16.to_le_bytes();
    assert!(data.starts_with(&port) && data.ends_with(b"hello\n"), "{protocol}: {}", String::from_utf8_lossy(&data));
    assert_eq!(error, port, "{protocol}: {}", String::from_utf8_lossy(&error));
}

/// Each of many commands has its own output and no other's, though all run at once.
async fn many(door: &Door) {
    let one = |number: usize| async move {
        let path = running(&format!("yes n{number} | head -c {SAID}"));
        let [_, out, err, status] = door.open(&path, "v4.channel.k8s.io").await.rest().await;
        let line = format!("n{number}\n");
        assert_eq!(out.len(), SAID, "{number}: {}", String::from_utf8_lossy(&status));
        assert!(out.chunks_exact(line.len()).all(|piece| piece == line.as_bytes()), "{number} has another's output");
        assert!(err.is_empty() && String::from_utf8_lossy(&status).contains("Success"), "{number}");
    };
    futures::future::join_all((0..MANY).map(one)).await;
}

#[test]
fn cluster_websocket_channels() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    inside::listen(&node, "a", "127.0.0.1:8080", inside::hello);
    let door = Door::of(&node);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    node.told(|| {
        runtime.block_on(async {
            for protocol in
                ["", "channel.k8s.io", "base64.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"]
            {
                timely(protocol, exec(&door, protocol)).await;
            }
            for protocol in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"] {
                timely("a port-forward", forward(&door, protocol)).await;
            }
            timely("many", many(&door)).await;
        });
    });
}
