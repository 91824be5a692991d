//! kubectl as people use it: with input, on a terminal, forwarding ports; the cluster's own and an old one. Must not know
//! what tests look for.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, TcpStream},
    path::PathBuf,
    process::{ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use super::{
    cluster::{served, until},
    node::Node,
    process::{self, Ending},
};

/// kubectl in a node's namespace.
pub(crate) struct Kubectl<'a> {
    node: &'a Node,
    program: Option<PathBuf>,
}

impl<'a> Kubectl<'a> {
    /// The cluster's.
    pub(crate) fn new(node: &'a Node) -> Kubectl<'a> {
        node.wait_server();
        Kubectl { node, program: None }
    }

    /// Debian's of 1.20, which knows SPDY alone; `None`, and a line that says so, where it was not fetched.
    pub(crate) fn old(node: &'a Node) -> Option<Kubectl<'a>> {
        let Some(program) = std::env::var_os("LONGSHORE_TEST_OLD_KUBECTL") else {
            crate::bed::skip("LONGSHORE_TEST_OLD_KUBECTL is not set: `cargo xtask test` fetches an old kubectl");
            return None;
        };
        node.wait_server();
        Some(Kubectl { node, program: Some(program.into()) })
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.node.cluster.kubectl_command();
        if let Some(program) = &self.program {
            let mut other = Command::new(program);
            other.args(command.get_args());
            // The new one's cache is not its to read.
            other.env("HOME", &self.node.folder);
            command = other;
        }
        command.arg("--namespace").arg(&self.node.name).args(arguments);
        command
    }

    /// Exit code, stdout and stderr of a kubectl that gets `input`.
    pub(crate) fn run(&self, arguments: &[&str], input: &[u8]) -> (i32, Vec<u8>, String) {
        let output = served(|| process::output(&mut self.command(arguments), input));
        (output.status.code().unwrap_or(-1), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// What a kubectl that must succeed prints.
    pub(crate) fn said(&self, arguments: &[&str]) -> String {
        self.node.told(|| {
            let (code, out, err) = self.run(arguments, b"");
            assert_eq!(code, 0, "kubectl {arguments:?}: {}{err}", String::from_utf8_lossy(&out));
            String::from_utf8(out).unwrap()
        })
    }

    /// Forwards a port of this machine to a pod's.
    pub(crate) fn forward(&self, pod: &str, port: u16) -> Forward {
        let told = self.node.folder.join(format!("port-forward-{port}"));
        let log = fs::File::create(&told).unwrap();
        let mut command = self.command(&["port-forward", pod, &format!(":{port}")]);
        let mut child = Ending(command.stdout(Stdio::piped()).stderr(log).spawn().unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap());
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        // It ends when nobody reads what it says.
        let talk = thread::spawn(move || drop(std::io::copy(&mut lines, &mut std::io::sink())));
        let port =
            first.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next()?.parse().ok());
        let port = port.unwrap_or_else(|| panic!("{first:?} names no port; {}", fs::read_to_string(&told).unwrap()));
        Forward { child, talk: Some(talk), port, told }
    }

    /// A kubectl on a terminal of that size, rows and columns.
    pub(crate) fn terminal(&self, arguments: &[&str], (rows, columns): (u16, u16)) -> Terminal {
        let plain = self.command(arguments);
        let words = std::iter::once(plain.get_program()).chain(plain.get_args());
        let line = words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''")));
        let line = line.collect::<Vec<_>>().join(" ");
        let named = self.node.folder.join("tty");
        let _ = fs::remove_file(&named);
        let mut script = Command::new("script");
        script.arg("-qefc").arg(format!("tty > {}; stty rows {rows} cols {columns}; exec {line}", named.display()));
        script.arg("/dev/null").envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut child = Ending(child);
        let (stdin, mut stdout) = (child.0.stdin.take(), child.0.stdout.take().unwrap());
        let shown = Arc::new(Mutex::new(Vec::new()));
        let kept = shown.clone();
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut piece) {
                kept.lock().unwrap().extend_from_slice(&piece[..length]);
            }
        });
        let tty = until("the terminal has a name", || {
            fs::read_to_string(&named).ok().filter(|name| name.ends_with('\n')).map(|name| name.trim().to_owned())
        });
        Terminal { child, stdin, shown, tty }
    }
}

/// A forwarded port.
pub(crate) struct Forward {
    child: Ending,
    talk: Option<thread::JoinHandle<()>>,
    pub(crate) port: u16,
    told: PathBuf,
}

impl Forward {
    /// The answer to a request of HTTP/1.0, up to its end.
    pub(crate) fn get(&self, path: &str) -> std::io::Result<Vec<u8>> {
        get(self.port, path)
    }

    /// What kubectl complains of.
    pub(crate) fn complaints(&self) -> String {
        fs::read_to_string(&self.told).unwrap()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.0.kill();
        if let Some(talk) = self.talk.take() {
            let _ = talk.join();
        }
    }
}

/// The answer to a request of HTTP/1.0 at a port of this machine.
pub(crate) fn get(port: u16, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((IpAddr::V4(Ipv4Addr::LOCALHOST), port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// A person's terminal with a program on it.
pub(crate) struct Terminal {
    child: Ending,
    stdin: Option<ChildStdin>,
    shown: Arc<Mutex<Vec<u8>>>,
    tty: String,
}

impl Terminal {
    /// Types.
    pub(crate) fn keys(&mut self, keys: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(keys.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// All that was shown so far.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until something was shown.
    pub(crate) fn wait(&self, part: &str) {
        let seen = std::panic::catch_unwind(|| {
            until(&format!("{part:?} is shown"), || self.shown().contains(part).then_some(()))
        });
        assert!(seen.is_ok(), "{part:?} is never shown: {:?}", self.shown());
    }

    /// Changes its size, as a person does who pulls at its window.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let mut stty = Command::new("stty");
        stty.args(["-F", &self.tty, "rows", &rows.to_string(), "cols", &columns.to_string()]);
        assert!(stty.status().unwrap().success());
    }

    /// Waits for the program's end; its exit code.
    pub(crate) fn end(mut self) -> i32 {
        let status = until("the program on the terminal ends", || self.child.0.try_wait().unwrap());
        status.code().unwrap_or(-1)
    }
}
