//! `longshore drain-node --local`: all pods end in order, none begins, and what brings them back. A machine that goes down
//! by itself is tried where there is one (`cargo xtask vm`).

use std::{fs, time::Instant};

use serde_json::{Value, json};

use crate::bed::{
    Bed,
    pods::{condition, container, is_ready, phase, pod, with},
};

const CRITICAL: i32 = 2_000_000_000;

/// A pod that writes its name when it is told to end, and takes a second for it.
fn noting(bed: &Bed, name: &str, priority: i32) -> Value {
    let folder = bed.folder.join("notes");
    fs::create_dir_all(&folder).unwrap();
    let script =
        format!("trap 'sleep 1; echo {name} >> /n/ended; exit 0' TERM; touch /tmp/told; while :; do sleep 0.1; done");
    // Before its trap is set it does not hear that it is to end.
    let probe = json!({"exec": {"command": ["test", "-e", "/tmp/told"]}, "periodSeconds": 1, "timeoutSeconds": 20});
    let more = json!({"volumeMounts": [{"name": "n", "mountPath": "/n"}], "readinessProbe": probe});
    let app = with(container("app", &script), more);
    let volumes = json!([{"name": "n", "hostPath": {"path": folder}}]);
    pod(name, json!([app]), json!({"priority": priority, "terminationGracePeriodSeconds": 30, "volumes": volumes}))
}

fn notes(bed: &Bed) -> Vec<String> {
    let text = fs::read_to_string(bed.folder.join("notes/ended")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn reason(pod: &Value) -> &str {
    pod["status"]["reason"].as_str().unwrap_or_default()
}

#[test]
fn shutdown_on_request_ends_pods_by_priority_and_a_start_brings_them_back() {
    let Some(mut bed) = Bed::start() else { return };
    let pods = [("critical", CRITICAL), ("usual", 0), ("better", 0)];
    for (name, priority) in pods {
        bed.apply(&noting(&bed, name, priority));
    }
    for (name, _) in pods {
        bed.wait(name, "ready", is_ready);
    }
    let output = bed.cli(&["drain-node", "--local"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("Ending 2 pods, 40 s at most: default/better-n1, default/usual-n1\n"), "{said}");
    assert!(said.contains("default/usual-n1 ended after "), "{said}");
    assert!(said.contains("Ending critical pods, 40 s at most: default/critical-n1\n"), "{said}");
    assert!(said.contains("3 pods ended. No pod starts until the agent is restarted"), "{said}");
    assert_eq!(notes(&bed).last().map(String::as_str), Some("critical"));
    for (name, _) in pods {
        let ended = bed.pod(name).unwrap();
        assert_eq!((phase(&ended), reason(&ended)), ("Failed", "Terminated"), "{ended}");
        assert!(condition(&ended, "DisruptionTarget"));
    }
    bed.apply(&noting(&bed, "late", 0));
    let late = bed.wait("late", "refused", |pod| phase(pod) == "Failed");
    assert_eq!(reason(&late), "NodeShutdown");
    for command in [&["get", "pods"][..], &["plan"], &["doctor"]] {
        let output = bed.cli(command);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(said.contains("longshore drain-node --local --cancel"), "{command:?}: {said}");
    }
    assert_eq!(bed.cli(&["drain-node", "--local"]).status.code(), Some(0), "nothing is left to end");

    assert!(bed.say(&["drain-node", "--local", "--cancel"]).contains("may start again"));
    for name in ["critical", "usual", "better", "late"] {
        bed.wait(name, "ready again", is_ready);
    }

    assert_eq!(bed.cli(&["drain-node", "--local"]).status.code(), Some(0));
    bed.stop();
    bed.begin();
    for name in ["critical", "usual", "better", "late"] {
        bed.wait(name, "ready after a start", is_ready);
    }
    assert_eq!(notes(&bed).len(), 7, "{:?}", notes(&bed));
}

#[test]
fn shutdown_on_request_keeps_to_its_time() {
    let Some(bed) = Bed::start() else { return };
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    bed.apply(&pod("deaf", json!([container("app", script)]), json!({"terminationGracePeriodSeconds": 600})));
    bed.wait("deaf", "ready", is_ready);
    let begun = Instant::now();
    let output = bed.cli(&["drain-node", "--local", "--timeout", "2s"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("Ending 1 pod, 2 s at most: default/deaf-n1\n"), "{said}");
    assert!(begun.elapsed().as_secs() < 60, "{:?}: it was asked for 600 s", begun.elapsed());
    assert_eq!(reason(&bed.pod("deaf").unwrap()), "Terminated");

    for (arguments, wanted) in [
        (&["drain-node"][..], "--local"),
        (&["drain-node", "--local", "--timeout", "soon"], "expected a duration"),
        (&["drain-node", "--local", "--cancel", "--timeout", "1s"], "cannot be used with"),
    ] {
        let output = bed.cli(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(wanted), "{arguments:?}: {said}");
    }
}
