//! The probe scheduler: one task and one timer wheel for all probes of the node, no task per probe while it waits.
//!
//! Workers say which probes are active; it makes the checks when they are due and tells the worker what they decide.
//! What a row of results means is decided in `core::probe`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use longshore_core::event::EventType;
use longshore_core::pod::PodId;
use longshore_core::ports::events::EventSink;
use longshore_core::ports::probes::{ProbeAnswer, ProbeCall, ProbeOutcome, ProbePlugins, ProbeTarget};
use longshore_core::probe::{self, ActiveProbe, ProbeKind, ProbeState, Sample};
use longshore_core::view::{ProbeCheckView, ProbeTally, ProbeView};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::events::EventRing;
use crate::inbox::{Inbox, Verdict};
use crate::node::Ports;
use crate::views::Views;

/// Checks at a time, and those of them that may be commands: however many of these hang, others are made.
const MAX_CHECKS: usize = 128;
const MAX_COMMANDS: usize = 96;
/// How long an exec keeps its turn at most. Making and starting one is what is dear, and done by then; commands that hang
/// must not keep others from being started.
const TURN: Duration = Duration::from_millis(100);
/// A check that could not be made is tried again at once, this often (`maxProbeRetries` in pkg/kubelet/prober).
const MAX_TRIES: usize = 3;

/// The longest time between two checks whose plugin fails, or asks for time.
const LONGEST_PACE: Duration = Duration::from_secs(60);

type Key = (String, String, ProbeKind);

/// One scheduled probe.
struct Entry {
    pod: PodId,
    active: ActiveProbe,
    ip: Option<IpAddr>,
    state: ProbeState,
    /// Tells an entry from the one that it replaced: what was due for the old one is not for the new.
    generation: u64,
    checking: bool,
    /// Checks in a row in which the plugin itself failed: they come ever more rarely.
    faults: u32,
    /// The plugin asked not to be called before.
    rest: Option<Instant>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<Key, Entry>,
    /// When what is due: the wheel. Entries whose generation is past are dropped as they come up.
    due: BinaryHeap<Reverse<(Instant, Key, u64)>>,
    inboxes: HashMap<String, Arc<Inbox>>,
    /// IDs of the containers that ran before this agent did, by their pod.
    adopted: HashMap<String, BTreeSet<String>>,
    /// How checks ended: an entry is replaced with its container, and counts go on.
    tallies: HashMap<Key, ProbeTally>,
    generations: u64,
}

struct Inner {
    table: Mutex<Table>,
    changed: Notify,
    plugins: Arc<dyn ProbePlugins>,
    events: Arc<EventRing>,
    views: Arc<Views>,
    execs: Arc<Semaphore>,
    commands: Arc<Semaphore>,
    checks: Arc<Semaphore>,
    begun: Instant,
}

/// Schedules the checks of all probes.
#[derive(Clone)]
pub(crate) struct ProbeScheduler {
    inner: Arc<Inner>,
}

/// What a check ended with.
struct Ended {
    key: Key,
    generation: u64,
    answer: ProbeAnswer,
    took: Duration,
}

impl ProbeScheduler {
    /// Starts the scheduler's task; it ends with `stop`.
    pub(crate) fn spawn(ports: &Ports, max_execs: usize, stop: CancellationToken) -> Self {
        let inner = Arc::new(Inner {
            table: Mutex::default(),
            changed: Notify::new(),
            plugins: ports.probes.clone(),
            events: ports.events.clone(),
            views: ports.views.clone(),
            execs: Arc::new(Semaphore::new(max_execs.max(1))),
            commands: Arc::new(Semaphore::new(MAX_COMMANDS)),
            checks: Arc::new(Semaphore::new(MAX_CHECKS)),
            begun: Instant::now(),
        });
        tokio::spawn(run(inner.clone(), stop));
        ProbeScheduler { inner }
    }

