//! A port before another that can be shut: for a node, its API server is then gone, and for nobody else. Must not read
//! what goes through, which is TLS.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

#[derive(Debug)]
struct State {
    open: bool,
    streams: Vec<TcpStream>,
}

/// The gate; what goes through it ends with it.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Gate {
    /// An open one before `target`, on the same address, so that the server's certificate holds.
    pub(crate) fn before(target: SocketAddr) -> Gate {
        let listener = TcpListener::bind((target.ip(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { open: true, streams: Vec::new() }));
        let theirs = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { break };
                let state = Arc::clone(&theirs);
                thread::spawn(move || serve(client, target, &state));
            }
        });
        Gate { address, state }
    }

    /// Breaks all connections, and each new one at once.
    pub(crate) fn shut(&self) {
        let mut state = self.state.lock().unwrap();
        state.open = false;
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().open = true;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shut();
    }
}

fn serve(client: TcpStream, target: SocketAddr, state: &Mutex<State>) {
    let Ok(server) = TcpStream::connect(target) else { return };
    let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { return };
    {
        let mut state = state.lock().unwrap();
        if !state.open {
            return;
        }
        state.streams.extend([&client, &server].into_iter().filter_map(|stream| stream.try_clone().ok()));
    }
    thread::spawn(move || pump(from, to));
    pump(server, client);
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 65536];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
