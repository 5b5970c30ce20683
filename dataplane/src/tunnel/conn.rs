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
mod tests {
    use std::{collections::BTreeSet, pin::pin, thread};

    use futures_lite::future::{self, poll_once, zip};

    use super::*;
    use crate::{
        net::memory::{Memory, Room},
        tunnel::deframe::DATA_FRAME_BYTES_MAX,
        tunnel::far_end::{
            CALLS, FRAMINGS, FarEnd, OTHER, ROLES, SESSION, Then, attend_to_all, fin, in_calls_of, never,
            room_for, run, say_the_rest, stuff, tunnel,
        },
    };

    async fn recv(conn: &Conn) -> Result<Message, ConnError> {
        let speaker = if conn.role() == Role::Gateway { Speaker::Client } else { Speaker::Gateway };
        conn.recv(speaker, Channel::Stream).await
    }

    /// Which of the messages that differ by their number comes next.
    async fn recv_number(conn: &Conn) -> u64 {
        match recv(conn).await.unwrap() {
            Message::Fin { session: SESSION, bytes } => bytes,
            other => panic!("{other:?}"),
        }
    }

    /// A message with this number, of this length.
    fn padded(number: u64, len: usize) -> Vec<u8> {
        let mut text = fin(number).encode();
        assert!(text.len() <= len);
        text.resize(len, b' ');
        text
    }

