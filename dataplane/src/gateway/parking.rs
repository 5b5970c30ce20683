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
            // Two pings without an answer: nobody is there.
            if silent >= interval * 2 || (silent >= interval && lane.conn.ping().is_err()) {
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
    if entry.has_parked()
        && let Some(lane) = take_from_anywhere(local, entry).await
    {
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
