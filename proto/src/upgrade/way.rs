//! Role: whether anything stands between two peers that ends TLS or rewrites what they say. Through such a thing a
//! connection that is cut looks like one that has ended well, so *raw* is refused there.
//! Invariants: each side says what it saw of its connection, and compares · a head is vouched for by a digest of all its
//! bytes, so a proxy that changes, adds or takes away a single one shows · who says nothing is not believed · addresses
//! are a hint alone: NAT changes them and breaks nothing.
//! See: ARCHITECTURE.md, invariant 4; RFC 5056 for channel bindings.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{encode_json, parse_json};
use crate::{
    ended::{RefusalCode, Refused},
    http::head::{Headers, push},
    id::{ChannelBinding, HeadDigest},
    printable::printable,
};

const NL_VIA: &str = "NL-Via";
/// A foreign header's name is repeated no longer than this.
const NAME_CHARS_MAX: usize = 40;
/// What our own heads hold besides the headers of ours; whatever else is there was added on the way.
const OURS: [&str; 10] = [
    "Host",
    "Connection",
    "Upgrade",
    "User-Agent",
    "Origin",
    "Authorization",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Accept",
];

/// What one side sees of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// What both ends of one TLS connection have and nobody else; `None` where there is no TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ChannelBinding>,
    /// The peer's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_addr: Option<SocketAddr>,
}

/// What a head shows of the way that it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Way {
    /// What its sender saw; `None` from a sender that does not say.
    pub seen: Option<Sight>,
    /// What something on the way has done to it; never said by its sender.
    pub altered: Option<String>,
}

/// Why plain bytes can't be trusted to end as they were ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Between {
    /// The two ends are not those of one TLS connection.
    #[error(
        "something between you and the gateway ends TLS (a proxy or CDN), and would make a clean end of a cut \
         connection; use framing: framed"
    )]
    EndsTls,
    /// A head did not arrive as it was sent.
    #[error(
        "something between you and the gateway rewrites requests ({0}), and would make a clean end of a cut \
         connection; use framing: framed"
    )]
    Rewrites(String),
    /// The other side does not say what it sees.
    #[error(
        "the other side is of an older version, which does not say whether a proxy stands between you and the \
         gateway; update it, or use framing: framed"
    )]
    Unknown,
}

impl From<Between> for Refused {
    fn from(between: Between) -> Self {
        Self::new(RefusalCode::Unsupported, format!("framing: raw is refused: {between}"))
    }
}

/// The header's value.
#[derive(Serialize, Deserialize)]
struct Said {
    /// Of all that stands before this header, which is the last.
    head: HeadDigest,
    #[serde(flatten)]
    seen: Sight,
}

impl Way {
    /// That a head's sender saw this.
    pub const fn seen(sight: Sight) -> Self {
        Self { seen: Some(sight), altered: None }
    }

    /// Whether nothing stands between the head's sender and its receiver, who sees `here`.
    ///
    /// # Errors
    /// What does.
    pub fn is_direct(&self, here: &Sight) -> Result<(), Between> {
        let said_tls = self.seen.as_ref().map(|seen| seen.tls);
        match (&self.altered, said_tls) {
            // TLS first: whatever ends it is what there is to be done about.
            (_, Some(tls)) if tls != here.tls => Err(Between::EndsTls),
            (Some(what), _) => Err(Between::Rewrites(what.clone())),
            (None, None) => Err(Between::Unknown),
            (None, Some(_)) => Ok(()),
        }
    }

    /// What a whole head shows; `hinted`: somebody answered before its sender did.
    pub(super) fn of(head: &[u8], headers: &Headers<'_, '_>, hinted: bool) -> Self {
        let said: Option<Said> = headers.single(NL_VIA).ok().flatten().and_then(parse_json);
        let whole = said.as_ref().is_none_or(|said| digest_of(head) == Some(said.head));
        let foreign = headers.0.iter().map(|header| header.name).find(|name| !is_ours(name));
        let altered = match foreign {
            Some(name) => Some(format!("it adds the header {}", printable(name, NAME_CHARS_MAX))),
            None if hinted => Some("it answers first".to_owned()),
            None if !whole => Some("what was sent is not what came".to_owned()),
            None => None,
        };
        Self { seen: said.map(|said| said.seen), altered }
    }
}

/// Ends a head with what its sender sees.
pub(super) fn push_sight(head: &mut Vec<u8>, seen: &Sight) {
    let digest = HeadDigest::from_bytes(Sha256::digest(&*head).into());
    push(head, NL_VIA, &encode_json(&Said { head: digest, seen: seen.clone() }));
}

/// The digest that a head's sender must have made, if our header is its last as it was there.
fn digest_of(head: &[u8]) -> Option<HeadDigest> {
    let lines = head.strip_suffix(b"\r\n\r\n")?;
    let last = lines.windows(2).rposition(|pair| pair == b"\r\n")? + 2;
    lines[last..]
        .starts_with(b"NL-Via: ")
        .then(|| HeadDigest::from_bytes(Sha256::digest(&head[..last]).into()))
}

