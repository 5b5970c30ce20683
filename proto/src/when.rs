//! Role: times as people read them, and days as they write them.
//! Invariants: no clock here: what time it is now is a parameter. UTC alone.

mod point;

use std::fmt::Write as _;

pub use point::{When, WhenError};

/// The last second of the year 9999: a later time is a mistake (milliseconds, say), not a date.
pub const LAST_S: u64 = 253_402_300_799;

const MINUTE_S: u64 = 60;
const HOUR_S: u64 = 60 * MINUTE_S;
const DAY_S: u64 = 24 * HOUR_S;
/// For distances, where a leap day makes no difference.
const YEAR_S: u64 = 365 * DAY_S;

/// The day of a time in seconds since 1970: `2027-01-31`.
pub fn date(seconds: u64) -> String {
    // Years that begin in March, so that the leap day is the last (H. Hinnant, "chrono-compatible
    // low-level date algorithms", civil_from_days, for days since 1970).
    let days = seconds / DAY_S + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, january) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + january)
}

/// A text that is no date. Its writer's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DateError {
    /// Not written as one.
    #[error("expected a date such as 2027-01-31")]
    Form,
    /// Written as one, but the calendar has no such day, or it is before 1970.
    #[error("there is no such day")]
    NoSuchDay,
}

/// The first second of a day as [`date`] writes it, in seconds since 1970.
///
/// # Errors
/// The writer's: any other text.
pub fn parse_date(text: &str) -> Result<u64, DateError> {
    let fields: Vec<_> = text.split('-').collect();
    let [year, month, day] = fields[..] else { return Err(DateError::Form) };
    let number = |text: &str, digits: usize| {
        let is_number = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| text.parse().ok()).flatten().ok_or(DateError::Form)
    };
    let start = day_start(number(year, 4)?, number(month, 2)?, number(day, 2)?);
    // A day that isn't is another one's name.
    start.filter(|seconds| date(*seconds) == text).ok_or(DateError::NoSuchDay)
}

/// Of a day that isn't: of another day, or nothing.
const fn day_start(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 || month == 0 || month > 12 || day == 0 {
        return None;
    }
    // As in `date`, the other way round (days_from_civil).
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    match days.checked_sub(719_468) {
        Some(days) => Some(days * DAY_S),
        None => None,
    }
}

/// A time in seconds since 1970: `2027-01-31 10:00:00 UTC`.
pub fn show(seconds: u64) -> String {
    let of_day = seconds % DAY_S;
    let (hour, minute, second) = (of_day / HOUR_S, of_day / MINUTE_S % 60, of_day % MINUTE_S);
    let mut text = date(seconds);
    let _ = write!(text, " {hour:02}:{minute:02}:{second:02} UTC");
    text
}

/// How far `then` is from `now`: `in 29 days`, `2 hours ago`, `now`. At least two of a unit, so that rounding
/// down never hides half of it.
pub fn distance(then: u64, now: u64) -> String {
    let seconds = then.abs_diff(now);
    let units = [(YEAR_S, "year"), (DAY_S, "day"), (HOUR_S, "hour"), (MINUTE_S, "minute")];
    let (count, unit) = match units.iter().find(|(unit_s, _)| seconds >= 2 * unit_s) {
        Some((unit_s, unit)) => (seconds / unit_s, *unit),
        None => (seconds, "second"),
    };
    let plural = if count == 1 { "" } else { "s" };
    match seconds {
        0 => "now".to_owned(),
        _ if then > now => format!("in {count} {unit}{plural}"),
        _ => format!("{count} {unit}{plural} ago"),
    }
}

/// A time as it is shown everywhere to somebody at `now`: `2027-01-31 10:00:00 UTC (in 29 days)`.
pub fn show_from(then: u64, now: u64) -> String {
    format!("{} ({})", show(then), distance(then, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_the_calendar_has_it() {
        for (seconds, shown) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (86_399, "1970-01-01 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_000_000_000, "2001-09-09 01:46:40 UTC"),
            (1_710_227_806, "2024-03-12 07:16:46 UTC"),
            (1_795_132_800, "2026-11-20 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (253_402_300_799, "9999-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(show(seconds), shown);
            assert_eq!(date(seconds), &shown[..10]);
        }
        // A claim that nobody has checked yet may say anything.
        assert!(show(u64::MAX).ends_with(":15 UTC"));
    }

    #[test]
    fn a_date_is_read_as_the_calendar_has_it() {
        for (text, seconds) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("2000-03-01", 951_868_800),
            ("2024-02-29", 1_709_164_800),
            ("2026-11-20", 1_795_132_800),
            ("2027-01-31", 1_801_353_600),
            ("9999-12-31", 253_402_214_400),
        ] {
            assert_eq!(parse_date(text), Ok(seconds), "{text}");
        }
        for text in [
            "1900-02-29",
            "1969-12-31",
            "1970-01-00",
            "2026-00-01",
            "2026-01-00",
            "2026-02-29",
            "2026-13-01",
            "2027-00-01",
            "2027-01-00",
            "2027-02-29",
            "2027-04-31",
            "2027-13-01",
            "0000-01-01",
            "9999-99-99",
        ] {
            assert_eq!(parse_date(text), Err(DateError::NoSuchDay), "{text}");
        }
    }

    #[test]
    fn what_is_not_written_as_a_date_is_none() {
        for text in [
            "",
            "-",
            "--",
            "2026-1-1",
            "2027-1-31",
            "2027-01",
            "27-01-31",
            "+026-01-01",
            "+2027-01-31",
            "2026-11-20-1",
            "2026-11-20T00:00:00Z",
            "2027-01-31T00:00:00Z",
            " 2027-01-31",
            "2027-01-+1",
            "2027-01-ä",
        ] {
            assert_eq!(parse_date(text), Err(DateError::Form), "{text}");
        }
    }

    #[test]
    fn a_date_that_is_written_reads_back() {
        for day in (0..253_402_300_800 / DAY_S).step_by(97) {
            assert_eq!(parse_date(&date(day * DAY_S)), Ok(day * DAY_S), "day {day}");
        }
    }

    #[test]
    fn a_distance_is_said_in_the_unit_that_people_would_take() {
        let now = 2_000_000_000;
        for (seconds, words) in [
            (1, "1 second"),
            (119, "119 seconds"),
            (120, "2 minutes"),
            (7_199, "119 minutes"),
            (7_200, "2 hours"),
            (172_799, "47 hours"),
            (172_800, "2 days"),
            (29 * DAY_S + 5, "29 days"),
            (2 * YEAR_S - 1, "729 days"),
            (2 * YEAR_S, "2 years"),
        ] {
            assert_eq!(distance(now + seconds, now), format!("in {words}"));
            assert_eq!(distance(now - seconds, now), format!("{words} ago"));
        }
        assert_eq!(distance(now, now), "now");
        assert_eq!(show_from(now + YEAR_S, now), "2034-05-18 03:33:20 UTC (in 365 days)");
        assert!(distance(u64::MAX, 0).starts_with("in 5849"));
    }
}
