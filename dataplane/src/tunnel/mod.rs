//! Connections between two programs of ours: frames and messages on them, links, and how they end.

pub mod conn;
pub mod deframe;
pub mod end;
pub(crate) mod enframe;
pub(crate) mod error;
#[cfg(test)]
pub(crate) mod far_end;
pub mod linger;
pub(crate) mod link;
pub(crate) mod liveness;
pub mod measure;
pub mod quiet;
pub mod settle;
pub mod watch;

pub use self::{error::TunnelError, link::LinkError};
