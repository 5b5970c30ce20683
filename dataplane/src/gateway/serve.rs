//! Role: one arriving connection at the gateway, from its first byte to its role: sniff, TLS, head,
//! admit.
//! Invariants: every step has a deadline · a stranger has a place, bounded and rated by where it comes from, until it
//! is somebody or gone · nothing is said to a stranger that an ordinary web
//! server would not say · a role is a task of its own: nothing of the arrival outlives it.
//! See: ARCHITECTURE.md "Life of a byte".

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    id::ChannelBinding,
    message::{Channel, Open},
    sniff::{EARLY_BYTES_MAX, Sniffed, Sniffer},
    upgrade::{self, Framing, Head, Opened, Protocol, Request, Sight},
};

use crate::{
    gateway::{
        admit,
        door::{Event, First, Rejected, Route, note_refused},
        lane::Lane,
        link,
        local::Local,
        parking,
        principal::Principal,
        service::Service,
        session::{Owner, Session},
        sources::{self, Bearer, Unheard},
        strangers::Waits,
        stream::{self, Visit},
        table::{Key, Kind, Seat},
        usage::Slot,
    },
    net::plain::Plain,
    run::{
        budget::{self, HANDSHAKE, Share},
        source::Source,
        timer::{sleep_until, timeout},
        worker::spawn,
    },
    tls::TlsStream,
    transport::wire::Wire,
    tunnel::conn::{Conn, Role},
};

/// How much of a first flight is read at once: nearly always all of it.
const READ_BYTES: usize = 2048;
/// How long an answer may take to reach a peer that is then cut off.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// What is read and thrown away behind an answer: an ordinary upload that comes to the wrong place.
const UNHEARD_BYTES_MAX: usize = 1024 * 1024;
/// So many turns those have who are to leave for somebody new.
const LEAVING_TURNS: usize = 16;
/// A login that fails is answered so long after it was asked for: what is wrong with a token is not to be
/// heard from how long it took to find.
const LOGIN_REFUSED_AFTER: Duration = Duration::from_millis(25);

/// Takes a connection that has just arrived, or cuts it off: its source may be too loud. When every place is taken, and
/// all that may have been told to leave, they have some turns to do so.
pub(crate) async fn take(local: &Rc<Local>, service: &Rc<Service>, plain: Plain) {
    let Ok(peer_addr) = plain.peer_addr() else { return };
    let mut stranger = Stranger::arrive(local, peer_addr);
    for _ in 0..LEAVING_TURNS {
        if !matches!(stranger, Err(Unheard::All)) {
            break;
        }
        budget::pass().await;
        stranger = Stranger::arrive(local, peer_addr);
    }
    match stranger {
        Ok(stranger) => spawn(serve(local.clone(), service.clone(), plain, stranger)),
        Err(why) => tracing::debug!(peer = %peer_addr, "cut off: {why}"),
    }
}

/// A connection that has shown no token yet.
struct Stranger {
    local: Rc<Local>,
    peer_addr: SocketAddr,
    seat: Seat,
    place: Place,
}

/// A stranger's place among those of its source, and of this worker, until dropped.
struct Place {
    local: Rc<Local>,
    of: sources::Place,
    key: Key,
}

impl Stranger {
    fn arrive(local: &Rc<Local>, peer_addr: SocketAddr) -> Result<Self, Unheard> {
        let (sources, limits) = (&local.shared.sources, local.shared.limits());
        let (source, now) = (Source::from(peer_addr), Instant::now());
        let of = match sources.arrive(source, &limits, now, false) {
            // One of those that have the most makes room for somebody new.
            Err(Unheard::All) if sources.may_replace(&limits) => {
                local.make_room();
                sources.arrive(source, &limits, now, true)?
            }
            other => other?,
        };
        let seat = Seat::for_stranger(&local.table);
        let place = Place { local: local.clone(), of, key: seat.key() };
        local.strangers(|all| all.arrive(place.of.heard, place.key));
        Ok(Self { local: local.clone(), peer_addr, seat, place })
    }
}

impl Place {
    fn waits(&self, waits: Waits) {
        self.local.strangers(|all| all.waits(self.of.heard, self.key, waits));
    }

