//! Role: one end of a session, in layers: the bytes of a transport, or frames on a tunnel connection around them.
//! Invariants: whoever joins two of these knows nothing of frames, messages or TLS · a direction has ended cleanly only
//! when its source said so in the way of its framing (FIN, close_notify, a `Fin` message with the right count) · payload
//! stays where it was read · the end of a message is told where there are messages, and an empty one is no end.
//! See: ARCHITECTURE.md "Framings".

use std::{future, io, ops::Range};

use narrowlink_proto::{
    ended::Why,
    id::SessionId,
    message::{Message, Place, Speaker},
    upgrade::Framing,
};

use crate::{
    transport::wire::Wire,
    tunnel::{
        conn::{Ahead, Conn, ConnError},
        deframe::Event,
    },
};

/// One end of a session.
#[derive(Clone, Copy)]
pub struct End<'a>(Layers<'a>);

#[derive(Clone, Copy)]
enum Layers<'a> {
    /// The session's bytes are the transport's: a target, a local program, or a raw tunnel connection.
    Raw(&'a Wire),
    /// The session's bytes are in WebSocket frames.
    Framed(&'a Conn, SessionId),
}

/// What stands next in bytes that were read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unframed {
    /// Payload: this part of the buffer. `ends`: so does a message, where there are messages.
    Payload { range: Range<usize>, ends: bool },
    /// The direction has ended after so many bytes, as its source says.
    Fin { bytes: u64 },
    /// Neither.
    Control,
}

impl<'a> End<'a> {
    /// A session's bytes as they are.
    pub fn raw(wire: &'a Wire) -> Self {
        Self(Layers::Raw(wire))
    }

    /// A tunnel connection, for this session.
    pub fn of(conn: &'a Conn, session: SessionId) -> Self {
        match conn.framing() {
            Framing::Raw => Self::raw(conn.wire()),
            Framing::Framed => Self(Layers::Framed(conn, session)),
        }
    }

