//! Role: the one reader of YAML of all programs.
//! Invariants: whatever is wrong is said by type and place, and by what is expected there: no value that a user wrote
//! is part of an error, for it might be a secret in the wrong place · every error has its line and column.
//! See: docs/configuration.md; `secrecy`; loadtest's tests "canaries".

mod fault;
mod keys;
mod outline;
mod read;
mod tree;

use std::{borrow::Cow, path::Path};

use serde::{
    Deserialize,
    de::{DeserializeOwned, DeserializeSeed},
};

pub use fault::{Fault, Place, Step};
pub use outline::{Located, Outline, Spot};
use read::Value;
use tree::{Node, Shape};

/// The name of a newtype whose text is a token; no other takes one.
pub const TOKEN: &str = "$narrowlink::token";
/// The name of a newtype whose text is a secret; no other takes one.
pub const SECRET: &str = "$narrowlink::secret";

/// A text that was read, and can be looked at again.
pub struct Document(Node);

impl Document {
    /// Reads a text.
    ///
    /// # Errors
    /// Its writer's: it is not YAML, or has a key twice.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        Node::parse(text).map(Self)
    }

    /// What it says.
    ///
    /// # Errors
    /// Its writer's: it says something else.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Fault> {
        T::deserialize(Value::new(&self.0))
    }

    /// What it says to `seed`.
    ///
    /// # Errors
    /// As in [`read`](Self::read).
    pub fn read_seed<'a, S: DeserializeSeed<'a>>(&'a self, seed: S) -> Result<S::Value, Fault> {
        seed.deserialize(Value::new(&self.0))
    }

    /// A rule that the value at the end of `path` breaks, and where that value stands; where it is missing, the last
    /// thing on the way that is there.
    pub fn fault(&self, path: &[Step], rule: impl Into<Cow<'static, str>>) -> Fault {
        let (node, walked) = self.0.find(path);
        // What was written with the program has nothing of the user's in it.
        let fault = match rule.into() {
            Cow::Borrowed(rule) => Fault::rule(rule).or_at(node.place, std::iter::empty()),
            Cow::Owned(rule) => Fault::rule(rule).or_at(node.place, node.values().into_iter()),
        };
        path[..walked].iter().rev().fold(fault, |fault, step| fault.within(step.clone()))
    }

    /// Where the value at the end of `path` stands, or the last thing on the way that is there.
    pub fn place(&self, path: &[Step]) -> Place {
        self.0.find(path).0.place
    }

    /// The same, in `file`.
    pub fn spot(&self, file: &Path, path: &[Step]) -> Spot {
        Spot::new(file, &self.0, path)
    }

    /// Where everything stands that it says; `file` has it.
    pub fn outline(&self, file: &Path) -> Outline {
        Outline::new(file, &self.0)
    }
}

impl Node {
    /// The last thing on `path` that is there, and how many steps away it is.
    fn find(&self, path: &[Step]) -> (&Self, usize) {
        let mut node = self;
        for (walked, step) in path.iter().enumerate() {
            let Some(next) = node.step(step) else { return (node, walked) };
            node = next;
        }
        (node, path.len())
    }

    fn step(&self, step: &Step) -> Option<&Self> {
        match (step, &self.shape) {
            (Step::Key(wanted), Shape::Map(pairs)) => {
                let is_wanted =
                    |key: &Self| matches!(&key.shape, Shape::Scalar { text, .. } if text.as_str() == *wanted);
                pairs.iter().find(|(key, _)| is_wanted(key)).map(|(_, value)| value)
            }
            (Step::Index(index), Shape::List(items)) => items.get(*index),
            _ => None,
        }
    }
}

