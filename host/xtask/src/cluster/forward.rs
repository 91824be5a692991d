//! A way into the network of a world for a person outside: a port of loopback whose connections are made inside.
//! Must not be used by tests, which run inside themselves.

use std::{
    fs::File,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Connects a port of loopback with `target` as the process `pid` sees it; gives the port. Ends with xtask.
///
/// # Errors
/// When no port is free.
pub(crate) fn into_network_of(pid: i32, target: SocketAddr) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a free port on 127.0.0.1")?;
    let port = listener.local_addr()?.port();
    let network = PathBuf::from(format!("/proc/{pid}/ns/net"));
    thread::Builder::new().name("forward".to_owned()).spawn(move || {
        for client in listener.incoming().flatten() {
            let network = network.clone();
            thread::spawn(move || {
                let _ = serve(client, &network, target);
            });
        }
    })?;
    Ok(port)
}

fn serve(client: TcpStream, network: &Path, target: SocketAddr) -> Result<()> {
    // Only this thread changes sides; a socket stays where it was made.
    move_into_link_name_space(File::open(network)?.as_fd(), Some(LinkNameSpaceType::Network))?;
    let server = TcpStream::connect_timeout(&target, Duration::from_secs(10))?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || pump(from, to));
    pump(server, client);
    Ok(())
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
