//! A connection's bytes, whatever carries them: reading, writing, ending, and what else it can do.

pub mod pipe;
pub mod wire;
