//! Role: a gateway that reads its configuration anew under load, again and again, good files and broken ones.
//! Invariants: no connection fails, no tunnel breaks, no byte is wrong · a broken file is refused with its place,
//! and the old one stays. `NARROWLINK_RELOADS` says how often.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    alone,
    kit::{
        PATIENCE,
        data::Pattern,
        net, number_from_env,
        site::{Transport, Tunnel},
        timing::assert_once_within,
        wait_for,
    },
};

/// Tunnels in which bytes flow all the time.
const TUNNELS: u64 = 20;
const TAKEN: &str = "gateway.yaml: taken";
const REFUSED: &str = "the configuration was not taken, the old one stays: ";

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("the local port takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    stream
}

/// What the users of a tunnel saw.
#[derive(Debug, Default)]
struct Seen {
    connections: AtomicU64,
    bytes: AtomicU64,
}

impl Seen {
    /// Waits until so many connections and bytes more have come, which takes 20 ms on an idle machine.
    fn wait_for_more(&self) {
        let now = || (self.connections.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        let (connections, bytes) = now();
        wait_for("users who are served", PATIENCE, || {
            let (more_connections, more_bytes) = now();
            (more_connections >= connections + 4 && more_bytes >= bytes + 100_000).then_some(())
        });
    }
}

/// Runs `act` while new connections are made and bytes flow through tunnels that stand.
fn under_load(local: SocketAddr, act: impl FnOnce(&Seen)) -> Seen {
    let (seen, done) = (Seen::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        for seed in 0..TUNNELS {
            let (seen, done) = (&seen, &done);
            scope.spawn(move || {
                let mut stream = connect(local);
                let (mut sent, mut expected) = (Pattern::new(seed), Pattern::new(seed));
                let (mut out, mut back, mut want) = ([0; 16_384], [0; 16_384], [0; 16_384]);
                while !done.load(Ordering::Relaxed) {
                    sent.read_exact(&mut out).expect("a pattern has no end");
                    stream.write_all(&out).expect("a tunnel that stands takes bytes");
                    stream.read_exact(&mut back).expect("a tunnel that stands gives bytes");
                    expected.read_exact(&mut want).expect("a pattern has no end");
                    assert!(back == want, "tunnel {seed}: wrong bytes");
                    seen.bytes.fetch_add(back.len() as u64, Ordering::Relaxed);
                }
            });
        }
        let users = (0..4).map(|_| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    net::echo(local);
                    seen.connections.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let users: Vec<_> = users.collect();
        act(&seen);
        done.store(true, Ordering::Relaxed);
        users.into_iter().for_each(|user| user.join().expect("no new connection fails"));
    });
    seen
}

fn reloads() -> usize {
    usize::try_from(number_from_env("NARROWLINK_RELOADS", 20)).expect("a small number")
}

fn many_reloads_under_load(transport: Transport) {
    let _alone = alone();
    let mut tunnel = Tunnel::start(transport);
    let forward = tunnel.forward(net::start_echo());
    net::echo(forward.local);
    let before = tunnel.gateway.said_times(TAKEN);
    let reloads = reloads();
    let seen = under_load(forward.local, |seen| {
        for n in 1..=reloads {
            tunnel.gateway.signal(Signal::HUP);
            wait_for("a reload", PATIENCE, || (tunnel.gateway.said_times(TAKEN) >= before + n).then_some(()));
            // So that something happens between two.
            seen.wait_for_more();
        }
    });
    println!("{reloads} reloads: {seen:?}, 0 failed, 0 broken, 0 wrong");
    tunnel.gateway.assert_running();
    assert_eq!(tunnel.gateway.said_times(REFUSED), 0);
}

fn broken_files_change_nothing(transport: Transport) {
    let _alone = alone();
    let mut tunnel = Tunnel::start(transport);
    let forward = tunnel.forward(net::start_echo());
    net::echo(forward.local);
    let path = tunnel.site.path("gateway.yaml");
    let good = fs::read_to_string(&path).expect("the file is ours");
    let pem = fs::read(tunnel.site.path("gateway.pem")).expect("the file is ours");
    let broken: [(&str, String, &str); 5] = [
        ("nonsense", "}{".to_owned(), "gateway.yaml"),
        ("an unknown key", format!("{good}colour: blue\n"), "unknown key; expected `name`"),
        ("no secret", good.replace("secret: ", "secrecy: "), "unknown key, did you mean `secret`?"),
        ("a weak secret", weak(&good), "can be guessed"),
        (
            "no service",
            good.replace("services:", "services: []\nservice_list:"),
            "unknown key; expected `name`",
        ),
    ];
    let rounds = (reloads() / 2).max(broken.len());
    let mut refused = 0;
    under_load(forward.local, |_| {
        for (what, text, says) in broken.iter().cycle().take(rounds) {
            fs::write(&path, text).expect("the file is ours");
            tunnel.gateway.signal(Signal::HUP);
            refused += 1;
            wait_for(what, PATIENCE, || (tunnel.gateway.said_times(REFUSED) >= refused).then_some(()));
            wait_for(says, PATIENCE, || (tunnel.gateway.said_times(says) > 0).then_some(()));
            net::echo(forward.local);
        }
        // A certificate that is no certificate, found without a signal.
        fs::write(&path, &good).expect("the file is ours");
        tunnel.gateway.signal(Signal::HUP);
        wait_for("the good file", PATIENCE, || (tunnel.gateway.said_times(TAKEN) > 0).then_some(()));
        let pem_path = tunnel.site.path("gateway.pem");
        fs::write(&pem_path, "-----BEGIN NOTHING-----").expect("the file is ours");
        wait_for("the broken certificate", PATIENCE, || {
            (tunnel.gateway.said_times(REFUSED) > refused).then_some(())
        });
        net::echo(forward.local);
        let taken = tunnel.gateway.said_times(TAKEN);
        fs::write(&pem_path, &pem).expect("the file is ours");
        wait_for("the whole certificate", PATIENCE, || {
            (tunnel.gateway.said_times(TAKEN) > taken).then_some(())
        });
    });
    println!("{rounds} broken files: {refused} refusals, and it served all the time");
    tunnel.gateway.assert_running();
}

fn weak(good: &str) -> String {
    let line = good.lines().find(|line| line.starts_with("secret: ")).expect("there is a secret");
    good.replace(line, "secret: [1, 2, 3]")
}

fn services_come_and_go_with_the_file(transport: Transport) {
    let _alone = alone();
    let mut tunnel = Tunnel::start(transport);
    let forward = tunnel.forward(net::start_echo());
    net::echo(forward.local);
    let path = tunnel.site.path("gateway.yaml");
    let good = fs::read_to_string(&path).expect("the file is ours");
    let more = net::free_addr();
    let line = format!("services:\n  - !Ws {{ domains: [{}], listen_addr: \"{more}\" }}\n", more.ip());
    let started = Instant::now();
    fs::write(&path, good.replace("services:\n", &line)).expect("the file is ours");
    net::wait_for_server("a service that was added", more, PATIENCE);
    let opened = started.elapsed();
    let mut standing = TcpStream::connect(more).expect("it listens");
    fs::write(&path, &good).expect("the file is ours");
    wait_for("a service to close", PATIENCE, || TcpStream::connect(more).is_err().then_some(()));
    // Who is there already is served.
    standing.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("it takes a request");
    let mut answer = String::new();
    standing.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let _ = standing.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer:?}");
    net::echo(forward.local);
    assert_once_within("a service that was added listens", Duration::from_secs(3), opened);
    tunnel.gateway.assert_running();
}

#[test]
fn many_reloads_under_load_over_ws() {
    many_reloads_under_load(Transport::Ws);
}

#[test]
fn many_reloads_under_load_over_wss() {
    many_reloads_under_load(Transport::Wss);
}

#[test]
fn broken_files_change_nothing_over_wss() {
    broken_files_change_nothing(Transport::Wss);
}

#[test]
fn services_come_and_go_with_the_file_over_ws() {
    services_come_and_go_with_the_file(Transport::Ws);
}
