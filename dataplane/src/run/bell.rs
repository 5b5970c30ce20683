//! Role: what tasks tell each other without data, on one thread or from another: "something changed", "it is over".
//! Invariants: a ring is never lost, though several may be heard as one; a gate opens once, for all who
//! wait and all who come later.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_channel::{Receiver, Sender};

use crate::run::lock::lock;

/// Wakes the one task that waits at it.
pub struct Doorbell {
    rung: Sender<()>,
    heard: Receiver<()>,
}

impl Default for Doorbell {
    fn default() -> Self {
        let (rung, heard) = async_channel::bounded(1);
        Self { rung, heard }
    }
}

impl Doorbell {
    /// Rings, whether anybody waits or not.
    pub fn ring(&self) {
        // Full: a ring that nobody has heard yet says the same.
        let _ = self.rung.try_send(());
    }

    /// Waits for a ring since the last one that was heard.
    pub async fn wait(&self) {
        let _ = self.heard.recv().await;
    }
}

/// Opens once.
#[derive(Clone)]
pub struct Gate(Receiver<Infallible>);

/// Opens its gate when dropped; may be dropped on any thread.
pub struct Opener {
    _closes: Sender<Infallible>,
}

impl Gate {
    /// A closed one, and what opens it.
    pub fn new() -> (Opener, Self) {
        let (closes, closed) = async_channel::bounded(1);
        (Opener { _closes: closes }, Self(closed))
    }

    /// Waits until the gate is open.
    pub async fn wait(&self) {
        let _ = self.0.recv().await;
    }
}

/// Set, or clear: something that lasts, for all who wait for it on any thread. A wait begins with its call, not with
/// its first poll: what happens behind the call is heard, also when it is over again by then.
#[derive(Default)]
pub struct Event(Mutex<Pair>);

/// Closed when the event is set.
struct Pair {
    set: Sender<Infallible>,
    heard: Receiver<Infallible>,
}

impl Default for Pair {
    fn default() -> Self {
        let (set, heard) = async_channel::bounded(1);
        Self { set, heard }
    }
}

impl Event {
    /// Wakes all who wait. Nobody has to, until it is cleared.
    pub fn set(&self) {
        lock(&self.0).set.close();
    }

    /// From now on it is waited for.
    pub fn clear(&self) {
        let mut pair = lock(&self.0);
        if pair.set.is_closed() {
            *pair = Pair::default();
        }
    }

    /// Wakes all who wait now.
    pub fn pulse(&self) {
        std::mem::take(&mut *lock(&self.0)).set.close();
    }

    /// Waits until it is set.
    pub fn wait(&self) -> impl Future<Output = ()> + use<> {
        let heard = lock(&self.0).heard.clone();
        async move {
            let _ = heard.recv().await;
        }
    }
}

/// The tasks that are under way.
#[derive(Default)]
pub struct Tasks {
    running: AtomicUsize,
    ended: Doorbell,
}

/// One task that is under way, until dropped.
pub struct Running(Arc<Tasks>);

impl Tasks {
    /// One more.
    pub fn begin(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(self.clone())
    }

    /// Waits until none is under way.
    pub async fn done(&self) {
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

    use futures_lite::future::{block_on, poll_once};

    use super::*;
    use crate::run::worker::{run_alone, spawn};

    fn run<T>(test: impl AsyncFnOnce() -> T) -> T {
        run_alone(false, |_| test()).unwrap()
    }

    #[test]
    fn a_ring_before_the_wait_is_heard_once() {
        let heard = run(async || {
            let bell = Doorbell::default();
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
            let ((opener, gate), tasks) = (Gate::new(), Arc::new(Tasks::default()));
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
            let bell = std::rc::Rc::new(Doorbell::default());
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
            let tasks = Arc::new(Tasks::default());
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

    #[test]
    fn an_event_is_heard_by_all_who_wait_and_by_who_comes_later_until_it_is_cleared() {
        block_on(async {
            let event = Event::default();
            let waiting = [event.wait(), event.wait()];
            event.clear();
            event.set();
            for wait in waiting {
                wait.await;
            }
            event.wait().await;
            let before = event.wait();
            event.clear();
            before.await;
            assert!(poll_once(event.wait()).await.is_none(), "the next time is waited for anew");
        });
    }

    #[test]
    fn a_pulse_wakes_who_waits_on_another_thread_and_nobody_who_comes_later() {
        let event = Event::default();
        let waiting = event.wait();
        let elsewhere = thread::spawn(|| block_on(waiting));
        event.pulse();
        elsewhere.join().unwrap();
        assert!(block_on(poll_once(event.wait())).is_none());
    }
}
