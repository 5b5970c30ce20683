//! Sockets, listeners, dials, names, and the buffers that bytes pass through.

pub mod buffer;
pub mod dial;
pub mod listen;
pub(crate) mod pages;
pub mod resolve;
pub mod socket;
pub(crate) mod stock;
