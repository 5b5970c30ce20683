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
    use std::thread;

    use futures_lite::future::poll_once;
    use narrowlink_proto::{
        frame::Opcode,
        message::{Channel, Speaker},
        upgrade::Framing,
    };

    use super::*;
    use crate::{
        net::memory::Room,
        tunnel::{
            conn::Role,
            far_end::{FarEnd, ROLES, attend_to_all, fin, room_for, run, say_the_rest, stuff, tunnel},
        },
    };

    fn pair(role: Role) -> (Box<Conn>, FarEnd) {
        let (conn, far) = tunnel(Framing::Framed, role, Room::default());
        (Box::new(conn), far)
    }

    fn quiet(conn: Box<Conn>) -> Quiet {
        Quiet::of(conn).ok().expect("it is quiet")
    }

    #[test]
    fn a_ping_cut_anywhere_is_answered_on_whichever_thread_the_connection_is_by_then() {
        run(async {
            let mut moving = Vec::new();
            for role in ROLES {
                let ping = pair(role).1.frame(Opcode::Ping, b"ping");
                for cut in 0..ping.len() {
                    let (conn, far) = pair(role);
                    far.say(&ping[..cut]);
                    attend_to_all(&conn).await;
                    moving.push((quiet(conn).into_parts().unwrap(), far, ping[cut..].to_vec()));
                }
            }
            let there = move || {
                run(async {
                    for (parts, far, rest) in moving {
                        let moved = Quiet::from_parts(parts).unwrap();
                        far.say(&rest);
                        attend_to_all(&moved).await;
                        assert_eq!(far.frames(&far.heard().0), [(Opcode::Pong, b"ping".to_vec())]);
                        assert!(quiet(moved.wake()).into_wire().is_some());
                    }
                });
            };
            thread::spawn(there).join().unwrap();
        });
    }

    #[test]
    fn what_waits_to_be_said_and_what_was_read_too_early_goes_along() {
        run(async {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, room_for(512));
            let nonsense = stuff(conn.wire());
            conn.ping().unwrap();
            far.say(&far.message(&fin(7)));
            conn.attend().await.unwrap();
            let parts = quiet(Box::new(conn)).into_parts().unwrap();
            let moved = quiet(Quiet::from_parts(parts).unwrap().wake());
            let mut got = far.heard().0;
            say_the_rest(&moved).await;
            got.extend(far.heard().0);
            assert_eq!(far.frames(&got[nonsense..]), [(Opcode::Ping, Vec::new())]);
            let heard = moved.recv(Speaker::Client, Channel::Stream).await.unwrap();
            assert_eq!(heard.encode(), fin(7).encode());
        });
    }

    #[test]
    fn what_is_in_the_middle_of_a_message_is_not_quiet_and_comes_back_as_it_was() {
        type Middle = fn(&FarEnd) -> Vec<u8>;
        let middles: [(&str, Middle); 6] = [
            ("a text half read", |far| far.message(&fin(7))[..20].to_vec()),
            ("a text in fragments", |far| far.fragment(Opcode::Text, b"{")),
            ("data half read", |far| far.frame(Opcode::Binary, &[7; 9])[..8].to_vec()),
            ("data in fragments", |far| far.fragment(Opcode::Binary, b"")),
            ("a ping within a message", |far| {
                [far.fragment(Opcode::Text, b"{"), far.frame(Opcode::Ping, b"hi")].concat()
            }),
            ("a Close", |far| far.frame(Opcode::Close, b"")),
        ];
        run(async {
            for role in ROLES {
                for (what, middle) in middles {
                    let (conn, far) = pair(role);
                    far.say(&middle(&far));
                    let _ = poll_once(conn.attend()).await;
                    let back = Quiet::of(conn).err().expect(what);
                    assert!(!back.is_quiet());
                }
                let (conn, _far) = pair(role);
                assert!(conn.begin_frame().unwrap());
                let back = Quiet::of(conn).err().expect("a frame half written");
                back.end_frame().unwrap();
                assert!(Quiet::of(back).is_ok(), "it is whole now");
                let (conn, _far) = pair(role);
                conn.say_close(1000, "bye");
                assert!(Quiet::of(conn).is_err(), "a Close was said");
            }
        });
    }

    #[test]
    fn half_a_control_frame_keeps_the_bytes_below_in_their_place() {
        run(async {
            for role in ROLES {
                let (conn, far) = pair(role);
                far.say(&far.frame(Opcode::Ping, b"hi")[..1]);
                attend_to_all(&conn).await;
                assert!(quiet(conn).into_wire().is_none(), "half of the peer's");
                let (conn, far) = tunnel(Framing::Framed, role, room_for(1));
                conn.ping().unwrap();
                assert!(quiet(Box::new(conn)).into_wire().is_none(), "half of ours");
                drop(far);
            }
        });
    }
}
