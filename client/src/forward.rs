//! Role: a local port whose connections become sessions.
//! Invariants: never gives up; a connection that can't be served is reset, never closed as if it had
//! ended; what may have reached the target is never sent twice; half-close and reset go through in both directions; while the gateway is away a connection
//! waits for it, but not for ever.
//! See: ARCHITECTURE.md "Life of a byte".

use std::{
    cell::RefCell,
    collections::HashMap,
    convert::Infallible,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    time::Duration,
};

use async_channel::{Receiver, Sender};
use futures_lite::future;
use monoio::time::{Instant, sleep, timeout, timeout_at};
use narrowlink_dataplane::{
    linger::reset_session,
    listen::{Listener, accept_all, bind_alone},
    relay::{End, Traffic, relay},
    tunnel::TunnelError,
    wire::Wire,
    worker::spawn,
};
use narrowlink_proto::{
    ended::{Ended, RefusalCode},
    target::Target,
};

use crate::{
    Stop,
    early::{self, Outcome, say_ended},
    exit::{Exit, Failure},
    open::{OpenError, Opener, Session, ask_for},
    presence::Presence,
    warm::{Stream, Warm},
};

/// How long a connection waits for a gateway that is away.
const AWAY_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two tries for one connection: at first, ..
const RETRY_MIN: Duration = Duration::from_millis(50);
/// .. and, doubled each time, at the most; sooner when we hear that the gateway is back.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A gateway that has just come back does not know its agents yet: they come within a second or two.
const AGENT_GRACE: Duration = Duration::from_secs(3);
/// How long a connection lets the one before it go first. Programs count on their connections
/// arriving in the order in which they were made (`iperf3 --bidir` tells them apart by it).
const ORDER_TIMEOUT: Duration = Duration::from_millis(5);
/// The same trouble is said once in so long.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Different troubles that are remembered.
const SAID_MAX: usize = 64;

/// What is to be forwarded, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The agent that dials.
    pub agent: String,
    /// What it dials.
    pub target: Target,
    /// Where to listen.
    pub listen: SocketAddr,
}

/// A forward at work.
pub(crate) struct Forwarder {
    plan: Plan,
    opener: Rc<Opener>,
    presence: Rc<Presence>,
    stop: Stop,
    said: RefCell<HashMap<String, Instant>>,
    /// Over when the newest connection has its session.
    newest: RefCell<Option<Receiver<Infallible>>>,
    warm: Rc<Warm>,
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

/// Takes the local port.
///
/// # Errors
/// It is in use, or not ours to take.
pub(crate) fn bind(listen: SocketAddr) -> Result<TcpListener, Failure> {
    bind_alone(listen).map_err(|e| {
        let message = match e.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!("{listen} is in use by another program; choose another with -l")
            }
            _ => format!("{listen} can't be listened on: {e}; choose another with -l"),
        };
        Failure::new(Exit::Unreachable, message)
    })
}

impl Forwarder {
    pub(crate) fn new(plan: Plan, opener: Rc<Opener>, stop: Stop) -> Rc<Self> {
        Rc::new(Self {
            plan,
            warm: Warm::new(opener.clone()),
            opener,
            presence: Presence::new(),
            stop,
            said: RefCell::default(),
            newest: RefCell::default(),
        })
    }

    /// Forwards until it is stopped.
    pub(crate) async fn run(self: Rc<Self>, listener: Listener) {
        let accepting = accept_all(&listener, |socket| {
            let this = self.clone();
            let (served, mine) = async_channel::bounded(1);
            let before = self.newest.replace(Some(mine));
            spawn(async move { this.carry(socket.into(), before, served).await });
        });
        let present = async {
            self.presence.hold(&self.opener.routes).await;
        };
        let ready = self.warm.tend(&self.presence);
        future::or(self.stop.wait(), future::or(accepting, future::or(present, ready))).await;
        self.warm.clear();
    }

