//! Role: how much of a direction may pass before its session is answered.
//! Invariants: what passed is never more than the limit until the gate opens · it opens once and stays
//! open · an open gate costs a look at one cell · what is kept for another try is kept only until then.
//! See: ARCHITECTURE.md "Open".

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Poll, Waker},
};

/// The room of a gate that is open.
const NO_LIMIT: usize = usize::MAX;

/// Lets a bounded amount pass until it is opened. One task passes through it.
pub struct Gate {
    room: Cell<usize>,
    used: Cell<bool>,
    kept: RefCell<Option<Vec<u8>>>,
    waiting: Cell<Option<Waker>>,
}

impl Gate {
    fn new(room: usize, kept: Option<Vec<u8>>) -> Self {
        Self {
            room: Cell::new(room),
            used: Cell::new(false),
            kept: RefCell::new(kept),
            waiting: Cell::default(),
        }
    }

    /// A gate that was never closed.
    pub fn opened() -> Self {
        Self::new(NO_LIMIT, None)
    }

    /// A gate that lets `limit` bytes pass until it is opened.
    pub fn closed(limit: usize) -> Self {
        Self::new(limit, None)
    }

    /// As [`Gate::closed`]; a copy of what passes is kept until the gate opens.
    pub fn keeping(limit: usize) -> Self {
        Self::new(limit, Some(Vec::new()))
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.room.set(NO_LIMIT);
        self.kept.take();
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    /// Whether everything may pass.
    pub fn is_open(&self) -> bool {
        self.room.get() == NO_LIMIT
    }

    /// Whether something may pass now.
    pub(super) fn has_room(&self) -> bool {
        self.room.get() > 0
    }

    /// Whether anything passed before the gate opened, be it the end of the direction.
    pub fn was_used(&self) -> bool {
        self.used.get()
    }

    /// What has passed, for another try; empty once the gate is open.
    pub fn take_kept(&self) -> Vec<u8> {
        self.kept.take().unwrap_or_default()
    }

    /// How much may pass now; waits while that is nothing.
    pub(super) async fn room(&self) -> usize {
        self.wait(|room| room > 0).await
    }

    /// Waits until the gate is open.
    pub(super) async fn wait_open(&self) {
        self.wait(|room| room == NO_LIMIT).await;
    }

    async fn wait(&self, enough: impl Fn(usize) -> bool) -> usize {
        poll_fn(|cx| {
            let room = self.room.get();
            if enough(room) {
                return Poll::Ready(room);
            }
            self.waiting.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// These bytes are about to pass; none is the end of the direction.
    pub(super) fn passed(&self, bytes: &[u8]) {
        let room = self.room.get();
        if room == NO_LIMIT {
            return;
        }
        debug_assert!(bytes.len() <= room, "a read is limited to the room there is");
        self.room.set(room.saturating_sub(bytes.len()));
        self.used.set(true);
        if let Some(kept) = &mut *self.kept.borrow_mut() {
            kept.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn a_closed_gate_lets_its_limit_pass_and_the_rest_when_it_opens() {
        let gate = Gate::closed(10);
        assert_eq!(block_on(gate.room()), 10);
        assert!(!gate.was_used() && !gate.is_open());
        gate.passed(&[1; 7]);
        assert_eq!(block_on(gate.room()), 3);
        gate.passed(&[2; 3]);
        let mut waiting = pin!(gate.room());
        assert!(block_on(poll_once(waiting.as_mut())).is_none());
        gate.open();
        assert_eq!(block_on(waiting), NO_LIMIT);
        gate.passed(&[3; 99]);
        assert!(gate.is_open() && gate.was_used());
        assert_eq!(block_on(gate.room()), NO_LIMIT);
    }

    #[test]
    fn who_waits_at_a_gate_is_woken_when_it_opens() {
        let gate = Gate::closed(0);
        let opening = async {
            // The other one waits first.
            futures_lite::future::yield_now().await;
            gate.open();
        };
        let (room, ()) = block_on(futures_lite::future::zip(gate.room(), opening));
        assert_eq!(room, NO_LIMIT);
        block_on(gate.wait_open());
        assert!(!gate.was_used());
    }

    #[test]
    fn what_passed_is_kept_for_another_try_but_only_until_the_gate_opens() {
        let gate = Gate::keeping(8);
        gate.passed(b"GET ");
        gate.passed(b"/");
        assert_eq!(gate.take_kept(), b"GET /");
        let gate = Gate::keeping(8);
        gate.passed(b"GET ");
        gate.open();
        gate.passed(b"everything else");
        assert!(gate.take_kept().is_empty());
    }

    #[test]
    fn the_end_of_a_direction_without_a_byte_counts_as_use() {
        let gate = Gate::closed(8);
        gate.passed(&[]);
        assert!(gate.was_used());
        assert_eq!(block_on(gate.room()), 8);
        let open = Gate::opened();
        open.passed(&[]);
        assert!(!open.was_used(), "nothing passed before it opened");
    }
}
