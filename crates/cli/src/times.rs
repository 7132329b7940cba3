//! Times on the command line and in lists: durations, moments, ages. RFC 3339, in UTC.

use crate::failure::Failure;
use std::time::Duration;

/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;
/// Longest duration that is taken.
const MAX_SECONDS: f64 = 1e9;

/// `500ms`, `30s`, `1m30s`, `2h`, `1.5s`; digits alone are seconds.
///
/// # Errors
/// A sentence that begins with `option`.
pub(crate) fn duration(option: &str, word: &str) -> Result<Duration, Failure> {
    parse_duration(word).ok_or_else(|| {
        Failure::new(format!("{option} {word}: give a time such as 500ms, 30s, 1m30s or 2h"))
    })
}

fn parse_duration(word: &str) -> Option<Duration> {
    let mut rest = word;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        let number: f64 = number.parse().ok()?;
        let unit = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                "" if word.bytes().all(|byte| byte.is_ascii_digit()) => 1.0,
                _ => return None,
            };
        rest = behind;
    }
    (!word.is_empty() && seconds <= MAX_SECONDS).then(|| Duration::from_secs_f64(seconds))
}

/// A moment, nanoseconds since 1970: RFC 3339, seconds since 1970, or so long before `now`.
///
/// # Errors
/// A sentence that begins with `option`.
pub(crate) fn moment(option: &str, word: &str, now: i64) -> Result<i64, Failure> {
    let number = |word: &str| -> Option<i64> {
        let seconds: f64 = word.parse().ok().filter(|seconds| (0.0..1e10).contains(seconds))?;
        // Exact to a microsecond.
        Some((seconds * 1e6).round() as i64 * 1000)
    };
    let plain = word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let found = if plain {
        number(word)
    } else {
        let before = |duration: Duration| now - i64::try_from(duration.as_nanos()).unwrap_or(now);
        parse_duration(word).map(before).or_else(|| rfc3339(word))
    };
    found.ok_or_else(|| {
        Failure::new(format!(
            "{option} {word}: give a time such as 2026-01-31T10:00:00Z, seconds since 1970, or how long ago, such as 10m"
        ))
    })
}

fn rfc3339(word: &str) -> Option<i64> {
    let (date, time) = match word.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, time),
        None => (word, "00:00:00Z"),
    };
    let mut numbers = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let fits = (1970..=9999).contains(&year) && (1..=12).contains(&month);
    if numbers.next().is_some() || !fits || !(1..=31).contains(&day) {
        return None;
    }
    let (clock, offset) = match time.find(['Z', 'z', '+', '-']) {
        Some(at) => time.split_at(at),
        None => (time, "Z"),
    };
    let offset = match offset.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign, zone) => {
            let (hours, minutes) = zone.split_once(':')?;
            let amount = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if sign == "-" { -amount } else { amount }
        }
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut parts = clock.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute) = (parts.next()??, parts.next()??);
    let second = parts.next().unwrap_or(Some(0))?;
    let in_day = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..=60).contains(&second);
    if parts.next().is_some() || !in_day || fraction.len() > 9 {
        return None;
    }
    let nanoseconds: i64 = format!("{fraction:0<9}").parse().ok()?;
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    seconds.checked_mul(SECOND)?.checked_add(nanoseconds)
}

/// Days from 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// `2026-01-31T10:00:00.123456789Z`.
pub(crate) fn shown(nanoseconds: i64) -> String {
    let seconds = nanoseconds.div_euclid(SECOND);
    let text = shown_seconds(u64::try_from(seconds).unwrap_or(0));
    format!("{}.{:09}Z", text.trim_end_matches('Z'), nanoseconds.rem_euclid(SECOND))
}

/// `2026-01-31T10:00:00Z`.
pub(crate) fn shown_seconds(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(0);
    let (day, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // The inverse of `days`, of the same source.
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `5 s`, `3 min`, `2 h`, `4 d`: how long something lasted or is ago.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed() {
        let parse = |word: &str| duration("--since", word).unwrap().as_millis();
        assert_eq!((parse("500ms"), parse("30s"), parse("1m30s")), (500, 30_000, 90_000));
        assert_eq!(
            (parse("2h"), parse("1.5s"), parse("7"), parse("0s")),
            (7_200_000, 1500, 7000, 0)
        );
        for wrong in ["", "s", "-1s", "1x", "1m30", "99999999999999h", "1..2s", "nan", "inf"] {
            let message = duration("--since", wrong).unwrap_err().message;
            assert!(message.starts_with(&format!("--since {wrong}:")), "{message}");
        }
    }

    #[test]
    fn moments_are_parsed_and_shown() {
        let now = 2_000_000_000 * SECOND;
        let parse = |word: &str| moment("--since", word, now).unwrap();
        assert_eq!(parse("10m"), now - 600 * SECOND);
        assert_eq!(parse("1700000000"), 1_700_000_000 * SECOND);
        assert_eq!(parse("1700000000.5"), 1_700_000_000 * SECOND + SECOND / 2);
        assert_eq!(parse("1970-01-01T00:00:01Z"), SECOND);
        assert_eq!(parse("2024-02-29"), 1_709_164_800 * SECOND);
        assert_eq!(parse("2024-02-29T01:00:00+01:00"), 1_709_164_800 * SECOND);
        assert_eq!(parse("2024-02-29T00:00:00.25Z"), 1_709_164_800 * SECOND + SECOND / 4);
        for seconds in [0, 951_782_400, 1_709_164_800, 1_735_689_599, 4_102_444_800_u64] {
            let text = shown_seconds(seconds);
            assert_eq!(parse(&text), i64::try_from(seconds).unwrap() * SECOND, "{text}");
        }
        assert_eq!(shown(1_709_164_800 * SECOND + 5), "2024-02-29T00:00:00.000000005Z");
        for wrong in ["", "x", "2024-13-01", "2024-01-01T25:00:00Z", "2024-1-1T0:0:0+1", "1e30"] {
            assert!(moment("--since", wrong, now).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ages_are_short() {
        assert_eq!((age(5), age(180), age(7200)), ("5 s".into(), "3 min".into(), "2 h".into()));
        assert_eq!(age(400_000), "4 d");
    }
}
