//! Role: names whose servers are silent, and hosts of which one address is dead.
//! Invariants: one client's silent names delay neither another client nor the agent's way back to its gateway · a dead
//! address costs a moment, once.
//! See: ARCHITECTURE.md, "Decisions": getaddrinfo; RFC 8305.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use narrowlink_dataplane::run::worker;
use narrowlink_proto::target::Target;
use socket2::{Domain, Socket, Type};

use crate::kit::{
    PATIENCE,
    asker::{Answer, Asker},
    dns::NameServer,
    inside::{add_addresses, inside, put_in_place_of},
    net::Greeter,
    site::{Site, Transport, UID},
    wait_for,
};

const PORT: u16 = 7000;
/// One client's names that nobody answers for.
const SILENT: usize = 12;
/// How long the system's resolver waits for a silent server: far longer than this test.
const HUNG: &str = "timeout:29 attempts:1";
/// How soon everything else must have gone on. Behind the silent names it would take 29 s.
const SOON: Duration = Duration::from_secs(12);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An installation in namespaces of its own, and the only name server there.
fn set_up() -> (Site, NameServer, Vec<String>) {
    let names = NameServer::start("127.0.0.1:53".parse().expect("an address"));
    let site = Site::new();
    put_in_place_of("/etc/resolv.conf", &site.write_secret("resolv.conf", "nameserver 127.0.0.1\n"));
    put_in_place_of("/etc/nsswitch.conf", &site.write_secret("nsswitch.conf", "hosts: files dns\n"));
    let client = |name: &str| format!("  - !Client {{ uid: {UID}, name: {name}, exp: 1d }}\n");
    let agent = format!("  - !Agent {{ uid: {UID}, name: named, exp: 1d }}\n");
    let tokens = site.tokens(&(agent + &client("quick") + &client("slow")));
    (site, names, tokens)
}

fn dial(gateway: SocketAddr, token: &str, host: &str) -> Answer {
    let (asker, target) = (Asker::new(gateway, token), Target::Tcp { host: host.to_owned(), port: PORT });
    worker::run_alone(false, |_| async move { asker.ask_anew("named", &target).await }).expect("a runtime")
}

#[test]
fn one_client_s_silent_names_delay_no_other_client_and_not_the_way_to_the_gateway() {
    let test = "names::one_client_s_silent_names_delay_no_other_client_and_not_the_way_to_the_gateway";
    inside(test, Duration::from_secs(120), silent_names);
}

fn silent_names() {
    let (mut site, names, tokens) = set_up();
    names.set("good.names.test", vec![vec![ip("127.0.0.1")]]);
    names.set("gw.names.test", vec![vec![site.gateway_addr(Transport::Ws).ip()]]);
    let target = Greeter::start(SocketAddr::new(ip("127.0.0.1"), PORT));
    let mut gateway = site.start_gateway();
    let addr = site.gateway_addr(Transport::Ws);
    let by_name = format!("gw.names.test:{}", addr.port());
    let mut agent = site.start_agent_by(&by_name, "named", &tokens[0], "", HUNG);

    let silent: Vec<_> = (0..SILENT).map(|n| format!("silent-{n}.names.test")).collect();
    silent.iter().for_each(|name| names.silence(name));
    for name in silent.clone() {
        let token = tokens[2].clone();
        thread::spawn(move || dial(addr, &token, &name));
    }
    let hung = || silent.iter().filter(|name| names.asked(name).a > 0).count();
    wait_for("four look-ups that hang", PATIENCE, || (hung() >= 4).then_some(()));

    let began = Instant::now();
    let said = dial(addr, &tokens[1], "good.names.test");
    println!("beside {} hung look-ups a dial by name took {:?}", hung(), began.elapsed());
    assert_eq!(said, Answer::Said(target.addr.to_string()));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());

    gateway.kill_9();
    let mut gateway = site.start_gateway();
    let began = Instant::now();
    wait_for("the agent's way back", SOON, || (agent_connected(&agent) >= 2).then_some(()));
    println!("beside {} hung look-ups the agent came back by name in {:?}", hung(), began.elapsed());
    let said = wait_for("its lanes", SOON, || {
        let answer = dial(addr, &tokens[1], "good.names.test");
        matches!(answer, Answer::Said(_)).then_some(answer)
    });
    assert_eq!(said, Answer::Said(target.addr.to_string()));
    agent.assert_running();
    gateway.assert_running();
}

fn agent_connected(agent: &crate::kit::process::Running) -> usize {
    agent.said_times(" connected gateway=")
}

#[test]
fn a_dead_address_of_a_host_costs_a_moment_once() {
    inside("names::a_dead_address_of_a_host_costs_a_moment_once", Duration::from_secs(120), dead_address);
}

fn dead_address() {
    // IPv6 of the global kind, which the system's resolver puts first.
    let (dead, alive) = ("2001:db8::9", "10.77.0.1");
    add_addresses(&[dead, alive]);
    let (mut site, names, tokens) = set_up();
    names.set("two.names.test", vec![vec![ip(dead), ip(alive)]]);
    let alive = Greeter::start(SocketAddr::new(ip(alive), PORT));
    let dead = SocketAddr::new(ip(dead), PORT);
    let silence = Silent::start(dead);
    let mut gateway = site.start_gateway();
    let addr = site.gateway_addr(Transport::Ws);
    let mut agent = site.start_agent_at(addr, "named", &tokens[0], "");

    let began = Instant::now();
    let first = dial(addr, &tokens[1], "two.names.test");
    println!("the first dial took {:?}", began.elapsed());
    assert_eq!(first, Answer::Said(alive.addr.to_string()));
    // One address after the other, the dead one would have had four seconds.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());

    // Were the dead address tried first again, it would answer now.
    drop(silence);
    let revived = Greeter::start(dead);
    let began = Instant::now();
    let second = dial(addr, &tokens[1], "two.names.test");
    println!("the second dial took {:?}", began.elapsed());
    assert_eq!(second, Answer::Said(alive.addr.to_string()), "the family that won was forgotten");
    assert_eq!((revived.count(), alive.count()), (0, 2));
    agent.assert_running();
    gateway.assert_running();
}

/// An address at which the kernel drops what comes: it listens, and its queue is full.
struct Silent {
    _listener: Socket,
    _queued: Vec<TcpStream>,
}

impl Silent {
    fn start(addr: SocketAddr) -> Self {
        let listener = Socket::new(Domain::for_address(addr), Type::STREAM, None).expect("a socket");
        listener.set_reuse_address(true).expect("a socket takes options");
        listener.bind(&addr.into()).expect("our own address");
        listener.listen(0).expect("it listens");
        let patience = Duration::from_millis(300);
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&addr, patience) {
            queued.push(stream);
            assert!(queued.len() < 16, "the queue is never full");
        }
        Self { _listener: listener, _queued: queued }
    }
}
