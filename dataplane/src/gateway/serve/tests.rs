//! Role: connections at the gateway from their first byte, in memory: sniffed, greeted, admitted or refused.

use std::num::NonZeroU32;

use narrowlink_proto::{
    ended::Why,
    id::LaneId,
    limits::Limits,
    message::Message,
    token::{PublishProtocol, ServiceName},
    upgrade::{Answer, LaneProof, Trace, Way, encode_page, encode_request, parse_response},
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs};

use super::*;
use crate::{
    gateway::kit::{self, Agent, FRAMINGS, PEER, Peer, Worker, exchange, session, until},
    gateway::routes::{Member, Published},
    net::memory::{Memory, Room},
};

const SOON: Duration = Duration::from_millis(40);
const KEY: [u8; 16] = *b"the sample nonce";
const UNAUTHENTICATED: &str = "somebody refused: unauthenticated (nobody has this token)";

fn future_bytes<A, F>(_: impl FnOnce(A) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn an_arrival_holds_little_while_it_waits() {
    let bytes = future_bytes(|(local, service, plain, stranger)| serve(local, service, plain, stranger));
    assert!(bytes <= 2048, "{bytes}");
}

/// A worker to which as many may come as like to.
fn worker() -> Worker {
    kit::worker(Limits { strangers_per_source_burst: NonZeroU32::MAX, ..Limits::default() })
}

fn come(worker: &Worker, tls: bool, (peer_addr, room): (SocketAddr, Room)) -> Result<Wire, Unheard> {
    let (ours, theirs) = Memory::pair(room);
    let (local, service) = (worker.local.clone(), Rc::new(Service { index: 0, port: 443, tls }));
    let stranger = Stranger::arrive(&local, peer_addr)?;
    spawn(serve(local, service, ours.into(), stranger));
    Ok(theirs.into())
}

#[test]
fn a_greeting_for_a_published_name_goes_to_its_agent_as_it_came_however_it_is_cut() {
    let roots = RootCertStore::empty();
    let config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let greeting = |name: &str| {
        let mut client =
            ClientConnection::new(Arc::new(config.clone()), name.to_owned().try_into().unwrap()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    };
    for tls in [true, false] {
        kit::run(async {
            let worker = worker();
            let agent = worker.agent();
            let name = ServiceName { host: "app.example".into(), port: 0, path: String::new() };
            let member = Member { agent: agent.entry.key.clone(), who: worker.home.clone() };
            let service = Published { name, protocol: PublishProtocol::Tls, members: vec![member] };
            let services: Arc<[Arc<Published>]> = Arc::new([Arc::new(service)]);
            worker.shared.routes.publish([("app.example".to_owned(), services)].into_iter().collect());
            let hello = greeting("app.example");
            for cut in [1, 5, hello.len() / 2, hello.len() - 1] {
                let lane = worker.park(&agent, Framing::Framed);
                let visitor = come(&worker, tls, (PEER, Room::default())).unwrap();
                visitor.write_all(&hello[..cut]).await.unwrap();
                kit::turns().await;
                visitor.write_all(&hello[cut..]).await.unwrap();
                let dial = lane.accept().await;
                assert_eq!(lane.payload(dial.session, hello.len()).await.unwrap(), hello, "{cut}");
                assert_eq!((worker.count(Kind::Stranger), worker.count(Kind::Session)), (0, 1));
                assert_eq!(worker.shared.sources.strangers(), 0, "its publisher answers for it");
                drop(visitor);
                assert_eq!(lane.close().await.0, crate::tunnel::conn::CLOSE_RESET);
                until(|| worker.count(Kind::Session) == 0).await;
            }
            // Any other name is answered as before.
            let (got, is_clean) = answer(&worker, tls, &greeting("other.example")).await;
            assert_eq!((got.is_empty(), is_clean), (tls, !tls));
        });
    }
}

/// A connection to the plain service.
fn arrive(worker: &Worker) -> Wire {
    come(worker, false, (PEER, Room::default())).unwrap()
}

/// Everything that comes back but the time, and whether the end is a clean one.
async fn rest(wire: &Wire) -> (Vec<u8>, bool) {
    let (got, is_clean) = all(wire).await;
    let text = String::from_utf8_lossy(&got).into_owned();
    match text.split_once("\r\nDate: ").and_then(|(status, rest)| Some((status, rest.split_once("\r\n")?.1)))
    {
        Some((status, rest)) => (format!("{status}\r\n{rest}").into_bytes(), is_clean),
        None => (got, is_clean),
    }
}

async fn all(wire: &Wire) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    loop {
        match wire.read_onto(&mut got).await {
            Ok(0) => return (got, true),
            Ok(_) => {}
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
                return (got, false);
            }
        }
    }
}

