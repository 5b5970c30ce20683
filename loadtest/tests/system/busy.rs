//! Somebody who never waits for an answer before the next question: gone as soon as anybody else whose token
//! doesn't hold any more, and nobody else's time is spent on it.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_control::{config::Config, revocations::Revocations};
use narrowlink_dataplane::{
    link,
    tunnel::{self, Ask, Gateway},
    worker,
};
use narrowlink_loadtest::{
    lab::Lab,
    site::{Transport, now},
};
use narrowlink_proto::{
    ended::RefusalCode,
    id::Uid,
    message::{Channel, Message, Speaker},
    target::Target,
    token::{Claims, Kind, LEEWAY_S},
    upgrade::{Framing, Protocol},
};

use crate::{
    alone,
    far::wait_until,
    kit::{
        asker::{Answer, Asker, open},
        forged::Forged,
        net::{Greeter, private_ip},
    },
};

const WS: Transport = Transport { tls: false, raw: false };
const PATIENCE: Duration = Duration::from_secs(20);
const GONE_WITHIN: Duration = Duration::from_secs(2);
const FOR_EVER: u64 = 4_000_000_000;
/// Questions on their way at the same time: so many that the gateway always has the next one already.
const AHEAD: usize = 8000;
/// Of somebody else, meanwhile.
const PROBES: usize = 200;

/// Where the questions are asked.
#[derive(Debug, Clone, Copy)]
enum On {
    /// On a stream: for what the policy refuses.
    Stream,
    /// On a link: for the list of agents.
    Link,
}

/// Somebody who asks again and again.
struct Flood {
    answers: Arc<AtomicU64>,
    /// When it was cut off, and what it saw.
    thread: thread::JoinHandle<(Instant, String)>,
}

impl Flood {
    fn start(on: On, lab: &Lab, token: &str) -> Self {
        let endpoint =
            serde_json::json!({ "gateway": lab.entry(WS).to_string(), "token": token, "protocol": "Ws" });
        let answers = Arc::new(AtomicU64::new(0));
        let count = answers.clone();
        let thread = thread::spawn(move || {
            let endpoint = serde_json::from_value(endpoint).unwrap();
            let gateway = Gateway::load(&endpoint, Path::new("")).unwrap();
            worker::run_alone(false, |_| async move {
                let asking = async {
                    match on {
                        On::Stream => ask_on_a_stream(&gateway, &count).await,
                        On::Link => ask_on_a_link(&gateway, &count).await,
                    }
                };
                let ended = monoio::time::timeout(PATIENCE, asking).await;
                (Instant::now(), ended.unwrap_or_else(|_| panic!("{on:?}: it was never cut off")))
            })
            .unwrap()
        });
        let this = Self { answers, thread };
        wait_until("the flood's answers", || this.count() > 2 * AHEAD as u64);
        this
    }

