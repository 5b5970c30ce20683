//! A forward on several workers: what its users see is what they see of one.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    num::NonZeroUsize,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use narrowlink_client::Forward;
use narrowlink_loadtest::{
    lab::{Lab, client_config},
    site::Transport,
    transfer::{Ending, Pace, Plan, run_at_once},
};
use narrowlink_proto::token::{Claims, Kind};

use crate::{
    alone, count,
    kit::{PATIENCE, timing::assert_once_within, wait_for},
    start_echo,
    visitor::{ask, connect, wait_for_reset},
};

const WS: Transport = Transport { tls: false, raw: false };
const WORKERS: usize = 3;
const CONNECTIONS: usize = 60;
/// Two for each worker, as they come in turn.
const BIG: usize = 2 * WORKERS;
const FOR_EVER: u64 = 4_000_000_000;
/// What a connection waits for the one before it at the most.
const ORDER_TIMEOUT: Duration = Duration::from_millis(5);

fn forward(lab: &Lab, workers: usize, target: SocketAddr, transport: Transport) -> Forward {
    let mut config = lab.client(lab.uid, "laptop", transport, None).unwrap();
    config.workers = NonZeroUsize::new(workers);
    Lab::forward_by(&config, "home", target).unwrap()
}

/// How long each thread of a forward has had a core, by its number.
fn cpu_times() -> BTreeMap<u64, Duration> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let time = |task: fs::DirEntry| {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).ok();
        let ns = read("schedstat")?.split(' ').next()?.parse().ok()?;
        let id = task.file_name().to_str()?.parse().ok()?;
        read("comm")?.starts_with("forward-").then_some((id, Duration::from_nanos(ns)))
    };
    tasks.filter_map(time).collect()
}

#[test]
fn sixty_connections_at_once_over_three_workers_keep_every_byte_and_every_end() {
    let _turn = alone();
    let big_bytes = count("NARROWLINK_BIG_MIB", 16) << 20;
    let lab = Lab::start(2).unwrap();
    for transport in Transport::ALL {
        let agent = lab.agent("home", transport).unwrap();
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let before = cpu_times();
        let forward = forward(&lab, WORKERS, target.local_addr().unwrap(), transport);
        let plan = |n: usize| {
            let ending = [Ending::ClientFirst, Ending::TargetFirst, Ending::Both, Ending::ClientFirst][n % 4];
            let bytes = if n < BIG { big_bytes } else { 10_000 + n as u64 };
            Plan { seed: n as u64, up_bytes: bytes, down_bytes: bytes + 1, ending, pace: Pace::Fast }
        };
        let plans: Vec<_> = (0..CONNECTIONS).map(plan).collect();
        run_at_once(&plans, forward.local_addr, &target)
            .unwrap_or_else(|broken| panic!("{transport}: {broken}"));
        let mut times = cpu_times();
        times.retain(|id, _| !before.contains_key(id));
        println!("{transport}: {times:?}");
        let (least, most) = (times.values().min().unwrap(), times.values().max().unwrap());
        assert!(times.len() == WORKERS && *least > *most / 4, "the work is shared: {times:?}");
        forward.stop();
        agent.stop();
    }
}

#[test]
fn a_forward_that_stops_resets_the_connections_of_all_its_workers() {
    let _turn = alone();
    let lab = Lab::start(2).unwrap();
    let agent = lab.agent("home", WS).unwrap();
    let forward = forward(&lab, WORKERS, start_echo(), WS);
    let addr = forward.local_addr;
    let mut standing: Vec<_> = (0..CONNECTIONS).map(|_| connect(addr)).collect();
    standing.iter_mut().for_each(|stream| ask(stream).unwrap());
    let since = Instant::now();
    forward.stop();
    assert_once_within("a forward with 60 sessions stops", Duration::from_secs(1), since.elapsed());
    standing.iter_mut().for_each(wait_for_reset);
    assert!(TcpStream::connect(addr).is_err(), "nobody listens there any more");
    agent.stop();
}

