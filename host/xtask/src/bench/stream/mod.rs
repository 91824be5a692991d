//! `bench stream`: exec, port-forward and followed logs through the node's server, each against the bare thing in the
//! same run. Must not print.

mod floor;
mod wire;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use self::wire::{Door, Spdy};
use super::{
    agent::Agent,
    machine,
    pods::{Setting, nap},
    table::Row,
};
use crate::{cluster::keys::Authority, http::Client, images};

/// Bytes that are streamed for a figure of throughput.
const BYTES: u64 = 128 << 20;
const PIECE: usize = 32 << 10;
/// What is served on in the pod.
const PORT: u16 = 8080;
/// Connections at a time through one port-forward.
const FORWARDS: usize = 200;
/// Followers that read nothing, and what there is to read for each.
const FOLLOWERS: usize = 100;
const LOG: u64 = 16 << 20;
/// An exec of `true` is over in a blink: so many for each round.
const EXECS: usize = 10;
/// An exec's and a port-forward's protocols.
const EXEC: (&str, &str) = ("v4.channel.k8s.io", "v5.channel.k8s.io");
const FORWARD: &str = "portforward.k8s.io";

/// A pod to stream to and from, behind a server.
struct Bench {
    door: Door,
    docker: std::path::PathBuf,
    container: String,
    process: i64,
    relay: std::sync::Arc<rustls::ServerConfig>,
}

/// Calls `each` with pieces of so many bytes in all.
fn pieces(length: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let piece = vec![0x5a; PIECE];
    for _ in 0..length.div_ceil(PIECE as u64) {
        each(&piece)?;
    }
    Ok(())
}

/// Seconds that something takes.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// All of it; the best of `rounds`.
///
/// # Errors
/// When the agent, Docker or a stream fails.
pub(super) fn run(setting: &Setting, rounds: usize) -> Result<Vec<Row>> {
    let folder = setting.folder.join("stream");
    fs::create_dir_all(&folder)?;
    let authority = Authority::new(&folder, "ca")?;
    let server = authority.issue("server", "node", None, &["127.0.0.1".to_owned()])?;
    let user = authority.issue("user", "bench", Some("system:masters"), &[])?;
    let address: SocketAddr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let flags = [
        "--hostname-override=node".to_owned(),
        "--address=127.0.0.1".to_owned(),
        format!("--port={}", address.port()),
        "--authorization-mode=AlwaysAllow".to_owned(),
        // How full the disk is that this is tried on says nothing.
        "--eviction-hard=memory.available<100Mi".to_owned(),
        format!("--client-ca-file={}", authority.certificate().display()),
        format!("--tls-cert-file={}", server.certificate.display()),
        format!("--tls-private-key-file={}", server.key.display()),
    ];
    let agent = Agent::start_with(&setting.binary, &folder, &setting.docker, &flags)?;
    agent.write("stream", &pod())?;
    agent.wait("the pod is Ready", Duration::from_secs(120), |pods| pods.iter().any(|pod| pod.ready))?;
    let (container, process) = container(setting)?;
    floor::serve(process, PORT)?;
    let bench = Bench {
        door: Door::new(address, &authority, &user)?,
        docker: setting.docker.clone(),
        container,
        process,
        relay: wire::server(&server)?,
    };
    let mut rows = bench.throughput(rounds)?;
    rows.push(bench.latency(rounds)?);
    rows.extend(bench.parallel(rounds)?);
    rows.extend(bench.followers(agent.pid())?);
    agent.clear()?;
    agent.kill();
    Ok(rows)
}

/// Sleeps, and has said much.
fn pod() -> serde_json::Value {
    let sleep = "trap 'exit 0' TERM; sleep 1000000 & wait";
    let container = |name: &str, script: &str| json!({"name": name, "image": images::BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", script]});
    let words = format!("yes a line of a log | head -c {LOG}; touch /said; {sleep}");
    let mut talker = container("talker", &words);
    talker["readinessProbe"] = json!({"exec": {"command": ["test", "-e", "/said"]}, "periodSeconds": 1});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stream"},
        "spec": {"containers": [container("app", sleep), talker]},
    })
}

/// The ID and the process of the pod's container.
fn container(setting: &Setting) -> Result<(String, i64)> {
    let mut client = Client::new(&setting.docker, wire::LIMIT);
    let list = client.get("/containers/json")?;
    let ours = |one: &&serde_json::Value| one["Labels"]["io.kubernetes.container.name"] == "app";
    let found = list.as_array().into_iter().flatten().find(ours).context("the pod's container is not in Docker")?;
    let id = found["Id"].as_str().context("a container without an ID")?.to_owned();
    let process = client.get(&format!("/containers/{id}/json"))?["State"]["Pid"].as_i64();
    Ok((id, process.context("a container without a process")?))
}

