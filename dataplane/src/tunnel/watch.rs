//! Role: whether a session's peers are still there, as far as that shows without reading their payload.
//! Invariants: a peer that reads slowly is there · so is a paused program, as long as its kernel answers and it has
//! payload to read · a silent tunnel connection is pinged before something between cuts it.
//! See: `liveness`; `link` and `gateway::link`, which notice an agent that hangs; tcp(7), TCP_INFO.

use std::time::Duration;

use narrowlink_proto::{
    ended::{Ended, Side, Why},
    limits::QUIET_PING_INTERVAL,
};

use crate::{
    run::timer::sleep,
    transport::wire::Wire,
    tunnel::{
        conn::{Conn, Role},
        end::End,
    },
};

/// A framed connection silent for so long is pinged: CDNs cut at 60 s.
const PING_AFTER: Duration = QUIET_PING_INTERVAL;
/// How often a session looks whether its peers are still there.
pub(crate) const WATCH_EVERY: Duration = Duration::from_secs(5);
/// A peer that owes an answer for so long is gone.
const VANISHED_AFTER: Duration = Duration::from_secs(8);
/// A peer that has nothing to read but a ping, and does not answer it for so long, hangs.
const HUNG_AFTER: Duration = Duration::from_secs(10);
/// The same for a client at its gateway: a person may have stopped it for a while (Ctrl-Z).
const CLIENT_HUNG_AFTER: Duration = Duration::from_secs(300);

/// Returns when the peer of a connection is gone, as far as that shows without reading.
pub async fn gone(conn: &Conn, by: Side) -> Ended {
    loop {
        sleep(WATCH_EVERY).await;
        if let Err(ended) = stands(conn.wire(), by, Some(Why::Cut)) {
            return ended;
        }
    }
}

/// Whether the peer of a connection is still there, as its kernel says; what a `reset` is, where one counts.
fn stands(wire: &Wire, by: Side, reset: Option<Why>) -> Result<(), Ended> {
    if wire.peer_vanished(VANISHED_AFTER) {
        return Err(Ended { by, why: Why::Vanished });
    }
    // A reset that follows a FIN is no event for a direction that is not read any more.
    match reset {
        Some(why) if wire.is_reset() => Err(Ended { by, why }),
        _ => Ok(()),
    }
}

/// Whether the peer at one end of a session is still there; pings it when it has been silent.
///
/// # Errors
/// It is gone: how the session has ended.
pub(crate) fn look_at(end: &End<'_>, by: Side, reset_counts: bool) -> Result<(), Ended> {
    stands(end.wire(), by, reset_counts.then(|| end.reset()))?;
    match end.framed() {
        Some(conn) => look_at_conn(conn, by),
        None => Ok(()),
    }
}

fn look_at_conn(conn: &Conn, by: Side) -> Result<(), Ended> {
    let a_person_s = by == Side::Client && conn.role() == Role::Gateway;
    let hung_after = if a_person_s { CLIENT_HUNG_AFTER } else { HUNG_AFTER };
    let live = conn.liveness();
    // What this side has not read may be the answer: its own sink may have paused.
    if live.is_hung(hung_after) && !conn.wire().has_unread() {
        return Err(Ended { by, why: Why::Vanished });
    }
    let ok =
        if live.rest() >= PING_AFTER { conn.ping() } else { conn.try_flush_control().map_err(Into::into) };
    ok.map_err(|e| Ended { by, why: e.why() })
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{id::SessionId, upgrade::Framing};

    use super::*;
    use crate::{
        net::memory::{Memory, Room},
        run::worker::run_alone,
    };

    #[test]
    fn a_peer_behind_a_pulled_cable_is_gone_and_one_that_is_silent_is_not() {
        run_alone(false, |_| async {
            let (ours, _theirs) = Memory::pair(Room::default());
            let cable = ours.cable();
            let conn = Conn::new(ours.into(), Framing::Framed, Role::Peer, 1);
            let end = End::of(&conn, SessionId::from_bytes([1; 32]));
            assert_eq!(look_at(&end, Side::Target, true), Ok(()));
            cable.unplug();
            assert_eq!(
                look_at(&end, Side::Target, true),
                Err(Ended { by: Side::Target, why: Why::Vanished })
            );
        })
        .unwrap();
    }

    #[test]
    fn a_reset_counts_only_where_nothing_is_in_hand_and_says_whose_it_was() {
        run_alone(false, |_| async {
            for (framing, why) in [(Framing::Framed, Why::Cut), (Framing::Raw, Why::Reset)] {
                let (ours, theirs) = Memory::pair(Room::default());
                let conn = Conn::new(ours.into(), framing, Role::Peer, 1);
                drop(theirs);
                let end = End::of(&conn, SessionId::from_bytes([1; 32]));
                assert_eq!(
                    look_at(&end, Side::Client, true),
                    Err(Ended { by: Side::Client, why }),
                    "{framing:?}"
                );
            }
            let (ours, theirs) = Memory::pair(Room::default());
            let wire = Wire::from(ours);
            drop(theirs);
            assert_eq!(look_at(&End::raw(&wire), Side::Client, false), Ok(()));
        })
        .unwrap();
    }
}
