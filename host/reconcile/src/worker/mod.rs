//! One pod's worker: wake, observe, plan, apply, publish; again and again until the pod is gone.
//!
//! Flow: what woke it is merged into what it knows; facts that changed are looked at again; `core::plan` says what to
//! do, [`crate::apply`] does it; status and record follow from what was seen. Guarantees: one worker per pod, so a pod's
//! actions never race; what takes long (stops, hooks, pulls) goes on in the background. Assumes that the runtime's
//! labels are true. Stopping the worker stops nothing of the pod.

mod gate;
mod memory;
mod preempt;
mod resize;
mod shutdown;
mod wakes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::cgroup::PodCgroup;
use longshore_core::event::EventType;
use longshore_core::node::NodeFacts;
use longshore_core::observed::ObservedPod;
use longshore_core::plan::{self, Busy, Plan, Situation, Unhealthy};
use longshore_core::pod::{CONFIG_SEEN, Pod, Source};
use longshore_core::ports::events::EventSink;
use longshore_core::ports::files::PodFiles;
use longshore_core::ports::runtime::Image;
use longshore_core::probe::{self, ProbeSpec};
use longshore_core::record::{self, PodRecord, StoredPod};
use longshore_core::resize::Allocation;
use longshore_core::room;
use longshore_core::status::{self, StatusInput};
use longshore_core::volume::{ObjectKind, Objects};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::apply::Outcome;
use crate::gate::Checked;
use crate::health::Shutdown;
use crate::inbox::Inbox;
use crate::node::Shared;
use crate::order::Place;
use crate::publish;
use crate::roster::Member;

/// Plans made in a row before the worker lets others go on.
const PASSES: usize = 64;
/// A record that could not be stored, on a full disk say, is stored again after this.
const SAVE_AGAIN: Duration = Duration::from_secs(10);

/// What a worker begins with.
pub(crate) struct Start {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pod: Pod,
    /// When the pod was first seen here.
    pub(crate) seen: Timestamp,
    pub(crate) observed: ObservedPod,
    pub(crate) record: PodRecord,
    /// Where it is among those that are to be admitted, if it is.
    pub(crate) place: Option<Place>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) stop: CancellationToken,
}

/// A pod's worker.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    /// The node, as this turn knows it.
    pub(crate) facts: Arc<NodeFacts>,
    /// The pod, with the resources that it was given.
    pub(crate) pod: Pod,
    /// The object as its source wants it.
    pub(crate) wanted: Arc<v1::Pod>,
    /// When it was first seen here.
    pub(crate) seen: Timestamp,
    pub(crate) observed: ObservedPod,
    pub(crate) record: PodRecord,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) busy: Busy,
    pub(crate) unhealthy: BTreeMap<String, Unhealthy>,
    pub(crate) probes: Vec<ProbeSpec>,
    /// Images that are known to be there for the next start of a container, by its name and theirs in the pod's spec.
    pub(crate) images: BTreeMap<(String, String), Image>,
    /// When it was last looked for images whose pulls are backed off.
    pub(crate) looked_for_images: Option<std::time::Instant>,
    /// Where the pod's files are, once prepared in this life of the agent.
    pub(crate) files: Option<PodFiles>,
    /// Since when they are there.
    pub(crate) files_since: Option<Timestamp>,
    /// The pod's cgroup as this life of the agent last set it.
    pub(crate) cgroup: Option<PodCgroup>,
    /// ConfigMaps and Secrets as last looked up.
    pub(crate) objects: Objects,
    /// Volumes whose token has expired, and when: each is told once.
    pub(crate) expired: BTreeMap<String, Timestamp>,
    /// Objects that the store was told to follow for the pod.
    pub(crate) held: BTreeSet<(ObjectKind, String)>,
    /// When volumes were last brought up to date, or due for it.
    pub(crate) prepared_at: Option<std::time::Instant>,
    /// Background stops by container ID, to be replaced when less grace is left.
    pub(crate) stops: BTreeMap<String, JoinHandle<()>>,
    /// Why a container's last stop or removal failed, by ID, and that of what the pod has on the disk: told once, however often
    /// it is tried.
    pub(crate) undone: BTreeMap<String, String>,
    /// IDs of the containers that run, for stops that wait for others.
    pub(crate) running: watch::Sender<BTreeSet<String>>,
    /// What plugins and the node make of the pod's spec, asked once per spec and again while it is held back.
    checked: Option<Checked>,
    place: Option<Place>,
    /// Pods that end, whose room this one gets.
    room: Option<preempt::Room>,
    /// Whether some would have to end for it that are the API server's, and that was not heard yet.
    unheard: bool,
    /// Reasons told already, so that each is an event once.
    pub(crate) told: BTreeSet<String>,
    pub(crate) gone: bool,
    /// When it is to be looked next whether the pod keeps to its limits of storage; `None` when it has none.
    pub(crate) limits: Option<std::time::Instant>,
    saved: Option<StoredPod>,
    /// Whether the last try to store it failed.
    unsaved: bool,
    refresh: bool,
    /// Whether what runs may use volumes that the spec does not name any more.
    pub(crate) unswept: bool,
    /// Whether a volume of a pod that is up could not be brought up to date: it is tried again.
    pub(crate) behind: bool,
    messages: BTreeMap<String, String>,
    steps: publish::Steps,
}

