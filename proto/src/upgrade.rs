//! Role: the HTTP/1.1 upgrade that begins every link, lane and stream; both sides of it.
//! Invariants: a token travels in `Authorization` only; without one no answer depends on the path; no
//! extension is offered or accepted; nothing foreign can end a line of what we write.
//! See: RFC 6455 section 4, RFC 9112, ARCHITECTURE.md "The wire".

mod answer;
#[cfg(test)]
mod oracle;
mod ordinary;
mod request;
mod trace;
mod way;

use std::fmt;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha1::{Digest, Sha1};

pub use self::{
    answer::{Answer, Stranger, encode_accept, encode_page, encode_refusal, parse_response},
    ordinary::Ordinary,
    request::{Head, Request, encode_request, parse_request},
    trace::{Trace, http_date},
    way::{Between, Sight, Way},
};
pub use crate::http::{HEAD_BYTES_MAX, HEADERS_MAX};
use crate::{
    ended::{RefusalCode, Refused},
    http,
    id::{LaneId, LinkId, SessionId},
    message::{Channel, Open, VERSION},
};

/// The one path that upgrades.
pub const PATH: &str = "/ws";

/// The bytes of an `NL-Open` at the most, as they stand in the head.
pub const OPEN_BYTES_MAX: usize = 4 * 1024;

const NL_OPEN: &str = "NL-Open";
const NL_OPENED: &str = "NL-Opened";
const NL_LANE: &str = "NL-Lane";
const NL_REFUSED: &str = "NL-Refused";

/// How messages and data stand on the connection after the 101.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Framing {
    /// In WebSocket frames: through any proxy, for many sessions.
    Framed,
    /// Messages behind their length, then plain bytes: for one session.
    Raw,
}

/// What a connection is to be; the sub-protocol's name, such as `nl1.stream.framed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Protocol {
    /// Its role.
    pub channel: Channel,
    /// Its framing.
    pub framing: Framing,
}

impl Protocol {
    const ALL: [(&str, Channel, Framing); 6] = [
        ("nl1.link.framed", Channel::Link, Framing::Framed),
        ("nl1.link.raw", Channel::Link, Framing::Raw),
        ("nl1.lane.framed", Channel::Lane, Framing::Framed),
        ("nl1.lane.raw", Channel::Lane, Framing::Raw),
        ("nl1.stream.framed", Channel::Stream, Framing::Framed),
        ("nl1.stream.raw", Channel::Stream, Framing::Raw),
    ];

    /// Reads a sub-protocol's name; `None` when it is none of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let (_, channel, framing) = Self::ALL.into_iter().find(|(text, ..)| *text == name)?;
        Some(Self { channel, framing })
    }

    /// The version in the name of a sub-protocol that is ours, but not of this version.
    fn other_version(name: &str) -> Option<u32> {
        let digits = name.strip_prefix("nl")?.split('.').next()?;
        let version = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
        (version != VERSION).then_some(version)
    }

    /// The sub-protocol's name.
    pub const fn name(self) -> &'static str {
        match (self.channel, self.framing) {
            (Channel::Link, Framing::Framed) => "nl1.link.framed",
            (Channel::Link, Framing::Raw) => "nl1.link.raw",
            (Channel::Lane, Framing::Framed) => "nl1.lane.framed",
            (Channel::Lane, Framing::Raw) => "nl1.lane.raw",
            (Channel::Stream, Framing::Framed) => "nl1.stream.framed",
            (Channel::Stream, Framing::Raw) => "nl1.stream.raw",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a lane shows whose it is; the header `NL-Lane: link.lane.proof`.
#[derive(Clone, PartialEq, Eq)]
pub struct LaneProof {
    /// The link that it belongs to.
    pub link: LinkId,
    /// Its own name, drawn by the agent.
    pub lane: LaneId,
    /// [`crate::id::LinkSecret::prove_lane`] over both.
    pub proof: [u8; 32],
}

impl LaneProof {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let link = LinkId::parse(parts.next()?).ok()?;
        let lane = LaneId::parse(parts.next()?).ok()?;
        let proof = *SessionId::parse(parts.next()?).ok()?.as_bytes();
        parts.next().is_none().then_some(Self { link, lane, proof })
    }

    fn encode(&self) -> String {
        format!("{}.{}.{}", self.link, self.lane, URL_SAFE_NO_PAD.encode(self.proof))
    }
}

/// The proof is good until the lane is claimed: it stays out of logs.
impl fmt::Debug for LaneProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneProof")
            .field("link", &self.link)
            .field("lane", &self.lane)
            .finish_non_exhaustive()
    }
}

/// The answer to an Open that came in the upgrade: `Message::Opened` as a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The session asked for.
    pub session: SessionId,
    /// The agent's half of the end-to-end handshake, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2ee: Option<String>,
}

