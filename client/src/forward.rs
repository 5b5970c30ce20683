//! Role: a local port whose connections become sessions.
//! Invariants: never gives up; a connection that can't be served is reset, never closed as if it had
//! ended; half-close and reset go through in both directions; while the gateway is away a connection
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
    conn::CLOSE_RESET,
    listen::{Listener, accept_all, bind_alone},
    relay::{End, Traffic, relay},
    wire::Wire,
    worker::spawn,
};
use narrowlink_proto::{
    ended::{Ended, RefusalCode, Side, Why},
    target::Target,
};

use crate::{
    Stop,
    exit::{Exit, Failure},
    open::{OpenError, Opener, Session},
    presence::Presence,
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
        future::or(self.stop.wait(), future::or(accepting, present)).await;
    }

    /// One connection, from its accept to its end.
    async fn carry(&self, local: Wire, before: Option<Receiver<Infallible>>, served: Sender<Infallible>) {
        if let Some(before) = before {
            let _ = timeout(ORDER_TIMEOUT, before.recv()).await;
        }
        let stopped = async {
            self.stop.wait().await;
            None
        };
        // Dropped without a word, the local connection is reset.
        let session = future::or(stopped, self.open(&local)).await;
        drop(served);
        let Some(session) = session else { return };
        let traffic = Traffic::default();
        let stopped = async {
            self.stop.wait().await;
            Err(Ended { by: Side::Here, why: Why::Shutdown })
        };
        let target = session.conn.end(session.id);
        let ended = future::or(relay(End::Bare(&local), target, &traffic), stopped).await;
        let (up_bytes, down_bytes) = (traffic.up_bytes.get(), traffic.down_bytes.get());
        match ended {
            Ok(()) => {
                tracing::debug!(up_bytes, down_bytes, "session finished");
                local.close_gently();
                self.opener.give_back(session);
            }
            Err(ended) => {
                tracing::debug!(up_bytes, down_bytes, "session reset: {ended}");
                session.conn.close(CLOSE_RESET, &ended.to_string());
            }
        }
    }

    /// A session for a local connection; `None` when there is none to be had.
    async fn open(&self, local: &Wire) -> Option<Session> {
        let deadline = Instant::now() + AWAY_TIMEOUT;
        let mut pause = RETRY_MIN;
        loop {
            if let Some(failure) = self.presence.locked_out() {
                self.say(&failure);
                return None;
            }
            match self.opener.open(&self.plan.agent, &self.plan.target).await {
                Ok(session) => return Some(session),
                Err(e) if self.may_pass(&e) && Instant::now() < deadline => {
                    let _ = timeout_at(deadline, self.pause(pause)).await;
                    pause = (pause * 2).min(RETRY_MAX);
                    if local.is_reset() {
                        return None;
                    }
                }
                Err(e) => {
                    self.say(&e.into());
                    return None;
                }
            }
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
