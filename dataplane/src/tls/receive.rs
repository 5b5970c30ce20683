//! Role: the way in: what was received is opened straight into the caller's buffer.
//! Invariants: what was opened before an end or an error is told first · an end without
//! close_notify is an error, and every end is told again when asked again · one look opens a bounded
//! amount of work · on hold are at most one incomplete record, what came behind such a look and the rest of
//! one opened record, and nothing while none of these is there.
//! See: RFC 8446 §5, §6.1.

use std::io;

use rustls::ContentType;

use super::{
    Carrier,
    fault::TlsError,
    held::{Held, SCRATCH_BYTES, with_scratch},
    post::{Ask, Post},
    record::{HEADER_BYTES, Opener, RECORD_BYTES_MAX},
    send::Sender,
};
use crate::run::budget::{NEW_KEY, RECORD};

/// Records that are opened in one look cost no more than this: 256 short ones, or 8 new keys. The rest waits
/// for the next look, before which the connection may have to take a turn.
const LOOK: usize = 128 * 1024;
/// Below it, cutting what is received between two records saves nothing.
const ALIGN_ABOVE: usize = 4096;

/// How the peer's direction ended.
pub(super) enum End {
    /// With close_notify.
    Clean,
    /// With the connection.
    Truncated,
    /// With what may not be.
    Failed(TlsError),
}

impl End {
    /// What whoever reads is told.
    pub(super) fn tell(&self) -> io::Result<usize> {
        match self {
            Self::Clean => Ok(0),
            Self::Truncated => Err(io::ErrorKind::UnexpectedEof.into()),
            Self::Failed(e) => Err(e.clone().into()),
        }
    }
}

/// One connection's way in.
pub(super) struct Receiver {
    opener: Opener,
    /// Received, but not opened: a record that is not whole, or had no room.
    pending: Held,
    /// `pending` may begin with a whole record.
    ready: bool,
    /// Opened, but not told: the rest of a record that was longer than the caller's room.
    opened: Held,
    /// The longest record of late: the next read ends where such a one does.
    unit: usize,
    /// The last read filled its room: the socket may hold more.
    more: bool,
    /// No read goes beyond the record that it is in.
    aligned: bool,
    /// What the records opened in this look have cost.
    work: usize,
    end: Option<End>,
    /// Somebody was told of the end.
    told: bool,
}

/// What of some bytes was taken.
#[derive(Default)]
struct Taken {
    /// Bytes of records.
    used: usize,
    /// Bytes for the caller.
    filled: usize,
}

impl Receiver {
    /// Goes on with what came behind the handshake.
    pub(super) fn new(opener: Opener, rest: &[u8]) -> Self {
        let mut pending = Held::default();
        pending.hold(rest);
        Self {
            opener,
            ready: !pending.is_empty(),
            pending,
            opened: Held::default(),
            unit: 0,
            more: false,
            aligned: false,
            work: 0,
            end: None,
            told: false,
        }
    }

    /// Whether a read may have something to tell without any event on the socket.
    pub(super) fn more_to_come(&self) -> bool {
        self.more || self.ready || !self.opened.is_empty() || (self.end.is_some() && !self.told)
    }

    /// Reads what can be had with one look at the carrier, or as many as it takes to find data.
    pub(super) fn read(
        &mut self,
        io: &impl Carrier,
        post: &mut Post,
        sender: &mut Sender,
        buf: &mut [u8],
    ) -> io::Result<usize> {
        sender.nudge(io);
        if !self.opened.is_empty() || buf.is_empty() {
            return Ok(self.opened.take(buf));
        }
        while self.end.is_none() {
            let filled = if self.ready {
                self.open_pending(post, sender, buf)
            } else {
                with_scratch(|scratch| self.receive(io, post, sender, scratch, buf))?
            };
            // Alerts and answers go at once, if the carrier takes them.
            sender.nudge(io);
            io.spend(std::mem::take(&mut self.work));
            if filled > 0 {
                return Ok(filled);
            }
        }
        self.tell_end()
    }

    fn tell_end(&mut self) -> io::Result<usize> {
        self.told = true;
        self.end.as_ref().map_or(Ok(0), End::tell)
    }

    /// The key for the next record, if nothing was received behind the last one told: somebody else
    /// can go on from there then. If something was, reads end with a record from now on.
    pub(super) fn at_boundary(&mut self) -> Option<&Opener> {
        self.aligned = true;
        (self.pending.is_empty() && self.opened.is_empty()).then_some(&self.opener)
    }

    /// Whether nothing more will come.
    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Nobody else goes on.
    pub(super) fn keep(&mut self) {
        self.aligned = false;
    }

    /// Opens what was held back for want of room.
    fn open_pending(&mut self, post: &mut Post, sender: &mut Sender, buf: &mut [u8]) -> usize {
        let mut pending = std::mem::take(&mut self.pending);
        let taken = self.open_all(pending.bytes(), post, sender, buf);
        if self.end.is_none() {
            pending.consume(taken.used);
            self.pending = pending;
        }
        taken.filled
    }

