//! Role: what one read brought, on its way through a buffer of the worker's: payload is found, headers
//! are put in front, and what is to go out is one list of ranges.
//! Invariants: payload stays where it was read · everything that goes out lies in the buffer, headers
//! too · nothing is parsed further before what was found is with the kernel · no call here waits, so a
//! direction that waits holds the buffer and a few numbers.
//! See: RFC 6455 §5.2; ARCHITECTURE.md "Relay".

use std::{
    io::{self, IoSlice},
    ops::Range,
};

use narrowlink_proto::frame::HEADER_BYTES_MAX;

use super::End;
use crate::{
    net::buffer::{BULK_READ_BYTES, Buffer, SMALL_BYTES, SMALL_READ_BYTES},
    transport::wire::Wire,
    tunnel::{
        conn::{Conn, ConnError},
        deframe::{DATA_FRAME_BYTES_MAX, Event},
    },
};

/// Payload of a frame.
#[expect(clippy::cast_possible_truncation, reason = "128 KiB")]
const FRAME_BYTES_MAX: usize = DATA_FRAME_BYTES_MAX as usize;
/// Room for one header.
const SLOT_BYTES: usize = 16;
const _: () = assert!(HEADER_BYTES_MAX <= SLOT_BYTES);
/// Frames that leave together: a full bulk buffer takes two.
const FRAMES_MAX: usize = 4;
/// In front of the payload, for the headers of the frames that leave.
const HEADS_BYTES: usize = FRAMES_MAX * SLOT_BYTES;
const _: () = assert!(HEADS_BYTES + SMALL_READ_BYTES <= SMALL_BYTES);
const _: () = assert!(FRAMES_MAX * FRAME_BYTES_MAX > BULK_READ_BYTES);
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
    /// A frame is under way.
    mid_frame: bool,
}

/// What stands behind the payload that was found.
pub(super) enum Found {
    /// The end of what was read.
    End,
    /// More, when this is gone.
    More,
    /// A text message.
    Text(Vec<u8>),
    /// What the source must not send, or its Close.
    Fault(ConnError),
}

impl Chunk {
    pub(super) async fn take(bulk: bool) -> Self {
        let mut buffer = Buffer::take(bulk).await;
        buffer.marks.clear();
        Self { buffer, filled: 0, sorted: 0, next: 0, payload_bytes: 0, mid_frame: false }
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
        (self.next, self.payload_bytes) = (0, 0);
        let mut frames = Frames::to(sink);
        let found = match source {
            End::Bare(_) => {
                frames.add(&mut self.buffer, self.sorted..self.filled);
                self.sorted = self.filled;
                Found::End
            }
            End::Framed(conn, _) => self.find(conn, &mut frames).unwrap_or_else(Found::Fault),
        };
        frames.finish(&mut self.buffer);
        self.payload_bytes = frames.payload_bytes;
        found
    }

    fn find(&mut self, conn: &Conn, frames: &mut Frames<'_>) -> Result<Found, ConnError> {
        for _ in 0..EVENTS_MAX {
            if self.buffer.marks.len() >= RANGES_MAX {
                break;
            }
            match conn.next_event(&mut self.buffer[..self.filled], &mut self.sorted)? {
                Some(Event::Data(range)) => frames.add(&mut self.buffer, range),
                Some(Event::Text(text)) => {
                    conn.wire().unread(&self.buffer[self.sorted..self.filled]);
                    return Ok(Found::Text(text));
                }
                Some(_) => {}
                None => return Ok(Found::End),
            }
        }
        Ok(if self.sorted == self.filled { Found::End } else { Found::More })
    }

    /// Gives `sink` what it takes; whether everything is with the kernel.
    ///
    /// # Errors
    /// The sink's end.
    pub(super) fn push(&mut self, sink: &End<'_>) -> io::Result<bool> {
        match sink {
            End::Framed(..) if self.buffer.marks.is_empty() => Ok(true),
            End::Framed(conn, _) => {
                if !self.mid_frame && !conn.begin_frame()? {
                    return Ok(false);
                }
                self.mid_frame = true;
                if !self.push_ranges(conn.wire())? {
                    return Ok(false);
                }
                self.mid_frame = false;
                conn.end_frame()?;
                Ok(true)
            }
            End::Bare(wire) => self.push_ranges(wire),
        }
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

/// Payload on its way into frames, or as it is.
struct Frames<'a> {
    conn: Option<&'a Conn>,
    /// How many have a header, and where the list of the one under way begins.
    count: usize,
    begin: usize,
    /// Payload of the one under way.
    bytes: usize,
    payload_bytes: usize,
}

impl<'a> Frames<'a> {
    fn to(sink: &End<'a>) -> Self {
        let conn = match *sink {
            End::Bare(_) => None,
            End::Framed(conn, _) => Some(conn),
        };
        Self { conn, count: 0, begin: 0, bytes: 0, payload_bytes: 0 }
    }

    fn add(&mut self, buffer: &mut Buffer, range: Range<usize>) {
        self.payload_bytes += range.len();
        if self.conn.is_none() {
            return buffer.marks.push(range);
        }
        let mut rest = range;
        while rest.start < rest.end {
            if self.bytes == FRAME_BYTES_MAX {
                self.finish(buffer);
            }
            if self.bytes == 0 {
                // The header's place in the list; its length is known when the frame's is.
                self.begin = buffer.marks.len();
                buffer.marks.push(0..0);
            }
            let end = rest.end.min(rest.start + FRAME_BYTES_MAX - self.bytes);
            buffer.marks.push(rest.start..end);
            self.bytes += end - rest.start;
            rest.start = end;
        }
    }

    /// Ends the frame under way: masks it and writes its header.
    fn finish(&mut self, buffer: &mut Buffer) {
        let Some(conn) = self.conn else { return };
        if self.bytes == 0 {
            return;
        }
        let (bytes, marks) = buffer.parts();
        let (head, payload) = marks[self.begin..].split_at_mut(1);
        let slot = self.count * SLOT_BYTES;
        let len = conn.write_header(payload, bytes, slot);
        head[0] = slot..slot + len;
        self.count += 1;
        self.bytes = 0;
    }
}