    /// Whose share of the turns its connection takes.
    fn share(&self) -> Share {
        match self.of.heard.known_by {
            Some(Bearer(number)) => Share::of_known(number),
            None => Share::of_stranger(self.of.number),
        }
    }

    /// Its token holds, and it has not come too often.
    fn verified(&mut self, who: &Principal) {
        self.local.shared.sources.verified(&mut self.of, who.uid, &who.token_id, Instant::now());
    }

    /// Its token does not.
    fn failed(&self, peer_addr: SocketAddr) {
        let (sources, limits) = (&self.local.shared.sources, self.local.shared.limits());
        // Said once; each further penalty is longer.
        if sources.failed(&self.of, &limits, Instant::now()) == Some(limits.login_penalty_min) {
            tracing::warn!(
                peer = %peer_addr,
                "more than {} failed logins in a minute: from there fewer connections are heard for a while",
                limits.failed_logins_per_min
            );
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.local.strangers(|all| all.leave(self.of.heard, self.key));
        self.local.shared.sources.leave(&self.of, Instant::now());
    }
}

/// Sees one connection to its role, or to its end.
async fn serve(local: Rc<Local>, service: Rc<Service>, plain: Plain, stranger: Stranger) {
    let peer_addr = stranger.peer_addr;
    let dismissed = async {
        stranger.seat.dismissed().await;
        Err(io::Error::other("its place was needed for another"))
    };
    let served = match future::or(dismissed, hear(&local, &service, plain, &stranger.place)).await {
        Ok(Some(Asking { wire, request, tls })) => {
            let seen = Sight { tls, peer_addr: Some(peer_addr) };
            let arrived = Arrived { stranger, since: Instant::now(), seen };
            Box::pin(enter(arrived, wire, request)).await
        }
        Ok(None) => Ok(()),
        Err(e) => Err(e),
    };
    if let Err(e) = served {
        tracing::debug!(peer = %peer_addr, "connection ended: {e}");
    }
}

/// A connection that asks for a tunnel.
struct Asking {
    wire: Wire,
    request: Box<Request>,
    /// What its TLS has in common with its other end alone.
    tls: Option<ChannelBinding>,
}

/// What an arriving connection asks for; everything but a tunnel has its answer already.
async fn hear(
    local: &Rc<Local>,
    service: &Service,
    plain: Plain,
    place: &Place,
) -> io::Result<Option<Asking>> {
    let limits = Arc::clone(&local.shared.limits());
    plain.account().belongs_to(place.share());
    let sniffed = timeout(limits.client_hello_timeout, sniff_first(&plain)).await;
    let (first, early) = sniffed.map_err(|_| late("the first bytes"))??;
    let mut tls = None;
    let wire = match local.shared.door.route(service, &first) {
        Route::Terminate(config) => {
            // Boxed: what a handshake takes is given back when it is done.
            let handshake = Box::pin(async move {
                // Many may arrive at once: they take turns.
                place.waits(Waits::ForUs);
                plain.account().turn().await;
                place.waits(Waits::ForPeer);
                plain.account().spend(HANDSHAKE);
                TlsStream::accept_bound(plain, config, &early).await
            });
            let shaken = timeout(limits.tls_handshake_timeout, handshake).await;
            let (tls_stream, binding) = shaken.map_err(|_| late("the TLS handshake"))??;
            tls = Some(binding);
            tls_stream.into()
        }
        Route::Http => {
            let wire = Wire::from(plain);
            wire.unread(&early);
            wire
        }
        Route::Nothing => return Err(io::Error::other("nobody here has the name that it asks for")),
        // TLS where plain HTTP is served, or the reverse: a peer of ours knows from the answer what to say to its user.
        Route::Misplaced => {
            let wire = Wire::from(plain);
            place.waits(Waits::Answered);
            return answer_and_close(wire, &upgrade::encode_page(400, "GET")).await.map(|()| None);
        }
    };
    let head =
        timeout(limits.head_timeout, read_head(&wire)).await.map_err(|_| late("the request's head"))?;
    match head {
        Ok(request) => Ok(request.map(|request| Asking { wire, request, tls })),
        Err(Unusable::Broken(e)) => Err(e),
        Err(Unusable::Answer(answer)) => {
            place.waits(Waits::Answered);
            answer_and_close(wire, &answer).await.map(|()| None)
        }
    }
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} did not come in time"))
}

