//! Role: a TLS connection whose records the kernel seals and opens (kTLS): what it leaves to us.
//! Invariants: as [`super::receive`] and [`super::send`]: an end without close_notify is an error,
//! what was opened before an end is told first, nothing follows close_notify · behind "I take a new
//! key" nothing is sent before the kernel has it · no key seals more records than it may.
//! See: the kernel's Documentation/networking/tls.rst; ARCHITECTURE.md "Decisions".

mod probe;
mod system;

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::BorrowedFd,
};

use rustix::pipe::{SpliceFlags, splice};
use rustls::{AlertDescription, ContentType};

pub use self::probe::{Ktls, KtlsState, choose_ktls};
pub(super) use self::{
    probe::allowed,
    system::{Received, System},
};
use super::{
    fault::TlsError,
    info::{Direction, Info},
    post::{Ask, Post},
    receive::End,
    record::{HEADER_BYTES, OVERHEAD_BYTES_MAX, Sealer},
    secret::{Cipher, Version},
    send::KEY_UPDATE,
};
use crate::net::plain::Plain;

/// The kernel is asked how many records it has sealed once in so many calls.
const COUNT_EVERY: u32 = 1024;
/// So many records may be sealed in between: 256 a call, one for each slot of a pipe of 1 MiB.
const COUNT_SLACK: u64 = 256 * COUNT_EVERY as u64;
/// The longest record of another type than data.
const CONTROL_BYTES_MAX: usize = 1 << 14;

/// A word of TLS's own that waits for the socket.
struct Word {
    kind: ContentType,
    payload: Vec<u8>,
    /// The next record has a new key.
    renews: bool,
}

/// What is to be known of the kernel's side of a connection.
pub(super) struct Kernel {
    version: Version,
    cipher: Cipher,
    /// The kernel takes new keys in place of old ones.
    takes_new_keys: bool,
    /// Records that a key may seal, less what goes uncounted.
    limit: u64,

    /// A read may have something to tell.
    more: bool,
    end: Option<End>,
    told: bool,

    words: VecDeque<Word>,
    answering: bool,
    closed: bool,
    /// All that was accepted is TCP's, behind close_notify.
    drained: bool,
    calls: u32,
    /// TCP had taken so much before the kernel began to seal.
    taken_before: u64,
    /// Payload that the kernel has accepted since.
    payload_bytes: u64,
    /// Records under keys that are gone, less the number that the first one began with.
    past_records: u64,
}

impl Kernel {
    /// Gives the keys of a connection to the kernel, which stands at a boundary in both directions:
    /// nothing may be sealed or opened here any more. `None`: the kernel does not want it, and
    /// nothing has changed.
    ///
    /// # Errors
    /// The kernel took one direction only: the connection can't be read any more.
    pub(super) fn take(
        io: &impl System,
        incoming: &Info,
        sealer: &Sealer,
        takes_new_keys: bool,
    ) -> Result<Option<Self>, TlsError> {
        let Ok(taken_before) = io.taken_bytes() else { return Ok(None) };
        if io.attach().is_err() || io.set_key(Direction::In, incoming).is_err() {
            return Ok(None);
        }
        io.set_key(Direction::Out, &sealer.info()).map_err(|_| TlsError::HalfTaken)?;
        Ok(Some(Self {
            version: sealer.version(),
            cipher: sealer.cipher(),
            takes_new_keys,
            limit: sealer.limit().saturating_sub(COUNT_SLACK),
            more: true,
            end: None,
            told: false,
            words: VecDeque::new(),
            answering: false,
            closed: false,
            drained: false,
            calls: 0,
            taken_before,
            payload_bytes: 0,
            past_records: 0_u64.wrapping_sub(sealer.seq()),
        }))
    }

    /// As [`super::receive::Receiver::more_to_come`].
    pub(super) fn more_to_come(&self) -> bool {
        self.more || (self.end.is_some() && !self.told)
    }

    /// Reads what can be had at once.
    pub(super) fn read(&mut self, io: &impl System, post: &mut Post, buf: &mut [u8]) -> io::Result<usize> {
        self.nudge(io, post);
        if buf.is_empty() {
            return Ok(0);
        }
        while self.end.is_none() {
            self.more = false;
            let received = match io.receive(buf) {
                Ok(received) => received,
                Err(e) => {
                    self.fail(fault(&e).ok_or(e)?);
                    break;
                }
            };
            match self.on_received(io, post, buf, &received) {
                Ok(0) => {}
                Ok(bytes) => {
                    // Where data stops, a record of another type may be next.
                    self.more = true;
                    return Ok(bytes);
                }
                Err(e) => self.fail(e),
            }
            self.nudge(io, post);
        }
        self.nudge(io, post);
        self.told = true;
        self.end.as_ref().map_or(Ok(0), End::tell)
    }

