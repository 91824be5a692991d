//! The node: sources are merged, every pod gets a worker, and what happens in the runtime reaches its worker.
//!
//! Owns the set of workers. What a pod needs is decided in core and done by its worker; nothing here acts on one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{SelectAll, select_all};
use jiff::Timestamp;
use longshore_core::admit;
use longshore_core::desired;
use longshore_core::gate;
use longshore_core::node::NodeFacts;
use longshore_core::observed::{ObservedPod, by_pod};
use longshore_core::pod::{Deletion, Pod, Source};
use longshore_core::ports::objects::ObjectStore;
use longshore_core::ports::runtime::RuntimeEvent;
use longshore_core::ports::sources::SourceSnapshot;
use longshore_core::record::StoredPod;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::allocatable;
use crate::collection::Collector;
use crate::eviction;
use crate::health::BEAT;
use crate::inbox::Inbox;
use crate::network::{Network, complete_all};
use crate::order::Order;
use crate::orphan;
use crate::probes::ProbeScheduler;
use crate::pull::Puller;
use crate::reserved::Reserved;
use crate::roster::{Member, Roster};
use crate::rounds::{Found, Round, Rounds};
use crate::seen::Seen;
use crate::shutdown;
use crate::views::StaticPod;
use crate::wishes::Wishes;
use crate::worker::{self, Start};

pub use crate::ports::{ApiPorts, AskForNode, ImagePull, Look, NodeCredentials, Options, Ports, StatusOf};

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) ports: Ports,
    pub(crate) seen: Seen,
    pub(crate) options: Options,
    pub(crate) puller: Puller,
    pub(crate) access: Arc<Access>,
    /// Held while an image is unpacked for volumes.
    pub(crate) unpacking: tokio::sync::Mutex<()>,
    /// Volumes for one pod alone of pods that are being prepared.
    pub(crate) reserved: Reserved,
    pub(crate) probes: ProbeScheduler,
    pub(crate) roster: Roster,
    pub(crate) network: Network,
    /// Pods that were admitted and of which something may still run, by UID: what a new one must fit beside.
    pub(crate) active: Mutex<BTreeMap<String, Pod>>,
    /// UIDs of those that end: a new one that needs their room waits for it, where the kubelet rejects it.
    leaving: Mutex<BTreeSet<String>>,
    /// Resizes that wait for room.
    pub(crate) wishes: Wishes,
    /// New pods that are yet to be admitted.
    order: Arc<Order>,
    /// Whether the API server has said which pods it wants, in this life of the agent.
    heard: AtomicBool,
}

impl Shared {
    /// Whether the pod may be evicted. One of the API server may not before that was heard: nobody would make another.
    pub(crate) fn may_evict(&self, pod: &Pod) -> bool {
        pod.source != Source::Api || self.heard.load(Ordering::Relaxed)
    }

    /// What a pod of that source refers to: the API server's objects are for its own pods alone, and so are the
    /// folder's for all others.
    pub(crate) fn objects(&self, source: &Source) -> &Arc<dyn ObjectStore> {
        match (&self.ports.api, source) {
            (Some(api), Source::Api) => &api.objects,
            _ => &self.ports.objects,
        }
    }

    /// A pod ends. It has its share until nothing of it runs, but gets no more.
    pub(crate) fn leaves(&self, uid: &str) {
        self.wishes.remove(uid);
        self.leaving().insert(uid.to_owned());
    }

    /// A pod that was to end runs again.
    pub(crate) fn stays(&self, uid: &str) {
        self.leaving().remove(uid);
    }

    /// A pod's share of the node is free, and what it waited for is not waited for any more: others may have room.
    pub(crate) fn give_up_share(&self, uid: &str) {
        self.wishes.remove(uid);
        self.leaving().remove(uid);
        // In a statement of its own: who is woken takes the same lock.
        let held = self.active().remove(uid).is_some();
        if held {
            self.wishes.wake(&self.roster);
        }
    }

