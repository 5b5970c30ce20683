//! Role: `narrowlink-gateway revoke`: what the operator means, as an entry of the list, and what it will do.
//! Invariants: a token's own words are believed by nobody else than who revokes it, and who hasn't signed it is said ·
//! no token appears in what is said.
//! See: `revocations`, which keeps the list; docs/policy.md "Revocation".

use std::path::{Path, PathBuf};

use narrowlink_proto::{
    id::Uid,
    token::read_unverified,
    when::{distance, show},
};

use serde_json::json;

use crate::{
    args::Revoke,
    config::Config,
    explain::{Bearer, Signature, find_token},
    moment::Moment,
    revocations::{Entry, RevocationError, add},
    tickets::{
        book::{self, Book},
        is_whole_id, with_id,
    },
};

/// As much of an id must be written.
const ID_CHARS_MIN: usize = 4;

/// Which list gets the entry.
pub enum List {
    /// The one of this config, which was read from this file.
    OfConfig {
        /// The config's file.
        path: PathBuf,
        /// What it says.
        config: Box<Config>,
        /// Its list.
        list: PathBuf,
    },
    /// A file; whose it is isn't known.
    File(PathBuf),
}

/// A config without a list. The operator's to mend.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: it names no list of revoked tokens: add the line \"revocations: revoked.yaml\" (a path relative to that \
     file; a running gateway takes the change by itself)", .0.display()
)]
pub struct NoList(PathBuf);

impl List {
    /// The list of a config that was read from `path`.
    ///
    /// # Errors
    /// It has none.
    pub fn of(path: PathBuf, config: Config) -> Result<Self, NoList> {
        match config.revocations_path.clone() {
            Some(list) => Ok(Self::OfConfig { path, config: Box::new(config), list }),
            None => Err(NoList(path)),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::OfConfig { list, .. } | Self::File(list) => list,
        }
    }
}

/// What is to be revoked.
#[derive(Debug)]
pub struct Subject {
    /// As the list says it.
    pub entry: Entry,
    /// Whose token it is, if one was shown.
    whose: Option<String>,
    /// What the operator should know before.
    pub warnings: Vec<String>,
}

/// Nothing that can be revoked. The caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// No token where one was said to be.
    #[error("{0}")]
    Token(String),
    /// No user or no ticket of the book is called so, or several tickets are.
    #[error("{0}")]
    User(String),
    /// What no entry may say.
    #[error("{0}")]
    Entry(&'static str),
}

impl Subject {
    /// What `args` mean at `now` (seconds since 1970). A token is held against the secrets of the list's config.
    ///
    /// # Errors
    /// The caller's.
    pub fn new(args: &Revoke, list: &List, now: u64) -> Result<Self, SubjectError> {
        if let Some(spec) = &args.token {
            let token = find_token(spec).map_err(SubjectError::Token)?;
            return Self::of_token(&token, list, now);
        }
        let issued_before = args.issued_before.map(|moment| match moment {
            Moment::Now => now,
            Moment::At(at) => at,
        });
        let uid = args.user.as_deref().map(|called| find_user(called, list)).transpose();
        let uid = uid.map_err(SubjectError::User)?;
        let mut entry = Entry { jti: args.jti.clone(), uid, name: args.name.clone(), issued_before };
        entry.check().map_err(SubjectError::Entry)?;
        let mut warnings = Vec::new();
        if let Some(id) = &args.jti {
            let (whole, warning) = find_id(id, list).map_err(SubjectError::User)?;
            entry.jti = Some(whole);
            warnings.extend(warning);
        }
        if let (Some(uid), Some(name)) = (uid, &args.name) {
            warnings.extend(unknown_name(uid, name, list));
        }
        warnings.extend(issued_before.filter(|at| *at > now).map(|at| {
            let (at, distance) = (show(at), distance(at, now));
            format!("{at} is {distance}: tokens that you issue until then are refused, too")
        }));
        Ok(Self { entry, whose: None, warnings })
    }

    fn of_token(token: &str, list: &List, now: u64) -> Result<Self, SubjectError> {
        let claims = read_unverified(token).map_err(|e| SubjectError::Token(format!("--token: {e}")))?;
        let entry = Entry { jti: Some(claims.jti), uid: None, name: None, issued_before: None };
        entry.check().map_err(SubjectError::Entry)?;
        let whose = format!("{} {:?} of {}", claims.kind.name(), claims.name, claims.uid);
        let mut warnings = Vec::new();
        if let List::OfConfig { path, config, .. } = list
            && Bearer::examine(token, Some(config), now).signature == Signature::Unknown
        {
            warnings.push(format!(
                "no secret of {} has signed this token: its gateway refuses it anyway, and what it says may be \
                 forged, its jti another token's",
                path.display()
            ));
        }
        Ok(Self { entry, whose: Some(whose), warnings })
    }
}

