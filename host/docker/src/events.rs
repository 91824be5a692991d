//! The daemon's events about things of ours, as one stream that never ends.
//!
//! A stream begins with what happened since just before it was asked for, so nothing is lost in between. When it
//! breaks, it is opened anew, with growing pauses, and [`RuntimeEvent::Resync`] says that something may have been
//! lost: a daemon that was restarted does not remember. A daemon that stalls is found out by pings. It must not look
//! at containers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use longshore_core::labels;
use longshore_core::pod::PodId;
use longshore_core::ports::runtime::{RuntimeChange, RuntimeEvent};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::connection::{ASK, filters};
use crate::docker::Docker;
use crate::fault::Fault;
use crate::wire;

/// Events that wait for a slow reader; then Docker's own buffer fills.
const BUFFER: usize = 256;
/// Between two tries to open a stream.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// How often it is checked that the daemon is alive, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(10));
/// An event is a few hundred bytes, and a few KiB with a pod's annotations. One that is longer is passed over, up to its end.
const LINE_LIMIT: usize = 1 << 20;
/// So much of one without end: the stream is opened anew.
const PASSED_LIMIT: usize = 64 << 20;
/// What we hear of. Execs, of which probes make many, are left out.
const HEARD: [&str; 9] = ["start", "restart", "die", "destroy", "pause", "unpause", "rename", "update", "oom"];

impl Docker {
    pub(crate) fn watch(self) -> BoxStream<'static, RuntimeEvent> {
        let (sender, receiver) = mpsc::channel(BUFFER);
        let begin = since_epoch();
        tokio::spawn(async move {
            let watcher = Watcher { docker: self, sender };
            watcher.run(begin).await;
        });
        stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|event| (event, receiver)) })
            .boxed()
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

struct Watcher {
    docker: Docker,
    sender: mpsc::Sender<RuntimeEvent>,
}

/// Why a stream is over: nobody listens any more.
struct Unheard;

