//! What an agent and a client have of their gateway: the way to it, a link, and connections that are kept ready.

pub mod demand;
pub mod doctor;
mod link;
mod open;
pub mod pool;
mod trial;

pub use self::{
    link::{PeerLink, join},
    open::{Ask, Gateway, LoadError, load_distinct, open, read_token_again},
    trial::try_token,
};
