//! Role: tickets for agents and clients: made, listed and taken back by the operator of a gateway.
//! Invariants: a ticket is shown once, to who asked for it, and kept nowhere · the book has an entry before a ticket is shown, so
//! that each can be taken back · an agent's name has one ticket that holds, unless the operator says so.
//! See: `book`; `proto::ticket`; docs/tickets.md.

pub mod book;

use std::{fmt::Write as _, net::IpAddr, path::Path};

use narrowlink_proto::{
    endpoint::SecretText,
    hex,
    id::Uid,
    policy::{Grant, Item, Policies, ShortError},
    ticket::Ticket,
    token::{Claims, Keys, Kind, TokenError, is_name},
    when::{When, date, distance, show, show_from},
};
use serde_json::json;

use self::book::{Book, BookError, Entry, User};
use crate::revocations::{self, Bearer, RevocationError, Revocations};

/// How long a ticket holds if nobody says.
pub const LASTS: When = When::In(365 * 24 * 60 * 60);

/// Of an id that is shown.
const ID_CHARS_MIN: usize = 8;
/// A whole one of ours.
const ID_CHARS_MAX: usize = 32;

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
    /// When it ends; without it [`LASTS`], and one that is renewed lasts as long as the last one.
    pub expires: Option<When>,
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
        let own = |entry: &&Entry| entry.user == user && entry.kind == self.kind && entry.name == self.name;
        let last = book.tickets.iter().rfind(own).filter(|_| self.renew);
        // What another one is to allow, if nothing is said of that, is what the last one did.
        let allow = last.filter(|_| self.allow.is_empty()).map_or(&self.allow, |last| &last.allow).clone();
        let exp = match (self.expires, last) {
            (Some(expires), _) => expires.seconds(now),
            (None, Some(last)) => now.saturating_add(last.exp.saturating_sub(last.iat)),
            (None, None) => LASTS.seconds(now),
        };
        if exp <= now {
            return Err(usage(format!(
                "--expires: {} is {}: say a time in the future, such as 30d",
                show(exp),
                distance(exp, now)
            )));
        }
        if self.kind != Kind::Client && !self.allow.is_empty() {
            return Err(usage(
                "--allow is for clients: what an agent dials is said in its agent.yaml".to_owned(),
            ));
        }
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
        let agents = agents(book, &user);
        let mut claims = Claims::new(self.kind, uid, &self.name, exp, &draw_id()?);
        (claims.iat, claims.policies) = (Some(now), grant(&allow, &agents)?);
        let token = SecretText::new(keys.sign(&claims)?);
        let Claims { kind, name, jti, .. } = claims;
        book.tickets.push(Entry { user, kind, name, jti, iat: now, exp, allow });
        let Book { gateways, domain, ca_pin, .. } = &*book;
        Ok(Ticket { gateways: gateways.clone(), domain: domain.clone(), pin: *ca_pin, token })
    }
}

/// The names of this user's agents that were given tickets.
fn agents(book: &Book, user: &str) -> Vec<String> {
    let own = book.tickets.iter().filter(|entry| entry.user == user && entry.kind == Kind::Agent);
    let mut names: Vec<_> = own.map(|entry| entry.name.clone()).collect();
    names.sort();
    names.dedup();
    names
}

/// What a client with these `--allow` may reach.
fn grant(allow: &[String], agents: &[String]) -> Result<Grant, TicketError> {
    if allow.is_empty() {
        return Ok(Grant::default());
    }
    let policies = allow.iter().map(|text| rule(text, agents)).collect::<Result<_, _>>()?;
    Ok(Grant::new(vec![Policies { permit: true, policies }]))
}

