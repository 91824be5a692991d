//! Kubernetes' quantities (`apimachinery/pkg/api/resource/quantity.go`): `100m`, `1.5Gi`, `2e3`.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, rounded up, and cut to 64 bits as the API server does; `None` when it is not a quantity.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    wide(&quantity.0, 3).map(cut)
}

/// The value, rounded up, and cut to 64 bits as the API server does; `None` when it is not a quantity.
pub fn value(quantity: &Quantity) -> Option<i64> {
    wide(&quantity.0, 0).map(cut)
}

fn cut(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

/// `text` times 10^`scale`, rounded up (away from zero), as the apimachinery's `ScaledValue`.
pub fn parse(text: &str, scale: u32) -> Option<i64> {
    i64::try_from(wide(text, scale)?).ok()
}

/// The same of what may be more than 64 bits hold, up to 128.
pub(crate) fn wide(text: &str, scale: u32) -> Option<i128> {
    let (negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let (base, exponent): (i128, i32) = match suffix {
        "" => (10, 0),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (2, 10),
        "Mi" => (2, 20),
        "Gi" => (2, 30),
        "Ti" => (2, 40),
        "Pi" => (2, 50),
        "Ei" => (2, 60),
        other => (10, other.strip_prefix(['e', 'E'])?.parse().ok().filter(|n: &i32| n.unsigned_abs() <= 30)?),
    };
    // Digits beyond the ninth after the point cannot matter but for rounding up.
    let kept = &fraction[..fraction.len().min(9)];
    let dropped = fraction[kept.len()..].bytes().any(|digit| digit != b'0');
    let digits: i128 = format!("{whole}{kept}").parse().ok().or_else(|| number.is_empty().then_some(0))?;
    let ten = scale as i32 - kept.len() as i32 + if base == 10 { exponent } else { 0 };
    let mut numerator = digits;
    let mut denominator: i128 = 1;
    if base == 2 {
        numerator = numerator.checked_mul(1i128.checked_shl(exponent as u32)?)?;
    }
    if ten >= 0 {
        numerator = numerator.checked_mul(10i128.checked_pow(ten as u32)?)?;
    } else {
        denominator = 10i128.checked_pow(ten.unsigned_abs())?;
    }
    let mut result = numerator / denominator;
    if numerator % denominator != 0 || dropped {
        result = result.checked_add(1)?;
    }
    Some(if negative { -result } else { result })
}

/// The notation that the API server gives a quantity back in, whatever it was written as: `0.5` is `500m`, `1024Mi` is
/// `1Gi` (`CanonicalizeBytes`). What is none, or too fine or too large for that, stays as it is.
pub fn canonical(quantity: &Quantity) -> Quantity {
    let text = quantity.0.trim();
    let suffix = text.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '+' | '-'));
    let written = match suffix {
        "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei" => parse(text, 0).map(binary),
        "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" => decimal(text),
        _ => None,
    };
    written.unwrap_or_else(|| quantity.clone())
}

/// An amount in thousandths, in the API server's notation.
pub fn of_milli(milli: i64) -> Quantity {
    scaled(i128::from(milli), -3)
}

/// A number of bytes, in the API server's notation.
pub fn of_bytes(bytes: i64) -> Quantity {
    binary(bytes)
}

fn binary(value: i64) -> Quantity {
    // What is written without a suffix is read back as any other number.
    if value.unsigned_abs() < 1024 || value % 1024 != 0 {
        return scaled(i128::from(value), 0);
    }
    Quantity(binary_si(value))
}

/// Bytes as the apimachinery writes a number of them that nobody read (`BinarySI`): `100Mi`, `1500`, `1536Mi`.
pub fn binary_si(mut value: i64) -> String {
    const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut power = 0;
    while value != 0 && value % 1024 == 0 && power + 1 < SUFFIXES.len() {
        value /= 1024;
        power += 1;
    }
    format!("{value}{}", SUFFIXES[power])
}

/// Another number (`DecimalSI`): `5k`, `1500`, `2M`.
pub fn decimal_si(value: i64) -> String {
    scaled(i128::from(value), 0).0
}

/// In the finest unit that it needs: nano, then micro and so on.
fn decimal(text: &str) -> Option<Quantity> {
    [(0, 0), (3, -3), (6, -6), (9, -9)].into_iter().find_map(|(scale, exponent)| {
        let value = i128::from(parse(text, scale)?);
        // Rounded up means that it needs a finer unit; beyond nano the API server rounds, too.
        let exact = scale == 9 || parse(text, scale + 3).is_some_and(|finer| i128::from(finer) == value * 1000);
        exact.then(|| scaled(value, exponent))
    })
}

