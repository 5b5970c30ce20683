//! Role: a ticket: all that an agent or a client needs to reach its gateway, in one line that can be sent and pasted.
//! Invariants: a ticket holds a token, so it is a secret: it never shows in `Debug`, and no error repeats it · one that is
//! cut, mistyped or newer than its reader is refused, and the words say which of the three it is · white space that
//! a mail or a terminal put into it does not matter.
//! See: `endpoint`, which a ticket becomes; `token`, for what its bearer may.

mod program;

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroize as _;

use crate::{
    endpoint::{Endpoint, EndpointError, Protocol, SecretText, SelfHosted},
    pin::Pin,
    secrecy,
    token::TOKEN_BYTES_MAX,
};

pub use program::{Program, ProgramError};

/// What each ticket begins with: what it is, and the version of its form.
pub const PREFIX: &str = "nl1";
/// A ticket of a later form.
const FAMILY: &str = "nl";
/// In front of the contents: how many bytes they have, big-endian.
const LENGTH_BYTES: usize = 2;
/// Behind the contents: the first bytes of their SHA-256. One mistyped ticket of four billion passes.
const CHECK_BYTES: usize = 4;
/// Contents that are longer are none of ours: a token, and a kilobyte for the rest.
const CONTENTS_BYTES_MAX: usize = TOKEN_BYTES_MAX + 1024;
/// Gateways that a ticket may name.
pub const GATEWAYS_MAX: usize = 8;

/// All that is needed to reach a gateway.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Where the gateway listens, as an endpoint has it; at least one, the best first.
    pub gateways: Vec<String>,
    /// The gateway's name in TLS, where it is not that of each address.
    pub domain: Option<String>,
    /// The key of the gateway's own authority; the system's authorities count where there is none.
    pub pin: Option<Pin>,
    /// Who its bearer is.
    pub token: SecretText,
}

/// Why a text is no ticket that can be used. Its bearer's fault, or its sender's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Something else.
    #[error("this is no ticket: a ticket begins with {PREFIX}; `narrowlink-gateway ticket` makes one")]
    Other,
    /// Something else that has a name.
    #[error(
        "this is {0}, and no ticket: a ticket begins with {PREFIX}; `narrowlink-gateway ticket` makes one"
    )]
    Form(secrecy::Form),
    /// Of a form that this version does not know.
    #[error("this ticket was made by a newer gateway than this program knows: update it")]
    Newer,
    /// Its end is missing.
    #[error("this ticket is cut off: {have} of its {of} characters are here; copy all of it, it is one line")]
    Cut {
        /// How many are there.
        have: usize,
        /// How many it had.
        of: usize,
    },
    /// There is more than the ticket.
    #[error("{0} characters too many stand behind this ticket; copy nothing else with it")]
    Trailing(usize),
    /// A character that no ticket has.
    #[error("character {0} of this ticket is none that a ticket has; copy it anew")]
    Character(usize),
    /// A character was changed, or some are missing in its middle.
    #[error("this ticket was changed on its way: its checksum is wrong; copy it anew, all of it")]
    Checksum,
    /// Well copied, but it names nothing that can be used.
    #[error("this ticket names no gateway that can be used: {0}; ask for another one")]
    Unusable(#[from] EndpointError),
    /// Well copied, but not what a gateway writes.
    #[error("this ticket has another content than a gateway gives it; ask for another one")]
    Content,
}

/// As it is written within a ticket.
#[derive(Serialize, Deserialize)]
struct Content {
    #[serde(rename = "g")]
    gateways: Vec<String>,
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pin: Option<String>,
    #[serde(rename = "t")]
    token: String,
}

impl Drop for Content {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl Ticket {
    /// Its one line.
    ///
    /// # Panics
    /// If it has more gateways, or longer ones, than a ticket has room for: our own fault.
    #[expect(clippy::expect_used, reason = "texts can be written as JSON")]
    pub fn encode(&self) -> SecretText {
        assert!((1..=GATEWAYS_MAX).contains(&self.gateways.len()), "{} gateways", self.gateways.len());
        let content = Content {
            gateways: self.gateways.clone(),
            domain: self.domain.clone(),
            pin: self.pin.map(|pin| URL_SAFE_NO_PAD.encode(pin.as_bytes())),
            token: self.token.expose().to_owned(),
        };
        let mut json = serde_json::to_vec(&content).expect("texts can be written");
        assert!(json.len() <= CONTENTS_BYTES_MAX, "a ticket of {} bytes", json.len());
        #[expect(clippy::cast_possible_truncation, reason = "at most CONTENTS_BYTES_MAX")]
        let length = (json.len() as u16).to_be_bytes();
        let mut bytes = [&length[..], &json, &check(&json)].concat();
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
        json.zeroize();
        bytes.zeroize();
        SecretText::new(text)
    }

