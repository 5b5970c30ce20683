//! Role: the policy once more, as dumb as can be, to hold the real one against.
//! Invariants: shares no decision with it: texts, label lists and bit strings instead of types, and one
//! step that knows the address already instead of two.

use std::net::IpAddr;

use proptest::prelude::*;

use super::{Grant, Policies, Reason, Verdict};
use crate::target::{Destination, Target, Transport};

/// One rule as text, in the order of the seed's YAML.
#[derive(Debug, Clone)]
enum Rule {
    Ip { agent: Option<&'static str>, net: &'static str, ports: &'static str, protocol: &'static str },
    Domain { agent: Option<&'static str>, name: &'static str, ports: &'static str, protocol: &'static str },
    Any { agent: Option<&'static str>, allow: bool },
}

/// What is asked for, as text: the host in its normal form, and the address it has in the end.
#[derive(Debug, Clone)]
struct Asked {
    agent: &'static str,
    scheme: &'static str,
    host: &'static str,
    /// What the name resolves to; the same as `host` for a literal address.
    ip: &'static str,
    port: u16,
}

const AGENTS: [&str; 2] = ["a", "b"];
const NAMES: [&str; 4] = ["narrow.host", "x.narrow.host", "y.x.narrow.host", "other"];
const PATTERNS: [&str; 5] = ["narrow.host", "*.narrow.host", "**.narrow.host", "x.narrow.host", "other"];
const IPS: [&str; 7] =
    ["10.0.0.1", "10.0.0.200", "10.9.0.1", "fd00::1", "fd01::1", "64:ff9b::10.0.0.1", "64:ff9b::10.0.0.200"];
const NETS: [&str; 8] = [
    "10.0.0.0/25",
    "10.0.0.1/8",
    "10.0.0.1",
    "0.0.0.0/0",
    "fd00::/16",
    "::/0",
    "::ffff:10.0.0.0/104",
    "64:ff9b::/96",
];
/// As JSON.
const PORTS: [&str; 7] = ["0", "null", "22", "443", "\"20-30\"", "[22, 443]", "[21, \"400-443\"]"];
const ASKED_PORTS: [u16; 4] = [22, 23, 443, 444];

/// The address as a string of 0 and 1; IPv4 and IPv6 of different length, so that they never match.
fn bits(ip: &str) -> String {
    let digits = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:08b}")).collect();
    match ip.trim_start_matches("::ffff:").parse().unwrap() {
        IpAddr::V4(v4) => digits(&v4.octets()),
        IpAddr::V6(v6) => digits(&v6.octets()),
    }
}

fn in_net(ip: &str, net: &str) -> bool {
    let (start, len) = net.split_once('/').unwrap_or((net, "999"));
    let (ip, start) = (bits(ip), bits(start));
    let len = len.parse::<usize>().unwrap() - if net.starts_with("::ffff:") { 96 } else { 0 };
    ip.len() == start.len() && ip.chars().zip(start.chars()).take(len).all(|(a, b)| a == b)
}

fn is_named(host: &str, pattern: &str) -> bool {
    let (mut host, mut pattern): (Vec<_>, Vec<_>) = (host.split('.').collect(), pattern.split('.').collect());
    while let (Some(h), Some(p)) = (host.last(), pattern.last()) {
        match *p {
            "*" => return host.len() == 1,
            "**" => return true,
            p if p != *h => return false,
            _ => (host.pop(), pattern.pop()),
        };
    }
    host.is_empty() && pattern.is_empty()
}

/// By all the numbers that the text stands for.
fn has_port(ports: &str, asked: u16) -> bool {
    let ports = ports.replace(['"', '[', ']', ' '], "");
    let numbers = ports.split(',').flat_map(|part| match part.split_once('-') {
        Some((first, last)) => (first.parse().unwrap()..last.parse::<u16>().unwrap() + 1).collect::<Vec<_>>(),
        None => vec![part.parse().unwrap_or(0)],
    });
    ports == "0" || ports == "null" || numbers.into_iter().any(|number| number == asked)
}

fn speaks(rule: &str, asked: &str) -> bool {
    rule == "ANY"
        || rule.to_lowercase() == asked
        || (asked == "tcp" && ["HTTP", "HTTPS", "TLS"].contains(&rule))
}

/// Whether the asker may have this address, decided in one go.
fn model(permit: bool, rules: &[Rule], asked: &Asked) -> bool {
    let here = |agent: &Option<&str>| agent.is_none() || *agent == Some(asked.agent);
    let goes = |ports, protocol| has_port(ports, asked.port) && speaks(protocol, asked.scheme);
    let has_host = asked.scheme != "unix";
    let behind_nat64 = asked.ip.strip_prefix("64:ff9b::").filter(|_| !permit);
    let lies_in = |net| in_net(asked.ip, net) || behind_nat64.is_some_and(|ip| in_net(ip, net));
    let mut hit = false;
    for rule in rules {
        hit |= match rule {
            Rule::Any { agent, allow: false } if here(agent) => return false,
            Rule::Any { agent, allow } => *allow && here(agent),
            Rule::Ip { agent, net, ports, protocol } => {
                has_host && here(agent) && goes(ports, protocol) && lies_in(net)
            }
            Rule::Domain { agent, name, ports, protocol } => {
                has_host && here(agent) && goes(ports, protocol) && is_named(asked.host, name)
            }
        };
    }
    hit == permit
}

