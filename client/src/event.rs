//! Role: something that happens, for all who wait for it on any worker.
//! Invariants: a wait begins with its call, not with its first poll: what happens behind the call is heard, also when it
//! is over again by then.

use std::{convert::Infallible, sync::Mutex};

use async_channel::{Receiver, Sender};

use crate::lock::lock;

/// Set, or clear.
pub(crate) struct Event(Mutex<Pair>);

/// Closed when the event is set.
struct Pair {
    set: Sender<Infallible>,
    heard: Receiver<Infallible>,
}

impl Pair {
    fn new() -> Self {
        let (set, heard) = async_channel::bounded(1);
        Self { set, heard }
    }
}

impl Event {
    /// One that is clear.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Pair::new()))
    }

    /// Wakes all who wait. Nobody has to, until it is cleared.
    pub(crate) fn set(&self) {
        lock(&self.0).set.close();
    }

    /// From now on it is waited for.
    pub(crate) fn clear(&self) {
        let mut pair = lock(&self.0);
        if pair.set.is_closed() {
            *pair = Pair::new();
        }
    }

    /// Wakes all who wait now.
    pub(crate) fn pulse(&self) {
        std::mem::replace(&mut *lock(&self.0), Pair::new()).set.close();
    }

    /// Waits until it is set.
    pub(crate) fn wait(&self) -> impl Future<Output = ()> + use<> {
        let heard = lock(&self.0).heard.clone();
        async move {
            let _ = heard.recv().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn an_event_is_heard_by_all_who_wait_and_by_who_comes_later_until_it_is_cleared() {
        block_on(async {
            let event = Event::new();
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
        let event = Event::new();
        let waiting = event.wait();
        let elsewhere = std::thread::spawn(|| block_on(waiting));
        event.pulse();
        elsewhere.join().unwrap();
        assert!(block_on(poll_once(event.wait())).is_none());
    }
}
