//! Ages as kubectl shows them (`apimachinery/pkg/util/duration`), and longshore's own finer durations.

use jiff::{SignedDuration, Timestamp};

/// Two or three figures of a duration: `5s`, `2m30s`, `3h`, `4d2h`, `2y14d`.
pub(crate) fn human(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    if seconds < 0 {
        return "0s".to_owned();
    }
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let with = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => with(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => with(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => with(days, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{days}d"),
        () if hours < 24 * 365 * 8 => with(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

/// The time since then; `<unknown>` when there is no such time.
pub(crate) fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| "<unknown>".to_owned(), |then| human(now.duration_since(then)))
}

/// A duration of which fractions of a second matter: `0.31s`, `4.2s`, then as [`human`].
pub(crate) fn fine(duration: SignedDuration) -> String {
    let seconds = duration.as_secs_f64().max(0.0);
    match seconds {
        _ if seconds < 1.0 => format!("{seconds:.2}s"),
        _ if seconds < 20.0 => format!("{seconds:.1}s"),
        _ => human(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_kubectl_shows_them() {
        const M: i64 = 60;
        const H: i64 = 3600;
        const D: i64 = 86_400;
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (59, "59s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (10 * M, "10m"),
            (179 * M + 59, "179m"),
            (3 * H, "3h"),
            (3 * H + 5 * M, "3h5m"),
            (8 * H + 59 * M, "8h"),
            (47 * H, "47h"),
            (2 * D, "2d"),
            (2 * D + 3 * H, "2d3h"),
            (8 * D + 3 * H, "8d"),
            (729 * D, "729d"),
            (730 * D, "2y"),
            (731 * D, "2y1d"),
            (8 * 365 * D + 40 * D, "8y"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(human(SignedDuration::from_secs(seconds)), expected, "{seconds}");
        }
    }

    #[test]
    fn short_times_keep_their_fractions() {
        assert_eq!(fine(SignedDuration::from_millis(310)), "0.31s");
        assert_eq!(fine(SignedDuration::from_millis(4_210)), "4.2s");
        assert_eq!(fine(SignedDuration::from_secs(90)), "90s");
    }
}