/// Whether `open` may travel in the upgrade; a longer one goes as a stream's first message.
pub fn fits_in_head(open: &Open) -> bool {
    encode_json(open).len() <= OPEN_BYTES_MAX
}

/// A head that can't be taken; always the peer's fault, and the connection's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Above [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`].
    #[error("a head of more than {HEAD_BYTES_MAX} bytes or {HEADERS_MAX} headers")]
    TooLong,
    /// Not HTTP as we take it.
    #[error("{0}")]
    Malformed(&'static str),
    /// HTTP, with a token and for us, but against the rules of the upgrade.
    #[error("{0}")]
    Protocol(&'static str),
    /// The same, in another version of our protocol.
    #[error(
        "this gateway speaks version {VERSION} of the protocol (nl{VERSION}), not nl{theirs}; update the older program"
    )]
    Version {
        /// The newest that was offered.
        theirs: u32,
    },
}

impl HeadError {
    /// The status that answers such a request.
    pub(crate) const fn http_status(self) -> u16 {
        match self {
            Self::TooLong => 431,
            Self::Malformed(_) => 400,
            Self::Protocol(_) | Self::Version { .. } => self.code().http_status(),
        }
    }

    const fn code(self) -> RefusalCode {
        match self {
            Self::Version { .. } => RefusalCode::Unsupported,
            Self::TooLong | Self::Malformed(_) | Self::Protocol(_) => RefusalCode::Protocol,
        }
    }

    /// The answer to such a request: an ordinary server's page, or to whom speaks our protocol the
    /// reason.
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::TooLong | Self::Malformed(_) => encode_page(self.http_status(), ""),
            Self::Protocol(_) | Self::Version { .. } => {
                encode_refusal(&Refused::new(self.code(), self.to_string()))
            }
        }
    }
}

impl From<http::HeadError> for HeadError {
    fn from(error: http::HeadError) -> Self {
        match error {
            http::HeadError::TooLong => Self::TooLong,
            http::HeadError::Malformed(what) | http::HeadError::Unsupported(what) => Self::Malformed(what),
            http::HeadError::Version => Self::Malformed("another version than HTTP/1.0 and HTTP/1.1"),
            http::HeadError::Expectation => Self::Malformed("an expectation other than 100-continue"),
            http::HeadError::BodyTooLong => Self::Malformed("a body of more bytes than can be counted"),
        }
    }
}

/// The `Sec-WebSocket-Accept` that answers a key.
fn accept_of(key: &[u8; 16]) -> String {
    let mut hash = Sha1::new();
    hash.update(STANDARD.encode(key));
    hash.update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

fn encode_json(value: &impl Serialize) -> String {
    #[expect(clippy::expect_used, reason = "no map with foreign keys, no failing Serialize")]
    let text = serde_json::to_vec(value).expect("every message is plain data");
    URL_SAFE_NO_PAD.encode(text)
}

fn parse_json<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_of_a_key_is_that_of_the_rfc() {
        assert_eq!(accept_of(b"the sample nonce"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_sub_protocol_reads_back_what_it_prints() {
        for (name, channel, framing) in Protocol::ALL {
            let protocol = Protocol { channel, framing };
            assert_eq!(protocol.to_string(), name);
            assert_eq!(Protocol::parse(name), Some(protocol));
        }
        for other in
            ["", "nl1", "nl1.stream", "nl1.stream.", "nl2.stream.raw", "NL1.stream.raw", "nl1.stream.raw "]
        {
            assert_eq!(Protocol::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_sub_protocol_of_another_version_is_told_from_one_of_somebody_else() {
        for (name, version) in
            [("nl2.stream.framed", 2), ("nl0.link.raw", 0), ("nl2", 2), ("nl40.whatever.comes", 40)]
        {
            assert_eq!(Protocol::other_version(name), Some(version), "{name:?}");
        }
        for name in [
            "",
            "nl",
            "nl.2",
            "nl1.stream.telepathic",
            "nl01.x",
            "nl+2.x",
            "nl2x.x",
            "NL2.x",
            "chat",
            "nl4294967296.x",
        ] {
            assert_eq!(Protocol::other_version(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_lane_proof_has_one_spelling_and_stays_out_of_logs() {
        let proof = LaneProof {
            link: LinkId::from_bytes([1; 32]),
            lane: LaneId::from_bytes([2; 32]),
            proof: [3; 32],
        };
        let text = proof.encode();
        assert_eq!(LaneProof::parse(&text), Some(proof.clone()));
        for bad in [&text[1..], &text[..text.len() - 1], &format!("{text}."), &text.replace('.', ","), ""] {
            assert_eq!(LaneProof::parse(bad), None, "{bad}");
        }
        assert!(!format!("{proof:?}").contains("proof:"), "{proof:?}");
    }
}
