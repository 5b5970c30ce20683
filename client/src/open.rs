//! Role: asks gateways for sessions over new streams.
//! Invariants: every try has a session id of its own · nothing of a session goes before its answer, so
//! a try that got none can be repeated.
//! See: ARCHITECTURE.md "Open"; `early` for streams that stand.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use narrowlink_dataplane::{
    peer::{self, Ask},
    run::timer::{sleep, timeout},
    tunnel::{
        TunnelError,
        conn::{Conn, ConnError},
        settle::settled,
    },
};
use narrowlink_proto::{
    ended::{RefusalCode, Refused, Side},
    id::SessionId,
    message::{self, Channel, Message, Speaker},
    target::Target,
    upgrade::{Framing, Protocol, fits_in_head},
};

use crate::{
    exit::Failure,
    routes::{Route, Routes},
};

/// For a session's whole set-up; the gateway gives the agent 10 s of it.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// For a gateway's connection while there are others to try.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The WebSocket close code of a connection that has done its work.
const CLOSE_NORMAL: u16 = 1000;

/// Opens sessions.
pub(crate) struct Opener {
    pub(crate) routes: Routes,
}

/// A session that has opened.
pub(crate) struct Session {
    pub(crate) conn: Conn,
    pub(crate) id: SessionId,
    pub(crate) route: Arc<Route>,
}

impl Session {
    /// After both directions have ended: waits until the target has everything, and closes.
    pub(crate) async fn finish(self) -> Result<(), Failure> {
        let Self { conn, id, .. } = self;
        if conn.framing() == Framing::Framed {
            let settled = settled(&conn, id, Speaker::Gateway, Side::Target).await;
            settled.map_err(|ended| Failure::reset(ended, conn.farewell().as_deref()))?;
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
    /// A refusal by one of the gateways.
    pub(crate) fn refused(route: &Route, refused: Refused) -> Self {
        let failure = route.explain(&refused);
        Self::Refused { refused, failure }
    }

    /// After how long the gateway can serve what it refused now; `None` where it did not say.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { refused, .. } if refused.code == RefusalCode::Limited => {
                Some(Duration::from_millis(refused.retry_after_ms?.into()))
            }
            _ => None,
        }
    }

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
    pub(crate) fn new(routes: Routes) -> Arc<Self> {
        Arc::new(Self { routes })
    }

    /// As [`Opener::open`]; while the gateway says that sessions come too fast, and when to come again, it is
    /// asked again then, for as long as a session's set-up may take.
    pub(crate) async fn open_patiently(&self, agent: &str, target: &Target) -> Result<Session, OpenError> {
        let deadline = Instant::now() + OPEN_TIMEOUT;
        loop {
            let e = match self.open(agent, target).await {
                Ok(session) => return Ok(session),
                Err(e) => e,
            };
            match e.retry_after() {
                Some(wait) if Instant::now() + wait < deadline => sleep(wait).await,
                _ => return Err(e),
            }
        }
    }

    /// Opens a session. A lane that broke while it was opening is no answer: then once more.
    pub(crate) async fn open(&self, agent: &str, target: &Target) -> Result<Session, OpenError> {
        match self.open_once(agent, target).await {
            Err(e) if e.code() == Some(RefusalCode::LaneLost) => self.open_once(agent, target).await,
            other => other,
        }
    }

    async fn open_once(&self, agent: &str, target: &Target) -> Result<Session, OpenError> {
        let mut in_order = self.routes.in_order();
        loop {
            let Some((index, last)) = in_order.next() else { unreachable!("a configuration has endpoints") };
            let (route, opened) = self.open_at(index, last, agent, target).await;
            match opened {
                Ok(session) => {
                    self.routes.prefer(&route);
                    return Ok(session);
                }
                Err(TunnelError::Refused(refused)) if last || refused.code != RefusalCode::Draining => {
                    return Err(OpenError::refused(&route, refused));
                }
                Err(e) if last => return Err(OpenError::Unreachable(e)),
                Err(e) => tracing::debug!("{e}; trying the next gateway"),
            }
        }
    }

    /// Opens a session at one gateway, by the token before where a new one is refused; and by which it was.
    async fn open_at(
        &self,
        index: usize,
        last: bool,
        agent: &str,
        target: &Target,
    ) -> (Arc<Route>, Result<Session, TunnelError>) {
        loop {
            let route = self.routes.at(index);
            let opened = self.open_by(&route, last, agent, target).await;
            match &opened {
                Ok(_) => self.routes.on_taken(&route),
                Err(TunnelError::Refused(refused))
                    if refused.code == RefusalCode::Unauthenticated && self.routes.has_another(&route) =>
                {
                    continue;
                }
                Err(_) => {}
            }
            return (route, opened);
        }
    }

    async fn open_by(
        &self,
        route: &Arc<Route>,
        last: bool,
        agent: &str,
        target: &Target,
    ) -> Result<Session, TunnelError> {
        let gateway = &route.gateway;
        let protocol = Protocol { channel: Channel::Stream, framing: route.framing() };
        let open = ask_for(agent, target)?;
        let id = open.session;
        if last && fits_in_head(&open) {
            let (conn, opened) = peer::open(gateway, protocol, Ask::Open(open), OPEN_TIMEOUT).await?;
            return match opened {
                Some(opened) if opened.session == id => Ok(Session { conn, id, route: route.clone() }),
                _ => Err(ConnError::Unexpected("a stream without the session that was asked for").into()),
            };
        }
        // While there are others to try, a connection must come sooner than a session may.
        let patience = if last { OPEN_TIMEOUT } else { CONNECT_TIMEOUT };
        let (conn, _) = peer::open(gateway, protocol, Ask::Nothing, patience).await?;
        self.open_by_asking(conn, route, open).await
    }

    /// A stream to this gateway, on which nothing has been asked.
    pub(crate) async fn stream(&self, route: &Route) -> Result<Conn, TunnelError> {
        let protocol = Protocol { channel: Channel::Stream, framing: route.framing() };
        Ok(peer::open(&route.gateway, protocol, Ask::Nothing, OPEN_TIMEOUT).await?.0)
    }

    /// Opens a session on a stream that stands.
    pub(crate) async fn open_on(
        &self,
        conn: Conn,
        route: &Arc<Route>,
        agent: &str,
        target: &Target,
    ) -> Result<Session, TunnelError> {
        self.open_by_asking(conn, route, ask_for(agent, target)?).await
    }

    async fn open_by_asking(
        &self,
        conn: Conn,
        route: &Arc<Route>,
        open: message::Open,
    ) -> Result<Session, TunnelError> {
        let id = open.session;
        match self.ask(conn, route, open).await {
            Asked::Opened(conn) => Ok(Session { conn, id, route: route.clone() }),
            Asked::Refused(refused, conn) => {
                close(conn);
                Err(TunnelError::Refused(refused))
            }
            Asked::Failed(e) => Err(e),
        }
    }

    /// Asks for a session on a stream that stands.
    async fn ask(&self, conn: Conn, route: &Route, open: message::Open) -> Asked {
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
                let gateway = route.gateway.describe().to_owned();
                Asked::Failed(TunnelError::TimedOut { gateway, patience: OPEN_TIMEOUT })
            }
        }
    }
}

