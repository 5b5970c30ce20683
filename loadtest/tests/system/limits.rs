//! What a token may use at the most holds, and costs nobody else anything.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use narrowlink_loadtest::{lab::Lab, site::Transport};
use narrowlink_proto::{
    id::Uid,
    token::{Claims, Kind},
};

use crate::{
    alone, count,
    kit::PATIENCE,
    start_echo,
    visitor::{ask, connect},
};

const FOR_EVER: u64 = 4_000_000_000;
const ROUNDS_MAX: usize = 6;
/// Of the token that is slow.
const BYTES_PER_S: u32 = 10_000_000;
/// A tenth of a second's may come at once, and what each session reads at a time.
const BURST_BYTES: u32 = BYTES_PER_S / 10 + 2 * 256 * 1024;

/// A target that sends without an end.
fn source() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || while stream.write_all(&[7; 64 * 1024]).is_ok() {});
        }
    });
    addr
}

fn token(lab: &Lab, name: &str, limits: &str) -> String {
    let claims = Claims::new(Kind::Client, Uid::from_u128(7), name, FOR_EVER, name);
    let limits = serde_json::from_str(limits).unwrap();
    lab.site.sign(&Claims { limits, ..claims }).unwrap()
}

/// What came of a session.
struct Pulled {
    /// Bytes a second, once it flowed.
    rate: f64,
    /// All that came ..
    bytes: usize,
    /// .. from before the connection was made until the end.
    lasted: Duration,
}

/// Reads for so long.
fn pull(addr: SocketAddr, time: Duration) -> Pulled {
    let began = Instant::now();
    let mut stream = connect(addr);
    let mut buf = vec![0; 256 * 1024];
    let mut bytes = 0;
    let mut read_until = |until: Instant| {
        let before = bytes;
        while Instant::now() < until {
            match stream.read(&mut buf).unwrap() {
                0 => panic!("it ended after {bytes} bytes"),
                n => bytes += n,
            }
        }
        bytes - before
    };
    // What was sent before anybody looked is no rate.
    read_until(began + Duration::from_millis(500));
    let start = Instant::now();
    let rate = read_until(start + time) as f64 / start.elapsed().as_secs_f64();
    Pulled { rate, bytes, lasted: began.elapsed() }
}

