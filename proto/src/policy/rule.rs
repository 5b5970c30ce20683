//! Role: what a rule says of an address and of a name.
//! Invariants: nets and names are compared in the normal form that targets have; a text that could match
//! nothing is refused when it is read, not found out when it is needed.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::target::{Destination, TargetError};

/// A net, its host bits masked. IPv4-mapped nets are IPv4 nets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr(IpNet);

/// A name in its normal form, or all names one label (`*.`) or any number of labels (`**.`) below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamePattern {
    below: Below,
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Below {
    Itself,
    OneLabel,
    AnyDepth,
}

/// A text in a rule that stands for nothing a target could be. The operator's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not an address, not a net.
    #[error("`{0}` is neither an IP address nor a net such as 192.168.0.0/24")]
    NotANet(String),
    /// An IPv6 net around all IPv4-mapped addresses: does it mean IPv4 too?
    #[error("`{0}` mixes IPv4 and IPv6: write one net for each")]
    MixedNet(String),
    /// An address where a name is wanted.
    #[error("`{0}` is an address: use !Ip")]
    AddressNotName(String),
    /// Not a name.
    #[error("`{name}` is not a host name: {why}")]
    NotAName {
        /// What was written.
        name: String,
        /// What is wrong with it.
        why: TargetError,
    },
}

impl Cidr {
    /// Whether `ip` lies in the net; an IPv4-mapped address is the IPv4 one.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (differs_at, prefix) = match (self.0, ip.to_canonical()) {
            (IpNet::V4(net), IpAddr::V4(ip)) => {
                ((net.addr().to_bits() ^ ip.to_bits()).leading_zeros(), net.prefix_len())
            }
            (IpNet::V6(net), IpAddr::V6(ip)) => {
                ((net.addr().to_bits() ^ ip.to_bits()).leading_zeros(), net.prefix_len())
            }
            _ => return false,
        };
        differs_at >= prefix.into()
    }

    /// The address, if it is but one.
    pub(super) fn one_host(&self) -> Option<IpAddr> {
        (self.0.prefix_len() == self.0.max_prefix_len()).then(|| self.0.addr())
    }

    /// As people write it: one address without its length.
    pub fn short(&self) -> String {
        let text = self.to_string();
        let one = if self.0.addr().is_ipv6() { "/128" } else { "/32" };
        text.strip_suffix(one).unwrap_or(&text).to_owned()
    }
}

impl FromStr for Cidr {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let net = match text.parse::<IpAddr>() {
            Ok(ip) => IpNet::from(ip),
            Err(_) => text.parse::<IpNet>().map_err(|_| RuleError::NotANet(text.to_owned()))?,
        };
        // Addresses are compared in their normal form, so a mapped net would match none of them.
        let net = match (net.addr().to_canonical(), net.prefix_len()) {
            (IpAddr::V4(v4), bits) if net.addr().is_ipv6() => bits
                .checked_sub(96)
                .and_then(|bits| Ipv4Net::new(v4, bits).ok())
                .map(IpNet::V4)
                .ok_or_else(|| RuleError::MixedNet(text.to_owned()))?,
            _ => net,
        };
        Ok(Self(net.trunc()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl NamePattern {
    /// Whether `name`, in its normal form, is meant.
    pub fn matches(&self, name: &str) -> bool {
        let Some(rest) = name.strip_suffix(&self.name) else { return false };
        match (self.below, rest.strip_suffix('.')) {
            (Below::Itself, _) => rest.is_empty(),
            (Below::OneLabel, Some(labels)) => !labels.is_empty() && !labels.contains('.'),
            (Below::AnyDepth, Some(labels)) => !labels.is_empty(),
            (Below::OneLabel | Below::AnyDepth, None) => false,
        }
    }
}

impl NamePattern {
    /// The name, if it is but one.
    pub(super) fn one_name(&self) -> Option<&str> {
        matches!(self.below, Below::Itself).then_some(&*self.name)
    }
}

impl FromStr for NamePattern {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (below, name) = match (text.strip_prefix("**."), text.strip_prefix("*.")) {
            (Some(name), _) => (Below::AnyDepth, name),
            (None, Some(name)) => (Below::OneLabel, name),
            (None, None) => (Below::Itself, text),
        };
        match Destination::parse(name) {
            Ok(Destination::Name(name)) => Ok(Self { below, name }),
            Ok(_) => Err(RuleError::AddressNotName(text.to_owned())),
            Err(why) => Err(RuleError::NotAName { name: text.to_owned(), why }),
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.below {
            Below::Itself => "",
            Below::OneLabel => "*.",
            Below::AnyDepth => "**.",
        })?;
        f.write_str(&self.name)
    }
}

macro_rules! serde_as_text {
    ($name:ident, $expected:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        /// By a visitor, so that a format which knows lines and columns names this text's own.
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Text;

                impl de::Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                d.deserialize_str(Text)
            }
        }
    };
}

