//! A machine that goes down when it is told to, and counts who has it wait.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::ports::shutdown::{EndWatch, MachineEnd, ShutdownError};
use tokio::sync::watch;

/// The machine.
#[derive(Debug)]
pub struct FakeMachine {
    goes_down: watch::Sender<bool>,
    lost: watch::Sender<u64>,
    holds: Arc<AtomicUsize>,
    failing: AtomicBool,
    /// How long it was asked to wait, last.
    pub asked: Mutex<Option<Duration>>,
}

impl Default for FakeMachine {
    fn default() -> Self {
        FakeMachine {
            goes_down: watch::channel(false).0,
            lost: watch::channel(0).0,
            holds: Arc::default(),
            failing: AtomicBool::new(false),
            asked: Mutex::default(),
        }
    }
}

impl FakeMachine {
    /// It is about to go down, or not any more.
    pub fn turn(&self, goes_down: bool) {
        self.goes_down.send_replace(goes_down);
    }

    /// How many have it wait.
    pub fn held(&self) -> usize {
        self.holds.load(Ordering::SeqCst)
    }

    /// Whether it cannot be followed from now on; who follows it is cut off.
    pub fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
        if failing {
            self.lost.send_modify(|count| *count += 1);
        }
    }
}

struct Watch {
    goes_down: watch::Receiver<bool>,
    lost: watch::Receiver<u64>,
    told: Option<bool>,
    holds: Arc<AtomicUsize>,
    held: bool,
}

#[async_trait]
impl MachineEnd for FakeMachine {
    async fn follow(&self, delay: Duration) -> Result<Box<dyn EndWatch>, ShutdownError> {
        if self.failing.load(Ordering::SeqCst) {
            return Err(ShutdownError::Unreachable { message: "it was told to fail".to_owned() });
        }
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(delay);
        let mut watch = Watch {
            goes_down: self.goes_down.subscribe(),
            lost: self.lost.subscribe(),
            told: None,
            holds: self.holds.clone(),
            held: false,
        };
        if !*self.goes_down.borrow() {
            watch.hold().await?;
        }
        Ok(Box::new(watch))
    }
}

#[async_trait]
impl EndWatch for Watch {
    async fn next(&mut self) -> Option<bool> {
        loop {
            let now = *self.goes_down.borrow_and_update();
            if self.told.replace(now) != Some(now) {
                return Some(now);
            }
            tokio::select! {
                changed = self.goes_down.changed() => changed.ok()?,
                _ = self.lost.changed() => return None,
            }
        }
    }

    async fn hold(&mut self) -> Result<(), ShutdownError> {
        if !std::mem::replace(&mut self.held, true) {
            self.holds.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn let_go(&mut self) {
        if std::mem::replace(&mut self.held, false) {
            self.holds.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.let_go();
    }
}