async fn sniff_first(plain: &Plain) -> io::Result<(First, Vec<u8>)> {
    let mut sniffer = Sniffer::default();
    let mut early = Vec::new();
    loop {
        match try_read_onto(plain, &mut early) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                plain.readable().await?;
                continue;
            }
            Err(e) => return Err(e),
        }
        match sniffer.sniff(&early).map_err(io::Error::other)? {
            Sniffed::NeedMore if early.len() > EARLY_BYTES_MAX => {
                return Err(io::Error::other("too much before anything could be told"));
            }
            Sniffed::NeedMore => {}
            Sniffed::Tls(hello) => return Ok((First::Tls(Box::new(hello)), early)),
            Sniffed::Http => return Ok((First::Http, early)),
        }
    }
}

/// The buffer lies on the stack: who waits holds none.
fn try_read_onto(plain: &Plain, got: &mut Vec<u8>) -> io::Result<usize> {
    let mut buf = [0; READ_BYTES];
    let bytes = plain.try_read(&mut buf)?;
    got.extend_from_slice(&buf[..bytes]);
    Ok(bytes)
}

enum Unusable {
    Broken(io::Error),
    Answer(Vec<u8>),
}

/// The head of a request for a tunnel; everything else has its answer in the error.
async fn read_head(wire: &Wire) -> Result<Option<Box<Request>>, Unusable> {
    let mut got = Vec::new();
    loop {
        if wire.read_onto(&mut got).await.map_err(Unusable::Broken)? == 0 {
            return Ok(None);
        }
        match upgrade::parse_request(&got).map_err(|e| Unusable::Answer(e.encode()))? {
            Head::NeedMore => {}
            // A client has nothing to say before the 101.
            Head::Upgrade { head_bytes, .. } if head_bytes < got.len() => {
                return Err(Unusable::Answer(upgrade::encode_page(400, "GET")));
            }
            Head::Upgrade { request, .. } => return Ok(Some(request)),
            Head::Other(other) => return Err(Unusable::Answer(upgrade::encode_page(404, &other.method))),
        }
    }
}

/// Answers and closes so that the answer arrives: what the peer still sends is read first.
async fn answer_and_close(wire: Wire, answer: &[u8]) -> io::Result<()> {
    // However many there are: nobody's login waits for what is only thrown away.
    wire.account().belongs_to(wire.account().share().leaving());
    if let Ok(Ok(())) = timeout(ANSWER_TIMEOUT, wire.write_all(answer)).await {
        wire.hear_out(UNHEARD_BYTES_MAX, ANSWER_TIMEOUT).await;
    }
    wire.close_gently();
    Ok(())
}

/// A connection that has said what it wants.
struct Arrived {
    stranger: Stranger,
    /// When all of its request was there.
    since: Instant,
    /// What this end sees of the connection.
    seen: Sight,
}

impl Arrived {
    fn local(&self) -> &Rc<Local> {
        &self.stranger.local
    }

    async fn refuse(&self, wire: Wire, who: Option<&Principal>, refused: Refused) -> io::Result<()> {
        self.reject(wire, who, refused.into()).await
    }

    async fn reject(&self, wire: Wire, who: Option<&Principal>, rejected: Rejected) -> io::Result<()> {
        self.stranger.place.waits(Waits::Answered);
        let answered = reject(self.local(), wire, (who, self.stranger.peer_addr), rejected, self.since);
        let dismissed = async {
            self.stranger.seat.dismissed().await;
            Ok(())
        };
        future::or(dismissed, answered).await
    }

    /// It is somebody now: its source has a place more.
    fn becomes(mut self, who: &Principal, kind: Kind) -> (Rc<Local>, SocketAddr, Seat) {
        self.stranger.place.verified(who);
        let Stranger { local, peer_addr, seat, .. } = self.stranger;
        seat.becomes(kind);
        (local, peer_addr, seat)
    }
}

