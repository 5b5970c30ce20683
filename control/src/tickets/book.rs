//! Role: the book of tickets: for whom and until when the operator has made some, and what stands in each beside its token.
//! Invariants: no token and no secret stands in it · a gateway needs it for nothing: it is its operator's memory, and what is
//! revoked stands in the list of revocations · who reads it sees an old book or a new one, whole.
//! See: `replace`; docs/tickets.md.

use std::{
    io,
    path::{Path, PathBuf},
};

use narrowlink_dataplane::run::{
    file::{self, Reading},
    replace::{Held, create},
};
use narrowlink_proto::{
    endpoint::SelfHosted,
    id::Uid,
    pin::Pin,
    token::{Kind, is_name},
    yaml::{Document, Fault},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::TicketError;
use crate::{authority, init::CA};

/// Its file, beside gateway.yaml.
pub const FILE: &str = "tickets.yaml";
/// A book at the most: 60,000 tickets.
const BYTES_MAX: u64 = 16 * 1024 * 1024;
/// A certificate at the most.
const AUTHORITY_BYTES_MAX: u64 = 64 * 1024;
/// It names people and machines.
const MODE: u32 = 0o600;
/// What an operator who opens it reads first.
const HEADER: &str = "\
# Written by narrowlink-gateway: init, ticket, user. No token stands in it. To take a ticket back, use
# narrowlink-gateway ticket revoke: a line that is deleted here revokes nothing.
";

/// What the operator has given away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Book {
    /// Where agents and clients reach the gateway, the best first.
    pub gateways: Vec<String>,
    /// The gateway's name in TLS, where it is none of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The pin of its own authority, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pin: Option<Pin>,
    /// Who has a space of their own.
    pub users: Vec<User>,
    /// What each of them was given.
    #[serde(default)]
    pub tickets: Vec<Entry>,
}

/// Somebody with a space of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// As the operator calls them.
    pub name: String,
    /// Their space.
    pub uid: Uid,
}

impl User {
    /// For programs: one object, in one line.
    pub fn json(&self) -> String {
        format!("{}\n", json!(self))
    }
}

/// A ticket that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Whose.
    pub user: String,
    /// An agent's or a client's.
    pub kind: Kind,
    /// Its bearer's name.
    pub name: String,
    /// Its token's own name.
    pub jti: String,
    /// When it was made, in seconds since 1970.
    pub iat: u64,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
    /// What a client may reach, as `--allow` has it; everything of its user's where there is nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
}

/// A book that can't be used. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// There is none.
    #[error(
        "{}: there is no book of tickets here; `narrowlink-gateway init` makes one, and for a gateway that was set up without \
         it, or has lost it, `narrowlink-gateway user add NAME --uid UID --gateway HOST:PORT` (--uid: the uid of tokens that \
         there are, as `narrowlink-gateway explain` shows it; without it a new one is drawn)", .0.display()
    )]
    None(PathBuf),
    /// It can't be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says what no book says.
    #[error("{}: {source}", path.display())]
    Yaml {
        /// Which.
        path: PathBuf,
        /// What, and where.
        source: Fault,
    },
}

