//! Amounts as Kubernetes writes them: `500m`, `1.5`, `128Mi`, `1e3`.

/// So many thousandths of a unit, rounded up; `None` if it is no amount.
pub(super) fn millis(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "n" => 1e-6,
        "u" => 1e-3,
        "m" => 1.0,
        "" => 1e3,
        "k" => 1e6,
        "M" => 1e9,
        "G" => 1e12,
        "T" => 1e15,
        "P" => 1e18,
        "Ki" => 1024.0 * 1e3,
        "Mi" => 1024.0_f64.powi(2) * 1e3,
        "Gi" => 1024.0_f64.powi(3) * 1e3,
        "Ti" => 1024.0_f64.powi(4) * 1e3,
        "Pi" => 1024.0_f64.powi(5) * 1e3,
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?;
            let exponent: i32 = exponent
                .parse()
                .ok()
                .filter(|one| (-9..=18).contains(one))?;
            10_f64.powi(exponent) * 1e3
        }
    };
    Some((number * factor).ceil() as u64)
}

/// So many whole units, rounded up.
pub(super) fn units(text: &str) -> Option<u64> {
    millis(text).map(|millis| millis.div_ceil(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("500m", 500),
            ("1.5", 1500),
            ("2", 2000),
            ("100n", 1),
            ("1e2", 100_000),
            ("0", 0),
        ] {
            assert_eq!(millis(text), Some(expected), "{text}");
        }
        assert_eq!(units("128Mi"), Some(128 << 20));
        assert_eq!(units("1G"), Some(1_000_000_000));
        assert_eq!(units("3k"), Some(3000));
        for text in ["", "m", "1x", "-1", "1e99"] {
            assert_eq!(millis(text), None, "{text}");
        }
    }
}
