//! Role: an identity in words.
//! Invariants: foreign text is escaped, and stays in its line.

use std::fmt::Write as _;

use narrowlink_proto::{
    message::{Share, Used},
    policy::{Grant, Item, Ports, Protocol},
    token::{Allowance, Claims, TokenError},
    when::show_from,
};

use super::identity::{Answer, Identity};

/// From then on one is warned of a token's end.
const WARNING_S: u64 = 7 * 24 * 60 * 60;

/// For people; `in_full` with what is used of what is limited.
pub fn text(identities: &[Identity], now: u64, in_full: bool) -> String {
    let all: Vec<_> = identities.iter().map(|identity| paragraph(identity, now, in_full)).collect();
    all.join("\n")
}

fn paragraph(identity: &Identity, now: u64, in_full: bool) -> String {
    let mut text = String::new();
    let mut say = |label: &str, words: &str| {
        let _ = writeln!(text, "{label:8}{words}");
    };
    let (gateway, place) = (identity.gateway(), identity.token_place.display());
    match &identity.claims {
        Ok(claims) => {
            say("token", &format!("{place}, as it says itself; the gateway decides"));
            say("name", &claims.name);
            say("user", &claims.uid.to_string());
            say("id", &claims.jti);
            if let Some(nbf) = claims.nbf.filter(|nbf| *nbf > now) {
                say("from", &format!("{}: no gateway takes it yet", show_from(nbf, now)));
            }
            say("until", &until(claims, now));
            for (index, line) in reach(&claims.policies).iter().enumerate() {
                say(if index == 0 { "reach" } else { "" }, line);
            }
            say("limits", &limits(&claims.limits));
        }
        Err(why) => say("token", &format!("{place}, which this version can't read: {why}")),
    }
    match &identity.answer {
        Answer::NotAsked => say("gateway", &format!("{gateway} was not asked")),
        Answer::Accepted(shown) if shown.agents.is_empty() => {
            say("gateway", &format!("{gateway} accepts it; no agents are connected"));
        }
        Answer::Accepted(shown) => {
            let names: Vec<_> =
                shown.agents.iter().map(|agent| agent.name.escape_debug().to_string()).collect();
            say("gateway", &format!("{gateway} accepts it; agents: {}", names.join(", ")));
        }
        // Most failures name the gateway themselves; its label need not be said twice.
        Answer::Failed(failure) if failure.message.contains(&gateway) => {
            let message = &failure.message;
            say("gateway", message.strip_prefix("the gateway ").unwrap_or(message));
        }
        Answer::Failed(failure) => say("gateway", &format!("{gateway}: {failure}")),
    }
    if let Answer::Accepted(shown) = &identity.answer
        && in_full
    {
        for (index, line) in usage(shown.used.as_ref()).iter().enumerate() {
            say(if index == 0 { "used" } else { "" }, line);
        }
    }
    text
}

/// What is used, a line for whose it is.
fn usage(used: Option<&[Used; 2]>) -> Vec<String> {
    let Some([token, user]) = used else {
        return vec!["the gateway is of an older version, and does not say".to_owned()];
    };
    let lines = [("this token", token), ("this user", user)];
    lines.map(|(whose, used)| format!("{whose}: {}", used_in_words(used))).to_vec()
}

fn used_in_words(used: &Used) -> String {
    let count = |share: Option<Share>, what: &str| {
        share.map(|Share { used, max }| format!("{used} of {max} {what} at a time"))
    };
    let amount = |share: Option<Share>| {
        share.map(|Share { used, max }| {
            // Of none allowed all is used.
            let percent = used.saturating_mul(100).checked_div(max).unwrap_or(100).min(999);
            format!("{} of {} this month ({percent} %)", bytes_in_words(used), bytes_in_words(max))
        })
    };
    let said = [
        count(used.sessions, "sessions"),
        count(used.streams, "streams"),
        used.dials_per_s_max.map(|max| format!("at most {max} new sessions a second")),
        used.bytes_per_s_max.map(|max| format!("at most {} a second", bytes_in_words(max))),
        amount(used.month_bytes),
    ];
    let said: Vec<_> = said.into_iter().flatten().collect();
    if said.is_empty() { "no limit".to_owned() } else { said.join(", ") }
}

/// In the largest unit of which there is one at least, with one digit behind the point.
fn bytes_in_words(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*unit);
            if tenths % 10 == 0 {
                format!("{} {name}", tenths / 10)
            } else {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            }
        }
        None => format!("{bytes} bytes"),
    }
}

