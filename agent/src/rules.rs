//! Role: what this agent dials at all, whatever a gateway says: its own allow and deny lists.
//! Invariants: a denial wins · addresses that mean the machine's own net or cloud, or no machine at all,
//! need a rule that names just them; loopback is what agents are for and needs none · a name rule never
//! opens such an address, because what a name resolves to is somebody else's to say.
//! See: RFC 6890 (special addresses).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use narrowlink_proto::{
    policy::{Cidr, NamePattern, RuleError},
    target::{Destination, behind_nat64},
};
use serde::{Deserialize, Deserializer, de};

/// Nets that are refused unless a rule names them: what they are, the net, its prefix. The narrowest
/// first, so that a rule for all of link-local does not open the cloud's metadata within.
const SPECIAL: [(&str, IpAddr, u8); 14] = [
    (METADATA, v4(169, 254, 169, 254), 32),
    // Alibaba Cloud, Oracle Cloud Classic.
    (METADATA, v4(100, 100, 100, 200), 32),
    (METADATA, v4(192, 0, 0, 192), 32),
    // AWS, and what gives its pods their credentials; Google Cloud; Scaleway.
    (METADATA, v6(0xfd00, 0xec2, 0x254), 128),
    (METADATA, v6(0xfd00, 0xec2, 0x23), 128),
    (METADATA, v6(0xfd20, 0xce, 0x254), 128),
    (METADATA, v6(0xfd00, 0x42, 0x42), 128),
    ("the broadcast address", v4(255, 255, 255, 255), 32),
    ("an unspecified address", IpAddr::V6(Ipv6Addr::UNSPECIFIED), 128),
    ("a link-local address", v4(169, 254, 0, 0), 16),
    ("a link-local address", v6(0xfe80, 0, 0), 10),
    ("an unspecified address", v4(0, 0, 0, 0), 8),
    ("a multicast address", v6(0xff00, 0, 0), 8),
    ("a multicast address", v4(224, 0, 0, 0), 4),
];

const METADATA: &str = "a cloud metadata address";

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// The first two groups and the last.
const fn v6(a: u16, b: u16, h: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, h))
}

/// One line of a list: a net or a name, and a port where only that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    place: Place,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Net(Cidr),
    Name(NamePattern),
}

/// A text that is no rule: the user's to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotARule {
    /// Neither a net nor a name.
    #[error(
        "{0}; expected an address, a net or a name, with or without :PORT (an IPv6 net with a port in brackets: [fd00::/8]:22)"
    )]
    Place(RuleError),
    /// Not a port.
    #[error("`{0}` ends in what is no port from 1 to 65535")]
    Port(String),
}

/// The agent's own lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// With one, only what it names is dialled.
    allow: Option<Vec<Rule>>,
    deny: Vec<Rule>,
}

/// Why an address is not dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// By a line of the deny list.
    Listed(Rule),
    /// Because no line of the allow list names it.
    NotListed,
    /// Because of what it is.
    Special(&'static str),
}

impl Rules {
    /// The lists of a configuration.
    pub fn new(allow: Option<Vec<Rule>>, deny: Vec<Rule>) -> Self {
        Self { allow, deny }
    }

    /// Whether `ip`, which `asked` resolved to, may be dialled on `port`.
    ///
    /// # Errors
    /// What is in the way.
    pub fn permit(&self, asked: &Destination, ip: IpAddr, port: u16) -> Result<(), Denied> {
        let forms = [Some(ip.to_canonical()), behind_nat64(ip)];
        forms.into_iter().flatten().try_for_each(|ip| self.permit_one(asked, ip, port))
    }

    fn permit_one(&self, asked: &Destination, ip: IpAddr, port: u16) -> Result<(), Denied> {
        if let Some(rule) = self.deny.iter().find(|rule| rule.matches(asked, ip, port)) {
            return Err(Denied::Listed(rule.clone()));
        }
        let mut allowed = self.allow.iter().flatten().filter(|rule| rule.matches(asked, ip, port));
        if let Some((what, net, prefix)) = special(ip) {
            let named = |rule: &Rule| rule.is_within(net, prefix);
            return if allowed.any(named) { Ok(()) } else { Err(Denied::Special(what)) };
        }
        if self.allow.is_some() && allowed.next().is_none() {
            return Err(Denied::NotListed);
        }
        Ok(())
    }
}

/// The narrowest special net around an address.
fn special(ip: IpAddr) -> Option<(&'static str, Cidr, u8)> {
    SPECIAL.iter().find_map(|(what, start, prefix)| {
        let net: Cidr = format!("{start}/{prefix}").parse().ok()?;
        net.contains(ip).then_some((*what, net, *prefix))
    })
}

impl Rule {
    fn matches(&self, asked: &Destination, ip: IpAddr, port: u16) -> bool {
        let place = match (&self.place, asked) {
            (Place::Net(net), _) => net.contains(ip),
            (Place::Name(pattern), Destination::Name(name)) => pattern.matches(name),
            (Place::Name(_), _) => false,
        };
        place && self.port.is_none_or(|own| own == port)
    }

    /// Whether the rule is about nothing but addresses of that special net.
    fn is_within(&self, special: Cidr, special_prefix: u8) -> bool {
        let Place::Net(net) = &self.place else { return false };
        let text = net.to_string();
        let (start, prefix) = text.split_once('/').unwrap_or((&text, "128"));
        start.parse().is_ok_and(|start| special.contains(start))
            && prefix.parse::<u8>().is_ok_and(|prefix| prefix >= special_prefix)
    }
}

impl FromStr for Rule {
    type Err = NotARule;

