//! Role: an error about a value that is valid YAML but makes no sense, put at the line it stands on.
//! Invariants: the file is read a second time for it, so that values need not carry their places around.

use std::{borrow::Cow, fmt};

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IgnoredAny, MapAccess, SeqAccess, VariantAccess,
};

/// What is wrong, and on which way down from the document's root it stands.
#[derive(Debug)]
pub(super) struct Complaint {
    path: Vec<Step>,
    what: Cow<'static, str>,
}

/// One step down.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Key(&'static str),
    Index(usize),
}

impl From<&'static str> for Step {
    fn from(key: &'static str) -> Self {
        Self::Key(key)
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

impl Complaint {
    pub(super) fn new(path: &[Step], what: impl Into<Cow<'static, str>>) -> Self {
        Self { path: path.to_vec(), what: what.into() }
    }

    /// The same complaint, seen from further up.
    pub(super) fn within(mut self, parent: &[Step]) -> Self {
        self.path.splice(0..0, parent.iter().copied());
        self
    }

    /// The error that serde would have made, had it known what we know.
    pub(super) fn locate(&self, text: &str) -> serde_yaml::Error {
        let walk = Walk { path: &self.path, what: &self.what };
        match walk.deserialize(serde_yaml::Deserializer::from_str(text)) {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }
}

enum Never {}

/// Walks down the path, then fails.
struct Walk<'a> {
    path: &'a [Step],
    what: &'a str,
}

impl Walk<'_> {
    fn fail<E: de::Error>(&self) -> Result<Never, E> {
        Err(E::custom(self.what))
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Never;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Never, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for Walk<'_> {
    type Value = Never;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Never, A::Error> {
        if let [Step::Key(wanted), rest @ ..] = self.path {
            while let Some(key) = map.next_key::<String>()? {
                if key == *wanted {
                    return map.next_value_seed(Walk { path: rest, what: self.what });
                }
                map.next_value::<IgnoredAny>()?;
            }
        }
        self.fail()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Never, A::Error> {
        if let [Step::Index(wanted), rest @ ..] = self.path {
            for _ in 0..*wanted {
                seq.next_element::<IgnoredAny>()?;
            }
            if let Some(never) = seq.next_element_seed(Walk { path: rest, what: self.what })? {
                match never {}
            }
        }
        self.fail()
    }

    /// A tag is no step: what it stands before is.
    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Never, A::Error> {
        let (_tag, content) = data.variant::<String>()?;
        content.newtype_variant_seed(self)
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Never, E> {
        self.fail()
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Never, E> {
        self.fail()
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Never, E> {
        self.fail()
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Never, E> {
        self.fail()
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Never, E> {
        self.fail()
    }
    fn visit_unit<E: de::Error>(self) -> Result<Never, E> {
        self.fail()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "name: gw\nlist:\n  - !Tag { a: [1, 2], b: x }\n  - !Tag\n    a: [3, 4]\n    b: null\n";

    fn check(path: &[Step], expected: &str) {
        assert_eq!(Complaint::new(path, "no good").locate(TEXT).to_string(), expected);
    }

    #[test]
    fn a_complaint_stands_where_its_value_stands() {
        check(&["name".into()], "name: no good at line 1 column 7");
        check(&["list".into(), 0.into(), "a".into(), 1.into()], "list[0].a[1]: no good at line 3 column 19");
        check(&["list".into(), 0.into(), "b".into()], "list[0].b: no good at line 3 column 26");
        check(&["list".into(), 1.into(), "b".into()], "list[1].b: no good at line 6 column 8");
    }

    #[test]
    fn a_value_that_is_not_there_is_complained_about_where_it_should_be() {
        check(&["other".into()], "no good");
        check(&["list".into(), 7.into()], "list: no good at line 3 column 3");
        check(&["name".into(), "deeper".into()], "name: no good at line 1 column 7");
    }
}
