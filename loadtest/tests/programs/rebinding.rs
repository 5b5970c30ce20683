//! Role: a name whose addresses change from one look-up to the next: what is refused is never dialled.
//! Invariants: the verdict is on the addresses that are dialled, of one look-up · an allowed address among
//! others is reached · every address here really listens, refused ones too, and counts.
//! See: docs/policy.md, "Net".

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use narrowlink_dataplane::run::worker;
use narrowlink_proto::{ended::RefusalCode, target::Target};

use crate::kit::{
    asker::{Answer, Asker},
    dns::{Asked, NameServer},
    inside::{add_addresses, inside, put_in_place_of},
    net::Greeter,
    number_from_env,
    process::Running,
    site::{Site, Transport, UID},
    spell::spell_name,
};

/// Of every target.
const PORT: u16 = 7000;
/// Reached by those who may.
const ALLOWED: [&str; 2] = ["10.77.0.1", "fd77::1"];
/// Allowed, and nobody listens there.
const DEAF: &str = "10.77.0.2";
/// Refused by the lists below, or because of what it is.
const REFUSED: [&str; 10] = [
    "10.66.0.1",
    "10.66.0.2",
    "fd66::1",
    "64:ff9b::10.66.0.1",
    "169.254.169.254",
    "64:ff9b::169.254.169.254",
    "100.100.100.200",
    "fd00:ec2::254",
    "127.0.0.1",
    "::1",
];
/// The client's items and the agent's, in both ways.
const ALLOWED_NETS: [&str; 2] = ["10.77.0.0/24", "fd77::/16"];
const REFUSED_NETS: [&str; 2] = ["10.66.0.0/16", "fd66::/16"];

/// What a name server says to the first look-up, and what to those after it. (How many there are is a prime
/// number: see [`Kind::of`].)
struct Kind {
    first: &'static [&'static str],
    then: &'static [&'static str],
}

const KINDS: [Kind; 29] = [
    Kind { first: &["10.77.0.1"], then: &["10.66.0.1"] },
    Kind { first: &["10.66.0.1"], then: &["10.77.0.1"] },
    Kind { first: &["10.77.0.1", "10.66.0.1"], then: &["10.66.0.1"] },
    Kind { first: &["10.66.0.1", "10.77.0.1"], then: &["10.66.0.1"] },
    Kind { first: &["10.66.0.1", "10.66.0.2"], then: &["10.77.0.1"] },
    Kind { first: &["fd77::1"], then: &["fd66::1"] },
    Kind { first: &["fd66::1"], then: &["fd77::1"] },
    Kind { first: &["fd77::1", "fd66::1"], then: &["fd66::1"] },
    Kind { first: &["fd66::1", "fd77::1"], then: &["fd66::1"] },
    Kind { first: &["10.77.0.1", "fd66::1"], then: &["fd66::1"] },
    Kind { first: &["10.66.0.1", "fd77::1"], then: &["10.66.0.1"] },
    Kind { first: &["10.66.0.1", "fd66::1"], then: &["10.77.0.1", "fd77::1"] },
    Kind { first: &["::ffff:10.77.0.1"], then: &["::ffff:10.66.0.1"] },
    Kind { first: &["::ffff:10.66.0.1"], then: &["::ffff:10.77.0.1"] },
    Kind { first: &["::ffff:10.66.0.1", "10.77.0.1"], then: &["::ffff:10.66.0.1"] },
    Kind { first: &["::ffff:10.77.0.1", "10.66.0.1"], then: &["10.66.0.1"] },
    Kind { first: &["169.254.169.254"], then: &["10.77.0.1"] },
    Kind { first: &["10.77.0.1", "169.254.169.254", "fd00:ec2::254"], then: &["169.254.169.254"] },
    Kind { first: &["::ffff:169.254.169.254", "fd00:ec2::254"], then: &["fd77::1"] },
    Kind { first: &["100.100.100.200"], then: &["fd77::1"] },
    // What a NAT64 gateway would make of them.
    Kind { first: &["64:ff9b::10.66.0.1"], then: &["10.77.0.1"] },
    Kind { first: &["10.77.0.1", "64:ff9b::10.66.0.1"], then: &["64:ff9b::10.66.0.1"] },
    Kind { first: &["64:ff9b::10.66.0.1", "fd77::1"], then: &["64:ff9b::10.66.0.1"] },
    Kind { first: &["64:ff9b::10.66.0.1", "10.66.0.2", "fd66::1"], then: &["10.77.0.1"] },
    Kind { first: &["64:ff9b::169.254.169.254"], then: &["10.77.0.1"] },
    // To connect there is to connect to this machine.
    Kind { first: &["0.0.0.0", "::"], then: &["10.77.0.1"] },
    // Somebody who tries the next address, or asks again, would reach what is refused.
    Kind { first: &["10.77.0.2", "10.66.0.1"], then: &["10.66.0.1"] },
    Kind { first: &["10.77.0.2"], then: &["10.66.0.1"] },
    Kind { first: &["10.77.0.2", "10.77.0.1"], then: &["10.66.0.1"] },
];

