//! Variables from files that an init container leaves in a volume.

use serde_json::{Value, json};

use crate::bed::{
    Bed,
    pods::{SLEEP, container, pod, status, waiting, with},
};

fn from_file(name: &str, path: &str, key: &str, optional: bool) -> Value {
    let file = json!({"volumeName": "v", "path": path, "key": key, "optional": optional});
    json!({"name": name, "valueFrom": {"fileKeyRef": file}})
}

/// A pod whose init container runs a script in the volume, before one with those variables.
fn with_file(name: &str, script: &str, env: Value) -> Value {
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let init = with(container("init", &format!("cd /v && {script}")), mounts);
    let app = with(container("app", SLEEP), json!({"env": env}));
    pod(name, json!([app]), json!({"initContainers": [init], "volumes": [{"name": "v", "emptyDir": {}}]}))
}

#[test]
fn env_files_give_variables() {
    let Some(bed) = Bed::start() else { return };
    let script = r##"mkdir c; printf "# made at start\nNAME='a value'\nLINES='one\ntwo'\n" > c/env; ln -s c/env link"##;
    let env = json!([
        from_file("NAME", "c/env", "NAME", false),
        from_file("ALSO", "link", "NAME", false),
        from_file("LINES", "c/env", "LINES", false),
        from_file("NONE", "c/env", "NOT_THERE", true),
        {"name": "USES", "value": "<$(NAME)>"},
    ]);
    bed.apply(&with_file("a", script, env));
    bed.wait_ready("a");
    let told = bed.exec("a", "app", "echo $NAME,$ALSO,$LINES,${NONE-unset},$USES");
    assert_eq!(told, "a value,a value,one two,unset,<a value>\n");
}

#[test]
fn env_files_that_cannot_be_read_say_so() {
    let Some(bed) = Bed::start() else { return };
    let cases = [
        ("gone", "true", "env", "couldn't parse env file"),
        ("missing", "echo \"B='1'\" > env", "env", "environment variable key \"A\" not found in file"),
        ("broken", "echo A=unquoted > env", "env", "value must be enclosed in single quotes"),
        ("out", "ln -s /etc/passwd env", "env", "couldn't parse env file"),
        ("pipe", "mkfifo env", "env", "couldn't parse env file"),
    ];
    for (name, script, path, _) in cases {
        bed.apply(&with_file(name, script, json!([from_file("A", path, "A", false)])));
    }
    for (name, _, _, message) in cases {
        let found = bed.wait(name, "refused", |pod| waiting(pod, "app") == "CreateContainerConfigError");
        let told = status(&found, "app")["state"]["waiting"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(told.contains(message) && !told.contains("root:"), "{name}: {told}");
        bed.wait_event(name, "Failed", "Error: ");
    }
}
