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
    peer::{self, Ask, Gateway},
    run::worker,
    tunnel::conn::Conn,
};
use narrowlink_loadtest::{
    lab::Lab,
    site::{Transport, now},
};
use narrowlink_proto::{
    feature::Features,
    frame::{self, HEADER_BYTES_MAX, Header, Opcode},
    id::Uid,
    message::{Channel, Message, Speaker, VERSION},
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
        timing::{assert_hardly_delayed, assert_once_within, percentile},
    },
};

const WS: Transport = Transport { tls: false, raw: false };
const PATIENCE: Duration = Duration::from_secs(30);
const GONE_WITHIN: Duration = Duration::from_secs(2);
const FOR_EVER: u64 = 4_000_000_000;
/// Questions on their way at the same time: so many that the gateway always has the next one already.
const AHEAD: usize = 20_000;
/// Asked at once.
const BATCH: usize = 1000;
/// Of somebody else, meanwhile ..
const PROBES: usize = 200;
/// .. most of which take less: 0.5 ms as a rule. Whoever has no turn waits for ever.
const SOON: Duration = Duration::from_millis(500);

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
    /// When it was cut off.
    thread: thread::JoinHandle<Instant>,
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
                let ended = monoio::time::timeout(PATIENCE, on.ask_for_ever(&gateway, &count)).await;
                ended.unwrap_or_else(|_| panic!("{on:?}: it was never cut off"));
                Instant::now()
            })
            .unwrap()
        });
        let this = Self { answers, thread };
        wait_until("the flood's answers", || this.count() > BATCH as u64);
        this
    }

    fn count(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

impl On {
    const fn channel(self) -> Channel {
        match self {
            Self::Stream => Channel::Stream,
            Self::Link => Channel::Link,
        }
    }

    /// As it goes over the wire. Who is refused has not used its session's id.
    fn question(self) -> Vec<u8> {
        let target = Target::Tcp { host: "198.51.100.1".to_owned(), port: 22 };
        let message = match self {
            Self::Stream => Message::Open(open("home", &target)),
            Self::Link => Message::List,
        };
        let text = message.encode();
        let mut head = [0; HEADER_BYTES_MAX];
        let payload_bytes = text.len() as u64;
        let header = Header { fin: true, opcode: Opcode::Text, mask: Some([0; 4]), payload_bytes };
        let len = frame::encode(&header, &mut head);
        [&head[..len], &text].concat()
    }

    /// What is in each answer, once.
    const fn mark(self) -> &'static [u8] {
        match self {
            Self::Stream => br#""code":"policy""#,
            Self::Link => br#""name":"home""#,
        }
    }

    async fn connect(self, gateway: &Gateway) -> Conn {
        let protocol = Protocol { channel: self.channel(), framing: Framing::Framed };
        let (conn, _) = peer::open(gateway, protocol, Ask::Nothing, PATIENCE).await.unwrap();
        if matches!(self, Self::Link) {
            let hello = conn.recv(Speaker::Gateway, Channel::Link).await;
            assert!(matches!(hello, Ok(Message::Hello { .. })), "{hello:?}");
            let present = Message::Present { version: VERSION, features: Features::NONE, instance: None };
            conn.send(&present).await.unwrap();
            let welcome = conn.recv(Speaker::Gateway, Channel::Link).await;
            assert!(matches!(welcome, Ok(Message::Welcome { .. })), "{welcome:?}");
        }
        conn
    }

    /// Until the gateway ends it.
    async fn ask_for_ever(self, gateway: &Gateway, answers: &AtomicU64) {
        let conn = self.connect(gateway).await;
        let (more, wanted) = async_channel::bounded(AHEAD);
        for _ in 0..AHEAD / BATCH {
            more.try_send(()).unwrap();
        }
        let questions = self.question().repeat(BATCH);
        let asking = async {
            while wanted.recv().await.is_ok() {
                if conn.wire().write_all(&questions).await.is_err() {
                    break;
                }
            }
            // Whoever hears sees the end, too.
            future::pending::<()>().await;
        };
        let hearing = async {
            let (mut count, mut rest) = (0, Vec::new());
            let mut buf = vec![0; 256 * 1024];
            while let Ok(bytes @ 1..) = conn.wire().read(&mut buf).await {
                rest.extend_from_slice(&buf[..bytes]);
                let found = rest.windows(self.mark().len()).filter(|text| *text == self.mark()).count();
                let batches = (count + found) / BATCH - count / BATCH;
                (0..batches).for_each(|_| more.try_send(()).unwrap());
                count += found;
                answers.store(count as u64, Ordering::Relaxed);
                // The next mark may have begun.
                rest.drain(..rest.len().saturating_sub(self.mark().len() - 1));
            }
        };
        future::or(hearing, asking).await;
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
    let at = flood.thread.join().unwrap();
    let took = at.saturating_duration_since(since);
    let answers = flood.answers.load(Ordering::Relaxed) - before;
    println!("{on:?}: {answers} answers after its token was revoked");
    assert_once_within(&format!("{on:?}: gone after its token was revoked"), GONE_WITHIN, took);
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
    // Some of its time is left, even of the last second.
    let exp = now() + 1;
    let flood = Flood::start(on, &lab, &token(&lab, "flood", exp));
    flood.thread.join().unwrap();
    let late = now().saturating_sub(exp + LEEWAY_S);
    let answers = flood.answers.load(Ordering::Relaxed);
    println!("{on:?}: {answers} answers in all");
    let late = Duration::from_secs(late);
    assert_once_within(&format!("{on:?}: gone after its token had expired"), GONE_WITHIN, late);
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

/// What three of four sessions of somebody else, on the same worker, take at the most.
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
    percentile(&mut times.unwrap(), 75)
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
        narrowlink_loadtest::lab::agent_config(&path).unwrap()
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
    wait_until("refusals", || refused.load(Ordering::Relaxed) > BATCH as u64);
    let count = refused.load(Ordering::Relaxed);
    let beside = probe(&lab, &target);
    let answers = refused.load(Ordering::Relaxed) - count;
    assert!(answers > 0, "there was no flood");
    let what = format!("another gateway's third quartile beside {answers} refusals");
    assert_hardly_delayed(&what, beside, before, SOON);
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
    lab.gateway().reload(&revoking(&lab, "flood")).unwrap();
    flood.thread.join().unwrap();
    assert!(answers > 0, "there was no flood");
    let what = format!("{on:?}: others' third quartile beside {answers} answers");
    assert_hardly_delayed(&what, beside, before, SOON);
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
