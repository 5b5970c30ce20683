//! Role: a visitor's own address behind proxies that are trusted.
//! Invariants: hops are read from the right, where the trusted ones wrote · the address is that of the right-most hop that
//! is not trusted · what can't be read ends the search at the hop that wrote it: nothing left of it is believed · the
//! number of hops that are looked at is bounded.
//! See: RFC 7239 sections 4 to 6; RFC 9110 section 5.6.4 (quoted strings).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::head::trim;

/// Hops that are looked at, at the most.
pub const HOPS_MAX: usize = 64;

/// How a proxy names the address that it was connected from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A list of addresses, each proxy's behind those before it: `X-Forwarded-For`.
    List,
    /// A list of elements with parameters: `Forwarded`.
    Forwarded,
    /// One address in a header of its own: `CF-Connecting-IP`, `X-Real-IP`. Several are none.
    Single,
}

/// The address of the visitor, in its canonical form (IPv4 where it is mapped into IPv6). `values` are those of the
/// header in their order, `peer` is the other end of the connection, and the answer where nothing can be believed.
pub fn client_address<'a>(
    form: Form,
    values: impl DoubleEndedIterator<Item = &'a [u8]>,
    peer: IpAddr,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> IpAddr {
    let peer = peer.to_canonical();
    if !is_trusted(peer) {
        return peer;
    }
    if form == Form::Single {
        let mut values = values;
        return match (values.next(), values.next()) {
            (Some(value), None) => parse_address(value).unwrap_or(peer),
            _ => peer,
        };
    }
    let mut known = peer;
    for hop in values.rev().flat_map(elements).take(HOPS_MAX) {
        let hop = trim(hop);
        // An empty element is none (RFC 9110 section 5.6.1).
        if hop.is_empty() {
            continue;
        }
        let address = match form {
            Form::Forwarded => parse_forwarded(hop),
            Form::List | Form::Single => parse_address(hop),
        };
        match address {
            Some(address) if is_trusted(address) => known = address,
            Some(address) => return address,
            None => return known,
        }
    }
    known
}

/// The elements of a list from its right. Quotes are counted from there too, so that one that a stranger opened on the
/// left hides nothing that a proxy wrote behind it.
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let value = rest?;
        let mut is_quoted = false;
        let comma = value.iter().rposition(|&byte| {
            is_quoted ^= byte == b'"';
            byte == b',' && !is_quoted
        });
        let (before, element) = comma.map_or((None, value), |at| (Some(&value[..at]), &value[at + 1..]));
        rest = before;
        Some(element)
    })
}

/// The one `for` of an element. A semicolon in quotes is none between parameters.
fn parse_forwarded(element: &[u8]) -> Option<IpAddr> {
    let mut is_quoted = false;
    let parameters = element.split(|&byte| {
        is_quoted ^= byte == b'"';
        byte == b';' && !is_quoted
    });
    let mut found = None;
    for parameter in parameters {
        let Some((name, value)) =
            parameter.iter().position(|&byte| byte == b'=').map(|at| parameter.split_at(at))
        else {
            continue;
        };
        if trim(name).eq_ignore_ascii_case(b"for") {
            if found.is_some() {
                return None;
            }
            found = Some(parse_node(trim(&value[1..])));
        }
    }
    found?
}

