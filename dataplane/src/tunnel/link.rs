//! Role: control links, both sides: set-up, pings with a deadline, messages and orders.
//! Invariants: a link that does not read costs its own buffer and nobody's time · whoever hears
//! nothing for ping interval + pong timeout ends the link · no payload travels here.
//! See: ARCHITECTURE.md "The wire"; tungstenite does the framing (control only, never payload).

use std::{
    future::Future,
    io::{self, Read, Write},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_channel::Receiver;
use futures_lite::future;
use monoio::time::Instant;
use narrowlink_proto::{
    ended::Why,
    frame::Expect,
    id::{LinkId, LinkSecret, Nonce},
    limits::Limits,
    message::{
        Channel, Goodbye, GoodbyeCode, Instance, MESSAGE_BYTES_MAX, Message, MessageError, Speaker, VERSION,
    },
    upgrade::{Framing, Protocol},
};
use tungstenite::{
    Message as WsMessage, WebSocket,
    protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
};

use crate::{
    gateway::{
        directory::{AgentEntry, LinkOrder},
        door::{LinkGrant, LinkRequest},
        local::Local,
        mailbox::Note,
        principal::Principal,
        table::Seat,
        usage::Slot,
    },
    run::{
        budget,
        timer::{sleep_until, timeout},
    },
    transport::wire::Wire,
    tunnel::{
        conn::{ConnError, IdleFrames},
        deframe::Heads,
        open::{self, Ask, Gateway, TunnelError},
        quiet::Quiet,
    },
};

/// What a peer may have in our buffer unread before its link ends.
const WRITE_BYTES_MAX: usize = 256 * 1024;
/// Agents in one message of a list: below 64 KiB with the longest names.
const AGENTS_PER_MESSAGE: usize = 100;
/// What is read at once at the gateway, whose peers say little, and at the others: a link holds that
/// much for ever.
const GATEWAY_READ_BYTES: usize = 512;
const PEER_READ_BYTES: usize = 4096;
/// Orders that wait: lanes are asked for once until the agent is told, and who says goodbye says it once.
const ORDERS_MAX: usize = 4;
/// What is read and thrown away of a peer that broke the protocol, and for how long.
const UNHEARD_BYTES_MAX: usize = 128 * 1024;
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// A timer that fires this late shows that the whole process stood still.
const LATE: Duration = Duration::from_secs(2);
/// Set-up of a link, each side.
const SET_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a link is no more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It never stood.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The gateway ended it, and said why.
    #[error("{}", .0.reason)]
    Goodbye(Goodbye),
    /// The connection broke.
    #[error("the link broke: {0}")]
    Broke(Box<tungstenite::Error>),
    /// The peer sent what is not WebSocket, or nothing but frames that bring nothing.
    #[error(transparent)]
    Conn(ConnError),
    /// Nothing was heard in time.
    #[error("nothing was heard for {} s", .0.as_secs())]
    Silent(Duration),
    /// The peer closed.
    #[error("the peer closed the link")]
    Closed,
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Message(#[from] MessageError),
    /// The peer said something where something else was due.
    #[error("the peer broke the protocol: {0}")]
    Unexpected(&'static str),
    /// No random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

impl From<tungstenite::Error> for LinkError {
    fn from(e: tungstenite::Error) -> Self {
        match e {
            tungstenite::Error::Io(e) if e.get_ref().is_some_and(|e| e.is::<ConnError>()) => {
                match e.downcast() {
                    Ok(e) => Self::Conn(e),
                    Err(e) => Self::Broke(Box::new(e.into())),
                }
            }
            e => Self::Broke(Box::new(e)),
        }
    }
}

impl LinkError {
    /// The WebSocket close code that tells the peer; `None` where there is nobody to tell, or the peer's own
    /// Close has been answered.
    fn close_code(&self) -> Option<CloseCode> {
        use tungstenite::error::{CapacityError, Error, ProtocolError};
        match self {
            Self::Goodbye(_) => Some(CloseCode::Away),
            Self::Message(MessageError::TooLong { .. }) => Some(CloseCode::Size),
            Self::Message(_) | Self::Unexpected(_) => Some(CloseCode::Protocol),
            Self::Conn(e) => e.close_code().map(CloseCode::from),
            Self::Broke(e) => match &**e {
                Error::Capacity(CapacityError::MessageTooLong { .. }) => Some(CloseCode::Size),
                Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
                Error::Protocol(_) => Some(CloseCode::Protocol),
                Error::Utf8(_) => Some(CloseCode::Invalid),
                _ => None,
            },
            Self::Closed => Some(CloseCode::Normal),
            Self::Silent(_) | Self::Tunnel(_) | Self::Random(_) => None,
        }
    }
}

/// A [`Wire`] as tungstenite wants it. The headers of the peer's frames are looked at on their way: the
/// library takes some that the standard forbids, and any number of frames that bring nothing.
struct Io {
    wire: Wire,
    heads: Heads,
    /// Payload of the frame under way that has not passed.
    payload_left: u64,
    idle_frames: IdleFrames,
}

impl Io {
    fn new(wire: Wire, expect: Expect) -> Self {
        Self { wire, heads: Heads::new(expect), payload_left: 0, idle_frames: IdleFrames::new() }
    }

    fn inspect(&mut self, bytes: &[u8]) -> Result<(), ConnError> {
        let mut at = 0;
        loop {
            let rest = (bytes.len() - at) as u64;
            let skipped = self.payload_left.min(rest);
            self.payload_left -= skipped;
            #[expect(clippy::cast_possible_truncation, reason = "at most what is there")]
            let skipped = skipped as usize;
            at += skipped;
            if at == bytes.len() {
                return Ok(());
            }
            let Some(header) = self.heads.next(bytes, &mut at, MESSAGE_BYTES_MAX as u64)? else {
                return Ok(());
            };
            self.payload_left = header.payload_bytes;
            self.wire.spend(budget::FRAME);
            if header.opcode.is_control() || header.payload_bytes == 0 {
                self.idle_frames.count()?;
            }
        }
    }
}

impl Read for Io {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.wire.try_read(buf)?;
        self.inspect(&buf[..read]).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        Ok(read)
    }
}

impl Write for Io {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.wire.try_write(&[io::IoSlice::new(buf)])
    }
    fn flush(&mut self) -> io::Result<()> {
        if self.wire.try_flush()? { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }
}

/// One side of a link.
struct LinkSocket {
    ws: WebSocket<Io>,
    /// Who is at the other side.
    peer: Speaker,
    unflushed: bool,
    heard_at: Instant,
    pings: u64,
    /// When the last ping was sent; before the first one, when the link was made.
    pinged_at: Instant,
    interval: Duration,
    patience: Duration,
    /// The last measured round trip.
    round_trip: Option<Duration>,
    /// Where a gateway notes it.
    agent: Option<Arc<AgentEntry>>,
}

impl LinkSocket {
    fn new(wire: Wire, role: Role, peer: Speaker, limits: &Limits) -> Self {
        let read_bytes = if role == Role::Server { GATEWAY_READ_BYTES } else { PEER_READ_BYTES };
        let config = WebSocketConfig::default()
            .read_buffer_size(read_bytes)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BYTES_MAX)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let expect = if role == Role::Server { Expect::Masked } else { Expect::Unmasked };
        let now = Instant::now();
        Self {
            ws: WebSocket::from_raw_socket(Io::new(wire, expect), role, Some(config)),
            peer,
            unflushed: false,
            heard_at: now,
            pings: 0,
            pinged_at: now,
            interval: limits.ping_interval,
            patience: limits.pong_timeout,
            round_trip: None,
            agent: None,
        }
    }

    /// The next message; pings are sent, answered and judged meanwhile. Dropping the future loses
    /// nothing.
    async fn recv(&mut self) -> Result<Message, LinkError> {
        loop {
            // Messages may wait in the library, where no read is paid for.
            self.wire().breathe().await;
            match self.ws.read() {
                Ok(message) => {
                    self.wire().spend(budget::MESSAGE);
                    self.heard_at = Instant::now();
                    match message {
                        WsMessage::Text(text) => {
                            return Ok(Message::decode(text.as_bytes(), self.peer, Channel::Link)?);
                        }
                        WsMessage::Pong(payload) if payload.as_ref() == self.pings.to_be_bytes() => {
                            let round_trip = self.pinged_at.elapsed();
                            self.round_trip = Some(round_trip);
                            if let Some(agent) = &self.agent {
                                agent.set_ping_us(u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX));
                            }
                        }
                        WsMessage::Ping(_) => self.flush()?,
                        WsMessage::Close(_) => return Err(LinkError::Closed),
                        WsMessage::Binary(_) => return Err(LinkError::Unexpected("data on a link")),
                        WsMessage::Pong(_) | WsMessage::Frame(_) => {}
                    }
                    continue;
                }
                // What was read is gone before the wait: a link that stands holds nothing of it.
                Err(e) if would_block(&e) => {}
                Err(e) => return Err(e.into()),
            }
            self.idle().await?;
        }
    }

    fn wire(&self) -> &Wire {
        &self.ws.get_ref().wire
    }

    /// Judges the peer's silence, and pings it; until when the next of both can wait.
    fn keep_alive(&mut self) -> Result<Instant, LinkError> {
        let now = Instant::now();
        let dead_at = self.heard_at + self.interval + self.patience;
        if now >= dead_at {
            return Err(LinkError::Silent(self.interval + self.patience));
        }
        if self.pings == 0 || now >= self.pinged_at + self.interval {
            self.pinged_at = now;
            self.pings += 1;
            self.push(WsMessage::Ping(self.pings.to_be_bytes().to_vec().into()))?;
        }
        Ok(dead_at.min(self.pinged_at + self.interval))
    }

    /// Waits for the socket, or until there is something to do about the peer's silence.
    async fn idle(&mut self) -> Result<(), LinkError> {
        let due = self.keep_alive()?;
        let unflushed = self.unflushed;
        let wire = self.wire();
        let writable = async {
            if unflushed {
                // Boxed: a link that has said everything holds nothing of it.
                Box::pin(wire.writable()).await
            } else {
                future::pending().await
            }
        };
        let timer = async {
            sleep_until(due).await;
            Ok(())
        };
        future::or(future::or(wire.readable(), writable), timer).await.map_err(tungstenite::Error::Io)?;
        if Instant::now() > due + LATE {
            // This process stood still: what the peer said meanwhile is yet to be heard.
            self.heard_at = Instant::now();
        }
        if unflushed { self.flush() } else { Ok(()) }
    }

    /// Queues a message and sends what the socket takes.
    fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        #[expect(clippy::expect_used, reason = "JSON is UTF-8")]
        let text = String::from_utf8(message.encode()).expect("JSON is UTF-8");
        self.push(WsMessage::text(text))
    }

    fn push(&mut self, message: WsMessage) -> Result<(), LinkError> {
        match self.ws.write(message) {
            Err(e) if !would_block(&e) => Err(e.into()),
            _ => self.flush(),
        }
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        match self.ws.flush() {
            Ok(()) => self.unflushed = false,
            Err(e) if would_block(&e) => self.unflushed = true,
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Ends a link in the way its error says; the peer's fault is heard out, so that the peer learns of it.
    async fn end(self: Box<Self>, ended: LinkError) {
        let Some(code) = ended.close_code() else { return };
        let is_fault = !matches!(ended, LinkError::Goodbye(_) | LinkError::Closed);
        let goodbye = if let LinkError::Goodbye(goodbye) = ended { Some(goodbye) } else { None };
        let wire = self.say_close(goodbye, code);
        if is_fault {
            wire.hear_out(UNHEARD_BYTES_MAX, FAREWELL_TIMEOUT).await;
        }
        wire.close_gently();
    }

    /// Says why and closes; what the socket does not take at once is lost. A Close of the peer's has been
    /// answered by the library already, with the peer's own code: no second one follows.
    fn say_close(mut self, goodbye: Option<Goodbye>, code: CloseCode) -> Wire {
        if let Some(goodbye) = goodbye {
            let _ = self.send(&Message::Goodbye(goodbye));
        }
        let _ = self.ws.close(Some(CloseFrame { code, reason: "".into() }));
        let _ = self.ws.flush();
        self.ws.into_inner().wire
    }

    fn close(self, goodbye: Option<Goodbye>, code: CloseCode) {
        self.say_close(goodbye, code).close_gently();
    }
}

fn would_block(e: &tungstenite::Error) -> bool {
    matches!(e, tungstenite::Error::Io(e) if e.kind() == io::ErrorKind::WouldBlock)
}

// ---- the gateway's side

/// Serves a link until it ends. Its sessions and lanes go on by themselves. (No `async fn`: one stores
/// its arguments twice.)
pub(crate) fn serve(
    local: Rc<Local>,
    wire: Wire,
    principal: Arc<Principal>,
    peer_addr: SocketAddr,
    (seat, slot): (Seat, Slot),
) -> impl Future<Output = ()> {
    let mut socket = Box::new(LinkSocket::new(wire, Role::Server, principal.speaker, &local.shared.limits()));
    async move {
        let _slot = slot;
        let (orders, taken) = async_channel::bounded(ORDERS_MAX);
        // Boxed, so that a link that stands holds nothing of it.
        let set_up = Box::pin(introduce(&local, &mut socket, &principal, peer_addr, orders));
        let grant = match timeout(SET_UP_TIMEOUT, set_up).await {
            Ok(Ok(grant)) => grant,
            Ok(Err(LinkError::Goodbye(goodbye))) => return socket.close(Some(goodbye), CloseCode::Policy),
            Ok(Err(e)) => {
                tracing::debug!(peer = %peer_addr, name = principal.name, "a link was not set up: {e}");
                return Box::pin(socket.end(e)).await;
            }
            Err(_) => return,
        };
        let LinkGrant { link, agent, .. } = grant;
        socket.agent = agent;
        tracing::info!(peer = %peer_addr, uid = %principal.uid, name = principal.name, role = ?principal.speaker, "link up");
        let ended = Box::new(converse(&local, &mut socket, &principal, &seat, &taken).await);
        tracing::info!(peer = %peer_addr, uid = %principal.uid, name = principal.name, "link down: {ended}");
        Box::pin(take_down(&local, socket, link, ended)).await;
    }
}

/// Says everywhere that a link is down, and to its peer why.
async fn take_down(local: &Local, socket: Box<LinkSocket>, link: LinkId, ended: Box<LinkError>) {
    if let Some(agent) = &socket.agent {
        agent.set_link_down();
        if let LinkError::Silent(_) = *ended {
            // A process that hangs, while its kernel goes on answering for it.
            agent.principal.vanished.store(true, Ordering::Release);
            local.shared.mailboxes.tell_all_soon(|| Note::Lost(link)).await;
        } else {
            local.shared.mailboxes.tell_all_now(|| Note::LinkDown(link));
        }
    }
    local.shared.door.release_link(link);
    socket.end(*ended).await;
}

/// Hello, Present, Welcome.
async fn introduce(
    local: &Local,
    socket: &mut LinkSocket,
    principal: &Arc<Principal>,
    peer_addr: SocketAddr,
    orders: async_channel::Sender<LinkOrder>,
) -> Result<LinkGrant, LinkError> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce)?;
    let nonce = Nonce::from_bytes(nonce);
    socket.send(&Message::Hello { version: VERSION, features: Vec::new(), nonce })?;
    let Message::Present { version, instance, .. } = socket.recv().await? else {
        return Err(LinkError::Unexpected("something else where Present was due"));
    };
    if version != VERSION {
        return Err(LinkError::Goodbye(Goodbye {
            code: GoodbyeCode::Protocol,
            reason: format!("this gateway speaks version {VERSION} of the protocol, not {version}"),
        }));
    }
    let (answer, answered) = async_channel::bounded(1);
    let principal = principal.clone();
    local.shared.door.claim_link(LinkRequest { principal, peer_addr, nonce, instance, orders, answer });
    let grant = answered.recv().await.map_err(|_| LinkError::Closed)?.map_err(LinkError::Goodbye)?;
    socket.send(&Message::Welcome { link: grant.link, secret: grant.secret.clone() })?;
    Ok(grant)
}

