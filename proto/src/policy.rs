//! Role: may this client reach that target through this agent? One pure function, used by gateway and
//! agent alike.
//! Invariants: a refusal by `!Any [agent, false]` wins in both modes; a name is never a way around an
//! `!Ip` rule; for every address of a name, both steps together say what one step would have said.
//! See: ARCHITECTURE.md, "Invariants"; policy/model.rs says the same in one step.

#[cfg(test)]
mod model;
mod rule;

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};

pub use rule::{Cidr, NamePattern, RuleError};

use crate::target::{Destination, Target, TargetError, Transport};

/// Items in one policy at the most.
pub const ITEMS_MAX: usize = 256;

/// What a client's token allows. No policies at all mean no restriction within its own user space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    /// `true`: only what matches is allowed. `false`: what matches is refused, the rest is allowed.
    pub permit: bool,
    /// The rules.
    pub policies: Vec<Item>,
}

/// One rule. Without an agent it holds for every agent; port 0 stands for every port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// `!Ip [agent, net, port, protocol]`: by the address that is dialled, literal or resolved.
    Ip(Option<String>, Cidr, #[serde(deserialize_with = "port_or_any")] u16, Protocol),
    /// `!Domain [agent, name, port, protocol]`: by the name that was asked for.
    Domain(Option<String>, NamePattern, #[serde(deserialize_with = "port_or_any")] u16, Protocol),
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

/// The answer to "may it?".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Yes, whatever it resolves to.
    Allow,
    /// No.
    Deny,
    /// It depends on the resolved addresses: see [`Policies::address_rules`].
    Depends,
}

/// A verdict and the rule it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Decision {
    /// The answer.
    pub verdict: Verdict,
    /// The index of the item that decided; `None` when no item matched and the mode's default did.
    pub rule: Option<usize>,
}

/// What an agent needs to decide about each resolved address: travels in a Dial. An item that can't be
/// parsed makes the whole thing unreadable, so that an older agent never skips a newer rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressRules {
    permit: bool,
    items: Vec<AddressItem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum AddressItem {
    /// The item's index in the client's policy, then as in [`Item::Ip`].
    Ip(usize, Cidr, u16, Protocol),
}

/// Decides on `target` through `agent` by what the client wrote, without resolving anything.
///
/// # Errors
/// The asker's: the target names no place.
pub fn permit(policies: Option<&Policies>, agent: &str, target: &Target) -> Result<Decision, TargetError> {
    let destination = target.destination()?;
    let Some(policies) = policies else { return Ok(Decision::default_of(true)) };
    if let Some(rule) = policies.refusal(agent) {
        return Ok(Decision { verdict: Verdict::Deny, rule: Some(rule) });
    }
    let matches = |item: &Item| item.holds_for(agent) && item.matches(&destination, target);
    if let Some(rule) = policies.policies.iter().position(matches) {
        return Ok(Decision::of(policies.permit, rule));
    }
    let by_address = matches!(destination, Destination::Name(_))
        && policies.policies.iter().any(|item| item.may_match_address(agent, target));
    if by_address {
        return Ok(Decision { verdict: Verdict::Depends, rule: None });
    }
    Ok(Decision::default_of(!policies.permit))
}

/// Whether a list may show `agent`: not if every target there is certainly refused.
pub fn may_see(policies: Option<&Policies>, agent: &str) -> bool {
    let Some(policies) = policies else { return true };
    if policies.refusal(agent).is_some() {
        return false;
    }
    let mut items = policies.policies.iter().filter(|item| item.holds_for(agent));
    if policies.permit { items.next().is_some() } else { !items.any(|item| matches!(item, Item::Any(..))) }
}

impl Policies {
    /// The items that decide about the addresses of `target`'s name, once [`permit`] has said
    /// [`Verdict::Depends`].
    pub fn address_rules(&self, agent: &str, target: &Target) -> AddressRules {
        let items = self.policies.iter().enumerate();
        let items = items.filter(|(_, item)| item.may_match_address(agent, target));
        let items = items.filter_map(|(rule, item)| match item {
            Item::Ip(_, net, port, protocol) => Some(AddressItem::Ip(rule, *net, *port, *protocol)),
            Item::Domain(..) | Item::Any(..) => None,
        });
        AddressRules { permit: self.permit, items: items.collect() }
    }