/// An address, in quotes where it has colons; `unknown` and hidden ones (`_name`) are none.
fn parse_node(node: &[u8]) -> Option<IpAddr> {
    let is_quoted = node.len() >= 2 && node.starts_with(b"\"") && node.ends_with(b"\"");
    let node = if is_quoted { &node[1..node.len() - 1] } else { node };
    let address = parse_address(node)?;
    // RFC 7239 section 6: a port, and IPv6, only in quotes; IPv6 in brackets.
    (is_quoted || !node.contains(&b':')).then_some(address)
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`; no zone.
fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(trim(text)).ok()?;
    let address = match text.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) if text.contains('%') => return None,
        Err(_) => match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            Some(inner) => inner.parse::<Ipv6Addr>().ok()?.into(),
            None => text.parse::<SocketAddr>().ok()?.ip(),
        },
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 10.0.0.0/8 is trusted, and `fd00::/8`.
    fn is_trusted(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address.octets()[0] == 10,
            IpAddr::V6(address) => address.octets()[0] == 0xfd,
        }
    }

    fn client(form: Form, peer: &str, values: &[&str]) -> String {
        let values = values.iter().map(|value| value.as_bytes());
        client_address(form, values, peer.parse().unwrap(), is_trusted).to_string()
    }

    #[test]
    fn a_list_is_read_from_the_right_to_the_first_stranger() {
        for (peer, values, address) in [
            ("192.0.2.1", &["1.1.1.1"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("::ffff:10.0.0.1", &["::ffff:1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6, 1.1.1.1, 10.0.0.2"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6", "1.1.1.1 ,\t10.0.0.2", "10.0.0.3"], "1.1.1.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["1.1.1.1,,"], "1.1.1.1"),
            ("10.0.0.1", &["1.1.1.1:4711"], "1.1.1.1"),
            ("10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]:443, fd00::1"], "2001:db8::1"),
            ("10.0.0.1", &["1.1.1.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["1.1.1.1, \"6.6.6.6\""], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1 6.6.6.6"], "10.0.0.1"),
            ("10.0.0.1", &["010.1.1.1"], "10.0.0.1"),
            ("10.0.0.1", &["0x01010101"], "10.0.0.1"),
            ("10.0.0.1", &["16843009"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1:99999"], "10.0.0.1"),
            ("10.0.0.1", &["fe80::1%eth0"], "10.0.0.1"),
            ("10.0.0.1", &["[fe80::1%1]:80"], "10.0.0.1"),
            ("10.0.0.1", &["[1.1.1.1]"], "10.0.0.1"),
            ("10.0.0.1", &["\u{661}.1.1.1"], "10.0.0.1"),
        ] {
            assert_eq!(client(Form::List, peer, values), address, "{peer} says {values:?}");
        }
    }

    #[test]
    fn forwarded_is_read_with_its_quotes_and_its_hidden_hops() {
        for (values, address) in [
            (&["for=1.1.1.1"][..], "1.1.1.1"),
            (&["For = \"1.1.1.1\" ; proto=https"], "1.1.1.1"),
            (&["proto=https;for=\"[2001:db8::1]:443\";host=\"a;b,c\""], "2001:db8::1"),
            (&["for=6.6.6.6, for=1.1.1.1, for=10.0.0.2;by=10.0.0.1"], "1.1.1.1"),
            (&["for=6.6.6.6", "for=1.1.1.1"], "1.1.1.1"),
            (&["for=1.1.1.1, for=unknown"], "10.0.0.1"),
            (&["for=1.1.1.1, for=_hidden, for=10.0.0.7"], "10.0.0.7"),
            (&["for=1.1.1.1, proto=https"], "10.0.0.1"),
            (&["for=1.1.1.1;for=6.6.6.6"], "10.0.0.1"),
            (&["for=1.1.1.1:80"], "10.0.0.1"),
            (&["for=2001:db8::1"], "10.0.0.1"),
            (&["for=\"1.1.1.1"], "10.0.0.1"),
            (&["for="], "10.0.0.1"),
            (&["for"], "10.0.0.1"),
            (&["1.1.1.1"], "10.0.0.1"),
            (&["by=6.6.6.6;host=\"for=6.6.6.6\""], "10.0.0.1"),
            // A stranger's open quote, then what the proxy adds.
            (&["for=\"6.6.6.6, for=1.1.1.1"], "1.1.1.1"),
            (&["for=6.6.6.6;x=\", for=1.1.1.1;host=\"a\""], "1.1.1.1"),
            (&["x=\"\\\", for=6.6.6.6, \", for=1.1.1.1"], "1.1.1.1"),
        ] {
            assert_eq!(client(Form::Forwarded, "10.0.0.1", values), address, "{values:?}");
        }
    }

    #[test]
    fn a_single_address_stands_alone() {
        for (values, address) in [
            (&["1.1.1.1"][..], "1.1.1.1"),
            (&["2001:db8::1"], "2001:db8::1"),
            (&["1.1.1.1", "6.6.6.6"], "10.0.0.1"),
            (&["1.1.1.1, 6.6.6.6"], "10.0.0.1"),
            (&["unknown"], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            (&[], "10.0.0.1"),
        ] {
            assert_eq!(client(Form::Single, "10.0.0.1", values), address, "{values:?}");
        }
        assert_eq!(client(Form::Single, "192.0.2.1", &["1.1.1.1"]), "192.0.2.1");
    }

    #[test]
    fn thousands_of_hops_are_not_gone_through() {
        let hops = "1.1.1.1, ".to_owned() + &"10.0.0.2, ".repeat(5000) + "10.0.0.3";
        assert_eq!(client(Form::List, "10.0.0.1", &[&hops]), "10.0.0.2");
        let empty = "1.1.1.1".to_owned() + &",".repeat(5000);
        assert_eq!(client(Form::List, "10.0.0.1", &[&empty]), "10.0.0.1");
    }

    proptest! {
        #[test]
        fn what_a_stranger_writes_never_hides_what_the_proxy_adds(
            bytes in prop::collection::vec(any::<u8>(), 0..60), text in "[a-z0-9.:;,=\" \\\\\\[\\]]{0,40}",
        ) {
            for theirs in [&bytes[..], text.as_bytes()] {
                for (form, added) in [(Form::List, "1.1.1.1"), (Form::Forwarded, "for=1.1.1.1;proto=https")] {
                    let whole = [theirs, b", ", added.as_bytes()].concat();
                    let peer = IpAddr::from([10, 0, 0, 1]);
                    let address = client_address(form, [&whole[..]].into_iter(), peer, is_trusted);
                    prop_assert_eq!(address, IpAddr::from([1, 1, 1, 1]));
                }
                for form in [Form::List, Form::Forwarded, Form::Single] {
                    let peer = IpAddr::from([192, 0, 2, 1]);
                    prop_assert_eq!(client_address(form, [theirs].into_iter(), peer, is_trusted), peer);
                }
            }
        }
    }
}
