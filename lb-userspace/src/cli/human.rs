//! Numbers and times for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Unix milliseconds now.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// A count, three or four digits: `999`, `12.3k`, `4.56M`.
pub fn count(value: u64) -> String {
    scaled(value as f64, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

/// Bytes: `999 B`, `12.3 KiB`.
pub fn bytes(value: u64) -> String {
    scaled(
        value as f64,
        1024.0,
        &[" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"],
    )
}

/// Packets a second: `12.3k/s`.
pub fn rate(count: u64, over: Duration) -> String {
    let value = per_second(count, over);
    if value > 0.0 && value < 10.0 {
        format!("{value:.1}/s")
    } else {
        format!("{}/s", scaled(value, 1000.0, &["", "k", "M", "G", "T"]))
    }
}

/// Bits a second out of bytes: `12.3 Mbit/s`.
pub fn bit_rate(bytes: u64, over: Duration) -> String {
    let units = [" bit/s", " kbit/s", " Mbit/s", " Gbit/s", " Tbit/s"];
    scaled(per_second(bytes, over) * 8.0, 1000.0, &units)
}

/// How many a second; 0 over no time.
pub fn per_second(count: u64, over: Duration) -> f64 {
    let seconds = over.as_secs_f64();
    if seconds > 0.0 {
        count as f64 / seconds
    } else {
        0.0
    }
}

fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    // 999.5 would be shown as 1000 of the smaller unit.
    while value >= base - 0.5 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", units.get(unit).unwrap_or(&""))
}

/// A duration in its two largest units: `0.8s`, `42s`, `4m 12s`, `3d 4h`.
pub fn duration(value: Duration) -> String {
    if value.as_millis() < 9_950 {
        return format!("{:.1}s", value.as_secs_f64());
    }
    let seconds = value.as_secs() + u64::from(value.subsec_millis() >= 500);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Seconds as [`duration`] shows them; what is no duration counts as 0.
pub fn seconds(value: f64) -> String {
    duration(Duration::try_from_secs_f64(value).unwrap_or_default())
}

/// `1 flow`, `2 flows`.
pub fn plural(count: u64, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

/// `deadline in 4m 12s`, `past its deadline`.
pub fn deadline(deadline_ms: u64, now_ms: u64) -> String {
    match deadline_ms.checked_sub(now_ms) {
        Some(left) if left > 0 => format!("deadline in {}", duration(Duration::from_millis(left))),
        _ => "past its deadline".to_owned(),
    }
}

/// Text from elsewhere (what a backend answered to a probe) on one line and without control characters, so that it
/// cannot move the cursor of whoever looks at it.
pub fn clean(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    shown.collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        let rows = [
            (0, "0"),
            (999, "999"),
            (1000, "1.00k"),
            (12_345, "12.3k"),
            (123_456, "123k"),
            (999_600, "1.00M"),
            (u64::MAX, "18.4E"),
        ];
        for (value, text) in rows {
            assert_eq!(count(value), text);
        }
    }

    #[test]
    fn byte_counts() {
        let rows = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1_048_575, "1.00 MiB"),
            (5 << 30, "5.00 GiB"),
        ];
        for (value, text) in rows {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn durations() {
        let rows = [
            (0, "0.0s"),
            (840, "0.8s"),
            (9_949, "9.9s"),
            (9_950, "10s"),
            (59_400, "59s"),
            (59_500, "1m 0s"),
            (252_000, "4m 12s"),
            (7_380_000, "2h 3m"),
            (273_600_000, "3d 4h"),
        ];
        for (millis, text) in rows {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(seconds(f64::NAN), "0.0s");
        assert_eq!(seconds(-1.0), "0.0s");
    }

    #[test]
    fn rates() {
        let second = Duration::from_secs(1);
        assert_eq!(rate(0, second), "0/s");
        assert_eq!(rate(5, Duration::from_secs(2)), "2.5/s");
        assert_eq!(rate(12_345, second), "12.3k/s");
        assert_eq!(rate(5, Duration::ZERO), "0/s");
        assert_eq!(bit_rate(125_000, second), "1.00 Mbit/s");
    }

    #[test]
    fn deadlines() {
        assert_eq!(deadline(61_000, 1_000), "deadline in 1m 0s");
        assert_eq!(deadline(1_000, 1_000), "past its deadline");
        assert_eq!(deadline(0, 1_000), "past its deadline");
    }

    #[test]
    fn control_characters_go() {
        assert_eq!(clean("a\x1b[2Jb\n"), "a [2Jb");
    }
}
