//! A server of `grpc.health.v1.Health` that says SERVING to whoever asks, for the example pods: HTTP/2 by hand, so
//! that it needs no crates. Must not be taken for a gRPC library: it reads no headers and serves no other call.
//!
//! `grpc-health [PORT] [SECONDS]`: listens on PORT (50051) and answers SERVING from SECONDS (0) after its start,
//! NOT_SERVING before.

use std::{
    env,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

/// What a client of HTTP/2 says first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame that a peer may send as long as we do not allow more.
const FRAME_LIMIT: usize = 16_384;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let port = args.next().unwrap_or_else(|| "50051".to_owned());
    let wait = args.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
    let listener = match port.parse().map(|port: u16| TcpListener::bind(("0.0.0.0", port))) {
        Ok(Ok(listener)) => listener,
        Ok(Err(error)) => {
            eprintln!("port {port}: {error}");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            eprintln!("{port:?} is not a port: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("grpc.health.v1.Health on port {port}");
    let ready = Instant::now() + Duration::from_secs(wait);
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            if let Err(error) = serve(stream, ready)
                && error.kind() != io::ErrorKind::UnexpectedEof
            {
                eprintln!("connection: {error}");
            }
        });
    }
    ExitCode::SUCCESS
}

fn serve(mut stream: TcpStream, ready: Instant) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface)?;
    if &preface != PREFACE {
        return Err(io::Error::other("this port speaks gRPC (HTTP/2), and the client does not"));
    }
    stream.write_all(&frame(SETTINGS, 0, 0, b""))?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if length > FRAME_LIMIT {
            return Err(io::Error::other("a frame larger than allowed"));
        }
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        match kind {
            SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, b""))?,
            PING if flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &payload))?,
            GOAWAY => return Ok(()),
            // The request is whole when the client has ended its side of the stream.
            DATA | HEADERS if flags & END_STREAM != 0 => {
                stream.write_all(&answer(id, Instant::now() >= ready))?;
            }
            _ => {}
        }
    }
}

/// A whole answer: headers, one message, trailers.
fn answer(id: u32, serving: bool) -> Vec<u8> {
    // `:status: 200` is entry 8 of HPACK's static table; the others are literals that are not indexed.
    let mut headers = vec![0x88];
    literal(&mut headers, b"content-type", b"application/grpc");
    let mut trailers = Vec::new();
    literal(&mut trailers, b"grpc-status", b"0");
    // HealthCheckResponse { status = 1 }: SERVING is 1, NOT_SERVING 2. Before it, gRPC's flag and length.
    let message = [0, 0, 0, 0, 2, 0x08, if serving { 1 } else { 2 }];
    let mut bytes = frame(HEADERS, END_HEADERS, id, &headers);
    bytes.extend(frame(DATA, 0, id, &message));
    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, id, &trailers));
    bytes
}

/// HPACK's "literal header field without indexing, new name"; both are shorter than 127 bytes.
fn literal(into: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    into.push(0);
    for part in [name, value] {
        into.push(u8::try_from(part.len()).unwrap_or(0) & 0x7f);
        into.extend_from_slice(part);
    }
}

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