    /// Reads a ticket that somebody pasted.
    ///
    /// # Errors
    /// See [`TicketError`].
    pub fn parse(text: &str) -> Result<Self, TicketError> {
        let mut packed: String = text.split_ascii_whitespace().collect();
        let mut bytes = unpack(&packed);
        packed.zeroize();
        let ticket = bytes.as_deref().map_err(Clone::clone).and_then(Self::of_content);
        if let Ok(bytes) = &mut bytes {
            bytes.zeroize();
        }
        ticket
    }

    fn of_content(json: &[u8]) -> Result<Self, TicketError> {
        let content: Content = serde_json::from_slice(json).map_err(|_| TicketError::Content)?;
        let pin = match &content.pin {
            None => None,
            Some(pin) => {
                let digest = URL_SAFE_NO_PAD.decode(pin).map_err(|_| TicketError::Content)?;
                Some(Pin::from_bytes(digest.try_into().map_err(|_| TicketError::Content)?))
            }
        };
        let ticket = Self {
            gateways: content.gateways.clone(),
            domain: content.domain.clone(),
            pin,
            token: SecretText::new(content.token.clone()),
        };
        if ticket.gateways.is_empty() || ticket.gateways.len() > GATEWAYS_MAX {
            return Err(TicketError::Content);
        }
        for Endpoint::SelfHosted(endpoint) in ticket.endpoints() {
            endpoint.validate()?;
        }
        Ok(ticket)
    }

    /// The endpoints that it is about, one for each gateway.
    pub fn endpoints(&self) -> impl Iterator<Item = Endpoint> {
        self.gateways.iter().map(|gateway| {
            let protocol = SelfHosted::protocol_by_scheme(gateway).unwrap_or_default();
            let wss = protocol == Protocol::Wss;
            Endpoint::SelfHosted(SelfHosted {
                gateway: gateway.clone(),
                token: Some(self.token.clone()),
                protocol,
                domain: self.domain.clone(),
                ca_pin: self.pin.filter(|_| wss),
                ..SelfHosted::default()
            })
        })
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gateways, domain, pin, token: _ } = self;
        f.debug_struct("Ticket")
            .field("gateways", gateways)
            .field("domain", domain)
            .field("pin", pin)
            .finish_non_exhaustive()
    }
}

fn check(json: &[u8]) -> [u8; CHECK_BYTES] {
    let digest = Sha256::digest(json);
    std::array::from_fn(|at| digest[at])
}

/// The contents of a ticket without white space.
fn unpack(packed: &str) -> Result<Vec<u8>, TicketError> {
    let Some(coded) = packed.strip_prefix(PREFIX) else {
        let digits = packed.strip_prefix(FAMILY).unwrap_or_default();
        let is_newer = digits.starts_with(|c: char| c.is_ascii_digit()) && digits.len() > PREFIX.len();
        return Err(match secrecy::recognise(packed) {
            Some(form) => TicketError::Form(form),
            None if is_newer => TicketError::Newer,
            None => TicketError::Other,
        });
    };
    let is_digit = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if let Some(at) = packed.bytes().position(|b| !is_digit(b)) {
        return Err(TicketError::Character(at + 1));
    }
    // Six bits each: what is left of a byte at the end is of one that was cut.
    let head = coded.get(..coded.len().min(4)).unwrap_or_default();
    let length = match URL_SAFE_NO_PAD.decode(head).as_deref() {
        Ok([high, low, ..]) => usize::from(u16::from_be_bytes([*high, *low])),
        _ => return Err(TicketError::Cut { have: packed.len(), of: encoded_len(CHECK_BYTES) }),
    };
    if length > CONTENTS_BYTES_MAX {
        return Err(TicketError::Checksum);
    }
    let (have, of) = (packed.len(), encoded_len(length + CHECK_BYTES));
    if have < of {
        return Err(TicketError::Cut { have, of });
    }
    if have > of {
        return Err(TicketError::Trailing(have - of));
    }
    let mut bytes = URL_SAFE_NO_PAD.decode(coded).map_err(|_| TicketError::Checksum)?;
    let (body, sum) = bytes.split_at(bytes.len() - CHECK_BYTES);
    let json = body.get(LENGTH_BYTES..).unwrap_or_default().to_vec();
    let holds = check(&json) == sum;
    bytes.zeroize();
    if holds { Ok(json) } else { Err(TicketError::Checksum) }
}

