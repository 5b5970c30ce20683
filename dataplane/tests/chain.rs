//! Client, gateway and agent as three relays on one worker, between two user programs on real
//! sockets: every framing on each side, plain and TLS, on io_uring and on epoll.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "../../loadtest/src/transfer.rs"]
#[expect(dead_code, unreachable_pub, reason = "the load test's own programs, used in part")]
mod transfer;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_lite::future;
use narrowlink_dataplane::{
    net::{
        dial,
        listen::{Listener, accept_all},
        plain::Plain,
    },
    relay::{Traffic, relay},
    run::worker::{self, Driver, StartError, spawn},
    tls::TlsStream,
    transport::wire::Wire,
    tunnel::{
        conn::{Conn, Role},
        end::End,
        linger,
    },
};
use narrowlink_proto::{id::SessionId, upgrade::Framing};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use transfer::{Ending, Pace, Plan, Seen};

/// How the two tunnel connections are made.
#[derive(Debug, Clone, Copy)]
struct Kind {
    tls: bool,
    stream: Framing,
    lane: Framing,
}

fn kinds() -> impl Iterator<Item = Kind> {
    [false, true].into_iter().flat_map(|tls| {
        [Framing::Framed, Framing::Raw].into_iter().flat_map(move |stream| {
            [Framing::Framed, Framing::Raw].into_iter().map(move |lane| Kind { tls, stream, lane })
        })
    })
}

fn tls_configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key);
    let mut server = server.unwrap();
    let mut client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    client.enable_secret_extraction = true;
    server.enable_secret_extraction = true;
    (Arc::new(client), Arc::new(server))
}

/// Two ends of a TCP connection over loopback.
fn pair() -> (Plain, Plain) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    (Plain::adopt(near.into()).unwrap(), Plain::adopt(far.into()).unwrap())
}

/// A tunnel connection: the peer's end and the gateway's.
async fn tunnel(framing: Framing, tls: Option<&(Arc<ClientConfig>, Arc<ServerConfig>)>) -> (Conn, Conn) {
    let (near, far) = pair();
    let (near, far): (Wire, Wire) = match tls {
        None => (near.into(), far.into()),
        Some((client, server)) => {
            let (near, far) = future::zip(
                TlsStream::connect(near, client.clone(), "localhost".try_into().unwrap()),
                TlsStream::accept(far, server.clone(), &[]),
            )
            .await;
            (near.unwrap().into(), far.unwrap().into())
        }
    };
    (Conn::new(near, framing, Role::Peer, 99), Conn::new(far, framing, Role::Gateway, 0))
}

/// One session through all three programs.
async fn session(
    local: Plain,
    target: SocketAddr,
    kind: Kind,
    tls: Rc<(Arc<ClientConfig>, Arc<ServerConfig>)>,
) {
    let id = SessionId::from_bytes([9; 32]);
    let tls = kind.tls.then_some(&*tls);
    let (client, stream) = tunnel(kind.stream, tls).await;
    let (agent, lane) = tunnel(kind.lane, tls).await;
    let target = Wire::from(dial::connect(target, Duration::from_secs(5)).await.unwrap());
    let local = Wire::from(local);
    spawn(async move {
        match relay(End::raw(&local), End::of(&client, id), &Traffic::default()).await {
            Ok(()) => {
                local.close_gently();
                client.close_gently();
            }
            Err(ended) => linger::reset_session(client, local, ended).await,
        }
    });
    spawn(async move {
        match relay(End::of(&stream, id), End::of(&lane, id), &Traffic::default()).await {
            Ok(()) => {
                stream.close_gently();
                lane.close_gently();
            }
            Err(ended) => {
                let (words, patience) = (ended.to_string(), linger::patience(ended));
                let lane = linger::reset_conn(lane, &words, patience);
                future::zip(linger::reset_conn(stream, &words, patience), lane).await;
            }
        }
    });
    spawn(async move {
        match relay(End::of(&agent, id), End::raw(&target), &Traffic::default()).await {
            Ok(()) => {
                target.close_gently();
                agent.close_gently();
            }
            Err(ended) => linger::reset_session(agent, target, ended).await,
        }
    });
}

/// Starts a worker that serves the chain; returns where the client's program connects.
fn start(epoll: bool, kind: Kind, target: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let entry = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let main = move |driver| async move {
            assert!(!epoll || driver == Driver::Epoll);
            let listener = Listener::adopt(listener).unwrap();
            let tls = Rc::new(tls_configs());
            accept_all(&listener, |local| spawn(session(local, target, kind, tls.clone()))).await;
        };
        let ran: Result<(), StartError> =
            if epoll { worker::run_on_epoll(main) } else { worker::run_alone(false, main) };
        ran.unwrap();
    });
    entry
}

