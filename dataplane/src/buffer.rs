//! Role: the buffers that bytes pass through, pooled per worker.
//! Invariants: a buffer is held only while bytes flow · the pool is bounded: when it is used up,
//! reading waits · a buffer goes back to the pool it came from, whatever ends its user · a bulk buffer that
//! nobody needs any more is the system's again at once: an allocator would keep it back (95 MB after 800 readers
//! that had stalled).
#![expect(unsafe_code, reason = "bulk buffers are the kernel's own pages")]

use std::{
    alloc::{Layout, handle_alloc_error},
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    num::NonZeroU64,
    ops::{Deref, DerefMut, Range},
    pin::Pin,
    ptr::{self, NonNull},
    task::{Context, Poll, Waker},
};

/// What one read of bulk may bring. At 256 KiB a plain relay costs 0.20 CPU-seconds per GiB, at 64 KiB 0.50.
pub const BULK_READ_BYTES: usize = 256 * 1024;
/// A bulk buffer: room for what goes around such a read, be it frames' headers or TLS records.
pub const BULK_BYTES: usize = BULK_READ_BYTES + 4096;
/// What one read may bring that has not shown yet that much is coming: a TLS record.
pub const SMALL_READ_BYTES: usize = 16 * 1024;
/// A small buffer, with the room around.
pub const SMALL_BYTES: usize = SMALL_READ_BYTES + 512;

/// Bulk buffers per worker: 65 MiB. When they are all out, bulk goes on in small ones.
const BULK_MAX: usize = 256;
/// Small buffers per worker: 132 MiB. When they are all out, reading waits.
const SMALL_MAX: usize = 8192;
/// Kept for the next user when they come back; the rest returns to the system.
const IDLE_MAX: usize = 32;

/// A buffer on loan from this worker's pool.
pub struct Buffer {
    bytes: Bytes,
    /// For its user's notes about what is where; pooled with it, so that it keeps its room.
    pub marks: Vec<Range<usize>>,
}

/// A buffer's memory: small from the allocator, bulk straight from the kernel.
enum Bytes {
    Small(Box<[u8]>),
    Bulk(Pages),
}

impl Bytes {
    /// Zeroed.
    fn new(len: usize) -> Self {
        if len == BULK_BYTES { Self::Bulk(Pages::map()) } else { Self::Small(vec![0; len].into()) }
    }

    /// None at all.
    fn none() -> Self {
        Self::Small(Box::default())
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Bulk(pages) => pages,
        }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Bulk(pages) => pages,
        }
    }
}

/// [`BULK_BYTES`] of the kernel's.
struct Pages(NonNull<[u8; BULK_BYTES]>);

// SAFETY: it owns its memory as a box does, and the kernel takes it back on any thread.
unsafe impl Send for Pages {}

impl Pages {
    /// Zeroed.
    fn map() -> Self {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new pages at a place of the kernel's choice; nothing that is there is touched.
        let at = unsafe { libc::mmap(ptr::null_mut(), BULK_BYTES, access, kind, -1, 0) };
        match NonNull::new(at.cast()) {
            Some(place) if at != libc::MAP_FAILED => Self(place),
            // As the allocator has it, which would have asked for the same pages.
            _ => handle_alloc_error(Layout::new::<[u8; BULK_BYTES]>()),
        }
    }
}

impl Deref for Pages {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `map` made these bytes, zeroed, which are this value's alone until it is dropped.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; and `self` is borrowed for as long.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `map` mapped these pages, and nothing borrows them any more.
        let unmapped = unsafe { libc::munmap(self.0.as_ptr().cast(), BULK_BYTES) };
        debug_assert_eq!(unmapped, 0, "what was mapped can be unmapped");
    }
}

type Stock = (Bytes, Vec<Range<usize>>);

#[derive(Default)]
struct Class {
    idle: Vec<Stock>,
    lent: usize,
}

impl Class {
    fn take(&mut self, bytes: usize, max: usize) -> Option<Buffer> {
        (self.lent < max).then(|| self.take_beyond(bytes))
    }

    fn take_beyond(&mut self, bytes: usize) -> Buffer {
        self.lent += 1;
        let (bytes, marks) = self.idle.pop().unwrap_or_else(|| (Bytes::new(bytes), Vec::new()));
        Buffer { bytes, marks }
    }

    fn give(&mut self, (bytes, mut marks): Stock) {
        self.lent -= 1;
        if self.idle.len() < IDLE_MAX {
            marks.clear();
            self.idle.push((bytes, marks));
        }
    }
}

#[derive(Default)]
struct Pool {
    bulk: Class,
    small: Class,
    waiting: VecDeque<Waiter>,
    last_ticket: u64,
}

/// Somebody who waits for a buffer.
struct Waiter {
    ticket: NonZeroU64,
    bulk: bool,
    waker: Waker,
}

impl Pool {
    fn take(&mut self, bulk: bool) -> Option<Buffer> {
        let big = if bulk { self.bulk.take(BULK_BYTES, BULK_MAX) } else { None };
        big.or_else(|| self.small.take(SMALL_BYTES, SMALL_MAX))
    }

    /// Calls whoever has waited for longest and could be served now.
    fn call(&mut self) {
        let (small, bulk) = (self.small.lent < SMALL_MAX, self.bulk.lent < BULK_MAX);
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
        POOL.with_borrow_mut(|pool| match pool.take(this.bulk) {
            Some(buffer) => Poll::Ready(buffer),
            None => {
                this.ticket = Some(pool.wait(this.ticket, this.bulk, cx.waker()));
                Poll::Pending
            }
        })
    }
}

impl Drop for Take {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let _ = POOL.try_with(|pool| pool.borrow_mut().leave(ticket));
        }
    }
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
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
    pub fn take_now(bulk: bool) -> Self {
        POOL.with_borrow_mut(|pool| {
            let big = if bulk { pool.bulk.take(BULK_BYTES, BULK_MAX) } else { None };
            big.unwrap_or_else(|| pool.small.take_beyond(SMALL_BYTES))
        })
    }

    /// The bytes, and the notes about them.
    pub fn parts(&mut self) -> (&mut [u8], &mut Vec<Range<usize>>) {
        (&mut self.bytes, &mut self.marks)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let stock = (std::mem::replace(&mut self.bytes, Bytes::none()), std::mem::take(&mut self.marks));
        // A buffer that outlives its thread's pool (at thread exit) is simply freed.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let class = if matches!(stock.0, Bytes::Bulk(_)) { &mut pool.bulk } else { &mut pool.small };
            class.give(stock);
            pool.call();
        });
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
    };

    use futures_lite::future::{block_on, poll_once};

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
    fn bulk_beyond_what_is_kept_is_the_system_s_again() {
        let mapped = || {
            let maps = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
            let line = maps.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
        };
        let mut all: Vec<_> = (0..BULK_MAX).map(|_| Buffer::take_now(true)).collect();
        all.iter_mut().for_each(|buffer| buffer.fill(1));
        assert!(all.iter().all(|buffer| buffer[BULK_BYTES - 1] == 1));
        let full = mapped();
        drop(all);
        let kept = (BULK_MAX - IDLE_MAX) * BULK_BYTES / 1024;
        // Other tests of this process come and go with some of their own.
        assert!(mapped() + kept * 3 / 4 < full, "{full} KiB with all, {} after", mapped());
        assert_eq!(POOL.with_borrow(|pool| pool.bulk.idle.len()), IDLE_MAX);
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
        assert_eq!(POOL.with_borrow(|pool| (pool.small.lent, pool.bulk.lent)), (0, 0));
    }
}
