//! Role: the lanes of one link: opened as they are wanted, each serving one dial after the other.
//! Invariants: lanes in all stay within the configured range · a gateway that refuses lanes is asked
//! again only after a growing pause · lanes are spread among the workers · idle lanes end with their link, sessions do not · an idle lane is
//! closed by its gateway: the agent only says that it may be, and serves a dial that crossed this word ·
//! an idle lane has a descriptor for its target.
//! See: ARCHITECTURE.md "Lanes".

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_dataplane::{
    peer::{
        self, Ask, Gateway,
        demand::Bounds,
        pool::{Keeper, Pool},
    },
    run::{
        bell::{Gate, Opener},
        descriptors::{self, Place},
        timer::{timeout, timeout_at},
    },
    tunnel::{
        TunnelError,
        conn::{Conn, ConnError},
    },
};
use narrowlink_proto::{
    ended::RefusalCode,
    endpoint::FramingChoice,
    id::{LaneId, LinkId, LinkSecret, SessionId},
    limits::QUIET_PING_INTERVAL,
    message::{Channel, Dial, Message, Speaker},
    upgrade::{Framing, LaneProof, Protocol},
};

use crate::{Shared, serve::serve};

/// For a lane's connection, TLS and upgrade.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A lane silent for so long is pinged ..
const PING_AFTER: Duration = QUIET_PING_INTERVAL;
/// .. and is dead when nothing has come for so long after that.
const PONG_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a gateway may take to close a lane that is not needed any more; ..
const RETIRE_TIMEOUT: Duration = Duration::from_secs(30);
/// .. and when its link is gone, or the agent stops.
const RETIRE_SOON_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two tries at the most while descriptors are short: sessions may end at any time.
const SHORT_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long a lane waits for its next target's descriptor before it retires: a Dial waits unread meanwhile.
const PLACE_PATIENCE: Duration = Duration::from_millis(500);
/// Trouble with lanes that comes and goes is said so often at the most.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Idle lanes that are wanted at the most, whatever happens.
const READY_MAX: u32 = 64;
/// Lanes that are being opened at the same time at the most.
const OPENING_MAX: u32 = 8;

/// A gateway that gives us no more lanes is asked again after this at least: only the end of a session makes room.
const LIMITED_PAUSE: Duration = Duration::from_secs(5);
/// .. after which the gateway has taken notice of it.
const ROOM_PAUSE: Duration = Duration::from_millis(250);
/// The same trouble with lanes is said once in so long, whatever worked meanwhile.
const SAY_AGAIN_EVERY: Duration = Duration::from_secs(60);

/// How many there are of something, on all workers.
pub(crate) type Count = Arc<AtomicU32>;

/// The lanes of one link, on all workers.
pub(crate) struct Lanes {
    shared: Arc<Shared>,
    gateway: Arc<Gateway>,
    link: LinkId,
    secret: LinkSecret,
    pool: Arc<Pool>,
    /// By age; dropping one retires its lane.
    idle: Mutex<BTreeMap<u64, Opener>>,
    next: AtomicU64,
    /// Lanes of all links to this gateway that are in a session.
    busy: Count,
    /// Lanes that the gateway has been told it may close.
    retiring: Count,
    said: Mutex<Said>,
    closed: AtomicBool,
}

/// Held for a look only: nothing waits with it.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was said of the last trouble, and when: the same is said again only after a while.
#[derive(Default)]
struct Said(Option<(Instant, String)>);

/// A lane and a descriptor for its next target, if there was one to be had.
struct Opened {
    conn: Conn,
    place: Option<Place>,
}

impl Said {
    /// A lane was not opened; what is to be said of it.
    fn news(&mut self, error: &TunnelError, now: Instant) -> Option<String> {
        let reason = if is_short(error) {
            "this process is out of descriptors; sessions that end free some".to_owned()
        } else {
            error.to_string()
        };
        if let Some((at, said)) = &self.0 {
            let again = if *said == reason { SAY_AGAIN_EVERY } else { SAY_EVERY };
            if now < *at + again {
                return None;
            }
        }
        self.0 = Some((now, reason.clone()));
        Some(reason)
    }
}

