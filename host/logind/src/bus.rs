//! The calls that we make over D-Bus: `org.freedesktop.login1.Manager`, and systemd to have logind read its settings.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::time::Duration;

use longshore_core::ports::shutdown::ShutdownError;
use zbus::connection::Builder;
use zbus::message::{Message, Type};
use zbus::{Connection, MatchRule, MessageStream, OwnedVariant};

/// How long a call may take, and the way to the bus.
const LIMIT: Duration = Duration::from_secs(10);

const LOGIN: &str = "org.freedesktop.login1";
const LOGIN_PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const SYSTEMD_MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// The signal that says that something about the machine's end changed.
const PREPARE: &str = "PrepareForShutdown";
/// Signals that wait until they are taken; the connection stands still while there are more, so whoever waits for an
/// answer takes them.
pub(crate) const QUEUE: usize = 8;
/// What logind answers when an inhibitor is asked for too late (`BUS_ERROR_OPERATION_IN_PROGRESS`).
const IN_PROGRESS: &str = "org.freedesktop.login1.OperationInProgress";

/// Why a call over D-Bus came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    /// There is no bus, or nobody answers there.
    #[error("the system's D-Bus cannot be reached: {0}")]
    Bus(zbus::Error),
    /// It took too long.
    #[error("{what}: no answer within {} s", LIMIT.as_secs())]
    Slow {
        /// What was asked.
        what: &'static str,
    },
    /// It was refused, or the answer is not understood.
    #[error("{what}: {error}")]
    Call {
        /// What was asked.
        what: &'static str,
        /// What was answered.
        error: zbus::Error,
    },
}

impl From<BusError> for ShutdownError {
    fn from(error: BusError) -> Self {
        let message = error.to_string();
        let BusError::Call { error, .. } = error else { return ShutdownError::Unreachable { message } };
        match error {
            zbus::Error::MethodError(name, ..) if name.as_str() == IN_PROGRESS => ShutdownError::TooLate { message },
            // No such service on this bus, or it cannot be started.
            zbus::Error::FDO(error)
                if matches!(*error, zbus::fdo::Error::ServiceUnknown(_) | zbus::fdo::Error::NameHasNoOwner(_)) =>
            {
                ShutdownError::Unreachable { message }
            }
            _ => ShutdownError::Failed { message },
        }
    }
}

/// logind's manager.
#[derive(Clone, Debug)]
pub(crate) struct Manager {
    connection: Connection,
}

impl Manager {
    pub(crate) fn new(connection: Connection) -> Self {
        Manager { connection }
    }

    /// The one of the system's bus.
    pub(crate) async fn of_system() -> Result<Self, BusError> {
        let connected = tokio::time::timeout(LIMIT, Builder::system().method_timeout(LIMIT).build());
        match connected.await {
            Ok(connection) => Ok(Manager::new(connection.map_err(BusError::Bus)?)),
            Err(_) => Err(BusError::Slow { what: "connecting to the system's D-Bus" }),
        }
    }

    /// How long logind waits for those who asked it to, at most (`InhibitDelayMaxUSec`).
    pub(crate) async fn longest_delay(&self) -> Result<Duration, BusError> {
        let what = "reading logind's InhibitDelayMaxUSec";
        let microseconds: u64 = self.property(what, "InhibitDelayMaxUSec").await?;
        Ok(Duration::from_micros(microseconds))
    }

    /// Whether the machine is about to go down.
    pub(crate) async fn goes_down(&self) -> Result<bool, BusError> {
        self.property("reading logind's PreparingForShutdown", "PreparingForShutdown").await
    }

    /// Has the machine wait for us before it goes down, until what this gives is dropped.
    pub(crate) async fn inhibit(&self) -> Result<OwnedFd, BusError> {
        let what = "asking logind to wait before the machine goes down";
        let body = ("shutdown", "longshore", "pods are ended in order before the machine goes down", "delay");
        let call = self.connection.call_method(Some(LOGIN), LOGIN_PATH, Some(MANAGER), "Inhibit", &body);
        let answer = limited(what, call).await?;
        let descriptor: zbus::OwnedFd = read(what, &answer)?;
        Ok(descriptor.into())
    }

    /// Has logind read its settings again.
    pub(crate) async fn reread(&self) -> Result<(), BusError> {
        const HANGUP: i32 = 1;
        let body = ("systemd-logind.service", "all", HANGUP);
        let call = self.connection.call_method(Some(SYSTEMD), SYSTEMD_PATH, Some(SYSTEMD_MANAGER), "KillUnit", &body);
        limited("having logind read its settings again", call).await.map(drop)
    }

    /// Signals that something about the machine's end changed. The bus passes on logind's alone, but anybody can address
    /// one to us: they are a reason to look, and no news.
    pub(crate) async fn signals(&self) -> Result<MessageStream, BusError> {
        let what = "following logind's PrepareForShutdown";
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(LOGIN)
            .path(LOGIN_PATH)
            .interface(MANAGER)
            .member(PREPARE)
            .build()
            .map_err(|error| BusError::Call { what, error })?;
        let stream = MessageStream::for_match_rule(rule, &self.connection, NonZeroUsize::new(QUEUE));
        limited(what, stream).await
    }

    async fn property<T>(&self, what: &'static str, name: &str) -> Result<T, BusError>
    where
        T: TryFrom<OwnedVariant>,
        T::Error: Into<zbus::Error>,
    {
        let body = (MANAGER, name);
        let call = self.connection.call_method(Some(LOGIN), LOGIN_PATH, Some(PROPERTIES), "Get", &body);
        let answer = limited(what, call).await?;
        let value: OwnedVariant = read(what, &answer)?;
        T::try_from(value).map_err(|error| BusError::Call { what, error: error.into() })
    }
}

async fn limited<T>(what: &'static str, work: impl Future<Output = zbus::Result<T>>) -> Result<T, BusError> {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(done) => done.map_err(|error| BusError::Call { what, error }),
        Err(_) => Err(BusError::Slow { what }),
    }
}

fn read<T>(what: &'static str, answer: &Message) -> Result<T, BusError>
where
    T: for<'a> serde::Deserialize<'a> + zbus::Type,
{
    answer.body().deserialize().map_err(|error| BusError::Call { what, error })
}
