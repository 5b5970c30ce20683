//! Whoever is revoked is gone within two seconds, and nobody else notices; secrets are rolled in and out.

use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
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
    alone, count,
    far::wait_until,
    kit::timing::assert_once_within,
    start_echo,
    visitor::{ask, connect, wait_for_reset},
};

const WSS: Transport = Transport { tls: true, raw: false };
const GONE_WITHIN: Duration = Duration::from_secs(2);
/// At the least.
const SERVED_IN_A_PHASE: u64 = 20;
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
    assert_once_within(&format!("1 of {clients} revoked: gone"), GONE_WITHIN, took);
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
        assert_once_within(&format!("agent {name} revoked: session gone"), GONE_WITHIN, took);
        let mut again = connect(forward.local_addr);
        assert!(ask(&mut again).is_err(), "a parked lane of a revoked agent still serves");
        forward.stop();
    }
}

/// Connects again and again, through one forward and later through another; counts what worked.
struct Users {
    which: Arc<AtomicUsize>,
    done: Arc<AtomicBool>,
    served: Arc<[AtomicU64; 2]>,
    thread: thread::JoinHandle<()>,
}

impl Users {
    fn start(forwards: [SocketAddr; 2]) -> Self {
        let (which, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let served = Arc::new([const { AtomicU64::new(0) }; 2]);
        let (now, end, count) = (which.clone(), done.clone(), served.clone());
        let thread = thread::spawn(move || {
            let mut next = Instant::now();
            while !end.load(Ordering::Relaxed) {
                let at = now.load(Ordering::Relaxed);
                let mut stream = connect(forwards[at]);
                ask(&mut stream).unwrap_or_else(|e| panic!("client {at}, after {count:?}: {e}"));
                count[at].fetch_add(1, Ordering::Relaxed);
                // 200 a second.
                next += Duration::from_millis(5);
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        Self { which, done, served, thread }
    }

    /// From now on through the second forward.
    fn change(&self) {
        self.which.store(1, Ordering::Relaxed);
    }

    /// Lets so long pass, and so many be served in it, however slow the machine is.
    fn go_on_for(&self, phase: Duration) {
        let served = || self.served.iter().map(|served| served.load(Ordering::Relaxed)).sum::<u64>();
        let (since, before) = (Instant::now(), served());
        wait_until("users who are served", || {
            assert!(!self.thread.is_finished(), "a connection has failed");
            since.elapsed() >= phase && served() >= before + SERVED_IN_A_PHASE
        });
    }

    fn stop(self) -> [u64; 2] {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().expect("no connection fails");
        [0, 1].map(|at| self.served[at].load(Ordering::Relaxed))
    }
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
    lab.gateway().reload(&both).unwrap();
    let new = lab.forward_as(&signed(Kind::Client, "laptop"), "home", target, WSS).unwrap();
    let users = Users::start([old.local_addr, new.local_addr]);
    users.go_on_for(phase);
    users.change();
    users.go_on_for(phase);
    // The same installation with its new token takes over.
    let new_agent = lab.agent_by(&signed(Kind::Agent, "home"), "home", WSS, "").unwrap();
    users.go_on_for(phase);
    old_agent.stop();
    users.go_on_for(phase);
    let mut left = connect(old.local_addr);
    ask(&mut left).unwrap();
    let since = Instant::now();
    lab.gateway().reload(&one).unwrap();
    let took = gone_after(&mut left, since);
    users.go_on_for(phase);
    let served = users.stop();
    println!("served with each secret: {served:?}, 0 failed");
    assert!(served.iter().all(|served| *served >= SERVED_IN_A_PHASE), "{served:?}");
    assert_once_within("what was left of the old secret: gone", GONE_WITHIN, took);
    new_agent.stop();
}