/// What comes back for these first bytes.
async fn answer(worker: &Worker, tls: bool, said: &[u8]) -> (Vec<u8>, bool) {
    let wire = come(worker, tls, (PEER, Room::default())).unwrap();
    wire.write_all(said).await.unwrap();
    rest(&wire).await
}

fn request(channel: Channel, framing: Framing) -> Request {
    Request {
        protocol: Protocol { channel, framing },
        token: if channel == Channel::Lane { "agent" } else { "client" }.to_owned(),
        key: KEY,
        open: None,
        lane: None,
        host: "gw.example".to_owned(),
        origin: None,
        way: Way::seen(Sight::default()),
    }
}

fn with_open(n: u8, framing: Framing) -> Request {
    Request { open: Some(kit::open(n)), ..request(Channel::Stream, framing) }
}

fn of_lane(agent: &Agent, n: u8, framing: Framing) -> Request {
    let (link, lane) = (agent.entry.link, LaneId::from_bytes([n; 32]));
    let proof = agent.entry.secret.prove_lane(&link, &lane);
    Request { lane: Some(LaneProof { link, lane, proof }), ..request(Channel::Lane, framing) }
}

/// The connection behind the 101, with the answer to the Open that went along; else status and refusal.
async fn asks_over(wire: Wire, request: &Request) -> Result<(Peer, Option<Opened>), (u16, Refused)> {
    let Protocol { channel, framing } = request.protocol;
    wire.write_all(&encode_request(request)).await.unwrap();
    let mut got = Vec::new();
    loop {
        assert!(wire.read_onto(&mut got).await.unwrap() > 0, "{}", got.escape_ascii());
        match parse_response(&got, &KEY, request.protocol).unwrap() {
            Answer::NeedMore => {}
            Answer::Accepted { opened, head_bytes, .. } => {
                wire.unread(&got[head_bytes..]);
                return Ok((Peer::new(wire, framing, channel), opened));
            }
            Answer::Refused { status, refused, .. } => return Err((status, refused.unwrap())),
        }
    }
}

async fn asks(worker: &Worker, request: &Request) -> Result<(Peer, Option<Opened>), (u16, Refused)> {
    asks_over(arrive(worker), request).await
}

async fn is_refused(worker: &Worker, request: &Request) -> (u16, Refused) {
    asks(worker, request).await.err().unwrap()
}

#[test]
fn what_is_neither_tls_nor_http_is_cut_off_without_a_word() {
    kit::run(async {
        let worker = worker();
        for first in [&b"SSH-2.0-OpenSSH_9\r\n"[..], b"\r\n\r\n", b"\x16\x03\x09", b"get / HTTP/1.1\r\n\r\n"]
        {
            for tls in [false, true] {
                assert_eq!(answer(&worker, tls, first).await, (vec![], false), "{}", first.escape_ascii());
            }
        }
    });
}

#[test]
fn tls_at_the_plain_service_and_the_reverse_are_answered_as_any_web_server_does() {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), "gw.example".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    kit::run(async {
        let worker = worker();
        let page = (encode_page(400, "GET"), true);
        assert_eq!(answer(&worker, false, &hello).await, page);
        assert_eq!(answer(&worker, true, b"GET / HTTP/1.1\r\n").await, page);
        assert_eq!(answer(&worker, true, &hello).await, (vec![], false), "a name without a certificate");
    });
}

