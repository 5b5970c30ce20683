//! Role: the one normal form of a host, that every verdict is taken on.
//! Invariants: two spellings of one place have one [`Destination`], and normalising it again changes
//! nothing; a text that resolvers disagree about has none.
//! See: inet_aton(3), RFC 4291 (text forms), UTS 46 (IDNA), WHATWG URL ("ends in a number").

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use super::TargetError;

/// A host's text at the most, before it is normalised. A name has up to 253 bytes on the wire, but
/// may be written in Unicode, with up to 4 bytes a character.
pub const HOST_BYTES_MAX: usize = 1024;

/// A normalised name at the most (RFC 1035 without the root's dot).
pub const NAME_BYTES_MAX: usize = 253;

/// A target's host in its one normal form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// An address; never an IPv4-mapped IPv6 one.
    Ip(IpAddr),
    /// A name: lower case, ASCII (IDNA), no trailing dot. `localhost` is one.
    Name(String),
    /// A Unix socket's path.
    Unix(String),
}

impl Destination {
    /// The normal form of a host: every spelling of an address that a resolver takes is that address,
    /// everything else a lower-case ASCII name.
    ///
    /// # Errors
    /// The writer's: no host, or one whose meaning depends on who reads it.
    pub fn parse(host: &str) -> Result<Self, TargetError> {
        if host.is_empty() {
            return Err(TargetError::Empty);
        }
        if host.len() > HOST_BYTES_MAX {
            return Err(TargetError::TooLong { bytes: host.len(), max: HOST_BYTES_MAX });
        }
        if let Some(c) = host.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return Err(TargetError::Forbidden(c));
        }
        if host.contains('%') {
            return Err(TargetError::Zone);
        }
        if let Some(rest) = host.strip_prefix('[') {
            return ipv6(rest.strip_suffix(']').ok_or(TargetError::NotIpv6)?);
        }
        if host.contains(':') {
            return ipv6(host);
        }
        // IDNA comes first: it turns full-width digits and other dots into plain ones.
        let ascii = Uts46::new()
            .to_ascii(host.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow, DnsLength::Ignore)
            .map_err(|_| TargetError::NotAName)?;
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        check_name(name)?;
        if ends_in_a_number(name) {
            // No top-level domain is a number: what inet_aton refuses here is nobody's name.
            return inet_aton(name).map(|ip| Self::Ip(ip.into())).ok_or(TargetError::NotIpv4);
        }
        Ok(Self::Name(name.to_owned()))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
            Self::Unix(path) => write!(f, "{}", path.escape_debug()),
        }
    }
}

/// The IPv4 address that a NAT64 gateway makes of an IPv6 one (RFC 6052, the well-known prefix): where there is
/// such a gateway, whoever dials the one reaches the other.
pub fn behind_nat64(ip: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = ip else { return None };
    let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = v6.segments() else { return None };
    Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into())
}

fn ipv6(text: &str) -> Result<Destination, TargetError> {
    let ip: Ipv6Addr = text.parse().map_err(|_| TargetError::NotIpv6)?;
    Ok(Destination::Ip(ip.to_canonical()))
}

fn check_name(name: &str) -> Result<(), TargetError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(TargetError::TooLong { bytes: name.len(), max: NAME_BYTES_MAX });
    }
    // Underscores are no host name's by the RFCs, but container networks are full of them.
    let foreign = |c: &char| !matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | '.');
    if let Some(c) = name.chars().find(foreign) {
        return Err(TargetError::Forbidden(c));
    }
    if name.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return Err(TargetError::NotAName);
    }
    Ok(())
}

/// Whether resolvers would try to read `name` as an IPv4 address.
fn ends_in_a_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    match last.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => last.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// One to four numbers, each decimal, octal (`0177`) or hexadecimal (`0x7f`); the last fills the rest.
fn inet_aton(name: &str) -> Option<Ipv4Addr> {
    let mut parts = name.split('.');
    let last = number(parts.next_back()?)?;
    let (mut ip, mut shift) = (0u32, 32);
    for part in parts {
        let byte = number(part).filter(|&n| n <= 0xff)?;
        shift = if shift > 8 { shift - 8 } else { return None };
        ip |= byte << shift;
    }
    (u64::from(last) < 1 << shift).then(|| Ipv4Addr::from_bits(ip | last))
}

fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // from_str_radix takes a sign; inet_aton does not.
    (digits.chars().all(|c| c.is_digit(radix))).then(|| u32::from_str_radix(digits, radix).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spell(host: &str) -> String {
        match Destination::parse(host) {
            Ok(destination) => destination.to_string(),
            Err(why) => format!("refused: {why}"),
        }
    }

    #[test]
    fn every_spelling_of_an_address_is_that_address() {
        let table: [(&str, &[&str]); 7] = [
            (
                "127.0.0.1",
                &[
                    "127.0.0.1",
                    "127.1",
                    "127.0.1",
                    "2130706433",
                    "0x7f000001",
                    "0X7F000001",
                    "0x7F.1",
                    "0x7f.0x0.0x0.0x1",
                    "0177.0.0.1",
                    "0177.1",
                    "017700000001",
                    "0000177.0.0.01",
                    "0x0000007f.0x1",
                    "127.0.0.1.",
                    "127.1.",
                    "::ffff:127.0.0.1",
                    "::ffff:7f00:1",
                    "::FFFF:7F00:0001",
                    "0:0:0:0:0:ffff:7f00:1",
                    "0000:0000:0000:0000:0000:ffff:127.0.0.1",
                    "[::ffff:127.0.0.1]",
                    "[::FfFf:7F00:1]",
                    "１２７.０.０.１",
                    "127。0。0。1",
                    "127．1",
                    "①②⑦.1",
                    "12\u{ad}7.1",
                ],
            ),
            ("::1", &["::1", "[::1]", "0:0:0:0:0:0:0:1", "[0000::0001]", "::0.0.0.1"]),
            ("0.0.0.0", &["0", "0.0", "00", "0x0", "0.0.0.0", "::ffff:0:0"]),
            (
                "255.255.255.255",
                &["4294967295", "0xffffffff", "037777777777", "255.16777215", "255.255.65535"],
            ),
            ("192.168.1.10", &["192.168.266", "192.168.0x10a", "0xc0.0250.01.012", "3232235786"]),
            ("fe80::1", &["FE80::1", "fe80:0::0:1", "[fe80::0001]"]),
            ("::127.0.0.1", &["::127.0.0.1", "::7f00:1"]),
        ];
        for (ip, spellings) in table {
            let ip = ip.parse::<IpAddr>().unwrap();
            for spelling in spellings {
                assert_eq!(Destination::parse(spelling), Ok(Destination::Ip(ip)), "{spelling}");
            }
        }
    }

    #[test]
    fn every_spelling_of_a_name_is_that_name() {
        let table: [(&str, &[&str]); 8] = [
            (
                "localhost",
                &["localhost", "LOCALHOST", "localhost.", "LocalHost.", "local\u{ad}host", "ｌocalhost"],
            ),
            ("narrow.host", &["narrow.host", "NARROW.HOST.", "Narrow。Host", "narrow｡host．"]),
            (
                "xn--bcher-kva.example",
                &["bücher.example", "BÜCHER.Example", "bu\u{308}cher.example", "XN--BCHER-KVA.example."],
            ),
            ("xn--strae-oqa.de", &["straße.de", "STRAßE.de"]),
            ("my_service", &["my_service", "MY_SERVICE"]),
            ("r3---sn-x.example", &["r3---sn-x.example"]),
            ("127.0.0.1.example", &["127.0.0.1.example", "127.0.0.1.Example."]),
            ("0xg", &["0xg", "0XG."]),
        ];
        for (name, spellings) in table {
            for spelling in spellings {
                assert_eq!(Destination::parse(spelling), Ok(Destination::Name(name.into())), "{spelling}");
            }
        }
    }

    #[test]
    fn what_resolvers_disagree_about_is_refused() {
        let table: [(TargetError, &[&str]); 8] = [
            (TargetError::Empty, &[""]),
            (TargetError::Zone, &["fe80::1%eth0", "[fe80::1%25eth0]", "127.0.0.1%lo", "%31", "host%00"]),
            (TargetError::Forbidden(' '), &["127.0.0.1 ", " localhost", "a b", "1.2.3.4 x"]),
            (TargetError::Forbidden('\0'), &["localhost\0.example", "\0"]),
            (TargetError::Forbidden('\n'), &["a\n", "127.0.0.1\n"]),
            (
                TargetError::NotIpv6,
                &[
                    "[127.0.0.1]",
                    "[::1",
                    "[]",
                    ":",
                    ":::",
                    "::1::",
                    "[::1].",
                    "1:2",
                    "::ffff:127.1",
                    "[a]",
                    "g::1",
                    "::ffff:0x7f.0.0.1",
                    "::ffff:999.0.0.1",
                    "12345::",
                ],
            ),
            (
                TargetError::NotIpv4,
                &[
                    "1.2.3.256",
                    "256.0.0.1",
                    "1.2.3.4.5",
                    "08.0.0.1",
                    "0x",
                    "1.0x",
                    "4294967296",
                    "127.0.0.1.1",
                    "1.2.65536",
                    "0xfffffffff",
                    "example.0x1",
                    "99999999999999999999",
                    "a.1",
                    "127..1",
                ],
            ),
            (TargetError::NotAName, &[".", "..", "a..b", ".a", "a..", "xn--a"]),
        ];
        for (why, spellings) in table {
            for spelling in spellings {
                let got = Destination::parse(spelling);
                // An empty label may be found before the number at the end is looked at.
                let empty_label = got == Err(TargetError::NotAName) && spelling.contains("..");
                assert!(got == Err(why.clone()) || empty_label, "{spelling:?}: {got:?} instead of {why:?}");
            }
        }
        for c in ['/', '@', '+', '*', '\\', '"', '<', '?', '#', ',', '!'] {
            assert_eq!(Destination::parse(&format!("a{c}b")), Err(TargetError::Forbidden(c)));
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert_eq!(longest.len(), NAME_BYTES_MAX);
        assert!(Destination::parse(&longest).is_ok());
        assert!(Destination::parse(&format!("{longest}.")).is_ok());
        assert_eq!(
            Destination::parse(&format!("{longest}a")),
            Err(TargetError::TooLong { bytes: 254, max: 253 })
        );
        assert_eq!(Destination::parse(&format!("{label}a")), Err(TargetError::NotAName));
        let bytes = HOST_BYTES_MAX + 1;
        let max = HOST_BYTES_MAX;
        assert_eq!(Destination::parse(&"1".repeat(bytes)), Err(TargetError::TooLong { bytes, max }));
        assert_eq!(spell(&format!("{}177.1", "0".repeat(60))), "127.0.0.1");
    }

    #[test]
    fn only_the_well_known_prefix_is_behind_nat64() {
        let behind = |ip: &str| behind_nat64(ip.parse().unwrap()).map(|ip| ip.to_string());
        assert_eq!(behind("64:ff9b::10.1.2.3").as_deref(), Some("10.1.2.3"));
        assert_eq!(behind("64:ff9b::").as_deref(), Some("0.0.0.0"));
        for other in
            ["64:ff9b:1::10.1.2.3", "64:ff9b::1:0:0", "::ffff:10.1.2.3", "10.1.2.3", "64:ff9a::a01:203"]
        {
            assert_eq!(behind(other), None, "{other}");
        }
    }

    /// Texts near the edges: digits, dots, colons, brackets, other scripts' dots and digits.
    fn near_hosts() -> impl Strategy<Value = String> {
        prop_oneof![
            "[0-9a-fxXA-Z.:\\[\\]%_\\-]{0,40}",
            "(0x|0)?[0-9a-f]{1,12}(\\.(0x|0)?[0-9a-f]{1,5}){0,4}\\.?",
            "(xn--)?[a-zäß０-９。．\\.\\u{ad}\\u{308}-]{0,30}",
            ".{0,80}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn normalising_twice_changes_nothing(host in near_hosts()) {
            if let Ok(destination) = Destination::parse(&host) {
                prop_assert_eq!(Destination::parse(&destination.to_string()), Ok(destination));
            }
        }

        #[test]
        fn case_and_a_trailing_dot_change_nothing(host in "[a-z0-9._-]{1,40}[a-z0-9]") {
            let plain = Destination::parse(&host);
            prop_assert_eq!(&Destination::parse(&host.to_uppercase()), &plain);
            prop_assert_eq!(&Destination::parse(&format!("{host}.")), &plain);
        }

        #[test]
        fn every_address_is_found_in_every_spelling(bits: u32, radix in 0..3, parts in 1usize..=4) {
            let number = |n: u32| match radix {
                0 => n.to_string(),
                1 => format!("0x{n:x}"),
                _ => format!("0{n:o}"),
            };
            let heads = (1..parts).map(|i| bits >> (32 - 8 * i) & 0xff);
            let last = bits & u32::MAX.checked_shr(8 * (parts as u32 - 1)).unwrap_or(0);
            let text: Vec<_> = heads.chain([last]).map(number).collect();
            let want = Destination::Ip(Ipv4Addr::from_bits(bits).into());
            prop_assert_eq!(Destination::parse(&text.join(".")), Ok(want.clone()));
            let mapped = Ipv4Addr::from_bits(bits).to_ipv6_mapped();
            prop_assert_eq!(Destination::parse(&format!("[{mapped}]")), Ok(want));
        }

        #[test]
        fn bent_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let text = String::from_utf8_lossy(&bytes);
            let _ = Destination::parse(&text);
        }
    }
}
