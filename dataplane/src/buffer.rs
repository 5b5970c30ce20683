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
    future::poll_fn,
    ops::{Deref, DerefMut, Range},
    ptr::{self, NonNull},
    slice,
    task::{Poll, Waker},
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

/// A buffer's memory: from the allocator, or, from [`BULK_BYTES`] on, straight from the kernel.
struct Bytes {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory as a box does, and both the allocator and the kernel take it back on any thread.
unsafe impl Send for Bytes {}

impl Bytes {
    /// Zeroed.
    fn new(len: usize) -> Self {
        if len < BULK_BYTES {
            let small = Box::leak(vec![0; len].into_boxed_slice());
            return Self { at: NonNull::from_mut(small).cast(), len };
        }
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new pages at a place of the kernel's choice; nothing that is there is touched.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, access, kind, -1, 0) };
        match NonNull::new(at.cast::<u8>()) {
            Some(place) if at != libc::MAP_FAILED => Self { at: place, len },
            // As the allocator has it, which would have asked for the same pages.
            _ => handle_alloc_error(Layout::new::<[u8; BULK_BYTES]>()),
        }
    }

    /// None at all.
    const fn none() -> Self {
        Self { at: NonNull::dangling(), len: 0 }
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `new` made `len` bytes at `at`, zeroed, which are this value's alone until it is dropped.
        unsafe { slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; and `self` is borrowed for as long.
        unsafe { slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if self.len < BULK_BYTES {
            // SAFETY: `new` leaked this box, or there are no bytes, and then it is the empty one.
            drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(self.at.as_ptr(), self.len)) });
        } else {
            // SAFETY: `new` mapped these pages, and nothing borrows them any more.
            let unmapped = unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
            debug_assert_eq!(unmapped, 0, "what was mapped can be unmapped");
        }
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
    waiting: VecDeque<Waker>,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

impl Buffer {
    /// Borrows a buffer: a bulk one if `bulk` and one is left, else a small one. Waits only when
    /// the worker's whole pool is out.
    pub async fn take(bulk: bool) -> Self {
        poll_fn(|cx| {
            POOL.with_borrow_mut(|pool| {
                let big = if bulk { pool.bulk.take(BULK_BYTES, BULK_MAX) } else { None };
                match big.or_else(|| pool.small.take(SMALL_BYTES, SMALL_MAX)) {
                    Some(buffer) => Poll::Ready(buffer),
                    None => {
                        pool.waiting.push_back(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await
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
            let class = if stock.0.len() == BULK_BYTES { &mut pool.bulk } else { &mut pool.small };
            class.give(stock);
            if let Some(waker) = pool.waiting.pop_front() {
                waker.wake();
            }
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
    use futures_lite::future::{block_on, poll_once};

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
