//! Role: tickets for agents and clients: made, listed and taken back by the operator of a gateway.
//! Invariants: a ticket is shown once, to who asked for it, and kept nowhere · the book has an entry before a ticket is shown, so
//! that each can be taken back · an agent's name has one ticket that holds, unless the operator says so.
//! See: `book`; `proto::ticket`; docs/tickets.md.

pub mod book;

use std::{fmt::Write as _, path::Path};

use narrowlink_proto::{
    endpoint::SecretText,
    hex,
    policy::{Grant, Item, Policies},
    ticket::Ticket,
    token::{Claims, Keys, Kind, TokenError, is_name},
    when::{When, distance, show, show_from},
};
use serde_json::json;

use self::book::{Book, BookError, Entry, User};
use crate::revocations::{self, Bearer, RevocationError, Revocations};

/// How long a ticket holds if nobody says.
pub const LASTS: When = When::In(365 * 24 * 60 * 60);

/// What a ticket is to be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Whose, by name or uid; the first user's where nobody is named.
    pub user: Option<String>,
    /// An agent's or a client's.
    pub kind: Kind,
    /// Its bearer's name.
    pub name: String,
    /// What a client may reach; everything of its user's where there is nothing.
    pub allow: Vec<String>,
    /// When it ends.
    pub expires: When,
    /// Whether another one may hold already.
    pub renew: bool,
}

/// Why there is no ticket, or it could not be taken back.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// The book can't be used.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The list of revocations can't.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The command line says what can't be.
    #[error("{0}")]
    Usage(String),
    /// What no token may say.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// The system has no randomness: nothing can be made without.
    #[error("the system's random source does not answer: {0}")]
    Random(getrandom::Error),
}

impl Wanted {
    /// Makes the ticket at `now` (seconds since 1970), signed with `keys`, and enters it into the book. One that
    /// `revocations` names holds no more.
    ///
    /// # Errors
    /// See [`TicketError`]; the book is as it was then.
    pub fn make(
        &self,
        book: &mut Book,
        keys: &Keys,
        revocations: &Revocations,
        now: u64,
    ) -> Result<Ticket, TicketError> {
        let usage = TicketError::Usage;
        let User { name: user, uid } = book.user(self.user.as_deref()).map_err(usage)?.clone();
        if !is_name(&self.name) {
            return Err(usage("a name has 1 to 128 printable bytes, and no space at its ends".to_owned()));
        }
        let exp = self.expires.seconds(now);
        if exp <= now {
            return Err(usage(format!("--expires: {} is {}", show(exp), distance(exp, now))));
        }
        if self.kind != Kind::Client && !self.allow.is_empty() {
            return Err(usage(
                "--allow is for clients: what an agent dials is said in its agent.yaml".to_owned(),
            ));
        }
        let own = |entry: &&Entry| entry.user == user && entry.kind == self.kind && entry.name == self.name;
        // What another one is to allow, if nothing is said of that, is what the last one did.
        let last = book.tickets.iter().rfind(own).filter(|_| self.renew && self.allow.is_empty());
        let allow = last.map_or(&self.allow, |last| &last.allow).clone();
        let holds = |entry: &&Entry| own(entry) && state(book, entry, revocations, now) == HOLDS;
        if !self.renew
            && let Some(entry) = book.tickets.iter().find(holds)
        {
            let (kind, name, until) = (self.kind.name(), &self.name, show_from(entry.exp, now));
            return Err(usage(format!(
                "the {kind} {name} of {user} has a ticket already, until {until}: take it back (narrowlink-gateway ticket \
                 revoke {kind} {name}), or say --renew for another one beside it"
            )));
        }
        let mut claims = Claims::new(self.kind, uid, &self.name, exp, &draw_id()?);
        (claims.iat, claims.policies) = (Some(now), grant(&allow)?);
        let token = SecretText::new(keys.sign(&claims)?);
        let Claims { kind, name, jti, .. } = claims;
        book.tickets.push(Entry { user, kind, name, jti, iat: now, exp, allow });
        let Book { gateways, domain, ca_pin, .. } = &*book;
        Ok(Ticket { gateways: gateways.clone(), domain: domain.clone(), pin: *ca_pin, token })
    }
}

/// What a client with these `--allow` may reach.
fn grant(allow: &[String]) -> Result<Grant, TicketError> {
    if allow.is_empty() {
        return Ok(Grant::default());
    }
    let items = allow
        .iter()
        .map(|text| text.parse::<Item>().map_err(|e| TicketError::Usage(format!("--allow {text:?}: {e}"))));
    let policies = items.collect::<Result<_, _>>()?;
    Ok(Grant::new(vec![Policies { permit: true, policies }]))
}

fn draw_id() -> Result<String, TicketError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(TicketError::Random)?;
    Ok(hex::encode(&bytes))
}

