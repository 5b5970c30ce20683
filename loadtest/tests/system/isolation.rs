//! One agent that does not do its part costs nobody else anything.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_dataplane::{
    peer::{self, Ask, Gateway, PeerLink},
    run::worker::{self, spawn},
};
use narrowlink_loadtest::{lab::Lab, site::Transport};
use narrowlink_proto::{
    feature::Features,
    id::{LaneId, SessionId, Uid},
    message::{Channel, Message, Open, Speaker},
    target::Target,
    token::Kind,
    upgrade::{Framing, LaneProof, Protocol},
};

use crate::{
    alone,
    kit::timing::{assert_hardly_delayed, percentile},
    start_echo,
};

const WSS: Transport = Transport { tls: true, raw: false };
const PATIENCE: Duration = Duration::from_secs(20);
const DIALS: usize = 1000;
const PROBES: usize = 200;

/// What the bad agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It never reads its link again.
    StopsReading,
    /// It offers lanes, takes dials, and never answers one.
    NeverAnswers,
}

/// A gateway as the endpoint file names it.
fn gateway(lab: &Lab, kind: Kind, uid: Uid, name: &str) -> Gateway {
    let token = lab.site.token(kind, uid, name, None).unwrap();
    let file = format!("raw-{name}.yaml");
    let path = lab.site.endpoint_yaml(&file, lab.entry(WSS), WSS, &token, "").unwrap();
    let config = narrowlink_loadtest::lab::agent_config(&path).unwrap();
    Gateway::load(&config.endpoints[0], &config.base).unwrap()
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// Runs a bad agent; returns when it is welcomed.
fn start_bad_agent(gateway: Gateway, fault: Fault) {
    let (ready, welcomed) = std::sync::mpsc::channel();
    thread::spawn(move || {
        worker::run_alone(false, |_| async move {
            let mut link = peer::join(&gateway, Features::NONE, None, PATIENCE).await.unwrap();
            ready.send(()).unwrap();
            if fault == Fault::StopsReading {
                return future::pending().await;
            }
            let gateway = std::rc::Rc::new(gateway);
            // Each word says how many wait by now: one lane for each time that is said would be half a million.
            let mut left = DIALS;
            while let Ok(message) = link.next().await {
                if let Message::NeedLane { count } = message {
                    let count = left.min(count as usize);
                    (0..count).for_each(|_| offer_lane(&gateway, &link));
                    left -= count;
                }
            }
        })
        .unwrap();
    });
    welcomed.recv_timeout(PATIENCE).unwrap();
}

fn offer_lane(gateway: &std::rc::Rc<Gateway>, link: &PeerLink) {
    let lane = LaneId::from_bytes(random());
    let proof = LaneProof { link: link.link, lane, proof: link.secret.prove_lane(&link.link, &lane) };
    let gateway = gateway.clone();
    spawn(async move {
        let protocol = Protocol { channel: Channel::Lane, framing: Framing::Framed };
        if let Ok((conn, _)) = peer::open(&gateway, protocol, Ask::Lane(proof), PATIENCE).await {
            let _dial = conn.recv(Speaker::Gateway, Channel::Lane).await;
            future::pending::<()>().await;
        }
    });
}

/// A thousand dials, all unanswered at the same time; counts those that were answered.
fn start_dials(gateway: Gateway, answered: Arc<AtomicUsize>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        worker::run_alone(false, |_| async move {
            let gateway = std::rc::Rc::new(gateway);
            let (done, ended) = async_channel::bounded(DIALS);
            for n in 0..DIALS {
                let (gateway, done, answered) = (gateway.clone(), done.clone(), answered.clone());
                spawn(async move {
                    // 500 a second: the handshakes of all at once would fill both cores.
                    monoio::time::sleep(Duration::from_millis(2 * n as u64)).await;
                    let open = Open {
                        session: SessionId::from_bytes(random()),
                        agent: "bad".into(),
                        target: Target::Tcp { host: "127.0.0.1".into(), port: 9 },
                        e2ee: None,
                    };
                    let protocol = Protocol { channel: Channel::Stream, framing: Framing::Framed };
                    let opened = peer::open(&gateway, protocol, Ask::Open(open), PATIENCE).await;
                    if opened.is_err() {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    let _ = done.send(()).await;
                });
            }
            for _ in 0..DIALS {
                ended.recv().await.unwrap();
            }
        })
        .unwrap();
    })
}

/// What half of the times are below, and all but a hundredth.
#[derive(Debug, Clone, Copy)]
struct Times {
    median: Duration,
    p99: Duration,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        Self { median: percentile(&mut times, 50), p99: percentile(&mut times, 99) }
    }

    /// Whoever waits for the bad agent waits for seconds: for a dial's timeout, or for ever.
    fn assert_hardly_delayed(self, what: &str, alone: Self) {
        assert_hardly_delayed(
            &format!("{what}, median"),
            self.median,
            alone.median,
            Duration::from_millis(50),
        );
        assert_hardly_delayed(&format!("{what}, p99"), self.p99, alone.p99, Duration::from_secs(1));
    }
}

/// Another user's connections and lists while the dials wait.
fn probe(lab: &Lab, entry: SocketAddr) -> [Times; 2] {
    let connects = (0..PROBES)
        .map(|_| {
            let started = Instant::now();
            let mut stream = TcpStream::connect(entry).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0; 1]).unwrap();
            started.elapsed()
        })
        .collect();
    let gateway = gateway(lab, Kind::Client, lab.uid, "prober");
    let lists = worker::run_alone(false, |_| async move {
        let mut link = peer::join(&gateway, Features::NONE, None, PATIENCE).await.unwrap();
        let mut times = Vec::new();
        for _ in 0..PROBES {
            let started = Instant::now();
            link.send(&Message::List).unwrap();
            let Ok(Message::Agents { agents, .. }) = link.next().await else { panic!("no list") };
            assert_eq!(agents.len(), 1, "another user's agents are in the list");
            times.push(started.elapsed());
        }
        times
    });
    [Times::of(connects), Times::of(lists.unwrap())]
}

fn a_bad_agent_delays_nobody_else(fault: Fault) {
    let _turn = alone();
    let lab = Lab::start(2).unwrap();
    let _agent = lab.agent("good", WSS).unwrap();
    let forward = lab.forward("good", start_echo(), WSS).unwrap();
    let before = probe(&lab, forward.local_addr);

    let other = Uid::from_u128(8);
    start_bad_agent(gateway(&lab, Kind::Agent, other, "bad"), fault);
    let answered = Arc::new(AtomicUsize::new(0));
    let dials = start_dials(gateway(&lab, Kind::Client, other, "dialler"), answered.clone());
    let beside = probe(&lab, forward.local_addr);
    for (what, (beside, alone)) in ["connections", "lists"].iter().zip(beside.into_iter().zip(before)) {
        beside.assert_hardly_delayed(&format!("{fault:?}: {what} beside {DIALS} dials"), alone);
    }
    // Every dial is told in the end; none hangs for ever.
    dials.join().unwrap();
    assert_eq!(answered.load(Ordering::Relaxed), DIALS);
}

#[test]
fn an_agent_that_stops_reading_its_link_delays_nobody_else() {
    a_bad_agent_delays_nobody_else(Fault::StopsReading);
}

#[test]
fn an_agent_that_never_answers_a_dial_delays_nobody_else() {
    a_bad_agent_delays_nobody_else(Fault::NeverAnswers);
}
