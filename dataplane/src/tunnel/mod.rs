//! Connections between two programs of ours: how they are opened, frames and messages on them, links, and how they
//! end.

pub mod conn;
pub mod deframe;
pub mod demand;
pub mod linger;
pub mod link;
pub(crate) mod open;
pub mod quiet;

pub use self::open::{Ask, Gateway, LoadError, TunnelError, load_distinct, open, read_token_again};
