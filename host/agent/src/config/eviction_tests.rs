//! Thresholds as they are written, and what becomes of them.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::config::layer::Table;

fn finish(layer: EvictionLayer) -> (Policy, Findings) {
    let mut findings = Findings::default();
    (layer.finish(&mut findings), findings)
}

fn table<V>(entries: Vec<(Signal, V)>) -> Option<Table<Signal, V>> {
    Some(Table { entries: entries.into_iter().collect(), whole: false })
}

#[test]
fn nothing_said_is_the_kubelets_thresholds() {
    let (eviction, _) = finish(EvictionLayer::default());
    let written: Vec<String> = eviction
        .thresholds
        .iter()
        .map(|threshold| format!("{}<{}", threshold.signal.name(), threshold.amount))
        .collect();
    assert_eq!(
        written.join(","),
        "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%"
    );
    assert_eq!(eviction.hard_reserve(Signal::NodeFsAvailable, 1000), 100);
    assert_eq!(eviction.hard_reserve(Signal::PidAvailable, 1000), 0);
}

#[test]
fn what_is_said_replaces_the_defaults_unless_they_are_to_be_merged() {
    let hard = || table(vec![(Signal::MemoryAvailable, Some(Amount::Percent(5.0))), (Signal::NodeFsAvailable, None)]);
    let (eviction, _) = finish(EvictionLayer { hard: hard(), ..EvictionLayer::default() });
    assert_eq!(eviction.thresholds.len(), 1);
    let merged = EvictionLayer { hard: hard(), merge_defaults: Some(true), ..EvictionLayer::default() };
    assert_eq!(finish(merged).0.thresholds.len(), 4);
    let none = EvictionLayer { hard: table(vec![]), ..EvictionLayer::default() };
    assert_eq!(finish(none).0.thresholds, []);
}

#[test]
fn soft_thresholds_need_a_grace_period() {
    let soft = || table(vec![(Signal::PidAvailable, Some(Amount::Percent(5.0)))]);
    let (_, findings) = finish(EvictionLayer { soft: soft(), ..EvictionLayer::default() });
    assert!(findings.problems[0].to_string().contains("pid.available has no grace period"));
    let periods = table(vec![(Signal::PidAvailable, Duration::from_secs(90))]);
    let (eviction, findings) =
        finish(EvictionLayer { soft: soft(), grace_periods: periods, ..EvictionLayer::default() });
    assert_eq!(findings, Findings::default());
    assert_eq!(eviction.thresholds[5].grace_period, Some(Duration::from_secs(90)));
}

#[test]
fn signals_are_known_by_name() {
    for signal in Signal::ALL {
        assert_eq!(signal_of(signal.name()), Ok(signal));
    }
    assert!(signal_of("memory.availible").unwrap_err().contains("did you mean memory.available?"));
}

proptest! {
    #[test]
    fn quantities_and_parts_come_back_as_written(amount in 1i64..1 << 50, percent in 1u32..1000) {
        let (_, read) = threshold("memory.available", &amount.to_string()).unwrap();
        prop_assert_eq!(read, Some(Amount::Decimal(amount)));
        let (_, again) = threshold("memory.available", &read.unwrap().to_string()).unwrap();
        prop_assert_eq!(again, read);
        let (_, binary) = threshold("memory.available", &format!("{amount}Ki")).unwrap();
        prop_assert_eq!(binary, Some(Amount::Absolute(amount * 1024)));
        let part = f64::from(percent) / 10.0;
        let (_, read) = threshold("nodefs.available", &format!("{part}%")).unwrap();
        prop_assert_eq!(read, if percent == 1000 { None } else { Some(Amount::Percent(part)) });
        let share = Amount::Percent(part).of(amount);
        prop_assert!((0..=amount).contains(&share));
    }

    #[test]
    fn no_text_brings_it_down(signal in ".{0,20}", text in ".{0,20}") {
        let _ = threshold(&signal, &text);
        if let Ok((_, Some(Amount::Absolute(amount) | Amount::Decimal(amount)))) = threshold("memory.available", &text) {
            prop_assert!(amount > 0);
        }
        let _ = reclaim("memory.available", &text);
        let _ = grace_period("memory.available", &text);
    }

    #[test]
    fn durations_come_back_as_written(milliseconds in 0u64..1 << 43) {
        let time = Duration::from_millis(milliseconds);
        let read = duration::parse(&duration::format(time)).unwrap();
        // Go's text has a fraction of seconds; a rest below a microsecond may be lost on the way.
        prop_assert!(read.abs_diff(time) < Duration::from_micros(2), "{:?} {:?}", read, time);
    }
}
