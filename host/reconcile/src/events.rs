//! A bounded ring of events, newest kept; equal ones in a row are counted together.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use longshore_core::event::{Event, EventType};
use longshore_core::pod::PodId;
use longshore_core::ports::events::EventSink;
use tokio::sync::broadcast;

/// How many events are kept.
const CAPACITY: usize = 4096;
/// Bytes of a message that are kept.
const MESSAGE_LIMIT: usize = 1024;

/// The ring of events.
#[derive(Debug)]
pub struct EventRing {
    events: Mutex<VecDeque<Event>>,
    news: broadcast::Sender<Event>,
}

impl Default for EventRing {
    fn default() -> Self {
        EventRing { events: Mutex::default(), news: broadcast::channel(256).0 }
    }
}

impl EventRing {
    /// A new, empty ring.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Events of a pod by its UID, or all, oldest first.
    pub fn events(&self, uid: Option<&str>) -> Vec<Event> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |event: &&Event| uid.is_none_or(|uid| event.pod.as_ref().is_some_and(|pod| pod.uid == uid));
        events.iter().filter(wanted).cloned().collect()
    }

    /// Events as they come, from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.news.subscribe()
    }
}

impl EventSink for EventRing {
    fn record(&self, pod: &PodId, container: Option<&str>, kind: EventType, reason: &str, message: &str) {
        self.put(Some(pod), container, kind, reason, message, BTreeMap::new());
    }

    fn record_node(&self, kind: EventType, reason: &str, message: &str) {
        self.put(None, None, kind, reason, message, BTreeMap::new());
    }
}

impl EventRing {
    /// Something happened to a pod that programs read as well.
    pub(crate) fn record_with(
        &self,
        pod: &PodId,
        kind: EventType,
        reason: &str,
        message: &str,
        annotations: BTreeMap<String, String>,
    ) {
        self.put(Some(pod), None, kind, reason, message, annotations);
    }

    fn put(
        &self,
        pod: Option<&PodId>,
        container: Option<&str>,
        kind: EventType,
        reason: &str,
        message: &str,
        annotations: BTreeMap<String, String>,
    ) {
        let now = Timestamp::now();
        let mut end = message.len().min(MESSAGE_LIMIT);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let message = &message[..end];
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |event: &Event| {
            event.pod.as_ref() == pod
                && event.container.as_deref() == container
                && event.reason == reason
                && event.message == message
        };
        let event = match events.iter().position(same).and_then(|index| events.remove(index)) {
            Some(known) => Event { at: now, count: known.count.saturating_add(1), annotations, ..known },
            None => Event {
                pod: pod.cloned(),
                container: container.map(str::to_owned),
                kind,
                reason: reason.to_owned(),
                message: message.to_owned(),
                at: now,
                first_at: now,
                count: 1,
                annotations,
            },
        };
        log(&event);
        if events.len() == CAPACITY {
            events.pop_front();
        }
        events.push_back(event.clone());
        drop(events);
        // Nobody listening is fine.
        let _ = self.news.send(event);
    }
}

/// One line for what happened; what happens again and again is logged at the first time and then ever more rarely.
fn log(event: &Event) {
    let Event { container, reason, message, count, .. } = event;
    let pod = event.pod.as_ref().map(tracing::field::display);
    match event.kind {
        _ if !count.is_power_of_two() => tracing::debug!(pod, container, reason, count, "{message}"),
        EventType::Normal => tracing::info!(pod, container, reason, "{message}"),
        EventType::Warning => tracing::warn!(pod, container, reason, count, "{message}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> PodId {
        PodId { namespace: "default".to_owned(), name: uid.to_owned(), uid: uid.to_owned() }
    }

    #[test]
    fn the_newest_are_kept_and_no_more_than_fit() {
        let ring = EventRing::new();
        for number in 0..CAPACITY + 10 {
            ring.record(&pod("p"), None, EventType::Normal, "Seen", &number.to_string());
        }
        let kept = ring.events(None);
        assert_eq!(kept.len(), CAPACITY);
        assert_eq!((kept[0].message.as_str(), kept[CAPACITY - 1].message.clone()), ("10", (CAPACITY + 9).to_string()));
    }

    #[test]
    fn equal_ones_are_counted_and_what_differs_is_another() {
        let ring = EventRing::new();
        let mut news = ring.subscribe();
        for _ in 0..3 {
            ring.record(&pod("p"), Some("app"), EventType::Warning, "BackOff", "again");
        }
        for (uid, container, reason, message) in [
            ("q", Some("app"), "BackOff", "again"),
            ("p", None, "BackOff", "again"),
            ("p", Some("app"), "Failed", "again"),
            ("p", Some("app"), "BackOff", "other"),
        ] {
            ring.record(&pod(uid), container, EventType::Warning, reason, message);
        }
        ring.record_node(EventType::Warning, "BackOff", "again");
        ring.record(&pod("p"), Some("app"), EventType::Warning, "BackOff", "again");
        let counts: Vec<u64> = ring.events(None).iter().map(|event| event.count.into()).collect();
        assert_eq!(counts, [1, 1, 1, 1, 1, 4], "what happens again is the newest");
        assert_eq!(ring.events(Some("p")).len(), 4);
        let counts: Vec<u64> = (0..3).map(|_| news.try_recv().unwrap().count.into()).collect();
        assert_eq!(counts, [1, 2, 3], "each is told");
    }

    #[test]
    fn long_messages_end_with_a_whole_character() {
        let ring = EventRing::new();
        ring.record(&pod("p"), None, EventType::Normal, "Long", &format!("x{}", "é".repeat(MESSAGE_LIMIT)));
        let message = ring.events(None).remove(0).message;
        assert_eq!((message.len(), message.ends_with('é')), (MESSAGE_LIMIT - 1, true));
    }
}