    fn count(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

/// Until the gateway ends the stream.
async fn ask_on_a_stream(gateway: &Gateway, answers: &AtomicU64) -> String {
    let protocol = Protocol { channel: Channel::Stream, framing: Framing::Framed };
    let (conn, _) = tunnel::open(gateway, protocol, Ask::Nothing, PATIENCE).await.unwrap();
    let target = Target::Tcp { host: "198.51.100.1".to_owned(), port: 22 };
    let (more, wanted) = async_channel::bounded(AHEAD);
    for _ in 0..AHEAD {
        more.try_send(()).unwrap();
    }
    let asking = async {
        while wanted.recv().await.is_ok() {
            if let Err(e) = conn.send(&Message::Open(open("home", &target))).await {
                return e.to_string();
            }
        }
        unreachable!("more are wanted for ever")
    };
    let hearing = async {
        loop {
            match conn.recv(Speaker::Gateway, Channel::Stream).await {
                Ok(Message::Refused(refused)) => assert_eq!(refused.code, RefusalCode::Policy, "{refused}"),
                Ok(other) => panic!("{other:?}"),
                Err(e) => return e.to_string(),
            }
            answers.fetch_add(1, Ordering::Relaxed);
            more.try_send(()).unwrap();
        }
    };
    future::or(hearing, asking).await
}

/// Until the gateway ends the link.
async fn ask_on_a_link(gateway: &Gateway, answers: &AtomicU64) -> String {
    let mut link = link::join(gateway, None, PATIENCE).await.unwrap();
    for _ in 0..AHEAD {
        link.send(&Message::List).unwrap();
    }
    loop {
        match link.next().await {
            Ok(Message::Agents { agents, .. }) => assert_eq!(agents.len(), 1),
            Ok(other) => panic!("{other:?}"),
            Err(e) => return e.to_string(),
        }
        answers.fetch_add(1, Ordering::Relaxed);
        if let Err(e) = link.send(&Message::List) {
            return e.to_string();
        }
    }
}

fn token(lab: &Lab, jti: &str, exp: u64) -> String {
    let policies = r#"{"permit":false,"policies":[{"Ip":[null,"198.51.100.0/24",0,"ANY"]}]}"#;
    let policies = serde_json::from_str(policies).unwrap();
    let claims = Claims::new(Kind::Client, Uid::from_u128(7), "laptop", exp, jti);
    lab.site.sign(&Claims { policies, ..claims }).unwrap()
}

fn revoking(lab: &Lab, jti: &str) -> Config {
    let path = lab.site.dir().join("revoked.yaml");
    std::fs::write(&path, format!("- jti: {jti}\n")).unwrap();
    Config { revocations: Revocations::load(&path).unwrap().unwrap(), ..lab.config().unwrap() }
}

fn is_gone_when_its_token_is_revoked(on: On) {
    let _turn = alone();
    let lab = Lab::start(1).unwrap();
    let agent = lab.agent("home", WS).unwrap();
    let flood = Flood::start(on, &lab, &token(&lab, "flood", FOR_EVER));
    let since = Instant::now();
    lab.gateway().reload(&revoking(&lab, "flood")).unwrap();
    let before = flood.count();
    let (at, saw) = flood.thread.join().unwrap();
    let took = at.saturating_duration_since(since);
    let answers = flood.answers.load(Ordering::Relaxed) - before;
    println!("{on:?}: gone {took:?} after its token was revoked, {answers} answers later: {saw}");
    assert!(took < GONE_WITHIN, "{took:?}");
    agent.stop();
}

#[test]
fn a_busy_stream_ends_when_its_token_is_revoked() {
    is_gone_when_its_token_is_revoked(On::Stream);
}

#[test]
fn a_busy_link_ends_when_its_token_is_revoked() {
    is_gone_when_its_token_is_revoked(On::Link);
}

fn is_gone_when_its_token_expires(on: On) {
    let _turn = alone();
    let lab = Lab::start(1).unwrap();
    let agent = lab.agent("home", WS).unwrap();
    let exp = now();
    let flood = Flood::start(on, &lab, &token(&lab, "flood", exp));
    let (_, saw) = flood.thread.join().unwrap();
    let late = now().saturating_sub(exp + LEEWAY_S);
    let answers = flood.answers.load(Ordering::Relaxed);
    println!("{on:?}: gone {late} s after its token had expired, {answers} answers in all: {saw}");
    assert!(late < GONE_WITHIN.as_secs(), "{late} s");
    agent.stop();
}

#[test]
fn a_busy_stream_ends_when_its_token_expires() {
    is_gone_when_its_token_expires(On::Stream);
}

#[test]
fn a_busy_link_ends_when_its_token_expires() {
    is_gone_when_its_token_expires(On::Link);
}

fn somebody(lab: &Lab) -> Asker {
    Asker::new(lab.entry(WS), &lab.site.token(Kind::Client, lab.uid, "somebody", None).unwrap())
}

fn place(target: &Greeter) -> Target {
    Target::Tcp { host: target.addr.ip().to_string(), port: target.addr.port() }
}

fn ask_once(lab: &Lab, target: &Greeter) -> Answer {
    worker::run_alone(false, |_| async { somebody(lab).ask_anew("home", &place(target)).await }).unwrap()
}

/// The p99 of somebody's sessions on the same worker.
fn probe(lab: &Lab, target: &Greeter) -> Duration {
    let place = place(target);
    let times = worker::run_alone(false, |_| async {
        let mut client = somebody(lab);
        let mut times = Vec::new();
        for _ in 0..PROBES {
            let started = Instant::now();
            let answer = client.ask_on("home", &place).await;
            assert_eq!(answer, Answer::Said(target.addr.to_string()));
            times.push(started.elapsed());
        }
        times
    });
    let mut times = times.unwrap();
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// An agent's other gateway asks it for what it denies.
#[test]
fn a_gateway_that_never_waits_delays_no_other_of_the_same_agent() {
    let _turn = alone();
    let target = Greeter::start((private_ip(), 0).into());
    let lab = Lab::start(1).unwrap();
    let forged = Forged::start();
    let token = lab.site.token(Kind::Agent, lab.uid, "home", None).unwrap();
    let endpoint = |file: &str, addr| {
        let path = lab.site.endpoint_yaml(file, addr, WS, &token, "state_dir: state\n").unwrap();
        narrowlink_agent::config::Config::load(&path).unwrap()
    };
    let mut config = endpoint("real.yaml", lab.entry(WS));
    config.endpoints.extend(endpoint("forged.yaml", forged.addr).endpoints);
    let agent = narrowlink_agent::start(config).unwrap();
    // It may have come to the other one first.
    wait_until("the agent at its real gateway", || ask_once(&lab, &target).code().is_none());
    let before = probe(&lab, &target);
    let refused = forged.pour(
        |session| {
            format!(
                r#"{{"type":"dial","session":"{session}","target":{{"tcp":{{"host":"0.0.0.0","port":22}}}},
                "origin":{{"client":{{"name":"laptop","peer_addr":"192.0.2.1:1"}}}}}}"#
            )
        },
        AHEAD,
    );
    wait_until("refusals", || refused.load(Ordering::Relaxed) > 2 * AHEAD as u64);
    let count = refused.load(Ordering::Relaxed);
    let beside = probe(&lab, &target);
    let answers = refused.load(Ordering::Relaxed) - count;
    println!("another gateway's p99 {beside:?} beside {answers} refusals, {before:?} alone");
    assert!(answers > 0, "there was no flood");
    assert!(beside < Duration::from_millis(50), "{beside:?}");
    agent.stop();
}

fn delays_nobody_else(on: On) {
    let _turn = alone();
    let target = Greeter::start((private_ip(), 0).into());
    let lab = Lab::start(1).unwrap();
    let agent = lab.agent("home", WS).unwrap();
    let before = probe(&lab, &target);
    let flood = Flood::start(on, &lab, &token(&lab, "flood", FOR_EVER));
    let count = flood.count();
    let beside = probe(&lab, &target);
    let answers = flood.count() - count;
    println!("{on:?}: others' p99 {beside:?} beside {answers} answers, {before:?} alone");
    lab.gateway().reload(&revoking(&lab, "flood")).unwrap();
    flood.thread.join().unwrap();
    assert!(answers > 0, "there was no flood");
    assert!(beside < Duration::from_millis(50), "{beside:?}");
    agent.stop();
}

#[test]
fn a_busy_stream_delays_nobody_else() {
    delays_nobody_else(On::Stream);
}

#[test]
fn a_busy_link_delays_nobody_else() {
    delays_nobody_else(On::Link);
}
