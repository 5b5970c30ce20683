//! Role: a rule as people write it on a command line: `home:10.0.0.0/8:22,8000-8100/tcp`.
//! Invariants: the long form of YAML is taken as well, so that there is nothing that only one of the two can say · what is
//! left out makes a rule narrower, but for an agent that stands alone.
//! See: docs/policy.md.

use std::str::FromStr;

use super::{Cidr, Item, NamePattern, Ports, Protocol, RuleError, ports::PortsError};
use crate::yaml;

/// A text that is no rule. Its writer's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShortError {
    /// Neither form.
    #[error(
        "expected AGENT:HOST:PORTS, such as home:127.0.0.1:22 or *:*.lan:80,443/tcp, or AGENT alone for all that it reaches"
    )]
    Form,
    /// IPv6 without brackets.
    #[error("an IPv6 address stands in brackets: home:[fd00::1]:22")]
    Brackets,
    /// A host without ports.
    #[error("the port is missing: {EXPECTED_PORTS}")]
    NoPort,
    /// Ports that are none.
    #[error("{}{}", .0, if matches!(.0, PortsError::NoPort(_)) { format!(": {EXPECTED_PORTS}") } else { String::new() })]
    Ports(PortsError),
    /// A protocol that no rule is about.
    #[error("/{0} names no protocol: expected /tcp, /udp, /any, /http, /https or /tls behind the ports")]
    Protocol(String),
    /// Every host, but not every port.
    #[error(
        "no rule is about some ports of every host: write the hosts (0.0.0.0/0, ::/0, **.lan), or AGENT alone"
    )]
    EveryHost,
    /// Not a host, net or name.
    #[error("{0}")]
    Host(RuleError),
    /// The long form, with something wrong in it.
    #[error("{0}")]
    Yaml(String),
}

/// What stands behind the host.
const EXPECTED_PORTS: &str = "expected ports such as 22, 8000-8100, 22,80 or * behind the last colon";

impl FromStr for Item {
    type Err = ShortError;

    fn from_str(text: &str) -> Result<Self, ShortError> {
        let text = text.trim();
        if text.starts_with('!') {
            return yaml::read(text).map_err(|e| ShortError::Yaml(e.to_string()));
        }
        let agent = |name: &str| match name {
            "" => Err(ShortError::Form),
            "*" => Ok(None),
            name => Ok(Some(name.to_owned())),
        };
        let Some((name, place)) = text.split_once(':') else { return Ok(Self::Any(agent(text)?, true)) };
        let agent = agent(name)?;
        let (place, protocol) = label(place)?;
        let (host, ports) = split(place)?;
        let ports = match ports {
            "" => return Err(ShortError::NoPort),
            ports => Ports::parse_short(ports).map_err(ShortError::Ports)?,
        };
        match host {
            "" => Err(ShortError::Form),
            "*" if ports == Ports::any() && protocol == Protocol::Any => Ok(Self::Any(agent, true)),
            "*" => Err(ShortError::EveryHost),
            host => match (host.parse::<Cidr>(), host.parse::<NamePattern>()) {
                (Ok(net), _) => Ok(Self::Ip(agent, net, ports, protocol)),
                (Err(_), Ok(name)) => Ok(Self::Domain(agent, name, ports, protocol)),
                (Err(why), Err(_)) if host.contains(['/', ':']) => Err(ShortError::Host(why)),
                (Err(_), Err(why)) => Err(ShortError::Host(why)),
            },
        }
    }
}

/// What stands in front of the protocol, and the protocol: TCP where none is written. The bits of a net are no protocol.
fn label(place: &str) -> Result<(&str, Protocol), ShortError> {
    match place.rsplit_once('/') {
        Some((place, word))
            if !word.contains([':', ']']) && !word.starts_with(|c: char| c.is_ascii_digit()) =>
        {
            let protocol = protocol(word).ok_or_else(|| ShortError::Protocol(word.to_owned()))?;
            Ok((place, protocol))
        }
        _ => Ok((place, Protocol::Tcp)),
    }
}

