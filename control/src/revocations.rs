//! Role: tokens that are valid and are not to be taken any more: the list, and what it says of a token.
//! Invariants: a token that doesn't say when it was issued is older than every "issued before" · an unknown key
//! makes the file unreadable: it might be the one that matters · a lookup copies no entry.
//! See: docs/policy.md "Revocation"; `revoke`, the command that adds to it.

mod file;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt, io,
    path::{Path, PathBuf},
};

use narrowlink_proto::{id::Uid, token::is_name, when::show, yaml::Fault};
use serde::{Deserialize, Serialize};

pub use self::file::add;

/// One line of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The token of this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// Tokens of this space: with `name` those of that name, with `issued_before` those from before then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    /// Tokens of this name within the space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Tokens issued before this, in seconds since 1970; without a `uid` those of every space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_before: Option<u64>,
}

/// What identifies a token here.
#[derive(Debug, Clone, Copy)]
pub struct Bearer<'a> {
    /// The token's id.
    pub jti: &'a str,
    /// The space.
    pub uid: Uid,
    /// The name within it.
    pub name: &'a str,
    /// When it was issued.
    pub iat: Option<u64>,
}

/// Which entry revokes a token, as far as the token doesn't say it itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The one of its id.
    Jti,
    /// The one of its space and name.
    Name,
    /// The one of its space and name that is for tokens issued before this time.
    NameBefore(u64),
    /// The one of its space, up to this time.
    SpaceBefore(u64),
    /// The one of all spaces, up to this time.
    AllBefore(u64),
}

/// The list in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    jtis: HashSet<String>,
    names: HashSet<(Uid, String)>,
    /// By space and name, by space, and for all.
    named_before: HashMap<(Uid, String), u64>,
    space_before: HashMap<Uid, u64>,
    all_before: u64,
}

/// A list that can't be taken. The operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// The file can't be read or replaced.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not the YAML that is expected.
    #[error("{}: {source}", path.display())]
    Yaml {
        /// Which file.
        path: PathBuf,
        /// What is wrong where.
        source: Fault,
    },
    /// An entry that revokes nothing, or something else than it seems to.
    #[error("{}: entry {index}: {why}", path.display())]
    Entry {
        /// Which file.
        path: PathBuf,
        /// Which entry, from 0.
        index: usize,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Entry {
    /// Whether it says what it revokes.
    ///
    /// # Errors
    /// What is missing or too much.
    pub fn check(&self) -> Result<(), &'static str> {
        match (&self.jti, &self.uid, &self.name, &self.issued_before) {
            (None, None, None, None) => Err("empty: expected jti, or uid and name, or issued_before"),
            (Some(_), None, None, None) | (None, _, None, Some(_)) | (None, Some(_), Some(_), _) => {
                if self.jti.iter().chain(&self.name).all(|text| is_name(text)) {
                    Ok(())
                } else {
                    Err("no token has such a jti or name: 1 to 128 printable bytes without space at the ends")
                }
            }
            (Some(_), ..) => Err("jti names one token; leave uid, name and issued_before out"),
            (None, None, Some(_), _) => Err("a name is one of a space: add its uid"),
            (None, Some(_), None, None) => Err(
                "a uid alone would revoke the whole space for ever: add a name, or issued_before (now, for all there is)",
            ),
        }
    }
}

/// As people say it: `jti 3f2a`, `name "laptop" of 6f1c.., issued before 2026-11-21 00:00:00 UTC`.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { jti, uid, name, issued_before } = self;
        let mut parts = Vec::new();
        parts.extend(jti.as_ref().map(|jti| format!("jti {}", jti.escape_debug())));
        parts.extend(match (uid, name) {
            (Some(uid), Some(name)) => Some(format!("name {name:?} of {uid}")),
            (Some(uid), None) => Some(format!("uid {uid}")),
            (None, _) => None,
        });
        parts.extend(issued_before.map(|at| format!("issued before {}", show(at))));
        f.write_str(&parts.join(", "))
    }
}

impl Cause {
    /// The entry behind a verdict on `bearer`.
    pub fn entry(self, bearer: Bearer<'_>) -> Entry {
        let none = Entry::default();
        let (uid, name) = (Some(bearer.uid), Some(bearer.name.to_owned()));
        match self {
            Self::Jti => Entry { jti: Some(bearer.jti.to_owned()), ..none },
            Self::Name => Entry { uid, name, ..none },
            Self::NameBefore(at) => Entry { uid, name, issued_before: Some(at), ..none },
            Self::SpaceBefore(at) => Entry { uid, issued_before: Some(at), ..none },
            Self::AllBefore(at) => Entry { issued_before: Some(at), ..none },
        }
    }
}

