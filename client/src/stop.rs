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

    /// Waits, and says how a session ends then.
    pub(crate) async fn shutdown(&self) -> Ended {
        self.wait().await;
        Ended { by: Side::Here, why: Why::Shutdown }
    }
}
