//! Which images go when their disk is full, or when nobody used them for long. Never one that is in use, never the pause
//! image, and none that came just now.
//!
//! As `pkg/kubelet/images/image_gc_manager.go`. Dead containers are their pods' plans' to remove ([`crate::plan`]).
//! Times are those since the agent's start: when an image was last used is in memory alone, as the kubelet has it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ports::runtime::StoredImage;
use crate::ports::stats::FileSystem;

/// When images go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Per cent of the disk in use from which images go; 100 for never.
    pub high_percent: u8,
    /// Per cent of the disk in use down to which they go.
    pub low_percent: u8,
    /// How long an image is kept at least.
    pub minimum_age: Duration,
    /// How long an image that nobody uses is kept at most; `None` for no limit.
    pub maximum_age: Option<Duration>,
}

impl Policy {
    /// Whether no image ever goes by itself.
    pub fn is_off(&self) -> bool {
        self.high_percent == 100 && self.maximum_age.is_none()
    }
}

/// What is remembered of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    first_seen: Duration,
    /// When it was last seen in use.
    last_used: Option<Duration>,
}

/// What is remembered of the images that are there.
#[derive(Clone, Debug, Default)]
pub struct Images {
    records: BTreeMap<String, Record>,
}

/// How full the images' disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fullness {
    /// Per cent that are in use.
    pub percent: u64,
    /// Bytes to be freed; `None` below the high threshold.
    pub to_free: Option<u64>,
}

/// How full the disk is, and what is to be freed. `None` for a disk without a size.
pub fn fullness(disk: FileSystem, policy: &Policy) -> Option<Fullness> {
    let capacity = u128::from(disk.capacity);
    let available = u128::from(disk.available).min(capacity);
    let percent = 100 - (available * 100).checked_div(capacity)?;
    let to_free = (percent >= u128::from(policy.high_percent)).then(|| {
        let wanted = capacity * (100 - u128::from(policy.low_percent.min(100))) / 100;
        u64::try_from(wanted.saturating_sub(available)).unwrap_or(u64::MAX)
    });
    Some(Fullness { percent: u64::try_from(percent).unwrap_or(100), to_free })
}

impl Images {
    /// Takes in which images there are now and which of them are used.
    pub fn look(&mut self, images: &[StoredImage], now: Duration) {
        let mut known = std::mem::take(&mut self.records);
        for image in images {
            let before = known.remove(&image.id).unwrap_or(Record { first_seen: now, last_used: None });
            let last_used = if image.in_use { Some(now) } else { before.last_used };
            self.records.insert(image.id.clone(), Record { last_used, ..before });
        }
    }

    /// Images that may go, those that nobody used for longest first. With `below` only the ones that were not used for
    /// longer than that.
    pub fn removable<'a>(
        &self,
        images: &'a [StoredImage],
        policy: &Policy,
        below: Option<Duration>,
        now: Duration,
    ) -> Vec<&'a StoredImage> {
        let mut found: Vec<(Option<Duration>, Duration, &StoredImage)> = images
            .iter()
            .filter(|image| !image.in_use && !image.pinned)
            .filter_map(|image| {
                let record = self.records.get(&image.id)?;
                let (age, unused) = (
                    now.saturating_sub(record.first_seen),
                    now.saturating_sub(record.last_used.unwrap_or(record.first_seen)),
                );
                let goes = age >= policy.minimum_age && below.is_none_or(|below| unused > below);
                goes.then_some((record.last_used, record.first_seen, image))
            })
            .collect();
        // One that was never seen in use was not used for longest.
        found.sort_by(|a, b| (a.0, a.1, &a.2.id).cmp(&(b.0, b.1, &b.2.id)));
        found.into_iter().map(|(_, _, image)| image).collect()
    }
}

/// Message of the event `FreeDiskSpaceFailed`: what could be removed was not enough.
pub fn not_enough(disk: FileSystem, percent: u64, freed: u64) -> String {
    format!(
        "Insufficient free disk space on the node's image filesystem ({percent}% of {} used). Failed to free sufficient \
         space by deleting unused images (freed {freed} bytes). Investigate disk usage, as it could be used by active \
         images, logs, volumes, or other data.",
        size(disk.capacity)
    )
}

