//! Role: one local connection, from its accept to its end.
//! Invariants: a connection that can't be served is reset, never closed as if it had ended; what may have reached the
//! target is never sent twice; half-close and reset go through in both directions; while the gateway is away a connection
//! waits for it, but not for ever · while the gateway says that sessions come too fast, connections wait in
//! order, on whichever workers they are · one that leaves while it waits is let go at once.
//! See: ARCHITECTURE.md "Life of a byte".

use std::{
    cell::Cell,
    collections::HashMap,
    rc::Rc,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_channel::{Receiver, Sender};
use futures_lite::future;
use narrowlink_dataplane::{
    relay::{Traffic, relay},
    run::{
        descriptors::{self, Place},
        lock::lock,
        timer::{sleep, timeout, timeout_at},
    },
    transport::wire::Wire,
    tunnel::{TunnelError, end::End, linger::reset_session},
};
use narrowlink_proto::ended::{Ended, RefusalCode};

use crate::{
    early::{self, Outcome, say_ended},
    exit::{Exit, Failure},
    open::{OpenError, Opener, Session, ask_for},
    outlook::Outlook,
    plan::Plan,
    presence::{AGENT_GRACE, Presence},
    queue::{Number, Queue, Turn},
    stop::Stop,
    warm::{Stream, Warm},
};

/// How long a connection waits for a gateway that is away.
const AWAY_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two tries for one connection: at first, ..
const RETRY_MIN: Duration = Duration::from_millis(50);
/// .. and, doubled each time, at the most; sooner when we hear that the gateway is back.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How long a connection lets the one before it have its session first. Programs count on their connections
/// arriving in the order in which they were made (`iperf3 --bidir` tells them apart by it).
const ORDER_TIMEOUT: Duration = Duration::from_millis(5);
/// How often a connection that waits is asked whether it has left.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The same trouble is said once in so long.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Different troubles that are remembered.
const SAID_MAX: usize = 64;

/// What all workers of a forward share.
pub(crate) struct Shared {
    plan: Plan,
    pub(crate) opener: Arc<Opener>,
    pub(crate) presence: Arc<Presence>,
    pub(crate) stop: Stop,
    said: Mutex<HashMap<String, Instant>>,
    /// What the next connection hears of the newest one.
    newest: Mutex<Option<Receiver<()>>>,
    queue: Arc<Queue>,
}

/// Carries connections on one worker.
pub(crate) struct Carrier {
    pub(crate) shared: Arc<Shared>,
    pub(crate) warm: Rc<Warm>,
}

/// A connection's place in the order of arrival.
pub(crate) struct Ticket {
    number: Number,
    /// Of the one before: a word when it begins to ask, and the end when it has its session, or never will.
    before: Option<Receiver<()>>,
    /// The same of this one.
    behind: Sender<()>,
}

impl Ticket {
    /// Lets the connection before go first: it has its session, if that does not take too long, and begins to ask in
    /// any case. Without this a worker that is behind with its work would be overtaken by hundreds.
    async fn wait(&mut self) {
        if let Some(before) = self.before.take() {
            let has_begun = Cell::new(false);
            let served = async {
                while before.recv().await.is_ok() {
                    has_begun.set(true);
                }
            };
            if timeout(ORDER_TIMEOUT, served).await.is_err() && !has_begun.get() {
                let _ = before.recv().await;
            }
        }
        let _ = self.behind.try_send(());
    }
}

/// A local connection and what it has while it waits for its session.
pub(crate) struct Arrival {
    local: Wire,
    ticket: Ticket,
    /// The descriptor for its way to the gateway.
    place: Cell<Option<Place>>,
    /// Its right to ask, until there is an answer.
    turn: Cell<Option<Turn>>,
}

impl Arrival {
    pub(crate) fn new(local: Wire, ticket: Ticket, place: Place) -> Self {
        Self { local, ticket, place: Cell::new(Some(place)), turn: Cell::default() }
    }

    fn opened(&self) {
        self.ticket.behind.close();
        self.place.take();
        if let Some(turn) = self.turn.take() {
            turn.opened();
        }
    }

    /// Returns when the local program has left. An end without a word before it may be a program's that only
    /// listens: it counts as having left when others wait for its descriptors.
    async fn left(&self) {
        loop {
            if self.local.is_reset() || (self.local.has_left() && descriptors::are_short()) {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// What came of one try to serve a connection.
enum Attempt {
    /// It had a session, which has ended.
    Ended(Box<Session>, Result<(), Ended>),
    /// There was none; whether another try makes sense is to be seen.
    Failed(OpenError),
    /// There is nothing more to do for it.
    Over,
}

impl Shared {
    pub(crate) fn new(plan: Plan, opener: Arc<Opener>, stop: Stop) -> Arc<Self> {
        let outlook = Outlook::new(&plan, opener.routes.first().gateway.token());
        Arc::new(Self {
            presence: Presence::new(outlook.roll_call()),
            plan,
            opener,
            stop,
            said: Mutex::default(),
            newest: Mutex::default(),
            queue: Queue::new(),
        })
    }

    /// The place of a connection that was just accepted, behind those before.
    pub(crate) fn enter(&self) -> Ticket {
        let (behind, mine) = async_channel::bounded(1);
        Ticket { number: self.queue.enter(), before: lock(&self.newest).replace(mine), behind }
    }

    /// Says why a connection was reset; the same is said once in a while, whichever workers it happens on.
    pub(crate) fn say(&self, failure: &Failure) {
        if self.is_news(failure) {
            tracing::warn!("a connection was reset: {failure}");
        }
    }

    fn is_news(&self, failure: &Failure) -> bool {
        let mut said = lock(&self.said);
        let at = said.get(&failure.message);
        if at.is_some_and(|at| at.elapsed() < SAY_EVERY) {
            return false;
        }
        if said.len() >= SAID_MAX {
            said.retain(|_, at| at.elapsed() < SAY_EVERY);
        }
        let has_room = said.len() < SAID_MAX;
        if has_room {
            said.insert(failure.message.clone(), Instant::now());
        }
        has_room
    }
}

impl Carrier {
    pub(crate) fn new(shared: Arc<Shared>) -> Rc<Self> {
        let warm = Warm::new(shared.opener.clone());
        Rc::new(Self { shared, warm })
    }

    /// One connection, from its accept to its end.
    pub(crate) async fn carry(&self, mut arrival: Arrival) {
        arrival.ticket.wait().await;
        let deadline = Instant::now() + AWAY_TIMEOUT;
        let mut pause = RETRY_MIN;
        loop {
            // Dropped without a word, the local connection is reset.
            if self.shared.stop.is_over() || !self.may_ask(&arrival, deadline).await {
                return;
            }
            let failed = match self.attempt(&arrival).await {
                Attempt::Ended(session, Ok(())) => {
                    arrival.local.close_gently();
                    return self.warm.give_back(*session);
                }
                Attempt::Ended(session, Err(ended)) => {
                    return Box::pin(reset_session(session.conn, arrival.local, ended)).await;
                }
                Attempt::Over => return,
                Attempt::Failed(e) => e,
            };
            let turn = arrival.turn.take();
            match failed.retry_after() {
                Some(wait) if Instant::now() + wait < deadline => {
                    if let Some(turn) = turn {
                        turn.refused(wait);
                    }
                    continue;
                }
                None if self.may_pass(&failed) && Instant::now() < deadline => {}
                _ => return self.shared.say(&failed.into()),
            }
            drop(turn);
            let pausing = timeout_at(deadline, self.pause(pause));
            let paused = async {
                let _ = pausing.await;
                true
            };
            let over = async {
                future::or(arrival.left(), self.shared.stop.wait()).await;
                false
            };
            if !future::or(over, paused).await {
                return;
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Waits for a connection's turn to ask. False when it has left meanwhile, or nothing is served any more.
    async fn may_ask(&self, arrival: &Arrival, deadline: Instant) -> bool {
        let queue = &self.shared.queue;
        if let Some(turn) = queue.turn_at_once() {
            arrival.turn.set(Some(turn));
            return true;
        }
        let given = async { Some(timeout_at(deadline, queue.turn(arrival.ticket.number)).await) };
        let over = async {
            future::or(arrival.left(), self.shared.stop.wait()).await;
            None
        };
        match future::or(over, given).await {
            Some(Ok(turn)) => {
                arrival.turn.set(Some(turn));
                true
            }
            Some(Err(_)) => {
                let message = if queue.is_limited() {
                    "the gateway limits how fast this token opens sessions, and more wait than it allows; open fewer \
                     at a time, or ask its operator for a higher dials_per_s"
                } else {
                    "more connections wait for their sessions than the gateway has answered within 10 s; open fewer at \
                     a time"
                };
                self.shared.say(&Failure::new(Exit::Unreachable, message));
                false
            }
            None => false,
        }
    }

    /// A session for a local connection, to its end: on a stream that stands, if there is one.
    async fn attempt(&self, arrival: &Arrival) -> Attempt {
        if let Some(failure) = self.shared.presence.locked_out() {
            self.shared.say(&failure);
            return Attempt::Over;
        }
        if let Some(stream) = self.warm.take().await
            && let Some(attempt) = self.attempt_on(stream, arrival).await
        {
            return attempt;
        }
        arrival.place.take();
        let Shared { opener, plan, .. } = &*self.shared;
        let opening = async { Some(opener.open(&plan.agent, &plan.target).await) };
        let over = async {
            future::or(arrival.left(), self.shared.stop.wait()).await;
            None
        };
        let session = match future::or(over, opening).await {
            None => return Attempt::Over,
            Some(Err(e)) => return Attempt::Failed(e),
            Some(Ok(session)) => session,
        };
        arrival.opened();
        let traffic = Traffic::default();
        let moving = relay(End::raw(&arrival.local), End::of(&session.conn, session.id), &traffic);
        let ended = future::or(moving, async { Err(self.shared.stop.shutdown().await) }).await;
        say_ended(&traffic, ended);
        Attempt::Ended(Box::new(session), ended)
    }

    /// The same on a stream that stands; `None` when a new one may serve better.
    async fn attempt_on(&self, stream: Stream, arrival: &Arrival) -> Option<Attempt> {
        let route = stream.route.clone();
        let open = match ask_for(&self.shared.plan.agent, &self.shared.plan.target) {
            Ok(open) => open,
            Err(e) => return Some(Attempt::Failed(OpenError::Unreachable(e))),
        };
        match early::carry(stream, open, &arrival.local, &self.shared.stop, || arrival.opened()).await {
            Outcome::Ended(session, ended) => Some(Attempt::Ended(Box::new(session), ended)),
            Outcome::Refused(refused, again) => {
                if let Some(stream) = again {
                    self.warm.keep(stream);
                }
                // A lane that broke while it was opening is no answer: then once more.
                let lost = refused.code == RefusalCode::LaneLost;
                (!lost).then(|| Attempt::Failed(OpenError::refused(&route, refused)))
            }
            Outcome::Unanswered(e @ TunnelError::TimedOut { .. }) => {
                Some(Attempt::Failed(OpenError::Unreachable(e)))
            }
            Outcome::Unanswered(e) => {
                // Dead without our having noticed; then so are the others, most likely.
                tracing::debug!("a stream that was kept ready has broken: {e}");
                self.warm.clear();
                None
            }
            Outcome::Lost(e) => {
                let message = format!("{e}; what had been sent may have arrived, so it is not sent again");
                self.shared.say(&Failure::new(Exit::Reset, message));
                Some(Attempt::Over)
            }
            Outcome::Left => Some(Attempt::Over),
        }
    }

    /// Until the gateway is back, if it is away; else, and at the most, for so long.
    async fn pause(&self, at_most: Duration) {
        if self.shared.presence.since().is_some() {
            return sleep(at_most).await;
        }
        self.shared.presence.poke();
        future::or(self.shared.presence.back(), sleep(at_most)).await;
    }

    /// Whether the trouble is of a kind that passes by itself, and soon.
    fn may_pass(&self, e: &OpenError) -> bool {
        match e.code() {
            None | Some(RefusalCode::Draining) => true,
            Some(RefusalCode::AgentNotFound) => {
                self.shared.presence.since().is_none_or(|since| since.elapsed() < AGENT_GRACE)
            }
            Some(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
