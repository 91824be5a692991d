//! The kernel's messages, from `/dev/kmsg`: the port `KernelLog`.
//!
//! It must not understand them. A kernel that writes more than anyone can read costs a bounded share of a CPU, and some of
//! its messages.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::ports::kernel::{KernelLog, KernelLogError};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where the kernel gives its messages, one a read.
const KMSG: &str = "/dev/kmsg";
/// A record is never longer (`PRINTKRB_RECORD_MAX`, before 6.x `CONSOLE_EXT_LOG_MAX`).
const RECORD: usize = 16 << 10;
/// Messages read in a row before a pause, and the pause.
const AT_ONCE: u32 = 256;
const PAUSE: Duration = Duration::from_millis(100);

/// Reads the kernel's messages from now on, as cAdvisor's parser does. Older ones cannot be told apart by their time: the
/// kernel's clock of messages is none that processes can read, and drifts from those.
#[derive(Debug)]
pub struct KernelMessages {
    file: AsyncFd<OwnedFd>,
    /// Messages since the last pause.
    read: std::sync::Mutex<u32>,
}

impl KernelMessages {
    /// Opens `/dev/kmsg`. Must be called within the executor.
    pub fn open() -> std::io::Result<KernelMessages> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(Path::new(KMSG), flags, Mode::empty())?);
        rustix::fs::seek(&file, SeekFrom::End(0))?;
        // What the function without `unsafe` is deprecated for cannot be with an `OwnedFd`: another file behind the number.
        #[expect(deprecated)]
        let file = AsyncFd::with_interest(OwnedFd::from(file), Interest::READABLE)?;
        Ok(KernelMessages { file, read: std::sync::Mutex::new(0) })
    }

    /// Whether it is time for a pause.
    fn tired(&self) -> bool {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        *read += 1;
        if *read >= AT_ONCE {
            *read = 0;
        }
        *read == 0
    }
}

#[async_trait]
impl KernelLog for KernelMessages {
    async fn next(&self) -> Result<String, KernelLogError> {
        let failed = |error: std::io::Error| KernelLogError(format!("{KMSG}: {error}"));
        let mut buffer = vec![0; RECORD];
        loop {
            if self.tired() {
                tokio::time::sleep(PAUSE).await;
            }
            let mut ready = self.file.readable().await.map_err(failed)?;
            match ready.try_io(|file| Ok(rustix::io::read(file.get_ref(), buffer.as_mut_slice())?)) {
                // It was not readable after all: the guard forgets it and is waited for anew.
                Err(_) => continue,
                Ok(Ok(0)) => return Err(KernelLogError(format!("{KMSG} ended"))),
                Ok(Ok(length)) => {
                    let record = String::from_utf8_lossy(&buffer[..length.min(RECORD)]);
                    if let Some(message) = message(&record) {
                        return Ok(message.to_owned());
                    }
                }
                // Overwritten before they were read, or longer than they may be: the next read has the next one.
                Ok(Err(error)) if skipped(&error) => {}
                Ok(Err(error)) => return Err(failed(error)),
            }
        }
    }
}

fn skipped(error: &std::io::Error) -> bool {
    let errors = [Errno::PIPE, Errno::INVAL, Errno::INTR];
    errors.iter().any(|one| error.raw_os_error() == Some(one.raw_os_error()))
}

/// The text of a record, `priority,sequence,microseconds,flags[,…];text`, whose further lines begin with a space.
fn message(record: &str) -> Option<&str> {
    let (_, rest) = record.split_once(';')?;
    rest.lines().next()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_is_its_first_line() {
        let record = "6,339,5140900,-;NET: Registered PF_INET6\n SUBSYSTEM=net\n DEVICE=n1\n";
        assert_eq!(message(record), Some("NET: Registered PF_INET6"));
        assert_eq!(message("12,5,7,c,caller=T1;a;b\n"), Some("a;b"));
        assert_eq!(message("no head"), None);
    }

    proptest! {
        #[test]
        fn no_record_upsets_it(record in any::<String>()) {
            message(&record);
        }
    }

    /// Writing needs root; what is written comes back as a message of its own.
    #[tokio::test]
    async fn what_is_said_while_it_listens_is_heard_in_order() {
        let Ok(log) = KernelMessages::open() else { return };
        // Every container of a machine has the same kernel, and may have the same process IDs.
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let ours = format!("longshore-stats test {} {since} ", std::process::id());
        let said: Vec<String> = (0..300).map(|n| format!("{ours}{n}")).collect();
        for text in &said {
            // Of the lowest priority, which consoles do not print. Without its end a record stays open for more.
            if std::fs::write(KMSG, format!("<7>{text}\n")).is_err() {
                return;
            }
        }
        let listen = async {
            let mut heard = Vec::new();
            while heard.len() < said.len() {
                let text = log.next().await.unwrap();
                if text.starts_with(&ours) {
                    heard.push(text);
                }
            }
            heard
        };
        let heard = tokio::time::timeout(Duration::from_secs(30), listen).await.unwrap();
        assert_eq!(heard, said);
        // Nothing more is said: it waits, and does so without a read.
        let more = tokio::time::timeout(Duration::from_millis(50), async {
            while !log.next().await.unwrap().starts_with(&ours) {}
        });
        assert!(more.await.is_err());
    }
}