/// One rule; where what was written is none, or is about an agent that nobody would call so, what was probably meant.
fn rule(text: &str, agents: &[String]) -> Result<Item, TicketError> {
    let meant = meant(text, agents).map(|rule| format!("; did you mean {rule}?")).unwrap_or_default();
    let item: Item = text.parse().map_err(|e| TicketError::Usage(format!("--allow {text:?}: {e}{meant}")))?;
    match item.agent() {
        Some(agent) if !agents.iter().any(|known| known == agent) && is_place(agent) => {
            Err(TicketError::Usage(format!(
                "--allow {text:?}: the name of the agent comes first, and {agent} looks like a port or an address: \
                 AGENT:HOST:PORTS{meant}"
            )))
        }
        _ => Ok(item),
    }
}

/// Whether a text says where rather than through whom.
fn is_place(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || text.starts_with(|c: char| c.is_ascii_digit()) && is_ports(text)
}

fn is_ports(text: &str) -> bool {
    format!("a:127.0.0.1:{text}").parse::<Item>().is_ok()
}

/// What was probably meant by a text that lacks its agent or its host, if that can be told.
fn meant(text: &str, agents: &[String]) -> Option<String> {
    let first = agents.first().map_or("AGENT", String::as_str);
    let rule = match text.rsplit_once(':') {
        None if is_ports(text) => format!("{first}:127.0.0.1:{text}"),
        Some((agent, ports)) if agents.iter().any(|known| known == agent) && is_ports(ports) => {
            format!("{agent}:127.0.0.1:{ports}")
        }
        Some((_, ports)) if is_ports(ports) => format!("{first}:{text}"),
        Some((agent, _)) if !is_place(agent) && text.parse::<Item>() == Err(ShortError::NoPort) => {
            return Some(with_port(text));
        }
        _ => return None,
    };
    rule.parse::<Item>().is_ok().then_some(rule)
}

/// A rule that lacks its port, with a place for it in front of the protocol.
fn with_port(text: &str) -> String {
    let text = text.trim_end_matches(':');
    match text.rsplit_once('/') {
        Some((place, word)) if word.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            format!("{place}:PORT/{word}")
        }
        _ => format!("{text}:PORT"),
    }
}

/// Until when the last ticket of the book holds for somebody at `now`, and for which gateway: `until 2026-12-31 (in
/// 30 days), for gw.example:443`.
pub fn scope(book: &Book, now: u64) -> String {
    let until =
        book.tickets.last().map(|entry| format!("until {} ({})", date(entry.exp), distance(entry.exp, now)));
    let gateway = book.gateways.first().map(|gateway| format!("for {gateway}"));
    until.into_iter().chain(gateway).collect::<Vec<_>>().join(", ")
}

impl Wanted {
    /// What is odd about it, and may be meant so.
    pub fn remarks(&self, book: &Book) -> Vec<String> {
        let Ok(User { name: user, .. }) = book.user(self.user.as_deref()) else { return Vec::new() };
        let agents = agents(book, user);
        let items = self.allow.iter().filter_map(|text| text.parse::<Item>().ok());
        let mut unknown: Vec<_> = items.filter_map(|item| item.agent().map(str::to_owned)).collect();
        unknown.retain(|name| !agents.contains(name));
        unknown.dedup();
        let known = if agents.is_empty() { "none".to_owned() } else { agents.join(", ") };
        unknown
            .iter()
            .map(|name| {
                format!(
                    "warning: no ticket was made for an agent {name} of {user} (for: {known}); is the name right? \
                     `narrowlink-gateway ticket agent {name}` makes one"
                )
            })
            .collect()
    }
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
    let id = short_ids(book);
    let mut text =
        format!("{:<7} {:<name$} {:<user$} {:<8} {:<id$} UNTIL\n", "KIND", "NAME", "USER", "STATE", "ID");
    for entry in &book.tickets {
        let state = state(book, entry, revocations, now);
        let kind = entry.kind.name();
        let until = show_from(entry.exp, now);
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{kind:<7} {:<name$} {:<user$} {state:<8} {:<id$} {until}",
            entry.name,
            entry.user,
            entry.jti.chars().take(id).collect::<String>(),
        );
    }
    text
}

