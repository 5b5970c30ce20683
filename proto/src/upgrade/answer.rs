//! Role: what the gateway answers an HTTP request, and how agents and clients read it.
//! Invariants: whatever is no 101 ends the connection and is kept by no cache.
//! See: RFC 6455 sections 4.1 and 4.2.2.

use super::{
    HEADERS_MAX, HeadError, NL_OPENED, NL_REFUSED, Opened, Protocol, accept_of, encode_json, parse_json,
    way::{self, Sight, Way},
};
use crate::{
    ended::{RefusalCode, Refused},
    http::head::{self, Headers, push},
};

/// A reason's bytes at the most in an answer: the head must stay within what its receiver takes.
const REASON_BYTES_MAX: usize = 1024;

/// The 101 that accepts an upgrade.
/// `seen`: what the gateway sees of the connection, for who wants to know whether anything stands between.
pub fn encode_accept(
    key: &[u8; 16],
    protocol: Protocol,
    opened: Option<&Opened>,
    seen: Option<&Sight>,
) -> Vec<u8> {
    let mut out = b"HTTP/1.1 101 Switching Protocols\r\n".to_vec();
    push(&mut out, "Connection", "Upgrade");
    push(&mut out, "Upgrade", "websocket");
    push(&mut out, "Sec-WebSocket-Accept", &accept_of(key));
    push(&mut out, "Sec-WebSocket-Protocol", protocol.name());
    if let Some(opened) = opened {
        push(&mut out, NL_OPENED, &encode_json(opened));
    }
    if let Some(seen) = seen {
        way::push_sight(&mut out, seen);
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// The answer to an upgrade that is refused: the reason as one line of JSON, in the body for people
/// and in a header for programs, because there are proxies that replace bodies.
pub fn encode_refusal(refused: &Refused) -> Vec<u8> {
    let reason = &refused.reason[..refused.reason.floor_char_boundary(REASON_BYTES_MAX)];
    let refused = Refused { reason: reason.to_owned(), ..refused.clone() };
    let header = encode_json(&refused);
    #[expect(clippy::expect_used, reason = "no map, no failing Serialize")]
    let mut body = serde_json::to_vec(&refused).expect("a refusal is plain data");
    body.push(b'\n');
    let mut out = begin(refused.code.http_status());
    if refused.code == RefusalCode::Unauthenticated {
        push(&mut out, "WWW-Authenticate", "Bearer");
    }
    push(&mut out, NL_REFUSED, &header);
    finish(out, "application/json", &body, "")
}

/// An ordinary web server's answer: a page that says no more than its status. `method` is the
/// request's: the answer to HEAD has no body.
pub fn encode_page(status: u16, method: &str) -> Vec<u8> {
    let title = format!("{status} {}", phrase(status));
    let body = format!(
        "<!DOCTYPE html>\n<html>\n<head><title>{title}</title></head>\n<body><h1>{title}</h1></body>\n</html>\n"
    );
    finish(begin(status), "text/html", body.as_bytes(), method)
}

fn begin(status: u16) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status} {}\r\n", phrase(status)).into_bytes();
    push(&mut out, "Connection", "close");
    push(&mut out, "Cache-Control", "no-store");
    out
}

fn finish(mut out: Vec<u8>, content_type: &str, body: &[u8], method: &str) -> Vec<u8> {
    push(&mut out, "Content-Type", content_type);
    push(&mut out, "Content-Length", &body.len().to_string());
    out.extend_from_slice(b"\r\n");
    if method != "HEAD" {
        out.extend_from_slice(body);
    }
    out
}

const fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        421 => "Misdirected Request",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Error",
    }
}

/// What an answer says of its sender, as it came: for people, once it is made printable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stranger {
    /// The header `Server`.
    pub server: Option<String>,
    /// The header `Location`.
    pub location: Option<String>,
}

