//! Role: wakes a direction in which bulk flows for a batch, not for every segment (SO_RCVLOWAT), as network
//! cards do with interrupts.
//! Invariants: what waiting for batches costs is at most a tenth of the time in which bulk flowed · whatever
//! has come is looked at after two ticks, whether it makes a batch or not · the end and errors wake at
//! once · a socket leaves here as it came.
//! See: socket(7), SO_RCVLOWAT; ARCHITECTURE.md "Relay".

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures_lite::future;
use slab::Slab;

use crate::{
    run::{timer::sleep, worker},
    transport::wire::Wire,
};

/// One batch. 1, 8 and 64 connections cost 0.95, 1.0 and 0.94 of what they cost without; one that BBR paces, 0.8.
const BATCH_BYTES: usize = 256 * 1024;
/// Whoever has waited for one whole tick, and not more than two, looks what has come.
const TICK: Duration = Duration::from_millis(1);
/// What a batch may cost that does not come: two ticks, and a late one.
const COST: Duration = Duration::from_millis(3);
/// Of the time in which bulk flows, this part may be spent on batches that do not come.
const SHARE: u32 = 10;
/// A longer wait for the next bytes is a pause, and no time in which bulk flows.
const PAUSE: Duration = Duration::from_millis(10);
/// What may be saved up.
const CREDIT_MAX: Duration = Duration::from_millis(30);
/// Without anybody to look after for so many ticks, the ticker ends.
const IDLE_TICKS: u32 = 100;

/// One source, and whether it is batched.
pub(super) struct Batching<'a> {
    wire: &'a Wire,
    /// When the last bulk came.
    last: Cell<Option<Instant>>,
    /// What may be spent.
    credit: Cell<Duration>,
    on: Cell<bool>,
    /// The last wait was for a batch that did not come.
    overdue: Cell<bool>,
}

impl<'a> Batching<'a> {
    pub(super) fn new(wire: &'a Wire) -> Self {
        Self {
            wire,
            last: Cell::new(None),
            credit: Cell::default(),
            on: Cell::new(false),
            overdue: Cell::new(false),
        }
    }

    /// Bulk has come from the source.
    pub(super) fn flowed(&self) {
        self.flowed_at(Instant::now());
    }

    fn flowed_at(&self, now: Instant) {
        if self.overdue.take() {
            // This had to wait for what did not come.
            self.credit.set(self.credit.get().saturating_sub(COST));
        }
        if let Some(last) = self.last.replace(Some(now)) {
            let earned = now.saturating_duration_since(last).min(PAUSE) / SHARE;
            self.credit.set((self.credit.get() + earned).min(CREDIT_MAX));
        }
        self.switch(self.credit.get() >= COST);
    }

    /// Nothing had come: nothing waited, and whatever comes next is news.
    pub(super) fn paused(&self) {
        self.overdue.set(false);
        self.switch(false);
    }

    /// No bulk comes any more.
    pub(super) fn ended(&self) {
        self.paused();
        self.last.set(None);
        self.credit.set(Duration::ZERO);
    }

    fn switch(&self, on: bool) {
        if self.on.get() != on {
            // Without a low-water mark, every segment wakes us, as ever.
            let bytes = if on { BATCH_BYTES } else { 1 };
            let done = self.wire.socket().is_some_and(|socket| socket.set_low_water(bytes).is_ok());
            self.on.set(on && done);
        }
    }

    /// Waits until there is something to read, a batch where that is on.
    ///
    /// # Errors
    /// As [`Wire::readable`].
    pub(super) async fn readable(&self) -> io::Result<()> {
        if !self.on.get() {
            return self.wire.readable().await;
        }
        let overdue = async {
            Overdue::begin().await;
            self.overdue.set(true);
            Ok(())
        };
        future::or(self.wire.readable(), overdue).await
    }
}

impl Drop for Batching<'_> {
    fn drop(&mut self) {
        self.switch(false);
    }
}

/// Who waits for a batch on this thread.
#[derive(Default)]
struct Ticker {
    waiting: Slab<Waiting>,
    tick: u64,
    /// The runtime that the ticking task belongs to.
    runs_in: Option<u64>,
    /// Of that task, while nobody waits.
    resting: Option<Waker>,
}

