//! Role: a tunnel connection after its upgrade: messages, and frames for data.
//! Invariants: frames never interleave: a control frame waits until the frame under way is out ·
//! nothing of one connection's queue outlives it · at most `CONTROL_BYTES_MAX` wait.
//! See: RFC 6455 §5.5; ARCHITECTURE.md "Framings".

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    ops::Range,
    time::{Duration, Instant},
};

use narrowlink_proto::{
    ended::Why,
    frame::{self, Expect, FrameError, HEADER_BYTES_MAX, Header, Opcode},
    id::SessionId,
    message::{Channel, EARLY_DATA_BYTES_MAX, MESSAGE_BYTES_MAX, Message, MessageError, Speaker},
    upgrade::Framing,
};

use crate::{
    run::{budget, timer::timeout},
    transport::wire::{Wire, WireParts},
    tunnel::{
        deframe::{Deframer, Event},
        liveness::{Flood, IdleFrames, Liveness},
    },
};

/// The WebSocket close code of a session that was reset.
pub(crate) const CLOSE_RESET: u16 = 4000;
/// Control frames waiting for the socket.
const CONTROL_BYTES_MAX: usize = 1024;
/// How much is read for a message: more than nearly every message, little enough for the stack.
const READ_BYTES: usize = 2048;
/// What is thrown away of a refused session: all that a client may send early, even one byte a frame
/// (seven bytes on the wire).
const DRAIN_BYTES_MAX: usize = 8 * EARLY_DATA_BYTES_MAX;
/// How long that may take; the peer closes as soon as it has read the refusal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What comes next on a framed connection: a message, taken out, or data, left where it is.
enum Next {
    Message(Vec<u8>),
    Data,
}

/// What comes next on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    /// A message.
    Message,
    /// Data.
    Data,
}

/// Which side of the WebSocket this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes masked frames, sends bare ones.
    Gateway,
    /// Sends masked frames, takes bare ones.
    Peer,
}

