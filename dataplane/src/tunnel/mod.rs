//! Connections between two programs of ours: how they are opened, frames and messages on them, links, and how they
//! end.

pub mod conn;
pub mod deframe;
pub mod demand;
pub mod linger;
pub(crate) mod link;
pub(crate) mod open;
mod peer_link;
pub mod quiet;

pub use self::{
    link::LinkError,
    open::{Ask, Gateway, LoadError, TunnelError, load_distinct, open, read_token_again},
    peer_link::{PeerLink, join},
};
