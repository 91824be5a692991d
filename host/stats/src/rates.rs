//! CPU rates from readings of a counter that only grows.
//!
//! Pure but for the map that it is. It remembers one reading a cgroup, forgets those that nobody asked for lately, and
//! holds no more than a bound.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Readings nearer than this give the rate of before: over less, ticks and jitter are most of what is seen.
const SHORTEST: Duration = Duration::from_millis(500);
/// What was not asked for in this time is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(300);
/// Cgroups that are remembered.
const MOST: usize = 8192;

/// The readings.
#[derive(Debug)]
pub(crate) struct Rates {
    known: HashMap<String, Reading>,
    most: usize,
    cleaned: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    asked: Instant,
    nanoseconds: u64,
    rate: Option<u64>,
}

impl Default for Rates {
    fn default() -> Rates {
        Rates { known: HashMap::new(), most: MOST, cleaned: None }
    }
}

impl Rates {
    /// Takes a reading of a cgroup's CPU time, and says what it used lately in nanoseconds a second.
    pub(crate) fn note(&mut self, cgroup: &str, now: Instant, nanoseconds: u64) -> Option<u64> {
        self.clean(now);
        if let Some(known) = self.known.get_mut(cgroup) {
            // A counter that went back is another cgroup of the same name.
            if nanoseconds >= known.nanoseconds {
                known.asked = now;
                let passed = now.saturating_duration_since(known.at);
                if passed >= SHORTEST {
                    known.rate = per_second(nanoseconds - known.nanoseconds, passed);
                    (known.at, known.nanoseconds) = (now, nanoseconds);
                }
                return known.rate;
            }
        } else if self.known.len() >= self.most {
            let oldest = self.known.iter().min_by_key(|(_, reading)| reading.asked).map(|(name, _)| name.clone());
            oldest.and_then(|name| self.known.remove(&name));
        }
        self.known.insert(cgroup.to_owned(), Reading { at: now, asked: now, nanoseconds, rate: None });
        None
    }

    fn clean(&mut self, now: Instant) {
        if self.cleaned.is_none_or(|cleaned| now.saturating_duration_since(cleaned) >= FORGOTTEN / 10) {
            self.cleaned = Some(now);
            self.known.retain(|_, reading| now.saturating_duration_since(reading.asked) < FORGOTTEN);
        }
    }
}

fn per_second(nanoseconds: u64, passed: Duration) -> Option<u64> {
    let rate = u128::from(nanoseconds).checked_mul(1_000_000_000)?.checked_div(passed.as_nanos())?;
    u64::try_from(rate).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rate_is_what_was_used_between_two_readings() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(rates.note("a", at(0), 1_000), None);
        assert_eq!(rates.note("a", at(100), 100_001_000), None, "too near to say");
        assert_eq!(rates.note("a", at(2_000), 1_000_001_000), Some(500_000_000));
        assert_eq!(rates.note("a", at(2_100), 1_100_001_000), Some(500_000_000), "too near: as before");
        assert_eq!(rates.note("a", at(4_000), 1_100_001_000), Some(50_000_000), "from the last one that counted");
        assert_eq!(rates.note("b", at(4_000), 5), None);
        assert_eq!(rates.note("a", at(6_000), 7), None, "another cgroup of that name");
        assert_eq!(rates.note("a", at(8_000), 2_000_000_007), Some(1_000_000_000));
        assert_eq!(rates.note("a", at(8_000 + 300_000), 2_000_000_007), None, "forgotten");
    }

    proptest! {
        #[test]
        fn the_map_is_bounded_and_the_most_recent_is_never_dropped(
            asked in prop::collection::vec((0_u8..40, 0_u64..400_000, any::<u64>()), 1..200),
        ) {
            let mut rates = Rates { most: 8, ..Rates::default() };
            let mut now = Instant::now();
            for (name, later, nanoseconds) in asked {
                now += Duration::from_millis(later);
                rates.note(&name.to_string(), now, nanoseconds);
                prop_assert!(rates.known.len() <= 8);
                prop_assert!(rates.known.contains_key(&name.to_string()));
            }
        }

        #[test]
        fn a_rate_times_the_time_is_the_use(used in 0_u64..1 << 50, milliseconds in 500_u64..200_000) {
            let (mut rates, start) = (Rates::default(), Instant::now());
            rates.note("a", start, 77);
            let rate = rates.note("a", start + Duration::from_millis(milliseconds), 77 + used).unwrap();
            let again = u128::from(rate) * u128::from(milliseconds) / 1000;
            prop_assert!(u128::from(used).abs_diff(again) <= u128::from(milliseconds) / 1000 + 1);
        }
    }
}
