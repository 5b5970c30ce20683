//! Role: a visitor's request as its origin reads it.
//! Invariants: every line is written from what was parsed · a header named in `Connection` is left out, but never the
//! host, the length or what is added here · what claims an address comes from trusted proxies alone · no header of ours
//! (`NL-*`) passes from a visitor.
//! See: RFC 9110 sections 7.6 and 7.8; RFC 7239; RFC 9113 section 8.2.3 (cookies).

mod hop;

use std::net::IpAddr;

use super::{
    Body, CLIENT_SUBJECT,
    head::{push_field, push_number, push_text},
    method::names_its_length,
    names::{self, Class},
    request::Request,
    rules::HeaderRules,
};

/// Whose request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visitor<'a> {
    /// Whom the connection is from; of a trusted proxy its own address.
    pub addr: IpAddr,
    /// The port of the gateway that was connected to.
    pub port: u16,
    /// Whether the connection has TLS.
    pub by_tls: bool,
    /// Whether it is a proxy that is believed what it says of those before it.
    pub is_trusted: bool,
    /// The name of this request in logs and for the origin.
    pub request_id: &'a str,
    /// The subject of the certificate that the visitor has shown, once it is verified.
    pub certificate_subject: Option<&'a str>,
}

/// What a published host changes of its requests.
#[derive(Debug, Clone, Copy)]
pub struct Rewriting<'a> {
    /// The Host that the origin is asked for; the visitor's own where there is none.
    pub host: Option<&'a str>,
    /// Headers that are set and removed.
    pub rules: &'a HeaderRules,
    /// Whether the origin is told that this is the connection's last request.
    pub is_last: bool,
}

/// Appends the head that an origin reads, in HTTP/1.1. The body that follows it is framed as `request.body` says.
pub fn write_request(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    visitor: &Visitor<'_>,
    rewriting: &Rewriting<'_>,
) {
    push_word(out, request.method);
    out.push(b' ');
    push_word(out, request.path);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    push_field(out, "Host", rewriting.host.unwrap_or(request.authority).as_bytes());
    pass_fields(out, request, visitor, rewriting.rules);
    hop::add(out, request, visitor, rewriting.rules);
    if !rewriting.rules.replaces("X-Request-Id") {
        push_field(out, "X-Request-Id", visitor.request_id.as_bytes());
    }
    if let Some(subject) = visitor.certificate_subject {
        push_field(out, CLIENT_SUBJECT, escape(subject).as_bytes());
    }
    for (name, value) in rewriting.rules.set() {
        push_field(out, name, value.as_bytes());
    }
    add_connection(out, request, rewriting.is_last);
    add_length(out, request);
    out.extend_from_slice(b"\r\n");
}

/// A part of the request line: a blank would end it.
fn push_word(out: &mut Vec<u8>, word: &str) {
    let start = out.len();
    push_text(out, word.as_bytes());
    for byte in &mut out[start..] {
        if matches!(byte, b' ' | b'\t') {
            *byte = b'?';
        }
    }
}

fn pass_fields(out: &mut Vec<u8>, request: &Request<'_>, visitor: &Visitor<'_>, rules: &HeaderRules) {
    let is_named =
        |name: &str| request.named_by_connection.iter().any(|option| option.eq_ignore_ascii_case(name));
    let mut has_cookies = false;
    for field in &request.fields {
        let class = names::of_request(field.name);
        let passes = match class {
            Class::Dropped | Class::Ours => false,
            Class::Claim => visitor.is_trusted,
            Class::Trailer => request.body == Body::Chunked && !is_named(field.name),
            Class::Cookie => !has_cookies && !is_named(field.name),
            Class::Other => !is_named(field.name),
        };
        if !passes || rules.replaces(field.name) {
            continue;
        }
        if class == Class::Cookie {
            has_cookies = true;
            push_joined(out, "Cookie", request.values("cookie"), b"; ");
        } else {
            push_field(out, field.name, field.value);
        }
    }
}

/// One line of all values.
fn push_joined<'a>(out: &mut Vec<u8>, name: &str, values: impl Iterator<Item = &'a [u8]>, between: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    let start = out.len();
    for value in values.filter(|value| !value.is_empty()) {
        if out.len() > start {
            out.extend_from_slice(between);
        }
        push_text(out, value);
    }
    out.extend_from_slice(b"\r\n");
}

