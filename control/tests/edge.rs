//! What a stranger meets at a gateway's port: an ordinary web server, deadlines, and a bound.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "kit/answer.rs"]
mod answer;
mod kit;

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use answer::undated;
use kit::SECRET;
use narrowlink_control::gateway::Gateway;
use narrowlink_proto::{
    id::Uid,
    limits::Limits,
    token::{Claims, Keys, Kind},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn start(limits: Limits) -> (Gateway, SocketAddr) {
    let gateway = kit::start(1, limits);
    let addr = gateway.addresses()[0];
    (gateway, addr)
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything that comes back for `request` but the time.
fn ask(addr: SocketAddr, request: &str) -> String {
    let mut stream = connect(addr);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    undated(&answer)
}

fn upgrade(path: &str, token: Option<&str>) -> String {
    let bearer = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    format!(
        "GET {path} HTTP/1.1\r\nHost: gw.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         Sec-WebSocket-Protocol: nl1.link.framed\r\n{bearer}\r\n"
    )
}

/// Whether the gateway ends a connection on which nothing is said, and how soon.
fn ended_after(mut stream: TcpStream) -> Duration {
    let started = Instant::now();
    match stream.read(&mut [0; 1]) {
        Ok(0) => started.elapsed(),
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => started.elapsed(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_token_our_path_is_like_any_unknown_path() {
    let (_gateway, addr) = start(Limits::default());
    let ours = ask(addr, &upgrade("/ws", None));
    assert!(ours.starts_with("HTTP/1.1 404 "), "{ours}");
    assert_eq!(ours, ask(addr, &upgrade("/no/such/page", None)));
    assert_eq!(ours, ask(addr, "GET /ws HTTP/1.1\r\nHost: gw.example\r\n\r\n"));
    assert!(!ours.to_lowercase().contains("narrowlink"), "{ours}");
}

#[test]
fn every_token_that_does_not_hold_gets_the_same_answer() {
    let (_gateway, addr) = start(Limits::default());
    let claims = Claims::new(Kind::Client, Uid::nil(), "laptop", 1_000_000_000, "j");
    let expired = Keys::new(&SECRET).sign(&claims).unwrap();
    let foreign = Keys::new(&[8; 32]).sign(&Claims { exp: 253_402_300_799, ..claims }).unwrap();
    let answers = ["rubbish", &expired, &foreign].map(|token| ask(addr, &upgrade("/ws", Some(token))));
    assert!(answers[0].starts_with("HTTP/1.1 401 "), "{}", answers[0]);
    let (_, body) = answers[0].split_once("\r\n\r\n").unwrap();
    let refused: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(refused["code"], "unauthenticated");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}

#[test]
fn bytes_before_the_answer_are_refused() {
    let (_gateway, addr) = start(Limits::default());
    let answer = ask(addr, &format!("{}early", upgrade("/ws", Some("x"))));
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn a_silent_connection_is_gone_at_its_deadline() {
    let timeout = Duration::from_millis(200);
    let (_gateway, addr) =
        start(Limits { client_hello_timeout: timeout, head_timeout: timeout, ..Limits::default() });
    // Fifteen times as long, on a machine that is busy, and still sooner than by default.
    assert!(ended_after(connect(addr)) < Limits::default().client_hello_timeout);
    let mut slow = connect(addr);
    slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").unwrap();
    assert!(ended_after(slow) < Limits::default().head_timeout);
}

#[test]
fn strangers_are_bounded_and_a_place_that_is_left_is_free_again() {
    // The silent ones are not gone by themselves before the end.
    let timeout = PATIENCE * 2;
    let limits = Limits { client_hello_timeout: timeout, head_timeout: timeout, ..Limits::default() };
    let (_gateway, addr) = start(Limits { strangers_per_source_max: 4, ..limits });
    let mut silent: Vec<_> = (0..4).map(|_| connect(addr)).collect();
    // The kernel has them; the worker takes them in this order, so the fifth is one too many.
    ended_after(connect(addr));
    silent.pop();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut stream = connect(addr);
        let mut answer = String::new();
        let asked = stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .and_then(|()| stream.read_to_string(&mut answer));
        match asked {
            Ok(_) if answer.starts_with("HTTP/1.1 404 ") => break,
            // The worker has not noticed yet that somebody left.
            _ => assert!(Instant::now() < deadline, "no place became free: {asked:?} {answer:?}"),
        }
    }
}
