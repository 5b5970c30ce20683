//! Role: the bounded queue between the threads that leave lines and the one thread that writes them.
//! Invariants: leaving a line never waits · lines and bytes are bounded; a line that finds no room is counted, and the
//! count travels with the next line that does, so that the gap is known at its place.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A queue that grew beyond this gives its memory back once it is empty.
const KEPT_LINES_MAX: usize = 256;

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
pub(super) enum Next<L> {
    /// Write this line; `lost` lines before it found no room.
    Line { line: L, lost: u64 },
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
    state: Mutex<State<L>>,
    /// There is something to do for the writer.
    more: Condvar,
    /// `synced` has grown.
    done: Condvar,
    bounds: Bounds,
}

struct State<L> {
    lines: VecDeque<Entry<L>>,
    bytes: usize,
    /// Lines without room since the last that found some.
    lost: u64,
    /// Lines taken in, handed to the writer, and known to be written: `synced <= taken <= left`.
    left: u64,
    taken: u64,
    synced: u64,
    /// Once so many lines were handed out. A later request replaces an earlier one, which it includes.
    reopen_at: Option<u64>,
    sync_at: Option<u64>,
    closed: bool,
}

struct Entry<L> {
    line: L,
    bytes: usize,
    lost_before: u64,
}

impl<L> Queue<L> {
    pub(super) fn new(bounds: Bounds) -> Self {
        let state = State {
            lines: VecDeque::new(),
            bytes: 0,
            lost: 0,
            left: 0,
            taken: 0,
            synced: 0,
            reopen_at: None,
            sync_at: None,
            closed: false,
        };
        Self { state: Mutex::new(state), more: Condvar::new(), done: Condvar::new(), bounds }
    }

    fn lock(&self) -> MutexGuard<'_, State<L>> {
        // Nothing below leaves the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a line, or counts it as lost.
    pub(super) fn leave(&self, line: L, bytes: usize) {
        let mut state = self.lock();
        if state.lines.len() >= self.bounds.lines_max || state.bytes + bytes > self.bounds.bytes_max {
            state.lost += 1;
            return;
        }
        let lost_before = std::mem::take(&mut state.lost);
        state.lines.push_back(Entry { line, bytes, lost_before });
        state.bytes += bytes;
        state.left += 1;
        drop(state);
        self.more.notify_one();
    }

    pub(super) fn reopen(&self) {
        let mut state = self.lock();
        state.reopen_at = Some(state.left);
        drop(state);
        self.more.notify_one();
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.more.notify_one();
    }

    /// Waits until everything left so far is written; false when it was not within `patience`.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        let upto = state.left;
        state.sync_at = Some(upto);
        self.more.notify_one();
        let waited = self.done.wait_timeout_while(state, patience, |state| {
            // A later flush may have moved the request; what was synced includes this one then.
            state.sync_at.is_some_and(|at| at <= upto) || state.synced < upto
        });
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Everything up to this line is written.
    pub(super) fn synced(&self, upto: u64) {
        let mut state = self.lock();
        state.synced = upto;
        if state.sync_at.is_some_and(|at| at <= upto) {
            state.sync_at = None;
        }
        drop(state);
        self.done.notify_all();
    }

    /// Waits for what there is to do, until `deadline` at the most.
    pub(super) fn next(&self, deadline: Instant) -> Next<L> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Next::Tick { lost: state.take_trailing_loss() };
            }
            if let Some(next) = state.next() {
                return next;
            }
            let waited = self.more.wait_timeout(state, deadline.saturating_duration_since(now));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<L> State<L> {
    fn next(&mut self) -> Option<Next<L>> {
        if self.reopen_at.is_some_and(|at| at <= self.taken) {
            self.reopen_at = None;
            return Some(Next::Reopen);
        }
        if self.sync_at.is_some_and(|at| at <= self.taken) {
            return Some(Next::Sync { upto: self.taken, lost: self.take_trailing_loss() });
        }
        let Some(Entry { line, bytes, lost_before }) = self.lines.pop_front() else {
            return self.closed.then(|| Next::Closed { lost: self.take_trailing_loss() });
        };
        self.bytes -= bytes;
        self.taken += 1;
        if self.lines.is_empty() && self.lines.capacity() > KEPT_LINES_MAX {
            self.lines = VecDeque::new();
        }
        Some(Next::Line { line, lost: lost_before })
    }

    /// Lines lost behind the last one in the queue belong behind that one.
    fn take_trailing_loss(&mut self) -> u64 {
        if self.lines.is_empty() { std::mem::take(&mut self.lost) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::Arc, thread};

    const BOUNDS: Bounds = Bounds { lines_max: 3, bytes_max: 100 };

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn line(line: &str, lost: u64) -> Next<&str> {
        Next::Line { line, lost }
    }

    #[test]
    fn lines_beyond_the_bounds_are_counted_at_their_place() {
        let queue = Queue::new(BOUNDS);
        for name in ["a", "b", "c", "d", "e"] {
            queue.leave(name, 10);
        }
        assert_eq!(queue.next(soon()), line("a", 0));
        queue.leave("f", 10);
        assert_eq!(queue.next(soon()), line("b", 0));
        assert_eq!(queue.next(soon()), line("c", 0));
        assert_eq!(queue.next(soon()), line("f", 2));
        queue.leave("long", 101);
        assert_eq!(queue.next(Instant::now()), Next::Tick { lost: 1 });
        queue.leave("g", 60);
        queue.leave("h", 41);
        assert_eq!(queue.next(Instant::now()), Next::Tick { lost: 0 }, "what is lost comes behind g");
        assert_eq!(queue.next(soon()), line("g", 0));
        queue.close();
        assert_eq!(queue.next(soon()), Next::Closed { lost: 1 });
    }

    #[test]
    fn a_request_to_reopen_comes_behind_the_lines_that_were_there() {
        let queue = Queue::new(BOUNDS);
        queue.leave("old", 1);
        queue.reopen();
        queue.leave("new", 1);
        assert_eq!(queue.next(soon()), line("old", 0));
        assert_eq!(queue.next(soon()), Next::Reopen);
        assert_eq!(queue.next(soon()), line("new", 0));
        assert_eq!(queue.next(Instant::now()), Next::Tick { lost: 0 });
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
                    match queue.next(soon()) {
                        Next::Sync { upto, .. } => queue.synced(upto),
                        Next::Closed { .. } => return,
                        _ => {}
                    }
                }
            }
        });
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
        assert_eq!(queue.next(Instant::now()), Next::Tick { lost: 0 });
        assert_eq!(queue.next(soon()), line("a", 0));
    }
}
