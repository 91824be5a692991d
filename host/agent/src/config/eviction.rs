//! Eviction: which signals end pods at which thresholds, as written; the rules are those of
//! `pkg/kubelet/eviction/helpers.go`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use clap::Args;
use longshore_core::document::Node;
use longshore_core::quantity;
use serde::Serialize;

use super::draft::{Findings, FlagNotes};
use super::layer::layer;
use super::reader::Reader;
use super::{duration, values};
use crate::names::nearest;

/// Flags of eviction.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct EvictionFlags {
    /// Thresholds at which pods are evicted at once: memory.available<100Mi,nodefs.available<10%
    #[arg(long, value_name = "THRESHOLDS")]
    pub(crate) eviction_hard: Vec<String>,
    /// Thresholds at which pods are evicted after a time
    #[arg(long, value_name = "THRESHOLDS")]
    pub(crate) eviction_soft: Vec<String>,
    /// How long a soft threshold must be met: memory.available=1m30s
    #[arg(long, value_name = "TIMES")]
    pub(crate) eviction_soft_grace_period: Vec<String>,
    /// How much more than the threshold is freed once it is met: nodefs.available=1Gi
    #[arg(long, value_name = "AMOUNTS")]
    pub(crate) eviction_minimum_reclaim: Vec<String>,
    /// How long the node says that it is under pressure after it no longer is [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub(crate) eviction_pressure_transition_period: Option<String>,
    /// The most seconds that a pod gets to end at a soft threshold; 0 for its own [default: 0]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) eviction_max_pod_grace_period: Option<String>,
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Signal {
    /// Memory that the node has left: capacity less working set.
    MemoryAvailable,
    /// The same of the cgroup that all pods are in.
    AllocatableMemoryAvailable,
    /// Bytes left on the file system of the root folder.
    NodeFsAvailable,
    /// Inodes left there.
    NodeFsInodesFree,
    /// Bytes left on the file system of Docker's images.
    ImageFsAvailable,
    /// Inodes left there.
    ImageFsInodesFree,
    /// Bytes left on the file system of Docker's writable layers.
    ContainerFsAvailable,
    /// Inodes left there.
    ContainerFsInodesFree,
    /// Process IDs left.
    PidAvailable,
}

impl Signal {
    /// All, in the order of their names.
    pub(crate) const ALL: [Signal; 9] = [
        Signal::AllocatableMemoryAvailable,
        Signal::ContainerFsAvailable,
        Signal::ContainerFsInodesFree,
        Signal::ImageFsAvailable,
        Signal::ImageFsInodesFree,
        Signal::MemoryAvailable,
        Signal::NodeFsAvailable,
        Signal::NodeFsInodesFree,
        Signal::PidAvailable,
    ];

    /// Its name in configurations and messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Signal::MemoryAvailable => "memory.available",
            Signal::AllocatableMemoryAvailable => "allocatableMemory.available",
            Signal::NodeFsAvailable => "nodefs.available",
            Signal::NodeFsInodesFree => "nodefs.inodesFree",
            Signal::ImageFsAvailable => "imagefs.available",
            Signal::ImageFsInodesFree => "imagefs.inodesFree",
            Signal::ContainerFsAvailable => "containerfs.available",
            Signal::ContainerFsInodesFree => "containerfs.inodesFree",
            Signal::PidAvailable => "pid.available",
        }
    }

    fn parse(text: &str) -> Result<Signal, String> {
        Signal::ALL.into_iter().find(|signal| signal.name() == text).ok_or_else(|| {
            let names = Signal::ALL.map(Signal::name);
            let hint = nearest(text, names).map_or(String::new(), |near| format!("; did you mean {near}?"));
            format!("{text:?} is no eviction signal; there are {}{hint}", names.join(", "))
        })
    }
}

/// How much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Amount {
    /// Bytes, inodes or process IDs.
    Absolute(i64),
    /// Per cent of the capacity.
    Percent(f64),
}

