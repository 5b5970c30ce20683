//! However a place is spelt, the verdict is that on its plain spelling, and where it is yes, the same place is
//! reached.

use std::{net::SocketAddr, time::Duration};

use narrowlink_agent::Agent;
use narrowlink_dataplane::run::worker;
use narrowlink_loadtest::{lab::Lab, site::Transport};
use narrowlink_proto::{
    ended::RefusalCode,
    policy::Policies,
    target::{Target, TargetError},
    token::Kind,
};

use crate::{
    alone,
    kit::{
        asker::{Answer, Asker},
        inside::{add_addresses, inside, put_in_place_of},
        net::Greeter,
        spell::{spell, spell_name},
    },
};

const WS: Transport = Transport { tls: false, raw: false };
/// Of every target.
const PORT: u16 = 7000;
/// Each has a target that says which it is.
const ADDRESSES: [&str; 4] = ["127.0.0.1", "192.0.2.77", "::1", "2001:db8::77"];
/// In the order of their lines in /etc/hosts.
const NAMES: [&str; 2] = ["localhost", "b\u{fc}cher.test"];
const HOSTS: &str = "127.0.0.1 localhost\n192.0.2.77 xn--bcher-kva.test\n";

/// What is to come of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Reached,
    Refused(RefusalCode),
}

use Expected::{Reached, Refused};
const POLICY: Expected = Refused(RefusalCode::Policy);
const BY_AGENT: Expected = Refused(RefusalCode::DeniedByAgent);

/// Who decides, and how.
struct Case {
    what: &'static str,
    /// Of the client's token.
    list: Option<List>,
    agent: &'static str,
    /// Of an address, and of a name.
    expected: [Expected; 2],
}

const fn case(what: &'static str, list: Option<List>, agent: &'static str, expected: [Expected; 2]) -> Case {
    Case { what, list, agent, expected }
}

/// White or black, and its items.
type List = (bool, &'static [&'static str]);

const fn white(items: &'static [&'static str]) -> Option<List> {
    Some((true, items))
}

const fn black(items: &'static [&'static str]) -> Option<List> {
    Some((false, items))
}

