//! Role: the lanes parked at this worker, and the sessions that wait for one.
//! Invariants: a lane is in exactly one place: parked, on its way, or in a session · only a quiet
//! connection is parked · a session waits in order and with a deadline · a lane found dead before
//! its Dial was written is replaced without anybody noticing · an agent's lane is closed here first, so
//! no Dial is written to one that its agent has closed.
//! See: ARCHITECTURE.md "Lanes".

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use async_channel::Sender;
use futures_lite::future;
use monoio::time::Instant;
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    id::LinkId,
    message::{Channel, Message, Speaker},
    upgrade::Framing,
};

use crate::{
    conn::Conn,
    directory::AgentEntry,
    handover::Local,
    quiet::Quiet,
    table::Seat,
    timer::{sleep_until, timeout_at},
    usage::Slot,
    worker::spawn,
};

/// Sessions that may wait for lanes of one agent on one worker.
const WAITING_MAX: usize = 1024;
/// When those beyond may ask again: by then some that wait have their lanes.
const WAITING_RETRY: Duration = Duration::from_millis(200);

/// An agent's stream without a session.
pub struct Lane {
    /// The connection.
    pub conn: Box<Conn>,
    /// Whose.
    pub entry: Arc<AgentEntry>,
    /// Its place at the worker where it is.
    pub seat: Seat,
    /// Its place among its agent's lanes.
    pub slot: Slot,
}

/// A lane on which nothing is under way: it can be parked, and go to another worker.
pub struct IdleLane {
    /// The connection.
    pub conn: Quiet,
    /// Whose.
    pub entry: Arc<AgentEntry>,
    /// Its place at the worker where it is.
    pub seat: Seat,
    /// Its place among its agent's lanes.
    pub slot: Slot,
}

impl Lane {
    /// The lane as an idle one, if it is.
    ///
    /// # Errors
    /// As [`Quiet::of`].
    pub fn idle(self) -> Result<IdleLane, Self> {
        let Self { conn, entry, seat, slot } = self;
        match Quiet::of(conn) {
            Ok(conn) => Ok(IdleLane { conn, entry, seat, slot }),
            Err(conn) => Err(Self { conn, entry, seat, slot }),
        }
    }
}

impl IdleLane {
    /// The lane, for a session.
    pub fn wake(self) -> Lane {
        Lane { conn: self.conn.wake(), entry: self.entry, seat: self.seat, slot: self.slot }
    }
}

/// The lanes of one worker, by the link that brought them.
#[derive(Default)]
pub struct Lanes {
    groups: HashMap<LinkId, Group>,
    next: u64,
}

#[derive(Default)]
struct Group {
    /// The newest last: it is the one most surely alive.
    idle: Vec<Parked>,
    waiting: VecDeque<Sender<IdleLane>>,
}

struct Parked {
    number: u64,
    call: Rc<Call>,
    entry: Arc<AgentEntry>,
    /// Where, for the gauge.
    worker: usize,
}

/// Asks the task that holds a parked lane to hand it out, or to let it go. (A channel for it would
/// hold as much as the lane.)
#[derive(Default)]
struct Call {
    reply: Cell<Option<Sender<IdleLane>>>,
    let_go: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Call {
    /// Where the lane goes; `None` when it is not needed any more.
    async fn heard(&self) -> Option<Sender<IdleLane>> {
        poll_fn(|cx| {
            let reply = self.reply.take();
            if reply.is_some() || self.let_go.get() {
                return Poll::Ready(reply);
            }
            self.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }
}

impl Parked {
    /// Asks for the lane. What is asked for lives with the task that holds the lane: if that ends
    /// instead, the reply's channel closes.
    fn ask(self, reply: Sender<IdleLane>) {
        self.call.reply.set(Some(reply));
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.entry.sub_parked(self.worker);
        self.call.let_go.set(true);
        if let Some(waker) = self.call.waker.take() {
            waker.wake();
        }
    }
}

impl Lanes {
    /// The parked lanes of a link are dropped; who waits is told by the closed channel.
    pub fn forget(&mut self, link: LinkId) {
        self.groups.remove(&link);
    }

    /// Who waits for a lane of this link is told that none will come.
    pub(crate) fn dismiss_waiting(&mut self, link: LinkId) {
        if let Some(group) = self.groups.get_mut(&link) {
            group.waiting.clear();
        }
    }

    /// As [`Lanes::forget`], for every link.
    pub fn forget_all(&mut self) {
        self.groups.clear();
    }

    fn pop(&mut self, link: LinkId) -> Option<Parked> {
        self.groups.get_mut(&link)?.idle.pop()
    }

    fn remove(&mut self, link: LinkId, number: u64) {
        if let Some(group) = self.groups.get_mut(&link) {
            group.idle.retain(|parked| parked.number != number);
            if group.idle.is_empty() && group.waiting.is_empty() {
                self.groups.remove(&link);
            }
        }
    }
}

/// Where a lane that has just arrived is needed most: a worker where sessions wait, or the one
/// that has fewest.
pub(crate) fn place(local: &Rc<Local>, lane: IdleLane) {
    let waits_here = local.lanes.borrow().groups.get(&lane.entry.link).is_some_and(|g| !g.waiting.is_empty());
    let elsewhere = if waits_here {
        None
    } else {
        lane.entry.waiting_but(local.index).or_else(|| lane.entry.poorer_than(local.index))
    };
    match elsewhere {
        Some(worker) => {
            if let Some(lane) = local.hand_over(lane, worker) {
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
        let waiting = local.lanes.borrow_mut().groups.get_mut(&link).and_then(|g| g.waiting.pop_front());
        let Some(waiting) = waiting else { break };
        match waiting.try_send(lane) {
            Ok(()) => return,
            // Its session has given up: the next one.
            Err(unsent) => lane = unsent.into_inner(),
        }
    }
    let call = Rc::new(Call::default());
    let number = {
        let mut lanes = local.lanes.borrow_mut();
        lanes.next += 1;
        let number = lanes.next;
        let parked = Parked { number, call: call.clone(), entry: lane.entry.clone(), worker: local.index };
        lane.entry.add_parked(local.index);
        lanes.groups.entry(link).or_default().idle.push(parked);
        number
    };
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
            && let Some(lane) = local.hand_over(lane, worker)
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
    // A lane may have been parked elsewhere between the look and the wait.
    if entry.richest_but(local.index).is_some()
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
    local.ask_for_lane(entry.richest_but(local.index)?, entry.link).await
}

/// A session in the queue; leaves it when dropped.
struct Waiting<'a> {
    local: &'a Rc<Local>,
    entry: &'a AgentEntry,
    given: async_channel::Receiver<IdleLane>,
}

impl<'a> Waiting<'a> {
    fn begin(local: &'a Rc<Local>, entry: &'a AgentEntry) -> Result<Self, Refused> {
        let (give, given) = async_channel::bounded(1);
        let mut lanes = local.lanes.borrow_mut();
        let group = lanes.groups.entry(entry.link).or_default();
        if group.waiting.len() >= WAITING_MAX {
            let reason = format!("too many sessions wait for the agent {}", entry.key.name);
            return Err(Refused::new(RefusalCode::Limited, reason).retry_after(WAITING_RETRY));
        }
        group.waiting.push_back(give);
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
        let mut lanes = self.local.lanes.borrow_mut();
        if let Some(group) = lanes.groups.get_mut(&self.entry.link) {
            group.waiting.retain(|waiting| !waiting.is_closed());
            if group.idle.is_empty() && group.waiting.is_empty() {
                lanes.groups.remove(&self.entry.link);
            }
        }
    }
}