fn every_ending_on(epoll: bool) {
    for (n, kind) in kinds().enumerate() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let entry = start(epoll, kind, target.local_addr().unwrap());
        for (m, ending) in [
            Ending::ClientFirst,
            Ending::TargetFirst,
            Ending::Both,
            Ending::ClientResets(0),
            Ending::ClientResets(300_000),
            Ending::TargetResets(300_000),
        ]
        .into_iter()
        .enumerate()
        {
            for (bytes, pace) in [
                (1, Pace::Fast),
                (0, Pace::Fast),
                (20_000, Pace::OneByteWrites),
                (3_000_000, Pace::Fast),
                (2_000_000, Pace::SlowReader),
            ] {
                let seed = (n * 100 + m) as u64;
                let ending = match ending {
                    Ending::ClientResets(n) => Ending::ClientResets(n.min(bytes / 2)),
                    Ending::TargetResets(n) => Ending::TargetResets(n.min(bytes / 2)),
                    clean => clean,
                };
                let plan = Plan { seed, up_bytes: bytes, down_bytes: bytes + 7, ending, pace };
                if let Err(broken) = transfer::run(plan, entry, &target) {
                    panic!("{kind:?} epoll {epoll}: {broken}");
                }
            }
        }
    }
}

#[test]
fn every_byte_and_every_ending_goes_through_on_io_uring() {
    every_ending_on(false);
}

#[test]
fn every_byte_and_every_ending_goes_through_on_epoll() {
    every_ending_on(true);
}

#[test]
fn a_reset_within_frames_is_never_a_clean_end() {
    let kind = Kind { tls: false, stream: Framing::Framed, lane: Framing::Framed };
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let entry = start(false, kind, target.local_addr().unwrap());
    for after in [1, 2, 125, 126, 65_535, 65_536, 131_072, 131_073, 262_144] {
        let ending = Ending::ClientResets(after);
        let plan = Plan { seed: after, up_bytes: 1 << 20, down_bytes: 5, ending, pace: Pace::Fast };
        let outcome = transfer::run(plan, entry, &target).unwrap();
        assert!(matches!(outcome.up, Seen::Reset(_)));
    }
}

/// A pager that pauses: the target has long said everything and gone when the rest is read.
fn a_reader_that_pauses_gets_everything(kind: Kind) {
    const BYTES: usize = 24 << 20;
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let entry = start(false, kind, target.local_addr().unwrap());
    let sending = std::thread::spawn(move || {
        let (mut stream, _) = target.accept().unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the client ends first");
        let mut sent = vec![0; BYTES];
        transfer::fill(5, 0, &mut sent);
        stream.write_all(&sent).unwrap();
    });
    let mut stream = TcpStream::connect(entry).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    // Longer than the relay looks after its peers: the stall itself is what is tested.
    std::thread::sleep(Duration::from_secs(12));
    let (mut got, mut right) = (Vec::new(), vec![0; BYTES]);
    stream.read_to_end(&mut got).unwrap();
    transfer::fill(5, 0, &mut right);
    assert!(got == right, "{kind:?}: {} of {BYTES} bytes", got.len());
    sending.join().unwrap();
}

#[test]
fn a_reader_that_pauses_gets_everything_through_frames() {
    a_reader_that_pauses_gets_everything(Kind { tls: false, stream: Framing::Framed, lane: Framing::Framed });
}

#[test]
fn a_reader_that_pauses_gets_everything_through_raw_tls() {
    a_reader_that_pauses_gets_everything(Kind { tls: true, stream: Framing::Raw, lane: Framing::Raw });
}

/// What one end of a connection got, and how that ended.
fn read_to_the_end(stream: &mut TcpStream) -> (usize, io::Result<()>) {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut got = Vec::new();
    let ended = stream.read_to_end(&mut got).map(drop);
    let mut right = vec![0; got.len()];
    transfer::fill(7, 0, &mut right);
    assert!(got == right, "wrong bytes among {}", got.len());
    (got.len(), ended)
}

fn answer(bytes: usize) -> Vec<u8> {
    let mut answer = vec![0; bytes];
    transfer::fill(7, 0, &mut answer);
    answer
}

/// A server that has its say and closes with bytes unread: a reset, behind the answer.
fn a_target_that_resets_is_heard_out(epoll: bool, rounds: usize) {
    const ANSWER: usize = 60_000;
    for kind in kinds() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let entry = start(epoll, kind, target.local_addr().unwrap());
        for round in 0..rounds {
            let mut stream = TcpStream::connect(entry).unwrap();
            stream.write_all(b"0123456789").unwrap();
            let (mut far, _) = target.accept().unwrap();
            far.read_exact(&mut [0; 8]).unwrap();
            wait_until_readable(&far);
            far.write_all(&answer(ANSWER)).unwrap();
            wait_until_delivered(&far);
            drop(far);
            let (got, ended) = read_to_the_end(&mut stream);
            assert_eq!(got, ANSWER, "{kind:?} epoll {epoll} round {round}: {ended:?}");
            let ended = ended.map_err(|e| e.kind());
            assert_eq!(ended, Err(io::ErrorKind::ConnectionReset), "{kind:?} round {round}: cut, but clean");
        }
    }
}

