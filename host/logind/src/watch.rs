//! The machine's end, followed: what logind says whenever it is asked, and the inhibitor that makes it wait.

use std::os::fd::OwnedFd;

use async_trait::async_trait;
use futures::StreamExt;
use longshore_core::ports::shutdown::{EndWatch, ShutdownError};
use zbus::MessageStream;

use crate::bus::Manager;

/// See the module.
pub(crate) struct Watch {
    manager: Manager,
    signals: MessageStream,
    /// What was told last.
    told: Option<bool>,
    /// Whether logind is to be asked again.
    due: bool,
    inhibitor: Option<OwnedFd>,
}

impl Watch {
    pub(crate) fn new(manager: Manager, signals: MessageStream) -> Self {
        Watch { manager, signals, told: None, due: true, inhibitor: None }
    }
}

#[async_trait]
impl EndWatch for Watch {
    async fn next(&mut self) -> Option<bool> {
        loop {
            if !self.due {
                // Cancel safe: a signal that is taken makes a look due before anything else is waited for.
                match self.signals.next().await {
                    Some(Ok(_)) => self.due = true,
                    Some(Err(error)) => {
                        tracing::warn!("logind cannot be followed: {error}");
                        return None;
                    }
                    None => {
                        tracing::warn!("logind cannot be followed: the D-Bus connection ended");
                        return None;
                    }
                }
            }
            match self.manager.goes_down().await {
                Ok(now) => {
                    self.due = false;
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
        // The old one goes after the new one is there.
        self.inhibitor = Some(self.manager.inhibit().await?);
        Ok(())
    }

    fn let_go(&mut self) {
        self.inhibitor = None;
    }
}