    /// The payload that comes next.
    async fn read_data(conn: &Conn) -> Vec<u8> {
        let mut buf = [0; READ_BYTES];
        let n = conn.wire().read(&mut buf).await.unwrap();
        match conn.next_event(&mut buf[..n], &mut 0).unwrap() {
            Some(Event::Data { range, .. }) => buf[range].to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// How long a frame of ours is.
    fn frame_len(role: Role, payload: usize) -> usize {
        frame::header_bytes(payload as u64, role == Role::Peer) + payload
    }

    fn every_side() -> impl Iterator<Item = (Framing, Role)> {
        FRAMINGS.into_iter().flat_map(|framing| ROLES.map(|role| (framing, role)))
    }

    #[test]
    fn messages_are_read_whole_however_little_comes_at_a_time() {
        run(async {
            for (framing, role) in every_side() {
                for call_bytes in CALLS {
                    let (conn, far) = tunnel(framing, role, in_calls_of(call_bytes));
                    // Shorter than a read, and longer than two.
                    for (number, len) in [(1, 150), (2, 2 * READ_BYTES + 1), (3, 150)] {
                        far.say(&far.text(&padded(number, len)));
                    }
                    for number in 1..=3 {
                        assert_eq!(recv_number(&conn).await, number, "{framing:?} {role:?} {call_bytes}");
                    }
                }
            }
        });
    }

    #[test]
    fn a_message_that_is_cut_anywhere_waits_for_its_rest() {
        run(async {
            for (framing, role) in every_side() {
                let bytes = tunnel(framing, role, Room::default()).1.message(&fin(7));
                for cut in 0..bytes.len() {
                    let (conn, far) = tunnel(framing, role, Room::default());
                    let mut receiving = pin!(recv_number(&conn));
                    far.say(&bytes[..cut]);
                    assert!(poll_once(receiving.as_mut()).await.is_none(), "{framing:?} cut at {cut}");
                    far.say(&bytes[cut..]);
                    assert_eq!(receiving.await, 7, "{framing:?} cut at {cut}");
                }
            }
        });
    }

    #[test]
    fn a_wait_for_a_framed_message_may_be_given_up_at_every_byte() {
        run(async {
            for role in ROLES {
                let (conn, far) = tunnel(Framing::Framed, role, Room::default());
                let bytes = [far.frame(Opcode::Ping, b"hi"), far.message(&fin(7))].concat();
                for byte in bytes.chunks(1) {
                    assert!(poll_once(recv(&conn)).await.is_none());
                    far.say(byte);
                }
                assert_eq!(recv_number(&conn).await, 7);
                assert_eq!(far.frames(&far.heard().0), [(Opcode::Pong, b"hi".to_vec())]);
            }
        });
    }

    #[test]
    fn what_comes_behind_a_message_is_left_for_whoever_reads_next() {
        run(async {
            for (framing, role) in every_side() {
                let (conn, far) = tunnel(framing, role, Room::default());
                far.say(&[far.message(&fin(7)), far.payload(b"payload")].concat());
                assert_eq!(recv_number(&conn).await, 7);
                match framing {
                    Framing::Raw => {
                        let mut buf = [0; 64];
                        let n = conn.wire().try_read(&mut buf).unwrap();
                        assert_eq!(&buf[..n], b"payload");
                    }
                    Framing::Framed => assert_eq!(read_data(&conn).await, b"payload"),
                }
            }
        });
    }

    #[test]
    fn what_one_program_says_the_other_hears_through_the_narrowest_room() {
        run(async {
            for framing in FRAMINGS {
                for call_bytes in CALLS {
                    let (near, far) = Memory::pair(Room { bytes: 8, call_bytes });
                    let gateway = Conn::new(near.into(), framing, Role::Gateway, 0);
                    let peer = Conn::new(far.into(), framing, Role::Peer, 5);
                    let say = async |conn: &Conn| {
                        for number in 0..5 {
                            conn.send(&fin(number)).await.unwrap();
                        }
                    };
                    let hear = async |conn: &Conn| {
                        for number in 0..5 {
                            assert_eq!(recv_number(conn).await, number, "{framing:?} {call_bytes}");
                        }
                    };
                    zip(zip(say(&gateway), hear(&peer)), zip(say(&peer), hear(&gateway))).await;
                }
            }
        });
    }

    #[test]
    fn no_control_frame_stands_within_a_frame_wherever_that_is_half_written() {
        run(async {
            let text = fin(7).encode();
            for role in ROLES {
                let len = frame_len(role, text.len());
                for room in 1..len {
                    let (conn, far) = tunnel(Framing::Framed, role, room_for(room));
                    let mut sending = pin!(conn.send_text(&text));
                    assert!(poll_once(sending.as_mut()).await.is_none());
                    // As if it had come.
                    conn.wire().unread(&far.frame(Opcode::Ping, b"hi"));
                    // Room that is made is the frame's.
                    let mut got = far.heard().0;
                    assert!(poll_once(conn.attend()).await.is_none());
                    conn.ping().unwrap();
                    let saying = async {
                        sending.await.unwrap();
                        say_the_rest(&conn).await;
                    };
                    let all = len + frame_len(role, 2) + frame_len(role, 0);
                    got.extend(zip(saying, far.hear(all - room)).await.1);
                    let expected = [
                        (Opcode::Text, text.clone()),
                        (Opcode::Pong, b"hi".to_vec()),
                        (Opcode::Ping, Vec::new()),
                    ];
                    assert_eq!(far.frames(&got), expected, "{role:?}, {room} bytes of {len} were out");
                }
            }
        });
    }

    #[test]
    fn a_frame_that_its_writer_left_half_way_is_the_connection_s_end() {
        run(async {
            for (framing, role) in every_side() {
                let (conn, far) = tunnel(framing, role, room_for(30));
                assert!(poll_once(conn.send(&fin(7))).await.is_none());
                assert!(conn.is_mid_frame() && !conn.is_quiet() && !conn.has_said_all());
                assert_eq!(far.heard().0.len(), 30);
                let refused = conn.send(&fin(8)).await.unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
                conn.ping().unwrap();
                conn.say_close(1000, "bye");
                conn.hang_up();
                assert_eq!(far.heard(), (Vec::new(), Then::Reset), "{framing:?} {role:?}");
            }
        });
    }

    #[test]
    fn who_gave_up_before_the_first_byte_of_a_frame_has_broken_nothing() {
        run(async {
            let (conn, far) = tunnel(Framing::Framed, Role::Peer, room_for(4));
            conn.ping().unwrap();
            assert!(!conn.has_said_all(), "two bytes of it wait");
            assert!(poll_once(conn.send(&fin(7))).await.is_none());
            assert!(conn.is_quiet() && !conn.is_mid_frame());
            let text = fin(8).encode();
            let all = frame_len(Role::Peer, 0) + frame_len(Role::Peer, text.len());
            let (sent, got) = zip(conn.send_text(&text), far.hear(all)).await;
            sent.unwrap();
            assert_eq!(far.frames(&got), [(Opcode::Ping, Vec::new()), (Opcode::Text, text.clone())]);
        });
    }

    #[test]
    fn a_ping_is_answered_with_its_own_words() {
        run(async {
            for role in ROLES {
                for call_bytes in CALLS {
                    let (conn, far) = tunnel(Framing::Framed, role, in_calls_of(call_bytes));
                    let words = [0, 1, 4, 125].map(|len| vec![b'x'; len]);
                    let pings: Vec<_> = words.iter().map(|words| far.frame(Opcode::Ping, words)).collect();
                    far.say(&pings.concat());
                    let all = words.iter().map(|words| frame_len(role, words.len())).sum();
                    let got = future::or(far.hear(all), never(conn.attend())).await;
                    let expected: Vec<_> = words.map(|words| (Opcode::Pong, words)).into();
                    assert_eq!(far.frames(&got), expected, "{role:?} {call_bytes}");
                }
            }
        });
    }

    #[test]
    fn a_peer_that_pings_and_reads_nothing_makes_nothing_grow() {
        run(async {
            for role in ROLES {
                let (conn, far) = tunnel(Framing::Framed, role, room_for(16 * 1024));
                let nonsense = stuff(conn.wire());
                far.say(&far.frame(Opcode::Ping, &[b'x'; 125]).repeat(90));
                attend_to_all(&conn).await;
                let answers = conn.control.borrow().len();
                assert!((1..=CONTROL_BYTES_MAX).contains(&answers), "{answers} bytes of answers wait");
                let flood = (0..1000).find_map(|_| conn.ping().err()).expect("an end of it");
                assert!(matches!(flood, ConnError::Flood(_)), "{flood}");
                assert!(conn.control.borrow().len() <= CONTROL_BYTES_MAX);
                // What was left out leaves no trace.
                let before = far.heard().0;
                say_the_rest(&conn).await;
                let got = [before, far.heard().0].concat();
                let frames = far.frames(&got[nonsense..]);
                assert!(frames.contains(&(Opcode::Pong, vec![b'x'; 125])));
                assert!(frames.contains(&(Opcode::Ping, Vec::new())));
            }
        });
    }

    #[test]
    fn a_flood_of_frames_that_bring_nothing_ends_with_1008() {
        // What begins, and what comes again and again.
        type Flooding = fn(&FarEnd) -> [Vec<u8>; 2];
        let floods: [Flooding; 5] = [
            |far| [Vec::new(), far.frame(Opcode::Ping, b"")],
            |far| [Vec::new(), far.frame(Opcode::Pong, b"")],
            |far| [Vec::new(), far.frame(Opcode::Binary, b"")],
            |far| [far.fragment(Opcode::Binary, b""), far.fragment(Opcode::Continuation, b"")],
            |far| [far.fragment(Opcode::Text, b""), far.fragment(Opcode::Continuation, b"")],
        ];
        run(async {
            for (n, flood) in floods.into_iter().enumerate() {
                let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
                let [first, each] = flood(&far);
                far.say(&[first, each.repeat(1000)].concat());
                let error = recv(&conn).await.unwrap_err();
                assert!(matches!(error, ConnError::Flood(_)), "{n}: {error}");
                assert_eq!(error.why(), Why::Protocol);
                let close = (Opcode::Close, frame::close_payload(1008, &error.to_string()));
                assert_eq!(far.frames(&far.heard().0).last(), Some(&close), "{n}");
            }
        });
    }

    #[test]
    fn what_a_busy_program_may_send_is_no_flood() {
        run(async {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
            far.say(&far.frame(Opcode::Ping, b"still there?").repeat(100));
            far.say(&far.message(&fin(7)));
            assert_eq!(recv_number(&conn).await, 7);
            assert_eq!(far.frames(&far.heard().0).len(), 100);
        });
    }

    #[test]
    fn a_close_is_answered_with_its_own_code_once_and_nothing_is_said_behind_it() {
        run(async {
            for role in ROLES {
                for (said, code, why) in [
                    (frame::close_payload(1000, ""), 1000, ""),
                    (frame::close_payload(1001, "\u{1b}[2Jgoing"), 1001, "[2Jgoing"),
                    (frame::close_payload(4000, "reset"), 4000, "reset"),
                    (Vec::new(), 1005, ""),
                ] {
                    let (conn, far) = tunnel(Framing::Framed, role, Room::default());
                    far.say(&far.frame(Opcode::Close, &said));
                    let error = recv(&conn).await.unwrap_err();
                    let ConnError::Closed { code: heard, why: words } = &error else { panic!("{error}") };
                    assert_eq!((*heard, &**words), (code, why));
                    assert_eq!((error.why(), error.close_code()), (Why::Reset, None));
                    assert_eq!((conn.farewell().as_deref(), conn.farewell()), (Some(why), None));
                    conn.say_close(1002, "me too");
                    conn.ping().unwrap();
                    far.say(&far.frame(Opcode::Ping, b"hi"));
                    attend_to_all(&conn).await;
                    let refused = conn.send(&fin(7)).await.unwrap_err();
                    assert_eq!(refused.kind(), io::ErrorKind::NotConnected);
                    assert!(!conn.is_quiet());
                    let answer = if said.is_empty() { said } else { frame::close_payload(code, "") };
                    assert_eq!(far.frames(&far.heard().0), [(Opcode::Close, answer)], "{role:?} {code}");
                }
            }
        });
    }

    #[test]
    fn who_has_said_close_does_not_answer_the_other_s() {
        run(async {
            for role in ROLES {
                let (conn, far) = tunnel(Framing::Framed, role, Room::default());
                conn.say_close(4000, "over");
                conn.say_close(1000, "said before");
                far.say(&far.frame(Opcode::Close, &frame::close_payload(1000, "bye")));
                assert!(matches!(recv(&conn).await, Err(ConnError::Closed { code: 1000, .. })));
                let ours = (Opcode::Close, frame::close_payload(4000, "over"));
                assert_eq!(far.frames(&far.heard().0), [ours]);
            }
        });
    }

    #[test]
    fn a_peer_is_told_once_what_it_did_wrong() {
        let too_long = |far: &FarEnd| {
            let mut bytes = far.frame(Opcode::Binary, &vec![0; DATA_FRAME_BYTES_MAX as usize]);
            // A byte more than is taken.
            bytes[9] += 1;
            bytes
        };
        let endless = |far: &FarEnd| {
            let text = vec![b' '; 40_000];
            [far.fragment(Opcode::Text, &text), far.frame(Opcode::Continuation, &text)].concat()
        };
        type Wrong = (u16, fn(&FarEnd) -> Vec<u8>);
        let wrong: [Wrong; 11] = [
            (1002, |_| vec![0x81, 2]),
            (1002, |_| vec![0xC1]),
            (1002, |far| far.frame(Opcode::Continuation, b"")),
            (1009, too_long),
            (1009, endless),
            (1002, |far| far.frame(Opcode::Close, &[3])),
            (1007, |far| far.frame(Opcode::Close, &[3, 0xE8, 0xFF])),
            (1002, |far| far.frame(Opcode::Text, b"{}")),
            (1002, |far| far.frame(Opcode::Text, br#"{"type":"call_back"}"#)),
            (1002, |far| far.message(&Message::Ready { session: SESSION })),
            (1002, |far| far.frame(Opcode::Binary, b"data")),
        ];
        run(async {
            for (n, (code, bytes)) in wrong.into_iter().enumerate() {
                let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
                far.say(&bytes(&far));
                let error = recv(&conn).await.unwrap_err();
                assert_eq!((error.why(), error.close_code()), (Why::Protocol, Some(code)), "{n}: {error}");
                let close = (Opcode::Close, frame::close_payload(code, &error.to_string()));
                assert_eq!(far.frames(&far.heard().0), [close], "{n}");
            }
        });
    }

    #[test]
    fn a_raw_message_that_is_too_long_is_refused_by_its_length_and_nothing_is_said() {
        run(async {
            let (conn, far) = tunnel(Framing::Raw, Role::Gateway, Room::default());
            far.say(&(MESSAGE_BYTES_MAX as u32 + 1).to_be_bytes());
            let error = recv(&conn).await.unwrap_err();
            assert!(matches!(error, ConnError::Message(MessageError::TooLong { .. })), "{error}");
            conn.ping().unwrap();
            conn.close(1009, "too long");
            assert_eq!(far.heard(), (Vec::new(), Then::Reset), "plain bytes have no word for it");

            let (conn, far) = tunnel(Framing::Raw, Role::Gateway, Room::default());
            far.say(&far.text(&padded(7, MESSAGE_BYTES_MAX)));
            assert_eq!(recv_number(&conn).await, 7, "so much is taken");
        });
    }

    #[test]
    fn an_end_in_front_of_a_message_s_last_byte_is_never_a_message() {
        run(async {
            for (framing, role) in every_side() {
                let bytes = tunnel(framing, role, Room::default()).1.message(&fin(7));
                for cut in 0..bytes.len() {
                    let (conn, far) = tunnel(framing, role, Room::default());
                    far.say(&bytes[..cut]);
                    far.finish();
                    let error = recv(&conn).await.unwrap_err();
                    assert!(matches!(error, ConnError::Truncated), "{framing:?} cut at {cut}: {error}");
                    assert_eq!(error.why(), Why::Cut);
                    let (conn, far) = tunnel(framing, role, Room::default());
                    far.say(&bytes[..cut]);
                    drop(far);
                    let error = recv(&conn).await.unwrap_err();
                    assert!(matches!(error, ConnError::Io(_)), "{framing:?} cut at {cut}: {error}");
                    assert_eq!((error.why(), error.close_code()), (Why::Cut, None));
                }
                let (conn, far) = tunnel(framing, role, Room::default());
                far.say(&bytes);
                drop(far);
                assert_eq!(recv_number(&conn).await, 7, "what was said before a reset is heard");
            }
        });
    }

    #[test]
    fn a_peer_s_frames_have_a_new_mask_each_and_a_gateway_s_have_none() {
        run(async {
            let masks = async |role, seed| {
                let (near, far) = Memory::pair(Room::default());
                let conn = Conn::new(near.into(), Framing::Framed, role, seed);
                for _ in 0..20 {
                    conn.send(&fin(7)).await.unwrap();
                    conn.ping().unwrap();
                    assert!(conn.begin_frame().unwrap());
                    let mut head = [0; HEADER_BYTES_MAX];
                    let len = conn.write_header(&[], &mut head, 0);
                    conn.wire().write_all(&head[..len]).await.unwrap();
                    conn.end_frame().unwrap();
                }
                let far = FarEnd::new(far, Framing::Framed, role);
                let frames = far.take_apart(&far.heard().0);
                assert_eq!(frames.len(), 60);
                frames.into_iter().map(|(header, _)| header.mask).collect::<Vec<_>>()
            };
            assert!(masks(Role::Gateway, 1).await.iter().all(Option::is_none));
            let (some, others) = (masks(Role::Peer, 0).await, masks(Role::Peer, 2).await);
            let distinct: BTreeSet<_> = some.iter().chain(&others).flatten().collect();
            assert_eq!(distinct.len(), 120);
            assert!(!distinct.contains(&[0; 4]));
        });
    }

    #[test]
    fn a_connection_goes_to_another_thread_with_what_it_has_half_read_and_not_yet_said() {
        run(async {
            let mut moving = Vec::new();
            for role in ROLES {
                let far = tunnel(Framing::Framed, role, Room::default()).1;
                let (ping, message) = (far.frame(Opcode::Ping, b"hi"), far.message(&fin(7)));
                // Up to the last byte of the message's header.
                let heads = ping.len() + message.len() - fin(7).encode().len();
                let bytes = [ping, message].concat();
                for cut in 0..heads {
                    let (conn, far) = tunnel(Framing::Framed, role, room_for(512));
                    let nonsense = stuff(conn.wire());
                    conn.ping().unwrap();
                    far.say(&bytes[..cut]);
                    attend_to_all(&conn).await;
                    assert!(conn.is_quiet(), "{role:?} cut at {cut}");
                    let masked = conn.mask_state.get();
                    let parts = conn.into_parts().unwrap();
                    moving.push((parts, far, nonsense, bytes[cut..].to_vec(), masked));
                }
            }
            let there = move || {
                run(async {
                    for (parts, far, nonsense, rest, masked) in moving {
                        let conn = Conn::from_parts(parts).unwrap();
                        assert_eq!(conn.mask_state.get(), masked, "no mask is used twice");
                        far.say(&rest);
                        assert_eq!(recv_number(&conn).await, 7);
                        let mut got = far.heard().0;
                        say_the_rest(&conn).await;
                        got.extend(far.heard().0);
                        let expected = [(Opcode::Ping, Vec::new()), (Opcode::Pong, b"hi".to_vec())];
                        assert_eq!(far.frames(&got[nonsense..]), expected);
                    }
                });
            };
            thread::spawn(there).join().unwrap();
        });
    }

    #[test]
    fn the_bytes_below_are_given_out_only_where_nothing_of_a_frame_is_elsewhere() {
        run(async {
            let fresh = || tunnel(Framing::Framed, Role::Peer, Room::default());
            let (conn, far) = fresh();
            far.say(&[far.message(&fin(7)), b"another protocol".to_vec()].concat());
            assert_eq!(recv_number(&conn).await, 7);
            let (wire, mut buf) = (conn.into_bare().unwrap(), [0; 64]);
            let n = wire.try_read(&mut buf).unwrap();
            assert_eq!(&buf[..n], b"another protocol");

            let (conn, far) = fresh();
            far.say(&far.frame(Opcode::Ping, b"hi")[..1]);
            attend_to_all(&conn).await;
            assert!(conn.into_bare().is_none(), "half a header was read");

            let (conn, _far) = tunnel(Framing::Framed, Role::Peer, room_for(4));
            conn.ping().unwrap();
            assert!(conn.into_bare().is_none(), "half a ping was said");
        });
    }

    #[test]
    fn behind_a_refused_session_its_data_is_thrown_away_and_the_next_message_is_not() {
        run(async {
            let data = |far: &FarEnd| far.frame(Opcode::Binary, &[7; 3000]).repeat(20);
            let end = |far: &FarEnd| far.message(&fin(60_000));
            let other = |far: &FarEnd| far.message(&Message::Fin { session: OTHER, bytes: 7 });
            type Said = fn(&FarEnd) -> Vec<u8>;
            let cases: [(Said, bool); 3] = [(data, false), (end, false), (other, true)];
            for (n, (said, is_next)) in cases.into_iter().enumerate() {
                let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
                far.say(&far.frame(Opcode::Ping, b"hi"));
                far.say(&said(&far));
                far.say(&data(&far));
                far.finish();
                let next = conn.recv_after(SESSION, Speaker::Client, Channel::Stream).await.unwrap();
                assert_eq!(next.is_some(), is_next, "{n}");
                assert_eq!(conn.wire().has_unread(), is_next, "{n}");
                assert_eq!(far.frames(&far.heard().0), [(Opcode::Pong, b"hi".to_vec())], "{n}");
            }
        });
    }

    #[test]
    fn of_a_refused_session_no_more_is_read_than_a_client_may_send_early() {
        run(async {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, room_for(16 * 1024));
            let said = Cell::new(0);
            let saying = async {
                loop {
                    far.say_all(&[7; 1000]).await;
                    said.set(said.get() + 1000);
                }
            };
            future::or(conn.drain(), saying).await;
            let most = DRAIN_BYTES_MAX + 16 * 1024 + READ_BYTES;
            assert!((DRAIN_BYTES_MAX - 1000..=most).contains(&said.get()), "{}", said.get());
        });
    }

    #[test]
    fn who_only_attends_leaves_what_comes_to_whoever_reads_next() {
        run(async {
            for role in ROLES {
                for len in [100, 125, 126, 65_535, MESSAGE_BYTES_MAX] {
                    let (conn, far) = tunnel(Framing::Framed, role, Room::default());
                    let text = padded(7, len);
                    far.say(&far.fragment(Opcode::Text, &text[..10]));
                    far.say(&far.frame(Opcode::Ping, b"hi"));
                    far.say(&far.frame(Opcode::Continuation, &text[10..]));
                    far.say(&far.frame(Opcode::Binary, b"data"));
                    for _ in 0..3 {
                        assert_eq!(conn.attend().await.unwrap(), Ahead::Message, "{role:?} {len}");
                    }
                    assert_eq!(recv_number(&conn).await, 7);
                    for _ in 0..3 {
                        assert_eq!(conn.attend().await.unwrap(), Ahead::Data);
                    }
                    assert_eq!(read_data(&conn).await, b"data");
                    assert_eq!(far.frames(&far.heard().0), [(Opcode::Pong, b"hi".to_vec())]);
                }
            }
        });
    }

    #[test]
    fn a_close_arrives_with_a_clean_end_where_there_is_a_place_for_it() {
        run(async {
            let close = |framing, room| {
                let (conn, far) = tunnel(framing, Role::Gateway, room);
                conn.close(4000, "over");
                far.heard()
            };
            let (got, then) = close(Framing::Framed, Room::default());
            assert_eq!((&got[2..], then), (&*frame::close_payload(4000, "over"), Then::End));
            assert_eq!(close(Framing::Framed, room_for(5)).1, Then::Reset, "half of it is none");
            assert_eq!(close(Framing::Raw, Room::default()), (Vec::new(), Then::Reset));
        });
    }

    #[test]
    fn what_a_peer_has_asked_for_is_paid_before_it_is_heard_again() {
        run(async {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
            far.say(&far.message(&fin(7)));
            conn.has_asked();
            let refused = conn.wire().try_read(&mut [0; 1]).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
            assert_eq!(recv_number(&conn).await, 7);
        });
    }
}