/// Answers a request, which came at `since`, with a refusal; its cause is the operator's alone.
async fn reject(
    local: &Local,
    wire: Wire,
    (who, peer_addr): (Option<&Principal>, SocketAddr),
    rejected: Rejected,
    since: Instant,
) -> io::Result<()> {
    let Rejected { refused, cause } = &rejected;
    let cause = cause.as_deref();
    note_refused(&*local.shared.door, (who, peer_addr), refused, cause);
    if refused.code == RefusalCode::Unauthenticated {
        sleep_until(since + LOGIN_REFUSED_AFTER).await;
    }
    answer_and_close(wire, &upgrade::encode_refusal(refused)).await
}

/// What accepts a request.
struct Accept {
    key: [u8; 16],
    protocol: Protocol,
    /// Said where the peer compares it.
    seen: Option<Sight>,
}

impl Accept {
    fn encode(&self, opened: Option<&Opened>) -> Vec<u8> {
        upgrade::encode_accept(&self.key, self.protocol, opened, self.seen.as_ref())
    }
}

/// Who asks for a tunnel, if they may have that kind of connection; else the refusal, and whose it is.
fn identify(
    arrived: &Arrived,
    request: &Request,
) -> Result<Arc<Principal>, (Option<Arc<Principal>>, Rejected)> {
    if request.origin.is_some() {
        let refused = Refused::new(RefusalCode::Policy, "no browser page may open a tunnel here");
        return Err((None, refused.into()));
    }
    let channel = request.protocol.channel;
    let who = admit::login(arrived.local(), channel, &request.token).map_err(|rejected| {
        if rejected.refused.code == RefusalCode::Unauthenticated {
            arrived.stranger.place.failed(arrived.stranger.peer_addr);
        }
        (None, rejected)
    })?;
    if channel != Channel::Lane {
        let event = Event::LoggedIn { who: &who, peer_addr: arrived.stranger.peer_addr };
        arrived.local().shared.door.note(&event);
        arrived.stranger.seat.belongs_to(&who);
    }
    if request.protocol.framing == Framing::Raw
        && let Err(between) = request.way.is_direct(&arrived.seen)
    {
        let session = request.open.as_ref().map(|open| open.session);
        let refused = Refused { session, ..Refused::from(between) };
        return Err((Some(who), refused.into()));
    }
    Ok(who)
}

/// A request for a tunnel: for which role?
async fn enter(arrived: Arrived, wire: Wire, request: Box<Request>) -> io::Result<()> {
    let who = match identify(&arrived, &request) {
        Ok(who) => who,
        Err((who, rejected)) => return arrived.reject(wire, who.as_deref(), rejected).await,
    };
    wire.account().belongs_to(Share::of(who.uid));
    let Request { protocol, key, open, lane, .. } = *request;
    let seen = (protocol.framing == Framing::Raw).then_some(arrived.seen.clone());
    let accept = Accept { key, protocol, seen };
    let conn = |wire| Box::new(Conn::new(wire, protocol.framing, Role::Gateway, 0));
    match (protocol.channel, lane, open) {
        (Channel::Link, None, None) if protocol.framing == Framing::Framed => {
            let slot = match who.usage.link(who.speaker, &arrived.local().shared.limits()) {
                Ok(slot) => slot,
                Err(refused) => return arrived.refuse(wire, Some(&who), refused).await,
            };
            let (local, peer_addr, seat) = arrived.becomes(&who, Kind::Link);
            wire.write_all(&accept.encode(None)).await?;
            spawn(link::serve(local, wire, who, peer_addr, (seat, slot)));
            Ok(())
        }
        (Channel::Lane, Some(proof), None) => match admit::lane(arrived.local(), &who, &proof) {
            Ok((entry, slot)) => {
                let (local, _, seat) = arrived.becomes(&who, Kind::Lane);
                // All lanes of an agent share one: this login's is given back.
                seat.belongs_to(&entry.principal);
                wire.write_all(&accept.encode(None)).await?;
                if let Ok(idle) = (Lane { conn: conn(wire), entry, seat, slot }).idle() {
                    parking::place(&local, idle);
                }
                Ok(())
            }
            Err(refused) => arrived.refuse(wire, Some(&who), refused).await,
        },
        (Channel::Stream, None, open) => {
            let slot = match who.usage.stream() {
                Ok(slot) => slot,
                Err(refused) => {
                    let refused = match &open {
                        Some(open) => refused.of(open.session),
                        None => refused,
                    };
                    return arrived.refuse(wire, Some(&who), refused).await;
                }
            };
            enter_stream(arrived, wire, (who, slot), open, accept).await
        }
        _ => {
            let refused = Refused::new(RefusalCode::Protocol, "this role takes other headers");
            arrived.refuse(wire, Some(&who), refused).await
        }
    }
}