#[test]
fn without_a_token_every_path_is_one_that_is_not_there_and_nobody_is_asked() {
    let upgrade = String::from_utf8(encode_request(&request(Channel::Stream, Framing::Framed))).unwrap();
    let no_token = upgrade.replace("Authorization: Bearer client\r\n", "");
    let elsewhere = upgrade.replace("GET /ws ", "GET /secret ");
    let head = "GET / HTTP/1.1\r\nHost: gw.example\r\n\r\n";
    kit::run(async {
        let worker = worker();
        for said in [&*no_token, &*elsewhere, head] {
            assert_eq!(answer(&worker, false, said.as_bytes()).await, (encode_page(404, "GET"), true));
            let wire = arrive(&worker);
            wire.write_all(said.as_bytes()).await.unwrap();
            assert!(Trace::of(&all(&wire).await.0).date.is_some(), "an answer says when it was given");
        }
        let head = head.replace("GET", "HEAD");
        assert_eq!(answer(&worker, false, head.as_bytes()).await, (encode_page(404, "HEAD"), true));
        let upload =
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n{}", "x".repeat(9_999));
        assert_eq!(answer(&worker, false, upload.as_bytes()).await, (encode_page(404, "POST"), true));
        for (status, bad) in
            [(400, "GET / HTTP/1.1\r\n\r\n"), (431, &*format!("GET /{} ", "x".repeat(20_000)))]
        {
            assert_eq!(answer(&worker, false, bad.as_bytes()).await, (encode_page(status, "GET"), true));
        }
        let early = format!("{upgrade}x");
        assert_eq!(answer(&worker, false, early.as_bytes()).await, (encode_page(400, "GET"), true));
        assert!(worker.door.events().is_empty());
    });
}

#[test]
fn a_head_is_the_same_wherever_the_network_cuts_it() {
    let upgrade = request(Channel::Stream, Framing::Framed);
    let head = b"GET / HTTP/1.1\r\nHost: gw.example\r\n\r\n";
    kit::run(async {
        let worker = worker();
        for call_bytes in 1..=encode_request(&upgrade).len() {
            let room = Room { call_bytes, ..Room::default() };
            let wire = come(&worker, false, (PEER, room)).unwrap();
            assert!(asks_over(wire, &upgrade).await.is_ok(), "{call_bytes}");
            let wire = come(&worker, false, (PEER, room)).unwrap();
            wire.write_all(head).await.unwrap();
            assert_eq!(rest(&wire).await, (encode_page(404, "GET"), true), "{call_bytes}");
        }
        until(|| worker.shared.sources.strangers() == 0 && worker.count(Kind::Stream) == 0).await;
    });
}

#[test]
fn a_login_that_fails_is_answered_25_ms_later_in_the_same_words_for_every_cause() {
    kit::run(async {
        let worker = worker();
        let agent = worker.agent();
        let begun = Instant::now();
        let nobody = Request { token: "guess".to_owned(), ..request(Channel::Link, Framing::Framed) };
        let first = is_refused(&worker, &nobody).await;
        assert!(begun.elapsed() >= LOGIN_REFUSED_AFTER);
        assert_eq!((first.0, first.1.code), (401, RefusalCode::Unauthenticated));
        assert_eq!(worker.door.events(), [UNAUTHENTICATED]);
        for (token, channel) in [("guess", Channel::Stream), ("agent", Channel::Stream)] {
            let bad = Request { token: token.to_owned(), ..request(channel, Framing::Framed) };
            assert_eq!(is_refused(&worker, &bad).await, first);
        }
        let wrong = Request { token: "client".to_owned(), ..of_lane(&agent, 1, Framing::Framed) };
        assert_eq!(is_refused(&worker, &wrong).await, first);
        assert_eq!(worker.door.events().len(), 3);
    });
}

#[test]
fn each_step_has_a_deadline() {
    kit::run(async {
        let limits = Limits { client_hello_timeout: SOON, head_timeout: SOON, ..Limits::default() };
        let worker = kit::worker(limits);
        for said in [&b""[..], b"GE", b"\x16\x03\x01\x02", b"GET / HTTP/1.1\r\nHost: gw.exam"] {
            let begun = Instant::now();
            assert_eq!(answer(&worker, false, said).await, (vec![], false));
            assert!(begun.elapsed() >= SOON, "{}", said.escape_ascii());
        }
        until(|| worker.shared.sources.strangers() + worker.count(Kind::Stranger) == 0).await;
    });
}