    /// The transport below.
    pub(crate) fn wire(&self) -> &'a Wire {
        match self.0 {
            Layers::Raw(wire) => wire,
            Layers::Framed(conn, _) => conn.wire(),
        }
    }

    /// The transport, if what goes over it is the session's bytes and nothing else.
    pub(crate) fn bare(&self) -> Option<&'a Wire> {
        match self.0 {
            Layers::Raw(wire) => Some(wire),
            Layers::Framed(..) => None,
        }
    }

    /// The connection that puts payload into frames, if one does.
    pub(crate) fn framed(&self) -> Option<&'a Conn> {
        match self.0 {
            Layers::Raw(_) => None,
            Layers::Framed(conn, _) => Some(conn),
        }
    }

    /// Something was read.
    pub(crate) fn on_heard(&self) {
        if let Layers::Framed(conn, _) = self.0 {
            conn.liveness().on_heard();
        }
    }

    /// What stands next at `buf[*at..]`; `None` when all of it was looked at.
    ///
    /// # Errors
    /// What the peer must not send, or its Close.
    #[inline]
    pub(crate) fn unframe(&self, buf: &mut [u8], at: &mut usize) -> Result<Option<Unframed>, ConnError> {
        match self.0 {
            Layers::Raw(_) => {
                let range = *at..buf.len();
                *at = buf.len();
                Ok((!range.is_empty()).then_some(Unframed::Payload { range, ends: false }))
            }
            Layers::Framed(conn, session) => match conn.next_event(buf, at)? {
                Some(Event::Data { range, ends }) => Ok(Some(Unframed::Payload { range, ends })),
                Some(Event::Text(text)) => {
                    conn.wire().unread(&buf[*at..]);
                    *at = buf.len();
                    fin(&text, session).map(Some)
                }
                Some(_) => Ok(Some(Unframed::Control)),
                None => Ok(None),
            },
        }
    }

    /// Whether a read that brought nothing is the clean end of the direction.
    pub(crate) fn ends_with_transport(&self) -> bool {
        self.bare().is_some()
    }

    /// Makes room for payload: whether what came before is out.
    ///
    /// # Errors
    /// The connection's end.
    pub(crate) fn begin_write(&self) -> io::Result<bool> {
        self.framed().map_or(Ok(true), Conn::begin_frame)
    }

    /// The payload is with the transport.
    ///
    /// # Errors
    /// The connection's end.
    pub(crate) fn end_write(&self) -> io::Result<()> {
        self.framed().map_or(Ok(()), Conn::end_frame)
    }

    /// Ends our direction, after so many bytes of payload.
    ///
    /// # Errors
    /// The connection's end.
    pub(crate) async fn finish_write(&self, bytes: u64) -> io::Result<()> {
        match self.0 {
            Layers::Raw(wire) => wire.finish_write().await,
            Layers::Framed(conn, session) => {
                let fin = Message::Fin { session, bytes }.encode();
                conn.send_text(&fin).await
            }
        }
    }

    /// How a session ends when this end is reset: only plain bytes are a program's own.
    pub(crate) fn reset(&self) -> Why {
        match self.0 {
            Layers::Raw(_) => Why::Reset,
            Layers::Framed(..) => Why::Cut,
        }
    }

    /// How a session ends when this end breaks so.
    pub(crate) fn broke(&self, error: &ConnError) -> Why {
        match (self.0, error) {
            (Layers::Raw(_), ConnError::Io(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Why::Truncated,
            _ => match error.why() {
                Why::Cut => self.reset(),
                why => why,
            },
        }
    }

    /// Tells the peer what it did wrong, if it did, and if it can be told.
    pub(crate) fn tell(&self, error: &ConnError) {
        if let Layers::Framed(conn, _) = self.0 {
            conn.tell(error);
        }
    }

    /// Listens while no payload may be read, until some comes: pings are answered, and a broken connection is noticed.
    /// Where
    /// nothing can be heard beside payload, it never returns.
    pub(crate) async fn attend(&self) -> Result<Ahead, ConnError> {
        match self.0 {
            Layers::Raw(_) => future::pending().await,
            Layers::Framed(conn, _) => conn.attend().await,
        }
    }
}

fn fin(text: &[u8], session: SessionId) -> Result<Unframed, ConnError> {
    match Message::decode(text, Speaker::Client, Place::Session)? {
        Message::Fin { session: ended, bytes } if ended == session => Ok(Unframed::Fin { bytes }),
        _ => Err(ConnError::Unexpected("a message in a session that is no Fin of its own")),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_lite::future::poll_once;
    use narrowlink_proto::{
        frame::{self, FrameError, Opcode},
        message::{Channel, MessageError},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{
        net::memory::Room,
        tunnel::{
            conn::Role,
            far_end::{OTHER, ROLES, SESSION, Then, cases, fin, room_for, run, stuff, tunnel},
            liveness::Flood,
        },
    };

    /// All that stands in these bytes.
    fn unframe_all(end: &End<'_>, bytes: &mut [u8]) -> Vec<Unframed> {
        let (mut at, mut found) = (0, Vec::new());
        while let Some(one) = end.unframe(bytes, &mut at).unwrap() {
            found.push(one);
        }
        assert_eq!(at, bytes.len(), "all of it was looked at");
        found
    }

    /// What the first of these bytes are.
    fn unframe(end: &End<'_>, mut bytes: Vec<u8>) -> Result<Option<Unframed>, ConnError> {
        end.unframe(&mut bytes, &mut 0)
    }

    #[test]
    fn payload_stays_where_it_was_read_and_the_end_of_a_message_is_told() {
        for role in ROLES {
            let (conn, far) = tunnel(Framing::Framed, role, Room::default());
            let end = End::of(&conn, SESSION);
            // Beside each what it is: payload, and whether its message ends there, or nothing of the kind.
            let pieces = [
                (far.frame(Opcode::Binary, b"hello"), Some((&b"hello"[..], true))),
                (far.fragment(Opcode::Binary, b"wor"), Some((b"wor", false))),
                (far.frame(Opcode::Ping, b"hi"), None),
                (far.fragment(Opcode::Continuation, b""), None),
                (far.fragment(Opcode::Continuation, b"l"), Some((b"l", false))),
                (far.frame(Opcode::Continuation, b""), Some((b"", true))),
                (far.frame(Opcode::Pong, b""), None),
                (far.frame(Opcode::Binary, b"d"), Some((b"d", true))),
            ];
            let mut bytes = Vec::new();
            let expected: Vec<_> = pieces
                .iter()
                .map(|(piece, what)| {
                    bytes.extend_from_slice(piece);
                    match *what {
                        Some((payload, ends)) => {
                            Unframed::Payload { range: bytes.len() - payload.len()..bytes.len(), ends }
                        }
                        None => Unframed::Control,
                    }
                })
                .collect();
            assert_eq!(unframe_all(&end, &mut bytes), expected, "{role:?}");
            for (one, (_, what)) in expected.into_iter().zip(&pieces) {
                if let Unframed::Payload { range, .. } = one {
                    assert_eq!(&bytes[range], what.unwrap().0, "{role:?}");
                }
            }
            assert_eq!(far.frames(&far.heard().0), [(Opcode::Pong, b"hi".to_vec())]);
        }
    }

    #[test]
    fn an_empty_message_is_told_and_is_no_end() {
        let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
        let end = End::of(&conn, SESSION);
        let mut bytes = [far.frame(Opcode::Binary, b""), far.frame(Opcode::Binary, b"on")].concat();
        let [empty, more] = &unframe_all(&end, &mut bytes)[..] else { panic!("two messages") };
        assert!(matches!(empty, Unframed::Payload { range, ends: true } if range.is_empty()));
        assert!(matches!(more, Unframed::Payload { range, ends: true } if range.len() == 2));
        assert!(!end.ends_with_transport());
    }

    #[test]
    fn the_bytes_of_a_transport_are_payload_as_they_are_and_end_with_it() {
        for end_of_conn in [false, true] {
            let (conn, _far) = tunnel(Framing::Raw, Role::Gateway, Room::default());
            let end = if end_of_conn { End::of(&conn, SESSION) } else { End::raw(conn.wire()) };
            let mut bytes = b"\x81\x02{}".to_vec();
            assert_eq!(unframe_all(&end, &mut bytes), [Unframed::Payload { range: 0..4, ends: false }]);
            assert_eq!(bytes, b"\x81\x02{}");
            assert!(unframe_all(&end, &mut []).is_empty());
            assert!(end.ends_with_transport() && end.bare().is_some() && end.framed().is_none());
        }
    }

    #[test]
    fn only_the_session_s_own_fin_ends_a_direction() {
        let wrong = [
            Message::Fin { session: OTHER, bytes: 7 }.encode(),
            Message::Ready { session: SESSION }.encode(),
            br#"{"type":"fin","bytes":7}"#.to_vec(),
            br#"{"type":"fin_of_a_later_version"}"#.to_vec(),
            b"fin".to_vec(),
            Vec::new(),
        ];
        for role in ROLES {
            let (conn, far) = tunnel(Framing::Framed, role, Room::default());
            let found = unframe(&End::of(&conn, SESSION), far.message(&fin(7))).unwrap();
            assert_eq!(found, Some(Unframed::Fin { bytes: 7 }));
            // In two pieces, too.
            let text = fin(u64::MAX).encode();
            let mut bytes = far.fragment(Opcode::Text, &text[..20]);
            bytes.extend(far.frame(Opcode::Continuation, &text[20..]));
            let found = unframe_all(&End::of(&conn, SESSION), &mut bytes);
            assert_eq!(found, [Unframed::Control, Unframed::Fin { bytes: u64::MAX }]);

            for text in &wrong {
                let (conn, far) = tunnel(Framing::Framed, role, Room::default());
                let end = End::of(&conn, SESSION);
                let error = unframe(&end, far.frame(Opcode::Text, text)).unwrap_err();
                assert_eq!(end.broke(&error), Why::Protocol, "{error}");
                end.tell(&error);
                let close = (Opcode::Close, frame::close_payload(1002, &error.to_string()));
                assert_eq!(far.frames(&far.heard().0), [close], "{error}");
            }
        }
    }

    #[test]
    fn what_comes_behind_a_fin_is_for_whoever_has_the_connection_next() {
        run(async {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
            let next = Message::Fin { session: OTHER, bytes: 9 };
            let bytes = [far.frame(Opcode::Binary, b"last"), far.message(&fin(4)), far.message(&next)];
            let found = unframe_all(&End::of(&conn, SESSION), &mut bytes.concat());
            assert_eq!(found.last(), Some(&Unframed::Fin { bytes: 4 }));
            let heard = conn.recv(Speaker::Client, Channel::Stream).await.unwrap();
            assert_eq!(heard.encode(), next.encode());
        });
    }

    #[test]
    fn however_it_is_cut_the_messages_are_the_same() {
        let piece = (0..300usize, any::<bool>());
        for (pieces, read_bytes) in cases(&(prop::collection::vec(piece, 1..20), 1..400usize), 200) {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
            let end = End::of(&conn, SESSION);
            let (mut sent, mut bytes, mut goes_on) = (vec![Vec::new()], Vec::new(), false);
            for (n, (len, ends)) in pieces.iter().enumerate() {
                let payload = vec![u8::try_from(n).unwrap(); *len];
                let opcode = if goes_on { Opcode::Continuation } else { Opcode::Binary };
                let frame = if *ends { far.frame(opcode, &payload) } else { far.fragment(opcode, &payload) };
                bytes.extend(frame);
                sent.last_mut().unwrap().extend(payload);
                if *ends {
                    sent.push(Vec::new());
                }
                goes_on = !ends;
            }
            let mut got = vec![Vec::new()];
            for part in bytes.chunks_mut(read_bytes) {
                for one in unframe_all(&end, part) {
                    let Unframed::Payload { range, ends } = one else { continue };
                    got.last_mut().unwrap().extend_from_slice(&part[range]);
                    if ends {
                        got.push(Vec::new());
                    }
                }
            }
            assert_eq!(got, sent, "{pieces:?} in reads of {read_bytes}");
        }
    }

    #[test]
    fn how_a_session_ends_depends_on_whose_bytes_broke() {
        let io = |kind: io::ErrorKind| ConnError::from(io::Error::from(kind));
        let closed = ConnError::Closed { code: 1000, why: String::new() };
        let table = [
            (io(io::ErrorKind::ConnectionReset), Why::Reset, Why::Cut),
            (io(io::ErrorKind::BrokenPipe), Why::Reset, Why::Cut),
            (io(io::ErrorKind::UnexpectedEof), Why::Truncated, Why::Cut),
            (io(io::ErrorKind::InvalidData), Why::Protocol, Why::Protocol),
            (ConnError::Truncated, Why::Reset, Why::Cut),
            (closed, Why::Reset, Why::Reset),
            (ConnError::Frame(FrameError::Reserved), Why::Protocol, Why::Protocol),
            (ConnError::Message(MessageError::TooLong { bytes: 1 << 20 }), Why::Protocol, Why::Protocol),
            (ConnError::Flood(Flood), Why::Protocol, Why::Protocol),
            (ConnError::Unexpected("word"), Why::Protocol, Why::Protocol),
        ];
        let (raw, _far) = tunnel(Framing::Raw, Role::Gateway, Room::default());
        let (framed, _far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
        let (raw, framed) = (End::of(&raw, SESSION), End::of(&framed, SESSION));
        for (error, of_a_program, of_a_tunnel) in table {
            assert_eq!((raw.broke(&error), framed.broke(&error)), (of_a_program, of_a_tunnel), "{error}");
        }
        assert_eq!((raw.reset(), framed.reset()), (Why::Reset, Why::Cut));
    }

    #[test]
    fn an_end_is_said_in_the_way_of_its_framing() {
        run(async {
            let (raw, far) = tunnel(Framing::Raw, Role::Peer, Room::default());
            End::of(&raw, SESSION).finish_write(7).await.unwrap();
            assert_eq!(far.heard(), (Vec::new(), Then::End));
            for role in ROLES {
                let (framed, far) = tunnel(Framing::Framed, role, Room::default());
                End::of(&framed, SESSION).finish_write(7).await.unwrap();
                let (got, then) = far.heard();
                assert_eq!(far.frames(&got), [(Opcode::Text, fin(7).encode())]);
                assert_eq!(then, Then::Nothing, "the connection is for more than one session");
            }
        });
    }

    #[test]
    fn payload_waits_for_what_was_to_be_said_before_it() {
        run(async {
            let (raw, _far) = tunnel(Framing::Raw, Role::Peer, room_for(64));
            stuff(raw.wire());
            assert!(End::of(&raw, SESSION).begin_write().unwrap(), "nothing stands in front of plain bytes");
            let (framed, far) = tunnel(Framing::Framed, Role::Peer, room_for(64));
            let end = End::of(&framed, SESSION);
            stuff(framed.wire());
            framed.ping().unwrap();
            assert!(!end.begin_write().unwrap());
            far.heard();
            assert!(end.begin_write().unwrap());
            framed.ping().unwrap();
            assert_eq!(far.frames(&far.heard().0).len(), 1, "the second one waits for the frame");
            end.end_write().unwrap();
            assert_eq!(far.frames(&far.heard().0).len(), 1);
        });
    }

    #[test]
    fn while_no_payload_may_be_read_frames_are_heard_and_plain_bytes_are_not() {
        run(async {
            let (raw, far) = tunnel(Framing::Raw, Role::Peer, Room::default());
            far.say(b"payload");
            assert!(poll_once(End::of(&raw, SESSION).attend()).await.is_none());
            drop(far);
            assert!(poll_once(End::of(&raw, SESSION).attend()).await.is_none());

            let (framed, far) = tunnel(Framing::Framed, Role::Peer, Room::default());
            let end = End::of(&framed, SESSION);
            let mut attending = pin!(end.attend());
            far.say(&far.frame(Opcode::Ping, b"hi"));
            assert!(poll_once(attending.as_mut()).await.is_none());
            assert_eq!(far.frames(&far.heard().0), [(Opcode::Pong, b"hi".to_vec())]);
            far.say(&far.payload(b"payload"));
            assert_eq!(attending.await.unwrap(), Ahead::Data);
            assert!(framed.wire().has_unread());
        });
    }
}
