//! Role: a gateway that is its agents' enemy: what it may not reach it does not reach, whatever it says.
//! Invariants: the agent's own list and the special addresses are all that holds here: the gateway leaves the
//! client's rules out, or says that everything is allowed · what can't be read is not dialled · every address
//! that can have a listener has one, and counts.
//! See: agent/src/rules.rs; docs/configuration.md, "agent.yaml".

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use narrowlink_proto::{ended::RefusalCode, id::SessionId};
use serde_json::{Value, json};

use crate::kit::{
    asker::{Answer, random},
    forged::Forged,
    inside::{add_addresses, inside, put_in_place_of},
    net::Greeter,
    process::Running,
    site::{Site, UID},
    spell::{spell, spell_name},
};

/// Of every target.
const PORT: u16 = 7000;
/// Somewhere that each agent dials.
const GOOD: &str = "10.77.0.1";
/// Nothing special about them.
const PLAIN: [&str; 5] = [GOOD, "10.66.0.1", "fd66::1", "127.0.0.1", "::1"];
/// What they are to this machine is not the gateway's business.
const SPECIAL: [&str; 9] = [
    "169.254.169.254",
    "100.100.100.200",
    "192.0.0.192",
    "169.254.1.1",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:42::42",
    "fe80::1",
];
/// Nobody can listen there, and still a connection to some of them would reach this machine.
const NOWHERE: [&str; 10] = [
    "0.0.0.0",
    "::",
    "0.1.2.3",
    "224.0.0.1",
    "239.255.255.250",
    "ff02::1",
    "255.255.255.255",
    "febf::1",
    "64:ff9b::169.254.169.254",
    "64:ff9b::a9fe:101",
];
/// Names, and what they resolve to.
const NAMES: [(&str, &str); 5] = [
    ("good.test", GOOD),
    ("b\u{fc}ses.test", GOOD),
    ("metadata.test", "169.254.169.254"),
    ("six.test", "fd00:ec2::254"),
    ("zero.test", "0.0.0.0"),
];

/// An agent's lists, and what it dials in spite of them.
struct Guard {
    name: &'static str,
    lists: &'static str,
    addresses: &'static [&'static str],
    names: &'static [&'static str],
}

const GUARDS: [Guard; 5] = [
    Guard { name: "without", lists: "", addresses: &PLAIN, names: &["good.test", "b\u{fc}ses.test"] },
    Guard {
        name: "denies",
        lists: "deny: ['10.66.0.0/16', 'fd66::1', 'B\u{dc}SES.test']\n",
        addresses: &[GOOD, "127.0.0.1", "::1"],
        names: &["good.test"],
    },
    Guard {
        name: "allows",
        lists: "allow: ['10.77.0.1']\n",
        addresses: &[GOOD],
        names: &["good.test", "b\u{fc}ses.test"],
    },
    // So wide a list means none of the special ones.
    Guard {
        name: "allows-all",
        lists: "allow: ['0.0.0.0/0', '::/0', '**.test', 'metadata.test']\n",
        addresses: &PLAIN,
        names: &["good.test", "b\u{fc}ses.test"],
    },
    // Else nobody could know that they listen.
    Guard {
        name: "opens",
        lists: "allow: ['169.254.169.254', '169.254.1.1:7000', 'fd00:ec2::254', '10.77.0.1']\n",
        addresses: &[GOOD, "169.254.169.254", "169.254.1.1", "fd00:ec2::254"],
        names: &["good.test", "b\u{fc}ses.test", "metadata.test", "six.test"],
    },
];

/// What a gateway says of the client's rules to have everything dialled.
fn permissive_rules() -> Vec<Option<Value>> {
    vec![
        None,
        Some(Value::Null),
        Some(json!([{ "list": 0, "permit": false, "items": [] }])),
        Some(json!([{ "list": 0, "permit": true, "items": [
            { "Ip": [0, "0.0.0.0/0", 0, "ANY"] }, { "Ip": [1, "::/0", 0, "ANY"] } ] }])),
    ]
}