fn is_ours(name: &str) -> bool {
    OURS.iter().any(|own| own.eq_ignore_ascii_case(name))
        || name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("NL-"))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Answer, Framing, Head, Protocol, Request, encode_accept, encode_request, parse_request,
            parse_response,
        },
        *,
    };
    use crate::message::Channel;

    const KEY: [u8; 16] = *b"the sample nonce";
    const RAW: Protocol = Protocol { channel: Channel::Stream, framing: Framing::Raw };

    fn tls(n: u8) -> Sight {
        Sight { tls: Some(ChannelBinding::from_bytes([n; 32])), peer_addr: None }
    }

    fn sent(seen: Option<Sight>) -> String {
        let request = Request {
            protocol: RAW,
            token: "aaa.bbb.ccc".into(),
            key: KEY,
            open: None,
            lane: None,
            host: "gw.example".into(),
            origin: None,
            way: Way { seen, altered: None },
        };
        String::from_utf8(encode_request(&request)).unwrap()
    }

    fn come(head: &str) -> Way {
        match parse_request(head.as_bytes()) {
            Ok(Head::Upgrade { request, .. }) => request.way,
            other => panic!("{head}: {other:?}"),
        }
    }

    fn answered(head: &str) -> Way {
        match parse_response(head.as_bytes(), &KEY, RAW) {
            Ok(Answer::Accepted { way, .. }) => way,
            other => panic!("{head}: {other:?}"),
        }
    }

    #[test]
    fn the_two_ends_of_one_connection_agree_and_others_do_not() {
        let plain = Sight::default();
        for (there, here, want) in [
            (&plain, &plain, Ok(())),
            (&tls(1), &tls(1), Ok(())),
            (&tls(1), &plain, Err(Between::EndsTls)),
            (&plain, &tls(1), Err(Between::EndsTls)),
            (&tls(1), &tls(2), Err(Between::EndsTls)),
        ] {
            assert_eq!(come(&sent(Some(there.clone()))).is_direct(here), want, "{there:?} {here:?}");
            let answer = String::from_utf8(encode_accept(&KEY, RAW, None, Some(there))).unwrap();
            assert_eq!(answered(&answer).is_direct(here), want, "{there:?} {here:?}");
        }
    }

    #[test]
    fn who_says_nothing_is_not_believed() {
        assert_eq!(come(&sent(None)).is_direct(&Sight::default()), Err(Between::Unknown));
        let answer = String::from_utf8(encode_accept(&KEY, RAW, None, None)).unwrap();
        assert_eq!(answered(&answer).is_direct(&tls(1)), Err(Between::Unknown));
        for bad in ["NL-Via: e30", "NL-Via: x", "NL-Via: "] {
            let head = sent(None).replace("\r\n\r\n", &format!("\r\n{bad}\r\n\r\n"));
            assert_eq!(come(&head).is_direct(&Sight::default()), Err(Between::Unknown), "{bad}");
        }
    }

    #[test]
    fn addresses_are_a_hint_and_never_a_reason() {
        let here = Sight { peer_addr: Some("192.0.2.1:5".parse().unwrap()), ..Sight::default() };
        let answer = String::from_utf8(encode_accept(&KEY, RAW, None, Some(&here))).unwrap();
        let way = answered(&answer);
        assert_eq!(way.seen, Some(here));
        assert_eq!(way.is_direct(&Sight::default()), Ok(()));
    }

    #[test]
    fn whatever_a_proxy_does_to_a_head_shows() {
        let head = sent(Some(Sight::default()));
        let ends = |with: &str| head.replace("\r\n\r\n", &format!("\r\n{with}\r\n\r\n"));
        for (head, what) in [
            (ends("X-Forwarded-For: 192.0.2.1"), "X-Forwarded-For"),
            (ends("Via: 1.1 proxy"), "Via"),
            (ends("CF-Ray: 1"), "CF-Ray"),
            (ends("CDN-Loop: x"), "CDN-Loop"),
            (ends("Forwarded: for=192.0.2.1"), "Forwarded"),
            (ends("X-Whatever-A-Vendor-Thinks-Of-And-Makes-Very-Very-Long: 1"), "X-Whatever"),
            (head.replacen("\r\n", "\r\nx-real-ip: 192.0.2.1\r\n", 1), "x-real-ip"),
            (head.replace("Connection: Upgrade", "connection: upgrade"), "not what came"),
            (head.replace("Host: gw.example", "Host: backend"), "not what came"),
            (head.replace("User-Agent: narrowlink", "User-Agent: other"), "not what came"),
            (ends("Origin: https://a"), "not what came"),
        ] {
            let Err(Between::Rewrites(why)) = come(&head).is_direct(&Sight::default()) else {
                panic!("{head}")
            };
            assert!(why.contains(what) && why.len() < 80, "{why}");
        }
        let answer = String::from_utf8(encode_accept(&KEY, RAW, None, Some(&Sight::default()))).unwrap();
        let hint = "HTTP/1.1 103 Early Hints\r\n\r\n";
        for altered in [
            answer.replace("\r\n\r\n", "\r\nServer: nginx\r\n\r\n"),
            answer.replace("Upgrade: websocket", "upgrade: websocket"),
            format!("{hint}{answer}"),
        ] {
            let between = answered(&altered).is_direct(&Sight::default());
            assert!(matches!(between, Err(Between::Rewrites(_))), "{altered}: {between:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_write_instead() {
        let refused = Refused::from(come(&sent(Some(tls(1)))).is_direct(&Sight::default()).unwrap_err());
        assert_eq!(refused.code, RefusalCode::Unsupported);
        for words in ["ends TLS (a proxy or CDN)", "use framing: framed"] {
            assert!(refused.reason.contains(words), "{}", refused.reason);
        }
    }
}