impl Amount {
    /// The amount, of that capacity.
    pub(crate) fn of(self, capacity: i64) -> i64 {
        match self {
            Amount::Absolute(amount) => amount,
            Amount::Percent(percent) => (capacity as f64 * percent / 100.0) as i64,
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Absolute(amount) => {
                let units = [(1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
                match units.into_iter().find(|(unit, _)| *amount > 0 && amount % unit == 0) {
                    Some((unit, name)) => write!(f, "{}{name}", amount / unit),
                    None => write!(f, "{amount}"),
                }
            }
            Amount::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// When pods are evicted for a signal: once less than `amount` is left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Threshold {
    /// What is watched.
    pub(crate) signal: Signal,
    /// Less than this is too little.
    pub(crate) amount: Amount,
    /// How long it must be met, for a soft threshold; `None` for a hard one.
    pub(crate) grace_period: Option<Duration>,
    /// How much more than `amount` has to be free before it counts as over.
    pub(crate) minimum_reclaim: Option<Amount>,
}

layer! {
    /// What one place says of eviction. `None` for a signal turns its threshold off (`0%`, `100%`).
    EvictionLayer {
        transition_period: Duration,
        max_pod_grace_seconds: u32,
        merge_defaults: bool,
    }
    tables {
        hard: Signal => Option<Amount>,
        soft: Signal => Option<Amount>,
        grace_periods: Signal => Duration,
        minimum_reclaim: Signal => Amount,
    }
}

/// Eviction, complete.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Eviction {
    /// Hard thresholds, then soft ones, each in the order of [`Signal`].
    pub(crate) thresholds: Vec<Threshold>,
    /// How long a pressure condition stays after the last time that its threshold was met.
    pub(crate) transition_period: Duration,
    /// The most seconds that a pod gets at a soft threshold; 0 for the pod's own.
    pub(crate) max_pod_grace_seconds: u32,
}

impl Eviction {
    /// What of a capacity is kept for the hard threshold of that signal; the kubelet takes it from the allocatable.
    pub(crate) fn hard_reserve(&self, signal: Signal, capacity: i64) -> i64 {
        let hard = |threshold: &&Threshold| threshold.signal == signal && threshold.grace_period.is_none();
        self.thresholds.iter().find(hard).map_or(0, |threshold| threshold.amount.of(capacity))
    }
}

/// The kubelet's hard thresholds where none are written (`eviction/defaults_linux.go`).
const DEFAULT_HARD: [(Signal, Amount); 5] = [
    (Signal::MemoryAvailable, Amount::Absolute(100 << 20)),
    (Signal::NodeFsAvailable, Amount::Percent(10.0)),
    (Signal::NodeFsInodesFree, Amount::Percent(5.0)),
    (Signal::ImageFsAvailable, Amount::Percent(15.0)),
    (Signal::ImageFsInodesFree, Amount::Percent(5.0)),
];

impl EvictionLayer {
    pub(super) fn from_flags(flags: &EvictionFlags, note: &mut FlagNotes<'_>) -> EvictionLayer {
        const THRESHOLDS: &str = "thresholds like memory.available<100Mi,nodefs.available<10%";
        EvictionLayer {
            hard: note
                .all("--eviction-hard", &flags.eviction_hard, |text| values::pairs(text, '<', THRESHOLDS, threshold)),
            soft: note
                .all("--eviction-soft", &flags.eviction_soft, |text| values::pairs(text, '<', THRESHOLDS, threshold)),
            grace_periods: note.all("--eviction-soft-grace-period", &flags.eviction_soft_grace_period, |text| {
                values::pairs(text, '=', "times like memory.available=1m30s", grace_period)
            }),
            minimum_reclaim: note.all("--eviction-minimum-reclaim", &flags.eviction_minimum_reclaim, |text| {
                values::pairs(text, '=', "amounts like nodefs.available=1Gi", reclaim)
            }),
            transition_period: note.read(
                "--eviction-pressure-transition-period",
                &flags.eviction_pressure_transition_period,
                duration::parse,
            ),
            max_pod_grace_seconds: note.read(
                "--eviction-max-pod-grace-period",
                &flags.eviction_max_pod_grace_period,
                |text| values::count(values::whole(text)?),
            ),
            merge_defaults: None,
        }
    }

    /// Reads a field of this group; false when it is of another.
    pub(super) fn field(&mut self, reader: &mut Reader<'_>, key: &str, node: &Node) -> bool {
        match key {
            "evictionHard" => self.hard = reader.table(key, node, threshold),
            "evictionMaxPodGracePeriod" => self.max_pod_grace_seconds = reader.whole(key, node, values::count),
            "evictionMinimumReclaim" => self.minimum_reclaim = reader.table(key, node, reclaim),
            "evictionPressureTransitionPeriod" => self.transition_period = reader.duration(key, node, Ok),
            "evictionSoft" => self.soft = reader.table(key, node, threshold),
            "evictionSoftGracePeriod" => self.grace_periods = reader.table(key, node, grace_period),
            "mergeDefaultEvictionSettings" => self.merge_defaults = reader.boolean(key, node),
            _ => return false,
        }
        true
    }

    /// The group, complete.
    pub(super) fn finish(self, findings: &mut Findings) -> Eviction {
        let defaults = DEFAULT_HARD.map(|(signal, amount)| (signal, Some(amount)));
        let hard: BTreeMap<_, _> = match self.hard {
            None => defaults.into(),
            Some(table) if self.merge_defaults == Some(true) => defaults.into_iter().chain(table.entries).collect(),
            Some(table) => table.entries,
        };
        let soft = self.soft.map(|table| table.entries).unwrap_or_default();
        let periods = self.grace_periods.map(|table| table.entries).unwrap_or_default();
        let reclaims = self.minimum_reclaim.map(|table| table.entries).unwrap_or_default();
        let mut thresholds = Vec::new();
        for (signal, amount) in hard.into_iter().filter_map(|(signal, amount)| Some((signal, amount?))) {
            let minimum_reclaim = reclaims.get(&signal).copied();
            thresholds.push(Threshold { signal, amount, grace_period: None, minimum_reclaim });
        }
        for (signal, amount) in soft.into_iter().filter_map(|(signal, amount)| Some((signal, amount?))) {
            let Some(period) = periods.get(&signal) else {
                let message = format!("{} has no grace period; name one in evictionSoftGracePeriod", signal.name());
                findings.problem("evictionSoft", message);
                continue;
            };
            let minimum_reclaim = reclaims.get(&signal).copied();
            thresholds.push(Threshold { signal, amount, grace_period: Some(*period), minimum_reclaim });
        }
        Eviction {
            thresholds,
            transition_period: self.transition_period.unwrap_or(Duration::from_secs(300)),
            max_pod_grace_seconds: self.max_pod_grace_seconds.unwrap_or(0),
        }
    }
}

fn percent(text: &str) -> Option<f64> {
    text.parse().ok().filter(|percent: &f64| percent.is_finite() && (0.0..=100.0).contains(percent))
}

fn threshold(signal: &str, text: &str) -> Result<(Signal, Option<Amount>), String> {
    let signal = Signal::parse(signal)?;
    let amount = match text.strip_suffix('%') {
        Some("0" | "100") => return Ok((signal, None)),
        Some(number) => percent(number).map(Amount::Percent),
        None => quantity::parse(text, 0).filter(|amount| *amount > 0).map(Amount::Absolute),
    };
    let amount = amount.ok_or_else(|| {
        format!("expected a quantity above 0 like 100Mi, or a part from 0% to 100% for {}, got {text:?}", signal.name())
    })?;
    Ok((signal, Some(amount)))
}

fn reclaim(signal: &str, text: &str) -> Result<(Signal, Amount), String> {
    let signal = Signal::parse(signal)?;
    let amount = match text.strip_suffix('%') {
        Some(number) => percent(number).filter(|percent| *percent > 0.0).map(Amount::Percent),
        None => quantity::parse(text, 0).filter(|amount| *amount >= 0).map(Amount::Absolute),
    };
    let expected = || format!("expected a quantity like 500Mi or a part like 5% for {}, got {text:?}", signal.name());
    Ok((signal, amount.ok_or_else(expected)?))
}

fn grace_period(signal: &str, text: &str) -> Result<(Signal, Duration), String> {
    Ok((Signal::parse(signal)?, duration::parse(text)?))
}

#[cfg(test)]
#[path = "eviction_tests.rs"]
mod tests;
