//! Role: the way out: plaintext is sealed into a buffer of the worker's and sent from there.
//! Invariants: what was accepted is sent before more is accepted · records leave in the order of
//! their sequence numbers · a buffer is held only while something is unsent · after close_notify
//! or a fatal alert nothing more is sealed.
//! See: RFC 8446 §4.6.3, §5.5, §6.1.

use std::io::{self, IoSlice};

use rustls::{AlertDescription, ContentType};

use super::{
    Carrier,
    fault::TlsError,
    post::Post,
    record::{HEADER_BYTES, OVERHEAD_BYTES_MAX, PLAIN_BYTES_MAX, Sealer},
    secret::{Cipher, Version},
};
use crate::net::buffer::{Buffer, SMALL_BYTES};

/// "I take a new key; you need not": type, length, request.
pub(super) const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
/// What a key update takes in the buffer.
const KEY_UPDATE_BYTES: usize = HEADER_BYTES + KEY_UPDATE.len() + 1 + 16;

/// One connection's way out.
pub(super) struct Sender {
    sealer: Sealer,
    /// Sealed records; there is a buffer only while some of it is unsent.
    out: Option<Buffer>,
    from: usize,
    to: usize,
    /// Alerts and key updates that were sealed behind those.
    tail: Vec<u8>,
    /// In `tail` waits an answer to a key update: another would say nothing new.
    answering: bool,
    closed: bool,
}

impl Sender {
    pub(super) fn new(sealer: Sealer) -> Self {
        Self { sealer, out: None, from: 0, to: 0, tail: Vec::new(), answering: false, closed: false }
    }

    /// Sends what is sealed; whether all of it is out. What the kernel takes only in part is not
    /// tried again at once: it is full.
    pub(super) fn flush(&mut self, io: &impl Carrier) -> io::Result<bool> {
        if let Some(out) = &self.out {
            let Some(sent) = would_block(io.send(&out[self.from..self.to]))? else { return Ok(false) };
            self.from += sent;
            if self.from < self.to {
                return Ok(false);
            }
            self.out = None;
        }
        while !self.tail.is_empty() {
            let Some(sent) = would_block(io.send(&self.tail))? else { return Ok(false) };
            self.tail.drain(..sent);
        }
        // The few bytes of a rare word are not kept.
        self.tail = Vec::new();
        self.answering = false;
        Ok(true)
    }

    /// Sends alerts and key updates that wait, if any do; best effort, as whoever reads has
    /// nothing to do with a failure here.
    pub(super) fn nudge(&mut self, io: &impl Carrier) {
        if !self.tail.is_empty() {
            let _ = self.flush(io);
        }
    }

    /// Seals what fits into a buffer and sends what the carrier takes.
    pub(super) fn write(
        &mut self,
        io: &impl Carrier,
        post: &mut Post,
        pieces: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        if !self.flush(io)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let bytes = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        if bytes == 0 {
            return Ok(0);
        }
        let mut out = Buffer::take_now(bytes + OVERHEAD_BYTES_MAX > SMALL_BYTES);
        let mut left = Pieces { pieces, at: 0, bytes };
        let sealed = self.seal_all(post, &mut left, &mut out);
        if self.to > 0 {
            self.out = Some(out);
        }
        self.flush(io)?;
        sealed?;
        Ok(bytes - left.bytes)
    }

    fn seal_all(&mut self, post: &mut Post, left: &mut Pieces<'_>, out: &mut [u8]) -> Result<(), TlsError> {
        (self.from, self.to) = (0, 0);
        while left.bytes > 0 {
            if self.sealer.is_spent() {
                if self.sealer.version() == Version::Tls12 {
                    self.close(AlertDescription::CloseNotify);
                    return Err(TlsError::UsedUp);
                }
                if out.len() - self.to < KEY_UPDATE_BYTES {
                    break;
                }
                self.to += self.sealer.seal(ContentType::Handshake, &KEY_UPDATE, &mut out[self.to..])?;
                self.sealer = post.next_sealer(self.sealer.limit())?;
            }
            let bytes = left.bytes.min(self.sealer.plain_bytes_in(out.len() - self.to));
            // Full records cost the peer least: no short one just to fill the buffer's end.
            if self.to > 0 && bytes < left.bytes.min(PLAIN_BYTES_MAX) {
                break;
            }
            self.to += self.seal_one(left, bytes, &mut out[self.to..])?;
        }
        Ok(())
    }

