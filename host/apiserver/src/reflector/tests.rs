//! Following a list at a scripted API server.

use k8s_openapi::api::core::v1::ConfigMap;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use super::*;
use crate::fake::Fake;

const LIMIT: Duration = Duration::from_secs(20);
const LIST: &str = r#"{"metadata":{"resourceVersion":"5"},"items":[]}"#;

/// Tells what comes or changes.
struct Teller(UnboundedSender<ConfigMap>);

impl Follower<ConfigMap> for Teller {
    fn change(&mut self, change: Change<ConfigMap>) -> ControlFlow<()> {
        if let Change::Put(map) = change {
            drop(self.0.send(map));
        }
        ControlFlow::Continue(())
    }

    fn failed(&mut self, _: &ApiError, _: u32) {}
}

fn begin(fake: &Fake) -> UnboundedReceiver<ConfigMap> {
    let followed = Followed {
        path: "/api/v1/configmaps".to_owned(),
        fields: String::new(),
        watch_list: false,
        first_delay: Duration::from_millis(20),
    };
    let (sender, told) = unbounded_channel();
    tokio::spawn(follow(Requests::new(fake.client.clone()), followed, Teller(sender)));
    told
}

fn event(kind: &str, version: u32) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{{\"metadata\":{{\"resourceVersion\":\"{version}\"}}}}}}\n")
}

/// As if nothing happened for so long that a silent watch is one that is dead.
async fn silence() {
    tokio::time::pause();
    tokio::time::advance(SILENCE + SHORT).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_watch_that_had_bookmarks_and_falls_silent_is_begun_anew() {
    let fake = Fake::start().await;
    fake.whole("limit=500", 200, LIST);
    let events = fake.open("resourceVersion=5", 200);
    let _again = fake.open("resourceVersion=8", 200);
    let mut told = begin(&fake);
    let mut put = async |version| {
        events.unbounded_send(event("MODIFIED", version)).unwrap();
        timeout(LIMIT, told.recv()).await.unwrap().unwrap();
    };
    put(6).await;
    // There was none yet: it is still heard.
    silence().await;
    put(7).await;
    events.unbounded_send(event("BOOKMARK", 7)).unwrap();
    put(8).await;
    silence().await;
    timeout(LIMIT, fake.asked("resourceVersion=8", 1)).await.unwrap();
}

#[tokio::test]
async fn lists_are_asked_for_ever_more_seldom_while_watches_bring_garbage() {
    let fake = Fake::start().await;
    for _ in 0..6 {
        fake.whole("limit=500", 200, LIST);
        fake.whole("watch=true", 200, "rubbish\n");
    }
    let began = Instant::now();
    let _told = begin(&fake);
    timeout(LIMIT, fake.asked("limit=500", 6)).await.unwrap();
    // 20, 40, 80, 160 and 320 ms at least.
    assert!(began.elapsed() >= Duration::from_millis(620), "{:?}", began.elapsed());
}
