//! Role: parks lanes, and finds one for a session.
//! Invariants: a lane is in exactly one place: parked, on its way, or in a session · only a quiet
//! connection is parked · a session waits in order and with a deadline · a lane found dead before
//! its Dial was written is replaced without anybody noticing · an agent's lane is closed here first, so
//! no Dial is written to one that its agent has closed.
//! See: `lane`, the book of them; ARCHITECTURE.md "Lanes".

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    id::LinkId,
    message::{Channel, Message, Speaker},
    upgrade::Framing,
};

use crate::{
    gateway::{
        directory::AgentEntry,
        handover::{ask_for_lane, hand_over},
        lane::{IdleLane, Lane},
        local::Local,
    },
    run::{
        timer::{sleep_until, timeout_at},
        worker::spawn,
    },
    tunnel::conn::Conn,
};

/// When sessions beyond those that may wait may ask again: by then some have their lanes.
const WAITING_RETRY: Duration = Duration::from_millis(200);

/// Where a lane that has just arrived is needed most: a worker where sessions wait, or the one
/// that has fewest.
pub(crate) fn place(local: &Rc<Local>, lane: IdleLane) {
    let elsewhere = if local.lanes.borrow().has_waiting(lane.entry.link) {
        None
    } else {
        lane.entry.waiting_but(local.index).or_else(|| lane.entry.poorer_than(local.index))
    };
    match elsewhere {
        Some(worker) => {
            if let Some(lane) = hand_over(local, lane, worker) {
                park(local, lane);
            }
        }
        None => park(local, lane),
    }
}

/// Gives the lane to whoever waits, else parks it here.
pub fn park(local: &Rc<Local>, mut lane: IdleLane) {
    if local.stopping.get() {
        return lane.conn.wake().close(1001, "the gateway shuts down");
    }
    let link = lane.entry.link;
    loop {
        let waiting = local.lanes.borrow_mut().pop_waiting(link);
        let Some(waiting) = waiting else { break };
        match waiting.try_send(lane) {
            Ok(()) => return,
            // Its session has given up: the next one.
            Err(unsent) => lane = unsent.into_inner(),
        }
    }
    let (number, call) = local.lanes.borrow_mut().add(&lane.entry, local.index);
    look_for_waiting(local, &lane.entry);
    let local = local.clone();
    // What comes meanwhile is heard: whether it is idle then is to be seen.
    let lane = lane.wake();
    spawn(async move {
        let called = async { Ok(call.heard().await) };
        let broke = async { Err(hold(&local, &lane).await) };
        match future::or(called, broke).await {
            Ok(Some(reply)) => match lane.idle() {
                Ok(lane) => {
                    if let Err(unsent) = reply.try_send(lane) {
                        park(&local, unsent.into_inner());
                    }
                }
                Err(lane) => lane.conn.close(1002, "half a message on a lane without a session"),
            },
            // Broken, or forgotten: a parked lane holds nothing that counts.
            Ok(None) => lane.conn.close(1001, "this lane is not needed any more"),
            Err((code, why)) => {
                local.lanes.borrow_mut().remove(link, number);
                lane.conn.close(code, why);
            }
        }
    });
}

/// A session of another worker may have begun to wait while a lane was parked here: then it goes
/// there. (See the order of the gauges in `directory`.)
fn look_for_waiting(local: &Rc<Local>, entry: &AgentEntry) {
    let Some(worker) = entry.waiting_but(local.index) else { return };
    let (local, link) = (local.clone(), entry.link);
    spawn(async move {
        if let Some(lane) = take_parked(&local, link).await
            && let Some(lane) = hand_over(&local, lane, worker)
        {
            park(&local, lane);
        }
    });
}

/// For an agent that lets a lane go.
const RETIRED: &str = "this lane is not needed any more";

