//! Floods from one source, and of one token, keep nobody else out.

use std::{
    cell::Cell,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    rc::Rc,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use narrowlink_control::config::Config;
use narrowlink_dataplane::{
    peer::{self, Ask, Gateway},
    run::{process, worker},
    tunnel::{TunnelError, conn::Conn},
};
use narrowlink_loadtest::{lab::Lab, site::Transport};
use narrowlink_proto::{
    ended::RefusalCode,
    feature::Features,
    id::{LaneId, Uid},
    limits::Limits,
    message::Channel,
    token::Kind,
    upgrade::{Framing, LaneProof, Protocol},
};
use rustix::process::nice;
use socket2::SockRef;

use crate::{
    alone, count,
    kit::{
        PATIENCE,
        asker::random,
        foe::{Entry, Foe, connect_from},
        wait_for,
    },
    start_echo,
    visitor::{ask, connect},
};

const WS: Transport = Transport { tls: false, raw: false };
/// Of the flood; everybody else is 127.0.0.1.
const LOUD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const SILENT: usize = 2_050;
/// The victim's tries before, during and after.
const TRIES: usize = 50;

/// Streams and lanes that are kept ready, more or fewer of them.
const FEW: usize = 40;

/// A gateway that is not made for load, and who lives there.
fn guarded() -> Lab {
    // Before it is started: it shares its descriptors out then.
    process::prepare();
    let lab = Lab::start(2).unwrap();
    lab.gateway().reload(&Config { limits: Limits::default(), ..lab.config().unwrap() }).unwrap();
    lab
}

/// Asks for a stream; the status that comes back. The connection is open as long as its stream.
fn log_in(source: IpAddr, addr: SocketAddr, token: &str) -> std::io::Result<(u16, TcpStream)> {
    let mut stream = connect_from(source, addr)?;
    Ok((ask_for_a_stream(&mut stream, token)?, stream))
}

/// The status that an asking for a stream comes to.
fn ask_for_a_stream(stream: &mut TcpStream, token: &str) -> std::io::Result<u16> {
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         Sec-WebSocket-Protocol: nl1.stream.framed\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    let status = std::str::from_utf8(&head[9..]).ok().and_then(|status| status.parse().ok());
    Ok(status.expect("an answer of HTTP"))
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Somebody who logs in anew and opens a session, again and again.
struct Victim<'a> {
    entry: SocketAddr,
    token: &'a str,
    forward: SocketAddr,
}

impl Victim<'_> {
    /// How long the slowest login and the slowest session took, in ms; every one succeeds.
    fn try_all(&self, when: &str) {
        let (mut logins, mut opens) = (Vec::new(), Vec::new());
        for n in 0..TRIES {
            let started = Instant::now();
            let login = log_in(IpAddr::V4(Ipv4Addr::LOCALHOST), self.entry, self.token);
            let (status, _stream) = login.unwrap_or_else(|e| panic!("login {n} {when}: {e}"));
            assert_eq!(status, 101, "login {n} {when}");
            logins.push(started.elapsed());
            let started = Instant::now();
            ask(&mut connect(self.forward)).unwrap_or_else(|e| panic!("session {n} {when}: {e}"));
            opens.push(started.elapsed());
        }
        let show = |mut all: Vec<Duration>| {
            all.sort_unstable();
            format!(
                "{:.1} ms (median {:.1})",
                all[TRIES - 1].as_secs_f64() * 1e3,
                all[TRIES / 2].as_secs_f64() * 1e3
            )
        };
        println!("{when}: {TRIES} of {TRIES} logins, slowest {}, sessions {}", show(logins), show(opens));
    }
}

/// Runs a flood beside a victim, which it must not disturb; descriptors are as before afterwards. `flood` begins to
/// do its worst, says so, and goes on until it is over.
fn beside_a_victim(lab: &Lab, flood: impl FnOnce(&AtomicBool, &dyn Fn()) + Send) {
    let _agent = lab.agent("home", WS).unwrap();
    let forward = lab.forward("home", start_echo(), WS).unwrap();
    let token = lab.site.token(Kind::Client, lab.uid, "victim", None).unwrap();
    let victim = Victim { entry: lab.entry(WS), token: &token, forward: forward.local_addr };
    victim.try_all("before");
    let before = descriptors();
    let (over, worst) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(&over, &|| worst.store(true, Ordering::Relaxed)));
        wait_for("the flood", PATIENCE * 2, || {
            (worst.load(Ordering::Relaxed) || flooding.is_finished()).then_some(())
        });
        // A failure here ends the flood, too.
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| victim.try_all("during")));
        over.store(true, Ordering::Relaxed);
        flooding.join().unwrap();
        tried.unwrap_or_else(|failure| std::panic::resume_unwind(failure));
    });
    wait_for("the descriptors of the flood", PATIENCE, || (descriptors() <= before + FEW).then_some(()));
    victim.try_all("after");
    forward.stop();
}