fn add_connection(out: &mut Vec<u8>, request: &Request<'_>, is_last: bool) {
    let options = [
        (request.asks_upgrade(), "Upgrade"),
        (request.takes_trailers, "TE"),
        (is_last && !request.asks_upgrade(), "close"),
    ];
    let options = options.iter().filter(|(holds, _)| *holds).map(|(_, option)| option.as_bytes());
    if options.clone().next().is_some() {
        push_joined(out, "Connection", options, b", ");
    }
    if request.asks_upgrade() {
        push_joined(out, "Upgrade", request.upgrade.iter().map(|text| text.as_bytes()), b", ");
    }
    if request.takes_trailers {
        out.extend_from_slice(b"TE: trailers\r\n");
    }
    if request.expects_continue {
        out.extend_from_slice(b"Expect: 100-continue\r\n");
    }
}

fn add_length(out: &mut Vec<u8>, request: &Request<'_>) {
    match request.body {
        Body::Length(bytes) => {
            out.extend_from_slice(b"Content-Length: ");
            push_number(out, bytes);
            out.extend_from_slice(b"\r\n");
        }
        Body::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Body::None if names_its_length(request.method) && !request.asks_upgrade() => {
            out.extend_from_slice(b"Content-Length: 0\r\n");
        }
        Body::None | Body::UntilClose => {}
    }
}

