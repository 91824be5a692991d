//! The node's own credentials for registries: Docker's `config.json` and the helpers that it names. It must not
//! write anything, and a helper that hangs is killed.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use longshore_core::credentials::{ImageName, for_auths, registry_key};
use longshore_core::ports::runtime::RegistryCredentials;
use serde::Deserialize;

/// A helper may ask a keyring or a cloud, but not a person.
const HELPER: Duration = Duration::from_secs(10);
/// An answer is a user name and a token.
const HELPER_ANSWER: u64 = 1 << 20;
/// The server's name that Docker Hub's credentials are kept under.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// What Docker had before `config.json`: its `auths` alone.
const DOCKERCFG: &str = ".dockercfg";
/// Where the agent was started, which may be anybody's folder: its `auths` count, as with the kubelet, and no program is run
/// because of it.
const STARTED_IN: &str = ".";

/// `config.json`, as far as it is about credentials. One that has nothing of it is another program's.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: Option<serde_json::Map<String, serde_json::Value>>,
    creds_store: Option<String>,
    cred_helpers: Option<HashMap<String, String>>,
}

/// The files in which the node's credentials are looked for, in this order: `config.json` in the agent's folder, as the
/// kubelet has it, where the agent was started, in `$DOCKER_CONFIG` or `~/.docker`, also where a service has no `$HOME`, and
/// in `/.docker`; then the older `.dockercfg` (`DefaultDockerConfigJSONPaths` and `DefaultDockercfgPaths` in
/// pkg/credentialprovider/config.go).
pub fn config_files(own: Option<&Path>) -> Vec<PathBuf> {
    let home = home();
    files_of(own, docker_folder(std::env::var_os("DOCKER_CONFIG"), home.clone()), home)
}

fn files_of(own: Option<&Path>, of_docker: Option<PathBuf>, home: Option<PathBuf>) -> Vec<PathBuf> {
    let first = || own.map(Path::to_owned).into_iter().chain([PathBuf::from(STARTED_IN)]);
    let new = first().chain(of_docker).chain([PathBuf::from("/.docker")]).map(|folder| folder.join("config.json"));
    let old = first().chain(home).chain([PathBuf::from("/")]).map(|folder| folder.join(DOCKERCFG));
    new.chain(old).collect()
}

fn docker_folder(named: Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    let named = named.filter(|folder| !folder.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(home?.join(".docker")))
}

/// The user's home. systemd tells it only to services that have `User=`.
fn home() -> Option<PathBuf> {
    let told = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    told.or_else(|| {
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        home_of(&users, rustix::process::geteuid().as_raw())
    })
}

/// The home of a user in `/etc/passwd`; root's is known without.
fn home_of(users: &str, uid: u32) -> Option<PathBuf> {
    let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let home = fields.filter(|user| user.len() > 5 && user[2].parse() == Ok(uid)).map(|user| PathBuf::from(user[5]));
    home.into_iter().find(|home| home.is_absolute()).or_else(|| (uid == 0).then(|| PathBuf::from("/root")))
}

/// The credentials that Docker's configuration on this node has for an image, in the order in which they are to be tried: a
/// helper's, then those of `auths`, whose keys may have paths and globs as in a pull secret. The first file that can be read
/// and is about credentials is the one that counts (`ReadDockerConfigFile` in pkg/credentialprovider/config.go). A file that
/// cannot be read, and a helper that fails, is missing or takes more than ten seconds, is logged. Blocks.
pub fn config_credentials(files: &[PathBuf], image: &ImageName) -> Vec<RegistryCredentials> {
    let Some(config) = files.iter().find_map(|file| read(file)) else { return Vec::new() };
    let registry = image.registry.as_str();
    let is_hub = registry == "docker.io";
    let key = if is_hub { "index.docker.io" } else { registry };
    let server = if is_hub { DOCKER_HUB } else { registry };
    let mut helpers = config.cred_helpers.iter().flatten();
    let named = helpers.find(|(place, _)| registry_key(place) == key).map(|(_, helper)| helper);
    let helper = named.or(config.creds_store.as_ref()).filter(|helper| !helper.is_empty());
    let told = helper.and_then(|helper| {
        let asked = ask_helper(helper, server, HELPER);
        asked.unwrap_or_else(|error| {
            tracing::warn!(helper, server, error, "a credential helper failed");
            None
        })
    });
    told.into_iter().chain(for_auths(image, config.auths.unwrap_or_default())).collect()
}