/// A number of bytes for people: `99.9 GiB`.
fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64 / 1024.0;
    if amount < 1.0 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", units.get(unit).copied().unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy =
        Policy { high_percent: 85, low_percent: 80, minimum_age: Duration::from_secs(120), maximum_age: None };

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn image(id: &str, in_use: bool) -> StoredImage {
        StoredImage { id: id.to_owned(), names: vec![format!("{id}:1")], size: 10, in_use, pinned: false }
    }

    fn disk(capacity: u64, available: u64) -> FileSystem {
        FileSystem { capacity, available, used: capacity.saturating_sub(available), inodes: 1, inodes_free: 1 }
    }

    fn ids(found: &[&StoredImage]) -> String {
        found.iter().map(|image| image.id.as_str()).collect()
    }

    #[test]
    fn the_disk_is_emptied_from_the_high_mark_down_to_the_low_one() {
        let found = |available: u64| fullness(disk(1000, available), &POLICY).unwrap();
        assert_eq!(found(160), Fullness { percent: 84, to_free: None });
        assert_eq!(found(150), Fullness { percent: 85, to_free: Some(50) });
        assert_eq!(found(0), Fullness { percent: 100, to_free: Some(200) });
        assert_eq!(fullness(disk(0, 0), &POLICY), None);
        assert_eq!(fullness(disk(1000, 2000), &POLICY), Some(Fullness { percent: 0, to_free: None }));
    }

    #[test]
    fn the_least_recently_used_goes_first_and_new_ones_wait() {
        let mut images = Images::default();
        let all = |a: bool, b: bool| vec![image("a", a), image("b", b), image("c", false)];
        images.look(&all(true, true), at(0));
        images.look(&all(false, true), at(100));
        let now = all(false, false);
        images.look(&now, at(119));
        assert_eq!(ids(&images.removable(&now, &POLICY, None, at(119))), "");
        assert_eq!(ids(&images.removable(&now, &POLICY, None, at(120))), "cab");
        let mut newer = now.clone();
        newer.push(image("d", false));
        newer[0].pinned = true;
        images.look(&newer, at(200));
        assert_eq!(ids(&images.removable(&newer, &POLICY, None, at(250))), "cb");
        assert_eq!(
            ids(&images.removable(&newer, &POLICY, None, at(320))),
            "cdb",
            "never used goes first, oldest first"
        );
        // One that went and came back is new.
        images.look(&[], at(400));
        images.look(&now, at(410));
        assert_eq!(ids(&images.removable(&now, &POLICY, None, at(500))), "");
    }

    #[test]
    fn what_nobody_used_for_long_goes_whatever_the_disk() {
        let mut images = Images::default();
        images.look(&[image("a", true), image("b", false)], at(0));
        images.look(&[image("a", false), image("b", false)], at(500));
        let now = [image("a", false), image("b", false)];
        assert_eq!(ids(&images.removable(&now, &POLICY, Some(at(600)), at(600))), "");
        assert_eq!(ids(&images.removable(&now, &POLICY, Some(at(599)), at(600))), "ba");
        images.look(&[image("a", true), image("b", false)], at(590));
        assert_eq!(ids(&images.removable(&now, &POLICY, Some(at(300)), at(600))), "b");
    }

    #[test]
    fn the_message_is_the_kubelets() {
        assert_eq!(
            not_enough(disk(107_374_182_400, 0), 97, 12),
            "Insufficient free disk space on the node's image filesystem (97% of 100.0 GiB used). Failed to free \
             sufficient space by deleting unused images (freed 12 bytes). Investigate disk usage, as it could be used \
             by active images, logs, volumes, or other data."
        );
        assert_eq!([512, 2048, 3 << 20, 5 << 40].map(size), ["512 B", "2.0 KiB", "3.0 MiB", "5.0 TiB"]);
    }

    proptest! {
        /// Whatever was used when, and however full the disk is.
        #[test]
        fn never_one_that_is_in_use_or_pinned_or_new(
            looks in prop::collection::vec(prop::collection::vec((0u8..8, any::<bool>(), any::<bool>()), 0..8), 1..6),
            below in prop::option::of(0u64..100), step in 1u64..200, minimum in 0u64..300,
        ) {
            let policy = Policy { minimum_age: at(minimum), ..POLICY };
            let mut images = Images::default();
            let mut first: BTreeMap<String, u64> = BTreeMap::new();
            for (n, look) in looks.into_iter().enumerate() {
                let now = n as u64 * step;
                let there: BTreeMap<u8, StoredImage> = look
                    .into_iter()
                    .map(|(id, in_use, pinned)| (id, StoredImage { pinned, ..image(&id.to_string(), in_use) }))
                    .collect();
                let there: Vec<StoredImage> = there.into_values().collect();
                first.retain(|id, _| there.iter().any(|image| image.id == *id));
                for image in &there {
                    first.entry(image.id.clone()).or_insert(now);
                }
                images.look(&there, at(now));
                let found = images.removable(&there, &policy, below.map(at), at(now));
                for image in &found {
                    prop_assert!(!image.in_use && !image.pinned);
                    prop_assert!(now - first[&image.id] >= minimum);
                }
                // Nothing that may go is kept back, when all is to go.
                if below.is_none() {
                    let may = |image: &&StoredImage| !image.in_use && !image.pinned && now - first[&image.id] >= minimum;
                    prop_assert_eq!(found.len(), there.iter().filter(may).count());
                }
            }
        }

        #[test]
        fn what_is_to_be_freed_brings_the_disk_to_the_low_mark(
            capacity in 1u64.., available in any::<u64>(), low in 0u8..100, more in 1u8..=100,
        ) {
            let policy = Policy { high_percent: low.saturating_add(more).min(100), low_percent: low, ..POLICY };
            let found = fullness(disk(capacity, available), &policy).unwrap();
            prop_assert!(found.percent <= 100);
            prop_assert_eq!(found.to_free.is_some(), found.percent >= u64::from(policy.high_percent));
            if let Some(bytes) = found.to_free {
                let after = u128::from(available.min(capacity)) + u128::from(bytes);
                let wanted = u128::from(capacity) * (100 - u128::from(low)) / 100;
                prop_assert!(after >= wanted && after <= u128::from(capacity));
            }
        }
    }
}