#[test]
fn silent_connections_of_one_source_keep_nobody_else_out() {
    let _alone = alone();
    let lab = guarded();
    let entry = lab.entry(WS);
    beside_a_victim(&lab, |over, at_its_worst| {
        let mut held: Vec<_> = (0..SILENT).map(|_| connect_from(LOUD, entry)).collect();
        at_its_worst();
        // Those that were cut off come again, 2,000 a second.
        let mut next = 0;
        while !over.load(Ordering::Relaxed) {
            for _ in 0..20 {
                held[next % SILENT] = connect_from(LOUD, entry);
                next += 1;
            }
            thread::sleep(Duration::from_millis(10));
        }
    });
}

/// An address of its own for each.
fn source(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x7f02_0001 + u32::try_from(n).unwrap()))
}

#[test]
fn an_office_whose_tokens_hold_comes_back_all_at_once_while_every_place_is_taken() {
    const AT_ONCE: usize = 8;
    let _alone = alone();
    let lab = guarded();
    let entry = lab.entry(WS);
    let token = lab.site.token(Kind::Client, lab.uid, "office", None).unwrap();
    let bursts = AtomicUsize::new(0);
    beside_a_victim(&lab, |over, at_its_worst| {
        let mut held: Vec<_> = (0..SILENT).map(|n| connect_from(source(n), entry)).collect();
        at_its_worst();
        while !over.load(Ordering::Relaxed) {
            for (n, one) in held.iter_mut().take(20).enumerate() {
                *one = connect_from(source(n), entry);
            }
            thread::scope(|scope| {
                let log_in =
                    || log_in(IpAddr::V4(Ipv4Addr::LOCALHOST), entry, &token).map(|(status, _)| status);
                let all: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(log_in)).collect();
                for login in all {
                    assert_eq!(login.join().unwrap().unwrap_or_default(), 101);
                }
            });
            bursts.fetch_add(1, Ordering::Relaxed);
            held.rotate_left(20);
        }
    });
    println!("{} bursts of {AT_ONCE} logins", bursts.into_inner());
}

