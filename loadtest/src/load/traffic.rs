//! Role: what a load process sends and takes, each kind in a file of its own.
//! Invariants: connections are made before anything flows · whatever ends before it is told to ends the
//! process with a sentence.

mod bulk;
mod churn;
mod pingpong;

use std::{cell::RefCell, convert::Infallible, rc::Rc, sync::Arc};

use anyhow::Result;
use async_channel::{Receiver, Sender};
use futures_lite::future;
use narrowlink_dataplane::run::worker::spawn;

use super::{
    gauge::Gauge,
    peer::{self, Tunnel, join_many},
    plan::{Plan, Traffic, Way},
    word::fail,
};

/// Bytes read at a time, and thrown away.
const SCRATCH_BYTES: usize = 1024 * 1024;

/// Where bytes go that nobody wants; one for all connections of the thread.
type Scratch = Rc<RefCell<Vec<u8>>>;

/// Runs a plan for ever: says `ready` when everything stands, and waits for `start`.
///
/// # Errors
/// What is measured does not do its part.
pub async fn run(plan: &Plan, gauge: Arc<Gauge>, ready: &Sender<()>, start: &Receiver<()>) -> Result<()> {
    let begin = async {
        let _ = ready.send(()).await;
        let _ = start.recv().await;
    };
    match (plan.traffic, &plan.way) {
        (Traffic::Bulk { direction }, _) => {
            let ends = peer::connect(plan).await?;
            begin.await;
            let (from, to) = ends.towards(direction);
            bulk::flow(from, to, &gauge);
        }
        (Traffic::Pingpong { bytes, direction }, _) => {
            let ends = peer::connect(plan).await?;
            begin.await;
            let (from, to) = ends.towards(direction);
            pingpong::flow(from, to, bytes, &gauge);
        }
        (Traffic::Idle, _) => {
            let ends = peer::connect(plan).await?;
            let _held = pingpong::once(ends).await?;
            begin.await;
            return future::pending().await;
        }
        (Traffic::Links, Way::Tunnel { client, .. }) => {
            join_many(client, plan.connections).await?;
            begin.await;
        }
        (Traffic::Links, Way::Forwarder { .. }) => {
            let forwarder = peer::Forwarder::new(&plan.way)?;
            let mut held = Vec::new();
            for _ in 0..plan.connections {
                held.push(forwarder.near().await?);
            }
            begin.await;
            return future::pending().await;
        }
        (Traffic::Churn, Way::Tunnel { agent, client }) => {
            let warm = churn::warm(Tunnel::join(agent, client).await?, plan.connections).await?;
            begin.await;
            warm.flow(&gauge);
        }
        (Traffic::Churn, Way::Forwarder { .. }) => {
            let forwarder = Rc::new(peer::Forwarder::new(&plan.way)?);
            begin.await;
            churn::through(&forwarder, plan.connections, &gauge);
        }
    }
    future::pending().await
}

/// Runs what never ends; when it does, the process does.
fn keep_going(what: &'static str, task: impl Future<Output = Result<Infallible>> + 'static) {
    spawn(async move {
        let Err(error) = task.await;
        fail(&error.context(what));
    });
}
