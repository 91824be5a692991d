//! Where a container stands: what of it there is, in the runtime or in the record, and whether it fits.

use super::Situation;
use crate::observed::{Container, ContainerState, Exit};
use crate::pod::ContainerOf;
use crate::{hash, resize, restart};

/// Where a container stands.
pub(super) enum Standing<'a> {
    /// Never made in this pod.
    New,
    /// Made for this sandbox, not started.
    Made(&'a Container),
    /// Runs in this sandbox.
    Running(&'a Container),
    /// Runs, or was made, for another sandbox or with another hash.
    Stale(&'a Container),
    /// Ended.
    Ended(Ended),
    /// Ended and was removed, to begin anew with all others.
    Anew(Exit),
}

/// How one ended, and what that means.
pub(super) struct Ended {
    pub(super) exit: Exit,
    pub(super) in_this_sandbox: bool,
    /// Another one follows it.
    pub(super) again: bool,
    /// It was made from another definition, so that its failures say nothing about the next one.
    pub(super) changed: bool,
}

impl Ended {
    /// Of one that ended like this, and begins anew with all others.
    pub(super) fn anew(exit: Exit) -> Ended {
        Ended { exit, in_this_sandbox: false, again: true, changed: false }
    }
}

/// Where a container stands. `sandbox` is the ID of the sandbox that it belongs in, if there is a usable one.
pub(super) fn standing<'a>(
    situation: &Situation<'a>,
    sandbox: Option<&str>,
    container: ContainerOf<'_>,
) -> Standing<'a> {
    let Situation { pod, observed, record, now, .. } = *situation;
    let name = container.spec.name.as_str();
    let known = record.containers.get(name);
    let changed = |seen: &Container| pod.hashes.get(name).is_some_and(|hash| !hash::fits(&seen.hash, hash));
    // What was made for another size and never started.
    let drifted = |seen: &Container| {
        seen.resources.as_ref().is_some_and(|resources| resize::drifted(pod, container.spec, resources))
    };
    let Some(seen) = record.newest(observed, name) else {
        return match known.and_then(|known| known.exit_or_unknown(now)) {
            Some(exit) => Standing::Ended(Ended {
                again: restart::runs_again(pod, container, known, &exit),
                exit,
                in_this_sandbox: sandbox.is_some() && known.and_then(|known| known.sandbox.as_deref()) == sandbox,
                changed: false,
            }),
            None => known.and_then(|known| known.followed(now)).map_or(Standing::New, Standing::Anew),
        };
    };
    let in_this_sandbox = Some(seen.sandbox_id.as_str()) == sandbox;
    let fits = in_this_sandbox && !changed(seen);
    match &seen.state {
        ContainerState::Exited(exit) => {
            let changed = restart::is_another(pod, container, seen, known);
            let known = known.filter(|known| known.id.as_deref() == Some(seen.id.as_str()));
            // The record has the same exit, without what a clock that stepped back left in the future.
            let exit = known.and_then(|known| known.exit.as_ref()).unwrap_or(exit).clone();
            let again = restart::runs_again(pod, container, known, &exit);
            Standing::Ended(Ended { exit, in_this_sandbox, again, changed })
        }
        ContainerState::Running { .. } if fits => Standing::Running(seen),
        ContainerState::Created if fits && !drifted(seen) => Standing::Made(seen),
        ContainerState::Running { .. } | ContainerState::Created => Standing::Stale(seen),
    }
}

/// Whether a container was begun in that sandbox, now or as far as is remembered.
pub(super) fn begun_in(situation: &Situation<'_>, sandbox: Option<&str>, name: &str) -> bool {
    let Some(sandbox) = sandbox else { return false };
    let known = situation.record.containers.get(name).and_then(|known| known.sandbox.as_deref());
    known == Some(sandbox) || situation.observed.containers_named(name).any(|seen| seen.sandbox_id == sandbox)
}
