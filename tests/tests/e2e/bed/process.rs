//! Programs that tests run: with input, with a time limit, and ended with their test. Must not know what they are.

use std::{
    io::{Read, Write},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::limit;

/// Longer than any program takes that a test waits for.
const LIMIT: Duration = Duration::from_secs(180);

/// A process that ends with its test.
pub(crate) struct Ending(pub(crate) Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program with that input to its end, and gives what it printed.
pub(crate) fn output(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Ending(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
    let (mut stdin, input) = (child.0.stdin.take().unwrap(), input.to_owned());
    // A process that does not read its input to the end is no error here.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let (stdout, stderr) = (gather(child.0.stdout.take().unwrap()), gather(child.0.stderr.take().unwrap()));
    let deadline = Instant::now() + limit(LIMIT);
    let status = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "{command:?} does not end within {:?}", limit(LIMIT));
        thread::sleep(Duration::from_millis(5));
    };
    writer.join().unwrap();
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn gather(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        // What was read before an error counts all the same.
        let _ = from.read_to_end(&mut all);
        all
    })
}
