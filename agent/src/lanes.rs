//! Role: the lanes of one link: opened as they are wanted, each serving one dial after the other.
//! Invariants: lanes in all stay within the configured range · a gateway that refuses lanes is asked
//! again only after a growing pause · lanes are spread among the workers · idle lanes end with their link, sessions do not · an idle lane is
//! closed by its gateway: the agent only says that it may be, and serves a dial that crossed this word ·
//! an idle lane has a descriptor for its target.
//! See: ARCHITECTURE.md "Lanes".

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
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
        lock::lock,
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
mod tests;
