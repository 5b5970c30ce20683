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
    run::{
        backoff::Backoff,
        descriptors::{self, Place},
        timer::{sleep_until, timeout, timeout_at},
    },
    tunnel::{
        self, Ask, Gateway, TunnelError,
        conn::{Conn, ConnError},
        demand::{Bounds, Census, Demand},
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

use crate::{
    Shared,
    bell::{Doorbell, Gate, Opener},
    serve::serve,
};

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
    demand: Mutex<Demand>,
    /// By age; dropping one retires its lane.
    idle: Mutex<BTreeMap<u64, Opener>>,
    next: AtomicU64,
    opening: Count,
    /// Lanes of all links to this gateway that are in a session.
    busy: Count,
    /// Lanes that the gateway has been told it may close.
    retiring: Count,
    /// Rung whenever the census changes.
    changed: Doorbell,
    failures: Mutex<Failures>,
    closed: AtomicBool,
}

/// Held for a look only: nothing waits with it.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Failures {
    backoff: Backoff,
    retry_at: Option<Instant>,
    /// What was said of this, and when: the same is said again only after a while.
    said: Option<(Instant, String)>,
}

/// A lane and a descriptor for its next target, if there was one to be had.
struct Opened {
    conn: Conn,
    place: Option<Place>,
}

impl Failures {
    /// A lane was opened.
    fn clear(&mut self) {
        self.backoff.reset();
        self.retry_at = None;
    }

    /// A session has ended: where lanes are short, that has made room.
    fn make_room(&mut self, now: Instant) {
        self.retry_at = self.retry_at.map(|at| at.min(now + ROOM_PAUSE));
    }

    /// One was not; what is to be said of it.
    fn note(&mut self, error: &TunnelError, now: Instant, random: u64) -> Option<String> {
        let pause = self.backoff.next(random);
        let limited = matches!(error, TunnelError::Refused(refused) if refused.code == RefusalCode::Limited);
        let short = is_short(error);
        self.retry_at = Some(match (limited, short) {
            (true, _) => now + pause.max(LIMITED_PAUSE),
            (_, true) => now + pause.min(SHORT_PAUSE_MAX),
            _ => now + pause,
        });
        let reason = if short {
            "this process is out of descriptors; sessions that end free some".to_owned()
        } else {
            error.to_string()
        };
        if let Some((at, said)) = &self.said {
            let again = if *said == reason { SAY_AGAIN_EVERY } else { SAY_EVERY };
            if now < *at + again {
                return None;
            }
        }
        self.said = Some((now, reason.clone()));
        Some(reason)
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
            demand: Mutex::new(Demand::new(bounds)),
            idle: Mutex::default(),
            next: AtomicU64::new(0),
            opening: Count::default(),
            busy,
            retiring: Count::default(),
            changed: Doorbell::new(),
            failures: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    /// The gateway has sessions that wait.
    pub(crate) fn need(&self, count: u32) {
        lock(&self.demand).on_need(count);
        self.changed.ring();
    }

    /// The link is gone: idle lanes end, sessions go on, nothing new is opened.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let idle = std::mem::take(&mut *lock(&self.idle));
        drop(idle);
    }

    /// Opens what is wanted and retires what is not, for as long as the link stands.
    pub(crate) async fn keep(self: &Arc<Self>) {
        let tick = self.shared.config.lanes_tick;
        let mut tick_at = Instant::now() + tick;
        loop {
            let now = Instant::now();
            if now >= tick_at {
                tick_at = now + tick;
                self.retire_surplus();
            }
            let retry_at = lock(&self.failures).retry_at.filter(|&at| at > now);
            if retry_at.is_none() {
                let missing = lock(&self.demand).missing(self.census());
                for _ in 0..missing {
                    self.start_one();
                }
            }
            let due = retry_at.map_or(tick_at, |at| at.min(tick_at));
            future::or(self.changed.wait(), sleep_until(due)).await;
        }
    }

