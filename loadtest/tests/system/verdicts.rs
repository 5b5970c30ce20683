//! The verdict is taken at every open, also on a stream that stays: what was right for the one before says
//! nothing.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_control::{config::Config, revocations::Revocations};
use narrowlink_dataplane::{run::worker, tunnel::conn::ConnError};
use narrowlink_loadtest::{lab::Lab, site::Transport};
use narrowlink_proto::{
    ended::RefusalCode,
    id::Uid,
    message::{Channel, Speaker},
    policy::Policies,
    target::Target,
    token::{Claims, Kind},
};

use crate::{
    alone, count,
    kit::{
        asker::{Answer, Asker},
        net::{Greeter, private_ip},
        timing::assert_once_within,
    },
};

const WS: Transport = Transport { tls: false, raw: false };
const PATIENCE: Duration = Duration::from_secs(20);
const GONE_WITHIN: Duration = Duration::from_secs(2);
const FOR_EVER: u64 = 4_000_000_000;

fn tcp(addr: SocketAddr) -> Target {
    Target::Tcp { host: addr.ip().to_string(), port: addr.port() }
}

/// A target that says where it is.
fn greeter() -> Greeter {
    Greeter::start(SocketAddr::new(private_ip(), 0))
}

#[test]
fn each_open_on_one_stream_has_its_own_verdict() {
    let _turn = alone();
    let (allowed, by_policy, by_agent) = (greeter(), greeter(), greeter());
    let lab = Lab::start(1).unwrap();
    let extra = format!("deny: ['{}']\nlanes: {{ min: 1, max: 1 }}\n", by_agent.addr);
    let agent = lab.agent_with(lab.uid, "home", WS, &extra).unwrap();
    let ip = by_policy.addr.ip();
    let policies = format!(r#"{{"permit":false,"policies":[{{"Ip":[null,"{ip}",0,"ANY"]}}]}}"#);
    let policies: Policies = serde_json::from_str(&policies).unwrap();
    let token = lab.site.token(Kind::Client, lab.uid, "laptop", Some(policies)).unwrap();
    let rounds = usize::try_from(count("NARROWLINK_SESSIONS", 500)).unwrap();
    worker::run_alone(false, |_| async {
        let mut client = Asker::new(lab.entry(WS), &token);
        for _ in 0..rounds {
            for (target, right) in [
                (&allowed, Ok(Answer::Said(allowed.addr.to_string()))),
                (&by_policy, Err(RefusalCode::Policy)),
                (&by_agent, Err(RefusalCode::DeniedByAgent)),
            ] {
                let answer = client.ask_on("home", &tcp(target.addr)).await;
                match right {
                    Ok(right) => assert_eq!(answer, right),
                    Err(code) => assert_eq!(answer.code(), Some(code), "{answer:?}"),
                }
                assert!(client.stream().is_some(), "the stream does not stay");
            }
        }
    })
    .unwrap();
    let counts = [allowed, by_policy, by_agent].map(|target| target.count());
    println!("{} opens on one stream: {counts:?} connections", 3 * rounds);
    assert_eq!(counts, [rounds, 0, 0]);
    agent.stop();
}

fn revoking(lab: &Lab, jti: &str) -> Config {
    let path = lab.site.dir().join("revoked.yaml");
    std::fs::write(&path, format!("- jti: {jti}\n")).unwrap();
    Config { revocations: Revocations::load(&path).unwrap().unwrap(), ..lab.config().unwrap() }
}

fn token(lab: &Lab, jti: &str) -> String {
    lab.site.sign(&Claims::new(Kind::Client, Uid::from_u128(7), "laptop", FOR_EVER, jti)).unwrap()
}

#[test]
fn a_stream_between_two_sessions_serves_nobody_who_was_revoked() {
    let _turn = alone();
    let target = greeter();
    let lab = Lab::start(1).unwrap();
    let agent = lab.agent("home", WS).unwrap();
    let token = token(&lab, "revoked");
    worker::run_alone(false, |_| async {
        let mut client = Asker::new(lab.entry(WS), &token);
        let answer = client.ask_on("home", &tcp(target.addr)).await;
        assert_eq!(answer, Answer::Said(target.addr.to_string()));
        let since = Instant::now();
        lab.gateway().reload(&revoking(&lab, "revoked")).unwrap();
        let stream = client.stream().unwrap();
        let ended = monoio::time::timeout(PATIENCE, stream.recv(Speaker::Gateway, Channel::Stream)).await;
        assert!(matches!(ended, Ok(Err(ConnError::Closed { .. } | ConnError::Truncated))), "{ended:?}");
        let took = since.elapsed();
        assert_once_within("a stream without a session: gone after its token was revoked", GONE_WITHIN, took);
        for _ in 0..3 {
            let answer = client.ask_on("home", &tcp(target.addr)).await;
            assert!(!matches!(answer, Answer::Said(_)), "{answer:?}");
        }
    })
    .unwrap();
    assert_eq!(target.count(), 1);
    agent.stop();
}

/// Asks while the agent's only lane is taken, as a message and in the upgrade, and is revoked meanwhile.
fn nobody_is_dialled_for_who_was_revoked_while_waiting(anew: bool) {
    let _turn = alone();
    let target = greeter();
    let lab = Lab::start(1).unwrap();
    let agent = lab.agent_with(lab.uid, "home", WS, "lanes: { min: 1, max: 1 }\n").unwrap();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = lab.forward("home", holder.local_addr().unwrap(), WS).unwrap();
    let held = (TcpStream::connect(forward.local_addr).unwrap(), holder.accept().unwrap());
    let (waits, other) = (token(&lab, "waits"), token(&lab, "other"));
    worker::run_alone(false, |_| async {
        let place = tcp(target.addr);
        let mut client = Asker::new(lab.entry(WS), &waits);
        let asking = async {
            match anew {
                true => client.ask_anew("home", &place).await,
                false => client.ask_on("home", &place).await,
            }
        };
        let meanwhile = async {
            // Whoever comes later and has an answer shows that the question before has been heard.
            let answer = Asker::new(lab.entry(WS), &other).ask_anew("nobody", &place).await;
            assert_eq!(answer.code(), Some(RefusalCode::AgentNotFound));
            lab.gateway().reload(&revoking(&lab, "waits")).unwrap();
            drop(held);
        };
        let (answer, ()) = future::zip(asking, meanwhile).await;
        println!("revoked while waiting for a lane: {answer:?}");
        assert!(matches!(answer.code(), None | Some(RefusalCode::Unauthenticated)), "{answer:?}");
        // The lane is there for everybody else.
        let answer = Asker::new(lab.entry(WS), &other).ask_anew("home", &place).await;
        assert_eq!(answer, Answer::Said(target.addr.to_string()));
    })
    .unwrap();
    assert_eq!(target.count(), 1);
    forward.stop();
    agent.stop();
}

#[test]
fn nobody_is_dialled_for_a_stream_that_was_revoked_while_it_waited() {
    nobody_is_dialled_for_who_was_revoked_while_waiting(false);
}

#[test]
fn nobody_is_dialled_for_an_upgrade_that_was_revoked_while_it_waited() {
    nobody_is_dialled_for_who_was_revoked_while_waiting(true);
}
