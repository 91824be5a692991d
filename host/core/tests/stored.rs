//! What an earlier build stored of a pod is read by this one: else counts fall, and finished work is done again.

#![allow(clippy::unwrap_used)]

use longshore_core::record::StoredPod;
use serde_json::Value;

/// As of 2026-11-28, with everything in it. It stays as it is: a field that is added later must do without being there.
const STORED: &str = include_str!("stored.json");

#[test]
fn nothing_of_it_is_lost() {
    let written: Value = serde_json::from_str(STORED).unwrap();
    let read: StoredPod = serde_json::from_str(STORED).unwrap();
    let again = serde_json::to_value(&read).unwrap();
    assert_eq!(missing("", &written, &again), Vec::<String>::new());
}

/// Where `again` has not what `written` has.
fn missing(place: &str, written: &Value, again: &Value) -> Vec<String> {
    match (written, again) {
        (Value::Object(fields), Value::Object(other)) => {
            let of =
                |(name, value)| missing(&format!("{place}/{name}"), value, other.get(name).unwrap_or(&Value::Null));
            fields.iter().flat_map(of).collect()
        }
        _ if written == again => Vec::new(),
        _ => vec![format!("{place}: {written} is {again}")],
    }
}