impl Revocations {
    /// The list of these entries; the text of an error names the path.
    fn new(entries: Vec<Entry>, path: &Path) -> Result<Self, RevocationError> {
        let mut list = Self::default();
        for (index, entry) in entries.into_iter().enumerate() {
            entry.check().map_err(|why| RevocationError::Entry { path: path.to_owned(), index, why })?;
            list.insert(entry);
        }
        Ok(list)
    }

    fn insert(&mut self, Entry { jti, uid, name, issued_before }: Entry) {
        self.jtis.extend(jti);
        let latest = |old: &mut u64, new: u64| *old = new.max(*old);
        match (uid, name, issued_before) {
            (Some(uid), Some(name), None) => {
                self.names.insert((uid, name));
            }
            (Some(uid), Some(name), Some(at)) => {
                latest(self.named_before.entry((uid, name)).or_default(), at);
            }
            (Some(uid), None, Some(at)) => latest(self.space_before.entry(uid).or_default(), at),
            (None, _, Some(at)) => latest(&mut self.all_before, at),
            (_, _, None) => {}
        }
    }

    /// Reads a file; a file that isn't there is an empty list, and the caller is told.
    ///
    /// # Errors
    /// The operator's.
    pub fn load(path: &Path) -> Result<Option<Self>, RevocationError> {
        file::read(path)?.map(|entries| Self::new(entries, path)).transpose()
    }

    /// What counts here and not in `other`.
    pub fn beyond(&self, other: &Self) -> BTreeSet<Entry> {
        &self.entries() - &other.entries()
    }

    fn entries(&self) -> BTreeSet<Entry> {
        let jtis = self.jtis.iter().map(|jti| Entry { jti: Some(jti.clone()), ..Entry::default() });
        let within = |uid: &Uid, name: Option<&String>, issued_before| Entry {
            jti: None,
            uid: Some(*uid),
            name: name.cloned(),
            issued_before,
        };
        let names = self.names.iter().map(|(uid, name)| within(uid, Some(name), None));
        let named = self.named_before.iter().map(|((uid, name), at)| within(uid, Some(name), Some(*at)));
        let spaces = self.space_before.iter().map(|(uid, at)| within(uid, None, Some(*at)));
        let all = (self.all_before > 0).then_some(self.all_before);
        let all = all.map(|at| Entry { issued_before: Some(at), ..Entry::default() });
        jtis.chain(names).chain(named).chain(spaces).chain(all).collect()
    }

    /// Whether a token is revoked.
    pub fn revoke(&self, bearer: Bearer<'_>) -> bool {
        self.find(bearer).is_some()
    }

    /// What revokes a token, if anything does.
    pub fn find(&self, bearer: Bearer<'_>) -> Option<Cause> {
        let Bearer { jti, uid, name, iat } = bearer;
        // Nearly always there is nothing to look up.
        if self.jtis.contains(jti) {
            return Some(Cause::Jti);
        }
        let issued_at = iat.unwrap_or(0);
        let after = |at: &u64| issued_at < *at;
        if after(&self.all_before) {
            return Some(Cause::AllBefore(self.all_before));
        }
        if let Some(at) = self.space_before.get(&uid).copied().filter(after) {
            return Some(Cause::SpaceBefore(at));
        }
        if self.names.is_empty() && self.named_before.is_empty() {
            return None;
        }
        let key = (uid, name.to_owned());
        if self.names.contains(&key) {
            return Some(Cause::Name);
        }
        self.named_before.get(&key).copied().filter(after).map(Cause::NameBefore)
    }

