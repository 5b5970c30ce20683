//! Role: how a forward hears that it is to end.

use std::convert::Infallible;

use async_channel::{Receiver, Sender};
use narrowlink_proto::ended::{Ended, Side, Why};

/// Over as soon as the other half is dropped, or a worker has ended.
#[derive(Clone)]
pub(crate) struct Stop(Receiver<Infallible>);

impl Stop {
    /// Both halves.
    pub(crate) fn new() -> (Sender<Infallible>, Self) {
        let (held, over) = async_channel::bounded(1);
        (held, Self(over))
    }

    pub(crate) async fn wait(&self) {
        let _ = self.0.recv().await;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.is_closed()
    }

    /// Ends the forward when dropped.
    pub(crate) fn when_dropped(&self) -> StopWhenDropped {
        StopWhenDropped(self.clone())
    }

    /// Waits, and says how a session ends then.
    pub(crate) async fn shutdown(&self) -> Ended {
        self.wait().await;
        Ended { by: Side::Here, why: Why::Shutdown }
    }
}

/// What each worker holds, so that none goes on without the others.
pub(crate) struct StopWhenDropped(Stop);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.0.close();
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once, zip};

    use super::*;

    #[test]
    fn all_who_wait_hear_of_the_end_and_so_does_who_comes_later() {
        block_on(async {
            let (held, stop) = Stop::new();
            assert!(poll_once(stop.wait()).await.is_none());
            let other = stop.clone();
            let stopping = async { drop(held) };
            zip(zip(stop.wait(), other.wait()), stopping).await;
            assert_eq!(stop.shutdown().await, Ended { by: Side::Here, why: Why::Shutdown });
        });
    }

    #[test]
    fn a_worker_that_ends_for_whatever_reason_ends_the_others() {
        let (_held, stop) = Stop::new();
        let here = stop.clone();
        let failing = std::thread::spawn(move || {
            let _others = here.when_dropped();
            panic!("this panic belongs to the test");
        });
        block_on(stop.wait());
        assert!(failing.join().is_err() && stop.is_over());
    }
}
