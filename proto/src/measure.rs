//! Role: what a session is opened to for measuring the way to it, in place of a target.
//! Invariants: nothing is dialled for it: bytes go to a program of ours, and no further.
//! See: RFC 862 (echo), 863 (discard), 864 (generate); `message`, Open and Dial.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An end that answers measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Measure {
    /// Which program has it.
    pub at: Station,
    /// What it does.
    pub how: How,
}

/// A program on the way to an agent's targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Station {
    /// The gateway: no byte reaches the agent.
    Gateway,
    /// The agent.
    Agent,
}

/// What such an end does with what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Sends it back.
    Echo,
    /// Reads it, and sends nothing.
    Discard,
    /// Sends bytes of its own until the other side has finished.
    Generate,
}

/// As a target is written in logs: `measure://agent/echo`.
impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let station = match self.at {
            Station::Gateway => "gateway",
            Station::Agent => "agent",
        };
        let how = match self.how {
            How::Echo => "echo",
            How::Discard => "discard",
            How::Generate => "generate",
        };
        write!(f, "measure://{station}/{how}")
    }
}
