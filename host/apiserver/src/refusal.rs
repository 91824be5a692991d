//! A refusal that may be over in a moment: the API server's node authorizer learns from a watch of its own that a pod is
//! bound here, and refuses what the pod needs until then.

use std::time::Duration;

use longshore_core::ports::cluster::ApiError;
use tokio::time::sleep;

/// Waits before what was refused is asked for again.
const AGAIN: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400), Duration::from_millis(800)];

/// Asks, and asks again while the answer is such a refusal: it is the answer only when it is repeated.
pub(crate) async fn unless_repeated<T, F: Future<Output = Result<T, ApiError>>>(
    refused: impl Fn(&ApiError) -> bool,
    ask: impl Fn() -> F,
) -> Result<T, ApiError> {
    let mut answer = ask().await;
    for wait in AGAIN {
        match &answer {
            Err(error) if refused(error) => tracing::debug!(%error, "refused, maybe for a moment only"),
            _ => break,
        }
        sleep(wait).await;
        answer = ask().await;
    }
    answer
}
