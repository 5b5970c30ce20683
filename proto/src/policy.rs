//! Role: may this client reach that target through this agent? One pure function, used by gateway and
//! agent alike.
//! Invariants: a refusal by `!Any [agent, false]` wins in both modes; a name is never a way around an
//! `!Ip` rule, and NAT64 none around a refusal; for every address of a name, both steps together say what one
//! step would have said; where there are several lists, each must allow.
//! See: docs/policy.md, whose table a test writes; policy/model.rs says the same in one step.

mod example;
mod item;
#[cfg(test)]
mod model;
mod ports;
mod rule;
mod short;
#[cfg(test)]
mod table;
mod written;

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use self::item::{AddressItem, Question, Relevance};
pub use self::{
    item::{Item, Protocol, looks_like_pattern},
    ports::{Ports, PortsError},
    rule::{Cidr, NamePattern, RuleError},
    short::ShortError,
};
use crate::target::{Target, TargetError, Transport, behind_nat64};

/// Items in one token at the most, over all its lists.
pub const ITEMS_MAX: usize = 256;

/// What a client's token allows: what every one of its lists allows. Without a list there is no
/// restriction within its own user space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant(Box<[Policies]>);

/// One list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    /// `true`: only what matches is allowed. `false`: what matches is refused, the rest is allowed.
    pub permit: bool,
    /// The rules.
    pub policies: Vec<Item>,
}

/// The answer to "may it?".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Yes, whatever it resolves to.
    Allow,
    /// No.
    Deny,
    /// It depends on the resolved addresses: see [`Grant::address_rules`].
    Depends,
}

/// What a verdict comes from. Lists and items count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// There is no list.
    Unrestricted,
    /// This item matched. Of several lists that allow, the first is named.
    Item {
        /// The list.
        list: usize,
        /// The item in it.
        item: usize,
    },
    /// No item of this list matched: its mode decided.
    NoItem {
        /// The list.
        list: usize,
    },
    /// `!Ip` items of this list will decide, once the addresses are known.
    Addresses {
        /// The list.
        list: usize,
    },
}

/// A verdict and what it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Decision {
    /// The answer.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
}

/// What an agent needs to decide about each resolved address: travels in a Dial. An item that can't be
/// parsed makes the whole thing unreadable, so that an older agent never skips a newer rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct AddressRules(Vec<AddressList>);

/// The `!Ip` items of one list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddressList {
    /// The list's index in the client's grant.
    list: usize,
    permit: bool,
    items: Vec<AddressItem>,
}

impl Grant {
    /// What all of `lists` allow; no list at all is no restriction.
    pub fn new(lists: Vec<Policies>) -> Self {
        Self(lists.into())
    }

    /// Its lists.
    pub fn lists(&self) -> &[Policies] {
        &self.0
    }

    /// Whether there is no list.
    pub const fn is_unrestricted(&self) -> bool {
        self.0.is_empty()
    }

    /// Decides on `target` through `agent` by what the client wrote, without resolving anything.
    ///
    /// # Errors
    /// The asker's: the target names no place.
    pub fn permit(&self, agent: &str, target: &Target) -> Result<Decision, TargetError> {
        let destination = target.destination()?;
        let question = Question::new(agent, &destination, target);
        let decisions = self.0.iter().enumerate().map(|(index, list)| list.permit(index, &question));
        Ok(decisions
            .reduce(Decision::and)
            .unwrap_or(Decision { verdict: Verdict::Allow, reason: Reason::Unrestricted }))
    }

    /// Whether a list of agents may show `agent`: not if every target there is certainly refused.
    pub fn may_see(&self, agent: &str) -> bool {
        self.0.iter().all(|list| list.may_see(agent))
    }

