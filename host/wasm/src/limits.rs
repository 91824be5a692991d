//! Every bound on a guest, in one place. It must not enforce any.

use std::time::Duration;

/// What one call of a plugin may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of linear memory, all memories together, at most [`MAX_MEMORY`].
    pub memory: usize,
    /// Time on a CPU, in the guest and in the host on its behalf. Waiting is free.
    pub cpu: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // A check takes well under a millisecond; the first one on a slow machine (emulated, say) a hundred times that. Python alone
        // begins with 16 MiB.
        Self { memory: 32 << 20, cpu: Duration::from_millis(500) }
    }
}

/// Bytes of linear memory that the pool has room for in each memory.
pub(crate) const MAX_MEMORY: usize = 64 << 20;

/// Memories of one guest: one of its own, and one that a language's tools may add (componentize-qjs does).
pub(crate) const MAX_MEMORIES: usize = 2;

/// Calls at once; more wait for their turn, which is not charged to their budget.
pub(crate) const PLACES: usize = 128;

/// Sources at once: each keeps a place, beside those of calls.
pub(crate) const SOURCES: usize = 8;

/// Core instances of one guest: wit-component makes four of one module, and one more for each library where a language links
/// them (componentize-py: fourteen in all, thirty-eight with `--stub-wasi`, and one for each native package beside these).
pub(crate) const MAX_INSTANCES: usize = 64;

/// Tables of one guest.
pub(crate) const MAX_TABLES: usize = 4;

/// Elements of a guest's tables.
pub(crate) const TABLE_ELEMENTS: usize = 20_000;

/// How far the wall clock may run beyond a call's budget. Every host function ends with the budget (exec a little later, for
/// the kill), and waits of WASI with [`MOMENT`], so only a machine without CPU to give gets here.
pub(crate) const GRACE: Duration = Duration::from_secs(3);

/// How long after its budget a call may still wait in WASI, which knows no budgets: a guest whose connection was not answered in
/// time has that to report, and languages' run times yield now and then on the way.
pub(crate) const MOMENT: Duration = Duration::from_millis(100);

/// How much longer than its timeout the container runtime may take to answer an exec.
pub(crate) const EXEC_GRACE: Duration = Duration::from_secs(2);

/// Time for a plugin to look at a configuration.
pub(crate) const VALIDATE_BUDGET: Duration = Duration::from_secs(1);

/// Bytes that a guest may hand to the host in one call across the border, lists and texts together.
pub(crate) const HOSTCALL_BYTES: usize = 2 << 20;

/// What a guest may hold of the host in one call: connections, streams, things to wait for, headers, requests.
pub(crate) const MAX_RESOURCES: usize = 256;

/// Bytes of randomness in one answer.
pub(crate) const MAX_RANDOM: u64 = 1 << 20;

/// Bytes of what a guest prints that are taken at once.
pub(crate) const MAX_PRINT: usize = 64 << 10;

/// Bytes of a configuration.
pub(crate) const MAX_CONFIG: usize = 256 << 10;

/// Bytes of a message that are kept (`pkg/probe/exec/exec.go`, `maxReadLength`).
pub(crate) const MAX_MESSAGE: usize = 10 << 10;

/// Bytes of a message beyond which the answer is a fault.
pub(crate) const MAX_ANSWER: usize = 64 << 10;

/// Attributes of a report.
pub(crate) const MAX_ATTRS: usize = 16;
/// Bytes of an attribute's name that are kept …
pub(crate) const MAX_ATTR_NAME: usize = 64;
/// … and of its value.
pub(crate) const MAX_ATTR_VALUE: usize = 1 << 10;

/// Bytes of an exec's output.
pub(crate) const MAX_OUTPUT: usize = 10 << 10;

/// Execs in one call, and bytes of one command.
pub(crate) const MAX_EXECS: u32 = 32;
/// Bytes of one command with its arguments.
pub(crate) const MAX_COMMAND: usize = 128 << 10;

/// Connections in one call.
pub(crate) const MAX_CONNECTIONS: u32 = 16;
/// Bytes read, and bytes written, on a call's connections.
pub(crate) const MAX_TRAFFIC: usize = 1 << 20;
/// Bytes of one read.
pub(crate) const MAX_READ: usize = 64 << 10;

/// HTTP requests in one call.
pub(crate) const MAX_REQUESTS: u32 = 16;
/// Bytes of a request's or an answer's headers.
pub(crate) const MAX_HEADERS: usize = 64 << 10;
/// Bytes of a request's body.
pub(crate) const MAX_REQUEST_BODY: usize = 64 << 10;
/// Bytes of an answer's body (`pkg/probe/http/http.go`, `maxRespBodyLength`).
pub(crate) const MAX_BODY: usize = 10 << 10;

/// Bytes of one log line.
pub(crate) const MAX_LINE: usize = 512;
/// Log lines of one call.
pub(crate) const MAX_LINES: u32 = 16;
/// Log lines of one plugin: so many at once …
pub(crate) const LINE_BURST: u32 = 32;
/// … and one more after each such time.
pub(crate) const LINE_EVERY: Duration = Duration::from_millis(500);

/// Bytes of an answer's body that a source may ask for, and of one manifest (`pkg/kubelet/config/file.go`, `maxConfigLength`).
pub(crate) const MAX_MANIFEST: usize = 10 << 20;
/// Bytes that a source may hand to the host in one answer.
pub(crate) const SOURCE_BYTES: usize = 24 << 20;
/// Manifests of one source.
pub(crate) const MAX_ENTRIES: usize = 1000;
/// Bytes of a manifest's key.
pub(crate) const MAX_KEY: usize = 253;
/// Bytes of a source's cursor.
pub(crate) const MAX_CURSOR: usize = 64 << 10;
/// Polls after which a source gets a new instance …
pub(crate) const RECYCLE_POLLS: u32 = 100;
/// … and bytes of memory after which it does.
pub(crate) const RECYCLE_MEMORY: usize = 8 << 20;
/// The longest that a source is left alone: after faults, or because it asks for it.
pub(crate) const MAX_SOURCE_WAIT: Duration = Duration::from_secs(300);

impl Limits {
    /// What a call of a built-in probe may use: they are small.
    pub(crate) const BUILT_IN: Self = Self { memory: 16 << 20, cpu: Duration::from_millis(500) };

    /// What a source's poll may use: a manifest of the greatest size is copied and hashed in it, in the end.
    pub const SOURCE: Self = Self { memory: MAX_MEMORY, cpu: Duration::from_secs(5) };
}
