//! Role: tokens that are valid and are not to be taken any more: the list, its file, and what it says of a token.
//! Invariants: a token that doesn't say when it was issued is older than every "issued before" · an unknown key
//! makes the file unreadable: it might be the one that matters · the file is replaced as a whole.
//! See: docs/policy.md "Revocation".

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use narrowlink_proto::{endpoint::with_place, id::Uid, token::is_name};
use serde::{Deserialize, Serialize};

/// A list at the most.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    #[error("{}: {}", path.display(), with_place(source, source.location().map(|place| (place.line(), place.column()))))]
    Yaml {
        /// Which file.
        path: PathBuf,
        /// What is wrong where.
        source: serde_yaml::Error,
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
        read(path)?.map(|entries| Self::new(entries, path)).transpose()
    }

    /// Whether a token is revoked.
    pub fn revoke(&self, bearer: Bearer<'_>) -> bool {
        let Bearer { jti, uid, name, iat } = bearer;
        // Nearly always there is nothing to look up.
        if self.jtis.contains(jti) {
            return true;
        }
        let issued_at = iat.unwrap_or(0);
        let before = |at: Option<&u64>| at.is_some_and(|at| issued_at < *at);
        if issued_at < self.all_before || before(self.space_before.get(&uid)) {
            return true;
        }
        if self.names.is_empty() && self.named_before.is_empty() {
            return false;
        }
        let key = (uid, name.to_owned());
        self.names.contains(&key) || before(self.named_before.get(&key))
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

fn read(path: &Path) -> Result<Option<Vec<Entry>>, RevocationError> {
    let failed = |source| RevocationError::File { path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(file) if file.len() > FILE_BYTES_MAX => {
            let why = format!("longer than {FILE_BYTES_MAX} bytes");
            return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, why)));
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    // A file of comments is a list without entries.
    let entries: Option<Vec<Entry>> = serde_yaml::from_str(&text)
        .map_err(|source| RevocationError::Yaml { path: path.to_owned(), source })?;
    Ok(Some(entries.unwrap_or_default()))
}

/// Adds an entry to the file, which is made if it isn't there; false if it says so already. What the file says
/// besides stays as it is.
///
/// # Errors
/// The file can't be read or replaced, or isn't a list now.
pub fn add(path: &Path, entry: &Entry) -> Result<bool, RevocationError> {
    entry.check().map_err(|why| RevocationError::Entry { path: path.to_owned(), index: 0, why })?;
    let there = read(path)?;
    // As it is read is as it must stay: an error here is one before anything was changed.
    Revocations::new(there.clone().unwrap_or_default(), path)?;
    if there.iter().flatten().any(|one| one == entry) {
        return Ok(false);
    }
    replace(path, entry, there.is_some_and(|entries| !entries.is_empty()))
        .map_err(|source| RevocationError::File { path: path.to_owned(), source })?;
    Ok(true)
}

/// Writes the file anew with one more entry, so that whoever reads it sees the old one or the new one.
fn replace(path: &Path, entry: &Entry, has_entries: bool) -> io::Result<()> {
    let mut text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e),
    };
    let one = std::slice::from_ref(entry);
    if has_entries && !text.trim_start().starts_with(['-', '#']) {
        // A list in another style (`[{..}]`): it is written as ours.
        let mut all: Vec<Entry> = serde_yaml::from_str(&text).map_err(io::Error::other)?;
        all.push(entry.clone());
        text = serde_yaml::to_string(&all).map_err(io::Error::other)?;
    } else {
        if !has_entries && text.trim() == "[]" {
            text.clear();
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text += &serde_yaml::to_string(one).map_err(io::Error::other)?;
    }
    // A comment in front of a list in another style would break here, not in the gateway.
    serde_yaml::from_str::<Vec<Entry>>(&text).map_err(io::Error::other)?;
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(format!(".{}", std::process::id()));
    let tmp = PathBuf::from(tmp);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&tmp)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if let Ok(old) = fs::metadata(path) {
            file.set_permissions(old.permissions())?;
        }
        fs::rename(&tmp, path)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&tmp);
    }
    written
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
                    let got = list.revoke(Bearer { jti: &jti, uid, name, iat });
                    assert_eq!(got, revoked, "{yaml}: {jti} {uid} {name} {iat:?}");
                }
            }
        }
        assert!(Revocations::default().is_empty());
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

    #[test]
    fn a_file_grows_by_an_entry_and_keeps_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked.yaml");
        let entry =
            |jti: &str| Entry { jti: Some(jti.to_owned()), uid: None, name: None, issued_before: None };
        assert!(Revocations::load(&path).unwrap().is_none());
        for before in
            [None, Some("[]\n"), Some("# stolen in May\n"), Some("- jti: x # mine"), Some("[{jti: x}]")]
        {
            let _ = fs::remove_file(&path);
            if let Some(text) = before {
                fs::write(&path, text).unwrap();
            }
            assert!(add(&path, &entry("a")).unwrap(), "{before:?}");
            assert!(!add(&path, &entry("a")).unwrap(), "{before:?}");
            assert!(add(&path, &entry("b")).unwrap(), "{before:?}");
            let list = Revocations::load(&path).unwrap().unwrap();
            let mut want = vec!["a", "b"];
            want.extend(before.filter(|text| text.contains('x')).map(|_| "x"));
            assert_eq!(list.jtis, want.into_iter().map(str::to_owned).collect(), "{before:?}");
            let text = fs::read_to_string(&path).unwrap();
            for comment in ["# stolen in May", "# mine"] {
                let was_there = before.is_some_and(|text| text.contains(comment));
                assert_eq!(text.contains(comment), was_there, "{text}");
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn a_file_that_is_no_list_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked.yaml");
        let entry = Entry { jti: Some("a".to_owned()), uid: None, name: None, issued_before: None };
        for bad in ["- jti: [\n", "- {jti: a, until: 9}\n", "- {}\n", "jti: a\n"] {
            fs::write(&path, bad).unwrap();
            let error = add(&path, &entry).unwrap_err().to_string();
            assert!(error.contains("revoked.yaml"), "{error}");
            assert!(Revocations::load(&path).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
    }
}