    /// The items that decide about the addresses of `target`'s name, once [`permit`](Self::permit) has said
    /// [`Verdict::Depends`].
    pub fn address_rules(&self, agent: &str, target: &Target) -> AddressRules {
        let Ok(destination) = target.destination() else { return AddressRules(Vec::new()) };
        let question = Question::new(agent, &destination, target);
        let lists = self.0.iter().enumerate();
        // What a list has decided by the name alone, it has decided.
        let depends =
            |(index, list): &(usize, &Policies)| list.permit(*index, &question).verdict == Verdict::Depends;
        AddressRules(lists.filter(depends).map(|(index, list)| list.address_list(index, &question)).collect())
    }
}

impl Policies {
    fn permit(&self, list: usize, question: &Question<'_>) -> Decision {
        let question = question.in_mode(self.permit);
        let (mut matched, mut by_address) = (None, false);
        for (item, one) in self.policies.iter().enumerate() {
            match one.consider(&question) {
                Relevance::None => {}
                Relevance::Matches => {
                    matched.get_or_insert(item);
                }
                Relevance::MayMatchAddress => by_address = true,
                // In both modes, and wherever it stands.
                Relevance::RefusesAgent => return Decision::of(false, Reason::Item { list, item }),
            }
        }
        match matched {
            Some(item) => Decision::of(self.permit, Reason::Item { list, item }),
            None if by_address => Decision { verdict: Verdict::Depends, reason: Reason::Addresses { list } },
            None => Decision::of(!self.permit, Reason::NoItem { list }),
        }
    }

    fn may_see(&self, agent: &str) -> bool {
        let mut items = self.policies.iter().filter(|item| item.holds_for(agent, !self.permit));
        if items.clone().any(|item| matches!(item, Item::Any(_, false))) {
            return false;
        }
        if self.permit { items.next().is_some() } else { !items.any(|item| matches!(item, Item::Any(..))) }
    }

    fn address_list(&self, list: usize, question: &Question<'_>) -> AddressList {
        let question = question.in_mode(self.permit);
        let items = self.policies.iter().enumerate();
        let items = items.filter(|(_, item)| item.consider(&question) == Relevance::MayMatchAddress);
        AddressList { list, permit: self.permit, items: items.filter_map(AddressItem::of).collect() }
    }
}

impl AddressRules {
    /// The lists that have yet to decide, as they are counted in the grant, each with those of its items that
    /// may match.
    pub fn lists(&self) -> impl Iterator<Item = (usize, Vec<usize>)> {
        self.0.iter().map(|list| (list.list, list.items.iter().map(AddressItem::index).collect()))
    }

    /// Decides on one resolved address; never [`Verdict::Depends`]. `port` is 0 for ICMP.
    pub fn permit_addr(&self, ip: IpAddr, port: u16, transport: Transport) -> Decision {
        let decisions = self.0.iter().map(|list| list.permit_addr(ip, port, transport));
        // Without a list nothing had to be asked: then nothing is known.
        decisions
            .reduce(Decision::and)
            .unwrap_or(Decision { verdict: Verdict::Deny, reason: Reason::Unrestricted })
    }
}

impl AddressList {
    fn permit_addr(&self, ip: IpAddr, port: u16, transport: Transport) -> Decision {
        let list = self.list;
        // As in Policies::permit.
        let behind = behind_nat64(ip).filter(|_| !self.permit);
        let is_there = |item: &AddressItem| behind.is_some_and(|ip| item.matches(ip, port, transport));
        match self.items.iter().find(|item| item.matches(ip, port, transport) || is_there(item)) {
            Some(item) => Decision::of(self.permit, Reason::Item { list, item: item.index() }),
            None => Decision::of(!self.permit, Reason::NoItem { list }),
        }
    }
}

impl Decision {
    /// Whether the answer is a plain yes.
    pub const fn allowed(self) -> bool {
        matches!(self.verdict, Verdict::Allow)
    }

    const fn of(allow: bool, reason: Reason) -> Self {
        Self { verdict: if allow { Verdict::Allow } else { Verdict::Deny }, reason }
    }