/// The characters of a ticket that has so many bytes behind its length.
fn encoded_len(bytes: usize) -> usize {
    PREFIX.len() + base64::encoded_len(LENGTH_BYTES + bytes, false).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            gateways: vec!["gw.example:443".to_owned(), "ws://192.0.2.7:8080".to_owned()],
            domain: None,
            pin: Some(Pin::of(b"a key")),
            token: SecretText::new("eyJhbGciOiJIUzI1NiJ9.eyJuYW1lIjoiaG9tZSJ9.c2lnbmF0dXJl".to_owned()),
        }
    }

    fn refused(text: &str) -> TicketError {
        Ticket::parse(text).expect_err("it is none")
    }

    #[test]
    fn a_ticket_reads_what_it_writes_however_a_mail_has_broken_its_line() {
        let ticket = ticket();
        let text = ticket.encode();
        assert_eq!(Ticket::parse(text.expose()), Ok(ticket.clone()));
        let lines: Vec<_> =
            text.expose().as_bytes().chunks(60).map(|line| str::from_utf8(line).unwrap()).collect();
        assert_eq!(Ticket::parse(&format!("  {}\r\n", lines.join("\r\n  "))), Ok(ticket));
    }

    #[test]
    fn a_ticket_is_cut_at_every_place_and_says_so() {
        let text = ticket().encode();
        let text = text.expose();
        for have in PREFIX.len() + 4..text.len() {
            assert_eq!(refused(&text[..have]), TicketError::Cut { have, of: text.len() });
        }
        for have in PREFIX.len()..PREFIX.len() + 4 {
            assert!(matches!(refused(&text[..have]), TicketError::Cut { .. }), "{have}");
        }
    }

    #[test]
    fn what_is_no_ticket_is_called_by_its_name() {
        let good = ticket();
        let text = good.encode().expose().to_owned();
        assert_eq!(refused(""), TicketError::Other);
        assert_eq!(refused("home"), TicketError::Other);
        assert_eq!(refused("nl"), TicketError::Other);
        assert_eq!(refused(&text.replacen("nl1", "nl2", 1)), TicketError::Newer);
        assert_eq!(refused(good.token.expose()), TicketError::Form(secrecy::Form::Token));
        assert_eq!(refused(&format!("{text}AAAA")), TicketError::Trailing(4));
        let mut odd = text.clone();
        odd.replace_range(30..31, "é");
        assert_eq!(refused(&odd), TicketError::Character(31));
        let said = refused(good.token.expose()).to_string();
        assert!(said.starts_with("this is a token, and no ticket"), "{said}");
    }

    #[test]
    fn a_ticket_that_names_nothing_is_refused_with_what_is_wrong() {
        let text = Ticket { gateways: vec!["gw.example".to_owned()], ..ticket() }.encode();
        let said = refused(text.expose()).to_string();
        assert!(said.starts_with("this ticket names no gateway that can be used: "), "{said}");
    }

    #[test]
    fn neither_debug_nor_an_error_shows_the_token() {
        let ticket = ticket();
        let secret = "c2lnbmF0dXJl";
        assert!(!format!("{ticket:?}").contains(secret));
        let text = ticket.encode();
        for cut in [20, 100, 200] {
            assert!(!refused(&text.expose()[..cut]).to_string().contains(&text.expose()[5..15]));
        }
    }

    #[test]
    fn a_pin_is_for_tls_alone() {
        let pins: Vec<_> =
            ticket().endpoints().map(|Endpoint::SelfHosted(endpoint)| endpoint.ca_pin.is_some()).collect();
        assert_eq!(pins, [true, false]);
    }

    proptest! {
        #[test]
        fn a_changed_character_is_noticed(at in 3_usize..240, to in "[A-Za-z0-9_-]") {
            let text = ticket().encode().expose().to_owned();
            let at = at % text.len();
            let mut bent = text.clone();
            bent.replace_range(at..=at, &to);
            prop_assume!(bent != text);
            prop_assert!(Ticket::parse(&bent).is_err());
        }

        #[test]
        fn bent_bytes_never_panic(text in "(nl[0-9])?[A-Za-z0-9_ -]{0,200}") {
            let _ = Ticket::parse(&text);
        }
    }
}
