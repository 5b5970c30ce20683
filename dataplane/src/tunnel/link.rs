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
mod tests {
    use std::pin::pin;

    use futures_lite::future::{poll_once, zip};
    use narrowlink_proto::{
        feature::Features,
        frame::{self, Opcode},
        message::GoodbyeCode,
        upgrade::Framing,
    };

    use super::*;
    use crate::{
        net::memory::{Memory, Room},
        tunnel::{
            conn,
            far_end::{CALLS, FarEnd, Then, in_calls_of, never, room_for, run, stuff},
        },
    };

    const ROLES: [Role; 2] = [Role::Server, Role::Client];

    fn link_with(role: Role, room: Room, limits: &Limits) -> (Box<LinkSocket>, FarEnd) {
        let (near, far) = Memory::pair(room);
        let (speaker, ours) = match role {
            Role::Server => (Speaker::Client, conn::Role::Gateway),
            Role::Client => (Speaker::Gateway, conn::Role::Peer),
        };
        let socket = LinkSocket::new(near.into(), role, speaker, limits);
        (Box::new(socket), FarEnd::new(far, Framing::Framed, ours))
    }

    fn link(role: Role, room: Room) -> (Box<LinkSocket>, FarEnd) {
        link_with(role, room, &Limits::default())
    }

    /// A message to a side of this role that differs from others by its number.
    fn word_to(role: Role, number: u32) -> Message {
        match role {
            Role::Server => Message::Present { version: number, features: Features::NONE, instance: None },
            Role::Client => Message::NeedLane { count: number },
        }
    }

    async fn recv_number(socket: &mut LinkSocket) -> u32 {
        match socket.recv().await.unwrap() {
            Message::Present { version: number, .. } | Message::NeedLane { count: number } => number,
            other => panic!("{other:?}"),
        }
    }

    fn ping(number: u64) -> (Opcode, Vec<u8>) {
        (Opcode::Ping, number.to_be_bytes().to_vec())
    }

    /// A close frame that says its code alone.
    fn close(code: u16) -> (Opcode, Vec<u8>) {
        (Opcode::Close, frame::close_payload(code, ""))
    }

    #[test]
    fn messages_are_heard_whole_however_little_comes_at_a_time() {
        run(async {
            for role in ROLES {
                for call_bytes in CALLS {
                    let (mut socket, far) = link(role, in_calls_of(call_bytes));
                    for number in 0..20 {
                        far.say(&far.message(&word_to(role, number)));
                    }
                    for number in 0..20 {
                        assert_eq!(recv_number(&mut socket).await, number, "{role:?} {call_bytes}");
                    }
                }
            }
        });
    }

    #[test]
    fn a_wait_may_be_given_up_at_every_byte() {
        run(async {
            for role in ROLES {
                let (mut socket, far) = link(role, Room::default());
                // Payload that looks like a frame's header is none.
                let text = word_to(role, 7).encode();
                let bytes = [
                    far.frame(Opcode::Ping, &[0x88, 0x80, 0x89]),
                    far.fragment(Opcode::Text, &text[..9]),
                    far.frame(Opcode::Continuation, &text[9..]),
                ];
                for byte in bytes.concat().chunks(1) {
                    assert!(poll_once(socket.recv()).await.is_none());
                    far.say(byte);
                }
                assert_eq!(recv_number(&mut socket).await, 7);
                let answer = (Opcode::Pong, vec![0x88, 0x80, 0x89]);
                assert_eq!(far.frames(&far.heard().0), [ping(1), answer]);
            }
        });
    }

    #[test]
    fn a_link_pings_at_once_and_takes_no_other_answer_than_its_own() {
        run(async {
            for role in ROLES {
                let (mut socket, far) = link(role, Room::default());
                far.say(&far.frame(Opcode::Pong, &2u64.to_be_bytes()));
                assert!(poll_once(socket.hear()).await.is_none());
                assert_eq!(far.frames(&far.heard().0), [ping(1)]);
                let pinged = Instant::now();
                far.say(&far.frame(Opcode::Pong, &1u64.to_be_bytes()));
                let least = pinged.elapsed();
                let Heard::Answered(round_trip) = socket.hear().await.unwrap() else { panic!("no answer") };
                assert!(round_trip >= least);
            }
        });
    }

    #[test]
    fn a_peer_that_answers_is_pinged_again_and_again_and_its_link_stands() {
        run(async {
            let limits = Limits { ping_interval: Duration::from_millis(5), ..Limits::default() };
            let (mut socket, far) = link_with(Role::Server, Room::default(), &limits);
            let answering = async {
                let mut heard = Vec::new();
                while heard.len() < 5 {
                    for (opcode, words) in far.hear_frames(1).await {
                        far.say(&far.frame(Opcode::Pong, &words));
                        heard.push((opcode, words));
                    }
                }
                heard
            };
            let heard = future::or(answering, never(socket.recv())).await;
            assert_eq!(heard[..5], [1, 2, 3, 4, 5].map(ping));
        });
    }

