//! Events on their way to the API server: repeats are counted, similar ones joined, floods held back.
//!
//! As client-go's `tools/record/events_cache.go`: an event that was sent before is patched with a new count; more than
//! ten different messages of one kind within ten minutes become one; an object has a burst of 25 events of each type, then
//! one each five minutes.

use std::collections::{BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};

use crate::event::{Event, EventType};

/// What is remembered at most; beyond, all is forgotten, and events are created anew.
const MEMORY: usize = 4096;
/// Different messages of one kind within [`SIMILAR_WINDOW`] that are told one by one.
const SIMILAR: usize = 10;
const SIMILAR_WINDOW: SignedDuration = SignedDuration::from_secs(600);
/// Events of one object and type at once, and the time in which it gets another one.
const BURST: f64 = 25.0;
const REFILL: SignedDuration = SignedDuration::from_secs(300);
/// Put before the message of events that were joined.
const COMBINED: &str = "(combined from similar events): ";

/// What to send for an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Sending {
    /// A new Event.
    Create {
        /// What to remember it by, for [`Correlator::created`].
        key: String,
        /// The message.
        message: String,
        /// How often it has happened: more than once where others were held back.
        count: i32,
        /// When it happened first.
        first_at: Timestamp,
    },
    /// A repeat of one that was created.
    Patch {
        /// What it is remembered by.
        key: String,
        /// Namespace and name of the Event.
        name: (String, String),
        /// How often it has happened now.
        count: i32,
        /// The message, which differs when similar events were joined.
        message: String,
    },
}

struct Known {
    name: Option<(String, String)>,
    count: i32,
    first_at: Timestamp,
}

struct Similar {
    messages: BTreeSet<String>,
    last: Timestamp,
}

struct Bucket {
    left: f64,
    at: Timestamp,
}

/// Remembers what was sent.
#[derive(Default)]
pub struct Correlator {
    known: HashMap<String, Known>,
    similar: HashMap<String, Similar>,
    buckets: HashMap<String, Bucket>,
}

impl Correlator {
    /// What to send for an event; `None` when its object has had too many. client-go's bucket is for events of both types.
    pub fn take(&mut self, event: &Event, now: Timestamp) -> Option<Sending> {
        let object = event.pod.as_ref().map_or("node", |pod| pod.uid.as_str()).to_owned();
        let kind = if event.kind == EventType::Normal { "Normal" } else { "Warning" };
        let container = event.container.as_deref().unwrap_or_default();
        // Whichever of the pod's containers they are about.
        let group = format!("{object}\n{kind}\n{}", event.reason);
        let (key, message) = match self.is_joined(&group, &event.message, now) {
            true => (group, format!("{COMBINED}{}", event.message)),
            false => (format!("{group}\n{container}\n{}", event.message), event.message.clone()),
        };
        if self.known.len() >= MEMORY {
            self.known.clear();
        }
        let known = self.known.entry(key.clone()).or_insert(Known { name: None, count: 0, first_at: event.at });
        known.count = known.count.saturating_add(1);
        let (count, first_at) = (known.count, known.first_at);
        let sending = match &known.name {
            Some(name) => Sending::Patch { key, name: name.clone(), count, message },
            None => Sending::Create { key, message, count, first_at },
        };
        // What is held back counts all the same.
        self.may(format!("{object}\n{kind}"), now).then_some(sending)
    }

    /// An event was created under that name.
    pub fn created(&mut self, key: &str, namespace: &str, name: &str) {
        if let Some(known) = self.known.get_mut(key) {
            known.name = Some((namespace.to_owned(), name.to_owned()));
        }
    }

    /// An event that was to be patched is gone (events live for an hour): it is created again, with what is known of it.
    pub fn gone(&mut self, key: &str, message: String) -> Option<Sending> {
        let known = self.known.get_mut(key)?;
        known.name = None;
        Some(Sending::Create { key: key.to_owned(), message, count: known.count, first_at: known.first_at })
    }

    fn may(&mut self, of: String, now: Timestamp) -> bool {
        if self.buckets.len() >= MEMORY {
            self.buckets.clear();
        }
        let bucket = self.buckets.entry(of).or_insert(Bucket { left: BURST, at: now });
        let passed = now.duration_since(bucket.at).as_secs_f64().max(0.0);
        bucket.left = (bucket.left + passed / REFILL.as_secs_f64()).min(BURST);
        bucket.at = now;
        let may = bucket.left >= 1.0;
        if may {
            bucket.left -= 1.0;
        }
        may
    }