fn read(file: &Path) -> Option<Config> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "cannot read Docker's credentials");
            return None;
        }
    };
    let failed = |error: &serde_json::Error| {
        tracing::warn!(file = %file.display(), %error, "cannot read Docker's credentials");
    };
    let config = parse(file, &text).inspect_err(failed).ok()?;
    let counts = config != Config::default();
    tracing::debug!(file = %file.display(), counts, "looked for the node's credentials for registries");
    counts.then_some(config)
}

fn parse(file: &Path, text: &[u8]) -> Result<Config, serde_json::Error> {
    if file.ends_with(DOCKERCFG) {
        return Ok(Config { auths: Some(serde_json::from_slice(text)?), ..Config::default() });
    }
    let config: Config = serde_json::from_slice(text)?;
    if file.parent() != Some(Path::new(STARTED_IN)) {
        return Ok(config);
    }
    // Where a helper has them, `docker login` leaves entries without any: of no use here, they would hide other files.
    let has_credentials = |entry: &serde_json::Value| {
        let is_text = |key: &str| entry[key].as_str().is_some_and(|text| !text.is_empty());
        ["auth", "username", "identitytoken"].into_iter().any(is_text)
    };
    Ok(Config { auths: config.auths.filter(|auths| auths.values().any(has_credentials)), ..Config::default() })
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

/// Whether a process ends by then. One that has closed its stdout does so at once, or is up to something else.
fn ends(child: &mut Child, end: Instant) -> std::io::Result<bool> {
    while child.try_wait()?.is_none() {
        if Instant::now() >= end {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

fn run_helper(program: &str, server: &str, limit: Duration) -> Result<Option<RegistryCredentials>, String> {
    let end = Instant::now() + limit;
    let mut command = Command::new(program);
    if std::env::var_os("HOME").is_none() {
        command.envs(home().map(|home| ("HOME", home)));
    }
    let mut child = command
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
    let ended = received.is_ok() && ends(&mut child, end).unwrap_or(false);
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    let bytes =
        received.map_err(|_| format!("no answer within {} s", limit.as_secs()))?.map_err(|error| error.to_string())?;
    if !ended {
        return Err(format!("it answered and did not end within {} s", limit.as_secs()));
    }
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

    use longshore_core::credentials::parse_image;

    fn basic(username: &str, password: &str) -> Option<RegistryCredentials> {
        Some(RegistryCredentials::Basic { username: username.to_owned(), password: password.to_owned() })
    }

    fn ask(folder: &Path, image: &str) -> Vec<RegistryCredentials> {
        config_credentials(
            &["absent/config.json", "config.json"].map(|file| folder.join(file)),
            &parse_image(image).unwrap(),
        )
    }

    #[test]
    fn entries_by_registry() {
        let folder = tempfile::tempdir().unwrap();
        let ask = |image: &str| ask(folder.path(), image);
        assert_eq!(ask("foo.io/a"), []);
        let config = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"aHViOng="},"foo.io:5000":{"auth":"Zm9vOng="}},
            "credHelpers":{"bar.io":"longshore-no-such-helper"},"HttpHeaders":{}}"#;
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        assert_eq!(ask("nginx"), basic("hub", "x").into_iter().collect::<Vec<_>>());
        assert_eq!(ask("foo.io:5000/a/b:1"), basic("foo", "x").into_iter().collect::<Vec<_>>());
        assert_eq!(ask("foo.io/a"), []);
        assert_eq!(ask("bar.io/a"), []);
        std::fs::write(folder.path().join("config.json"), "{").unwrap();
        assert_eq!(ask("nginx"), []);
    }

    #[test]
    fn entries_with_paths_and_globs_as_in_a_pull_secret() {
        let folder = tempfile::tempdir().unwrap();
        let entry = |user: &str| serde_json::json!({"username": user, "password": "x"});
        let auths = serde_json::json!({"auths": {
            "registry.example.com": entry("all"), "registry.example.com/team": entry("team"), "*.example.com": entry("any"),
        }});
        std::fs::write(folder.path().join("config.json"), auths.to_string()).unwrap();
        let users = |image: &str| {
            let found = ask(folder.path(), image).into_iter().map(|found| match found {
                RegistryCredentials::Basic { username, .. } => username,
                RegistryCredentials::IdentityToken(token) => token,
            });
            found.collect::<Vec<_>>()
        };
        assert_eq!(users("registry.example.com/team/app:1"), ["team", "all", "any"]);
        assert_eq!(users("registry.example.com/other/app"), ["all", "any"]);
        assert_eq!(users("mirror.example.com/app"), ["any"]);
        assert!(users("example.com/app").is_empty());
    }

    #[test]
    fn the_first_file_that_can_be_read_counts() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["broken.json", "first.json", "config.json", ".dockercfg"].map(|name| folder.path().join(name));
        let auths = r#"{"foo.io":{"auth":"Zm9vOng="}}"#;
        for (file, text) in files.iter().zip(["{", r#"{"auths":{}}"#, &format!(r#"{{"auths":{auths}}}"#), auths]) {
            std::fs::write(file, text).unwrap();
        }
        let image = parse_image("foo.io/a").unwrap();
        assert_eq!(config_credentials(&files, &image), []);
        assert_eq!(config_credentials(&files[2..], &image).len(), 1);
        assert_eq!(config_credentials(&files[3..], &image).len(), 1);
    }

    #[test]
    fn a_file_that_is_not_about_credentials_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["other.json", "config.json"].map(|name| folder.path().join(name));
        std::fs::write(&files[0], r#"{"port":8080,"HttpHeaders":{}}"#).unwrap();
        std::fs::write(&files[1], r#"{"auths":{"foo.io":{"auth":"Zm9vOng="}}}"#).unwrap();
        assert_eq!(config_credentials(&files, &parse_image("foo.io/a").unwrap()).len(), 1);
    }

    #[test]
    fn no_helper_is_run_for_the_folder_that_the_agent_was_started_in() {
        let text = br#"{"auths":{"foo.io":{"auth":"Zm9vOng="}},"credsStore":"s","credHelpers":{"foo.io":"h"}}"#;
        let [own, started_in] = ["/own/config.json", "./config.json"].map(|file| parse(Path::new(file), text).unwrap());
        assert!(own.creds_store.is_some() && own.cred_helpers.is_some());
        assert_eq!(started_in, Config { auths: own.auths, ..Config::default() });
        // As `docker login` leaves it where a helper keeps what it is told.
        let kept = br#"{"auths":{"foo.io":{}},"credsStore":"s"}"#;
        assert_eq!(parse(Path::new("./config.json"), kept).unwrap(), Config::default(), "it hides no other file");
    }

    #[test]
    fn files_are_looked_for_where_the_kubelet_does() {
        let files = files_of(Some(Path::new("/own")), Some("/home/me/.docker".into()), Some("/home/me".into()));
        let new = ["/own", ".", "/home/me/.docker", "/.docker"].map(|folder| format!("{folder}/config.json"));
        let old = ["/own/.dockercfg", "./.dockercfg", "/home/me/.dockercfg", "/.dockercfg"].map(str::to_owned);
        assert_eq!(files, new.into_iter().chain(old).map(PathBuf::from).collect::<Vec<_>>());
    }

    #[test]
    fn a_service_without_a_home_finds_it() {
        let users =
            "root:x:0:0:root:/var/root:/bin/sh\nbad:x:1000\nme:x:1000:1000::/home/me:/bin/sh\nno:x:7:7:::/bin/sh\n";
        assert_eq!(home_of(users, 0), Some("/var/root".into()));
        assert_eq!(home_of(users, 1000), Some("/home/me".into()));
        assert_eq!((home_of(users, 7), home_of(users, 8), home_of("", 0)), (None, None, Some("/root".into())));
        let home = || Some(PathBuf::from("/home/me"));
        assert_eq!(docker_folder(None, home()), Some("/home/me/.docker".into()));
        assert_eq!(docker_folder(Some(OsString::new()), home()), Some("/home/me/.docker".into()));
        assert_eq!(docker_folder(Some("/etc/docker-login".into()), home()), Some("/etc/docker-login".into()));
        assert_eq!(docker_folder(None, None), None);
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
        let stays = run("echo x; exec sleep 1000 >&-", Duration::from_millis(200));
        assert!(stays.unwrap_err().contains(" within "));
    }
}
