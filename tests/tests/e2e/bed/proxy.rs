//! A Docker that misbehaves: a socket before the real one that can refuse, answer with errors, or be slow. Must not be
//! used where the real one will do.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
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
    open: Vec<UnixStream>,
}

/// The proxy; its socket goes with it.
#[derive(Debug)]
pub(crate) struct Proxy {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    pub(crate) fn start(socket: &Path, target: &Path) -> Proxy {
        let listener = UnixListener::bind(socket).unwrap();
        let state = Arc::new(Mutex::new(State { mode: Mode::Pass, open: Vec::new() }));
        let (theirs, target) = (Arc::clone(&state), target.to_owned());
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { break };
                let (state, target) = (Arc::clone(&theirs), target.clone());
                thread::spawn(move || serve(client, &target, &state));
            }
        });
        Proxy { socket: socket.to_owned(), state }
    }

    /// Behaves in another way from now on; connections that are open break.
    pub(crate) fn set(&self, mode: Mode) {
        let mut state = self.state.lock().unwrap();
        state.mode = mode;
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::Refuse);
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn serve(mut client: UnixStream, target: &Path, state: &Mutex<State>) {
    let mode = state.lock().unwrap().mode;
    match mode {
        Mode::Refuse => {}
        Mode::Errors => {
            let mut buffer = [0; 65536];
            let _ = client.read(&mut buffer);
            let body = "{\"message\":\"layer does not exist: no space left on device\"}";
            let head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\n";
            let _ = write!(client, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
        }
        Mode::Pass | Mode::Slow(_) => {
            let Ok(server) = UnixStream::connect(target) else { return };
            let copies = [client.try_clone(), server.try_clone()];
            state.lock().unwrap().open.extend(copies.into_iter().flatten());
            let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let delay = if let Mode::Slow(delay) = mode { delay } else { Duration::ZERO };
            thread::spawn(move || pump(from, to, delay));
            pump(server, client, Duration::ZERO);
        }
    }
}

fn pump(mut from: UnixStream, mut to: UnixStream, delay: Duration) {
    let mut buffer = vec![0; 65536];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            break;
        }
        thread::sleep(delay);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