/// The uid of a user who is meant by name or by it. A name is looked up where the list's gateway has its users.
fn find_user(called: &str, list: &List) -> Result<Uid, String> {
    if let Ok(uid) = called.parse() {
        return Ok(uid);
    }
    let List::OfConfig { path, .. } = list else {
        return Err("--user: a name is looked up in the book of tickets beside a config: write the uid, or -c FILE in \
                    place of --list"
            .to_owned());
    };
    let book = Book::read(&path.with_file_name(book::FILE))
        .map_err(|e| format!("--user: neither a uid nor a name of the book of tickets: {e}"))?;
    book.user(Some(called)).map(|user| user.uid)
}

/// The book of tickets beside a list's config, if there is one that can be read.
fn book_of(list: &List) -> Option<Book> {
    match list {
        List::OfConfig { path, .. } => Book::read(&path.with_file_name(book::FILE)).ok(),
        List::File(_) => None,
    }
}

/// The whole id that is meant by one that may be shortened, as `ticket list` shows it; and a warning, if the book of
/// tickets knows none such.
///
/// # Errors
/// It is shortened, and of no ticket or of several.
fn find_id(id: &str, list: &List) -> Result<(String, Option<String>), String> {
    let book = book_of(list);
    let entries = book.as_ref().map(|book| with_id(book, id)).unwrap_or_default();
    let whole = entries.iter().find(|entry| entry.jti.len() == id.len());
    match (whole, &entries[..]) {
        (Some(entry), _) => Ok((entry.jti.clone(), None)),
        (None, _) if id.chars().count() < ID_CHARS_MIN => Err(format!(
            "--id {id}: too short; write at least {ID_CHARS_MIN} characters of an ID of `narrowlink-gateway ticket list`"
        )),
        (None, [entry]) => Ok((entry.jti.clone(), None)),
        (None, []) if is_whole_id(id) => {
            let warning = "warning: the book of tickets knows no such id: this holds only for a token with exactly this id";
            Ok((id.to_owned(), Some(warning.to_owned())))
        }
        (None, []) if book.is_none() => Err(format!(
            "--id {id}: this is a part of an id, and no book of tickets is here to complete it: write the whole id, -c FILE \
             of the gateway that made the ticket, or --token FILE"
        )),
        (None, []) => Err(format!(
            "--id {id}: no ticket's id begins so, and a whole one is longer: `narrowlink-gateway ticket list` shows ids; of a \
             token of narrowlink-tokengen write the whole jti, or --token FILE"
        )),
        (None, several) => {
            let names: Vec<_> = several
                .iter()
                .map(|entry| {
                    format!("{} of the {} {} of {}", entry.jti, entry.kind.name(), entry.name, entry.user)
                })
                .collect();
            Err(format!(
                "--id {id}: the ids of several tickets begin so: {}; write more of it",
                names.join(", ")
            ))
        }
    }
}

/// What is odd about a name: that no ticket of the book has it.
fn unknown_name(uid: Uid, name: &str, list: &List) -> Option<String> {
    let book = book_of(list)?;
    let is_of = |user: &str| book.user(Some(user)).is_ok_and(|user| user.uid == uid);
    let is_known = book.tickets.iter().any(|entry| entry.name == name && is_of(&entry.user));
    (!is_known).then(|| {
        format!(
            "warning: the book of tickets knows no {name:?} of this user: this holds only for a token with exactly this name; \
             `narrowlink-gateway ticket list` shows the names"
        )
    })
}

/// What has become of it.
#[derive(Debug)]
pub struct Revoked<'a> {
    subject: &'a Subject,
    list: &'a Path,
    /// Whose gateway follows the list.
    has_config: bool,
    is_new: bool,
}

impl<'a> Revoked<'a> {
    /// Puts it on the list, unless it is there already.
    ///
    /// # Errors
    /// The list can't be read or written.
    pub fn add(subject: &'a Subject, list: &'a List) -> Result<Self, RevocationError> {
        let is_new = add(list.path(), &subject.entry)?;
        let has_config = matches!(list, List::OfConfig { .. });
        Ok(Self { subject, list: list.path(), has_config, is_new })
    }