#[test]
fn what_strangers_upload_to_the_wrong_place_keeps_no_login_waiting() {
    const SOURCES: usize = 250;
    const UPLOADERS: usize = 8;
    let _alone = alone();
    let lab = guarded();
    let (entry, ca) = (lab.entry(WS), lab.site.dir().join("ca.pem"));
    let wss = Entry::new(lab.entry(Transport { tls: true, raw: false }), Some(&ca));
    let token = lab.site.token(Kind::Client, lab.uid, "over tls", None).unwrap();
    let median = || {
        let mut all: Vec<_> = (0..21)
            .map(|_| {
                let begun = Instant::now();
                Foe::upgrade(&wss, Channel::Stream, &token, None).unwrap();
                begun.elapsed()
            })
            .collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    let before = median();
    beside_a_victim(&lab, |over, at_its_worst| {
        let (body, uploads) = (vec![7; 300_000], AtomicUsize::new(0));
        let upload = |n: usize| {
            let mut stream = connect_from(source(n % SOURCES), entry)?;
            stream.write_all(b"POST / HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 900000\r\n\r\n")?;
            stream.set_nonblocking(true)?;
            let _ = stream.write(&body);
            Ok::<_, std::io::Error>(stream)
        };
        thread::scope(|scope| {
            let upload_on = |first: usize| {
                let mut held: Vec<_> = (0..SOURCES).map(|n| upload(n + first)).collect();
                for next in (first..).step_by(UPLOADERS) {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let at = next / UPLOADERS % SOURCES;
                    held[at] = upload(next);
                    uploads.fetch_add(1, Ordering::Relaxed);
                }
            };
            for first in 0..UPLOADERS {
                scope.spawn(move || {
                    // The gateway is to be busy with them, not the machine.
                    nice(19).unwrap();
                    upload_on(first);
                });
            }
            wait_for("uploads", PATIENCE, || (uploads.load(Ordering::Relaxed) > 4_000).then_some(()));
            let during = median();
            at_its_worst();
            let uploads = uploads.load(Ordering::Relaxed);
            println!("a login over TLS takes {before:?}, beside {uploads} uploads {during:?}");
            assert!(during < before * 20, "{before:?}, beside uploads {during:?}");
        });
    });
}

#[test]
fn one_token_that_has_held_at_many_addresses_keeps_no_newcomer_out() {
    const ADDRESSES: usize = 80;
    const EACH: usize = 40;
    let _alone = alone();
    let lab = guarded();
    let entry = lab.entry(WS);
    let [evil, good] =
        ["evil", "good"].map(|name| lab.site.token(Kind::Client, lab.uid, name, None).unwrap());
    for n in 0..ADDRESSES {
        assert_eq!(log_in(source(n), entry, &evil).unwrap().0, 101);
    }
    let (mut newcomers, mut refused) = (0, Vec::new());
    beside_a_victim(&lab, |over, at_its_worst| {
        let mut held: Vec<_> =
            (0..ADDRESSES * EACH).map(|n| connect_from(source(n % ADDRESSES), entry)).collect();
        at_its_worst();
        while !over.load(Ordering::Relaxed) || newcomers < 20 {
            let mut newcomer = connect_from(source(1_000 + newcomers), entry).unwrap();
            for n in 0..ADDRESSES {
                held[(newcomers % EACH) * ADDRESSES + n] = connect_from(source(n), entry);
            }
            // So long a token is on its way.
            thread::sleep(Duration::from_millis(20));
            newcomers += 1;
            if let Err(e) = ask_for_a_stream(&mut newcomer, &good) {
                refused.push(e);
            }
        }
    });
    println!("{newcomers} newcomers, refused {refused:?}");
    assert!(refused.is_empty());
}

/// Says the same hello again and again, from many sources, each time anew; of those that stay it keeps so many.
fn replay(entry: SocketAddr, hello: &[u8], (first, stays): (usize, bool), over: &AtomicBool) -> usize {
    const SOURCES: usize = 300;
    const STAY: usize = 600;
    let say = |n: usize| {
        let mut stream = connect_from(source(n % SOURCES), entry)?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        stream.write_all(hello)?;
        Ok::<_, std::io::Error>(stream)
    };
    let mut held: Vec<_> = (0..if stays { STAY } else { 40 }).map(|_| None).collect();
    for next in 0.. {
        if over.load(Ordering::Relaxed) {
            return next;
        }
        let at = next % held.len();
        held[at] = say(next * 7 + first).ok();
    }
    0
}

#[test]
fn hellos_replayed_from_many_sources_keep_no_login_over_tls_waiting() {
    const AT_ONCE: usize = 8;
    const FLOODERS: usize = 4;
    let _alone = alone();
    let lab = guarded();
    let (addr, ca) = (lab.entry(Transport { tls: true, raw: false }), lab.site.dir().join("ca.pem"));
    let wss = Entry::new(addr, Some(&ca));
    let token = lab.site.token(Kind::Client, lab.uid, "office", None).unwrap();
    let log_in = |entry: &Entry| {
        let begun = Instant::now();
        Foe::upgrade(entry, Channel::Stream, &token, None).map(|_| begun.elapsed())
    };
    log_in(&wss).unwrap();
    beside_a_victim(&lab, |over, at_its_worst| {
        let hello = wss.client_hello();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let flooders: Vec<_> = (0..FLOODERS)
                .map(|n| {
                    let (hello, done) = (&hello, &done);
                    scope.spawn(move || replay(addr, hello, (n, n % 2 == 0), done))
                })
                .collect();
            let begun = Instant::now();
            let mut took = Vec::new();
            let mut failed = Vec::new();
            let mut note = |login: std::io::Result<Duration>| match login {
                Ok(elapsed) => took.push(elapsed),
                Err(e) => failed.push(e),
            };
            thread::sleep(Duration::from_secs(1));
            for burst in 0..5 {
                thread::scope(|scope| {
                    let all: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| log_in(&wss))).collect();
                    all.into_iter().for_each(|login| note(login.join().unwrap()));
                });
                for n in 0..3 {
                    note(log_in(&wss.from(source(1_000 + burst * 3 + n))));
                }
            }
            at_its_worst();
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(20));
            }
            done.store(true, Ordering::Relaxed);
            let hellos: usize = flooders.into_iter().map(|flooder| flooder.join().unwrap()).sum();
            took.sort_unstable();
            println!(
                "{} logins over TLS beside {:.0} hellos/s, slowest {:?}, failed {failed:?}",
                took.len(),
                hellos as f64 / begun.elapsed().as_secs_f64(),
                took.last()
            );
            assert!(failed.is_empty());
        });
    });
}

