//! What a plugin may do, and the only place where that is asked. Every version of every interface asks here.

use std::fmt;

/// The capabilities that a plugin has. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Run commands in the target's container.
    pub exec: bool,
    /// Open TCP connections to the target.
    pub dial: bool,
    /// Send HTTP requests to the target.
    pub http: bool,
    /// The target's address is the `host` of the probe's configuration, when it has one, as v1's `tcpSocket` and
    /// `httpGet` have it. The host reads it, from what the pod's author wrote: the guest has no say.
    pub host_from_config: bool,
}

/// A capability that was asked for and not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Denied;

/// A capability that host functions ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capability {
    Exec,
    Dial,
    Http,
}

impl fmt::Display for Capability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Exec => "longshore:exec",
            Self::Dial => "longshore:dial",
            Self::Http => "longshore:http",
        })
    }
}

impl Grants {
    /// What the kubelet's own probe of that name does, and no more.
    pub(crate) fn of_built_in(name: &str) -> Self {
        let none = Self::default();
        match name {
            "exec" => Self { exec: true, ..none },
            "tcp" => Self { dial: true, host_from_config: true, ..none },
            "http" => Self { http: true, host_from_config: true, ..none },
            "grpc" => Self { http: true, ..none },
            _ => none,
        }
    }

    /// Whether a capability is granted.
    pub(crate) fn ask(self, capability: Capability) -> Result<(), Denied> {
        let granted = match capability {
            Capability::Exec => self.exec,
            Capability::Dial => self.dial,
            Capability::Http => self.http,
        };
        if granted { Ok(()) } else { Err(Denied) }
    }
}
