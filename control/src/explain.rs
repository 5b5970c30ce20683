//! Role: may this token's bearer reach that target, and why: the running gateway's answer, for its operator.
//! Invariants: the verdict comes from the functions that decide at an open, and from nothing else.
//! See: `narrowlink_proto::policy`; docs/policy.md "Ask why".

mod bearer;
mod rule;
mod words;

use std::{fmt, net::IpAddr};

use narrowlink_proto::{
    policy::{Decision, Grant, Verdict},
    target::{Destination, Target, TargetError},
};

pub(crate) use self::words::verdict_name;
pub use self::{
    bearer::{Bearer, Signature, Trouble, find_token, read_token_file},
    rule::{NoRule, Rule},
    words::Report,
};

/// What somebody wants to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    agent: String,
    target: Target,
    destination: Destination,
    resolved: Vec<IpAddr>,
}

/// A question that makes no sense. The asker's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// The target is none.
    #[error("the target is none: {0}")]
    Target(#[from] TargetError),
    /// Addresses of something that is no name.
    #[error("only a name resolves to addresses; {0} is none")]
    Resolved(Target),
}

/// The policy's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// What comes out, and which rule decides. With addresses: what the first one says that is allowed, or
    /// else the first one.
    pub decision: Decision,
    /// Each address that was given, if it is the addresses that decide.
    pub addresses: Vec<(IpAddr, Decision)>,
}

/// The answer to a question.
#[derive(Debug)]
pub enum Answer<'a> {
    /// No policy was asked: the token does not hold.
    Trouble(&'a Trouble),
    /// The policy's.
    Ruling(&'a Grant, Ruling),
}

impl Question {
    /// May `target` be reached through `agent`, where its name resolves to `resolved`? Without addresses: as
    /// far as the gateway can know.
    ///
    /// # Errors
    /// The asker's.
    pub fn new(agent: String, target: Target, resolved: Vec<IpAddr>) -> Result<Self, QuestionError> {
        let destination = target.destination()?;
        if !resolved.is_empty() && !matches!(destination, Destination::Name(_)) {
            return Err(QuestionError::Resolved(target));
        }
        Ok(Self { agent, target, destination, resolved })
    }

    /// The answer for the bearer of `grant`, or of a token that is in trouble.
    ///
    /// # Errors
    /// None for a question that could be made.
    pub fn answer<'a>(&self, grant: Result<&'a Grant, &'a Trouble>) -> Result<Answer<'a>, QuestionError> {
        match grant {
            Ok(grant) => Ok(Answer::Ruling(grant, self.rule(grant)?)),
            Err(trouble) => Ok(Answer::Trouble(trouble)),
        }
    }

    /// What a grant says: in one step, as the gateway does, and where that leaves it open and addresses are
    /// known in the second, as the agent does.
    fn rule(&self, grant: &Grant) -> Result<Ruling, TargetError> {
        let decision = grant.permit(&self.agent, &self.target)?;
        let (Verdict::Depends, Some(transport)) = (decision.verdict, self.target.transport()) else {
            return Ok(Ruling { decision, addresses: Vec::new() });
        };
        let rules = grant.address_rules(&self.agent, &self.target);
        let judge = |ip: &IpAddr| (*ip, rules.permit_addr(*ip, self.target.port(), transport));
        let addresses: Vec<_> = self.resolved.iter().map(judge).collect();
        // An agent dials those that are allowed, and refuses when none is left.
        let allowed = addresses.iter().find(|(_, decision)| decision.allowed());
        let decision = allowed.or(addresses.first()).map_or(decision, |(_, decision)| *decision);
        Ok(Ruling { decision, addresses })
    }
}

/// In words: what through whom.
impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} through {}", self.target, self.agent.escape_debug())
    }
}