impl Watcher {
    async fn run(self, begin: Duration) {
        let mut since = begin;
        let mut pause = PAUSES.0;
        let mut lost = false;
        loop {
            let opened = tokio::select! {
                opened = self.open(since) => opened,
                () = self.sender.closed() => return,
            };
            match opened {
                Ok(body) => {
                    self.docker.known().stream_up();
                    let up = Instant::now();
                    let ended = self.follow(body, lost).await;
                    self.docker.known().stream_down();
                    match ended {
                        Err(Unheard) => return,
                        Ok(reason) => tracing::warn!(%reason, "Docker's event stream broke, opening it again"),
                    }
                    // The daemon may be another one by now, of another version.
                    self.docker.connection().forget_session();
                    if up.elapsed() > PAUSES.1 {
                        pause = PAUSES.0;
                    }
                }
                Err(fault) if !lost => tracing::warn!(%fault, "cannot watch Docker's events, trying again"),
                Err(fault) => tracing::debug!(%fault, "cannot watch Docker's events, trying again"),
            }
            lost = true;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.sender.closed() => return,
            }
            pause = (pause * 2).min(PAUSES.1);
            since = since_epoch();
        }
    }

    async fn open(&self, since: Duration) -> Result<Incoming, Fault> {
        let label = [format!("{}={}", labels::ROOT, self.docker.root_id())];
        let heard = HEARD.map(str::to_owned);
        let filters = filters(&[("type", &["container".to_owned()]), ("label", &label), ("event", &heard)]);
        let path = format!("/events?since={}.{:09}&filters={filters}", since.as_secs(), since.subsec_nanos());
        self.docker.connection().open(ASK, &path).await
    }

    /// Passes events on until the stream breaks, and tells why it did.
    async fn follow(&self, mut body: Incoming, lost: bool) -> Result<String, Unheard> {
        if lost {
            self.tell(RuntimeEvent::Resync).await?;
        }
        let mut line = BytesMut::new();
        // Bytes of an event that is too long, until its end comes.
        let mut passed = 0;
        let mut next_ping = Instant::now() + PING.0;
        loop {
            // Reading a frame and sleeping are both safe to give up half-way.
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = tokio::time::sleep_until(next_ping) => {
                    next_ping = Instant::now() + PING.0;
                    match self.docker.connection().ping(PING.1).await {
                        Ok(()) => continue,
                        Err(fault) => return Ok(fault.to_string()),
                    }
                }
                () = self.sender.closed() => return Err(Unheard),
            };
            let mut data = match frame {
                None => return Ok("the daemon closed it".to_owned()),
                Some(Err(error)) => return Ok(error.to_string()),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
                let last = data.split_to(end + 1);
                if std::mem::take(&mut passed) == 0 {
                    line.extend_from_slice(&last);
                    self.hear(&line.split()).await?;
                }
            }
            if passed > 0 {
                passed += data.len();
                if passed > PASSED_LIMIT {
                    return Ok("an event without end".to_owned());
                }
                continue;
            }
            line.extend_from_slice(&data);
            if line.len() > LINE_LIMIT {
                passed = line.len();
                line = BytesMut::new();
                tracing::warn!("an event of Docker's is passed over: it has more than {LINE_LIMIT} bytes");
                self.lose().await?;
            }
        }
    }

    async fn hear(&self, line: &[u8]) -> Result<(), Unheard> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let event = match serde_json::from_slice::<wire::Event>(line) {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "an event of Docker's cannot be read");
                return self.lose().await;
            }
        };
        let Some(event) = self.translate(event) else { return Ok(()) };
        self.tell(event).await
    }

    /// For an event of which nothing is known.
    async fn lose(&self) -> Result<(), Unheard> {
        self.docker.known().all_stale();
        self.tell(RuntimeEvent::Resync).await
    }

    fn translate(&self, event: wire::Event) -> Option<RuntimeEvent> {
        let actor = event.actor?;
        let (id, mut attributes) = (actor.id?, actor.attributes?);
        if attributes.get(labels::ROOT).map(String::as_str) != Some(self.docker.root_id()) {
            return None;
        }
        let change = match event.action.as_deref() {
            Some("start") => RuntimeChange::Started,
            Some("die") => RuntimeChange::Died,
            Some("destroy") => RuntimeChange::Removed,
            _ => RuntimeChange::Other,
        };
        let known = self.docker.known();
        match change {
            RuntimeChange::Removed => known.forget(&id),
            RuntimeChange::Started => known.started(&id),
            _ if event.action.as_deref() == Some("oom") => known.add_out_of_memory(&id),
            _ => {}
        }
        known.stale(&id);
        let pod = PodId {
            namespace: attributes.remove(labels::POD_NAMESPACE)?,
            name: attributes.remove(labels::POD_NAME)?,
            uid: attributes.remove(labels::POD_UID)?,
        };
        Some(RuntimeEvent::Changed { pod, id, change })
    }

    async fn tell(&self, event: RuntimeEvent) -> Result<(), Unheard> {
        self.sender.send(event).await.map_err(|_| Unheard)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use longshore_core::observed::Observation;

    use super::*;
    use crate::DockerOptions;

    /// It may have been about any of them.
    #[tokio::test]
    async fn an_event_that_cannot_be_read_makes_all_looks_stale() {
        let docker = Docker::connect("unix:///nowhere", "r".to_owned(), DockerOptions::default()).unwrap();
        let pod = PodId { namespace: "n".to_owned(), name: "p".to_owned(), uid: "u".to_owned() };
        let (known, look) = (docker.known(), Observation::Unseen { id: "a".to_owned(), pod });
        known.stream_up();
        known.keep(known.epoch(), "running".to_owned(), &look);
        assert_eq!(known.look("a", "running"), Some(look));
        let (sender, mut heard) = mpsc::channel(1);
        assert!(Watcher { docker: docker.clone(), sender }.hear(b"rubbish\n").await.is_ok());
        assert_eq!(heard.recv().await, Some(RuntimeEvent::Resync));
        assert_eq!(known.look("a", "running"), None);
    }
}
