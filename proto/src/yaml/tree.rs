//! Role: a YAML text as a tree whose every node knows where it stands.
//! Invariants: no key twice in a mapping · depth, and what aliases repeat, are bounded · texts are wiped when dropped.
//! See: YAML 1.2.2, 10.3 (core schema).

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use zeroize::Zeroizing;

use super::fault::{Fault, Place, What};

/// As deep as anybody nests; each level is a few calls on the stack.
const DEPTH_MAX: usize = 128;
/// What all aliases may repeat: a text of a few lines can stand for millions of nodes otherwise.
const ALIASED_NODES_MAX: usize = 10_000;

/// A value, and where it stands.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    /// `Wss` for `!Wss`.
    pub(super) tag: Option<String>,
    pub(super) shape: Shape,
}

#[derive(Clone)]
pub(super) enum Shape {
    Scalar { text: Zeroizing<String>, plain: bool },
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// What a scalar stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'a str),
}

impl Node {
    /// The tree of a text; an empty one is nothing.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let mut tree = Tree::default();
        // Editors of other systems put a byte order mark in front.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|e| {
                Fault::at(Place::new(e.marker().line(), e.marker().col()), What::Syntax(e.info().to_owned()))
            })?;
            tree.handle_event(event, span)?;
        }
        Ok(tree.root.unwrap_or(Self { place: Place::new(1, 0), tag: None, shape: Shape::nothing() }))
    }

    /// What it stands for; `None` for a list or mapping.
    pub(super) fn scalar(&self) -> Option<Scalar<'_>> {
        match &self.shape {
            Shape::Scalar { text, plain: true } => Some(Scalar::of(text)),
            Shape::Scalar { text, plain: false } => Some(Scalar::Text(text)),
            Shape::List(_) | Shape::Map(_) => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        self.tag.is_none() && self.scalar() == Some(Scalar::Null)
    }

    /// How a message calls what stands here.
    pub(super) fn kind(&self) -> &'static str {
        if self.tag.is_some() {
            return "something with a tag";
        }
        match (&self.shape, self.scalar()) {
            (Shape::List(_), _) => "a list",
            (Shape::Map(_), _) => "keys and values",
            (_, Some(Scalar::Null)) => "nothing",
            (_, Some(Scalar::Bool(_))) => "true or false",
            (_, Some(Scalar::Unsigned(_) | Scalar::Signed(_) | Scalar::Float(_))) => "a number",
            (_, Some(Scalar::Text(_)) | None) => "a text",
        }
    }

    /// All texts in it that are values.
    pub(super) fn values(&self) -> Vec<&str> {
        match &self.shape {
            Shape::Scalar { text, .. } => vec![text.as_str()],
            Shape::List(items) => items.iter().flat_map(Self::values).collect(),
            Shape::Map(pairs) => pairs.iter().flat_map(|(_, value)| value.values()).collect(),
        }
    }

    /// How many nodes it consists of.
    fn count(&self) -> usize {
        1 + match &self.shape {
            Shape::Scalar { .. } => 0,
            Shape::List(items) => items.iter().map(Self::count).sum::<usize>(),
            Shape::Map(pairs) => pairs.iter().map(|(key, value)| key.count() + value.count()).sum(),
        }
    }
}

impl Shape {
    pub(super) fn nothing() -> Self {
        Self::Scalar { text: Zeroizing::new(String::new()), plain: true }
    }
}

impl<'a> Scalar<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Self::Null,
            "true" | "True" | "TRUE" => Self::Bool(true),
            "false" | "False" | "FALSE" => Self::Bool(false),
            _ => Self::number(text).unwrap_or(Self::Text(text)),
        }
    }

    fn number(text: &str) -> Option<Self> {
        let (negative, digits) = match text.as_bytes() {
            [b'-', ..] => (true, &text[1..]),
            [b'+', ..] => (false, &text[1..]),
            _ => (false, text),
        };
        let radix = |prefix, radix| digits.strip_prefix(prefix).map(|digits| (digits, radix));
        if let Some((digits, radix)) = radix("0x", 16).or_else(|| radix("0o", 8)) {
            let number = u64::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with('+'))?;
            return if negative {
                0_i64.checked_sub_unsigned(number).map(Self::Signed)
            } else {
                Some(Self::Unsigned(number))
            };
        }
        if digits.bytes().all(|b| b.is_ascii_digit()) && !digits.is_empty() {
            // `007` is a name of something.
            if digits.len() > 1 && digits.starts_with('0') {
                return None;
            }
            let signed = || text.parse().ok().map(Self::Signed);
            let whole = if negative { signed() } else { digits.parse().ok().map(Self::Unsigned) };
            return whole.or_else(|| text.parse().ok().map(Self::Float));
        }
        match digits {
            ".inf" | ".Inf" | ".INF" => {
                return Some(Self::Float(if negative { f64::NEG_INFINITY } else { f64::INFINITY }));
            }
            ".nan" | ".NaN" | ".NAN" => return Some(Self::Float(f64::NAN)),
            _ => {}
        }
        let is_float = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            && digits.bytes().any(|b| b.is_ascii_digit())
            && digits.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
        if is_float { text.parse().ok().map(Self::Float) } else { None }
    }
}

/// A tree that is being read.
#[derive(Default)]
struct Tree {
    root: Option<Node>,
    /// What has begun and not ended, the innermost last.
    open: Vec<Open>,
    anchored: HashMap<usize, Node>,
    aliased: usize,
}