/// Returns when a parked lane can't be used any more, with the close code and the words; pings it meanwhile.
async fn hold(local: &Local, lane: &Lane) -> (u16, &'static str) {
    let interval = local.shared.limits().quiet_ping_interval;
    let pings = async {
        loop {
            let due = lane.conn.heard_at() + interval;
            sleep_until(due.max(Instant::now() + interval / 5)).await;
            let silent = lane.conn.heard_at().elapsed();
            if gave_no_answer(&lane.conn, interval) || (silent >= interval && lane.conn.ping().is_err()) {
                return (1001, "no answer to a ping");
            }
        }
    };
    // All that an agent has to say on a parked lane is that it retires it: whatever comes ends the lane. It
    // is out of the table before anything is answered, so nobody picks a lane whose agent was let go.
    let broke = async {
        match lane.conn.framing() {
            Framing::Framed => {}
            Framing::Raw => {
                drop(lane.conn.wire().readable().await);
                return (1001, RETIRED);
            }
        }
        match lane.conn.recv(Speaker::Agent, Channel::Lane).await {
            Ok(Message::Retire) => (1001, RETIRED),
            // A fault of the agent's has been said already.
            Ok(_) | Err(_) => (1002, "nothing but its retirement is due on a lane without a session"),
        }
    };
    let dismissed = async {
        lane.seat.dismissed().await;
        (1008, "the agent's link is gone, or its token does not hold any more")
    };
    future::or(future::or(broke, dismissed), pings).await
}

/// Whether nobody is there: after two intervals of silence, and a ping in it. A process that stood still has sent
/// none in time: it is yet to ask.
pub(crate) fn gave_no_answer(conn: &Conn, interval: Duration) -> bool {
    let (live, silent) = (conn.liveness(), conn.liveness().silence());
    silent >= interval * 2 && live.rest() < silent
}

/// A lane parked here, if there is one that lives.
pub(crate) async fn take_parked(local: &Rc<Local>, link: LinkId) -> Option<IdleLane> {
    loop {
        let parked = local.lanes.borrow_mut().pop(link)?;
        let (reply, given) = async_channel::bounded(1);
        parked.ask(reply);
        if let Ok(lane) = given.recv().await {
            return Some(lane);
        }
    }
}

/// A lane of this agent: parked here, or at another worker, or a new one from the agent.
///
/// # Errors
/// The refusal for the client: the agent is away, or gave none in time.
pub async fn take(local: &Rc<Local>, entry: &Arc<AgentEntry>, deadline: Instant) -> Result<Lane, Refused> {
    take_idle(local, entry, deadline).await.map(IdleLane::wake)
}

async fn take_idle(
    local: &Rc<Local>,
    entry: &Arc<AgentEntry>,
    deadline: Instant,
) -> Result<IdleLane, Refused> {
    if let Some(lane) = take_from_anywhere(local, entry).await {
        return Ok(lane);
    }
    let waiting = Waiting::begin(local, entry)?;
    // A lane may have been parked between the look and the wait: here, too, while another worker was asked.
    if let Some(lane) = take_from_anywhere(local, entry).await {
        return Ok(lane);
    }
    if entry.is_link_down() {
        return Err(away(entry));
    }
    entry.ask_for_lanes();
    match timeout_at(deadline, waiting.given.recv()).await {
        Ok(Ok(lane)) => Ok(lane),
        Ok(Err(_)) => Err(away(entry)),
        Err(_) if entry.principal.usage.has_all_lanes(&local.shared.limits()) => Err(Refused::new(
            RefusalCode::Limited,
            format!(
                "the agent {} has as many sessions as it may, and none has ended in time",
                entry.key.name
            ),
        )),
        Err(_) => Err(Refused::new(
            RefusalCode::AgentTimeout,
            format!("the agent {} is connected but offered no connection in time", entry.key.name),
        )),
    }
}

pub(crate) fn away(entry: &AgentEntry) -> Refused {
    Refused::new(
        RefusalCode::AgentNotFound,
        format!("the agent {} is not connected any more", entry.key.name),
    )
}

async fn take_from_anywhere(local: &Rc<Local>, entry: &Arc<AgentEntry>) -> Option<IdleLane> {
    if let Some(lane) = take_parked(local, entry.link).await {
        return Some(lane);
    }
    ask_for_lane(local, entry.richest_but(local.index)?, entry.link).await
}

