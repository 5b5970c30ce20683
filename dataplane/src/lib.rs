//! Moves the bytes of Narrowlink.
//!
//! Its wings, from the bottom up:
//!
//! | wing | has |
//! |---|---|
//! | [`run`] | threads and turns, deadlines, log, files, the process |
//! | [`net`] | sockets, listeners, dials, names, buffers |
//! | [`tls`] | handshakes, records, the kernel's TLS |
//! | [`transport`] | a connection's bytes, plain or TLS |
//! | [`tunnel`] | connections between two programs of ours |
//! | [`peer`] | what an agent and a client have of their gateway |
//! | [`relay`] | the two ends of a session joined, until both directions have ended |
//! | [`gateway`] | who arrives, what they may, lanes, sessions |
//!
//! A byte's way through a gateway reads downhill in [`gateway`]. This crate knows no token, policy, YAML or ACME. It
//! asks through [`gateway::door::Door`] and decides from snapshots ([`gateway::directory`]). Agent and client use all
//! the others for their side.
//!
//! # Invariants
//! * No lock, shared map or unbounded queue on the way of a byte.
//! * `relay` knows no token, name or policy.
//! * One file asks "may it?" (`gateway::admit`), one says what crosses threads ([`gateway::mailbox`]).
//! * Nothing awaits a peer while holding shared state.
// They panic where they can't write; a running program writes to nothing that may stall. See `dataplane::run::log`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod gateway;
pub mod net;
pub mod peer;
pub mod relay;
pub mod run;
pub mod tls;
pub mod transport;
pub mod tunnel;
