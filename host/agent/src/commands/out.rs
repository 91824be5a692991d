//! Writing to the terminal, so that a reader who left (`| head`) is no error, and nothing that a pod said steers it.

use std::io::{BufWriter, Stdout, Write};

use crate::print::escape::{Keep, escaped};

/// Writes text to stdout and sends it off; its control characters are shown, not meant.
pub(super) fn print(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(escaped(text, Keep::Lines).as_bytes())?;
    stdout.flush()
}

/// Stdout for bytes as they are: what is written is sent off with much more, or when it is flushed or dropped.
pub(super) fn stream() -> BufWriter<Stdout> {
    BufWriter::with_capacity(64 << 10, std::io::stdout())
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
