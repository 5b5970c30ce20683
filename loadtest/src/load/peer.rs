//! Role: both ends of every connection: made, and ready for bytes.
//! Invariants: an end is handed out at a message boundary · all of a load process's ends belong to its one
//! thread.

mod forwarder;
mod frames;
mod tunnel;

use std::{io, time::Duration};

use anyhow::Result;
use narrowlink_dataplane::transport::wire::Wire;
use narrowlink_proto::message::Channel;

pub use self::{
    forwarder::Forwarder,
    frames::{Frames, Got, whole_frames},
    tunnel::{Tunnel, bare, join_many},
};
use super::plan::{Direction, Plan, Way};

/// For one connection to stand, through whatever is measured.
const PATIENCE: Duration = Duration::from_secs(10);

/// One end of a connection.
pub struct End {
    /// Its bytes.
    pub wire: Wire,
    /// Whether they are WebSocket frames.
    pub framed: bool,
    /// Which connection of the gateway's peers it is, where they are: what may be heard on it.
    pub channel: Channel,
}

/// Connections: the nth of one list need not be the other end of the nth of the other.
#[derive(Default)]
pub struct Ends {
    /// Ours towards the forwarder: a client's.
    pub near: Vec<End>,
    /// Those that the forwarder made: a target's, or an agent's.
    pub far: Vec<End>,
}

impl Ends {
    /// Those that send, and those that take.
    pub fn towards(self, direction: Direction) -> (Vec<End>, Vec<End>) {
        match direction {
            Direction::Up => (self.near, self.far),
            Direction::Down => (self.far, self.near),
        }
    }
}

/// Makes the connections of a plan.
///
/// # Errors
/// What is measured does not do its part.
pub async fn connect(plan: &Plan) -> Result<Ends> {
    match &plan.way {
        Way::Forwarder { .. } => Forwarder::new(&plan.way)?.pairs(plan.connections).await,
        Way::Tunnel { agent, client } => Tunnel::join(agent, client).await?.pairs(plan.connections).await,
    }
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} did not come within {} s", PATIENCE.as_secs()))
}
