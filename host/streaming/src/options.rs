//! Bounds and time limits of a streaming connection, with the kubelet's defaults where it has them.

use std::time::Duration;

/// How long things may take and how large they may grow.
#[derive(Debug, Clone)]
pub struct Options {
    /// A connection on which no data moved for this long, and whose SPDY client did not ping, is closed
    /// (`streamingConnectionIdleTimeout`, 4 h).
    pub idle_timeout: Duration,
    /// How long a client may take to open the streams that it asked for (`streamCreationTimeout`, 30 s).
    pub creation_timeout: Duration,
    /// How often a WebSocket client is sent a ping; `None`: never. Pings do not count against idleness.
    pub keepalive: Option<Duration>,
    /// The bounds of memory and counts.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(4 * 3600),
            creation_timeout: Duration::from_secs(30),
            keepalive: Some(Duration::from_secs(30)),
            limits: Limits::default(),
        }
    }
}

/// What one connection may hold. Nothing is allocated because a peer announced a number.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest SPDY control frame, in bytes. Data frames pass through without being held whole.
    pub control_frame: usize,
    /// Largest header block after inflation, in bytes.
    pub header_block: usize,
    /// Most headers in a block.
    pub headers: usize,
    /// Most streams open at once.
    pub streams: usize,
    /// Most bytes that a stream holds for the application to read (at least the 64 KiB of SPDY's window).
    pub stream_buffer: usize,
    /// Most bytes that all streams of a connection hold for the application to read.
    pub session_buffer: usize,
    /// Most bytes that wait to be written to the socket.
    pub output_buffer: usize,
    /// Largest WebSocket message, in bytes (32 MiB, as of golang.org/x/net/websocket); never held whole.
    pub message: u64,
    /// How long a connection may take to close that is closed for what its client did, or left undone.
    pub linger: Duration,
    /// How long a client may take to read what is left when all is done, and to close (15 min: less would cut the tail of a
    /// client that is paused, in a pager; it keeps its place among the connections so long).
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            control_frame: 64 << 10,
            header_block: 64 << 10,
            headers: 100,
            streams: 2048,
            stream_buffer: 256 << 10,
            session_buffer: 4 << 20,
            output_buffer: 256 << 10,
            message: 32 << 20,
            linger: Duration::from_secs(30),
            farewell: Duration::from_secs(15 * 60),
        }
    }
}
