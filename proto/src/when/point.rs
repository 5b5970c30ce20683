//! Role: a point in time as people write it: seconds since 1970, `30d`, or `2027-01-31`.
//! Invariants: no clock here; what is relative stays so until somebody says what time it is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

use super::{DAY_S, DateError, LAST_S, parse_date};

/// A point in time, absolute or from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Seconds since 1970.
    At(u64),
    /// Seconds from now.
    In(u64),
}

/// A text that is no point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WhenError {
    /// None of the forms.
    #[error(
        "expected seconds since 1970, a duration such as 30d or 12h (s, m, h, d, w), or a date such as 2027-01-31"
    )]
    Form,
    /// The form is a date's, but there is no such day.
    #[error("there is no such day")]
    NoSuchDay,
    /// After the year 9999.
    #[error("beyond the year 9999: are these milliseconds?")]
    TooLate,
}

impl When {
    /// Reads one of the three forms. A date means its first second in UTC.
    ///
    /// # Errors
    /// The writer's: any other text.
    pub fn parse(text: &str) -> Result<Self, WhenError> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return Self::at(text.parse().map_err(|_| WhenError::TooLate)?);
        }
        if text.contains('-') {
            return Ok(Self::At(parse_date(text)?));
        }
        let split =
            text.len().checked_sub(1).filter(|&at| text.is_char_boundary(at)).ok_or(WhenError::Form)?;
        let (number, unit) = text.split_at(split);
        let unit_s = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            "d" => DAY_S,
            "w" => 7 * DAY_S,
            _ => return Err(WhenError::Form),
        };
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(WhenError::Form);
        }
        let seconds = number.parse().ok().and_then(|n: u64| n.checked_mul(unit_s));
        seconds.filter(|&s| s <= LAST_S).map(Self::In).ok_or(WhenError::TooLate)
    }

    /// The same as seconds since 1970, if it is `now` now.
    pub const fn seconds(self, now: u64) -> u64 {
        match self {
            Self::At(seconds) => seconds,
            Self::In(seconds) => now.saturating_add(seconds),
        }
    }

    fn at(seconds: u64) -> Result<Self, WhenError> {
        if seconds <= LAST_S { Ok(Self::At(seconds)) } else { Err(WhenError::TooLate) }
    }
}

impl From<DateError> for WhenError {
    fn from(why: DateError) -> Self {
        match why {
            DateError::Form => Self::Form,
            DateError::NoSuchDay => Self::NoSuchDay,
        }
    }
}

impl FromStr for When {
    type Err = WhenError;

    fn from_str(text: &str) -> Result<Self, WhenError> {
        Self::parse(text)
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(WhenVisitor)
    }
}

struct WhenVisitor;

impl de::Visitor<'_> for WhenVisitor {
    type Value = When;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("seconds since 1970, a duration such as 30d or 12h, or a date such as 2027-01-31")
    }

    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<When, E> {
        When::at(seconds).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<When, E> {
        When::parse(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_forms_are_read() {
        for (text, want) in [
            ("0", When::At(0)),
            ("1710227806", When::At(1_710_227_806)),
            ("253402300799", When::At(LAST_S)),
            ("90s", When::In(90)),
            ("15m", When::In(900)),
            ("12h", When::In(43_200)),
            ("30d", When::In(2_592_000)),
            ("2w", When::In(1_209_600)),
            ("2027-01-31", When::At(1_801_353_600)),
            ("9999-12-31", When::At(LAST_S - DAY_S + 1)),
        ] {
            assert_eq!(When::parse(text), Ok(want), "{text}");
        }
        assert_eq!(When::In(60).seconds(1_000), 1_060);
        assert_eq!(When::At(60).seconds(1_000), 60);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "d", "30 d", "-1d", "+1d", "1.5h", "30D", "1y", "soon", "ä", "2027-01-31T00:00:00Z"]
        {
            assert_eq!(When::parse(text), Err(WhenError::Form), "{text}");
        }
        assert_eq!(When::parse("2027-02-29"), Err(WhenError::NoSuchDay));
        for text in ["253402300800", "1710227806000", "99999999999999999999999", "9999999999d"] {
            assert_eq!(When::parse(text), Err(WhenError::TooLate), "{text}");
        }
    }
}
