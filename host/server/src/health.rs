//! `/healthz` and its parts, in the form of `k8s.io/apiserver/pkg/server/healthz`. It must not check anything itself.

use axum::response::Response;
use http::StatusCode;
use longshore_core::ports::pods::PodViews;

use crate::query::Query;
use crate::routes::{error, text, unsniffed};

/// Answers `/healthz` or `/healthz/<one>`; `None` for a check that there is not.
pub(crate) fn answer(views: &dyn PodViews, one: Option<&str>, query: &Query) -> Option<Response> {
    let loops = views.healthy();
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
