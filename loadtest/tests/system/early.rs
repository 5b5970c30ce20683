//! What a program says before its session is answered: soon there, and every byte of it.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener},
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};

use narrowlink_loadtest::{site::Transport, transfer::fill};
use socket2::{Domain, Socket, Type};

use crate::{
    alone,
    far::Far,
    kit::timing::{percentile, sample_until, slowness},
    visitor::connect,
};

const FRAMED: [Transport; 2] = [Transport { tls: false, raw: false }, Transport { tls: true, raw: false }];

/// One way between client and gateway, and again between gateway and agent.
const ONE_WAY: Duration = Duration::from_millis(25);
/// One round trip of the whole path.
const FLOOR: Duration = Duration::from_millis(100);
/// At the least, and on a machine that does something else meanwhile.
const CONNECTIONS: RangeInclusive<usize> = 9..=40;
/// The first ones make agent and client keep what the next ones need.
const WARM_UP: usize = 3;

/// Says something at once, or answers the first byte; then waits for the end.
fn target(server_first: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || {
                if server_first || stream.read_exact(&mut [0; 1]).is_ok() {
                    let _ = stream.write_all(b"!");
                }
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    addr
}

/// From connect to the first byte of the answer.
fn first_byte(entry: SocketAddr, server_first: bool) -> Duration {
    let started = Instant::now();
    let mut stream = connect(entry);
    if !server_first {
        stream.write_all(b"?").unwrap();
    }
    let mut byte = [0; 1];
    stream.read_exact(&mut byte).unwrap();
    let took = started.elapsed();
    assert_eq!(&byte, b"!");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut byte).unwrap(), 0);
    took
}

#[test]
fn a_new_connection_costs_one_round_trip_whoever_speaks_first() {
    let _turn = alone();
    for transport in FRAMED {
        let way = Far::start(transport, transport, ONE_WAY);
        for server_first in [true, false] {
            let forward = way.forward(target(server_first), transport);
            for _ in 0..WARM_UP {
                first_byte(forward.local_addr, server_first);
            }
            let what = format!("{transport}, {} first", if server_first { "server" } else { "client" });
            let sample = || first_byte(forward.local_addr, server_first);
            // Two round trips would be 150 ms, a handshake 150 or 200: whoever has one in each connection is never sooner,
            // and whoever has one in most of them shows it on any machine that is not too busy to tell.
            sample_until(&what, CONNECTIONS, sample, |took| {
                percentile(took, 0) < FLOOR + FLOOR / 4
                    && percentile(took, 50) < FLOOR + FLOOR / 2 * slowness()
            });
        }
    }
}

/// A target that hears everything before it says the same. Its queue may be full: whoever connects then
/// waits until it is emptied, a second (SYN retransmission).
struct Echo {
    socket: Socket,
    addr: SocketAddr,
}

impl Echo {
    fn bind() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.listen(16).unwrap();
        let addr = socket.local_addr().unwrap().as_socket().unwrap();
        Self { socket, addr }
    }

    /// Serves one connection; when `busy`, only after most of a second.
    fn serve_one(&self, busy: bool) -> thread::JoinHandle<Vec<u8>> {
        let listener = TcpListener::from(self.socket.try_clone().unwrap());
        let filler = busy.then(|| {
            self.socket.listen(0).unwrap();
            connect(self.addr)
        });
        thread::spawn(move || {
            if let Some(filler) = filler {
                // The stall itself is what is tested.
                thread::sleep(Duration::from_millis(800));
                drop((listener.accept().unwrap(), filler));
            }
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            stream.write_all(&heard).unwrap();
            heard
        })
    }
}

/// Sends `bytes`, ends, and hears them back.
fn everything_comes_back(entry: SocketAddr, target: &Echo, bytes: usize, busy: bool) {
    let heard = target.serve_one(busy);
    let mut sent = vec![0; bytes];
    fill(bytes as u64, 0, &mut sent);
    let mut stream = connect(entry);
    let (mut writer, all) = (stream.try_clone().unwrap(), sent.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&all).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    let heard = heard.join().unwrap();
    assert!(heard == sent, "the target heard {} of {bytes} bytes", heard.len());
    assert!(back == sent, "{} of {bytes} bytes came back", back.len());
}

#[test]
fn what_is_sent_while_a_target_is_slow_to_accept_arrives_whole() {
    let _turn = alone();
    let [ws, ws_raw, wss, wss_raw] = Transport::ALL;
    for (client, agent) in [(ws, ws), (wss, wss), (ws, ws_raw), (wss, wss_raw), (ws_raw, ws)] {
        let way = Far::start(client, agent, Duration::ZERO);
        let target = Echo::bind();
        let forward = way.forward(target.addr, client);
        for (bytes, busy) in [(1, false), (0, false), (1, true), (64 << 10, true), (10 << 20, true)] {
            println!("client {client}, agent {agent}: {bytes} bytes, busy {busy}");
            everything_comes_back(forward.local_addr, &target, bytes, busy);
        }
    }
}

#[test]
fn what_is_sent_at_once_and_ended_at_once_has_its_whole_answer_from_far_away() {
    let _turn = alone();
    for transport in FRAMED {
        let way = Far::start(transport, transport, ONE_WAY);
        let target = Echo::bind();
        let forward = way.forward(target.addr, transport);
        for bytes in [1, 0, 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 1 << 20] {
            everything_comes_back(forward.local_addr, &target, bytes, false);
        }
    }
}