/// A session in the queue; leaves it when dropped.
struct Waiting<'a> {
    local: &'a Rc<Local>,
    entry: &'a AgentEntry,
    given: async_channel::Receiver<IdleLane>,
}

impl<'a> Waiting<'a> {
    fn begin(local: &'a Rc<Local>, entry: &'a AgentEntry) -> Result<Self, Refused> {
        let Some(given) = local.lanes.borrow_mut().wait(entry.link) else {
            let reason = format!("too many sessions wait for the agent {}", entry.key.name);
            return Err(Refused::new(RefusalCode::Limited, reason).retry_after(WAITING_RETRY));
        };
        entry.add_waiting(local.index);
        Ok(Self { local, entry, given })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.entry.sub_waiting(self.local.index);
        self.given.close();
        // One that came in the last moment goes to the next.
        if let Ok(lane) = self.given.try_recv() {
            park(self.local, lane);
        }
        self.local.lanes.borrow_mut().forget_closed(self.entry.link);
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::poll_once;
    use narrowlink_proto::{ended::Why, feature::Features, limits::Limits, token::Allowance};

    use super::*;
    use crate::gateway::{
        directory::LinkOrder,
        handover::assemble,
        kit::{self, Agent, Gateway, Peer, Worker, turns, until},
        mailbox::Note,
        principal::Principal,
        table::Kind,
    };

    const SOON: Duration = Duration::from_millis(30);
    const LATER: Duration = Duration::from_secs(10);

    async fn took(worker: &Worker, agent: &Agent, patience: Duration) -> Result<Lane, Refused> {
        take(&worker.local, &agent.entry, Instant::now() + patience).await
    }

    /// Ends a lane in a way that only its agent can see.
    async fn is_of(lane: Lane, peer: &Peer) {
        lane.conn.close(1000, "taken");
        assert_eq!(peer.close().await, (1000, "taken".to_owned()));
    }

    #[test]
    fn the_lane_that_was_parked_last_is_taken_first() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let peers = [(); 3].map(|()| worker.park(&agent, Framing::Framed));
            assert_eq!(worker.count(Kind::Lane), 3);
            for peer in peers.iter().rev() {
                is_of(took(&worker, &agent, LATER).await.unwrap(), peer).await;
            }
            assert!(agent.orders.is_empty(), "nothing was asked of the agent");
        });
    }

    #[test]
    fn sessions_get_their_lanes_in_the_order_in_which_they_began_to_wait_and_lanes_are_asked_for_once() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let mut waiting = [(); 3].map(|()| Box::pin(took(&worker, &agent, LATER)));
            for one in &mut waiting {
                assert!(poll_once(one).await.is_none());
            }
            assert_eq!(agent.entry.waiting(), 3);
            assert!(matches!(agent.orders.try_recv(), Ok(LinkOrder::NeedLane)) && agent.orders.is_empty());
            for (n, one) in waiting.iter_mut().enumerate() {
                let peer = worker.park(&agent, Framing::Framed);
                is_of(poll_once(one).await.unwrap().unwrap(), &peer).await;
                assert_eq!(agent.entry.waiting() as usize, 2 - n);
            }
        });
    }

    #[test]
    fn who_gives_up_leaves_its_lane_to_the_next() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let [mut early, mut given, mut next] = [(); 3].map(|()| Box::pin(took(&worker, &agent, LATER)));
            for one in [&mut early, &mut given, &mut next] {
                assert!(poll_once(one).await.is_none());
            }
            drop(early);
            let peer = worker.park(&agent, Framing::Framed);
            // It has the lane already, and has not looked.
            drop(given);
            is_of(next.await.unwrap(), &peer).await;
            assert_eq!(agent.entry.waiting(), 0);
            assert!(!worker.local.lanes.borrow().has_waiting(agent.entry.link));
        });
    }

    #[test]
    fn a_lane_that_comes_while_another_worker_is_asked_is_not_left_beside_the_session_that_asks() {
        kit::run(async {
            let gateway = Gateway::new(Limits::default(), 2);
            let (here, there, agent) = (gateway.worker(0), gateway.worker(1), gateway.agent());
            let gone = there.park(&agent, Framing::Framed);
            let mut asking = Box::pin(took(&here, &agent, LATER));
            assert!(poll_once(&mut asking).await.is_none());
            let Ok(Note::WantLane { reply, .. }) = gateway.shared.mailboxes.of(1).try_recv() else {
                panic!("the other worker was not asked");
            };
            let peer = here.park(&agent, Framing::Framed);
            drop(gone);
            until(|| there.count(Kind::Lane) == 0).await;
            drop(reply);
            // All lanes that the agent was asked for are there: no other will come.
            is_of(asking.await.unwrap(), &peer).await;
            assert!(agent.orders.is_empty());
        });
    }

    #[test]
    fn a_lane_that_its_agent_lets_go_or_misuses_is_closed_and_nobody_gets_it() {
        const MISUSED: &str = "nothing but its retirement is due on a lane without a session";
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let peer = worker.park(&agent, Framing::Framed);
            peer.say(&Message::Retire).await;
            assert_eq!(peer.close().await, (1001, RETIRED.to_owned()));
            let peer = worker.park(&agent, Framing::Framed);
            peer.say(&Message::Ready { session: kit::session(1) }).await;
            assert_eq!(peer.close().await, (1002, MISUSED.to_owned()));
            let peer = worker.park(&agent, Framing::Framed);
            peer.give(b"data").await;
            let (code, words) = peer.close().await;
            assert!(code == 1002 && words.contains("data where a message was due"), "{code} {words}");
            let peer = worker.park(&agent, Framing::Raw);
            peer.say(&Message::Retire).await;
            peer.cut().await;
            drop(worker.park(&agent, Framing::Framed));
            until(|| worker.count(Kind::Lane) == 0).await;
            assert_eq!(took(&worker, &agent, SOON).await.err().unwrap().code, RefusalCode::AgentTimeout);
        });
    }

    #[test]
    fn a_lane_with_half_a_message_is_no_lane_and_the_next_is_taken() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let [whole, half] = [(); 2].map(|()| worker.park(&agent, Framing::Framed));
            half.write(&[0x81, 0x85, 0, 0, 0, 0, b'{']).await;
            turns().await;
            is_of(took(&worker, &agent, LATER).await.unwrap(), &whole).await;
            assert_eq!(half.close().await, (1002, "half a message on a lane without a session".to_owned()));
        });
    }

    #[test]
    fn a_silent_agent_is_pinged_and_a_lane_without_an_answer_is_closed() {
        kit::run(async {
            let worker = kit::worker(Limits { quiet_ping_interval: SOON, ..Limits::default() });
            let (agent, begun) = (worker.agent(), Instant::now());
            let peer = worker.park(&agent, Framing::Framed);
            until(|| worker.count(Kind::Lane) == 0).await;
            // Silence is counted in whole milliseconds.
            assert!(begun.elapsed() >= SOON * 2 - Duration::from_millis(1), "{:?}", begun.elapsed());
            let (mut got, mut buf) = (Vec::new(), [0; 64]);
            while let n @ 1.. = peer.conn.wire().read(&mut buf).await.unwrap() {
                got.extend_from_slice(&buf[..n]);
            }
            assert!(got.starts_with(&[0x89, 0]), "{got:x?}");
            assert!(got.ends_with(b"\x03\xE9no answer to a ping"), "{got:x?}");
        });
    }

    #[test]
    fn a_worker_that_stood_still_pings_before_it_judges() {
        kit::run(async {
            let limits = Limits { quiet_ping_interval: Duration::from_millis(100), ..Limits::default() };
            let worker = kit::worker(limits.clone());
            let lane = worker.park(&worker.agent(), Framing::Framed);
            let client = worker.stream(&worker.laptop, Framing::Framed);
            turns().await;
            // As a process that was stopped, or a machine that slept.
            std::thread::sleep(limits.quiet_ping_interval * 2);
            for peer in [&lane, &client] {
                let mut ping = [0; 2];
                assert_eq!(peer.conn.wire().read(&mut ping).await.unwrap(), 2);
                assert_eq!(ping, [0x89, 0]);
            }
        });
    }

    #[test]
    fn who_finds_no_lane_in_time_hears_why() {
        let one = Limits { agent_lanes_max: 1, ..Limits::default() };
        kit::run(async {
            let worker = kit::worker(one);
            let home = kit::who(Speaker::Agent, "home", Duration::from_secs(60));
            let home = Principal { usage: kit::usage(&Allowance::default()), ..home };
            let agent = worker.agent_as(&Arc::new(home), Features::NONE);
            let silent = took(&worker, &agent, SOON).await.err().unwrap();
            assert_eq!(silent.code, RefusalCode::AgentTimeout);
            let (_busy, _peer) = worker.lane(&agent, Framing::Framed);
            let full = took(&worker, &agent, SOON).await.err().unwrap();
            assert_eq!(full.code, RefusalCode::Limited);
            assert!(full.reason.contains("as many sessions as it may"), "{full}");
            let queue: Vec<_> =
                std::iter::from_fn(|| worker.local.lanes.borrow_mut().wait(agent.entry.link)).collect();
            let full = took(&worker, &agent, LATER).await.err().unwrap();
            assert_eq!((full.code, full.retry_after_ms), (RefusalCode::Limited, Some(200)));
            drop(queue);
            worker.local.lanes.borrow_mut().forget_closed(agent.entry.link);
            agent.entry.set_link_down();
            assert_eq!(took(&worker, &agent, LATER).await.err().unwrap().code, RefusalCode::AgentNotFound);
        });
    }

    #[test]
    fn who_waits_hears_at_once_when_the_link_goes() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let mut waiting = Box::pin(took(&worker, &agent, LATER));
            assert!(poll_once(&mut waiting).await.is_none());
            worker.local.lanes.borrow_mut().dismiss_waiting(agent.entry.link);
            let away = poll_once(waiting).await.unwrap().err().unwrap();
            assert_eq!(away.code, RefusalCode::AgentNotFound);
            assert!(away.reason.contains("home is not connected any more"), "{away}");
        });
    }

    #[test]
    fn a_lane_goes_where_sessions_wait_else_where_the_fewest_are() {
        let gateway = Gateway::new(Limits::default(), 2);
        kit::run(async {
            let [here, there] = [0, 1].map(|index| gateway.worker(index));
            let (agent, mailbox) = (gateway.agent(), gateway.shared.mailboxes.of(1));
            let mut peers = Vec::new();
            let mut goes_elsewhere = |from: fn(&Rc<Local>, IdleLane)| {
                let (lane, peer) = here.lane(&agent, Framing::Framed);
                from(&here.local, lane.idle().ok().unwrap());
                peers.push(peer);
                !mailbox.is_empty()
            };
            assert!(!goes_elsewhere(place), "both have none");
            assert!(goes_elsewhere(place), "the other has fewer");
            let Ok(Note::Lane(parts)) = mailbox.try_recv() else { panic!("it is a lane") };
            park(&there.local, assemble(&there.local, parts).unwrap());
            assert!(!goes_elsewhere(place), "both have as many");
            agent.entry.add_waiting(1);
            assert!(goes_elsewhere(place), "a session waits there");
            drop(mailbox.try_recv());
            let waits = here.local.lanes.borrow_mut().wait(agent.entry.link).unwrap();
            assert!(!goes_elsewhere(place) && waits.try_recv().is_ok(), "one waits here, too");
            // One begins to wait there while a lane is parked here.
            goes_elsewhere(park);
            until(|| !mailbox.is_empty()).await;
            assert!(matches!(mailbox.try_recv(), Ok(Note::Lane(_))));
        });
    }

    #[test]
    fn a_worker_that_stops_parks_no_lane() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            worker.local.stop();
            let peer = worker.park(&agent, Framing::Framed);
            assert_eq!(peer.close().await, (1001, "the gateway shuts down".to_owned()));
        });
    }

    #[test]
    fn a_lane_whose_agent_may_not_stay_is_closed() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let peer = worker.park(&agent, Framing::Framed);
            worker.expel("home", Why::Revoked);
            let words = "the agent's link is gone, or its token does not hold any more";
            assert_eq!(peer.close().await, (1008, words.to_owned()));
        });
    }
}
