//! Durations as Go writes them in Kubernetes' files and answers: `300ms`, `1h2m3.5s`, `0`.

use std::time::Duration;

/// Reads a duration; negative ones are refused. The error says what is expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected a duration like \"20s\", \"1m30s\" or \"300ms\", got {text:?}");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(expected());
    }
    let mut nanoseconds: u128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(expected)?;
        let (number, after) = rest.split_at(end);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let factor: u128 = match &after[..unit] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(expected()),
        };
        // Whole numbers throughout: as a float 1.003 s would be a nanosecond less.
        nanoseconds =
            read_number(number, factor).and_then(|more| nanoseconds.checked_add(more)).ok_or_else(expected)?;
        rest = &after[unit..];
    }
    // Go's durations end at 2^63 ns.
    match i64::try_from(nanoseconds) {
        Ok(nanoseconds) => Ok(Duration::from_nanos(nanoseconds.unsigned_abs())),
        Err(_) => Err(expected()),
    }
}

/// `1.5` of a unit, in nanoseconds; what is less than one is cut off.
fn read_number(text: &str, factor: u128) -> Option<u128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    // Digits beyond these are less than a nanosecond of any unit.
    let fraction = &fraction[..fraction.len().min(18)];
    let part = digits(fraction)? * factor / 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    digits(whole)?.checked_mul(factor)?.checked_add(part)
}

/// Writes a duration as Go's `Duration.String`: `4h0m0s`, `1m30s`, `300ms`.
pub fn format(time: Duration) -> String {
    let nanoseconds = time.as_nanos();
    let unit: Option<(&str, u128)> = match nanoseconds {
        0 => return "0s".to_owned(),
        1..1_000 => Some(("ns", 1)),
        1_000..1_000_000 => Some(("µs", 1_000)),
        1_000_000..1_000_000_000 => Some(("ms", 1_000_000)),
        _ => None,
    };
    let decimal = |value: u128, unit: u128, digits: usize| {
        let fraction = format!("{:0digits$}", value % unit);
        let fraction = fraction.trim_end_matches('0');
        if fraction.is_empty() { (value / unit).to_string() } else { format!("{}.{fraction}", value / unit) }
    };
    if let Some((name, unit)) = unit {
        let digits = unit.ilog10() as usize;
        return format!("{}{name}", decimal(nanoseconds, unit, digits.max(1)));
    }
    let (hours, minutes) = (time.as_secs() / 3600, time.as_secs() / 60 % 60);
    let seconds = decimal(nanoseconds % 60_000_000_000, 1_000_000_000, 9);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_reads_them() {
        let cases = [
            ("20s", Some(20_000)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("1.003s", Some(1_003)),
            ("300ms", Some(300)),
            ("0", Some(0)),
            ("+1s", Some(1_000)),
            ("20", None),
            ("", None),
            ("-1s", None),
            ("1 s", None),
            ("s", None),
            ("1d", None),
            ("99999999999h", None),
        ];
        for (text, milliseconds) in cases {
            assert_eq!(parse(text).ok(), milliseconds.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn as_go_writes_them() {
        let cases = [
            (0, "0s"),
            (300, "300ms"),
            (1_500, "1.5s"),
            (20_000, "20s"),
            (90_000, "1m30s"),
            (300_000, "5m0s"),
            (14_400_000, "4h0m0s"),
        ];
        for (milliseconds, text) in cases {
            assert_eq!(format(Duration::from_millis(milliseconds)), text);
        }
        assert_eq!(format(Duration::from_nanos(1)), "1ns");
        assert_eq!(format(Duration::from_nanos(1_500)), "1.5µs");
    }
}
