//! How many tests run at once.

use std::sync::{Condvar, Mutex, PoisonError};

/// A place among them.
#[derive(Debug)]
pub(crate) struct Turn;

static RUNNING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Turn {
    /// Waits for one.
    pub(crate) fn take() -> Turn {
        let places = std::env::var("LONGSHORE_TEST_PARALLEL").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
        let mut running = RUNNING.0.lock().unwrap_or_else(PoisonError::into_inner);
        while *running >= places {
            running = RUNNING.1.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        RUNNING.1.notify_one();
    }
}
