//! Role: what a forward is asked for.

use std::net::SocketAddr;

use narrowlink_proto::target::Target;

/// What is to be forwarded, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The agent that dials.
    pub agent: String,
    /// What it dials.
    pub target: Target,
    /// Where to listen.
    pub listen: SocketAddr,
}
