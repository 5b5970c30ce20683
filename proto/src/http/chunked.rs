//! Role: bodies in chunks: a strict decoder that names ranges of what it was given, and what is written around payload.
//! Invariants: any split of the input gives the same payload, trailers and verdict · nothing is allocated for payload ·
//! lines end in CR LF and in nothing else · extensions are dropped, trailers that frame, route or authenticate too.
//! See: RFC 9112 section 7.1; RFC 9110 section 6.5.

use std::ops::Range;

use super::{
    head::{self, Field, push_field},
    names,
};

/// Digits of a chunk's size at the most: those of 64 bits.
pub const SIZE_DIGITS_MAX: u32 = 16;
/// The bytes of one chunk's extensions at the most, their first `;` included.
pub const EXTENSION_BYTES_MAX: u32 = 256;
/// The bytes of all extensions of a body at the most: a body of chunks of one byte would be 99 % extensions.
pub const EXTENSIONS_BYTES_MAX: u32 = 16 * 1024;
/// The bytes of a body's trailers at the most, their line ends included.
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;
/// A body's trailers at the most.
pub const TRAILERS_MAX: usize = 32;
/// What stands behind the payload of each chunk.
pub const CHUNK_END: &[u8] = b"\r\n";
/// The end of a body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A body that is no sequence of chunks; its sender's fault, and the connection's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// No hex digits, or more than 16.
    #[error("a malformed chunk size")]
    Size,
    /// A control character, or more bytes than are taken.
    #[error("a malformed chunk extension, or more than {EXTENSION_BYTES_MAX} bytes of them")]
    Extension,
    /// Something else than CR LF.
    #[error("a chunk that does not end where its size says")]
    End,
    /// A trailer that is no header.
    #[error("a malformed trailer")]
    Trailer,
    /// Above [`TRAILER_BYTES_MAX`] or [`TRAILERS_MAX`].
    #[error("trailers of more than {TRAILER_BYTES_MAX} bytes or {TRAILERS_MAX} lines")]
    TooLong,
}

impl ChunkError {
    /// The status that answers a visitor's body. An origin's body with any error ends in a reset.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::TooLong => 431,
            Self::Size | Self::Extension | Self::End | Self::Trailer => 400,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a size, of which so many digits have come.
    Size { digits: u32 },
    /// In extensions, of which so many bytes have come.
    Extension { bytes: u32 },
    /// Behind the CR of a size's line.
    SizeLf,
    /// In payload: [`Decoder::left`] bytes are due.
    Payload,
    /// Behind payload.
    PayloadCr,
    /// Behind the CR behind payload.
    PayloadLf,
    /// In trailers.
    Trailers,
    /// Behind the last line.
    Done,
}

/// Reads a body in chunks, whatever parts it comes in.
#[derive(Debug, Clone)]
pub struct Decoder {
    state: State,
    /// The size that is read, then the payload that is due.
    left: u64,
    extension_bytes: u32,
    /// The trailers as they came; empty where there are none.
    trailers: Vec<u8>,
    /// Where the last line of them begins.
    line_start: usize,
    lines: usize,
}

/// What a [`Decoder`] made of the bytes that it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// So many bytes are done with; the decoder is given what is behind them next.
    pub used: usize,
    /// Where payload stands in them; empty when there is none.
    pub payload: Range<usize>,
    /// Whether the body ended at `used`; what is behind it is no part of it.
    pub is_end: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            state: State::Size { digits: 0 },
            left: 0,
            extension_bytes: 0,
            trailers: Vec::new(),
            line_start: 0,
            lines: 0,
        }
    }
}

impl Decoder {
    /// Reads up to the end of one piece of payload, of the body, or of `buf`. Without payload and end, all of `buf` is
    /// used, and more bytes are needed.
    ///
    /// # Errors
    /// The sender's. A decoder that has failed is not to be used again.
    pub fn decode(&mut self, buf: &[u8]) -> Result<Decoded, ChunkError> {
        let mut at = 0;
        while at < buf.len() && self.state != State::Done {
            if self.state == State::Payload {
                let room = u64::try_from(buf.len() - at).unwrap_or(u64::MAX);
                // Not more than `buf` has, so it fits.
                let taken = self.left.min(room) as usize;
                self.skip(taken as u64);
                return Ok(Decoded { used: at + taken, payload: at..at + taken, is_end: false });
            }
            if let (State::Trailers, line) = (self.state, &buf[at..]) {
                at += self.take_line(line)?;
            } else {
                self.step(buf[at])?;
                at += 1;
            }
        }
        Ok(Decoded { used: at, payload: at..at, is_end: self.state == State::Done })
    }