/// Rules that an agent can't read, or not in full: a newer gateway's, or a liar's.
fn unreadable_rules() -> Vec<Value> {
    let item = |item: Value| json!([{ "list": 0, "permit": false, "items": [item] }]);
    vec![
        json!([]),
        json!({}),
        json!(true),
        json!("all"),
        json!(0),
        json!([null]),
        json!([[]]),
        json!([{}]),
        json!([{ "list": 0, "permit": false }]),
        json!([{ "list": 0, "items": [] }]),
        json!([{ "permit": false, "items": [] }]),
        json!([{ "list": -1, "permit": false, "items": [] }]),
        json!([{ "list": 0, "permit": "yes", "items": [] }]),
        json!([{ "list": 0, "permit": false, "items": [], "unless": [] }]),
        json!([{ "list": 0, "permit": false, "items": {} }]),
        json!([{ "list": 0, "permit": false, "items": [] }, {}]),
        item(json!({ "Asn": [0, 64512] })),
        item(json!({ "Ip": [] })),
        item(json!({ "Ip": [0, "198.51.100.1", 0] })),
        item(json!({ "Ip": [0, "198.51.100.1", 0, "ANY", "weekdays"] })),
        item(json!({ "Ip": [0, "198.51.100.1/33", 0, "ANY"] })),
        item(json!({ "Ip": [0, "::ffff:198.51.100.1/64", 0, "ANY"] })),
        item(json!({ "Ip": [0, "example.test", 0, "ANY"] })),
        item(json!({ "Ip": [0, "198.51.100.1", "ssh", "ANY"] })),
        item(json!({ "Ip": [0, "198.51.100.1", 65_536, "ANY"] })),
        item(json!({ "Ip": [0, "198.51.100.1", 0, "SCTP"] })),
        item(json!({ "Ip": [0, "198.51.100.1", 0, "ANY"], "Asn": [0, 64512] })),
        item(json!({ "Domain": [0, "good.test", 0, "ANY"] })),
        item(json!({ "Any": [0, true] })),
        item(json!(null)),
    ]
}

fn session() -> SessionId {
    SessionId::from_bytes(random())
}

fn tcp(host: &str) -> Value {
    json!({ "tcp": { "host": host, "port": PORT } })
}

/// A Dial, with these fields in the place of what a gateway says.
fn dial(session: SessionId, fields: Value) -> String {
    let mut words = json!({
        "type": "dial",
        "session": session.to_string(),
        "origin": { "client": { "name": "laptop", "peer_addr": "192.0.2.1:1" } },
        "target": tcp(GOOD),
    });
    let (Value::Object(all), Value::Object(fields)) = (&mut words, fields) else { unreachable!("objects") };
    for (key, value) in fields {
        all.insert(key, value);
    }
    words.to_string()
}

/// What an agent was asked for, and what came of it.
#[derive(Default)]
struct Tally {
    asked: usize,
    denied: usize,
    /// By address.
    reached: BTreeMap<String, usize>,
}

impl Guard {
    fn dials(&self, place: &str) -> Option<&'static str> {
        let by_name = NAMES.iter().find(|(name, _)| *name == place);
        match by_name {
            Some((name, addr)) => self.names.contains(name).then_some(*addr),
            None => self.addresses.iter().find(|addr| **addr == place).copied(),
        }
    }

    /// Asks for every place in every spelling, with every kind of rules that allow it.
    fn try_all(&self, gateway: &Forged, tally: &mut Tally) {
        let addresses = PLAIN.iter().chain(&SPECIAL).chain(&NOWHERE);
        let addresses = addresses.map(|ip| (*ip, spell(ip.parse().expect("an address"))));
        let names = NAMES.iter().map(|(name, _)| (*name, spell_name(name)));
        for (place, spellings) in addresses.chain(names) {
            for spelling in &spellings {
                for rules in permissive_rules() {
                    let mut fields = json!({ "target": tcp(spelling) });
                    if let Some(rules) = &rules {
                        fields["rules"] = rules.clone();
                    }
                    let session = session();
                    let answer = gateway.say(session, dial(session, fields));
                    let what =
                        format!("{}: {spelling:?}, which is {place}, by {rules:?}: {answer:?}", self.name);
                    tally.asked += 1;
                    match (&answer, self.dials(place)) {
                        (Answer::Said(said), Some(addr)) => {
                            let said: SocketAddr = said.parse().expect("a target says where it is");
                            assert_eq!(said.ip().to_string(), addr, "{what}");
                            *tally.reached.entry(addr.to_owned()).or_default() += 1;
                        }
                        (Answer::Refused(refused), None) => {
                            assert_eq!(refused.code, RefusalCode::DeniedByAgent, "{what}");
                            tally.denied += 1;
                        }
                        _ => panic!("{what}"),
                    }
                }
            }
        }
    }
}

/// What can't be read ends the lane, and nothing is dialled.
fn say_the_unreadable(gateway: &Forged) -> usize {
    let session = session();
    let rules = unreadable_rules().into_iter().map(|rules| json!({ "rules": rules }));
    let others = [
        json!({ "origin": "visitor" }),
        json!({ "origin": {} }),
        json!({ "origin": { "client": { "name": "c" } } }),
        json!({ "origin": { "visitor": { "host": "good.test" } } }),
        json!({ "target": null }),
        json!({ "target": {} }),
        json!({ "target": GOOD }),
        json!({ "target": { "sctp": { "host": GOOD, "port": PORT } } }),
        json!({ "target": { "tcp": { "host": GOOD, "port": 65_536 } } }),
        json!({ "target": { "tcp": { "host": GOOD, "port": "7000" } } }),
        json!({ "target": { "tcp": { "host": 2_886_729_729_u32, "port": PORT } } }),
        json!({ "target": { "tcp": { "host": GOOD, "port": PORT }, "udp": { "host": GOOD, "port": PORT } } }),
        json!({ "session": "" }),
        json!({ "type": "open" }),
        json!({ "type": "dial2" }),
    ];
    let mut words: Vec<_> = rules.chain(others).map(|fields| dial(session, fields)).collect();
    // Which of two counts?
    let whole = dial(session, json!({}));
    for twice in [json!({ "rules": null }), json!({ "target": tcp(GOOD) })] {
        let (twice, whole) = (twice.to_string(), dial(session, json!({ "rules": null })));
        words.push(format!("{},{}", &whole[..whole.len() - 1], &twice[1..]));
    }
    words.push(format!("{whole} {whole}"));
    words.push(whole[..whole.len() - 1].to_owned());
    for words in &words {
        let answer = gateway.say(session, words.clone());
        let ended = matches!(&answer, Answer::Broke(why) if why.contains("1002"));
        assert!(ended, "{words}: {answer:?}");
    }
    words.len()
}