    fn census(&self) -> Census {
        #[expect(clippy::cast_possible_truncation, reason = "bounded by the range's maximum, a u32")]
        let idle = lock(&self.idle).len() as u32;
        let [opening, busy, retiring] =
            [&self.opening, &self.busy, &self.retiring].map(|count| count.load(Ordering::Relaxed));
        Census { idle, opening, busy: busy + retiring }
    }

    fn retire_surplus(&self) {
        let census = self.census();
        let surplus = lock(&self.demand).on_tick(census.idle);
        let mut idle = lock(&self.idle);
        for _ in 0..surplus {
            // The oldest: the gateway hands out the newest first.
            idle.pop_first();
        }
    }

    fn start_one(self: &Arc<Self>) {
        let (lanes, opening) = (self.clone(), Counted::new(&self.opening));
        let running = self.shared.tasks.begin();
        self.shared.crew.spawn(move || async move {
            let opened = lanes.open().await;
            drop(opening);
            match opened {
                Ok(opened) => {
                    lock(&lanes.failures).clear();
                    lanes.live(opened).await;
                }
                Err(e) => lanes.failed(&e),
            }
            lanes.changed.ring();
            drop(running);
        });
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
        let (conn, _) = tunnel::open(&self.gateway, protocol, ask, OPEN_TIMEOUT).await?;
        Ok(Opened { conn, place: Some(place) })
    }

    fn failed(&self, error: &TunnelError) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        // Without randomness the full pause: no jitter, but no spinning either.
        let random = getrandom::u64().unwrap_or(u64::MAX);
        let news = lock(&self.failures).note(error, Instant::now(), random);
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
            let census = self.census();
            lock(&self.demand).on_take(census.idle);
            let busy = Counted::new(&self.busy);
            self.changed.ring();
            let served = serve(&self.shared, conn, &dial, place.take()).await;
            drop(busy);
            lock(&self.failures).make_room(Instant::now());
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
        let census = self.census();
        lock(&self.demand).on_idle(census.idle);
        self.changed.ring();
        let retired = async {
            retired.wait().await;
            self.retire(conn).await;
            None
        };
        match future::or(async { Some(listen(conn, last).await) }, retired).await? {
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
async fn listen(conn: &Conn, last: Option<SessionId>) -> Result<Option<Dial>, ConnError> {
    let mut pinged = false;
    loop {
        let dead_at = conn.heard_at() + PING_AFTER + PONG_TIMEOUT;
        let due = match conn.framing() {
            Framing::Raw => {
                return dial_of(conn.recv(Speaker::Gateway, Channel::Lane).await?).map(Some);
            }
            Framing::Framed if conn.heard_at().elapsed() < PING_AFTER => {
                pinged = false;
                conn.heard_at() + PING_AFTER
            }
            Framing::Framed if !pinged => {
                conn.ping()?;
                pinged = true;
                dead_at
            }
            Framing::Framed if Instant::now() >= dead_at => {
                return Err(ConnError::Unexpected("silence where an answer to a ping was due"));
            }
            Framing::Framed => dead_at,
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
    use narrowlink_proto::ended::Refused;

    use super::*;

    #[test]
    fn a_gateway_that_gives_no_more_lanes_is_asked_seldom_and_complained_of_once() {
        let full = TunnelError::Refused(Refused::new(RefusalCode::Limited, "this token has 2 lanes already"));
        let mut failures = Failures::default();
        let start = Instant::now();
        let said: Vec<_> = (0..100)
            .map(|n| {
                let now = start + LIMITED_PAUSE * n;
                let said = failures.note(&full, now, 0);
                assert!(failures.retry_at >= Some(now + LIMITED_PAUSE));
                // Sessions end meanwhile, and their lanes come back.
                failures.clear();
                said.is_some()
            })
            .collect();
        assert_eq!(said.iter().filter(|said| **said).count(), 100 * 5 / 60 + 1);
        let gone = TunnelError::Refused(Refused::new(RefusalCode::Draining, "x"));
        assert!(Failures::default().note(&gone, start, 0).is_some());
        assert!(failures.note(&gone, start + LIMITED_PAUSE * 100, 0).is_some());
    }
}
