//! What reads bytes of strangers: for each a function that must neither panic, nor hang, nor take memory without bound,
//! and inputs to begin with. Must not know who calls it: libFuzzer, a test, or a person with a file.

mod decisions;
mod seeds;
mod streams;

/// Something to try bytes on.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// Inputs to begin with, each of which gets far.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "headers", run: streams::headers, seeds: seeds::headers },
    Target { name: "spdy", run: streams::spdy, seeds: seeds::spdy },
    Target { name: "command", run: streams::command, seeds: seeds::command },
    Target { name: "websocket", run: streams::websocket, seeds: seeds::websocket },
    Target { name: "forward", run: streams::forward, seeds: seeds::forward },
    Target { name: "tunnel", run: streams::tunnel, seeds: seeds::tunnel },
    Target { name: "sizes", run: streams::sizes, seeds: seeds::sizes },
    Target { name: "upgrade", run: streams::upgrade, seeds: seeds::upgrade },
    Target { name: "query", run: longshore_server::fuzz::query, seeds: seeds::query },
    Target { name: "log", run: longshore_docker::fuzz::log, seeds: seeds::log },
    Target { name: "frames", run: longshore_docker::fuzz::frames, seeds: seeds::frames },
    Target { name: "manifest", run: decisions::manifest, seeds: seeds::manifest },
    Target { name: "image", run: decisions::image, seeds: seeds::image },
    Target { name: "quantity", run: decisions::quantity, seeds: seeds::quantity },
    Target { name: "providers", run: decisions::providers, seeds: seeds::providers },
];

/// The target of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Numbers that look random and are the same in every run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: usize) -> usize {
            // xorshift64.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 33).unwrap() % bound.max(1)
        }

        /// One more mistake in `bytes`.
        fn spoil(&mut self, bytes: &mut Vec<u8>) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.below(256) as u8),
                2 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                3 => bytes.extend_from_within(at..),
                _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << self.below(8)),
            }
        }
    }

    /// The first thing that a fuzzer does, so that what it stands on is not broken unseen.
    #[test]
    fn seeds_and_what_is_near_them() {
        for target in TARGETS {
            let (seeds, begun) = ((target.seeds)(), Instant::now());
            assert!(!seeds.is_empty(), "{}", target.name);
            let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
            for round in 0..300 {
                let mut bytes = seeds[round % seeds.len()].clone();
                for _ in 0..round / seeds.len() {
                    numbers.spoil(&mut bytes);
                    bytes.truncate(64 << 10);
                }
                (target.run)(&bytes);
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{} is slow: {:?}", target.name, begun.elapsed());
        }
    }
}
