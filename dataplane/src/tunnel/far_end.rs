//! Role: the far end of a connection in memory, as the tests of tunnels and of the relay play it: it says what
//! no program of ours would, and takes apart what ours have said.
//! Invariants: a test that waits for ever fails · what is made up is the same in each run · what ours say is
//! whole frames, none longer than a peer takes.
//! See: `net::memory`.

use std::{
    fmt::Debug,
    future::Future,
    io::{self, IoSlice},
    time::Duration,
};

use futures_lite::future;
use narrowlink_proto::{
    frame::{self, Expect, HEADER_BYTES_MAX, Header, Opcode},
    id::SessionId,
    message::{Message, Place, Speaker},
    upgrade::Framing,
};
use proptest::{
    strategy::{Strategy, ValueTree as _},
    test_runner::TestRunner,
};

use crate::{
    net::memory::{Cable, Memory, Room},
    run::{
        timer::timeout,
        worker::{self, run_alone},
    },
    transport::wire::Wire,
    tunnel::{
        conn::{Conn, Role},
        deframe::DATA_FRAME_BYTES_MAX,
    },
};

/// The session of a test.
pub(crate) const SESSION: SessionId = SessionId::from_bytes([7; 32]);
/// Another one.
pub(crate) const OTHER: SessionId = SessionId::from_bytes([8; 32]);
pub(crate) const FRAMINGS: [Framing; 2] = [Framing::Framed, Framing::Raw];
/// Each at both ends of a session.
pub(crate) const PAIRS: [(Framing, Framing); 4] = [
    (Framing::Framed, Framing::Framed),
    (Framing::Framed, Framing::Raw),
    (Framing::Raw, Framing::Framed),
    (Framing::Raw, Framing::Raw),
];
pub(crate) const ROLES: [Role; 2] = [Role::Gateway, Role::Peer];
/// What one call moves at the most.
pub(crate) const CALLS: [usize; 6] = [1, 2, 3, 7, 64, 4096];

/// The mask of what a far end says.
const KEY: [u8; 4] = [1, 2, 3, 4];
/// Only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test on a worker of its own.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    run_alone(false, |_| timeout(PATIENCE, test)).unwrap().expect("nothing waits for ever")
}

/// So many values, the same in each run.
pub(crate) fn cases<S: Strategy>(strategy: &S, count: usize) -> Vec<S::Value> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// Bytes of which any two that lie near each other differ.
pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| seed.wrapping_add((n % 251) as u8).wrapping_add((n / 251) as u8)).collect()
}

/// The room of a connection that moves no more than this in one call.
pub(crate) fn in_calls_of(call_bytes: usize) -> Room {
    Room { call_bytes, ..Room::default() }
}

/// The room of a connection on which so much may be under way.
pub(crate) fn room_for(bytes: usize) -> Room {
    Room { bytes, ..Room::default() }
}

/// The end of a direction of the test's session.
pub(crate) fn fin(bytes: u64) -> Message {
    Message::Fin { session: SESSION, bytes }
}

/// A tunnel connection of ours, and its far end.
pub(crate) fn tunnel(framing: Framing, ours: Role, room: Room) -> (Conn, FarEnd) {
    let (near, far) = Memory::pair(room);
    (Conn::new(near.into(), framing, ours, 99), FarEnd::new(far, framing, ours))
}

/// Sends nonsense until no more is taken; how much that is.
pub(crate) fn stuff(wire: &Wire) -> usize {
    let mut bytes = 0;
    while let Ok(n) = wire.try_write(&[IoSlice::new(&[0; 256])]) {
        bytes += n;
    }
    bytes
}

/// Has a connection on which nothing is due read all that has come.
pub(crate) async fn attend_to_all(conn: &Conn) {
    let all = async {
        while conn.wire().has_unread() {
            worker::turn().await;
        }
    };
    future::or(all, never(conn.attend())).await;
}

/// Fails when this comes to an end.
pub(crate) async fn never<T, F: Future<Output: Debug>>(endless: F) -> T {
    let output = endless.await;
    panic!("it has ended: {output:?}")
}

/// Has a connection say what waits, as room is made.
pub(crate) async fn say_the_rest(conn: &Conn) {
    while !conn.has_said_all() {
        conn.wire().writable().await.unwrap();
        conn.try_flush_control().unwrap();
    }
}

/// What stands behind what was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing yet.
    Nothing,
    /// The end of the direction.
    End,
    /// A reset.
    Reset,
}

/// The far end of a connection of ours. Dropped, it resets it.
pub(crate) struct FarEnd {
    end: Memory,
    framing: Framing,
    /// Which side is ours.
    ours: Role,
}

