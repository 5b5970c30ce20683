//! Role: what tasks tell each other without data, on one thread or from another: "something changed", "it is over".
//! Invariants: a ring is never lost, though several may be heard as one; a gate opens once, for all who
//! wait and all who come later.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_channel::{Receiver, Sender};

/// Wakes the one task that waits at it.
pub(crate) struct Doorbell {
    rung: Sender<()>,
    heard: Receiver<()>,
}

impl Doorbell {
    pub(crate) fn new() -> Self {
        let (rung, heard) = async_channel::bounded(1);
        Self { rung, heard }
    }

    pub(crate) fn ring(&self) {
        // Full: a ring that nobody has heard yet says the same.
        let _ = self.rung.try_send(());
    }

    /// Waits for a ring since the last one that was heard.
    pub(crate) async fn wait(&self) {
        let _ = self.heard.recv().await;
    }
}

/// Opens once.
#[derive(Clone)]
pub(crate) struct Gate(Receiver<Infallible>);

/// Opens its gate when dropped; may be dropped on any thread.
pub(crate) struct Opener {
    _closes: Sender<Infallible>,
}

impl Gate {
    pub(crate) fn new() -> (Opener, Self) {
        let (closes, closed) = async_channel::bounded(1);
        (Opener { _closes: closes }, Self(closed))
    }

    /// Waits until the gate is open.
    pub(crate) async fn wait(&self) {
        let _ = self.0.recv().await;
    }
}

/// The tasks that are under way.
pub(crate) struct Tasks {
    running: AtomicUsize,
    ended: Doorbell,
}

/// One task that is under way, until dropped.
pub(crate) struct Running(Arc<Tasks>);

impl Tasks {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { running: AtomicUsize::new(0), ended: Doorbell::new() })
    }

    pub(crate) fn begin(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(self.clone())
    }

    /// Waits until none is under way.
    pub(crate) async fn done(&self) {
        while self.running.load(Ordering::Acquire) > 0 {
            self.ended.wait().await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Release);
        self.0.ended.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, thread};

    use futures_lite::future::poll_once;
    use narrowlink_dataplane::run::worker::spawn;

    use super::*;
    use crate::fixture::run;

    #[test]
    fn a_ring_before_the_wait_is_heard_once() {
        let heard = run(async || {
            let bell = Doorbell::new();
            bell.ring();
            bell.ring();
            bell.wait().await;
            bell.heard.is_empty()
        });
        assert!(heard);
    }

    #[test]
    fn a_gate_opens_for_all_and_stays_open_and_tasks_are_done_when_the_last_ends() {
        let done = run(async || {
            let ((opener, gate), tasks) = (Gate::new(), Tasks::new());
            tasks.done().await;
            for _ in 0..3 {
                let (gate, running) = (gate.clone(), tasks.begin());
                spawn(async move {
                    gate.wait().await;
                    drop(running);
                });
            }
            assert_eq!(tasks.running.load(Ordering::Relaxed), 3);
            drop(opener);
            tasks.done().await;
            gate.wait().await;
            tasks.running.load(Ordering::Relaxed)
        });
        assert_eq!(done, 0);
    }

    #[test]
    fn a_ring_wakes_who_waits_and_one_that_gave_up_waiting_takes_none_along() {
        run(async || {
            let bell = std::rc::Rc::new(Doorbell::new());
            assert!(poll_once(bell.wait()).await.is_none());
            let ringing = bell.clone();
            spawn(async move { ringing.ring() });
            bell.wait().await;
            bell.ring();
            let mut waiting = pin!(bell.wait());
            assert!(poll_once(waiting.as_mut()).await.is_some());
            assert!(poll_once(bell.wait()).await.is_none(), "each is heard once");
        });
    }

    #[test]
    fn a_gate_opens_from_any_thread() {
        run(async || {
            let (opener, gate) = Gate::new();
            assert!(poll_once(gate.wait()).await.is_none());
            let opening = thread::spawn(move || drop(opener));
            gate.wait().await;
            opening.join().unwrap();
            assert!(poll_once(gate.clone().wait()).await.is_some());
        });
    }

    #[test]
    fn tasks_are_done_only_when_none_is_left_however_many_have_ended_before() {
        run(async || {
            let tasks = Tasks::new();
            let (first, last) = (tasks.begin(), tasks.begin());
            let mut done = pin!(tasks.done());
            assert!(poll_once(done.as_mut()).await.is_none());
            drop(first);
            assert!(poll_once(done.as_mut()).await.is_none(), "one is left");
            let newer = tasks.begin();
            drop(last);
            assert!(poll_once(done.as_mut()).await.is_none(), "another has begun");
            drop(newer);
            done.await;
        });
    }
}
