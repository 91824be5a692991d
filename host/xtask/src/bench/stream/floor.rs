//! The bare things that streams are measured against: Docker's own exec by its socket, a connection into a pod's network
//! namespace, and a plain TLS relay before it.

use std::{
    fs::File,
    io::{BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::wire::{Buffered, LIMIT};
use crate::http::Client;

/// Runs a command by Docker's API as we do: created, started, its streams taken, looked at. Gives the bytes that it wrote.
///
/// # Errors
/// When Docker refuses, or the command fails.
pub(super) fn exec(socket: &Path, container: &str, command: &[&str], stdin: Option<u64>) -> Result<u64> {
    let mut client = Client::new(socket, LIMIT);
    let wanted = json!({
        "AttachStdin": stdin.is_some(), "AttachStdout": stdin.is_none(), "AttachStderr": true, "Cmd": command,
    });
    let made = client.expect("POST", &format!("/containers/{container}/exec"), Some(&wanted))?;
    let id = made["Id"].as_str().context("an exec without an ID")?;
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let body = r#"{"Detach":false,"Tty":false}"#;
    let mut io = Buffered(BufReader::with_capacity(64 << 10, stream));
    write!(
        io,
        "POST /exec/{id}/start HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let status = io.line()?;
    while !io.line()?.is_empty() {}
    if !status.starts_with("HTTP/1.1 101") {
        bail!("Docker's exec: {status}");
    }
    if let Some(length) = stdin {
        super::pieces(length, |piece| Ok(io.write_all(piece)?))?;
        io.0.get_ref().shutdown(Shutdown::Write)?;
    }
    let mut written = 0;
    let mut piece = vec![0; 64 << 10];
    loop {
        let mut head = [0; 8];
        if io.read_exact(&mut head).is_err() {
            break;
        }
        let mut left = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        written += left as u64;
        while left > 0 {
            let room = left.min(piece.len());
            io.read_exact(&mut piece[..room])?;
            left -= room;
        }
    }
    let ended: Value = client.get(&format!("/exec/{id}/json"))?;
    match ended["ExitCode"].as_i64() {
        Some(0) => Ok(written),
        code => bail!("Docker's exec of {command:?} ended with {code:?}"),
    }
}

/// Does something in the network namespace of a process, by a thread that ends there.
fn inside<T: Send + 'static>(process: i64, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let there = move || -> Result<T> {
        let namespace = File::open(format!("/proc/{process}/ns/net"))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    };
    thread::spawn(there).join().map_err(|_| anyhow!("a thread panicked"))?
}

/// A connection to a port on the loopback of a process's network namespace.
///
/// # Errors
/// When it cannot be entered, or nobody listens.
pub(super) fn connect(process: i64, port: u16) -> Result<TcpStream> {
    let stream = inside(process, move || Ok(TcpStream::connect(("127.0.0.1", port))?))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Listens there, until we end: each connection says with one byte how much it wants.
///
/// # Errors
/// When it cannot be entered, or somebody listens already.
pub(super) fn serve(process: i64, port: u16) -> Result<()> {
    let listener = inside(process, move || Ok(TcpListener::bind(("127.0.0.1", port))?))?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || -> Result<()> {
                let mut wish = [0];
                stream.read_exact(&mut wish)?;
                match &wish {
                    super::MUCH => super::pieces(super::BYTES, |piece| Ok(stream.write_all(piece)?)),
                    _ => Ok(stream.write_all(super::LITTLE_IS)?),
                }
            });
        }
    });
    Ok(())
}

/// Copies what one client gets from a port of a process's namespace through TLS, and nothing else; where it listens.
///
/// # Errors
/// When there is no port.
pub(super) fn relay(config: Arc<ServerConfig>, process: i64, port: u16) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || -> Result<()> {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut client = StreamOwned::new(ServerConnection::new(config)?, stream);
        let mut pod = connect(process, port)?;
        let mut piece = vec![0; 64 << 10];
        let length = client.read(&mut piece)?;
        pod.write_all(&piece[..length])?;
        loop {
            let length = pod.read(&mut piece)?;
            if length == 0 {
                client.conn.send_close_notify();
                return Ok(client.flush()?);
            }
            client.write_all(&piece[..length])?;
        }
    });
    Ok(address)
}
