//! Role: keeps connections to a gateway ready: an agent's lanes, a client's streams. Opens as many as the demand for them
//! says, retires those that lie unused, and pauses when none can be had.
//! Invariants: a connection that is being opened is counted until it has come or failed · nothing is opened in a pause ·
//! whoever keeps the idle ones tells of each that is taken or comes · no lock is held for longer than a look.
//! See: `demand`, for how many; ARCHITECTURE.md "Lanes" and "Warm streams".

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures_lite::future;

use crate::{
    peer::demand::{Bounds, Census, Demand},
    run::{backoff::Backoff, bell::Doorbell, lock::lock, timer::sleep_until},
};

/// How many are kept ready, and what is under way for it.
pub struct Pool {
    demand: Mutex<Demand>,
    opening: AtomicU32,
    retry: Mutex<Retry>,
    /// Rung whenever what there is, or what is wanted, has changed.
    changed: Doorbell,
}

/// When another one may be opened.
#[derive(Default)]
struct Retry {
    backoff: Backoff,
    /// After a failure.
    at: Option<Instant>,
    /// While none is wanted, whatever comes of those that are under way.
    held_until: Option<Instant>,
}

/// What whoever has the connections of a pool does with them.
pub struct Keeper<'a> {
    /// How many wait for a session, and how many are in one, as far as they count against the maximum.
    pub idle_and_busy: &'a dyn Fn() -> (u32, u32),
    /// Lets so many idle ones go, which are not needed any more.
    pub retire: &'a dyn Fn(u32),
    /// Begins to open one: an [`Opening`] of this pool lives until it has come or failed.
    pub open_one: &'a dyn Fn(),
}

/// A connection that is being opened, until dropped.
pub struct Opening(Arc<Pool>);

