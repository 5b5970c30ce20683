//! Role: lanes, and a worker's book of those that are parked and of the sessions that wait for one.
//! Invariants: sessions wait in their order, a bounded number of them · who parks a lane hears of it when it is asked
//! for, or needed no more.
//! See: `parking`, which parks and takes them; ARCHITECTURE.md "Lanes".

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
};

use async_channel::{Receiver, Sender};
use narrowlink_proto::id::LinkId;

use crate::{
    gateway::{directory::AgentEntry, table::Seat, usage::Slot},
    tunnel::{conn::Conn, quiet::Quiet},
};

/// Sessions that may wait for lanes of one agent on one worker.
const WAITING_MAX: usize = 1024;

/// An agent's connection that carries payload, with a session or without.
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

pub(crate) struct Parked {
    number: u64,
    call: Rc<Call>,
    entry: Arc<AgentEntry>,
    /// Where, for the gauge.
    worker: usize,
}

/// Asks the task that holds a parked lane to hand it out, or to let it go. (A channel for it would
/// hold as much as the lane.)
#[derive(Default)]
pub(crate) struct Call {
    reply: Cell<Option<Sender<IdleLane>>>,
    let_go: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Call {
    /// Where the lane goes; `None` when it is not needed any more.
    pub(crate) async fn heard(&self) -> Option<Sender<IdleLane>> {
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
    pub(crate) fn ask(self, reply: Sender<IdleLane>) {
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
    pub(crate) fn forget_all(&mut self) {
        self.groups.clear();
    }

    pub(crate) fn pop(&mut self, link: LinkId) -> Option<Parked> {
        self.groups.get_mut(&link)?.idle.pop()
    }

    pub(crate) fn remove(&mut self, link: LinkId, number: u64) {
        self.tidy(link, |group| group.idle.retain(|parked| parked.number != number));
    }

    /// Adds a lane that is parked at `worker`: its number, and what its holder listens to.
    pub(crate) fn add(&mut self, entry: &Arc<AgentEntry>, worker: usize) -> (u64, Rc<Call>) {
        self.next += 1;
        let (number, call) = (self.next, Rc::new(Call::default()));
        let parked = Parked { number, call: call.clone(), entry: entry.clone(), worker };
        entry.add_parked(worker);
        self.groups.entry(entry.link).or_default().idle.push(parked);
        (number, call)
    }

    /// Whether a session waits for a lane of this link.
    pub(crate) fn has_waiting(&self, link: LinkId) -> bool {
        self.groups.get(&link).is_some_and(|group| !group.waiting.is_empty())
    }

    /// Where the session that has waited for longest takes its lane; it waits no more.
    pub(crate) fn pop_waiting(&mut self, link: LinkId) -> Option<Sender<IdleLane>> {
        self.groups.get_mut(&link)?.waiting.pop_front()
    }

    /// A session waits from now on; `None` when too many do.
    pub(crate) fn wait(&mut self, link: LinkId) -> Option<Receiver<IdleLane>> {
        let waiting = &mut self.groups.entry(link).or_default().waiting;
        if waiting.len() >= WAITING_MAX {
            return None;
        }
        let (give, given) = async_channel::bounded(1);
        waiting.push_back(give);
        Some(given)
    }

    /// Forgets the sessions that wait no more, whose receivers are closed.
    pub(crate) fn forget_closed(&mut self, link: LinkId) {
        self.tidy(link, |group| group.waiting.retain(|waiting| !waiting.is_closed()));
    }

    /// Takes something out of a group; one that is empty then is forgotten.
    fn tidy(&mut self, link: LinkId, take_out: impl FnOnce(&mut Group)) {
        let Some(group) = self.groups.get_mut(&link) else { return };
        take_out(group);
        if group.idle.is_empty() && group.waiting.is_empty() {
            self.groups.remove(&link);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_lite::future::{block_on, poll_once};
    use narrowlink_proto::{limits::Limits, upgrade::Framing};

    use super::*;
    use crate::gateway::kit::{self, Gateway};

    /// The book of the first of two workers, and an agent.
    fn book() -> (Lanes, Arc<AgentEntry>) {
        (Lanes::default(), Gateway::new(Limits::default(), 2).agent().entry)
    }

    #[test]
    fn the_newest_lane_is_taken_first_and_one_that_was_taken_out_never() {
        let (mut lanes, entry) = book();
        let numbers: Vec<_> = (0..4).map(|_| lanes.add(&entry, 0).0).collect();
        assert_eq!(entry.richest_but(1), Some(0));
        lanes.remove(entry.link, numbers[2]);
        lanes.remove(entry.link, numbers[2]);
        let taken: Vec<_> = std::iter::from_fn(|| lanes.pop(entry.link).map(|lane| lane.number)).collect();
        assert_eq!(taken, [numbers[3], numbers[1], numbers[0]]);
        assert_eq!(entry.richest_but(1), None, "the others do not look for them any more");
    }

    #[test]
    fn who_parks_a_lane_hears_when_it_is_asked_for_and_when_it_is_needed_no_more() {
        let (mut lanes, entry) = book();
        let [(_, forgotten), (_, asked)] = [(); 2].map(|()| lanes.add(&entry, 0));
        let mut hearing = pin!(asked.heard());
        assert!(block_on(poll_once(hearing.as_mut())).is_none());
        let (reply, given) = async_channel::bounded(1);
        lanes.pop(entry.link).unwrap().ask(reply);
        let reply = block_on(hearing).unwrap();
        assert!(!given.is_closed());
        drop(reply);
        assert!(given.is_closed(), "who has asked hears that there is no lane");
        lanes.forget(entry.link);
        assert!(block_on(forgotten.heard()).is_none());
        let (_, forgotten) = lanes.add(&entry, 0);
        lanes.forget_all();
        assert!(block_on(forgotten.heard()).is_none());
    }

    #[test]
    fn sessions_wait_in_their_order_and_no_more_than_so_many() {
        let (mut lanes, entry) = book();
        let waiting: Vec<_> = std::iter::from_fn(|| lanes.wait(entry.link)).collect();
        assert_eq!(waiting.len(), WAITING_MAX);
        for next in &waiting[..3] {
            assert!(!next.is_closed());
            drop(lanes.pop_waiting(entry.link));
            assert!(next.is_closed());
        }
        assert_eq!([(); 4].map(|()| lanes.wait(entry.link).is_some()), [true, true, true, false]);
    }

    #[test]
    fn who_waits_hears_when_no_lane_will_come_and_a_parked_one_stays() {
        let (mut lanes, entry) = book();
        lanes.add(&entry, 0);
        let waiting = [(); 2].map(|()| lanes.wait(entry.link).unwrap());
        assert!(lanes.has_waiting(entry.link));
        lanes.dismiss_waiting(entry.link);
        assert!(waiting.iter().all(Receiver::is_closed) && !lanes.has_waiting(entry.link));
        assert!(lanes.pop(entry.link).is_some());
    }

    #[test]
    fn nothing_is_kept_of_a_link_without_lanes_and_sessions() {
        let (mut lanes, entry) = book();
        let (number, _) = lanes.add(&entry, 0);
        let [gone, waiting] = [(); 2].map(|()| lanes.wait(entry.link).unwrap());
        drop(gone);
        lanes.forget_closed(entry.link);
        lanes.remove(entry.link, number);
        assert_eq!(lanes.groups[&entry.link].waiting.len(), 1);
        drop(waiting);
        lanes.forget_closed(entry.link);
        assert!(lanes.groups.is_empty());
    }

    #[test]
    fn a_lane_in_the_middle_of_a_message_is_not_idle_and_comes_back_whole() {
        kit::run(async {
            let worker = kit::worker(Limits::default());
            let (lane, peer) = worker.lane(&worker.agent(), Framing::Framed);
            let lane = lane.idle().ok().unwrap().wake();
            assert!(lane.conn.begin_frame().unwrap());
            let lane = lane.idle().err().unwrap();
            lane.conn.end_frame().unwrap();
            lane.idle().ok().unwrap().wake().conn.close(1000, "whole");
            assert_eq!(peer.close().await, (1000, "whole".to_owned()));
        });
    }
}
