//! Role: what an origin is told of the way that its request came: `X-Forwarded-*` and `Forwarded`.
//! Invariants: a stranger's own words are never among it · an address has one form, IPv4 where it is mapped into IPv6.
//! See: RFC 7239 sections 4 to 6.

use std::{io::Write as _, net::IpAddr};

use super::{
    super::{
        head::{push_field, push_number, push_text},
        host,
        request::Request,
        rules::HeaderRules,
    },
    Visitor,
};

/// What the origin is told of the way that the request came. A trusted proxy's words stay, with our own behind them; a
/// header that the host sets or removes is left out.
pub(super) fn add(out: &mut Vec<u8>, request: &Request<'_>, visitor: &Visitor<'_>, rules: &HeaderRules) {
    let believed = if visitor.is_trusted { &request.fields[..] } else { &[] };
    let said = |name: &'static str| {
        believed.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    };
    let one = |name: &'static str, holds: fn(&str) -> bool| {
        let mut values = said(name);
        let value = str::from_utf8(values.next()?).ok()?;
        (values.next().is_none() && holds(value)).then_some(value)
    };
    let addr = visitor.addr.to_canonical();
    let scheme = if visitor.by_tls { "https" } else { "http" };
    if !rules.replaces("X-Forwarded-For") {
        begin_list(out, "X-Forwarded-For", said("X-Forwarded-For"));
        push_display(out, addr);
        out.extend_from_slice(b"\r\n");
    }
    let is_scheme = |text: &str| matches!(text, "http" | "https");
    if !rules.replaces("X-Forwarded-Proto") {
        let scheme = one("X-Forwarded-Proto", is_scheme).unwrap_or(scheme);
        push_field(out, "X-Forwarded-Proto", scheme.as_bytes());
    }
    let is_host = |text: &str| host::split(text).is_some();
    if !rules.replaces("X-Forwarded-Host") {
        let host = one("X-Forwarded-Host", is_host).unwrap_or(request.authority);
        push_field(out, "X-Forwarded-Host", host.as_bytes());
    }
    if !rules.replaces("X-Forwarded-Port") {
        let port = one("X-Forwarded-Port", |text| parse_port(text).is_some()).and_then(parse_port);
        begin_list(out, "X-Forwarded-Port", std::iter::empty());
        push_number(out, port.unwrap_or(visitor.port).into());
        out.extend_from_slice(b"\r\n");
    }
    // Of a proxy that writes the other header alone, this one would name the proxy as if nothing stood before it.
    let is_complete = said("Forwarded").next().is_some() || said("X-Forwarded-For").next().is_none();
    if is_complete && !rules.replaces("Forwarded") {
        begin_list(out, "Forwarded", said("Forwarded"));
        let (open, close) = if addr.is_ipv6() { ("for=\"[", "]\";host=\"") } else { ("for=", ";host=\"") };
        out.extend_from_slice(open.as_bytes());
        push_display(out, addr);
        out.extend_from_slice(close.as_bytes());
        push_text(out, request.authority.as_bytes());
        out.extend_from_slice(b"\";proto=");
        out.extend_from_slice(scheme.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// Digits alone: no sign.
fn parse_port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn push_display(out: &mut Vec<u8>, addr: IpAddr) {
    // Writing to a Vec can't fail.
    let _ = write!(out, "{addr}");
}

/// A line of all values, each with a comma behind it; what is added to them, and the line's end, come next.
fn begin_list<'a>(out: &mut Vec<u8>, name: &str, values: impl Iterator<Item = &'a [u8]>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    for value in values.filter(|value| !value.is_empty()) {
        push_text(out, value);
        out.extend_from_slice(b", ");
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Rewriting, write_request},
        *,
    };
    use crate::http::request::parse_request;

    const STRANGER: Visitor<'_> = Visitor {
        addr: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        port: 443,
        by_tls: true,
        is_trusted: false,
        request_id: "id1",
        certificate_subject: None,
    };
    const PROXY: Visitor<'_> = Visitor { is_trusted: true, ..STRANGER };

    fn forwarded(head: &str, visitor: &Visitor<'_>) -> Vec<String> {
        let request = parse_request(head.as_bytes()).unwrap().unwrap();
        let (mut out, rules) = (Vec::new(), HeaderRules::default());
        write_request(&mut out, &request, visitor, &Rewriting { host: None, rules: &rules, is_last: false });
        let text = String::from_utf8(out).unwrap();
        text.trim_end().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_trusted_proxys_nonsense_gives_way_to_what_is_seen_here() {
        let head = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: x\r\n\
                    X-Forwarded-Proto: gopher\r\nX-Forwarded-Host: b\r\nX-Forwarded-Host: c\r\nX-Forwarded-Port: 99999\r\n\r\n";
        assert_eq!(
            forwarded(head, &PROXY)[2..],
            [
                "X-Forwarded-For: 10.0.0.1, x, 192.0.2.1",
                "X-Forwarded-Proto: https",
                "X-Forwarded-Host: a",
                "X-Forwarded-Port: 443",
                "X-Request-Id: id1"
            ]
        );
    }

    #[test]
    fn addresses_are_written_in_their_one_form() {
        let head = "GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n";
        let mapped =
            Visitor { addr: "::ffff:192.0.2.9".parse().unwrap(), by_tls: false, port: 80, ..STRANGER };
        let lines = forwarded(head, &mapped);
        assert_eq!(lines[2], "X-Forwarded-For: 192.0.2.9");
        assert_eq!(lines[6], "Forwarded: for=192.0.2.9;host=\"[::1]:8080\";proto=http");
        let six = Visitor { addr: "2001:db8::1".parse().unwrap(), ..STRANGER };
        let lines = forwarded(head, &six);
        assert_eq!(lines[2], "X-Forwarded-For: 2001:db8::1");
        assert_eq!(lines[6], "Forwarded: for=\"[2001:db8::1]\";host=\"[::1]:8080\";proto=https");
    }
}
