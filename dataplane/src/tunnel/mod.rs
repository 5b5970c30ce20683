//! Connections between two programs of ours: how they are opened, frames and messages on them, links, and how they
//! end.

pub mod conn;
pub mod deframe;
pub mod demand;
pub mod end;
pub(crate) mod enframe;
#[cfg(test)]
pub(crate) mod far_end;
pub mod linger;
pub(crate) mod link;
pub(crate) mod liveness;
pub(crate) mod open;
mod peer_link;
pub mod quiet;
pub mod settle;
pub mod watch;

pub use self::{
    link::LinkError,
    open::{Ask, Gateway, LoadError, TunnelError, load_distinct, open, read_token_again},
    peer_link::{PeerLink, join},
};
