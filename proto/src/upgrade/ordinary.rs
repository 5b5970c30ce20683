//! Role: what holds for any HTTP request, whomever it is for.
//! Invariants: one host, one path, one end of the body, or no answer but 400.
//! See: RFC 9112 sections 3.2 and 6.3.

use std::net::Ipv6Addr;

use super::{HeadError, head::Headers};

/// A request that is not for us: enough to answer it as any web server does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordinary {
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// The Host header, as it came; requests of HTTP/1.0 need none.
    pub host: Option<String>,
    /// Whether the sender would use the connection again.
    pub keep_alive: bool,
    /// Whether a body follows. Who closes with a body unread resets the connection, answer and all.
    pub has_body: bool,
    /// Where the head ends.
    pub head_bytes: usize,
}

pub(super) fn parse_host<'a>(headers: &Headers<'a>, version: u8) -> Result<Option<&'a str>, HeadError> {
    match headers.single("Host")? {
        Some(host) if host_of(host).is_some() => Ok(Some(host)),
        Some(_) => Err(HeadError::Malformed("a malformed Host")),
        None if version == 0 => Ok(None),
        None => Err(HeadError::Malformed("no Host")),
    }
}

/// The path that a request's target means, without its query. The target may name the host too: it
/// must then be the same as in the Host header.
pub(super) fn parse_target<'a>(
    method: &str,
    target: &'a str,
    host: Option<&str>,
) -> Result<&'a str, HeadError> {
    const BAD: HeadError = HeadError::Malformed("a malformed request target");
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(BAD);
    }
    if method == "CONNECT" {
        return if host_of(target).is_some() { Ok(target) } else { Err(BAD) };
    }
    if target == "*" && method == "OPTIONS" {
        return Ok(target);
    }
    let target = match target.split_once("://") {
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
        {
            let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            if !host.is_some_and(|host| host.eq_ignore_ascii_case(authority)) {
                return Err(HeadError::Malformed("a request target for another host"));
            }
            if path.starts_with('/') { path } else { "/" }
        }
        _ if target.starts_with('/') => target,
        _ => return Err(BAD),
    };
    Ok(target.split('?').next().unwrap_or(target))
}

/// Whether a body follows; two opinions about its end are one too many.
pub(super) fn parse_body(headers: &Headers<'_>, version: u8) -> Result<bool, HeadError> {
    let length = headers.single("Content-Length")?;
    if length.is_some_and(|text| text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(HeadError::Malformed("a malformed Content-Length"));
    }
    let encoded = headers.has("Transfer-Encoding");
    if encoded && (length.is_some() || version == 0) {
        return Err(HeadError::Malformed("a body with two lengths"));
    }
    Ok(encoded || length.is_some_and(|text| text.bytes().any(|digit| digit != b'0')))
}

/// The host of `HOST[:PORT]`, without brackets; no userinfo, no escapes, no zone.
fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            (address, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if let Some(port) = port
        && (port.parse::<u16>().is_err() || !port.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return None; // what parses with a sign is no port either
    }
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    ((1..=253).contains(&host.len()) && host.bytes().all(named)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            HEAD_BYTES_MAX, HEADERS_MAX, parse_request,
            request::{Head, fixture::check},
        },
        *,
    };

    fn other(head: &str) -> Ordinary {
        match check(head.as_bytes()) {
            Ok(Head::Other(ordinary)) => ordinary,
            verdict => panic!("{head:?} gives {verdict:?}"),
        }
    }

    #[test]
    fn what_no_server_should_take_is_refused_on_every_path() {
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX));
        for head in [&long, &many] {
            assert_eq!(parse_request(head.as_bytes()), Err(HeadError::TooLong));
            assert_eq!(HeadError::TooLong.http_status(), 431);
        }
        let most = many.replacen("X: y\r\n", "", 1);
        assert!(matches!(parse_request(most.as_bytes()), Ok(Head::Other(_))));
        for bad in [
            "\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:70000\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:+80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n X: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: \ry\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET /\r\nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\u{fc} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nAuthorization: Bearer a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \u{fc}\r\n\r\n",
        ] {
            assert!(matches!(check(bad.as_bytes()), Err(HeadError::Malformed(_))), "{bad:?}");
        }
    }

    #[test]
    fn an_ordinary_request_says_what_its_answer_needs() {
        let get = other("GET /a/b?c=d HTTP/1.1\r\nHost: A.example\r\n\r\n");
        assert_eq!((&*get.method, &*get.path, get.host.as_deref()), ("GET", "/a/b", Some("A.example")));
        assert!(get.keep_alive && !get.has_body);
        assert!(!other("GET / HTTP/1.1\r\nHost: a\r\nConnection: TE, Close\r\n\r\n").keep_alive);
        assert!(!other("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(other("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n").has_body);
        assert!(other("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").has_body);
        for (target, path) in
            [("http://A", "/"), ("HTTP://a?x", "/"), ("https://a/b?c", "/b"), ("/x://y", "/x://y")]
        {
            assert_eq!(other(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).path, path);
        }
        assert_eq!(other("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").path, "*");
        assert_eq!(other("CONNECT a:22 HTTP/1.1\r\nHost: a\r\n\r\n").path, "a:22");
    }

    #[test]
    fn a_host_is_named_without_port_and_brackets() {
        for (host, name) in [
            ("Gw.Example", Some("Gw.Example")),
            ("gw.example.:8443", Some("gw.example.")),
            ("127.0.0.1:80", Some("127.0.0.1")),
            ("[2001:DB8::1]:443", Some("2001:DB8::1")),
            ("[::1]", Some("::1")),
            ("", None),
            (":80", None),
            ("::1", None),
            ("[::1]80", None),
            ("[::1%lo]", None),
            ("gw.example:", None),
            ("gw%2eexample", None),
        ] {
            assert_eq!(host_of(host), name, "{host}");
        }
    }
}
