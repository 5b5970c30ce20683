//! Role: how much a token's bearer may use.
//! Invariants: no limit is 0: nothing at all is what a policy is for, and "unlimited" is said by saying nothing.

use std::{
    fmt,
    num::{NonZeroU32, NonZeroU64},
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Unexpected},
};

/// The largest first.
const UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
];

/// How much somebody may use at the most; what isn't said here is the gateway's to say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allowance {
    /// Sessions at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<NonZeroU32>,
    /// Streams at a time: connections to the gateway that carry sessions, one after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<NonZeroU32>,
    /// New sessions a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dials_per_s: Option<NonZeroU32>,
    /// Payload a second, both directions of all sessions together.
    #[serde(deserialize_with = "bytes", skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<NonZeroU64>,
    /// Payload a calendar month (UTC), both directions of all sessions together.
    #[serde(deserialize_with = "bytes", skip_serializing_if = "Option::is_none")]
    pub bytes_per_month: Option<NonZeroU64>,
}

impl Allowance {
    /// Whether it says nothing.
    pub(crate) fn is_silent(&self) -> bool {
        *self == Self::default()
    }

    /// What it limits, as people read it: `3 sessions at a time`, `10 MB a second`.
    pub fn in_words(&self) -> Vec<String> {
        let count = |n: Option<NonZeroU32>, what: &str| n.map(|n| format!("{n} {what}"));
        let amount = |n: Option<_>, what: &str| n.map(|n| format!("{} {what}", Self::show_bytes(n)));
        let said = [
            count(self.sessions, "sessions at a time"),
            count(self.streams, "streams at a time"),
            count(self.dials_per_s, "new sessions a second"),
            amount(self.bytes_per_s, "a second"),
            amount(self.bytes_per_month, "a month"),
        ];
        said.into_iter().flatten().collect()
    }

    /// An amount of bytes in the largest unit that leaves no fraction: `10 MB`, `64 KiB`, `1500 bytes`.
    fn show_bytes(bytes: NonZeroU64) -> String {
        let bytes = bytes.get();
        match UNITS.iter().find(|(_, unit)| bytes.is_multiple_of(*unit)) {
            Some((name, unit)) => format!("{} {name}", bytes / unit),
            None if bytes == 1 => "1 byte".to_owned(),
            None => format!("{bytes} bytes"),
        }
    }

    /// This one, and where it says nothing `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            sessions: self.sessions.or(other.sessions),
            streams: self.streams.or(other.streams),
            dials_per_s: self.dials_per_s.or(other.dials_per_s),
            bytes_per_s: self.bytes_per_s.or(other.bytes_per_s),
            bytes_per_month: self.bytes_per_month.or(other.bytes_per_month),
        }
    }
}

/// Bytes as people write them: `1000000`, `1MB`, `1MiB`.
fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<Option<NonZeroU64>, D::Error> {
    d.deserialize_any(BytesVisitor).map(Some)
}

struct BytesVisitor;

impl de::Visitor<'_> for BytesVisitor {
    type Value = NonZeroU64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes, more than 0: a number, or a text such as 10MB or 64KiB (k, M, G, T; i for powers of 1024)")
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<NonZeroU64, E> {
        NonZeroU64::new(bytes).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(bytes), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<NonZeroU64, E> {
        parse_bytes(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

fn parse_bytes(text: &str) -> Option<NonZeroU64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim_start() {
        "" | "B" => 1,
        "KB" => 1_000,
        unit => UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    NonZeroU64::new(number.parse::<u64>().ok()?.checked_mul(unit)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_goes_before_the_default() {
        let said: Allowance = serde_json::from_str(r#"{"sessions":1,"bytes_per_s":10}"#).unwrap();
        let default: Allowance = serde_json::from_str(r#"{"sessions":9,"streams":8}"#).unwrap();
        assert_eq!(
            serde_json::to_string(&said.or(default)).unwrap(),
            r#"{"sessions":1,"streams":8,"bytes_per_s":10}"#
        );
        assert!(Allowance::default().is_silent() && !said.is_silent());
    }

    #[test]
    fn bytes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("1", 1),
            ("10MB", 10_000_000),
            ("10 MB", 10_000_000),
            ("64KiB", 65_536),
            ("1kB", 1_000),
            ("2TiB", 2 << 40),
            ("5B", 5),
        ] {
            let read: Allowance = serde_yaml::from_str(&format!("bytes_per_s: {text}")).unwrap();
            assert_eq!(read.bytes_per_s, NonZeroU64::new(bytes), "{text}");
        }
        for bad in ["0", "0MB", "MB", "-1", "1.5MB", "10Mb", "10M", "99999999999TB", "\"\"", "null", "[1]"] {
            assert!(serde_yaml::from_str::<Allowance>(&format!("bytes_per_s: {bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_said_in_whole_units_and_read_back() {
        let show = |bytes| Allowance::show_bytes(NonZeroU64::new(bytes).unwrap());
        for (bytes, says) in [
            (1, "1 byte"),
            (2, "2 bytes"),
            (1_500, "1500 bytes"),
            (2_000, "2 kB"),
            (65_536, "64 KiB"),
            (10_000_000, "10 MB"),
            (1_000_000_000_000, "1 TB"),
            (3 << 30, "3 GiB"),
            (3 << 40, "3 TiB"),
            // In both systems.
            (1_024_000, "1000 KiB"),
            (1_000 << 30, "1000 GiB"),
        ] {
            assert_eq!(show(bytes), says);
        }
        let units = UNITS.iter().map(|(_, unit)| *unit).chain([1]);
        let around = units.flat_map(|unit| [1, 3, 999, 1_000, 1_024, 1_000_000].map(|n| n * unit));
        let all = around.flat_map(|bytes| [bytes - 1, bytes, bytes + 1]).chain([u64::MAX]);
        for bytes in all.filter(|bytes| *bytes > 0) {
            let said = show(bytes);
            // Without a unit the number alone is what is written.
            let written = said.trim_end_matches(" bytes").trim_end_matches(" byte");
            assert_eq!(parse_bytes(written), NonZeroU64::new(bytes), "{said}");
        }
    }

    #[test]
    fn nothing_and_everything_are_no_limits() {
        for bad in [
            r#"{"sessions":0}"#,
            r#"{"sessions":-1}"#,
            r#"{"sessions":4294967296}"#,
            r#"{"bytes":1}"#,
            "null",
        ] {
            assert!(serde_json::from_str::<Allowance>(bad).is_err(), "{bad}");
        }
    }
}
