//! Role: an answer in words, for people and for programs.
//! Invariants: the verdict comes first; foreign text is escaped; no token appears.

use std::{fmt::Write as _, path::Path};

use narrowlink_proto::{
    policy::{Decision, Grant, Item, Reason, Verdict},
    target::{Destination, Target},
    token::Claims,
    when::{show, show_from},
};
use serde_json::{Value, json};

use super::{Answer, Bearer, Question, QuestionError, Rule, Signature};

/// An answer with everything that it came from.
pub struct Report<'a> {
    question: &'a Question,
    bearer: &'a Bearer,
    answer: Answer<'a>,
    config: Option<&'a Path>,
    now: u64,
}

/// `allow`, `deny`, `depends`.
pub(crate) const fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
        Verdict::Depends => "depends",
    }
}

impl<'a> Report<'a> {
    /// The answer to `question` for a bearer who was examined at `now`, by the secrets of `config` if there
    /// was one.
    ///
    /// # Errors
    /// None for a question that could be made.
    pub fn new(
        question: &'a Question,
        bearer: &'a Bearer,
        config: Option<&'a Path>,
        now: u64,
    ) -> Result<Self, QuestionError> {
        Ok(Self { question, bearer, answer: question.answer(bearer.grant())?, config, now })
    }

    /// Yes, no, or it depends.
    pub const fn verdict(&self) -> Verdict {
        self.answer.verdict()
    }

    /// For people: verdict, rule, and what was looked at.
    pub fn text(&self) -> String {
        let verdict = verdict_name(self.verdict()).to_uppercase();
        let mut paragraph = Paragraph { text: String::new(), width: verdict.len().max(5) + 2 };
        paragraph.say(&verdict, &[self.question.to_string()]);
        paragraph.say("by", &self.answer.because(self.question));
        paragraph.say("also", &self.answer.besides(self.question));
        paragraph.say("token", &self.token());
        if !matches!(self.question.target, Target::Tcp { .. }) {
            let note = "this is what the policy says; this version's gateway carries TCP alone";
            paragraph.say("note", &[note.to_owned()]);
        }
        paragraph.text
    }

    fn token(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(claims) = &self.bearer.claims {
            let Claims { kind, name, uid, exp, .. } = claims;
            let (kind, until) = (kind.name(), show_from(*exp, self.now));
            lines.push(format!("{kind} {name:?} of {uid}, until {until}"));
        }
        lines.push(self.signed());
        lines
    }

    fn signed(&self) -> String {
        let of = self.config.map(|path| format!(" of {}", path.display())).unwrap_or_default();
        match self.bearer.signature {
            Signature::Unchecked => {
                "UNVERIFIED: there is no gateway.yaml here, so nobody checked its signature (-c FILE names one)"
                    .to_owned()
            }
            Signature::Secret { place: 0, id } => format!("signed with the secret in force{of} (id {id})"),
            Signature::Secret { place, id } => {
                format!("signed with old_secrets[{}]{of} (id {id}), which is still believed", place - 1)
            }
            Signature::Unknown => format!("signed with none of the secrets{of}"),
        }
    }

    /// For programs: one object, in one line.
    pub fn json(&self) -> String {
        let Question { agent, target, .. } = self.question;
        let (signed_by, key) = match self.bearer.signature {
            Signature::Unchecked | Signature::Unknown => (None, None),
            Signature::Secret { place: 0, id } => (Some("secret".to_owned()), Some(id.to_string())),
            Signature::Secret { place, id } => {
                (Some(format!("old_secrets[{}]", place - 1)), Some(id.to_string()))
            }
        };
        let token = self.bearer.claims.as_ref().map(|claims| {
            json!({
                "kind": claims.kind, "uid": claims.uid, "name": claims.name, "jti": claims.jti,
                "exp": claims.exp, "nbf": claims.nbf, "expires_at": show(claims.exp),
            })
        });
        let object = json!({
            "verdict": verdict_name(self.verdict()),
            "agent": agent,
            "target": target.to_string(),
            "rule": self.answer.rule().map(|rule| rule.to_string()),
            "item": self.answer.item().map(Item::to_string),
            "because": self.answer.brief(),
            "addresses": self.answer.addresses(),
            "depends_on": self.answer.depends_on(self.question),
            "token": token,
            "verified": self.bearer.signature != Signature::Unchecked,
            "signed_by": signed_by,
            "key": key,
        });
        format!("{object}\n")
    }
}

