//! Role: one rule: what it is about, and whether it covers what is asked for.
//! Invariants: HTTP, HTTPS and TLS match as TCP: no label is a way around a rule.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Cidr, NamePattern, Ports};
use crate::target::{Destination, Target, Transport};

/// One rule. Without an agent it holds for every agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// `!Ip [agent, net, ports, protocol]`: by the address that is dialled, literal or resolved.
    Ip(Option<String>, Cidr, Ports, Protocol),
    /// `!Domain [agent, name, ports, protocol]`: by the name that was asked for.
    Domain(Option<String>, NamePattern, Ports, Protocol),
    /// `!Any [agent, allow]`: everything on that agent; `false` refuses it in both modes.
    Any(Option<String>, bool),
}

/// What a rule says of the protocol. Nobody can ask for HTTP, HTTPS or TLS, only for TCP: so these
/// match as TCP, and no label is a way around a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Every protocol.
    Any,
    /// Matches as TCP.
    Http,
    /// Matches as TCP.
    Https,
    /// Matches as TCP.
    Tls,
}

impl Item {
    /// The agent the item is about; `None` for every agent.
    pub fn agent(&self) -> Option<&str> {
        match self {
            Self::Ip(agent, ..) | Self::Domain(agent, ..) | Self::Any(agent, _) => agent.as_deref(),
        }
    }

    pub(super) fn holds_for(&self, agent: &str) -> bool {
        self.agent().is_none_or(|own| own == agent)
    }

    /// By what was asked for alone. `!Any [agent, false]` never gets here.
    pub(super) fn matches(&self, destination: &Destination, target: &Target) -> bool {
        let covers =
            |ports, protocol| target.transport().is_some_and(|t| covers(ports, protocol, target.port(), t));
        match (self, destination) {
            (Self::Any(_, allow), _) => *allow,
            (Self::Ip(_, net, ports, protocol), Destination::Ip(ip)) => {
                net.contains(*ip) && covers(ports, *protocol)
            }
            (Self::Domain(_, pattern, ports, protocol), Destination::Name(name)) => {
                pattern.matches(name) && covers(ports, *protocol)
            }
            (Self::Ip(..) | Self::Domain(..), _) => false,
        }
    }

    /// Whether the item could match one of the target's addresses.
    pub(super) fn may_match_address(&self, agent: &str, target: &Target) -> bool {
        match (self, target.transport()) {
            (Self::Ip(_, _, ports, protocol), Some(transport)) => {
                self.holds_for(agent) && covers(ports, *protocol, target.port(), transport)
            }
            _ => false,
        }
    }
}

/// What an agent needs of an `!Ip` item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum AddressItem {
    /// The item's index in its list, then as in [`Item::Ip`].
    Ip(usize, Cidr, Ports, Protocol),
}

impl AddressItem {
    pub(super) fn of((index, item): (usize, &Item)) -> Option<Self> {
        match item {
            Item::Ip(_, net, ports, protocol) => Some(Self::Ip(index, *net, ports.clone(), *protocol)),
            Item::Domain(..) | Item::Any(..) => None,
        }
    }

    pub(super) const fn index(&self) -> usize {
        let Self::Ip(index, ..) = self;
        *index
    }

    pub(super) fn matches(&self, ip: IpAddr, port: u16, transport: Transport) -> bool {
        let Self::Ip(_, net, ports, protocol) = self;
        covers(ports, *protocol, port, transport) && net.contains(ip)
    }
}

/// Whether a rule's ports and protocol cover what is asked for.
fn covers(ports: &Ports, protocol: Protocol, port: u16, transport: Transport) -> bool {
    let by_protocol = match protocol {
        Protocol::Any => true,
        Protocol::Udp => matches!(transport, Transport::Udp),
        Protocol::Tcp | Protocol::Http | Protocol::Https | Protocol::Tls => {
            matches!(transport, Transport::Tcp)
        }
    };
    by_protocol && ports.contain(port)
}
