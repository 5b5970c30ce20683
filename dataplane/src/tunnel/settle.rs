//! Role: the word after a session, by which its tunnel connection is ready for the next.
//! Invariants: it is said only behind everything that the session sent, and heard before the connection serves again ·
//! a slow peer is waited for while it is there.
//! See: ARCHITECTURE.md "Framings" and "Delivered".

use futures_lite::future;
use narrowlink_proto::{
    ended::{Ended, Side, Why},
    id::SessionId,
    message::{Channel, Message, Speaker},
};

use crate::{
    run::timer::sleep,
    tunnel::{
        conn::{Conn, ConnError},
        end::End,
        watch::{WATCH_EVERY, look_at},
    },
};

/// Waits for the word that a finished session's connection is ready for its next: `by` has
/// delivered everything then. However slowly that goes, it is waited for while the peer is there.
///
/// # Errors
/// The connection broke, or something else was said: nobody knows whether all was delivered.
pub async fn settled(conn: &Conn, session: SessionId, speaker: Speaker, by: Side) -> Result<(), Ended> {
    let channel = if speaker == Speaker::Agent { Channel::Lane } else { Channel::Stream };
    let word = async {
        match conn.recv(speaker, channel).await {
            Ok(Message::Ready { session: ended }) if ended == session && conn.is_quiet() => Ok(()),
            Ok(_) => Err(Ended { by, why: Why::Protocol }),
            Err(e) => Err(Ended { by, why: e.why() }),
        }
    };
    future::or(word, lost(conn, session, by)).await
}

/// Says this word, behind all that the peer has still to take: however slowly that goes, while the peer is there.
///
/// # Errors
/// The connection broke: nobody knows whether all was delivered.
pub async fn settle(conn: &Conn, session: SessionId, by: Side) -> Result<(), Ended> {
    let word = Message::Ready { session }.encode();
    let said = async {
        let said = conn.send_text(&word).await;
        said.map_err(|e| Ended { by, why: ConnError::from(e).why() })
    };
    future::or(said, lost(conn, session, by)).await
}

/// Returns when the peer of a finished session's connection is gone.
async fn lost(conn: &Conn, session: SessionId, by: Side) -> Result<(), Ended> {
    loop {
        sleep(WATCH_EVERY).await;
        look_at(&End::of(conn, session), by, true)?;
    }
}

#[cfg(test)]
mod tests {
    use std::{io::IoSlice, pin::pin};

    use futures_lite::future::zip;
    use narrowlink_proto::upgrade::Framing;

    use super::*;
    use crate::{
        net::memory::{Memory, Room},
        run::worker::run_alone,
        transport::wire::Wire,
        tunnel::conn::Role,
    };

    const SESSION: SessionId = SessionId::from_bytes([7; 32]);

    fn pair() -> (Conn, Conn) {
        let (near, far) = Memory::pair(Room { bytes: 4096, call_bytes: 7 });
        let conn = |end: Memory, role| Conn::new(end.into(), Framing::Framed, role, 1);
        (conn(near, Role::Gateway), conn(far, Role::Peer))
    }

    #[test]
    fn the_word_of_the_right_session_settles_it_and_no_other_does() {
        run_alone(false, |_| async {
            let (gateway, agent) = pair();
            let heard = settled(&gateway, SESSION, Speaker::Agent, Side::Target);
            assert_eq!(zip(settle(&agent, SESSION, Side::Client), heard).await, (Ok(()), Ok(())));
            let other = SessionId::from_bytes([8; 32]);
            let heard = settled(&gateway, SESSION, Speaker::Agent, Side::Target);
            let wrong = Err(Ended { by: Side::Target, why: Why::Protocol });
            assert_eq!(zip(settle(&agent, other, Side::Client), heard).await, (Ok(()), wrong));
        })
        .unwrap();
    }

    #[test]
    fn the_word_waits_for_a_peer_that_has_paused() {
        run_alone(false, |_| async {
            let (near, far) = Memory::pair(Room { bytes: 64, call_bytes: 64 });
            let (conn, peer) = (Conn::new(near.into(), Framing::Framed, Role::Gateway, 0), Wire::from(far));
            conn.wire().try_write(&[IoSlice::new(&[0; 64])]).unwrap();
            let mut settling = pin!(settle(&conn, SESSION, Side::Client));
            assert!(future::poll_once(settling.as_mut()).await.is_none(), "there is no room for it");
            let word = Message::Ready { session: SESSION }.encode();
            let reading = async {
                let mut got = Vec::new();
                while got.len() < 66 + word.len() {
                    let mut buf = [0; 64];
                    let n = peer.read(&mut buf).await.unwrap();
                    got.extend_from_slice(&buf[..n]);
                }
                got.split_off(66)
            };
            assert_eq!(zip(settling, reading).await, (Ok(()), word.clone()));
        })
        .unwrap();
    }

    #[test]
    fn a_connection_that_breaks_settles_nothing() {
        run_alone(false, |_| async {
            let (gateway, agent) = pair();
            drop(agent);
            let cut = Err(Ended { by: Side::Target, why: Why::Cut });
            assert_eq!(settled(&gateway, SESSION, Speaker::Agent, Side::Target).await, cut);
        })
        .unwrap();
    }
}
