//! Role: a lane that ends at the gateway: a session over it measures the way to here.
//! Invariants: it is decided about, counted and noted as any other session · it is never parked: it is raw, and serves one session.
//! See: `tunnel::measure`; `admit`, which takes it in place of an agent's lane.

use std::{rc::Rc, sync::Arc};

use narrowlink_proto::{
    measure::How,
    message::{Channel, Message, Speaker},
    upgrade::Framing,
};

use crate::{
    gateway::{directory::AgentEntry, lane::Lane, local::Local, table::Seat, usage::Slot},
    net::memory::Memory,
    relay::{Traffic, relay},
    run::{budget::Share, worker::spawn},
    transport::wire::Wire,
    tunnel::{
        conn::{Conn, ConnError, Role},
        end::End,
        measure::{ROOM, far_end_of},
    },
};

/// Such a lane, beside those of this agent. No connection of the agent's is behind it, so that it counts as none.
pub(crate) fn lane(local: &Rc<Local>, entry: &Arc<AgentEntry>, how: How) -> Lane {
    let (slot, seat) = (Slot::uncounted(), Seat::for_lane(&local.table, &entry.principal));
    // Its user's own connections wait for turns, and nobody else's.
    let share = Share::of(entry.principal.uid);
    let (near, far) = Memory::pair(ROOM);
    let conn = |end: Memory, role| {
        let wire = Wire::from(end);
        wire.account().belongs_to(share);
        Conn::new(wire, Framing::Raw, role, 1)
    };
    let (near, far) = (Box::new(conn(near, Role::Gateway)), conn(far, Role::Peer));
    spawn(async move {
        if let Err(e) = serve(far, how, share).await {
            tracing::debug!("a measurement ended early: {e}");
        }
    });
    Lane { conn: near, entry: entry.clone(), seat, slot }
}

/// Does what an agent would.
async fn serve(conn: Conn, how: How, share: Share) -> Result<(), ConnError> {
    let Message::Dial(dial) = conn.recv(Speaker::Gateway, Channel::Lane).await? else {
        return Err(ConnError::Unexpected("something else where Dial was due"));
    };
    conn.send(&Message::Dialled { session: dial.session, e2ee: None }).await?;
    let target = Wire::from(far_end_of(share, how));
    // Broken, both are dropped, which resets them.
    if relay(End::of(&conn, dial.session), End::raw(&target), &Traffic::default()).await.is_ok() {
        target.close_gently();
        conn.close_gently();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{
        ended::RefusalCode,
        feature::{Feature, Features},
        limits::Limits,
        measure::{Measure, Station},
        message::Open,
        target::Target,
    };

    use super::*;
    use crate::gateway::{
        kit::{self, session, until},
        table::Kind,
    };

    fn open(n: u8, at: Station) -> Open {
        let target = Target::Measure(Measure { at, how: How::Echo });
        Open { target, ..kit::open(n) }
    }

    #[test]
    fn a_measurement_that_ends_here_asks_no_agent_and_leaves_nothing() {
        kit::run(async {
            let worker = kit::worker(Limits::default());
            let agent = worker.agent_as(&worker.home, Features::NONE.with(Feature::Measure));
            let parked = worker.park(&agent, Framing::Framed);
            let (standing, opened) =
                worker.ask(&worker.laptop, open(1, Station::Gateway)).await.ok().unwrap();
            assert_eq!(opened.session, session(1));
            assert_eq!(worker.count(Kind::Lane), 2, "it has a place of its own");
            drop(standing);
            until(|| worker.count(Kind::Lane) == 1).await;
            let (got, dial) = futures_lite::future::zip(
                worker.ask(&worker.laptop, open(2, Station::Agent)),
                parked.accept(),
            )
            .await;
            assert!(got.is_ok() && dial.session == session(2), "the agent heard of the second alone");
        });
    }

    #[test]
    fn an_agent_of_an_older_version_is_not_asked() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let _lane = worker.park(&agent, Framing::Framed);
            for (n, at) in [(1, Station::Gateway), (2, Station::Agent)] {
                let refused = worker.ask(&worker.laptop, open(n, at)).await.err().unwrap();
                assert_eq!(refused.code, RefusalCode::Unsupported);
                assert!(refused.reason.contains("the agent home answers no measurements"), "{refused}");
            }
        });
    }
}