/// How long to wait after a lane was not opened, where a growing pause says this much.
fn pause_after(error: &TunnelError, pause: Duration) -> Duration {
    match error {
        TunnelError::Refused(refused) if refused.code == RefusalCode::Limited => pause.max(LIMITED_PAUSE),
        _ if is_short(error) => pause.min(SHORT_PAUSE_MAX),
        _ => pause,
    }
}

impl Lanes {
    pub(crate) fn new(
        shared: Arc<Shared>,
        gateway: Arc<Gateway>,
        (link, secret): (LinkId, LinkSecret),
        busy: Count,
    ) -> Arc<Self> {
        let range = shared.config.lanes;
        let bounds =
            Bounds { min: range.min, max: range.max, ready_max: READY_MAX, opening_max: OPENING_MAX };
        Arc::new(Self {
            shared,
            gateway,
            link,
            secret,
            pool: Pool::new(bounds),
            idle: Mutex::default(),
            next: AtomicU64::new(0),
            busy,
            retiring: Count::default(),
            said: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    /// The gateway has sessions that wait.
    pub(crate) fn need(&self, count: u32) {
        self.pool.on_need(count);
    }

    /// The link is gone: idle lanes end, sessions go on, nothing new is opened.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let idle = std::mem::take(&mut *lock(&self.idle));
        drop(idle);
    }

    /// Opens what is wanted and retires what is not, for as long as the link stands.
    pub(crate) async fn keep(self: &Arc<Self>) {
        let keeper = Keeper {
            idle_and_busy: &|| self.idle_and_busy(),
            retire: &|count| self.retire_oldest(count),
            open_one: &|| self.open_one(),
        };
        self.pool.keep(self.shared.config.lanes_tick, keeper).await;
    }

    /// How many wait for a dial, and how many others count.
    fn idle_and_busy(&self) -> (u32, u32) {
        let [busy, retiring] = [&self.busy, &self.retiring].map(|count| count.load(Ordering::Relaxed));
        (self.idle(), busy + retiring)
    }

    fn retire_oldest(&self, count: u32) {
        let mut idle = lock(&self.idle);
        for _ in 0..count {
            // The oldest: the gateway hands out the newest first.
            idle.pop_first();
        }
    }

    fn open_one(self: &Arc<Self>) {
        let (lanes, opening) = (self.clone(), self.pool.begin());
        let running = self.shared.tasks.begin();
        self.shared.crew.spawn(move |_| async move {
            let opened = lanes.open().await;
            drop(opening);
            match opened {
                Ok(opened) => {
                    lanes.pool.opened();
                    lanes.live(opened).await;
                }
                Err(e) => lanes.failed(&e),
            }
            lanes.pool.ring();
            drop(running);
        });
    }

    fn idle(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "bounded by the range's maximum, a u32")]
        let idle = lock(&self.idle).len() as u32;
        idle
    }

    async fn open(&self) -> Result<Opened, TunnelError> {
        let short = |e| ConnError::Io(e);
        let (place, own) = (descriptors::place().map_err(short)?, descriptors::place().map_err(short)?);
        let framing = match self.gateway.framing() {
            FramingChoice::Raw => Framing::Raw,
            FramingChoice::Auto | FramingChoice::Framed => Framing::Framed,
        };
        let mut lane = [0; 32];
        getrandom::fill(&mut lane).map_err(|e| ConnError::Io(std::io::Error::other(e)))?;
        let lane = LaneId::from_bytes(lane);
        let proof = self.secret.prove_lane(&self.link, &lane);
        let ask = Ask::Lane(LaneProof { link: self.link, lane, proof });
        let protocol = Protocol { channel: Channel::Lane, framing };
        drop(own);
        let (conn, _) = peer::open(&self.gateway, protocol, ask, OPEN_TIMEOUT).await?;
        Ok(Opened { conn, place: Some(place) })
    }

