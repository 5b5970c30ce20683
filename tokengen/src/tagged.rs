//! Role: YAML where a tag, or a mapping, must stand.
//! Invariants: nothing here knows what the values mean.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{
        self,
        value::{EnumAccessDeserializer, MapAccessDeserializer},
    },
};

/// Something with a tag. What else stands there is told what is expected, in words.
#[derive(Debug)]
pub(crate) struct Tagged<T>(pub(crate) T);

/// A mapping, and nothing else: an empty value would otherwise be one without keys.
#[derive(Debug)]
pub(crate) struct Mapping<T>(pub(crate) T);

/// What an error says when something else stands there.
pub(crate) trait Expected {
    /// Fits behind "expected".
    const EXPECTED: &'static str;
}

impl<'de, T: Deserialize<'de> + Expected> Deserialize<'de> for Tagged<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(TaggedVisitor(PhantomData))
    }
}

struct TaggedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + Expected> de::Visitor<'de> for TaggedVisitor<T> {
    type Value = Tagged<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, tagged: A) -> Result<Tagged<T>, A::Error> {
        T::deserialize(EnumAccessDeserializer::new(tagged)).map(Tagged)
    }
}

impl<'de, T: Deserialize<'de> + Expected> Deserialize<'de> for Mapping<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(MappingVisitor(PhantomData))
    }
}

struct MappingVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + Expected> de::Visitor<'de> for MappingVisitor<T> {
    type Value = Mapping<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Mapping<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Mapping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    enum Shape {
        Dot(i32),
    }

    impl Expected for Shape {
        const EXPECTED: &'static str = "a shape";
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Point {
        #[serde(default)]
        x: i32,
    }

    impl Expected for Point {
        const EXPECTED: &'static str = "a point";
    }

    #[test]
    fn a_value_that_is_wrong_is_named_with_its_own_place() {
        let wrong = |yaml| narrowlink_proto::yaml::read::<Vec<Tagged<Shape>>>(yaml).unwrap_err().to_string();
        assert_eq!(wrong("- !Dot 1\n- !Spot 2"), "line 2 column 3: [1]: unknown tag; expected `!Dot`");
        assert_eq!(wrong("- Dot"), "line 1 column 3: [0]: expected a shape, found a text");
        let Tagged(Shape::Dot(dot)) = narrowlink_proto::yaml::read("!Dot 7").unwrap();
        assert_eq!(dot, 7);
    }

    #[test]
    fn nothing_is_no_mapping() {
        let wrong = |yaml| narrowlink_proto::yaml::read::<Vec<Mapping<Point>>>(yaml).unwrap_err().to_string();
        assert_eq!(wrong("-"), "line 1 column 2: [0]: expected a point, found nothing");
        assert_eq!(wrong("- {y: 1}"), "line 1 column 4: [0]: unknown key; expected `x`");
        let Mapping(Point { x }) = narrowlink_proto::yaml::read("{x: 7}").unwrap();
        assert_eq!(x, 7);
    }
}
