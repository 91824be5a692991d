//! Ten thousand connections that mean harm to the node's server: its pods, their probes and its own users do not notice.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsConnector;

use crate::bed::{
    Bed,
    callers::{self, Authority},
    limit,
    pods::{condition, container, pod, uid, with},
    until,
};

/// Connections, and how many of them at a time: more than the server takes in all.
const ATTACK: usize = 10_000;
const AT_ONCE: usize = 4_500;
/// Addresses that they come from: of each the server takes a quarter of all at most.
const SOURCES: usize = 16;
/// A connection that the server leaves open is given up after so long.
const HOLD: Duration = Duration::from_secs(8);
/// MiB that the agent may take for as many as it has at a time (4096), each with TLS and a piece of a head.
const MEMORY: u64 = 256;
const PERIOD: Duration = Duration::from_millis(200);
const PODS: [&str; 3] = ["a", "b", "c"];

/// A pod that is asked every 200 ms whether it is ready, and keeps a line of each question.
fn probed(name: &str) -> Value {
    let script =
        "mkdir /tmp/w; echo fine > /tmp/w/ok; trap 'exit 0' TERM; httpd -f -vv -p 8080 -h /tmp/w 2>/log/asked & wait";
    // What asks for nothing gets nothing of a machine that is as busy as this one will be.
    let size = json!({"limits": {"cpu": "300m", "memory": "64Mi"}});
    let mounts = json!([{"name": "log", "mountPath": "/log"}]);
    let app = with(container("app", script), json!({"volumeMounts": mounts, "resources": size}));
    let annotation = format!("plugin: http\nconfig: {{port: 8080, path: /ok}}\nperiod: {}ms\n", PERIOD.as_millis());
    // Of other tests' harm a second may come; of this one nothing.
    let annotation = format!("{annotation}failureThreshold: 1\ntimeout: 3s\n");
    with(
        pod(name, json!([app]), json!({"volumes": [{"name": "log", "emptyDir": {}}]})),
        json!({"metadata": {"annotations": {"probe.longshore.dev/app.readiness": annotation}}}),
    )
}

/// How many probes the pods have answered.
fn probes(logs: &[PathBuf]) -> usize {
    logs.iter().map(|log| fs::read_to_string(log).unwrap().matches("response:").count()).sum()
}

