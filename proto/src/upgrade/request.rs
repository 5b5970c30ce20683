//! Role: what arrives first on an HTTP connection, and what agents and clients send there.
//! Invariants: a request without a token is judged without a look at its path.
//! See: RFC 6455 section 4.1, RFC 9112 section 3.2.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    HEADERS_MAX, HeadError, LaneProof, NL_LANE, NL_OPEN, OPEN_BYTES_MAX, PATH, Protocol, encode_json,
    ordinary::{Ordinary, parse_has_body, parse_path},
    parse_json,
    way::{self, Way},
};
use crate::{
    http::{
        head::{self, Headers, push},
        host::parse_host,
    },
    message::{Channel, Open},
};

/// An upgrade to a link, lane or stream. The token is not verified yet.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// What the connection is to be.
    pub protocol: Protocol,
    /// What stands behind `Bearer`.
    pub token: String,
    /// The handshake's nonce, 16 bytes that the sender drew.
    pub key: [u8; 16],
    /// A stream's Open that travels along.
    pub open: Option<Open>,
    /// A lane's proof; lanes have one, others none.
    pub lane: Option<LaneProof>,
    /// The Host header: a name or address, a port where it is not the scheme's own.
    pub host: String,
    /// Set by browsers: the site whose script opened the connection.
    pub origin: Option<String>,
    /// What its sender sees of the connection, and whether it came as it was sent.
    pub way: Way,
}

/// The token stays out of logs.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("protocol", &self.protocol)
            .field("open", &self.open)
            .field("lane", &self.lane)
            .field("host", &self.host)
            .field("origin", &self.origin)
            .field("way", &self.way)
            .finish_non_exhaustive()
    }
}

/// What arrived on an HTTP connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// The head is not whole.
    NeedMore,
    /// An upgrade of ours.
    Upgrade {
        /// What it asks for.
        request: Box<Request>,
        /// Where the head ends. The sender has nothing to say before the 101.
        head_bytes: usize,
    },
    /// Anything else, an upgrade on our path without a token included.
    Other(Ordinary),
}

/// Reads a request's head.
///
/// # Errors
/// The peer's; [`HeadError::encode`] is the answer.
pub fn parse_request(buf: &[u8]) -> Result<Head, HeadError> {
    let Some(head_bytes) = head::end(buf, 0)? else { return Ok(Head::NeedMore) };
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(&buf[..head_bytes]) {
        Ok(httparse::Status::Complete(bytes)) if bytes == head_bytes => {}
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLong),
        _ => return Err(HeadError::Malformed("not a request of HTTP/1")),
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(HeadError::Malformed("not a request of HTTP/1"));
    };
    let headers = Headers(parsed.headers);

    // From here to the path, every request is judged alike: that there is something at our path shows
    // only to whom brings a token.
    let host = parse_host(&headers, version)?;
    let path = parse_path(method, target, host)?;
    let has_body = parse_has_body(&headers, version)?;
    let token = headers.single("Authorization")?.and_then(bearer);
    if let (Some(token), Some(host)) = (token, host)
        && (method, target, version) == ("GET", PATH, 1)
        && headers.lists("Connection", "upgrade")
        && headers.lists("Upgrade", "websocket")
    {
        let offered = || headers.list("Sec-WebSocket-Protocol");
        if let Some(protocol) = offered().find_map(Protocol::parse) {
            let mut request = Box::new(parse_upgrade(&headers, protocol, token, host, has_body)?);
            request.way = Way::of(&buf[..head_bytes], &headers, false);
            return Ok(Head::Upgrade { request, head_bytes });
        }
        if let Some(theirs) = offered().filter_map(Protocol::other_version).max() {
            return Err(HeadError::Version { theirs });
        }
    }
    Ok(Head::Other(Ordinary {
        method: method.to_owned(),
        path: path.to_owned(),
        host: host.map(str::to_owned),
        keep_alive: version == 1 && !headers.lists("Connection", "close"),
        has_body,
        head_bytes,
    }))
}