struct Waiting {
    since_tick: u64,
    waker: Option<Waker>,
}

thread_local! {
    static TICKER: RefCell<Ticker> = RefCell::default();
}

/// A place among those who wait, given up when dropped.
struct Overdue(usize);

impl Overdue {
    fn begin() -> Self {
        TICKER.with_borrow_mut(|ticker| {
            let runtime = worker::runtime();
            if ticker.runs_in != Some(runtime) {
                (ticker.runs_in, ticker.resting) = (Some(runtime), None);
                worker::spawn(tick(runtime));
            } else if let Some(resting) = ticker.resting.take() {
                resting.wake();
            }
            let since_tick = ticker.tick;
            Self(ticker.waiting.insert(Waiting { since_tick, waker: None }))
        })
    }
}

impl Future for Overdue {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        TICKER.with_borrow_mut(|ticker| {
            let now = ticker.tick;
            match ticker.waiting.get_mut(self.0) {
                Some(waiting) if now < waiting.since_tick + 2 => {
                    waiting.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
    }
}

impl Drop for Overdue {
    fn drop(&mut self) {
        let _ = TICKER.try_with(|ticker| ticker.borrow_mut().waiting.try_remove(self.0));
    }
}

async fn tick(runtime: u64) {
    let mut idle = 0;
    loop {
        sleep(TICK).await;
        let ended = TICKER.with_borrow_mut(|ticker| {
            ticker.tick += 1;
            let now = ticker.tick;
            idle = if ticker.waiting.is_empty() { idle + 1 } else { 0 };
            for (_, waiting) in &mut ticker.waiting {
                if now >= waiting.since_tick + 2
                    && let Some(waker) = waiting.waker.take()
                {
                    waker.wake();
                }
            }
            ticker.runs_in != Some(runtime)
        });
        if ended {
            return;
        }
        if idle >= IDLE_TICKS {
            rest().await;
            idle = 0;
        }
    }
}

/// Returns when somebody waits. (A task that ended instead would be made anew for each stretch of bulk.)
async fn rest() {
    poll_fn(|cx| {
        TICKER.with_borrow_mut(|ticker| {
            if !ticker.waiting.is_empty() {
                return Poll::Ready(());
            }
            ticker.resting = Some(cx.waker().clone());
            Poll::Pending
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::net::plain::Plain;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (theirs, listener.accept().unwrap().0)
    }

    /// As if bulk had come for so long.
    fn flow_for(batching: &Batching<'_>, time: Duration) {
        let mut now = batching.last.get().unwrap_or_else(Instant::now);
        let end = now + time;
        batching.flowed_at(now);
        while now < end {
            now += PAUSE / 2;
            batching.flowed_at(now);
        }
    }

    #[test]
    fn bulk_is_batched_while_it_has_flowed_ten_times_as_long_as_its_batches_were_late() {
        let (_theirs, ours) = pair();
        worker::run_alone(false, |_| async move {
            let wire = Wire::from(Plain::adopt(ours.into()).unwrap());
            let batching = Batching::new(&wire);
            flow_for(&batching, COST * SHARE / 2);
            assert!(!batching.on.get());
            flow_for(&batching, COST * SHARE / 2);
            assert!(batching.on.get());
            batching.readable().await.unwrap();
            flow_for(&batching, COST * SHARE / 2);
            assert!(!batching.on.get(), "that one did not come");
            flow_for(&batching, CREDIT_MAX * SHARE * 2);
            for _ in 0..CREDIT_MAX.as_millis() / COST.as_millis() {
                assert!(batching.on.get());
                batching.readable().await.unwrap();
                batching.flowed_at(batching.last.get().unwrap());
            }
            assert!(!batching.on.get(), "more is never saved up");
            flow_for(&batching, CREDIT_MAX * SHARE);
            let pause = batching.last.get().unwrap() + PAUSE * 1000;
            batching.credit.set(COST);
            batching.readable().await.unwrap();
            batching.paused();
            assert!(!batching.on.get());
            batching.flowed_at(pause);
            assert!(batching.on.get(), "nothing had waited");
            assert!(batching.credit.get() <= COST + PAUSE / SHARE, "a pause earns no more than this");
            batching.ended();
            assert!(!batching.on.get());
        })
        .unwrap();
    }

    /// A kernel that is short of memory for TCP says at once that there is something to read: see `tcp_epollin_ready`
    /// of Linux. It is, from the second number of `tcp_mem` until below the first.
    fn is_short_of_tcp_memory() -> bool {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let sockstat = read("/proc/net/sockstat");
        let used =
            sockstat.lines().find_map(|line| line.strip_prefix("TCP: ")?.split_once("mem ")?.1.parse().ok());
        let least = read("/proc/sys/net/ipv4/tcp_mem").split_whitespace().next().and_then(|n| n.parse().ok());
        used.zip(least).is_some_and(|(used, least): (u64, u64)| used >= least)
    }

    #[test]
    fn what_makes_no_batch_is_looked_at_soon_and_a_batch_or_the_end_at_once() {
        let (mut theirs, ours) = pair();
        worker::run_alone(false, |_| async move {
            let wire = Wire::from(Plain::adopt(ours.into()).unwrap());
            let batching = Batching::new(&wire);
            flow_for(&batching, COST * SHARE);
            theirs.write_all(b"the tail").unwrap();
            // On a busy machine it is under way for a while.
            while rustix::io::ioctl_fionread(wire.socket().unwrap()).unwrap() < 8 {
                sleep(TICK).await;
            }
            let batch = future::or(async { wire.readable().await.map(|()| true) }, async {
                Overdue::begin().await;
                Ok(false)
            });
            assert!(!batch.await.unwrap() || is_short_of_tcp_memory(), "a tail is no batch");
            let mut buf = vec![0; BATCH_BYTES * 2];
            assert_eq!(wire.try_read(&mut buf).unwrap(), 8);

            // Buffers may be smaller than a batch, and the rest wait for us.
            let writing = std::thread::spawn(move || {
                theirs.write_all(&[0; BATCH_BYTES]).unwrap();
                theirs
            });
            wire.readable().await.unwrap();
            let mut got = wire.try_read(&mut buf).unwrap();
            while got < BATCH_BYTES {
                batching.readable().await.unwrap();
                got += wire.try_read(&mut buf).unwrap_or_default();
            }
            drop(writing.join().unwrap());
            wire.readable().await.unwrap();
            assert_eq!(wire.try_read(&mut buf).unwrap(), 0);
        })
        .unwrap();
    }

    #[test]
    fn a_socket_leaves_as_it_came() {
        let (mut theirs, ours) = pair();
        worker::run_alone(false, |_| async move {
            let wire = Wire::from(Plain::adopt(ours.into()).unwrap());
            let batching = Batching::new(&wire);
            flow_for(&batching, COST * SHARE);
            drop(batching);
            theirs.write_all(b"!").unwrap();
            wire.readable().await.unwrap();
            assert_eq!(wire.try_read(&mut [0; 9]).unwrap(), 1);
            theirs.set_nonblocking(true).unwrap();
            assert!(theirs.read(&mut [0]).is_err(), "nothing was sent");
        })
        .unwrap();
    }

    #[test]
    fn nobody_is_looked_after_for_ever_and_the_next_runtime_has_a_ticker_of_its_own() {
        for _ in 0..2 {
            worker::run_alone(false, |_| async {
                Overdue::begin().await;
                Overdue::begin().await;
                assert!(TICKER.with_borrow(|ticker| ticker.waiting.is_empty() && ticker.runs_in.is_some()));
            })
            .unwrap();
        }
        worker::run_alone(false, |_| async {
            Overdue::begin().await;
            while TICKER.with_borrow(|ticker| ticker.resting.is_none()) {
                sleep(TICK * IDLE_TICKS / 2).await;
            }
            let tick = || TICKER.with_borrow(|ticker| ticker.tick);
            let before = tick();
            sleep(TICK * IDLE_TICKS).await;
            assert_eq!(tick(), before, "it rests");
            Overdue::begin().await;
            assert!(tick() > before);
        })
        .unwrap();
    }
}
