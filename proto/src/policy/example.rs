//! Role: a target that a grant allows, to show its bearer how one is reached.
//! Invariants: what is shown is allowed for certain, by the verdict itself; of a net with many hosts none is guessed.

use super::{Grant, Item};
use crate::target::Target;

/// What most people want first.
const USUAL: (&str, u16) = ("127.0.0.1", 22);

impl Grant {
    /// One of these agents, and a target beyond it that is allowed. Where none of them is there, one that the grant names.
    pub fn example<'a>(&'a self, agents: &[&'a str]) -> Option<(&'a str, Target)> {
        let items = || self.lists().iter().filter(|list| list.permit).flat_map(|list| &list.policies);
        let named = || items().filter_map(Item::agent);
        let agents: Vec<_> = if agents.is_empty() { named().collect() } else { agents.to_vec() };
        let tcp = |host: String, port| Target::Tcp { host, port };
        let usual = std::iter::once(tcp(USUAL.0.to_owned(), USUAL.1));
        let targets: Vec<_> = usual
            .chain(items().filter_map(|item| item.one_place(USUAL.1)).map(|(host, port)| tcp(host, port)))
            .collect();
        let pairs = agents.iter().flat_map(|agent| targets.iter().map(move |target| (*agent, target)));
        let allowed = |(agent, target): &(&str, &Target)| {
            self.permit(agent, target).is_ok_and(super::Decision::allowed)
        };
        pairs.into_iter().find(allowed).map(|(agent, target)| (agent, target.clone()))
    }
}

impl Item {
    /// A host and a port that the item is about, if it names one host; `usual` where that is one of its ports.
    fn one_place(&self, usual: u16) -> Option<(String, u16)> {
        let (host, ports) = match self {
            Self::Ip(_, net, ports, _) => (net.one_host()?.to_string(), ports),
            Self::Domain(_, name, ports, _) => (name.one_name()?.to_owned(), ports),
            Self::Any(..) => return None,
        };
        Some((host, if ports.contain(usual) { usual } else { ports.first()? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policies;

    fn shown(rules: &[&str], agents: &[&str]) -> Option<String> {
        let policies = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let grant = Grant::new(vec![Policies { permit: true, policies }]);
        grant.example(agents).map(|(agent, target)| format!("{agent} {target}"))
    }

    #[test]
    fn an_example_is_one_that_the_grant_allows() {
        for (rules, agents, wanted) in [
            (&["home:127.0.0.1:22"][..], &["home"][..], Some("home tcp://127.0.0.1:22")),
            (&["home:127.0.0.1:8000-8100"], &["home"], Some("home tcp://127.0.0.1:8000")),
            (&["home:nas.lan:443"], &["office", "home"], Some("home tcp://nas.lan:443")),
            (&["home:10.0.0.0/8:22"], &["home"], None),
            (&["home:10.0.0.0/8:22", "home:[fd00::1]:80"], &["home"], Some("home tcp://[fd00::1]:80")),
            (&["home:0.0.0.0/0:22"], &["home"], Some("home tcp://127.0.0.1:22")),
            (&["home:*.lan:80"], &["home"], None),
            (&["home:10.0.0.1:53/udp"], &["home"], None),
            (&["home"], &[], Some("home tcp://127.0.0.1:22")),
            (&["*"], &[], None),
            (&["office:127.0.0.1:22"], &["home"], None),
        ] {
            assert_eq!(shown(rules, agents).as_deref(), wanted, "{rules:?} {agents:?}");
        }
        let all = Grant::default();
        assert_eq!(all.example(&["home"]).unwrap().1.to_string(), "tcp://127.0.0.1:22");
        assert!(all.example(&[]).is_none());
        let black = Grant::new(vec![Policies {
            permit: false,
            policies: vec!["home:127.0.0.1:22".parse().unwrap()],
        }]);
        assert!(black.example(&["home"]).is_none());
    }
}