impl FarEnd {
    pub(crate) fn new(end: Memory, framing: Framing, ours: Role) -> Self {
        Self { end, framing, ours }
    }

    pub(crate) fn cable(&self) -> Cable {
        self.end.cable()
    }

    /// Says it at once; how much of it there is room for.
    pub(crate) fn try_say(&self, bytes: &[u8]) -> usize {
        let mut said = 0;
        while said < bytes.len() {
            match self.end.send(&[IoSlice::new(&bytes[said..])]) {
                Ok(n) => said += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => panic!("nobody listens: {e}"),
            }
        }
        said
    }

    /// Says all of it at once.
    pub(crate) fn say(&self, bytes: &[u8]) {
        assert_eq!(self.try_say(bytes), bytes.len(), "there is no room for all of it");
    }

    /// Says all of it, as room is made.
    pub(crate) async fn say_all(&self, bytes: &[u8]) {
        let mut said = 0;
        while said < bytes.len() {
            self.end.writable().await.unwrap();
            said += self.try_say(&bytes[said..]);
        }
    }

    /// Ends our direction.
    pub(crate) fn finish(&self) {
        self.end.finish_write().unwrap();
    }

    /// What has come, and what stands behind it.
    pub(crate) fn heard(&self) -> (Vec<u8>, Then) {
        let (mut got, mut buf) = (Vec::new(), [0; 4096]);
        loop {
            match self.end.recv(&mut buf) {
                Ok(0) => return (got, Then::End),
                Ok(n) => got.extend_from_slice(&buf[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return (got, Then::Nothing),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return (got, Then::Reset),
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// What comes until so much has come.
    pub(crate) async fn hear(&self, bytes: usize) -> Vec<u8> {
        let mut got = Vec::new();
        loop {
            let (more, then) = self.heard();
            got.extend(more);
            if got.len() >= bytes {
                return got;
            }
            assert_eq!(then, Then::Nothing, "after {} of {bytes} bytes", got.len());
            self.end.readable().await.unwrap();
        }
    }

    /// What comes until the connection ends.
    pub(crate) async fn hear_to_the_end(&self) -> (Vec<u8>, Then) {
        let mut got = Vec::new();
        loop {
            let (more, then) = self.heard();
            got.extend(more);
            if then != Then::Nothing {
                return (got, then);
            }
            self.end.readable().await.unwrap();
        }
    }

    /// What comes until so many frames have come, all of them whole.
    pub(crate) async fn hear_frames(&self, count: usize) -> Vec<(Opcode, Vec<u8>)> {
        let (mut got, mut at, mut frames) = (Vec::new(), 0, Vec::new());
        while frames.len() < count {
            let (more, then) = self.heard();
            got.extend(more);
            while let Some((header, payload, len)) = self.first(&got[at..]) {
                frames.push((header.opcode, payload));
                at += len;
            }
            if frames.len() < count {
                assert_eq!(then, Then::Nothing, "after {} of {count} frames", frames.len());
                self.end.readable().await.unwrap();
            }
        }
        assert_eq!(at, got.len(), "the last frame is whole");
        frames
    }

    fn encode(&self, fin: bool, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mask = (self.ours == Role::Gateway).then_some(KEY);
        let header = Header { fin, opcode, mask, payload_bytes: payload.len() as u64 };
        let mut head = [0; HEADER_BYTES_MAX];
        let len = frame::encode(&header, &mut head);
        let mut bytes = [&head[..len], payload].concat();
        frame::mask(&mut bytes[len..], mask.unwrap_or_default(), 0);
        bytes
    }

    /// A frame with which its message ends.
    pub(crate) fn frame(&self, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        self.encode(true, opcode, payload)
    }

    /// A frame whose message goes on.
    pub(crate) fn fragment(&self, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        self.encode(false, opcode, payload)
    }

    /// A text where a message is due.
    pub(crate) fn text(&self, text: &[u8]) -> Vec<u8> {
        match self.framing {
            Framing::Framed => self.frame(Opcode::Text, text),
            Framing::Raw => [&u32::try_from(text.len()).unwrap().to_be_bytes(), text].concat(),
        }
    }

    pub(crate) fn message(&self, message: &Message) -> Vec<u8> {
        self.text(&message.encode())
    }

    /// Payload of a session.
    pub(crate) fn payload(&self, payload: &[u8]) -> Vec<u8> {
        match self.framing {
            Framing::Framed => self.frame(Opcode::Binary, payload),
            Framing::Raw => payload.to_vec(),
        }
    }

    /// Says the end of a session's direction, after so much payload.
    pub(crate) fn end_session(&self, bytes: u64) {
        match self.framing {
            Framing::Framed => self.say(&self.message(&fin(bytes))),
            Framing::Raw => self.finish(),
        }
    }

    /// Says payload in pieces of so many bytes, and the end of its direction.
    pub(crate) async fn say_session(&self, payload: &[u8], piece: usize) {
        for part in payload.chunks(piece) {
            self.say_all(&self.payload(part)).await;
        }
        match self.framing {
            Framing::Framed => self.say_all(&self.message(&fin(payload.len() as u64))).await,
            Framing::Raw => self.finish(),
        }
    }

    /// A session's payload until its direction ends; fails when that is no clean end.
    pub(crate) async fn hear_session(&self) -> Vec<u8> {
        let (mut got, mut payload) = (Vec::new(), Vec::new());
        loop {
            let (more, then) = self.heard();
            got.extend(more);
            let (bytes, counted) = self.take_payload(&mut got);
            payload.extend(bytes);
            match self.framing {
                Framing::Framed if counted.is_some() => {
                    assert_eq!(counted, Some(payload.len() as u64));
                    return payload;
                }
                Framing::Raw if then == Then::End => return payload,
                _ => assert_eq!(then, Then::Nothing, "after {} bytes", payload.len()),
            }
            self.end.readable().await.unwrap();
        }
    }

    /// So much of a session's payload, with no end behind it.
    pub(crate) async fn hear_payload(&self, bytes: usize) -> Vec<u8> {
        let (mut got, mut payload) = (Vec::new(), Vec::new());
        loop {
            let (more, then) = self.heard();
            got.extend(more);
            let (some, counted) = self.take_payload(&mut got);
            payload.extend(some);
            assert_eq!((then, counted), (Then::Nothing, None), "after {} bytes", payload.len());
            if payload.len() >= bytes {
                return payload;
            }
            self.end.readable().await.unwrap();
        }
    }

    /// A session's payload that has come, and whether a clean end stands behind it. Part of a frame may, too.
    pub(crate) fn heard_session(&self) -> (Vec<u8>, bool) {
        let (mut got, then) = self.heard();
        let (payload, counted) = self.take_payload(&mut got);
        (payload, counted.is_some() || (self.framing == Framing::Raw && then == Then::End))
    }

    /// Takes what is whole; what a Fin counted.
    fn take_payload(&self, got: &mut Vec<u8>) -> (Vec<u8>, Option<u64>) {
        if self.framing == Framing::Raw {
            return (std::mem::take(got), None);
        }
        let (mut payload, mut at, mut counted) = (Vec::new(), 0, None);
        while let Some((header, bytes, len)) = self.first(&got[at..]) {
            at += len;
            match header.opcode {
                Opcode::Binary => payload.extend(bytes),
                Opcode::Text => match Message::decode(&bytes, Speaker::Gateway, Place::Session).unwrap() {
                    Message::Fin { session, bytes } if session == SESSION => counted = Some(bytes),
                    other => panic!("{other:?} is no end of the session"),
                },
                _ => {}
            }
        }
        got.drain(..at);
        (payload, counted)
    }

    /// The first frame, if it is whole: header, payload, and how long both are.
    fn first(&self, bytes: &[u8]) -> Option<(Header, Vec<u8>, usize)> {
        let expect = if self.ours == Role::Peer { Expect::Masked } else { Expect::Unmasked };
        let (header, len) = frame::decode(bytes, expect, DATA_FRAME_BYTES_MAX).unwrap()?;
        let end = len + usize::try_from(header.payload_bytes).unwrap();
        let mut payload = bytes.get(len..end)?.to_vec();
        frame::mask(&mut payload, header.mask.unwrap_or_default(), 0);
        assert!(header.fin, "ours say each message in one frame");
        Some((header, payload, end))
    }

    /// What was heard, frame by frame.
    pub(crate) fn take_apart(&self, bytes: &[u8]) -> Vec<(Header, Vec<u8>)> {
        let (mut at, mut found) = (0, Vec::new());
        while let Some((header, payload, len)) = self.first(&bytes[at..]) {
            found.push((header, payload));
            at += len;
        }
        assert_eq!(at, bytes.len(), "the last frame is whole");
        found
    }

    /// As [`take_apart`](Self::take_apart), without what the headers say beside.
    pub(crate) fn frames(&self, bytes: &[u8]) -> Vec<(Opcode, Vec<u8>)> {
        self.take_apart(bytes).into_iter().map(|(header, payload)| (header.opcode, payload)).collect()
    }
}
