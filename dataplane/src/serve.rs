//! Role: one arriving connection at the gateway, from its first byte to its session's end: sniff,
//! TLS, head, admit, relay.
//! Invariants: every step has a deadline · nothing is said to a stranger that an ordinary web
//! server would not say · a session lives on the worker that admitted its client.
//! See: ARCHITECTURE.md "Life of a byte".

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use futures_lite::future;
use monoio::time::{Instant, sleep_until, timeout, timeout_at};
use narrowlink_proto::{
    ended::{Ended, RefusalCode, Refused, Side, Why},
    message::{Channel, Message, Open, Speaker},
    sniff::{EARLY_BYTES_MAX, Sniffed, Sniffer},
    upgrade::{self, Framing, Head, Opened, Request},
};

use crate::{
    admit,
    conn::{CLOSE_RESET, Conn, ConnError, Role},
    door::Principal,
    handover::Local,
    lane::{self, Lane},
    link,
    relay::{Traffic, relay, settled},
    socket::Socket,
    table::{Kind, Seat},
    tls::TlsSocket,
    wire::Wire,
};

/// How long an answer may take to reach a peer that is then cut off.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What a listener is for.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its number in the configuration.
    pub index: usize,
    /// Whether TLS is spoken there.
    pub tls: bool,
}

/// Serves one connection to its end.
pub async fn serve(local: Rc<Local>, service: Rc<Service>, socket: Socket) {
    let Ok(peer_addr) = socket.peer_addr() else { return };
    let Some(seat) = Seat::for_stranger(&local) else {
        return tracing::debug!(peer = %peer_addr, "too many connections that nobody knows: this one is cut off");
    };
    if let Err(e) = arrive(&local, &service, socket, peer_addr, seat).await {
        tracing::debug!(peer = %peer_addr, "connection ended: {e}");
    }
}

async fn arrive(
    local: &Rc<Local>,
    service: &Service,
    socket: Socket,
    peer_addr: SocketAddr,
    seat: Seat,
) -> io::Result<()> {
    let limits = &local.shared.limits;
    let sniffed = timeout(limits.client_hello_timeout, sniff_first(&socket)).await;
    let (sniffed, early) = sniffed.map_err(|_| late("the first bytes"))??;
    let wire = match sniffed {
        Sniffed::Tls(hello) if service.tls => {
            let name = hello.server_name.as_deref();
            let Some(config) = local.shared.door.tls(service.index, name) else {
                return Err(io::Error::other(format!("no certificate for {name:?}")));
            };
            let handshake = TlsSocket::accept(socket, config, &early);
            timeout(limits.tls_handshake_timeout, handshake)
                .await
                .map_err(|_| late("the TLS handshake"))??
                .into()
        }
        Sniffed::Http if !service.tls => {
            let wire = Wire::from(socket);
            wire.unread(&early);
            wire
        }
        Sniffed::Http => {
            let wire = Wire::from(socket);
            return answer_and_close(wire, &upgrade::encode_page(400, "GET")).await;
        }
        _ => return Err(io::Error::other("TLS where plain HTTP is served")),
    };
    let head =
        timeout(limits.head_timeout, read_head(&wire)).await.map_err(|_| late("the request's head"))?;
    match head {
        Ok(Some(request)) => tunnel(local, wire, *request, peer_addr, seat).await,
        Ok(None) => Ok(()),
        Err(Unusable::Broken(e)) => Err(e),
        Err(Unusable::Answer(answer)) => answer_and_close(wire, &answer).await,
    }
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} did not come in time"))
}

async fn sniff_first(socket: &Socket) -> io::Result<(Sniffed, Vec<u8>)> {
    let mut sniffer = Sniffer::default();
    let mut early = Vec::new();
    let mut buf = [0; 2048];
    loop {
        let n = match socket.try_read(&mut buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                socket.readable().await?;
                continue;
            }
            Err(e) => return Err(e),
        };
        early.extend_from_slice(&buf[..n]);
        match sniffer.sniff(&early).map_err(io::Error::other)? {
            Sniffed::NeedMore if early.len() > EARLY_BYTES_MAX => {
                return Err(io::Error::other("too much before anything could be told"));
            }
            Sniffed::NeedMore => {}
            sniffed => return Ok((sniffed, early)),
        }
    }
}

enum Unusable {
    Broken(io::Error),
    Answer(Vec<u8>),
}

