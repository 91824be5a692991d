//! What would be done for each pod, in words.

use std::collections::{BTreeMap, BTreeSet};

use longshore_core::action::Action;
use longshore_core::gate;
use longshore_core::observed::ObservedPod;
use longshore_core::plan::{self as core_plan, Busy, Plan, Situation};
use longshore_core::pod::{Deletion, Pod, PodId, Source};
use longshore_core::record::{ContainerRecord, PodRecord};
use longshore_core::room::{self, Occupancy, Room};
use longshore_reconcile::orphan::{from_observed, from_stored};

use super::World;
use crate::socket::api::DRAINED;

/// Who has a share of the node while pods are admitted, one after the other.
#[derive(Default)]
struct Shares {
    active: BTreeMap<String, Pod>,
    leaving: BTreeSet<String>,
}

/// The plan as it is printed.
pub(super) fn text(world: &World) -> String {
    let mut text = if world.drained { format!("{DRAINED}\n") } else { String::new() };
    let mut actions = 0;
    let mut quiet = 0;
    let pods = all(world);
    let ids = ids(world);
    let mut shares = shares(world, &pods);
    for pod in &pods {
        let lines = pod_text(world, &ids, &mut shares, pod, &mut actions);
        if lines.is_empty() {
            quiet += 1;
        } else {
            text.push_str(&lines);
        }
    }
    let pods = |count: usize| if count == 1 { "1 pod".to_owned() } else { format!("{count} pods") };
    match (actions, quiet) {
        (0, quiet) => text.push_str(&format!("nothing to do; {} up to date\n", pods(quiet))),
        (1, quiet) => text.push_str(&format!("1 action; {} up to date\n", pods(quiet))),
        (actions, quiet) => text.push_str(&format!("{actions} actions; {} up to date\n", pods(quiet))),
    }
    text
}

/// All pods that concern the node, in order of their names: the wanted ones, and those that must end.
fn all(world: &World) -> Vec<Pod> {
    let mut pods: BTreeMap<String, Pod> = world.desired.pods.clone();
    for (uid, stored) in world.stored.iter().filter(|(uid, _)| !world.desired.pods.contains_key(*uid)) {
        if let Some(mut pod) = from_stored(stored) {
            // What other sources want is not asked here: until they speak, an agent takes it that they want what they did.
            if stored.source == Source::File {
                let ends = Deletion { requested_at: world.now, grace_seconds: pod.grace_seconds() };
                pod.deletion.get_or_insert(ends);
            }
            pods.insert(uid.clone(), pod);
        }
    }
    for (uid, observed) in &world.observed {
        if !pods.contains_key(uid)
            && let Some(pod) = from_observed(observed, world.now)
        {
            pods.insert(uid.clone(), pod);
        }
    }
    let mut pods: Vec<Pod> = pods.into_values().collect();
    // A pod that ends makes room for one of its name.
    pods.sort_by(|a, b| {
        let key = |pod: &Pod| (pod.id.namespace.clone(), pod.id.name.clone(), pod.deletion.is_none());
        key(a).cmp(&key(b)).then_with(|| a.id.uid.cmp(&b.id.uid))
    });
    pods
}

/// Those that were admitted before, as an agent takes them on.
fn shares(world: &World, pods: &[Pod]) -> Shares {
    let mut shares = Shares::default();
    for pod in pods {
        let Some(stored) = world.stored.get(&pod.id.uid) else { continue };
        let record = &stored.record;
        let runs = world.observed.get(&pod.id.uid).is_some_and(ObservedPod::is_running);
        if record.start_time.is_some() && (record.terminal.is_none() || runs) {
            shares.active.insert(pod.id.uid.clone(), given(pod, record));
        }
        if pod.deletion.is_some() || record.deletion.is_some() || record.terminal.is_some() {
            shares.leaving.insert(pod.id.uid.clone());
        }
    }
    shares
}

/// The pod with the resources that it was given.
fn given(pod: &Pod, record: &PodRecord) -> Pod {
    let object = record.allocated.as_ref().map(|given| given.apply(&pod.object));
    Pod { object: object.unwrap_or_else(|| pod.object.clone()), ..pod.clone() }
}

/// The pod of the same name that must have ended before one that nobody looks after yet begins.
fn predecessor<'a>(world: &'a World, pods: &'a [PodId], pod: &Pod) -> Option<&'a PodId> {
    let known = |uid: &str| world.stored.contains_key(uid) || world.views.contains_key(uid);
    // One that ends waits for nobody.
    if known(&pod.id.uid) || pod.deletion.is_some() {
        return None;
    }
    // What runs, is ours, and is wanted by nobody has a worker, too.
    let lost = |uid: &str| world.observed.contains_key(uid) && !world.desired.pods.contains_key(uid);
    gate::predecessor(pod, pods.iter().filter(|other| known(&other.uid) || lost(&other.uid)))
}