/// Takes back every ticket that this agent or client has; how many held at `now`.
///
/// # Errors
/// See [`TicketError`]; what was taken back before stays so.
pub fn revoke(
    book: &Path,
    list: &Path,
    (user, kind, name): (Option<&str>, Kind, &str),
    now: u64,
) -> Result<usize, TicketError> {
    let book = Book::read(book)?;
    let user = &book.user(user).map_err(TicketError::Usage)?.name;
    let own = |entry: &&Entry| entry.user == *user && entry.kind == kind && entry.name == name;
    let mut entries = book.tickets.iter().filter(own).peekable();
    if entries.peek().is_none() {
        return Err(TicketError::Usage(format!(
            "the {} {name} of {user} was given no ticket; `narrowlink-gateway ticket list` shows who was",
            kind.name()
        )));
    }
    let mut count = 0;
    for entry in entries.filter(|entry| entry.exp > now) {
        let entry =
            revocations::Entry { jti: Some(entry.jti.clone()), uid: None, name: None, issued_before: None };
        count += usize::from(revocations::add(list, &entry)?);
    }
    Ok(count)
}

/// What was taken back, for programs: one object, in one line.
pub fn revoked_json(kind: Kind, name: &str, count: usize, list: &Path) -> String {
    let list = list.display().to_string();
    format!("{}\n", json!({ "kind": kind, "name": name, "revoked": count, "list": list }))
}

/// The state of a ticket that is taken.
const HOLDS: &str = "holds";

/// Whether somebody's ticket holds.
fn state(book: &Book, entry: &Entry, revocations: &Revocations, now: u64) -> &'static str {
    let is_revoked = book.user(Some(&entry.user)).is_ok_and(|User { uid, .. }| {
        revocations.revoke(Bearer { jti: &entry.jti, uid: *uid, name: &entry.name, iat: Some(entry.iat) })
    });
    match (is_revoked, entry.exp > now) {
        (true, _) => "revoked",
        (false, true) => HOLDS,
        (false, false) => "expired",
    }
}

/// The tickets of the book, for people.
pub fn text(book: &Book, revocations: &Revocations, now: u64) -> String {
    if book.tickets.is_empty() {
        return "no ticket was made yet; `narrowlink-gateway ticket agent NAME` makes one\n".to_owned();
    }
    let widest = |of: fn(&Entry) -> &str, head: &str| {
        book.tickets.iter().map(|entry| of(entry).chars().count()).chain([head.len()]).max().unwrap_or(0)
    };
    let (name, user) =
        (widest(|entry| entry.name.as_str(), "NAME"), widest(|entry| entry.user.as_str(), "USER"));
    let mut text = format!("{:<7} {:<name$} {:<user$} {:<8} UNTIL\n", "KIND", "NAME", "USER", "STATE");
    for entry in &book.tickets {
        let state = state(book, entry, revocations, now);
        let kind = entry.kind.name();
        let until = show_from(entry.exp, now);
        // Writing to a String does not fail.
        let _ = writeln!(text, "{kind:<7} {:<name$} {:<user$} {state:<8} {until}", entry.name, entry.user);
    }
    text
}

