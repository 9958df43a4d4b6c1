//! Durations in Go's syntax, as etcd's flags take them: "5s", "1h30m", "1.5s", "300ms".

use std::time::Duration;

/// Reads a duration.
///
/// # Errors
/// One sentence that says what is expected.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; give a number with a unit, such as 5s, 10m or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut left = text;
    let mut sum = Duration::ZERO;
    while !left.is_empty() {
        let digits = left.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = left[..digits].parse().map_err(|_| wrong())?;
        left = &left[digits..];
        let unit_len = left.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(left.len());
        let seconds = match &left[..unit_len] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        sum = sum.checked_add(part).ok_or_else(wrong)?;
        left = &left[unit_len..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(sum) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_syntax_is_read() {
        assert_eq!(parse("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse("0"), Ok(Duration::ZERO));
        for text in ["", "5", "s", "-5s", "5 s", "5x", "1..2s", "99999999999999999999h"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
