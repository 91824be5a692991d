//! How long calls are on a CPU, what they wait for, and the clock that interrupts guests. It must not decide how long is too long.
//!
//! Wasm looks at its engine's epoch; a thread of the operating system (no task: a guest that spins would hold the executor that the
//! task waits for) advances it, and sleeps while no guest runs, so that an idle agent has no tick.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep_until;

/// How often a running guest is looked at.
pub(crate) const TICK: Duration = Duration::from_millis(10);

struct Shared {
    /// Polls of calls that are under way now.
    running: AtomicUsize,
    asleep: AtomicBool,
    stopped: AtomicBool,
}

/// The thread that advances an engine's epoch. It ends with this.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

impl Ticker {
    /// Starts it. `tick` is called every [`TICK`] while a call runs.
    pub(crate) fn start(tick: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            running: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        let its = Arc::clone(&shared);
        let thread = thread::Builder::new().name("wasm-ticker".to_owned()).stack_size(64 << 10).spawn(move || {
            while !its.stopped.load(Ordering::SeqCst) {
                thread::sleep(TICK);
                tick();
                if its.running.load(Ordering::SeqCst) == 0 {
                    // A call either sees that we sleep, or is seen here before we do.
                    its.asleep.store(true, Ordering::SeqCst);
                    while its.running.load(Ordering::SeqCst) == 0 && !its.stopped.load(Ordering::SeqCst) {
                        thread::park();
                    }
                    its.asleep.store(false, Ordering::SeqCst);
                }
            }
        })?;
        Ok(Self { shared, thread: thread.thread().clone() })
    }

    fn enter(&self) {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    fn leave(&self) {
        self.shared.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// CPU time of one call, and where it is. A call is polled by one thread at a time, but not always by the same.
#[derive(Default)]
pub(crate) struct Meter {
    /// Of polls that have ended, in nanoseconds.
    used: AtomicU64,
    /// The thread's CPU time when the poll that is under way began.
    began: AtomicU64,
    /// The last function of the host that was called is WASI's.
    wasi: AtomicBool,
    /// The poll that is under way ends because others have their turn, not because the call waits.
    yielded: AtomicBool,
}

impl Meter {
    /// CPU time used so far. Only from inside of the call.
    pub(crate) fn used(&self) -> Duration {
        let now = thread_cpu().saturating_sub(self.began.load(Ordering::Relaxed));
        Duration::from_nanos(self.used.load(Ordering::Relaxed) + now)
    }

    /// CPU time of all polls that have ended.
    pub(crate) fn total(&self) -> Duration {
        Duration::from_nanos(self.used.load(Ordering::Relaxed))
    }

    /// The guest has called a function of WASI, or else one of our own.
    pub(crate) fn enters_wasi(&self, wasi: bool) {
        self.wasi.store(wasi, Ordering::Relaxed);
    }

    /// The guest runs on, after others have had their turn.
    pub(crate) fn yields(&self) {
        self.yielded.store(true, Ordering::Relaxed);
    }

    /// Runs a call, measured, with the ticker awake while it is polled. `None` when it still waits in WASI, whose functions do not end
    /// with a call's budget, as our own do, a moment after its deadline. The moment begins when the call has its turn: a machine that
    /// gives it none meanwhile takes nothing from what it found.
    pub(crate) async fn run<F: Future>(
        &self,
        ticker: &Ticker,
        (deadline, moment): (Instant, Duration),
        call: F,
    ) -> Option<F::Output> {
        // Until the deadline, and then for its moment.
        let (mut call, mut late) = (pin!(call), pin!(sleep_until(deadline.into())));
        let mut is_over = false;
        poll_fn(|context| {
            if !is_over && Instant::now() >= deadline {
                is_over = true;
                late.as_mut().reset((Instant::now() + moment).into());
            }
            let polled = {
                let _turn = Turn::begin(self, ticker);
                call.as_mut().poll(context)
            };
            let waits = self.wasi.load(Ordering::Relaxed) && !self.yielded.load(Ordering::Relaxed);
            match polled {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending if waits => match late.as_mut().poll(context) {
                    // The deadline came in this very turn.
                    Poll::Ready(()) if !is_over => {
                        is_over = true;
                        late.as_mut().reset((Instant::now() + moment).into());
                        late.as_mut().poll(context).map(|()| None)
                    }
                    over => over.map(|()| None),
                },
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

/// One poll; a guard, because a host function may panic.
struct Turn<'a>(&'a Meter, &'a Ticker);

impl<'a> Turn<'a> {
    fn begin(meter: &'a Meter, ticker: &'a Ticker) -> Self {
        ticker.enter();
        meter.began.store(thread_cpu(), Ordering::Relaxed);
        meter.yielded.store(false, Ordering::Relaxed);
        Self(meter, ticker)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let used = thread_cpu().saturating_sub(self.0.began.load(Ordering::Relaxed));
        self.0.used.fetch_add(used, Ordering::Relaxed);
        self.1.leave();
    }
}

/// CPU time of this thread, in nanoseconds.
fn thread_cpu() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or_default()
}
