//! Decides: who may come in, what they may open, and which agents are there. The program
//! `narrowlink-gateway` is this library and a `main` that wires.
//!
//! [`config`] says what a gateway is to be, [`gateway`] starts it, [`supervise`] watches it. [`auth`] answers
//! the data plane's questions on its workers; [`clerk`] keeps the [`registry`] of links on the control thread.
//! [`explain`] and [`expectations`] answer an operator's questions about policies without a running gateway;
//! [`init`] makes a gateway from nothing, [`migrate`] one of a file of 0.2, [`tickets`] lets agents and clients in; [`revoke`] adds to the list of [`revocations`] that a running one follows.
// They panic where they can't write; a running program writes to nothing that may stall. See `dataplane::run::log`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod accounts;
pub mod args;
pub mod audit;
pub mod auth;
pub mod authority;
pub mod certificate;
pub mod clerk;
pub mod clock;
pub mod config;
mod credentials;
pub mod expectations;
pub mod explain;
pub mod gateway;
pub mod hosts;
pub mod init;
pub mod keeper;
pub mod migrate;
pub mod moment;
pub mod pid_file;
pub mod registry;
pub mod reload;
pub mod revocations;
pub mod revoke;
pub mod succession;
pub mod supervise;
pub mod tickets;
pub mod upgrade;
pub mod word;
