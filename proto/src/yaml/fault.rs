//! Role: what is wrong with a configuration, and where.
//! Invariants: nothing in it was written by the user, but for a key or tag that is like one we know: neither value nor
//! unknown key is ever shown, for it might be a secret in the wrong place.
//! See: `secrecy`, which tells a secret by its looks.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

use super::keys::{self, Like};
use crate::secrecy::{Form, without_value};

/// A place in a text, as editors count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

/// One step down from the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// To a key that the program knows.
    Key(&'static str),
    /// To a key that the user chose: a name, a uid. It is not shown.
    Chosen,
    /// Into a list.
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

/// What is wrong, where, on which way down from the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(Box<Inner>);

/// Behind a pointer, so that results stay small where nothing is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    place: Option<Place>,
    path: Vec<Step>,
    what: What,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// Not YAML.
    Syntax(String),
    SecondDocument,
    TooDeep,
    Endless,
    TooManyAliases,
    /// A key stands there the second time.
    Twice {
        first: Place,
    },
    /// Another type than the one that is expected.
    Type {
        got: &'static str,
        expected: String,
    },
    /// The right type, and not one of its values.
    Value {
        expected: String,
    },
    /// A key that nobody reads here.
    Key {
        like: Option<Like>,
        known: Vec<&'static str>,
    },
    /// A word or tag that is none of those that can stand here.
    Variant {
        like: Option<&'static str>,
        known: Vec<&'static str>,
        tagged: bool,
    },
    Missing(&'static str),
    /// Something that is not to be shown, in a place that is for something else.
    Misplaced {
        form: Form,
        expected: String,
    },
    /// A path in the place of a token.
    PathForToken,
    /// A rule of ours, in its own words.
    Rule(String),
}

impl Place {
    /// Lines count from 1; `column` from 0.
    pub(super) const fn new(line: usize, column: usize) -> Self {
        Self { line, column: column + 1 }
    }
}

impl Fault {
    pub(super) fn new(what: What) -> Self {
        Self(Box::new(Inner { place: None, path: Vec::new(), what }))
    }

    pub(super) fn at(place: Place, what: What) -> Self {
        Self(Box::new(Inner { place: Some(place), path: Vec::new(), what }))
    }

    /// A rule that a value breaks, in words that don't repeat it.
    pub(super) fn rule(words: impl Into<String>) -> Self {
        Self::new(What::Rule(words.into()))
    }

    /// Where it is, if it is in a text.
    pub fn place(&self) -> Option<Place> {
        self.0.place
    }

    /// The same, seen from one step further up.
    pub(super) fn within(mut self, step: Step) -> Self {
        self.0.path.insert(0, step);
        self
    }

    /// The same, and where, if nobody further down has said it: then `values` are those that it is about, and a message
    /// of somebody else's must not repeat them.
    pub(super) fn or_at<'a>(mut self, place: Place, values: impl Iterator<Item = &'a str>) -> Self {
        if self.0.place.is_some() {
            return self;
        }
        self.0.place = Some(place);
        self.without(values)
    }

    /// The same without what the user wrote, if it is said in somebody else's words.
    pub(super) fn without<'a>(mut self, values: impl Iterator<Item = &'a str>) -> Self {
        if let What::Rule(words) = &mut self.0.what {
            *words = without_values(words, values);
        }
        self
    }

    fn last_key(&self) -> Option<&'static str> {
        self.0.path.iter().rev().find_map(|step| match step {
            Step::Key(key) => Some(*key),
            Step::Chosen | Step::Index(_) => None,
        })
    }
}

fn without_values<'a>(words: &str, mut values: impl Iterator<Item = &'a str>) -> String {
    let shown = values.try_fold(words.to_owned(), |words, value| without_value(&words, value));
    shown.unwrap_or_else(|| "not a value that can stand here".to_owned())
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { line, column }) = self.0.place {
            write!(f, "line {line} column {column}: ")?;
        }
        write_path(f, &self.0.path)?;
        if !self.0.path.is_empty() {
            f.write_str(": ")?;
        }
        self.0.what.write(f, self.last_key())
    }
}

/// A way down from the root, as messages have it: `endpoints[0].ca_file`.
pub(super) fn write_path(f: &mut fmt::Formatter<'_>, path: &[Step]) -> fmt::Result {
    for (at, step) in path.iter().enumerate() {
        match step {
            Step::Key(key) if at == 0 => f.write_str(key)?,
            Step::Key(key) => write!(f, ".{key}")?,
            Step::Chosen => f.write_str(if at == 0 { "…" } else { ".…" })?,
            Step::Index(index) => write!(f, "[{index}]")?,
        }
    }
    Ok(())
}