    /// Where a pod's decisions go, and which of its containers ran before this agent did.
    pub(crate) fn register(&self, uid: &str, inbox: Arc<Inbox>, adopted: BTreeSet<String>) {
        let mut table = self.inner.table();
        table.inboxes.insert(uid.to_owned(), inbox);
        table.adopted.insert(uid.to_owned(), adopted);
    }

    /// Drops everything of a pod.
    pub(crate) fn forget(&self, uid: &str) {
        let mut table = self.inner.table();
        table.inboxes.remove(uid);
        table.adopted.remove(uid);
        table.entries.retain(|(owner, _, _), _| owner != uid);
        table.tallies.retain(|(owner, _, _), _| owner != uid);
        drop(table);
        self.inner.views.forget_probes(uid);
    }

    /// Makes these the probes of a pod that are checked. One that was there stays as it is; a new one is due after its
    /// delay, at once if that has passed. Only those of containers that ran before this agent are spread over a period of
    /// theirs from its start on (`run` in pkg/kubelet/prober/worker.go).
    pub(crate) fn set(&self, pod: &PodId, active: Vec<ActiveProbe>, ip: Option<IpAddr>) {
        let mut table = self.inner.table();
        let mut wanted: BTreeMap<Key, ActiveProbe> = active
            .into_iter()
            .map(|active| ((pod.uid.clone(), active.spec.container.clone(), active.spec.kind), active))
            .collect();
        let mut earlier = false;
        table.entries.retain(|key, entry| {
            if key.0 != pod.uid {
                return true;
            }
            let Some(active) = wanted.remove(key) else { return false };
            if active.container_id == entry.active.container_id && active.spec == entry.active.spec {
                entry.ip = ip;
                return true;
            }
            wanted.insert(key.clone(), active);
            false
        });
        let (now, clock) = (Instant::now(), Timestamp::now());
        for (key, active) in wanted {
            table.generations += 1;
            let generation = table.generations;
            let mut first = now + delay_left(active.spec.initial_delay, active.started_at, clock);
            // Which ran before is known from what was found, not from clocks: those may be set back.
            let adopted = table.adopted.get(&pod.uid).is_some_and(|found| found.contains(&active.container_id));
            if adopted {
                first += spread(&key, active.spec.period.saturating_sub(self.inner.begun.elapsed()));
            }
            let state = active.decided.map_or_else(ProbeState::default, ProbeState::decided);
            earlier |= table.due.peek().is_none_or(|Reverse((at, _, _))| first < *at);
            table.due.push(Reverse((first, key.clone(), generation)));
            table.entries.insert(
                key,
                Entry { pod: pod.clone(), active, ip, state, generation, checking: false, faults: 0, rest: None },
            );
        }
        drop(table);
        if earlier {
            self.inner.changed.notify_one();
        }
    }
}

/// What is left of the delay before a container's first check: all of it where, by a clock that stepped back, it is not
/// started yet.
fn delay_left(delay: Duration, started_at: Timestamp, clock: Timestamp) -> Duration {
    delay.saturating_sub(Duration::try_from(clock.duration_since(started_at)).unwrap_or_default())
}

/// The time to the next check: the period, doubled for each fault of the plugin in a row.
fn pace(period: Duration, faults: u32) -> Duration {
    let doubled = period.saturating_mul(1 << faults.min(16));
    if faults == 0 { period } else { doubled.min(LONGEST_PACE.max(period)) }
}

/// A share of the time that is the same for the same probe.
fn spread(key: &Key, time: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    time.mul_f64((hasher.finish() % 1000) as f64 / 1000.0)
}

