//! Role: what a program answers on standard output, and how it ends where that can't be written.
//! Invariants: every program says it in the same words and ends with the same code · a reader that left has seen
//! enough, which is no error.

use std::io::{self, Write};

/// The exit code of an answer that could not be written: sysexits.h `EX_IOERR`.
pub const UNWRITTEN: u8 = 74;

/// An answer that could not be written: a full disk, say. The world's fault.
#[derive(Debug, thiserror::Error)]
#[error("standard output could not be written: {0}")]
pub struct Unwritten(io::Error);

/// Writes a text as it is, and all of it.
///
/// # Errors
/// The writer's.
pub fn write(mut out: impl Write, text: &str) -> Result<(), Unwritten> {
    wrote(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// What became of an answer that was written piece by piece.
///
/// # Errors
/// The writer's.
pub fn wrote(outcome: io::Result<()>) -> Result<(), Unwritten> {
    match outcome {
        // Whoever read it has seen enough (`| head -1`): no error, and nothing to say.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(Unwritten),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_an_error_and_a_reader_that_left_is_none() {
        struct Fails(io::ErrorKind);

        impl Write for Fails {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let mut text = Vec::new();
        write(&mut text, "yes\n").unwrap();
        assert_eq!(text, b"yes\n");
        write(Fails(io::ErrorKind::BrokenPipe), "yes\n").unwrap();
        let why = write(Fails(io::ErrorKind::StorageFull), "yes\n").unwrap_err().to_string();
        assert_eq!(why, "standard output could not be written: no storage space");
    }
}