impl Kind {
    /// The nth: each as often as the others, in each round after another one.
    fn of(n: usize) -> &'static Self {
        let step = 1 + n / KINDS.len() % (KINDS.len() - 1);
        &KINDS[n * step % KINDS.len()]
    }

    fn has(&self, places: &[&str]) -> bool {
        self.first.iter().any(|text| places.iter().any(|place| ip(place) == ip(text).to_canonical()))
    }
}

/// Who keeps a client from the refused addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Keeper {
    /// Its token lists what it may not reach.
    BlackList,
    /// Its token lists what it may reach.
    WhiteList,
    /// The agent's own list.
    Agent,
}

const KEEPERS: [Keeper; 3] = [Keeper::BlackList, Keeper::WhiteList, Keeper::Agent];

impl Keeper {
    fn token(self) -> String {
        let list = |permit, nets: [&str; 2]| {
            let [a, b] = nets.map(|net| format!("!Ip [null, \"{net}\", 0, ANY]"));
            format!(", policies: {{ permit: {permit}, policies: [{a}, {b}] }}")
        };
        let policies = match self {
            Self::BlackList => list(false, REFUSED_NETS),
            Self::WhiteList => list(true, ALLOWED_NETS),
            Self::Agent => String::new(),
        };
        format!("  - !Client {{ uid: {UID}, name: {self:?}, exp: 1d{policies} }}\n")
    }