impl Answer<'_> {
    /// The rule in one line, or why no policy was asked.
    pub fn brief(&self) -> String {
        match self {
            Self::Trouble(trouble) => trouble.to_string(),
            Self::Ruling(grant, ruling) => brief(grant, ruling.decision),
        }
    }

    /// Which rule decided and how.
    fn because(&self, question: &Question) -> Vec<String> {
        let Self::Ruling(grant, ruling) = self else { return vec![self.brief()] };
        let mut lines = vec![brief(grant, ruling.decision)];
        if ruling.decision.verdict == Verdict::Depends {
            lines.extend(open_lists(grant, question));
            return lines;
        }
        let same = |(_, decision): &&(_, Decision)| *decision == ruling.decision;
        let decisive = ruling.addresses.iter().find(same).map(|(ip, _)| *ip);
        let matched = match (self.item(), &question.destination) {
            (Some(Item::Ip(..)), Destination::Ip(ip)) => Some(format!("{ip} lies in it")),
            (Some(Item::Ip(..)), _) => decisive.map(|ip| format!("{ip} lies in it")),
            (Some(Item::Domain(..)), destination) => Some(format!("{destination} is such a name")),
            _ => None,
        };
        if let Some(matched) = matched {
            lines[0] += &format!("   ({matched})");
        }
        if self.refuses_by_match() {
            lines.push("its list has permit: false, so what matches is refused".to_owned());
        }
        if ruling.decision.allowed() && grant.lists().len() > 1 {
            lines.push("the other lists allow it, too".to_owned());
        }
        lines
    }

    /// What was asked along with it and did not decide.
    fn besides(&self, question: &Question) -> Vec<String> {
        let Self::Ruling(grant, ruling) = self else { return Vec::new() };
        if ruling.addresses.is_empty() && !question.resolved.is_empty() {
            return vec!["the name alone decides: what it resolves to makes no difference".to_owned()];
        }
        // The one that stands above is not said again.
        let decisive = ruling.addresses.iter().position(|(_, decision)| *decision == ruling.decision);
        let others = ruling.addresses.iter().enumerate().filter(|(index, _)| Some(*index) != decisive);
        let say = |(_, (ip, decision)): (_, &(_, Decision))| {
            let dialled = if decision.allowed() { "is dialled, too" } else { "is not dialled" };
            format!("{ip} {dialled}: {}", brief(grant, *decision))
        };
        others.map(say).collect()
    }

    /// The item that decided.
    fn item(&self) -> Option<&Item> {
        match self {
            Self::Ruling(grant, ruling) => item(grant, ruling.decision.reason),
            Self::Trouble(_) => None,
        }
    }

    fn refuses_by_match(&self) -> bool {
        self.verdict() == Verdict::Deny && !matches!(self.item(), None | Some(Item::Any(_, false)))
    }

    fn addresses(&self) -> Vec<Value> {
        let Self::Ruling(grant, ruling) = self else { return Vec::new() };
        let addresses = ruling.addresses.iter().map(|(ip, Decision { verdict, reason })| {
            let rule = Rule::of(*reason, grant).to_string();
            json!({ "address": ip, "verdict": verdict_name(*verdict), "rule": rule })
        });
        addresses.collect()
    }

    fn depends_on(&self, question: &Question) -> Vec<Value> {
        let Self::Ruling(grant, ruling) = self else { return Vec::new() };
        if ruling.decision.verdict != Verdict::Depends {
            return Vec::new();
        }
        let rules = grant.address_rules(&question.agent, &question.target);
        let lists = rules.lists().map(|(list, items)| {
            let items = items.iter().filter_map(|at| {
                let reason = Reason::Item { list, item: *at };
                let Item::Ip(_, net, ..) = item(grant, reason)? else { return None };
                Some(json!({ "net": net, "rule": Rule::of(reason, grant).to_string() }))
            });
            let inside = if grant.lists()[list].permit { "allow" } else { "deny" };
            json!({ "list": list, "inside": inside, "nets": items.collect::<Vec<_>>() })
        });
        lists.collect()
    }
}

