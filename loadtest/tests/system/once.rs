//! What a program says before its session is answered reaches the target once or not at all, and the
//! program learns that something broke.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use narrowlink_dataplane::{
    peer::{self, Ask, Gateway},
    run::worker,
    tunnel::conn::Conn,
};
use narrowlink_loadtest::{site::Transport, transfer::fill};
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    frame::{self, HEADER_BYTES_MAX, Header, Opcode},
    id::SessionId,
    message::{Channel, EARLY_DATA_BYTES_MAX, Message, Open, Speaker},
    target::Target,
    upgrade::{Framing, Protocol},
};
use socket2::{Domain, Socket, Type};

use crate::{
    alone,
    far::{Far, PATIENCE, wait_until},
    visitor::connect,
};

const FRAMED: [Transport; 2] = [Transport { tls: false, raw: false }, Transport { tls: true, raw: false }];

/// One way, twice: long enough to cut in the middle of an Open.
const ONE_WAY: Duration = Duration::from_millis(50);
/// A request is so long, so that it can be told from pings and messages by its length alone.
const REQUEST_BYTES: usize = 20_000;
/// No message is longer that a test waits for, and no few pings.
const MESSAGE_BYTES: u64 = 150;

/// Counts the requests that reach it, and answers each.
struct Counting {
    addr: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Counting {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let count = requests.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let count = count.clone();
                thread::spawn(move || {
                    while stream.read_exact(&mut [0; REQUEST_BYTES]).is_ok() {
                        count.fetch_add(1, Ordering::SeqCst);
                        let _ = stream.write_all(b"done");
                    }
                });
            }
        });
        Self { addr, requests }
    }

    fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// One request and its answer, cleanly.
fn try_request(entry: SocketAddr) -> io::Result<()> {
    let mut stream = connect(entry);
    stream.write_all(&[7; REQUEST_BYTES])?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    assert_eq!(answer, b"done");
    Ok(())
}

fn request(entry: SocketAddr) {
    try_request(entry).unwrap();
}

fn is_reset(mut stream: TcpStream) -> bool {
    stream.read(&mut [0; 1]).is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn a_request_whose_gateway_went_away_is_never_sent_twice() {
    let _turn = alone();
    for transport in FRAMED {
        let way = Far::start(transport, transport, ONE_WAY);
        let target = Counting::start();
        let forward = way.forward(target.addr, transport);
        request(forward.local_addr);
        request(forward.local_addr);
        assert_eq!(target.count(), 2);

        // It left the client, and reached nobody.
        let before = way.near.up_bytes();
        let mut stream = connect(forward.local_addr);
        stream.write_all(&[7; REQUEST_BYTES]).unwrap();
        wait_until("the request on its way", || way.near.up_bytes() >= before + REQUEST_BYTES as u64);
        way.near.cut();
        assert!(is_reset(stream), "{transport}: lost on its way to the gateway");
        request(forward.local_addr);
        assert_eq!(target.count(), 3, "{transport}: the one that was lost came after all");

        // It reached the target; the answer is still on its way.
        request(forward.local_addr);
        let mut stream = connect(forward.local_addr);
        stream.write_all(&[7; REQUEST_BYTES]).unwrap();
        wait_until("the request at the target", || target.count() == 5);
        way.near.cut();
        assert!(is_reset(stream), "{transport}: cut before the answer");
        request(forward.local_addr);
        assert_eq!(target.count(), 6, "{transport}: one came twice");
    }
}

#[test]
fn a_request_whose_agent_went_away_is_never_sent_twice() {
    let _turn = alone();
    for transport in FRAMED {
        let way = Far::start(transport, transport, ONE_WAY);
        let target = Counting::start();
        let forward = way.forward(target.addr, transport);
        request(forward.local_addr);
        request(forward.local_addr);
        let mut stream = connect(forward.local_addr);
        stream.write_all(&[7; REQUEST_BYTES]).unwrap();
        wait_until("the request at the target", || target.count() == 3);
        way.far.cut();
        assert!(is_reset(stream), "{transport}: the answer was lost between agent and gateway");
        // Requests for which no agent is there are refused, and reach nobody either.
        wait_until("the agent to be back", || try_request(forward.local_addr).is_ok());
        assert_eq!(target.count(), 4, "{transport}: one came twice");
    }
}

/// A target that speaks first; the client has nothing to lose then.
fn greeter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello");
        }
    });
    addr
}

fn greeted(mut stream: TcpStream) {
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"hello");
}

#[test]
fn a_program_that_has_said_nothing_is_served_by_another_try() {
    let _turn = alone();
    for transport in FRAMED {
        let way = Far::start(transport, transport, ONE_WAY);
        let forward = way.forward(greeter(), transport);
        for _ in 0..2 {
            greeted(connect(forward.local_addr));
        }
        for _ in 0..3 {
            let before = way.near.up_bytes();
            let stream = connect(forward.local_addr);
            wait_until("the Open on its way", || way.near.up_bytes() >= before + MESSAGE_BYTES);
            way.near.cut();
            greeted(stream);
        }
    }
}

