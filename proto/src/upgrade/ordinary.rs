//! Role: what is kept of an HTTP request that is no upgrade of ours.
//! Invariants: one host, one path, one end of the body, or no answer but 400.
//! See: RFC 9112 sections 3.2 and 6.3.

use super::HeadError;
use crate::http::{self, Body, head::Headers, host::parse_target, length};

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

/// The path that a request's target means, without its query.
pub(super) fn parse_path<'a>(
    method: &str,
    target: &'a str,
    host: Option<&str>,
) -> Result<&'a str, HeadError> {
    let path = parse_target(method, target, host)?.split('?').next().unwrap_or_default();
    // `http://host?query` has an empty one.
    Ok(if path.is_empty() { "/" } else { path })
}

/// Whether a body follows. Whoever has no use for it takes any coding, and any length.
pub(super) fn parse_has_body(headers: &Headers<'_, '_>, version: u8) -> Result<bool, HeadError> {
    match length::of_request(headers, version) {
        Ok(body) => Ok(!matches!(body, Body::None | Body::Length(0))),
        Err(http::HeadError::Unsupported(_) | http::HeadError::BodyTooLong) => Ok(true),
        Err(error) => Err(error.into()),
    }
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
}