/// The lists that leave it to the addresses, and what each wants of them.
fn open_lists(grant: &Grant, question: &Question) -> Vec<String> {
    let rules = grant.address_rules(&question.agent, &question.target);
    let mut lines = Vec::new();
    let several = rules.lists().count() > 1;
    for (list, items) in rules.lists() {
        let whose = if several { format!("lists[{list}]: ") } else { String::new() };
        let (inside, outside) =
            if grant.lists()[list].permit { ("allowed", "refused") } else { ("refused", "allowed") };
        for at in items {
            let reason = Reason::Item { list, item: at };
            if let Some(item @ Item::Ip(_, net, ..)) = item(grant, reason) {
                let rule = Rule::of(reason, grant);
                lines.push(format!("{whose}{inside} if it resolves into {net}   ({rule}: {item})"));
            }
        }
        lines.push(format!("{whose}{outside} if it resolves to anything else"));
    }
    if several {
        lines.push("each list must allow".to_owned());
    }
    lines
}

fn brief(grant: &Grant, decision: Decision) -> String {
    let rule = Rule::of(decision.reason, grant);
    match decision.reason {
        Reason::Unrestricted => "no policies: nothing within its own space is refused".to_owned(),
        Reason::Item { .. } => {
            item(grant, decision.reason).map_or(rule.to_string(), |item| format!("{rule}: {item}"))
        }
        Reason::NoItem { list } => {
            let permit = !decision.allowed();
            debug_assert_eq!(grant.lists().get(list).map(|list| list.permit), Some(permit));
            let rest = if permit { "permit: true refuses the rest" } else { "permit: false allows the rest" };
            format!("{rule} matches, and {rest}")
        }
        Reason::Addresses { .. } => format!("{rule}: only the agent knows what the name resolves to"),
    }
}

fn item(grant: &Grant, reason: Reason) -> Option<&Item> {
    match reason {
        Reason::Item { list, item } => grant.lists().get(list)?.policies.get(item),
        Reason::Unrestricted | Reason::NoItem { .. } | Reason::Addresses { .. } => None,
    }
}

/// Lines behind labels.
struct Paragraph {
    text: String,
    width: usize,
}

impl Paragraph {
    fn say(&mut self, label: &str, lines: &[String]) {
        let mut label = label;
        for line in lines {
            let _ = writeln!(self.text, "{label:width$}{line}", width = self.width);
            label = "";
        }
    }
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{
        id::Uid,
        policy::Policies,
        token::{Keys, Kind, Secret},
    };

    use super::*;
    use crate::config::Config;

    const NOW: u64 = 1_800_000_000;

    fn list(permit: bool, items: &str) -> Policies {
        Policies { permit, policies: serde_yaml::from_str(items).unwrap() }
    }

    fn ssh() -> Policies {
        list(true, "[!Domain [home, '*.lan', 80, TCP], !Ip [home, 10.0.0.0/8, 22, TCP], !Any [lab, false]]")
    }

    fn not_there() -> Policies {
        list(false, "[!Ip [null, 10.9.0.0/16, 0, ANY]]")
    }

    /// Who has a token with these lists, signed with the second of two secrets.
    fn bearer(lists: Vec<Policies>) -> Bearer {
        let claims = Claims::new(Kind::Client, Uid::nil(), "laptop", NOW + 29 * 86_400, "t1");
        let token = Keys::new(&[8; 32]).sign(&Claims { policies: Grant::new(lists), ..claims }).unwrap();
        let secrets = [[7; 32], [8; 32]].map(|bytes| Secret::from_bytes(bytes.to_vec()).unwrap()).to_vec();
        Bearer::examine(&token, Some(&Config::new("gw", secrets, Vec::new())), NOW)
    }

    fn question(agent: &str, target: &str, resolved: &[&str]) -> Question {
        let resolved = resolved.iter().map(|ip| ip.parse().unwrap()).collect();
        Question::new(agent.to_owned(), target.parse().unwrap(), resolved).unwrap()
    }

    fn check(lists: Vec<Policies>, question: &Question, expected: &str) {
        let bearer = bearer(lists);
        let text = Report::new(question, &bearer, Some(Path::new("gw.yaml")), NOW).unwrap().text();
        let (answer, token) = text.split_once("token").unwrap();
        assert_eq!(answer, expected);
        let bare: Vec<_> = token.lines().map(str::trim).collect();
        let client = "client \"laptop\" of 00000000-0000-0000-0000-000000000000";
        assert_eq!(bare[0], format!("{client}, until 2027-02-13 08:00:00 UTC (in 29 days)"));
        assert_eq!(
            bare[1],
            format!(
                "signed with old_secrets[0] of gw.yaml (id {}), which is still believed",
                Keys::new(&[8; 32]).id()
            )
        );
    }

