//! Role: a visitor's request as it was parsed, from a head of HTTP/1 or from the parts of HTTP/2.
//! Invariants: one host, one path, one length, or an error · nothing is kept that can't be written on a line of its own ·
//! an upgrade is asked for only where nothing else follows the head.
//! See: RFC 9112 sections 3 and 6; RFC 9110 sections 7.6.1, 7.8 and 10.1.1.

mod parts;

pub use self::parts::Pseudo;

use super::{
    Body, HEADERS_MAX, HeadError, Version,
    head::{self, Field, Headers},
    host, length,
};

/// A request. Names and values are borrowed from where they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its method, a token, as it came.
    pub method: &'a str,
    /// Its path with the query, as it came: it begins with `/`, or is `*`.
    pub path: &'a str,
    /// `Host` or `:authority` as it came: `HOST[:PORT]`, with brackets around IPv6.
    pub authority: &'a str,
    /// The host of it, without brackets, in the case that it came in.
    pub host: &'a str,
    /// The port of it; `None` where it names none.
    pub port: Option<u16>,
    /// The version of its head.
    pub version: Version,
    /// Its body; never [`Body::UntilClose`].
    pub body: Body,
    /// Whether the sender would use the connection again; always true of HTTP/2.
    pub keep_alive: bool,
    /// Whether the sender waits for a 100 before its body.
    pub expects_continue: bool,
    /// The protocols that it would upgrade to; empty where no upgrade is asked for. Upgrades to HTTP/2 and TLS are no
    /// wishes for the origin, and left out.
    pub upgrade: Vec<&'a str>,
    /// Whether the sender reads trailers (`TE: trailers`).
    pub takes_trailers: bool,
    /// All headers as they came, those that are not passed on included.
    pub fields: Vec<Field<'a>>,
    /// The names in `Connection`: headers that are for the sender's own connection.
    pub(crate) named_by_connection: Vec<&'a str>,
    /// Where the head ends; 0 of HTTP/2.
    pub head_bytes: usize,
}

impl<'a> Request<'a> {
    /// Every value of the headers of that name, in any case, in their order.
    pub fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The first value of the headers of that name.
    pub fn value(&self, name: &str) -> Option<&'a [u8]> {
        self.values(name).next()
    }

    /// Whether it asks to become another protocol.
    pub fn asks_upgrade(&self) -> bool {
        !self.upgrade.is_empty()
    }
}

/// Reads a request's head. `None`: more bytes are needed; no prefix of a head has another verdict than the whole.
///
/// # Errors
/// The visitor's: [`HeadError::http_status`] answers it, and the connection ends.
pub fn parse_request(buf: &[u8]) -> Result<Option<Request<'_>>, HeadError> {
    let Some(head_bytes) = head::end(buf, 0)? else { return Ok(None) };
    let (first, fields) = head::parse(&buf[..head_bytes])?;
    let (method, target, version) = parse_line(first)?;
    let headers = Headers(&fields);
    let number = u8::from(version == Version::Http11);

    let authority = host::parse_host(&headers, number)?.ok_or(HeadError::Malformed("no Host"))?;
    let (host, port) = host::split(authority).ok_or(HeadError::Malformed("a malformed Host"))?;
    let path = parse_path(method, target, authority)?;
    let body = length::of_request(&headers, number)?;
    if method == "TRACE" && body != Body::None {
        return Err(HeadError::Malformed("a TRACE with a body"));
    }
    let options = parse_connection(&headers)?;
    let upgrade = if number == 1 && options.upgrade && matches!(body, Body::None | Body::Length(0)) {
        parse_upgrade(&headers)
    } else {
        Vec::new()
    };
    Ok(Some(Request {
        method,
        path,
        authority,
        host,
        port,
        version,
        body,
        keep_alive: !options.close && (number == 1 || options.keep_alive),
        expects_continue: parse_expect(&headers, version, body)?,
        upgrade,
        takes_trailers: number == 1 && headers.lists("TE", "trailers"),
        named_by_connection: options.named,
        fields,
        head_bytes,
    }))
}

/// Exactly one space between method, target and version.
fn parse_line(line: &[u8]) -> Result<(&str, &str, Version), HeadError> {
    const BAD: HeadError = HeadError::Malformed("a malformed request line");
    let mut words = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BAD);
    };
    if !head::is_token(method) || target.is_empty() {
        return Err(BAD);
    }
    let version = head::parse_version(version)?;
    let text = |bytes| str::from_utf8(bytes).map_err(|_| BAD);
    Ok((text(method)?, text(target)?, version))
}

