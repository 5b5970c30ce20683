//! The whole system in one process, and programs that drive it.
//!
//! [`site`] writes what the programs read (certificates, tokens, configurations), [`lab`] starts
//! gateway, agents and clients from it on loopback, [`transfer`] sends bytes through and judges
//! every one of them and every ending. The demo and the system tests build on these. [`load`] measures, in a
//! network of its own where it may ([`namespace`]).

pub mod lab;
pub mod load;
pub mod namespace;
pub mod site;
pub mod transfer;