    /// The payload that is due before the next thing to be decoded: so much may be moved around the decoder, when it
    /// is told by [`Self::skip`].
    pub fn left(&self) -> u64 {
        if self.state == State::Payload { self.left } else { 0 }
    }

    /// That so much payload went around the decoder.
    ///
    /// # Panics
    /// If it is more than [`Self::left`].
    pub fn skip(&mut self, bytes: u64) {
        assert!(bytes <= self.left(), "payload that was not due was skipped");
        self.left -= bytes;
        if self.state == State::Payload && self.left == 0 {
            self.state = State::PayloadCr;
        }
    }

    /// Whether the body's end has come.
    pub fn is_end(&self) -> bool {
        self.state == State::Done
    }

    /// The trailers that may be passed on; none before the end.
    pub fn trailers(&self) -> impl Iterator<Item = Field<'_>> {
        let lines = if self.is_end() { &self.trailers[..] } else { &[] };
        let lines = lines.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        lines.filter_map(|line| head::parse_field(line).ok()).filter(|field| names::is_trailer(field.name))
    }

    fn step(&mut self, byte: u8) -> Result<(), ChunkError> {
        self.state = match (self.state, byte) {
            (State::Size { digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(ChunkError::Size);
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                State::Size { digits: digits + 1 }
            }
            (State::Size { digits: 1.. }, b'\r') | (State::Extension { .. }, b'\r') => State::SizeLf,
            (State::Size { digits: 1.. }, b';') => self.extend(0)?,
            (State::Size { .. }, _) => return Err(ChunkError::Size),
            (State::Extension { bytes }, b'\t' | b' '..=0x7e | 0x80..) => self.extend(bytes)?,
            (State::Extension { .. }, _) => return Err(ChunkError::Extension),
            (State::SizeLf, b'\n') if self.left == 0 => State::Trailers,
            (State::SizeLf, b'\n') => State::Payload,
            (State::PayloadCr, b'\r') => State::PayloadLf,
            (State::PayloadLf, b'\n') => State::Size { digits: 0 },
            (State::SizeLf | State::PayloadCr | State::PayloadLf, _) => return Err(ChunkError::End),
            (state @ (State::Payload | State::Trailers | State::Done), _) => state,
        };
        Ok(())
    }

    fn extend(&mut self, bytes: u32) -> Result<State, ChunkError> {
        self.extension_bytes += 1;
        if bytes == EXTENSION_BYTES_MAX || self.extension_bytes > EXTENSIONS_BYTES_MAX {
            return Err(ChunkError::Extension);
        }
        Ok(State::Extension { bytes: bytes + 1 })
    }

    /// Takes a line of the trailers, or the part of one that is there. Byte by byte where it is judged, so that no split
    /// changes which fault is found first.
    fn take_line(&mut self, buf: &[u8]) -> Result<usize, ChunkError> {
        for (at, &byte) in buf.iter().enumerate() {
            let line = &self.trailers[self.line_start..];
            let after_cr = line.last() == Some(&b'\r');
            match byte {
                b'\n' if after_cr => {}
                _ if after_cr => return Err(ChunkError::Trailer),
                b' ' | b'\t' if line.is_empty() => return Err(ChunkError::Trailer),
                b'\r' | b'\t' | b' '..=0x7e | 0x80.. => {}
                _ => return Err(ChunkError::Trailer),
            }
            if self.trailers.len() == TRAILER_BYTES_MAX {
                return Err(ChunkError::TooLong);
            }
            self.trailers.push(byte);
            if byte == b'\n' {
                self.end_line()?;
                return Ok(at + 1);
            }
        }
        Ok(buf.len())
    }

    fn end_line(&mut self) -> Result<(), ChunkError> {
        let line = &self.trailers[self.line_start..self.trailers.len() - 2];
        if line.is_empty() {
            self.state = State::Done;
            return Ok(());
        }
        if self.lines == TRAILERS_MAX {
            return Err(ChunkError::TooLong);
        }
        head::parse_field(line).map_err(|_| ChunkError::Trailer)?;
        self.lines += 1;
        self.line_start = self.trailers.len();
        Ok(())
    }
}