/// A subject that no other subject looks like: all but printable ASCII as `%XX`.
fn escape(subject: &str) -> String {
    let last = subject.len().saturating_sub(1);
    let mut out = String::with_capacity(subject.len());
    for (at, byte) in subject.bytes().enumerate() {
        match byte {
            b' ' if at != 0 && at != last => out.push(' '),
            b'!'..=b'~' if byte != b'%' => out.push(byte.into()),
            _ => {
                out.push('%');
                out.extend(
                    [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789ABCDEF"[digit as usize])),
                );
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            head,
            request::{Pseudo, fixture::check, parse_request},
        },
        *,
    };

    const STRANGER: Visitor<'_> = Visitor {
        addr: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        port: 443,
        by_tls: true,
        is_trusted: false,
        request_id: "id1",
        certificate_subject: None,
    };
    const PROXY: Visitor<'_> = Visitor { is_trusted: true, ..STRANGER };

    fn written(request: &Request<'_>, visitor: &Visitor<'_>, rules: &HeaderRules) -> Vec<String> {
        let mut out = b"before".to_vec();
        write_request(&mut out, request, visitor, &Rewriting { host: None, rules, is_last: false });
        let head = out.strip_prefix(b"before").unwrap();
        let (_, fields) = head::parse(head).unwrap();
        let text = str::from_utf8(head.strip_suffix(b"\r\n\r\n").unwrap()).unwrap();
        assert_eq!(text.lines().count(), fields.len() + 1);
        text.lines().map(str::to_owned).collect()
    }

    fn forwarded(head: &str, visitor: &Visitor<'_>) -> Vec<String> {
        let request = check(head.as_bytes()).unwrap().unwrap();
        written(&request, visitor, &HeaderRules::default())
    }

    /// The lines that are not the same for every request of a stranger to `a`.
    fn own_lines(head: &str) -> Vec<String> {
        let added = [
            "X-Forwarded-For: 192.0.2.1",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: a",
            "X-Forwarded-Port: 443",
            "Forwarded: for=192.0.2.1;host=\"a\";proto=https",
            "X-Request-Id: id1",
        ];
        let mut lines = forwarded(head, &STRANGER);
        for line in added {
            let at =
                lines.iter().position(|own| own == line).unwrap_or_else(|| panic!("no {line} in {lines:?}"));
            lines.remove(at);
        }
        lines
    }

    #[test]
    fn a_head_is_written_anew() {
        let head =
            "POST http://a/x?y HTTP/1.0\r\nHOST:a\r\nAccept:\t*/* \r\nContent-length: 0005\r\n\r\nhello";
        assert_eq!(own_lines(head), ["POST /x?y HTTP/1.1", "Host: a", "Accept: */*", "Content-Length: 5"]);
        let head = "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nTrailer: X-Sum\r\nTE: trailers, deflate\r\n\
                    Expect: 100-Continue\r\nConnection: close, TE\r\n\r\n";
        assert_eq!(
            own_lines(head),
            [
                "PUT / HTTP/1.1",
                "Host: a",
                "Trailer: X-Sum",
                "Connection: TE",
                "TE: trailers",
                "Expect: 100-continue",
                "Transfer-Encoding: chunked"
            ]
        );
        assert_eq!(
            own_lines("POST / HTTP/1.1\r\nHost: a\r\nTrailer: x\r\n\r\n"),
            ["POST / HTTP/1.1", "Host: a", "Content-Length: 0"]
        );
    }

    #[test]
    fn what_is_for_the_visitors_own_connection_stays_there() {
        let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Own, Host, X-Forwarded-For, Content-Length, Cookie, X-Request-Id\r\n\
                    X-Own: 1\r\nx-own: 2\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nProxy-Authorization: x\r\n\
                    Upgrade: h2c\r\nHTTP2-Settings: x\r\nTE: gzip\r\nCookie: a=b\r\nContent-Length: 3\r\nX: y\r\n\r\nabc";
        assert_eq!(own_lines(head), ["GET / HTTP/1.1", "Host: a", "X: y", "Content-Length: 3"]);
    }

    #[test]
    fn an_upgrade_is_passed_on_where_one_is_asked() {
        let head = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket, h2c\r\n\
                    Sec-WebSocket-Key: x\r\n\r\n";
        assert_eq!(
            own_lines(head),
            [
                "GET /ws HTTP/1.1",
                "Host: a",
                "Sec-WebSocket-Key: x",
                "Connection: Upgrade",
                "Upgrade: websocket"
            ]
        );
        let head = "POST /ts2021 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\
                    Upgrade: tailscale-control-protocol\r\n\r\n";
        let lines = own_lines(head);
        assert_eq!(lines[2..], ["Connection: Upgrade", "Upgrade: tailscale-control-protocol"]);
    }

    #[test]
    fn a_stranger_claims_no_address() {
        let claims = "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: b\r\nX-Forwarded-Port: 1\r\n\
                      X-Forwarded-Prefix: /x\r\nForwarded: for=10.0.0.1\r\nX-Real-IP: 10.0.0.1\r\nCF-Connecting-IP: 10.0.0.1\r\n\
                      True-Client-IP: 10.0.0.1\r\nClient-IP: 10.0.0.1\r\nX-Client-IP: 1\r\nX-Cluster-Client-IP: 1\r\n\
                      Fastly-Client-IP: 1\r\nX_Forwarded_For: 1\r\nX.Real.IP: 1\r\nProxy: http://b\r\nNL-Lane: x\r\n\
                      NL-Client-Subject: CN=root\r\nnl_client_subject: CN=root\r\nX-Request-Id: theirs\r\n";
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{claims}\r\n");
        assert_eq!(own_lines(&head), ["GET / HTTP/1.1", "Host: a"]);
        let all = forwarded(&head, &PROXY).join("\n");
        for kept in [
            "X-Forwarded-For: 10.0.0.1, 192.0.2.1",
            "X-Forwarded-Proto: http",
            "X-Forwarded-Host: b",
            "X-Forwarded-Port: 1",
            "X-Forwarded-Prefix: /x",
            "Forwarded: for=10.0.0.1, for=192.0.2.1;host=\"a\";proto=https",
            "X-Real-IP: 10.0.0.1",
            "CF-Connecting-IP: 10.0.0.1",
            "X-Request-Id: id1",
        ] {
            assert_eq!(all.lines().filter(|line| *line == kept).count(), 1, "{kept} in {all}");
        }
        for gone in ["NL-", "nl_", "Proxy:", "X_Forwarded_For", "X.Real.IP", "theirs"] {
            assert!(!all.contains(gone), "{gone} in {all}");
        }
    }

    #[test]
    fn a_host_sets_and_removes_headers() {
        let mut rules = HeaderRules::default();
        rules.add_set("X-Env", "prod").unwrap();
        rules.add_set("X-Forwarded-Proto", "https2").unwrap();
        rules.add_removed("authorization").unwrap();
        let head =
            "GET / HTTP/1.1\r\nHost: a\r\nx_env: dev\r\nX-Env: dev\r\nAuthorization: x\r\nAccept: y\r\n\r\n";
        let request = parse_request(head.as_bytes()).unwrap().unwrap();
        let mut out = Vec::new();
        let rewriting = Rewriting { host: Some("inner:81"), rules: &rules, is_last: true };
        let visitor = Visitor { certificate_subject: Some("CN=J\u{fc}rgen 100%\r\n"), ..STRANGER };
        write_request(&mut out, &request, &visitor, &rewriting);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> =
            text.lines().filter(|line| !line.contains("orwarded-") && !line.contains("for=")).collect();
        assert_eq!(
            lines,
            [
                "GET / HTTP/1.1",
                "Host: inner:81",
                "Accept: y",
                "X-Request-Id: id1",
                "NL-Client-Subject: CN=J%C3%BCrgen 100%25%0D%0A",
                "X-Env: prod",
                "Connection: close",
                ""
            ]
        );
        assert_eq!(text.matches("X-Forwarded-Proto").count(), 1, "{text}");
        assert!(text.contains("X-Forwarded-Proto: https2\r\n") && text.contains("X-Forwarded-Host: a\r\n"));
    }

    #[test]
    fn cookies_of_http2_are_joined() {
        let pseudo = Pseudo {
            method: "GET",
            scheme: Some("https"),
            authority: Some("a"),
            path: Some("/"),
            is_end: false,
        };
        let fields = [("cookie", "a=b"), ("x", "y"), ("cookie", "c=d"), ("te", "trailers"), ("cookie", "e")];
        let request =
            Request::from_parts(pseudo, fields.map(|(name, value)| (name, value.as_bytes()))).unwrap();
        let lines = written(&request, &STRANGER, &HeaderRules::default());
        assert_eq!(lines[..4], ["GET / HTTP/1.1", "Host: a", "Cookie: a=b; c=d; e", "x: y"]);
        assert_eq!(lines[10..], ["Connection: TE", "TE: trailers", "Transfer-Encoding: chunked"]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_one_request_with_the_same_body(
            lines in prop::collection::vec(
                "(Connection|X|Content-Length|Cookie|Upgrade|X-Forwarded-For|Expect|TE|Trailer): [ -~\u{80}-\u{ff}]{0,12}", 0..6,
            ),
            by_tls: bool, is_trusted: bool, addr: IpAddr, request_id: String, subject: Option<String>,
        ) {
            let head = format!("POST /x HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", lines.join("\r\n"));
            if let Ok(Some(request)) = parse_request(head.as_bytes()) {
                let certificate_subject = subject.as_deref();
                let visitor = Visitor { addr, port: 1, by_tls, is_trusted, request_id: &request_id, certificate_subject };
                let rules = HeaderRules::default();
                let mut out = Vec::new();
                write_request(&mut out, &request, &visitor, &Rewriting { host: None, rules: &rules, is_last: false });
                let end = head::end(&[&out[..], b"behind"].concat(), 0);
                prop_assert_eq!(end, Ok(Some(out.len())));
                let again = parse_request(&out).unwrap().unwrap();
                let is_empty = |body: Body| matches!(body, Body::None | Body::Length(0));
                prop_assert!(again.body == request.body || is_empty(again.body) && is_empty(request.body));
                prop_assert_eq!((again.authority, again.path), (request.authority, request.path));
                prop_assert_eq!(again.upgrade, request.upgrade);
            }
        }

        #[test]
        fn not_even_a_request_that_was_made_up_begins_a_line(
            method in "G.{0,4}", path: String, authority: String, name: String, value: Vec<u8>, protocol: String,
        ) {
            let parsed = parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().unwrap();
            let request = Request {
                method: &method,
                path: &path,
                authority: &authority,
                upgrade: vec![&protocol],
                fields: vec![head::Field { name: &name, value: &value }],
                ..parsed
            };
            let mut out = Vec::new();
            let rules = HeaderRules::default();
            write_request(&mut out, &request, &STRANGER, &Rewriting { host: None, rules: &rules, is_last: false });
            let lines = out.windows(2).filter(|pair| pair == b"\r\n").count();
            prop_assert!(lines <= 13 && !out.contains(&0), "{}", out.escape_ascii());
            prop_assert_eq!(head::end(&out, 0), Ok(Some(out.len())));
        }
    }
}
