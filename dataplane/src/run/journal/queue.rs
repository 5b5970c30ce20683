//! Role: the bounded queue between the threads that leave lines and the one thread that writes them.
//! Invariants: leaving a line takes no lock and, while the writer is awake, no system call · lines and bytes are bounded;
//! a line that finds no room is counted, and the count travels with the next line that does, so that the gap is known at
//! its place · `taken <= left`, and every line is counted in `left` before it is in the queue.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use concurrent_queue::ConcurrentQueue;

use crate::run::lock::lock;

/// So many lines are handed to the writer at once.
const BATCH_LINES_MAX: usize = 256;

/// How much may wait to be written.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Lines.
    pub lines_max: usize,
    /// Bytes of all lines together.
    pub bytes_max: usize,
}

/// What the writer does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Write the lines of the batch; `lost` lines before its last one found no room.
    Lines { lost: u64 },
    /// The file may have been moved away.
    Reopen,
    /// Make sure that everything so far is on the disk, and say so with [`Queue::synced`].
    Sync { upto: u64, lost: u64 },
    /// Nothing: the time is up.
    Tick { lost: u64 },
    /// Nobody is left to leave lines.
    Closed { lost: u64 },
}

pub(super) struct Queue<L> {
    /// Has room for `lines_max`, which `waiting` grants: a push never meets a pop that is not finished.
    lines: ConcurrentQueue<Entry<L>>,
    bounds: Bounds,
    /// Lines that have room, and their bytes.
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    /// Lines without room since the last that found some.
    lost: AtomicU64,
    /// Lines that have found room since the start.
    left: AtomicU64,
    /// Lines that were handed to the writer, which alone changes this.
    taken: AtomicU64,
    closed: AtomicBool,
    /// `requests` has one.
    is_asked: AtomicBool,
    /// No worker takes this lock.
    requests: Mutex<Requests>,
    /// `requests.synced` has grown.
    done: Condvar,
    writer: OnceLock<Thread>,
}

/// What was asked of the writer besides lines.
#[derive(Default)]
struct Requests {
    /// Once so many lines were handed out. A later request replaces an earlier one, which it includes.
    reopen_at: Option<u64>,
    sync_at: Option<u64>,
    /// Lines known to be written.
    synced: u64,
}

struct Entry<L> {
    line: L,
    bytes: usize,
    lost_before: u64,
}

