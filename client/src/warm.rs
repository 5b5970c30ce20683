//! Role: the streams that one worker of a forward keeps ready, so that a session needs no handshake.
//! Invariants: framed streams only, and only to the gateway that is preferred, by the token that it is asked with now ·
//! a stream serves again
//! only when everything on it has ended cleanly, on both sides · nothing is opened ahead while the
//! gateway is away, and one that refuses is asked again only after a growing pause.
//! See: ARCHITECTURE.md "Warm streams".

use std::{cell::RefCell, collections::VecDeque, rc::Rc, sync::Arc, time::Duration};

use futures_lite::future;
use narrowlink_dataplane::{
    peer::{
        self, Ask,
        demand::{Bounds, TICK},
        pool::{Keeper, Pool},
    },
    run::{descriptors, timer::sleep, worker::spawn},
    tunnel::{
        TunnelError,
        conn::{Conn, ConnError},
        settle::settled,
    },
};
use narrowlink_proto::{
    ended::{RefusalCode, Side},
    message::{Channel, Speaker},
    upgrade::{Framing, Protocol},
};

use crate::{
    open::{Opener, Session, close},
    presence::Presence,
    routes::Route,
};

/// One is always ready, so that the first connection after a pause is quick, too; 16 serve 160
/// connections a second over a path of 100 ms. Sessions are not bounded here.
const BOUNDS: Bounds = Bounds { min: 1, max: u32::MAX, ready_max: 16, opening_max: 4 };
/// Streams kept at the most, wherever they came from.
const KEPT_MAX: usize = 16;
/// For a stream's connection, TLS and upgrade.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream on which nothing was heard for so long is not trusted with data before an answer: gateways
/// ping after 25 s of silence.
const HEARD_WITHIN: Duration = Duration::from_secs(30);
/// How often the kept ones are looked after.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// While descriptors are short nothing is opened ahead.
const SHORT_PAUSE: Duration = Duration::from_secs(10);
/// After a refusal: below the ten failed logins a minute at which a gateway begins to punish everybody
/// behind our address.
const REFUSED_PAUSE: Duration = Duration::from_secs(8);

/// The streams of one worker.
pub(crate) struct Warm {
    opener: Arc<Opener>,
    /// The newest last: it is the one most surely alive.
    kept: RefCell<VecDeque<Stream>>,
    pool: Arc<Pool>,
}

/// A stream that stands and serves no session.
pub(crate) struct Stream {
    pub(crate) conn: Conn,
    pub(crate) route: Arc<Route>,
}

impl Warm {
    pub(crate) fn new(opener: Arc<Opener>) -> Rc<Self> {
        Rc::new(Self { opener, kept: RefCell::default(), pool: Pool::new(BOUNDS) })
    }

    /// A stream for a session, if one is ready.
    pub(crate) async fn take(&self) -> Option<Stream> {
        let taken = loop {
            let Some(stream) = self.pop() else { break None };
            if let Some(stream) = self.still_good(stream).await {
                break Some(stream);
            }
        };
        self.pool.on_take(self.idle());
        taken
    }

    fn pop(&self) -> Option<Stream> {
        self.kept.borrow_mut().pop_back()
    }

    /// Keeps a stream for its next session.
    pub(crate) fn keep(&self, stream: Stream) {
        if !self.opener.routes.is_first(&stream.route) {
            return close(stream.conn);
        }
        let mut kept = self.kept.borrow_mut();
        kept.push_back(stream);
        if kept.len() > KEPT_MAX
            && let Some(oldest) = kept.pop_front()
        {
            close(oldest.conn);
        }
        drop(kept);
        self.pool.on_idle(self.idle());
    }

    /// Takes back the stream of a session that has ended cleanly here.
    pub(crate) fn give_back(self: &Rc<Self>, session: Session) {
        let Session { conn, id, route } = session;
        if conn.framing() == Framing::Raw {
            return conn.close_gently();
        }
        let this = self.clone();
        spawn(async move {
            match settled(&conn, id, Speaker::Gateway, Side::Target).await {
                Ok(()) => this.keep(Stream { conn, route }),
                Err(ended) => {
                    tracing::debug!("a finished session was not confirmed: {ended}");
                    close(conn);
                }
            }
        });
    }