    /// Returns how much of `buf` is data.
    fn on_received(
        &mut self,
        io: &impl System,
        post: &mut Post,
        buf: &[u8],
        received: &Received,
    ) -> Result<usize, TlsError> {
        let kind = match received.kind {
            None => {
                self.end = Some(End::Truncated);
                return Ok(0);
            }
            Some(ContentType::ApplicationData) => {
                return post.on_data(received.bytes).map(|()| received.bytes);
            }
            Some(kind) => kind,
        };
        let mut payload = buf[..received.bytes].to_vec();
        if !received.whole {
            rest_of_control(io, kind, &mut payload)?;
        }
        match post.on_record(kind, &payload)? {
            Ask::Nothing => {}
            Ask::NewKey { answer } => self.on_new_key(io, post, answer)?,
            Ask::Refuse => {
                const WARNING: u8 = 1;
                let payload = vec![WARNING, u8::from(AlertDescription::NoRenegotiation)];
                self.words.push_back(Word { kind: ContentType::Alert, payload, renews: false });
            }
            Ask::End => self.end = Some(End::Clean),
        }
        Ok(0)
    }

    /// The peer's next record has a new key.
    fn on_new_key(&mut self, io: &impl System, post: &mut Post, answer: bool) -> Result<(), TlsError> {
        if !self.takes_new_keys {
            return Err(TlsError::FixedKey);
        }
        let info = post.next_info(Direction::In)?;
        io.set_key(Direction::In, &info).map_err(|_| TlsError::FixedKey)?;
        if answer && !self.answering && !self.closed {
            self.answering = true;
            self.renew();
        }
        Ok(())
    }

    fn renew(&mut self) {
        let payload = KEY_UPDATE.to_vec();
        self.words.push_back(Word { kind: ContentType::Handshake, payload, renews: true });
    }

    fn fail(&mut self, e: TlsError) {
        if let Some(alert) = e.alert() {
            self.close(alert);
        }
        self.end = Some(End::Failed(e));
    }

    /// Moves bytes to a pipe; `None` when only a read can tell what comes next.
    pub(super) fn splice_out(
        &mut self,
        plain: &Plain,
        post: &mut Post,
        pipe: BorrowedFd<'_>,
        bytes_max: usize,
    ) -> io::Result<Option<usize>> {
        self.nudge(plain, post);
        if self.end.is_some() {
            return Ok(None);
        }
        self.more = false;
        let socket = plain.expect_socket()?;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match splice(socket, None, pipe, None, bytes_max, flags) {
            // No word about how it ended; or a record of another type, or one that is wrong.
            Ok(0) => Ok(None),
            Ok(bytes) => {
                plain.has_brought(bytes);
                self.more = true;
                if let Err(e) = post.on_data(bytes) {
                    // What went before it does not matter any more.
                    self.fail(e);
                    return Ok(None);
                }
                Ok(Some(bytes))
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Err(io::ErrorKind::WouldBlock.into()),
            Err(_) => Ok(None),
        }
    }

    /// Moves bytes from a pipe.
    pub(super) fn splice_in(
        &mut self,
        plain: &Plain,
        post: &mut Post,
        pipe: BorrowedFd<'_>,
        bytes_max: usize,
    ) -> io::Result<usize> {
        self.clear_way(plain, post)?;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let bytes = splice(pipe, None, plain.expect_socket()?, None, bytes_max, flags)?;
        self.payload_bytes += bytes as u64;
        Ok(bytes)
    }

    /// Accepts plaintext: the kernel has it then.
    pub(super) fn write(
        &mut self,
        io: &impl System,
        post: &mut Post,
        pieces: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        self.clear_way(io, post)?;
        if pieces.iter().all(|piece| piece.is_empty()) {
            return Ok(0);
        }
        let bytes = io.send(ContentType::ApplicationData, pieces)?;
        self.payload_bytes += bytes as u64;
        Ok(bytes)
    }

    /// Sees to it that data may go out next, under a key that is not used up.
    fn clear_way(&mut self, io: &impl System, post: &mut Post) -> io::Result<()> {
        self.say(io, post)?;
        if self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.calls += 1;
        if self.calls < COUNT_EVERY || self.limit > 1 << 40 {
            return Ok(());
        }
        self.calls = 0;
        if io.next_seq(self.cipher)? < self.limit {
            return Ok(());
        }
        if self.version == Version::Tls12 || !self.takes_new_keys {
            self.close(AlertDescription::CloseNotify);
            self.nudge(io, post);
            return Err(TlsError::UsedUp.into());
        }
        self.renew();
        self.say(io, post)
    }

    /// Sends what waits; whether all of it is out, and behind close_notify whether TCP has taken
    /// everything. What it has not is lost when the socket is closed: the kernel keeps sealed
    /// records in a list of its own while TCP is full.
    pub(super) fn flush(&mut self, io: &impl System, post: &mut Post) -> io::Result<bool> {
        match self.say(io, post) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            said => said?,
        }
        if self.closed && !self.drained {
            let records = self.past_records.wrapping_add(io.next_seq(self.cipher)?);
            let sealed_bytes = self.payload_bytes + records.wrapping_mul(self.overhead_bytes());
            self.drained = io.taken_bytes()? >= self.taken_before + sealed_bytes;
        }
        Ok(!self.closed || self.drained)
    }

