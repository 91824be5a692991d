//! What a failed request means, in words that say where, what and what to do. Pure: it looks at errors and files' dates
//! that others have read.

use std::error::Error;
use std::io;

use jiff::Timestamp;
use rustls::{AlertDescription, CertificateError, Error as TlsError};

use crate::credentials::Identity;

/// Why a request could not be made, or who we are is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{server}: {what}")]
pub struct ConnectionError {
    /// The address that was asked.
    pub server: String,
    /// What went wrong and what to do.
    pub what: String,
}

/// What the causes of an error hold.
#[derive(Default)]
struct Causes<'a> {
    tls: Option<&'a TlsError>,
    io: Option<io::ErrorKind>,
    text: String,
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> Causes<'a> {
    let mut found = Causes { text: error.to_string(), ..Causes::default() };
    let mut next = Some(error);
    while let Some(cause) = next {
        let words = cause.to_string();
        if !found.text.contains(&words) {
            found.text.push_str(": ");
            found.text.push_str(&words);
        }
        if let Some(tls) = cause.downcast_ref::<TlsError>() {
            found.tls = Some(tls);
        }
        next = match cause.downcast_ref::<io::Error>() {
            // `source` of such an error leaves out the error that it wraps.
            Some(outer) => {
                found.io = Some(outer.kind());
                match outer.get_ref() {
                    Some(inner) => Some(inner as &(dyn Error + 'static)),
                    None => cause.source(),
                }
            }
            None => cause.source(),
        };
    }
    found
}

fn date(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|at| Timestamp::from_second(at).ok())
        .map_or_else(String::new, |at| at.to_string())
}

/// How to get a new certificate; shared by everything that finds the old one ended.
pub(crate) fn mend() -> &'static str {
    "make a new one: `kubeadm token create --print-join-command` on a control plane gives a token for \
     --bootstrap-kubeconfig; or put a new kubeconfig or certificate in place, it is read at once"
}

/// What is wrong with how we prove who we are, as far as can be seen from here.
pub(crate) fn identity_problem(identity: &Identity, now: Timestamp) -> Option<String> {
    match identity {
        Identity::Certificate { from, dates } if dates.is_over(now) => {
            Some(format!("the client certificate {from} expired at {}; {}", dates.not_after, mend()))
        }
        Identity::Certificate { from, dates } if now < dates.not_before => Some(format!(
            "the client certificate {from} is not valid before {}; is this machine's clock right?",
            dates.not_before
        )),
        _ => None,
    }
}

/// Explains an answer of 401.
pub(crate) fn unauthorized(identity: &Identity, now: Timestamp) -> String {
    if let Some(problem) = identity_problem(identity, now) {
        return problem;
    }
    let credentials = match identity {
        Identity::Certificate { from, dates } => format!(
            "the client certificate {from} ({}) is not accepted: it must be signed by a CA that the API server trusts",
            dates.common_name
        ),
        Identity::Token { from } => {
            format!("the token {from} is not accepted: it may have expired (`kubeadm token create` makes one)")
        }
        Identity::Exec { command } => format!("what the exec plugin {command} says is not accepted"),
        Identity::Nobody => "credentials are needed and there are none: give --kubeconfig".to_owned(),
    };
    format!("401 Unauthorized: {credentials}")
}

fn certificate_problem(error: &CertificateError, ca: &str, server: &str) -> String {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!(
                "its certificate expired at {}; renew it there, or fix this machine's clock",
                date(not_after.as_secs())
            )
        }
        CertificateError::Expired => {
            "its certificate has expired; renew it there, or fix this machine's clock".to_owned()
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!(
                "its certificate is not valid before {}; is this machine's clock right?",
                date(not_before.as_secs())
            )
        }
        CertificateError::NotValidYet => "its certificate is not valid yet; is this machine's clock right?".to_owned(),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("its certificate is signed by a CA that is not known here; the known ones are from {ca}")
        }
        CertificateError::NotValidForNameContext { presented, .. } => format!(
            "its certificate is for {}, not for {server}; use one of these names, or tls-server-name in the kubeconfig",
            presented.join(", ")
        ),
        CertificateError::NotValidForName => {
            "its certificate is for other names; use one of them, or tls-server-name in the kubeconfig".to_owned()
        }
        other => format!("its certificate cannot be accepted ({other:?}); the known CAs are from {ca}"),
    }
}

