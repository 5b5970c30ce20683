//! Role: what routing needs of a ClientHello.
//! Invariants: a length is checked where it is read; what is kept is no larger than what came.
//! See: RFC 8446 section 4.1.2, RFC 6066 section 3, RFC 7301 section 3.1.

use std::net::IpAddr;

use super::SniffError;

/// What routing needs of a ClientHello.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The name asked for, a DNS name in lower case without trailing dot; `None` where there is none
    /// or an address stands in its place.
    pub server_name: Option<String>,
    /// The application protocols offered.
    pub alpn: Alpn,
}

/// The application protocols that a ClientHello offers, in its order. Kept as they came: a list of
/// many short names costs us no more than it cost the sender.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alpn(Vec<u8>);

impl Alpn {
    #[cfg(test)]
    pub(super) fn of(list: Vec<u8>) -> Self {
        Self(list)
    }

    /// The protocols' names.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = Reader(&self.0);
        std::iter::from_fn(move || rest.block8().ok())
    }

    /// Whether `protocol` is offered.
    pub fn offers(&self, protocol: &[u8]) -> bool {
        self.iter().any(|offered| offered == protocol)
    }

    /// Whether nothing is offered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub(super) const EXTENSION_SERVER_NAME: u16 = 0;
pub(super) const EXTENSION_ALPN: u16 = 16;

/// Reads the message's body.
pub(super) fn parse(body: &[u8]) -> Result<ClientHello, SniffError> {
    let mut body = Reader(body);
    if body.u16()? >> 8 != 3 {
        return Err(SniffError::Malformed("no version of TLS"));
    }
    body.take(32)?; // random
    if body.block8()?.len() > 32 {
        return Err(SniffError::Malformed("an over-long session id"));
    }
    let suites = body.block16()?;
    if suites.is_empty() || suites.len() % 2 != 0 {
        return Err(SniffError::Malformed("no list of cipher suites"));
    }
    if body.block8()?.is_empty() {
        return Err(SniffError::Malformed("no compression method"));
    }
    let mut hello = ClientHello::default();
    if body.0.is_empty() {
        return Ok(hello); // TLS 1.2 knows hellos without extensions
    }
    let mut extensions = Reader(body.block16()?);
    body.end()?;
    let (mut names, mut alpns) = (0, 0);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let value = Reader(extensions.block16()?);
        match kind {
            EXTENSION_SERVER_NAME => {
                names += 1;
                hello.server_name = parse_server_name(value)?;
            }
            EXTENSION_ALPN => {
                alpns += 1;
                hello.alpn = parse_alpn(value)?;
            }
            _ => {}
        }
    }
    // Who comes behind us may take the other one of two.
    if names > 1 || alpns > 1 {
        return Err(SniffError::Malformed("an extension stands twice"));
    }
    Ok(hello)
}

fn parse_server_name(mut extension: Reader<'_>) -> Result<Option<String>, SniffError> {
    const HOST_NAME: u8 = 0;
    let mut list = Reader(extension.block16()?);
    extension.end()?;
    let [kind] = *list.array()?;
    let name = list.block16()?;
    list.end()?;
    if kind != HOST_NAME {
        return Err(SniffError::Malformed("a server name of an unknown kind"));
    }
    match str::from_utf8(name) {
        Ok(name) if name.parse::<IpAddr>().is_ok() => Ok(None),
        Ok(name) => {
            dns_name(name).map(Some).ok_or(SniffError::Malformed("a server name that is no DNS name"))
        }
        Err(_) => Err(SniffError::Malformed("a server name that is no DNS name")),
    }
}

/// The name in lower case without its trailing dot, if it is one that DNS and certificates know.
fn dns_name(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label_holds = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // A last label of digits makes an address of the whole (`127.1`), never a name.
    let last = name.rsplit('.').next()?;
    let holds = name.len() <= 253
        && name.split('.').all(label_holds)
        && !last.bytes().all(|byte| byte.is_ascii_digit());
    holds.then(|| name.to_ascii_lowercase())
}

fn parse_alpn(mut extension: Reader<'_>) -> Result<Alpn, SniffError> {
    let list = extension.block16()?;
    extension.end()?;
    if list.is_empty() {
        return Err(SniffError::Malformed("an empty list of protocols"));
    }
    let mut rest = Reader(list);
    while !rest.0.is_empty() {
        if rest.block8()?.is_empty() {
            return Err(SniffError::Malformed("an empty protocol name"));
        }
    }
    Ok(Alpn(list.to_vec()))
}

/// Takes bytes from the front; all lengths are checked here.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], SniffError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], SniffError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, SniffError> {
        self.array().map(|bytes| u16::from_be_bytes(*bytes))
    }

    /// A block behind one byte of length.
    fn block8(&mut self) -> Result<&'a [u8], SniffError> {
        let [bytes] = *self.array()?;
        self.take(usize::from(bytes))
    }

    /// A block behind two bytes of length.
    fn block16(&mut self) -> Result<&'a [u8], SniffError> {
        let bytes = self.u16()?;
        self.take(usize::from(bytes))
    }

    fn end(&self) -> Result<(), SniffError> {
        if self.0.is_empty() { Ok(()) } else { Err(SniffError::Malformed("bytes after its end")) }
    }
}