    /// The first `!Any [agent, false]`: refuses the agent in both modes.
    fn refusal(&self, agent: &str) -> Option<usize> {
        self.policies.iter().position(|item| matches!(item, Item::Any(_, false)) && item.holds_for(agent))
    }
}

impl AddressRules {
    /// Decides on one resolved address; never [`Verdict::Depends`]. `port` is 0 for ICMP.
    pub fn permit_addr(&self, ip: IpAddr, port: u16, transport: Transport) -> Decision {
        let matches = |AddressItem::Ip(_, net, item_port, protocol): &&AddressItem| {
            covers(*item_port, *protocol, port, transport) && net.contains(ip)
        };
        match self.items.iter().find(matches) {
            Some(AddressItem::Ip(rule, ..)) => Decision::of(self.permit, *rule),
            None => Decision::default_of(!self.permit),
        }
    }
}

impl Decision {
    /// Whether the answer is a plain yes.
    pub const fn allowed(self) -> bool {
        matches!(self.verdict, Verdict::Allow)
    }

    /// An item matched: in whitelist mode that allows, in blacklist mode that refuses.
    const fn of(permit: bool, rule: usize) -> Self {
        Self { verdict: if permit { Verdict::Allow } else { Verdict::Deny }, rule: Some(rule) }
    }

    const fn default_of(allow: bool) -> Self {
        Self { verdict: if allow { Verdict::Allow } else { Verdict::Deny }, rule: None }
    }
}

impl Item {
    /// The agent the item is about; `None` for every agent.
    pub fn agent(&self) -> Option<&str> {
        match self {
            Self::Ip(agent, ..) | Self::Domain(agent, ..) | Self::Any(agent, _) => agent.as_deref(),
        }
    }

    fn holds_for(&self, agent: &str) -> bool {
        self.agent().is_none_or(|own| own == agent)
    }

    /// By what was asked for alone. `!Any [agent, false]` never gets here.
    fn matches(&self, destination: &Destination, target: &Target) -> bool {
        let covers =
            |port, protocol| target.transport().is_some_and(|t| covers(port, protocol, target.port(), t));
        match (self, destination) {
            (Self::Any(_, allow), _) => *allow,
            (Self::Ip(_, net, port, protocol), Destination::Ip(ip)) => {
                net.contains(*ip) && covers(*port, *protocol)
            }
            (Self::Domain(_, pattern, port, protocol), Destination::Name(name)) => {
                pattern.matches(name) && covers(*port, *protocol)
            }
            (Self::Ip(..) | Self::Domain(..), _) => false,
        }
    }

    /// Whether the item could match one of the target's addresses.
    fn may_match_address(&self, agent: &str, target: &Target) -> bool {
        match (self, target.transport()) {
            (Self::Ip(_, _, port, protocol), Some(transport)) => {
                self.holds_for(agent) && covers(*port, *protocol, target.port(), transport)
            }
            _ => false,
        }
    }
}

/// Whether a rule's port and protocol cover what is asked for.
const fn covers(rule_port: u16, protocol: Protocol, port: u16, transport: Transport) -> bool {
    let by_port = rule_port == 0 || rule_port == port;
    by_port
        && match protocol {
            Protocol::Any => true,
            Protocol::Udp => matches!(transport, Transport::Udp),
            Protocol::Tcp | Protocol::Http | Protocol::Https | Protocol::Tls => {
                matches!(transport, Transport::Tcp)
            }
        }
}

