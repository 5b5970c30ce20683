//! Role: deadlines of a worker's tasks.
//! Invariants: nobody wakes before its time · a deadline that passed while the whole process stood still ends nothing
//! that is there by then · a sleep holds 32 bytes and about as many in its worker's
//! clock (monoio's hold 640, aligned to 128, in whatever future contains them) · a clock belongs to one
//! runtime and is forgotten with it.
//! See: `worker`, which makes runtimes.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures_lite::future;
use pin_project_lite::pin_project;
use slab::Slab;

/// No time came that was asked for by `checked_add`: farther away than a process lives.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A timer that fires this late shows that the whole process stood still (SIGSTOP, a laptop's lid): what came
/// meanwhile is yet to be heard, ..
const LATE: Duration = Duration::from_millis(500);
/// .. for which this much is enough.
const GRACE: Duration = Duration::from_millis(100);

thread_local! {
    static CLOCK: Cell<Option<&'static Clock>> = const { Cell::new(None) };
}

/// The sleeps of one runtime.
#[derive(Default)]
struct Clock {
    slots: RefCell<Slab<Slot>>,
    /// By time; of equals, by slot.
    due: RefCell<BTreeSet<(Instant, usize)>>,
    /// When the driver wakes next by itself.
    wakes_at: Cell<Option<Instant>>,
    driver: Cell<Option<Waker>>,
}

enum Slot {
    Waiting(Waker),
    Over,
}

/// This thread starts a new runtime: sleeps of an older one, if there was any, stay as they are.
pub(crate) fn start_anew() {
    CLOCK.set(None);
}

