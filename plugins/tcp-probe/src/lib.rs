//! The kubelet's TCP probe (`pkg/probe/tcp/tcp.go`): healthy when a connection can be made. It must not say anything on it.

use longshore_guest::config::{Fields, Port};
use longshore_guest::tcp::{Connection, DialError};
use longshore_guest::{Guest, Health, PluginError, Report, Target, address, report, wording};

struct Plugin;

#[cfg(target_arch = "wasm32")]
longshore_guest::export!(Plugin with_types_in longshore_guest::bindings);

impl Guest for Plugin {
    fn validate(config: String) -> Result<(), String> {
        port(&config).map(drop)
    }

    fn check(target: Target, config: String, _budget_ms: u32) -> Result<Report, PluginError> {
        let port = port(&config).map_err(PluginError::Invalid)?.resolve(&target).map_err(PluginError::Failed)?;
        verdict(address(&target)?, port, Connection::connect(port, None, None).map(drop))
    }
}

/// `host` is read by the host, which dials it: a guest never chooses its target.
fn port(config: &str) -> Result<Port, String> {
    let fields = Fields::read(config, &["port", "host"])?;
    fields.text("host")?;
    fields.port("port")
}

fn verdict(host: &str, port: u16, connected: Result<(), DialError>) -> Result<Report, PluginError> {
    match connected {
        Ok(()) => Ok(report(Health::Healthy, "")),
        Err(DialError::Denied) => Err(PluginError::Denied("longshore:dial".to_owned())),
        Err(error @ (DialError::NoAddress | DialError::Limit(_))) => {
            Err(PluginError::Failed(wording::dial(host, port, &error)))
        }
        Err(error) => Ok(report(Health::Unhealthy, wording::dial(host, port, &error))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{DialError, Guest, Health, Plugin, PluginError, verdict};

    #[test]
    fn verdicts() {
        assert_eq!(verdict("10.0.0.1", 80, Ok(())).unwrap().health, Health::Healthy);
        let refused = verdict("10.0.0.1", 80, Err(DialError::Connect("connection refused".to_owned()))).unwrap();
        assert_eq!(refused.health, Health::Unhealthy);
        assert_eq!(refused.message, "dial tcp 10.0.0.1:80: connect: connection refused");
        let late = verdict("fd00::1", 80, Err(DialError::Timeout)).unwrap();
        assert_eq!(late.message, "dial tcp [fd00::1]:80: i/o timeout");
        let denied = verdict("10.0.0.1", 80, Err(DialError::Denied)).unwrap_err();
        assert!(matches!(denied, PluginError::Denied(_)));
    }

    #[test]
    fn configurations() {
        let validate = |config: &str| Plugin::validate(config.to_owned());
        assert_eq!(validate(r#"{"port": 80}"#), Ok(()));
        assert_eq!(validate(r#"{"port": "web", "host": "127.0.0.1"}"#), Ok(()));
        assert_eq!(validate("{}"), Err("port: required".to_owned()));
        assert_eq!(
            validate(r#"{"port": 1, "hots": ""}"#),
            Err(r#"hots: unknown field; did you mean "host"?"#.to_owned())
        );
    }
}