/// What came back for an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The head is not whole.
    NeedMore,
    /// The connection is ours.
    Accepted {
        /// The answer to the Open that travelled along.
        opened: Option<Opened>,
        /// What the gateway sees of the connection, and whether its answer came as it was sent.
        way: Way,
        /// Where the head ends: from there on our protocol speaks.
        head_bytes: usize,
    },
    /// The connection ends.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The gateway's own words; `None` when something else answered.
        refused: Option<Refused>,
        /// What it says of itself otherwise.
        from: Stranger,
        /// Where the head ends and the body begins.
        head_bytes: usize,
    },
}

/// Reads the answer to an upgrade that asked with `key` for `protocol`.
///
/// # Errors
/// The peer's: not HTTP, or a 101 to something else than what was asked.
pub fn parse_response(buf: &[u8], key: &[u8; 16], protocol: Protocol) -> Result<Answer, HeadError> {
    let mut start = 0;
    loop {
        // Before its end: what is no HTTP may never end, as a server that waits for us to speak its own language.
        if !buf[start..].iter().zip(b"HTTP/").all(|(got, due)| got == due) {
            return Err(HeadError::Malformed("not an answer of HTTP/1"));
        }
        let Some(head_bytes) = head::end(buf, start)? else { return Ok(Answer::NeedMore) };
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut headers);
        match parsed.parse(&buf[start..head_bytes]) {
            Ok(httparse::Status::Complete(bytes)) if bytes == head_bytes - start => {}
            Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLong),
            _ => return Err(HeadError::Malformed("not an answer of HTTP/1")),
        }
        let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
            return Err(HeadError::Malformed("not an answer of HTTP/1"));
        };
        let headers = Headers(parsed.headers);
        match status {
            101 if version == 1 => {
                let opened = parse_accept(&headers, key, protocol)?;
                let way = Way::of(&buf[start..head_bytes], &headers, start > 0);
                return Ok(Answer::Accepted { opened, way, head_bytes });
            }
            101 => return Err(HeadError::Malformed("an upgrade of HTTP/1.0")),
            // Proxies may send hints first; they say nothing about the answer.
            100..200 => start = head_bytes,
            status => {
                let refused = headers.single(NL_REFUSED).ok().flatten().and_then(parse_json);
                let text =
                    |name| headers.first(name).map(|value| String::from_utf8_lossy(value).into_owned());
                let from = Stranger { server: text("Server"), location: text("Location") };
                return Ok(Answer::Refused { status, refused, from, head_bytes });
            }
        }
    }
}

