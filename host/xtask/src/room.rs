//! Whether the disk has room for a run, said before it is full. Must not make any.

use crate::{
    compile,
    place::Place,
    say,
    test::{Extent, Test},
};

const GIB: u64 = 1 << 30;

/// All programs and tests, in a target folder that begins empty.
const COMPILED: u64 = 5 * GIB;
/// The disk of the emulated machine, and what Dockers of worlds keep while they run.
const MACHINE: u64 = 2 * GIB;
/// The same disk, once a test has filled it.
const FULL_MACHINE: u64 = 9 * GIB;

/// Warns in one line where this run wants more room than there is.
pub(crate) fn look(place: &Place, args: &Test) {
    // Without an answer there is nothing to warn of.
    let Ok(disk) = rustix::fs::statvfs(&place.target) else { return };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if let Some(warning) = warning(free, wanted(compile::is_warm(&place.target), args.extent())) {
        let target = place.target.display();
        say!("warning: {target}: {warning}; make room, or choose another folder with CARGO_TARGET_DIR");
    }
}

/// What a run puts into the target folder, in bytes.
fn wanted(warm: bool, extent: Extent) -> u64 {
    let compiled = if warm { 0 } else { COMPILED };
    compiled
        + match extent {
            Extent::NoMachine => 0,
            Extent::Usual => MACHINE,
            Extent::Long => FULL_MACHINE,
        }
}

fn warning(free: u64, wanted: u64) -> Option<String> {
    // Tenths, rounded down: what is said to be free is less than what is wanted.
    let tenths = |bytes: u64| format!("{}.{}", bytes / GIB, bytes % GIB * 10 / GIB);
    (free < wanted).then(|| format!("{} GiB are free, and this run wants {} GiB there", tenths(free), tenths(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_run_wants_room_and_a_warm_one_little() {
        assert_eq!(wanted(true, Extent::NoMachine), 0);
        assert_eq!(wanted(false, Extent::Usual), 7 * GIB);
        assert!(wanted(true, Extent::Long) > 8 * GIB, "the machine's disk is 8 GiB, and is filled");
    }

    #[test]
    fn what_is_missing_is_said_in_figures() {
        assert_eq!(warning(7 * GIB, 7 * GIB), None);
        let told = warning(7 * GIB - 1, 7 * GIB);
        assert_eq!(told.as_deref(), Some("6.9 GiB are free, and this run wants 7.0 GiB there"));
    }
}
