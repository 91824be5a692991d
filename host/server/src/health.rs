//! `/healthz` and its parts, in the form of `k8s.io/apiserver/pkg/server/healthz`. It must not check anything itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use axum::response::Response;
use http::StatusCode;

use crate::query::Query;
use crate::routes::{Api, error, text, unsniffed};

/// How often a check succeeded and failed, and which it did last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) successes: u64,
    pub(crate) errors: u64,
    pub(crate) healthy: bool,
}

/// What came of the checks that `/healthz` made as a whole, by their names; a check that is asked for alone counts for
/// nothing (`k8s.io/component-base/metrics/prometheus/slis`).
#[derive(Default)]
pub(crate) struct Tallies(Mutex<BTreeMap<&'static str, Tally>>);

impl Tallies {
    fn add(&self, check: &'static str, healthy: bool) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = kept.entry(check).or_default();
        tally.healthy = healthy;
        let count = if healthy { &mut tally.successes } else { &mut tally.errors };
        *count += 1;
    }

    pub(crate) fn all(&self) -> BTreeMap<&'static str, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn reset(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Answers `/healthz` or `/healthz/<one>`; `None` for a check that there is not.
pub(crate) fn answer(api: &Api, one: Option<&str>, query: &Query) -> Option<Response> {
    let loops = api.parts.views.healthy();
    let checks = [("ping", &Ok(())), ("log", &Ok(())), ("syncloop", &loops)];
    if let Some(one) = one {
        let (_, result) = checks.iter().find(|(name, _)| *name == one)?;
        return Some(match result {
            Ok(()) => text(StatusCode::OK, "ok"),
            Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, &format!("internal server error: {why}")),
        });
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let (mut lines, mut failed) = (String::new(), Vec::new());
    for (name, result) in &checks {
        if !excluded.contains(name) {
            api.health.add(name, result.is_ok());
        }
        match result {
            _ if excluded.contains(name) => lines.push_str(&format!("[+]{name} excluded: ok\n")),
            Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
            Err(why) => {
                // Everybody may come here; the check's own page is for those who may know.
                lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
                failed.push(format!("{name}: {why}"));
            }
        }
    }
    let unknown = excluded.iter().filter(|one| checks.iter().all(|(name, _)| name != *one));
    let unknown: Vec<String> = unknown.map(|one| format!("{one:?}")).collect();
    if !unknown.is_empty() {
        let unknown = unknown.join(",");
        lines.push_str(&format!("warn: some health checks cannot be excluded: no matches for {unknown}\n"));
    }
    if !failed.is_empty() {
        tracing::warn!("healthz check failed: {}", failed.join("; "));
        return Some(error(StatusCode::INTERNAL_SERVER_ERROR, &format!("{lines}healthz check failed")));
    }
    Some(unsniffed(match query.all("verbose").next() {
        Some(_) => text(StatusCode::OK, format!("{lines}healthz check passed\n")),
        None => text(StatusCode::OK, "ok"),
    }))
}