    /// One connection, from its accept to its end.
    async fn carry(&self, local: Wire, before: Option<Receiver<Infallible>>, served: Sender<Infallible>) {
        if let Some(before) = before {
            let _ = timeout(ORDER_TIMEOUT, before.recv()).await;
        }
        let deadline = Instant::now() + AWAY_TIMEOUT;
        let mut pause = RETRY_MIN;
        loop {
            // Dropped without a word, the local connection is reset.
            match self.attempt(&local, &served).await {
                Attempt::Ended(session, Ok(())) => {
                    local.close_gently();
                    return self.warm.give_back(*session);
                }
                Attempt::Ended(session, Err(ended)) => {
                    return Box::pin(reset_session(session.conn, local, ended)).await;
                }
                Attempt::Over => return,
                Attempt::Failed(e) if self.may_pass(&e) && Instant::now() < deadline => {
                    let pausing = timeout_at(deadline, self.pause(pause));
                    future::or(async { drop(pausing.await) }, self.stop.wait()).await;
                    pause = (pause * 2).min(RETRY_MAX);
                    if local.is_reset() {
                        return;
                    }
                }
                Attempt::Failed(e) => return self.say(&e.into()),
            }
        }
    }

    /// A session for a local connection, to its end: on a stream that stands, if there is one.
    async fn attempt(&self, local: &Wire, served: &Sender<Infallible>) -> Attempt {
        if let Some(failure) = self.presence.locked_out() {
            self.say(&failure);
            return Attempt::Over;
        }
        let opened = || {
            served.close();
        };
        if let Some(stream) = self.warm.take().await
            && let Some(attempt) = self.attempt_on(stream, local, opened).await
        {
            return attempt;
        }
        let opening = async { Some(self.opener.open(&self.plan.agent, &self.plan.target).await) };
        let stopped = async {
            self.stop.wait().await;
            None
        };
        let session = match future::or(stopped, opening).await {
            None => return Attempt::Over,
            Some(Err(e)) => return Attempt::Failed(e),
            Some(Ok(session)) => session,
        };
        opened();
        let traffic = Traffic::default();
        let moving = relay(End::Bare(local), session.conn.end(session.id), &traffic);
        let ended = future::or(moving, async { Err(self.stop.shutdown().await) }).await;
        say_ended(&traffic, ended);
        Attempt::Ended(Box::new(session), ended)
    }

    /// The same on a stream that stands; `None` when a new one may serve better.
    async fn attempt_on(&self, stream: Stream, local: &Wire, opened: impl FnOnce()) -> Option<Attempt> {
        let route = stream.route;
        let open = match ask_for(&self.plan.agent, &self.plan.target) {
            Ok(open) => open,
            Err(e) => return Some(Attempt::Failed(OpenError::Unreachable(e))),
        };
        let gateway = self.opener.routes.at(route).gateway.describe();
        match early::carry(stream, open, local, gateway, &self.stop, opened).await {
            Outcome::Ended(session, ended) => Some(Attempt::Ended(Box::new(session), ended)),
            Outcome::Refused(refused, again) => {
                if let Some(stream) = again {
                    self.warm.keep(stream);
                }
                // A lane that broke while it was opening is no answer: then once more.
                let lost = refused.code == RefusalCode::LaneLost;
                (!lost).then(|| Attempt::Failed(self.opener.refused(route, refused)))
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
                self.say(&Failure::new(Exit::Reset, message));
                Some(Attempt::Over)
            }
            Outcome::Left => Some(Attempt::Over),
        }
    }

    /// Until the gateway is back, if it is away; else, and at the most, for so long.
    async fn pause(&self, at_most: Duration) {
        if self.presence.since().is_some() {
            return sleep(at_most).await;
        }
        self.presence.poke();
        future::or(self.presence.back(), sleep(at_most)).await;
    }

    /// Whether the trouble is of a kind that passes by itself, and soon.
    fn may_pass(&self, e: &OpenError) -> bool {
        match e.code() {
            None | Some(RefusalCode::Draining) => true,
            Some(RefusalCode::AgentNotFound) => {
                self.presence.since().is_none_or(|since| since.elapsed() < AGENT_GRACE)
            }
            Some(_) => false,
        }
    }

    fn say(&self, failure: &Failure) {
        let mut said = self.said.borrow_mut();
        let at = said.get(&failure.message);
        if at.is_some_and(|at| at.elapsed() < SAY_EVERY) {
            return;
        }
        if said.len() >= SAID_MAX {
            said.retain(|_, at| at.elapsed() < SAY_EVERY);
        }
        if said.len() < SAID_MAX {
            tracing::warn!("a connection was reset: {failure}");
            said.insert(failure.message.clone(), Instant::now());
        }
    }
}

/// Takes a bound port into this thread's runtime.
///
/// # Errors
/// The system's.
pub(crate) fn adopt(listener: TcpListener) -> Result<Listener, Failure> {
    Listener::adopt(listener).map_err(|e| Failure::new(Exit::Internal, e))
}
