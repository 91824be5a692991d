//! Kubernetes' quantities (`apimachinery/pkg/api/resource/quantity.go`): `100m`, `1.5Gi`, `2e3`.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, rounded up; `None` when it is not a quantity or too large.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    parse(&quantity.0, 3)
}

/// The value, rounded up; `None` when it is not a quantity or too large.
pub fn value(quantity: &Quantity) -> Option<i64> {
    parse(&quantity.0, 0)
}

/// `text` times 10^`scale`, rounded up (away from zero), as the apimachinery's `ScaledValue`.
pub fn parse(text: &str, scale: u32) -> Option<i64> {
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
        other => (10, other.strip_prefix(['e', 'E'])?.parse().ok().filter(|exponent: &i32| exponent.abs() <= 30)?),
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
        result += 1;
    }
    i64::try_from(if negative { -result } else { result }).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        ];
        for (text, scale, expected) in cases {
            assert_eq!(parse(text, scale), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[-+]?[0-9]{0,30}\\.?[0-9]{0,30}([a-zA-Z]{0,3}|[eE][-+]?[0-9]{0,4})") {
            let _ = parse(&text, 3);
        }

        #[test]
        fn whole_numbers_are_themselves(n in 0i64..i64::MAX / 1000) {
            prop_assert_eq!(parse(&n.to_string(), 3), Some(n * 1000));
        }
    }
}