fn alert_problem(alert: AlertDescription, identity: &Identity, now: Timestamp) -> String {
    let own = identity_problem(identity, now).unwrap_or_else(|| match identity {
        Identity::Certificate { from, .. } => format!("look at the client certificate {from}"),
        _ => "it may want a client certificate: give one in the kubeconfig".to_owned(),
    });
    format!("it ended the TLS handshake ({alert:?}); {own}")
}

/// Explains why a request got no answer.
pub(crate) fn explain(
    server: &str,
    error: &(dyn Error + 'static),
    identity: &Identity,
    ca: &str,
    now: Timestamp,
) -> ConnectionError {
    let causes = causes(error);
    let what = match (causes.tls, causes.io) {
        (Some(TlsError::InvalidCertificate(error)), _) => certificate_problem(error, ca, server),
        (Some(TlsError::AlertReceived(alert)), _) => alert_problem(*alert, identity, now),
        (Some(TlsError::InvalidMessage(_)), _) => "what answers there speaks no TLS; is it http://?".to_owned(),
        (Some(other), _) => format!("TLS failed ({other})"),
        (None, Some(io::ErrorKind::ConnectionRefused)) => {
            "connection refused: nothing listens there; is kube-apiserver running, and is the port right?".to_owned()
        }
        (None, Some(io::ErrorKind::TimedOut)) => {
            "no answer in time: look at the address, routes and firewalls between here and there".to_owned()
        }
        (None, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe)) => {
            "the connection was ended there before an answer; is it restarting?".to_owned()
        }
        (None, Some(io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable)) => {
            "there is no route to it; look at this machine's network".to_owned()
        }
        _ if causes.text.contains("dns error") => {
            format!("its name cannot be looked up ({}); look at DNS or /etc/hosts", causes.text)
        }
        _ => causes.text,
    };
    ConnectionError { server: server.to_owned(), what }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::credentials::CertificateDates;

    fn told(error: TlsError) -> String {
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        explain("https://a:1", &error, &Identity::Nobody, "/ca.crt", Timestamp::UNIX_EPOCH).to_string()
    }

    #[test]
    fn tls_in_words() {
        let time = |seconds| rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let expired = CertificateError::ExpiredContext { time: time(9), not_after: time(86_400) };
        assert!(told(TlsError::InvalidCertificate(expired)).contains("expired at 1970-01-02T00:00:00Z"));
        assert!(told(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)).contains("/ca.crt"));
        assert!(told(TlsError::AlertReceived(AlertDescription::CertificateRequired)).contains("client certificate"));
    }

    #[test]
    fn sockets_in_words() {
        let error = io::Error::from(io::ErrorKind::ConnectionRefused);
        let told = explain("https://a:1", &error, &Identity::Nobody, "", Timestamp::UNIX_EPOCH).to_string();
        assert!(told.starts_with("https://a:1: connection refused"), "{told}");
    }

    #[test]
    fn an_expired_certificate_says_how_to_replace_it() {
        let dates = CertificateDates {
            common_name: "system:node:a".to_owned(),
            not_before: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::from_second(86_400).unwrap(),
        };
        let identity = Identity::Certificate { from: "/c.pem".to_owned(), dates };
        let told = unauthorized(&identity, Timestamp::from_second(90_000).unwrap());
        assert!(
            told.contains("/c.pem expired at 1970-01-02T00:00:00Z") && told.contains("kubeadm token create"),
            "{told}"
        );
        let held = unauthorized(&identity, Timestamp::from_second(5).unwrap());
        assert!(held.starts_with("401 Unauthorized: the client certificate /c.pem (system:node:a)"), "{held}");
    }
}
