//! Role: makes values of a tree, and puts what is wrong at the node it is about.
//! Invariants: a text with the form of a token or a secret goes only to who asks for one, so that it can end up neither
//! in a path nor in a name, and from there in a message · a tag that nobody expects is an error, as a key is.
//! See: serde.rs "Implementing a deserializer".

use serde::{
    Deserializer,
    de::{self, DeserializeSeed, Error as _, Expected, Unexpected, Visitor},
};

use super::{
    SECRET, TOKEN,
    fault::{Fault, Step, What, in_words},
    tree::{Node, Scalar, Shape},
};
use crate::secrecy::{Form, looks_like_path, recognise};

/// A node that is to become a value.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    node: &'a Node,
    /// Its tag has been read.
    untagged: bool,
    /// What it is for, where that is not to be shown.
    holds: Option<Form>,
}

impl<'a> Value<'a> {
    pub(super) const fn new(node: &'a Node) -> Self {
        Self { node, untagged: false, holds: None }
    }

    fn tag(&self) -> Option<&'a str> {
        if self.untagged { None } else { self.node.tag.as_deref() }
    }

    /// The same error, and where it is.
    fn place<T>(self, result: Result<T, Fault>) -> Result<T, Fault> {
        result.map_err(|fault| fault.or_at(self.node.place, self.node.values().into_iter()))
    }

    fn wrong_type<T>(self, expected: &dyn Expected) -> Result<T, Fault> {
        let got =
            if self.untagged { Node { tag: None, ..self.node.clone() }.kind() } else { self.node.kind() };
        Err(Fault::new(What::Type { got, expected: in_words(&expected.to_string()) }))
    }

    /// The text of a scalar, for whom it may be for.
    fn text(self, expected: &dyn Expected) -> Result<&'a str, Fault> {
        let (None, Shape::Scalar { text, .. }) = (self.tag(), &self.node.shape) else {
            return self.wrong_type(expected);
        };
        if self.node.scalar() == Some(Scalar::Null) {
            return self.wrong_type(expected);
        }
        self.show(text, expected)
    }

    fn show(self, text: &'a str, expected: &dyn Expected) -> Result<&'a str, Fault> {
        match recognise(text) {
            Some(form) if self.holds != Some(form) => {
                let expected =
                    self.holds.map_or_else(|| in_words(&expected.to_string()), |form| form.to_string());
                Err(Fault::new(What::Misplaced { form, expected }))
            }
            None if self.holds == Some(Form::Token) && looks_like_path(text) => {
                Err(Fault::new(What::PathForToken))
            }
            _ => Ok(text),
        }
    }

    fn whole_number<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let number = match (self.tag(), self.node.scalar()) {
            (None, Some(Scalar::Unsigned(number))) => visitor.visit_u64(number),
            (None, Some(Scalar::Signed(number))) => visitor.visit_i64(number),
            _ => self.wrong_type(&visitor),
        };
        self.place(number)
    }

    fn list<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let items: &[Node] = match (self.tag(), &self.node.shape) {
            (None, Shape::List(items)) => items,
            (None, Shape::Scalar { .. }) if self.node.scalar() == Some(Scalar::Null) => &[],
            _ => return self.place(self.wrong_type(&visitor)),
        };
        let mut list = List { items: items.iter().enumerate() };
        let value = visitor.visit_seq(&mut list).and_then(|value| match list.items.next() {
            Some((taken, _)) => Err(Fault::rule(format!("expected {taken} values, found {}", items.len()))),
            None => Ok(value),
        });
        self.place(value)
    }

    fn map<V: Visitor<'a>>(self, visitor: V, known: &'static [&'static str]) -> Result<V::Value, Fault> {
        let pairs: &[(Node, Node)] = match (self.tag(), &self.node.shape) {
            (None, Shape::Map(pairs)) => pairs,
            (None, Shape::Scalar { .. }) if self.node.scalar() == Some(Scalar::Null) => &[],
            _ => return self.place(self.wrong_type(&visitor)),
        };
        self.place(visitor.visit_map(Map { pairs: pairs.iter(), value: None, known }))
    }
}

/// Whole numbers of every size are one to YAML.
macro_rules! whole_numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.whole_number(visitor)
        })*
    };
}

