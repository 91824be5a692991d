//! `/statusz` and `/flagz` (`k8s.io/apiserver/pkg/server/{statusz,flagz}` of 1.36): text for people, and objects of
//! `config.k8s.io` for those who ask for them by name. It must not find anything out.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{ACCEPT, HeaderMap, HeaderValue, WARNING};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::routes::{error, json as send, respond, text};

const HEADER: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                      guarantees and is for debugging purposes only.\n";
/// Clauses of an `Accept` that are looked at.
const CLAUSES: usize = 64;
/// The first segments of the plain handlers, which is what the kubelet lists.
const PATHS: [&str; 5] = ["/configz", "/debug", "/flagz", "/healthz", "/metrics"];

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json(Version),
    Yaml(Version),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1alpha1,
    V1beta1,
}

pub(crate) fn statusz(started: Timestamp, headers: &HeaderMap) -> Response {
    let up = Timestamp::now().duration_since(started).as_secs().max(0);
    let lines = || {
        let since = started.to_zoned(TimeZone::UTC).strftime("%a %b %e %H:%M:%S %Z %Y");
        let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
        format!(
            "\nStarted: {since}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\nGo version: none (longshore)\n\
             Binary version: {}\n\nPaths: {}\n",
            env!("CARGO_PKG_VERSION"),
            PATHS.join(" ")
        )
    };
    let fields = json!({
        "startTime": started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "uptimeSeconds": up,
        "goVersion": "none (longshore)",
        "binaryVersion": env!("CARGO_PKG_VERSION"),
        "paths": PATHS,
    });
    answer("statusz", "Statusz", headers, lines, &fields)
}

pub(crate) fn flagz(flags: &[(String, String)], headers: &HeaderMap) -> Response {
    let flags: BTreeMap<&str, &str> = flags.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let lines = || flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    answer("flagz", "Flagz", headers, lines, &json!({"flags": flags}))
}

fn answer(page: &str, kind: &str, headers: &HeaderMap, lines: impl Fn() -> String, fields: &Value) -> Response {
    let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accept = accept.join(",");
    let form = if accept.trim().is_empty() { Some(Form::Text) } else { negotiate(&accept, kind) };
    let (version, is_yaml) = match form {
        None => return not_acceptable(),
        Some(Form::Text) => return text(StatusCode::OK, format!("\nkubelet {page}\n{HEADER}{}", lines())),
        Some(Form::Json(version)) => (version, false),
        Some(Form::Yaml(version)) => (version, true),
    };
    let name = if version == Version::V1alpha1 { "v1alpha1" } else { "v1beta1" };
    let mut object =
        json!({"kind": kind, "apiVersion": format!("config.k8s.io/{name}"), "metadata": {"name": "kubelet"}});
    if let (Some(object), Some(fields)) = (object.as_object_mut(), fields.as_object()) {
        object.extend(fields.clone());
    }
    let mut response = match is_yaml {
        true => match serde_saphyr::to_string(&object) {
            Ok(yaml) => respond(StatusCode::OK, "application/yaml", Body::from(yaml)),
            Err(why) => return error(StatusCode::INTERNAL_SERVER_ERROR, &format!("no YAML can be made of it: {why}")),
        },
        false => send(StatusCode::OK, &object),
    };
    if version == Version::V1alpha1 {
        let warning =
            format!("299 - \"This version of the {page} endpoint is deprecated. Please use a newer version.\"");
        if let Ok(warning) = HeaderValue::from_str(&warning) {
            response.headers_mut().insert(WARNING, warning);
        }
    }
    response
}

/// A clause of an `Accept`.
struct Clause<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl Clause<'_> {
    fn of(&self, wanted: &str) -> Option<&str> {
        self.parameters.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value)
    }

    /// Its place among the others: thousandths of what is missing to the best quality, and whether it is open.
    fn rank(&self) -> (i32, bool) {
        let quality = self.of("q").and_then(|q| q.parse::<f32>().ok()).unwrap_or(1.0).clamp(0.0, 1.0);
        (1000 - (quality * 1000.0) as i32, self.media.contains('*'))
    }
}

/// The first form that the best clause accepts (`k8s.io/apiserver/pkg/endpoints/handlers/negotiation`).
fn negotiate(accept: &str, kind: &str) -> Option<Form> {
    let clauses = accept.split(',').take(CLAUSES).map(|clause| {
        let mut parts = clause.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        Clause { media, parameters: parts.filter_map(|part| part.split_once('=')).collect() }
    });
    let mut clauses: Vec<Clause<'_>> = clauses.collect();
    // Stable: of equals the first comes first.
    clauses.sort_by_key(Clause::rank);
    clauses.iter().find_map(|clause| form(clause, kind))
}

fn form(clause: &Clause<'_>, kind: &str) -> Option<Form> {
    let version = match (clause.of("as"), clause.of("g"), clause.of("v")) {
        (None, ..) => None,
        (Some(found), Some("config.k8s.io"), Some("v1alpha1")) if found == kind => Some(Version::V1alpha1),
        (Some(found), Some("config.k8s.io"), Some("v1beta1")) if found == kind => Some(Version::V1beta1),
        _ => return None,
    };
    match (clause.media, version) {
        ("application/json" | "application/*" | "*/*", Some(version)) => Some(Form::Json(version)),
        ("application/yaml", Some(version)) => Some(Form::Yaml(version)),
        ("text/plain" | "text/*" | "*/*", None) => Some(Form::Text),
        _ => None,
    }
}

fn not_acceptable() -> Response {
    let message = "only the following media types are accepted: application/json, application/yaml, text/plain";
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": "NotAcceptable", "code": 406,
    });
    send(StatusCode::NOT_ACCEPTABLE, &status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_asked_for_by_name() {
        for (accept, form) in [
            ("text/plain", Some(Form::Text)),
            ("*/*", Some(Form::Text)),
            ("application/json", None),
            ("application/xml", None),
            // Of the kubelet behind a gate that is off.
            ("application/cbor;v=v1beta1;g=config.k8s.io;as=Statusz", None),
            ("application/json;v=v1beta1;g=config.k8s.io", None),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Flagz", None),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", Some(Form::Json(Version::V1beta1))),
            ("application/yaml; v=v1alpha1; g=config.k8s.io; as=Statusz", Some(Form::Yaml(Version::V1alpha1))),
            ("application/json;v=foo;g=config.k8s.io;as=Statusz,*/*", Some(Form::Text)),
            ("*/*;q=0.1, application/json;v=v1beta1;g=config.k8s.io;as=Statusz", Some(Form::Json(Version::V1beta1))),
            // A quality beyond the best one is the best one, and of equals the first comes first.
            ("text/plain, application/json;v=v1beta1;g=config.k8s.io;as=Statusz;q=9e9", Some(Form::Text)),
        ] {
            assert_eq!(negotiate(accept, "Statusz"), form, "{accept}");
        }
    }
}