serde_as_text!(Cidr, "an IP address or a net such as 192.168.0.0/24");
serde_as_text!(NamePattern, "a host name");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_patterns_match_by_label() {
        for (pattern, yes, no) in [
            ("a.b", &["a.b"][..], &["x.a.b", "xa.b", "b", "a.b.c"][..]),
            ("*.a.b", &["x.a.b"], &["a.b", "x.y.a.b", "xa.b", ".a.b"]),
            ("**.a.b", &["x.a.b", "x.y.a.b"], &["a.b", "xa.b", "a.b.c"]),
            ("*.BÜCHER.example", &["x.xn--bcher-kva.example"], &["xn--bcher-kva.example"]),
        ] {
            let pattern: NamePattern = pattern.parse().unwrap();
            yes.iter().for_each(|name| assert!(pattern.matches(name), "{pattern} {name}"));
            no.iter().for_each(|name| assert!(!pattern.matches(name), "{pattern} {name}"));
            assert_eq!(pattern.to_string().parse(), Ok(pattern));
        }
        for bad in ["", "*", "**", "*.", "a.*.b", "*a.b", "***.a", "127.0.0.1", "*.1", "::1", "a b"] {
            assert!(bad.parse::<NamePattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_net_holds_what_its_prefix_says() {
        for (net, within, outside) in [
            ("10.1.2.3", &["10.1.2.3", "::ffff:10.1.2.3"][..], &["10.1.2.2", "::10.1.2.3"][..]),
            ("10.0.0.0/8", &["10.0.0.0", "10.255.255.255"], &["9.255.255.255", "11.0.0.0", "::a00:0"]),
            ("128.0.0.0/1", &["128.0.0.0", "255.255.255.255"], &["127.255.255.255", "8000::"]),
            ("0.0.0.0/0", &["0.0.0.0", "255.255.255.255", "::ffff:1.2.3.4"], &["::", "::1"]),
            ("::/0", &["::", "ffff::"], &["0.0.0.0", "::ffff:1.2.3.4"]),
            ("fd00::/8", &["fd00::", "fdff:ffff::1"], &["fc00::", "fe00::"]),
            ("::1", &["::1"], &["::2", "0.0.0.1", "127.0.0.1"]),
        ] {
            let cidr: Cidr = net.parse().unwrap();
            within.iter().for_each(|ip| assert!(cidr.contains(ip.parse().unwrap()), "{net} {ip}"));
            outside.iter().for_each(|ip| assert!(!cidr.contains(ip.parse().unwrap()), "{net} {ip}"));
        }
    }

    #[test]
    fn nets_are_masked_and_mapped_ones_are_ipv4() {
        for (text, shown) in [
            ("192.168.0.1/24", "192.168.0.0/24"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("::1", "::1/128"),
            ("fd00::1/8", "fd00::/8"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), shown);
        }
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "10.1", "a", "::ffff:10.1.2.3/64", "10.0.0.0/-1", "::1%lo"]
        {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
