//! A bounded ring of events, newest kept; equal ones in a row are counted together.

use std::collections::VecDeque;
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
        self.put(Some(pod), container, kind, reason, message);
    }

    fn record_node(&self, kind: EventType, reason: &str, message: &str) {
        self.put(None, None, kind, reason, message);
    }
}

impl EventRing {
    fn put(&self, pod: Option<&PodId>, container: Option<&str>, kind: EventType, reason: &str, message: &str) {
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
            Some(known) => Event { at: now, count: known.count.saturating_add(1), ..known },
            None => Event {
                pod: pod.cloned(),
                container: container.map(str::to_owned),
                kind,
                reason: reason.to_owned(),
                message: message.to_owned(),
                at: now,
                first_at: now,
                count: 1,
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
