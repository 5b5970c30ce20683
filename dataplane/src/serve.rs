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
    id::SessionId,
    message::{Channel, EARLY_DATA_BYTES_MAX, Message, Open, Speaker},
    sniff::{EARLY_BYTES_MAX, Sniffed, Sniffer},
    upgrade::{self, Framing, Head, Request},
};
use rustls::ServerConnection;

use crate::{
    admit::{self, Dialling, Unopened},
    conn::{CLOSE_RESET, Conn, ConnError, Role},
    door::Principal,
    handover::Local,
    lane::{self, Lane},
    link,
    relay::{Gate, Traffic, gone, relay_behind, settled},
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
            let session = ServerConnection::new(config).map_err(io::Error::other)?;
            let handshake = TlsSocket::handshake(socket, session.into(), &early);
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
            Visit { local, who: &who, peer_addr, seat: &seat }.serve_stream(conn).await;
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
                    let visit = Visit { local, who: &who, peer_addr, seat: &seat };
                    if let Some(conn) = Box::pin(visit.serve_session(conn, lane, None, &open)).await {
                        visit.serve_stream(conn).await;
                    }
                    Ok(())
                }
                Err(refused) => refuse(wire, refused).await,
            }
        }
        _ => refuse(wire, Refused::new(RefusalCode::Protocol, "this role takes other headers")).await,
    }
}

/// A client's stream while it is served.
struct Visit<'a> {
    local: &'a Rc<Local>,
    who: &'a Arc<Principal>,
    peer_addr: SocketAddr,
    seat: &'a Seat,
}