/// The line before a chunk's payload: up to 16 hex digits and CR LF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    bytes: [u8; 18],
    start: usize,
}

impl AsRef<[u8]> for ChunkHeader {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// The line before `bytes` of payload; behind them stands [`CHUNK_END`]. There is no chunk of 0 bytes but the last one:
/// [`LAST_CHUNK`] or [`write_trailers`].
pub fn chunk_header(bytes: u64) -> ChunkHeader {
    let mut header = ChunkHeader { bytes: [0; 18], start: 16 };
    header.bytes[16..].copy_from_slice(CHUNK_END);
    let mut rest = bytes;
    loop {
        header.start -= 1;
        header.bytes[header.start] = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
        if rest == 0 {
            return header;
        }
    }
}

/// Appends the end of a body: the last chunk, the trailers that may be passed on, and an empty line.
pub fn write_trailers<'a>(out: &mut Vec<u8>, trailers: impl IntoIterator<Item = Field<'a>>) {
    out.extend_from_slice(b"0\r\n");
    for field in trailers {
        if names::is_trailer(field.name) {
            push_field(out, field.name, field.value);
        }
    }
    out.extend_from_slice(CHUNK_END);
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// The payload, the trailers as they are written, and where the body ended; `None` while more is needed.
    pub(crate) type Whole = Option<(Vec<u8>, Vec<u8>, usize)>;

    /// Decodes a body that comes in the parts between `cuts`.
    pub(crate) fn decode(body: &[u8], cuts: &[usize]) -> Result<Whole, ChunkError> {
        let mut decoder = Decoder::default();
        let (mut payload, mut start) = (Vec::new(), 0);
        for end in cuts.iter().copied().chain([body.len()]) {
            while start < end {
                let part = &body[start..end];
                let decoded = decoder.decode(part)?;
                payload.extend_from_slice(&part[decoded.payload.clone()]);
                start += decoded.used;
                if decoded.is_end {
                    let mut trailers = Vec::new();
                    write_trailers(&mut trailers, decoder.trailers());
                    return Ok(Some((payload, trailers, start)));
                }
                assert!(decoded.used > 0, "no progress");
                assert!(!decoded.payload.is_empty() || start == end, "bytes were left");
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{fixture::decode, *};

    fn split(body: &[u8]) -> Result<fixture::Whole, ChunkError> {
        let whole = decode(body, &[]);
        let each: Vec<_> = (0..body.len()).collect();
        assert_eq!(decode(body, &each), whole, "{} byte by byte", body.escape_ascii());
        whole
    }

    #[test]
    fn chunks_are_read_at_any_split() {
        for (body, payload, trailers) in [
            ("0\r\n\r\n", "", "0\r\n\r\n"),
            ("5\r\nhello\r\n0\r\n\r\n", "hello", "0\r\n\r\n"),
            ("1\r\na\r\n000002;x=\"y\"\r\nbc\r\n0;z\r\n\r\n", "abc", "0\r\n\r\n"),
            (
                "A\r\n0123456789\r\n0\r\nX-Sum: 1\r\nHost: b\r\nY:\r\n\r\n",
                "0123456789",
                "0\r\nX-Sum: 1\r\nY: \r\n\r\n",
            ),
            ("2\r\n\r\n\r\n0000000000000000\r\n\r\n", "\r\n", "0\r\n\r\n"),
        ] {
            let behind = format!("{body}GET ");
            let whole = (payload.into(), trailers.into(), body.len());
            assert_eq!(split(behind.as_bytes()), Ok(Some(whole)), "{body:?}");
            for cut in 0..body.len() {
                assert_eq!(decode(&body.as_bytes()[..cut], &[]), Ok(None), "{body:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        use ChunkError::{End, Extension, Size, TooLong, Trailer};
        let long = |bytes: usize| format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(bytes - 1));
        let lines = |count: usize| format!("0\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert!(split(long(256).as_bytes()).is_ok() && split(lines(TRAILERS_MAX).as_bytes()).is_ok());
        for (body, error) in [
            ("\r\n", Size),
            ("g\r\n", Size),
            ("-1\r\n", Size),
            ("+1\r\n", Size),
            ("0x1\r\n", Size),
            (" 1\r\n", Size),
            ("1 \r\n", Size),
            ("1\t;x\r\n", Size),
            (";x\r\n", Size),
            ("1\n", Size),
            ("00000000000000001\r\n", Size),
            ("FFFFFFFFFFFFFFFFF\r\n", Size),
            ("1\r\r\n", End),
            ("1\ra", End),
            ("1\r\nab\r\n", End),
            ("1\r\na\n", End),
            ("1\r\na\r\r\n", End),
            ("1\r\na0\r\n\r\n", End),
            ("1;a\nb\r\n", Extension),
            ("1;a\0\r\n", Extension),
            (&long(257), Extension),
            ("0\r\n A: b\r\n\r\n", Trailer),
            ("0\r\nA: b\r\n c\r\n\r\n", Trailer),
            ("0\r\nA: b\n\r\n", Trailer),
            ("0\r\nA: \0\r\n\r\n", Trailer),
            ("0\r\nA : b\r\n\r\n", Trailer),
            ("0\r\nA\r\n\r\n", Trailer),
            ("0\r\n\n", Trailer),
            ("0\r\nA: \rb\r\n\r\n", Trailer),
            (&lines(TRAILERS_MAX + 1), TooLong),
            (&format!("0\r\nA: {}\r\n\r\n", "b".repeat(TRAILER_BYTES_MAX)), TooLong),
            (&"1;0123456789abcdef\r\na\r\n".repeat(1000), Extension),
        ] {
            assert_eq!(split(body.as_bytes()), Err(error), "{}", &body[..body.len().min(60)]);
            assert_eq!(error.http_status(), if error == TooLong { 431 } else { 400 });
        }
    }

    #[test]
    fn a_chunk_of_any_size_is_counted_without_overflow() {
        let mut decoder = Decoder::default();
        let decoded = decoder.decode(b"FFFFFFFFFFFFFFFF\r\nab").unwrap();
        assert_eq!((decoded.used, decoded.payload), (20, 18..20));
        assert_eq!(decoder.left(), u64::MAX - 2);
        decoder.skip(u64::MAX - 2);
        assert_eq!(decoder.left(), 0);
        assert!(decoder.decode(b"\r\n0\r\n\r\n").unwrap().is_end && decoder.is_end());
    }

    #[test]
    fn the_line_before_a_chunk_is_as_short_as_it_can_be() {
        for (bytes, line) in
            [(1, "1\r\n"), (255, "ff\r\n"), (65_536, "10000\r\n"), (u64::MAX, "ffffffffffffffff\r\n")]
        {
            assert_eq!(chunk_header(bytes).as_ref(), line.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            trailers in prop::collection::vec(("X-[a-z]{1,6}", "[!-~]{0,12}"), 0..5),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(chunk_header(chunk.len() as u64).as_ref());
                body.extend_from_slice(chunk);
                body.extend_from_slice(CHUNK_END);
            }
            let start = body.len();
            let fields = trailers.iter().map(|(name, value)| Field { name, value: value.as_bytes() });
            write_trailers(&mut body, fields);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len())).collect();
            cuts.sort_unstable();
            let whole = (chunks.concat(), body[start..].to_vec(), body.len());
            prop_assert_eq!(decode(&body, &cuts), Ok(Some(whole)));
        }

        #[test]
        fn no_split_changes_a_verdict(
            body in prop::collection::vec(prop::sample::select(b"0012aF;:\r\n\r\n\r\nX \t\0\xff".to_vec()), 0..40),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            cuts.sort_unstable();
            prop_assert_eq!(decode(&body, &cuts), split(&body));
        }

        #[test]
        fn a_size_that_is_read_here_is_the_one_that_httparse_reads(line in "[0-9a-fA-F]{0,17}(;[ -~]{0,9})?(\r\n|\n| \r\n|\r\n)") {
            let mut decoder = Decoder::default();
            if let Ok(decoded) = decoder.decode(line.as_bytes()) {
                let size = if decoder.state == State::Trailers { 0 } else { decoder.left() };
                let theirs = httparse::parse_chunk_size(line.as_bytes());
                prop_assert_eq!(theirs, Ok(httparse::Status::Complete((decoded.used, size))));
            }
        }
    }
}
