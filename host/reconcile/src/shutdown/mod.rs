//! The machine goes down, or somebody asks for all pods to end: they do, group after group, and nothing new begins.
//!
//! As `pkg/kubelet/nodeshutdown`. Who ends when, and with how much time, is decided in [`longshore_core::shutdown`]; a
//! pod is ended by its worker. That the node goes down is told to [`crate::health`], from where the API server and
//! admission have it.

mod control;
mod ending;
mod machine;

use std::pin::Pin;
use std::time::Duration;

use longshore_core::event::EventType;
use longshore_core::ports::events::EventSink;
use longshore_core::shutdown::{self, Step};
use tokio::sync::broadcast;

pub use control::{Busy, Control, Outcome, Told};

use crate::health::Shutdown;
use crate::node::Shared;
use control::Request;
use ending::Order;
use machine::Machine;

/// How the loop is set up.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How long pods get by priority; empty: a machine that goes down is not followed.
    pub steps: Vec<Step>,
    /// How soon it is tried again to follow the machine, at first and at most.
    pub retry: (Duration, Duration),
}

impl Default for Options {
    fn default() -> Self {
        Options { steps: Vec::new(), retry: (Duration::from_secs(1), Duration::from_secs(60)) }
    }
}

/// What has all pods end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Causes {
    machine: bool,
    drained: bool,
}

/// Follows the machine and hears requests for ever.
pub(crate) async fn run(shared: &Shared) {
    let control = shared.ports.shutdown.clone();
    let Some(mut requests) = control.requests() else { return std::future::pending().await };
    let options = &shared.options.shutdown;
    let mut machine = Machine::new(control.machine().filter(|_| !options.steps.is_empty()), options);
    let mut keeper = Keeper { shared, causes: Causes::default(), ending: None, told: broadcast::channel(TOLD).0 };
    loop {
        let ended = async {
            match &mut keeper.ending {
                Some(ending) => ending.await,
                None => std::future::pending().await,
            }
        };
        // Cancel safe: the ending goes on where it was, the others keep what they did not yield.
        tokio::select! {
            outcome = ended => {
                keeper.ending = None;
                keeper.finished(outcome);
                machine.let_go();
            }
            goes_down = machine.next() => match goes_down {
                machine::Word::GoesDown => keeper.goes_down(),
                machine::Word::StaysUp if keeper.causes.machine => {
                    keeper.stays_up();
                    machine.hold().await;
                }
                machine::Word::StaysUp | machine::Word::Unknown => keeper.settle(),
            },
            Some(request) = requests.recv() => match request {
                Request::Drain { limit, told } => {
                    let _ = told.send(keeper.told.subscribe());
                    keeper.drain(limit);
                }
                Request::Resume { done } => {
                    let _ = done.send(keeper.resume());
                }
            },
        }
    }
}

/// How many lines a slow listener may be behind before it misses some.
const TOLD: usize = 1024;

struct Keeper<'a> {
    shared: &'a Shared,
    causes: Causes,
    ending: Option<Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>>,
    told: broadcast::Sender<Told>,
}

impl<'a> Keeper<'a> {
    fn goes_down(&mut self) {
        self.event("Shutdown manager detected shutdown event");
        self.caused(Causes { machine: true, ..self.causes });
        let steps = self.shared.options.shutdown.steps.clone();
        tracing::warn!("node is shutting down: stopping pods, at most {} s", shutdown::total(&steps).as_secs());
        self.begin(Order { steps, limit: None });
    }

    fn stays_up(&mut self) {
        self.event("Shutdown manager detected shutdown cancellation");
        tracing::warn!("shutdown was cancelled");
        self.caused(Causes { machine: false, ..self.causes });
        self.settle();
    }

    fn drain(&mut self, limit: Option<Duration>) {
        tracing::warn!("draining: stopping all pods, starting none");
        self.caused(Causes { drained: true, ..self.causes });
        // A machine that goes down has its own times.
        if self.causes.machine && self.ending.is_some() {
            return;
        }
        let own = &self.shared.options.shutdown.steps;
        let steps = if own.is_empty() { shutdown::UNCONFIGURED.to_vec() } else { own.clone() };
        self.begin(Order { steps, limit });
    }

    /// Takes a drain back. False where the machine itself goes down.
    fn resume(&mut self) -> bool {
        self.caused(Causes { drained: false, ..self.causes });
        if self.causes.machine {
            return false;
        }
        tracing::info!("pods may start again");
        self.settle();
        true
    }

    fn caused(&mut self, causes: Causes) {
        self.causes = causes;
        self.shared.ports.shutdown.set_drained(causes.drained && !causes.machine);
    }

    fn begin(&mut self, order: Order) {
        self.shared.ports.health.set_shutdown(Shutdown::GoesDown);
        self.ending = Some(Box::pin(ending::end(self.shared, order, self.told.clone())));
    }

    /// Nobody wants the pods to end any more, if that is so: those that come back do.
    fn settle(&mut self) {
        if self.causes != Causes::default() {
            return;
        }
        if self.ending.take().is_some() {
            let _ = self.told.send(Told::CalledOff);
        }
        self.shared.ports.health.set_shutdown(Shutdown::StaysUp);
        for member in self.shared.roster.members() {
            self.shared.roster.put(&member.pod.id.uid, |wakes| wakes.bring_back = true);
        }
    }

    fn finished(&self, outcome: Outcome) {
        match outcome.left.is_empty() {
            true => tracing::warn!("all pods have ended"),
            false => tracing::warn!("some pods have not ended in time: {}", outcome.left.join(", ")),
        }
        let _ = self.told.send(Told::Done(outcome));
    }

    fn event(&self, message: &str) {
        self.shared.ports.events.record_node(EventType::Normal, shutdown::EVENT_REASON, message);
    }
}