fn parse_upgrade(
    headers: &Headers<'_, '_>,
    protocol: Protocol,
    token: &str,
    host: &str,
    has_body: bool,
) -> Result<Request, HeadError> {
    // A body would stand where our protocol begins, and a proxy before us may see its end elsewhere.
    if has_body {
        return Err(HeadError::Protocol("an upgrade with a body"));
    }
    if headers.single("Sec-WebSocket-Version")? != Some("13") {
        return Err(HeadError::Protocol("an upgrade of another WebSocket version than 13"));
    }
    let key = headers
        .single("Sec-WebSocket-Key")?
        .and_then(|text| STANDARD.decode(text).ok()?.try_into().ok())
        .ok_or(HeadError::Protocol("a Sec-WebSocket-Key that is not 16 bytes in base64"))?;
    let open = headers.single(NL_OPEN)?.map(parse_open).transpose()?;
    let lane = headers
        .single(NL_LANE)?
        .map(|text| LaneProof::parse(text).ok_or(HeadError::Protocol("a malformed NL-Lane")))
        .transpose()?;
    if open.is_some() && protocol.channel != Channel::Stream {
        return Err(HeadError::Protocol("an NL-Open on what is no stream"));
    }
    if lane.is_some() != (protocol.channel == Channel::Lane) {
        return Err(HeadError::Protocol("an NL-Lane is for lanes, and every lane has one"));
    }
    let origin = headers.single("Origin")?.map(str::to_owned);
    let (token, host) = (token.to_owned(), host.to_owned());
    Ok(Request { protocol, token, key, open, lane, host, origin, way: Way::default() })
}

fn parse_open(text: &str) -> Result<Open, HeadError> {
    if text.len() > OPEN_BYTES_MAX {
        return Err(HeadError::Protocol("an NL-Open of more than 4096 bytes"));
    }
    parse_json(text).ok_or(HeadError::Protocol("a malformed NL-Open"))
}

/// The credentials of the scheme `Bearer`, if there are any.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim_start_matches(' ');
    (scheme.eq_ignore_ascii_case("Bearer") && !token.is_empty()).then_some(token)
}

/// The request's head. A byte that can't stand in a header becomes `?`.
pub fn encode_request(request: &Request) -> Vec<u8> {
    let mut out = format!("GET {PATH} HTTP/1.1\r\n").into_bytes();
    push(&mut out, "Host", &request.host);
    push(&mut out, "Connection", "Upgrade");
    push(&mut out, "Upgrade", "websocket");
    // There are proxies that turn away who does not name itself.
    push(&mut out, "User-Agent", concat!("narrowlink/", env!("CARGO_PKG_VERSION")));
    push(&mut out, "Sec-WebSocket-Version", "13");
    push(&mut out, "Sec-WebSocket-Key", &STANDARD.encode(request.key));
    push(&mut out, "Sec-WebSocket-Protocol", request.protocol.name());
    push(&mut out, "Authorization", &format!("Bearer {}", request.token));
    if let Some(origin) = &request.origin {
        push(&mut out, "Origin", origin);
    }
    if let Some(open) = &request.open {
        push(&mut out, NL_OPEN, &encode_json(open));
    }
    if let Some(lane) = &request.lane {
        push(&mut out, NL_LANE, &lane.encode());
    }
    if let Some(seen) = &request.way.seen {
        way::push_sight(&mut out, seen);
    }
    out.extend_from_slice(b"\r\n");
    out
}

#[cfg(test)]
pub(super) mod fixture {
    use super::*;

    /// The verdict on the whole, once it is shown that nobody hears another one on the way to it.
    pub(in super::super) fn check(head: &[u8]) -> Result<Head, HeadError> {
        let whole = parse_request(head);
        let first = (0..=head.len())
            .map(|cut| parse_request(&head[..cut]))
            .find(|verdict| !matches!(verdict, Ok(Head::NeedMore)));
        assert_eq!(first.unwrap_or(Ok(Head::NeedMore)), whole, "{}", head.escape_ascii());
        whole
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{Answer, Framing, Sight, fits_in_head, parse_response},
        fixture::check,
        *,
    };
    use crate::{
        ended::RefusalCode,
        id::{LaneId, LinkId, SessionId},
        target::Target,
    };

    fn request(channel: Channel) -> Request {
        let open = Open {
            session: SessionId::from_bytes([1; 32]),
            agent: "home".into(),
            target: Target::Tcp { host: "127.0.0.1".into(), port: 22 },
            e2ee: None,
        };
        let proof = LaneProof {
            link: LinkId::from_bytes([2; 32]),
            lane: LaneId::from_bytes([3; 32]),
            proof: [4; 32],
        };
        Request {
            protocol: Protocol { channel, framing: Framing::Framed },
            token: "aaa.bbb.ccc".into(),
            key: *b"the sample nonce",
            open: (channel == Channel::Stream).then_some(open),
            lane: (channel == Channel::Lane).then_some(proof),
            host: "gw.example:8443".into(),
            origin: None,
            way: Way::seen(Sight::default()),
        }
    }

    fn text(channel: Channel) -> String {
        String::from_utf8(encode_request(&request(channel))).unwrap()
    }

    fn other(head: &str) -> Ordinary {
        match check(head.as_bytes()) {
            Ok(Head::Other(ordinary)) => ordinary,
            verdict => panic!("{head:?} gives {verdict:?}"),
        }
    }

