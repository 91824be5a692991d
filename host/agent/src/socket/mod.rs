//! The local socket: HTTP/1.1 and JSON over `<root>/longshore.sock`, for root alone. It shows; all that it changes is whether
//! pods are to end together.
//!
//! Owns the socket file, connections and their bounds; [`routes`] answers. It must not decide anything about pods.

pub(crate) mod api;
mod drain;
mod routes;
#[cfg(test)]
mod tests;
mod watch;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::fs::{Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use api::Api;

/// Connections that are served at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head, and how long a connection may idle.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const BUFFER_LIMIT: usize = 64 * 1024;
/// The longest path that a socket's address holds (`sun_path`, its end included).
const ADDRESS_LIMIT: usize = 107;

/// Name of the socket below the root folder.
pub(crate) const NAME: &str = "longshore.sock";

/// The path of the agent's socket.
pub(crate) fn path(root: &Path) -> PathBuf {
    root.join(NAME)
}

/// An address for a socket's path, and what keeps it valid: paths that are too long go through /proc.
pub(crate) fn address(path: &Path) -> std::io::Result<(PathBuf, Option<std::os::fd::OwnedFd>)> {
    use std::os::fd::AsRawFd;
    if path.as_os_str().len() <= ADDRESS_LIMIT {
        return Ok((path.to_owned(), None));
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
    };
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let through = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok((through, Some(folder)))
}

/// Makes the socket, in place of one that a former agent left. The caller holds the root folder's lock, so no other
/// agent can be behind the old one.
pub(crate) fn bind(root: &Path) -> std::io::Result<UnixListener> {
    let fresh = root.join(format!(".{NAME}.new"));
    let _ = std::fs::remove_file(&fresh);
    let (address, _folder) = address(&fresh)?;
    let listener = UnixListener::bind(address)?;
    // Closed to others before it has its name.
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path(root))?;
    Ok(listener)
}

/// Serves until `stop`, then takes the socket file away.
pub(crate) async fn serve(listener: UnixListener, root: PathBuf, api: Arc<Api>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Both arms are cancel safe: a permit or a connection that is dropped here is given back.
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        let (Ok(place), Ok((stream, _))) = accepted else {
            // Out of file descriptors, most likely: it passes, and spinning would not help.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if !may_ask(&stream) {
            continue;
        }
        let api = api.clone();
        let stop = stop.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| routes::answer(api.clone(), request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_LIMIT)
                .max_buf_size(BUFFER_LIMIT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = stop.cancelled() => {}
                result = connection => if let Err(error) = result {
                    tracing::debug!("a client of the local socket: {error}");
                },
            }
            drop(place);
        });
    }
    let _ = std::fs::remove_file(path(&root));
}

/// The file's mode keeps others out; this holds also when somebody loosened it.
fn may_ask(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}