enum Heard {
    Message(Message),
    Order(LinkOrder),
}

/// Serves until something ends the link; returns what.
async fn converse(
    local: &Local,
    socket: &mut LinkSocket,
    principal: &Principal,
    seat: &Seat,
    orders: &Receiver<LinkOrder>,
) -> LinkError {
    loop {
        let heard = {
            let message = async { socket.recv().await.map(Heard::Message) };
            let order = async { orders.recv().await.map(Heard::Order).map_err(|_| LinkError::Closed) };
            let expiry = async {
                sleep_until(Instant::from_std(principal.expires_at)).await;
                Err(LinkError::Goodbye(Goodbye {
                    code: GoodbyeCode::Unauthenticated,
                    reason: "the token has expired".to_owned(),
                }))
            };
            let dismissed = async {
                let reason = match seat.dismissed().await {
                    Why::Expired => "the token has expired",
                    Why::SecretRetired => "the secret that signed the token is in use no more",
                    _ => "the token was revoked",
                };
                let reason = reason.to_owned();
                Err(LinkError::Goodbye(Goodbye { code: GoodbyeCode::Unauthenticated, reason }))
            };
            // Who must go is not heard.
            future::or(future::or(expiry, dismissed), future::or(order, message)).await
        };
        let done = match heard {
            Ok(Heard::Message(Message::List)) if principal.speaker == Speaker::Client => {
                send_list(local, socket, principal)
            }
            Ok(Heard::Message(_)) => Err(LinkError::Unexpected("a message that has no place on this link")),
            Ok(Heard::Order(LinkOrder::NeedLane)) => match &socket.agent {
                Some(agent) => match agent.telling_need() {
                    0 => Ok(()),
                    count => socket.send(&Message::NeedLane { count }),
                },
                None => Ok(()),
            },
            Ok(Heard::Order(LinkOrder::Goodbye(goodbye))) => Err(LinkError::Goodbye(goodbye)),
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            return e;
        }
    }
}