impl What {
    fn write(&self, f: &mut fmt::Formatter<'_>, key: Option<&str>) -> fmt::Result {
        match self {
            // The parser's words for what everybody meets who has another editor.
            Self::Syntax(why) if why.contains("tab") => {
                write!(f, "not YAML: {why}; indent with spaces in place of tabs")
            }
            Self::Syntax(why) => write!(f, "not YAML: {why}"),
            Self::SecondDocument => f.write_str("a second document begins here; a file holds one"),
            Self::TooDeep => f.write_str("nested too deeply"),
            Self::Endless => f.write_str("this alias repeats itself"),
            Self::TooManyAliases => f.write_str("aliases repeat too much"),
            Self::Twice { first } => {
                write!(f, "this key stands twice, first in line {}: keep one of them", first.line)
            }
            Self::Type { got, expected } => write!(f, "expected {expected}, found {got}"),
            Self::Value { expected } => write!(f, "expected {expected}"),
            Self::Key { like: Some(Like::Earlier(words)), .. } => f.write_str(words),
            Self::Key { like: Some(Like::Here(meant)), .. } => {
                write!(f, "unknown key, did you mean `{meant}`?")
            }
            Self::Key { like: Some(Like::Elsewhere { key, place, here: Some(meant) }), .. } => {
                write!(f, "`{key}` does not belong here but to {place}; did you mean `{meant}`?")
            }
            Self::Key { like: Some(Like::Elsewhere { key, place, here: None }), known } => {
                write!(f, "`{key}` does not belong here but to {place}; here are ")?;
                keys::list(f, known, "")
            }
            Self::Key { like: Some(Like::Near { key, place }), known } => {
                write!(
                    f,
                    "unknown key; did you mean `{key}`? That does not belong here but to {place}; here are "
                )?;
                keys::list(f, known, "")
            }
            Self::Key { like: None, known } => {
                f.write_str("unknown key; expected ")?;
                keys::list(f, known, "")
            }
            Self::Variant { like, known, tagged } => {
                let mark = if *tagged { "!" } else { "" };
                let noun = if *tagged { "tag" } else { "word" };
                match like {
                    Some(meant) => write!(f, "unknown {noun}, did you mean `{mark}{meant}`? Expected ")?,
                    None => write!(f, "unknown {noun}; expected ")?,
                }
                keys::list(f, known, mark)
            }
            Self::Missing(key) => write!(f, "`{key}` is missing: add `{key}: ..`"),
            Self::Misplaced { form, expected } => {
                write!(f, "{form} stands here; expected {expected}")?;
                match (form, key) {
                    (Form::Token, Some("token_file")) => f.write_str("; did you mean `token:`?"),
                    (Form::Token, _) => f.write_str("; a token belongs to `token:` of an endpoint"),
                    (Form::Ticket, _) => f.write_str(
                        "; a ticket belongs into no file: `narrowlink-agent join` or `narrowlink login` takes it",
                    ),
                    (Form::Secret, _) => {
                        f.write_str("; a secret belongs to `secret:` or `old_secrets:`, without a tag")
                    }
                }
            }
            Self::PathForToken => {
                f.write_str("this looks like a path, not like a token; did you mean `token_file:`?")
            }
            Self::Rule(words) => f.write_str(words),
        }
    }
}

/// Nothing of what serde's callers found is kept, only what they expected.
impl de::Error for Fault {
    fn custom<T: fmt::Display>(words: T) -> Self {
        Self::rule(words.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(What::Type { got: name_of(found), expected: in_words(&expected.to_string()) })
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(What::Value { expected: in_words(&expected.to_string()) })
    }

    fn invalid_length(count: usize, expected: &dyn Expected) -> Self {
        let expected = in_words(&expected.to_string());
        Self::rule(format!("expected {expected}, found {count} of them"))
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        if let Some(words) = keys::earlier_tag(word, known) {
            return Self::rule(words);
        }
        let like = keys::like(word, known);
        Self::new(What::Variant { like, known: known.to_vec(), tagged: false })
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Self::new(What::Key { like: keys::meant(key, known), known: known.to_vec() })
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(What::Missing(key))
    }

    fn duplicate_field(key: &'static str) -> Self {
        Self::rule(format!("`{key}` stands here twice"))
    }
}

impl Fault {
    /// The same about a tag, if it is about a word.
    pub(super) fn of_tag(mut self) -> Self {
        if let What::Variant { tagged, .. } = &mut self.0.what {
            *tagged = true;
        }
        self
    }
}

const fn name_of(found: Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "true or false",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "a number",
        Unexpected::Char(_) | Unexpected::Str(_) | Unexpected::Bytes(_) => "a text",
        Unexpected::Unit | Unexpected::Option => "nothing",
        Unexpected::Seq => "a list",
        Unexpected::Map | Unexpected::StructVariant => "keys and values",
        Unexpected::Enum | Unexpected::NewtypeStruct | Unexpected::NewtypeVariant => "something with a tag",
        Unexpected::UnitVariant | Unexpected::TupleVariant | Unexpected::Other(_) => "something else",
    }
}

/// What is expected, in the words of somebody who writes YAML and no Rust.
pub(super) fn in_words(expected: &str) -> String {
    let whole = |least: i128, most: i128| format!("a whole number from {least} to {most}");
    match expected {
        "u8" => whole(0, u8::MAX.into()),
        "u16" => whole(0, u16::MAX.into()),
        "u32" => whole(0, u32::MAX.into()),
        "a nonzero u32" => whole(1, u32::MAX.into()),
        "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "a nonzero u64" => "a whole number, 1 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a string" | "string" | "str" => "a text".to_owned(),
        "path string" => "a path".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "keys and values".to_owned(),
        "unit" | "unit value" => "nothing".to_owned(),
        "field identifier" => "a key".to_owned(),
        "variant identifier" => "a tag".to_owned(),
        other => match other.split_once(' ') {
            Some(("struct" | "map", _)) => "keys and values".to_owned(),
            Some(("tuple" | "tuple struct" | "sequence", _)) => "a list".to_owned(),
            Some(("enum", _)) => "a tag or one of the known words".to_owned(),
            Some(("newtype", _)) => "another value".to_owned(),
            _ => other.to_owned(),
        },
    }
}
