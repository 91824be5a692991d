//! Writing to the terminal, so that a reader who left (`| head`) is no error.

use std::io::Write;

/// Writes text to stdout and sends it off.
pub(super) fn print(text: &str) -> std::io::Result<()> {
    write(text.as_bytes())
}

/// Writes bytes to stdout and sends them off.
pub(super) fn write(bytes: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes a line to stderr; what cannot be written there has no better place.
pub(super) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Whether an error says that the reader of our output left.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    // Only an error of stdout is bare; one of the socket comes with its story.
    error.downcast_ref::<std::io::Error>().is_some_and(broken)
}