/// Runs a worker until its pod is gone or `stop`.
pub(crate) async fn run(start: Start) {
    let Start { shared, pod, seen, observed, record, place, inbox, stop } = start;
    let mut worker = Worker {
        facts: shared.facts(),
        shared,
        wanted: pod.object.clone(),
        seen,
        pod,
        observed,
        record,
        inbox,
        busy: Busy::default(),
        unhealthy: BTreeMap::new(),
        probes: Vec::new(),
        images: BTreeMap::new(),
        looked_for_images: None,
        files: None,
        files_since: None,
        cgroup: None,
        objects: Objects::default(),
        expired: BTreeMap::new(),
        held: BTreeSet::new(),
        prepared_at: None,
        stops: BTreeMap::new(),
        undone: BTreeMap::new(),
        running: watch::Sender::default(),
        checked: None,
        place,
        room: None,
        unheard: false,
        told: BTreeSet::new(),
        gone: false,
        limits: None,
        saved: None,
        unsaved: false,
        refresh: true,
        unswept: false,
        behind: false,
        messages: BTreeMap::new(),
        steps: publish::Steps::default(),
    };
    let blank = PodRecord { seen: worker.record.seen, ..PodRecord::default() };
    if worker.pod.source == Source::Api && worker.record == blank {
        let known = worker.shared.ports.api.as_ref().and_then(|api| (api.status)(&worker.pod.id.uid));
        worker.record = record::seeded(known.as_ref().or(worker.pod.object.status.as_ref()));
        if let Some(given) = &mut worker.record.allocated {
            given.pod.clone_from(&worker.pod.spec().resources);
        }
    }
    let asked = std::mem::replace(&mut worker.pod.deletion, worker.record.deletion);
    worker.hear_of_deletion(asked);
    worker.seen = *worker.record.seen.get_or_insert(worker.seen);
    if worker.record.start_time.is_some() {
        // A record of before resizes: what was run last is what was given.
        worker.record.allocated.get_or_insert_with(|| Allocation::of(&worker.wanted));
        worker.want(worker.wanted.clone());
    }
    if worker.shared.ports.health.shutdown() == Shutdown::StaysUp {
        worker.bring_back();
    }
    worker.ask_again();
    worker.recall_hooks();
    worker.link_logs();
    let inbox = worker.inbox.clone();
    loop {
        let wakes = worker.inbox.take();
        worker.take_in(wakes).await;
        let wake = if worker.sees_all().await { worker.turn().await } else { wakes::UNSEEN };
        if worker.gone || stop.is_cancelled() {
            break;
        }
        // Cancel safe, all three: nothing is taken out by waiting.
        tokio::select! {
            () = inbox.woken() => {}
            () = tokio::time::sleep(wake) => {}
            () = stop.cancelled() => break,
        }
    }
    for stop in worker.stops.values() {
        stop.abort();
    }
    if worker.gone {
        worker.tell_sources(None);
        worker.let_go();
    } else {
        worker.save().await;
    }
}

