//! Whoever is revoked is gone within two seconds, and nobody else notices; secrets are rolled in and out.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use narrowlink_control::{config::Config, revocations::Revocations};
use narrowlink_loadtest::{lab::Lab, site::Transport};
use narrowlink_proto::{
    id::Uid,
    token::{Claims, Keys, Kind, Secret},
};

use crate::{
    alone, count, start_echo,
    visitor::{ask, connect, wait_for_reset},
};

const WSS: Transport = Transport { tls: true, raw: false };
const GONE_WITHIN: Duration = Duration::from_secs(2);
const FOR_EVER: u64 = 4_000_000_000;

fn claims(kind: Kind, name: &str) -> Claims {
    Claims {
        iat: Some(1_000),
        ..Claims::new(kind, Uid::from_u128(7), name, FOR_EVER, &format!("jti of {name}"))
    }
}

fn revoking(lab: &Lab, yaml: &str) -> Config {
    let path = lab.site.dir().join("revoked.yaml");
    std::fs::write(&path, yaml).unwrap();
    Config { revocations: Revocations::load(&path).unwrap().unwrap(), ..lab.config().unwrap() }
}

/// How long until the other side of `stream` says that it is over, which is never a clean end.
fn gone_after(stream: &mut TcpStream, since: Instant) -> Duration {
    wait_for_reset(stream);
    since.elapsed()
}

#[test]
fn one_of_many_is_revoked_and_the_others_go_on() {
    let _alone = alone();
    let clients = usize::try_from(count("NARROWLINK_CLIENTS", 20)).unwrap();
    let lab = Lab::start(2).unwrap();
    let _agent = lab.agent("home", WSS).unwrap();
    let target = start_echo();
    let mut streams = Vec::new();
    let mut forwards = Vec::new();
    for n in 0..clients {
        let token = lab.site.sign(&claims(Kind::Client, &format!("client {n}"))).unwrap();
        let forward = lab.forward_as(&token, "home", target, WSS).unwrap();
        let mut stream = connect(forward.local_addr);
        ask(&mut stream).unwrap();
        streams.push(stream);
        forwards.push(forward);
    }
    let victim = clients / 2;
    let since = Instant::now();
    lab.gateway().reload(&revoking(&lab, &format!("- jti: jti of client {victim}\n"))).unwrap();
    let took = gone_after(&mut streams[victim], since);
    println!("1 of {clients} revoked: gone after {took:?}");
    assert!(took < GONE_WITHIN, "{took:?}");
    for (n, stream) in streams.iter_mut().enumerate().filter(|(n, _)| *n != victim) {
        ask(stream).unwrap_or_else(|e| panic!("client {n} of {clients} was cut off: {e}"));
    }
    // It does not come back, be it that it tries.
    let mut again = connect(forwards[victim].local_addr);
    assert!(ask(&mut again).is_err());
    let mut other = connect(forwards[0].local_addr);
    ask(&mut other).unwrap();
    forwards.into_iter().for_each(narrowlink_client::Forward::stop);
}

#[test]
fn a_revoked_agent_loses_its_sessions_and_its_link() {
    let _alone = alone();
    let lab = Lab::start(2).unwrap();
    let target = start_echo();
    for (name, entry) in [
        ("by-name", "- {uid: 00000000-0000-0000-0000-000000000007, name: by-name}\n"),
        ("by-date", "- {uid: 00000000-0000-0000-0000-000000000007, name: by-date, issued_before: 2000}\n"),
    ] {
        let token = lab.site.sign(&claims(Kind::Agent, name)).unwrap();
        let _agent = lab.agent_by(&token, name, WSS, "").unwrap();
        let forward = lab.forward(name, target, WSS).unwrap();
        let mut stream = connect(forward.local_addr);
        ask(&mut stream).unwrap();
        let since = Instant::now();
        lab.gateway().reload(&revoking(&lab, entry)).unwrap();
        let took = gone_after(&mut stream, since);
        println!("agent {name} revoked: session gone after {took:?}");
        assert!(took < GONE_WITHIN, "{took:?}");
        let mut again = connect(forward.local_addr);
        assert!(ask(&mut again).is_err(), "a parked lane of a revoked agent still serves");
        forward.stop();
    }
}

/// Connects again and again through whichever forward is named by `which`; counts what worked.
fn keep_connecting(
    forwards: Vec<SocketAddr>,
    which: Arc<AtomicUsize>,
    done: Arc<AtomicBool>,
) -> thread::JoinHandle<BTreeMap<usize, u64>> {
    thread::spawn(move || {
        let mut served = BTreeMap::new();
        let mut next = Instant::now();
        while !done.load(Ordering::Relaxed) {
            let at = which.load(Ordering::Relaxed);
            let mut stream = connect(forwards[at]);
            ask(&mut stream).unwrap_or_else(|e| panic!("client {at}, after {served:?}: {e}"));
            *served.entry(at).or_default() += 1;
            // 200 a second.
            next += Duration::from_millis(5);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        served
    })
}

#[test]
fn a_secret_is_rolled_in_and_the_old_one_out_and_no_connection_fails() {
    let _alone = alone();
    let lab = Lab::start(2).unwrap();
    let target = start_echo();
    let phase = Duration::from_millis(500 * count("NARROWLINK_PHASES", 1));
    let new = [9; 32];
    let signed = |kind, name| Keys::new(&new).sign(&claims(kind, name)).unwrap();
    let old_agent = lab.agent("home", WSS).unwrap();
    let old = lab.forward("home", target, WSS).unwrap();
    // Both secrets are believed.
    let config = lab.config().unwrap();
    let new_secret = Secret::from_bytes(new.to_vec()).unwrap();
    let mut secrets = vec![new_secret.clone()];
    secrets.extend(config.secrets.clone());
    let both = Config { secrets, ..config.clone() };
    let one = Config { secrets: vec![new_secret], ..config };
    let (which, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    lab.gateway().reload(&both).unwrap();
    let new = lab.forward_as(&signed(Kind::Client, "laptop"), "home", target, WSS).unwrap();
    let users = keep_connecting(vec![old.local_addr, new.local_addr], which.clone(), done.clone());
    thread::sleep(phase);
    which.store(1, Ordering::Relaxed);
    thread::sleep(phase);
    // The same installation with its new token takes over.
    let new_agent = lab.agent_by(&signed(Kind::Agent, "home"), "home", WSS, "").unwrap();
    thread::sleep(phase);
    old_agent.stop();
    thread::sleep(phase);
    let mut left = connect(old.local_addr);
    ask(&mut left).unwrap();
    let since = Instant::now();
    lab.gateway().reload(&one).unwrap();
    let took = gone_after(&mut left, since);
    thread::sleep(phase);
    done.store(true, Ordering::Relaxed);
    let served = users.join().unwrap();
    println!(
        "served with each secret: {served:?}, 0 failed; what was left of the old one gone after {took:?}"
    );
    assert!(served.len() == 2 && served.values().all(|served| *served > 50), "{served:?}");
    assert!(took < GONE_WITHIN, "{took:?}");
    new_agent.stop();
}