struct Open {
    node: Node,
    anchor: usize,
    /// A key whose value is still to come.
    key: Option<Node>,
}

impl Tree {
    fn handle_event(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let place = Place::new(span.start.line(), span.start.col());
        match event {
            Event::DocumentStart(_) if self.root.is_some() => Err(Fault::at(place, What::SecondDocument)),
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.as_deref();
                let plain = style == ScalarStyle::Plain
                    && !tag.is_some_and(|tag| is_schema(tag) && tag.suffix == "str");
                let shape = Shape::Scalar { text: Zeroizing::new(text.into_owned()), plain };
                self.put(Node { place, tag: own_tag(tag), shape }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.begin(place, anchor, tag.as_deref(), Shape::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.begin(place, anchor, tag.as_deref(), Shape::Map(Vec::new()))
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { node, anchor, key: _ }) => self.put(node, anchor),
                None => Ok(()),
            },
            Event::Alias(anchor) => self.repeat(place, anchor),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn begin(&mut self, place: Place, anchor: usize, tag: Option<&Tag>, shape: Shape) -> Result<(), Fault> {
        if self.open.len() >= DEPTH_MAX {
            return Err(Fault::at(place, What::TooDeep));
        }
        self.open.push(Open { node: Node { place, tag: own_tag(tag), shape }, anchor, key: None });
        Ok(())
    }

    fn repeat(&mut self, place: Place, anchor: usize) -> Result<(), Fault> {
        // An alias within its own anchor would have no end.
        let node = self.anchored.get(&anchor).ok_or_else(|| Fault::at(place, What::Endless))?.clone();
        self.aliased += node.count();
        if self.aliased > ALIASED_NODES_MAX {
            return Err(Fault::at(place, What::TooManyAliases));
        }
        self.put(node, 0)
    }

    /// Puts a whole node where it belongs.
    fn put(&mut self, node: Node, anchor: usize) -> Result<(), Fault> {
        if anchor != 0 {
            self.anchored.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.node.shape {
            Shape::List(items) => items.push(node),
            Shape::Map(pairs) => match open.key.take() {
                None => open.key = Some(node),
                Some(key) => {
                    refuse_twice(pairs, &key)?;
                    pairs.push((key, node));
                }
            },
            Shape::Scalar { .. } => unreachable!("only lists and mappings are begun"),
        }
        Ok(())
    }
}

/// A second value of one key would be the one that counts, or the one that doesn't: nobody could tell.
fn refuse_twice(pairs: &[(Node, Node)], key: &Node) -> Result<(), Fault> {
    let Shape::Scalar { text, .. } = &key.shape else { return Ok(()) };
    let same = |(other, _): &&(Node, Node)| matches!(&other.shape, Shape::Scalar { text: other, .. } if other == text);
    match pairs.iter().find(same) {
        Some((first, _)) => Err(Fault::at(key.place, What::Twice { first: first.place })),
        None => Ok(()),
    }
}

fn is_schema(tag: &Tag) -> bool {
    tag.is_yaml_core_schema()
}

/// A tag of ours; those of YAML's own schema say what the value says itself.
fn own_tag(tag: Option<&Tag>) -> Option<String> {
    let tag = tag.filter(|tag| !is_schema(tag))?;
    let handle = tag.handle.trim_start_matches('!');
    Some(format!("{handle}{}", tag.suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unquoted_text_is_a_number_only_if_yaml_says_so() {
        for (text, is) in [
            ("", Scalar::Null),
            ("~", Scalar::Null),
            ("true", Scalar::Bool(true)),
            ("yes", Scalar::Text("yes")),
            ("0", Scalar::Unsigned(0)),
            ("-1", Scalar::Signed(-1)),
            ("+7", Scalar::Unsigned(7)),
            ("007", Scalar::Text("007")),
            ("0x1F", Scalar::Unsigned(31)),
            ("0o17", Scalar::Unsigned(15)),
            ("-0x10", Scalar::Signed(-16)),
            ("18446744073709551615", Scalar::Unsigned(u64::MAX)),
            ("18446744073709551616", Scalar::Float(18_446_744_073_709_551_616.0)),
            ("2.5", Scalar::Float(2.5)),
            ("1e3", Scalar::Float(1000.0)),
            ("-.inf", Scalar::Float(f64::NEG_INFINITY)),
            ("127.0.0.1", Scalar::Text("127.0.0.1")),
            ("2027-01-31", Scalar::Text("2027-01-31")),
            ("30d", Scalar::Text("30d")),
            ("-", Scalar::Text("-")),
            (".", Scalar::Text(".")),
            ("e3", Scalar::Text("e3")),
            ("0x", Scalar::Text("0x")),
        ] {
            assert_eq!(Scalar::of(text), is, "{text:?}");
        }
    }

    #[test]
    fn a_small_text_can_not_stand_for_a_large_tree() {
        let deep = "[".repeat(DEPTH_MAX + 1);
        assert!(Node::parse(&deep).is_err());
        let deep = format!("{}{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        assert!(Node::parse(&deep).is_ok());
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let before = level - 1;
            laughs += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 10].join(", "));
        }
        let Err(fault) = Node::parse(&laughs) else { panic!("it was taken") };
        assert!(fault.to_string().contains("aliases"), "{fault}");
        assert!(Node::parse("a: &a [*a]").is_err());
    }

    proptest::proptest! {
        #[test]
        fn bent_bytes_never_panic(text in "[-a-z0-9:!&*{}\\[\\], \"'#|>\n\t%@]{0,60}") {
            let _ = Node::parse(&text);
        }
    }
}