/// Closes a stream on which nothing is under way.
pub(crate) fn close(conn: Conn) {
    match conn.framing() {
        Framing::Framed => conn.close(CLOSE_NORMAL, ""),
        Framing::Raw => conn.close_gently(),
    }
}

/// An Open with an id of its own.
pub(crate) fn ask_for(agent: &str, target: &Target) -> Result<message::Open, TunnelError> {
    let mut id = [0; 32];
    getrandom::fill(&mut id).map_err(|e| ConnError::Io(std::io::Error::other(e)))?;
    let session = SessionId::from_bytes(id);
    Ok(message::Open { session, agent: agent.to_owned(), target: target.clone(), e2ee: None })
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{poll_once, zip};
    use narrowlink_dataplane::tunnel::settle::settle;

    use super::*;
    use crate::{
        exit::Exit,
        fixture::{Port, accept, asked, deaf, heard, id, no, opener, refuse, run, stream, tcp},
        warm::Stream,
    };

    fn test(main: impl AsyncFnOnce(Port)) {
        run(async || main(Port::listen()).await);
    }

    #[test]
    fn every_open_has_an_id_of_its_own() {
        let ids: std::collections::HashSet<_> =
            (0..100).map(|_| ask_for("home", &tcp("db", 1)).unwrap().session).collect();
        assert_eq!(ids.len(), 100);
    }

    #[test]
    fn only_a_limit_says_when_to_come_again() {
        let route = opener(&["gw.example:80"]).routes.first();
        let soon = Duration::from_millis(70);
        for (code, wait) in [(RefusalCode::Limited, Some(soon)), (RefusalCode::Draining, None)] {
            let refused = OpenError::refused(&route, no(code).retry_after(soon));
            assert_eq!((refused.retry_after(), refused.code()), (wait, Some(code)));
        }
        assert_eq!(OpenError::refused(&route, no(RefusalCode::Limited)).retry_after(), None);
    }

    #[test]
    fn an_answer_on_a_stream_that_stands_is_for_what_was_asked_or_none() {
        test(async |_| {
            let opener = opener(&["gw.example:80"]);
            for case in ["opened", "refused", "another", "broken"] {
                let (Stream { conn, route }, gateway) = stream(&opener, 0);
                let answering = async {
                    let session = asked(&gateway).await;
                    match case {
                        "opened" => accept(&gateway, session).await,
                        "refused" => refuse(&gateway, session, no(RefusalCode::Policy)).await,
                        "another" => accept(&gateway, id(9)).await,
                        _ => drop(gateway),
                    }
                };
                let open = ask_for("home", &tcp("db", 1)).unwrap();
                let (asked, ()) = zip(opener.ask(conn, &route, open), answering).await;
                match (case, asked) {
                    ("opened", Asked::Opened(_)) => {}
                    ("refused", Asked::Refused(refused, _)) => assert_eq!(refused.code, RefusalCode::Policy),
                    ("another", Asked::Failed(e)) => assert!(e.to_string().contains("no answer"), "{e}"),
                    ("broken", Asked::Failed(TunnelError::Conn(_))) => {}
                    _ => panic!("{case}"),
                }
            }
        });
    }

    #[test]
    fn a_session_is_over_only_when_the_gateway_says_that_everything_was_delivered() {
        test(async |_| {
            let opener = opener(&["gw.example:80"]);
            let session = || {
                let (Stream { conn, route }, gateway) = stream(&opener, 0);
                (Session { conn, id: id(1), route }, gateway)
            };
            let (finished, gateway) = session();
            let mut finishing = Box::pin(finished.finish());
            assert!(poll_once(&mut finishing).await.is_none());
            settle(&gateway, id(1), Side::Client).await.unwrap();
            finishing.await.unwrap();
            assert!(matches!(heard(&gateway).await, Err(ConnError::Closed { code: CLOSE_NORMAL, .. })));

            let (revoked, gateway) = session();
            gateway.close(4000, "the token was revoked");
            let failure = revoked.finish().await.unwrap_err();
            assert_eq!(failure.exit, Exit::Reset);
            assert_eq!(failure.message, "the session was reset: the token was revoked");
        });
    }

    #[test]
    fn a_lane_that_broke_is_asked_for_once_more_and_a_limit_is_waited_for() {
        test(async |port| {
            let opener = opener(&[&port.addr.to_string()]);
            let target = tcp("db", 1);
            let wait = Duration::from_millis(30);
            let serving = async {
                let first = port.refuse(&no(RefusalCode::LaneLost)).await.open.unwrap().session;
                let second = port.refuse(&no(RefusalCode::Limited).retry_after(wait)).await;
                assert_ne!(second.open.unwrap().session, first);
                let refused_at = Instant::now();
                let (_conn, third) = port.upgrade().await;
                assert!(refused_at.elapsed() >= wait);
                third.open.unwrap().session
            };
            let (opened, session) = zip(opener.open_patiently("home", &target), serving).await;
            assert_eq!(opened.unwrap().id, session);

            let losing = async {
                for _ in 0..2 {
                    port.refuse(&no(RefusalCode::LaneLost)).await;
                }
            };
            let (lost, ()) = zip(opener.open("home", &target), losing).await;
            assert_eq!(lost.err().unwrap().code(), Some(RefusalCode::LaneLost), "it is not tried for ever");
        });
    }

    #[test]
    fn a_gateway_that_is_away_or_leaves_is_passed_over_and_the_one_that_answers_comes_first_then() {
        test(async |port| {
            let ((_held, away), other) = (deaf(), Port::listen());
            let opener = opener(&[&away, &other.addr.to_string(), &port.addr.to_string()]);
            let target = tcp("db", 1);
            let serving = async {
                // Nothing of a session goes to one that has others behind it, before it has answered.
                let leaving = other.refuse(&no(RefusalCode::Draining)).await;
                assert!(leaving.open.is_none());
                port.upgrade().await.1.open.unwrap().session
            };
            let (opened, session) = zip(opener.open("home", &target), serving).await;
            assert_eq!(opened.unwrap().id, session);
            assert_eq!(opener.routes.first().index, 2);
            let refusing = async {
                let (gateway, request) = port.upgrade().await;
                assert!(request.open.is_none());
                let session = asked(&gateway).await;
                refuse(&gateway, session, no(RefusalCode::Policy)).await;
                gateway.drain().await;
            };
            let (refused, ()) = zip(opener.open("home", &target), refusing).await;
            assert_eq!(refused.err().unwrap().code(), Some(RefusalCode::Policy), "an answer ends the search");
        });
    }
}