    const fn agent(self) -> &'static str {
        match self {
            Self::BlackList | Self::WhiteList => "free",
            Self::Agent => "careful",
        }
    }

    /// Its name is an international one, so that it has many spellings.
    fn names(self) -> (String, String) {
        let below = format!("{self:?}").to_lowercase();
        (format!("b\u{fc}cher.{below}.test"), format!("xn--bcher-kva.{below}.test"))
    }

    fn may_say(self, code: RefusalCode) -> bool {
        match self {
            Self::BlackList => matches!(code, RefusalCode::Policy | RefusalCode::DeniedByAgent),
            Self::WhiteList => code == RefusalCode::Policy,
            Self::Agent => code == RefusalCode::DeniedByAgent,
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

/// What came of the dials.
#[derive(Debug, Default)]
struct Outcome {
    reached: usize,
    refused: BTreeMap<RefusalCode, usize>,
    found_nobody: usize,
    /// How often a look-up was answered in each way.
    answers: BTreeMap<String, usize>,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.reached += other.reached;
        self.found_nobody += other.found_nobody;
        other.refused.into_iter().for_each(|(code, n)| *self.refused.entry(code).or_default() += n);
        other.answers.into_iter().for_each(|(what, n)| *self.answers.entry(what).or_default() += n);
    }
}

/// The dials of one client, one after the other; every other one on the stream of the one before.
async fn dial_again_and_again(
    keeper: Keeper,
    dials: usize,
    names: &NameServer,
    mut client: Asker,
) -> Outcome {
    let (written, name) = keeper.names();
    let spellings = spell_name(&written);
    let mut outcome = Outcome::default();
    for n in 0..dials {
        let kind = Kind::of(n);
        names.set(&name, vec![ips(kind.first), ips(kind.then)]);
        let target = Target::Tcp { host: spellings[n % spellings.len()].clone(), port: PORT };
        let answer = match n % 2 {
            0 => client.ask_on(keeper.agent(), &target).await,
            _ => client.ask_anew(keeper.agent(), &target).await,
        };
        let what =
            format!("{keeper:?}, dial {n}, {target} at {:?}, then {:?}: {answer:?}", kind.first, kind.then);
        assert_eq!(names.asked(&name), Asked { a: 1, aaaa: 1 }, "not looked up once: {what}");
        match &answer {
            Answer::Said(place) => {
                let place: SocketAddr = place.parse().expect("a target says where it is");
                let text = place.ip().to_string();
                assert!(ALLOWED.contains(&text.as_str()) && kind.has(&[&text]), "{what}");
                outcome.reached += 1;
            }
            Answer::Refused(refused) if kind.has(&ALLOWED) => panic!("{}: {what}", refused.reason),
            Answer::Refused(refused) if kind.has(&[DEAF]) => {
                assert_eq!(refused.code, RefusalCode::TargetRefused, "{what}");
                outcome.found_nobody += 1;
            }
            Answer::Refused(refused) => {
                assert!(keeper.may_say(refused.code), "{what}");
                *outcome.refused.entry(refused.code).or_default() += 1;
            }
            Answer::Broke(_) => panic!("{what}"),
        }
        *outcome.answers.entry(kind.first.join(" ")).or_default() += 1;
    }
    outcome
}

#[test]
fn a_refused_address_is_never_dialled_whatever_a_name_resolves_to() {
    let test = "rebinding::a_refused_address_is_never_dialled_whatever_a_name_resolves_to";
    inside(test, Duration::from_secs(240), names_that_change);
}

fn names_that_change() {
    let loopback = ["127.0.0.1", "::1"];
    let places = ALLOWED.iter().chain(&[DEAF]).chain(&REFUSED).copied();
    add_addresses(&places.filter(|place| !loopback.contains(place)).collect::<Vec<_>>());
    let greet = |place: &&str| Greeter::start(SocketAddr::new(ip(place), PORT));
    let (allowed, refused) = (ALLOWED.iter().map(greet), REFUSED.iter().map(greet));
    let (allowed, refused): (Vec<_>, Vec<_>) = (allowed.collect(), refused.collect());
    let names = NameServer::start("127.0.0.1:53".parse().expect("an address"));
    let mut site = Site::new();
    put_in_place_of("/etc/resolv.conf", &site.write_secret("resolv.conf", "nameserver 127.0.0.1\n"));
    put_in_place_of("/etc/nsswitch.conf", &site.write_secret("nsswitch.conf", "hosts: files dns\n"));

    let agent = |name: &str| format!("  - !Agent {{ uid: {UID}, name: {name}, exp: 1d }}\n");
    let tokens = site.tokens(&(agent("free") + &agent("careful") + &KEEPERS.map(Keeper::token).concat()));
    let mut gateway = site.start_gateway();
    let addr = site.gateway_addr(Transport::Ws);
    let deny = format!("deny: {REFUSED_NETS:?}\n");
    let mut agents = [("free", ""), ("careful", deny.as_str())]
        .into_iter()
        .zip(&tokens)
        .map(|((name, more), token)| site.start_agent_at(addr, name, token, more))
        .collect::<Vec<_>>();

    let dials = number_from_env("NARROWLINK_DIALS", 1000) as usize;
    let mut outcome = Outcome::default();
    thread::scope(|scope| {
        let threads = KEEPERS.iter().zip(&tokens[2..]).enumerate().map(|(n, (&keeper, token))| {
            let names = &names;
            // A third each, and not one less in all.
            let dials = (dials + n) / KEEPERS.len();
            let client = move || Asker::new(addr, token);
            let all =
                move || worker::run_alone(false, |_| dial_again_and_again(keeper, dials, names, client()));
            scope.spawn(move || all().expect("a runtime"))
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().for_each(|thread| outcome.add(thread.join().expect("its dials were right")));
    });

    for (what, times) in &outcome.answers {
        println!("{times:>4} look-ups were answered {what}");
    }
    let Outcome { reached, refused: codes, found_nobody, .. } = &outcome;
    println!(
        "{dials} dials, each looked up once: {reached} reached an allowed address, {found_nobody} nobody, \
         refused {codes:?}"
    );
    let wrong = refused.iter().map(Greeter::count).sum::<usize>();
    println!("{wrong} connections at the {} refused addresses", refused.len());
    assert_eq!(wrong, 0);
    assert_eq!(allowed.iter().map(Greeter::count).sum::<usize>(), *reached);
    assert_eq!(reached + found_nobody + codes.values().sum::<usize>(), dials);
    // Else what was tested was something else.
    assert_eq!(outcome.answers.len(), KINDS.len(), "{dials} dials are too few");
    gateway.assert_running();
    agents.iter_mut().for_each(Running::assert_running);
}