impl Visit<'_> {
    /// Serves the sessions of a stream, one after the other.
    async fn serve_stream(&self, mut conn: Conn) {
        let mut last = None;
        loop {
            let stopped = async {
                self.local.stopped().await;
                None
            };
            let Some(open) = future::or(self.next_open(&conn, last), stopped).await else {
                return conn.close(1001, "nothing more is served on this stream");
            };
            last = Some(open.session);
            let served = match self.dial(&conn, &open).await {
                // Boxed, so that a stream without a session holds nothing of one.
                Ok(Ok((lane, dialling))) => {
                    Box::pin(self.serve_session(conn, lane, Some(dialling), &open)).await
                }
                Ok(Err(refused)) => self.refuse(conn, refused).await,
                Err(e) => {
                    conn.tell(&e);
                    return conn.hang_up();
                }
            };
            match served {
                Some(again) => conn = again,
                None => return,
            }
        }
    }

    /// Decides about an Open and has it dialled, while its client still waits.
    async fn dial<'a>(
        &'a self,
        conn: &Conn,
        open: &'a Open,
    ) -> Result<Result<(Lane, Dialling<'a>), Refused>, ConnError> {
        let left = async {
            match conn.framing() {
                Framing::Framed => {
                    // What comes early is the session's: it stays where it is.
                    conn.attend().await?;
                    gone(conn, Side::Client).await;
                    Err(ConnError::Truncated)
                }
                // On a raw stream nothing is read ahead at all.
                Framing::Raw => future::pending().await,
            }
        };
        let dialling = async { Ok(admit::dial(self.local, self.who, open, self.peer_addr).await) };
        future::or(left, dialling).await
    }

    /// Says no; gives the stream back if it can serve on.
    async fn refuse(&self, conn: Conn, refused: Refused) -> Option<Conn> {
        tracing::info!(peer = %self.peer_addr, code = ?refused.code, "refused: {}", refused.reason);
        let said = timeout(ANSWER_TIMEOUT, conn.send(&Message::Refused(refused))).await;
        if matches!(said, Ok(Ok(()))) && conn.framing() == Framing::Framed {
            return Some(conn);
        }
        conn.into_wire().close_gently();
        None
    }

    /// The next Open on a stream that serves no session; `None` when it ends.
    async fn next_open(&self, conn: &Conn, last: Option<SessionId>) -> Option<Open> {
        let interval = self.local.shared.limits.quiet_ping_interval;
        let expiry = Instant::from_std(self.who.expires_at);
        loop {
            let due = (Instant::now() + interval).min(expiry);
            let heard = async {
                match last {
                    Some(last) => conn.recv_after(last, Speaker::Client, Channel::Stream).await,
                    None => conn.recv(Speaker::Client, Channel::Stream).await.map(Some),
                }
            };
            match timeout_at(due, heard).await {
                Ok(Ok(Some(Message::Open(open)))) => return Some(open),
                Ok(Ok(Some(_))) => {
                    conn.tell(&ConnError::Unexpected("a message where Open was due"));
                    return None;
                }
                // Broken, or the rest of a session that was refused.
                Ok(Err(_) | Ok(None)) => return None,
                // A raw stream must say what it wants within one interval.
                Err(_) if Instant::now() >= expiry || conn.framing() == Framing::Raw => return None,
                Err(_) if conn.heard_at().elapsed() >= interval * 2 => return None,
                Err(_) => conn.ping().ok()?,
            }
        }
    }

    /// Relays one session, whose answer is still due if it is `dialling`; gives the stream back when
    /// it can serve another.
    async fn serve_session(
        &self,
        stream: Conn,
        lane: Lane,
        dialling: Option<Dialling<'_>>,
        open: &Open,
    ) -> Option<Conn> {
        self.seat.becomes(Kind::Session);
        let (session, traffic) = (open.session, Traffic::default());
        let gate = match &dialling {
            None => Gate::opened(),
            Some(_) => Gate::closed(early_bytes_max(&stream, &lane, open)),
        };
        // Boxed, so that a session that stands holds nothing of it.
        let answer = Box::pin(async {
            let Some(dialling) = dialling else { return Ok(()) };
            let opened = dialling.answer(&lane.conn).await?;
            gate.open();
            let opened = Message::Opened { session, e2ee: opened.e2ee };
            let sent = stream.send(&opened).await;
            sent.map_err(|e| Ended { by: Side::Client, why: ConnError::from(e).why() }.into())
        });
        let expiry = async {
            sleep_until(Instant::from_std(self.who.expires_at)).await;
            Err(Ended { by: Side::Here, why: Why::Expired }.into())
        };
        let moving = relay_behind(stream.end(session), lane.conn.end(session), &traffic, &gate, answer);
        let ended = match future::or(moving, expiry).await {
            Ok(()) => Ok(()),
            Err(Unopened::Ended(ended)) => Err(ended),
            Err(unopened) => {
                self.seat.becomes(Kind::Stream);
                return self.unopened(stream, lane, unopened, open, gate.was_used()).await;
            }
        };
        self.say_ended(open, &traffic, ended);
        let ended = match ended {
            Ok(()) => retire(self.local, lane, open).await,
            Err(ended) => {
                lane.conn.close(CLOSE_RESET, &ended.to_string());
                Err(ended)
            }
        };
        self.finish(stream, session, ended).await
    }

    fn say_ended(&self, open: &Open, traffic: &Traffic, ended: Result<(), Ended>) {
        let finished = Ended { by: Side::Here, why: Why::Finished };
        tracing::debug!(
            session = ?open.session,
            client = self.who.name,
            agent = open.agent,
            up_bytes = traffic.up_bytes.get(),
            down_bytes = traffic.down_bytes.get(),
            "session ended: {}",
            ended.err().unwrap_or(finished)
        );
    }

    async fn finish(&self, stream: Conn, session: SessionId, ended: Result<(), Ended>) -> Option<Conn> {
        match (ended, stream.framing()) {
            (Ok(()), Framing::Framed) => {
                self.seat.becomes(Kind::Stream);
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

    /// A session that was dialled and did not open. Connections on which early data has passed serve
    /// nothing more: bytes of that session may still be on their way there.
    async fn unopened(
        &self,
        stream: Conn,
        lane: Lane,
        unopened: Unopened,
        open: &Open,
        used: bool,
    ) -> Option<Conn> {
        let refused = match unopened {
            unopened if !used => {
                let refused = admit::refusal(self.local, lane, unopened, open);
                return self.refuse(stream, refused).await;
            }
            // Nobody knows what the target got: the client must not think that it was nothing.
            Unopened::Lost(why) => {
                tracing::info!(peer = %self.peer_addr, "session reset: {why}");
                stream.close(CLOSE_RESET, &why);
                return None;
            }
            Unopened::Ended(ended) => {
                stream.close(CLOSE_RESET, &ended.to_string());
                return None;
            }
            Unopened::ByAgent(refused) => {
                lane.conn.close(1000, "this lane has served a session that was refused");
                refused
            }
            Unopened::ByUs(refused) => refused,
        };
        let stream = self.refuse(stream, refused.of(open.session)).await?;
        stream.drain().await;
        stream.close(1000, "this stream has served a session that was refused");
        None
    }
}

/// How much a client may send behind its Open. Only frames can tell data from an answer, and who
/// encrypts end to end needs the answer first; what a client sends all the same waits unread.
fn early_bytes_max(stream: &Conn, lane: &Lane, open: &Open) -> usize {
    let framed = stream.framing() == Framing::Framed && lane.conn.framing() == Framing::Framed;
    if framed && open.e2ee.is_none() { EARLY_DATA_BYTES_MAX } else { 0 }
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