/// What a client sends for as many bytes as are measured, and for a few; and these.
const MUCH: &[u8; 1] = b"m";
const LITTLE: &[u8; 1] = b"l";
const LITTLE_IS: &[u8] = b"a little\n";

impl Bench {
    fn exec_path(&self, command: &[&str], streams: &str) -> String {
        let command: Vec<String> = command.iter().map(|word| word.replace(' ', "+").replace('>', "%3E")).collect();
        format!("/exec/default/stream-node/app?command={}&{streams}", command.join("&command="))
    }

    /// An exec by SPDY.
    fn exec_spdy(&self, command: &[&str], stdin: Option<u64>) -> Result<u64> {
        let streams = if stdin.is_some() { "input=1" } else { "output=1" };
        let mut session = self.door.spdy(&self.exec_path(command, streams), EXEC.0)?;
        let error = session.open(&[("streamtype", "error")])?;
        let kind = if stdin.is_some() { "stdin" } else { "stdout" };
        let stream = session.open(&[("streamtype", kind)])?;
        if let Some(length) = stdin {
            pieces(length, |piece| session.send(stream, piece, false))?;
            session.send(stream, &[], true)?;
        }
        let (mut written, mut status) = (0, Vec::new());
        while let Some(data) = session.receive()? {
            if data.stream == error {
                status.extend_from_slice(&data.bytes);
            } else {
                written += data.bytes.len() as u64;
            }
        }
        succeeded(&status)?;
        Ok(written)
    }

    /// An exec by WebSocket.
    fn exec_web_socket(&self, command: &[&str], stdin: Option<u64>) -> Result<u64> {
        let streams = if stdin.is_some() { "input=1" } else { "output=1" };
        let mut socket = self.door.web_socket(&self.exec_path(command, streams), EXEC.1)?;
        if let Some(length) = stdin {
            pieces(length, |piece| socket.send(&[&[0], piece]))?;
            // Closes stdin.
            socket.send(&[&[255, 0]])?;
        }
        let (mut written, mut status) = (0, Vec::new());
        while let Some(message) = socket.receive()? {
            match message.split_first() {
                Some((3, rest)) => status.extend_from_slice(rest),
                Some((1, rest)) => written += rest.len() as u64,
                _ => {}
            }
        }
        succeeded(&status)?;
        Ok(written)
    }

    /// Much by a port-forward.
    fn forwarded(&self, mut session: Spdy) -> Result<()> {
        let data = forward(&mut session, 0, MUCH)?;
        let mut length = 0;
        while let Some(found) = session.receive()? {
            if found.stream == data {
                length += found.bytes.len() as u64;
                if found.end {
                    break;
                }
            }
        }
        exact(length, BYTES)
    }

    fn throughput(&self, rounds: usize) -> Result<Vec<Row>> {
        let bytes = BYTES.to_string();
        let write = ["head", "-c", &bytes, "/dev/zero"];
        let read = ["sh", "-c", "cat > /dev/null"];
        let path = "/portForward/default/stream-node";
        let mut times: [Vec<f64>; 9] = Default::default();
        // By turns, so that what disturbs the machine disturbs all alike.
        for _ in 0..rounds {
            let round = [
                timed(|| exact(floor::exec(&self.docker, &self.container, &write, None)?, BYTES))?,
                timed(|| exact(self.exec_spdy(&write, None)?, BYTES))?,
                timed(|| exact(self.exec_web_socket(&write, None)?, BYTES))?,
                timed(|| floor::exec(&self.docker, &self.container, &read, Some(BYTES)).map(drop))?,
                timed(|| self.exec_spdy(&read, Some(BYTES)).map(drop))?,
                timed(|| self.exec_web_socket(&read, Some(BYTES)).map(drop))?,
                timed(|| {
                    let door = self.door.at(floor::relay(self.relay.clone(), self.process, PORT)?);
                    let mut stream = door.connect()?;
                    stream.write_all(MUCH)?;
                    stream.flush()?;
                    exact(std::io::copy(&mut stream, &mut std::io::sink())?, BYTES)
                })?,
                timed(|| self.forwarded(self.door.spdy(path, FORWARD)?))?,
                timed(|| self.forwarded(self.door.tunnel(path)?))?,
            ];
            times.iter_mut().zip(round).for_each(|(times, time)| times.push(time));
        }
        let best = |at: usize| times[at].iter().copied().fold(f64::INFINITY, f64::min);
        let mib = BYTES >> 20;
        let row = |what: &str, at: usize, base: usize, goal: f64| {
            Row::ratio(format!("{mib} MiB {what}, s"), best(at), best(base), goal)
        };
        Ok(vec![
            row("exec's stdout by SPDY (of Docker's socket)", 1, 0, 1.25),
            row("exec's stdout by WebSocket (of Docker's socket)", 2, 0, 1.25),
            row("exec's stdin by SPDY (of Docker's socket)", 4, 3, 1.25),
            row("exec's stdin by WebSocket (of Docker's socket)", 5, 3, 1.25),
            row("port-forward by SPDY (of a TLS relay)", 7, 6, 1.67),
            row("port-forward by WebSocket (of a TLS relay)", 8, 6, 1.67),
        ])
    }

