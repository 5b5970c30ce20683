//! Role: a parked lane's way to another worker.
//! Invariants: a full mailbox costs a hand-over, never a connection's bytes.

use std::{io, time::Duration};

use narrowlink_proto::id::LinkId;

use crate::{
    gateway::{
        lane::IdleLane,
        local::Local,
        mailbox::{LaneParts, Note},
        table::Seat,
    },
    run::timer::timeout,
    tunnel::quiet::Quiet,
};

/// How long another worker may take to answer; beyond it a new lane is quicker.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);

/// Hands a quiet lane to another worker; gives it back when that one's mailbox is full.
pub(crate) fn hand_over(local: &Local, lane: IdleLane, worker: usize) -> Option<IdleLane> {
    match disassemble(lane) {
        Ok(parts) => match local.shared.mailboxes.tell(worker, Note::Lane(parts)) {
            Err(Note::Lane(parts)) => assemble(local, parts).ok(),
            _ => None,
        },
        Err(e) => {
            tracing::debug!("a lane can't be handed over: {e}");
            None
        }
    }
}

/// Asks another worker for a parked lane.
pub(crate) async fn ask_for_lane(local: &Local, worker: usize, link: LinkId) -> Option<IdleLane> {
    let (reply, given) = async_channel::bounded(1);
    local.shared.mailboxes.tell(worker, Note::WantLane { link, reply }).ok()?;
    let parts = timeout(ANSWER_TIMEOUT, given.recv()).await;
    // What comes too late goes back: closing tells the other worker.
    given.close();
    match parts {
        Ok(Ok(parts)) => assemble(local, parts).ok(),
        _ => assemble(local, given.try_recv().ok()?).ok(),
    }
}

/// A lane as it travels.
///
/// # Errors
/// Out of descriptors; the lane is lost then.
pub(crate) fn disassemble(lane: IdleLane) -> io::Result<LaneParts> {
    Ok(LaneParts { conn: lane.conn.into_parts()?, entry: lane.entry, slot: lane.slot })
}

/// A lane that has arrived here.
///
/// # Errors
/// The system's, when its descriptor can't be registered.
pub(crate) fn assemble(local: &Local, parts: LaneParts) -> io::Result<IdleLane> {
    let conn = Quiet::from_parts(parts.conn)?;
    let seat = Seat::for_lane(&local.table, &parts.entry.principal);
    Ok(IdleLane { conn, entry: parts.entry, seat, slot: parts.slot })
}