/// `value` times 10^`exponent` with the largest suffix that leaves a whole number.
fn scaled(mut value: i128, mut exponent: i32) -> Quantity {
    while value != 0 && value % 1000 == 0 && exponent < 18 {
        value /= 1000;
        exponent += 3;
    }
    let suffix = match exponent {
        _ if value == 0 => "",
        -9 => "n",
        -6 => "u",
        -3 => "m",
        3 => "k",
        6 => "M",
        9 => "G",
        12 => "T",
        15 => "P",
        18 => "E",
        _ => "",
    };
    Quantity(format!("{value}{suffix}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_written_as_apimachinery_writes_them() {
        let cases =
            [(0, "0"), (100 << 20, "100Mi"), (1500, "1500"), (3 << 29, "1536Mi"), (1023, "1023"), (-2048, "-2Ki")];
        for (amount, text) in cases {
            assert_eq!(binary_si(amount), text);
        }
        for (amount, text) in
            [(5_000, "5k"), (1_500, "1500"), (2_000_000, "2M"), (0, "0"), (i64::MIN, "-9223372036854775808")]
        {
            assert_eq!(decimal_si(amount), text);
        }
    }

    #[test]
    fn as_apimachinery_reads_them() {
        let cases = [
            ("100m", 3, Some(100)),
            ("0.1", 3, Some(100)),
            ("1.5Gi", 0, Some(1_610_612_736)),
            ("2e3", 0, Some(2_000)),
            ("1E", 0, Some(1_000_000_000_000_000_000)),
            ("100n", 3, Some(1)),
            (".5", 3, Some(500)),
            ("-1", 0, Some(-1)),
            ("1.2.3", 0, None),
            ("", 0, None),
            ("Gi", 0, None),
            ("1 Gi", 0, None),
            ("9Ei", 0, None),
            ("1.5e-2147483648", 3, None),
            // As much as 128 bits hold, and a little more.
            ("170141183460469231731687303715.8841057271e9", 0, None),
        ];
        for (text, scale, expected) in cases {
            assert_eq!(parse(text, scale), expected, "{text}");
        }
    }

    #[test]
    fn what_is_more_than_64_bits_hold_is_the_most_that_they_hold() {
        let of = |text: &str| (milli(&Quantity(text.to_owned())), value(&Quantity(text.to_owned())));
        assert_eq!(of("12E"), (Some(i64::MAX), Some(i64::MAX)));
        assert_eq!(of("10P"), (Some(i64::MAX), Some(10_000_000_000_000_000)));
        assert_eq!(of("-12E"), (Some(i64::MIN), Some(i64::MIN)));
        assert_eq!(of("12X"), (None, None));
    }

    #[test]
    fn the_api_servers_notation() {
        let cases = [
            ("0.5", "500m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("2000", "2k"),
            ("0", "0"),
            ("1024Mi", "1Gi"),
            ("1000Ki", "1000Ki"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("128974848", "128974848"),
            ("100000k", "100M"),
            ("1e3", "1e3"),
            ("0.0001", "100u"),
            ("nonsense", "nonsense"),
            ("9E", "9E"),
        ];
        for (text, expected) in cases {
            assert_eq!(canonical(&Quantity(text.to_owned())).0, expected, "{text}");
        }
        assert_eq!((of_milli(250).0, of_milli(2000).0), ("250m".to_owned(), "2".to_owned()));
        assert_eq!((of_bytes(64 << 20).0, of_bytes(1_000_000).0), ("64Mi".to_owned(), "1M".to_owned()));
    }

    proptest! {
        #[test]
        fn the_notation_is_stable_and_keeps_the_value(text in "[0-9]{1,6}(\\.[0-9]{1,4})?(m|k|M|G|Ki|Mi|Gi)?") {
            let quantity = Quantity(text);
            let once = canonical(&quantity);
            prop_assert_eq!(canonical(&once), once.clone());
            prop_assert_eq!(value(&once), value(&quantity));
            prop_assert_eq!(milli(&once).is_some(), milli(&quantity).is_some());
        }

        #[test]
        fn never_panics(text in "[-+]?[0-9]{0,40}\\.?[0-9]{0,40}([a-zA-Z]{0,3}|[eE][-+]?[0-9]{0,10})") {
            let _ = parse(&text, 3);
        }

        #[test]
        fn whole_numbers_are_themselves(n in 0i64..i64::MAX / 1000) {
            prop_assert_eq!(parse(&n.to_string(), 3), Some(n * 1000));
        }
    }
}