/// As many characters of the ids as tell all of them from each other.
fn short_ids(book: &Book) -> usize {
    let differ = |chars: &usize| {
        let mut ids: Vec<String> =
            book.tickets.iter().map(|entry| entry.jti.chars().take(*chars).collect()).collect();
        ids.sort_unstable();
        ids.windows(2).all(|pair| pair[0] != pair[1])
    };
    (ID_CHARS_MIN..ID_CHARS_MAX).find(differ).unwrap_or(ID_CHARS_MAX)
}

/// The tickets whose ids begin so; the one whose whole id it is, alone.
pub fn with_id<'a>(book: &'a Book, beginning: &str) -> Vec<&'a Entry> {
    if let Some(entry) = book.tickets.iter().find(|entry| is_same(&entry.jti, beginning)) {
        return vec![entry];
    }
    let begins = |entry: &&Entry| entry.jti.get(..beginning.len()).is_some_and(|own| is_same(own, beginning));
    book.tickets.iter().filter(begins).collect()
}

/// Whether two ids, or what they begin with, are one. Ids in hexadecimal are read by people, who may write capitals.
fn is_same(own: &str, written: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    own == written || is_hex(own) && own.eq_ignore_ascii_case(written)
}

/// Whether it may be the whole id of a token: 32 hexadecimal digits, as ours and those of tokengen have, a UUID, or a
/// name that somebody wrote into tokens.yaml. Anything shorter in hexadecimal is the beginning of one.
pub fn is_whole_id(id: &str) -> bool {
    let is_hex = |byte: u8| byte.is_ascii_hexdigit();
    let is_named = id.bytes().any(|byte| !is_hex(byte) && byte != b'-');
    is_named || id.len() == ID_CHARS_MAX && id.bytes().all(is_hex) || id.parse::<Uid>().is_ok()
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
        Wanted { user: None, kind, name: name.to_owned(), allow: vec![], expires: None, renew: false }
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
    fn a_ticket_that_is_renewed_lasts_as_long_as_the_last_one_unless_it_says_so() {
        const DAY_S: u64 = 24 * 60 * 60;
        let (mut book, keys) = (book(), Keys::new(&[7; 32]));
        let day = Wanted { expires: Some(When::In(DAY_S)), ..wanted(Kind::Client, "guest") };
        let renew = |expires| Wanted { expires, renew: true, ..wanted(Kind::Client, "guest") };
        for (wanted, lasts, scope_says) in [
            (day, DAY_S, "until 2026-11-22 (in 24 hours), for gw.example:443"),
            (renew(None), DAY_S, "until 2026-11-22 (in 24 hours), for gw.example:443"),
            (
                renew(Some(When::In(30 * DAY_S))),
                30 * DAY_S,
                "until 2026-12-21 (in 30 days), for gw.example:443",
            ),
            (
                wanted(Kind::Client, "other"),
                365 * DAY_S,
                "until 2027-11-21 (in 365 days), for gw.example:443",
            ),
            // There is nothing to renew.
            (Wanted { renew: true, ..wanted(Kind::Agent, "new") }, 365 * DAY_S, "until 2027-11-21"),
        ] {
            let ticket = wanted.make(&mut book, &keys, &none(), NOW).unwrap();
            let claims = keys.verify(ticket.token.expose(), wanted.kind, NOW).unwrap();
            assert_eq!(claims.exp - NOW, lasts, "{wanted:?}");
            assert!(scope(&book, NOW).starts_with(scope_says), "{}", scope(&book, NOW));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_enters_no_book() {
        let (mut book, keys) = (book(), Keys::new(&[7; 32]));
        for (wanted, says) in [
            (Wanted { user: Some("x".to_owned()), ..wanted(Kind::Agent, "home") }, "--user"),
            (wanted(Kind::Agent, ""), "a name has"),
            (Wanted { expires: Some(When::At(NOW)), ..wanted(Kind::Agent, "home") }, "--expires"),
            (
                Wanted { allow: vec!["home".to_owned()], ..wanted(Kind::Agent, "home") },
                "--allow is for clients",
            ),
            (
                Wanted { allow: vec!["home:22".to_owned()], ..wanted(Kind::Client, "a") },
                "--allow \"home:22\": ",
            ),
            (
                Wanted { allow: vec!["22".to_owned()], ..wanted(Kind::Client, "a") },
                "did you mean AGENT:127.0.0.1:22?",
            ),
            (
                Wanted { allow: vec!["10.0.0.1".to_owned()], ..wanted(Kind::Client, "a") },
                "10.0.0.1 looks like a port",
            ),
        ] {
            let said = wanted.make(&mut book, &keys, &none(), NOW).unwrap_err().to_string();
            assert!(said.contains(says), "{said}");
        }
        assert!(book.tickets.is_empty());
    }

    #[test]
    fn a_rule_without_its_agent_or_its_host_hears_what_was_meant_and_an_unknown_agent_is_remarked() {
        let (mut book, keys) = (book(), Keys::new(&[7; 32]));
        wanted(Kind::Agent, "home").make(&mut book, &keys, &none(), NOW).unwrap();
        let client = |allow: &str| Wanted { allow: vec![allow.to_owned()], ..wanted(Kind::Client, "a") };
        for (allow, says) in [
            ("22", "22 looks like a port or an address: AGENT:HOST:PORTS; did you mean home:127.0.0.1:22?"),
            ("22,8000-8100", "did you mean home:127.0.0.1:22,8000-8100?"),
            ("home:22", "did you mean home:127.0.0.1:22?"),
            ("127.0.0.1:22", "did you mean home:127.0.0.1:22?"),
            ("nas.lan:22", "did you mean home:nas.lan:22?"),
            ("192.168.1.1", "192.168.1.1 looks like a port or an address"),
            ("home:127.0.0.1", "the port is missing"),
            ("home:127.0.0.1", "did you mean home:127.0.0.1:PORT?"),
            ("home:10.0.0.0/8", "did you mean home:10.0.0.0/8:PORT?"),
            ("home:nas.lan/udp", "did you mean home:nas.lan:PORT/udp?"),
            ("home:[fd00::1]", "did you mean home:[fd00::1]:PORT?"),
            ("home:127.0.0.1:70000", "70000 is no port: ports end at 65535"),
            ("home:127.0.0.1:90-80", "did you mean 80-90?"),
            ("home:127.0.0.1:22/tpc", "/tpc names no protocol"),
        ] {
            let said = client(allow).make(&mut book, &keys, &none(), NOW).unwrap_err().to_string();
            assert!(said.contains(says), "{said}");
        }
        for (allow, remarks) in
            [("home", 0), ("home:127.0.0.1:22", 0), ("*", 0), ("hoem", 1), ("hoem:127.0.0.1:22", 1)]
        {
            let said = client(allow).remarks(&book);
            assert_eq!(said.len(), remarks, "{said:?}");
            assert!(said.iter().all(|said| said.contains("an agent hoem of main (for: home)")), "{said:?}");
        }
        // Who is called so is called so.
        wanted(Kind::Agent, "22").make(&mut book, &keys, &none(), NOW).unwrap();
        client("22").make(&mut book, &keys, &none(), NOW).unwrap();
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
        let short = &book.tickets[0].jti[..ID_CHARS_MIN];
        assert!(table.contains(&format!("revoked  {short} 2027-")), "{table}");
        assert_eq!(with_id(&book, short), [&book.tickets[0]]);
        assert_eq!(with_id(&book, "another-id"), [] as [&Entry; 0]);
        let list: serde_json::Value = serde_json::from_str(&json(&book, &revoked, NOW)).unwrap();
        assert_eq!((&list[0]["state"], &list[1]["state"]), (&json!("revoked"), &json!("holds")));
    }
}