    /// Closes those by a token, or to a gateway, that sessions are not asked for with any more; others take their place.
    fn retire_old(&self) {
        let kept = std::mem::take(&mut *self.kept.borrow_mut());
        let (kept, old): (VecDeque<_>, VecDeque<_>) =
            kept.into_iter().partition(|stream| self.opener.routes.is_first(&stream.route));
        *self.kept.borrow_mut() = kept;
        old.into_iter().for_each(|stream| close(stream.conn));
        self.pool.ring();
    }

    /// None of them is worth anything any more.
    pub(crate) fn clear(&self) {
        self.kept.borrow_mut().clear();
        self.pool.ring();
    }

    /// Descriptors are short: one stream less, and none is opened ahead for a while.
    pub(crate) fn shed(&self) {
        let oldest = self.kept.borrow_mut().pop_front();
        if let Some(oldest) = oldest {
            close(oldest.conn);
        }
        self.pool.hold(SHORT_PAUSE);
    }

    /// Opens what is wanted and retires what is not, for ever.
    pub(crate) async fn tend(self: &Rc<Self>, presence: &Presence) {
        future::or(self.follow_tokens(presence), self.follow_gateway(presence)).await;
    }

    async fn follow_tokens(&self, presence: &Presence) {
        loop {
            // Before the look: what is renewed during it is heard.
            let renewed = presence.renewed();
            self.retire_old();
            renewed.await;
        }
    }

    async fn follow_gateway(self: &Rc<Self>, presence: &Presence) {
        loop {
            presence.back().await;
            future::or(self.tend_while_there(), presence.gone()).await;
            // The gateway is away, and whoever sends something on these would not know whether it came.
            self.clear();
        }
    }

    async fn tend_while_there(self: &Rc<Self>) {
        let keeper = Keeper {
            idle_and_busy: &|| (self.idle(), 0),
            retire: &|count| self.retire(count),
            open_one: &|| self.open_one(),
        };
        let looking = async {
            loop {
                sleep(LOOK_EVERY).await;
                self.look_after_all().await;
            }
        };
        future::or(looking, self.pool.keep(TICK, keeper)).await;
    }

    fn idle(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "KEPT_MAX at the most")]
        let idle = self.kept.borrow().len() as u32;
        idle
    }

    fn retire(&self, count: u32) {
        for _ in 0..count {
            let oldest = self.kept.borrow_mut().pop_front();
            if let Some(oldest) = oldest {
                close(oldest.conn);
            }
        }
    }

    fn open_one(self: &Rc<Self>) {
        let route = self.opener.routes.first();
        if route.framing() == Framing::Raw {
            return;
        }
        let (this, opening) = (self.clone(), self.pool.begin());
        spawn(async move {
            let opened = this.open(&route).await;
            drop(opening);
            match opened {
                Ok(conn) => {
                    this.pool.opened();
                    this.opener.routes.on_taken(&route);
                    this.keep(Stream { conn, route });
                }
                Err(e) if this.may_open_by_another(&e, &route) => this.pool.ring(),
                Err(e) => this.failed(&e),
            }
        });
    }

    /// Whether a stream was refused for its token, and there is another one to ask with.
    fn may_open_by_another(&self, error: &TunnelError, route: &Arc<Route>) -> bool {
        matches!(error, TunnelError::Refused(refused) if refused.code == RefusalCode::Unauthenticated)
            && self.opener.routes.has_another(route)
    }

    async fn open(&self, route: &Route) -> Result<Conn, TunnelError> {
        let protocol = Protocol { channel: Channel::Stream, framing: Framing::Framed };
        // Nothing is opened ahead out of the reserve, nor in place of a connection that could be accepted.
        let short = |e| TunnelError::Conn(ConnError::Io(e));
        drop((descriptors::place().map_err(short)?, descriptors::place().map_err(short)?));
        Ok(peer::open(&route.gateway, protocol, Ask::Nothing, OPEN_TIMEOUT).await?.0)
    }

    fn failed(&self, error: &TunnelError) {
        // Whoever needs a session meets the same trouble, and says it.
        tracing::debug!("no stream could be opened ahead: {error}");
        let refused = matches!(error, TunnelError::Refused(_));
        self.pool.failed(|pause| if refused { pause.max(REFUSED_PAUSE) } else { pause });
    }

    /// Answers the pings of all, and drops those that broke.
    async fn look_after_all(&self) {
        let kept = std::mem::take(&mut *self.kept.borrow_mut());
        for stream in kept {
            if let Some(stream) = self.still_good(stream).await {
                self.kept.borrow_mut().push_back(stream);
            }
        }
    }

    /// A kept stream, if it can still be used: nothing has come on it but pings, which are answered
    /// here, and they not too long ago.
    async fn still_good(&self, stream: Stream) -> Option<Stream> {
        let broken = future::poll_once(stream.conn.attend()).await.is_some();
        if broken || stream.conn.heard_at().elapsed() >= HEARD_WITHIN {
            return None;
        }
        if !self.opener.routes.is_first(&stream.route) {
            close(stream.conn);
            return None;
        }
        Some(stream)
    }
}

