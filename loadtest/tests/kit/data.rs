//! Role: bytes that can be made again and compared.
//! Invariants: the same seed gives the same bytes, however they are read.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use sha2::{Digest as _, Sha256};

/// Endless bytes of one seed (splitmix64): cheap, and no two stretches are alike, so that bytes lost,
/// doubled or moved show.
pub(crate) struct Pattern {
    seed: u64,
    at: u64,
}

impl Pattern {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { seed, at: 0 }
    }

    /// The eight bytes in which the next byte lies.
    const fn word(&self) -> [u8; 8] {
        let z = self.seed.wrapping_add((self.at / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31).to_le_bytes()
    }
}

impl Read for Pattern {
    /// Fills the whole buffer.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut rest = &mut *buf;
        while !rest.is_empty() {
            let skip = (self.at % 8) as usize;
            let bytes = rest.len().min(8 - skip);
            let (now, later) = rest.split_at_mut(bytes);
            now.copy_from_slice(&self.word()[skip..skip + bytes]);
            self.at += bytes as u64;
            rest = later;
        }
        Ok(buf.len())
    }
}

/// Passes exactly `bytes` bytes on and says their SHA-256.
pub(crate) fn copy_hashed(from: &mut impl Read, to: &mut impl Write, bytes: u64) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buf = vec![0; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let want = left.min(buf.len() as u64) as usize;
        let got = from.read(&mut buf[..want])?;
        if got == 0 {
            return Err(io::Error::other(format!("{left} of {bytes} bytes are missing")));
        }
        hash.update(&buf[..got]);
        to.write_all(&buf[..got])?;
        left -= got as u64;
    }
    Ok(hex(&hash.finalize()))
}

/// Writes a file of the seed's bytes and says its SHA-256.
pub(crate) fn write_file(path: &Path, bytes: u64, seed: u64) -> String {
    let mut file = File::create(path).expect("the test's directory can be written");
    copy_hashed(&mut Pattern::new(seed), &mut file, bytes).expect("the test's directory has room")
}

/// A file's SHA-256 and length.
pub(crate) fn hash_file(path: &Path) -> (String, u64) {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let bytes = file.metadata().expect("an open file has metadata").len();
    (copy_hashed(&mut file, &mut io::sink(), bytes).expect("the file can be read"), bytes)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of bytes in memory.
pub(crate) fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