/// What would be done for one pod, and what holds it up; empty when it is as it should be.
fn pod_text(world: &World, ids: &[PodId], shares: &mut Shares, pod: &Pod, actions: &mut usize) -> String {
    let nothing = ObservedPod::default();
    let uid = &pod.id.uid;
    let title = format!("pod {} ({uid})\n", pod.id);
    let observed = world.observed.get(uid).unwrap_or(&nothing);
    let record = world.stored.get(uid).map(|stored| stored.record.clone()).unwrap_or_default();
    let view = world.views.get(uid);
    if let Some(old) = predecessor(world, ids, pod) {
        return format!("{title}  waits: the former pod of that name ({}) ends first\n", old.uid);
    }
    let blocked = match world.spoken_for(pod) {
        Some(view) => view.standing.blocked.as_ref(),
        None => world.holds.get(uid),
    };
    let pod = &given(pod, &record);
    let mut blocked = blocked.cloned();
    if view.is_none() && record.awaits_admission(pod) {
        match admit(world, shares, pod) {
            Err(rejection) => return format!("{title}  reject: the pod would be Failed ({rejection})\n"),
            Ok(room) => blocked = blocked.or(room),
        }
    }
    let idle = Busy::default();
    let busy = view.map_or(&idle, |view| &view.standing.busy);
    let made = plan_of(world, pod, observed, &record, busy, blocked.as_deref());
    let mut lines = String::new();
    let unmounted = world.unmounted.get(uid);
    for planned in made.actions() {
        if planned.action == Action::Prepare
            && let Some(message) = unmounted
        {
            lines.push_str(&format!("  the pod waits: ContainerCreating: {message}\n"));
            break;
        }
        *actions += 1;
        lines.push_str(&format!("  {}: {}\n", planned.action, planned.why));
    }
    lines.push_str(&busy_text(observed, &record, busy));
    lines.push_str(&waits_text(&made));
    if lines.is_empty() { lines } else { title + &lines }
}

/// All pods that the node may look after.
fn ids(world: &World) -> Vec<PodId> {
    let stored = world.stored.values().filter_map(from_stored).map(|pod| pod.id);
    let viewed = world.views.values().map(|view| view.id.clone());
    let seen = world.observed.values().filter_map(|seen| from_observed(seen, world.now)).map(|pod| pod.id);
    stored.chain(viewed).chain(seen).collect()
}

/// Whether a pod that is new may run here: what it waits for, if it must, or why it may not. One that may has its share
/// from then on.
fn admit(world: &World, shares: &mut Shares, pod: &Pod) -> Result<Option<String>, String> {
    let occupancy = Occupancy {
        active: &shares.active,
        leaving: &shares.leaving,
        facts: &world.facts,
        node: None,
        alone: !world.in_cluster,
        pressure: world.pressure,
        goes_down: world.going_down,
    };
    let Room { leaving, victims } = room::admit(pod, occupancy).map_err(|rejection| rejection.to_string())?;
    let names = |pods: &[&Pod]| pods.iter().map(|pod| pod.id.to_string()).collect::<Vec<_>>().join(", ");
    let mut waits = Vec::new();
    if !leaving.is_empty() {
        waits.push(format!("{}: {}", room::WAITS, names(&leaving)));
    }
    if !victims.is_empty() {
        waits.push(format!("as a critical pod it has others end for it: {}", names(&victims)));
    }
    shares.leaving.extend(victims.iter().map(|victim| victim.id.uid.clone()).collect::<Vec<_>>());
    shares.active.insert(pod.id.uid.clone(), pod.clone());
    Ok((!waits.is_empty()).then(|| waits.join("; ")))
}

/// What a running agent does already.
fn busy_text(observed: &ObservedPod, record: &PodRecord, busy: &Busy) -> String {
    let mut text = String::new();
    let name = |id: &str| observed.containers.iter().find(|seen| seen.id == id).map(|seen| seen.name.clone());
    for (id, until) in &busy.stopping {
        if let Some(name) = name(id) {
            text.push_str(&format!("  container {name} is being stopped, and killed at {until:.0}\n"));
        }
    }
    for id in busy.post_start.iter().filter(|id| !busy.stopping.contains_key(*id)) {
        let Some(name) = name(id) else { continue };
        let failed = record.containers.get(&name).and_then(ContainerRecord::failed_hook) == Some(id.as_str());
        let does = if failed { "failed, it is to be stopped" } else { "runs" };
        text.push_str(&format!("  container {name}: its postStart hook {does}\n"));
    }
    text
}

fn waits_text(made: &Plan) -> String {
    let mut text = String::new();
    // A wait that says nothing is only the state that its container shows meanwhile.
    for (container, wait) in made.waits.iter().filter(|(_, wait)| !wait.message.is_empty() || wait.until.is_some()) {
        let who = if container.is_empty() { "the pod".to_owned() } else { format!("container {container}") };
        let until = wait.until.map_or(String::new(), |until| format!(", until {until:.0}"));
        let message = if wait.message.is_empty() { String::new() } else { format!(": {}", wait.message) };
        text.push_str(&format!("  {who} waits: {}{message}{until}\n", wait.reason));
    }
    text
}

fn plan_of(
    world: &World,
    pod: &Pod,
    observed: &ObservedPod,
    record: &PodRecord,
    busy: &Busy,
    blocked: Option<&str>,
) -> Plan {
    core_plan::plan(&Situation {
        pod,
        observed,
        record,
        unhealthy: &BTreeMap::new(),
        busy,
        blocked,
        crash_loop: world.crash_loop,
        node: &world.facts,
        cgroup: None,
        now: world.now,
    })
}