fn until(claims: &Claims, now: u64) -> String {
    let Claims { exp, .. } = claims;
    let end = show_from(*exp, now);
    match claims.hold_at(now) {
        Err(TokenError::Expired { .. }) => format!("{end}: no gateway takes it any more"),
        _ if exp.saturating_sub(now) <= WARNING_S => format!("{end}: ask for a new one"),
        _ => end,
    }
}

/// What the lists say, a line for each item.
fn reach(grant: &Grant) -> Vec<String> {
    let lists = grant.lists();
    let mut lines = Vec::new();
    if lists.is_empty() {
        lines.push("everything within its own space".to_owned());
    }
    if lists.len() > 1 {
        lines.push(format!("what each of {} lists allows", lists.len()));
    }
    for list in lists {
        let none = list.policies.is_empty();
        lines.push(match (list.permit, none) {
            (true, true) => "nothing".to_owned(),
            (true, false) => "only:".to_owned(),
            (false, true) => "everything".to_owned(),
            (false, false) => "everything but:".to_owned(),
        });
        lines.extend(list.policies.iter().map(|item| format!("  {}", words(item, list.permit))));
    }
    lines
}

fn words(item: &Item, permit: bool) -> String {
    let agent = match item.agent() {
        Some(name) => format!("agent {}", name.escape_debug()),
        None => "any agent".to_owned(),
    };
    match item {
        Item::Ip(_, net, ports, protocol) => {
            format!("{}, {}, through {agent}", net.short(), how(ports, *protocol))
        }
        Item::Domain(_, name, ports, protocol) => {
            format!("{name}, {}, through {agent}", how(ports, *protocol))
        }
        // In a list of what is refused both forms refuse.
        Item::Any(_, false) if permit => format!("never anything through {agent}"),
        Item::Any(..) => format!("anything through {agent}"),
    }
}

fn how(ports: &Ports, protocol: Protocol) -> String {
    let shown = ports.to_string();
    let every_port = *ports == Ports::any();
    let ports = match shown.contains([',', '-']) {
        _ if every_port => "any port".to_owned(),
        true => format!("ports {shown}"),
        false => format!("port {shown}"),
    };
    let protocol = match protocol {
        Protocol::Any if every_port => "any protocol",
        Protocol::Any => "TCP and UDP",
        Protocol::Udp => "UDP",
        Protocol::Tcp | Protocol::Http | Protocol::Https | Protocol::Tls => "TCP",
    };
    format!("{ports}, {protocol}")
}

