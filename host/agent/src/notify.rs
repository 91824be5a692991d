//! Telling systemd how things are: READY, STATUS, STOPPING, WATCHDOG. Nothing happens where there is no systemd.
//!
//! `NOTIFY_SOCKET` stays set: a restart in place (and whoever wraps us) still needs it.

use longshore_reconcile::health::Health;
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// The agent serves its socket; also said while Docker is still waited for, or systemd would give up on us.
pub(crate) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What `systemctl status` shows.
pub(crate) fn status(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// The agent ends; its pods do not.
pub(crate) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping; pods keep running")]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd cannot be told: {error}");
    }
}

/// Feeds systemd's watchdog at half its interval, while the node's loop turns.
pub(crate) async fn watchdog(health: &Health, stop: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        stop.cancelled().await;
        return;
    };
    let mut tick = tokio::time::interval(limit / 2);
    loop {
        // Cancel safe: neither arm holds anything between two turns.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        match health.standstill() {
            None => send(&[NotifyState::Watchdog]),
            Some(since) => {
                tracing::error!("the loops have not moved for {since:?}; no longer feeding systemd's watchdog");
            }
        }
    }
}
