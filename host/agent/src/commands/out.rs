//! Writing to the terminal, so that a reader who left (`| head`) is no error, and nothing that a pod said steers it.

use std::io::Write;

use crate::print::escape::{Keep, escaped};

/// Writes text to stdout and sends it off; its control characters are shown, not meant.
pub(super) fn print(text: &str) -> std::io::Result<()> {
    write(escaped(text, Keep::Lines).as_bytes())
}

/// Writes bytes to stdout as they are, and sends them off.
pub(super) fn write(bytes: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes a line to stderr as [`print`] does to stdout; what cannot be written there has no better place.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", escaped(text, Keep::Lines));
}

/// Whether an error says that the reader of our output left.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    // Only an error of stdout is bare; one of the socket comes with its story.
    error.downcast_ref::<std::io::Error>().is_some_and(broken)
}
