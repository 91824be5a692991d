//! The kubelet's gRPC probe (`pkg/probe/grpc/grpc.go`): `grpc.health.v1.Health/Check`, plaintext; whatever goes wrong is
//! a failure. It must not know HTTP/2's frames; the host speaks these.

mod message;

use longshore_guest::client::{self, HttpError, Phase, Protocol, Request, Response, Scheme};
use longshore_guest::config::Fields;
use longshore_guest::{Guest, Health, PluginError, Report, Target, address, clock, report, user_agent, wording};

const UNIMPLEMENTED: u32 = 12;
const DEADLINE_EXCEEDED: u32 = 4;

/// Milliseconds from one try to the next: at first, and at most. From one to the next they grow by [`GROWTH`] tenths.
/// gRPC's backoff, without its jitter.
const FIRST_WAIT: u32 = 1000;
const LONGEST_WAIT: u32 = 120_000;
const GROWTH: u32 = 16;
/// Requests that the host lets a call send.
const MAX_TRIES: u32 = 16;

struct Plugin;

#[cfg(target_arch = "wasm32")]
longshore_guest::export!(Plugin with_types_in longshore_guest::bindings);

struct Grpc {
    port: u16,
    service: String,
}

impl Guest for Plugin {
    fn validate(config: String) -> Result<(), String> {
        read(&config).map(drop)
    }

    fn check(target: Target, config: String, budget_ms: u32) -> Result<Report, PluginError> {
        let grpc = read(&config).map_err(PluginError::Invalid)?;
        let host = address(&target)?;
        let request = request(&target, host, &grpc, budget_ms);
        let wait = |ms| {
            clock::sleep(ms);
            clock::remaining_ms() > 0
        };
        verdict(host, grpc.port, budget_ms, connected(|| client::send(&request), wait))
    }
}

/// gRPC dials until somebody speaks HTTP/2 or the time is over, which `wait` tells. Who ended the connection without an
/// answer does not: whether it said anything before is not known here. Who refused the call by HTTP/2's means does; where it was
/// not looked at, it is sent once more at once (`shouldRetry` of grpc-go's `stream.go`).
fn connected(
    mut send: impl FnMut() -> Result<Response, HttpError>,
    mut wait: impl FnMut(u32) -> bool,
) -> Result<Response, HttpError> {
    let mut pause = FIRST_WAIT;
    let mut again = true;
    for tried in 1..=MAX_TRIES {
        match send() {
            Err(HttpError::Connect(_) | HttpError::Lookup(_) | HttpError::Closed(_)) => {}
            Err(HttpError::Protocol(text)) if !is_received(&text) => {}
            Err(HttpError::Protocol(text)) if is_unprocessed(&text) && std::mem::take(&mut again) => continue,
            answer => return answer,
        }
        if !wait(if tried == MAX_TRIES { u32::MAX } else { pause }) {
            break;
        }
        pause = (pause * GROWTH / 10).min(LONGEST_WAIT);
    }
    Err(HttpError::Timeout(Phase::Connect))
}

/// Whether an error of HTTP/2 came from the other side (RST_STREAM, GOAWAY), by the words of the host's HTTP/2.
fn is_received(text: &str) -> bool {
    text.starts_with("stream error received: ") || text.starts_with("connection error received: ")
}

/// Whether the other side says that it did not look at the call: REFUSED_STREAM, or a GOAWAY without an error.
fn is_unprocessed(text: &str) -> bool {
    text == "stream error received: refused stream before processing any application logic"
        || text.starts_with("connection error received: not a result of an error")
}

fn read(config: &str) -> Result<Grpc, String> {
    let fields = Fields::read(config, &["port", "service"])?;
    let service = fields.text("service")?.unwrap_or_default().to_owned();
    Ok(Grpc { port: fields.port_number("port")?, service })
}

