//! How fast we ask: token buckets for requests and for events (`kubeAPIQPS`, `eventRecordQPS`).
//!
//! As client-go's `util/flowcontrol` and the clients of `cmd/kubelet/app/server.go`: watches wait for nothing, nor does what
//! keeps the node alive, its Lease and its Node. What callers of our server may is asked at a pace of its own: strangers can
//! have it asked. Whoever waits stands in a queue; who gives up takes nothing.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// So many at once, and so many a second over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// A second, over time; 0 counts as 1.
    pub per_second: u32,
    /// At once; 0 counts as 1.
    pub burst: u32,
}

/// How fast we ask. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    requests: Option<Arc<Bucket>>,
    events: Option<Arc<Bucket>>,
    reviews: Option<Arc<Bucket>>,
}

impl Pace {
    /// With those limits; events have one of their own, none where it is 0 a second (`eventRecordQPS`), and reviews one like that
    /// of requests, so that they keep nothing else waiting.
    pub fn new(requests: Rate, events: Rate) -> Pace {
        let bucket = |rate| Some(Arc::new(Bucket::new(rate)));
        let events = if events.per_second == 0 { None } else { bucket(events) };
        Pace { requests: bucket(requests), events, reviews: bucket(requests) }
    }

    /// Waits until that may be asked. Cancel safe.
    pub(crate) async fn wait(&self, method: &Method, path: &str) {
        let bucket = match kind(method, path) {
            Kind::Alive => None,
            Kind::Event => self.events.as_ref(),
            Kind::Review => self.reviews.as_ref(),
            Kind::Other => self.requests.as_ref(),
        };
        if let Some(bucket) = bucket {
            bucket.take().await;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The Node or its Lease.
    Alive,
    /// An event that is written.
    Event,
    /// Who somebody is, and what they may.
    Review,
    /// Anything else.
    Other,
}

fn kind(method: &Method, path: &str) -> Kind {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let mut parts = path.trim_start_matches('/').split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("api"), Some("v1"), Some("nodes"), _, _) => Kind::Alive,
        (Some("apis"), Some("coordination.k8s.io"), ..) => Kind::Alive,
        (Some("apis"), Some("authentication.k8s.io" | "authorization.k8s.io"), ..) => Kind::Review,
        (Some("api"), Some("v1"), Some("namespaces"), Some(_), Some("events")) if method != Method::GET => Kind::Event,
        _ => Kind::Other,
    }
}

#[derive(Debug)]
struct Bucket {
    per_second: f64,
    burst: f64,
    /// What was left, and when. Who waits holds it, so that others come later.
    left: Mutex<(f64, Instant)>,
}

impl Bucket {
    fn new(rate: Rate) -> Bucket {
        let burst = f64::from(rate.burst.max(1));
        Bucket { per_second: f64::from(rate.per_second.max(1)), burst, left: Mutex::new((burst, Instant::now())) }
    }

    async fn take(&self) {
        let mut left = self.left.lock().await;
        let now = |left: &(f64, Instant)| {
            let since = left.1.elapsed().as_secs_f64();
            (left.0 + since * self.per_second).min(self.burst)
        };
        // Again after a sleep, which may end a little early.
        loop {
            let there = now(&left);
            if there >= 1.0 {
                *left = (there - 1.0, Instant::now());
                return;
            }
            let missing = Duration::from_secs_f64((1.0 - there) / self.per_second);
            tokio::time::sleep(missing.max(Duration::from_millis(1))).await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const PODS: &str = "/api/v1/namespaces/a/pods/p/status?fieldManager=kubelet";
    const EVENTS: &str = "/api/v1/namespaces/a/events?fieldManager=kubelet";
    const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n?fieldManager=kubelet";
    const TOKEN: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
    const RIGHT: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    const NODE: &str = "/api/v1/nodes/n/status?fieldManager=kubelet";

    #[test]
    fn what_waits_for_what() {
        assert_eq!(kind(&Method::PATCH, PODS), Kind::Other);
        assert_eq!((kind(&Method::PATCH, NODE), kind(&Method::PUT, LEASE)), (Kind::Alive, Kind::Alive));
        assert_eq!(kind(&Method::POST, EVENTS), Kind::Event);
        assert_eq!(kind(&Method::PATCH, "/api/v1/namespaces/a/events/e"), Kind::Event);
        assert_eq!((kind(&Method::POST, TOKEN), kind(&Method::POST, RIGHT)), (Kind::Review, Kind::Review));
        // A pod's token, which the pod waits for.
        assert_eq!(kind(&Method::POST, "/api/v1/namespaces/a/serviceaccounts/s/token"), Kind::Other);
        // One whose namespace is called so.
        assert_eq!(kind(&Method::GET, "/api/v1/namespaces/events/pods/nodes"), Kind::Other);
    }

    #[tokio::test(start_paused = true)]
    async fn none_a_second_is_no_limit_of_events() {
        let pace = Pace::new(Rate { per_second: 1, burst: 1 }, Rate { per_second: 0, burst: 1 });
        let begun = Instant::now();
        for _ in 0..1000 {
            pace.wait(&Method::POST, EVENTS).await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_so_many_a_second_and_the_node_stays_alive() {
        let pace = Pace::new(Rate { per_second: 10, burst: 5 }, Rate { per_second: 1, burst: 1 });
        let begun = Instant::now();
        for _ in 0..5 {
            pace.wait(&Method::PATCH, PODS).await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        // What waits keeps neither events nor the node's own waiting, and who gives up takes nothing.
        assert!(pace.wait(&Method::PATCH, PODS).now_or_never().is_none());
        pace.wait(&Method::POST, EVENTS).await;
        for _ in 0..100 {
            pace.wait(&Method::PATCH, NODE).await;
            pace.wait(&Method::PUT, LEASE).await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        for _ in 0..20 {
            pace.wait(&Method::PATCH, PODS).await;
        }
        let took = begun.elapsed();
        assert!((Duration::from_millis(1990)..Duration::from_millis(2100)).contains(&took), "{took:?}");
        // An hour's rest is worth a burst and no more.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let begun = Instant::now();
        for _ in 0..6 {
            pace.wait(&Method::PATCH, PODS).await;
        }
        let took = begun.elapsed();
        assert!((Duration::from_millis(99)..Duration::from_millis(110)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn reviews_keep_no_pod_waiting() {
        let pace = Pace::new(Rate { per_second: 1, burst: 2 }, Rate { per_second: 1, burst: 1 });
        for path in [TOKEN, RIGHT] {
            pace.wait(&Method::POST, path).await;
        }
        let mut strangers: Vec<_> = (0..32).map(|_| Box::pin(pace.wait(&Method::POST, TOKEN))).collect();
        assert!(strangers.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
        assert!(pace.wait(&Method::PATCH, PODS).now_or_never().is_some());
    }

    #[tokio::test]
    async fn without_limits_nothing_waits() {
        let pace = Pace::default();
        for _ in 0..1000 {
            assert!(pace.wait(&Method::PATCH, PODS).now_or_never().is_some());
        }
    }
}
