//! Role: a point in time on a command line.

use std::str::FromStr;

use narrowlink_proto::{
    token::EXP_MAX,
    when::{DateError, parse_date},
};

/// A point in time on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// When it is read.
    Now,
    /// In seconds since 1970.
    At(u64),
}

/// A text that is none. Its writer's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoMoment {
    /// None of the forms.
    #[error("expected now, a date such as 2026-11-21 (0:00 UTC), or seconds since 1970")]
    Form,
    /// A date in form only.
    #[error("there is no such day")]
    NoSuchDay,
    /// After the year 9999.
    #[error("beyond the year 9999: are these milliseconds?")]
    TooLate,
}

impl FromStr for Moment {
    type Err = NoMoment;

    fn from_str(text: &str) -> Result<Self, NoMoment> {
        if text == "now" {
            return Ok(Self::Now);
        }
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return match text.parse() {
                Ok(seconds) if seconds <= EXP_MAX => Ok(Self::At(seconds)),
                _ => Err(NoMoment::TooLate),
            };
        }
        Ok(Self::At(parse_date(text)?))
    }
}

impl From<DateError> for NoMoment {
    fn from(why: DateError) -> Self {
        match why {
            DateError::Form => Self::Form,
            DateError::NoSuchDay => Self::NoSuchDay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_in_each_of_its_forms() {
        for (text, moment) in [
            ("now", Ok(Moment::Now)),
            ("0", Ok(Moment::At(0))),
            ("1795132800", Ok(Moment::At(1_795_132_800))),
            ("2026-11-20", Ok(Moment::At(1_795_132_800))),
            ("2026-02-29", Err(NoMoment::NoSuchDay)),
            ("1795132800000", Err(NoMoment::TooLate)),
            ("99999999999999999999999", Err(NoMoment::TooLate)),
            ("", Err(NoMoment::Form)),
            ("Now", Err(NoMoment::Form)),
            ("2026-11-20T00:00:00Z", Err(NoMoment::Form)),
            ("-1", Err(NoMoment::Form)),
        ] {
            assert_eq!(text.parse::<Moment>(), moment, "{text}");
        }
    }
}