/// The same as one JSON array, in one line.
pub fn json(book: &Book, revocations: &Revocations, now: u64) -> String {
    let tickets = book.tickets.iter().map(|entry| {
        let Entry { user, kind, name, jti, iat, exp, allow } = entry;
        json!({
            "kind": kind, "name": name, "user": user, "jti": jti, "iat": iat, "exp": exp,
            "expires_at": show(*exp),
            "state": state(book, entry, revocations, now), "allow": allow,
        })
    });
    let mut text = serde_json::Value::from(tickets.collect::<Vec<_>>()).to_string();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::id::Uid;

    use super::*;

    const NOW: u64 = 1_795_219_200;

    fn book() -> Book {
        let user = |name: &str, n| User { name: name.to_owned(), uid: Uid::from_u128(n) };
        Book {
            gateways: vec!["gw.example:443".to_owned()],
            domain: None,
            ca_pin: None,
            users: vec![user("main", 1), user("lab", 2)],
            tickets: vec![],
        }
    }

    fn none() -> Revocations {
        Revocations::default()
    }

    fn wanted(kind: Kind, name: &str) -> Wanted {
        Wanted { user: None, kind, name: name.to_owned(), allow: vec![], expires: LASTS, renew: false }
    }

    #[test]
    fn a_ticket_holds_a_token_that_the_gateway_takes_and_its_book_knows() {
        let (mut book, keys) = (book(), Keys::new(&[7; 32]));
        let allow = vec!["home:127.0.0.1:22".to_owned(), "*:*.lan:*".to_owned()];
        let client = Wanted { user: Some("lab".to_owned()), allow, ..wanted(Kind::Client, "laptop") };
        let ticket = client.make(&mut book, &keys, &none(), NOW).unwrap();
        let claims = keys.verify(ticket.token.expose(), Kind::Client, NOW).unwrap();
        assert_eq!((claims.name.as_str(), claims.uid, claims.iat), ("laptop", Uid::from_u128(2), Some(NOW)));
        assert!(!claims.policies.is_unrestricted());
        let entry = book.tickets.first().unwrap();
        assert_eq!((entry.jti.as_str(), entry.exp), (claims.jti.as_str(), claims.exp));
        assert_eq!(Ticket::parse(ticket.encode().expose()), Ok(ticket));
    }

    #[test]
    fn a_name_has_one_ticket_unless_it_is_renewed_or_over() {
        let (mut book, keys) = (book(), Keys::new(&[7; 32]));
        let home = wanted(Kind::Agent, "home");
        home.make(&mut book, &keys, &none(), NOW).unwrap();
        let said = home.make(&mut book, &keys, &none(), NOW).unwrap_err().to_string();
        assert!(said.contains("ticket revoke agent home") && said.contains("--renew"), "{said}");
        wanted(Kind::Client, "home").make(&mut book, &keys, &none(), NOW).unwrap();
        Wanted { renew: true, ..home.clone() }.make(&mut book, &keys, &none(), NOW).unwrap();
        home.make(&mut book, &keys, &none(), LASTS.seconds(NOW)).unwrap();
        assert_eq!(book.tickets.len(), 4);
    }

    #[test]
    fn a_ticket_that_is_renewed_allows_what_the_last_one_did_unless_it_says_so() {
        let (mut book, keys) = (book(), Keys::new(&[7; 32]));
        let allow = |rules: &[&str]| rules.iter().map(ToString::to_string).collect::<Vec<_>>();
        let friend = Wanted { allow: allow(&["home:127.0.0.1:22"]), ..wanted(Kind::Client, "friend") };
        friend.make(&mut book, &keys, &none(), NOW).unwrap();
        let again = Wanted { renew: true, ..wanted(Kind::Client, "friend") };
        let ticket = again.make(&mut book, &keys, &none(), NOW).unwrap();
        assert!(!keys.verify(ticket.token.expose(), Kind::Client, NOW).unwrap().policies.is_unrestricted());
        assert_eq!(book.tickets[1].allow, friend.allow);
        let more = Wanted { allow: allow(&["home"]), ..again };
        more.make(&mut book, &keys, &none(), NOW).unwrap();
        assert_eq!(book.tickets[2].allow, allow(&["home"]));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_enters_no_book() {
        let (mut book, keys) = (book(), Keys::new(&[7; 32]));
        for (wanted, says) in [
            (Wanted { user: Some("x".to_owned()), ..wanted(Kind::Agent, "home") }, "--user"),
            (wanted(Kind::Agent, ""), "a name has"),
            (Wanted { expires: When::At(NOW), ..wanted(Kind::Agent, "home") }, "--expires"),
            (
                Wanted { allow: vec!["home".to_owned()], ..wanted(Kind::Agent, "home") },
                "--allow is for clients",
            ),
            (
                Wanted { allow: vec!["home:22".to_owned()], ..wanted(Kind::Client, "a") },
                "--allow \"home:22\": ",
            ),
        ] {
            let said = wanted.make(&mut book, &keys, &none(), NOW).unwrap_err().to_string();
            assert!(said.contains(says), "{said}");
        }
        assert!(book.tickets.is_empty());
    }

    #[test]
    fn who_is_taken_back_stands_on_the_list_and_in_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let (path, list) = (dir.path().join(book::FILE), dir.path().join("revoked.yaml"));
        let (mut book, keys) = (book(), Keys::new(&[7; 32]));
        for kind in [Kind::Agent, Kind::Client] {
            wanted(kind, "home").make(&mut book, &keys, &none(), NOW).unwrap();
        }
        std::fs::write(&path, book.text()).unwrap();
        let home = (None, Kind::Agent, "home");
        assert_eq!(revoke(&path, &list, home, NOW).unwrap(), 1);
        assert_eq!(revoke(&path, &list, home, NOW).unwrap(), 0, "it is there already");
        assert!(revoke(&path, &list, (None, Kind::Agent, "x"), NOW).is_err());
        let revoked = Revocations::load(&list).unwrap().unwrap();
        // Whose ticket was taken back may be given another one.
        assert!(wanted(Kind::Agent, "home").make(&mut book.clone(), &keys, &revoked, NOW).is_ok());
        assert!(wanted(Kind::Client, "home").make(&mut book.clone(), &keys, &revoked, NOW).is_err());
        let table = text(&book, &revoked, NOW);
        assert!(
            table.contains("agent   home main revoked") && table.contains("client  home main holds"),
            "{table}"
        );
        let list: serde_json::Value = serde_json::from_str(&json(&book, &revoked, NOW)).unwrap();
        assert_eq!((&list[0]["state"], &list[1]["state"]), (&json!("revoked"), &json!("holds")));
    }
}
