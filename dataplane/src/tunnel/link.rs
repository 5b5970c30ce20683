//! Role: a control link, as either side has it: pings with a deadline, messages, and how it ends.
//! Invariants: a link that does not read costs its own buffer and nobody's time · whoever hears
//! nothing for ping interval + pong timeout ends the link · no payload travels here.
//! See: ARCHITECTURE.md "The wire"; tungstenite does the framing (control only, never payload); `peer::link` and
//! `gateway::link`, which set links up.

use std::{
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_proto::{
    code::Code,
    frame::Expect,
    limits::Limits,
    message::{Channel, Goodbye, MESSAGE_BYTES_MAX, Message, MessageError, Speaker, VERSION},
};
use tungstenite::{
    Message as WsMessage, WebSocket,
    protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
};

use crate::{
    run::{budget, timer::sleep_until},
    transport::wire::Wire,
    tunnel::{conn::ConnError, deframe::Heads, error::TunnelError, liveness::IdleFrames},
};

/// What a peer may have in our buffer unread before its link ends.
const WRITE_BYTES_MAX: usize = 256 * 1024;
/// What is read at once at the gateway, whose peers say little, and at the others: a link holds that
/// much for ever.
const GATEWAY_READ_BYTES: usize = 512;
const PEER_READ_BYTES: usize = 4096;
/// What is read and thrown away of a peer that broke the protocol, and for how long.
const UNHEARD_BYTES_MAX: usize = 128 * 1024;
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// A timer that fires this late shows that the whole process stood still.
const LATE: Duration = Duration::from_secs(2);

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
    /// The gateway speaks another version of the protocol.
    #[error(
        "the gateway speaks version {theirs} of the protocol, this program version {VERSION}: update the older one"
    )]
    Version {
        /// The gateway's.
        theirs: u32,
    },
    /// No random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

impl LinkError {
    /// The kind of trouble.
    pub fn code(&self) -> Code {
        match self {
            Self::Tunnel(e) => e.code(),
            Self::Goodbye(goodbye) => goodbye.code.into(),
            Self::Broke(_) | Self::Silent(_) | Self::Closed => Code::Unreachable,
            Self::Conn(_) | Self::Message(_) | Self::Unexpected(_) => Code::Protocol,
            Self::Version { .. } => Code::Version,
            Self::Random(_) => Code::Internal,
        }
    }
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
    pub(crate) fn close_code(&self) -> Option<CloseCode> {
        use tungstenite::error::{CapacityError, Error, ProtocolError};
        match self {
            Self::Goodbye(_) => Some(CloseCode::Away),
            Self::Message(MessageError::TooLong { .. }) => Some(CloseCode::Size),
            Self::Message(_) | Self::Unexpected(_) | Self::Version { .. } => Some(CloseCode::Protocol),
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
            self.wire.account().spend(budget::FRAME);
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
pub(crate) struct LinkSocket {
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
}

/// What a link brings.
pub(crate) enum Heard {
    Message(Message),
    /// A ping of ours was answered after so long.
    Answered(Duration),
}

impl LinkSocket {
    pub(crate) fn new(wire: Wire, role: Role, peer: Speaker, limits: &Limits) -> Self {
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
        }
    }

    /// The next message. Dropping the future loses nothing.
    pub(crate) async fn recv(&mut self) -> Result<Message, LinkError> {
        loop {
            if let Heard::Message(message) = self.hear().await? {
                return Ok(message);
            }
        }
    }

    /// What comes next; pings are sent, answered and judged meanwhile. Dropping the future loses nothing.
    pub(crate) async fn hear(&mut self) -> Result<Heard, LinkError> {
        loop {
            // Messages may wait in the library, where no read is paid for.
            self.wire().account().breathe().await;
            match self.ws.read() {
                Ok(message) => {
                    self.wire().account().spend(budget::MESSAGE);
                    self.heard_at = Instant::now();
                    match message {
                        WsMessage::Text(text) => {
                            match Message::decode(text.as_bytes(), self.peer, Channel::Link) {
                                Ok(message) => return Ok(Heard::Message(message)),
                                // Nothing on a link waits for the answer to a word that the other side did not know.
                                Err(MessageError::Unknown { name }) => self.on_unknown(&name)?,
                                Err(e) => return Err(e.into()),
                            }
                        }
                        WsMessage::Pong(payload) if payload.as_ref() == self.pings.to_be_bytes() => {
                            return Ok(Heard::Answered(self.pinged_at.elapsed()));
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

    /// A message of a later version has come: it brings nothing to this one.
    fn on_unknown(&mut self, name: &str) -> Result<(), LinkError> {
        tracing::debug!("a message of a later version on a link is ignored: {name:?}");
        let io = self.ws.get_ref();
        io.idle_frames.count().map_err(|e| LinkError::Conn(e.into()))
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
    pub(crate) fn send(&mut self, message: &Message) -> Result<(), LinkError> {
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
    pub(crate) async fn end(self: Box<Self>, ended: LinkError) {
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

    pub(crate) fn close(self, goodbye: Option<Goodbye>, code: CloseCode) {
        self.say_close(goodbye, code).close_gently();
    }
}

fn would_block(e: &tungstenite::Error) -> bool {
    matches!(e, tungstenite::Error::Io(e) if e.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests;
