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
    /// Returns only when it breaks, or `None` where nothing can be heard beside payload.
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
