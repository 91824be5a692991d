//! The cluster that `cargo xtask cluster` started for these tests: its API by a socket of `kubectl proxy`, so that a look
//! costs no process, and kubectl for what is kubectl's. Must not know of nodes, but their names.
//!
//! Environment: `LONGSHORE_TEST_CLUSTER` (its folder), `LONGSHORE_TEST_API_SOCKET`, `LONGSHORE_TEST_KUBECTL`,
//! `LONGSHORE_TEST_KUBECONFIG`, `LONGSHORE_TEST_BOOTSTRAP_KUBECONFIG`, `LONGSHORE_TEST_KUBERNETES` (its version),
//! `LONGSHORE_TEST_NODE_IP` (where the API server reaches nodes).

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{http, limit, process};

/// How long most things may take with all of a cluster on two cores.
pub(crate) const LONG: Duration = Duration::from_secs(120);

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) folder: PathBuf,
    pub(crate) bootstrap: PathBuf,
    pub(crate) version: String,
    pub(crate) address: String,
    socket: PathBuf,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

/// A variable that comes with `LONGSHORE_TEST_CLUSTER`.
fn given(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("LONGSHORE_TEST_CLUSTER is set, but {name} is not"))
}

impl Cluster {
    /// `None`, and a line that says so, when there is none.
    pub(crate) fn find() -> Option<Cluster> {
        let Some(folder) = std::env::var_os("LONGSHORE_TEST_CLUSTER") else {
            crate::bed::skip("LONGSHORE_TEST_CLUSTER is not set: run in `cargo xtask cluster --no-node -- COMMAND`");
            return None;
        };
        Some(Cluster {
            folder: folder.into(),
            bootstrap: given("LONGSHORE_TEST_BOOTSTRAP_KUBECONFIG").into(),
            version: given("LONGSHORE_TEST_KUBERNETES"),
            address: given("LONGSHORE_TEST_NODE_IP"),
            socket: given("LONGSHORE_TEST_API_SOCKET").into(),
            kubectl: given("LONGSHORE_TEST_KUBECTL").into(),
            kubeconfig: given("LONGSHORE_TEST_KUBECONFIG").into(),
        })
    }

    /// The minor version's number.
    pub(crate) fn minor(&self) -> u32 {
        self.version.split('.').nth(1).unwrap().parse().unwrap()
    }

    /// A request to the API server. While it is down, which one of the tests makes it, this waits for it.
    pub(crate) fn call(&self, method: &str, path: &str, kind: &str, body: Option<&Value>) -> http::Answer {
        let bytes = body.map(Value::to_string).unwrap_or_default();
        let deadline = Instant::now() + limit(LONG);
        loop {
            let head = format!("Content-Type: {kind}\r\nAccept: {JSON}\r\n");
            let answer =
                http::open(&self.socket, method, path, &head, bytes.as_bytes()).and_then(|(status, mut reader)| {
                    let mut body = Vec::new();
                    reader.read_to_end(&mut body)?;
                    Ok(http::Answer { status, body })
                });
            match answer {
                Ok(answer) if ![429, 500, 502, 503, 504].contains(&answer.status) => return answer,
                Ok(answer) => {
                    assert!(Instant::now() < deadline, "{method} {path}: {} {}", answer.status, answer.text())
                }
                Err(error) => assert!(Instant::now() < deadline, "{method} {path}: {error}"),
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// An object, or a list; `None` when it is not there.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        let answer = self.call("GET", path, JSON, None);
        match answer.status {
            200 => Some(answer.json()),
            404 => None,
            status => panic!("GET {path}: {status} {}", answer.text()),
        }
    }

    /// The items of a list.
    pub(crate) fn list(&self, path: &str) -> Vec<Value> {
        self.get(path).map_or_else(Vec::new, |list| list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Creates an object in the list at `path`.
    pub(crate) fn create(&self, path: &str, object: &Value) -> Value {
        let answer = self.call("POST", path, JSON, Some(object));
        // One that was told to wait may have been made all the same.
        assert!([200, 201, 202, 409].contains(&answer.status), "POST {path}: {} {}", answer.status, answer.text());
        answer.json()
    }

    /// Changes an object by a merge patch.
    pub(crate) fn patch(&self, path: &str, patch: &Value) -> Value {
        let answer = self.call("PATCH", path, MERGE, Some(patch));
        assert_eq!(answer.status, 200, "PATCH {path}: {}", answer.text());
        answer.json()
    }

    /// Deletes an object, or all of a list; that there is none is fine.
    pub(crate) fn delete(&self, path: &str, grace: Option<u32>) {
        let options = json!({"gracePeriodSeconds": grace, "propagationPolicy": "Background"});
        let answer = self.call("DELETE", path, JSON, Some(&options));
        assert!([200, 202, 404].contains(&answer.status), "DELETE {path}: {} {}", answer.status, answer.text());
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// kubectl, to be told what to do.
    pub(crate) fn kubectl_command(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.env("KUBECACHEDIR", self.folder.join("kubectl-cache"));
        command
    }

    /// kubectl, whatever comes of it.
    pub(crate) fn try_kubectl(&self, arguments: &[&str]) -> Output {
        served(|| process::output(self.kubectl_command().args(arguments), b""))
    }

    /// What a kubectl that must succeed prints.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "kubectl {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Waits until the object at `path` is as `good` has it; it is null while it is not there.
    pub(crate) fn wait(&self, path: &str, what: &str, mut good: impl FnMut(&Value) -> bool) -> Value {
        let deadline = Instant::now() + limit(LONG);
        loop {
            let object = self.get(path).unwrap_or(Value::Null);
            if good(&object) {
                return object;
            }
            if Instant::now() > deadline {
                let shown = serde_json::to_string_pretty(&object).unwrap();
                panic!("{path}: {what}: not within {:?}; it is\n{shown}", limit(LONG));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Runs a kubectl. While the API server is down, which one of the tests makes it, nobody is there, and it is run again.
pub(crate) fn served(mut run: impl FnMut() -> Output) -> Output {
    let deadline = Instant::now() + limit(LONG);
    loop {
        let output = run();
        let refused = String::from_utf8_lossy(&output.stderr).contains(" was refused - did you specify ");
        if !refused || Instant::now() > deadline {
            return output;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until `look` finds something, as long as things take here.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit(LONG);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {:?}", limit(LONG));
        thread::sleep(Duration::from_millis(100));
    }
}
