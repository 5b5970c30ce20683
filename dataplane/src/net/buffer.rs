//! Role: the buffers that bytes pass through, pooled per worker.
//! Invariants: a buffer is held only while bytes flow · the pool is bounded: when it is used up,
//! reading waits · a buffer goes back to the pool it came from, whatever ends its user.
//! See: `stock` for how many are kept.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    mem,
    num::NonZeroU64,
    ops::{Deref, DerefMut, Range},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use crate::net::{
    pages::Pages,
    stock::{Place, Stock},
};

/// What one read of bulk may bring. At 256 KiB a plain relay costs 0.20 CPU-seconds per GiB, at 64 KiB 0.50.
pub(crate) const BULK_READ_BYTES: usize = 256 * 1024;
/// A bulk buffer: room for what goes around such a read, be it frames' headers or TLS records.
pub const BULK_BYTES: usize = BULK_READ_BYTES + 4096;
/// What one read may bring that has not shown yet that much is coming: a TLS record.
pub(crate) const SMALL_READ_BYTES: usize = 16 * 1024;
/// A small buffer, with the room around.
pub(crate) const SMALL_BYTES: usize = SMALL_READ_BYTES + 512;

/// Bulk buffers per worker: 65 MiB. When they are all out, bulk goes on in small ones.
const BULK_MAX: usize = 256;
/// Small buffers per worker: 132 MiB. When they are all out, reading waits.
const SMALL_MAX: usize = 8192;

/// A buffer on loan from this worker's pool.
pub struct Buffer {
    bytes: Pages,
    /// For its user's notes about what is where; pooled with it, so that it keeps its room.
    pub marks: Vec<Range<usize>>,
}

/// Pooled: its memory, and its user's notes.
type Item = (Pages, Vec<Range<usize>>);

/// The size of a buffer, and what a worker has of it.
struct Class {
    bytes: usize,
    lent_max: usize,
    stock: &'static Place<Item>,
}

static BULK: Class = Class { bytes: BULK_BYTES, lent_max: BULK_MAX, stock: &BULK_STOCK };
static SMALL: Class = Class { bytes: SMALL_BYTES, lent_max: SMALL_MAX, stock: &SMALL_STOCK };

impl Class {
    fn is_left(&self) -> bool {
        self.stock.with_borrow(Stock::lent) < self.lent_max
    }

    fn take(&self) -> Option<Buffer> {
        self.is_left().then(|| self.take_beyond())
    }

    fn take_beyond(&self) -> Buffer {
        let make = || (Pages::map(self.bytes), Vec::new());
        let (bytes, marks) = self.stock.with_borrow_mut(|stock| stock.take(make));
        Buffer { bytes, marks }
    }
}

/// A bulk buffer if one is wanted and left, or a small one, if one is.
fn lend(bulk: bool) -> Option<Buffer> {
    let big = if bulk { BULK.take() } else { None };
    big.or_else(|| SMALL.take())
}

/// Those who wait for a buffer.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiter>,
    last_ticket: u64,
}

/// Somebody who waits for a buffer.
struct Waiter {
    ticket: NonZeroU64,
    bulk: bool,
    waker: Waker,
}

impl Queue {
    /// Calls whoever has waited for longest and could be served now.
    fn call(&mut self) {
        let (small, bulk) = (SMALL.is_left(), BULK.is_left());
        let first = self.waiting.iter().position(|waiter| small || (bulk && waiter.bulk));
        if let Some(waiter) = first.and_then(|at| self.waiting.remove(at)) {
            waiter.waker.wake();
        }
    }

    /// A place in the queue, the same as before while nobody has called.
    fn wait(&mut self, ticket: Option<NonZeroU64>, bulk: bool, waker: &Waker) -> NonZeroU64 {
        if let Some(waiter) = self.waiting.iter_mut().find(|waiter| Some(waiter.ticket) == ticket) {
            waiter.waker.clone_from(waker);
            return waiter.ticket;
        }
        // It would take centuries to come round.
        self.last_ticket = self.last_ticket.wrapping_add(1);
        let ticket = NonZeroU64::new(self.last_ticket).unwrap_or(NonZeroU64::MIN);
        self.waiting.push_back(Waiter { ticket, bulk, waker: waker.clone() });
        ticket
    }

    /// Somebody waits no longer. A call that reached them is the next one's.
    fn leave(&mut self, ticket: NonZeroU64) {
        match self.waiting.iter().position(|waiter| waiter.ticket == ticket) {
            Some(at) => drop(self.waiting.remove(at)),
            None => self.call(),
        }
    }
}

/// A wait for a buffer.
struct Take {
    bulk: bool,
    ticket: Option<NonZeroU64>,
}

impl Future for Take {
    type Output = Buffer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Buffer> {
        let this = &mut *self;
        if let Some(buffer) = lend(this.bulk) {
            return Poll::Ready(buffer);
        }
        this.ticket = Some(QUEUE.with_borrow_mut(|queue| queue.wait(this.ticket, this.bulk, cx.waker())));
        Poll::Pending
    }
}

impl Drop for Take {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let _ = QUEUE.try_with(|queue| queue.borrow_mut().leave(ticket));
        }
    }
}

thread_local! {
    static BULK_STOCK: RefCell<Stock<Item>> = const { RefCell::new(Stock::new(1, 4)) };
    static SMALL_STOCK: RefCell<Stock<Item>> = const { RefCell::new(Stock::new(4, 64)) };
    static QUEUE: RefCell<Queue> = RefCell::default();
}