#[cfg(test)]
mod tests {
    use std::{ops::ControlFlow, time::Instant};

    use futures_lite::future::zip;
    use narrowlink_dataplane::{run::timer::sleep, tunnel::settle::settle};
    use narrowlink_proto::id::LinkSecret;

    use super::*;
    use crate::{
        fixture::{
            Port, config, heard, id, no, opener, renew, run, stream as stream_to, tunnel_ends, unread,
        },
        renewal::Renewal,
    };

    const MS: Duration = Duration::from_millis(1);

    /// A stream that stands, and the gateway's end of it.
    fn stream(warm: &Warm, index: usize) -> (Stream, Conn) {
        stream_to(&warm.opener, index)
    }

    /// Runs a test on a runtime of its own.
    fn test(main: impl AsyncFnOnce(Rc<Warm>)) {
        run(async || main(Warm::new(opener(&["a:1", "b:1"]))).await);
    }

    #[test]
    fn the_newest_stream_is_taken_first_and_only_once() {
        test(async |warm| {
            let ((one, _a), (two, b)) = (stream(&warm, 0), stream(&warm, 0));
            warm.keep(one);
            warm.keep(two);
            let newest = warm.take().await.unwrap();
            newest.conn.ping().unwrap();
            assert_ne!(unread(&b), 0);
            assert!(warm.take().await.is_some());
            assert!(warm.take().await.is_none());
        });
    }

    #[test]
    fn a_stream_that_its_gateway_has_closed_is_never_handed_out() {
        test(async |warm| {
            let ((one, gone), (two, there)) = (stream(&warm, 0), stream(&warm, 0));
            warm.keep(two);
            warm.keep(one);
            drop(gone);
            // A ping is no end, and is answered on the way.
            there.ping().unwrap();
            assert!(warm.take().await.is_some());
            assert_eq!(unread(&there), 6, "a masked pong without payload");
            assert!(warm.take().await.is_none());
        });
    }

    #[test]
    fn streams_of_a_gateway_that_is_not_preferred_any_more_are_closed() {
        test(async |warm| {
            let ((kept, old), (other, foreign)) = (stream(&warm, 0), stream(&warm, 1));
            warm.keep(other);
            assert_ne!(unread(&foreign), 0, "it is told so");
            warm.keep(kept);
            warm.opener.routes.prefer(&warm.opener.routes.at(1));
            assert!(warm.take().await.is_none());
            assert_ne!(unread(&old), 0);
        });
    }

    #[test]
    fn streams_by_a_token_that_was_replaced_are_closed_and_others_asked_for() {
        test(async |warm| {
            let ((kept, old), (busy, later)) = (stream(&warm, 0), stream(&warm, 0));
            warm.keep(kept);
            renew(&warm.opener.routes, "newer");
            warm.retire_old();
            assert_ne!(unread(&old), 0, "it is told so");
            assert_eq!(warm.pool.missing((warm.idle(), 0)), 1);
            warm.keep(busy);
            assert_ne!(unread(&later), 0, "one that served meanwhile as well");
            let (new, _new) = stream(&warm, 0);
            warm.keep(new);
            warm.retire_old();
            assert!(warm.take().await.is_some());
        });
    }

    #[test]
    fn a_newer_token_is_heard_of_by_the_streams_of_all_workers() {
        run(async || {
            let opener = opener(&["a:1"]);
            let presence = Presence::new(Box::new(|_| ControlFlow::Break(())));
            let workers = [(); 2].map(|()| Warm::new(opener.clone()));
            let gateways = workers.each_ref().map(|warm| {
                let (kept, gateway) = stream(warm, 0);
                warm.keep(kept);
                gateway
            });
            let tending = zip(workers[0].tend(&presence), workers[1].tend(&presence));
            let renewing = async {
                sleep(MS).await;
                assert_eq!(gateways.each_ref().map(unread), [0, 0]);
                renew(&opener.routes, "newer");
                presence.renew();
                for gateway in &gateways {
                    assert!(matches!(heard(gateway).await, Err(ConnError::Closed { .. })));
                }
            };
            let tended = async {
                tending.await;
            };
            future::or(tended, renewing).await;
        });
    }

