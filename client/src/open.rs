//! Role: asks gateways for sessions, over a new stream or one that has served before.
//! Invariants: every try has a session id of its own · nothing of a session goes before its answer, so
//! a try that got none can be repeated · only a stream on which everything has ended cleanly, on both
//! sides, serves again.
//! See: ARCHITECTURE.md "Open".

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Duration,
};

use futures_lite::future;
use monoio::time::{Instant, sleep, timeout};
use narrowlink_dataplane::{
    conn::{Conn, ConnError},
    relay::settled,
    tunnel::{self, Ask, TunnelError},
    worker::spawn,
};
use narrowlink_proto::{
    ended::{Ended, RefusalCode, Refused, Side},
    endpoint::FramingChoice,
    id::SessionId,
    message::{self, Channel, Message, Speaker},
    target::Target,
    upgrade::{Framing, Protocol, fits_in_head},
};

use crate::{exit::Failure, routes::Routes};

/// For a session's whole set-up; the gateway gives the agent 10 s of it.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// For a gateway's connection while there are others to try.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams kept for their next session.
const WARM_MAX: usize = 16;
/// How long they are kept; gateways ping after 25 s of silence and wait as long for the answer.
const WARM_FOR: Duration = Duration::from_secs(30);
/// How often the kept ones are looked after.
const WARM_LOOK: Duration = Duration::from_secs(5);
/// The WebSocket close code of a connection that has done its work.
const CLOSE_NORMAL: u16 = 1000;

/// Opens sessions.
pub(crate) struct Opener {
    pub(crate) routes: Routes,
    /// The newest last: it is the one most surely alive.
    warm: RefCell<VecDeque<Warm>>,
    looking: Cell<bool>,
}

struct Warm {
    conn: Conn,
    route: usize,
    since: Instant,
}

/// A session that has opened.
pub(crate) struct Session {
    pub(crate) conn: Conn,
    pub(crate) id: SessionId,
    route: usize,
}

impl Session {
    /// After both directions have ended: waits until the target has everything, and closes.
    pub(crate) async fn finish(self) -> Result<(), Ended> {
        let Self { conn, id, .. } = self;
        if conn.framing() == Framing::Framed {
            settled(&conn, id, Speaker::Gateway, Side::Target).await?;
        }
        close(conn);
        Ok(())
    }
}

/// Why there is no session.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// No gateway answered.
    Unreachable(TunnelError),
    /// One answered, and said no.
    Refused {
        /// What it said.
        refused: Refused,
        /// The same, for the user.
        failure: Failure,
    },
}

impl OpenError {
    pub(crate) fn code(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused { refused, .. } => Some(refused.code),
            Self::Unreachable(_) => None,
        }
    }
}

impl From<OpenError> for Failure {
    fn from(e: OpenError) -> Self {
        match e {
            OpenError::Unreachable(e) => e.into(),
            OpenError::Refused { failure, .. } => failure,
        }
    }
}

/// What came of an Open on a stream that stands.
enum Asked {
    Opened(Conn),
    Refused(Refused, Conn),
    Failed(TunnelError),
}

impl Opener {
    pub(crate) fn new(routes: Routes) -> Rc<Self> {
        Rc::new(Self { routes, warm: RefCell::default(), looking: Cell::new(false) })
    }

    /// Opens a session. A lane that broke while it was opening is no answer: then once more.
    pub(crate) async fn open(&self, agent: &str, target: &Target) -> Result<Session, OpenError> {
        match self.open_once(agent, target).await {
            Err(e) if e.code() == Some(RefusalCode::LaneLost) => self.open_fresh(agent, target).await,
            other => other,
        }
    }

    async fn open_once(&self, agent: &str, target: &Target) -> Result<Session, OpenError> {
        while let Some(Warm { conn, route, .. }) = self.take_warm().await {
            let open = ask_for(agent, target).map_err(OpenError::Unreachable)?;
            let id = open.session;
            match self.ask(conn, route, open).await {
                Asked::Opened(conn) => return Ok(Session { conn, id, route }),
                Asked::Refused(refused, conn) => {
                    self.keep_warm(conn, route);
                    return Err(self.refused(route, refused));
                }
                Asked::Failed(e @ TunnelError::TimedOut { .. }) => return Err(OpenError::Unreachable(e)),
                // Dead without our having noticed; then so are the others, most likely.
                Asked::Failed(_) => self.warm.borrow_mut().clear(),
            }
        }
        self.open_fresh(agent, target).await
    }

    async fn open_fresh(&self, agent: &str, target: &Target) -> Result<Session, OpenError> {
        let mut in_order = self.routes.in_order();
        loop {
            let Some((route, last)) = in_order.next() else { unreachable!("a configuration has endpoints") };
            match self.open_by(route, last, agent, target).await {
                Ok(session) => {
                    self.routes.prefer(route);
                    return Ok(session);
                }
                Err(TunnelError::Refused(refused)) if last || refused.code != RefusalCode::Draining => {
                    return Err(self.refused(route, refused));
                }
                Err(e) if last => return Err(OpenError::Unreachable(e)),
                Err(e) => tracing::debug!("{e}; trying the next gateway"),
            }
        }
    }

