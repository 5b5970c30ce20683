//! Role: an origin's answer as it was parsed.
//! Invariants: an answer has one length, by the request that it answers · it becomes another protocol only when one was
//! asked for, and only one that was asked for · any error is the origin's, and the visitor hears 502.
//! See: RFC 9112 sections 4 and 6.3; RFC 9110 sections 6.4.1, 7.8 and 15.2.

use super::{
    Body, HeadError, Version,
    head::{self, Field, Headers},
    length::{self, Said},
    request::{Request, parse_connection},
};

/// What of a request decides how its answer is read. It outlives the request's head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The request was a HEAD: its answer has no body.
    pub is_head: bool,
    /// The protocols that the origin was asked to become, in lower case.
    protocols: Vec<String>,
}

impl Asked {
    /// What decides of this request. Nothing is allocated but for an upgrade.
    pub fn of(request: &Request<'_>) -> Self {
        Self {
            is_head: request.method == "HEAD",
            protocols: request.upgrade.iter().map(|protocol| protocol.to_ascii_lowercase()).collect(),
        }
    }
}

/// An answer. Names and values are borrowed from where they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response<'a> {
    /// 100 to 599.
    pub status: u16,
    /// The reason phrase as it came; may be empty.
    pub reason: &'a [u8],
    /// 1.0 or 1.1.
    pub version: Version,
    /// The body that follows.
    pub body: Body,
    /// The length that the head names where no body follows: of the answer to a HEAD, and of a 304.
    pub length_said: Option<u64>,
    /// Whether the origin's connection may be used again, once the body is read; never of HTTP/1.0.
    pub keep_alive: bool,
    /// What the connection becomes behind the head of a 101.
    pub upgraded: Option<&'a str>,
    /// All headers as they came, those that are not passed on included.
    pub fields: Vec<Field<'a>>,
    /// The names in `Connection`.
    pub(crate) named_by_connection: Vec<&'a str>,
    /// Where the head ends.
    pub head_bytes: usize,
}

impl Response<'_> {
    /// Whether another answer follows to the same request: any 1xx but 101.
    pub const fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// Reads an answer's head. `None`: more bytes are needed; no prefix of a head has another verdict than the whole.
///
/// # Errors
/// The origin's: its connection is closed, and the visitor is answered with 502.
pub fn parse_response<'a>(buf: &'a [u8], asked: &Asked) -> Result<Option<Response<'a>>, HeadError> {
    // Before the head's end: what is no HTTP may never end.
    if !buf.iter().zip(b"HTTP/1.").all(|(got, due)| got == due) {
        return Err(HeadError::Malformed("not an answer of HTTP/1"));
    }
    let Some(head_bytes) = head::end(buf, 0)? else { return Ok(None) };
    let (first, fields) = head::parse(&buf[..head_bytes])?;
    let (version, status, reason) = parse_line(first)?;
    let headers = Headers(&fields);
    let number = u8::from(version == Version::Http11);
    let said = length::of_response(&headers, number)?;
    let options = parse_connection(&headers)?;
    let upgraded = match status {
        101 => Some(parse_upgrade(&headers, asked, version, options.upgrade)?),
        _ => None,
    };
    if upgraded.is_some() && !matches!(said, Said::Nothing | Said::Length(0)) {
        return Err(HeadError::Malformed("a 101 with a body"));
    }
    let (body, length_said) = body(said, status, asked);
    Ok(Some(Response {
        status,
        reason,
        version,
        body,
        length_said,
        keep_alive: number == 1 && !options.close && body != Body::UntilClose && upgraded.is_none(),
        upgraded,
        named_by_connection: options.named,
        fields,
        head_bytes,
    }))
}

/// `HTTP/1.1 200 OK`; the phrase, and the blank before it, may be missing.
fn parse_line(line: &[u8]) -> Result<(Version, u16, &[u8]), HeadError> {
    const BAD: HeadError = HeadError::Malformed("a malformed status line");
    let (version, rest) = line.split_at_checked(8).ok_or(BAD)?;
    let version = head::parse_version(version)?;
    let [b' ', digits @ ..] = rest else { return Err(BAD) };
    let (digits, reason) = digits.split_at_checked(3).ok_or(BAD)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let status = digits.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    let reason = match reason {
        [] => reason,
        [b' ', reason @ ..] => reason,
        _ => return Err(BAD),
    };
    if !(100..=599).contains(&status) {
        return Err(HeadError::Malformed("a status that does not exist"));
    }
    Ok((version, status, reason))
}

