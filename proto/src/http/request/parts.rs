//! Role: a request from the parts of HTTP/2: its pseudo-headers and fields.
//! Invariants: what an intermediary may not pass on to HTTP/1.1 is refused: it is malformed, and its stream ends with
//! PROTOCOL_ERROR.
//! See: RFC 9113 sections 8.1.1, 8.2, 8.3 and 8.5.

use super::{
    super::{
        Body, HEAD_BYTES_MAX, HEADERS_MAX, HeadError, Version,
        head::{self, Field, Headers},
        host, length, names,
    },
    Request, parse_expect, parse_path,
};

/// The pseudo-headers of a request, and whether it ends with its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pseudo<'a> {
    /// `:method`.
    pub method: &'a str,
    /// `:scheme`.
    pub scheme: Option<&'a str>,
    /// `:authority`.
    pub authority: Option<&'a str>,
    /// `:path`.
    pub path: Option<&'a str>,
    /// Whether the frame of the head ended the stream: no body follows.
    pub is_end: bool,
}

impl<'a> Request<'a> {
    /// A request of HTTP/2. `fields` are those behind the pseudo-headers, in their order. The sum of names and values is
    /// bounded by [`HEAD_BYTES_MAX`], their number without the crumbs of cookies by [`HEADERS_MAX`].
    ///
    /// # Errors
    /// The visitor's. `Malformed` ends the stream with PROTOCOL_ERROR, or is answered like the others by
    /// [`HeadError::http_status`].
    pub fn from_parts(
        pseudo: Pseudo<'a>,
        fields: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, HeadError> {
        let fields = collect(pseudo, fields)?;
        let headers = Headers(&fields);
        if !head::is_token(pseudo.method.as_bytes()) {
            return Err(HeadError::Malformed("a malformed method"));
        }
        let authority = authority(pseudo.authority, headers.single("host")?)?;
        let (host, port) = host::split(authority).ok_or(HeadError::Malformed("a malformed authority"))?;
        let path = path(pseudo, authority)?;
        let body = body(length::of_request(&headers, 1)?, pseudo.is_end)?;
        Ok(Self {
            method: pseudo.method,
            path,
            authority,
            host,
            port,
            version: Version::Http2,
            body,
            keep_alive: true,
            expects_continue: parse_expect(&headers, Version::Http2, body)?,
            upgrade: Vec::new(),
            takes_trailers: headers.has("te"),
            named_by_connection: Vec::new(),
            fields,
            head_bytes: 0,
        })
    }
}

fn collect<'a>(
    pseudo: Pseudo<'a>,
    fields: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<Vec<Field<'a>>, HeadError> {
    let long = [Some(pseudo.method), pseudo.authority, pseudo.path];
    let mut bytes: usize = long.iter().flatten().map(|text| text.len()).sum();
    let (mut kept, mut count) = (Vec::with_capacity(16), 0);
    for (name, value) in fields {
        bytes = bytes.saturating_add(name.len()).saturating_add(value.len());
        count += usize::from(name != "cookie");
        if bytes > HEAD_BYTES_MAX || count > HEADERS_MAX {
            return Err(HeadError::TooLong);
        }
        check_field(name, value)?;
        kept.push(Field { name, value });
    }
    Ok(kept)
}

fn check_field(name: &str, value: &[u8]) -> Result<(), HeadError> {
    if !head::is_token(name.as_bytes()) || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(HeadError::Malformed("a malformed header name"));
    }
    if head::has_control(value) {
        return Err(HeadError::Malformed("a control character"));
    }
    if head::trim(value).len() != value.len() {
        return Err(HeadError::Malformed("a value with blanks around it"));
    }
    match name {
        "te" if value.eq_ignore_ascii_case(b"trailers") => Ok(()),
        "te" => Err(HeadError::Malformed("a te other than trailers")),
        "http2-settings" => Ok(()),
        _ if names::is_connections(name.as_bytes()) => {
            Err(HeadError::Malformed("a header of a connection in HTTP/2"))
        }
        _ => Ok(()),
    }
}

/// `:authority` or `host`; both must be the same (RFC 9113 section 8.3.1).
fn authority<'a>(authority: Option<&'a str>, host: Option<&'a str>) -> Result<&'a str, HeadError> {
    match (authority, host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            Err(HeadError::Malformed("an authority for another host"))
        }
        (Some(authority), _) => Ok(authority),
        (None, Some(host)) => Ok(host),
        (None, None) => Err(HeadError::Malformed("no authority")),
    }
}

