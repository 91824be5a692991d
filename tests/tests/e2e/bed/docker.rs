//! The Docker under test, through its socket, so that nothing of ours stands between a test and the truth.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::Once,
};

use serde_json::{Value, json};

use super::http;

/// Docker's socket.
#[derive(Clone, Debug)]
pub(crate) struct Docker {
    pub(crate) socket: PathBuf,
}

/// Where Docker listens.
pub(crate) fn endpoint() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    host.strip_prefix("unix://").map_or_else(|| "/var/run/docker.sock".into(), PathBuf::from)
}

/// The image that most pods run.
pub(crate) fn image() -> String {
    std::env::var("LONGSHORE_TEST_IMAGE").unwrap_or_else(|_| "longshore.dev/busybox:1".to_owned())
}

impl Docker {
    /// `None`, and a line that says so, when there is no daemon.
    pub(crate) fn find() -> Option<Docker> {
        let docker = Docker { socket: endpoint() };
        let ping = http::request(&docker.socket, "GET", "/_ping", None);
        match ping {
            Ok(answer) if answer.status == 200 => {}
            _ if std::env::var_os("LONGSHORE_REQUIRE_DOCKER").is_some() => {
                panic!("no Docker answers at {}, and LONGSHORE_REQUIRE_DOCKER is set", docker.socket.display())
            }
            _ => {
                crate::bed::skip(&format!(
                    "no Docker answers at {}; start one or set DOCKER_HOST",
                    docker.socket.display()
                ));
                return None;
            }
        }
        static IMAGE: Once = Once::new();
        IMAGE.call_once(|| docker.have_image());
        Some(docker)
    }

    /// Whether it is of the 20 series, with bugs that later ones have not.
    pub(crate) fn is_20(&self) -> bool {
        self.call("GET", "/version", None).json()["Version"].as_str().is_some_and(|version| version.starts_with("20."))
    }

    pub(crate) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> http::Answer {
        let answer = http::request(&self.socket, method, &format!("/v1.41{path}"), body);
        answer.unwrap_or_else(|error| panic!("Docker: {method} {path}: {error}"))
    }

    pub(crate) fn have_image(&self) {
        if self.call("GET", &format!("/images/{}/json", image()), None).status == 200 {
            return;
        }
        // A daemon of a test's own, in a world that has what others get.
        if let Some(tars) = std::env::var_os("LONGSHORE_TEST_TARS") {
            return self.import(&image(), &std::fs::read(Path::new(&tars).join("busybox.tar")).unwrap());
        }
        let program = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        let program = program.expect("a static busybox: apt-get install busybox-static");
        let list = std::process::Command::new(program).arg("--list").output().unwrap();
        let bytes = std::fs::read(program).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, "bin/busybox", bytes.as_slice()).unwrap();
        for name in String::from_utf8(list.stdout).unwrap().lines().filter(|name| *name != "busybox") {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
        }
        for folder in ["tmp", "etc", "dev", "proc", "sys", "var"] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            header.set_mode(0o777);
            tar.append_data(&mut header, folder, std::io::empty()).unwrap();
        }
        self.import(&image(), &tar.into_inner().unwrap());
    }

    /// Makes an image of a root file system.
    pub(crate) fn import(&self, image: &str, tar: &[u8]) {
        let (repo, tag) = image.rsplit_once(':').unwrap();
        let changes = "changes=ENV%20PATH%3D%2Fbin&changes=CMD%20%5B%22sh%22%5D";
        let path = format!("/v1.41/images/create?fromSrc=-&repo={repo}&tag={tag}&{changes}");
        let head = "Content-Type: application/x-tar\r\n";
        let (status, mut reader) = http::open(&self.socket, "POST", &path, head, tar).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(status < 400 && !text.contains("errorDetail"), "{image}: {status} {text}");
    }

    pub(crate) fn inspect(&self, id: &str) -> Option<Value> {
        let answer = self.call("GET", &format!("/containers/{id}/json"), None);
        (answer.status == 200).then(|| answer.json())
    }

    /// All containers, those that ended included, with a label.
    pub(crate) fn list(&self, label: &str) -> Vec<Value> {
        let filters = json!({"label": [label]}).to_string();
        let path = format!("/containers/json?all=1&filters={}", http::encode(&filters));
        self.call("GET", &path, None).json().as_array().cloned().unwrap_or_default()
    }

    pub(crate) fn remove(&self, id: &str) {
        self.call("DELETE", &format!("/containers/{id}?force=1&v=1"), None);
    }

    /// All networks with a label.
    pub(crate) fn networks(&self, label: &str) -> Vec<Value> {
        let filters = json!({"label": [label]}).to_string();
        let answer = self.call("GET", &format!("/networks?filters={}", http::encode(&filters)), None);
        answer.json().as_array().cloned().unwrap_or_default()
    }

    pub(crate) fn remove_network(&self, id: &str) {
        self.call("DELETE", &format!("/networks/{id}"), None);
    }

    pub(crate) fn kill(&self, id: &str, signal: &str) {
        let answer = self.call("POST", &format!("/containers/{id}/kill?signal={signal}"), None);
        assert!(answer.status < 400, "{}", answer.text());
    }

    /// Makes and starts a container that is not longshore's.
    pub(crate) fn stranger(&self, name: &str, labels: &Value) -> String {
        let body = json!({"Image": image(), "Cmd": ["sleep", "100000"], "Labels": labels});
        let answer = self.call("POST", &format!("/containers/create?name={name}"), Some(&body));
        assert_eq!(answer.status, 201, "{}", answer.text());
        let id = answer.json()["Id"].as_str().unwrap().to_owned();
        assert_eq!(self.call("POST", &format!("/containers/{id}/start"), None).status, 204);
        id
    }

    /// Runs a command in a container: its exit code and all that it printed.
    pub(crate) fn exec(&self, id: &str, command: &[&str]) -> (i64, String) {
        let body = json!({"AttachStdout": true, "AttachStderr": true, "Cmd": command});
        let made = self.call("POST", &format!("/containers/{id}/exec"), Some(&body));
        assert_eq!(made.status, 201, "exec in {id}: {}", made.text());
        let exec = made.json()["Id"].as_str().unwrap().to_owned();
        let body = json!({"Detach": false, "Tty": false}).to_string();
        let path = format!("/v1.41/exec/{exec}/start");
        let head = "Content-Type: application/json\r\n";
        let (_, mut reader) = http::open(&self.socket, "POST", &path, head, body.as_bytes()).unwrap();
        let (mut output, mut header) = (Vec::new(), [0; 8]);
        // Each piece comes with a head of eight bytes: the stream, and its length.
        while reader.read_exact(&mut header).is_ok() {
            let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
            let mut piece = vec![0; length];
            reader.read_exact(&mut piece).unwrap();
            output.extend(piece);
        }
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let state = self.call("GET", &format!("/exec/{exec}/json"), None).json();
            if state["Running"] == false || std::time::Instant::now() > end {
                return (state["ExitCode"].as_i64().unwrap_or(-1), String::from_utf8_lossy(&output).into_owned());
            }
        }
    }
}