    fn failed(&self, error: &TunnelError) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        self.pool.failed(|pause| pause_after(error, pause));
        let news = lock(&self.said).news(error, Instant::now());
        if let Some(reason) = news {
            tracing::warn!(gateway = self.gateway.describe(), "no lane could be opened: {reason}");
        }
    }

    /// A lane's life: dials, one after the other.
    async fn live(&self, opened: Opened) {
        let Opened { mut conn, mut place } = opened;
        let mut last = None;
        while let Some(dial) = self.next_dial(&conn, last, place.is_some()).await {
            // A gateway that repeats itself has lost count, and might mix two sessions up.
            if last == Some(dial.session) {
                return conn.close(1002, "this session was dialled before");
            }
            last = Some(dial.session);
            let busy = Counted::new(&self.busy);
            self.pool.on_take(self.idle());
            let served = serve(&self.shared, conn, &dial, place.take()).await;
            drop(busy);
            // Where lanes are short, that has made room.
            self.pool.end_pause_within(ROOM_PAUSE);
            match served {
                Some(again) => conn = again,
                None => return,
            }
            place = descriptors::next_place(PLACE_PATIENCE).await;
        }
        // The gateway has closed it, or does not answer: nothing can be lost.
        match conn.framing() {
            Framing::Framed => conn.close(1000, "this lane is not needed any more"),
            Framing::Raw => conn.close_gently(),
        }
    }

    /// Waits idle for the next dial; `None` when the lane has ended. One that can't serve a dial retires.
    async fn next_dial(&self, conn: &Conn, last: Option<SessionId>, can_serve: bool) -> Option<Dial> {
        let (retire, retired) = Gate::new();
        // Without its link a lane does not stay: the gate is open as soon as its opener is dropped.
        let _parked = can_serve.then(|| Parked::new(self, retire)).flatten();
        self.pool.on_idle(self.idle());
        let retired = async {
            retired.wait().await;
            self.retire(conn).await;
            None
        };
        match future::or(async { Some(listen(conn, last, PING_AFTER, PONG_TIMEOUT).await) }, retired).await? {
            Ok(dial) => dial,
            Err(e) => {
                tracing::debug!("an idle lane ended: {e}");
                None
            }
        }
    }

    /// Tells the gateway that it may close this lane, and returns when it has not for too long. A Dial of its
    /// own may be on its way, so closing is not ours.
    async fn retire(&self, conn: &Conn) {
        let _retiring = Counted::new(&self.retiring);
        let patience = if self.closed.load(Ordering::Acquire) { RETIRE_SOON_TIMEOUT } else { RETIRE_TIMEOUT };
        let told = async {
            if conn.send(&Message::Retire).await.is_ok() {
                future::pending::<()>().await;
            }
        };
        let _ = timeout(patience, told).await;
    }
}

/// Whether there was no descriptor for it.
fn is_short(error: &TunnelError) -> bool {
    match error {
        TunnelError::Connect { source, .. } => source.telling().is_some_and(descriptors::ran_out),
        TunnelError::Conn(ConnError::Io(source)) => descriptors::ran_out(source),
        _ => false,
    }
}

/// The next dial on an idle lane; pings a gateway that is silent, and gives it up when it stays so.
/// `None` when what came was the rest of the last session, which was refused here.
async fn listen(
    conn: &Conn,
    last: Option<SessionId>,
    ping_after: Duration,
    pong_timeout: Duration,
) -> Result<Option<Dial>, ConnError> {
    // A ping that has no answer yet.
    let mut pinged_at: Option<Instant> = None;
    loop {
        let heard_at = conn.heard_at();
        // Counted in milliseconds; but a ping comes only long after the last sign of life before it.
        pinged_at = pinged_at.filter(|&at| heard_at + ping_after / 2 < at);
        let due = match (conn.framing(), pinged_at) {
            (Framing::Raw, _) => {
                return dial_of(conn.recv(Speaker::Gateway, Channel::Lane).await?).map(Some);
            }
            (Framing::Framed, None) if heard_at.elapsed() < ping_after => heard_at + ping_after,
            (Framing::Framed, None) => {
                conn.ping()?;
                // From now on, however late this is: this program may have stood still.
                *pinged_at.insert(Instant::now()) + pong_timeout
            }
            (Framing::Framed, Some(at)) if at.elapsed() >= pong_timeout => {
                return Err(ConnError::Unexpected("silence where an answer to a ping was due"));
            }
            (Framing::Framed, Some(at)) => at + pong_timeout,
        };
        let heard = async {
            match last {
                Some(last) => conn.recv_after(last, Speaker::Gateway, Channel::Lane).await,
                None => conn.recv(Speaker::Gateway, Channel::Lane).await.map(Some),
            }
        };
        if let Ok(heard) = timeout_at(due, heard).await {
            return heard?.map(dial_of).transpose();
        }
    }
}