#[test]
fn failed_logins_of_one_source_keep_nobody_else_out() {
    let _alone = alone();
    let lab = guarded();
    let entry = lab.entry(WS);
    let good = lab.site.token(Kind::Client, lab.uid, "behind the same address", None).unwrap();
    let (refused, cut_off) = (AtomicUsize::new(0), AtomicUsize::new(0));
    beside_a_victim(&lab, |over, at_its_worst| {
        while !over.load(Ordering::Relaxed) {
            match log_in(LOUD, entry, "rubbish") {
                Ok((status, _)) => {
                    assert_eq!(status, 401, "the same answer, however often");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => {
                    if cut_off.fetch_add(1, Ordering::Relaxed) == 50 {
                        at_its_worst();
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    });
    let (refused, cut_off) = (refused.into_inner(), cut_off.into_inner());
    println!("{refused} failed logins were answered, {cut_off} connections cut off");
    assert!(refused < cut_off, "{refused} {cut_off}");
    // Somebody with a good token behind the address that is punished is let in as soon as the flood is over.
    let login = wait_for("a good token", PATIENCE, || log_in(LOUD, entry, &good).ok());
    assert_eq!(login.0, 101);
}

/// How often a connection that is only held looks whether all is over.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Lanes that stand.
#[derive(Default)]
struct Held {
    count: Cell<usize>,
    is_over: Cell<bool>,
}

/// Answers a lane's pings until all is over: one that answers none has its place taken.
fn hold(lane: Conn, held: Rc<Held>) {
    held.count.set(held.count.get() + 1);
    monoio::spawn(async move {
        while !held.is_over.get() {
            if monoio::time::timeout(LOOK_EVERY, lane.attend()).await.is_ok() {
                break;
            }
        }
        held.count.set(held.count.get() - 1);
    });
}

#[test]
fn lanes_of_one_agent_keep_nobody_else_out() {
    let _alone = alone();
    let lab = guarded();
    let asked = usize::try_from(count("NARROWLINK_LANES", 1_500)).unwrap();
    let token = lab.site.token(Kind::Agent, Uid::from_u128(8), "greedy", None).unwrap();
    let endpoint =
        serde_json::json!({ "gateway": lab.entry(WS).to_string(), "token": token, "protocol": "Ws" });
    let endpoint = serde_json::from_value(endpoint).unwrap();
    let gateway = Gateway::load(&endpoint, std::path::Path::new("")).unwrap();
    beside_a_victim(&lab, |over, at_its_worst| {
        let flooding = worker::run_alone(false, |_| async {
            let before = descriptors();
            let mut link = peer::join(&gateway, Features::NONE, None, PATIENCE).await.unwrap();
            let (id, secret) = (link.link, link.secret.clone());
            let (held, mut limited, mut cut_off) = (Rc::new(Held::default()), 0, 0);
            // A link that answers no ping is gone after 9 s, and its lanes with it.
            let link_held = Rc::clone(&held);
            monoio::spawn(async move {
                while !link_held.is_over.get() {
                    if let Ok(Err(_)) = monoio::time::timeout(LOOK_EVERY, link.next()).await {
                        break;
                    }
                }
            });
            for _ in 0..asked {
                let lane = LaneId::from_bytes(random());
                let proof = LaneProof { link: id, lane, proof: secret.prove_lane(&id, &lane) };
                let protocol = Protocol { channel: Channel::Lane, framing: Framing::Framed };
                match peer::open(&gateway, protocol, Ask::Lane(proof), PATIENCE).await {
                    Ok((conn, _)) => hold(conn, Rc::clone(&held)),
                    Err(TunnelError::Refused(refused)) => {
                        assert_eq!(refused.code, RefusalCode::Limited, "{refused}");
                        assert!(refused.reason.contains(" lanes already"), "{refused}");
                        limited += 1;
                    }
                    // Who is refused so often is too loud, and the victim is behind the same address.
                    Err(_) => {
                        cut_off += 1;
                        monoio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
            let stand = held.count.get();
            println!("{stand} lanes stand, {limited} were refused, {cut_off} cut off");
            assert_eq!(stand, asked.min(Limits::default().agent_lanes_max as usize));
            at_its_worst();
            while !over.load(Ordering::Relaxed) {
                monoio::time::sleep(Duration::from_millis(5)).await;
            }
            held.is_over.set(true);
            // They are closed by this runtime, which must run until they are.
            let deadline = Instant::now() + PATIENCE;
            while descriptors() > before + FEW && Instant::now() < deadline {
                monoio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        flooding.unwrap();
    });
}