    fn latency(&self, rounds: usize) -> Result<Row> {
        let (mut ours, mut alone) = (Vec::new(), Vec::new());
        for _ in 0..rounds * EXECS {
            alone.push(timed(|| floor::exec(&self.docker, &self.container, &["true"], None).map(drop))?);
            ours.push(timed(|| self.exec_web_socket(&["true"], None).map(drop))?);
        }
        let median = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        Ok(Row::ratio("exec of true, median s (of Docker's API)".to_owned(), median(ours), median(alone), 1.15))
    }

    fn parallel(&self, rounds: usize) -> Result<Vec<Row>> {
        let (mut ours, mut alone) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            alone.push(timed(|| {
                let open = || -> Result<_> {
                    let mut stream = floor::connect(self.process, PORT)?;
                    stream.write_all(LITTLE)?;
                    Ok(stream)
                };
                let streams = (0..FORWARDS).map(|_| open()).collect::<Result<Vec<_>>>()?;
                for mut stream in streams {
                    let mut text = String::new();
                    stream.read_to_string(&mut text)?;
                    is_little(text.as_bytes())?;
                }
                Ok(())
            })?);
            ours.push(timed(|| {
                let mut session = self.door.tunnel("/portForward/default/stream-node")?;
                let mut answers = std::collections::BTreeMap::new();
                for number in 0..FORWARDS {
                    answers.insert(forward(&mut session, number, LITTLE)?, Vec::new());
                }
                let mut left = FORWARDS;
                while left > 0 {
                    let data = session.receive()?.context("the port-forward ended early")?;
                    if let Some(answer) = answers.get_mut(&data.stream) {
                        answer.extend_from_slice(&data.bytes);
                        left -= usize::from(data.end);
                    }
                }
                answers.values().try_for_each(|answer| is_little(answer))
            })?);
        }
        let best = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
        let what = format!("{FORWARDS} connections by one port-forward, s (of plain ones)");
        Ok(vec![Row::plain(what, best(&ours), Some(best(&alone)))])
    }

    /// Memory and CPU that those cost who follow a log and read nothing of it.
    fn followers(&self, agent: i32) -> Result<Vec<Row>> {
        let (before, cpu_before) = (settled(agent)?, machine::process_cpu(agent)?);
        let mut held = Vec::new();
        for _ in 0..FOLLOWERS {
            let mut stream = self.door.connect()?;
            write!(stream, "GET /containerLogs/default/stream-node/talker?follow=true HTTP/1.1\r\nHost: node\r\n\r\n")?;
            stream.flush()?;
            let mut first = [0; 12];
            stream.read_exact(&mut first)?;
            if &first != b"HTTP/1.1 200" {
                bail!("a follower of the log is told {:?}", String::from_utf8_lossy(&first));
            }
            held.push(stream);
        }
        let kib = (settled(agent)? - before) * 1024.0 / FOLLOWERS as f64;
        let cpu = (machine::process_cpu(agent)? - cpu_before) * 1000.0 / FOLLOWERS as f64;
        let row = |what: &str| format!("{FOLLOWERS} followers of a log that read nothing, {what} each");
        Ok(vec![Row::absolute(row("KiB"), kib, 64.0), Row::plain(row("the agent's CPU, ms"), cpu, None)])
    }
}

/// A process's memory once it does not grow any more, MiB.
fn settled(process: i32) -> Result<f64> {
    let mut last = machine::resident(process)?;
    for _ in 0..20 {
        nap(1)?;
        let now = machine::resident(process)?;
        if now <= last {
            return Ok(now);
        }
        last = now;
    }
    bail!("the agent's memory grows without end: {last} MiB")
}

/// Opens a connection's pair of streams and asks; the stream of its data.
fn forward(session: &mut Spdy, number: usize, request: &[u8]) -> Result<u32> {
    let (number, port) = (number.to_string(), PORT.to_string());
    let mut open = |kind| session.open(&[("streamtype", kind), ("port", &port), ("requestid", &number)]);
    let (error, data) = (open("error")?, open("data")?);
    // What clients do with a stream that they only read.
    session.send(error, &[], true)?;
    session.send(data, request, false)?;
    Ok(data)
}

fn exact(length: u64, wanted: u64) -> Result<()> {
    if length != wanted {
        bail!("{length} bytes came in place of {wanted}");
    }
    Ok(())
}

fn is_little(answer: &[u8]) -> Result<()> {
    if answer != LITTLE_IS {
        bail!("a wrong answer: {:?}", String::from_utf8_lossy(answer));
    }
    Ok(())
}

fn succeeded(status: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(status);
    if !text.contains(r#""status":"Success""#) {
        bail!("an exec failed: {text}");
    }
    Ok(())
}