impl Worker {
    /// Plans and applies until there is nothing left to do at once, then publishes. Returns how long to sleep.
    async fn turn(&mut self) -> Duration {
        let now = Timestamp::now();
        self.facts = self.shared.facts();
        if self.checked.is_none() || self.gate_opens(now).is_some_and(|at| at <= now) {
            self.check().await;
        }
        self.admit().await;
        self.wait_for_room();
        self.hold_objects();
        if self.remount_in().is_some_and(|left| left.is_zero()) {
            self.refresh = true;
            // One that is finished but for what is being stopped is not prepared, and due no sooner than any other.
            self.prepared_at = Some(std::time::Instant::now());
        }
        if self.images_in().is_some_and(|left| left.is_zero()) {
            self.look_for_images().await;
        }
        let mut plan = Plan::default();
        let mut settled = false;
        for _ in 0..PASSES {
            self.remember().await;
            self.begin_resize();
            plan = self.plan();
            self.end_resize(&plan);
            status::remember_restarts(&mut self.record, &plan);
            if self.record.terminal.is_none()
                && let Some(terminal) = self.with_status_input(&plan, status::terminal)
            {
                self.end(terminal);
                continue;
            }
            self.watch_limits();
            self.refresh |= self.can_sweep();
            if self.refresh && self.observed.sandbox().is_some() && !plan.finished {
                self.refresh = false;
                self.prepare(false).await;
            }
            if plan.is_empty() {
                settled = true;
                break;
            }
            self.publish(&plan).await;
            match crate::apply::apply(self, &plan).await {
                Outcome::Done => {}
                Outcome::Waits => {
                    self.remember().await;
                    plan = self.plan();
                    status::remember_restarts(&mut self.record, &plan);
                    settled = true;
                    break;
                }
                Outcome::Gone => {
                    self.gone = true;
                    tracing::info!(pod = %self.pod.id, "the pod is gone");
                    return Duration::ZERO;
                }
            }
        }
        self.tell_waits(&plan);
        self.publish(&plan).await;
        // What was done and is still to be done says that the runtime and its reports differ: not in a hot loop.
        if settled { self.sleep_for(&plan) } else { Duration::from_secs(1) }
    }

    /// Why no container of it may be started, if so.
    pub(crate) fn blocked(&self) -> Option<&str> {
        let blocked = self.checked.as_ref().and_then(|checked| checked.hold.as_ref()).map(|hold| hold.message.as_str());
        let blocked = blocked.or(self.room.as_ref().map(|_| room::WAITS));
        blocked.or(self.unheard.then_some(preempt::UNHEARD))
    }

    fn plan(&self) -> Plan {
        plan::plan(&Situation {
            pod: &self.pod,
            observed: &self.observed,
            record: &self.record,
            unhealthy: &self.unhealthy,
            busy: &self.busy,
            blocked: self.blocked(),
            crash_loop: self.shared.options.crash_loop,
            node: &self.facts,
            cgroup: self.cgroup.as_ref(),
            now: Timestamp::now(),
        })
    }

