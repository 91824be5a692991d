//! Eviction: which signals end pods at which thresholds, as written; the rules are those of
//! `pkg/kubelet/eviction/helpers.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use longshore_core::document::Node;
use longshore_core::evict::{Amount, Policy, Signal, Threshold};
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
    /// Thresholds at which pods are evicted at once, also on a node alone [default: memory.available<100Mi,
    /// nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%]
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

fn signal_of(text: &str) -> Result<Signal, String> {
    Signal::ALL.into_iter().find(|signal| signal.name() == text).ok_or_else(|| {
        let names = Signal::ALL.map(Signal::name);
        let hint = nearest(text, names).map_or(String::new(), |near| format!("; did you mean {near}?"));
        format!("{text:?} is not an eviction signal; known: {}{hint}", names.join(", "))
    })
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
    pub(super) fn finish(self, findings: &mut Findings) -> Policy {
        let defaults = DEFAULT_HARD.map(|(signal, amount)| (signal, Some(amount)));
        let hard: BTreeMap<_, _> = match self.hard {
            None => defaults.into(),
            Some(table) if self.merge_defaults == Some(true) => defaults.into_iter().chain(table.entries).collect(),
            Some(table) => table.entries,
        };
        let soft = self.soft.map(|table| table.entries).unwrap_or_default();
        let periods = self.grace_periods.map(|table| table.entries).unwrap_or_default();
        let reclaims = self.minimum_reclaim.map(|table| table.entries).unwrap_or_default();
        let apart = |table: &BTreeMap<Signal, Option<Amount>>| {
            [Signal::ContainerFsAvailable, Signal::ContainerFsInodesFree]
                .iter()
                .any(|signal| table.get(signal).is_some_and(Option::is_some))
        };
        if apart(&hard) || apart(&soft) {
            let message = "thresholds of containerfs have no effect: Docker keeps writable layers where its images are, so set \
                           those of imagefs";
            findings.warnings.push(message.to_owned());
        }
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
        Policy {
            thresholds,
            transition_period: self.transition_period.unwrap_or(Duration::from_secs(300)),
            max_pod_grace_seconds: self.max_pod_grace_seconds.unwrap_or(0),
        }
    }
}

fn percent(text: &str) -> Option<f64> {
    text.parse().ok().filter(|percent: &f64| percent.is_finite() && (0.0..=100.0).contains(percent))
}

/// A quantity, with the units that it is written with.
fn absolute(text: &str, least: i64) -> Option<Amount> {
    let amount = quantity::parse(text, 0).filter(|amount| *amount >= least)?;
    Some(if text.ends_with('i') { Amount::Absolute(amount) } else { Amount::Decimal(amount) })
}

fn threshold(signal: &str, text: &str) -> Result<(Signal, Option<Amount>), String> {
    let signal = signal_of(signal)?;
    let amount = match text.strip_suffix('%') {
        Some("0" | "100") => return Ok((signal, None)),
        Some(number) => percent(number).map(Amount::Percent),
        None => absolute(text, 1),
    };
    let amount = amount.ok_or_else(|| {
        format!("expected a quantity above 0 like 100Mi, or a part from 0% to 100% for {}, got {text:?}", signal.name())
    })?;
    Ok((signal, Some(amount)))
}

fn reclaim(signal: &str, text: &str) -> Result<(Signal, Amount), String> {
    let signal = signal_of(signal)?;
    let amount = match text.strip_suffix('%') {
        Some(number) => percent(number).filter(|percent| *percent > 0.0).map(Amount::Percent),
        None => absolute(text, 0),
    };
    let expected = || format!("expected a quantity like 500Mi or a part like 5% for {}, got {text:?}", signal.name());
    Ok((signal, amount.ok_or_else(expected)?))
}

fn grace_period(signal: &str, text: &str) -> Result<(Signal, Duration), String> {
    Ok((signal_of(signal)?, duration::parse(text)?))
}

#[cfg(test)]
#[path = "eviction_tests.rs"]
mod tests;