impl Inner {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out what is due, and says when to come again.
    fn take_due(&self, now: Instant) -> (Vec<(Key, u64, ProbeCall)>, Option<Instant>) {
        let mut table = self.table();
        let mut calls = Vec::new();
        while let Some(Reverse((at, _, _))) = table.due.peek() {
            if *at > now {
                let next = *at;
                return (calls, Some(next));
            }
            let Some(Reverse((at, key, generation))) = table.due.pop() else { break };
            let Some(entry) = table.entries.get_mut(&key).filter(|entry| entry.generation == generation) else {
                continue;
            };
            if entry.state.on_hold() {
                continue;
            }
            if let Some(rest) = entry.rest.filter(|rest| *rest > now) {
                table.due.push(Reverse((rest, key, generation)));
                continue;
            }
            // Periods that were missed while a check took long, or the machine slept, are not made up for.
            let period = pace(entry.active.spec.period, entry.faults);
            let next = (at + period).max(now);
            if !entry.checking {
                entry.checking = true;
                calls.push((key.clone(), generation, call(entry)));
            }
            table.due.push(Reverse((next, key, generation)));
        }
        (calls, None)
    }

    /// Takes in what a check found.
    fn ended(&self, ended: &Ended) {
        let mut table = self.table();
        let Table { entries, tallies, inboxes, .. } = &mut *table;
        let Some(entry) = entries.get_mut(&ended.key).filter(|entry| entry.generation == ended.generation) else {
            return;
        };
        entry.checking = false;
        entry.rest = ended.answer.again.map(|again| Instant::now() + again.min(LONGEST_PACE));
        entry.faults = match ended.answer.outcome {
            ProbeOutcome::Fault { .. } => entry.faults.saturating_add(1),
            _ => 0,
        };
        let spec = &entry.active.spec;
        let kind = spec.kind.title();
        let (sample, word, message) = match &ended.answer.outcome {
            ProbeOutcome::Success { message } => (Some(Sample::Success), "success", message),
            ProbeOutcome::Warning { message } => (Some(Sample::Success), "warning", message),
            ProbeOutcome::Failure { message } => (Some(Sample::Failure), "failure", message),
            ProbeOutcome::Error { message } => (None, "error", message),
            ProbeOutcome::Fault { message } => (None, "fault", message),
        };
        let event = match word {
            "warning" => Some(("ProbeWarning", format!("{kind} probe warning: {message}"))),
            "failure" => Some(("Unhealthy", format!("{kind} probe failed: {message}"))),
            "error" => Some(("Unhealthy", format!("{kind} probe errored and resulted in unknown state: {message}"))),
            "fault" => Some((
                "ProbeError",
                format!("{kind} probe: plugin {:?} failed, the result is dropped: {message}", spec.plugin),
            )),
            _ => None,
        };
        let decided = sample.and_then(|sample| probe::step(&entry.active.spec.clone(), &mut entry.state, sample));
        let check = ProbeCheckView {
            at: Timestamp::now(),
            took_ms: ended.took.as_secs_f64() * 1000.0,
            outcome: word.to_owned(),
            message: message.clone(),
            attrs: ended.answer.attrs.iter().cloned().collect(),
        };
        let tally = tallies.entry(ended.key.clone()).or_default();
        if let Some(sample) = sample {
            tally.add(sample, ended.took);
        }
        let view = view(entry, check, tally.clone());
        let pod = entry.pod.clone();
        let container_id = entry.active.container_id.clone();
        let grace_seconds = entry.active.spec.grace_seconds;
        let inbox = inboxes.get(&pod.uid).cloned();
        drop(table);
        if let Some((reason, message)) = event {
            self.events.record(&pod, Some(&ended.key.1), EventType::Warning, reason, &message);
        }
        self.views.set_probe(&pod.uid, view);
        if let (Some(sample), Some(inbox)) = (decided, inbox) {
            let verdict = Verdict { container: ended.key.1.clone(), sample, grace_seconds };
            inbox.put(|wakes| {
                wakes.verdicts.insert((container_id, ended.key.2), verdict);
            });
        }
    }
}

