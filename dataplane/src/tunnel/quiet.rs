//! Role: a connection on which no message is under way, as a type: the only kind that is parked, goes to another
//! worker, or is taken apart.
//! Invariants: made by looking, never by assumption · what was read of a control frame, and control frames that
//! wait, go along: nothing is lost wherever the network cut.
//! See: `lane`, `handover`.

use std::{io, ops::Deref};

use crate::{
    transport::wire::Wire,
    tunnel::conn::{Conn, ConnParts},
};

/// A quiet connection. It can be talked to (a ping does no harm), but who needs it in the middle of something has
/// to [`wake`](Self::wake) it first, and to look again afterwards.
pub struct Quiet(Box<Conn>);

/// A quiet connection on its way to another thread.
pub struct QuietParts(ConnParts);

impl Quiet {
    /// The connection as a quiet one, if it is; else it comes back as it was.
    ///
    /// # Errors
    /// A message is under way, a frame half written, or a Close was said: it can serve no other user.
    pub fn of(conn: Box<Conn>) -> Result<Self, Box<Conn>> {
        if conn.is_quiet() { Ok(Self(conn)) } else { Err(conn) }
    }

    /// The connection, for its next user.
    pub fn wake(self) -> Box<Conn> {
        self.0
    }

    /// The bytes below, for another protocol's machinery; `None` when a part of a frame was read already, or is
    /// still to be sent.
    pub fn into_wire(self) -> Option<Wire> {
        self.0.into_bare()
    }

    /// Takes it apart for its way to another thread.
    ///
    /// # Errors
    /// Out of descriptors; the connection is lost then.
    pub fn into_parts(self) -> io::Result<QuietParts> {
        self.0.into_parts().map(QuietParts)
    }

    /// Puts it together again.
    ///
    /// # Errors
    /// The system's; the connection is lost then.
    pub fn from_parts(parts: QuietParts) -> io::Result<Self> {
        Conn::from_parts(parts.0).map(|conn| Self(Box::new(conn)))
    }
}

impl Deref for Quiet {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
    };

    use futures_lite::future;
    use narrowlink_proto::{frame, upgrade::Framing};

    use super::*;
    use crate::{net::plain::Plain, run::worker::run_alone, tunnel::conn::Role};

    fn pair() -> (UnixStream, Box<Conn>) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let wire = Wire::from(Plain::adopt(ours.into()).unwrap());
        (theirs, Box::new(Conn::new(wire, Framing::Framed, Role::Peer, 1)))
    }

    /// Has the connection read what is there.
    async fn hear(conn: &Conn) {
        assert!(future::poll_once(conn.attend()).await.is_none(), "nothing is due");
    }

    #[test]
    fn a_ping_cut_anywhere_is_answered_whoever_has_the_connection_by_then() {
        let ping = [0x89, 4, b'p', b'i', b'n', b'g'];
        run_alone(false, |_| async move {
            for cut in 0..ping.len() {
                let (mut theirs, conn) = pair();
                theirs.write_all(&ping[..cut]).unwrap();
                hear(&conn).await;
                let parts = Quiet::of(conn).ok().unwrap().into_parts().unwrap();
                let moved = Quiet::from_parts(parts).unwrap();
                theirs.write_all(&ping[cut..]).unwrap();
                moved.wire().readable().await.unwrap();
                hear(&moved).await;
                let mut pong = [0; 10];
                theirs.read_exact(&mut pong).unwrap();
                assert_eq!(pong[..2], [0x8A, 0x84], "cut at {cut}");
                let key = [pong[2], pong[3], pong[4], pong[5]];
                frame::mask(&mut pong[6..], key, 0);
                assert_eq!(&pong[6..], b"ping", "cut at {cut}");
                assert!(Quiet::of(moved.wake()).ok().unwrap().into_wire().is_some());
            }
        })
        .unwrap();
    }

    #[test]
    fn what_is_in_the_middle_of_a_message_is_not_quiet() {
        // A text half read, a text in fragments, a Close.
        let middles: [&[u8]; 3] = [&[0x81, 2, b'{'], &[0x01, 1, b'{'], &[0x88, 0]];
        run_alone(false, |_| async move {
            for middle in middles {
                let (mut theirs, conn) = pair();
                theirs.write_all(middle).unwrap();
                let _ = future::poll_once(conn.attend()).await;
                assert!(Quiet::of(conn).is_err(), "{middle:?}");
            }
            let (_theirs, conn) = pair();
            assert!(conn.begin_frame().unwrap());
            assert!(Quiet::of(conn).is_err(), "a frame half written");
        })
        .unwrap();
    }

    #[test]
    fn half_a_control_frame_keeps_the_bytes_below_in_their_place() {
        run_alone(false, |_| async move {
            let (mut theirs, conn) = pair();
            theirs.write_all(&[0x89]).unwrap();
            hear(&conn).await;
            assert!(Quiet::of(conn).ok().unwrap().into_wire().is_none());
        })
        .unwrap();
    }
}