fn dial_of(message: Message) -> Result<Dial, ConnError> {
    match message {
        Message::Dial(dial) => Ok(dial),
        _ => Err(ConnError::Unexpected("another message where a Dial was due")),
    }
}

/// A lane's place among the idle ones; left when dropped.
struct Parked<'a> {
    lanes: &'a Lanes,
    number: u64,
}

impl<'a> Parked<'a> {
    /// `None` once the link is gone.
    fn new(lanes: &'a Lanes, retire: Opener) -> Option<Self> {
        let number = lanes.next.fetch_add(1, Ordering::Relaxed);
        let mut idle = lock(&lanes.idle);
        // Looked at with the book in hand: who closes it says so before it is emptied.
        if lanes.closed.load(Ordering::Acquire) {
            return None;
        }
        idle.insert(number, retire);
        Some(Self { lanes, number })
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        let retire = lock(&self.lanes.idle).remove(&self.number);
        drop(retire);
    }
}

/// One more, until dropped.
struct Counted(Count);

impl Counted {
    fn new(count: &Count) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io};

    use futures_lite::future::zip;
    use narrowlink_dataplane::{
        run::{timer::sleep, worker::spawn},
        transport::wire::Wire,
    };
    use narrowlink_proto::ended::Refused;

    use super::*;
    use crate::{
        config::LaneRange,
        fixture::{
            Fixture, Port, denied, dial, exchange, expect_refusal, heard, id, read_all, run, send_data,
            tunnel_ends,
        },
    };

    const MS: Duration = Duration::from_millis(1);

    /// A lane that lives from now on, as its gateway has it.
    fn open(lanes: &Arc<Lanes>) -> Conn {
        let (ours, theirs) = tunnel_ends(Framing::Framed);
        let (lanes, running) = (lanes.clone(), lanes.shared.tasks.begin());
        spawn(async move {
            lanes.live(Opened { conn: ours, place: descriptors::place().ok() }).await;
            drop(running);
        });
        theirs
    }

    async fn expect_retirement(gateway: &Conn) {
        let said = heard(gateway).await.unwrap();
        assert!(matches!(said, Message::Retire), "{}", said.name());
    }

    /// Runs a test on a runtime of its own: an agent that keeps one lane ready, and has four at the most.
    fn test(main: impl AsyncFnOnce(Fixture, Arc<Lanes>)) {
        run(async || {
            let range = LaneRange { min: 1, max: 4 };
            let at = Fixture::with("gw.example:80".to_owned(), |config| config.lanes = range);
            let link = (LinkId::from_bytes([1; 32]), LinkSecret::from_bytes([2; 32]));
            let lanes = Lanes::new(at.shared.clone(), at.gateway(), link, Count::default());
            main(at, lanes).await;
        });
    }

    #[test]
    fn a_gateway_that_gives_no_more_lanes_is_asked_seldom_and_complained_of_once() {
        let full = TunnelError::Refused(Refused::new(RefusalCode::Limited, "this token has 2 lanes already"));
        let (mut said, start) = (Said::default(), Instant::now());
        let times = (0..100).filter(|n| said.news(&full, start + LIMITED_PAUSE * *n).is_some()).count();
        assert_eq!(times, 100 * 5 / 60 + 1);
        let gone = TunnelError::Refused(Refused::new(RefusalCode::Draining, "x"));
        assert!(Said::default().news(&gone, start).is_some());
        assert!(said.news(&gone, start + LIMITED_PAUSE * 100).is_some(), "another trouble");
        let short = TunnelError::Conn(ConnError::Io(io::Error::from_raw_os_error(24)));
        let words = Said::default().news(&short, start).unwrap();
        assert!(words.contains("out of descriptors"), "{words}");
        for (error, pause, least, most) in [
            (&full, MS, LIMITED_PAUSE, LIMITED_PAUSE),
            (&full, LIMITED_PAUSE * 2, LIMITED_PAUSE * 2, LIMITED_PAUSE * 2),
            (&gone, MS, MS, MS),
            (&short, MS, MS, MS),
            (&short, LIMITED_PAUSE, SHORT_PAUSE_MAX, SHORT_PAUSE_MAX),
        ] {
            let pause = pause_after(error, pause);
            assert!((least..=most).contains(&pause), "{error}: {pause:?}");
        }
    }

    #[test]
    fn lanes_in_all_stay_within_the_range_whatever_the_gateway_asks_for() {
        test(async |_at, lanes| {
            let missing = || lanes.pool.missing(lanes.idle_and_busy());
            assert_eq!(missing(), 1, "without a word of the gateway's");
            lanes.need(u32::MAX);
            assert_eq!(missing(), 4);
            let _of_another_link = Counted::new(&lanes.busy);
            assert_eq!(missing(), 3);
            let idle = Parked::new(&lanes, Gate::new().0);
            let _opening = lanes.pool.begin();
            assert_eq!(missing(), 1);
            drop(idle);
            let _retired_but_not_closed = Counted::new(&lanes.retiring);
            assert_eq!(missing(), 1);
        });
    }

    #[test]
    fn a_dial_that_crosses_the_retirement_of_its_lane_is_served() {
        test(async |at, lanes| {
            let gateway = open(&lanes);
            gateway.send(&denied(1)).await.unwrap();
            expect_refusal(&gateway, 1).await;
            assert_eq!(lanes.idle(), 1);
            lanes.close();
            expect_retirement(&gateway).await;
            gateway.send(&denied(2)).await.unwrap();
            expect_refusal(&gateway, 2).await;
            expect_retirement(&gateway).await;
            gateway.close(1001, "");
            at.shared.tasks.done().await;
        });
    }

    #[test]
    fn of_lanes_that_lie_unused_the_oldest_are_let_go_and_their_gateway_closes_them() {
        test(async |at, lanes| {
            let [first, second, newest] = [(); 3].map(|()| open(&lanes));
            while lanes.idle() < 3 {
                sleep(MS).await;
            }
            lanes.retire_oldest(2);
            zip(expect_retirement(&first), expect_retirement(&second)).await;
            // Until they are closed they count, and nothing new takes their place.
            assert_eq!(lanes.idle_and_busy(), (1, 2));
            for gateway in [&first, &second, &newest] {
                assert!(future::poll_once(heard(gateway)).await.is_none());
            }
            [first, second].into_iter().for_each(|gateway| gateway.close(1001, ""));
            while lanes.idle_and_busy().1 > 0 {
                sleep(MS).await;
            }
            newest.send(&denied(1)).await.unwrap();
            expect_refusal(&newest, 1).await;
            newest.close(1001, "");
            at.shared.tasks.done().await;
        });
    }

    #[test]
    fn a_lost_link_takes_its_idle_lanes_along_and_leaves_a_session_alone() {
        test(async |at, lanes| {
            let target = Port::listen();
            let (idle, busy) = (open(&lanes), open(&lanes));
            busy.send(&Message::Dial(dial(id(1), target.target()))).await.unwrap();
            let (dialled, wire) = zip(heard(&busy), target.accept()).await;
            assert!(matches!(dialled, Ok(Message::Dialled { session, .. }) if session == id(1)));
            lanes.close();
            expect_retirement(&idle).await;
            let serving = async {
                let heard = read_all(&wire).await.unwrap();
                wire.write_all(&heard).await.unwrap();
                wire.close_gently();
            };
            let (said, ()) = zip(exchange(&busy, id(1), b"still here"), serving).await;
            assert_eq!(said.unwrap(), b"still here");
            let ready = heard(&busy).await.unwrap();
            assert!(matches!(ready, Message::Ready { session } if session == id(1)));
            // Without its link it is of no use to anybody.
            expect_retirement(&busy).await;
            [idle, busy].into_iter().for_each(|gateway| gateway.close(1001, ""));
            at.shared.tasks.done().await;
        });
    }

    #[test]
    fn a_gateway_that_dials_a_session_twice_is_sent_away() {
        test(async |at, lanes| {
            let gateway = open(&lanes);
            for n in [1, 2] {
                gateway.send(&denied(n)).await.unwrap();
                expect_refusal(&gateway, n).await;
            }
            gateway.send(&denied(2)).await.unwrap();
            let Err(ConnError::Closed { code: 1002, why }) = heard(&gateway).await else {
                panic!("not closed")
            };
            assert_eq!(why, "this session was dialled before");
            at.shared.tasks.done().await;
        });
    }

    #[test]
    fn what_follows_a_refused_dial_reaches_no_session_and_ends_the_lane() {
        test(async |at, lanes| {
            let gateway = open(&lanes);
            gateway.send(&denied(1)).await.unwrap();
            send_data(&gateway, b"for the target of the first").await;
            gateway.send(&denied(2)).await.unwrap();
            expect_refusal(&gateway, 1).await;
            while lanes.idle() == 0 {
                sleep(MS).await;
            }
            assert!(future::poll_once(heard(&gateway)).await.is_none(), "the second is not answered");
            gateway.hang_up();
            at.shared.tasks.done().await;
        });
    }

    #[test]
    fn a_lane_without_a_descriptor_for_its_target_retires_at_once() {
        test(async |_at, lanes| {
            let (ours, gateway) = tunnel_ends(Framing::Framed);
            let told = async {
                expect_retirement(&gateway).await;
                assert_eq!(lanes.idle_and_busy(), (0, 1));
                gateway.close(1001, "");
            };
            zip(lanes.live(Opened { conn: ours, place: None }), told).await;
        });
    }

    #[test]
    fn a_silent_gateway_is_pinged_and_given_up_only_when_it_does_not_answer() {
        run(async || {
            let (ours, theirs) = tunnel_ends(Framing::Framed);
            let answered_at = Cell::new((0, Instant::now()));
            let answering = async {
                for n in 1..=3 {
                    expect_ping(theirs.wire()).await;
                    theirs.wire().write_all(&[0x8A, 0]).await.unwrap();
                    answered_at.set((n, Instant::now()));
                }
                future::pending().await
            };
            // Looked after first: however late this thread is, the answers are in time.
            let ended = future::or(answering, listen(&ours, None, 20 * MS, 40 * MS)).await;
            let why = ended.unwrap_err().to_string();
            assert!(why.contains("silence where an answer to a ping was due"), "{why}");
            let (answers, last) = answered_at.get();
            // The clock of signs of life counts whole milliseconds.
            assert!(answers == 3 && last.elapsed() >= 58 * MS, "{answers}, {:?}", last.elapsed());
        });
    }

    #[test]
    fn a_ping_that_goes_out_late_has_as_much_time_for_its_answer_as_any() {
        run(async || {
            let (ours, theirs) = tunnel_ends(Framing::Framed);
            let standing_still = async {
                std::thread::sleep(100 * MS);
                expect_ping(theirs.wire()).await;
                sleep(MS).await;
                theirs.send(&denied(1)).await.unwrap();
                future::pending().await
            };
            let heard = future::or(standing_still, listen(&ours, None, 20 * MS, 40 * MS)).await;
            assert_eq!(heard.unwrap().unwrap().session, id(1));
        });
    }

    async fn expect_ping(gateway: &Wire) {
        let mut ping = [0; 64];
        assert_eq!((gateway.read(&mut ping).await.unwrap(), ping[0]), (6, 0x89));
    }

    #[test]
    fn what_is_no_dial_ends_a_lane_and_is_named() {
        run(async || {
            for framing in [Framing::Framed, Framing::Raw] {
                let (ours, theirs) = tunnel_ends(framing);
                theirs.send(&Message::Fin { session: id(1), bytes: 0 }).await.unwrap();
                let why = listen(&ours, None, PING_AFTER, PONG_TIMEOUT).await.unwrap_err().to_string();
                assert!(why.contains("another message where a Dial was due"), "{why}");
            }
        });
    }
}