/// A client's stream, and the session that its request may ask for.
async fn enter_stream(
    arrived: Arrived,
    wire: Wire,
    (who, slot): (Arc<Principal>, Slot),
    open: Option<Open>,
    accept: Accept,
) -> io::Result<()> {
    let since = arrived.since;
    let (local, peer_addr, seat) = arrived.becomes(&who, Kind::Stream);
    let owner = Rc::new(Owner { local, who, peer_addr, seat });
    let session = match open {
        None => {
            wire.write_all(&accept.encode(None)).await?;
            None
        }
        Some(open) => match dialled(&owner, &wire, open).await? {
            Ok((session, opened)) => {
                wire.write_all(&accept.encode(Some(&opened))).await?;
                Some(session)
            }
            Err(refused) => {
                let Owner { local, who, peer_addr, .. } = &*owner;
                return reject(local, wire, (Some(who), *peer_addr), refused.into(), since).await;
            }
        },
    };
    let conn = Box::new(Conn::new(wire, accept.protocol.framing, Role::Gateway, 0));
    spawn(stream::serve(Visit { owner, _slot: slot }, conn, session));
    Ok(())
}

/// Has the session dialled that a request asks for. A client that leaves, or speaks before it is
/// answered, ends its request.
async fn dialled(
    owner: &Rc<Owner>,
    wire: &Wire,
    open: Open,
) -> io::Result<Result<(Box<Session>, Opened), Refused>> {
    let early = async {
        let n = wire.read(&mut [0; 1]).await?;
        Err(io::Error::other(if n == 0 { "the client left" } else { "bytes before the 101" }))
    };
    let opened = async {
        Ok(match owner.ask(open).await {
            Ok(dialling) => dialling.answered().await,
            Err(refused) => Err(refused),
        })
    };
    future::or(early, opened).await
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use narrowlink_proto::{
        ended::Why,
        id::LaneId,
        limits::Limits,
        message::Message,
        upgrade::{Answer, LaneProof, Way, encode_page, encode_request, parse_response},
    };
    use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs};

    use super::*;
    use crate::{
        gateway::kit::{self, Agent, FRAMINGS, PEER, Peer, Worker, exchange, session, until},
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
        let (local, service) = (worker.local.clone(), Rc::new(Service { index: 0, tls }));
        let stranger = Stranger::arrive(&local, peer_addr)?;
        spawn(serve(local, service, ours.into(), stranger));
        Ok(theirs.into())
    }

    /// A connection to the plain service.
    fn arrive(worker: &Worker) -> Wire {
        come(worker, false, (PEER, Room::default())).unwrap()
    }

    /// Everything that comes back, and whether the end is a clean one.
    async fn rest(wire: &Wire) -> (Vec<u8>, bool) {
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
            for first in
                [&b"SSH-2.0-OpenSSH_9\r\n"[..], b"\r\n\r\n", b"\x16\x03\x09", b"get / HTTP/1.1\r\n\r\n"]
            {
                for tls in [false, true] {
                    assert_eq!(
                        answer(&worker, tls, first).await,
                        (vec![], false),
                        "{}",
                        first.escape_ascii()
                    );
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
            let (client, opened) =
                asks(&worker, &request(Channel::Stream, Framing::Framed)).await.ok().unwrap();
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
            assert_eq!(
                (status, refused),
                (403, Refused::new(RefusalCode::Policy, "not there").of(session(1)))
            );
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
}