/// A port on loopback where nobody listens, for as long as nobody lets this socket do it.
fn deaf() -> (Socket, SocketAddr) {
    let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    held.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let addr = held.local_addr().unwrap().as_socket().unwrap();
    (held, addr)
}

#[test]
fn a_program_whose_target_refuses_is_reset_and_the_next_one_is_served() {
    let _turn = alone();
    for transport in FRAMED {
        let way = Far::start(transport, transport, Duration::ZERO);
        let (held, addr) = deaf();
        let forward = way.forward(addr, transport);
        for bytes in [1, 70_000, 1 << 20] {
            let mut stream = connect(forward.local_addr);
            // Whoever is still writing when the reset comes sees it there.
            let broken_off = stream.write_all(&vec![7; bytes]).is_err();
            assert!(broken_off || is_reset(stream), "{transport}: {bytes} bytes and no reset");
        }
        held.listen(16).unwrap();
        let listener = TcpListener::from(held);
        let serving = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            stream.write_all(&heard).unwrap();
        });
        let mut stream = connect(forward.local_addr);
        stream.write_all(b"nothing of the ones before").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"nothing of the ones before");
        serving.join().unwrap();
    }
}

#[test]
fn what_went_before_a_refusal_that_passes_is_there_at_the_next_try() {
    let _turn = alone();
    for transport in FRAMED {
        let mut way = Far::without_agent(transport, transport, Duration::ZERO);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let forward = way.forward(listener.local_addr().unwrap(), transport);
        let mut stream = connect(forward.local_addr);
        let mut sent = vec![0; 100_000];
        fill(3, 0, &mut sent);
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // An agent that has just lost its gateway comes back a moment later than its clients.
        wait_until("early data to be refused", || way.near.up_bytes() >= 2 * EARLY_DATA_BYTES_MAX as u64);
        way.start_agent();
        let (mut target, _) = listener.accept().unwrap();
        let mut heard = Vec::new();
        target.read_to_end(&mut heard).unwrap();
        assert!(heard == sent, "{transport}: {} of {} bytes", heard.len(), sent.len());
        drop(target);
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
}

/// Asks for a session with `early` bytes behind the Open; what the gateway answers.
async fn ask(gateway: &Gateway, agent: &str, target: &Target, early: usize) -> Result<(), Refused> {
    let protocol = Protocol { channel: Channel::Stream, framing: Framing::Framed };
    let (conn, _) = peer::open(gateway, protocol, Ask::Nothing, PATIENCE).await.unwrap();
    let mut id = [0; 32];
    getrandom::fill(&mut id).unwrap();
    let session = SessionId::from_bytes(id);
    let open = Open { session, agent: agent.to_owned(), target: target.clone(), e2ee: None };
    conn.send(&Message::Open(open)).await.unwrap();
    if early > 0 {
        send_data(&conn, early).await;
        conn.send(&Message::Fin { session, bytes: early as u64 }).await.unwrap();
    }
    match conn.recv(Speaker::Gateway, Channel::Stream).await.unwrap() {
        Message::Refused(refused) => {
            assert_eq!(refused.session, Some(session));
            Err(refused)
        }
        Message::Opened { .. } => Ok(()),
        other => panic!("{}", other.name()),
    }
}

/// One frame, masked with a key of zero.
async fn send_data(conn: &Conn, bytes: usize) {
    let mut head = [0; HEADER_BYTES_MAX];
    let header =
        Header { fin: true, opcode: Opcode::Binary, mask: Some([0; 4]), payload_bytes: bytes as u64 };
    let len = frame::encode(&header, &mut head);
    let frame = [&head[..len], &vec![7; bytes]].concat();
    conn.wire().write_all(&frame).await.unwrap();
}

#[test]
fn a_refusal_is_the_same_whatever_was_sent_before_it() {
    let _turn = alone();
    for transport in FRAMED {
        let way = Far::start(transport, transport, Duration::from_millis(2));
        let (_held, addr) = deaf();
        let port = addr.port();
        let tcp = |host: &str, port| Target::Tcp { host: host.to_owned(), port };
        let config = way.client(transport);
        let gateway = config.gateways().unwrap().remove(0);
        let cases = [
            ("far", tcp("127.0.0.1", port), RefusalCode::TargetRefused),
            ("far", tcp("169.254.169.254", 80), RefusalCode::DeniedByAgent),
            ("far", tcp("a b", 80), RefusalCode::Protocol),
            ("nobody", tcp("127.0.0.1", port), RefusalCode::AgentNotFound),
        ];
        worker::run_alone(false, |_| async move {
            for (agent, target, code) in cases {
                let without = ask(&gateway, agent, &target, 0).await.unwrap_err();
                assert_eq!(without.code, code);
                for early in [1, 4096, EARLY_DATA_BYTES_MAX - 1, EARLY_DATA_BYTES_MAX] {
                    for _ in 0..10 {
                        let with = ask(&gateway, agent, &target, early).await.unwrap_err();
                        assert_eq!((with.code, with.reason), (code, without.reason.clone()));
                    }
                }
            }
        })
        .unwrap();
    }
}
