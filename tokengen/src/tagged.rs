//! Role: YAML read so that what is wrong with a value is said at that value's own line and column.
//! Invariants: nothing here knows what the values mean.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{
        self,
        value::{EnumAccessDeserializer, MapAccessDeserializer},
    },
};

/// Something with a tag. Read by way of `deserialize_any`: of an unknown tag serde_yaml would otherwise
/// give the place of the list it is in, not its own.
#[derive(Debug)]
pub(crate) struct Tagged<T>(pub(crate) T);

/// A mapping, and nothing else: serde_yaml would read an empty value as one without keys. What is wrong
/// with it as a whole gets its place, too.
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
        let wrong = |yaml| serde_yaml::from_str::<Vec<Tagged<Shape>>>(yaml).unwrap_err().to_string();
        assert_eq!(
            wrong("- !Dot 1\n- !Spot 2"),
            ".[1]: unknown variant `Spot`, expected `Dot` at line 2 column 3"
        );
        assert_eq!(wrong("- Dot"), ".[0]: invalid type: string \"Dot\", expected a shape at line 1 column 3");
        let Tagged(Shape::Dot(dot)) = serde_yaml::from_str("!Dot 7").unwrap();
        assert_eq!(dot, 7);
    }

    #[test]
    fn nothing_is_no_mapping() {
        let wrong = |yaml| serde_yaml::from_str::<Vec<Mapping<Point>>>(yaml).unwrap_err().to_string();
        assert_eq!(wrong("-"), ".[0]: invalid type: unit value, expected a point at line 1 column 2");
        assert_eq!(wrong("- {y: 1}"), ".[0]: unknown field `y`, expected `x` at line 1 column 4");
        let Mapping(Point { x }) = serde_yaml::from_str("{x: 7}").unwrap();
        assert_eq!(x, 7);
    }
}
