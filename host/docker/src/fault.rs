//! How a call to the daemon fails, and what is told about it. It must not decide whether to try again.

use std::io;
use std::time::Duration;

use bollard::errors::Error;
use longshore_core::ports::runtime::RuntimeError;

/// Why a call failed. `Answer` is the daemon's word; the rest means that there is none.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// It answered with an error.
    #[error("{message}")]
    Answer {
        /// HTTP status.
        status: u16,
        /// Its message.
        message: String,
    },
    /// It cannot be reached, or the connection broke before the answer was complete.
    #[error("the container runtime at {endpoint} cannot be reached: {message}")]
    Unreachable {
        /// Where it should be.
        endpoint: String,
        /// What went wrong and what to do.
        message: String,
    },
    /// It took longer than it may.
    #[error("no answer within {seconds} s")]
    Late {
        /// How long it was waited for.
        seconds: u64,
    },
    /// What came is no answer that makes sense.
    #[error("the daemon's answer cannot be read: {0}")]
    Nonsense(String),
}

impl Fault {
    /// The HTTP status that the daemon answered with.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Fault::Answer { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the daemon says that what was named does not exist.
    pub(crate) fn is_absent(&self) -> bool {
        self.status() == Some(404)
    }

    pub(crate) fn late(limit: Duration) -> Fault {
        Fault::Late { seconds: limit.as_secs_f64().ceil() as u64 }
    }

    /// As the port tells it.
    pub(crate) fn during(self, operation: &'static str) -> RuntimeError {
        match self {
            Fault::Unreachable { endpoint, message } => RuntimeError::Unreachable { endpoint, message },
            Fault::Late { seconds } => RuntimeError::Timeout { operation, seconds },
            other => RuntimeError::Failed { operation, message: other.to_string() },
        }
    }

    /// Sorts bollard's error, met while talking to `endpoint`.
    pub(crate) fn from_bollard(error: Error, endpoint: &str) -> Fault {
        match error {
            Error::DockerResponseServerError { status_code, message } => Fault::answer(status_code, &message),
            Error::DockerStreamError { error } => Fault::Answer { status: 500, message: error },
            Error::IOError { err } => Fault::from_io(&err, endpoint),
            Error::HyperResponseError { err } => Fault::broken(&err, endpoint),
            Error::RequestTimeoutError => Fault::late(Duration::from_secs(0)),
            Error::JsonDataError { message, .. } => Fault::Nonsense(message),
            other => Fault::Nonsense(other.to_string()),
        }
    }

    /// An error status with the body that came with it: Docker's JSON, or anything.
    pub(crate) fn answer(status: u16, body: &str) -> Fault {
        #[derive(serde::Deserialize)]
        struct Message {
            message: String,
        }
        let message = serde_json::from_str::<Message>(body).map_or_else(|_| body.trim().to_owned(), |it| it.message);
        let message = shorten(message.trim());
        let message = if message.is_empty() { format!("HTTP status {status} without a word") } else { message };
        Fault::Answer { status, message }
    }

    /// A connection that broke.
    pub(crate) fn broken(error: &dyn std::error::Error, endpoint: &str) -> Fault {
        let message = format!("the connection broke before the answer was complete ({error}); is Docker restarting?");
        Fault::Unreachable { endpoint: endpoint.to_owned(), message }
    }

    /// An I/O error, with what the operator can do about it.
    pub(crate) fn from_io(error: &io::Error, endpoint: &str) -> Fault {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => {
                "there is no such socket: is Docker installed and started (systemctl start docker)?"
            }
            io::ErrorKind::PermissionDenied => "permission denied: run as root, or as a member of the group docker",
            io::ErrorKind::ConnectionRefused => "nobody listens there: is Docker running (systemctl status docker)?",
            io::ErrorKind::InvalidInput => "this is not the address of a Docker daemon",
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                "there is no way to that host, or it does not answer"
            }
            _ => return Fault::broken(error, endpoint),
        };
        Fault::Unreachable { endpoint: endpoint.to_owned(), message: advice.to_owned() }
    }
}

/// The daemon's words, bounded: they end up in events, statuses and logs.
pub(crate) fn shorten(text: &str) -> String {
    const LIMIT: usize = 4096;
    if text.len() <= LIMIT {
        return text.to_owned();
    }
    let mut end = LIMIT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_operator_can_do_is_said() {
        let said = |kind: io::ErrorKind| Fault::from_io(&kind.into(), "unix:///var/run/docker.sock").to_string();
        for (kind, advice) in [
            (io::ErrorKind::NotFound, "is Docker installed and started"),
            (io::ErrorKind::PermissionDenied, "permission denied: run as root, or as a member of the group docker"),
            (io::ErrorKind::ConnectionRefused, "is Docker running"),
            (io::ErrorKind::InvalidInput, "this is not the address of a Docker daemon"),
            (io::ErrorKind::TimedOut, "no way to that host"),
            (io::ErrorKind::HostUnreachable, "no way to that host"),
            (io::ErrorKind::NetworkUnreachable, "no way to that host"),
            (io::ErrorKind::BrokenPipe, "the connection broke before the answer was complete"),
            (io::ErrorKind::ConnectionReset, "the connection broke before the answer was complete"),
        ] {
            let text = said(kind);
            let begin = "the container runtime at unix:///var/run/docker.sock cannot be reached: ";
            assert!(text.starts_with(begin) && text.contains(advice), "{kind:?}: {text}");
        }
    }
}