fn send_list(local: &Local, socket: &mut LinkSocket, principal: &Principal) -> Result<(), LinkError> {
    let agents = local.shared.door.list(principal);
    let mut rest = agents.as_slice();
    loop {
        let (now, later) = rest.split_at(rest.len().min(AGENTS_PER_MESSAGE));
        socket.send(&Message::Agents { agents: now.to_vec(), more: !later.is_empty() })?;
        if later.is_empty() {
            return Ok(());
        }
        rest = later;
    }
}

// ---- the agent's and client's side

/// A link as an agent or a client holds it.
pub struct PeerLink {
    /// The link's name.
    pub link: LinkId,
    /// What lanes of this link prove themselves with.
    pub secret: LinkSecret,
    socket: LinkSocket,
}

/// Sets a link up; an agent signs the gateway's nonce with its instance key.
///
/// # Errors
/// See [`LinkError`].
pub async fn join(
    gateway: &Gateway,
    sign: Option<&dyn Fn(&Nonce) -> Instance>,
    patience: Duration,
) -> Result<PeerLink, LinkError> {
    let protocol = Protocol { channel: Channel::Link, framing: Framing::Framed };
    let (conn, _) = open::open(gateway, protocol, Ask::Nothing, patience).await?;
    let wire = Quiet::of(Box::new(conn)).ok().and_then(Quiet::into_wire);
    let wire = wire.ok_or(LinkError::Unexpected("a frame before it was asked"))?;
    let mut socket = LinkSocket::new(wire, Role::Client, Speaker::Gateway, &Limits::default());
    let welcome = async {
        let Message::Hello { version, nonce, .. } = expect(&mut socket).await? else {
            return Err(LinkError::Unexpected("something else where Hello was due"));
        };
        if version != VERSION {
            return Err(LinkError::Unexpected("the gateway speaks another version of the protocol"));
        }
        let instance = sign.map(|sign| sign(&nonce));
        socket.send(&Message::Present { version: VERSION, features: Vec::new(), instance })?;
        match expect(&mut socket).await? {
            Message::Welcome { link, secret } => Ok((link, secret)),
            _ => Err(LinkError::Unexpected("something else where Welcome was due")),
        }
    };
    let (link, secret) = timeout(patience, welcome).await.map_err(|_| LinkError::Silent(patience))??;
    Ok(PeerLink { link, secret, socket })
}

