//! One call of a plugin: its program found, run with bounds on time and output, and ended with all that it started.
//! Must not know what is asked of it. As `pkg/invoke` of libcni.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// A result is a few KiB.
const OUTPUT_LIMIT: usize = 1 << 20;
/// Of what is said besides, so much is kept.
const SAID_LIMIT: usize = 16 << 10;
/// How long output may come after the plugin ended: something that it started holds it open.
const AFTER_END: Duration = Duration::from_secs(1);
/// A program that is being written cannot be started: tries, and the pause between them.
const BUSY: (u32, Duration) = (5, Duration::from_secs(1));

/// What is asked of a plugin.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Its program.
    pub(crate) program: PathBuf,
    /// `CNI_…`, on top of the agent's own environment.
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// Its configuration.
    pub(crate) input: Vec<u8>,
    /// How long it may take.
    pub(crate) limit: Duration,
}

/// A plugin's program in the folders, in their order.
pub(crate) fn find(kind: &str, folders: &[PathBuf]) -> Result<PathBuf, String> {
    let found = folders.iter().map(|folder| folder.join(kind)).find(|path| path.is_file());
    let shown = || folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
    // libcni's words, and where to put it.
    found.ok_or_else(|| format!("failed to find plugin {kind:?} in path [{}] (--cni-bin-dir)", shown()))
}

/// Calls a plugin and gives its output. The error is what the plugin said, or what went wrong.
pub(crate) async fn run(call: &Call) -> Result<Vec<u8>, String> {
    let mut child = start(&call.program, call).await?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let end = || {
        if let Some(group) = group {
            // It may have ended just now.
            let _ = kill_process_group(group, Signal::KILL);
        }
    };
    let outcome = tokio::time::timeout(call.limit, talk(&mut child, &call.input)).await;
    let Ok(outcome) = outcome else {
        end();
        let _ = child.wait().await;
        return Err(format!("it did not end within {} s and was killed", call.limit.as_secs_f64().ceil()));
    };
    let Talked { status, output, said } = match outcome {
        Ok(talked) => talked,
        Err(message) => {
            end();
            let _ = child.wait().await;
            return Err(message);
        }
    };
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    if status.success() {
        if !said.is_empty() {
            tracing::debug!(plugin = %call.program.display(), "{said}");
        }
        return Ok(output);
    }
    Err(refusal(&output, &said, &status.to_string()))
}

async fn start(program: &Path, call: &Call) -> Result<Child, String> {
    let mut tries = 0;
    loop {
        let mut command = Command::new(program);
        command
            .envs(call.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        match command.spawn() {
            Ok(child) => return Ok(child),
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && tries < BUSY.0 => {
                tries += 1;
                tokio::time::sleep(BUSY.1).await;
            }
            Err(error) => return Err(format!("{} cannot be started: {error}", program.display())),
        }
    }
}

struct Talked {
    status: std::process::ExitStatus,
    output: Vec<u8>,
    said: Vec<u8>,
}

async fn talk(child: &mut Child, input: &[u8]) -> Result<Talked, String> {
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("it has no stdin, stdout or stderr".to_owned());
    };
    let (mut output, mut said) = (Vec::new(), Vec::new());
    let status = {
        let exchange = async {
            tokio::join!(
                async {
                    // One that does not read its input may still answer.
                    let _ = stdin.write_all(input).await;
                    drop(stdin);
                },
                gather(stdout, &mut output, OUTPUT_LIMIT, true),
                gather(stderr, &mut said, SAID_LIMIT, false),
            );
        };
        tokio::pin!(exchange);
        // Cancel safe: what was read stays in the buffers.
        let ended = tokio::select! {
            () = &mut exchange => None,
            status = child.wait() => Some(status),
        };
        match ended {
            Some(status) => {
                // It is over, whoever holds its output open.
                let _ = tokio::time::timeout(AFTER_END, exchange).await;
                status
            }
            None => child.wait().await,
        }
    };
    let status = status.map_err(|error| error.to_string())?;
    if output.len() > OUTPUT_LIMIT {
        return Err(format!("it wrote more than {} KiB", OUTPUT_LIMIT >> 10));
    }
    Ok(Talked { status, output, said })
}

/// Reads to the end and keeps one byte more than `limit` at most; a `strict` reader stops there, which ends the writer.
async fn gather(mut from: impl AsyncRead + Unpin, into: &mut Vec<u8>, limit: usize, strict: bool) {
    let mut chunk = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        let room = (limit + 1).saturating_sub(into.len());
        into.extend_from_slice(&chunk[..count.min(room)]);
        if strict && into.len() > limit {
            return;
        }
    }
}