    pub(crate) fn active(&self) -> MutexGuard<'_, BTreeMap<String, Pod>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never to be held while [`Shared::active`] is taken; the other way round is fine.
    pub(crate) fn leaving(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Running {
    inbox: Arc<Inbox>,
    pod: Pod,
    seen: Timestamp,
    ending: bool,
}

/// The node's loop and its state.
struct Node {
    shared: Arc<Shared>,
    words: BTreeMap<Source, Option<SourceSnapshot>>,
    desired: desired::Desired,
    workers: HashMap<String, Running>,
    tasks: JoinSet<()>,
    /// Which pod's worker a task is.
    owners: HashMap<tokio::task::Id, String>,
    stop: CancellationToken,
    /// What was found in the runtime at start, until a worker takes it.
    found: HashMap<String, ObservedPod>,
    /// Records found on the disk at start, until a worker takes them.
    stored: HashMap<String, StoredPod>,
    /// Pods that were to be deleted and of which nothing is left, though their source still has them: the API server
    /// is yet to be told.
    finished: HashSet<String>,
    rounds: Rounds,
}

/// Runs the node until `stop`. Stopping it stops no pod. Before the runtime answered once, nothing is done.
pub async fn run(ports: Ports, facts: NodeFacts, options: Options, stop: CancellationToken) {
    let probes = ProbeScheduler::spawn(&ports, options.max_execs, stop.clone());
    let access = Arc::new(Access::new(ports.pulls.clone(), options.verification.clone()));
    let puller = Puller::new(ports.runtime.clone(), access.clone(), &options);
    let words = ports.sources.iter().map(|source| (source.source(), None)).collect();
    let network = Network::new(options.network.clone());
    let root_id = facts.root_id.clone();
    let shared = Arc::new(Shared {
        ports,
        seen: Seen::new(facts),
        options,
        network,
        puller,
        access,
        unpacking: tokio::sync::Mutex::default(),
        reserved: Reserved::default(),
        probes,
        roster: Roster::default(),
        active: Mutex::default(),
        leaving: Mutex::default(),
        wishes: Wishes::default(),
        order: Arc::default(),
        heard: AtomicBool::new(false),
    });
    let mut node = Node {
        shared: shared.clone(),
        words,
        desired: desired::Desired::default(),
        workers: HashMap::new(),
        tasks: JoinSet::new(),
        owners: HashMap::new(),
        stop: stop.clone(),
        found: HashMap::new(),
        stored: HashMap::new(),
        finished: HashSet::new(),
        rounds: Rounds::every(shared.options.resync),
    };
    let collector = Collector::new(&shared);
    // Cancel safety: dropped between two awaits it has started nothing but idempotent looks at the runtime; an image that is
    // being removed goes or stays.
    tokio::select! {
        () = stop.cancelled() => {}
        () = node.serve() => {}
        () = eviction::run(&shared, &collector) => {}
        () = collector.run() => {}
        () = shared.access.run(&*shared.ports.runtime) => {}
        () = shared.network.run(&shared.ports, &root_id) => {}
        () = shutdown::run(&shared) => {}
        () = allocatable::run(&*shared.ports.files, &*shared.ports.events, shared.options.pods_limits) => {}
    }
    let drained = async { while node.tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(5), drained).await.is_err() {
        tracing::warn!("some pods' workers did not end within 5 s; their pods keep running");
    }
}

impl Node {
    async fn serve(&mut self) {
        let shared = self.shared.clone();
        let ports = &shared.ports;
        // Events from before the first look on, so that nothing falls between the two.
        let mut events = ports.runtime.events();
        ports.health.turning(self.look()).await;
        let stored = ports.health.turning(orphan::stored(&*ports.files, &ports.views)).await;
        self.stored = stored.into_iter().filter_map(|pod| Some((pod.object.metadata.uid.clone()?, pod))).collect();
        self.adopt();
        let mut snapshots: SelectAll<_> = select_all(ports.sources.iter().map(|source| {
            let which = source.source();
            source.snapshots().map(move |snapshot| (which.clone(), snapshot)).boxed()
        }));
        let of_api = ports.api.as_ref().map(|api| api.objects.changes());
        let mut objects = select_all(std::iter::once(ports.objects.changes()).chain(of_api));
        let mut recoveries = shared.network.recoveries();
        let mut beat = tokio::time::interval(BEAT);
        loop {
            // Cancel safety: streams, intervals and rounds keep what they did not yield; join_next loses nothing.
            tokio::select! {
                Some((source, snapshot)) = snapshots.next() => self.spoke(source, snapshot),
                Some(event) = events.next() => self.happened(event).await,
                Some(()) = objects.next() => self.wake_all(|wakes| wakes.objects = true),
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended).await,
                Ok(()) = recoveries.changed() => self.wake_all(|wakes| wakes.resync = true),
                round = self.rounds.next(&shared) => self.come_round(round),
                _ = beat.tick() => {}
            }
            ports.health.turned();
        }
    }

    /// Looks at all of ours in the runtime, until it answers.
    async fn look(&mut self) {
        let mut wait = Duration::from_millis(200);
        let mut said = String::new();
        loop {
            match self.shared.ports.runtime.list().await {
                Ok(mut list) => {
                    complete_all(&*self.shared.ports.plugins, &mut list);
                    self.found = by_pod(list);
                    return;
                }
                Err(error) => {
                    let error = error.to_string();
                    if error != said {
                        tracing::error!("{error}; trying again until it answers");
                        let problem = longshore_core::ports::sources::SourceProblem {
                            place: "docker".to_owned(),
                            message: error.clone(),
                            warning: false,
                        };
                        self.shared.ports.views.set_problems("docker", vec![problem]);
                        said = error;
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(5));
                }
            }
        }
    }

    /// Takes on every pod that was running or stored before this start, also before its source spoke.
    fn adopt(&mut self) {
        self.shared.ports.views.set_problems("docker", Vec::new());
        let mut stored: Vec<Pod> = self.stored.values().filter_map(orphan::from_stored).collect();
        stored.sort_by(in_order);
        stored.into_iter().for_each(|pod| self.start(pod));
        let adopted = self.workers.len();
        if adopted > 0 {
            tracing::info!(pods = adopted, "adopted the pods of the last run");
        }
    }

    fn spoke(&mut self, source: Source, snapshot: SourceSnapshot) {
        let first = source == Source::Api && !self.shared.heard.swap(true, Ordering::Relaxed);
        self.words.insert(source, Some(snapshot));
        self.desired = desired::merge(&self.words);
        self.shared.ports.views.set_problems("sources", self.desired.problems.clone());
        self.reconcile();
        if first {
            // Some pod may have waited for just that.
            self.wake_all(|_| {});
        }
    }

    /// Makes the set of workers fit the set of desired pods.
    fn reconcile(&mut self) {
        let now = Timestamp::now();
        if self.desired.complete {
            for (uid, running) in &mut self.workers {
                if !running.ending && !self.desired.pods.contains_key(uid) {
                    running.ending = true;
                    self.shared.leaves(uid);
                    let deletion = Deletion { requested_at: now, grace_seconds: running.pod.grace_seconds() };
                    running.inbox.put(|wakes| wakes.deletion = Some(deletion));
                }
            }
            // What runs, is ours and is wanted by nobody: its record was lost.
            let is_lost = |uid: &String| !self.desired.pods.contains_key(uid) && !self.rounds.is_tidying(uid);
            let lost = self.found.iter().filter(|(uid, seen)| is_lost(uid) && !seen.unseen);
            let lost: Vec<String> = lost.map(|(uid, _)| uid.clone()).collect();
            for uid in lost {
                if let Some(pod) = self.found.get(&uid).and_then(|seen| orphan::from_observed(seen, now)) {
                    tracing::warn!(pod = %pod.id, "ending a pod of ours that no source and no record knows");
                    self.start(pod);
                }
            }
        }
        self.finished.retain(|uid| self.desired.pods.contains_key(uid));
        let is_started = |uid: &String| !self.finished.contains(uid) && !self.rounds.is_tidying(uid);
        let wanted = self.desired.pods.values().filter(|pod| is_started(&pod.id.uid));
        let mut wanted: Vec<Pod> = wanted.cloned().collect();
        wanted.sort_by(in_order);
        let mut new = Vec::new();
        for pod in wanted {
            match self.workers.get_mut(&pod.id.uid) {
                // The API server may ask for less grace.
                Some(running) if running.ending && pod.source != Source::Api => {}
                Some(running) => {
                    if running.pod != pod {
                        if pod.deletion.is_some() {
                            self.shared.leaves(&pod.id.uid);
                        }
                        running.pod = pod.clone();
                        running.inbox.put(|wakes| wakes.desired = Some(pod));
                    }
                }
                None => new.push(pod),
            }
        }
        // Once it is known who leaves: what has no room beside those waits for it, and is not rejected.
        for pod in new {
            // A changed manifest is a new pod: the old one of the name ends first.
            let others = self.workers.values().map(|other| &other.pod.id);
            if gate::predecessor(&pod, others).is_none() {
                self.start(pod);
            }
        }
        self.shared.ports.health.synced(self.desired.complete);
        // Before every source has spoken, room that seems free may be somebody's.
        self.shared.wishes.open(self.desired.complete, &self.shared.roster);
        if self.desired.complete {
            let others = self.workers.values().filter(|running| running.pod.source != Source::Api);
            let told = |of: &Running| StaticPod { pod: of.pod.clone(), seen: of.seen, ending: of.ending };
            let mut pods: Vec<StaticPod> = others.map(told).collect();
            pods.sort_by(|a, b| a.pod.id.cmp(&b.pod.id));
            self.shared.ports.views.set_static_pods(pods);
        }
    }

    fn start(&mut self, pod: Pod) {
        let uid = pod.id.uid.clone();
        let inbox = Arc::new(Inbox::default());
        let record = self.stored.remove(&uid).map(|stored| stored.record).unwrap_or_default();
        let seen = record.seen.unwrap_or_else(Timestamp::now);
        let start = Start {
            shared: self.shared.clone(),
            pod: pod.clone(),
            seen,
            observed: self.found.remove(&uid).unwrap_or_default(),
            place: (record.awaits_admission(&pod) || admit::is_asked_again(&pod.source, &record))
                .then(|| self.shared.order.place()),
            record,
            inbox: inbox.clone(),
            stop: self.stop.clone(),
        };
        let ending = pod.deletion.is_some() || start.record.deletion.is_some();
        let ended = start.record.terminal.is_some();
        if ending || ended {
            self.shared.leaves(&uid);
        }
        // One that was admitted before holds its share from now on, and not only from its worker's first turn.
        if start.record.start_time.is_some() && (!ended || start.observed.is_running()) {
            let object = start.record.allocated.as_ref().map(|given| given.apply(&pod.object));
            let given = Pod { object: object.unwrap_or_else(|| pod.object.clone()), ..pod.clone() };
            self.shared.active().insert(uid.clone(), given);
        }
        let running = start.observed.containers.iter().filter(|container| container.is_running());
        self.shared.probes.register(&uid, inbox.clone(), running.map(|container| container.id.clone()).collect());
        let member = Member::new(&pod, &start.observed, &start.record, None);
        self.shared.roster.register(inbox.clone(), member);
        self.workers.insert(uid.clone(), Running { inbox, pod, seen, ending });
        let task = self.tasks.spawn(worker::run(start));
        self.owners.insert(task.id(), uid);
    }

    async fn ended(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) {
        let (task, failed) = match ended {
            Ok((task, ())) => (task, None),
            Err(error) => (error.id(), Some(error)),
        };
        let Some(uid) = self.owners.remove(&task) else { return };
        let ended = self.workers.remove(&uid);
        let deleted = ended.is_some_and(|running| running.ending || running.pod.deletion.is_some());
        if deleted && failed.is_none() && self.desired.pods.get(&uid).is_some_and(|pod| pod.deletion.is_some()) {
            self.finished.insert(uid.clone());
        }
        self.rounds.ended(&uid);
        self.shared.probes.forget(&uid);
        self.shared.roster.forget(&uid);
        self.shared.give_up_share(&uid);
        self.shared.ports.views.remove(&uid);
        if let Some(error) = failed {
            tracing::error!(uid, "a pod's worker failed: {error}; restarting the worker");
            // The next one knows what is on the disk, and looks at what runs before it does anything.
            let ports = &self.shared.ports;
            let stored = ports.health.turning(orphan::stored(&*ports.files, &ports.views)).await;
            let of = |stored: &StoredPod| stored.object.metadata.uid.as_ref() == Some(&uid);
            self.stored.extend(stored.into_iter().find(of).map(|stored| (uid.clone(), stored)));
            self.found.insert(uid, ObservedPod { unseen: true, ..ObservedPod::default() });
        }
        if !self.stop.is_cancelled() {
            self.reconcile();
        }
    }

    /// Workers whose pods are not as they know them look for themselves.
    fn come_round(&mut self, round: Round) {
        if let Round::Looked(Found { mut pods, folders }) = round {
            for (uid, running) in &self.workers {
                let seen = pods.remove(uid).unwrap_or_default();
                if !seen.unseen {
                    running.inbox.put(|wakes| wakes.seen = Some(seen));
                }
            }
            self.found = pods;
            // Their records were lost, or their removal was.
            let is_gone = |uid: &String| {
                !self.workers.contains_key(uid) && !self.desired.pods.contains_key(uid) && !self.found.contains_key(uid)
            };
            let gone: Vec<String> = folders.into_iter().filter(is_gone).collect();
            if self.desired.complete {
                self.rounds.tidy(&self.shared, gone);
            }
        }
        self.reconcile();
    }

    async fn happened(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::Changed { pod, id, change } => {
                if let Some(running) = self.workers.get(&pod.uid) {
                    running.inbox.put(|wakes| {
                        wakes.changed.insert(id, change);
                    });
                }
            }
            RuntimeEvent::Resync => {
                self.wake_all(|wakes| wakes.resync = true);
                self.shared.meet_runtime();
            }
        }
    }

    fn wake_all(&self, change: impl Fn(&mut crate::inbox::Wakes)) {
        for running in self.workers.values() {
            running.inbox.put(&change);
        }
    }
}

/// In which order pods are admitted that are new at once: the older ones of the API server's first, as the kubelet does, and
/// before them those of the folder, by name.
fn in_order(a: &Pod, b: &Pod) -> std::cmp::Ordering {
    let made = |pod: &Pod| pod.object.metadata.creation_timestamp.as_ref().map(|time| time.0);
    made(a).cmp(&made(b)).then_with(|| a.id.cmp(&b.id))
}