fn parse_accept(
    headers: &Headers<'_, '_>,
    key: &[u8; 16],
    protocol: Protocol,
) -> Result<Option<Opened>, HeadError> {
    if !headers.lists("Connection", "upgrade") || !headers.lists("Upgrade", "websocket") {
        return Err(HeadError::Protocol("a 101 to something else than WebSocket"));
    }
    if headers.single("Sec-WebSocket-Accept")? != Some(&accept_of(key)) {
        return Err(HeadError::Protocol("a 101 that answers another key"));
    }
    if headers.single("Sec-WebSocket-Protocol")? != Some(protocol.name()) {
        return Err(HeadError::Protocol("a 101 to another sub-protocol"));
    }
    if headers.has("Sec-WebSocket-Extensions") {
        return Err(HeadError::Protocol("a 101 with an extension that nobody offered"));
    }
    let Some(text) = headers.single(NL_OPENED)? else { return Ok(None) };
    parse_json(text).map(Some).ok_or(HeadError::Protocol("a malformed NL-Opened"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{Framing, HEAD_BYTES_MAX},
        *,
    };
    use crate::{id::SessionId, message::Channel, printable::printable};

    const KEY: [u8; 16] = *b"the sample nonce";
    const PROTOCOL: Protocol = Protocol { channel: Channel::Stream, framing: Framing::Raw };

    fn opened() -> Opened {
        Opened { session: SessionId::from_bytes([1; 32]), e2ee: Some("eA".into()) }
    }

    /// The verdict on the whole, once it is shown that nobody hears another one on the way to it.
    fn check(head: &[u8]) -> Result<Answer, HeadError> {
        let whole = parse_response(head, &KEY, PROTOCOL);
        let first = (0..=head.len())
            .map(|cut| parse_response(&head[..cut], &KEY, PROTOCOL))
            .find(|verdict| *verdict != Ok(Answer::NeedMore));
        assert_eq!(first.unwrap_or(Ok(Answer::NeedMore)), whole, "{}", head.escape_ascii());
        whole
    }

    #[test]
    fn an_accepted_upgrade_reads_back_and_leaves_what_follows() {
        for opened in [None, Some(opened())] {
            let seen = Sight { peer_addr: Some("192.0.2.1:5".parse().unwrap()), ..Sight::default() };
            let mut bytes = encode_accept(&KEY, PROTOCOL, opened.as_ref(), Some(&seen));
            let head_bytes = bytes.len();
            bytes.extend_from_slice(b"\0\0\0\x02{}");
            assert_eq!(check(&bytes), Ok(Answer::Accepted { opened, way: Way::seen(seen), head_bytes }));
        }
    }

    #[test]
    fn a_refusal_reads_back_even_when_a_proxy_replaced_its_body() {
        for code in [RefusalCode::Unauthenticated, RefusalCode::Policy, RefusalCode::AgentTimeout] {
            let refused = Refused::new(code, "caf\u{e9}: \"no\"").of(SessionId::from_bytes([1; 32]));
            let bytes = encode_refusal(&refused);
            let Ok(Answer::Refused { status, refused: back, head_bytes, .. }) = check(&bytes) else {
                panic!("{}", bytes.escape_ascii())
            };
            assert_eq!((status, back.as_ref()), (code.http_status(), Some(&refused)));
            let (head, body) = bytes.split_at(head_bytes);
            assert_eq!(serde_json::from_slice::<Refused>(body).unwrap(), refused);
            assert_eq!(body.iter().position(|&byte| byte == b'\n'), Some(body.len() - 1));
            let head = str::from_utf8(head).unwrap();
            for line in [
                "Connection: close\r\n",
                "Cache-Control: no-store\r\n",
                &format!("Content-Length: {}\r\n", body.len()),
            ] {
                assert!(head.contains(line), "{head}");
            }
            assert_eq!(head.contains("WWW-Authenticate: Bearer\r\n"), status == 401);
        }
    }

    #[test]
    fn pages_look_alike_and_name_nothing_of_ours() {
        for status in [400, 404, 421, 431, 503] {
            let text = String::from_utf8(encode_page(status, "GET")).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            assert!(
                head.contains("\r\nConnection: close\r\n")
                    && head.contains("\r\nCache-Control: no-store\r\n")
            );
            assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head}");
            assert!(!text.contains("NL-") && !text.to_lowercase().contains("narrowlink"), "{text}");
            assert_eq!(String::from_utf8(encode_page(status, "HEAD")).unwrap(), format!("{head}\r\n\r\n"));
            assert!(matches!(check(text.as_bytes()), Ok(Answer::Refused { refused: None, .. })));
        }
        assert_eq!(HeadError::TooLong.encode(), encode_page(431, "GET"));
        assert_eq!(HeadError::Malformed("secret").encode(), encode_page(400, "GET"));
        let told = parse_response(&HeadError::Protocol("why").encode(), &KEY, PROTOCOL);
        assert!(
            matches!(told, Ok(Answer::Refused { status: 400, refused: Some(refused), .. }) if refused.reason == "why")
        );
    }

    #[test]
    fn a_101_to_something_else_than_what_was_asked_is_refused() {
        let accept = String::from_utf8(encode_accept(&KEY, PROTOCOL, Some(&opened()), None)).unwrap();
        for (what, with) in [
            ("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "s3pPLMBiTxaQ9kYGzzhZRbK+xOp="),
            ("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", ""),
            ("Sec-WebSocket-Accept", "Sec-WebSocket-Accepted"),
            ("nl1.stream.raw", "nl1.stream.framed"),
            ("nl1.stream.raw", "nl1.stream.raw, nl1.stream.framed"),
            ("Sec-WebSocket-Protocol", "Sec-WebSocket-Protocols"),
            ("Upgrade: websocket", "Upgrade: h2c"),
            ("Connection: Upgrade", "Connection: close"),
            ("NL-Opened: ", "NL-Opened: e30 "),
            ("NL-Opened: ", "NL-Opened: e30\r\nNL-Opened: "),
            ("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
            ("HTTP/1.1", "HTTP/1.0"),
            ("HTTP/1.1", "HTTP/2.0"),
            ("\r\n", "\n"),
        ] {
            assert!(accept.contains(what));
            assert!(check(accept.replacen(what, with, 1).as_bytes()).is_err(), "{with:?}");
        }
    }

    #[test]
    fn hints_before_the_answer_are_passed_over_but_not_for_ever() {
        let hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        let accept = encode_accept(&KEY, PROTOCOL, None, None);
        let bytes = [&hint[..], hint, &accept].concat();
        let Ok(Answer::Accepted { opened: None, head_bytes, .. }) = check(&bytes) else { panic!() };
        assert_eq!(head_bytes, bytes.len());
        let mut endless = hint.repeat(HEAD_BYTES_MAX / hint.len() + 1);
        endless.extend_from_slice(&accept);
        assert_eq!(parse_response(&endless, &KEY, PROTOCOL), Err(HeadError::TooLong));
    }

    #[test]
    fn another_server_s_answer_is_a_refusal_without_our_words() {
        for (text, want) in [
            ("HTTP/1.1 200 OK\r\n\r\n<html>", 200),
            ("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", 302),
            ("HTTP/1.0 502 Bad Gateway\r\nNL-Refused: e30\r\n\r\n", 502),
            ("HTTP/1.1 403 Forbidden\r\nNL-Refused: x\r\nNL-Refused: y\r\n\r\n", 403),
        ] {
            let verdict = check(text.as_bytes());
            assert!(
                matches!(verdict, Ok(Answer::Refused { status, refused: None, .. }) if status == want),
                "{text}"
            );
        }
        let text =
            "HTTP/1.1 302 Found\r\nserver: portal/1\r\nLocation: http://a/\r\nLocation: http://b/\r\n\r\n";
        let Ok(Answer::Refused { from, .. }) = check(text.as_bytes()) else { panic!("{text}") };
        let said = (from.server.as_deref(), from.location.as_deref());
        assert_eq!(said, (Some("portal/1"), Some("http://a/")));
        for bad in ["SSH-2.0-OpenSSH\r\n", "HTCPCP/1.0 ", "HTTP/1.1 20 OK\r\n\r\n", "220 smtp\r\n\r\n", "\0"]
        {
            assert!(check(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_reason_ends_a_line_or_grows_the_head(reason: String, lines in 0usize..4000, clip in 0usize..3) {
            let reason = format!("{}{reason}{}", "x".repeat(clip), "\r\nX-Evil: \u{20ac}\r\n\r\n".repeat(lines));
            let bytes = encode_refusal(&Refused::new(RefusalCode::TargetRefused, &*reason));
            let Ok(Answer::Refused { status: 502, refused: Some(refused), head_bytes, .. }) =
                parse_response(&bytes, &KEY, PROTOCOL)
            else {
                panic!("{}", bytes.escape_ascii())
            };
            prop_assert!(printable(&reason, usize::MAX).starts_with(&refused.reason));
            prop_assert!(refused.reason.len() <= REASON_BYTES_MAX);
            prop_assert_eq!(bytes[..head_bytes].windows(2).filter(|pair| pair == b"\r\n").count(), 7);
        }

        #[test]
        fn bent_bytes_never_panic_and_never_have_two_verdicts(
            accepted: bool, bends in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut head = if accepted {
                encode_accept(&KEY, PROTOCOL, Some(&opened()), None)
            } else {
                encode_refusal(&Refused::new(RefusalCode::Policy, "no"))
            };
            for (at, byte) in bends {
                let at = at.index(head.len());
                head[at] = byte;
            }
            let _ = check(&head);
        }
    }
}