const SHORT: SniffError = SniffError::Malformed("a block ends before its length");

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Sniffed,
            fixture::{
                alpn, block16, body, check, expected, extension, hello, in_records, message, openssl,
                server_name,
            },
            sniff,
        },
        *,
    };

    #[test]
    fn the_hello_of_openssl_routes_by_its_name() {
        assert_eq!(check(&openssl()), expected(Some("gw.example"), &["h2", "http/1.1"]));
        let Ok(Sniffed::Tls(hello)) = sniff(&openssl()) else { panic!("it is TLS") };
        assert_eq!(hello.alpn.iter().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
        assert!(hello.alpn.offers(b"h2") && !hello.alpn.offers(b"h") && !hello.alpn.is_empty());
    }

    #[test]
    fn a_server_name_is_a_dns_name_or_an_address_that_counts_as_none() {
        let long =
            format!("{}.example", ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(53)].join("."));
        assert_eq!(long.len(), 253);
        for (name, want) in [
            ("gw.example", Some("gw.example")),
            ("GW.Example", Some("gw.example")),
            ("gw.example.", Some("gw.example")),
            ("localhost", Some("localhost")),
            ("xn--bcher-kva.example", Some("xn--bcher-kva.example")),
            ("_acme.1.example", Some("_acme.1.example")),
            (&*long, Some(&*long)),
            ("192.0.2.1", None),
            ("2001:db8::1", None),
        ] {
            assert_eq!(
                sniff(&in_records(&hello(&[server_name(name.as_bytes())]), 999)),
                expected(want, &[]),
                "{name}"
            );
        }
        let over = format!("e{long}");
        let label = format!("{}.example", "a".repeat(64));
        for bad in [
            "",
            ".",
            "..",
            ".gw",
            "gw..example",
            "gw.example..",
            "-gw.example",
            "gw-.example",
            "gw example",
            "gw/..",
            "gw\0.example",
            "gw\r\n.example",
            "b\u{fc}cher.example",
            "*.example",
            "127.1",
            "2130706433",
            "[::1]",
            "fe80::1%lo",
            &over,
            &label,
        ] {
            let verdict = sniff(&in_records(&hello(&[server_name(bad.as_bytes())]), 999));
            assert!(matches!(verdict, Err(SniffError::Malformed(_))), "{bad:?} gives {verdict:?}");
        }
        assert!(sniff(&in_records(&hello(&[server_name(b"gw\xff")]), 999)).is_err());
    }

    #[test]
    fn a_hello_without_extensions_has_no_name() {
        assert_eq!(check(&in_records(&message(&body(None)), 7)), expected(None, &[]));
        assert_eq!(check(&in_records(&hello(&[]), 7)), expected(None, &[]));
        assert_eq!(check(&in_records(&hello(&[alpn(&["h2"])]), 7)), expected(None, &["h2"]));
    }

    #[test]
    fn malformed_hellos_are_refused() {
        let name = || server_name(b"gw.example");
        let short_suites = [&[3, 3][..], &[7; 32], &[0], &[0, 3, 1, 2, 3], &[1, 0]].concat();
        let long_session = [&[3, 3][..], &[7; 32], &[33], &[8; 33], &[0, 2, 0x13, 1], &[1, 0]].concat();
        #[rustfmt::skip]
        let table: [(&str, Vec<u8>); 14] = [
            ("another message first", [&[2], &hello(&[])[1..]].concat()),
            ("the version of nothing", message(&[&[2], &body(None)[1..]].concat())),
            ("an odd list of suites", message(&short_suites)),
            ("a session id of 33 bytes", message(&long_session)),
            ("no compression method", message(&[&body(None)[..71], &[0]].concat())),
            ("bytes behind the extensions", message(&[&*body(Some(&[])), b"x"].concat())),
            ("an extension cut short", hello(&[vec![0, 0, 0, 9, 1]])),
            ("two names in two extensions", hello(&[name(), name()])),
            ("two names in one", hello(&[extension(0, &block16(&[0, 0, 1, b'a', 0, 0, 1, b'b']))])),
            ("a name of another kind", hello(&[extension(0, &block16(&[1, 0, 1, b'a']))])),
            ("an empty list of names", hello(&[extension(0, &[0, 0])])),
            ("bytes behind the list of names", hello(&[extension(0, &[0, 4, 0, 0, 1, b'a', b'x'])])),
            ("an empty list of protocols", hello(&[alpn(&[])])),
            ("an empty protocol", hello(&[alpn(&["h2", ""])])),
        ];
        for (what, message) in table {
            assert!(matches!(check(&in_records(&message, 30)), Err(SniffError::Malformed(_))), "{what}");
        }
    }
}
