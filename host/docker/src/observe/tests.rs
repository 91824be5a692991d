//! Inspects as daemons have given them, and odd ones.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn inspect(kind: &str, state: Value) -> Value {
    json!({
        "Id": "abc", "Created": "2026-01-01T00:00:00.5Z", "Image": "sha256:x", "LogPath": "",
        "State": state,
        "Config": {"Labels": {
            "dev.longshore.root": "r", "dev.longshore.attempt": "2", "dev.longshore.hash": "h",
            "io.kubernetes.docker.type": kind, "io.kubernetes.pod.name": "p", "io.kubernetes.pod.namespace": "n",
            "io.kubernetes.pod.uid": "u", "io.kubernetes.container.name": "c",
        }},
        "NetworkSettings": {"Networks": {
            "a": null,
            "bridge": {"IPAddress": "172.17.0.2", "GlobalIPv6Address": "fd00::2"},
            "other": {"IPAddress": "", "GlobalIPv6Address": null},
        }},
    })
}

fn see(value: Value) -> Option<Observation> {
    observation(serde_json::from_value(value).unwrap(), "r", "docker://x".to_owned())
}

fn state_of(state: Value) -> ContainerState {
    match see(inspect("container", state)) {
        Some(Observation::Container(container)) => container.state,
        other => panic!("{other:?}"),
    }
}

fn exit(state: Value) -> (i32, String) {
    match state_of(state) {
        ContainerState::Exited(exit) => (exit.code, exit.reason),
        other => panic!("{other:?}"),
    }
}

const NEVER: &str = "0001-01-01T00:00:00Z";

#[test]
fn dockershims_rules() {
    let ended = |code: i64, oom: bool| json!({"ExitCode": code, "OOMKilled": oom, "StartedAt": "2026-01-01T00:00:01Z", "FinishedAt": "2026-01-01T00:00:02Z"});
    assert_eq!(exit(ended(0, false)), (0, "Completed".to_owned()));
    assert_eq!(exit(ended(3, false)), (3, "Error".to_owned()));
    assert_eq!(exit(ended(137, true)), (137, "OOMKilled".to_owned()));
    let cannot =
        json!({"ExitCode": 127, "Error": "executable file not found", "StartedAt": NEVER, "FinishedAt": NEVER});
    let ContainerState::Exited(exit) = state_of(cannot) else { panic!() };
    assert_eq!((exit.code, exit.reason.as_str()), (127, "ContainerCannotRun"));
    assert_eq!(exit.message, "executable file not found");
    let created = "2026-01-01T00:00:00.5Z".parse().unwrap();
    assert_eq!((exit.started_at, exit.finished_at), (Some(created), created));
    assert_eq!(state_of(json!({"ExitCode": 0, "StartedAt": NEVER, "FinishedAt": NEVER})), ContainerState::Created);
}

#[test]
fn a_restarted_one_runs() {
    let state =
        json!({"Running": true, "Pid": 7, "StartedAt": "2026-01-01T00:00:03Z", "FinishedAt": "2026-01-01T00:00:02Z"});
    assert_eq!(
        state_of(state),
        ContainerState::Running { started_at: "2026-01-01T00:00:03Z".parse().unwrap(), pid: 7 }
    );
}

#[test]
fn sandboxes_have_addresses_while_they_run() {
    let Some(Observation::Sandbox(sandbox)) = see(inspect("podsandbox", json!({"Running": true, "Pid": 9}))) else {
        panic!()
    };
    assert_eq!(sandbox.ips, ["172.17.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
    assert_eq!((sandbox.state, sandbox.pid, sandbox.attempt), (SandboxState::Running, Some(9), 2));
    let Some(Observation::Sandbox(sandbox)) = see(inspect("podsandbox", json!({"Running": false, "Pid": 0}))) else {
        panic!()
    };
    assert_eq!((sandbox.state, sandbox.pid, sandbox.ips.len()), (SandboxState::Created, None, 0));
}

#[test]
fn odd_answers_do_no_harm() {
    for odd in [json!({}), json!({"State": null, "Config": null}), json!({"Id": "x", "Config": {"Labels": null}})] {
        assert_eq!(see(odd), None);
    }
    let odd =
        json!({"Running": false, "Pid": -5, "ExitCode": 99999999999i64, "StartedAt": "yesterday", "FinishedAt": ""});
    assert_eq!(state_of(odd), ContainerState::Created);
    let mut other = inspect("container", json!({}));
    other["Config"]["Labels"]["dev.longshore.root"] = json!("s");
    assert_eq!(see(other), None);
}