impl<L> Queue<L> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            lines: ConcurrentQueue::bounded(bounds.lines_max),
            bounds,
            waiting: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            left: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            is_asked: AtomicBool::new(false),
            requests: Mutex::default(),
            done: Condvar::new(),
            writer: OnceLock::new(),
        }
    }

    /// The thread that calls [`Queue::next`]; to be set before the first line is left.
    pub(super) fn set_writer(&self, writer: Thread) {
        let _ = self.writer.set(writer);
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        // Nothing below leaves them half-changed.
        lock(&self.requests)
    }

    /// Costs one atomic operation where the writer is awake, and a system call where it sleeps.
    fn wake(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    /// Leaves a line, or counts it as lost.
    pub(super) fn leave(&self, line: L, bytes: usize) {
        if !take_room(&self.waiting, 1, self.bounds.lines_max) {
            self.lost.fetch_add(1, Ordering::AcqRel);
            return;
        }
        if !take_room(&self.waiting_bytes, bytes, self.bounds.bytes_max) {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            self.lost.fetch_add(1, Ordering::AcqRel);
            return;
        }
        self.left.fetch_add(1, Ordering::AcqRel);
        let entry = Entry { line, bytes, lost_before: self.take_loss() };
        let pushed = self.lines.push(entry);
        debug_assert!(pushed.is_ok(), "a line that was granted room has found none");
        self.wake();
    }

    pub(super) fn reopen(&self) {
        let mut requests = self.requests();
        requests.reopen_at = Some(self.left.load(Ordering::Acquire));
        drop(self.ask(requests));
    }

    /// Has the writer look at the requests.
    fn ask<'a>(&self, requests: MutexGuard<'a, Requests>) -> MutexGuard<'a, Requests> {
        self.is_asked.store(true, Ordering::Release);
        self.wake();
        requests
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
    }

    /// Waits until everything left so far is written; false when it was not within `patience`.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let mut requests = self.requests();
        let upto = self.left.load(Ordering::Acquire);
        requests.sync_at = Some(upto);
        let requests = self.ask(requests);
        let waited = self.done.wait_timeout_while(requests, patience, |requests| {
            // A later flush may have moved the request; what was synced includes this one then.
            requests.sync_at.is_some_and(|at| at <= upto) || requests.synced < upto
        });
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Everything up to this line is written.
    pub(super) fn synced(&self, upto: u64) {
        let mut requests = self.requests();
        requests.synced = upto;
        if requests.sync_at.is_some_and(|at| at <= upto) {
            requests.sync_at = None;
        }
        self.is_asked.store(requests.are_open(), Ordering::Release);
        drop(requests);
        self.done.notify_all();
    }

    /// Waits for what there is to do, until `deadline` at the most. Lines are put into `batch`, which is empty.
    pub(super) fn next(&self, deadline: Instant, batch: &mut Vec<L>) -> Next {
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Next::Tick { lost: self.take_trailing_loss() };
            }
            // What was left before the end is in the queue if this is seen.
            let is_closed = self.closed.load(Ordering::Acquire);
            let lines_max = match self.next_request() {
                Ok(next) => return next,
                Err(lines_max) => lines_max,
            };
            let lost = self.take(batch, lines_max);
            if !batch.is_empty() {
                return Next::Lines { lost };
            }
            if is_closed {
                return Next::Closed { lost: self.take_trailing_loss() };
            }
            // Returns at once where something was left since this thread was last awake.
            thread::park_timeout(deadline.saturating_duration_since(now));
        }
    }

    /// A request whose lines are all handed out; else how many lines may be, until one is.
    fn next_request(&self) -> Result<Next, u64> {
        if !self.is_asked.load(Ordering::Acquire) {
            return Err(u64::MAX);
        }
        let taken = self.taken.load(Ordering::Relaxed);
        let mut requests = self.requests();
        if requests.reopen_at.is_some_and(|at| at <= taken) {
            requests.reopen_at = None;
            self.is_asked.store(requests.are_open(), Ordering::Release);
            return Ok(Next::Reopen);
        }
        if requests.sync_at.is_some_and(|at| at <= taken) {
            return Ok(Next::Sync { upto: taken, lost: self.take_trailing_loss() });
        }
        let first = [requests.reopen_at, requests.sync_at].into_iter().flatten().min();
        Err(first.map_or(u64::MAX, |at| at - taken))
    }

    /// Moves lines to `batch`, until none is left, or one has lost lines before it, whose number this returns.
    fn take(&self, batch: &mut Vec<L>, lines_max: u64) -> u64 {
        let lines_max = usize::try_from(lines_max).unwrap_or(usize::MAX).min(BATCH_LINES_MAX);
        while batch.len() < lines_max
            && let Ok(Entry { line, bytes, lost_before }) = self.lines.pop()
        {
            self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            self.taken.fetch_add(1, Ordering::Relaxed);
            batch.push(line);
            if lost_before > 0 {
                return lost_before;
            }
        }
        0
    }

    fn take_loss(&self) -> u64 {
        if self.lost.load(Ordering::Acquire) == 0 { 0 } else { self.lost.swap(0, Ordering::AcqRel) }
    }

    /// Lines lost behind the last one in the queue belong behind that one.
    fn take_trailing_loss(&self) -> u64 {
        if self.lines.is_empty() { self.take_loss() } else { 0 }
    }
}

impl Requests {
    fn are_open(&self) -> bool {
        self.reopen_at.is_some() || self.sync_at.is_some()
    }
}