/// The one protocol that the connection becomes.
fn parse_upgrade<'a>(
    headers: &Headers<'_, 'a>,
    asked: &Asked,
    version: Version,
    is_option: bool,
) -> Result<&'a str, HeadError> {
    if version != Version::Http11 || !is_option {
        return Err(HeadError::Malformed("a 101 without an upgrade"));
    }
    let mut protocols = headers.list("Upgrade");
    let (Some(protocol), None) = (protocols.next(), protocols.next()) else {
        return Err(HeadError::Malformed("a 101 to no protocol, or to several"));
    };
    if asked.protocols.iter().any(|own| own.eq_ignore_ascii_case(protocol)) {
        Ok(protocol)
    } else {
        Err(HeadError::Malformed("a 101 that was not asked for"))
    }
}

/// The body that follows, and the length of the one that does not.
fn body(said: Said, status: u16, asked: &Asked) -> (Body, Option<u64>) {
    let length = match said {
        Said::Length(bytes) => Some(bytes),
        Said::Nothing | Said::Chunked => None,
    };
    match (status, said) {
        (100..200 | 204, _) => (Body::None, None),
        (304, _) => (Body::None, length),
        _ if asked.is_head => (Body::None, length),
        (_, Said::Length(bytes)) => (Body::Length(bytes), None),
        (_, Said::Chunked) => (Body::Chunked, None),
        (_, Said::Nothing) => (Body::UntilClose, None),
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// The verdict on the whole, once it is shown that no prefix has another one.
    pub(crate) fn check<'a>(head: &'a [u8], asked: &Asked) -> Result<Option<Response<'a>>, HeadError> {
        let whole = parse_response(head, asked);
        let verdicts = (0..=head.len()).map(|cut| parse_response(&head[..cut], asked));
        let first = verdicts.into_iter().find(|verdict| *verdict != Ok(None));
        assert_eq!(first.unwrap_or(Ok(None)), whole, "{}", head.escape_ascii());
        whole
    }

    /// As a GET, or as a HEAD.
    pub(crate) fn asked(is_head: bool) -> Asked {
        Asked { is_head, ..Asked::default() }
    }

    /// As an upgrade to these protocols.
    pub(crate) fn asked_upgrade(protocols: &[&str]) -> Asked {
        Asked { is_head: false, protocols: protocols.iter().map(|&name| name.to_owned()).collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::HEADERS_MAX,
        fixture::{asked, asked_upgrade, check},
        *,
    };

    #[test]
    fn a_body_is_framed_by_request_and_status() {
        use Body::{Chunked, Length, None as No, UntilClose};
        for (head, is_head, body, said, keep_alive) in [
            ("1.1 200 OK\r\nContent-Length: 5", false, Length(5), None, true),
            ("1.1 200 OK\r\nContent-Length: 5", true, No, Some(5), true),
            ("1.1 200 OK\r\nContent-Length: 5, 5", false, Length(5), None, true),
            ("1.1 200 OK\r\nContent-Length: 0", false, Length(0), None, true),
            ("1.1 200\r\nTransfer-Encoding: chunked", false, Chunked, None, true),
            ("1.1 200 \r\nTransfer-Encoding: chunked", true, No, None, true),
            ("1.1 200 OK\r\nX: y", false, UntilClose, None, false),
            ("1.1 200 OK\r\nX: y", true, No, None, true),
            ("1.1 204 No Content\r\nContent-Length: 5", false, No, None, true),
            ("1.1 204 No Content\r\nTransfer-Encoding: chunked", false, No, None, true),
            ("1.1 304 Not Modified\r\nContent-Length: 5", false, No, Some(5), true),
            ("1.1 304 Not Modified\r\nX: y", false, No, None, true),
            ("1.1 100 Continue\r\nContent-Length: 5", false, No, None, true),
            ("1.1 103 Early Hints\r\nLink: x", false, No, None, true),
            ("1.1 200 OK\r\nConnection: close\r\nContent-Length: 5", false, Length(5), None, false),
            ("1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5", false, Length(5), None, false),
            ("1.0 200 OK\r\nX: y", false, UntilClose, None, false),
            ("1.1 205 Reset Content\r\nContent-Length: 0", false, Length(0), None, true),
        ] {
            let head = format!("HTTP/{head}\r\n\r\n");
            let response = check(head.as_bytes(), &asked(is_head)).unwrap().unwrap();
            let got = (response.body, response.length_said, response.keep_alive);
            assert_eq!(got, (body, said, keep_alive), "{head}");
            assert_eq!(response.is_interim(), head.contains(" 10"), "{head}");
        }
    }

    #[test]
    fn what_no_visitor_should_read_is_refused() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX + 1));
        for head in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/2",
            "HTTP/1.2 200 OK\r\n\r\n",
            "http/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 600 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 200\tOK\r\n\r\n",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1 200 OK\n\n",
            "HTTP/1.1 200 O\0K\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: y\0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: y\rz\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: y\nZ: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: y\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            &many,
        ] {
            for is_head in [false, true] {
                assert!(check(head.as_bytes(), &asked(is_head)).is_err(), "{head:?}");
            }
        }
    }

    #[test]
    fn a_connection_becomes_what_was_asked_for_and_nothing_else() {
        for (head, upgraded) in [
            ("1.1 101 X\r\nConnection: upgrade\r\nUpgrade: WebSocket", Some("WebSocket")),
            ("1.1 101\r\nConnection: Upgrade\r\nUpgrade: a/1\r\nContent-Length: 0", Some("a/1")),
            ("1.1 101 X\r\nConnection: upgrade\r\nUpgrade: h2c", None),
            ("1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket, a/1", None),
            ("1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket", None),
            ("1.1 101 X\r\nConnection: upgrade", None),
            ("1.1 101 X\r\nUpgrade: websocket", None),
            ("1.0 101 X\r\nConnection: upgrade\r\nUpgrade: websocket", None),
            ("1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5", None),
            ("1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked", None),
        ] {
            let head = format!("HTTP/{head}\r\n\r\n");
            let asked = asked_upgrade(&["websocket", "a/1"]);
            let response = check(head.as_bytes(), &asked).map(Option::unwrap);
            assert_eq!(response.as_ref().ok().and_then(|response| response.upgraded), upgraded, "{head}");
            assert!(response.is_err() || !response.unwrap().keep_alive);
        }
        let refused = b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n";
        assert!(check(refused, &asked_upgrade(&["websocket"])).unwrap().unwrap().keep_alive);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_never_have_two_verdicts(
            bytes in prop::collection::vec(any::<u8>(), 0..200), is_head: bool,
        ) {
            let _ = check(&bytes, &asked(is_head));
            let _ = check(&[b"HTTP/1.1 200 OK\r\n", &bytes[..], b"\r\n\r\n"].concat(), &asked(is_head));
        }

        #[test]
        fn what_is_accepted_here_httparse_reads_alike(
            line in "HTTP/1\\.[01] [1-5][0-9]{2}( [ -~]{0,8})?",
            lines in prop::collection::vec("[A-Za-z_!:( -]{0,6}:[ \t]{0,2}[ -~\u{80}-\u{ff}]{0,12}[ \t]{0,2}", 0..6),
        ) {
            let mut head = format!("{line}\r\n").into_bytes();
            for line in &lines {
                head.extend_from_slice(line.as_bytes());
                head.extend_from_slice(b"\r\n");
            }
            head.extend_from_slice(b"\r\n");
            if let Ok(Some(response)) = check(&head, &asked(false)) {
                let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
                let mut theirs = httparse::Response::new(&mut headers);
                let status = theirs.parse(&head).expect("what is accepted here is accepted there");
                prop_assert_eq!(status, httparse::Status::Complete(response.head_bytes));
                prop_assert_eq!(theirs.code, Some(response.status));
                prop_assert_eq!(&*theirs.headers, &response.fields[..]);
            }
        }
    }
}
