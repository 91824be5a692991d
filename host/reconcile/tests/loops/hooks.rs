//! Hooks of containers: what is shown and done when they fail.

use std::cell::RefCell;

use k8s_openapi::api::core::v1;
use longshore_core::backoff::Policy;
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

#[tokio::test]
async fn a_container_is_begun_when_the_post_start_hook_of_the_one_before_has_ended() {
    let bed = Bed::new();
    let hook = "lifecycle: {postStart: {sleep: {seconds: 30}}}";
    let spec = format!("{{containers: [{{name: app, image: app, {hook}}}, {{name: other, image: app}}]}}");
    bed.source.set(vec![pod("p", &spec)]);
    bed.until("the other one waits for it", |bed| {
        let waiting = shown(bed, "other").and_then(|status| status.state?.waiting?.message);
        waiting.is_some_and(|message| message.contains("postStart hook"))
    })
    .await;
    assert!(bed.runtime.container("p", "app").unwrap().is_running());
    assert!(bed.runtime.container("p", "other").is_none());
}

#[tokio::test]
async fn one_whose_post_start_hook_failed_is_stopped_by_the_next_agent_too() {
    let bed = Bed::new();
    bed.runtime.commands_exit("app", 3);
    bed.runtime.is_deaf("app");
    let hook = "lifecycle: {postStart: {exec: {command: [hello]}}}";
    let pods = [pod("p", &format!("{{containers: [{{name: app, image: app, {hook}}}]}}"))];
    bed.source.set(pods.to_vec());
    bed.until("it is being stopped", |bed| bed.runtime.stops().len() == 1).await;
    let bed = bed.restart().await;
    bed.source.set(pods.to_vec());
    bed.until("it is being stopped again", |bed| bed.runtime.stops().len() == 2).await;
    let app = shown(&bed, "app").unwrap();
    assert!(!is_running(&app) && !app.ready && app.started == Some(false), "{app:?}");
}

#[tokio::test]
async fn a_post_start_hook_that_failed_is_why_its_container_waits() {
    let bed = Bed::with(|options| options.crash_loop = Policy::CRASH_LOOP);
    bed.runtime.commands_exit("app", 3);
    let hook = "lifecycle: {postStart: {exec: {command: [hello]}}}";
    bed.source.set(vec![pod("p", &format!("{{containers: [{{name: app, image: app, {hook}}}]}}"))]);
    // That is shown for a while only, before its back-off is, after each of its starts.
    let seen = RefCell::new(None);
    bed.until("it waits to be started once more", |bed| {
        let app = shown(bed, "app").filter(|app| {
            let waiting = app.state.as_ref().and_then(|state| state.waiting.as_ref());
            let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
            app.restart_count >= 1 && reason == Some("PostStartHookError")
        });
        *seen.borrow_mut() = app;
        seen.borrow().is_some()
    })
    .await;
    let app = seen.take().unwrap();
    let message = "Exec lifecycle hook ([hello]) for Container \"app\" in Pod \"p_default(p)\" failed - \
                   error: command 'hello' exited with 3, message: \"\"";
    assert_eq!(app.state.unwrap().waiting.unwrap().message.as_deref(), Some(message));
    assert!(app.last_state.unwrap().terminated.is_some());
}

#[tokio::test]
async fn a_container_that_is_stopped_alone_is_asked_to_end_however_little_time_it_has() {
    let bed = Bed::new();
    bed.runtime.commands_exit("app", 3);
    let hooks = "lifecycle: {postStart: {exec: {command: [hello]}}, preStop: {exec: {command: [bye]}}}";
    let spec = format!("{{terminationGracePeriodSeconds: 0, containers: [{{name: app, image: app, {hooks}}}]}}");
    bed.source.set(vec![pod("p", &spec)]);
    bed.until("its hook failed and it is stopped", |bed| !bed.runtime.stops().is_empty()).await;
    assert_eq!(bed.runtime.stops()[0], ("p".to_owned(), 2));
    assert_eq!(bed.runtime.story()[..2], ["exec app", "stop app"], "no time for the other hook");
}