/// Adds `wanted` to what is used, if that stays within `max`.
fn take_room(used: &AtomicUsize, wanted: usize, max: usize) -> bool {
    let more = |used: usize| used.checked_add(wanted).filter(|sum| *sum <= max);
    used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::Arc, thread};

    const BOUNDS: Bounds = Bounds { lines_max: 3, bytes_max: 100 };

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// What is next, and the lines of a batch.
    fn next<'a>(queue: &Queue<&'a str>, deadline: Instant) -> (Next, Vec<&'a str>) {
        let mut batch = Vec::new();
        (queue.next(deadline, &mut batch), batch)
    }

    fn lines<'a>(lines: &[&'a str], lost: u64) -> (Next, Vec<&'a str>) {
        (Next::Lines { lost }, lines.to_vec())
    }

    fn other<'a>(next: Next) -> (Next, Vec<&'a str>) {
        (next, Vec::new())
    }

    #[test]
    fn lines_beyond_the_bounds_are_counted_at_their_place() {
        let queue = Queue::new(BOUNDS);
        for name in ["a", "b", "c", "d", "e"] {
            queue.leave(name, 10);
        }
        assert_eq!(next(&queue, soon()), lines(&["a", "b", "c"], 0));
        queue.leave("f", 10);
        queue.leave("g", 10);
        assert_eq!(next(&queue, soon()), lines(&["f"], 2), "a gap is in front of the last line of a batch");
        assert_eq!(next(&queue, soon()), lines(&["g"], 0));
        queue.leave("long", 101);
        assert_eq!(next(&queue, Instant::now()), other(Next::Tick { lost: 1 }));
        queue.leave("h", 60);
        queue.leave("i", 41);
        assert_eq!(
            next(&queue, Instant::now()),
            other(Next::Tick { lost: 0 }),
            "what is lost comes behind h"
        );
        assert_eq!(next(&queue, soon()), lines(&["h"], 0));
        queue.close();
        assert_eq!(next(&queue, soon()), other(Next::Closed { lost: 1 }));
    }

    #[test]
    fn a_request_to_reopen_comes_behind_the_lines_that_were_there() {
        let queue = Queue::new(BOUNDS);
        queue.leave("old", 1);
        queue.reopen();
        queue.leave("new", 1);
        assert_eq!(next(&queue, soon()), lines(&["old"], 0));
        assert_eq!(next(&queue, soon()), other(Next::Reopen));
        assert_eq!(next(&queue, soon()), lines(&["new"], 0));
        assert_eq!(next(&queue, Instant::now()), other(Next::Tick { lost: 0 }));
    }

    #[test]
    fn a_flush_ends_when_all_is_written_and_waits_no_longer_than_its_patience() {
        let queue = Arc::new(Queue::new(BOUNDS));
        queue.leave("line", 1);
        assert!(!queue.flush(Duration::from_millis(1)), "nobody writes");
        let writer = thread::spawn({
            let queue = queue.clone();
            move || {
                loop {
                    match next(&queue, soon()).0 {
                        Next::Sync { upto, .. } => queue.synced(upto),
                        Next::Closed { .. } => return,
                        _ => {}
                    }
                }
            }
        });
        queue.set_writer(writer.thread().clone());
        assert!(queue.flush(Duration::from_secs(10)));
        queue.leave("more", 1);
        assert!(queue.flush(Duration::from_secs(10)));
        assert!(queue.flush(Duration::from_secs(10)), "with nothing to write");
        queue.close();
        writer.join().unwrap();
    }

    #[test]
    fn a_tick_comes_in_time_however_many_lines_there_are() {
        let queue = Queue::new(BOUNDS);
        queue.leave("a", 1);
        assert_eq!(next(&queue, Instant::now()), other(Next::Tick { lost: 0 }));
        assert_eq!(next(&queue, soon()), lines(&["a"], 0));
    }

    #[test]
    fn a_batch_is_bounded() {
        let queue = Queue::new(Bounds { lines_max: 2 * BATCH_LINES_MAX, bytes_max: usize::MAX });
        for _ in 0..=BATCH_LINES_MAX {
            queue.leave("a", 1);
        }
        assert_eq!(next(&queue, soon()).1.len(), BATCH_LINES_MAX);
        assert_eq!(next(&queue, soon()).1.len(), 1);
    }

    #[test]
    fn lines_of_many_threads_are_written_in_each_threads_order_or_counted() {
        const LINES: u64 = 20_000;
        const THREADS: u64 = 4;
        let queue = Arc::new(Queue::new(Bounds { lines_max: 64, bytes_max: 64 }));
        let writer = thread::spawn({
            let queue = queue.clone();
            move || {
                let (mut last, mut written, mut missing) = ([0; THREADS as usize], 0, 0);
                let mut batch = Vec::new();
                loop {
                    let next = queue.next(soon(), &mut batch);
                    let (Next::Lines { lost }
                    | Next::Sync { lost, .. }
                    | Next::Tick { lost }
                    | Next::Closed { lost }) = next
                    else {
                        continue;
                    };
                    missing += lost;
                    for (thread, n) in batch.drain(..) {
                        let before = std::mem::replace(&mut last[thread], n);
                        assert!(before < n, "thread {thread}: {n} behind {before}");
                        written += 1;
                    }
                    match next {
                        Next::Sync { upto, .. } => queue.synced(upto),
                        Next::Closed { .. } => return written + missing,
                        _ => {}
                    }
                }
            }
        });
        queue.set_writer(writer.thread().clone());
        thread::scope(|scope| {
            for thread in 0..THREADS as usize {
                let queue = &queue;
                scope.spawn(move || (1..=LINES).for_each(|n| queue.leave((thread, n), 1)));
            }
        });
        assert!(queue.flush(Duration::from_secs(10)));
        queue.close();
        assert_eq!(writer.join().unwrap(), THREADS * LINES);
    }
}