/// The head of a request for a tunnel; everything else has its answer in the error.
async fn read_head(wire: &Wire) -> Result<Option<Box<Request>>, Unusable> {
    let mut got = Vec::new();
    let mut buf = [0; 2048];
    loop {
        let n = wire.read(&mut buf).await.map_err(Unusable::Broken)?;
        if n == 0 {
            return Ok(None);
        }
        got.extend_from_slice(&buf[..n]);
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
    let exchange = async {
        wire.write_all(answer).await?;
        wire.finish_write().await?;
        let mut buf = [0; 2048];
        while wire.read(&mut buf).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = timeout(ANSWER_TIMEOUT, exchange).await;
    wire.close_gently();
    Ok(())
}

/// A request for a tunnel: who is it, and for which role?
async fn tunnel(
    local: &Rc<Local>,
    wire: Wire,
    request: Request,
    peer_addr: SocketAddr,
    seat: Seat,
) -> io::Result<()> {
    let Request { protocol, token, key, open, lane, origin, .. } = request;
    let accept = |opened| upgrade::encode_accept(&key, protocol, opened);
    let refuse = async |wire, refused: Refused| {
        tracing::info!(peer = %peer_addr, code = ?refused.code, "refused: {}", refused.reason);
        answer_and_close(wire, &upgrade::encode_refusal(&refused)).await
    };
    if origin.is_some() {
        return refuse(wire, Refused::new(RefusalCode::Policy, "no browser page may open a tunnel here"))
            .await;
    }
    let who = match admit::login(local, protocol.channel, &token) {
        Ok(who) => who,
        Err(refused) => return refuse(wire, refused).await,
    };
    drop(token);
    match (protocol.channel, lane, open) {
        (Channel::Link, None, None) if protocol.framing == Framing::Framed => {
            seat.becomes(Kind::Link);
            wire.write_all(&accept(None)).await?;
            link::serve(local.clone(), wire, who, peer_addr).await;
            Ok(())
        }
        (Channel::Lane, Some(proof), None) => match admit::lane(local, &who, &proof) {
            Ok(entry) => {
                seat.becomes(Kind::Lane);
                wire.write_all(&accept(None)).await?;
                let conn = Conn::new(wire, protocol.framing, Role::Gateway, 0);
                lane::place(local, Lane { conn, entry, seat });
                Ok(())
            }
            Err(refused) => refuse(wire, refused).await,
        },
        (Channel::Stream, None, None) => {
            seat.becomes(Kind::Stream);
            wire.write_all(&accept(None)).await?;
            let conn = Conn::new(wire, protocol.framing, Role::Gateway, 0);
            serve_stream(local, conn, &who, peer_addr, &seat).await;
            Ok(())
        }
        (Channel::Stream, None, Some(open)) => {
            seat.becomes(Kind::Stream);
            let early = async {
                // A client that leaves, or speaks before it is answered, ends its request.
                let n = wire.read(&mut [0; 1]).await?;
                Err(io::Error::other(if n == 0 { "the client left" } else { "bytes before the 101" }))
            };
            let opened = async { Ok(admit::open(local, &who, &open, peer_addr).await) };
            match future::or(early, opened).await? {
                Ok((lane, opened)) => {
                    wire.write_all(&accept(Some(&opened))).await?;
                    let conn = Conn::new(wire, protocol.framing, Role::Gateway, 0);
                    if let Some(conn) = serve_session(local, conn, lane, &open, &who, &seat).await {
                        serve_stream(local, conn, &who, peer_addr, &seat).await;
                    }
                    Ok(())
                }
                Err(refused) => refuse(wire, refused).await,
            }
        }
        _ => refuse(wire, Refused::new(RefusalCode::Protocol, "this role takes other headers")).await,
    }
}

/// Serves the sessions of a client's stream, one after the other.
async fn serve_stream(
    local: &Rc<Local>,
    mut conn: Conn,
    who: &Arc<Principal>,
    peer_addr: SocketAddr,
    seat: &Seat,
) {
    loop {
        let open = match future::or(next_open(local, &conn, who), async {
            local.stopped().await;
            None
        })
        .await
        {
            Some(open) => open,
            None => return conn.close(1001, "nothing more is served on this stream"),
        };
        let opened = decide(local, &conn, who, &open, peer_addr).await;
        match opened {
            Ok(Ok((lane, opened))) => {
                let answer = Message::Opened { session: opened.session, e2ee: opened.e2ee };
                if conn.send(&answer).await.is_err() {
                    return;
                }
                match serve_session(local, conn, lane, &open, who, seat).await {
                    Some(again) => conn = again,
                    None => return,
                }
            }
            Ok(Err(refused)) => {
                tracing::info!(peer = %peer_addr, code = ?refused.code, "refused: {}", refused.reason);
                if conn.send(&Message::Refused(refused)).await.is_err() || conn.framing() == Framing::Raw {
                    return conn.into_wire().close_gently();
                }
            }
            Err(e) => {
                conn.tell(&e);
                return conn.hang_up();
            }
        }
    }
}

/// Decides about an Open while its client still waits for the answer.
async fn decide(
    local: &Rc<Local>,
    conn: &Conn,
    who: &Principal,
    open: &Open,
    peer_addr: SocketAddr,
) -> Result<Result<(Lane, Opened), Refused>, ConnError> {
    let left = async {
        match conn.framing() {
            Framing::Framed => match conn.attend().await {
                Ok(()) => Err(ConnError::Unexpected("a message before the answer")),
                Err(e) => Err(e),
            },
            // On a raw stream nothing is read ahead: what comes early is the session's.
            Framing::Raw => future::pending().await,
        }
    };
    future::or(left, async { Ok(admit::open(local, who, open, peer_addr).await) }).await
}

/// The next Open on a stream that serves no session; `None` when it ends.
async fn next_open(local: &Local, conn: &Conn, who: &Principal) -> Option<Open> {
    let interval = local.shared.limits.quiet_ping_interval;
    let expiry = Instant::from_std(who.expires_at);
    loop {
        let due = (Instant::now() + interval).min(expiry);
        match timeout_at(due, conn.recv(Speaker::Client, Channel::Stream)).await {
            Ok(Ok(Message::Open(open))) => return Some(open),
            Ok(Ok(_)) => {
                conn.tell(&ConnError::Unexpected("a message where Open was due"));
                return None;
            }
            Ok(Err(_)) => return None,
            // A raw stream must say what it wants within one interval.
            Err(_) if Instant::now() >= expiry || conn.framing() == Framing::Raw => return None,
            Err(_) if conn.heard_at().elapsed() >= interval * 2 => return None,
            Err(_) => conn.ping().ok()?,
        }
    }
}

/// Relays one session; gives the client's connection back when it can serve another.
async fn serve_session(
    local: &Rc<Local>,
    stream: Conn,
    lane: Lane,
    open: &Open,
    who: &Principal,
    seat: &Seat,
) -> Option<Conn> {
    seat.becomes(Kind::Session);
    let (session, traffic) = (open.session, Traffic::default());
    let expiry = async {
        sleep_until(Instant::from_std(who.expires_at)).await;
        Err(Ended { by: Side::Here, why: Why::Expired })
    };
    let moving = relay(stream.end(session), lane.conn.end(session), &traffic);
    let ended = future::or(moving, expiry).await;
    let finished = Ended { by: Side::Here, why: Why::Finished };
    tracing::debug!(
        ?session,
        client = who.name,
        agent = open.agent,
        up_bytes = traffic.up_bytes.get(),
        down_bytes = traffic.down_bytes.get(),
        "session ended: {}",
        ended.err().unwrap_or(finished)
    );
    let ended = match ended {
        Ok(()) => retire(local, lane, open).await,
        Err(ended) => {
            lane.conn.close(CLOSE_RESET, &ended.to_string());
            Err(ended)
        }
    };
    match (ended, stream.framing()) {
        (Ok(()), Framing::Framed) => {
            seat.becomes(Kind::Stream);
            stream.send(&Message::Ready { session }).await.is_ok().then_some(stream)
        }
        (Ok(()), Framing::Raw) => {
            stream.into_wire().close_gently();
            None
        }
        (Err(ended), _) => {
            stream.close(CLOSE_RESET, &ended.to_string());
            None
        }
    }
}

/// A lane after a session that went through cleanly: parked again once the agent says that all is
/// delivered and its target closed.
async fn retire(local: &Rc<Local>, lane: Lane, open: &Open) -> Result<(), Ended> {
    if lane.conn.framing() == Framing::Raw {
        lane.conn.into_wire().close_gently();
        return Ok(());
    }
    let settled = settled(&lane.conn, open.session, Speaker::Agent, Side::Target).await;
    match settled {
        Ok(()) => lane::park(local, lane),
        Err(ended) => lane.conn.close(CLOSE_RESET, &ended.to_string()),
    }
    settled
}
