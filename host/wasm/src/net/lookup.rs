//! Names looked up by the system, once for all that ask for the same one meanwhile. It must not remember an answer.
//!
//! A name server that does not answer holds a thread long after the probe that asked gave up, and the probe asks again each
//! period: without this its threads would become more and more.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

use super::error_text;

/// The addresses, with port 0, or why there are none, in Go's words.
type Answer = Result<Arc<[SocketAddr]>, String>;
type Lookups = HashMap<String, Shared<BoxFuture<'static, Answer>>>;

/// Names that are looked up at a time: each holds a thread of the process, which is why this is the process's.
const MOST: usize = 64;
static UNDER_WAY: LazyLock<Mutex<Lookups>> = LazyLock::new(Mutex::default);

/// A name that is looked up no more when this is dropped.
struct Forget(String);

impl Drop for Forget {
    fn drop(&mut self) {
        UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Looks `name` up; given up, it goes on for others that ask.
///
/// # Errors
/// What the system says, or that too many names wait for their servers.
pub(super) async fn lookup(name: &str) -> Answer {
    lookup_with(name, system).await
}

async fn system(name: String) -> Answer {
    match tokio::net::lookup_host((name, 0)).await {
        Ok(found) => Ok(found.collect()),
        Err(error) => Err(error_text(&error)),
    }
}

async fn lookup_with<F>(name: &str, ask: impl FnOnce(String) -> F) -> Answer
where
    F: Future<Output = Answer> + Send + 'static,
{
    let answer = {
        let mut under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        match under_way.get(name) {
            Some(answer) => answer.clone(),
            None if under_way.len() >= MOST => {
                return Err(format!("{MOST} names are being looked up and their servers do not answer"));
            }
            None => {
                let (asked, under_way_no_more) = (ask(name.to_owned()), Forget(name.to_owned()));
                let task = tokio::spawn(async move {
                    let _at_its_end = under_way_no_more;
                    asked.await
                });
                let answer = task.map(|ended| ended.unwrap_or_else(|error| Err(error.to_string()))).boxed().shared();
                under_way.insert(name.to_owned(), answer.clone());
                answer
            }
        }
    };
    answer.await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_for_a_name_that_is_being_looked_up_gets_that_answer() {
        let (say, said) = tokio::sync::oneshot::channel::<SocketAddr>();
        let first = lookup_with("slow.example", |_| async move { Ok(Arc::from([said.await.unwrap()])) });
        // Given up, as by a probe whose time is over.
        assert!(first.now_or_never().is_none());
        let second = lookup_with("slow.example", |_| async { panic!("asked twice") });
        say.send("10.0.0.1:0".parse().unwrap()).unwrap();
        assert_eq!(*second.await.unwrap(), ["10.0.0.1:0".parse::<SocketAddr>().unwrap()]);
        // Nothing is remembered.
        let third = lookup_with("slow.example", |_| async { Err("no such host".to_owned()) });
        assert_eq!(third.await.unwrap_err(), "no such host");
    }

    #[tokio::test]
    async fn the_system_is_asked() {
        assert!(lookup("localhost").await.unwrap().iter().all(|address| address.ip().is_loopback()));
        assert!(lookup("none.invalid").await.is_err());
    }
}