    #[test]
    fn what_we_ask_reads_back_at_any_split() {
        for channel in [Channel::Link, Channel::Lane, Channel::Stream] {
            for framing in [Framing::Framed, Framing::Raw] {
                let mut request = request(channel);
                request.protocol.framing = framing;
                request.origin = Some("https://example".into());
                let mut head = encode_request(&request);
                let head_bytes = head.len();
                head.extend_from_slice(b"said too early");
                assert_eq!(check(&head), Ok(Head::Upgrade { request: Box::new(request), head_bytes }));
            }
        }
    }

    #[test]
    fn a_proxy_may_spell_the_upgrade_in_its_own_way() {
        let head = text(Channel::Link)
            .replace("Connection: Upgrade", "connection: keep-alive, upgrade")
            .replace("Upgrade: websocket", "UPGRADE:\tWebSocket \t")
            .replace("Authorization: Bearer ", "authorization:bearer  ")
            .replace("nl1.link.framed", "chat, nl1.link.framed,nl1.link.raw")
            .replace(
                "\r\n\r\n",
                "\r\nContent-Length: 0\r\nX-Forwarded-For: 192.0.2.1\r\nX: b\u{fc}cher\r\n\r\n",
            );
        let Ok(Head::Upgrade { request: parsed, .. }) = check(head.as_bytes()) else { panic!("{head}") };
        assert!(parsed.way.altered.is_some());
        let sent = request(Channel::Link);
        assert_eq!(*parsed, Request { way: parsed.way.clone(), ..sent });
    }

    #[test]
    fn without_token_or_sub_protocol_it_is_an_ordinary_request() {
        let upgrade = text(Channel::Stream);
        for (what, with) in [
            ("Authorization: Bearer aaa.bbb.ccc\r\n", ""),
            ("Authorization: Bearer aaa.bbb.ccc\r\n", "Authorization: Bearer\r\n"),
            ("Authorization: Bearer aaa.bbb.ccc\r\n", "Authorization: Basic YTpi\r\n"),
            ("nl1.stream", "chat.stream"),
            ("nl1.stream.framed", "nl1.stream.telepathic"),
            ("Upgrade: websocket", "Upgrade: h2c"),
            ("Connection: Upgrade", "Connection: close"),
            ("GET /ws ", "GET /ws?token=aaa.bbb.ccc "),
            ("GET /ws ", "GET /ws/ "),
            ("GET /ws ", "GET /WS "),
            ("GET /ws ", "POST /ws "),
            ("GET /ws ", "GET http://gw.example:8443/ws "),
            ("HTTP/1.1", "HTTP/1.0"),
        ] {
            assert!(upgrade.contains(what));
            let ordinary = other(&upgrade.replacen(what, with, 1));
            assert_eq!(ordinary.host.as_deref(), Some("gw.example:8443"));
            assert!(!ordinary.has_body);
        }
    }

    #[test]
    fn a_program_of_another_version_hears_which_one_is_spoken_here_if_it_has_a_token() {
        let upgrade = text(Channel::Stream);
        for offered in
            ["nl2.stream.framed", "nl2.link.framed, nl2.link.raw", "chat,nl2.tunnel", "nl0.x, nl2.x"]
        {
            let head = upgrade.replace("nl1.stream.framed", offered);
            let error = check(head.as_bytes()).unwrap_err();
            assert_eq!((error, error.http_status()), (HeadError::Version { theirs: 2 }, 501), "{offered}");
            let Ok(Answer::Refused { status: 501, refused: Some(told), .. }) =
                parse_response(&error.encode(), b"the sample nonce", request(Channel::Stream).protocol)
            else {
                panic!("a program of ours does not understand the answer to {offered}")
            };
            let words =
                "this gateway speaks version 1 of the protocol (nl1), not nl2; update the older program";
            assert_eq!((told.code, told.reason.as_str()), (RefusalCode::Unsupported, words));
            assert_eq!(other(&head.replace("Bearer", "Basic")).path, PATH, "{offered}");
            assert_eq!(other(&head.replace("/ws ", "/wt ")).path, "/wt", "{offered}");
        }
        for both in ["nl2.stream.framed, nl1.stream.framed", "nl1.stream.framed,nl2.stream.framed"] {
            let head = upgrade.replace("nl1.stream.framed", both);
            let Ok(Head::Upgrade { request: parsed, .. }) = check(head.as_bytes()) else { panic!("{both}") };
            assert_eq!(parsed.protocol, request(Channel::Stream).protocol);
        }
    }