    /// Seals one record: from where the plaintext lies, if it lies in one piece; else from a copy.
    fn seal_one(&mut self, left: &mut Pieces<'_>, bytes: usize, out: &mut [u8]) -> Result<usize, TlsError> {
        const DATA: ContentType = ContentType::ApplicationData;
        if let Some(plain) = left.front(bytes) {
            let sealed = self.sealer.seal(DATA, plain, out)?;
            left.skip(bytes);
            return Ok(sealed);
        }
        left.copy(&mut out[self.sealer.payload_at()..][..bytes]);
        self.sealer.seal_in_place(DATA, bytes, out)
    }

    /// Takes a new key because the peer asked for it.
    pub(super) fn answer_key_update(&mut self, post: &mut Post) -> Result<(), TlsError> {
        if !self.answering && !self.closed {
            self.say(ContentType::Handshake, &KEY_UPDATE)?;
            self.sealer = post.next_sealer(self.sealer.limit())?;
            self.answering = true;
        }
        Ok(())
    }

    /// Says that a renegotiation is not to be had.
    pub(super) fn refuse_renegotiation(&mut self) -> Result<(), TlsError> {
        const WARNING: u8 = 1;
        self.say(ContentType::Alert, &[WARNING, u8::from(AlertDescription::NoRenegotiation)])
    }

    /// The last word: close_notify or a fatal alert. There is only one.
    pub(super) fn close(&mut self, why: AlertDescription) {
        if !self.closed {
            let level = if why == AlertDescription::CloseNotify { 1 } else { 2 };
            // Refused only by a key that sealed 2^64 records.
            let _ = self.say(ContentType::Alert, &[level, u8::from(why)]);
            self.closed = true;
        }
    }

    /// Seals a word of TLS's own behind everything else.
    pub(super) fn say(&mut self, kind: ContentType, payload: &[u8]) -> Result<(), TlsError> {
        let at = self.tail.len();
        self.tail.resize(at + self.sealer.sealed_bytes(payload.len()), 0);
        self.sealer.seal(kind, payload, &mut self.tail[at..]).inspect_err(|_| self.tail.truncate(at))?;
        Ok(())
    }

    /// The key for the next record, if everything before it is out: somebody else can go on from
    /// there then.
    pub(super) fn at_boundary(&mut self, io: &impl Carrier) -> Option<&Sealer> {
        // An error is told to whoever writes next.
        matches!(self.flush(io), Ok(true)).then_some(&self.sealer)
    }

    /// Whose key it has.
    pub(super) fn cipher(&self) -> Cipher {
        self.sealer.cipher()
    }

    /// Whether nothing more may be sent.
    pub(super) fn has_ended(&self) -> bool {
        self.closed
    }

    /// Gives the buffer back to this worker; what is unsent goes along in memory of its own.
    pub(super) fn detach(&mut self) {
        if let Some(out) = self.out.take() {
            self.tail.splice(0..0, out[self.from..self.to].iter().copied());
        }
    }

    #[cfg(test)]
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.sealer.set_limit(limit);
    }

    #[cfg(test)]
    pub(super) fn holds_memory(&self) -> bool {
        self.out.is_some() || self.tail.capacity() > 0
    }
}

fn would_block(sent: io::Result<usize>) -> io::Result<Option<usize>> {
    match sent {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

/// What is left of the caller's plaintext.
struct Pieces<'a> {
    pieces: &'a [IoSlice<'a>],
    /// So much of the first piece is done.
    at: usize,
    /// What is left of all.
    bytes: usize,
}

impl<'a> Pieces<'a> {
    /// So many bytes, if they lie in one piece.
    fn front(&mut self, bytes: usize) -> Option<&'a [u8]> {
        while let [first, rest @ ..] = self.pieces
            && self.at == first.len()
        {
            (self.pieces, self.at) = (rest, 0);
        }
        self.pieces.first()?.get(self.at..self.at + bytes)
    }

    fn skip(&mut self, bytes: usize) {
        self.at += bytes;
        self.bytes -= bytes;
    }

    /// Fills `out` from as many pieces as it takes.
    fn copy(&mut self, mut out: &mut [u8]) {
        while let [first, rest @ ..] = self.pieces
            && !out.is_empty()
        {
            let part = &first[self.at..];
            let bytes = part.len().min(out.len());
            let (now, later) = out.split_at_mut(bytes);
            now.copy_from_slice(&part[..bytes]);
            out = later;
            self.skip(bytes);
            if self.at == first.len() {
                (self.pieces, self.at) = (rest, 0);
            }
        }
    }
}
