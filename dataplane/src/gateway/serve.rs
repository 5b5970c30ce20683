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
        date::dated,
        door::{Event, First, Rejected, Route, note_refused},
        lane::Lane,
        link,
        local::Local,
        parking,
        principal::Principal,
        routes::Published,
        service::Service,
        session::{Owner, Session},
        sources::{self, Bearer, Unheard},
        strangers::Waits,
        stream::{self, Visit},
        table::{Key, Kind, Seat},
        usage::Slot,
        visit::{self, Visitor},
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

impl Stranger {
    /// It visits a published service: who publishes that answers for it from now on.
    fn visits(mut self, wire: Wire, service: Arc<Published>) {
        let Self { local, place, .. } = &mut self;
        local.shared.sources.routed(&mut place.of);
        let Self { local, peer_addr, seat, .. } = self;
        spawn(visit::serve(Visitor { local, peer_addr, seat }, wire, service));
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
        Ok(Asked::Tunnel(Asking { wire, request, tls })) => {
            let seen = Sight { tls, peer_addr: Some(peer_addr) };
            let arrived = Arrived { stranger, since: Instant::now(), seen };
            Box::pin(enter(arrived, wire, request)).await
        }
        Ok(Asked::Published(wire, service)) => {
            stranger.visits(wire, service);
            Ok(())
        }
        Ok(Asked::Answered) => Ok(()),
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

/// What an arriving connection asks for.
enum Asked {
    /// A tunnel.
    Tunnel(Asking),
    /// A published service, to which its bytes are passed on as they are.
    Published(Wire, Arc<Published>),
    /// Something else, or nothing: it has its answer already.
    Answered,
}

/// What an arriving connection asks for; everything but a tunnel or a published host has its answer already.
async fn hear(local: &Rc<Local>, service: &Service, plain: Plain, place: &Place) -> io::Result<Asked> {
    let limits = Arc::clone(&local.shared.limits());
    plain.account().belongs_to(place.share());
    let sniffed = timeout(limits.client_hello_timeout, sniff_first(&plain)).await;
    let (first, early) = sniffed.map_err(|_| late("the first bytes"))??;
    if let First::Tls(hello) = &first
        && let Some(name) = &hello.server_name
        && let Some(published) = local.shared.routes.by_server_name(name, service.port)
    {
        let wire = Wire::from(plain);
        wire.unread(&early);
        return Ok(Asked::Published(wire, published));
    }
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
            return answer_and_close(wire, upgrade::encode_page(400, "GET")).await.map(|()| Asked::Answered);
        }
    };
    let head =
        timeout(limits.head_timeout, read_head(&wire)).await.map_err(|_| late("the request's head"))?;
    match head {
        Ok(Some(request)) => Ok(Asked::Tunnel(Asking { wire, request, tls })),
        Ok(None) => Ok(Asked::Answered),
        Err(Unusable::Broken(e)) => Err(e),
        Err(Unusable::Answer(answer)) => {
            place.waits(Waits::Answered);
            answer_and_close(wire, answer).await.map(|()| Asked::Answered)
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
async fn answer_and_close(wire: Wire, answer: Vec<u8>) -> io::Result<()> {
    // However many there are: nobody's login waits for what is only thrown away.
    wire.account().belongs_to(wire.account().share().leaving());
    let answer = dated(answer);
    if let Ok(Ok(())) = timeout(ANSWER_TIMEOUT, wire.write_all(&answer)).await {
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
    answer_and_close(wire, upgrade::encode_refusal(refused)).await
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
        let accept = upgrade::encode_accept(&self.key, self.protocol, opened, self.seen.as_ref());
        // Who compares what was seen takes a header that it does not know for a proxy's.
        if self.seen.is_some() { accept } else { dated(accept) }
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
mod tests;
