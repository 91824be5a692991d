//! `POST /v1/drain`: what is told while pods end, one JSON object a line.

use bytes::Bytes;
use futures::Stream;
use longshore_reconcile::shutdown::Told;
use tokio::sync::broadcast::{Receiver, error::RecvError};

/// The lines, to the last word. A reader that is too slow misses some.
pub(super) fn lines(told: Receiver<Told>) -> impl Stream<Item = Bytes> + Send + 'static {
    futures::stream::unfold(Some(told), |told| async move {
        let mut told = told?;
        let word = loop {
            match told.recv().await {
                Ok(word) => break word,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        };
        let last = matches!(word, Told::Done(_) | Told::CalledOff);
        Some((line(&word), (!last).then_some(told)))
    })
}

fn line(word: &Told) -> Bytes {
    let mut text = serde_json::to_vec(word).expect("these are texts and numbers");
    text.push(b'\n');
    Bytes::from(text)
}
