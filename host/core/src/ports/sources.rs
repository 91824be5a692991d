//! Pod sources: each says, again and again, all the pods that it wants.

use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::pod::{Pod, Source};

/// A source's last word: all its pods, and what it could not read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceSnapshot {
    /// All pods that the source wants. A part of the source that cannot be read now keeps its former pods in here.
    pub pods: Vec<Pod>,
    /// What is wrong with the source, for log and `longshore get`.
    pub problems: Vec<SourceProblem>,
}

/// Something wrong in a source, the user's to mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceProblem {
    /// Where: a file with its line, or a URL.
    pub place: String,
    /// What is wrong, and what was expected.
    pub message: String,
    /// Whether it is a warning only: the pod is used all the same.
    pub warning: bool,
}

/// A pod source.
pub trait PodSource: Send + Sync {
    /// Which one it is.
    fn source(&self) -> Source;

    /// Snapshots, the first one as soon as the source has been read once. A source that cannot be read yields
    /// nothing, or its former pods with a problem: never an empty set for "I do not know".
    fn snapshots(&self) -> BoxStream<'static, SourceSnapshot>;
}
