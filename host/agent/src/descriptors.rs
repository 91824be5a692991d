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

/// How many connections may be open under such a limit, `most` at most and 16 at least.
pub(crate) fn connections(limit: u64, most: usize) -> usize {
    let room = usize::try_from(limit.saturating_sub(OWN) / EACH).unwrap_or(usize::MAX);
    room.clamp(16, most.max(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_keeps_its_own() {
        assert_eq!(connections(u64::MAX, 4096), 4096);
        assert_eq!(connections(1024, 4096), 170);
        assert_eq!(connections(100, 4096), 16);
        assert!(raise() > 0);
    }
}
