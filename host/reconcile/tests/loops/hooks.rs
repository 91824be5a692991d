//! Hooks of containers: what is shown and done when they fail.

use k8s_openapi::api::core::v1;
use longshore_tests::pod;

use crate::bed::Bed;

fn shown(bed: &Bed, name: &str) -> Option<v1::ContainerStatus> {
    let statuses = bed.status("p").and_then(|status| status.container_statuses).unwrap_or_default();
    statuses.into_iter().find(|status| status.name == name)
}

fn is_running(status: &v1::ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

#[tokio::test]
async fn one_whose_post_start_hook_failed_is_never_shown_to_run() {
    let bed = Bed::new();
    bed.runtime.commands_exit("app", 3);
    bed.runtime.is_deaf("app");
    let hook = "lifecycle: {postStart: {exec: {command: [hello]}}}";
    let spec = format!("{{containers: [{{name: app, image: app, {hook}}}, {{name: other, image: app}}]}}");
    bed.source.set(vec![pod("p", &spec)]);
    bed.until("it is being stopped, and the other one runs", |bed| {
        !bed.runtime.stops().is_empty() && shown(bed, "other").is_some_and(|status| is_running(&status))
    })
    .await;
    let app = shown(&bed, "app").unwrap();
    assert!(!is_running(&app) && !app.ready && app.started == Some(false), "{app:?}");
}
