//! The machine's end, followed: what logind says whenever it is asked, and the inhibitor that makes it wait.

use std::os::fd::OwnedFd;
use std::pin::pin;

use async_trait::async_trait;
use futures::future::{Either, select};
use futures::{FutureExt, StreamExt};
use longshore_core::ports::shutdown::{EndWatch, ShutdownError};
use zbus::{Message, MessageStream};

use crate::bus::{Manager, QUEUE};

/// See the module.
pub(crate) struct Watch {
    manager: Manager,
    signals: MessageStream,
    /// What was told last.
    told: Option<bool>,
    /// Whether logind is to be asked again.
    due: bool,
    /// Whether it is, although an answer is on its way.
    again: bool,
    inhibitor: Option<OwnedFd>,
}

impl Watch {
    pub(crate) fn new(manager: Manager, signals: MessageStream) -> Self {
        Watch { manager, signals, told: None, due: true, again: false, inhibitor: None }
    }

    /// Makes a look due for a signal; `None` when no more will come.
    fn take(&mut self, signal: Option<zbus::Result<Message>>) -> Option<()> {
        match signal {
            Some(Ok(_)) => {
                (self.due, self.again) = (true, true);
                Some(())
            }
            Some(Err(error)) => {
                tracing::warn!("logind cannot be followed: {error}");
                None
            }
            None => {
                tracing::warn!("logind cannot be followed: the D-Bus connection ended");
                None
            }
        }
    }

    /// Waits for an answer and takes the signals that come before it: the connection stands still while many wait. `None`
    /// when it ended.
    async fn answered<T>(&mut self, call: impl Future<Output = T>) -> Option<T> {
        let mut call = pin!(call);
        loop {
            let signal = match select(call.as_mut(), self.signals.next()).await {
                Either::Left((answer, _)) => return Some(answer),
                Either::Right((signal, _)) => signal,
            };
            self.take(signal)?;
        }
    }
}

#[async_trait]
impl EndWatch for Watch {
    async fn next(&mut self) -> Option<bool> {
        loop {
            if !self.due {
                // Cancel safe: a signal that is taken makes a look due before anything else is waited for.
                let first = self.signals.next().await;
                self.take(first)?;
            }
            // Those that came meanwhile are the same reason for one look.
            for _ in 0..QUEUE {
                let Some(more) = self.signals.next().now_or_never() else { break };
                self.take(more)?;
            }
            let manager = self.manager.clone();
            self.again = false;
            match self.answered(manager.goes_down()).await? {
                Ok(now) => {
                    self.due = self.again;
                    if self.told.replace(now) != Some(now) {
                        return Some(now);
                    }
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    return None;
                }
            }
        }
    }

    async fn hold(&mut self) -> Result<(), ShutdownError> {
        let manager = self.manager.clone();
        let ended = || ShutdownError::Unreachable { message: "the D-Bus connection ended".to_owned() };
        // The old one goes after the new one is there.
        self.inhibitor = Some(self.answered(manager.inhibit()).await.ok_or_else(ended)??);
        Ok(())
    }

    fn let_go(&mut self) {
        self.inhibitor = None;
    }
}