fn call(entry: &Entry) -> ProbeCall {
    ProbeCall {
        plugin: entry.active.spec.plugin.clone(),
        config: entry.active.spec.config.clone(),
        target: ProbeTarget {
            pod_uid: entry.pod.uid.clone(),
            namespace: entry.pod.namespace.clone(),
            pod: entry.pod.name.clone(),
            container: entry.active.spec.container.clone(),
            container_id: entry.active.container_id.clone(),
            pod_ip: entry.ip,
            ports: entry.active.ports.clone(),
        },
        budget: entry.active.spec.timeout,
    }
}

fn view(entry: &Entry, last: ProbeCheckView, tally: ProbeTally) -> ProbeView {
    let spec = &entry.active.spec;
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    ProbeView {
        container: spec.container.clone(),
        kind: spec.kind.as_str().to_owned(),
        plugin: spec.plugin.clone(),
        config: spec.config.clone(),
        period_ms: ms(spec.period),
        timeout_ms: ms(spec.timeout),
        failure_threshold: spec.failure_threshold,
        success_threshold: spec.success_threshold,
        last: Some(last),
        in_a_row: entry.state.in_a_row(),
        tally,
    }
}

async fn run(inner: Arc<Inner>, stop: CancellationToken) {
    let (results, mut ended) = mpsc::channel::<Ended>(MAX_CHECKS);
    loop {
        let (calls, next) = inner.take_due(Instant::now());
        for (key, generation, call) in calls {
            tokio::spawn(check(inner.clone(), key, generation, call, results.clone()));
        }
        let sleep = next.map(|next| next.saturating_duration_since(Instant::now()));
        // Cancel safe, all of them: a result that was not received stays in the channel.
        tokio::select! {
            Some(result) = ended.recv() => inner.ended(&result),
            () = inner.changed.notified() => {}
            () = tokio::time::sleep(sleep.unwrap_or(Duration::from_secs(3600))) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Makes one check, in its turn; the wait for the turn is not charged to the probe's timeout.
async fn check(inner: Arc<Inner>, key: Key, generation: u64, call: ProbeCall, results: mpsc::Sender<Ended>) {
    let is_command = call.plugin == "exec";
    let _running = if is_command { inner.commands.clone().acquire_owned().await.ok() } else { None };
    let turn = if is_command { inner.execs.clone().acquire_owned().await.ok() } else { None };
    let Ok(_place) = inner.checks.clone().acquire_owned().await else { return };
    let mut checked = pin!(try_to_check(&inner, &call));
    let soon = tokio::time::timeout(TURN, &mut checked).await;
    drop(turn);
    let (answer, took) = match soon {
        Ok(ended) => ended,
        Err(_) => checked.await,
    };
    // The scheduler is gone only when the agent stops.
    let _ = results.send(Ended { key, generation, answer, took }).await;
}

/// Calls the plugin, again at once where the check could not be made. Returns how long the last call took as well.
async fn try_to_check(inner: &Inner, call: &ProbeCall) -> (ProbeAnswer, Duration) {
    let mut tries = 0;
    loop {
        tries += 1;
        let begun = Instant::now();
        let answer = inner.plugins.check(call.clone()).await;
        let again = matches!(answer.outcome, ProbeOutcome::Error { .. }) && answer.again.is_none() && tries < MAX_TRIES;
        if !again {
            return (answer, begun.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_check_waits_no_longer_than_its_delay_whatever_the_clock_does() {
        let delay = Duration::from_secs(10);
        let left = |passed: i64| {
            let started = Timestamp::from_second(1_000_000).expect("a time");
            delay_left(delay, started, started + jiff::SignedDuration::from_secs(passed)).as_secs()
        };
        assert_eq!([left(0), left(4), left(10), left(99), left(-5), left(-900_000)], [10, 6, 0, 0, 10, 10]);
    }

    #[test]
    fn a_failing_plugin_is_asked_ever_more_rarely() {
        let paces: Vec<u64> = (0..9).map(|faults| pace(Duration::from_secs(1), faults).as_secs()).collect();
        assert_eq!(paces, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pace(Duration::from_secs(90), 3), Duration::from_secs(90));
    }
}