/// How often a client's token with this id was logged in with, and how many sessions it opened.
fn uses(audit: &Path, jti: &str) -> (usize, usize) {
    let text = fs::read_to_string(audit).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event && line["jti"] == jti).count();
    (of("login"), of("open"))
}

#[test]
fn a_newer_token_is_taken_up_by_all_workers() {
    let _turn = alone();
    let lab = Lab::start_audited(2).unwrap();
    let agent = lab.agent("home", WS).unwrap();
    let token =
        |jti: &str| lab.site.sign(&Claims::new(Kind::Client, lab.uid, "laptop", FOR_EVER, jti)).unwrap();
    let (older, file) = (token("older"), lab.site.dir().join("client.token"));
    fs::write(&file, &older).unwrap();
    let path = lab.site.endpoint_yaml("client.yaml", lab.entry(WS), WS, &older, "").unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&format!("token: {older}"), "token_file: client.token")).unwrap();
    let mut config = client_config(&path).unwrap();
    config.workers = NonZeroUsize::new(WORKERS);
    let forward = Lab::forward_by(&config, "home", start_echo()).unwrap();
    let audit = lab.site.dir().join("audit.log");
    let (link, streams) = (1, WORKERS);
    let wait_for_logins = |jti: &str| {
        let what = format!("a link and a stream of each worker by the {jti} token");
        wait_for(&what, PATIENCE, || (uses(&audit, jti).0 >= link + streams).then_some(()));
    };
    wait_for_logins("older");
    fs::write(&file, token("newer")).unwrap();
    // Nobody has connected: each worker has retired its stream, and opened one by the newer token.
    wait_for_logins("newer");
    for _ in 0..2 * WORKERS {
        ask(&mut connect(forward.local_addr)).unwrap();
    }
    wait_for("six sessions", PATIENCE, || (uses(&audit, "newer").1 == 2 * WORKERS).then_some(()));
    assert_eq!(uses(&audit, "older").1, 0);
    forward.stop();
    agent.stop();
}

/// Answers each connection, and says what it heard and when it came.
fn start_target(came: mpsc::Sender<(u32, Instant)>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (came, at) = (came.clone(), Instant::now());
            let mut number = [0; 4];
            // One after the other, as they were accepted: the next one waits for this one's number.
            stream.read_exact(&mut number).unwrap();
            came.send((u32::from_le_bytes(number), at)).unwrap();
            stream.write_all(&number).unwrap();
        }
    });
    addr
}

/// A connection that says its number, and when it was made.
fn say(addr: SocketAddr, number: u32) -> (TcpStream, Instant) {
    let since = Instant::now();
    let mut stream = connect(addr);
    stream.write_all(&number.to_le_bytes()).unwrap();
    (stream, since)
}

#[test]
fn two_hundred_connections_made_one_after_the_other_reach_the_target_in_order() {
    let _turn = alone();
    let lab = Lab::start(2).unwrap();
    let agent = lab.agent("home", WS).unwrap();
    for workers in [1, WORKERS] {
        let (came, coming) = mpsc::channel();
        let forward = forward(&lab, workers, start_target(came), WS);
        let (mut numbers, mut judged) = (0.., 0);
        while judged < 200 {
            // The second is made while the first is on its way, as programs do that tell them apart by it.
            let pair: Vec<_> = numbers.by_ref().take(2).collect();
            let made = [say(forward.local_addr, pair[0]), say(forward.local_addr, pair[1])];
            let heard: BTreeMap<_, _> = [coming.recv().unwrap(), coming.recv().unwrap()].into();
            let took = heard[&pair[0]].duration_since(made[0].1);
            // Beyond it, on a busy machine, nothing is promised.
            if took < ORDER_TIMEOUT {
                assert!(heard[&pair[0]] <= heard[&pair[1]], "{workers} workers: {pair:?}, {took:?}");
                judged += 2;
            }
            assert!(pair[0] < 4000, "{workers} workers: {judged} came soon enough");
            for (mut stream, _) in made {
                assert_eq!(stream.read(&mut [0; 4]).unwrap(), 4);
            }
        }
        println!("{workers} workers: {judged} connections in order");
        forward.stop();
    }
    agent.stop();
}
