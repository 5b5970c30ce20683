//! Role: a parked lane's way to another worker.
//! Invariants: a full mailbox costs a hand-over, never a connection's bytes.
//! See: `parking` (`take`), which asks; `attend`, which answers; ARCHITECTURE.md "Lanes".

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

#[cfg(test)]
mod tests {
    use std::thread;

    use futures_lite::future;
    use narrowlink_proto::{limits::Limits, message::Channel, upgrade::Framing};
    use std::time::Instant;

    use super::*;
    use crate::{
        gateway::{
            attend::attend,
            kit::{self, Gateway, Peer, Worker, turns, until},
            parking::{park, take},
            table::Kind,
        },
        net::memory::{Memory, Room},
        run::worker::{run_alone, spawn},
    };

    /// A peer's frames are masked; this key changes nothing.
    const PING: [u8; 10] = [0x89, 0x84, 0, 0, 0, 0, b'p', b'i', b'n', b'g'];
    const PONG: [u8; 6] = [0x8A, 4, b'p', b'i', b'n', b'g'];

    fn two_workers() -> [Worker; 2] {
        let gateway = Gateway::new(Limits::default(), 2);
        [0, 1].map(|index| gateway.worker(index))
    }

    /// What the agent reads while the gateway has its lane.
    async fn read<const N: usize>(peer: &Peer, lane: &IdleLane) -> [u8; N] {
        let mut got = [0; N];
        let reading = async {
            let mut have = 0;
            while have < N {
                let bytes = peer.conn.wire().read(&mut got[have..]).await.unwrap();
                assert!(bytes > 0, "the gateway closed it");
                have += bytes;
            }
        };
        future::or(reading, async { panic!("nothing is due: {:?}", lane.conn.attend().await) }).await;
        got
    }

    #[test]
    fn a_lane_goes_to_the_worker_that_asks_with_what_was_read_of_a_frame() {
        kit::run(async {
            for cut in 0..=PING.len() {
                let [here, there] = two_workers();
                let agent = here.agent();
                let peer = there.park(&agent, Framing::Framed);
                spawn(attend(there.local.clone(), Vec::new()));
                peer.write(&PING[..cut]).await;
                turns().await;
                let lane = ask_for_lane(&here.local, 1, agent.entry.link).await.unwrap();
                assert_eq!([&here, &there].map(|worker| worker.count(Kind::Lane)), [1, 0]);
                peer.write(&PING[cut..]).await;
                assert_eq!(read(&peer, &lane).await, PONG, "cut at {cut}");
            }
        });
    }

    #[test]
    fn a_lane_is_taken_from_another_thread_and_works_on_this_one() {
        let gateway = Gateway::new(Limits::default(), 2);
        let agent = gateway.agent();
        let (ours, theirs) = Memory::pair(Room::default());
        let elsewhere = {
            let (gateway, entry) = (gateway.clone(), agent.entry.clone());
            thread::spawn(move || {
                run_alone(false, |_| async move {
                    let (worker, orders) = (gateway.worker(1), async_channel::bounded(1).1);
                    let lane = worker.lane_over(ours, &kit::Agent { entry, orders }, Framing::Framed);
                    park(&worker.local, lane.idle().ok().unwrap());
                    attend(worker.local.clone(), Vec::new()).await;
                })
            })
        };
        kit::run(async {
            let (worker, entry) = (gateway.worker(0), &agent.entry);
            let peer = Peer::new(theirs.into(), Framing::Framed, Channel::Lane);
            until(|| entry.richest_but(0) == Some(1)).await;
            let deadline = Instant::now() + Duration::from_secs(10);
            let lane = take(&worker.local, entry, deadline).await.unwrap();
            assert_eq!((entry.richest_but(0), worker.count(Kind::Lane)), (None, 1));
            lane.conn.close(1000, "from another thread");
            assert_eq!(peer.close().await, (1000, "from another thread".to_owned()));
        });
        assert!(gateway.shared.mailboxes.tell(1, Note::Stop).is_ok());
        elsewhere.join().unwrap().unwrap();
    }

    #[test]
    fn a_full_mailbox_costs_a_hand_over_and_no_lane() {
        kit::run(async {
            let [here, there] = two_workers();
            while here.shared.mailboxes.tell(1, Note::Judge).is_ok() {}
            let agent = here.agent();
            let (lane, peer) = here.lane(&agent, Framing::Framed);
            peer.write(&PING[..3]).await;
            let lane = hand_over(&here.local, lane.idle().ok().unwrap(), 1).unwrap();
            assert_eq!([&here, &there].map(|worker| worker.count(Kind::Lane)), [1, 0]);
            peer.write(&PING[3..]).await;
            assert_eq!(read(&peer, &lane).await, PONG);
            assert!(ask_for_lane(&here.local, 1, agent.entry.link).await.is_none());
        });
    }

    #[test]
    fn a_worker_that_answers_too_late_or_never_is_not_waited_for_and_learns_that() {
        kit::run(async {
            let [here, there] = two_workers();
            let agent = here.agent();
            let mailbox = there.shared.mailboxes.of(1);
            let begun = Instant::now();
            assert!(ask_for_lane(&here.local, 1, agent.entry.link).await.is_none());
            assert!(begun.elapsed() >= ANSWER_TIMEOUT);
            let Ok(Note::WantLane { link, reply }) = mailbox.try_recv() else { panic!("it was asked") };
            assert!(link == agent.entry.link && reply.is_closed(), "what comes now goes back");
            // One whose thread is gone drops what it was asked.
            let gone = async {
                drop(mailbox.recv().await);
                future::pending().await
            };
            let begun = Instant::now();
            let asking = async { ask_for_lane(&here.local, 1, agent.entry.link).await.is_none() };
            assert!(future::or(gone, asking).await && begun.elapsed() < ANSWER_TIMEOUT);
        });
    }
}