#[test]
fn when_all_places_are_taken_the_first_that_says_nothing_leaves_for_somebody_new() {
    let from = |n| (SocketAddr::from(([192, 0, 2, n], 1)), Room::default());
    kit::run(async {
        let worker = kit::worker(Limits { strangers_max: 8, ..Limits::default() });
        let silent: Vec<_> = (1..=8).map(|n| come(&worker, false, from(n)).unwrap()).collect();
        assert_eq!(come(&worker, false, from(1)).err(), Some(Unheard::Source), "its own place");
        let new = come(&worker, false, from(9)).unwrap();
        assert_eq!(rest(&silent[0]).await, (vec![], false));
        new.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert_eq!(rest(&new).await, (encode_page(404, "GET"), true));
        assert_eq!(worker.count(Kind::Stranger), 8);
        // Who has had its answer goes before those that still wait.
        let _newer = come(&worker, false, from(10)).unwrap();
        until(|| worker.count(Kind::Stranger) == 8).await;
        silent[1].write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert_eq!(rest(&silent[1]).await, (encode_page(404, "GET"), true));
    });
}

#[test]
fn who_shows_a_good_token_is_not_held_up_by_how_often_it_comes() {
    let one = NonZeroU32::MIN;
    let limits =
        Limits { strangers_per_source_burst: one, strangers_per_source_per_s: one, ..Limits::default() };
    kit::run(async {
        let worker = kit::worker(limits);
        let mut links = Vec::new();
        for _ in 0..30 {
            links.push(asks(&worker, &request(Channel::Link, Framing::Framed)).await.ok().unwrap());
        }
        let unheard = (0..30).find_map(|_| come(&worker, false, (PEER, Room::default())).err());
        assert_eq!(unheard, Some(Unheard::Rate), "who shows none is");
    });
}

#[test]
fn no_browser_page_opens_a_tunnel_even_with_a_token() {
    kit::run(async {
        let worker = worker();
        let page = Request {
            origin: Some("https://evil.example".into()),
            ..request(Channel::Link, Framing::Framed)
        };
        let (status, refused) = is_refused(&worker, &page).await;
        assert_eq!((status, refused.code), (403, RefusalCode::Policy));
        assert_eq!(worker.door.events(), ["somebody refused: policy"], "nobody has logged in");
    });
}

#[test]
fn a_link_stands_behind_its_login() {
    kit::run(async {
        let worker = worker();
        let (peer, _) = asks(&worker, &request(Channel::Link, Framing::Framed)).await.ok().unwrap();
        assert!(matches!(peer.hear().await, Ok(Message::Hello { .. })));
        assert_eq!([Kind::Stranger, Kind::Link].map(|kind| worker.count(kind)), [0, 1]);
        assert_eq!(worker.shared.sources.strangers(), 0);
        assert_eq!(worker.door.events(), ["laptop logged in"]);
        let (status, refused) = is_refused(&worker, &request(Channel::Link, Framing::Raw)).await;
        assert_eq!((status, refused.code), (400, RefusalCode::Protocol), "a link has no plain bytes");
    });
}

#[test]
fn a_lane_is_parked_for_the_agent_whose_it_is_and_one_that_proves_nothing_is_refused_as_a_bad_login() {
    kit::run(async {
        let worker = worker();
        let agent = worker.agent();
        for (n, framing) in [(1, Framing::Framed), (2, Framing::Raw)] {
            let (peer, _) = asks(&worker, &of_lane(&agent, n, framing)).await.ok().unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            let lane = parking::take(&worker.local, &agent.entry, deadline).await.unwrap();
            assert_eq!([Kind::Stranger, Kind::Lane].map(|kind| worker.count(kind)), [0, 1]);
            drop(lane);
            peer.cut().await;
        }
        assert!(worker.door.events().is_empty(), "a lane is no login");
        let begun = Instant::now();
        let (status, refused) = is_refused(&worker, &of_lane(&agent, 1, Framing::Framed)).await;
        assert_eq!((status, refused.code), (401, RefusalCode::Unauthenticated), "its id is used");
        assert!(begun.elapsed() >= LOGIN_REFUSED_AFTER);
        // It is its agent's: it goes when that must.
        let (peer, _) = asks(&worker, &of_lane(&agent, 3, Framing::Framed)).await.ok().unwrap();
        worker.expel("home", Why::Revoked);
        assert_eq!(peer.close().await.0, 1008);
    });
}