fn limits(limits: &Allowance) -> String {
    let said = limits.in_words();
    if said.is_empty() { "none of its own".to_owned() } else { said.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use narrowlink_proto::{
        id::Uid,
        policy::Policies,
        token::{Keys, Kind},
    };

    use super::*;
    use crate::{
        config::Config,
        exit::{Exit, Failure},
        list::Shown,
        routes::Routes,
        whoami::{exit, json},
    };

    const NOW: u64 = 1_800_000_000;
    const DAY_S: u64 = 86_400;

    fn claims(exp: u64) -> Claims {
        Claims::new(Kind::Client, Uid::nil(), "laptop", exp, "t1")
    }

    fn list(permit: bool, items: &str) -> Policies {
        Policies { permit, policies: serde_yaml::from_str(items).unwrap() }
    }

    fn identity(token: &str) -> Identity {
        let text =
            format!("endpoints: [!SelfHosted {{ gateway: 'gw.example:443', token: {token}, protocol: Ws }}]");
        let config = Config::parse(&text, Path::new("client.yaml")).unwrap();
        Identity::read(Routes::load(&config).unwrap(), PathBuf::from("client.yaml"))
    }

    fn bearer(claims: &Claims) -> Identity {
        identity(&Keys::new(&[7; 32]).sign(claims).unwrap())
    }

    fn check(identity: Identity, code: Exit, lines: &[&str]) {
        let identities = [identity];
        let text = text(&identities, NOW, false);
        assert_eq!(exit(&identities, NOW), code, "{text}");
        for line in lines {
            assert!(text.lines().any(|said| said == *line), "{text} has no line {line:?}");
        }
    }

    #[test]
    fn a_token_is_told_in_words() {
        let items = "[!Ip [home, 10.0.0.0/8, [22, 8000-8100], HTTPS], !Ip [null, 127.0.0.1, 22, ANY], \
                     !Domain [home, '*.lan', 0, ANY], !Any [office, true], !Any [lab, false]]";
        let policies = Grant::new(vec![list(true, items), list(false, "[!Any [\"a\\eb\", true]]")]);
        let limits = "{ sessions: 4, bytes_per_s: 10MB, bytes_per_month: 3GiB }";
        let limits = serde_yaml::from_str(limits).unwrap();
        let mut identity = bearer(&Claims { policies, limits, ..claims(NOW + 29 * DAY_S) });
        identity.answer = Answer::Accepted(Shown { agents: Vec::new(), used: None });
        let expected = "\
token   client.yaml, as it says itself; the gateway decides
name    laptop
user    00000000-0000-0000-0000-000000000000
id      t1
until   2027-02-13 08:00:00 UTC (in 29 days)
reach   what each of 2 lists allows
        only:
          10.0.0.0/8, ports 22, 8000-8100, TCP, through agent home
          127.0.0.1, port 22, TCP and UDP, through any agent
          *.lan, any port, any protocol, through agent home
          anything through agent office
          never anything through agent lab
        everything but:
          anything through agent a\\u{1b}b
limits  4 sessions at a time, 10 MB a second, 3 GiB a month
gateway gw.example:443 accepts it; no agents are connected
";
        assert_eq!(text(&[identity], NOW, false), expected);
    }

    #[test]
    fn what_is_used_is_told_beside_what_there_may_be_of_it() {
        let token = Used {
            sessions: Some(Share { used: 3, max: 4 }),
            month_bytes: Some(Share { used: 1_234_567_890, max: 3_000_000_000 }),
            bytes_per_s_max: Some(10_000_000),
            ..Used::default()
        };
        let shown = |used| {
            let mut identity = bearer(&claims(NOW + 29 * DAY_S));
            identity.answer = Answer::Accepted(Shown { agents: Vec::new(), used });
            let text = text(&[identity], NOW, true);
            text.split_once("\nused    ").unwrap().1.to_owned()
        };
        let expected = "\
this token: 3 of 4 sessions at a time, at most 10 MB a second, 1.2 GB of 3 GB this month (41 %)
        this user: no limit
";
        assert_eq!(shown(Some([token, Used::default()])), expected);
        assert_eq!(shown(None), "the gateway is of an older version, and does not say\n");
    }

    #[test]
    fn whoever_has_no_policies_is_told_so() {
        let free = bearer(&claims(NOW + 9 * DAY_S));
        check(free, Exit::Done, &["reach   everything within its own space", "limits  none of its own"]);
        let policies = Grant::new(vec![list(true, "[]")]);
        check(bearer(&Claims { policies, ..claims(NOW + 9 * DAY_S) }), Exit::Done, &["reach   nothing"]);
    }

    #[test]
    fn a_token_that_ends_soon_is_warned_of_and_one_that_has_ended_is_nobodys() {
        let soon = "until   2027-01-18 08:00:00 UTC (in 3 days): ask for a new one";
        check(bearer(&claims(NOW + 3 * DAY_S)), Exit::Done, &[soon, "gateway gw.example:443 was not asked"]);
        let over = "until   2027-01-15 06:00:00 UTC (2 hours ago): no gateway takes it any more";
        check(bearer(&claims(NOW - 7200)), Exit::Authentication, &[over]);
        let early = "from    2027-01-15 09:00:00 UTC (in 60 minutes): no gateway takes it yet";
        let nbf = Some(NOW + 3600);
        check(bearer(&Claims { nbf, ..claims(NOW + 9 * DAY_S) }), Exit::Authentication, &[early]);
        let broken = "token   client.yaml, which this version can't read: not a token: it has fewer than three parts, \
                      joined by dots";
        check(identity("words"), Exit::Authentication, &[broken]);
    }

    #[test]
    fn a_refusal_is_shown_and_gives_the_exit_code() {
        let failed = |code, message: &str| {
            let mut identity = bearer(&claims(NOW + 9 * DAY_S));
            identity.answer = Answer::Failed(Failure::new(code, message));
            identity
        };
        let line = "gateway gw.example:443: it does not hold";
        check(failed(Exit::Authentication, "it does not hold"), Exit::Authentication, &[line]);
        let named = failed(Exit::Unreachable, "the gateway gw.example:443 can't be reached");
        check(named, Exit::Unreachable, &["gateway gw.example:443 can't be reached"]);
        let all = [
            bearer(&claims(NOW + 9 * DAY_S)),
            failed(Exit::Authentication, "no"),
            failed(Exit::Unreachable, "away"),
        ];
        assert_eq!(exit(&all, NOW), Exit::Authentication);
        let json: serde_json::Value = serde_json::from_str(&json(&all)).unwrap();
        let accepted: Vec<_> = (0..3).map(|n| json[n]["accepted"].clone()).collect();
        assert_eq!(accepted, [serde_json::Value::Null, false.into(), serde_json::Value::Null]);
        assert_eq!((&json[0]["token"]["name"], &json[2]["error"]), (&"laptop".into(), &"away".into()));
        assert_eq!(json[0]["token"]["policies"], serde_json::Value::Null);
    }
}
