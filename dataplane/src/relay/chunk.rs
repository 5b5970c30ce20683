//! Role: what one read brought, on its way through a buffer of the worker's: payload is found, and what is to go out
//! is one list of ranges.
//! Invariants: payload stays where it was read · everything that goes out lies in the buffer, headers
//! too · nothing is parsed further before what was found is with the kernel · no call here waits, so a
//! direction that waits holds the buffer and a few numbers.
//! See: `tunnel::end`, `tunnel::enframe`; ARCHITECTURE.md "Relay".

use std::io::{self, IoSlice};

use crate::{
    net::buffer::{BULK_READ_BYTES, Buffer, SMALL_BYTES, SMALL_READ_BYTES},
    transport::wire::Wire,
    tunnel::{
        conn::ConnError,
        end::{End, Unframed},
        enframe::{Enframer, FRAMES_MAX, HEADS_BYTES},
    },
};

const _: () = assert!(HEADS_BYTES + SMALL_READ_BYTES <= SMALL_BYTES);
/// Ranges that leave together. Where frames are small, their payloads leave in one: headers between
/// them are left out, the bytes stay where they are.
const RANGES_MAX: usize = 32;

/// Frames that are looked at before what they brought leaves, be it nothing.
const EVENTS_MAX: usize = 256;

/// A buffer with what was read into it.
pub(super) struct Chunk {
    buffer: Buffer,
    /// Up to here it was read.
    filled: usize,
    /// Up to here it was looked at.
    sorted: usize,
    /// What goes out, from `next` on.
    next: usize,
    /// Payload in what goes out.
    payload_bytes: usize,
    /// The sink is in the middle of what goes out.
    under_way: bool,
}

/// What stands behind the payload that was found.
pub(super) enum Found {
    /// The end of what was read.
    End,
    /// More, when this is gone.
    More,
    /// The end of the direction, after so many bytes.
    Fin { bytes: u64 },
    /// What the source must not send, or its Close.
    Fault(ConnError),
}

impl Chunk {
    pub(super) async fn take(bulk: bool) -> Self {
        let mut buffer = Buffer::take(bulk).await;
        buffer.marks.clear();
        Self { buffer, filled: 0, sorted: 0, next: 0, payload_bytes: 0, under_way: false }
    }

    /// Reads what is there, `room` bytes at the most.
    pub(super) fn fill(&mut self, wire: &Wire, room: usize) -> io::Result<usize> {
        let most = if self.buffer.len() > SMALL_BYTES { BULK_READ_BYTES } else { SMALL_READ_BYTES };
        let end = HEADS_BYTES + most.min(room);
        let n = wire.try_read(&mut self.buffer[HEADS_BYTES..end])?;
        (self.sorted, self.filled) = (HEADS_BYTES, HEADS_BYTES + n);
        Ok(n)
    }

    /// What was read.
    pub(super) fn read(&self) -> &[u8] {
        &self.buffer[HEADS_BYTES..self.filled]
    }

    /// Payload that leaves with the next push.
    pub(super) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Lists what goes out next, and says what stands behind it.
    pub(super) fn sort(&mut self, source: &End<'_>, sink: &End<'_>) -> Found {
        self.buffer.marks.clear();
        self.next = 0;
        let mut frames = Enframer::to(sink);
        let found = self.find(source, &mut frames).unwrap_or_else(Found::Fault);
        self.payload_bytes = frames.finish(&mut self.buffer);
        found
    }

    fn find(&mut self, source: &End<'_>, frames: &mut Enframer<'_>) -> Result<Found, ConnError> {
        for _ in 0..EVENTS_MAX {
            if self.buffer.marks.len() >= RANGES_MAX {
                break;
            }
            match source.unframe(&mut self.buffer[..self.filled], &mut self.sorted)? {
                Some(Unframed::Payload { range, .. }) => frames.add(&mut self.buffer, range),
                Some(Unframed::Control) => {}
                Some(Unframed::Fin { bytes }) => return Ok(Found::Fin { bytes }),
                None => return Ok(Found::End),
            }
        }
        Ok(if self.sorted == self.filled { Found::End } else { Found::More })
    }

    /// Gives `sink` what it takes; whether everything is with its transport.
    ///
    /// # Errors
    /// The sink's end.
    pub(super) fn push(&mut self, sink: &End<'_>) -> io::Result<bool> {
        if self.buffer.marks.is_empty() {
            return Ok(true);
        }
        if !self.under_way && !sink.begin_write()? {
            return Ok(false);
        }
        self.under_way = true;
        if !self.push_ranges(sink.wire())? {
            return Ok(false);
        }
        self.under_way = false;
        sink.end_write()?;
        Ok(true)
    }

    fn push_ranges(&mut self, wire: &Wire) -> io::Result<bool> {
        while self.next < self.buffer.marks.len() {
            let left = &self.buffer.marks[self.next..];
            let sent = match left {
                [one] => wire.try_write(&[IoSlice::new(&self.buffer[one.clone()])]),
                many => {
                    let mut slices = [IoSlice::new(&[]); RANGES_MAX + 2 * FRAMES_MAX];
                    let count = many.len().min(slices.len());
                    for (slice, range) in slices.iter_mut().zip(many) {
                        *slice = IoSlice::new(&self.buffer[range.clone()]);
                    }
                    wire.try_write(&slices[..count])
                }
            };
            match sent {
                Ok(n) => self.advance(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        wire.try_flush()
    }

    fn advance(&mut self, mut sent: usize) {
        while let Some(range) = self.buffer.marks.get_mut(self.next)
            && sent > 0
        {
            let now = sent.min(range.len());
            range.start += now;
            sent -= now;
            if range.start == range.end {
                self.next += 1;
            }
        }
    }
}
