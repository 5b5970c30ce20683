//! Role: one arriving connection at the gateway, from its first byte to its role: sniff, TLS, head,
//! admit.
//! Invariants: every step has a deadline · nothing is said to a stranger that an ordinary web
//! server would not say.
//! See: ARCHITECTURE.md "Life of a byte".

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use futures_lite::future;
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    message::Channel,
    sniff::{EARLY_BYTES_MAX, Sniffed, Sniffer},
    upgrade::{self, Framing, Head, Request},
};

use crate::{
    admit,
    conn::{Conn, Role},
    handover::Local,
    lane::{self, Lane},
    link,
    socket::Socket,
    stream::Visit,
    table::{Kind, Seat},
    timer::timeout,
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
