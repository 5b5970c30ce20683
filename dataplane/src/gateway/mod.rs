//! A gateway's workers: who arrives, what they may, whose lanes are where, sessions.
//!
//! Downhill: `services` (a connection arrives) → `serve` (sniff, TLS, head) → [`stream`] (a client's sessions) or
//! `visit` (somebody who comes to a published host) → `session` → [`admit`] (may it?) → [`parking`] (an agent's parked stream) → [`crate::relay`]. [`attend`] stands above: it is a
//! worker. [`local`] is what a worker has, [`shared`] what all have; [`mailbox`] is what crosses threads.

pub mod admit;
pub mod attend;
pub(crate) mod bucket;
pub mod claims;
mod date;
pub mod directory;
pub mod door;
pub(crate) mod handover;
#[cfg(test)]
mod kit;
pub mod lane;
pub(crate) mod link;
pub mod local;
pub mod mailbox;
pub(crate) mod measure;
pub mod parking;
pub mod principal;
pub mod routes;
pub(crate) mod serve;
pub mod service;
pub(crate) mod services;
pub(crate) mod session;
pub mod shared;
pub mod shares;
pub mod sources;
pub(crate) mod strangers;
pub mod stream;
pub mod table;
pub mod usage;
pub(crate) mod visit;
