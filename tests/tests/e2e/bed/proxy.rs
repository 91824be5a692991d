//! A Docker that misbehaves: a socket before the real one that can refuse, answer with errors, or be slow. Must not be
//! used where the real one will do.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

/// How it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes everything on.
    Pass,
    /// Answers every request with an error of the server's.
    Errors,
    /// Closes connections at once, as a daemon that is going down.
    Refuse,
    /// Takes its time for every request.
    Slow(Duration),
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// What orders that name it fail with an error of the server's.
    protected: Option<String>,
    hangs: bool,
    open: Vec<UnixStream>,
}

/// What all its threads share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    goes_on: Condvar,
}

impl Shared {
    /// Waits for as long as it hangs.
    fn wait(&self) {
        drop(self.goes_on.wait_while(self.state.lock().unwrap(), |state| state.hangs).unwrap());
    }
}

/// The proxy; its socket goes with it.
#[derive(Debug)]
pub(crate) struct Proxy {
    socket: PathBuf,
    shared: Arc<Shared>,
}

impl Proxy {
    pub(crate) fn start(socket: &Path, target: &Path) -> Proxy {
        let listener = UnixListener::bind(socket).unwrap();
        let state = State { mode: Mode::Pass, protected: None, hangs: false, open: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), goes_on: Condvar::new() });
        let (theirs, target) = (Arc::clone(&shared), target.to_owned());
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { break };
                let (shared, target) = (Arc::clone(&theirs), target.clone());
                thread::spawn(move || serve(client, &target, &shared));
            }
        });
        Proxy { socket: socket.to_owned(), shared }
    }

    /// From now on every order about the container of that ID fails, or none when there is none.
    pub(crate) fn protect(&self, id: Option<&str>) {
        self.shared.state.lock().unwrap().protected = id.map(str::to_owned);
    }

    /// Hangs, as a daemon that was stopped: connections stay and can be made, and nothing comes by them. Or goes on, with what was
    /// said meanwhile.
    pub(crate) fn hang(&self, hangs: bool) {
        self.shared.state.lock().unwrap().hangs = hangs;
        self.shared.goes_on.notify_all();
    }

    /// Behaves in another way from now on; connections that are open break.
    pub(crate) fn set(&self, mode: Mode) {
        let mut state = self.shared.state.lock().unwrap();
        state.mode = mode;
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::Refuse);
        self.hang(false);
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn serve(mut client: UnixStream, target: &Path, shared: &Arc<Shared>) {
    let mode = shared.state.lock().unwrap().mode;
    match mode {
        Mode::Refuse => {}
        Mode::Errors => {
            let mut buffer = [0; 65536];
            let _ = client.read(&mut buffer);
            let _ = client.write_all(&error("layer does not exist: no space left on device"));
        }
        Mode::Pass | Mode::Slow(_) => {
            let Ok(server) = UnixStream::connect(target) else { return };
            let copies = [client.try_clone(), server.try_clone()];
            shared.state.lock().unwrap().open.extend(copies.into_iter().flatten());
            let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let delay = if let Mode::Slow(delay) = mode { delay } else { Duration::ZERO };
            let theirs = Arc::clone(shared);
            thread::spawn(move || {
                pump(from, to, |request| {
                    thread::sleep(delay);
                    theirs.wait();
                    let protected = theirs.state.lock().unwrap().protected.clone();
                    protected.is_none_or(|id| !is_order(request, &id))
                });
            });
            pump(server, client, |_| {
                shared.wait();
                true
            });
        }
    }
}

/// Passes on what `may` be; answers what may not be in the server's place.
fn pump(mut from: UnixStream, mut to: UnixStream, may: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 65536];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            // The end, too, comes when what was said before does.
            may(&[]);
            break;
        }
        if !may(&buffer[..count]) {
            let _ = from.write_all(&error("this container is protected"));
            let _ = from.shutdown(Shutdown::Both);
            break;
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Whether a request, whose head comes in one piece, is to change a container.
fn is_order(request: &[u8], id: &str) -> bool {
    let line = String::from_utf8_lossy(request.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    ["POST", "DELETE"].iter().any(|method| line.starts_with(method)) && line.contains(id)
}

/// An answer of a server that fails.
fn error(message: &str) -> Vec<u8> {
    let body = format!("{{\"message\":{message:?}}}");
    let head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\n";
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
