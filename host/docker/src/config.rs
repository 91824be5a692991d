//! The node's own credentials for registries: Docker's `config.json` and the helpers that it names. It must not
//! write anything, and a helper that hangs is killed.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use longshore_core::credentials::{AuthEntry, registry_key};
use longshore_core::ports::runtime::RegistryCredentials;
use serde::Deserialize;

/// A helper may ask a keyring or a cloud, but not a person.
const HELPER: Duration = Duration::from_secs(10);
/// An answer is a user name and a token.
const HELPER_ANSWER: u64 = 1 << 20;
/// The server's name that Docker Hub's credentials are kept under.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// `config.json`, as far as it is about credentials.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: HashMap<String, serde_json::Value>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

/// The credentials that Docker's configuration on this node has for a registry (`docker.io`, `host[:port]`), or
/// `None`: no configuration, no entry, or a helper that fails, is missing or takes more than ten seconds; the last
/// three are logged. `config_dir` is `$DOCKER_CONFIG` or `~/.docker` where absent. Blocks.
pub fn config_credentials(config_dir: Option<&Path>, registry: &str) -> Option<RegistryCredentials> {
    let folder = match config_dir {
        Some(folder) => folder.to_owned(),
        None => default_folder()?,
    };
    let file = folder.join("config.json");
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "cannot read Docker's credentials");
            return None;
        }
    };
    let config: Config = match serde_json::from_slice(&text) {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "cannot read Docker's credentials");
            return None;
        }
    };
    let is_hub = matches!(registry, "docker.io" | "index.docker.io");
    let key = if is_hub { "index.docker.io" } else { registry };
    let server = if is_hub { DOCKER_HUB } else { registry };
    let named = config.cred_helpers.iter().find(|(place, _)| registry_key(place) == key).map(|(_, helper)| helper);
    if let Some(helper) = named.or(config.creds_store.as_ref()).filter(|helper| !helper.is_empty()) {
        match ask_helper(helper, server, HELPER) {
            Ok(Some(credentials)) => return Some(credentials),
            Ok(None) => {}
            Err(error) => tracing::warn!(helper, server, error, "a credential helper failed"),
        }
    }
    let entry = config.auths.into_iter().find(|(place, _)| registry_key(place) == key)?.1;
    serde_json::from_value::<AuthEntry>(entry).ok()?.credentials()
}

fn default_folder() -> Option<PathBuf> {
    let named = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty());
    named.map(PathBuf::from).or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))
}

/// A helper's answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Runs `docker-credential-<helper> get`. `None` when it knows nothing of the server.
fn ask_helper(helper: &str, server: &str, limit: Duration) -> Result<Option<RegistryCredentials>, String> {
    if helper.contains('/') {
        return Err("its name holds a slash".to_owned());
    }
    run_helper(&format!("docker-credential-{helper}"), server, limit)
}

fn run_helper(program: &str, server: &str, limit: Duration) -> Result<Option<RegistryCredentials>, String> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{program} cannot be started: {error}"))?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("it has no stdin or stdout".to_owned());
    };
    // A name of a server fits into a pipe, so this does not block. A helper that does not read it will fail.
    let _ = stdin.write_all(server.as_bytes());
    drop(stdin);
    let (sender, answer) = mpsc::channel();
    // It ends with the pipe, that is, with the helper or whatever it left running; nobody waits for it.
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.take(HELPER_ANSWER).read_to_end(&mut bytes);
        let _ = sender.send(read.map(|_| bytes));
    });
    let received = answer.recv_timeout(limit);
    if received.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    let bytes =
        received.map_err(|_| format!("no answer within {} s", limit.as_secs()))?.map_err(|error| error.to_string())?;
    if !status.success() {
        let said = String::from_utf8_lossy(&bytes);
        // The helpers' own convention.
        return if said.contains("credentials not found") { Ok(None) } else { Err(crate::fault::shorten(said.trim())) };
    }
    let answer: Answer =
        serde_json::from_slice(&bytes).map_err(|error| format!("its answer cannot be read: {error}"))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => RegistryCredentials::IdentityToken(answer.secret),
        _ => RegistryCredentials::Basic { username: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Option<RegistryCredentials> {
        Some(RegistryCredentials::Basic { username: username.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn entries_by_registry() {
        let folder = tempfile::tempdir().unwrap();
        let ask = |registry: &str| config_credentials(Some(folder.path()), registry);
        assert_eq!(ask("foo.io"), None);
        let config = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"aHViOng="},"foo.io:5000":{"auth":"Zm9vOng="}},
            "credHelpers":{"bar.io":"longshore-no-such-helper"},"HttpHeaders":{}}"#;
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        assert_eq!(ask("docker.io"), basic("hub", "x"));
        assert_eq!(ask("foo.io:5000"), basic("foo", "x"));
        assert_eq!(ask("foo.io"), None);
        assert_eq!(ask("bar.io"), None);
        std::fs::write(folder.path().join("config.json"), "{").unwrap();
        assert_eq!(ask("docker.io"), None);
    }

    #[test]
    fn a_helper_has_no_path() {
        assert!(ask_helper("../x", "foo.io", HELPER).is_err());
        assert!(ask_helper("longshore-no-such-helper", "foo.io", HELPER).unwrap_err().contains("cannot be started"));
    }
    #[test]
    fn helpers_answer_know_nothing_fail_or_hang() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let run = |script: &str, limit| {
            let path = folder.path().join("helper");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            // Another test's thread may fork while the file is open for writing, which makes it busy.
            loop {
                match run_helper(path.to_str().unwrap(), "foo.io", limit) {
                    Err(error) if error.contains("busy") => thread::yield_now(),
                    other => return other,
                }
            }
        };
        let answer = r#"read s; echo "{\"ServerURL\":\"$s\",\"Username\":\"u\",\"Secret\":\"$s!\"}""#;
        assert_eq!(run(answer, HELPER), Ok(basic("u", "foo.io!")));
        let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(run(token, HELPER), Ok(Some(RegistryCredentials::IdentityToken("t".to_owned()))));
        assert_eq!(run("echo credentials not found in native keychain; exit 1", HELPER), Ok(None));
        assert!(run("echo no keyring; exit 1", HELPER).unwrap_err().contains("no keyring"));
        assert!(run("echo x", HELPER).is_err());
        assert!(run("exec sleep 1000", Duration::from_millis(200)).unwrap_err().contains("no answer within"));
    }
}