impl Book {
    /// The book at `path`.
    ///
    /// # Errors
    /// See [`BookError`].
    pub fn read(path: &Path) -> Result<Self, BookError> {
        let text =
            file::read_text(path, Reading::Again, BYTES_MAX).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => BookError::None(path.to_owned()),
                _ => BookError::File { path: path.to_owned(), source },
            })?;
        let wrong = |source| BookError::Yaml { path: path.to_owned(), source };
        let document = Document::parse(&text).map_err(wrong)?;
        let book: Self = document.read().map_err(wrong)?;
        if book.gateways.is_empty() {
            return Err(wrong(document.fault(&["gateways".into()], "empty: name at least one gateway")));
        }
        for (index, user) in book.users.iter().enumerate() {
            if !is_name(&user.name) {
                let path = ["users".into(), index.into(), "name".into()];
                return Err(wrong(document.fault(&path, "expected 1 to 128 printable bytes")));
            }
        }
        Ok(book)
    }

    /// Changes the book at `path`, while nobody else does.
    ///
    /// # Errors
    /// It can't be read or written, or `change` says no.
    pub fn change<T, E: From<BookError>>(
        path: &Path,
        change: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let failed = |source| BookError::File { path: path.to_owned(), source };
        let held = Held::wait_for(path).map_err(failed)?;
        let mut book = Self::read(path)?;
        let changed = change(&mut book)?;
        held.replace(&book.text(), MODE).map_err(failed)?;
        Ok(changed)
    }

    /// As its file has it.
    ///
    /// # Panics
    /// Never: texts and numbers can be written.
    pub fn text(&self) -> String {
        #[expect(clippy::expect_used, reason = "texts and numbers")]
        let yaml = serde_yaml::to_string(self).expect("texts and numbers can be written");
        HEADER.to_owned() + &yaml
    }

    /// The user that is called so, by name or uid; the first where nobody is named.
    ///
    /// # Errors
    /// There is none; in words.
    pub fn user(&self, called: Option<&str>) -> Result<&User, String> {
        let names = || self.users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>().join(", ");
        match (called, &self.users[..]) {
            (Some(called), users) => users
                .iter()
                .find(|user| user.name == called || user.uid.to_string() == called)
                .ok_or_else(|| {
                    format!("--user: there is no user of this name; there are: {}; `narrowlink-gateway user add` makes one", names())
                }),
            (None, []) => Err("there is no user yet: `narrowlink-gateway user add NAME` makes one".to_owned()),
            (None, [first, ..]) => Ok(first),
        }
    }

    /// The users, for people.
    pub fn users_text(&self) -> String {
        let width = self.users.iter().map(|user| user.name.chars().count()).max().unwrap_or(0);
        self.users.iter().map(|User { name, uid }| format!("{name:<width$} {uid}\n")).collect()
    }

    /// The same as one JSON array, in one line.
    pub fn users_json(&self) -> String {
        let users = self.users.iter().map(|user| json!(user));
        serde_json::Value::from(users.collect::<Vec<_>>()).to_string() + "\n"
    }
}

/// Enters a user into the book at `path`, which is made if it isn't there and `gateway` says where that is reached.
///
/// # Errors
/// See [`TicketError`]: the name is taken, or none.
pub fn add_user(
    path: &Path,
    name: &str,
    uid: Option<Uid>,
    gateway: Option<&str>,
) -> Result<User, TicketError> {
    if !is_name(name) {
        return Err(TicketError::Usage(
            "a name has 1 to 128 printable bytes, and no space at its ends".to_owned(),
        ));
    }
    let uid = uid.map_or_else(draw_uid, Ok).map_err(TicketError::Random)?;
    if let Some(gateway) = gateway
        && !path.exists()
    {
        let endpoint = SelfHosted { gateway: gateway.to_owned(), ..SelfHosted::default() };
        endpoint.host_port().map_err(|e| TicketError::Usage(format!("--gateway: {e}")))?;
        let book = Book {
            gateways: vec![gateway.to_owned()],
            domain: None,
            ca_pin: authority_pin(path)?,
            users: vec![],
            tickets: vec![],
        };
        create(path, &book.text(), MODE)
            .map_err(|source| BookError::File { path: path.to_owned(), source })?;
    }
    let user = User { name: name.to_owned(), uid };
    Book::change(path, |book| {
        if let Some(other) = book.users.iter().find(|other| other.name == user.name || other.uid == user.uid)
        {
            let User { name, uid } = other;
            return Err(TicketError::Usage(format!("there is a user {name} with the space {uid} already")));
        }
        book.users.push(user.clone());
        Ok(user.clone())
    })
}

/// The pin of the gateway's own authority, if one lies beside the book at `path`.
fn authority_pin(path: &Path) -> Result<Option<Pin>, BookError> {
    let path = path.with_file_name(CA);
    let failed = |source| BookError::File { path: path.clone(), source };
    let text = match file::read_text(&path, Reading::Again, AUTHORITY_BYTES_MAX) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    authority::pin_of(&text)
        .map(Some)
        .ok_or_else(|| failed(io::Error::other("no certificate (PEM) of an authority")))
}