#[test]
fn a_stream_carries_its_first_session_in_its_request_or_none() {
    kit::run(async {
        let worker = worker();
        let agent = worker.agent();
        for (n, framing) in (1..).zip(FRAMINGS) {
            let lane = worker.park(&agent, framing);
            let request = with_open(n, framing);
            let ((client, opened), _) =
                future::zip(async { asks(&worker, &request).await.ok().unwrap() }, lane.accept()).await;
            assert_eq!(opened.unwrap().session, session(n));
            exchange(&client, &lane, n).await;
            let ended = format!("{n} ended: 2 up, 4 down, Here finished");
            let opened = format!("laptop opened {n} at home");
            assert_eq!(worker.door.events(), ["laptop logged in", &opened, &ended]);
        }
        let lane = worker.park(&agent, Framing::Framed);
        let (client, opened) = asks(&worker, &request(Channel::Stream, Framing::Framed)).await.ok().unwrap();
        assert!(opened.is_none());
        client.open(7).await;
        lane.accept().await;
        client.opened(7).await;
        exchange(&client, &lane, 7).await;
    });
}

#[test]
fn a_request_whose_session_is_refused_has_its_reason_in_the_answer() {
    kit::run(async {
        let worker = worker();
        let agent = worker.agent();
        worker.door.known().refusal = Some(Refused::new(RefusalCode::Policy, "not there"));
        let (status, refused) = is_refused(&worker, &with_open(1, Framing::Framed)).await;
        assert_eq!((status, refused), (403, Refused::new(RefusalCode::Policy, "not there").of(session(1))));
        worker.door.known().refusal = None;
        let lane = worker.park(&agent, Framing::Framed);
        let refusing = async {
            let dial = lane.dial().await;
            lane.say(&Message::refused(dial.session, RefusalCode::TargetTimeout, "slow")).await;
        };
        let request = with_open(2, Framing::Raw);
        let ((status, refused), ()) = future::zip(is_refused(&worker, &request), refusing).await;
        assert_eq!((status, refused.session, &*refused.reason), (504, Some(session(2)), "slow"));
        let events = worker.door.events();
        assert_eq!(
            events[1..],
            ["laptop refused: policy", "laptop logged in", "laptop refused: target_timeout"]
        );
    });
}

#[test]
fn a_client_that_leaves_or_speaks_before_its_answer_ends_its_session() {
    kit::run(async {
        let worker = worker();
        let agent = worker.agent();
        for n in [1, 2] {
            let lane = worker.park(&agent, Framing::Framed);
            let wire = arrive(&worker);
            wire.write_all(&encode_request(&with_open(n, Framing::Framed))).await.unwrap();
            assert_eq!(lane.dial().await.session, session(n));
            if n == 1 {
                drop(wire);
            } else {
                wire.write_all(b"x").await.unwrap();
                assert_eq!(rest(&wire).await, (vec![], false));
            }
            lane.cut().await;
        }
        until(|| worker.count(Kind::Stream) + worker.count(Kind::Lane) == 0).await;
    });
}

#[test]
fn plain_bytes_are_refused_where_something_may_stand_between() {
    kit::run(async {
        let worker = worker();
        let unsaid = Request { way: Way::default(), ..with_open(1, Framing::Raw) };
        let (status, refused) = is_refused(&worker, &unsaid).await;
        assert_eq!(
            (status, refused.code, refused.session),
            (501, RefusalCode::Unsupported, Some(session(1)))
        );
        let other = Sight { tls: Some(ChannelBinding::from_bytes([1; 32])), peer_addr: None };
        let ends_tls = Request { way: Way::seen(other), ..request(Channel::Stream, Framing::Raw) };
        let (status, refused) = is_refused(&worker, &ends_tls).await;
        assert!(status == 501 && refused.reason.contains("ends TLS"), "{refused}");
        let framed = Request { way: Way::default(), ..request(Channel::Stream, Framing::Framed) };
        assert!(asks(&worker, &framed).await.is_ok());
    });
}

#[test]
fn a_gateway_that_stops_sends_those_who_come_away() {
    kit::run(async {
        let worker = worker();
        worker.local.stop();
        let (status, refused) = is_refused(&worker, &request(Channel::Link, Framing::Framed)).await;
        assert_eq!((status, refused.code), (503, RefusalCode::Draining));
    });
}