fn port_or_any<'de, D: Deserializer<'de>>(d: D) -> Result<u16, D::Error> {
    Option::<u16>::deserialize(d).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies(permit: bool, yaml: &str) -> Policies {
        Policies { permit, policies: serde_yaml::from_str(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}")) }
    }

    fn tcp(host: &str, port: u16) -> Target {
        Target::Tcp { host: host.into(), port }
    }

    const ALLOW: Verdict = Verdict::Allow;
    const DENY: Verdict = Verdict::Deny;
    const DEPENDS: Verdict = Verdict::Depends;

    /// The verdict and its rule, by what was asked for alone.
    fn check(policies: &Policies, agent: &str, target: &Target, verdict: Verdict, rule: Option<usize>) {
        let got = permit(Some(policies), agent, target);
        assert_eq!(got, Ok(Decision { verdict, rule }), "{agent} {target} by {policies:?}");
    }

    /// The seed's client_name_2.
    const SEED: &str = "
        - !Ip [null, 192.168.0.1/24, 22, TCP]
        - !Domain [agent_name_1, narrow.host, 443, TCP]
        - !Any [agent_name_3, true]
        - !Any [agent_name_4, true]";

    #[test]
    fn the_seeds_whitelist_allows_what_it_says_and_nothing_else() {
        let p = policies(true, SEED);
        check(&p, "a", &tcp("192.168.0.77", 22), ALLOW, Some(0));
        check(&p, "a", &tcp("192.168.1.77", 22), DENY, None);
        check(&p, "a", &tcp("192.168.0.77", 23), DENY, None);
        check(&p, "a", &Target::Udp { host: "192.168.0.77".into(), port: 22 }, DENY, None);
        check(&p, "agent_name_1", &tcp("NARROW.host.", 443), ALLOW, Some(1));
        check(&p, "agent_name_1", &tcp("narrow.host", 80), DENY, None);
        check(&p, "a", &tcp("narrow.host", 443), DENY, None);
        check(&p, "a", &tcp("narrow.host", 22), DEPENDS, None);
        check(&p, "agent_name_3", &tcp("anything", 1), ALLOW, Some(2));
        check(&p, "agent_name_4", &Target::Unix { path: "/run/x".into() }, ALLOW, Some(3));
        check(&p, "a", &Target::Unix { path: "/run/x".into() }, DENY, None);
        check(&p, "a", &Target::Icmp { host: "192.168.0.77".into() }, DENY, None);
    }

    #[test]
    fn no_policies_allow_everything_and_an_empty_whitelist_nothing() {
        let target = tcp("a", 1);
        assert_eq!(permit(None, "a", &target), Ok(Decision { verdict: ALLOW, rule: None }));
        check(&policies(true, "[]"), "a", &target, DENY, None);
        check(&policies(false, "[]"), "a", &target, ALLOW, None);
        assert_eq!(permit(None, "a", &tcp("", 1)), Err(TargetError::Empty));
    }

    #[test]
    fn a_blacklist_refuses_what_matches_and_drops_refused_addresses() {
        let p = policies(
            false,
            "[!Domain [null, '**.bad.example', 0, ANY], !Ip [null, 10.0.0.0/8, null, TCP], !Any [b, true]]",
        );
        check(&p, "a", &tcp("x.y.bad.example", 1), DENY, Some(0));
        check(&p, "a", &tcp("10.1", 1), DENY, Some(1));
        check(&p, "a", &tcp("::ffff:10.2.3.4", 1), DENY, Some(1));
        check(&p, "a", &tcp("11.1", 1), ALLOW, None);
        check(&p, "a", &tcp("good.example", 1), DEPENDS, None);
        check(&p, "a", &Target::Udp { host: "good.example".into(), port: 1 }, ALLOW, None);
        check(&p, "a", &Target::Unix { path: "/x".into() }, ALLOW, None);
        check(&p, "b", &Target::Unix { path: "/x".into() }, DENY, Some(2));
        let rules = p.address_rules("a", &tcp("good.example", 1));
        let at = |ip: &str| rules.permit_addr(ip.parse().unwrap(), 1, Transport::Tcp);
        assert_eq!(at("10.9.9.9"), Decision { verdict: DENY, rule: Some(1) });
        assert_eq!(at("::ffff:10.9.9.9"), Decision { verdict: DENY, rule: Some(1) });
        assert_eq!(at("192.0.2.1"), Decision { verdict: ALLOW, rule: None });
        assert_eq!(at("fd00::1"), Decision { verdict: ALLOW, rule: None });
    }

    #[test]
    fn a_refusal_of_an_agent_wins_in_both_modes_wherever_it_stands() {
        for mode in [true, false] {
            let p = policies(mode, "[!Any [null, true], !Ip [a, 0.0.0.0/0, 0, ANY], !Any [a, false]]");
            check(&p, "a", &tcp("1.2.3.4", 1), DENY, Some(2));
            check(&p, "b", &tcp("1.2.3.4", 1), if mode { ALLOW } else { DENY }, Some(0));
            let all = policies(mode, "[!Any [null, false]]");
            check(&all, "whoever", &Target::Unix { path: "/x".into() }, DENY, Some(0));
        }
    }

    #[test]
    fn no_label_is_a_way_around_a_rule() {
        for (label, covers_tcp, covers_udp) in [
            ("TCP", true, false),
            ("HTTP", true, false),
            ("HTTPS", true, false),
            ("TLS", true, false),
            ("UDP", false, true),
            ("ANY", true, true),
        ] {
            let p = policies(false, &format!("[!Ip [null, 10.0.0.1, 0, {label}]]"));
            let host = String::from("10.0.0.1");
            for (target, covered) in [
                (Target::Tcp { host: host.clone(), port: 80 }, covers_tcp),
                (Target::Udp { host: host.clone(), port: 80 }, covers_udp),
                (Target::Icmp { host: host.clone() }, label == "ANY"),
            ] {
                let refused = permit(Some(&p), "a", &target).unwrap().verdict == DENY;
                assert_eq!(refused, covered, "{label} {target}");
            }
        }
    }

    #[test]
    fn every_spelling_of_a_place_has_the_same_verdict() {
        let p = policies(false, "[!Ip [null, 127.0.0.0/8, 0, ANY], !Domain [null, Localhost., 0, ANY]]");
        for host in ["127.1", "0x7f000001", "2130706433", "::ffff:127.9.9.9", "0177.0.0.1", "127。1"] {
            check(&p, "a", &tcp(host, 1), DENY, Some(0));
        }
        for host in ["localhost", "LOCALHOST.", "localhost.", "ｌocalhost"] {
            check(&p, "a", &tcp(host, 1), DENY, Some(1));
        }
    }

    #[test]
    fn lists_hide_agents_that_are_out_of_reach() {
        assert!(may_see(None, "a"));
        for (mode, yaml, a, b) in [
            (true, "[]", false, false),
            (true, "[!Ip [a, 10.0.0.1, 22, TCP]]", true, false),
            (true, "[!Domain [null, x, 22, TCP], !Any [b, false]]", true, false),
            (true, "[!Any [a, true]]", true, false),
            (false, "[]", true, true),
            (false, "[!Any [b, false]]", true, false),
            (false, "[!Any [b, true]]", true, false),
            (false, "[!Ip [b, 0.0.0.0/0, 0, ANY]]", true, true),
        ] {
            let p = policies(mode, yaml);
            assert_eq!((may_see(Some(&p), "a"), may_see(Some(&p), "b")), (a, b), "{mode} {yaml}");
        }
    }

    #[test]
    fn yaml_and_json_have_the_same_shape_and_nothing_else_is_taken() {
        let p = policies(true, SEED);
        let json = serde_json::to_string(&p).unwrap();
        assert!(json.contains(r#"{"Ip":[null,"192.168.0.0/24",22,"TCP"]}"#), "{json}");
        assert_eq!(serde_json::from_str::<Policies>(&json).unwrap(), p);
        for bad in [
            r#"{"Ip":[null,"10.0.0.1",22]}"#,
            r#"{"Ip":[null,"10.0.0.1",22,"TCP",true]}"#,
            r#"{"Ip":[null,"10.0.0.1",65536,"TCP"]}"#,
            r#"{"Ip":[null,"10.0.0.1",22,"tcp"]}"#,
            r#"{"Ip":[null,"10.0.0.1",22,"SCTP"]}"#,
            r#"{"Ip":[7,"10.0.0.1",22,"TCP"]}"#,
            r#"{"Any":[null,null]}"#,
            r#"{"Any":[null,true],"Ip":[null,"10.0.0.1",22,"TCP"]}"#,
            r#"{"Country":["a"]}"#,
        ] {
            assert!(serde_json::from_str::<Item>(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<Policies>(r#"{"permit":true,"policies":[],"until":9}"#).is_err());
    }

    #[test]
    fn an_agent_never_skips_a_rule_it_cannot_read() {
        let rules = policies(true, SEED).address_rules("a", &tcp("x", 22));
        let json = serde_json::to_string(&rules).unwrap();
        assert_eq!(json, r#"{"permit":true,"items":[{"Ip":[0,"192.168.0.0/24",22,"TCP"]}]}"#);
        assert_eq!(serde_json::from_str::<AddressRules>(&json).unwrap(), rules);
        for bad in [
            r#"{"permit":true,"items":[{"Asn":[0,64512]}]}"#,
            r#"{"permit":true,"items":[{"Ip":[0,"192.168.0.0/24",22,"SCTP"]}]}"#,
            r#"{"permit":true,"items":[{"Ip":[0,"192.168.0.0/24",22,"TCP","weekdays"]}]}"#,
            r#"{"permit":true,"items":[],"else":"ask"}"#,
            r#"{"permit":true}"#,
        ] {
            assert!(serde_json::from_str::<AddressRules>(bad).is_err(), "{bad}");
        }
    }
}