    /// How many entries count.
    pub fn len(&self) -> usize {
        let all = usize::from(self.all_before > 0);
        self.jtis.len() + self.names.len() + self.named_before.len() + self.space_before.len() + all
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: Uid = Uid::from_u128(1);
    const OTHER: Uid = Uid::from_u128(2);

    fn list(yaml: &str) -> Revocations {
        Revocations::new(serde_yaml::from_str(yaml).unwrap(), Path::new("list")).unwrap()
    }

    fn bearer(
        jti: &str,
        uid: Uid,
        name: &'static str,
        iat: Option<u64>,
    ) -> (String, Uid, &'static str, Option<u64>) {
        (jti.to_owned(), uid, name, iat)
    }

    #[test]
    fn each_entry_revokes_what_it_says_and_nothing_else() {
        let uid = "00000000-0000-0000-0000-000000000001";
        for (yaml, yes, no) in [
            (
                "[{jti: a}]".to_owned(),
                vec![bearer("a", OTHER, "x", None)],
                vec![bearer("b", UID, "a", Some(0))],
            ),
            (
                format!("[{{uid: {uid}, name: laptop}}]"),
                vec![bearer("a", UID, "laptop", Some(u64::MAX))],
                vec![bearer("a", OTHER, "laptop", None), bearer("a", UID, "other", None)],
            ),
            (
                format!("[{{uid: {uid}, name: laptop, issued_before: 10}}]"),
                vec![bearer("a", UID, "laptop", Some(9)), bearer("a", UID, "laptop", None)],
                vec![bearer("a", UID, "laptop", Some(10)), bearer("a", UID, "other", Some(9))],
            ),
            (
                format!("[{{uid: {uid}, issued_before: 10}}, {{uid: {uid}, issued_before: 5}}]"),
                vec![bearer("a", UID, "x", Some(9)), bearer("a", UID, "x", None)],
                vec![bearer("a", UID, "x", Some(10)), bearer("a", OTHER, "x", None)],
            ),
            (
                "[{issued_before: 10}]".to_owned(),
                vec![bearer("a", UID, "x", Some(9)), bearer("a", OTHER, "y", None)],
                vec![bearer("a", UID, "x", Some(10))],
            ),
        ] {
            let list = list(&yaml);
            for (rows, revoked) in [(yes, true), (no, false)] {
                for (jti, uid, name, iat) in rows {
                    let bearer = Bearer { jti: &jti, uid, name, iat };
                    let cause = list.find(bearer);
                    assert_eq!(list.revoke(bearer), revoked, "{yaml}: {jti} {uid} {name} {iat:?}");
                    let entries: Vec<Entry> = serde_yaml::from_str(&yaml).unwrap();
                    assert_eq!(cause.map(|cause| cause.entry(bearer)), revoked.then(|| entries[0].clone()));
                }
            }
        }
        assert!(Revocations::default().is_empty());
    }

    #[test]
    fn what_one_list_has_beyond_another_is_what_its_file_says_more() {
        let uid = "00000000-0000-0000-0000-000000000001";
        let lines = [
            "[{jti: a}]".to_owned(),
            format!("[{{uid: {uid}, name: laptop}}]"),
            format!("[{{uid: {uid}, name: laptop, issued_before: 10}}]"),
            format!("[{{uid: {uid}, issued_before: 10}}]"),
            "[{issued_before: 10}]".to_owned(),
        ];
        let mut all: Vec<Entry> = Vec::new();
        for line in &lines {
            let before = Revocations::new(all.clone(), Path::new("list")).unwrap();
            let entry: Vec<Entry> = serde_yaml::from_str(line).unwrap();
            all.extend(entry.clone());
            let after = Revocations::new(all.clone(), Path::new("list")).unwrap();
            assert_eq!(Vec::from_iter(after.beyond(&before)), entry);
            assert!(before.beyond(&after).is_empty());
            assert_eq!(after.entries().len(), after.len());
        }
    }

    #[test]
    fn an_entry_is_said_as_it_stands_in_the_file() {
        for (yaml, words) in [
            ("{jti: 3f2a}", "jti 3f2a"),
            ("{issued_before: 1795132800}", "issued before 2026-11-20 00:00:00 UTC"),
            (
                "{uid: 00000000-0000-0000-0000-000000000001, issued_before: 0}",
                "uid 00000000-0000-0000-0000-000000000001, issued before 1970-01-01 00:00:00 UTC",
            ),
            (
                "{uid: 00000000-0000-0000-0000-000000000001, name: laptop}",
                "name \"laptop\" of 00000000-0000-0000-0000-000000000001",
            ),
        ] {
            assert_eq!(serde_yaml::from_str::<Entry>(yaml).unwrap().to_string(), words);
        }
    }

    #[test]
    fn entries_that_revoke_nothing_or_too_much_are_refused() {
        let uid = "uid: 00000000-0000-0000-0000-000000000001";
        for (yaml, says) in [
            ("{}".to_owned(), "empty: expected jti"),
            (format!("{{jti: a, {uid}}}"), "jti names one token"),
            ("{name: laptop}".to_owned(), "add its uid"),
            ("{name: laptop, issued_before: 1}".to_owned(), "add its uid"),
            (format!("{{{uid}}}"), "would revoke the whole space"),
            ("{jti: ''}".to_owned(), "no token has such"),
            (format!("{{{uid}, name: ' a'}}"), "no token has such"),
        ] {
            let entry: Entry = serde_yaml::from_str(&yaml).unwrap();
            let error = Revocations::new(vec![entry], Path::new("list")).unwrap_err().to_string();
            assert!(error.starts_with("list: entry 0: ") && error.contains(says), "{yaml}: {error}");
        }
        assert!(serde_yaml::from_str::<Entry>("{jti: a, until: 9}").is_err());
    }
}