/// A space that nobody has: a random UUID, as RFC 9562 has it (version 4).
pub(crate) fn draw_uid() -> Result<Uid, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(Uid::from_u128(u128::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book() -> Book {
        let user = |name: &str, n| User { name: name.to_owned(), uid: Uid::from_u128(n) };
        Book {
            gateways: vec!["gw.example:443".to_owned()],
            domain: None,
            ca_pin: Some(Pin::of(b"a key")),
            users: vec![user("main", 1), user("lab", 2)],
            tickets: vec![Entry {
                user: "main".to_owned(),
                kind: Kind::Client,
                name: "laptop".to_owned(),
                jti: "1e10".to_owned(),
                iat: 1,
                exp: 2,
                allow: vec!["home:127.0.0.1:22".to_owned()],
            }],
        }
    }

    #[test]
    fn a_book_reads_what_it_writes_and_changes_under_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(matches!(Book::read(&path), Err(BookError::None(_))));
        std::fs::write(&path, book().text()).unwrap();
        assert_eq!(Book::read(&path).unwrap(), book());
        Book::change(&path, |book| {
            book.gateways.push("192.0.2.1:443".to_owned());
            Ok::<_, BookError>(())
        })
        .unwrap();
        assert_eq!(Book::read(&path).unwrap().gateways.len(), 2);
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("# Written by"));
    }

    #[test]
    fn a_user_is_found_by_name_and_by_uid_and_the_first_is_meant_where_none_is_named() {
        let book = book();
        assert_eq!(book.user(None).unwrap().name, "main");
        assert_eq!(book.user(Some("lab")).unwrap().uid, Uid::from_u128(2));
        let uid = Uid::from_u128(2).to_string();
        assert_eq!(book.user(Some(&uid)).unwrap().name, "lab");
        let said = book.user(Some("x")).unwrap_err();
        assert!(said.contains("main, lab"), "{said}");
    }

    #[test]
    fn a_book_that_is_made_anew_has_the_pin_of_the_gateways_own_authority() {
        let now = 1_795_219_200;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let said = Book::read(&path).unwrap_err().to_string();
        assert!(said.contains("user add NAME --uid UID --gateway HOST:PORT"), "{said}");
        let host = narrowlink_proto::target::Destination::parse("gw.example").unwrap();
        let authority = authority::Authority::new(&[host], now).unwrap();
        std::fs::write(dir.path().join(CA), &authority.certificate).unwrap();
        let uid = Some(Uid::from_u128(7));
        add_user(&path, "main", uid, Some("gw.example:443")).unwrap();
        let wanted = crate::tickets::Wanted {
            user: None,
            kind: Kind::Client,
            name: "laptop".to_owned(),
            allow: vec![],
            expires: None,
            renew: false,
        };
        let keys = narrowlink_proto::token::Keys::new(&[7; 32]);
        let mut book = Book::read(&path).unwrap();
        assert_eq!(book.user(None).unwrap().uid, Uid::from_u128(7));
        let ticket = wanted.make(&mut book, &keys, &crate::revocations::Revocations::default(), now).unwrap();
        assert_eq!(ticket.pin, Some(authority.pin));
        // Where there is none, tickets have none; what is none is not passed over.
        let other = tempfile::tempdir().unwrap();
        let path = other.path().join(FILE);
        std::fs::write(other.path().join(CA), "words").unwrap();
        assert!(add_user(&path, "main", uid, Some("gw.example:443")).is_err() && !path.exists());
        std::fs::remove_file(other.path().join(CA)).unwrap();
        add_user(&path, "main", uid, Some("gw.example:443")).unwrap();
        assert_eq!(Book::read(&path).unwrap().ca_pin, None);
    }

    #[test]
    fn what_is_no_book_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        for (text, says) in [
            ("gateways: []\nusers: []\n", "gateways: empty"),
            (
                "gateways: [a:1]\nusers: [{name: \"\", uid: 00000000-0000-0000-0000-000000000001}]\n",
                "users[0].name",
            ),
            ("gateways: [a:1]\nuser: []\n", "users"),
        ] {
            std::fs::write(&path, text).unwrap();
            let said = Book::read(&path).unwrap_err().to_string();
            assert!(said.contains(FILE) && said.contains(says), "{said}");
        }
    }
}