/// A line of `/proc/<pid>/status`, in MiB.
fn memory(pid: u32, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    found.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

/// What those who mean harm know, and what became of them.
struct Attack {
    server: SocketAddr,
    nobody: TlsConnector,
    /// With a certificate of another authority.
    stranger: TlsConnector,
    /// With one of the right authority, in the wrong hands.
    user: TlsConnector,
    /// The first bytes of a TLS connection.
    hello: Vec<u8>,
    turned_away: AtomicUsize,
    let_in: AtomicUsize,
    cut_off: AtomicUsize,
}

impl Attack {
    async fn connect(&self, number: usize) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        let source = Ipv4Addr::new(127, 0, 1, u8::try_from(number % SOURCES).unwrap() + 1);
        socket.bind(SocketAddr::from((source, 0)))?;
        socket.connect(self.server).await
    }

    /// One connection. Errors are what is hoped for.
    async fn one(&self, number: usize) -> std::io::Result<()> {
        let mut stream = self.connect(number).await?;
        match number % 5 {
            // Says nothing.
            0 => self.closes(&mut stream).await,
            // Begins TLS, and goes no further.
            1 => {
                stream.write_all(&self.hello).await?;
                self.closes(&mut stream).await
            }
            // A request without end, a little at a time.
            2 => {
                let mut stream = callers::connect(&self.nobody, stream).await?;
                stream.write_all(b"GET /pods HTTP/1.1\r\n").await?;
                let (mut reader, mut writer) = tokio::io::split(stream);
                let drip = async {
                    let mut line = format!("X-Header: {}\r\n", "y".repeat(400)).into_bytes();
                    line.extend_from_slice(b"X-");
                    while writer.write_all(&line).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                };
                tokio::select! {
                    () = drip => Ok(()),
                    closed = self.closes(&mut reader) => closed,
                }
            }
            // Garbage in place of TLS, of SPDY and of WebSocket.
            3 => {
                let garbage: Vec<u8> =
                    (0..64_usize << 10).map(|at| ((at ^ number).wrapping_mul(0x9e37) >> 7) as u8).collect();
                let (head, frames): (_, &[u8]) = match number / 5 % 4 {
                    0 => (
                        "SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io",
                        &[0x80, 3, 0, 1, 0, 0, 0xff, 0xff],
                    ),
                    1 => (
                        "websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                         Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io",
                        &[0x82, 0xff, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff],
                    ),
                    _ => {
                        stream.write_all(&garbage).await?;
                        return self.closes(&mut stream).await;
                    }
                };
                let mut stream = callers::connect(&self.user, stream).await?;
                let pod = format!("/portForward/default/{}-{}", PODS[number % PODS.len()], crate::bed::NODE);
                let head =
                    format!("GET {pod} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: {head}\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                let mut first = [0; 12];
                stream.read_exact(&mut first).await?;
                assert_eq!(&first, b"HTTP/1.1 101");
                self.let_in.fetch_add(1, Ordering::Relaxed);
                stream.write_all(frames).await?;
                stream.write_all(&garbage).await?;
                self.closes(&mut stream).await
            }
            _ => {
                let mut stream = callers::connect(&self.stranger, stream).await?;
                let answer = callers::exchange(&mut stream, "/pods").await?;
                assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
                self.turned_away.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    async fn closes(&self, stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
        let ended = tokio::io::copy(stream, &mut tokio::io::sink()).await;
        self.cut_off.fetch_add(1, Ordering::Relaxed);
        ended.map(drop)
    }

    async fn run(self: Arc<Self>) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut all = tokio::task::JoinSet::new();
        for number in 0..ATTACK {
            let place = places.clone().acquire_owned().await.unwrap();
            let attack = self.clone();
            all.spawn(async move {
                let _place = place;
                let _ = tokio::time::timeout(limit(HOLD), attack.one(number)).await;
            });
        }
        while let Some(ended) = all.join_next().await {
            ended.unwrap();
        }
    }
}

/// The first half of what a client of TLS says.
fn half_a_hello() -> Vec<u8> {
    let config = Authority::new("nobody").connector(None).config().clone();
    let mut client = rustls::ClientConnection::new(config, callers::server_name()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello.truncate(hello.len() / 2);
    hello
}

#[test]
fn hostile_clients_harm_neither_probes_nor_users() {
    let Some(mut bed) = Bed::new() else { return };
    let (ours, address) = callers::serving(&mut bed);
    bed.begin();
    PODS.iter().for_each(|name| bed.apply(&probed(name)));
    let log = |name: &&str| {
        let pod = bed.wait_ready(name);
        bed.pod_folder(&pod).join("volumes/kubernetes.io~empty-dir/log/asked")
    };
    let logs: Vec<PathBuf> = PODS.iter().map(log).collect();

    let in_peace = || {
        let (before, begun) = (probes(&logs), Instant::now());
        let enough = 15 * PODS.len();
        let made = until("probes are made", || Some(probes(&logs) - before).filter(|made| *made >= enough));
        made as f64 / begun.elapsed().as_secs_f64()
    };

    let identity = ours.sign("user");
    let user = ours.connector(Some(&identity));
    let attack = Arc::new(Attack {
        server: address,
        nobody: ours.connector(None),
        stranger: ours.connector(Some(&Authority::new("others").sign("user"))),
        user: user.clone(),
        hello: half_a_hello(),
        turned_away: AtomicUsize::new(0),
        let_in: AtomicUsize::new(0),
        cut_off: AtomicUsize::new(0),
    });
    // A probe may have been before its server.
    let unhealthy = || -> Vec<Value> {
        let all = PODS.iter().flat_map(|name| bed.events(name));
        all.filter(|event| event["reason"] == "Unhealthy").collect()
    };
    let at_the_start = unhealthy();
    let told = bed.watch.told().history.len();
    let memory_before = memory(bed.pid(), "VmRSS:");
    // Where the peak of memory is counted from.
    fs::write(format!("/proc/{}/clear_refs", bed.pid()), "5").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // Other tests are at work, too: the best of some tries says what the attack does.
    let mut tries = 0;
    let (peace, war, took) = loop {
        let peace = in_peace();
        let (before, begun) = (probes(&logs), Instant::now());
        runtime.block_on(attack.clone().run());
        let (made, took) = (probes(&logs) - before, begun.elapsed());
        let war = made as f64 / took.as_secs_f64();
        tries += 1;
        if war > 0.8 * peace || tries == 3 {
            break (peace, war, took);
        }
    };
    let peak = memory(bed.pid(), "VmHWM:");
    let figures = format!(
        "{ATTACK} in {took:?}: probes a second {peace:.1} → {war:.1}; memory {memory_before} → {peak} MiB; {:?} cut off, \
         {:?} turned away, {:?} let in with garbage",
        attack.cut_off, attack.turned_away, attack.let_in
    );
    eprintln!("{figures}");
    for (count, what) in [(&attack.cut_off, "cut off"), (&attack.turned_away, "401"), (&attack.let_in, "garbage")] {
        assert!(count.load(Ordering::Relaxed) > ATTACK / 1000, "{what}: {figures}\n{}", bed.log());
    }
    assert!(war > 0.8 * peace, "{figures}\n{}", bed.log());
    assert!(peak < memory_before + MEMORY, "{figures}");
    let flapped = |(_, object): &&(String, Value)| !uid(object).is_empty() && !condition(object, "Ready");
    let flapped = bed.watch.told().history[told..].iter().find(flapped).cloned();
    assert!(flapped.is_none(), "{flapped:?}\n{}", bed.log());
    assert_eq!(unhealthy(), at_the_start);
    until("its users are served", || {
        let answer = runtime.block_on(callers::get(&user, address, "/pods")).ok()?;
        (answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"a-n1\"")).then_some(())
    });
}
