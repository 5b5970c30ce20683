//! Sockets, listeners, dials, names, and the buffers that bytes pass through.

pub mod buffer;
pub mod dial;
pub mod inherited;
pub mod listen;
pub mod memory;
pub(crate) mod pages;
pub mod plain;
pub mod resolve;
pub(crate) mod socket;
pub mod stdio;
pub(crate) mod stock;