fn request(target: &Target, host: &str, grpc: &Grpc, budget_ms: u32) -> Request {
    let field = |name: &str, value: String| (name.to_owned(), value.into_bytes());
    Request {
        method: "POST".to_owned(),
        scheme: Scheme::Http,
        protocol: Protocol::Http2,
        port: grpc.port,
        path: "/grpc.health.v1.Health/Check".to_owned(),
        headers: vec![
            field("host", wording::join_host_port(host, grpc.port)),
            field("content-type", "application/grpc".to_owned()),
            field("te", "trailers".to_owned()),
            field("user-agent", user_agent(target)),
            field("grpc-timeout", format!("{budget_ms}m")),
        ],
        body: message::request(&grpc.service),
        max_body: 10 * 1024,
    }
}

/// How a call ended: gRPC's status, and the answer when that is OK.
enum Ended {
    Answer(u64),
    Status(u32, String),
}

fn verdict(host: &str, port: u16, budget_ms: u32, answer: Result<Response, HttpError>) -> Result<Report, PluginError> {
    let unhealthy = |text: String| Ok(report(Health::Unhealthy, text));
    let unavailable =
        |text: &str| unhealthy(format!("error: health rpc probe failed: rpc error: code = Unavailable desc = {text}"));
    let within = wording::duration(budget_ms);
    let place = wording::quote(&wording::join_host_port(host, port));
    match answer {
        Ok(response) => match ended(&response) {
            Ended::Answer(message::SERVING) => Ok(report(Health::Healthy, "service healthy")),
            Ended::Answer(status) => unhealthy(format!(
                "service unhealthy (responded with {})",
                wording::quote(&message::status_name(status))
            )),
            Ended::Status(UNIMPLEMENTED, text) => unhealthy(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {text}"
            )),
            Ended::Status(DEADLINE_EXCEEDED, _) => {
                unhealthy(format!("timeout: health rpc did not complete within {within}"))
            }
            Ended::Status(code, text) => unhealthy(format!(
                "error: health rpc probe failed: rpc error: code = {} desc = {text}",
                message::code_name(code)
            )),
        },
        Err(HttpError::Protocol(text)) if is_received(&text) => unavailable(&text),
        Err(
            HttpError::Timeout(Phase::Connect)
            | HttpError::Connect(_)
            | HttpError::Lookup(_)
            | HttpError::Closed(_)
            | HttpError::Protocol(_),
        ) => {
            unhealthy(format!("timeout: failed to connect service {place} within {within}: context deadline exceeded"))
        }
        Err(HttpError::Timeout(Phase::Headers | Phase::Body)) => {
            unhealthy(format!("timeout: health rpc did not complete within {within}"))
        }
        Err(HttpError::Body(text) | HttpError::Tls(text)) => unavailable(&text),
        Err(HttpError::Denied) => Err(PluginError::Denied("longshore:http".to_owned())),
        Err(HttpError::NoAddress) => Err(PluginError::Failed("the pod has no IP address yet".to_owned())),
        Err(HttpError::Invalid(text) | HttpError::Limit(text)) => Err(PluginError::Failed(text)),
    }
}

/// gRPC over HTTP/2: the status is in the trailers, or in the headers of an answer that has nothing else.
fn ended(response: &Response) -> Ended {
    let field = |wanted: &str| {
        let fields = response.trailers.iter().chain(&response.headers);
        let (_, value) = fields.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let Some(status) = field("grpc-status") else {
        if response.status != 200 {
            let text = format!("unexpected HTTP status code received from server: {}", response.status);
            return Ended::Status(code_of_http(response.status), text);
        }
        return Ended::Status(13, "server closed the stream without sending trailers".to_owned());
    };
    match status.parse() {
        Ok(0) => {
            message::response(&response.body).map_or_else(|text| Ended::Status(13, text.to_owned()), Ended::Answer)
        }
        Ok(code) => Ended::Status(code, percent_decoded(&field("grpc-message").unwrap_or_default())),
        Err(_) => Ended::Status(13, format!("malformed grpc-status: {status}")),
    }
}

/// gRPC's `http-grpc-status-mapping`.
fn code_of_http(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => UNIMPLEMENTED,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escaped = text.get(at + 1..at + 3).filter(|_| *byte == b'%');
        if let Some(byte) = escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            decoded.push(byte);
            at += 3;
        } else {
            decoded.push(*byte);
            at += 1;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
