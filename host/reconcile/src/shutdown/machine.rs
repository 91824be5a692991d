//! The machine's own word on whether it goes down, followed again whenever the line is lost.

use std::sync::Arc;
use std::time::Duration;

use longshore_core::ports::shutdown::{EndWatch, MachineEnd, ShutdownError};
use longshore_core::shutdown;
use tokio::time::Instant;

use super::Options;

/// What the machine is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    GoesDown,
    StaysUp,
    /// It cannot be asked now, and nothing says that it goes down.
    Unknown,
}

/// See the module.
pub(super) struct Machine {
    port: Option<Arc<dyn MachineEnd>>,
    watch: Option<Box<dyn EndWatch>>,
    needed: Duration,
    retry: (Duration, Duration),
    wait: Duration,
    again: Instant,
    word: Option<Word>,
    said: Option<ShutdownError>,
}

impl Machine {
    pub(super) fn new(port: Option<Arc<dyn MachineEnd>>, options: &Options) -> Self {
        Machine {
            port,
            watch: None,
            needed: shutdown::total(&options.steps),
            retry: options.retry,
            wait: options.retry.0,
            again: Instant::now(),
            word: None,
            said: None,
        }
    }

    /// Its next word, which differs from the one before. Cancel safe: a call to the port that is dropped is made again.
    pub(super) async fn next(&mut self) -> Word {
        loop {
            let word = self.look().await;
            if self.word != Some(word) {
                self.word = Some(word);
                return word;
            }
        }
    }

    async fn look(&mut self) -> Word {
        let Some(port) = self.port.clone() else {
            if self.word.is_none() {
                return Word::Unknown;
            }
            return std::future::pending().await;
        };
        let watch = match &mut self.watch {
            Some(watch) => watch,
            None => {
                tokio::time::sleep_until(self.again).await;
                match port.follow(self.needed).await {
                    Ok(watch) => {
                        tracing::info!(
                            "the machine waits for pods to end before it goes down, {:?} at most",
                            self.needed
                        );
                        (self.wait, self.said) = (self.retry.0, None);
                        self.watch.insert(watch)
                    }
                    Err(error) => {
                        self.failed(error);
                        // One that goes down does not stay up for that it cannot be asked any more.
                        return self.word.filter(|word| *word != Word::StaysUp).unwrap_or(Word::Unknown);
                    }
                }
            }
        };
        match watch.next().await {
            Some(true) => Word::GoesDown,
            Some(false) => Word::StaysUp,
            None => {
                self.watch = None;
                self.again = Instant::now() + self.retry.0;
                self.word.unwrap_or(Word::Unknown)
            }
        }
    }

    fn failed(&mut self, error: ShutdownError) {
        if self.said.as_ref() != Some(&error) {
            tracing::warn!("pods will not be ended in order when the machine goes down: {error}; trying again");
        }
        self.said = Some(error);
        self.again = Instant::now() + self.wait;
        self.wait = (self.wait * 2).min(self.retry.1);
    }

    /// Has the machine wait again.
    pub(super) async fn hold(&mut self) {
        if let Some(watch) = &mut self.watch
            && let Err(error) = watch.hold().await
        {
            self.watch = None;
            self.failed(error);
        }
    }

    /// Lets it go down, if it is about to.
    pub(super) fn let_go(&mut self) {
        if self.word == Some(Word::GoesDown)
            && let Some(watch) = &mut self.watch
        {
            watch.let_go();
        }
    }
}
