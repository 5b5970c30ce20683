//! Role: WebSocket frames around payload that lies in a buffer: its ranges are listed, each frame's header in front.
//! Invariants: payload stays where it is · a header lies in a slot at the front of the same buffer, so everything that
//! goes out is one list of ranges of it · no frame is longer than a peer takes.
//! See: RFC 6455 §5.2.

use std::ops::Range;

use narrowlink_proto::frame::HEADER_BYTES_MAX;

use crate::{
    net::buffer::{BULK_READ_BYTES, Buffer},
    tunnel::{conn::Conn, deframe::DATA_FRAME_BYTES_MAX, end::End},
};

/// Payload of a frame.
#[expect(clippy::cast_possible_truncation, reason = "128 KiB")]
const FRAME_BYTES_MAX: usize = DATA_FRAME_BYTES_MAX as usize;
/// Room for one header.
const SLOT_BYTES: usize = 16;
const _: () = assert!(HEADER_BYTES_MAX <= SLOT_BYTES);
/// Frames that leave together: a full bulk buffer takes two.
pub(crate) const FRAMES_MAX: usize = 4;
/// In front of the payload, for the headers of the frames that leave.
pub(crate) const HEADS_BYTES: usize = FRAMES_MAX * SLOT_BYTES;
const _: () = assert!(FRAMES_MAX * FRAME_BYTES_MAX > BULK_READ_BYTES);

/// Payload on its way into frames, or as it is where there are none.
pub(crate) struct Enframer<'a> {
    conn: Option<&'a Conn>,
    /// How many have a header, and where the list of the one under way begins.
    count: usize,
    begin: usize,
    /// Payload of the one under way.
    bytes: usize,
    payload_bytes: usize,
}

impl<'a> Enframer<'a> {
    pub(crate) fn to(sink: &End<'a>) -> Self {
        Self { conn: sink.framed(), count: 0, begin: 0, bytes: 0, payload_bytes: 0 }
    }

    /// Lists payload that goes out.
    #[inline]
    pub(crate) fn add(&mut self, buffer: &mut Buffer, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        self.payload_bytes += range.len();
        if self.conn.is_none() {
            return buffer.marks.push(range);
        }
        let mut rest = range;
        while rest.start < rest.end {
            if self.bytes == FRAME_BYTES_MAX {
                self.end_frame(buffer);
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

    /// Ends what was listed; how much payload it is.
    pub(crate) fn finish(mut self, buffer: &mut Buffer) -> usize {
        self.end_frame(buffer);
        self.payload_bytes
    }

    /// Ends the frame under way: masks it and writes its header.
    fn end_frame(&mut self, buffer: &mut Buffer) {
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