/// The specification's error object, or whatever was said.
fn refusal(output: &[u8], said: &str, status: &str) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        msg: String,
        #[serde(default)]
        details: String,
    }
    let text = String::from_utf8_lossy(&output[..output.len().min(SAID_LIMIT)]).trim().to_owned();
    match serde_json::from_slice::<Refusal>(output) {
        Ok(Refusal { msg, details }) if !msg.is_empty() => {
            if details.is_empty() {
                msg
            } else {
                format!("{msg}; {details}")
            }
        }
        _ if !text.is_empty() => format!("netplugin failed: {text:?}: {status}"),
        _ if !said.is_empty() => format!("netplugin failed: {said:?}: {status}"),
        _ => format!("netplugin failed with no error message: {status}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    fn plugin(folder: &Path, script: &str) -> Call {
        let program = folder.join("plugin");
        std::fs::write(&program, format!("#!/bin/sh\n[ -n \"$PROBE\" ] && exit\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Another test's thread may fork while it is open for writing, which makes it busy: wait until it runs.
        let end = Instant::now() + Duration::from_secs(30);
        while let Err(error) = std::process::Command::new(&program).env("PROBE", "1").status() {
            assert!(Instant::now() < end, "{}: {error}", program.display());
            std::thread::yield_now();
        }
        let environment = vec![("CNI_COMMAND", "ADD".into())];
        Call { program, environment, input: b"the input".to_vec(), limit: Duration::from_secs(10) }
    }

    async fn of(script: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let output = run(&plugin(folder.path(), script)).await?;
        Ok(String::from_utf8(output).unwrap())
    }

    #[tokio::test]
    async fn input_environment_and_output() {
        assert_eq!(of("echo $CNI_COMMAND $(cat); echo noise >&2").await.unwrap(), "ADD the input\n");
        assert_eq!(of("echo unread").await.unwrap(), "unread\n");
    }

    #[tokio::test]
    async fn failures_are_told_in_its_words() {
        let error = of(r#"echo '{"code": 11, "msg": "try later", "details": "why"}'; exit 1"#).await.unwrap_err();
        assert_eq!(error, "try later; why");
        assert!(of("echo broken; exit 1").await.unwrap_err().contains("\"broken\": exit status: 1"));
        assert!(of("echo bad >&2; exit 3").await.unwrap_err().contains("\"bad\": exit status: 3"));
        assert!(of("exit 3").await.unwrap_err().contains("no error message: exit status: 3"));
        let absent = Call { program: "/nonexistent".into(), ..plugin(tempfile::tempdir().unwrap().path(), "") };
        assert!(run(&absent).await.unwrap_err().contains("cannot be started"));
        assert!(find("x", &["/a".into(), "/b".into()]).unwrap_err().contains("\"x\" in path [/a, /b] (--cni-bin-dir)"));
    }

    #[tokio::test]
    async fn too_much_and_too_long() {
        let error = of("head -c 3000000 /dev/zero; echo >&2").await.unwrap_err();
        assert!(error.contains("more than 1024 KiB"), "{error}");
        // Much that is said besides is no fault.
        assert_eq!(of("head -c 3000000 /dev/zero >&2; echo done").await.unwrap(), "done\n");
        let folder = tempfile::tempdir().unwrap();
        let started = folder.path().join("started");
        let script = format!("sleep 1000 & echo $! > {}; wait", started.display());
        let mut call = Call { limit: Duration::from_millis(300), ..plugin(folder.path(), &script) };
        // On a busy machine it may be killed before it has started anything.
        let child = loop {
            let begun = Instant::now();
            assert!(run(&call).await.unwrap_err().contains("was killed"));
            assert!(begun.elapsed() < call.limit + Duration::from_secs(30));
            match std::fs::read_to_string(&started) {
                Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
                _ => call.limit *= 2,
            }
        };
        let end = Instant::now() + Duration::from_secs(30);
        let runs = || std::fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|text| !text.contains(") Z "));
        while runs() {
            assert!(Instant::now() < end, "what it started was not killed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn what_it_leaves_running_is_not_waited_for() {
        let begun = Instant::now();
        assert_eq!(of("sleep 20 & echo done").await.unwrap(), "done\n");
        assert!(begun.elapsed() < Duration::from_secs(15));
    }
}