async fn expect(socket: &mut LinkSocket) -> Result<Message, LinkError> {
    match socket.recv().await? {
        Message::Goodbye(goodbye) => Err(LinkError::Goodbye(goodbye)),
        other => Ok(other),
    }
}

impl PeerLink {
    /// The next message of the gateway; pings are seen to meanwhile. Dropping the future loses
    /// nothing.
    ///
    /// # Errors
    /// The link is no more: [`LinkError::Goodbye`] when the gateway said why.
    pub async fn next(&mut self) -> Result<Message, LinkError> {
        expect(&mut self.socket).await
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The link is no more.
    pub fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        self.socket.send(message)
    }

    /// The last measured round trip to the gateway.
    pub fn round_trip(&self) -> Option<Duration> {
        self.socket.round_trip
    }

    /// Ends the link in good order.
    pub fn close(self) {
        self.socket.close(None, CloseCode::Normal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_link_s_task_is_small() {
        let bytes = future_bytes(|(local, wire, principal, peer_addr, seat)| {
            serve(local, wire, principal, peer_addr, seat)
        });
        let socket = size_of::<LinkSocket>();
        // With the runtime's header, of a task: the allocator's classes are 512, 640, 768, 896, 1,024.
        assert!(bytes <= 896 && socket <= 512, "{bytes}, {socket}");
    }
}