    #[test]
    fn a_peer_of_which_nothing_is_heard_is_gone_after_interval_and_timeout() {
        run(async {
            let [ping_interval, pong_timeout] = [20, 30].map(Duration::from_millis);
            let limits = Limits { ping_interval, pong_timeout, ..Limits::default() };
            let (mut socket, far) = link_with(Role::Server, Room::default(), &limits);
            let begun = Instant::now();
            let error = socket.recv().await.unwrap_err();
            let patience = ping_interval + pong_timeout;
            assert!(matches!(error, LinkError::Silent(waited) if waited == patience), "{error}");
            assert!(begun.elapsed() >= patience);
            far.heard();
            socket.end(error).await;
            assert_eq!(far.heard(), (Vec::new(), Then::Reset), "there is nobody to tell");
        });
    }

    #[test]
    fn a_flood_of_frames_that_bring_nothing_ends_with_1008() {
        // What begins, and what comes again and again.
        type Flooding = fn(&FarEnd) -> [Vec<u8>; 2];
        let floods: [Flooding; 4] = [
            |far| [Vec::new(), far.frame(Opcode::Ping, b"hi")],
            |far| [Vec::new(), far.frame(Opcode::Pong, b"hi")],
            |far| [far.fragment(Opcode::Text, b""), far.fragment(Opcode::Continuation, b"")],
            |far| [Vec::new(), far.frame(Opcode::Text, br#"{"type":"of_a_later_version"}"#)],
        ];
        run(async {
            for (n, flood) in floods.into_iter().enumerate() {
                let (mut socket, far) = link(Role::Server, Room::default());
                let [first, each] = flood(&far);
                far.say(&[first, each.repeat(1000)].concat());
                far.finish();
                let error = socket.recv().await.unwrap_err();
                assert!(matches!(error, LinkError::Conn(ConnError::Flood(_))), "{n}: {error}");
                socket.end(error).await;
                assert_eq!(far.frames(&far.heard().0).last(), Some(&close(1008)), "{n}");
            }
        });
    }

    #[test]
    fn a_peer_is_told_what_it_did_wrong_although_it_says_more() {
        type Wrong = (u16, fn(&FarEnd) -> Vec<u8>);
        let wrong: [Wrong; 10] = [
            (1002, |_| vec![0x81, 2]),
            (1002, |_| vec![0xC1]),
            (1002, |_| vec![0x09]),
            (1002, |far| far.frame(Opcode::Continuation, b"")),
            (1009, |far| far.frame(Opcode::Text, &[b' '; MESSAGE_BYTES_MAX + 1])),
            (1009, |far| {
                let text = [b' '; 40_000];
                [far.fragment(Opcode::Text, &text), far.frame(Opcode::Continuation, &text)].concat()
            }),
            (1007, |far| far.frame(Opcode::Text, &[0xFF])),
            (1002, |far| far.frame(Opcode::Binary, b"data")),
            (1002, |far| far.frame(Opcode::Text, b"{}")),
            (1002, |far| far.message(&word_to(Role::Client, 1))),
        ];
        run(async {
            for (n, (code, bytes)) in wrong.into_iter().enumerate() {
                let (mut socket, far) = link(Role::Server, Room::default());
                far.say(&bytes(&far));
                far.say(&far.frame(Opcode::Text, b"{}").repeat(20));
                far.finish();
                let error = socket.recv().await.unwrap_err();
                let words = error.to_string();
                socket.end(error).await;
                let (got, then) = far.heard();
                let mut frames = far.frames(&got);
                frames.retain(|frame| *frame != ping(1));
                assert_eq!((frames, then), (vec![close(code)], Then::End), "{n}: {words}");
            }
        });
    }

    #[test]
    fn words_of_a_later_version_are_left_out() {
        run(async {
            for role in ROLES {
                let (mut socket, far) = link(role, Room::default());
                for number in 0..20 {
                    far.say(&far.frame(Opcode::Text, br#"{"type":"call_back","soon":true}"#));
                    far.say(&far.message(&word_to(role, number)));
                    assert_eq!(recv_number(&mut socket).await, number);
                }
            }
        });
    }

    #[test]
    fn a_close_is_answered_with_its_own_code_and_once() {
        run(async {
            for role in ROLES {
                let (mut socket, far) = link(role, Room::default());
                far.say(&far.frame(Opcode::Close, &frame::close_payload(4001, "bye")));
                let error = socket.recv().await.unwrap_err();
                assert!(matches!(error, LinkError::Closed), "{error}");
                socket.end(error).await;
                let (got, then) = far.heard();
                let [(Opcode::Close, payload)] = &far.frames(&got)[..] else { panic!("{got:?}") };
                assert_eq!(frame::parse_close(payload).unwrap().unwrap().0, 4001);
                assert_eq!(then, Then::End);
            }
        });
    }

    #[test]
    fn a_link_that_is_cut_at_any_byte_has_not_said_goodbye() {
        run(async {
            let bytes = link(Role::Server, Room::default()).1.message(&word_to(Role::Server, 7));
            for cut in 0..bytes.len() {
                for is_reset in [false, true] {
                    let (mut socket, far) = link(Role::Server, Room::default());
                    far.say(&bytes[..cut]);
                    let rest = (!is_reset).then_some(far);
                    rest.iter().for_each(FarEnd::finish);
                    let error = socket.recv().await.unwrap_err();
                    assert!(matches!(error, LinkError::Broke(_)), "cut at {cut}: {error}");
                    socket.end(error).await;
                    if let Some(far) = rest {
                        assert_eq!(far.heard(), (Vec::new(), Then::Reset), "cut at {cut}");
                    }
                }
            }
        });
    }

    #[test]
    fn a_peer_that_reads_nothing_costs_its_own_buffer_and_nobody_s_time() {
        let (mut socket, far) = link(Role::Server, room_for(1024));
        let word = Message::Goodbye(Goodbye { code: GoodbyeCode::Limited, reason: "x".repeat(1000) });
        let len = word.encode().len();
        // Nothing here can wait.
        let said = (0..1000).take_while(|_| socket.send(&word).is_ok()).count() * len;
        let error = socket.send(&word).unwrap_err();
        assert!(matches!(error, LinkError::Broke(_)), "{error}");
        let bounds = WRITE_BYTES_MAX - 2 * len..=WRITE_BYTES_MAX + 1024;
        assert!(bounds.contains(&said), "{said}");
        drop(far);
    }

    #[test]
    fn what_was_said_to_a_peer_that_had_paused_arrives_when_it_reads() {
        run(async {
            for role in ROLES {
                for call_bytes in CALLS {
                    let (mut socket, far) = link(role, Room { bytes: 16, call_bytes });
                    let words: Vec<_> = (0..5).map(|number| word_to(role, number)).collect();
                    for word in &words {
                        socket.send(word).unwrap();
                    }
                    let heard = future::or(far.hear_frames(6), never(socket.recv())).await;
                    let expected = words.iter().map(|word| (Opcode::Text, word.encode()));
                    assert_eq!(heard, expected.chain([ping(1)]).collect::<Vec<_>>(), "{role:?} {call_bytes}");
                }
            }
        });
    }

    #[test]
    fn an_answer_to_a_ping_is_said_as_soon_as_there_is_room_for_it() {
        run(async {
            for role in ROLES {
                let (mut socket, far) = link(role, room_for(512));
                assert!(poll_once(socket.recv()).await.is_none());
                assert_eq!(far.frames(&far.heard().0), [ping(1)]);
                let nonsense = stuff(socket.wire());
                far.say(&far.frame(Opcode::Ping, b"hi"));
                let mut receiving = pin!(socket.recv());
                assert!(poll_once(receiving.as_mut()).await.is_none());
                assert_eq!(far.heard().0.len(), nonsense);
                let heard = future::or(far.hear_frames(1), never(receiving)).await;
                assert_eq!(heard, [(Opcode::Pong, b"hi".to_vec())], "{role:?}");
            }
        });
    }

    #[test]
    fn who_ends_a_link_says_why_and_ends_cleanly() {
        run(async {
            let goodbye = Goodbye { code: GoodbyeCode::Replaced, reason: "another one came".into() };
            let word = (Opcode::Text, Message::Goodbye(goodbye.clone()).encode());
            let (socket, far) = link(Role::Server, Room::default());
            socket.end(LinkError::Goodbye(goodbye.clone())).await;
            let (got, then) = far.heard();
            assert_eq!((far.frames(&got), then), (vec![word.clone(), close(1001)], Then::End));
            let (socket, far) = link(Role::Server, Room::default());
            socket.close(Some(goodbye), CloseCode::Policy);
            let (got, then) = far.heard();
            assert_eq!((far.frames(&got), then), (vec![word, close(1008)], Then::End));
            let (socket, far) = link(Role::Client, Room::default());
            socket.close(None, CloseCode::Normal);
            let (got, then) = far.heard();
            assert_eq!((far.frames(&got), then), (vec![close(1000)], Then::End));
        });
    }

    #[test]
    fn both_sides_of_a_link_understand_each_other() {
        run(async {
            for call_bytes in CALLS {
                let (near, far) = Memory::pair(in_calls_of(call_bytes));
                let limits = Limits::default();
                let mut gateway = LinkSocket::new(near.into(), Role::Server, Speaker::Agent, &limits);
                let mut agent = LinkSocket::new(far.into(), Role::Client, Speaker::Gateway, &limits);
                for number in 0..3 {
                    gateway.send(&word_to(Role::Client, number)).unwrap();
                    agent.send(&word_to(Role::Server, number)).unwrap();
                }
                let hear = async |socket: &mut LinkSocket| {
                    for number in 0..3 {
                        assert_eq!(recv_number(socket).await, number, "{call_bytes}");
                    }
                };
                zip(hear(&mut gateway), hear(&mut agent)).await;
            }
        });
    }
}