    pub(crate) fn with_status_input<T>(&self, plan: &Plan, ask: impl Fn(&StatusInput<'_>) -> T) -> T {
        ask(&StatusInput {
            pod: &self.pod,
            observed: &self.observed,
            record: &self.record,
            plan,
            busy: &self.busy,
            node: &self.facts,
            now: Timestamp::now(),
        })
    }

    /// Events for what the pod waits for, each once.
    fn tell_waits(&mut self, plan: &Plan) {
        let mut now: BTreeSet<String> = BTreeSet::new();
        for (container, wait) in &plan.waits {
            let (kind, message) = match wait.reason.as_str() {
                "CrashLoopBackOff" => {
                    let pod = self.pod.id.in_messages();
                    (EventType::Warning, format!("Back-off restarting failed container {container} in pod {pod}"))
                }
                "ImagePullBackOff" => (EventType::Normal, plan::without_cause(&wait.message).to_owned()),
                _ => continue,
            };
            let key = format!("{}/{container}/{:?}", wait.reason, wait.until);
            if !self.told.contains(&key) {
                self.event(Some(container), kind, "BackOff", &message);
                if kind == EventType::Normal {
                    self.event(Some(container), EventType::Warning, "Failed", "Error: ImagePullBackOff");
                }
            }
            now.insert(key);
        }
        self.told = now;
    }

    /// Stores what is known, then shows it: nothing that a reader was told is forgotten by a crash.
    async fn publish(&mut self, plan: &Plan) {
        let status = self.with_status_input(plan, status::compute);
        status::remember_conditions(&mut self.record.conditions, &status);
        self.save().await;
        let active = probe::active(&self.pod, &self.probes, &self.observed, &self.record, &self.busy);
        let ip = self.pod_ips().first().copied();
        self.shared.probes.set(&self.pod.id, active, ip);
        let mut steps = std::mem::take(&mut self.steps);
        let view = publish::view(self, plan, status, &mut steps);
        self.steps = steps;
        self.shared.ports.views.publish(view);
        let member = Member::new(&self.pod, &self.observed, &self.record, self.files.as_ref());
        let holds = member.holds();
        self.shared.roster.tell(member);
        if !holds {
            self.shared.give_up_share(&self.pod.id.uid);
        }
    }

    fn sleep_for(&self, plan: &Plan) -> Duration {
        let now = Timestamp::now();
        let deadline = status::deadline(&self.pod, &self.record).filter(|_| self.record.terminal.is_none());
        let wake = plan.wake.into_iter().chain(deadline).chain(self.gate_opens(now)).min();
        let mut sleep = wake.map_or(Duration::from_secs(600), |wake| {
            Duration::try_from(wake.duration_since(now)).unwrap_or_default() + Duration::from_millis(2)
        });
        if !self.busy.pulling.is_empty() {
            sleep = sleep.min(Duration::from_secs(1));
        }
        if self.record.resize.pending.is_some() {
            sleep = sleep.min(resize::RETRY);
        }
        if let Some(due) = self.limits {
            sleep = sleep.min(due.saturating_duration_since(std::time::Instant::now()) + Duration::from_millis(2));
        }
        if self.unsaved {
            sleep = sleep.min(SAVE_AGAIN);
        }
        for left in [self.remount_in(), self.images_in()].into_iter().flatten() {
            sleep = sleep.min(left.max(Duration::from_millis(10)));
        }
        sleep.min(Duration::from_secs(600))
    }

    /// Notes a failure, so that the next try waits.
    pub(crate) fn failed(&mut self, key: &str, reason: &str, message: &str) {
        let before = self.record.backoffs.get(key);
        let next = longshore_core::backoff::Backoff::after(before, Timestamp::now(), reason, message);
        self.record.backoffs.insert(key.to_owned(), next);
    }

    pub(crate) fn event(&self, container: Option<&str>, kind: EventType, reason: &str, message: &str) {
        self.shared.ports.events.record(&self.pod.id, container, kind, reason, message);
    }

    /// The pod with the annotation that says when it was first seen, for what is told to it: the kubelet's own object has
    /// that for pods of all sources.
    pub(crate) fn as_told(&self) -> Pod {
        let mut pod = self.pod.clone();
        let annotations = Arc::make_mut(&mut pod.object).metadata.annotations.get_or_insert_default();
        annotations.insert(CONFIG_SEEN.to_owned(), self.seen.to_string());
        pod
    }

    /// Addresses of the pod, none before its sandbox runs.
    pub(crate) fn pod_ips(&self) -> Vec<std::net::IpAddr> {
        status::pod_ips(&self.pod, &self.observed, &self.facts)
    }
}