fn wait_until_readable(stream: &TcpStream) {
    stream.peek(&mut [0; 1]).unwrap();
}

#[test]
fn what_a_target_sent_before_its_reset_arrives_and_then_the_reset() {
    a_target_that_resets_is_heard_out(false, 7);
    a_target_that_resets_is_heard_out(true, 3);
}

/// A server that has heard enough in the middle of an upload: it answers and closes.
fn an_early_answer_arrives(epoll: bool, rounds: usize) {
    const ANSWER: usize = 60_000;
    for kind in kinds() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let entry = start(epoll, kind, target.local_addr().unwrap());
        for round in 0..rounds {
            let mut stream = TcpStream::connect(entry).unwrap();
            let mut upload = stream.try_clone().unwrap();
            // It ends only because nobody takes it any more.
            let uploading = std::thread::spawn(move || while upload.write_all(&[1; 65_536]).is_ok() {});
            let (mut far, _) = target.accept().unwrap();
            far.read_exact(&mut [0; 8]).unwrap();
            far.write_all(&answer(ANSWER)).unwrap();
            if round % 2 == 1 {
                // Its end first; then the reset comes from what is still uploaded.
                far.shutdown(Shutdown::Write).unwrap();
            }
            wait_until_delivered(&far);
            drop(far);
            let (got, ended) = read_to_the_end(&mut stream);
            assert_eq!(got, ANSWER, "{kind:?} epoll {epoll} round {round}: {ended:?}");
            drop(stream);
            uploading.join().unwrap();
        }
    }
}

#[test]
fn an_answer_in_the_middle_of_an_upload_arrives_whole() {
    an_early_answer_arrives(false, 6);
    an_early_answer_arrives(true, 2);
}

#[test]
fn what_a_client_sent_before_its_reset_arrives_and_then_the_reset() {
    for kind in kinds() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let entry = start(false, kind, target.local_addr().unwrap());
        for bytes in [1, 60_000, 400_000] {
            let mut stream = TcpStream::connect(entry).unwrap();
            let (mut far, _) = target.accept().unwrap();
            far.write_all(b"never read").unwrap();
            wait_until_readable(&stream);
            stream.write_all(&answer(bytes)).unwrap();
            let reading = std::thread::spawn(move || read_to_the_end(&mut far));
            wait_until_delivered(&stream);
            drop(stream);
            let (got, ended) = reading.join().unwrap();
            let ended = ended.map_err(|e| e.kind());
            assert_eq!((got, ended), (bytes, Err(io::ErrorKind::ConnectionReset)), "{kind:?}");
        }
    }
}

#[test]
fn a_slow_reader_gets_all_that_came_before_a_reset() {
    const BYTES: usize = 12 << 20;
    for kind in kinds() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let entry = start(false, kind, target.local_addr().unwrap());
        let mut stream = TcpStream::connect(entry).unwrap();
        stream.write_all(b"go").unwrap();
        let (mut far, _) = target.accept().unwrap();
        wait_until_readable(&far);
        let sending = std::thread::spawn(move || {
            far.write_all(&answer(BYTES)).unwrap();
            wait_until_delivered(&far);
        });
        let (mut got, mut buf, mut ended) = (0, vec![0; 1 << 20], None);
        while ended.is_none() {
            std::thread::sleep(Duration::from_millis(20));
            match stream.read(&mut buf) {
                Ok(n) if n > 0 => got += n,
                end => ended = Some(end.map_err(|e| e.kind())),
            }
        }
        assert_eq!((got, ended), (BYTES, Some(Err(io::ErrorKind::ConnectionReset))), "{kind:?}");
        sending.join().unwrap();
    }
}

/// Waits until the peer's kernel has everything: a reset throws away what our own still holds.
fn wait_until_delivered(stream: &TcpStream) {
    let (ours, theirs) = (stream.local_addr().unwrap().port(), stream.peer_addr().unwrap().port());
    let (ours, theirs) = (format!(":{ours:04X}"), format!(":{theirs:04X}"));
    loop {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let unsent = table.lines().find_map(|line| {
            // Number, local address, remote address, state, queues to send and to read.
            let mut words = line.split_whitespace().skip(1);
            let (local, remote) = (words.next()?, words.next()?);
            let queues = words.nth(1)?;
            (local.ends_with(&ours) && remote.ends_with(&theirs))
                .then(|| queues.split(':').next() != Some("00000000"))
        });
        match unsent {
            Some(true) => std::thread::sleep(Duration::from_millis(1)),
            _ => return,
        }
    }
}
