//! The log: one line on stderr for a thing that happened, readable or JSON, as `-v` and `--logging-format` say.

use std::fmt::Debug;
use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::Level;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::LogFormat;
use crate::print::escape::{Keep, escaped};

/// Changes what is shown, once logging has started.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging. The first call holds.
pub(crate) fn start(verbosity: u8, format: LogFormat) {
    let (filter, handle) = reload::Layer::new(filter(verbosity));
    let to_stderr = fmt::layer().with_writer(std::io::stderr).with_target(verbosity >= 4);
    let layer = match format {
        LogFormat::Text => to_stderr.with_ansi(std::io::stderr().is_terminal()).fmt_fields(debug_fn(field)).boxed(),
        LogFormat::Json => to_stderr.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    // Only a second call in one process fails, and then the log goes on as it is.
    if tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// Writes a field of a line: whatever a container or a server said is one line, and steers no terminal.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    let text = format!("{value:?}");
    let text = escaped(&text, Keep::Nothing);
    match field.name() {
        // It comes first.
        "message" => write!(writer, "{text}"),
        // Where a line of the `log` crate is from, which its target says already.
        name if name.starts_with("log.") => Ok(()),
        name => write!(writer, " {name}={text}"),
    }
}

/// Shows what that level of `-v` shows from now on.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn set_verbosity(text: &str) -> Result<(), String> {
    let level = text.parse::<u8>().map_err(|_| format!("expected a whole number from 0 to 255, got {text:?}"))?;
    let handle = FILTER.get().ok_or("logging has not started")?;
    handle.reload(filter(level)).map_err(|error| error.to_string())
}

/// What a level of `-v` shows: 0–2 what happened, 3–5 why, 6 and more every step; libraries one stage later.
fn filter(verbosity: u8) -> Targets {
    let (ours, others) = match verbosity {
        0..=2 => (Level::INFO, LevelFilter::WARN),
        3..=5 => (Level::DEBUG, LevelFilter::INFO),
        6..=7 => (Level::TRACE, LevelFilter::INFO),
        8..=9 => (Level::TRACE, LevelFilter::DEBUG),
        _ => (Level::TRACE, LevelFilter::TRACE),
    };
    Targets::new().with_default(others).with_target("longshore", ours)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_container_says_is_one_line_that_steers_nothing() {
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = fmt::layer().with_writer(move || writer.clone()).with_ansi(false).without_time();
        let subscriber = tracing_subscriber::registry().with(layer.with_target(false).fmt_fields(debug_fn(field)));
        let said = "\x1b[2Jno\rreally\n2026-01-01 ERROR forged";
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(pod = "ns/p", error = %said, count = 2, "probe: {said}");
        });
        let shown = "^[[2Jno\\rreally\\n2026-01-01 ERROR forged";
        let expected = format!(" WARN probe: {shown} pod=\"ns/p\" error={shown} count=2\n");
        assert_eq!(String::from_utf8(kept.0.lock().unwrap().clone()).unwrap(), expected);
    }

    #[test]
    fn levels() {
        assert!(filter(2).would_enable("longshore_docker::events", &Level::INFO));
        assert!(!filter(2).would_enable("longshore_docker::events", &Level::DEBUG));
        assert!(!filter(2).would_enable("bollard", &Level::INFO));
        assert!(filter(4).would_enable("longshore", &Level::DEBUG));
        assert!(filter(10).would_enable("hyper", &Level::TRACE));
    }
}