/// Why a connection can't go on.
#[derive(Debug, thiserror::Error)]
pub enum ConnError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The connection ended without the mark of a clean end.
    #[error("the connection ended in the middle")]
    Truncated,
    /// The peer closed and said why.
    #[error("the peer closed the connection ({code}{}{why})", if why.is_empty() { "" } else { ": " })]
    Closed {
        /// The WebSocket close code.
        code: u16,
        /// The peer's words.
        why: String,
    },
    /// The peer sent what is not WebSocket.
    #[error("the peer broke the WebSocket protocol: {0}")]
    Frame(#[from] FrameError),
    /// The peer sent a message that it may not.
    #[error("the peer broke the protocol: {0}")]
    Message(#[from] MessageError),
    /// The peer sends more frames without data than any program needs.
    #[error(transparent)]
    Flood(#[from] Flood),
    /// The peer sent something where something else was due.
    #[error("the peer broke the protocol: {0}")]
    Unexpected(&'static str),
}

impl ConnError {
    /// The same, for a session's end.
    pub fn why(&self) -> Why {
        match self {
            Self::Io(e) if e.kind() == io::ErrorKind::InvalidData => Why::Protocol,
            Self::Io(_) | Self::Truncated => Why::Cut,
            Self::Closed { .. } => Why::Reset,
            Self::Frame(_) | Self::Message(_) | Self::Unexpected(_) | Self::Flood(_) => Why::Protocol,
        }
    }

    /// The WebSocket close code that tells the peer, where it is the peer's fault.
    pub(crate) fn close_code(&self) -> Option<u16> {
        match self {
            Self::Frame(e) => Some(e.close_code()),
            Self::Message(MessageError::TooLong { .. }) => Some(1009),
            Self::Message(_) | Self::Unexpected(_) => Some(1002),
            Self::Flood(_) => Some(1008),
            Self::Io(_) | Self::Truncated | Self::Closed { .. } => None,
        }
    }
}

/// A connection on its way to another thread: its bytes, what of a frame was read, what was not sent yet.
pub(crate) struct ConnParts {
    wire: WireParts,
    framing: Framing,
    role: Role,
    deframer: Box<Deframer>,
    control: Vec<u8>,
    mask_state: u64,
}

/// A tunnel connection.
pub struct Conn {
    wire: Wire,
    framing: Framing,
    role: Role,
    deframer: RefCell<Deframer>,
    /// Control frames that wait for the socket.
    control: RefCell<Vec<u8>>,
    /// A frame is half written: nothing may come between. Left set when its writer is dropped half-way:
    /// the connection can't be used again then.
    mid_frame: Cell<bool>,
    /// A Close has been said: nothing is sent behind it.
    closing: Cell<bool>,
    /// The peer's words with its Close; behind a thin pointer, for few connections ever have any.
    farewell: Cell<Option<Box<Box<str>>>>,
    mask_state: Cell<u64>,
    liveness: Liveness,
    idle_frames: IdleFrames,
}

impl Conn {
    /// Wraps an upgraded connection. `mask_seed` comes from the system's random source.
    pub fn new(wire: Wire, framing: Framing, role: Role, mask_seed: u64) -> Self {
        let expect = if role == Role::Gateway { Expect::Masked } else { Expect::Unmasked };
        Self {
            wire,
            framing,
            role,
            deframer: RefCell::new(Deframer::new(expect)),
            control: RefCell::default(),
            mid_frame: Cell::new(false),
            closing: Cell::new(false),
            farewell: Cell::new(None),
            mask_state: Cell::new(mask_seed | 1),
            liveness: Liveness::new(),
            idle_frames: IdleFrames::new(),
        }
    }

    /// How payload travels.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Which side of the WebSocket this process is.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// The bytes below.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Counts a decision that the peer has asked for: its next word waits for its turn.
    pub fn has_asked(&self) {
        self.wire.account().spend(budget::DECISION);
    }

    /// When the peer was last heard.
    pub fn heard_at(&self) -> Instant {
        Instant::now() - self.liveness.silence()
    }

    /// Its signs of life.
    pub(crate) fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Whether the connection stands where a new message may begin, in both directions (see [`crate::tunnel::quiet`]).
    pub(crate) fn is_quiet(&self) -> bool {
        self.deframer.borrow().is_between_messages() && !self.mid_frame.get() && !self.closing.get()
    }

    /// Closes without a word, and without a reset (see [`Wire::close_gently`]).
    pub fn close_gently(self) {
        self.wire.close_gently();
    }

    /// The bytes below, if nothing read or unsent is anywhere else.
    pub(crate) fn into_bare(self) -> Option<Wire> {
        let bare = self.deframer.borrow().at_boundary() && self.control.borrow().is_empty();
        bare.then_some(self.wire)
    }

    /// Everything that this connection is, for another thread. Nothing may be half written.
    pub(crate) fn into_parts(self) -> io::Result<ConnParts> {
        Ok(ConnParts {
            wire: self.wire.into_parts()?,
            framing: self.framing,
            role: self.role,
            deframer: Box::new(self.deframer.into_inner()),
            control: self.control.into_inner(),
            mask_state: self.mask_state.get(),
        })
    }

    /// Puts a connection together that came from another thread.
    pub(crate) fn from_parts(parts: ConnParts) -> io::Result<Self> {
        let conn = Self::new(Wire::from_parts(parts.wire)?, parts.framing, parts.role, parts.mask_state);
        conn.deframer.replace(*parts.deframer);
        conn.control.replace(parts.control);
        Ok(conn)
    }

    /// Waits for the next message of `speaker` on `channel`. Dropping the future loses nothing on
    /// a framed connection.
    ///
    /// # Errors
    /// The connection can't go on; if it is the peer's fault, it has been told.
    pub async fn recv(&self, speaker: Speaker, channel: Channel) -> Result<Message, ConnError> {
        let text = match self.framing {
            Framing::Framed => match self.recv_text().await {
                Ok(Next::Message(text)) => Ok(text),
                Ok(Next::Data) => Err(ConnError::Unexpected("data where a message was due")),
                Err(e) => Err(e),
            },
            Framing::Raw => self.recv_raw().await,
        };
        self.wire.account().spend(budget::MESSAGE);
        let message = text.and_then(|text| Ok(Message::decode(&text, speaker, channel)?));
        if let Err(e) = &message {
            self.tell(e);
        }
        message
    }

    async fn recv_text(&self) -> Result<Next, ConnError> {
        loop {
            if let Some(next) = self.try_recv_text()? {
                return Ok(next);
            }
            self.wire.readable().await?;
        }
    }

    /// What comes next, if enough of it is there. Its buffer lies on the stack: a connection that
    /// waits holds none.
    fn try_recv_text(&self) -> Result<Option<Next>, ConnError> {
        let mut buf = [0; READ_BYTES];
        loop {
            let n = match self.wire.try_read(&mut buf) {
                Ok(0) => return Err(ConnError::Truncated),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            self.liveness.on_heard();
            let mut at = 0;
            while let Some(event) = self.event(&mut buf[..n], &mut at, true)? {
                let next = match event {
                    Event::Text(text) => Next::Message(text),
                    Event::Data { ends: false, .. } => Next::Data,
                    _ => continue,
                };
                self.wire.unread(&buf[at..n]);
                return Ok(Some(next));
            }
        }
    }

    /// Answers pings and notices the end of a framed connection on which nothing is due, until
    /// something comes, which it leaves for whoever reads next: nothing is noticed from then on.
    ///
    /// # Errors
    /// The connection can't go on; if it is the peer's fault, it has been told.
    pub async fn attend(&self) -> Result<Ahead, ConnError> {
        let next = self.recv_text().await.inspect_err(|e| self.tell(e))?;
        let Next::Message(mut text) = next else { return Ok(Ahead::Data) };
        // Put back as a bare frame of the peer's; what came behind it was put back already.
        let mut head = [0; HEADER_BYTES_MAX];
        let mask = (self.role == Role::Gateway).then_some([0; 4]);
        let header = Header { fin: true, opcode: Opcode::Text, mask, payload_bytes: text.len() as u64 };
        let len = frame::encode(&header, &mut head);
        text.splice(0..0, head[..len].iter().copied());
        self.wire.unread(&text);
        Ok(Ahead::Message)
    }

    /// As [`Conn::recv`], on a framed connection whose last session may have been refused while its
    /// data was under way. `None` when that comes: the connection serves nothing more then, and has
    /// been read until its peer closed it, so that no reset could overtake the refusal.
    ///
    /// # Errors
    /// As there.
    pub async fn recv_after(
        &self,
        last: SessionId,
        speaker: Speaker,
        channel: Channel,
    ) -> Result<Option<Message>, ConnError> {
        let ahead = self.attend().await?;
        if ahead == Ahead::Message {
            match self.recv(speaker, channel).await? {
                Message::Fin { session, .. } if session == last => {}
                message => return Ok(Some(message)),
            }
        }
        self.drain().await;
        Ok(None)
    }

    /// Reads what still comes and throws it away until the peer closes, for a bounded time: what was
    /// said last arrives then, which a close with bytes unread would endanger.
    pub async fn drain(&self) {
        let _ = timeout(DRAIN_TIMEOUT, self.wire.discard(DRAIN_BYTES_MAX)).await;
    }

    async fn recv_raw(&self) -> Result<Vec<u8>, ConnError> {
        let mut got = Vec::new();
        loop {
            match self.try_read_onto(&mut got) {
                Ok(0) => return Err(ConnError::Truncated),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.wire.readable().await?;
                    continue;
                }
                Err(e) => return Err(e.into()),
            }
            let Some((head, body)) = got.split_first_chunk::<4>() else { continue };
            let bytes = u32::from_be_bytes(*head) as usize;
            if bytes > MESSAGE_BYTES_MAX {
                return Err(MessageError::TooLong { bytes }.into());
            }
            if body.len() >= bytes {
                self.wire.unread(&body[bytes..]);
                got.truncate(4 + bytes);
                return Ok(got.split_off(4));
            }
        }
    }

    fn try_read_onto(&self, got: &mut Vec<u8>) -> io::Result<usize> {
        let mut buf = [0; READ_BYTES];
        let n = self.wire.try_read(&mut buf)?;
        got.extend_from_slice(&buf[..n]);
        Ok(n)
    }

    /// The next event of the bytes just read; pings are answered and closes become errors here.
    pub(crate) fn next_event(&self, buf: &mut [u8], at: &mut usize) -> Result<Option<Event>, ConnError> {
        self.event(buf, at, false)
    }

    fn event(&self, buf: &mut [u8], at: &mut usize, leave_data: bool) -> Result<Option<Event>, ConnError> {
        let mut deframer = self.deframer.borrow_mut();
        let event = if leave_data { deframer.next_but_data(buf, at)? } else { deframer.next(buf, at)? };
        drop(deframer);
        if event.is_some() {
            self.wire.account().spend(budget::FRAME);
        }
        match event {
            Some(Event::Close(said)) => {
                // Answered with its own code, as RFC 6455 §5.5.1 has it, unless we were first.
                let answer = said.as_ref().map(|(code, _)| frame::close_payload(*code, ""));
                self.queue_close(&answer.unwrap_or_default());
                let (code, why) = said.unwrap_or((1005, String::new()));
                self.farewell.set(Some(Box::new(why.as_str().into())));
                Err(ConnError::Closed { code, why })
            }
            Some(Event::Ping(payload)) => {
                self.idle_frames.count()?;
                match self.answer_ping(&payload) {
                    // A peer that hears nothing any more may still have said something.
                    Ok(()) | Err(ConnError::Io(_)) => Ok(Some(Event::Ping(payload))),
                    Err(e) => Err(e),
                }
            }
            Some(Event::Pong(payload)) => {
                self.idle_frames.count()?;
                self.liveness.on_pong();
                Ok(Some(Event::Pong(payload)))
            }
            Some(idle @ Event::Empty) => {
                self.idle_frames.count()?;
                Ok(Some(idle))
            }
            Some(Event::Data { range, ends: true }) if range.is_empty() => {
                self.idle_frames.count()?;
                Ok(Some(Event::Data { range, ends: true }))
            }
            other => Ok(other),
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection's end.
    pub async fn send(&self, message: &Message) -> io::Result<()> {
        self.send_text(&message.encode()).await
    }

    /// As [`Conn::send`], of a message's encoding: it holds nothing else while it waits.
    pub(crate) fn send_text(&self, text: &[u8]) -> impl Future<Output = io::Result<()>> + '_ {
        let mut head = [0; HEADER_BYTES_MAX];
        let mut bytes;
        match self.framing {
            Framing::Framed => {
                let key = self.mask_key();
                let header =
                    Header { fin: true, opcode: Opcode::Text, mask: key, payload_bytes: text.len() as u64 };
                let len = frame::encode(&header, &mut head);
                bytes = [&head[..len], text].concat();
                frame::mask(&mut bytes[len..], key.unwrap_or_default(), 0);
            }
            Framing::Raw => {
                #[expect(clippy::cast_possible_truncation, reason = "a message of ours is below 64 KiB")]
                let len = (text.len() as u32).to_be_bytes();
                bytes = [&len, text].concat();
            }
        }
        async move {
            while !self.begin_frame()? {
                self.wire.writable().await?;
            }
            self.wire.write_all(&bytes).await?;
            self.end_frame()
        }
    }

    /// Makes room for a frame that the caller writes to the wire: whether what came before is out. The
    /// caller is in the middle of a frame from then on.
    ///
    /// # Errors
    /// The connection's end.
    pub(crate) fn begin_frame(&self) -> io::Result<bool> {
        if self.closing.get() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if self.mid_frame.get() {
            // Its writer was dropped: no frame may begin within another.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.try_flush_control()?;
        let ready = self.control.borrow().is_empty();
        if ready {
            self.mid_frame.set(true);
        }
        Ok(ready)
    }

    /// The frame is with the kernel; what was queued meanwhile follows.
    ///
    /// # Errors
    /// The connection's end.
    pub(crate) fn end_frame(&self) -> io::Result<()> {
        self.mid_frame.set(false);
        self.try_flush_control()
    }

    /// Masks the parts of `bytes` that are a data frame's payload, where this side does, and writes the
    /// frame's header at `at`; how long it is.
    pub(crate) fn write_header(&self, payload: &[Range<usize>], bytes: &mut [u8], at: usize) -> usize {
        self.liveness.on_payload();
        let key = self.mask_key();
        if let Some(key) = key {
            let mut phase = 0;
            for piece in payload {
                frame::mask(&mut bytes[piece.clone()], key, phase);
                phase = (phase + piece.len()) & 3;
            }
        }
        let mut head = [0; HEADER_BYTES_MAX];
        let payload_bytes = payload.iter().map(|piece| piece.len() as u64).sum();
        let header = Header { fin: true, opcode: Opcode::Binary, mask: key, payload_bytes };
        let len = frame::encode(&header, &mut head);
        bytes[at..at + len].copy_from_slice(&head[..len]);
        len
    }

    /// Over TLS the key is zero, so that unmasking is a no-op; the mask protects plain proxies on
    /// the way from bytes that an attacker chose, and there are none inside TLS.
    fn mask_key(&self) -> Option<[u8; 4]> {
        if self.role == Role::Gateway {
            return None;
        }
        if self.wire.is_tls() {
            return Some([0; 4]);
        }
        // xorshift64*: a fresh unpredictable-enough key a frame from a random seed.
        let mut x = self.mask_state.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.mask_state.set(x);
        let [a, b, c, d, ..] = x.wrapping_mul(0x2545_F491_4F6C_DD1D).to_be_bytes();
        Some([a, b, c, d])
    }

    /// Sends a ping; the answer shows in [`Conn::heard_at`].
    ///
    /// # Errors
    /// The connection's end.
    pub fn ping(&self) -> Result<(), ConnError> {
        self.liveness.on_ping();
        if self.framing == Framing::Framed { self.queue_control(Opcode::Ping, &[]) } else { Ok(()) }
    }

    /// Answers, unless so many answers wait already that one more would say nothing new.
    fn answer_ping(&self, payload: &[u8]) -> Result<(), ConnError> {
        if self.control.borrow().len() > CONTROL_BYTES_MAX / 2 {
            return Ok(self.try_flush_control()?);
        }
        self.queue_control(Opcode::Pong, payload)
    }

    /// Says why this connection ends, unless that was said before, or the peer did; best effort.
    pub(crate) fn say_close(&self, code: u16, why: &str) {
        self.queue_close(&frame::close_payload(code, why));
    }

    /// With which words the peer has closed, if it has; they are given once.
    pub fn farewell(&self) -> Option<Box<str>> {
        self.farewell.take().map(|words| *words)
    }

    fn queue_close(&self, payload: &[u8]) {
        if self.framing == Framing::Framed && !self.closing.get() {
            let _ = self.queue_control(Opcode::Close, payload);
            self.closing.set(true);
        }
    }

    /// Whether a frame is half written.
    pub(crate) fn is_mid_frame(&self) -> bool {
        self.mid_frame.get()
    }

    /// Whether no word of ours waits for the socket, nor the rest of a frame.
    pub(crate) fn has_said_all(&self) -> bool {
        self.control.borrow().is_empty() && !self.mid_frame.get()
    }

    /// Tells the peer what it did wrong, if it did.
    pub(crate) fn tell(&self, error: &ConnError) {
        if let Some(code) = error.close_code() {
            self.say_close(code, &error.to_string());
        }
    }

    /// Says why and closes. Between messages the words are delivered; in the middle of a frame
    /// there is no place for them, and the peer sees a reset.
    pub fn close(self, code: u16, why: &str) {
        self.say_close(code, why);
        self.hang_up();
    }

    /// Closes after something was said (or could not be).
    pub fn hang_up(self) {
        if self.framing == Framing::Framed && self.has_said_all() {
            self.wire.close_gently();
        }
    }

    fn queue_control(&self, opcode: Opcode, payload: &[u8]) -> Result<(), ConnError> {
        if self.closing.get() {
            return Ok(self.try_flush_control()?);
        }
        {
            let mut control = self.control.borrow_mut();
            if control.len() + HEADER_BYTES_MAX + payload.len() > CONTROL_BYTES_MAX {
                return Err(Flood.into());
            }
            let key = self.mask_key();
            let mut head = [0; HEADER_BYTES_MAX];
            let header = Header { fin: true, opcode, mask: key, payload_bytes: payload.len() as u64 };
            let len = frame::encode(&header, &mut head);
            control.extend_from_slice(&head[..len]);
            let start = control.len();
            control.extend_from_slice(payload);
            if let Some(key) = key {
                frame::mask(&mut control[start..], key, 0);
            }
        }
        Ok(self.try_flush_control()?)
    }

    /// Sends waiting control frames as far as the socket takes them, unless a frame is under way.
    pub(crate) fn try_flush_control(&self) -> io::Result<()> {
        let mut control = self.control.borrow_mut();
        while !self.mid_frame.get() && !control.is_empty() {
            match self.wire.try_write(&[IoSlice::new(&control)]) {
                Ok(n) => drop(control.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
