//! Role: an origin's answer as its visitor reads it, in HTTP/1.0, 1.1 or the fields of HTTP/2.
//! Invariants: every line is written from what was parsed · a visitor of HTTP/1.0 sees neither chunks nor 1xx · no header
//! of ours (`NL-*`) passes from an origin · `Server` is the origin's own.
//! See: RFC 9110 sections 7.6.1, 8.6 and 15.2; RFC 9112 section 7; RFC 6797 (HSTS); RFC 9113 section 8.2.

use super::{
    Body, Version,
    head::{push_field, push_number, push_text},
    names,
    response::Response,
    rules::HeaderRules,
    status::phrase,
};

/// To whom an answer goes, and what a published host adds to it.
#[derive(Debug, Clone, Copy)]
pub struct Toward<'a> {
    /// The version that the visitor speaks.
    pub version: Version,
    /// Whether the connection may be used again.
    pub keep_alive: bool,
    /// Headers that the host sets and removes.
    pub rules: &'a HeaderRules,
    /// The value of `Strict-Transport-Security`; for visitors by TLS alone. An origin's own stays.
    pub hsts: Option<&'a str>,
    /// What stands in `Date` where the origin names none.
    pub date: &'a str,
}

impl Toward<'_> {
    /// Whether this answer is passed on at all: HTTP/1.0 knows no 1xx, and HTTP/2 no 101.
    pub fn passes(&self, response: &Response<'_>) -> bool {
        match self.version {
            Version::Http10 => response.status >= 200,
            Version::Http11 => true,
            Version::Http2 => response.status != 101,
        }
    }

    /// How the body is framed towards the visitor. What lasts until the origin closes becomes chunks; towards HTTP/1.0
    /// chunks become what lasts until the gateway closes. Of HTTP/2, frames are the body's chunks.
    pub fn body(&self, response: &Response<'_>) -> Body {
        match (response.body, self.version) {
            (Body::Chunked | Body::UntilClose, Version::Http10) => Body::UntilClose,
            (Body::UntilClose, _) => Body::Chunked,
            (body, _) => body,
        }
    }

    /// Whether the visitor's connection is used again behind this answer; `write_response` says the same.
    pub fn stays_open(&self, response: &Response<'_>) -> bool {
        self.keep_alive && self.body(response) != Body::UntilClose && response.upgraded.is_none()
    }
}

/// Appends the head that a visitor of HTTP/1 reads. The body is framed as [`Toward::body`] says.
pub fn write_response(out: &mut Vec<u8>, response: &Response<'_>, toward: &Toward<'_>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    push_number(out, response.status.into());
    out.push(b' ');
    if response.reason.is_empty() {
        out.extend_from_slice(phrase(response.status).as_bytes());
    } else {
        push_text(out, response.reason);
    }
    out.extend_from_slice(b"\r\n");
    each_field(response, toward, |name, value| push_field(out, name, value));
    add_framing(out, response, toward);
    out.extend_from_slice(b"\r\n");
}

/// Calls `take` for each field of the head in HTTP/2: names in lower case, no header of a connection, the length where
/// one is known. `:status` is [`Response::status`].
pub fn http2_fields(response: &Response<'_>, toward: &Toward<'_>, mut take: impl FnMut(&str, &[u8])) {
    let mut lower = String::new();
    each_field(response, toward, |name, value| {
        lower.clear();
        lower.push_str(name);
        lower.make_ascii_lowercase();
        take(&lower, value);
    });
    if let Some(bytes) = length(response) {
        let mut digits = Vec::with_capacity(20);
        push_number(&mut digits, bytes);
        take("content-length", &digits);
    }
}

/// All but what frames the body and the connection.
fn each_field(response: &Response<'_>, toward: &Toward<'_>, mut take: impl FnMut(&str, &[u8])) {
    let is_named =
        |name: &str| response.named_by_connection.iter().any(|option| option.eq_ignore_ascii_case(name));
    let keeps_trailers = toward.body(response) == Body::Chunked;
    let (mut has_date, mut has_hsts) = (false, false);
    for field in &response.fields {
        let is_trailer = field.name.eq_ignore_ascii_case("Trailer");
        if names::is_dropped_from_response(field.name)
            || is_named(field.name)
            || toward.rules.replaces(field.name)
            || is_trailer && !keeps_trailers
        {
            continue;
        }
        has_date |= field.name.eq_ignore_ascii_case("Date");
        has_hsts |= field.name.eq_ignore_ascii_case(HSTS);
        take(field.name, field.value);
    }
    if response.status < 200 {
        return;
    }
    if !has_date && !toward.rules.sets("Date") {
        take("Date", toward.date.as_bytes());
    }
    if let Some(hsts) = toward.hsts
        && !has_hsts
        && !toward.rules.replaces(HSTS)
    {
        take(HSTS, hsts.as_bytes());
    }
    for (name, value) in toward.rules.set() {
        take(name, value.as_bytes());
    }
}

