//! Role: one rule: what it is about, and whether it covers what is asked for.
//! Invariants: HTTP, HTTPS and TLS match as TCP: no label is a way around a rule.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Cidr, NamePattern, Ports};
use crate::target::{Destination, Target, Transport, behind_nat64};

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

    /// Whether it is about `agent`; `refuses`: in a list that refuses what matches. No agent's name is a pattern, so one
    /// that looks like a pattern allows nothing, and refuses everywhere rather than nowhere.
    pub(super) fn holds_for(&self, agent: &str, refuses: bool) -> bool {
        let refuses = refuses || matches!(self, Self::Any(_, false));
        self.agent().is_none_or(|own| own == agent || (refuses && looks_like_pattern(own)))
    }

    /// What the item has to do with a question. What is quick to find out and often says no comes first.
    pub(super) fn consider(&self, question: &Question<'_>) -> Relevance {
        match (self, question.destination) {
            (Self::Any(_, allow), _) => {
                let matched = if *allow { Relevance::Matches } else { Relevance::RefusesAgent };
                self.if_held_for(question, matched)
            }
            (Self::Ip(_, net, ports, protocol), Destination::Ip(ip))
                if (net.contains(*ip) || question.behind_nat64.is_some_and(|ip| net.contains(ip)))
                    && question.is_covered_by(ports, *protocol) =>
            {
                self.if_held_for(question, Relevance::Matches)
            }
            (Self::Ip(_, _, ports, protocol), Destination::Name(_))
                if question.is_covered_by(ports, *protocol) =>
            {
                self.if_held_for(question, Relevance::MayMatchAddress)
            }
            (Self::Domain(_, pattern, ports, protocol), Destination::Name(name))
                if question.is_covered_by(ports, *protocol) && pattern.matches(name) =>
            {
                self.if_held_for(question, Relevance::Matches)
            }
            (Self::Ip(..) | Self::Domain(..), _) => Relevance::None,
        }
    }

    fn if_held_for(&self, question: &Question<'_>, relevance: Relevance) -> Relevance {
        if self.holds_for(question.agent, question.refuses) { relevance } else { Relevance::None }
    }
}

/// Whether an agent's name in a policy was meant for several; there is no such thing but no name at all, for each.
pub fn looks_like_pattern(agent: &str) -> bool {
    agent.contains('*')
}

/// What is asked for, taken apart once for all items.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    agent: &'a str,
    destination: &'a Destination,
    /// Where that really is, if it is an address behind NAT64.
    behind_nat64: Option<IpAddr>,
    port: u16,
    transport: Option<Transport>,
    /// It is held against a list that refuses what matches.
    refuses: bool,
}

impl<'a> Question<'a> {
    pub(super) fn new(agent: &'a str, destination: &'a Destination, target: &Target) -> Self {
        let behind_nat64 = match destination {
            Destination::Ip(ip) => behind_nat64(*ip),
            Destination::Name(_) | Destination::Unix(_) => None,
        };
        Self {
            agent,
            destination,
            behind_nat64,
            port: target.port(),
            transport: target.transport(),
            refuses: false,
        }
    }

    /// The same, held against a list of this mode. What a black list refuses is refused behind NAT64, too; a white one
    /// allows what it says and no more.
    pub(super) fn in_mode(self, permit: bool) -> Self {
        let behind_nat64 = self.behind_nat64.filter(|_| !permit);
        Self { behind_nat64, refuses: !permit, ..self }
    }

    fn is_covered_by(&self, ports: &Ports, protocol: Protocol) -> bool {
        self.transport.is_some_and(|transport| covers(ports, protocol, self.port, transport))
    }
}

/// What an item has to do with a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relevance {
    /// Nothing.
    None,
    /// It is about just that.
    Matches,
    /// It may be about one of the name's addresses.
    MayMatchAddress,
    /// It refuses the agent, whatever else is said.
    RefusesAgent,
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
