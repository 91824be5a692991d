//! How many files and connections the process may hold open. Must not decide what they are used for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the loops and Docker's connections need, with much to spare: the node's servers get what is beyond.
const OWN: u64 = 512;
/// Descriptors for each connection that a server of the node's may have: there are three servers with such a bound each,
/// and a stream has an end at Docker as well.
const EACH: u64 = 3;

/// Raises the soft limit to the hard one, as Go's programs do: a shell's 1024 would let strangers who hold connections
/// open keep the agent from its own work. Gives the limit that there is then.
pub(crate) fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    // None is no limit.
    current.unwrap_or(u64::MAX)
}

/// Of what the servers get, this part is for logs that are read, each by a connection to Docker, and this part for
/// connections into pods: one connection of a client's may ask for many of both.
const SHARE: u64 = 8;

/// How many connections may be open under such a limit, `most` at most and 16 at least.
pub(crate) fn connections(limit: u64, most: usize) -> usize {
    let room = limit.saturating_sub(OWN);
    clamp((room - 2 * (room / SHARE)) / EACH, 16, most)
}

/// How many logs may be read at a time under such a limit, or connections be open into pods, `most` at most and 4 at
/// least.
pub(crate) fn share(limit: u64, most: usize) -> usize {
    clamp(limit.saturating_sub(OWN) / SHARE, 4, most)
}

fn clamp(room: u64, least: usize, most: usize) -> usize {
    usize::try_from(room).unwrap_or(usize::MAX).clamp(least, most.max(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_keeps_its_own() {
        assert_eq!(connections(u64::MAX, 4096), 4096);
        let (all, logs, forwards) = (connections(1024, 4096), share(1024, 1024), share(1024, 2048));
        assert_eq!((all, logs, forwards), (128, 64, 64));
        assert!(OWN + EACH * all as u64 + (logs + forwards) as u64 <= 1024);
        assert_eq!((connections(100, 4096), share(100, 1024)), (16, 4));
        assert!(raise() > 0);
    }
}
