//! systemd-logind, over D-Bus: told when the machine goes down, and asked to wait: the port `MachineEnd`.
//!
//! Owns the bus, the inhibitor and logind's drop-in file. It must not end pods or decide how long they get.

mod bus;
mod drop_in;
mod watch;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use longshore_core::ports::shutdown::{EndWatch, MachineEnd, ShutdownError};
use zbus::Connection;

use bus::{BusError, Manager};
use watch::Watch;

/// How long logind may take to heed a drop-in after it was told to read it again.
const REREAD: Duration = Duration::from_secs(5);
/// How often it is looked meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// Where logind's administrator leaves files of settings.
const DROP_INS: &str = "/etc/systemd/logind.conf.d";

/// The machine's logind.
#[derive(Clone, Debug)]
pub struct Logind {
    at: At,
    drop_ins: PathBuf,
}

#[derive(Clone, Debug)]
enum At {
    /// On the system's bus.
    SystemBus,
    /// At the other end of a connection.
    Connection(Connection),
}

impl Default for Logind {
    /// The one of the system's bus, reached for when it is followed.
    fn default() -> Self {
        Logind { at: At::SystemBus, drop_ins: PathBuf::from(DROP_INS) }
    }
}

impl Logind {
    /// The one at the other end of a connection, which reads its settings from that folder.
    pub fn over(connection: Connection, drop_ins: PathBuf) -> Self {
        Logind { at: At::Connection(connection), drop_ins }
    }

    async fn reach(&self) -> Result<Manager, BusError> {
        match &self.at {
            At::SystemBus => Manager::of_system().await,
            At::Connection(connection) => Ok(Manager::new(connection.clone())),
        }
    }

    /// Has logind wait for so long, where it would wait for less.
    async fn lengthen(&self, manager: &Manager, needed: Duration) -> Result<(), ShutdownError> {
        let allowed = manager.longest_delay().await?;
        if allowed >= needed {
            return Ok(());
        }
        let path = drop_in::path(&self.drop_ins);
        let place = path.display();
        let too_short = |allowed: Duration, message: String| ShutdownError::TooShort { needed, allowed, message };
        if let Err(error) = drop_in::write(&path, needed) {
            return Err(too_short(allowed, format!("{place} cannot be written: {error}")));
        }
        manager.reread().await?;
        let told = Instant::now();
        loop {
            let allowed = manager.longest_delay().await?;
            if allowed >= needed {
                tracing::info!("logind waits up to {} s before the machine goes down, by {place}", needed.as_secs());
                return Ok(());
            }
            if told.elapsed() > REREAD {
                let message = format!("{place} is written, but something else sets InhibitDelayMaxSec");
                return Err(too_short(allowed, message));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[async_trait]
impl MachineEnd for Logind {
    async fn follow(&self, delay: Duration) -> Result<Box<dyn EndWatch>, ShutdownError> {
        let manager = self.reach().await?;
        self.lengthen(&manager, delay).await?;
        // Signals from before the first look on, so that nothing falls between the two.
        let signals = manager.signals().await?;
        let mut watch = Watch::new(manager, signals);
        match watch.hold().await {
            // It is told as the first thing that comes.
            Ok(()) | Err(ShutdownError::TooLate { .. }) => Ok(Box::new(watch)),
            Err(error) => Err(error),
        }
    }
}
