//! A probe that speaks a protocol: it asks a Redis server for `PING`, over TLS if told so. It is not built in, but an example of a
//! probe of one's own over `longshore:dial`. It must not log in, or change anything.

use longshore_guest::config::{Fields, Port};
use longshore_guest::tcp::{Connection, DialError, TlsOptions};
use longshore_guest::{Guest, Health, PluginError, Report, Target, address, report, wording};

/// Bytes of an answer's line: Redis's are far shorter.
const MAX_LINE: usize = 512;

struct Plugin;

#[cfg(target_arch = "wasm32")]
longshore_guest::export!(Plugin with_types_in longshore_guest::bindings);

impl Guest for Plugin {
    fn validate(config: String) -> Result<(), String> {
        Config::read(&config).map(drop)
    }

    fn check(target: Target, config: String, _budget_ms: u32) -> Result<Report, PluginError> {
        let config = Config::read(&config).map_err(PluginError::Invalid)?;
        let port = config.port.resolve(&target).map_err(PluginError::Failed)?;
        let host = address(&target)?;
        let tls = config.tls.then(|| TlsOptions { server_name: config.server_name, alpn: Vec::new() });
        let connection = match Connection::connect(port, tls.as_ref(), None) {
            Ok(connection) => connection,
            Err(error) => return trouble(&error, || wording::dial(host, port, &error)),
        };
        let asked = connection.write(b"PING\r\n", None).and_then(|()| line(|| connection.read(MAX_LINE as u32, None)));
        match asked {
            Ok(line) => Ok(verdict(&line)),
            Err(error) => {
                trouble(&error, || format!("PING to {}: {}", wording::join_host_port(host, port), said(&error)))
            }
        }
    }
}

struct Config {
    port: Port,
    tls: bool,
    server_name: Option<String>,
}

impl Config {
    fn read(config: &str) -> Result<Self, String> {
        let fields = Fields::read(config, &["port", "tls", "serverName"])?;
        let (port, tls) = (fields.port("port")?, fields.flag("tls")?);
        let server_name = fields.text("serverName")?.map(str::to_owned);
        if server_name.is_some() && !tls {
            return Err(fields.complaint("serverName", "it is asked for with TLS alone: set tls: true"));
        }
        Ok(Self { port, tls, server_name })
    }
}

/// Reads to the end of a line, which may come in pieces.
fn line(mut read: impl FnMut() -> Result<Vec<u8>, DialError>) -> Result<String, DialError> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") {
            return Ok(String::from_utf8_lossy(&bytes[..end]).into_owned());
        }
        if bytes.len() >= MAX_LINE {
            return Err(DialError::Closed(format!("{} bytes, and no end of a line", bytes.len())));
        }
        match read()? {
            piece if piece.is_empty() => return Err(DialError::Closed("EOF".to_owned())),
            piece => bytes.extend_from_slice(&piece),
        }
    }
}

fn verdict(line: &str) -> Report {
    let health = match line {
        "+PONG" => Health::Healthy,
        // It serves those who log in.
        line if line.starts_with("-NOAUTH ") || line.starts_with("-NOPERM ") => Health::Healthy,
        _ => Health::Unhealthy,
    };
    let message = match line.strip_prefix('-') {
        Some(error) => error.to_owned(),
        None if health == Health::Healthy => String::new(),
        None => format!("unexpected answer to PING: {}", wording::quote(line)),
    };
    let kind = line.trim_start_matches(['+', '-']).split(' ').next().unwrap_or_default();
    Report { attrs: vec![("answer".to_owned(), kind.to_owned())], ..report(health, message) }
}

/// What says nothing about the target is an error.
fn trouble(error: &DialError, message: impl FnOnce() -> String) -> Result<Report, PluginError> {
    match error {
        DialError::Denied => Err(PluginError::Denied("longshore:dial".to_owned())),
        DialError::NoAddress | DialError::Limit(_) => Err(PluginError::Failed(message())),
        _ => Ok(report(Health::Unhealthy, message())),
    }
}

fn said(error: &DialError) -> &str {
    match error {
        DialError::Timeout => "no answer in time",
        DialError::Limit(text)
        | DialError::Lookup(text)
        | DialError::Connect(text)
        | DialError::Tls(text)
        | DialError::Closed(text) => text,
        DialError::Denied | DialError::NoAddress => "no connection",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{DialError, Guest, Health, MAX_LINE, Plugin, PluginError, line, trouble, verdict};

    fn pieces(pieces: &[&str]) -> Result<String, DialError> {
        let mut pieces = pieces.iter();
        line(|| Ok(pieces.next().map_or_else(Vec::new, |piece| piece.as_bytes().to_vec())))
    }

    #[test]
    fn lines() {
        assert_eq!(pieces(&["+PO", "NG\r", "\n+more"]).unwrap(), "+PONG");
        assert!(matches!(pieces(&["+PO"]), Err(DialError::Closed(text)) if text == "EOF"));
        let endless = vec!["x"; MAX_LINE + 1];
        assert!(matches!(pieces(&endless), Err(DialError::Closed(text)) if text.contains("no end")));
    }

    #[test]
    fn verdicts() {
        let of = |line: &str| {
            let report = verdict(line);
            (report.health, report.message, report.attrs[0].1.clone())
        };
        assert_eq!(of("+PONG"), (Health::Healthy, String::new(), "PONG".to_owned()));
        let locked = "NOAUTH Authentication required.";
        assert_eq!(of(&format!("-{locked}")), (Health::Healthy, locked.to_owned(), "NOAUTH".to_owned()));
        let loading = "LOADING Redis is loading the dataset in memory";
        assert_eq!(of(&format!("-{loading}")), (Health::Unhealthy, loading.to_owned(), "LOADING".to_owned()));
        assert_eq!(of("HTTP/1.1 400").1, r#"unexpected answer to PING: "HTTP/1.1 400""#);
    }

    #[test]
    fn troubles() {
        assert!(matches!(trouble(&DialError::Denied, String::new), Err(PluginError::Denied(_))));
        assert!(matches!(trouble(&DialError::NoAddress, String::new), Err(PluginError::Failed(_))));
        assert_eq!(trouble(&DialError::Timeout, String::new).unwrap().health, Health::Unhealthy);
    }

    #[test]
    fn configurations() {
        let validate = |config: &str| Plugin::validate(config.to_owned());
        assert_eq!(validate(r#"{"port": 6379}"#), Ok(()));
        assert_eq!(validate(r#"{"port": "redis", "tls": true, "serverName": "r"}"#), Ok(()));
        assert_eq!(validate("{}"), Err("port: required".to_owned()));
        assert_eq!(
            validate(r#"{"port": 1, "tls": "yes"}"#),
            Err(r#"tls: expected true or false, found the text "yes""#.to_owned())
        );
        assert!(validate(r#"{"port": 1, "serverName": "r"}"#).unwrap_err().contains("set tls: true"));
    }
}
