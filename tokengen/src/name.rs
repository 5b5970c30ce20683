//! Role: the name of an agent or client, as the file writes it.
//! Invariants: checked here and not only when signing, so that the error has a line and a column.

use std::fmt;

use narrowlink_proto::token::is_name;
use serde::{Deserialize, Deserializer, de};

/// A name that a token may carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) String);

impl Name {
    pub(crate) fn parse<E: de::Error>(text: &str) -> Result<Self, E> {
        if is_name(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(E::invalid_value(de::Unexpected::Str(text), &NameVisitor))
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl de::Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("1 to 128 printable bytes without space at the ends")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Name, E> {
        Name::parse(text)
    }
}
