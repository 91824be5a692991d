//! Connections to ports inside of pods' network namespaces, without anything in their images.
//!
//! A socket belongs for life to the namespace that its thread was in when it was made: a worker thread steps in, makes
//! it, and steps back. It must not know whose port is wanted, nor hold a thread while a connection is made.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

/// Threads at a time that make sockets; each needs it for microseconds.
const THREADS: usize = 4;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Makes connections in namespaces. Clones share the bound.
#[derive(Clone)]
pub struct Namespaces(Arc<Semaphore>);

/// A network namespace, held open. Clones share it.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<File>);

impl Default for Namespaces {
    fn default() -> Namespaces {
        Namespaces(Arc::new(Semaphore::new(THREADS)))
    }
}

impl Namespaces {
    /// The network namespace that a process is in now. It stays open when the process is gone.
    ///
    /// # Errors
    /// When there is no such process, or it may not be looked at.
    pub fn of(process: u32) -> io::Result<Namespace> {
        File::open(format!("/proc/{process}/ns/net")).map(|file| Namespace(Arc::new(file)))
    }

    /// Connects to a port on the loopback of a network namespace, IPv4 first; `None` is the node's.
    ///
    /// # Errors
    /// What the kernel says of IPv4, or that it took ten seconds.
    pub async fn connect(&self, namespace: Option<&Namespace>, port: u16) -> io::Result<TcpStream> {
        let mut first = None;
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let address = SocketAddr::new(ip, port);
            let attempt = async {
                let socket = self.socket(namespace, address.is_ipv6()).await?;
                socket.connect(address).await
            };
            match tokio::time::timeout(CONNECT, attempt).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => first = first.or(Some(error)),
                Err(_) => first = first.or(Some(io::ErrorKind::TimedOut.into())),
            }
        }
        Err(first.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()))
    }

    async fn socket(&self, namespace: Option<&Namespace>, v6: bool) -> io::Result<TcpSocket> {
        let make = move || if v6 { TcpSocket::new_v6() } else { TcpSocket::new_v4() };
        let Some(Namespace(namespace)) = namespace.cloned() else { return make() };
        let turn = self.0.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (send, receive) = tokio::sync::oneshot::channel();
        // A thread of its own that ends at once: one that cannot step back must never serve anything else.
        std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
            // Registers nothing with the runtime: that happens at the connect.
            let made = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(io::Error::from)
                .and_then(|()| make());
            let _ = send.send(made);
            drop(turn);
        })?;
        receive.await.map_err(io::Error::other)?
    }
}