impl Buffer {
    /// Borrows a buffer: a bulk one if `bulk` and one is left, else a small one. Waits only when
    /// the worker's whole pool is out.
    pub fn take(bulk: bool) -> impl Future<Output = Self> {
        Take { bulk, ticket: None }
    }
}

impl Buffer {
    /// Borrows a buffer without waiting, for whoever must go on to give others back: a bulk one if
    /// `bulk` and one is left, else a small one, beyond the bound if need be.
    pub(crate) fn take_now(bulk: bool) -> Self {
        lend(bulk).unwrap_or_else(|| SMALL.take_beyond())
    }

    /// The bytes, and the notes about them.
    pub fn parts(&mut self) -> (&mut [u8], &mut Vec<Range<usize>>) {
        (&mut self.bytes, &mut self.marks)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let (bytes, mut marks) = (mem::take(&mut self.bytes), mem::take(&mut self.marks));
        let class = if bytes.len() == BULK_BYTES { &BULK } else { &SMALL };
        marks.clear();
        Stock::give(class.stock, (bytes, marks));
        let _ = QUEUE.try_with(|queue| queue.borrow_mut().call());
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        task::Wake,
        time::Duration,
    };

    use futures_lite::future::{block_on, poll_once};

    use crate::run::{timer::sleep, worker::run_alone};

    /// A waker, and whether it was woken.
    fn parking() -> (impl Fn() -> bool, Waker) {
        struct Flag(AtomicBool);
        impl Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(flag.clone());
        (move || flag.0.load(Ordering::SeqCst), waker)
    }

    #[test]
    fn bulk_falls_back_to_small_and_small_waits_until_one_comes_back() {
        let mut bulk: Vec<_> = (0..BULK_MAX).map(|_| block_on(Buffer::take(true))).collect();
        assert!(bulk.iter().all(|b| b.len() == BULK_BYTES));
        let mut small: Vec<_> = (0..SMALL_MAX).map(|_| block_on(Buffer::take(true))).collect();
        assert!(small.iter().all(|b| b.len() == SMALL_BYTES));
        let mut waiting = std::pin::pin!(Buffer::take(true));
        assert!(block_on(poll_once(waiting.as_mut())).is_none());
        small.pop();
        assert_eq!(block_on(waiting).len(), SMALL_BYTES);
        bulk.pop();
        assert_eq!(block_on(Buffer::take(true)).len(), BULK_BYTES);
    }

    #[test]
    fn who_was_called_and_leaves_passes_the_call_on() {
        let mut small: Vec<_> = (0..SMALL_MAX).map(|_| block_on(Buffer::take(false))).collect();
        let mut first = Box::pin(Buffer::take(false));
        assert!(block_on(poll_once(first.as_mut())).is_none());
        let (woken, waker) = parking();
        let mut next = Box::pin(Buffer::take(false));
        assert!(next.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        small.pop();
        assert!(!woken(), "the first one is called");
        drop(first);
        assert!(woken(), "and has left");
        assert_eq!(block_on(next).len(), SMALL_BYTES);
    }

    #[test]
    fn bulk_that_comes_back_calls_who_can_use_it() {
        let mut bulk: Vec<_> = (0..BULK_MAX).map(|_| block_on(Buffer::take(true))).collect();
        let _small: Vec<_> = (0..SMALL_MAX).map(|_| block_on(Buffer::take(false))).collect();
        let (little_woken, little_waker) = parking();
        let (much_woken, much_waker) = parking();
        let mut little = Box::pin(Buffer::take(false));
        let mut much = Box::pin(Buffer::take(true));
        assert!(little.as_mut().poll(&mut Context::from_waker(&little_waker)).is_pending());
        assert!(much.as_mut().poll(&mut Context::from_waker(&much_waker)).is_pending());
        bulk.pop();
        assert!(much_woken() && !little_woken());
        assert_eq!(block_on(much).len(), BULK_BYTES);
    }

    #[test]
    fn what_nobody_needs_any_more_is_the_system_s_again() {
        const SMALL_TAKEN: usize = 2000;
        let mapped = || {
            let maps = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
            let line = maps.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
        };
        run_alone(false, |_| async {
            let bulk = (0..BULK_MAX).map(|_| Buffer::take_now(true));
            let mut all: Vec<_> = bulk.chain((0..SMALL_TAKEN).map(|_| Buffer::take_now(false))).collect();
            all.iter_mut().for_each(|buffer| buffer.fill(1));
            let full = mapped();
            drop(all);
            let taken = (BULK_MAX * BULK_BYTES + SMALL_TAKEN * SMALL_BYTES) / 1024;
            sleep(Duration::from_millis(2500)).await;
            // Other tests of this process come and go with some of their own.
            assert!(mapped() + taken * 3 / 4 < full, "{full} KiB with all, {} after", mapped());
        })
        .unwrap();
    }

    #[test]
    fn who_can_t_wait_gets_a_small_buffer_beyond_the_bound_and_it_is_counted() {
        let all: Vec<_> = (0..SMALL_MAX).map(|_| block_on(Buffer::take(false))).collect();
        assert_eq!(Buffer::take_now(true).len(), BULK_BYTES);
        let beyond = Buffer::take_now(false);
        assert_eq!(beyond.len(), SMALL_BYTES);
        let mut waiting = std::pin::pin!(Buffer::take(false));
        assert!(block_on(poll_once(waiting.as_mut())).is_none());
        drop((beyond, all));
        assert_eq!(block_on(waiting).len(), SMALL_BYTES);
        assert_eq!([&BULK, &SMALL].map(|class| class.stock.with_borrow(Stock::lent)), [0, 0]);
    }
}