/// The real thing: both steps, and what each must hold to.
fn real(grant: &Grant, asked: &Asked) -> bool {
    let target = target(asked);
    let decision = grant.permit(asked.agent, &target).unwrap();
    assert!(grant.may_see(asked.agent) || decision.verdict == Verdict::Deny, "hidden, yet reachable");
    if let Reason::Item { list, item } = decision.reason {
        // The rule that is said to have decided would have decided alone.
        let Policies { permit, policies } = &grant.lists()[list];
        let alone = Grant::new(vec![Policies { permit: *permit, policies: vec![policies[item].clone()] }]);
        assert_eq!(alone.permit(asked.agent, &target).unwrap().verdict, decision.verdict);
    }
    match decision.verdict {
        Verdict::Allow => true,
        Verdict::Deny => false,
        Verdict::Depends => {
            assert!(matches!(target.destination(), Ok(Destination::Name(_))), "only names depend");
            let rules = grant.address_rules(asked.agent, &target);
            let rules = serde_json::from_str::<super::AddressRules>(&serde_json::to_string(&rules).unwrap());
            let transport = target.transport().unwrap();
            rules.unwrap().permit_addr(asked.ip.parse().unwrap(), target.port(), transport).allowed()
        }
    }
}

fn target(asked: &Asked) -> Target {
    let (host, port) = (asked.host.to_owned(), asked.port);
    match asked.scheme {
        "tcp" => Target::Tcp { host, port },
        "udp" => Target::Udp { host, port },
        "icmp" => Target::Icmp { host },
        _ => Target::Unix { path: "/run/x".into() },
    }
}

fn rule() -> impl Strategy<Value = Rule> {
    let agent = || prop::option::of(prop::sample::select(&AGENTS[..]));
    let ports = || prop::sample::select(&PORTS[..]);
    let protocol = || prop::sample::select(&["TCP", "UDP", "ANY", "HTTP", "HTTPS", "TLS"][..]);
    prop_oneof![
        4 => (agent(), prop::sample::select(&NETS[..]), ports(), protocol())
            .prop_map(|(agent, net, ports, protocol)| Rule::Ip { agent, net, ports, protocol }),
        4 => (agent(), prop::sample::select(&PATTERNS[..]), ports(), protocol())
            .prop_map(|(agent, name, ports, protocol)| Rule::Domain { agent, name, ports, protocol }),
        1 => (agent(), any::<bool>()).prop_map(|(agent, allow)| Rule::Any { agent, allow }),
    ]
}

fn asked() -> impl Strategy<Value = Asked> {
    let scheme = prop::sample::select(&["tcp", "tcp", "tcp", "udp", "icmp", "unix"][..]);
    let host = prop::option::of(prop::sample::select(&NAMES[..]));
    let agent = prop::sample::select(&AGENTS[..]);
    (agent, scheme, host, prop::sample::select(&IPS[..]), prop::sample::select(&ASKED_PORTS[..])).prop_map(
        |(agent, scheme, host, ip, port)| {
            let port = if ["tcp", "udp"].contains(&scheme) { port } else { 0 };
            Asked { agent, scheme, host: host.unwrap_or(ip), ip, port }
        },
    )
}

fn to_json(rule: &Rule) -> serde_json::Value {
    let ports = |ports: &str| serde_json::from_str::<serde_json::Value>(ports).unwrap();
    match rule {
        Rule::Ip { agent, net, ports: p, protocol } => {
            serde_json::json!({ "Ip": [agent, net, ports(p), protocol] })
        }
        Rule::Domain { agent, name, ports: p, protocol } => {
            serde_json::json!({ "Domain": [agent, name, ports(p), protocol] })
        }
        Rule::Any { agent, allow } => serde_json::json!({ "Any": [agent, allow] }),
    }
}

fn cases() -> u32 {
    std::env::var("NARROWLINK_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn both_steps_together_say_what_the_model_says_in_one(
        lists in prop::collection::vec((any::<bool>(), prop::collection::vec(rule(), 0..6)), 1..3),
        asked in asked(),
    ) {
        let json = lists.iter().map(|(mode, rules)| {
            let items: Vec<_> = rules.iter().map(to_json).collect();
            serde_json::json!({ "permit": mode, "policies": items })
        });
        let grant: Grant = serde_json::from_value(json.collect()).unwrap();
        let all = lists.iter().all(|(mode, rules)| model(*mode, rules, &asked));
        prop_assert_eq!(real(&grant, &asked), all);
    }

    #[test]
    fn bent_bytes_never_panic(
        at in 0usize..200,
        byte: u8,
        ip: IpAddr,
        port: u16,
    ) {
        let mut json = br#"{"permit":true,"policies":[{"Ip":[null,"10.0.0.0/8",22,"TCP"]},{"Domain":["a","*.b",0,"ANY"]},{"Any":[null,false]}]}"#.to_vec();
        let at = at % json.len();
        json[at] = byte;
        if let Ok(grant) = serde_json::from_slice::<Grant>(&json) {
            let target = Target::Tcp { host: ip.to_string(), port };
            let _ = grant.permit("a", &target);
            let _ = grant.address_rules("a", &target).permit_addr(ip, port, Transport::Udp);
        }
    }
}