    /// One look at the carrier; what is pending goes in front.
    fn receive(
        &mut self,
        io: &impl Carrier,
        post: &mut Post,
        sender: &mut Sender,
        scratch: &mut [u8],
        buf: &mut [u8],
    ) -> io::Result<usize> {
        let held = self.pending.bytes().len();
        let limit = self.limit(buf.len());
        scratch[..held].copy_from_slice(self.pending.bytes());
        self.more = false;
        let got = io.recv(&mut scratch[held..limit])?;
        self.more = got == limit - held;
        if got == 0 {
            self.end(End::Truncated);
            return Ok(0);
        }
        let bytes = &scratch[..held + got];
        let taken = self.open_all(bytes, post, sender, buf);
        if self.end.is_none() {
            self.pending.hold(&bytes[taken.used..]);
        }
        Ok(taken.filled)
    }

    /// How far the scratch is to be filled. All records in so many bytes as the caller has room fit
    /// there, as opening makes them shorter. Where it is full, a whole number of records is best:
    /// half a one would be copied twice.
    fn limit(&self, room: usize) -> usize {
        if self.aligned {
            // First its header, then all of it.
            let record = self.opener.record_bytes(self.pending.bytes());
            return record.ok().flatten().unwrap_or(HEADER_BYTES).max(self.pending.bytes().len() + 1);
        }
        let max = room.clamp(RECORD_BYTES_MAX, SCRATCH_BYTES);
        if self.unit < ALIGN_ABOVE {
            return max;
        }
        let first = match self.opener.record_bytes(self.pending.bytes()) {
            Ok(Some(bytes)) => bytes,
            _ => self.unit,
        };
        let whole = first + max.saturating_sub(first) / self.unit * self.unit;
        // Whatever was guessed, there is room for a byte more than is pending.
        whole.min(max).max(self.pending.bytes().len() + 1)
    }

    /// Opens whole records into the caller's room until it, or they, are at their end. The first
    /// one is opened in any case; what of it has no room waits.
    fn open_all(&mut self, bytes: &[u8], post: &mut Post, sender: &mut Sender, buf: &mut [u8]) -> Taken {
        let mut taken = Taken::default();
        let mut unit = 0;
        self.ready = false;
        while self.end.is_none() {
            let rest = &bytes[taken.used..];
            let record = match self.opener.record_bytes(rest) {
                Ok(Some(len)) if len <= rest.len() => &rest[..len],
                Ok(_) => break,
                Err(e) => {
                    self.fail(e, sender);
                    break;
                }
            };
            match self.open_one(record, post, sender, &mut buf[taken.filled..], taken.filled == 0) {
                Ok(Some(filled)) => taken.filled += filled,
                Ok(None) => {
                    self.ready = true;
                    break;
                }
                Err(e) => self.fail(e, sender),
            }
            unit = unit.max(record.len());
            taken.used += record.len();
            self.work += RECORD;
            if !self.opened.is_empty() || self.work >= LOOK {
                self.ready = taken.used < bytes.len();
                break;
            }
        }
        if unit > 0 {
            self.unit = unit;
        }
        taken
    }

    /// Opens one record; returns how much of the caller's room it filled, or `None` for want of
    /// room. If it is the first one, room is made.
    fn open_one(
        &mut self,
        record: &[u8],
        post: &mut Post,
        sender: &mut Sender,
        room: &mut [u8],
        first: bool,
    ) -> Result<Option<usize>, TlsError> {
        let bytes = self.opener.room_bytes(record.len())?;
        if bytes <= room.len() {
            let (kind, bytes) = self.opener.open(record, room)?;
            return match kind {
                ContentType::ApplicationData => post.on_data(bytes).map(|()| Some(bytes)),
                kind => self.on_record(kind, &room[..bytes], post, sender).map(|()| Some(0)),
            };
        }
        if !first {
            return Ok(None);
        }
        let mut opened = std::mem::take(&mut self.opened);
        let (kind, bytes) = self.opener.open(record, opened.room(bytes))?;
        opened.put(bytes);
        if kind == ContentType::ApplicationData {
            post.on_data(bytes)?;
            self.opened = opened;
            return Ok(Some(self.opened.take(room)));
        }
        self.on_record(kind, opened.bytes(), post, sender).map(|()| Some(0))
    }

    fn on_record(
        &mut self,
        kind: ContentType,
        payload: &[u8],
        post: &mut Post,
        sender: &mut Sender,
    ) -> Result<(), TlsError> {
        match post.on_record(kind, payload)? {
            Ask::Nothing => {}
            Ask::NewKey { answer } => {
                self.opener = post.next_opener()?;
                self.work += NEW_KEY;
                if answer {
                    sender.answer_key_update(post)?;
                }
            }
            Ask::Refuse => sender.refuse_renegotiation()?,
            Ask::End => self.end(End::Clean),
        }
        Ok(())
    }

    pub(super) fn fail(&mut self, e: TlsError, sender: &mut Sender) {
        if let Some(alert) = e.alert() {
            sender.close(alert);
        }
        self.end(End::Failed(e));
    }

    /// Nothing behind an end is looked at.
    fn end(&mut self, end: End) {
        self.end = Some(end);
        self.pending = Held::default();
        (self.ready, self.more) = (false, false);
    }

    #[cfg(test)]
    pub(super) fn holds_memory(&self) -> bool {
        !self.pending.is_empty() || !self.opened.is_empty()
    }
}