impl<'a> Deserializer<'a> for Value<'a> {
    type Error = Fault;

    whole_numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
    }

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.tag().is_some() {
            return self.place(visitor.visit_enum(self));
        }
        let value = match (&self.node.shape, self.node.scalar()) {
            (Shape::List(_), _) => return self.list(visitor),
            (Shape::Map(_), _) => return self.map(visitor, &[]),
            (_, Some(Scalar::Null) | None) => visitor.visit_unit(),
            (_, Some(Scalar::Bool(value))) => visitor.visit_bool(value),
            (_, Some(Scalar::Unsigned(number))) => visitor.visit_u64(number),
            (_, Some(Scalar::Signed(number))) => visitor.visit_i64(number),
            (_, Some(Scalar::Float(number))) => visitor.visit_f64(number),
            (_, Some(Scalar::Text(text))) => {
                self.show(text, &visitor).and_then(|text| visitor.visit_borrowed_str(text))
            }
        };
        self.place(value)
    }

    fn deserialize_bool<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let value = match (self.tag(), self.node.scalar()) {
            (None, Some(Scalar::Bool(value))) => visitor.visit_bool(value),
            _ => self.wrong_type(&visitor),
        };
        self.place(value)
    }

    fn deserialize_f32<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_f64(visitor)
    }

    #[expect(clippy::cast_precision_loss, reason = "what is asked for is a fraction")]
    fn deserialize_f64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let number = match (self.tag(), self.node.scalar()) {
            (None, Some(Scalar::Unsigned(number))) => visitor.visit_f64(number as f64),
            (None, Some(Scalar::Signed(number))) => visitor.visit_f64(number as f64),
            (None, Some(Scalar::Float(number))) => visitor.visit_f64(number),
            _ => self.wrong_type(&visitor),
        };
        self.place(number)
    }

    fn deserialize_char<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.place(self.text(&visitor).and_then(|text| visitor.visit_borrowed_str(text)))
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.tag().is_none() && self.node.scalar() == Some(Scalar::Null) {
            return self.place(visitor.visit_none());
        }
        self.place(visitor.visit_some(self))
    }

    fn deserialize_unit<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let value = match (self.tag(), self.node.scalar()) {
            (None, Some(Scalar::Null)) => visitor.visit_unit(),
            _ => self.wrong_type(&visitor),
        };
        self.place(value)
    }

    fn deserialize_unit_struct<V: Visitor<'a>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let holds = match name {
            TOKEN => Some(Form::Token),
            SECRET => Some(Form::Secret),
            _ => self.holds,
        };
        self.place(visitor.visit_newtype_struct(Self { holds, ..self }))
    }

    fn deserialize_seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_tuple<V: Visitor<'a>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.map(visitor, &[])
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.map(visitor, known)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let is_word = matches!(self.node.shape, Shape::Scalar { .. }) && !self.node.is_null();
        if self.tag().is_some() || is_word {
            return self.place(visitor.visit_enum(self));
        }
        let expected = (&visitor as &dyn Expected).to_string();
        // What serde says where nobody has said it better.
        let expected = if expected.starts_with("enum ") { one_of(known) } else { expected };
        self.place(self.wrong_type(&expected.as_str()))
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }
}

fn one_of(words: &[&str]) -> String {
    words.iter().map(|word| format!("!{word}")).collect::<Vec<_>>().join(" or ")
}

struct List<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'a> de::SeqAccess<'a> for &mut List<'a> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let value = seed.deserialize(Value::new(node));
        value.map(Some).map_err(|fault| fault.within(Step::Index(index)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Map<'a> {
    pairs: std::slice::Iter<'a, (Node, Node)>,
    value: Option<&'a (Node, Node)>,
    /// The keys that can stand here, if they are not the user's to choose.
    known: &'static [&'static str],
}

impl<'a> de::MapAccess<'a> for Map<'a> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let Some(pair) = self.pairs.next() else { return Ok(None) };
        self.value = Some(pair);
        seed.deserialize(Value::new(&pair.0)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let Some((key, value)) = self.value.take() else {
            return Err(Fault::custom("a value without its key"));
        };
        let step = match key.scalar() {
            Some(Scalar::Text(key)) => {
                let known = self.known.iter().find(|known| **known == key).copied();
                known.or_else(|| super::keys::known(key)).map_or(Step::Chosen, Step::Key)
            }
            _ => Step::Chosen,
        };
        seed.deserialize(Value::new(value)).map_err(|fault| match step {
            // A value may be wrong because of its key, and the message have that.
            Step::Chosen => fault.without(key.values().into_iter()).within(step),
            step => fault.within(step),
        })
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.pairs.len())
    }
}

/// The name of a variant: a tag, or a word that stands for one.
impl<'a> de::EnumAccess<'a> for Value<'a> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'a>>(self, seed: S) -> Result<(S::Value, Self), Fault> {
        let (word, tagged) = match (self.tag(), &self.node.shape) {
            (Some(tag), _) => (tag, true),
            (None, Shape::Scalar { text, .. }) => (text.as_str(), false),
            (None, _) => return Err(Fault::invalid_type(Unexpected::Map, &"a tag")),
        };
        let word = self.show(word, &"one of the known words")?;
        let variant = seed.deserialize(de::value::BorrowedStrDeserializer::<Fault>::new(word));
        let variant = variant.map_err(|fault| if tagged { fault.of_tag() } else { fault })?;
        // What is behind a tag is something else: a path behind `!File` is no secret.
        Ok((variant, Self { untagged: true, holds: None, ..self }))
    }
}

/// What stands behind the tag.
impl<'a> de::VariantAccess<'a> for Value<'a> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        // A word is all of itself; a tag alone stands before nothing.
        if self.node.tag.is_none() || self.node.scalar() == Some(Scalar::Null) {
            return Ok(());
        }
        self.place(self.wrong_type(&"nothing behind the tag"))
    }

    fn newtype_variant_seed<S: DeserializeSeed<'a>>(self, seed: S) -> Result<S::Value, Fault> {
        if self.node.tag.is_none() {
            return self.place(Err(Fault::rule("a tag is needed: what stands behind it says more")));
        }
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'a>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn struct_variant<V: Visitor<'a>>(
        self,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.map(visitor, known)
    }
}