/// A published host's path: no CONNECT, no fragment.
fn parse_path<'a>(method: &str, target: &'a str, authority: &str) -> Result<&'a str, HeadError> {
    if method == "CONNECT" {
        return Err(HeadError::Unsupported("a CONNECT to a published host"));
    }
    match host::parse_target(method, target, Some(authority))? {
        // RFC 9112 section 3.2.4.
        "" if method == "OPTIONS" => Ok("*"),
        "" => Ok("/"),
        path if path.starts_with('?') => Err(HeadError::Malformed("a request target without a path")),
        path if path.contains('#') => Err(HeadError::Malformed("a fragment in a request target")),
        path => Ok(path),
    }
}

/// What `Connection` says.
#[derive(Default)]
pub(crate) struct Options<'a> {
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
    /// The headers that it names.
    pub(crate) named: Vec<&'a str>,
}

/// As many options as headers: a list of thousands would be held against each header.
pub(crate) fn parse_connection<'a>(headers: &Headers<'_, 'a>) -> Result<Options<'a>, HeadError> {
    if !headers.all("Connection").all(<[u8]>::is_ascii) {
        return Err(HeadError::Malformed("a connection option that is not ASCII"));
    }
    let mut options = Options::default();
    let mut count = 0;
    for option in headers.list("Connection").filter(|option| !option.is_empty()) {
        count += 1;
        if count > HEADERS_MAX {
            return Err(HeadError::Malformed("too many connection options"));
        }
        match option {
            _ if option.eq_ignore_ascii_case("close") => options.close = true,
            _ if option.eq_ignore_ascii_case("keep-alive") => options.keep_alive = true,
            _ if option.eq_ignore_ascii_case("upgrade") => options.upgrade = true,
            _ => options.named.push(option),
        }
    }
    Ok(options)
}

/// The protocols that an origin may be asked for. HTTP/2 would go around all that is decided for each request.
fn parse_upgrade<'a>(headers: &Headers<'_, 'a>) -> Vec<&'a str> {
    let is_protocol = |text: &str| {
        let (name, version) =
            text.split_once('/').map_or((text, None), |(name, version)| (name, Some(version)));
        head::is_token(name.as_bytes()) && version.is_none_or(|version| head::is_token(version.as_bytes()))
    };
    let is_edges_own = |text: &str| {
        let name = text.split('/').next().unwrap_or_default();
        ["h2c", "h2", "h3", "http", "tls"].iter().any(|own| name.eq_ignore_ascii_case(own))
    };
    headers
        .list("Upgrade")
        .filter(|text| is_protocol(text) && !is_edges_own(text))
        .take(HEADERS_MAX)
        .collect()
}