/// Host and ports; the host without brackets.
fn split(place: &str) -> Result<(&str, &str), ShortError> {
    if let Some(rest) = place.strip_prefix('[') {
        let (host, ports) = rest.split_once(']').ok_or(ShortError::Brackets)?;
        // A net's bits may stand within the brackets or behind them, but a rule has no place for the latter.
        return ports.strip_prefix(':').map(|ports| (host, ports)).ok_or(ShortError::NoPort);
    }
    let (host, ports) = place.rsplit_once(':').ok_or(ShortError::NoPort)?;
    if host.contains(':') { Err(ShortError::Brackets) } else { Ok((host, ports)) }
}

fn protocol(word: &str) -> Option<Protocol> {
    use Protocol::{Any, Http, Https, Tcp, Tls, Udp};
    [Tcp, Udp, Any, Http, Https, Tls]
        .into_iter()
        .find(|protocol| protocol.to_string().eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_rule_says_what_the_long_one_says() {
        for (short, long) in [
            ("home:127.0.0.1:22", "!Ip [home, 127.0.0.1, 22, TCP]"),
            ("home:127.0.0.1:22/tcp", "!Ip [home, 127.0.0.1, 22, TCP]"),
            ("*:10.0.0.0/8:53/udp", "!Ip [null, 10.0.0.0/8, 53, UDP]"),
            ("home:10.0.0.0/8:22,8000-8100", "!Ip [home, 10.0.0.0/8, [22, 8000-8100], TCP]"),
            ("home:[fd00::/8]:*/any", "!Ip [home, \"fd00::/8\", 0, ANY]"),
            ("home:*.lan:80,443", "!Domain [home, \"*.lan\", [80, 443], TCP]"),
            ("home:nas.lan:*", "!Domain [home, nas.lan, 0, TCP]"),
            ("office", "!Any [office, true]"),
            ("*", "!Any [null, true]"),
            ("*:*:*/any", "!Any [null, true]"),
            ("!Any [\"a:b\", false]", "!Any [\"a:b\", false]"),
            (" home:0.0.0.0/0:22 ", "!Ip [home, 0.0.0.0/0, 22, TCP]"),
        ] {
            assert_eq!(short.parse::<Item>().map(|item| item.to_string()).as_deref(), Ok(long), "{short}");
        }
    }

    #[test]
    fn what_is_no_rule_says_what_is_wrong() {
        for (text, says) in [
            ("", "expected AGENT:HOST:PORTS"),
            (":10.0.0.1:22", "expected AGENT:HOST:PORTS"),
            ("home::22", "expected AGENT:HOST:PORTS"),
            ("home:10.0.0.1", "expected ports"),
            ("home:10.0.0.1:", "expected ports"),
            ("home:10.0.0.1:0", "expected ports"),
            ("home:10.0.0.1:ssh", "expected ports"),
            ("home:[fd00::1]22", "expected ports"),
            ("home:10.0.0.1", "the port is missing"),
            ("home:10.0.0.0/8", "the port is missing"),
            ("home:10.0.0.1/tcp", "the port is missing"),
            ("home:10.0.0.1:70000", "70000 is no port: ports end at 65535"),
            ("home:10.0.0.1:22,1-70000", "70000 is no port: ports end at 65535"),
            ("home:10.0.0.1:8100-8000", "8100-8000 is reversed: did you mean 8000-8100?"),
            ("home:10.0.0.1:22/tpc", "/tpc names no protocol: expected /tcp"),
            ("home:[fd00::/8]:22/upd", "/upd names no protocol"),
            ("home:10.0.0.1:22,x", "x is no port: expected ports"),
            ("home:fd00::1:22", "stands in brackets"),
            ("home:[fd00::1:22", "stands in brackets"),
            ("home:*:22", "some ports of every host"),
            ("home:10.0.0.0/33:22", "10.0.0.0/33"),
            ("home:a b:22", "a b"),
            ("!Ip [home]", "expected"),
        ] {
            let said = text.parse::<Item>().expect_err(text).to_string();
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
