//! How Go and the kubelet say things. Users, dashboards and Kubernetes' end-to-end tests know these sentences.
//! It must not decide what a thing means.

use crate::tcp::DialError;

/// Go's `net.JoinHostPort`.
#[must_use]
pub fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Go's `time.Duration.String` of milliseconds: `200ms`, `1.5s`, `1m0s`.
#[must_use]
pub fn duration(milliseconds: u32) -> String {
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    if milliseconds < 1000 {
        return format!("{milliseconds}ms");
    }
    let (hours, minutes) = (milliseconds / 3_600_000, milliseconds / 60_000 % 60);
    let (seconds, rest) = (milliseconds / 1000 % 60, milliseconds % 1000);
    let mut text = match (hours, minutes) {
        (0, 0) => String::new(),
        (0, minutes) => format!("{minutes}m"),
        (hours, minutes) => format!("{hours}h{minutes}m"),
    };
    text.push_str(&seconds.to_string());
    if rest != 0 {
        text.push('.');
        text.push_str(format!("{rest:03}").trim_end_matches('0'));
    }
    text.push('s');
    text
}

/// Go's `%q`, as far as it differs from the text between quotation marks: quotation marks, backslashes, control characters.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            control if control.is_control() => quoted.push_str(&format!("\\x{:02x}", control as u32)),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// What Go's dialer says of a connection that could not be made.
#[must_use]
pub fn dial(host: &str, port: u16, error: &DialError) -> String {
    let address = join_host_port(host, port);
    match error {
        DialError::Timeout => format!("dial tcp {address}: i/o timeout"),
        DialError::Connect(text) => format!("dial tcp {address}: connect: {text}"),
        DialError::Lookup(_) => format!("dial tcp: lookup {host}: no such host"),
        DialError::Closed(text) | DialError::Tls(text) | DialError::Limit(text) => {
            format!("dial tcp {address}: {text}")
        }
        DialError::Denied => "longshore:dial is not granted".to_owned(),
        DialError::NoAddress => "the pod has no IP address yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{dial, duration, join_host_port, quote};
    use crate::tcp::DialError;

    #[test]
    fn durations_are_gos() {
        for (milliseconds, text) in [
            (0, "0s"),
            (200, "200ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (60_000, "1m0s"),
            (61_050, "1m1.05s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(duration(milliseconds), text);
        }
    }

    #[test]
    fn addresses_and_quotes_are_gos() {
        assert_eq!(join_host_port("10.0.0.1", 80), "10.0.0.1:80");
        assert_eq!(join_host_port("fd00::1", 80), "[fd00::1]:80");
        assert_eq!(quote("a \"b\"\\\n\u{7}"), r#""a \"b\"\\\n\x07""#);
    }

    #[test]
    fn dialing_is_gos() {
        assert_eq!(dial("10.0.0.1", 80, &DialError::Timeout), "dial tcp 10.0.0.1:80: i/o timeout");
        let refused = DialError::Connect("connection refused".to_owned());
        assert_eq!(dial("10.0.0.1", 80, &refused), "dial tcp 10.0.0.1:80: connect: connection refused");
        let lookup = DialError::Lookup("?".to_owned());
        assert_eq!(dial("nowhere", 80, &lookup), "dial tcp: lookup nowhere: no such host");
    }
}