fn path<'a>(pseudo: Pseudo<'a>, authority: &str) -> Result<&'a str, HeadError> {
    let is_connect = pseudo.method == "CONNECT";
    match (pseudo.scheme, pseudo.path) {
        (None, None) if is_connect && pseudo.authority.is_some() => parse_path(pseudo.method, "", authority),
        _ if is_connect => Err(HeadError::Malformed("a malformed CONNECT")),
        (Some(scheme), Some(path))
            if scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http") =>
        {
            if path.starts_with('/') || path == "*" {
                parse_path(pseudo.method, path, authority)
            } else {
                Err(HeadError::Malformed("a malformed path"))
            }
        }
        _ => Err(HeadError::Malformed("no scheme, or no path")),
    }
}

/// A body without a length goes to the origin in chunks.
fn body(said: Body, is_end: bool) -> Result<Body, HeadError> {
    match said {
        Body::Length(1..) if is_end => Err(HeadError::Malformed("a length without a body")),
        Body::None if !is_end => Ok(Body::Chunked),
        said => Ok(said),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            super::{
                forward::{Rewriting, Visitor, write_request},
                rules::HeaderRules,
            },
            parse_request,
        },
        *,
    };

    const GET: Pseudo<'_> = Pseudo {
        method: "GET",
        scheme: Some("https"),
        authority: Some("a.example"),
        path: Some("/x?y"),
        is_end: true,
    };

    fn verdict<'a>(pseudo: Pseudo<'a>, fields: &[(&'a str, &'a str)]) -> Result<Request<'a>, u16> {
        let fields = fields.iter().map(|&(name, value)| (name, value.as_bytes()));
        Request::from_parts(pseudo, fields).map_err(HeadError::http_status)
    }

    #[test]
    fn a_stream_becomes_a_request() {
        let request = verdict(GET, &[("te", "trailers"), ("accept", "*/*"), ("host", "A.EXAMPLE")]).unwrap();
        assert_eq!((request.method, request.path, request.host), ("GET", "/x?y", "a.example"));
        assert_eq!((request.body, request.version), (Body::None, Version::Http2));
        assert!(request.takes_trailers && request.keep_alive && !request.asks_upgrade());
        let open = Pseudo { method: "POST", is_end: false, ..GET };
        assert_eq!(verdict(open, &[]).unwrap().body, Body::Chunked);
        assert_eq!(verdict(open, &[("content-length", "5")]).unwrap().body, Body::Length(5));
        assert!(verdict(open, &[("expect", "100-continue")]).unwrap().expects_continue);
        assert_eq!(verdict(Pseudo { authority: None, ..GET }, &[("host", "b:1")]).unwrap().port, Some(1));
        let options = Pseudo { method: "OPTIONS", path: Some("*"), ..GET };
        assert_eq!(verdict(options, &[]).unwrap().path, "*");
    }

    #[test]
    fn what_http2_forbids_is_refused() {
        for (name, value) in [
            ("connection", "close"),
            ("keep-alive", "x"),
            ("proxy-connection", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
            ("te", "trailers, gzip"),
            ("Accept", "x"),
            ("acce pt", "x"),
            ("", "x"),
            (":path", "/"),
            ("a:b", "x"),
            ("x", " y"),
            ("x", "y "),
            ("x", "\ty"),
            ("x", "y\r\nz: 1"),
            ("x", "y\nz"),
            ("x", "y\0"),
            ("x\r\ny", "z"),
            ("host", "b.example"),
            ("host", "a.example:443"),
            ("content-length", "5"),
            ("content-length", "+0"),
            ("content-length", "0,0"),
        ] {
            assert_eq!(verdict(GET, &[(name, value)]), Err(400), "{name:?}: {value:?}");
        }
        assert_eq!(verdict(GET, &[("content-length", "0"), ("content-length", "0")]), Err(400));
        assert_eq!(verdict(GET, &[("expect", "x")]), Err(417));
    }

    #[test]
    fn pseudo_headers_name_one_host_and_one_path() {
        for (what, pseudo, status) in [
            ("no scheme", Pseudo { scheme: None, ..GET }, 400),
            ("another scheme", Pseudo { scheme: Some("ftp"), ..GET }, 400),
            ("no path", Pseudo { path: None, ..GET }, 400),
            ("an empty path", Pseudo { path: Some(""), ..GET }, 400),
            ("a path without a slash", Pseudo { path: Some("x"), ..GET }, 400),
            ("a path that names a host", Pseudo { path: Some("http://b/"), ..GET }, 400),
            ("a path with a blank", Pseudo { path: Some("/ HTTP/1.1"), ..GET }, 400),
            ("a path with a line", Pseudo { path: Some("/\r\nX: y"), ..GET }, 400),
            ("a fragment", Pseudo { path: Some("/#x"), ..GET }, 400),
            ("a star", Pseudo { path: Some("*"), ..GET }, 400),
            ("a method with a blank", Pseudo { method: "GET /", ..GET }, 400),
            ("no method", Pseudo { method: "", ..GET }, 400),
            ("no authority", Pseudo { authority: None, ..GET }, 400),
            ("an empty authority", Pseudo { authority: Some(""), ..GET }, 400),
            ("userinfo", Pseudo { authority: Some("u@a"), ..GET }, 400),
            ("a CONNECT with a path", Pseudo { method: "CONNECT", ..GET }, 400),
            (
                "a CONNECT without authority",
                Pseudo { method: "CONNECT", scheme: None, path: None, authority: None, is_end: false },
                400,
            ),
            ("a CONNECT", Pseudo { method: "CONNECT", scheme: None, path: None, ..GET }, 501),
        ] {
            assert_eq!(verdict(pseudo, &[]), Err(status), "{what}");
        }
    }

    #[test]
    fn crumbs_of_cookies_are_bounded_by_their_bytes_alone() {
        let crumbs = vec![("cookie", "a=b"); 1000];
        assert_eq!(verdict(GET, &crumbs).unwrap().values("cookie").count(), 1000);
        assert_eq!(verdict(GET, &vec![("cookie", "a=b"); 2000]), Err(431));
        assert_eq!(verdict(GET, &[("x", "y"); HEADERS_MAX + 1]), Err(431));
    }

    proptest! {
        #[test]
        fn no_parts_panic(
            method: String, scheme: Option<String>, authority: Option<String>, path: Option<String>, is_end: bool,
            fields in prop::collection::vec((".{0,8}", prop::collection::vec(any::<u8>(), 0..8)), 0..4),
        ) {
            let pseudo = Pseudo {
                method: &method,
                scheme: scheme.as_deref(),
                authority: authority.as_deref(),
                path: path.as_deref(),
                is_end,
            };
            let _ = Request::from_parts(pseudo, fields.iter().map(|(name, value)| (&**name, &**value)));
        }

        #[test]
        fn what_is_accepted_of_http2_is_one_request_of_http1(
            method in "(GET|POST|X)", authority in "[aB.:1-2\\[\\]]{1,4}", path in "/[!-~]{0,8}", is_end: bool,
            fields in prop::collection::vec(
                ("(x|cookie|te|expect|content-length|trailer|x-forwarded-for|nl-x|host|a_b)", "[ -~]{0,4}|trailers|100-continue"),
                0..5,
            ),
        ) {
            let pseudo = Pseudo {
                method: &method,
                scheme: Some("https"),
                authority: Some(&authority),
                path: Some(&path),
                is_end,
            };
            let fields = fields.iter().map(|(name, value)| (&**name, value.as_bytes()));
            if let Ok(request) = Request::from_parts(pseudo, fields) {
                let visitor = Visitor {
                    addr: [192, 0, 2, 1].into(),
                    port: 443,
                    by_tls: true,
                    is_trusted: false,
                    request_id: "1",
                    certificate_subject: None,
                };
                let (mut out, rules) = (Vec::new(), HeaderRules::default());
                write_request(&mut out, &request, &visitor, &Rewriting { host: None, rules: &rules, is_last: false });
                let again = parse_request(&out).unwrap().unwrap();
                prop_assert_eq!(again.head_bytes, out.len());
                prop_assert_eq!((again.method, again.authority, again.path), (&*method, &*authority, &*path));
                let is_empty = |body: Body| matches!(body, Body::None | Body::Length(0));
                prop_assert!(again.body == request.body || is_empty(again.body) && is_empty(request.body));
                prop_assert!(again.values("cookie").count() <= 1 && again.values("nl-x").count() == 0);
            }
        }
    }
}
