//! Role: whom a request is for: its Host, and its target.
//! Invariants: one host without userinfo, escapes, zone or path; a target that names a host names the same one.
//! See: RFC 9112 sections 3.2 and 3.3; RFC 9110 section 7.2.

use std::net::Ipv6Addr;

use super::{HeadError, head::Headers};

/// The Host header as it came; only requests of HTTP/1.0 may have none.
pub(crate) fn parse_host<'a>(headers: &Headers<'_, 'a>, version: u8) -> Result<Option<&'a str>, HeadError> {
    match headers.single("Host")? {
        Some(host) if split(host).is_some() => Ok(Some(host)),
        Some(_) => Err(HeadError::Malformed("a malformed Host")),
        None if version == 0 => Ok(None),
        None => Err(HeadError::Malformed("no Host")),
    }
}

/// What a request's target asks for: a path with its query, `*`, or the authority of a CONNECT. A target that names
/// the host too must name the one in the Host header; its path may be empty.
pub(crate) fn parse_target<'a>(
    method: &str,
    target: &'a str,
    host: Option<&str>,
) -> Result<&'a str, HeadError> {
    const BAD: HeadError = HeadError::Malformed("a malformed request target");
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(BAD);
    }
    if method == "CONNECT" {
        return if split(target).is_some() { Ok(target) } else { Err(BAD) };
    }
    if target == "*" && method == "OPTIONS" {
        return Ok(target);
    }
    match target.split_once("://") {
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
        {
            let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            if !host.is_some_and(|host| host.eq_ignore_ascii_case(authority)) {
                return Err(HeadError::Malformed("a request target for another host"));
            }
            Ok(path)
        }
        _ if target.starts_with('/') => Ok(target),
        _ => Err(BAD),
    }
}

/// The host of `HOST[:PORT]` without brackets, and the port; no userinfo, no escapes, no zone.
pub(crate) fn split(authority: &str) -> Option<(&str, Option<u16>)> {
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
    let port = match port {
        // What parses with a sign is no port either.
        Some(digits) if !digits.bytes().all(|byte| byte.is_ascii_digit()) => return None,
        Some(digits) => Some(digits.parse().ok()?),
        None => None,
    };
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    ((1..=253).contains(&host.len()) && host.bytes().all(named)).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_named_without_port_and_brackets() {
        for (host, named) in [
            ("Gw.Example", Some(("Gw.Example", None))),
            ("gw.example.:8443", Some(("gw.example.", Some(8443)))),
            ("127.0.0.1:80", Some(("127.0.0.1", Some(80)))),
            ("[2001:DB8::1]:443", Some(("2001:DB8::1", Some(443)))),
            ("[::1]", Some(("::1", None))),
            ("", None),
            (":80", None),
            ("::1", None),
            ("[::1]80", None),
            ("[::1%lo]", None),
            ("gw.example:", None),
            ("gw.example:+80", None),
            ("gw.example:65536", None),
            ("gw%2eexample", None),
            ("user@gw.example", None),
            ("gw.example/path", None),
            ("gw.example,other", None),
        ] {
            assert_eq!(split(host), named, "{host}");
        }
    }

    #[test]
    fn a_target_that_names_a_host_names_the_one_of_the_host_header() {
        for (target, path) in [
            ("/a?b", Some("/a?b")),
            ("http://A:80/b?c", Some("/b?c")),
            ("HTTPS://a:80", Some("")),
            ("http://a:80?x", Some("?x")),
            ("http://a/", None),
            ("http://u@a:80/", None),
            ("ftp://a:80/", None),
            ("a:80", None),
            ("*", None),
        ] {
            assert_eq!(parse_target("GET", target, Some("a:80")).ok(), path, "{target}");
        }
    }
}
