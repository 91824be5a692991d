//! Telling systemd how things are: READY, STATUS, STOPPING, WATCHDOG. Nothing happens where there is no systemd.
//!
//! `NOTIFY_SOCKET` stays set: a restart in place (and whoever wraps us) still needs it.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How old a sign of life may be: the loops give one every few seconds, also when nothing happens.
const STALE: Duration = Duration::from_secs(30);

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

/// Feeds systemd's watchdog at half its interval, while `beats` keeps moving. Returns at once without a watchdog.
pub(crate) async fn watchdog(mut beats: watch::Receiver<u64>, stop: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        stop.cancelled().await;
        return;
    };
    let mut tick = tokio::time::interval(limit / 2);
    let mut moved = tokio::time::Instant::now();
    loop {
        // Cancel safe: neither arm holds anything between two turns.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        if beats.has_changed().unwrap_or(false) {
            beats.mark_unchanged();
            moved = tokio::time::Instant::now();
        }
        if moved.elapsed() < STALE.max(limit / 2) {
            send(&[NotifyState::Watchdog]);
        } else {
            tracing::error!(
                "the loops have not moved for {:?}; systemd's watchdog is not fed any more",
                moved.elapsed()
            );
        }
    }
}
