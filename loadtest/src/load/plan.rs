//! Role: what one load process is told to do, and what it says: lines of JSON on its standard input and
//! output.
//! Invariants: a process is told once, at its start · what it says is one line a word.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// What one load process does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// What is sent.
    pub traffic: Traffic,
    /// How it gets there.
    pub way: Way,
    /// How many connections (of the churn: at a time).
    pub connections: usize,
    /// Whether this process goes before the others on its core: one that measures latency while they load.
    pub urgent: bool,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Traffic {
    /// As much as goes through.
    Bulk {
        /// Which way.
        direction: Direction,
    },
    /// One message in flight on each connection, echoed at the other end.
    Pingpong {
        /// Its length.
        bytes: usize,
        /// Which way it goes first: who calls, and sees how long it takes.
        direction: Direction,
    },
    /// Sessions one after the other on each connection: open, one byte, its echo, end.
    Churn,
    /// One byte and its echo on each connection, then nothing.
    Idle,
    /// Control links that stand; to a forwarder that has none, connections that say nothing.
    Links,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// From client to target.
    Up,
    /// From target to client.
    Down,
}

impl Direction {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// How bytes get to the target.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Way {
    /// Through any TCP forwarder: we connect to one address and are connected to at another.
    Forwarder {
        /// Where the forwarder listens.
        listen: SocketAddr,
        /// Where it connects to: we listen there.
        target: SocketAddr,
        /// TLS towards the forwarder.
        near_tls: Option<NearTls>,
        /// TLS from the forwarder.
        far_tls: Option<FarTls>,
    },
    /// Through a Narrowlink gateway: we are agent and client both.
    Tunnel {
        /// The agent's configuration.
        agent: PathBuf,
        /// The client's.
        client: PathBuf,
    },
}

/// How we are a client of a forwarder that ends TLS.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NearTls {
    /// Who signed its certificate (PEM).
    pub ca_file: PathBuf,
    /// Its name.
    pub name: String,
}

/// How we are the server that a forwarder begins TLS with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FarTls {
    /// Certificates and key (PEM).
    pub cert_file: PathBuf,
}

/// What a load process is asked, one line each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Let it flow.
    Start,
    /// Say how far you are; the first one begins the window, the second one ends it.
    Mark,
    /// Say how long things took within the window.
    Report,
}

/// What a load process says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Word {
    /// Every connection stands.
    Ready,
    /// It flows.
    Started,
    /// How far we are.
    Mark(Mark),
    /// How long things took within the window, as pairs of nanoseconds and how often.
    Report(Vec<(u64, u64)>),
    /// It can't go on.
    Failed(String),
}

/// How far a load process is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Since it began.
    pub at_ns: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Messages or sessions that were completed.
    pub events: u64,
    /// The process's own CPU time.
    pub cpu_ns: u64,
}