fn bandwidth_holds(transport: Transport) {
    let _alone = alone();
    let lab = Lab::start(1).unwrap();
    let _agent = lab.agent("home", transport).unwrap();
    let target = source();
    let time = Duration::from_secs(count("NARROWLINK_BANDWIDTH_S", 3));
    let slow = token(&lab, "slow", &format!(r#"{{"bytes_per_s":{BYTES_PER_S}}}"#));
    let slow = lab.forward_as(&slow, "home", target, transport).unwrap();
    let free = lab.forward_as(&token(&lab, "free", "{}"), "home", target, transport).unwrap();
    // A machine that does something else meanwhile may be too slow for once; never is it too fast.
    let held = (0..ROUNDS_MAX).any(|_| {
        let alone = pull(free.local_addr, time).rate;
        let (slow_ones, beside) = thread::scope(|scope| {
            // Two sessions of one token share what it may use.
            let slow_ones = [slow.local_addr; 2].map(|addr| scope.spawn(move || pull(addr, time)));
            let beside = pull(free.local_addr, time).rate;
            (slow_ones.map(|one| one.join().unwrap()), beside)
        });
        let slow_rate = slow_ones.iter().map(|one| one.rate).sum::<f64>();
        println!(
            "{transport}: 10 MB/s allowed, {:.2} MB/s seen; another token {:.0} MB/s beside it, {:.0} alone",
            slow_rate / 1e6,
            beside / 1e6,
            alone / 1e6
        );
        // Who reads late gets at once what was allowed meanwhile. So what holds is a bound on all that came.
        let bytes = slow_ones.iter().map(|one| one.bytes).sum::<usize>();
        let lasted = slow_ones.iter().map(|one| one.lasted).max().unwrap_or_default();
        let allowed = f64::from(BYTES_PER_S) * lasted.as_secs_f64() + f64::from(BURST_BYTES);
        assert!((bytes as f64) < allowed, "{bytes} bytes in {lasted:?}, allowed {allowed}");
        // All that is allowed comes, where the machine could carry ten times as much; and nobody else pays for it.
        let least = if alone > f64::from(BYTES_PER_S) * 10.0 { 0.95 } else { 0.5 };
        slow_rate > f64::from(BYTES_PER_S) * least && beside + slow_rate > alone * 0.5
    });
    assert!(held, "in none of {ROUNDS_MAX} rounds");
    slow.stop();
    free.stop();
}

#[test]
fn bandwidth_holds_framed() {
    bandwidth_holds(Transport { tls: false, raw: false });
}

#[test]
fn bandwidth_holds_raw() {
    bandwidth_holds(Transport { tls: false, raw: true });
}

#[test]
fn as_many_sessions_as_allowed_and_another_when_one_has_ended() {
    let _alone = alone();
    let transport = Transport { tls: false, raw: false };
    let lab = Lab::start(2).unwrap();
    let _agent = lab.agent("home", transport).unwrap();
    let target = source();
    let few = token(&lab, "few", r#"{"sessions":3}"#);
    let few = lab.forward_as(&few, "home", target, transport).unwrap();
    let works = |stream: &mut TcpStream| stream.read_exact(&mut [0; 1]).is_ok();
    let mut streams: Vec<_> = (0..3).map(|_| connect(few.local_addr)).collect();
    assert!(streams.iter_mut().all(works));
    assert!(!works(&mut connect(few.local_addr)), "a fourth session");
    streams.pop();
    let deadline = Instant::now() + PATIENCE;
    while !works(&mut connect(few.local_addr)) {
        assert!(Instant::now() < deadline, "the place of a session that has ended is not free");
    }
    few.stop();
}

#[test]
fn a_forward_waits_as_long_as_it_is_told_and_resets_nobody() {
    let _alone = alone();
    let transport = Transport { tls: true, raw: false };
    let lab = Lab::start(1).unwrap();
    let _agent = lab.agent("home", transport).unwrap();
    // A burst of 1,500 and then 150 a second.
    let (rate, users, each) = (150, 32, 62);
    let limited = token(&lab, "limited", &format!(r#"{{"dials_per_s":{rate}}}"#));
    let limited = lab.forward_as(&limited, "home", start_echo(), transport).unwrap();
    let addr = limited.local_addr;
    let start = Instant::now();
    let longest = thread::scope(|scope| {
        let users: Vec<_> = (0..users)
            .map(|_| {
                scope.spawn(move || {
                    let asked = (0..each).map(|_| {
                        let start = Instant::now();
                        ask(&mut connect(addr)).expect("no connection is reset");
                        start.elapsed()
                    });
                    asked.max().unwrap()
                })
            })
            .collect();
        users.into_iter().map(|user| user.join().unwrap()).max().unwrap()
    });
    let (asked, took) = (users * each, start.elapsed());
    println!("{asked} sessions in {took:?}; the longest wait was {longest:?}");
    let least = Duration::from_secs_f64(f64::from(asked - 10 * rate) / f64::from(rate)) * 9 / 10;
    assert!(took > least, "the limit did not hold");
    limited.stop();
}

/// More than may log in at once, too: a try that is refused costs a login as well.
#[test]
fn more_connections_at_once_than_may_log_in_wait_and_none_is_reset() {
    let _alone = alone();
    for transport in [Transport { tls: false, raw: false }, Transport { tls: true, raw: true }] {
        let lab = Lab::start(1).unwrap();
        let _agent = lab.agent("home", transport).unwrap();
        // A burst of 200 sessions and 400 logins, and then 20 and 40 a second.
        let limited = token(&lab, "limited", r#"{"dials_per_s":20}"#);
        let limited = lab.forward_as(&limited, "home", start_echo(), transport).unwrap();
        let addr = limited.local_addr;
        let waited = thread::scope(|scope| {
            let users: Vec<_> = (0..320)
                .map(|_| {
                    scope.spawn(move || {
                        let start = Instant::now();
                        ask(&mut connect(addr)).map(|()| start.elapsed())
                    })
                })
                .collect();
            let waited: Vec<_> = users.into_iter().map(|user| user.join().unwrap()).collect();
            waited
        });
        let reset = waited.iter().filter(|waited| waited.is_err()).count();
        let longest = waited.iter().flatten().max().unwrap();
        println!("{transport:?}: {reset} of {} were reset; the longest wait was {longest:?}", waited.len());
        assert_eq!(reset, 0);
        limited.stop();
    }
}

#[test]
fn the_months_bytes_end_a_session_and_open_none() {
    let _alone = alone();
    let transport = Transport { tls: false, raw: true };
    let lab = Lab::start(1).unwrap();
    let _agent = lab.agent("home", transport).unwrap();
    let little = token(&lab, "little", r#"{"bytes_per_month":1000000}"#);
    let little = lab.forward_as(&little, "home", source(), transport).unwrap();
    let mut got = 0;
    let mut stream = connect(little.local_addr);
    let ended = loop {
        match stream.read(&mut [0; 65_536]) {
            Ok(0) => break Ok(()),
            Ok(n) => got += n,
            Err(e) => break Err(e.kind()),
        }
    };
    assert_eq!(ended, Err(std::io::ErrorKind::ConnectionReset));
    // A reset takes what was under way with it; and the last read may go beyond what was left, by 16 KiB.
    assert!((1..1_020_000).contains(&got), "{got} bytes of a million");
    assert!(connect(little.local_addr).read_exact(&mut [0; 1]).is_err());
    little.stop();
}
