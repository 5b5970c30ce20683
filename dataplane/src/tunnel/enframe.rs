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

#[cfg(test)]
mod tests {
    use narrowlink_proto::{frame::Opcode, upgrade::Framing};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        net::{buffer::BULK_BYTES, memory::Room},
        tunnel::far_end::{ROLES, SESSION, cases, pattern, tunnel},
    };

    /// Pieces that are listed before they leave: see `relay::chunk`.
    const PIECES_MAX: usize = 32;

    /// A buffer as a read leaves it.
    fn filled() -> Buffer {
        let mut buffer = Buffer::take_now(true);
        buffer[HEADS_BYTES..].copy_from_slice(&pattern(7, BULK_BYTES - HEADS_BYTES));
        buffer
    }

    fn enframe(sink: &End<'_>, buffer: &mut Buffer, pieces: &[Range<usize>]) -> usize {
        buffer.marks.clear();
        let mut frames = Enframer::to(sink);
        for piece in pieces {
            frames.add(buffer, piece.clone());
        }
        frames.finish(buffer)
    }

    /// What leaves.
    fn listed(buffer: &Buffer) -> Vec<u8> {
        buffer.marks.iter().flat_map(|range| &buffer[range.clone()]).copied().collect()
    }

    /// The payload of all these frames.
    fn joined(frames: &[(Opcode, Vec<u8>)]) -> Vec<u8> {
        frames.iter().flat_map(|(_, bytes)| bytes).copied().collect()
    }

    #[test]
    fn where_there_are_no_frames_payload_is_listed_as_it_is() {
        let (conn, _far) = tunnel(Framing::Raw, ROLES[1], Room::default());
        let mut buffer = filled();
        let pieces = [100..300_usize, 300..300, 305..306];
        assert_eq!(enframe(&End::of(&conn, SESSION), &mut buffer, &pieces), 201);
        assert_eq!(buffer.marks, [100..300, 305..306]);
        assert_eq!(buffer[HEADS_BYTES..], pattern(7, BULK_BYTES - HEADS_BYTES));
    }

    #[test]
    fn payload_stays_where_it_is_behind_a_header_from_the_front_of_the_buffer() {
        for role in ROLES {
            let (conn, far) = tunnel(Framing::Framed, role, Room::default());
            let mut buffer = filled();
            // Of lengths that are no multiples of the mask's.
            let pieces = [100..101, 110..117, 200..200, 200..202, 1000..1003];
            let payload: Vec<_> = pieces.iter().flat_map(|piece| buffer[piece.clone()].to_vec()).collect();
            assert_eq!(enframe(&End::of(&conn, SESSION), &mut buffer, &pieces), 13);
            let (head, rest) = buffer.marks.split_first().unwrap();
            assert!(head.end <= HEADS_BYTES, "{role:?}");
            assert_eq!(rest, [100..101, 110..117, 200..202, 1000..1003], "{role:?}");
            assert_eq!(far.frames(&listed(&buffer)), [(Opcode::Binary, payload)], "{role:?}");
            // What is between them is not touched.
            assert_eq!(buffer[101..110], pattern(7, 1000)[101 - HEADS_BYTES..110 - HEADS_BYTES]);
        }
    }

    #[test]
    fn no_payload_makes_no_frame() {
        let (conn, _far) = tunnel(Framing::Framed, ROLES[0], Room::default());
        let mut buffer = filled();
        assert_eq!(enframe(&End::of(&conn, SESSION), &mut buffer, &[100..100, 200..200]), 0);
        assert!(buffer.marks.is_empty());
    }

    #[test]
    fn more_than_a_peer_takes_in_one_frame_goes_in_several() {
        for role in ROLES {
            for (len, lens) in [
                (FRAME_BYTES_MAX - 1, vec![FRAME_BYTES_MAX - 1]),
                (FRAME_BYTES_MAX, vec![FRAME_BYTES_MAX]),
                (FRAME_BYTES_MAX + 1, vec![FRAME_BYTES_MAX, 1]),
                (BULK_READ_BYTES, vec![FRAME_BYTES_MAX; 2]),
            ] {
                let (conn, far) = tunnel(Framing::Framed, role, Room::default());
                let mut buffer = filled();
                let range = HEADS_BYTES..HEADS_BYTES + len;
                let payload = buffer[range.clone()].to_vec();
                assert_eq!(enframe(&End::of(&conn, SESSION), &mut buffer, &[range]), len);
                let frames = far.frames(&listed(&buffer));
                assert_eq!(frames.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), lens);
                assert_eq!(joined(&frames), payload, "{role:?} {len}");
            }
        }
    }

    #[test]
    fn any_pieces_of_a_read_arrive_in_their_order() {
        // Between each two some bytes that are no payload.
        let piece = (0..14usize, prop_oneof![0..20usize, 0..9000usize, Just(FRAME_BYTES_MAX)]);
        let all = cases(&prop::collection::vec(piece, 0..PIECES_MAX), 150);
        for (n, lens) in all.into_iter().enumerate() {
            let (conn, far) = tunnel(Framing::Framed, ROLES[n % 2], Room::default());
            let (mut buffer, mut at, mut pieces) = (filled(), HEADS_BYTES, Vec::new());
            for (between, len) in &lens {
                let begin = at + between;
                at = begin + len;
                if at > HEADS_BYTES + BULK_READ_BYTES {
                    break;
                }
                pieces.push(begin..at);
            }
            let payload: Vec<_> = pieces.iter().flat_map(|piece| buffer[piece.clone()].to_vec()).collect();
            assert_eq!(enframe(&End::of(&conn, SESSION), &mut buffer, &pieces), payload.len());
            assert!(buffer.marks.len() <= PIECES_MAX + 2 * FRAMES_MAX, "they leave in one call");
            let frames = far.frames(&listed(&buffer));
            assert!(frames.iter().all(|(opcode, bytes)| *opcode == Opcode::Binary && !bytes.is_empty()));
            assert_eq!(joined(&frames), payload, "{lens:?}");
        }
    }
}