/// Whether a 100 is waited for; requests of HTTP/1.0 and those without a body can't wait for one.
fn parse_expect(headers: &Headers<'_, '_>, version: Version, body: Body) -> Result<bool, HeadError> {
    let mut values = headers.all("Expect").peekable();
    if version == Version::Http10 || values.peek().is_none() {
        return Ok(false);
    }
    if !values.all(|value| value.eq_ignore_ascii_case(b"100-continue")) {
        return Err(HeadError::Expectation);
    }
    Ok(!matches!(body, Body::None | Body::Length(0)))
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// The verdict on the whole, once it is shown that no prefix has another one.
    pub(crate) fn check(head: &[u8]) -> Result<Option<Request<'_>>, HeadError> {
        let whole = parse_request(head);
        let first =
            (0..=head.len()).map(|cut| parse_request(&head[..cut])).find(|verdict| *verdict != Ok(None));
        assert_eq!(first.unwrap_or(Ok(None)), whole, "{}", head.escape_ascii());
        whole
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::HEAD_BYTES_MAX, fixture::check, *};

    fn parsed(head: &str) -> Request<'_> {
        check(head.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_request_says_what_the_edge_decides_on() {
        let head = "PUT /a/b?c=d HTTP/1.1\r\nhost: A.example:8443\r\nContent-Length: 5\r\nTE: trailers\r\n\
                    Expect: 100-Continue\r\nX: 1\r\nx: 2\r\nConnection: TE, X-Own\r\n\r\nhello";
        let request = parsed(head);
        assert_eq!((request.method, request.path, request.version), ("PUT", "/a/b?c=d", Version::Http11));
        assert_eq!(
            (request.authority, request.host, request.port),
            ("A.example:8443", "A.example", Some(8443))
        );
        assert_eq!((request.body, request.head_bytes), (Body::Length(5), head.len() - 5));
        assert!(request.keep_alive && request.expects_continue && request.takes_trailers);
        assert_eq!(request.values("X").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!((request.value("x"), request.value("Y")), (Some(&b"1"[..]), None));
        assert_eq!(request.named_by_connection, ["TE", "X-Own"]);
    }

    #[test]
    fn a_connection_is_used_again_only_as_its_version_has_it() {
        for (version, connection, keep_alive) in [
            ("1.1", "", true),
            ("1.1", "Connection: x, Close\r\n", false),
            ("1.1", "Connection: keep-alive, close\r\n", false),
            ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: Keep-Alive, close\r\n", false),
        ] {
            let head = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
            assert_eq!(parsed(&head).keep_alive, keep_alive, "{head}");
        }
    }

    #[test]
    fn an_upgrade_is_asked_where_nothing_else_follows() {
        for (head, upgrade) in [
            ("GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", &["websocket"][..]),
            ("GET / HTTP/1.1\r\nConnection: keep-alive, UPGRADE\r\nUpgrade: a/1, b\r\n", &["a/1", "b"]),
            (
                "POST /ts2021 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: tailscale-control-protocol\r\n",
                &["tailscale-control-protocol"],
            ),
            ("POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 0\r\n", &["x"]),
            ("POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n", &[]),
            ("POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n", &[]),
            ("GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", &[]),
            ("GET / HTTP/1.1\r\nUpgrade: websocket\r\n", &[]),
            ("GET / HTTP/1.1\r\nConnection: Upgrade\r\n", &[]),
            ("GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", &[]),
            ("GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: H2C, HTTP/2.0, TLS/1.0, x\r\n", &["x"]),
            ("GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: web socket, /, a/, a//b\r\n", &[]),
        ] {
            let head = format!("{head}Host: a\r\n\r\n");
            assert_eq!(parsed(&head).upgrade, upgrade, "{head}");
        }
    }

    #[test]
    fn only_a_sender_that_has_a_body_waits_for_a_100() {
        for (rest, verdict) in [
            ("1.1\r\nContent-Length: 1\r\nExpect: 100-continue\r\n", Ok(true)),
            ("1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n", Ok(true)),
            ("1.1\r\nExpect: 100-continue\r\n", Ok(false)),
            ("1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n", Ok(false)),
            ("1.1\r\nContent-Length: 1\r\nExpect: 200-ok\r\n", Err(417)),
            ("1.1\r\nContent-Length: 1\r\nExpect: 100-continue, x\r\n", Err(417)),
        ] {
            let head = format!("POST / HTTP/{rest}Host: a\r\n\r\n");
            let got = check(head.as_bytes()).map(|request| request.unwrap().expects_continue);
            assert_eq!(got.map_err(HeadError::http_status), verdict, "{head}");
        }
    }

    #[test]
    fn sixty_four_headers_and_sixteen_kibibytes_are_the_most() {
        let many = |count| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1));
        assert!(parse_request(many(HEADERS_MAX).as_bytes()).unwrap().is_some());
        assert_eq!(parse_request(many(HEADERS_MAX + 1).as_bytes()), Err(HeadError::TooLong));
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(HEAD_BYTES_MAX));
        assert_eq!(parse_request(long.as_bytes()), Err(HeadError::TooLong));
        let options =
            format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {}\r\n\r\n", "a,".repeat(HEADERS_MAX + 1));
        assert!(parse_request(options.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_never_have_two_verdicts(
            bytes in prop::collection::vec(any::<u8>(), 0..200), whole: bool,
        ) {
            let _ = check(&bytes);
            if whole {
                let _ = check(&[b"GET / HTTP/1.1\r\nHost: a\r\n", &bytes[..], b"\r\n\r\n"].concat());
            }
        }

        #[test]
        fn what_is_accepted_here_httparse_reads_alike(
            line in prop::sample::select(vec![
                "GET / HTTP/1.1", "POST /a?b HTTP/1.0", "OPTIONS * HTTP/1.1", "get /\u{fc} HTTP/1.1", "GET  / HTTP/1.1",
                "M-SEARCH /%00 HTTP/1.1", "GET http://a/ HTTP/1.1", "GET / HTTP/1.2",
            ]),
            lines in prop::collection::vec("[A-Za-z_!:( -]{0,6}:[ \t]{0,2}[ -~\u{80}-\u{ff}]{0,12}[ \t]{0,2}", 0..6),
            bend: (prop::sample::Index, u8, bool),
        ) {
            let mut head = format!("{line}\r\nHost: a\r\n").into_bytes();
            for line in &lines {
                head.extend_from_slice(line.as_bytes());
                head.extend_from_slice(b"\r\n");
            }
            head.extend_from_slice(b"\r\n");
            if bend.2 {
                let at = bend.0.index(head.len());
                head[at] = bend.1;
            }
            if let Ok(Some(request)) = check(&head) {
                let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
                let mut theirs = httparse::Request::new(&mut headers);
                let status = theirs.parse(&head).expect("what is accepted here is accepted there");
                prop_assert_eq!(status, httparse::Status::Complete(request.head_bytes));
                prop_assert_eq!(theirs.method, Some(request.method));
                prop_assert_eq!(theirs.version, Some(u8::from(request.version == Version::Http11)));
                prop_assert_eq!(&*theirs.headers, &request.fields[..]);
            }
        }
    }
}