    fn from_str(text: &str) -> Result<Self, NotARule> {
        let (place, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((place, "")) => (place, None),
            Some((place, port)) => (place, Some(port.strip_prefix(':').unwrap_or(port))),
            None => match text.split_once(':') {
                // More than one colon: IPv6 without a port.
                Some((place, port)) if !port.contains(':') => (place, Some(port)),
                _ => (text, None),
            },
        };
        let port = match port {
            None => None,
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => Some(port),
                _ => return Err(NotARule::Port(text.to_owned())),
            },
        };
        let place = match (place.parse::<Cidr>(), place.parse::<NamePattern>()) {
            (Ok(net), _) => Place::Net(net),
            (Err(_), Ok(name)) => Place::Name(name),
            (Err(not_a_net), Err(not_a_name)) => {
                return Err(NotARule::Place(if place.contains('/') { not_a_net } else { not_a_name }));
            }
        };
        Ok(Self { place, port })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.place {
            Place::Net(net) => net.to_string(),
            Place::Name(name) => name.to_string(),
        };
        match self.port {
            None => f.write_str(&place),
            Some(port) if place.contains(':') => write!(f, "[{place}]:{port}"),
            Some(port) => write!(f, "{place}:{port}"),
        }
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listed(rule) => write!(f, "its deny list has {rule}"),
            Self::NotListed => f.write_str("its allow list does not have it"),
            Self::Special(what) => write!(f, "it is {what}, which only a rule for just that net allows"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allow: Option<&[&str]>, deny: &[&str]) -> Rules {
        let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        Rules::new(allow.map(parse), parse(deny))
    }

    fn permits(rules: &Rules, asked: &str, ip: &str, port: u16) -> bool {
        rules.permit(&Destination::parse(asked).unwrap(), ip.parse().unwrap(), port).is_ok()
    }

    #[test]
    fn without_lists_everything_but_the_special_addresses_is_dialled() {
        let none = Rules::default();
        for ip in ["127.0.0.1", "::1", "10.0.0.1", "8.8.8.8", "fd00::1", "2001:db8::1", "100.64.0.1"] {
            assert!(permits(&none, ip, ip, 22), "{ip}");
        }
        for ip in [
            "169.254.169.254",
            "100.100.100.200",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fd00:42::42",
            "::ffff:100.100.100.200",
            "169.254.0.1",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "0.0.0.0",
            "::",
            "255.255.255.255",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "0.1.2.3",
        ] {
            assert!(!permits(&none, "metadata.lan", ip, 80), "{ip}");
        }
    }

    #[test]
    fn a_special_address_is_opened_only_by_a_rule_that_is_about_it() {
        let ip = "169.254.169.254";
        for wide in ["0.0.0.0/0", "169.254.0.0/16", "metadata.lan", "::/0"] {
            assert!(!permits(&rules(Some(&[wide]), &[]), "metadata.lan", ip, 80), "{wide}");
        }
        assert!(permits(&rules(Some(&[ip]), &[]), "metadata.lan", ip, 80));
        assert!(!permits(&rules(Some(&["169.254.169.254:81"]), &[]), "metadata.lan", ip, 80));
        let local = rules(Some(&["169.254.0.0/16", "fe80::/10"]), &[]);
        assert!(permits(&local, "169.254.1.1", "169.254.1.1", 80));
        assert!(permits(&local, "fe80::1", "fe80::1", 80));
        assert!(!permits(&local, "fe80::1", ip, 80));
    }

    #[test]
    fn an_allow_list_allows_nothing_else_and_a_denial_wins() {
        let list = rules(Some(&["10.0.0.0/8", "*.lan:22"]), &["10.0.0.1", "bad.lan", "10.0.0.2:25"]);
        for (asked, ip, port, allowed) in [
            ("10.1.1.1", "10.1.1.1", 80, true),
            ("10.0.0.1", "10.0.0.1", 80, false),
            ("any.name", "10.0.0.1", 80, false),
            ("10.0.0.2", "10.0.0.2", 25, false),
            ("10.0.0.2", "10.0.0.2", 26, true),
            ("x.lan", "192.168.0.1", 22, true),
            ("x.lan", "192.168.0.1", 80, false),
            ("bad.lan", "192.168.0.1", 22, false),
            ("127.0.0.1", "127.0.0.1", 22, false),
        ] {
            assert_eq!(permits(&list, asked, ip, port), allowed, "{asked} {ip} {port}");
        }
        assert!(!permits(&rules(Some(&[]), &[]), "127.0.0.1", "127.0.0.1", 22));
        assert!(!permits(&rules(None, &["10.0.0.0/8"]), "x", "64:ff9b::a00:1", 22));
    }

    #[test]
    fn a_rule_reads_back_what_it_prints() {
        for text in [
            "10.0.0.0/8",
            "10.0.0.0/8:22",
            "fd00::/8",
            "[fd00::/8]:22",
            "[::1/128]:1",
            "a.lan",
            "*.a.lan:443",
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        assert_eq!("[::1]".parse::<Rule>().unwrap().to_string(), "::1/128");
        for bad in
            ["", ":22", "a b", "10.0.0.0/33", "a.lan:0", "a.lan:x", "[::1]22x", "[::1]:", "10.0.0.0/8:70000"]
        {
            assert!(bad.parse::<Rule>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn who_is_denied_is_told_why() {
        let say = |rules: &Rules, ip: &str| {
            rules
                .permit(&Destination::parse("x.lan").unwrap(), ip.parse().unwrap(), 22)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(say(&rules(None, &["10.0.0.0/8:22"]), "10.0.0.1"), "its deny list has 10.0.0.0/8:22");
        assert_eq!(say(&rules(Some(&[]), &[]), "10.0.0.1"), "its allow list does not have it");
        assert!(say(&Rules::default(), "169.254.1.1").contains("a link-local address"));
    }
}
