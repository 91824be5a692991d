//! What scripts and systemd rely on: exit codes, and which stream says what. No Docker, no agent.
#![allow(clippy::unwrap_used)]

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

fn longshore(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
    command.args(arguments).env_remove("DOCKER_HOST").output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn bad_configuration_is_78_and_names_every_problem() {
    let output = longshore(&["--max-pods=many", "--register-node", "--docker-endpoint=nowhere"]);
    assert_eq!(output.status.code(), Some(78));
    let said = stderr(&output);
    assert!(said.contains("--max-pods") && said.contains("register-node") && said.contains("--docker-endpoint"));
    assert_eq!(longshore(&["--no-such-flag"]).status.code(), Some(78));
    assert_eq!(longshore(&["run", "--config=/nowhere/kubelet.yaml"]).status.code(), Some(78));
}

#[test]
fn a_state_key_that_cannot_be_used_is_78_and_says_how_to_make_one() {
    let folder = tempfile::tempdir().unwrap();
    let root = format!("--root-dir={}", folder.path().join("r").display());
    let file = folder.path().join("key");
    let key = format!("--state-key-file={}", file.display());
    for content in [None, Some("short")] {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let output = longshore(&["run", &root, &key, "--api-servers=https://127.0.0.1:1"]);
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        assert!(stderr(&output).contains("--state-key-file") && stderr(&output).contains("openssl rand"), "{output:?}");
    }
    assert!(!folder.path().join("r").exists(), "nothing was begun");
}

#[test]
fn config_check_is_78_for_a_bad_file_and_0_for_a_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubelet.yaml");
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    std::fs::write(&file, format!("{head}maxPods: 3\n")).unwrap();
    assert_eq!(longshore(&["config", "check", file.to_str().unwrap()]).status.code(), Some(0));
    std::fs::write(&file, format!("{head}maxPods: three\n")).unwrap();
    let output = longshore(&["config", "check", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stdout).contains("kubelet.yaml:3: maxPods"));
    std::fs::write(&file, "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a}]}\n").unwrap();
    let output = longshore(&["config", "check", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stdout).contains("image"), "{output:?}");
}

#[test]
fn config_check_reads_what_says_no_configuration_as_a_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, text: Option<&str>| {
        let file = folder.path().join(name);
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let output = longshore(&["config", "check", file.to_str().unwrap()]);
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\n";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a, image: i}]}\n";
    let (code, said) = check("two.yaml", Some(&format!("{map}---\n{pod}---\n")));
    assert!(code == 0 && said.ends_with("two.yaml: ok\n"), "{said}");
    let (code, said) = check("broken.yaml", Some("kind: [\n"));
    assert!(code == 78 && said.starts_with(&format!("error: {}", folder.path().display())), "{said}");
    // A configuration is one, also where it cannot be read.
    let (code, said) = check("kubelet.yaml", Some("kind: KubeletConfiguration\nmaxPods: 3\n---\n{\n"));
    assert!(code == 78 && !said.contains("from_str") && !said.contains("Pod"), "{said}");
    let (code, said) = check("nosuch", None);
    assert!(code == 78 && said.ends_with("nosuch: no such file or folder\n"), "{said}");
}

#[test]
fn an_agent_that_does_not_run_is_1_and_says_how_to_start_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_str().unwrap();
    for command in [&["get", "pods"][..], &["describe", "x"], &["logs", "x"], &["why", "x"]] {
        let output = longshore(&[command, &["--root-dir", root]].concat());
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let said = stderr(&output);
        assert!(said.contains("longshore.sock") && said.contains("longshore run --root-dir"), "{said}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(longshore(&["version", "--root-dir", root]).status.code(), Some(0));
}

#[test]
fn a_docker_that_may_not_be_asked_is_1_and_says_who_may() {
    // Only root can be somebody else.
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return;
    }
    // Where the program was built not everybody may look.
    let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir_in("/tmp").unwrap();
    let program = folder.path().join("longshore");
    std::fs::copy(env!("CARGO_BIN_EXE_longshore"), &program).unwrap();
    let socket = folder.path().join("docker.sock");
    let _docker = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, Permissions::from_mode(0o660)).unwrap();
    let mut command = Command::new(&program);
    command.arg("doctor").arg(format!("--root-dir={}", folder.path().join("r").display()));
    command.arg(format!("--docker-endpoint=unix://{}", socket.display()));
    let output = command.uid(65534).gid(65534).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said.lines().find(|line| line.starts_with("FAIL  Docker ")).unwrap();
    let advice = "permission denied: run as root, or as a member of the group docker";
    assert!(line.contains(socket.to_str().unwrap()) && line.ends_with(advice), "{said}");
    assert!(!said.contains("start Docker"), "it runs: {said}");
    // So with the agent: nothing is known of it.
    let closed = folder.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let closed = format!("--root-dir={}", closed.display());
    let ask = |command: &str| Command::new(&program).args([command, &closed]).uid(65534).gid(65534).output().unwrap();
    let output = ask("plan");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("only root may ask: run this as root"), "{output:?}");
    let said = String::from_utf8_lossy(&ask("doctor").stdout).into_owned();
    assert!(said.contains("only root may ask") && !said.contains("systemctl start longshore"), "{said}");
}

#[test]
fn help_and_completions_are_0() {
    for arguments in [&["--help"][..], &["--version"], &["get", "--help"], &["completion", "zsh"]] {
        let output = longshore(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty());
    }
}

#[test]
fn plugins_are_compiled_apart() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    assert_eq!(longshore(&["compile-plugins", cache.to_str().unwrap()]).status.code(), Some(0));
    assert!(std::fs::read_dir(&cache).unwrap().count() >= 4);
}
