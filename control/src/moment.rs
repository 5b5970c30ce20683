//! Role: a point in time on a command line.

use std::str::FromStr;

use narrowlink_proto::when::{When, WhenError};

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
    /// One of them, of a time that isn't.
    #[error(transparent)]
    Time(WhenError),
}

impl FromStr for Moment {
    type Err = NoMoment;

    fn from_str(text: &str) -> Result<Self, NoMoment> {
        match When::parse(text) {
            _ if text == "now" => Ok(Self::Now),
            Ok(When::At(seconds)) => Ok(Self::At(seconds)),
            // From now: whether before or behind it, nobody says.
            Ok(When::In(_)) | Err(WhenError::Form) => Err(NoMoment::Form),
            Err(why) => Err(NoMoment::Time(why)),
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
            ("2026-02-29", Err(NoMoment::Time(WhenError::NoSuchDay))),
            ("1795132800000", Err(NoMoment::Time(WhenError::TooLate))),
            ("99999999999999999999999", Err(NoMoment::Time(WhenError::TooLate))),
            ("", Err(NoMoment::Form)),
            ("30d", Err(NoMoment::Form)),
            ("Now", Err(NoMoment::Form)),
            ("2026-11-20T00:00:00Z", Err(NoMoment::Form)),
            ("-1", Err(NoMoment::Form)),
        ] {
            assert_eq!(text.parse::<Moment>(), moment, "{text}");
        }
    }
}
