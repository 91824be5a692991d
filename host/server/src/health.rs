//! `/healthz` and its parts, in the form of `k8s.io/apiserver/pkg/server/healthz`. It must not check anything itself.

use axum::response::Response;
use http::StatusCode;
use longshore_core::ports::pods::PodViews;

use crate::query::Query;
use crate::routes::text;

/// Answers `/healthz` or `/healthz/<one>`; `None` for a check that there is not.
pub(crate) fn answer(views: &dyn PodViews, one: Option<&str>, query: &Query) -> Option<Response> {
    let loops = views.healthy();
    let checks = [("ping", &Ok(())), ("log", &Ok(())), ("syncloop", &loops)];
    if let Some(one) = one {
        let (_, result) = checks.iter().find(|(name, _)| *name == one)?;
        return Some(match result {
            Ok(()) => text(StatusCode::OK, "ok"),
            Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n")),
        });
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let checks: Vec<_> = checks.into_iter().filter(|(name, _)| !excluded.contains(name)).collect();
    let mut lines = String::new();
    for (name, result) in &checks {
        match result {
            Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
            Err(why) => lines.push_str(&format!("[-]{name} failed: {why}\n")),
        }
    }
    Some(match checks.iter().any(|(_, result)| result.is_err()) {
        true => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}healthz check failed\n")),
        false if query.all("verbose").next().is_some() => {
            text(StatusCode::OK, format!("{lines}healthz check passed\n"))
        }
        false => text(StatusCode::OK, "ok"),
    })
}
