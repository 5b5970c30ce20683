//! Moves the bytes of Narrowlink.
//!
//! A byte's way through a gateway reads downhill in these files:
//! [`listen`] (a connection arrives) → [`serve`] (sniff, TLS, head) → [`stream`] (a client's sessions) →
//! [`admit`] (may it?) → [`lane`] (an agent's parked stream) → [`relay`] (until both directions have ended).
//!
//! This crate knows no token, policy, YAML or ACME. It asks through [`door::Door`] and decides
//! from snapshots ([`directory`]). Agent and client use the same [`worker`], [`wire`], [`conn`],
//! [`dial`], [`tunnel`] and [`relay`] for their side.
//!
//! # Invariants
//! * No lock, shared map or unbounded queue on the way of a byte.
//! * `relay` knows no token, name or policy.
//! * One file asks "may it?" ([`admit`]), one file crosses threads ([`handover`]).
//! * Nothing awaits a peer while holding shared state.
// They panic where they can't write; a running program writes to nothing that may stall. See `dataplane::log`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod admit;
pub mod aside;
pub mod attend;
pub mod backoff;
mod budget;
pub mod buffer;
mod caught;
pub mod claims;
pub mod conn;
pub mod deframe;
pub mod demand;
pub mod descriptors;
pub mod dial;
pub mod directory;
pub mod door;
pub mod file;
mod handover;
pub mod journal;
pub mod lane;
pub mod linger;
pub mod link;
pub mod listen;
pub mod local;
pub mod log;
pub mod mailbox;
mod pages;
pub mod parking;
pub mod pipe;
mod pollable;
pub mod principal;
pub mod process;
pub mod quiet;
pub mod ready_file;
pub mod relay;
pub mod resolve;
mod serve;
pub mod service;
mod services;
pub mod shared;
pub mod shares;
pub mod socket;
pub mod sources;
mod stock;
mod strangers;
pub mod stream;
pub mod table;
pub mod timer;
pub mod tls;
pub mod tunnel;
pub mod usage;
pub mod wire;
pub mod worker;