    /// What sealing adds to each record.
    fn overhead_bytes(&self) -> u64 {
        let kind_or_nonce_bytes = match (self.version, self.cipher) {
            (Version::Tls13, _) => 1,
            (Version::Tls12, Cipher::ChaCha20Poly1305) => 0,
            (Version::Tls12, _) => OVERHEAD_BYTES_MAX - HEADER_BYTES - TAG_BYTES,
        };
        (HEADER_BYTES + kind_or_nonce_bytes + TAG_BYTES) as u64
    }

    /// Best effort, as whoever reads has nothing to do with a failure here.
    fn nudge(&mut self, io: &impl System, post: &mut Post) {
        let _ = self.say(io, post);
    }

    /// Sends the words that wait. `WouldBlock` while they can't go.
    fn say(&mut self, io: &impl System, post: &mut Post) -> io::Result<()> {
        while let Some(word) = self.words.front() {
            io.send(word.kind, &[IoSlice::new(&word.payload)])?;
            self.payload_bytes += word.payload.len() as u64;
            let renews = word.renews;
            self.words.pop_front();
            if renews && let Err(e) = self.take_new_key(io, post) {
                // The peer waits for records under a key that the kernel has not.
                self.words.clear();
                self.closed = true;
                return Err(e);
            }
        }
        self.words = VecDeque::new();
        self.answering = false;
        Ok(())
    }

    fn take_new_key(&mut self, io: &impl System, post: &mut Post) -> io::Result<()> {
        self.past_records = self.past_records.wrapping_add(io.next_seq(self.cipher)?);
        let info = post.next_info(Direction::Out)?;
        io.set_key(Direction::Out, &info)
    }

    /// The last word: close_notify or a fatal alert. There is only one.
    pub(super) fn close(&mut self, why: AlertDescription) {
        if !self.closed {
            let level = if why == AlertDescription::CloseNotify { 1 } else { 2 };
            let payload = vec![level, u8::from(why)];
            self.words.push_back(Word { kind: ContentType::Alert, payload, renews: false });
            self.closed = true;
        }
    }

    /// How many records the kernel may still seal under the key it has.
    pub(super) fn records_left(&self, io: &impl System) -> io::Result<u64> {
        Ok(self.limit.saturating_sub(io.next_seq(self.cipher)?))
    }
}

const TAG_BYTES: usize = 16;

/// Reads the rest of a record of which a small buffer got the front.
fn rest_of_control(io: &impl System, kind: ContentType, payload: &mut Vec<u8>) -> Result<(), TlsError> {
    let mut part = [0; 1024];
    loop {
        let received = io.receive(&mut part).map_err(|_| TlsError::Malformed("a record"))?;
        payload.extend_from_slice(&part[..received.bytes]);
        if received.kind != Some(kind) || received.bytes == 0 || payload.len() > CONTROL_BYTES_MAX {
            return Err(TlsError::Malformed("a record"));
        }
        if received.whole {
            return Ok(());
        }
    }
}

/// What the peer did wrong, in the kernel's words.
fn fault(e: &io::Error) -> Option<TlsError> {
    match e.raw_os_error()? {
        libc::EBADMSG => Some(TlsError::BadRecord),
        libc::EMSGSIZE => Some(TlsError::TooLong),
        libc::EINVAL => Some(TlsError::Malformed("a record")),
        _ => None,
    }
}
