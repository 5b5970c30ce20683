//! Role: which ports a rule is about: every one, one, a range, or a list of these.
//! Invariants: no empty and no reversed range; 0 stands for every port and for nothing else.

use std::{fmt, num::IntErrorKind};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Unexpected},
};

/// Ports of a rule, in the order in which they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ports(
    /// None: every port.
    Box<[Range]>,
);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Range {
    first: u16,
    last: u16,
}

impl Ports {
    /// Every port, and what has none (ICMP).
    pub fn any() -> Self {
        Self::default()
    }

    /// Whether `port` is meant.
    pub fn contain(&self, port: u16) -> bool {
        self.0.is_empty() || self.0.iter().any(|range| (range.first..=range.last).contains(&port))
    }
}

impl Ports {
    /// The first that is named; `None` where every one is meant.
    pub(super) fn first(&self) -> Option<u16> {
        self.0.first().map(|range| range.first)
    }

    /// As people write it on a command line: `*`, `22`, `22,8000-8100`.
    pub(super) fn parse_short(text: &str) -> Result<Self, PortsError> {
        if text == "*" {
            return Ok(Self::any());
        }
        text.split(',').map(Range::parse).collect::<Result<_, _>>().map(Self)
    }

    /// As people write it in YAML: `0`, `22`, `8000-8100`, `[22, 80]`.
    pub(super) fn written(&self) -> String {
        match &*self.0 {
            [] => "0".to_owned(),
            [range] => range.to_string(),
            _ => format!("[{self}]"),
        }
    }
}

fn port(text: &str) -> Result<u16, PortsError> {
    let text = text.trim();
    match text.parse::<u16>() {
        Ok(port) if port != 0 => Ok(port),
        Err(e) if *e.kind() == IntErrorKind::PosOverflow => Err(PortsError::Large(text.to_owned())),
        _ => Err(PortsError::NoPort(text.to_owned())),
    }
}

/// A text that names no ports. Its writer's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortsError {
    /// Not a number, or 0.
    #[error("{0} is no port")]
    NoPort(String),
    /// A number that is no port's.
    #[error("{0} is no port: ports end at 65535")]
    Large(String),
    /// A range from its end to its beginning.
    #[error("{first}-{last} is reversed: did you mean {last}-{first}?")]
    Reversed {
        /// What is written first.
        first: u16,
        /// What is written last.
        last: u16,
    },
}

/// One port; 0 stands for every port.
impl From<u16> for Ports {
    fn from(port: u16) -> Self {
        if port == 0 { Self::any() } else { Self([Range { first: port, last: port }].into()) }
    }
}

impl Range {
    fn parse(text: &str) -> Result<Self, PortsError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(PortsError::Reversed { first, last });
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// As people read it: `any`, `22`, `8000-8100`, `22, 80`.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if index == 0 { "" } else { ", " })?;
        }
        if self.0.is_empty() { f.write_str("any") } else { Ok(()) }
    }
}

impl Serialize for Range {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last { s.serialize_u16(self.first) } else { s.collect_str(self) }
    }
}

/// 0, a port, a range as a text, or a list.
impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match &*self.0 {
            [] => s.serialize_u16(0),
            [range] => range.serialize(s),
            ranges => s.collect_seq(ranges),
        }
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(PortsVisitor)
    }
}

struct PortsVisitor;

impl<'de> de::Visitor<'de> for PortsVisitor {
    type Value = Ports;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port, a range such as 8000-8100, a list such as [22, 80], or 0 or null for every port")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Ports, E> {
        Ok(Ports::any())
    }

    fn visit_none<E: de::Error>(self) -> Result<Ports, E> {
        Ok(Ports::any())
    }

    fn visit_u64<E: de::Error>(self, port: u64) -> Result<Ports, E> {
        let number = u16::try_from(port).map_err(|_| E::invalid_value(Unexpected::Unsigned(port), &self))?;
        Ok(number.into())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Ports, E> {
        let range = Range::parse(text).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))?;
        Ok(Ports([range].into()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Ports, A::Error> {
        let mut ranges = Vec::new();
        while let Some(range) = seq.next_element()? {
            ranges.push(range);
        }
        if ranges.is_empty() {
            return Err(de::Error::invalid_length(0, &self));
        }
        Ok(Ports(ranges.into()))
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(RangeVisitor)
    }
}

struct RangeVisitor;

impl de::Visitor<'_> for RangeVisitor {
    type Value = Range;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port from 1 to 65535 or a range such as 8000-8100")
    }

    fn visit_u64<E: de::Error>(self, port: u64) -> Result<Range, E> {
        let number = u16::try_from(port).ok().filter(|number| *number != 0);
        let number = number.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(port), &self))?;
        Ok(Range { first: number, last: number })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Range, E> {
        Range::parse(text).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_people_write_them() {
        for (yaml, json, shown, yes, no) in [
            ("0", "0", "any", &[0, 1, 65_535][..], &[][..]),
            ("null", "0", "any", &[0, 22], &[]),
            ("~", "0", "any", &[0, 22], &[]),
            ("22", "22", "22", &[22], &[0, 21, 23]),
            ("65535", "65535", "65535", &[65_535], &[0]),
            ("8000-8100", "\"8000-8100\"", "8000-8100", &[8000, 8050, 8100], &[7999, 8101, 0]),
            ("\"8000 - 8100\"", "\"8000-8100\"", "8000-8100", &[8000], &[]),
            ("1-65535", "\"1-65535\"", "1-65535", &[1, 65_535], &[0]),
            ("[22, 80]", "[22,80]", "22, 80", &[22, 80], &[0, 23, 79]),
            ("[22, 8000-8100, \"443\"]", "[22,\"8000-8100\",443]", "22, 8000-8100, 443", &[443, 8001], &[80]),
            ("[22]", "22", "22", &[22], &[23]),
        ] {
            let ports: Ports = serde_yaml::from_str(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"));
            assert_eq!(serde_json::to_string(&ports).unwrap(), json, "{yaml}");
            assert_eq!(serde_json::from_str::<Ports>(json).unwrap(), ports, "{yaml}");
            assert_eq!(ports.to_string(), shown, "{yaml}");
            yes.iter().for_each(|port| assert!(ports.contain(*port), "{yaml} {port}"));
            no.iter().for_each(|port| assert!(!ports.contain(*port), "{yaml} {port}"));
        }
    }

    #[test]
    fn what_means_no_port_or_two_things_is_refused() {
        for bad in [
            "-1",
            "65536",
            "[]",
            "[0]",
            "[null]",
            "[22, 0]",
            "[[22]]",
            "\"\"",
            "\"-\"",
            "\"22-\"",
            "\"-22\"",
            "0-22",
            "80-22",
            "22-65536",
            "\"22,80\"",
            "ssh",
            "true",
            "22.0",
            "{a: 1}",
            "\"0\"",
        ] {
            let read = serde_yaml::from_str::<Ports>(bad);
            assert!(read.is_err(), "{bad}: {read:?}");
        }
    }
}