/// Reads a text at once.
///
/// # Errors
/// Its writer's.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    Document::parse(text)?.read()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        workers: Option<u32>,
        #[serde(default)]
        audit: Option<PathBuf>,
        #[serde(default)]
        list: Vec<Shape>,
        #[serde(default)]
        users: BTreeMap<String, u8>,
        #[serde(default)]
        drain_s: Option<f64>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    enum Shape {
        Dot,
        Line(Vec<u8>),
        Box { width: u8 },
        Pair(u8, String),
    }

    fn wrong(text: &str) -> String {
        match read::<File>(text) {
            Ok(file) => panic!("{text:?} was taken as {file:?}"),
            Err(fault) => fault.to_string(),
        }
    }

    #[test]
    fn everything_that_yaml_can_say_is_read() {
        let text = "%YAML 1.2\n---\n# a comment\nworkers: 0x10\naudit: 'a b'\nlist:\n- Dot\n- !Line [1, 2]\n- !Box { width: 3 }\n- !Pair\n  - 4\n  - 5\n\
                    users: { a: &one 1, b: *one, 7: 2 }\ndrain_s: 5\n...\n";
        let file: File = read(text).unwrap();
        assert_eq!((file.workers, file.audit, file.drain_s), (Some(16), Some("a b".into()), Some(5.0)));
        let pair = Shape::Pair(4, "5".to_owned());
        assert_eq!(file.list, [Shape::Dot, Shape::Line(vec![1, 2]), Shape::Box { width: 3 }, pair]);
        assert_eq!(
            file.users.into_iter().collect::<Vec<_>>(),
            [("7".into(), 2), ("a".into(), 1), ("b".into(), 1)]
        );
        let file: File = read("\u{feff}audit: ~\nlist:\n").unwrap();
        assert!(file.audit.is_none() && file.list.is_empty());
        assert!(read::<File>("").is_ok() && read::<File>("# nothing\n").is_ok());
    }

    #[test]
    fn what_is_wrong_is_said_by_place_and_type_and_never_by_value() {
        for (text, says) in [
            (
                "workers: swordfish",
                "line 1 column 10: workers: expected a whole number from 0 to 4294967295, found a text",
            ),
            ("workers: -1", "line 1 column 10: workers: expected a whole number from 0 to 4294967295"),
            (
                "workers: [swordfish]",
                "line 1 column 10: workers: expected a whole number from 0 to 4294967295, found a list",
            ),
            ("drain_s: swordfish", "line 1 column 10: drain_s: expected a number, found a text"),
            ("audit: {swordfish: 1}", "line 1 column 8: audit: expected a path, found keys and values"),
            ("list: swordfish", "line 1 column 7: list: expected a list, found a text"),
            ("swordfish", "line 1 column 1: expected keys and values, found a text"),
            ("[swordfish]", "line 1 column 1: expected keys and values, found a list"),
            ("a: b: swordfish", "line 1 column 5: not YAML: mapping values are not allowed in this context"),
            (
                "swordfish: 1",
                "line 1 column 1: unknown key; expected `workers`, `audit`, `list`, `users` or `drain_s`",
            ),
            ("audit: a\nworker: 1", "line 2 column 1: unknown key, did you mean `workers`?"),
            (
                "listen_addr: swordfish",
                "line 1 column 1: `listen_addr` does not belong here but to a service (!Ws or !Wss) of gateway.yaml; here are \
                 `workers`, `audit`, `list`, `users` or `drain_s`",
            ),
            ("users: {}\nuser: 1", "line 2 column 1: unknown key, did you mean `users`?"),
            (
                "lanes: 1",
                "line 1 column 1: `lanes` does not belong here but to the top level of agent.yaml; here are `workers`",
            ),
            ("lits: 1", "line 1 column 1: unknown key, did you mean `list`?"),
            (
                "sesions: swordfish",
                "line 1 column 1: unknown key; did you mean `sessions`? That does not belong here but to `limits.token` and \
                 `limits.user` of gateway.yaml, and `limits` of a !Client in tokens.yaml; here are `workers`",
            ),
            (
                "workers: 1\naudit: swordfish\nworkers: 2",
                "line 3 column 1: this key stands twice, first in line 1: keep one of them",
            ),
            (
                "list: [!Swordfish x]",
                "line 1 column 8: list[0]: unknown tag; expected `!Dot`, `!Line`, `!Box` or `!Pair`",
            ),
            (
                "list: [dot]",
                "line 1 column 8: list[0]: unknown word, did you mean `Dot`? Expected `Dot`, `Line`, `Box` or `Pair`",
            ),
            ("list: [Line]", "line 1 column 8: list[0]: a tag is needed: what stands behind it says more"),
            (
                "list: [!Dot swordfish]",
                "line 1 column 8: list[0]: expected nothing behind the tag, found a text",
            ),
            ("list: [!Pair [1, swordfish, 3]]", "line 1 column 8: list[0]: expected 2 values, found 3"),
            (
                "list: [[1]]",
                "line 1 column 8: list[0]: expected !Dot or !Line or !Box or !Pair, found a list",
            ),
            (
                "workers: !Swordfish 1",
                "line 1 column 10: workers: expected a whole number from 0 to 4294967295, found something with a tag",
            ),
            (
                "users: { swordfish: x }",
                "line 1 column 21: users.…: expected a whole number from 0 to 255, found a text",
            ),
            (
                "audit: hex:00112233445566",
                "line 1 column 8: audit: a secret stands here; expected a path; a secret belongs to `secret:` or `old_secrets:`, without a tag",
            ),
            (
                "users: { hex:00112233445566: 1 }",
                "line 1 column 10: users: a secret stands here; expected a text",
            ),
            ("--- 1\n--- 2\n", "line 2 column 1: a second document begins here; a file holds one"),
        ] {
            let got = wrong(text);
            assert!(got.starts_with(says), "{text:?}: {got:?}, not {says:?}");
        }
    }

    #[test]
    fn a_rule_of_the_programs_stands_at_its_value_or_where_that_would_be() {
        let text = "name: gw\nlist:\n  - !Tag { a: [1, 2], b: x }\n  - !Tag\n    a: [3, 4]\n    b: null\n";
        let document = Document::parse(text).unwrap();
        for (path, says) in [
            (&["name".into()][..], "line 1 column 7: name: no good"),
            (&["list".into(), 0.into(), "a".into(), 1.into()], "line 3 column 19: list[0].a[1]: no good"),
            (&["list".into(), 1.into(), "b".into()], "line 6 column 8: list[1].b: no good"),
            (&["other".into()], "line 1 column 1: no good"),
            (&["list".into(), 7.into()], "line 3 column 3: list: no good"),
            (&["name".into(), "deeper".into()], "line 1 column 7: name: no good"),
        ] {
            assert_eq!(document.fault(path, "no good").to_string(), says);
        }
        let fault = document.fault(&["name".into()], "`gw` is no good".to_owned());
        assert_eq!(fault.to_string(), "line 1 column 7: name: this is no good");
    }
}