    fn is_joined(&mut self, group: &str, message: &str, now: Timestamp) -> bool {
        if self.similar.len() >= MEMORY {
            self.similar.clear();
        }
        let similar = self.similar.entry(group.to_owned()).or_insert(Similar { messages: BTreeSet::new(), last: now });
        // Either way: the clock may have stepped back.
        if now.duration_since(similar.last).abs() > SIMILAR_WINDOW {
            similar.messages.clear();
        }
        similar.last = now;
        if similar.messages.contains(message) {
            return false;
        }
        // Like client-go, one less than the limit is remembered, so that known messages go on being counted singly; it
        // forgets any of them at each new one, and we the new one.
        let may = similar.messages.len() + 1 < SIMILAR;
        if may {
            similar.messages.insert(message.to_owned());
        }
        !may
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(message: &str) -> Event {
        Event {
            pod: None,
            container: None,
            kind: EventType::Warning,
            reason: "BackOff".to_owned(),
            message: message.to_owned(),
            at: Timestamp::UNIX_EPOCH,
            first_at: Timestamp::UNIX_EPOCH,
            count: 1,
            annotations: Default::default(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_repeat_is_counted() {
        let mut correlator = Correlator::default();
        let Some(Sending::Create { key, .. }) = correlator.take(&event("a"), at(0)) else { panic!() };
        correlator.created(&key, "default", "x.1");
        for count in 2..5 {
            let Some(Sending::Patch { count: found, name, .. }) = correlator.take(&event("a"), at(1)) else { panic!() };
            assert_eq!((found, name.1.as_str()), (count, "x.1"));
        }
        let again = correlator.gone(&key, "a".to_owned());
        let Some(Sending::Create { count, first_at, .. }) = again else { panic!("{again:?}") };
        assert_eq!((count, first_at), (4, Timestamp::UNIX_EPOCH));
        assert!(matches!(correlator.take(&event("a"), at(2)), Some(Sending::Create { count: 5, .. })));
    }

    #[test]
    fn what_is_held_back_is_counted() {
        let mut correlator = Correlator::default();
        let Some(Sending::Create { key, .. }) = correlator.take(&event("a"), at(0)) else { panic!() };
        correlator.created(&key, "default", "x.1");
        let told = (1..600).filter_map(|second| correlator.take(&event("a"), at(second)));
        let count = |sending| match sending {
            Sending::Patch { count, .. } => count,
            Sending::Create { .. } => panic!("it was created once"),
        };
        let counts: Vec<i32> = told.map(count).collect();
        assert_eq!((counts.len(), counts[23], counts[24]), (25, 25, 301), "{counts:?}");
    }

    #[test]
    fn similar_ones_are_joined() {
        let mut correlator = Correlator::default();
        let mut joined = 0;
        for n in 0..15 {
            match correlator.take(&event(&n.to_string()), at(n)).unwrap() {
                Sending::Create { key, message, .. } => {
                    joined += i32::from(message.starts_with(COMBINED));
                    correlator.created(&key, "default", "x");
                }
                Sending::Patch { message, .. } => {
                    assert!(message.starts_with(COMBINED));
                    joined += 1;
                }
            }
        }
        assert_eq!(joined, 6);
        // A message that was told by itself is counted by itself.
        let Some(Sending::Patch { message, count, .. }) = correlator.take(&event("3"), at(20)) else { panic!() };
        assert_eq!((message.as_str(), count), ("3", 2));
    }

    #[test]
    fn those_of_several_containers_are_joined() {
        let mut correlator = Correlator::default();
        let mut joined = BTreeSet::new();
        for n in 0..15 {
            let container = Some(format!("c{}", n % 5));
            let event = Event { container, ..event(&n.to_string()) };
            let Some(Sending::Create { key, message, .. }) = correlator.take(&event, at(n)) else { continue };
            joined.extend(message.starts_with(COMBINED).then(|| key.clone()));
            correlator.created(&key, "default", "x");
        }
        assert_eq!(joined.len(), 1, "{joined:?}");
        // The same of two containers are two.
        let mut correlator = Correlator::default();
        for container in ["a", "b"] {
            let event = Event { container: Some(container.to_owned()), ..event("same") };
            let Some(Sending::Create { key, .. }) = correlator.take(&event, at(0)) else { panic!("{container}") };
            correlator.created(&key, "default", "x");
        }
    }

    #[test]
    fn a_flood_of_one_type_keeps_none_of_the_other_back() {
        let mut correlator = Correlator::default();
        while correlator.take(&event("a"), at(0)).is_some() {}
        let normal = Event { kind: EventType::Normal, ..event("a") };
        assert!(correlator.take(&normal, at(0)).is_some());
    }

    #[test]
    fn a_clock_that_stepped_back_holds_nothing_back_for_longer() {
        let mut correlator = Correlator::default();
        for n in 0..24 {
            correlator.take(&event(&n.to_string()), at(1_000_000)).unwrap();
        }
        while correlator.take(&event("a"), at(1_000_000)).is_some() {}
        assert_eq!(correlator.take(&event("b"), at(0)), None);
        let soon = at(0) + REFILL.max(SIMILAR_WINDOW) + SignedDuration::from_secs(1);
        assert!(matches!(correlator.take(&event("b"), soon), Some(Sending::Create { message, .. }) if message == "b"));
    }

    proptest! {
        #[test]
        fn a_flood_is_held_back(steps in prop::collection::vec(0i64..20, 1..400)) {
            let mut correlator = Correlator::default();
            let (mut now, mut sent) = (0, 0.0);
            for step in steps {
                now += step;
                sent += f64::from(u8::from(correlator.take(&event("a"), at(now)).is_some()));
            }
            prop_assert!(sent <= BURST + now as f64 / REFILL.as_secs_f64() + 1.0);
        }
    }
}