    #[test]
    fn the_deciding_rule_stands_below_the_verdict() {
        check(
            vec![ssh()],
            &question("home", "nas.lan:22", &["192.0.2.1", "10.1.2.3", "10.1.2.4"]),
            "\
ALLOW  tcp://nas.lan:22 through home
by     policies[1]: !Ip [home, 10.0.0.0/8, 22, TCP]   (10.1.2.3 lies in it)
also   192.0.2.1 is not dialled: no item matches, and permit: true refuses the rest
       10.1.2.4 is dialled, too: policies[1]: !Ip [home, 10.0.0.0/8, 22, TCP]
",
        );
        check(
            vec![ssh()],
            &question("home", "NAS.lan.:80", &["192.0.2.1"]),
            "\
ALLOW  tcp://NAS.lan.:80 through home
by     policies[0]: !Domain [home, \"*.lan\", 80, TCP]   (nas.lan is such a name)
also   the name alone decides: what it resolves to makes no difference
",
        );
        check(
            vec![ssh()],
            &question("lab", "10.0.0.1:22", &[]),
            "\
DENY   tcp://10.0.0.1:22 through lab
by     policies[2]: !Any [lab, false]
",
        );
        check(
            vec![ssh(), not_there()],
            &question("home", "0x0a090101:22", &[]),
            "\
DENY   tcp://0x0a090101:22 through home
by     lists[1].policies[0]: !Ip [null, 10.9.0.0/16, 0, ANY]   (10.9.1.1 lies in it)
       its list has permit: false, so what matches is refused
",
        );
        check(
            vec![],
            &question("a\u{1b}[2J", "10.0.0.1:22", &[]),
            "\
ALLOW  tcp://10.0.0.1:22 through a\\u{1b}[2J
by     no policies: nothing within its own space is refused
",
        );
    }

    #[test]
    fn an_open_question_says_what_it_depends_on() {
        check(
            vec![ssh()],
            &question("home", "nas.lan:22", &[]),
            "\
DEPENDS  tcp://nas.lan:22 through home
by       addresses: only the agent knows what the name resolves to
         allowed if it resolves into 10.0.0.0/8   (policies[1]: !Ip [home, 10.0.0.0/8, 22, TCP])
         refused if it resolves to anything else
",
        );
        check(
            vec![ssh(), not_there()],
            &question("home", "nas.lan:22", &[]),
            "\
DEPENDS  tcp://nas.lan:22 through home
by       addresses by lists[0]: only the agent knows what the name resolves to
         lists[0]: allowed if it resolves into 10.0.0.0/8   (lists[0].policies[1]: !Ip [home, 10.0.0.0/8, 22, TCP])
         lists[0]: refused if it resolves to anything else
         lists[1]: refused if it resolves into 10.9.0.0/16   (lists[1].policies[0]: !Ip [null, 10.9.0.0/16, 0, ANY])
         lists[1]: allowed if it resolves to anything else
         each list must allow
",
        );
    }

    #[test]
    fn programs_get_the_same_in_json() {
        let bearer = bearer(vec![ssh()]);
        let json = |question: &Question| {
            let text = Report::new(question, &bearer, None, NOW).unwrap().json();
            serde_json::from_str::<Value>(&text).unwrap()
        };
        let open = json(&question("home", "nas.lan:22", &[]));
        assert_eq!((&open["verdict"], &open["rule"]), (&json!("depends"), &json!("addresses")));
        let nets = json!([{ "net": "10.0.0.0/8", "rule": "policies[1]" }]);
        assert_eq!(open["depends_on"], json!([{ "list": 0, "inside": "allow", "nets": nets }]));
        assert_eq!(open["signed_by"], "old_secrets[0]");
        assert_eq!(open["key"], Keys::new(&[8; 32]).id().to_string());
        let closed = json(&question("home", "nas.lan:22", &["10.1.2.3"]));
        assert_eq!(closed["item"], "!Ip [home, 10.0.0.0/8, 22, TCP]");
        let addresses = json!([{ "address": "10.1.2.3", "verdict": "allow", "rule": "policies[1]" }]);
        assert_eq!((&closed["addresses"], &closed["depends_on"]), (&addresses, &json!([])));
        assert_eq!(closed["token"]["name"], "laptop");
    }
}
