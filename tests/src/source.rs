//! A pod source in memory: it says what the test says.

use futures::StreamExt;
use futures::stream::BoxStream;
use longshore_core::pod::{Pod, Source};
use longshore_core::ports::sources::{PodSource, SourceSnapshot};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

/// The source; it has not spoken before [`FakeSource::set`].
#[derive(Debug)]
pub struct FakeSource {
    of: Source,
    snapshot: watch::Sender<Option<SourceSnapshot>>,
}

impl Default for FakeSource {
    fn default() -> Self {
        FakeSource::of(Source::File)
    }
}

impl FakeSource {
    /// One that speaks as that source.
    #[must_use]
    pub fn of(source: Source) -> FakeSource {
        FakeSource { of: source, snapshot: watch::channel(None).0 }
    }

    /// Says which pods it wants.
    pub fn set(&self, pods: Vec<Pod>) {
        self.snapshot.send_replace(Some(SourceSnapshot { pods, problems: Vec::new() }));
    }
}

impl PodSource for FakeSource {
    fn source(&self) -> Source {
        self.of.clone()
    }

    fn snapshots(&self) -> BoxStream<'static, SourceSnapshot> {
        WatchStream::new(self.snapshot.subscribe()).filter_map(|snapshot| async move { snapshot }).boxed()
    }
}