    #[test]
    fn no_more_than_a_handful_are_kept_and_the_oldest_goes_first() {
        test(async |warm| {
            let (oldest, gone) = stream(&warm, 0);
            warm.keep(oldest);
            let mut peers = Vec::new();
            for _ in 0..KEPT_MAX {
                let (one, peer) = stream(&warm, 0);
                warm.keep(one);
                peers.push(peer);
            }
            assert_eq!(warm.idle() as usize, KEPT_MAX);
            assert_ne!(unread(&gone), 0, "it is told so");
        });
    }

    #[test]
    fn a_burst_asks_for_more_and_a_gateway_that_refuses_is_left_alone_for_a_while() {
        test(async |warm| {
            assert_eq!(warm.pool.missing((warm.idle(), 0)), 1);
            let (one, _peer) = stream(&warm, 0);
            warm.keep(one);
            assert_eq!(warm.pool.missing((warm.idle(), 0)), 0);
            warm.take().await.unwrap();
            assert_eq!(warm.pool.missing((warm.idle(), 0)), 2);
            let asked_at = Instant::now();
            warm.failed(&TunnelError::Refused(no(RefusalCode::Limited)));
            let retry_at = warm.pool.retry_at(Instant::now()).unwrap();
            assert!(retry_at >= asked_at + REFUSED_PAUSE - Duration::from_secs(1));
        });
    }

    /// A session that has ended cleanly here, and the gateway's end of its stream.
    fn finished(warm: &Warm, framing: Framing) -> (Session, Conn) {
        let (conn, gateway) = tunnel_ends(framing);
        (Session { conn, id: id(1), route: warm.opener.routes.at(0) }, gateway)
    }

    #[test]
    fn a_stream_serves_again_only_once_the_gateway_has_said_that_its_session_is_over() {
        test(async |warm| {
            let (session, gateway) = finished(&warm, Framing::Framed);
            warm.give_back(session);
            assert!(warm.take().await.is_none());
            settle(&gateway, id(1), Side::Client).await.unwrap();
            while warm.idle() == 0 {
                sleep(MS).await;
            }
            assert!(warm.take().await.is_some());

            let (session, gateway) = finished(&warm, Framing::Framed);
            warm.give_back(session);
            settle(&gateway, id(2), Side::Client).await.unwrap();
            assert!(matches!(heard(&gateway).await, Err(ConnError::Closed { .. })));
            let (session, gateway) = finished(&warm, Framing::Raw);
            warm.give_back(session);
            assert_eq!(gateway.wire().read(&mut [0; 1]).await.unwrap(), 0, "a raw one has served");
            assert_eq!(warm.idle(), 0);
        });
    }

    #[test]
    fn when_descriptors_are_short_the_oldest_stream_goes_and_none_is_opened_ahead_for_a_while() {
        test(async |warm| {
            let ((oldest, gone), (newest, stays)) = (stream(&warm, 0), stream(&warm, 0));
            warm.keep(oldest);
            warm.keep(newest);
            warm.shed();
            assert_ne!(unread(&gone), 0, "it is told so");
            assert_eq!((unread(&stays), warm.idle()), (0, 1));
            assert!(warm.pool.retry_at(Instant::now()).unwrap() > Instant::now() + SHORT_PAUSE / 2);
        });
    }

    #[test]
    fn a_stream_is_ready_as_soon_as_the_gateway_is_there_and_none_stays_when_it_is_away() {
        run(async || {
            let port = Port::listen();
            let gateway = port.addr.to_string();
            let warm = Warm::new(opener(&[&gateway]));
            let presence = Presence::new(Box::new(|_| ControlFlow::Break(())));
            let renewal = Renewal::new(&config(&[&gateway]));
            let running = async {
                zip(presence.hold(&warm.opener.routes, &renewal), warm.tend(&presence)).await;
            };
            let playing = async {
                // The link comes first.
                let (link, ..) = port.link(Speaker::Client, LinkSecret::from_bytes([2; 32])).await;
                let (stream, request) = port.upgrade().await;
                assert!(request.open.is_none() && request.protocol.channel == Channel::Stream);
                while warm.idle() == 0 {
                    sleep(MS).await;
                }
                drop(link);
                assert!(heard(&stream).await.is_err());
                assert_eq!(warm.idle(), 0);
            };
            future::or(running, playing).await;
        });
    }
}