const HSTS: &str = "Strict-Transport-Security";

fn length(response: &Response<'_>) -> Option<u64> {
    match response.body {
        Body::Length(bytes) => Some(bytes),
        Body::None | Body::Chunked | Body::UntilClose => response.length_said,
    }
}

fn add_framing(out: &mut Vec<u8>, response: &Response<'_>, toward: &Toward<'_>) {
    if let Some(protocol) = response.upgraded {
        push_field(out, "Connection", b"Upgrade");
        push_field(out, "Upgrade", protocol.as_bytes());
        return;
    }
    if response.is_interim() {
        return;
    }
    if let Some(bytes) = length(response) {
        out.extend_from_slice(b"Content-Length: ");
        push_number(out, bytes);
        out.extend_from_slice(b"\r\n");
    } else if toward.body(response) == Body::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    match (toward.stays_open(response), toward.version) {
        (false, _) => out.extend_from_slice(b"Connection: close\r\n"),
        (true, Version::Http10) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (true, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            head,
            response::{Asked, fixture::asked, fixture::asked_upgrade, parse_response},
        },
        *,
    };

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn toward(version: Version, rules: &HeaderRules) -> Toward<'_> {
        Toward { version, keep_alive: true, rules, hsts: None, date: DATE }
    }

    /// The lines that a visitor reads, without our Date.
    fn lines(head: &str, asked: &Asked, version: Version) -> Vec<String> {
        let response = parse_response(head.as_bytes(), asked).unwrap().unwrap();
        let mut out = Vec::new();
        let rules = HeaderRules::default();
        write_response(&mut out, &response, &toward(version, &rules));
        assert_eq!(head::end(&out, 0), Ok(Some(out.len())));
        let text = String::from_utf8(out).unwrap();
        text.lines()
            .filter(|line| !line.is_empty() && !line.starts_with("Date: Sun"))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn an_answer_is_written_anew_for_each_version() {
        let chunked = "HTTP/1.1 200 Fine\r\nserver: x/1\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\
                       Connection: X-Own\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\nNL-Refused: x\r\nnl_x: y\r\nUpgrade: h2c\r\n\
                       Proxy-Authenticate: x\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\n";
        let passed = ["HTTP/1.1 200 Fine", "server: x/1", "Trailer: X-Sum", "Set-Cookie: a", "set-cookie: b"];
        let got = lines(chunked, &asked(false), Version::Http11);
        assert_eq!(
            (&got[..5], &got[5..]),
            (&passed.map(String::from)[..], &["Transfer-Encoding: chunked".into()][..])
        );
        let got = lines(chunked, &asked(false), Version::Http10);
        assert_eq!(
            got,
            ["HTTP/1.1 200 Fine", "server: x/1", "Set-Cookie: a", "set-cookie: b", "Connection: close"]
        );
        let length = "HTTP/1.0 404\r\nContent-Length: 007\r\n\r\n";
        assert_eq!(
            lines(length, &asked(false), Version::Http11),
            ["HTTP/1.1 404 Not Found", "Content-Length: 7"]
        );
        assert_eq!(
            lines(length, &asked(false), Version::Http10),
            ["HTTP/1.1 404 Not Found", "Content-Length: 7", "Connection: keep-alive"]
        );
        let open = "HTTP/1.0 200 OK\r\n\r\n";
        assert_eq!(
            lines(open, &asked(false), Version::Http11),
            ["HTTP/1.1 200 OK", "Transfer-Encoding: chunked"]
        );
        assert_eq!(lines(open, &asked(false), Version::Http10), ["HTTP/1.1 200 OK", "Connection: close"]);
    }

    #[test]
    fn an_answer_without_a_body_says_no_more_than_its_length() {
        for (head, is_head, framing) in [
            ("200 OK\r\nContent-Length: 5", true, &["Content-Length: 5"][..]),
            ("200 OK\r\nTransfer-Encoding: chunked", true, &[]),
            ("304 Not Modified\r\nContent-Length: 5", false, &["Content-Length: 5"]),
            ("204 No Content\r\nContent-Length: 5", false, &[]),
            ("204 No Content\r\nTransfer-Encoding: chunked", false, &[]),
            ("100 Continue\r\nContent-Length: 5", false, &[]),
            ("103 Early Hints\r\nConnection: close", false, &[]),
        ] {
            let head = format!("HTTP/1.1 {head}\r\n\r\n");
            let got = lines(&head, &asked(is_head), Version::Http11);
            assert_eq!(got[1..], *framing, "{head}");
        }
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
        let hints = parse_response(hints.as_bytes(), &asked(false)).unwrap().unwrap();
        let rules = HeaderRules::default();
        for (version, passes) in [(Version::Http10, false), (Version::Http11, true), (Version::Http2, true)] {
            assert_eq!(toward(version, &rules).passes(&hints), passes, "{version:?}");
        }
        let mut out = Vec::new();
        write_response(&mut out, &hints, &Toward { hsts: Some("x"), ..toward(Version::Http11, &rules) });
        assert_eq!(out, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
    }

    #[test]
    fn a_101_says_what_the_connection_becomes() {
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Accept: x\r\n\r\n";
        assert_eq!(
            lines(head, &asked_upgrade(&["websocket"]), Version::Http11)[1..],
            ["Sec-WebSocket-Accept: x", "Connection: Upgrade", "Upgrade: websocket"]
        );
    }

    #[test]
    fn a_host_adds_its_headers_and_a_date_where_there_is_none() {
        let mut rules = HeaderRules::default();
        rules.add_set("X-Frame-Options", "DENY").unwrap();
        rules.add_removed("Server").unwrap();
        let head = "HTTP/1.1 200 OK\r\nServer: x\r\nx-frame-options: ALLOW\r\nContent-Length: 0\r\n\r\n";
        let response = parse_response(head.as_bytes(), &asked(false)).unwrap().unwrap();
        let toward = Toward { hsts: Some("max-age=1"), keep_alive: false, ..toward(Version::Http11, &rules) };
        let mut out = Vec::new();
        write_response(&mut out, &response, &toward);
        let due = format!(
            "HTTP/1.1 200 OK\r\nDate: {DATE}\r\nStrict-Transport-Security: max-age=1\r\nX-Frame-Options: DENY\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), due);
        let own = "HTTP/1.1 200 OK\r\nDate: then\r\nStrict-Transport-Security: max-age=2\r\nContent-Length: 0\r\n\r\n";
        let response = parse_response(own.as_bytes(), &asked(false)).unwrap().unwrap();
        let mut out = Vec::new();
        write_response(&mut out, &response, &toward);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("Date: then") && !text.contains(DATE) && !text.contains("max-age=1"), "{text}");
    }

    #[test]
    fn http2_has_no_headers_of_a_connection() {
        let head = "HTTP/1.1 200 OK\r\nX-Upper: A\r\nConnection: close, X-Own\r\nX-Own: 1\r\nKeep-Alive: x\r\n\
                    NL-X: y\r\nContent-Length: 5\r\nDate: then\r\n\r\n";
        let rules = HeaderRules::default();
        let fields = |head: &str| {
            let response = parse_response(head.as_bytes(), &asked(false)).unwrap().unwrap();
            let mut fields = Vec::new();
            http2_fields(&response, &toward(Version::Http2, &rules), |name, value| {
                fields.push(format!("{name}: {}", value.escape_ascii()));
            });
            fields
        };
        assert_eq!(fields(head), ["x-upper: A", "date: then", "content-length: 5"]);
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\nDate: then\r\n\r\n";
        assert_eq!(fields(chunked), ["trailer: x", "date: then"]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_one_answer_with_the_same_body(
            status in 200..600u16, reason in "[ -~\u{80}-\u{ff}]{0,8}", is_head: bool,
            lines in prop::collection::vec(
                "(Connection|X|Content-Length|Date|Upgrade|Trailer): [ -~\u{80}-\u{ff}]{0,12}", 0..5,
            ),
        ) {
            let head = format!("HTTP/1.1 {status} {reason}\r\n{}\r\n\r\n", lines.join("\r\n"));
            if let Ok(Some(response)) = parse_response(head.as_bytes(), &asked(is_head)) {
                let (mut out, rules) = (Vec::new(), HeaderRules::default());
                let toward = toward(Version::Http11, &rules);
                write_response(&mut out, &response, &toward);
                let again = parse_response(&out, &asked(is_head)).unwrap().unwrap();
                prop_assert_eq!(again.head_bytes, out.len());
                prop_assert_eq!((again.status, again.body), (response.status, toward.body(&response)));
                prop_assert_eq!(again.length_said, response.length_said);
            }
        }
    }
}
