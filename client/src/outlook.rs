//! Role: what a forward can tell its user before anybody has connected: whether the token allows the target,
//! and whether the agent is there.
//! Invariants: said once · a hint, never an end: agents come and go, and the gateway has the last word · what
//! is not sure is not said.

use std::ops::ControlFlow;

use narrowlink_proto::{
    message::AgentInfo,
    policy::Verdict,
    token::{Claims, read_unverified},
};

use crate::{plan::Plan, presence::RollCall};

/// Names that are repeated in a hint.
const NAMES_MAX: usize = 8;

/// How a forward will fare.
pub(crate) struct Outlook {
    agent: String,
    /// Why the token does not allow the target.
    barred: Option<String>,
}

impl Outlook {
    pub(crate) fn new(plan: &Plan, token: &str) -> Self {
        let barred = read_unverified(token).ok().filter(|claims| is_barred(claims, plan)).map(|_| {
            format!("the policy of your token does not allow {} on agent {}", plan.target, plan.agent)
        });
        Self { agent: plan.agent.clone(), barred }
    }

    /// Says the outlook as soon as it is known which agents are there.
    pub(crate) fn roll_call(self) -> RollCall {
        let mut calls = 0;
        Box::new(move |agents| {
            calls += 1;
            match self.judge(agents, calls) {
                Some(Ok(good)) => tracing::info!("{good}"),
                Some(Err(bad)) => tracing::warn!("{bad}"),
                None => return ControlFlow::Continue(()),
            }
            ControlFlow::Break(())
        })
    }

    /// The outlook at the first or second call; `None` if another look is needed. An agent that is away at
    /// the first may just be coming back, as after a restart of its gateway.
    fn judge(&self, agents: &[AgentInfo], calls: usize) -> Option<Result<String, String>> {
        let Self { agent, barred } = self;
        if let Some(barred) = barred {
            return Some(Err(format!(
                "{barred}: connections will be refused; `narrowlink whoami` shows what it allows"
            )));
        }
        if agents.iter().any(|one| one.name == *agent) {
            return Some(Ok(format!("the agent {agent} is connected")));
        }
        if calls < 2 {
            return None;
        }
        let mut names: Vec<_> = agents.iter().take(NAMES_MAX).map(|one| shown(&one.name)).collect();
        if agents.len() > NAMES_MAX {
            names.push("..".to_owned());
        }
        let others = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Some(Err(format!(
            "no agent named {agent} is connected now, or your token does not show it (connected: {others}); \
             connections are refused until it is there"
        )))
    }
}

/// Whether the token's own policy says no, whatever the target's name resolves to.
fn is_barred(claims: &Claims, plan: &Plan) -> bool {
    let decision = claims.policies.permit(&plan.agent, &plan.target);
    decision.is_ok_and(|decision| decision.verdict == Verdict::Deny)
}

fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{target::Target, token::Keys};

    use super::*;

    fn outlook(policies: &str) -> Outlook {
        let claims = format!(
            r#"{{"kind":"client","uid":"0d9c1a52-6d5f-4f0b-9c55-2f3c8b1e7a10","name":"n","jti":"j","exp":9{policies}}}"#
        );
        let token = Keys::new(&[7; 32]).sign(&serde_json::from_str::<Claims>(&claims).unwrap()).unwrap();
        let target = Target::Tcp { host: "db".to_owned(), port: 5432 };
        let plan = Plan { agent: "home".to_owned(), target, listen: "127.0.0.1:0".parse().unwrap() };
        Outlook::new(&plan, &token)
    }

    fn agent(name: &str) -> AgentInfo {
        AgentInfo {
            name: name.to_owned(),
            address: "192.0.2.1:5".parse().unwrap(),
            ping_us: None,
            connected_s: 1,
        }
    }

    #[test]
    fn an_agent_that_is_missing_is_looked_for_twice_and_then_named_beside_those_that_are_there() {
        let outlook = outlook("");
        assert_eq!(outlook.judge(&[agent("home")], 1), Some(Ok("the agent home is connected".to_owned())));
        assert_eq!(outlook.judge(&[agent("office")], 1), None);
        let Some(Err(said)) = outlook.judge(&[agent("of\u{1b}fice")], 2) else { panic!("nothing was said") };
        assert!(
            said.starts_with("no agent named home is connected now") && said.contains("connected: office)"),
            "{said}"
        );
        let Some(Err(said)) = outlook.judge(&[], 2) else { panic!("nothing was said") };
        assert!(said.contains("connected: none)"), "{said}");
    }

    #[test]
    fn a_policy_that_allows_nothing_is_said_at_once_and_one_that_depends_on_addresses_is_not() {
        let nothing = outlook(r#","policies":[{"permit":true,"policies":[]}]"#);
        let Some(Err(said)) = nothing.judge(&[agent("home")], 1) else { panic!("nothing was said") };
        assert!(said.contains("does not allow tcp://db:5432 on agent home"), "{said}");
        let depends =
            outlook(r#","policies":[{"permit":true,"policies":[{"Ip":["home","10.0.0.0/8",5432,"TCP"]}]}]"#);
        assert!(depends.judge(&[agent("home")], 1).unwrap().is_ok());
    }

    #[test]
    fn what_a_token_that_can_not_be_read_allows_is_for_the_gateway_to_say() {
        let target = Target::Tcp { host: "db".to_owned(), port: 5432 };
        let plan = Plan { agent: "home".to_owned(), target, listen: "127.0.0.1:0".parse().unwrap() };
        let outlook = Outlook::new(&plan, "no token");
        assert_eq!(outlook.judge(&[agent("home")], 1), Some(Ok("the agent home is connected".to_owned())));
    }

    #[test]
    fn the_outlook_is_said_once_and_of_many_agents_a_few_are_named() {
        let mut call = outlook("").roll_call();
        assert!(call(&[]).is_continue(), "the agent may just be coming back");
        assert!(call(&[]).is_break());
        assert!(outlook("").roll_call()(&[agent("home")]).is_break());
        let many: Vec<_> = (0..99).map(|n| agent(&format!("agent-{n}"))).collect();
        let Some(Err(said)) = outlook("").judge(&many, 2) else { panic!("nothing was said") };
        assert!(said.contains("agent-7, ..)") && !said.contains("agent-8"), "{said}");
    }
}