impl Answer<'_> {
    /// Yes, no, or it depends.
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::Trouble(_) => Verdict::Deny,
            Self::Ruling(_, ruling) => ruling.decision.verdict,
        }
    }

    /// The rule that decided, unless no policy was asked.
    pub fn rule(&self) -> Option<Rule> {
        match self {
            Self::Trouble(_) => None,
            Self::Ruling(grant, ruling) => Some(Rule::of(ruling.decision.reason, grant)),
        }
    }
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::policy::{Item, Policies, Reason};
    use proptest::prelude::*;

    use super::*;

    fn grant(permit: bool, items: &str) -> Grant {
        Grant::new(vec![Policies { permit, policies: serde_yaml::from_str(items).unwrap() }])
    }

    fn ask(target: &str, resolved: &[&str]) -> Question {
        let resolved = resolved.iter().map(|ip| ip.parse().unwrap()).collect();
        Question::new("home".to_owned(), target.parse().unwrap(), resolved).unwrap()
    }

    #[test]
    fn a_name_is_allowed_by_any_of_its_addresses_as_the_agent_would_dial_it() {
        let grant = grant(true, "[!Ip [home, 10.0.0.0/8, 22, TCP], !Ip [home, 192.168.0.0/16, 22, TCP]]");
        let rule = |resolved: &[&str]| {
            let ruling = ask("nas.lan:22", resolved).rule(&grant).unwrap();
            let Decision { verdict, reason } = ruling.decision;
            (verdict, reason, ruling.addresses.len())
        };
        let item = |item| Reason::Item { list: 0, item };
        assert_eq!(rule(&[]), (Verdict::Depends, Reason::Addresses { list: 0 }, 0));
        assert_eq!(rule(&["10.1.2.3"]), (Verdict::Allow, item(0), 1));
        assert_eq!(rule(&["192.0.2.1"]), (Verdict::Deny, Reason::NoItem { list: 0 }, 1));
        assert_eq!(rule(&["192.0.2.1", "192.168.7.7", "10.1.2.3"]), (Verdict::Allow, item(1), 3));
    }

    #[test]
    fn addresses_say_nothing_where_the_name_alone_decides() {
        let grant = grant(true, "[!Domain [home, nas.lan, 22, TCP]]");
        let ruling = ask("nas.lan:22", &["192.0.2.1"]).rule(&grant).unwrap();
        assert_eq!(ruling.addresses, []);
        assert_eq!(ruling.decision, grant.permit("home", &"nas.lan:22".parse().unwrap()).unwrap());
    }

    #[test]
    fn only_a_name_has_addresses() {
        let resolved = vec!["10.0.0.1".parse().unwrap()];
        for target in ["10.0.0.1:22", "0x0a000001:22", "unix:///run/x"] {
            let refused = Question::new("home".to_owned(), target.parse().unwrap(), resolved.clone());
            assert!(refused.unwrap_err().to_string().contains("is none"), "{target}");
        }
        let nowhere = Target::Tcp { host: String::new(), port: 1 };
        assert!(Question::new("home".to_owned(), nowhere, Vec::new()).is_err());
    }

    #[test]
    fn a_token_in_trouble_opens_nothing() {
        let trouble = Trouble::Signature;
        let answer = ask("nas.lan:22", &[]).answer(Err(&trouble)).unwrap();
        assert_eq!((answer.verdict(), answer.rule()), (Verdict::Deny, None));
    }

    fn item() -> impl Strategy<Value = Item> {
        let agents = prop::sample::select(&["home", "lab", "null"][..]);
        let place = prop::sample::select(
            &[
                "Ip 10.0.0.0/8",
                "Ip 10.1.0.0/16",
                "Ip 0.0.0.0/0",
                "Ip \"fd00::/8\"",
                "Domain nas.lan",
                "Domain \"*.lan\"",
            ][..],
        );
        let ports = prop::sample::select(&["0", "22", "[22, 80]", "20-25", "80"][..]);
        let protocol = prop::sample::select(&["TCP", "UDP", "ANY", "HTTPS"][..]);
        (agents, place, ports, protocol, 0..8).prop_map(|(agent, place, ports, protocol, kind)| {
            let (tag, place) = place.split_once(' ').unwrap();
            let yaml = match kind {
                0 => format!("!Any [{agent}, true]"),
                1 => format!("!Any [{agent}, false]"),
                _ => format!("!{tag} [{agent}, {place}, {ports}, {protocol}]"),
            };
            serde_yaml::from_str(&yaml).unwrap()
        })
    }

    fn any_grant() -> impl Strategy<Value = Grant> {
        let list = (any::<bool>(), prop::collection::vec(item(), 0..5))
            .prop_map(|(permit, policies)| Policies { permit, policies });
        prop::collection::vec(list, 0..3).prop_map(Grant::new)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_answer_is_the_one_that_an_open_gets(
            grant in any_grant(),
            host in prop::sample::select(&["nas.lan", "NAS.lan.", "other", "10.1.2.3", "0x0a010203", "[fd00::1]"][..]),
            scheme in prop::sample::select(&["tcp", "udp", "icmp"][..]),
            port in prop::sample::select(&[22, 80, 443][..]),
            resolved in prop::collection::vec(
                prop::sample::select(&["10.1.2.3", "10.9.9.9", "192.0.2.1", "fd00::1", "::ffff:10.1.2.3"][..]),
                0..3,
            ),
        ) {
            let port = if scheme == "icmp" { String::new() } else { format!(":{port}") };
            let target: Target = format!("{scheme}://{host}{port}").parse().unwrap();
            let is_name = matches!(target.destination(), Ok(Destination::Name(_)));
            let resolved: Vec<IpAddr> = resolved.iter().filter(|_| is_name).map(|ip| ip.parse().unwrap()).collect();
            let question = Question::new("home".to_owned(), target.clone(), resolved.clone()).unwrap();
            let answer = question.answer(Ok(&grant)).unwrap();

            let at_open = grant.permit("home", &target).unwrap();
            let rules = grant.address_rules("home", &target);
            let dialled = |ip: &IpAddr| rules.permit_addr(*ip, target.port(), target.transport().unwrap()).allowed();
            let expected = match at_open.verdict {
                Verdict::Depends if resolved.is_empty() => Verdict::Depends,
                Verdict::Depends if resolved.iter().any(dialled) => Verdict::Allow,
                Verdict::Depends => Verdict::Deny,
                decided => decided,
            };
            prop_assert_eq!(answer.verdict(), expected);
            if resolved.is_empty() {
                prop_assert_eq!(answer.rule(), Some(Rule::of(at_open.reason, &grant)));
            }
            // A rule's name is one that an expectation may have.
            let rule = answer.rule().unwrap();
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
    }
}