    async fn open_by(
        &self,
        route: usize,
        last: bool,
        agent: &str,
        target: &Target,
    ) -> Result<Session, TunnelError> {
        let gateway = &self.routes.at(route).gateway;
        let framing = match gateway.framing() {
            FramingChoice::Raw => Framing::Raw,
            FramingChoice::Auto | FramingChoice::Framed => Framing::Framed,
        };
        let protocol = Protocol { channel: Channel::Stream, framing };
        let open = ask_for(agent, target)?;
        let id = open.session;
        if last && fits_in_head(&open) {
            let (conn, opened) = tunnel::open(gateway, protocol, Ask::Open(open), OPEN_TIMEOUT).await?;
            return match opened {
                Some(opened) if opened.session == id => Ok(Session { conn, id, route }),
                _ => Err(ConnError::Unexpected("a stream without the session that was asked for").into()),
            };
        }
        // While there are others to try, a connection must come sooner than a session may.
        let patience = if last { OPEN_TIMEOUT } else { CONNECT_TIMEOUT };
        let (conn, _) = tunnel::open(gateway, protocol, Ask::Nothing, patience).await?;
        match self.ask(conn, route, open).await {
            Asked::Opened(conn) => Ok(Session { conn, id, route }),
            Asked::Refused(refused, conn) => {
                close(conn);
                Err(TunnelError::Refused(refused))
            }
            Asked::Failed(e) => Err(e),
        }
    }

    /// Asks for a session on a stream that stands.
    async fn ask(&self, conn: Conn, route: usize, open: message::Open) -> Asked {
        let id = open.session;
        let asked = async {
            conn.send(&Message::Open(open)).await?;
            conn.recv(Speaker::Gateway, Channel::Stream).await
        };
        match timeout(OPEN_TIMEOUT, asked).await {
            Ok(Ok(Message::Opened { session, .. })) if session == id => Asked::Opened(conn),
            Ok(Ok(Message::Refused(refused))) => Asked::Refused(refused, conn),
            Ok(Ok(_)) => Asked::Failed(ConnError::Unexpected("no answer to what was asked").into()),
            Ok(Err(e)) => Asked::Failed(e.into()),
            Err(_) => {
                let gateway = self.routes.at(route).gateway.describe().to_owned();
                Asked::Failed(TunnelError::TimedOut { gateway, patience: OPEN_TIMEOUT })
            }
        }
    }

    fn refused(&self, route: usize, refused: Refused) -> OpenError {
        let failure = self.routes.refused(route, &refused);
        OpenError::Refused { refused, failure }
    }

    /// Takes back the stream of a session that has ended cleanly.
    pub(crate) fn give_back(self: &Rc<Self>, session: Session) {
        let Session { conn, id, route } = session;
        if conn.framing() == Framing::Raw {
            return conn.into_wire().close_gently();
        }
        let this = self.clone();
        spawn(async move {
            match settled(&conn, id, Speaker::Gateway, Side::Target).await {
                Ok(()) => {
                    this.keep_warm(conn, route);
                    this.look_after_warm().await;
                }
                Err(ended) => {
                    tracing::debug!("a finished session was not confirmed: {ended}");
                    close(conn);
                }
            }
        });
    }

    fn keep_warm(&self, conn: Conn, route: usize) {
        let mut warm = self.warm.borrow_mut();
        warm.push_back(Warm { conn, route, since: Instant::now() });
        if warm.len() > WARM_MAX
            && let Some(oldest) = warm.pop_front()
        {
            close(oldest.conn);
        }
    }

    async fn take_warm(&self) -> Option<Warm> {
        loop {
            let warm = self.warm.borrow_mut().pop_back()?;
            if let Some(warm) = still_good(warm).await {
                return Some(warm);
            }
        }
    }

    /// Answers the pings of kept streams, and drops those that broke or were kept too long; by one task
    /// at a time, until none is kept.
    async fn look_after_warm(&self) {
        if self.looking.replace(true) {
            return;
        }
        while !self.warm.borrow().is_empty() {
            sleep(WARM_LOOK).await;
            let kept = std::mem::take(&mut *self.warm.borrow_mut());
            for warm in kept {
                if let Some(warm) = still_good(warm).await {
                    self.warm.borrow_mut().push_back(warm);
                }
            }
        }
        self.looking.set(false);
    }
}

/// A kept stream, if it can still be used: nothing has come on it but pings, which are answered here.
async fn still_good(warm: Warm) -> Option<Warm> {
    if warm.since.elapsed() >= WARM_FOR {
        close(warm.conn);
        return None;
    }
    let broken = future::poll_once(warm.conn.attend()).await;
    broken.is_none().then_some(warm)
}

fn close(conn: Conn) {
    match conn.framing() {
        Framing::Framed => conn.close(CLOSE_NORMAL, ""),
        Framing::Raw => conn.into_wire().close_gently(),
    }
}

fn ask_for(agent: &str, target: &Target) -> Result<message::Open, TunnelError> {
    let mut id = [0; 32];
    getrandom::fill(&mut id).map_err(|e| ConnError::Io(std::io::Error::other(e)))?;
    let session = SessionId::from_bytes(id);
    Ok(message::Open { session, agent: agent.to_owned(), target: target.clone(), e2ee: None })
}