    /// What both say: a refusal before everything, an open question before a yes.
    fn and(self, other: Self) -> Self {
        match (self.verdict, other.verdict) {
            (Verdict::Deny, _) => self,
            (_, Verdict::Deny) => other,
            (Verdict::Depends, _) => self,
            (_, Verdict::Depends) => other,
            (Verdict::Allow, Verdict::Allow) => self,
        }
    }
}

/// One list as it is, several as a sequence.
impl Serialize for Grant {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match &*self.0 {
            [list] => list.serialize(s),
            lists => s.collect_seq(lists),
        }
    }
}

/// No list at all is said by saying nothing: `null` and an empty sequence might be a list that somebody lost.
impl<'de> Deserialize<'de> for Grant {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Lists;

        impl<'de> de::Visitor<'de> for Lists {
            type Value = Grant;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("{ permit, policies }, or a list of these with at least one in it")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Grant, A::Error> {
                let list = Policies::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Grant::new(vec![list]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Grant, A::Error> {
                let mut lists = Vec::new();
                while let Some(list) = seq.next_element()? {
                    lists.push(list);
                }
                if lists.is_empty() {
                    Err(de::Error::invalid_length(0, &self))
                } else {
                    Ok(Grant::new(lists))
                }
            }
        }

        d.deserialize_any(Lists)
    }
}

impl<'de> Deserialize<'de> for AddressRules {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let lists = Vec::deserialize(d)?;
        if lists.is_empty() {
            Err(de::Error::invalid_length(0, &"at least one list"))
        } else {
            Ok(Self(lists))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(permit: bool, yaml: &str) -> Policies {
        Policies { permit, policies: serde_yaml::from_str(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}")) }
    }

    fn policies(permit: bool, yaml: &str) -> Grant {
        Grant::new(vec![list(permit, yaml)])
    }

    fn tcp(host: &str, port: u16) -> Target {
        Target::Tcp { host: host.into(), port }
    }

    const ALLOW: Verdict = Verdict::Allow;
    const DENY: Verdict = Verdict::Deny;
    const DEPENDS: Verdict = Verdict::Depends;

    #[test]
    fn a_name_that_looks_like_a_pattern_allows_nothing_and_refuses_everywhere() {
        let target = tcp("10.0.0.1", 22);
        for item in ["!Ip ['*', 10.0.0.0/8, 22, TCP]", "!Any ['ho*', true]"] {
            let items = format!("[{item}]");
            check(&policies(true, &items), "home", &target, DENY, None);
            check(&policies(false, &items), "home", &target, DENY, Some(0));
        }
        for mode in [true, false] {
            let grant = policies(mode, "[!Any ['*', false], !Any [home, true]]");
            assert_eq!(grant.permit("home", &target).unwrap().verdict, DENY);
            assert!(!grant.may_see("home"));
        }
        let named = policies(false, "[!Ip ['*', 10.0.0.0/8, 22, TCP]]");
        let name = tcp("nas.lan", 22);
        assert_eq!(named.permit("home", &name).unwrap().verdict, DEPENDS);
        let rules = named.address_rules("home", &name);
        let there = |ip: &str| rules.permit_addr(ip.parse().unwrap(), 22, Transport::Tcp).verdict;
        assert_eq!((there("10.0.0.1"), there("192.0.2.1")), (DENY, ALLOW));
    }

    /// The verdict of the only list and the item that gave it, by what was asked for alone.
    fn check(grant: &Grant, agent: &str, target: &Target, verdict: Verdict, item: Option<usize>) {
        let reason = match (item, verdict) {
            (Some(item), _) => Reason::Item { list: 0, item },
            (None, DEPENDS) => Reason::Addresses { list: 0 },
            (None, _) => Reason::NoItem { list: 0 },
        };
        assert_eq!(
            grant.permit(agent, target),
            Ok(Decision { verdict, reason }),
            "{agent} {target} by {grant:?}"
        );
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
        let unrestricted = Grant::default();
        let decision = Decision { verdict: ALLOW, reason: Reason::Unrestricted };
        assert_eq!(unrestricted.permit("a", &target), Ok(decision));
        check(&policies(true, "[]"), "a", &target, DENY, None);
        check(&policies(false, "[]"), "a", &target, ALLOW, None);
        assert_eq!(unrestricted.permit("a", &tcp("", 1)), Err(TargetError::Empty));
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
        let refused = Decision { verdict: DENY, reason: Reason::Item { list: 0, item: 1 } };
        let allowed = Decision { verdict: ALLOW, reason: Reason::NoItem { list: 0 } };
        for (ip, decision) in [
            ("10.9.9.9", refused),
            ("::ffff:10.9.9.9", refused),
            ("192.0.2.1", allowed),
            ("fd00::1", allowed),
        ] {
            assert_eq!(at(ip), decision, "{ip}");
        }
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
                let refused = p.permit("a", &target).unwrap().verdict == DENY;
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
        assert!(Grant::default().may_see("a"));
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
            assert_eq!((p.may_see("a"), p.may_see("b")), (a, b), "{mode} {yaml}");
        }
    }

    #[test]
    fn yaml_and_json_have_the_same_shape_and_nothing_else_is_taken() {
        let p = policies(true, SEED);
        let json = serde_json::to_string(&p).unwrap();
        assert!(json.contains(r#"{"Ip":[null,"192.168.0.0/24",22,"TCP"]}"#), "{json}");
        assert_eq!(serde_json::from_str::<Grant>(&json).unwrap(), p);
        for bad in [
            r#"{"Ip":[null,"10.0.0.1",22]}"#,
            r#"{"Ip":[null,"10.0.0.1",22,"TCP",true]}"#,
            r#"{"Ip":[null,"10.0.0.1",65536,"TCP"]}"#,
            r#"{"Ip":[null,"10.0.0.1",[],"TCP"]}"#,
            r#"{"Ip":[null,"10.0.0.1","80-22","TCP"]}"#,
            r#"{"Ip":[null,"10.0.0.1",22,"tcp"]}"#,
            r#"{"Ip":[null,"10.0.0.1",22,"SCTP"]}"#,
            r#"{"Ip":[7,"10.0.0.1",22,"TCP"]}"#,
            r#"{"Any":[null,null]}"#,
            r#"{"Any":[null,true],"Ip":[null,"10.0.0.1",22,"TCP"]}"#,
            r#"{"Country":["a"]}"#,
        ] {
            assert!(serde_json::from_str::<Item>(bad).is_err(), "{bad}");
        }
        for bad in [r#"{"permit":true,"policies":[],"until":9}"#, "null", "[]", "[null]", "true"] {
            assert!(serde_json::from_str::<Grant>(bad).is_err(), "{bad}");
        }
        let two = Grant::new(vec![list(true, SEED), list(false, "[]")]);
        assert_eq!(serde_json::from_str::<Grant>(&serde_json::to_string(&two).unwrap()).unwrap(), two);
    }

    #[test]
    fn an_agent_never_skips_a_rule_it_cannot_read() {
        let rules = policies(true, SEED).address_rules("a", &tcp("x", 22));
        let json = serde_json::to_string(&rules).unwrap();
        assert_eq!(json, r#"[{"list":0,"permit":true,"items":[{"Ip":[0,"192.168.0.0/24",22,"TCP"]}]}]"#);
        assert_eq!(serde_json::from_str::<AddressRules>(&json).unwrap(), rules);
        for bad in [
            r#"[{"list":0,"permit":true,"items":[{"Asn":[0,64512]}]}]"#,
            r#"[{"list":0,"permit":true,"items":[{"Ip":[0,"192.168.0.0/24",22,"SCTP"]}]}]"#,
            r#"[{"list":0,"permit":true,"items":[{"Ip":[0,"192.168.0.0/24","ssh","TCP"]}]}]"#,
            r#"[{"list":0,"permit":true,"items":[{"Ip":[0,"192.168.0.0/24",22,"TCP","weekdays"]}]}]"#,
            r#"[{"list":0,"permit":true,"items":[],"else":"ask"}]"#,
            r#"[{"list":0,"permit":true}]"#,
            r#"{"list":0,"permit":true,"items":[]}"#,
            "[]",
            "null",
        ] {
            assert!(serde_json::from_str::<AddressRules>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_several_lists_each_must_allow() {
        let ssh = list(true, "[!Ip [null, 10.0.0.0/8, 22, TCP], !Domain [null, '*.lan', 0, ANY]]");
        let not_there = list(false, "[!Ip [null, 10.9.0.0/16, 0, ANY], !Domain [null, bad.lan, 0, ANY]]");
        let both = Grant::new(vec![ssh.clone(), not_there.clone()]);
        let reason = |host: &str, port| {
            let Decision { verdict, reason } = both.permit("a", &tcp(host, port)).unwrap();
            (verdict, reason)
        };
        assert_eq!(reason("10.0.0.1", 22), (ALLOW, Reason::Item { list: 0, item: 0 }));
        assert_eq!(reason("10.9.0.1", 22), (DENY, Reason::Item { list: 1, item: 0 }));
        assert_eq!(reason("10.0.0.1", 23), (DENY, Reason::NoItem { list: 0 }));
        assert_eq!(reason("bad.lan", 22), (DENY, Reason::Item { list: 1, item: 1 }));
        // The first list is content with the name, the second wants to see the addresses.
        assert_eq!(reason("good.lan", 22), (DEPENDS, Reason::Addresses { list: 1 }));
        let rules = both.address_rules("a", &tcp("good.lan", 22));
        let at = |rules: &AddressRules, ip: &str| rules.permit_addr(ip.parse().unwrap(), 22, Transport::Tcp);
        assert_eq!(at(&rules, "10.9.0.1"), Decision::of(false, Reason::Item { list: 1, item: 0 }));
        assert_eq!(at(&rules, "192.0.2.1"), Decision::of(true, Reason::NoItem { list: 1 }));
        // Both want to.
        let rules = both.address_rules("a", &tcp("elsewhere.example", 22));
        assert_eq!(at(&rules, "10.0.0.1"), Decision::of(true, Reason::Item { list: 0, item: 0 }));
        assert_eq!(at(&rules, "10.9.0.1"), Decision::of(false, Reason::Item { list: 1, item: 0 }));
        assert_eq!(at(&rules, "192.0.2.1"), Decision::of(false, Reason::NoItem { list: 0 }));
        // An agent is shown if no list hides it.
        let hidden = list(false, "[!Any [b, true]]");
        let grant = Grant::new(vec![ssh, hidden]);
        assert!(grant.may_see("a") && !grant.may_see("b"));
    }

    #[test]
    fn rules_without_a_list_allow_nothing() {
        let nowhere = policies(true, SEED).address_rules("a", &tcp("", 22));
        assert!(!nowhere.permit_addr([192, 168, 0, 1].into(), 22, Transport::Tcp).allowed());
    }

    #[test]
    fn ranges_and_lists_of_ports_hold_in_both_steps() {
        let p =
            policies(true, "[!Ip [null, 10.0.0.0/8, [22, 8000-8100], TCP], !Domain [null, x, 80-90, TCP]]");
        check(&p, "a", &tcp("10.0.0.1", 8_050), ALLOW, Some(0));
        check(&p, "a", &tcp("10.0.0.1", 8_101), DENY, None);
        check(&p, "a", &tcp("x", 85), ALLOW, Some(1));
        check(&p, "a", &tcp("x", 91), DENY, None);
        check(&p, "a", &tcp("x", 22), DEPENDS, None);
        let rules = p.address_rules("a", &tcp("x", 22));
        assert!(rules.permit_addr([10, 0, 0, 1].into(), 22, Transport::Tcp).allowed());
        check(&p, "a", &Target::Icmp { host: "10.0.0.1".into() }, DENY, None);
    }
}