impl Clock {
    /// This runtime's clock. It is never dropped, as its runtime is not: wakers may be all that holds
    /// a task with operations in flight.
    fn current() -> &'static Self {
        CLOCK.get().unwrap_or_else(|| {
            let clock: &'static Self = Box::leak(Box::default());
            CLOCK.set(Some(clock));
            monoio::spawn(clock.drive());
            clock
        })
    }

    async fn drive(&self) {
        loop {
            let first = self.first();
            self.wakes_at.set(first);
            let over = async {
                match first {
                    Some(at) => monoio::time::sleep_until(monoio::time::Instant::from_std(at)).await,
                    None => future::pending().await,
                }
            };
            future::or(over, self.earlier_than(first)).await;
            self.fire(Instant::now());
        }
    }

    fn first(&self) -> Option<Instant> {
        self.due.borrow().first().map(|(at, _)| *at)
    }

    /// Returns when somebody wants to be woken before `at`.
    async fn earlier_than(&self, at: Option<Instant>) {
        poll_fn(|cx| {
            if self.first().is_some_and(|first| at.is_none_or(|at| first < at)) {
                return Poll::Ready(());
            }
            self.driver.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    fn fire(&self, now: Instant) {
        while let Some(slot) = self.take_due(now) {
            let slot = self.slots.borrow_mut().get_mut(slot).map(|slot| std::mem::replace(slot, Slot::Over));
            if let Some(Slot::Waiting(waker)) = slot {
                waker.wake();
            }
        }
    }

    fn take_due(&self, now: Instant) -> Option<usize> {
        let mut due = self.due.borrow_mut();
        let (at, slot) = due.first().copied()?;
        (at <= now).then(|| {
            due.pop_first();
            slot
        })
    }

    fn insert(&self, at: Instant, waker: Waker) -> usize {
        let slot = self.slots.borrow_mut().insert(Slot::Waiting(waker));
        self.due.borrow_mut().insert((at, slot));
        if self.wakes_at.get().is_none_or(|wakes_at| at < wakes_at)
            && let Some(driver) = self.driver.take()
        {
            driver.wake();
        }
        slot
    }

    /// Whether the sleep in this slot is over; else its task will be woken.
    fn is_over(&self, slot: usize, cx: &Context<'_>) -> bool {
        match &mut self.slots.borrow_mut()[slot] {
            Slot::Over => true,
            Slot::Waiting(waker) => {
                waker.clone_from(cx.waker());
                false
            }
        }
    }

    fn remove(&self, at: Instant, slot: usize) {
        let removed = self.slots.borrow_mut().try_remove(slot);
        if let Some(Slot::Waiting(_)) = removed {
            self.due.borrow_mut().remove(&(at, slot));
        }
    }
}

/// Returns at its time; see [`sleep_until`].
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct Sleep {
    at: Instant,
    /// Once it has been polled.
    place: Option<(&'static Clock, usize)>,
}

/// Returns at that time, to the millisecond.
pub fn sleep_until(at: Instant) -> Sleep {
    Sleep { at, place: None }
}

/// Returns after that time.
pub fn sleep(duration: Duration) -> Sleep {
    let now = Instant::now();
    sleep_until(now.checked_add(duration).unwrap_or(now + FOR_EVER))
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let over = match self.place {
            Some((clock, slot)) => clock.is_over(slot, cx),
            None if self.at <= Instant::now() => true,
            None => {
                let clock = Clock::current();
                self.place = Some((clock, clock.insert(self.at, cx.waker().clone())));
                false
            }
        };
        if over { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((clock, slot)) = self.place {
            clock.remove(self.at, slot);
        }
    }
}

/// The time was over first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the time is over")]
pub struct Elapsed;

pin_project! {
    /// A future with a deadline; see [`timeout_at`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        sleep: Sleep,
    }
}

/// Waits for `future` until that time.
pub fn timeout_at<F: Future>(at: Instant, future: F) -> Timeout<F> {
    Timeout { future, sleep: sleep_until(at) }
}

/// Waits so long for `future`.
pub fn timeout<F: Future>(duration: Duration, future: F) -> Timeout<F> {
    Timeout { future, sleep: sleep(duration) }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        std::task::ready!(Pin::new(&mut *this.sleep).poll(cx));
        if Instant::now() < this.sleep.at + LATE {
            return Poll::Ready(Err(Elapsed));
        }
        *this.sleep = sleep(GRACE);
        Pin::new(this.sleep).poll(cx).map(|()| Err(Elapsed))
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use futures_lite::future::{poll_once, zip};

    use super::*;
    use crate::run::worker::{run_alone, run_on_epoll, spawn};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn sleeps_end_in_the_order_of_their_times_and_none_before() {
        let log = run_alone(false, |_| async {
            let log = Rc::new(RefCell::new(Vec::new()));
            let (done, all_done) = async_channel::bounded::<()>(1);
            let start = Instant::now();
            // The earliest comes last, so that the clock must change its mind.
            for ms in [20, 10, 30, 1] {
                let (log, done) = (log.clone(), done.clone());
                spawn(async move {
                    sleep_until(start + MS * ms).await;
                    assert!(start.elapsed() >= MS * ms);
                    log.borrow_mut().push(ms);
                    drop(done);
                });
            }
            drop(done);
            assert!(all_done.recv().await.is_err());
            log.take()
        });
        assert_eq!(log.unwrap(), [1, 10, 20, 30]);
    }

    #[test]
    fn each_runtime_of_a_thread_has_a_clock_of_its_own() {
        for _ in 0..2 {
            run_alone(false, |_| async { zip(sleep(MS), sleep(MS)).await }).unwrap();
            run_on_epoll(|_| sleep(MS)).unwrap();
        }
    }

    #[test]
    fn a_deadline_ends_what_takes_longer_and_nothing_else() {
        run_alone(false, |_| async {
            assert_eq!(timeout(MS, future::pending::<()>()).await, Err(Elapsed));
            assert_eq!(timeout(Duration::MAX, async { 7 }).await, Ok(7));
            assert_eq!(timeout_at(Instant::now() + MS * 60_000, sleep(MS)).await, Ok(()));
        })
        .unwrap();
    }

    #[test]
    fn what_came_while_the_process_stood_still_is_heard_before_its_deadline_counts() {
        use std::{io::Write as _, os::unix::net::UnixStream};
        let still = |waits: bool| {
            run_alone(false, move |_| async move {
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                let socket = crate::net::plain::Plain::adopt(ours.into()).unwrap();
                let begun = Instant::now();
                let reading = async {
                    socket.readable().await.unwrap();
                    socket.try_read(&mut [0; 1]).unwrap()
                };
                let stopping = async {
                    // Once the other one waits.
                    sleep(MS).await;
                    std::thread::sleep(LATE + MS * 100);
                    if waits {
                        theirs.write_all(b"!").unwrap();
                    }
                    theirs
                };
                let (read, theirs) = zip(timeout(MS * 50, reading), stopping).await;
                drop(theirs);
                (read, begun.elapsed() >= LATE)
            })
            .unwrap()
        };
        assert_eq!(still(true), (Ok(1), true));
        assert_eq!(still(false), (Err(Elapsed), true));
    }

    #[test]
    fn who_sleeps_no_more_leaves_nothing_in_the_clock() {
        run_alone(false, |_| async {
            let mut sleeps: Vec<_> = (0..9).map(|n| sleep(MS * 60_000 * (n + 1))).collect();
            for sleep in &mut sleeps {
                assert!(poll_once(sleep).await.is_none());
            }
            sleep(MS).await;
            let clock = Clock::current();
            assert_eq!((clock.slots.borrow().len(), clock.due.borrow().len()), (9, 9));
            drop(sleeps);
            assert_eq!((clock.slots.borrow().len(), clock.due.borrow().len()), (0, 0));
        })
        .unwrap();
    }

    #[test]
    fn a_sleep_is_small() {
        assert!(size_of::<Sleep>() <= 32);
    }
}