/// What can be read and is not served.
fn say_the_unserved(gateway: &Forged) -> usize {
    let host = |host: &str, port: u16| json!({ "target": { "tcp": { "host": host, "port": port } } });
    let (unsupported, no_place) = (RefusalCode::Unsupported, RefusalCode::TargetUnresolvable);
    let cases = [
        (json!({ "target": { "udp": { "host": GOOD, "port": PORT } } }), unsupported),
        (json!({ "target": { "icmp": { "host": GOOD } } }), unsupported),
        (json!({ "target": { "unix": { "path": "/run/x" } } }), unsupported),
        (json!({ "e2ee": "AAAA" }), unsupported),
        (json!({ "origin": { "guest": { "host": "good.test" } } }), unsupported),
        (host(GOOD, 0), no_place),
        (host("", PORT), no_place),
        (host("10.77.0.1 ", PORT), no_place),
        (host("10.77.0.1\0", PORT), no_place),
        (host("10.77.0.1%lo", PORT), no_place),
        (host("[10.77.0.1]", PORT), no_place),
        (host("[fe80::1%25lo]", PORT), no_place),
        (host("010.077.0.0.1", PORT), no_place),
        (host("/run/x", PORT), no_place),
    ];
    let count = cases.len();
    for (fields, code) in cases {
        let session = session();
        let answer = gateway.say(session, dial(session, fields.clone()));
        assert_eq!(answer.code(), Some(code), "{fields}: {answer:?}");
    }
    count
}

#[test]
fn an_agents_own_rules_bind_a_hostile_gateway() {
    let test = "hostile::an_agents_own_rules_bind_a_hostile_gateway";
    inside(test, Duration::from_secs(240), hostile_gateways);
}

fn hostile_gateways() {
    let loopback = ["127.0.0.1", "::1"];
    let listening = PLAIN.iter().chain(&SPECIAL).copied().collect::<Vec<_>>();
    add_addresses(&listening.iter().copied().filter(|ip| !loopback.contains(ip)).collect::<Vec<_>>());
    // A link-local address can be listened on, but only with its interface's name.
    let targets = listening.iter().filter(|ip| **ip != "fe80::1");
    let targets = targets.map(|ip| Greeter::start(SocketAddr::new(ip.parse().expect("an address"), PORT)));
    let targets: Vec<_> = targets.collect();
    let site = Site::new();
    let hosts = NAMES.map(|(name, ip)| format!("{ip} {}\n", name.replace("b\u{fc}ses", "xn--bses-0ra")));
    put_in_place_of("/etc/hosts", &site.write_secret("hosts", &hosts.concat()));
    put_in_place_of("/etc/nsswitch.conf", &site.write_secret("nsswitch.conf", "hosts: files\n"));
    let token = site.tokens(&format!("  - !Agent {{ uid: {UID}, name: home, exp: 1d }}\n")).remove(0);

    let mut all = BTreeMap::<String, usize>::new();
    for guard in &GUARDS {
        let gateway = Forged::start();
        let mut agent: Running = site.start_agent_at(gateway.addr, guard.name, &token, guard.lists);
        let mut tally = Tally::default();
        guard.try_all(&gateway, &mut tally);
        let (unreadable, unserved) = (say_the_unreadable(&gateway), say_the_unserved(&gateway));
        let reached = tally.reached.values().sum::<usize>();
        println!(
            "{:>10}: of {} dials {reached} reached what it allows, {} denied; {unreadable} unreadable, \
             {unserved} unserved",
            guard.name, tally.asked, tally.denied
        );
        tally.reached.into_iter().for_each(|(addr, n)| *all.entry(addr).or_default() += n);
        agent.assert_running();
    }
    let mut wrong = 0;
    for target in &targets {
        let right = all.get(&target.addr.ip().to_string()).copied().unwrap_or_default();
        wrong += target.count().abs_diff(right);
    }
    println!("{wrong} connections at {} addresses that were not allowed", targets.len());
    assert_eq!(wrong, 0);
}