impl Drop for Opening {
    fn drop(&mut self) {
        // Without a ring: what came of it is told next, and one more would be opened in between.
        self.0.opening.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// One that wants the minimum.
    pub fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            demand: Mutex::new(Demand::new(bounds)),
            opening: AtomicU32::new(0),
            retry: Mutex::default(),
            changed: Doorbell::default(),
        })
    }

    /// One was taken, or looked for in vain; `idle_left` others are ready.
    pub fn on_take(&self, idle_left: u32) {
        lock(&self.demand).on_take(idle_left);
        self.changed.ring();
    }

    /// One has become idle, so that there are `idle` now.
    pub fn on_idle(&self, idle: u32) {
        lock(&self.demand).on_idle(idle);
        self.changed.ring();
    }

    /// So many sessions wait for connections.
    pub fn on_need(&self, waiting: u32) {
        lock(&self.demand).on_need(waiting);
        self.changed.ring();
    }

    /// Something else has changed what there is.
    pub fn ring(&self) {
        self.changed.ring();
    }

    /// One more is being opened.
    pub fn begin(self: &Arc<Self>) -> Opening {
        self.opening.fetch_add(1, Ordering::Relaxed);
        Opening(self.clone())
    }

    /// One has come: the next trouble begins with short pauses.
    pub fn opened(&self) {
        let mut retry = lock(&self.retry);
        retry.backoff.reset();
        retry.at = None;
    }

    /// One could not be opened: pauses as `bend` makes it of a growing pause with jitter.
    pub fn failed(&self, bend: impl FnOnce(Duration) -> Duration) {
        // Without randomness the full pause: no jitter, but no spinning either.
        let random = getrandom::u64().unwrap_or(u64::MAX);
        let mut retry = lock(&self.retry);
        let pause = bend(retry.backoff.next(random));
        retry.at = Some(Instant::now() + pause);
        drop(retry);
        self.changed.ring();
    }

    /// Begins to open none for so long.
    pub fn hold(&self, pause: Duration) {
        lock(&self.retry).held_until = Some(Instant::now() + pause);
    }

    /// The pause after a failure ends after this at the latest: what was short may be there again.
    pub fn end_pause_within(&self, rest: Duration) {
        let mut retry = lock(&self.retry);
        retry.at = retry.at.map(|at| at.min(Instant::now() + rest));
    }

    /// From when on another one may be opened, if that is not now.
    pub fn retry_at(&self, now: Instant) -> Option<Instant> {
        let retry = lock(&self.retry);
        retry.at.max(retry.held_until).filter(|&at| at > now)
    }

    /// How many are to be opened, with so many idle and in sessions.
    pub fn missing(&self, (idle, busy): (u32, u32)) -> u32 {
        lock(&self.demand).missing(Census { idle, opening: self.opening.load(Ordering::Relaxed), busy })
    }

    /// Opens what is wanted and retires, every `tick`, what is not, for as long as it is polled.
    pub async fn keep(&self, tick: Duration, keeper: Keeper<'_>) {
        let Keeper { idle_and_busy, retire, open_one } = keeper;
        let mut tick_at = Instant::now() + tick;
        loop {
            let now = Instant::now();
            if now >= tick_at {
                tick_at = now + tick;
                let surplus = lock(&self.demand).on_tick(idle_and_busy().0);
                if surplus > 0 {
                    retire(surplus);
                }
            }
            let retry_at = self.retry_at(now);
            if retry_at.is_none() {
                for _ in 0..self.missing(idle_and_busy()) {
                    open_one();
                }
            }
            let due = retry_at.map_or(tick_at, |at| at.min(tick_at));
            future::or(self.changed.wait(), sleep_until(due)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;
    use crate::run::{
        timer::{sleep, timeout},
        worker::{run_alone, spawn},
    };

    const MS: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(3600);

    /// Connections that come, or fail, after a millisecond.
    struct Fake {
        pool: Arc<Pool>,
        idle: Rc<Cell<u32>>,
        tried: Cell<u32>,
        retired: Cell<u32>,
        fails: Rc<Cell<bool>>,
    }

    impl Fake {
        fn new(min: u32, max: u32) -> Self {
            let pool = Pool::new(Bounds { min, max, ready_max: 16, opening_max: 4 });
            let (idle, tried, retired, fails) = Default::default();
            Self { pool, idle, tried, retired, fails }
        }

        fn take(&self) {
            self.idle.set(self.idle.get() - 1);
            self.pool.on_take(self.idle.get());
        }

        fn idle_and_busy(&self) -> (u32, u32) {
            (self.idle.get(), 0)
        }

        fn retire(&self, count: u32) {
            self.idle.set(self.idle.get() - count);
            self.retired.set(self.retired.get() + count);
        }

        fn open_one(&self) {
            self.tried.set(self.tried.get() + 1);
            let (pool, idle, fails) = (self.pool.clone(), self.idle.clone(), self.fails.clone());
            let opening = pool.begin();
            spawn(async move {
                sleep(MS).await;
                drop(opening);
                if fails.get() {
                    return pool.failed(|pause| pause.max(20 * MS));
                }
                pool.opened();
                idle.set(idle.get() + 1);
                pool.on_idle(idle.get());
            });
        }
    }

    fn test(fake: Fake, tick: Duration, main: impl AsyncFnOnce(&Fake)) {
        let tested = run_alone(false, |_| async move {
            let keeping = async {
                let (retire, open_one) = (|count| fake.retire(count), || fake.open_one());
                let keeper =
                    Keeper { idle_and_busy: &|| fake.idle_and_busy(), retire: &retire, open_one: &open_one };
                fake.pool.keep(tick, keeper).await;
            };
            timeout(Duration::from_secs(20), future::or(keeping, main(&fake))).await.unwrap();
        });
        tested.unwrap();
    }

    async fn until(holds: impl Fn() -> bool) {
        while !holds() {
            sleep(MS).await;
        }
    }

    #[test]
    fn the_minimum_is_there_and_what_is_needed_comes_a_few_at_a_time() {
        test(Fake::new(2, 9), NEVER, async |fake| {
            until(|| fake.idle.get() == 2).await;
            fake.pool.on_need(12);
            until(|| fake.idle.get() == 9).await;
            sleep(5 * MS).await;
            assert_eq!((fake.idle.get(), fake.tried.get()), (9, 9), "the maximum");
        });
    }

    #[test]
    fn no_more_are_opened_at_a_time_than_may_be() {
        let fake = Fake::new(0, 100);
        fake.pool.on_need(16);
        let opening: Vec<_> = (0..3).map(|_| fake.pool.begin()).collect();
        assert_eq!(fake.pool.missing((0, 0)), 1);
        drop(opening);
        assert_eq!(fake.pool.missing((0, 0)), 4);
        assert_eq!(fake.pool.missing((14, 0)), 2);
        assert_eq!(fake.pool.missing((0, 99)), 1);
    }

    #[test]
    fn the_last_one_that_is_taken_has_two_come() {
        test(Fake::new(1, 100), NEVER, async |fake| {
            until(|| fake.idle.get() == 1).await;
            fake.take();
            until(|| fake.idle.get() == 2).await;
        });
    }

    #[test]
    fn what_lies_unused_is_retired_down_to_the_minimum() {
        let fake = Fake::new(1, 100);
        fake.pool.on_need(8);
        test(fake, 10 * MS, async |fake| {
            until(|| fake.tried.get() == 8 && fake.idle.get() == 1).await;
            assert_eq!(fake.retired.get(), 7);
        });
    }

    #[test]
    fn after_a_failure_there_is_a_pause_and_it_ends_sooner_where_something_has_changed() {
        test(Fake::new(1, 100), NEVER, async |fake| {
            fake.fails.set(true);
            until(|| fake.tried.get() == 2).await;
            let begun = Instant::now();
            until(|| fake.tried.get() == 3).await;
            assert!(begun.elapsed() >= 15 * MS, "{:?}", begun.elapsed());
            // The third has failed as well.
            until(|| fake.pool.opening.load(Ordering::Relaxed) == 0).await;
            fake.fails.set(false);
            fake.pool.failed(|_| NEVER);
            fake.pool.on_need(3);
            sleep(40 * MS).await;
            assert_eq!(fake.idle.get(), 0, "nothing is opened in a pause");
            fake.pool.end_pause_within(MS);
            fake.pool.ring();
            until(|| fake.idle.get() == 3).await;
            fake.pool.end_pause_within(MS);
            assert_eq!(fake.pool.retry_at(Instant::now()), None, "who does not pause is not made to");
        });
    }

    #[test]
    fn who_holds_back_is_not_moved_by_one_that_comes() {
        test(Fake::new(1, 100), NEVER, async |fake| {
            until(|| fake.tried.get() == 1).await;
            fake.pool.hold(40 * MS);
            let begun = Instant::now();
            fake.pool.on_need(3);
            until(|| fake.idle.get() == 1).await;
            until(|| fake.tried.get() > 1).await;
            assert!(begun.elapsed() >= 30 * MS, "{:?}", begun.elapsed());
        });
    }
}
