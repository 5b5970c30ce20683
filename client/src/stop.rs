//! Role: how a forward hears that it is to end.

use std::convert::Infallible;

use async_channel::{Receiver, Sender};
use narrowlink_proto::ended::{Ended, Side, Why};

/// Over as soon as the other half is dropped.
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

    /// Waits, and says how a session ends then.
    pub(crate) async fn shutdown(&self) -> Ended {
        self.wait().await;
        Ended { by: Side::Here, why: Why::Shutdown }
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
}