    #[test]
    fn an_upgrade_of_ours_against_its_rules_hears_why() {
        let (stream, lane, link) = (text(Channel::Stream), text(Channel::Lane), text(Channel::Link));
        let over = format!("NL-Open: {}\r\n\r\n", "A".repeat(OPEN_BYTES_MAX + 1));
        for (head, what, with) in [
            (&stream, "\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"),
            (&stream, "\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (&stream, "Version: 13", "Version: 12"),
            (&stream, "Sec-WebSocket-Version: 13\r\n", ""),
            (&stream, "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ"),
            (&stream, "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZR=="),
            (&stream, "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j"),
            (&stream, "Sec-WebSocket-Key", "Sec-WebSocket-Kay"),
            (&stream, "NL-Open: ", "NL-Open: {"),
            (&stream, "NL-Open: ", "NL-Open: e30 "),
            (&link, "\r\n\r\n", "\r\nNL-Open: e30\r\n\r\n"),
            (&link, "\r\n", &format!("\r\n{over}")[..over.len()]),
            (&lane, "NL-Lane: ", "NL-Lane: A"),
            (&lane, "NL-Lane", "NL-Lone"),
            (&lane, "nl1.lane", "nl1.link"),
            (&lane, "nl1.lane", "nl1.stream"),
            (&stream, "nl1.stream", "nl1.link"),
        ] {
            assert!(head.contains(what));
            let verdict = check(head.replacen(what, with, 1).as_bytes());
            let Err(error @ HeadError::Protocol(_)) = verdict else { panic!("{with} gives {verdict:?}") };
            assert_eq!(error.http_status(), 400);
        }
    }

    #[test]
    fn a_header_of_ours_that_stands_twice_is_refused() {
        for twice in
            ["NL-Open: e30", "NL-Lane: x", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13", "Origin: x"]
        {
            let head = text(Channel::Stream).replace("\r\n\r\n", &format!("\r\n{twice}\r\n{twice}\r\n\r\n"));
            assert!(check(head.as_bytes()).is_err(), "{twice}");
        }
    }

    #[test]
    fn an_open_of_four_kibibytes_is_the_longest() {
        let mut request = request(Channel::Stream);
        for (bytes, fits) in [(1, true), (2900, true), (2990, false), (9000, false)] {
            let open = request.open.as_mut().unwrap();
            open.target = Target::Unix { path: "x".repeat(bytes) };
            assert_eq!(fits_in_head(open), fits, "{bytes}");
            assert_eq!(parse_request(&encode_request(&request)).is_ok(), fits, "{bytes}");
        }
    }

    #[test]
    fn what_the_user_wrote_never_begins_a_line() {
        let mut request = request(Channel::Link);
        request.token = "a\r\nX-Admin: yes".into();
        let head = encode_request(&request);
        assert_eq!(head.windows(2).filter(|pair| pair == b"\r\n").count(), 11);
        let Ok(Head::Upgrade { request: parsed, .. }) = parse_request(&head) else {
            panic!("it is an upgrade")
        };
        assert_eq!(parsed.token, "a??X-Admin: yes");
        assert!(!format!("{parsed:?}").contains("Admin"), "a token shows in Debug");
    }

    proptest! {
        #[test]
        fn without_a_token_no_answer_depends_on_the_path(
            method in prop::sample::select(vec!["GET", "HEAD", "POST", "OPTIONS", "CONNECT", "get"]),
            version in prop::sample::select(vec!["HTTP/1.1", "HTTP/1.0", "HTTP/2.0"]),
            lines in prop::sample::subsequence(vec![
                "Host: gw.example", "Host: a b", "Connection: Upgrade", "Upgrade: websocket",
                "Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8", "Sec-WebSocket-Key: x",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: nl1.stream.framed",
                "Sec-WebSocket-Protocol: nl2.stream.framed", "Sec-WebSocket-Protocol: chat",
                "Authorization: Basic YTpi", "Authorization: Bearer",
                "Content-Length: 5", "Content-Length: x", "Transfer-Encoding: chunked", "NL-Open: e30",
                "NL-Open: ", "NL-Lane: x", "Origin: https://a", "Origin: \u{fc}", " folded",
            ], 0..22),
        ) {
            let verdict = |path: &str| {
                let head = format!("{method} {path} {version}\r\n{}\r\n\r\n", lines.join("\r\n"));
                parse_request(head.as_bytes()).map(|head| match head {
                    Head::Other(ordinary) => Ordinary { path: String::new(), ..ordinary },
                    head => panic!("{head:?}"),
                })
            };
            prop_assert_eq!(verdict(PATH), verdict("/no"));
        }

        #[test]
        fn bent_bytes_never_panic_and_never_have_two_verdicts(
            lane: bool, bends in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut head = text(if lane { Channel::Lane } else { Channel::Stream }).into_bytes();
            for (at, byte) in bends {
                let at = at.index(head.len());
                head[at] = byte;
            }
            let _ = check(&head);
        }
    }
}