/// The places as a list has them, in plain words and in others.
const BY_IP: [&str; 4] = [
    r#"{"Ip":[null,"127.0.0.1",0,"ANY"]}"#,
    r#"{"Ip":[null,"::ffff:192.0.2.0/120",7000,"TCP"]}"#,
    r#"{"Ip":[null,"0:0:0:0:0:0:0:1",0,"ANY"]}"#,
    r#"{"Ip":[null,"2001:DB8::/32",7000,"HTTP"]}"#,
];
const BY_NAME: [&str; 2] =
    [r#"{"Domain":[null,"LocalHost.",0,"ANY"]}"#, r#"{"Domain":[null,"B\u00dcCHER.test",0,"TCP"]}"#];
const BOTH: [&str; 6] = [BY_IP[0], BY_IP[1], BY_IP[2], BY_IP[3], BY_NAME[0], BY_NAME[1]];
const OTHERS: [&str; 3] = [
    r#"{"Ip":[null,"198.51.100.0/24",0,"ANY"]}"#,
    r#"{"Ip":[null,"2001:db8:1::/48",0,"ANY"]}"#,
    r#"{"Domain":[null,"elsewhere.test",0,"ANY"]}"#,
];

const CASES: [Case; 14] = [
    case("no list", None, "free", [Reached, Reached]),
    case("a white list that has it", white(&BOTH), "free", [Reached, Reached]),
    case("a white list that has its address", white(&BY_IP), "free", [Reached, Reached]),
    case("a white list that has its name", white(&BY_NAME), "free", [POLICY, Reached]),
    case("a white list that has another", white(&OTHERS), "free", [POLICY, POLICY]),
    case("a black list that has it", black(&BOTH), "free", [POLICY, POLICY]),
    case("a black list that has its address", black(&BY_IP), "free", [POLICY, POLICY]),
    case("a black list that has its name", black(&BY_NAME), "free", [Reached, POLICY]),
    case("a black list that has another", black(&OTHERS), "free", [Reached, Reached]),
    case("an agent that denies its address", None, "denies", [BY_AGENT, BY_AGENT]),
    case("an agent that denies its name", None, "denies-names", [Reached, BY_AGENT]),
    case("an agent that allows its address", None, "allows", [Reached, Reached]),
    case("an agent that allows its name", None, "allows-names", [BY_AGENT, Reached]),
    case("an agent that allows another", None, "allows-others", [BY_AGENT, BY_AGENT]),
];

const AGENTS: [(&str, &str); 6] = [
    ("free", ""),
    ("denies", "deny: ['127.0.0.1:7000', '::ffff:192.0.2.77', '0:0::1', '2001:DB8::/32']\n"),
    ("denies-names", "deny: ['LOCALHOST.', 'b\u{fc}CHER.test:7000']\n"),
    ("allows", "allow: ['127.0.0.1:7000', '::ffff:192.0.2.77', '0:0::1', '2001:DB8::/32']\n"),
    ("allows-names", "allow: ['LOCALHOST.', 'b\u{fc}CHER.test:7000']\n"),
    ("allows-others", "allow: ['198.51.100.0/24', '2001:db8:1::/48', 'elsewhere.test', '*.localhost']\n"),
];

/// What some resolvers take for one of the places and others for none, or for another: nobody's to guess.
const NOT_HOSTS: [&str; 34] = [
    "",
    " 127.0.0.1",
    "127.0.0.1 ",
    "127.0.0.1\n",
    "127.0.0.1\0",
    "127.0.0.1\0.test",
    "127.0.0.1 x",
    "127.0.0.1%lo",
    "127.0.0.1:7000",
    "127.0.0.1/8",
    "user@127.0.0.1",
    "127.0.0.1#.test",
    "127.0.0.1?.test",
    "127.0.0.1\\.test",
    "%31%32%37.0.0.1",
    "[127.0.0.1]",
    "127.0.0.1..",
    "127..1",
    "127.0.0.0.1",
    "127.0.0.256",
    "0128.0.0.1",
    "0x7g.0.0.1",
    "0x1007f000001",
    "4294967296",
    "+127.0.0.1",
    "[::1",
    "::1]",
    "::1%lo",
    "[::1%25lo]",
    "::ffff:127.1",
    "::ffff:0x7f.0.0.1",
    "localhost..",
    ".localhost",
    "local host",
];

fn tcp(host: &str) -> Target {
    Target::Tcp { host: host.to_owned(), port: PORT }
}

impl Case {
    /// For the nth place: addresses come first.
    fn expects(&self, n: usize) -> Expected {
        self.expected[usize::from(n >= ADDRESSES.len())]
    }

    fn client(&self, lab: &Lab) -> Asker {
        let policies = self.list.map(|(permit, items)| -> Policies {
            let items = items.join(",");
            serde_json::from_str(&format!(r#"{{"permit":{permit},"policies":[{items}]}}"#)).unwrap()
        });
        let token = lab.site.token(Kind::Client, lab.uid, self.what, policies).unwrap();
        Asker::new(lab.entry(WS), &token)
    }

    /// Asks for a place in all its spellings; how many were answered as the plain one.
    async fn try_spellings(
        &self,
        client: &mut Asker,
        plain: &str,
        spellings: &[String],
        expected: Expected,
    ) -> usize {
        let right = client.ask_on(self.agent, &tcp(plain)).await;
        let as_expected = match (&right, expected) {
            (Answer::Said(_), Reached) => true,
            (answer, Refused(code)) => answer.code() == Some(code),
            _ => false,
        };
        assert!(as_expected, "{}: {plain}: {right:?}", self.what);
        let mut count = 0;
        for (n, spelling) in spellings.iter().enumerate() {
            let target = tcp(spelling);
            // The Open as a message, and in the upgrade.
            let answer = match n % 2 {
                0 => client.ask_on(self.agent, &target).await,
                _ => client.ask_anew(self.agent, &target).await,
            };
            let same = match (&answer, &right) {
                (Answer::Said(place), Answer::Said(plain)) => place == plain,
                (answer, right) => answer.code().is_some() && answer.code() == right.code(),
            };
            if same {
                count += 1;
            } else {
                println!("{}: {spelling:?} gave {answer:?}, {plain} {right:?}", self.what);
            }
        }
        count
    }
}

#[test]
fn every_spelling_of_a_place_has_the_verdict_of_the_place() {
    let _turn = alone();
    let test = "spellings::every_spelling_of_a_place_has_the_verdict_of_the_place";
    inside(test, Duration::from_secs(240), spellings_in_every_policy);
}

fn spellings_in_every_policy() {
    add_addresses(&ADDRESSES[1..2]);
    add_addresses(&ADDRESSES[3..]);
    let lab = Lab::start(2).unwrap();
    for (place, text) in [("/etc/hosts", HOSTS), ("/etc/nsswitch.conf", "hosts: files\n")] {
        let file = lab.site.dir().join(place.replace('/', "-"));
        std::fs::write(&file, text).unwrap();
        put_in_place_of(place, &file);
    }
    let targets = ADDRESSES.map(|ip| Greeter::start(SocketAddr::new(ip.parse().unwrap(), PORT)));
    let agents: Vec<Agent> =
        AGENTS.iter().map(|(name, extra)| lab.agent_with(lab.uid, name, WS, extra).unwrap()).collect();
    let places: Vec<(&str, Vec<String>)> = ADDRESSES
        .iter()
        .map(|ip| (*ip, spell(ip.parse().unwrap())))
        .chain(NAMES.iter().map(|name| (*name, spell_name(name))))
        .collect();
    places.iter().flat_map(|(_, spellings)| spellings).for_each(|spelling| the_client_passes_on(spelling));

    let all = places.iter().map(|(_, spellings)| spellings.len()).sum::<usize>();
    let (mut right, mut refused) = (Vec::new(), Vec::new());
    worker::run_alone(false, |_| async {
        for case in &CASES {
            let mut client = case.client(&lab);
            let mut count = 0;
            for (n, (plain, spellings)) in places.iter().enumerate() {
                count += case.try_spellings(&mut client, plain, spellings, case.expects(n)).await;
            }
            right.push(count);
            let mut count = 0;
            for text in NOT_HOSTS {
                let answer = client.ask_on(case.agent, &tcp(text)).await;
                match answer.code() {
                    Some(RefusalCode::Protocol) => count += 1,
                    _ => println!("{}: {text:?} gave {answer:?}", case.what),
                }
            }
            refused.push(count);
        }
    })
    .unwrap();
    let least = *right.iter().min().unwrap();
    println!("{least} of {all} spellings right in each of {} policies", CASES.len());
    let least_refused = *refused.iter().min().unwrap();
    println!("{least_refused} of {} texts that are no host refused in each", NOT_HOSTS.len());
    assert_eq!((least, least_refused), (all, NOT_HOSTS.len()));
    assert!(all >= 60);
    let reached = targets.iter().map(Greeter::count).sum::<usize>();
    println!("{reached} sessions reached their targets");
    // The plain spelling comes beside the others.
    let asked = |n: usize| places[n].1.len() + 1;
    let may =
        |case: &Case| (0..places.len()).filter(|n| case.expects(*n) == Reached).map(asked).sum::<usize>();
    assert_eq!(reached, CASES.iter().map(may).sum::<usize>());
    agents.into_iter().for_each(Agent::stop);
}

/// What a user writes is what is sent, or nothing is.
fn the_client_passes_on(spelling: &str) {
    match format!("{spelling}:{PORT}").parse::<Target>() {
        Ok(Target::Tcp { host, port }) => {
            let written =
                spelling.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(spelling);
            assert_eq!((host.as_str(), port), (written, PORT));
        }
        // Without brackets nobody knows where it ends.
        other => {
            assert!(other == Err(TargetError::NoPort) && spelling.contains(':'), "{spelling}: {other:?}");
        }
    }
}