    /// For programs: one object, in one line.
    pub fn json(&self) -> String {
        let object = json!({ "entry": self.subject.entry, "list": self.list.display().to_string(), "new": self.is_new });
        format!("{object}\n")
    }

    /// For people, with what they may not expect.
    pub fn text(&self) -> String {
        let Subject { entry, whose, .. } = self.subject;
        let whose = whose.as_ref().map(|whose| format!(" ({whose})")).unwrap_or_default();
        let list = self.list.display();
        if !self.is_new {
            return format!("revoked already: {entry}{whose}, in {list}; nothing was changed\n");
        }
        let gateway = if self.has_config { "gateway" } else { "gateway that has this list" };
        let ends = if entry.jti.is_some() { "its" } else { "their" };
        let mut text = format!(
            "revoked: {entry}{whose}, in {list}; a running {gateway} ends {ends} links and sessions within 2 s\n"
        );
        if entry.name.is_some() && entry.issued_before.is_none() {
            text += "note: that name is refused for ever, in new tokens too; to let new ones in, replace the entry by \
                     one with --issued-before now\n";
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use narrowlink_proto::{
        id::Uid,
        token::{Claims, Keys, Kind, Secret},
    };

    use super::*;
    use crate::args::{Args, Command};

    const NOW: u64 = 1_795_219_200 + 3600;
    const UID: &str = "00000000-0000-0000-0000-000000000001";

    fn args(line: &str) -> Result<Revoke, clap::Error> {
        let args = Args::try_parse_from(format!("narrowlink-gateway revoke {line}").split_whitespace())?;
        let Some(Command::Revoke(revoke)) = args.command else { panic!("another command") };
        Ok(revoke)
    }

    fn subject(line: &str) -> Result<Subject, SubjectError> {
        Subject::new(&args(line).unwrap(), &List::File("list".into()), NOW)
    }

    #[test]
    fn each_form_becomes_its_entry() {
        for (line, yaml) in [
            (format!("--uid {UID} --name laptop"), format!("{{uid: {UID}, name: laptop}}")),
            (format!("--uid {UID} --issued-before 7"), format!("{{uid: {UID}, issued_before: 7}}")),
            ("--issued-before 2026-11-20".to_owned(), "{issued_before: 1795132800}".to_owned()),
            (
                format!("--uid {UID} --name laptop --issued-before now"),
                format!("{{uid: {UID}, name: laptop, issued_before: {NOW}}}"),
            ),
        ] {
            let subject = subject(&line).unwrap();
            assert_eq!(subject.entry, serde_yaml::from_str(&yaml).unwrap(), "{line}");
            assert!(subject.warnings.is_empty());
        }
        let later = subject("--issued-before 2026-12-21").unwrap();
        let warning =
            "2026-12-21 00:00:00 UTC is in 29 days: tokens that you issue until then are refused, too";
        assert_eq!(later.warnings, [warning]);
    }

    /// A config's list, beside a book with these tickets of main: id and name.
    fn list(dir: &Path, tickets: &[(&str, &str)]) -> List {
        let entry = |(jti, name): &(&str, &str)| {
            format!("- {{user: main, kind: client, name: {name}, jti: \"{jti}\", iat: 1, exp: 2}}\n")
        };
        let tickets: String = tickets.iter().map(entry).collect();
        let book =
            format!("gateways: [\"gw:443\"]\nusers: [{{name: main, uid: {UID}}}]\ntickets:\n{tickets}");
        std::fs::write(dir.join(book::FILE), book).unwrap();
        let secret = Secret::from_bytes(vec![7; 32]).unwrap();
        let config = Config {
            revocations_path: Some(dir.join("revoked.yaml")),
            ..Config::new("gw", vec![secret], Vec::new())
        };
        List::of(dir.join("gateway.yaml"), config).unwrap()
    }

    #[test]
    fn a_shortened_id_revokes_the_ticket_that_it_is_of_or_nothing() {
        const LAPTOP: &str = "3f2a9c41d07b5e6682c1f0a94b7d3e58";
        const PHONE: &str = "3f2ab0d07b5e6682c1f0a94b7d3e5841";
        let dir = tempfile::tempdir().unwrap();
        let list = list(dir.path(), &[(LAPTOP, "laptop"), (PHONE, "phone"), ("backup-1", "backup")]);
        let revoke = |id: &str| Subject::new(&args(&format!("--id {id}")).unwrap(), &list, NOW);
        for (written, whole) in [
            (&LAPTOP[..8], LAPTOP),
            (&LAPTOP[..5], LAPTOP),
            (&LAPTOP[..12], LAPTOP),
            ("3F2AB", PHONE),
            (&LAPTOP.to_uppercase(), LAPTOP),
            (PHONE, PHONE),
            ("back", "backup-1"),
        ] {
            let subject = revoke(written).unwrap();
            assert_eq!((subject.entry.jti.as_deref(), subject.warnings.len()), (Some(whole), 0), "{written}");
        }
        let foreign = "0000000000000000000000000000000a";
        for id in [foreign, UID, "of-tokengen"] {
            let subject = revoke(id).unwrap();
            assert_eq!(subject.entry.jti.as_deref(), Some(id));
            assert!(subject.warnings[0].contains("the book of tickets knows no such id: "), "{subject:?}");
        }
        for (id, says) in [
            ("3f2", "too short"),
            ("ab", "too short"),
            (
                "3f2a",
                "several tickets begin so: 3f2a9c41d07b5e6682c1f0a94b7d3e58 of the client laptop of main, ",
            ),
            ("beefbeef", "no ticket's id begins so"),
            ("6f1c0b7e-57c8", "no ticket's id begins so"),
        ] {
            let refused = revoke(id).unwrap_err().to_string();
            assert!(refused.contains(says), "{id}: {refused}");
        }
        let alone = subject("--id 3f2a9c41").unwrap_err().to_string();
        assert!(alone.contains("no book of tickets is here"), "{alone}");
    }

    #[test]
    fn a_name_that_no_ticket_has_is_revoked_with_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let list = list(dir.path(), &[("3f2a9c41d07b5e6682c1f0a94b7d3e58", "laptop")]);
        for (name, warnings) in [("laptop", 0), ("laptpo", 1)] {
            let args = args(&format!("--user main --name {name}")).unwrap();
            let subject = Subject::new(&args, &list, NOW).unwrap();
            assert_eq!((subject.entry.name.as_deref(), subject.warnings.len()), (Some(name), warnings));
            assert!(subject.warnings.iter().all(|said| said.contains("knows no \"laptpo\"")), "{subject:?}");
        }
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        for (line, says) in [
            (String::new(), "required"),
            (format!("--uid {UID}"), "--issued-before"),
            ("--name laptop".to_owned(), "--user"),
            ("--name laptop --issued-before now".to_owned(), "--user"),
            (format!("--jti a --uid {UID} --name b"), "cannot be used with"),
            ("--jti a --issued-before now".to_owned(), "cannot be used with"),
            ("--token a --jti b".to_owned(), "cannot be used with"),
            (format!("--token a --uid {UID}"), "cannot be used with"),
            ("--jti a -c gateway.yaml --list revoked.yaml".to_owned(), "cannot be used with"),
            ("--issued-before tomorrow".to_owned(), "expected now, a date"),
        ] {
            let refused = args(&line).unwrap_err();
            assert!(refused.exit_code() == 2 && refused.to_string().contains(says), "{line}: {refused}");
        }
        let zero_width = subject("--jti a\u{200b}b").unwrap_err().to_string();
        assert!(zero_width.starts_with("no token has such a jti or name"), "{zero_width}");
    }

    #[test]
    fn a_token_is_revoked_by_its_jti_and_a_strangers_is_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        let revocations_path = Some(dir.path().join("revoked.yaml"));
        let secrets = [7, 8].map(|byte| Secret::from_bytes(vec![byte; 32]).unwrap()).to_vec();
        let config = Config { revocations_path, ..Config::new("gw", secrets, Vec::new()) };
        let list = List::of("gw.yaml".into(), config).unwrap();
        for (secret, kind, warned) in
            [(7, Kind::Client, false), (8, Kind::Agent, false), (9, Kind::Client, true)]
        {
            // Also one that has expired.
            let claims = Claims::new(kind, Uid::from_u128(1), "laptop", NOW - 60, "t1");
            let token = Keys::new(&[secret; 32]).sign(&claims).unwrap();
            let revoke = args(&format!("--token {token}")).unwrap();
            let subject = Subject::new(&revoke, &list, NOW).unwrap();
            assert_eq!(subject.entry.to_string(), "jti t1");
            assert_eq!(subject.whose, Some(format!("{} \"laptop\" of {UID}", kind.name())));
            assert_eq!(subject.warnings.len(), usize::from(warned), "{subject:?}");
            let said = format!("{:?}", Revoked::add(&subject, &list).unwrap());
            assert!(!said.contains(&token[..20]), "{said}");
        }
        assert!(subject("--token no.token").is_err());
    }
}
