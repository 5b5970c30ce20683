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

#[cfg(test)]
mod tests {
    use futures_lite::future::zip;
    use narrowlink_proto::{frame::Opcode, upgrade::Framing};

    use super::*;
    use crate::{
        net::memory::Room,
        tunnel::{
            conn::Role,
            far_end::{
                CALLS, FRAMINGS, FarEnd, PAIRS, SESSION, fin, in_calls_of, pattern, room_for, run, tunnel,
            },
        },
    };

    /// Lists and gives away all that a chunk holds; what stands behind it, and how much payload it was.
    async fn pass_on(chunk: &mut Chunk, source: &End<'_>, sink: &End<'_>) -> (Found, usize) {
        let mut bytes = 0;
        loop {
            let found = chunk.sort(source, sink);
            while !chunk.push(sink).unwrap() {
                sink.wire().writable().await.unwrap();
            }
            bytes += chunk.payload_bytes();
            if !matches!(found, Found::More) {
                return (found, bytes);
            }
        }
    }

    #[test]
    fn a_read_takes_no_more_than_there_is_room_for() {
        run(async {
            let (source, from) = tunnel(Framing::Raw, Role::Gateway, room_for(1 << 20));
            from.say(&pattern(7, 600_000));
            for (bulk, room, expected) in [
                (false, 10, 10),
                (false, usize::MAX, SMALL_READ_BYTES),
                (true, 10, 10),
                (true, usize::MAX, BULK_READ_BYTES),
            ] {
                let mut chunk = Chunk::take(bulk).await;
                source.wire().account().fill();
                assert_eq!(chunk.fill(source.wire(), room).unwrap(), expected);
                assert_eq!(chunk.read().len(), expected);
            }
            let mut chunk = Chunk::take(false).await;
            let refused = chunk.fill(tunnel(Framing::Raw, Role::Gateway, Room::default()).0.wire(), 10);
            assert!(refused.is_err());
        });
    }

    #[test]
    fn payload_leaves_from_where_it_was_read_and_headers_from_the_same_buffer() {
        run(async {
            for framing in FRAMINGS {
                let (source, from) = tunnel(Framing::Framed, Role::Gateway, Room::default());
                let (sink, to) = tunnel(framing, Role::Gateway, Room::default());
                let (source_end, sink_end) = (End::of(&source, SESSION), End::of(&sink, SESSION));
                from.say(&[from.payload(b"hello"), from.payload(b", you")].concat());
                let mut chunk = Chunk::take(false).await;
                chunk.fill(source.wire(), usize::MAX).unwrap();
                assert!(matches!(chunk.sort(&source_end, &sink_end), Found::End));
                let header = from.payload(b"hello").len() - 5;
                let first = HEADS_BYTES + header..HEADS_BYTES + header + 5;
                let second = first.end + header..first.end + header + 5;
                let payload = &chunk.buffer.marks[usize::from(framing == Framing::Framed)..];
                assert_eq!((payload, chunk.payload_bytes()), (&[first, second][..], 10), "{framing:?}");
                assert!(chunk.buffer.marks.iter().all(|range| range.end <= chunk.filled));
                assert!(chunk.push(&sink_end).unwrap());
                assert_eq!(to.heard().0, to_be_heard(framing), "in one frame");
            }
        });
    }

    fn to_be_heard(framing: Framing) -> Vec<u8> {
        let header: &[u8] = if framing == Framing::Framed { &[0x82, 10] } else { &[] };
        [header, b"hello, you"].concat()
    }

    #[test]
    fn no_shape_of_reads_and_writes_changes_a_byte() {
        run(async {
            let payload = pattern(7, 2000);
            for (source_framing, sink_framing) in PAIRS {
                for call_bytes in CALLS {
                    let (source, from) = tunnel(source_framing, Role::Gateway, in_calls_of(call_bytes));
                    let (sink, to) = tunnel(sink_framing, Role::Peer, Room { bytes: 99, call_bytes });
                    let (source_end, sink_end) = (End::of(&source, SESSION), End::of(&sink, SESSION));
                    payload.chunks(300).for_each(|part| from.say(&from.payload(part)));
                    let passing = async {
                        let mut bytes = 0;
                        while bytes < payload.len() {
                            let mut chunk = Chunk::take(false).await;
                            match chunk.fill(source.wire(), usize::MAX) {
                                Ok(_) => bytes += pass_on(&mut chunk, &source_end, &sink_end).await.1,
                                Err(_) => source.wire().readable().await.unwrap(),
                            }
                        }
                        sink_end.finish_write(bytes as u64).await.unwrap();
                    };
                    let ((), heard) = zip(passing, to.hear_session()).await;
                    assert_eq!(heard, payload, "{source_framing:?} to {sink_framing:?}, {call_bytes}");
                }
            }
        });
    }

    #[test]
    fn a_push_that_was_cut_goes_on_where_it_stopped_and_nothing_comes_between() {
        run(async {
            for room in 1..40 {
                let (source, from) = tunnel(Framing::Raw, Role::Gateway, Room::default());
                let (sink, far) = tunnel(Framing::Framed, Role::Peer, room_for(room));
                let (source_end, sink_end) = (End::of(&source, SESSION), End::of(&sink, SESSION));
                from.say(&pattern(7, 100));
                let mut chunk = Chunk::take(false).await;
                chunk.fill(source.wire(), usize::MAX).unwrap();
                chunk.sort(&source_end, &sink_end);
                assert!(!chunk.push(&sink_end).unwrap());
                sink.ping().unwrap();
                let mut got = far.heard().0;
                while !chunk.push(&sink_end).unwrap() {
                    got.extend(far.heard().0);
                }
                while !sink.has_said_all() {
                    got.extend(far.heard().0);
                    sink.try_flush_control().unwrap();
                }
                got.extend(far.heard().0);
                let expected = [(Opcode::Binary, pattern(7, 100)), (Opcode::Ping, Vec::new())];
                assert_eq!(far.frames(&got), expected, "{room} bytes at a time");
            }
        });
    }

    #[test]
    fn many_short_frames_leave_in_short_lists() {
        run(async {
            for framing in FRAMINGS {
                let (source, from) = tunnel(Framing::Framed, Role::Gateway, Room::default());
                let (sink, to) = tunnel(framing, Role::Gateway, Room::default());
                let (source_end, sink_end) = (End::of(&source, SESSION), End::of(&sink, SESSION));
                let payload = pattern(7, 1000);
                payload.chunks(1).for_each(|byte| from.say(&from.payload(byte)));
                let mut chunk = Chunk::take(false).await;
                chunk.fill(source.wire(), usize::MAX).unwrap();
                let (mut lists, mut bytes) = (0, 0);
                loop {
                    let found = chunk.sort(&source_end, &sink_end);
                    assert!(chunk.buffer.marks.len() <= RANGES_MAX + 2 * FRAMES_MAX);
                    assert!(chunk.push(&sink_end).unwrap());
                    (lists, bytes) = (lists + 1, bytes + chunk.payload_bytes());
                    match found {
                        Found::More => {}
                        Found::End => break,
                        Found::Fin { .. } | Found::Fault(_) => panic!("nothing of the kind was said"),
                    }
                }
                assert_eq!((bytes, to.heard_session().0), (1000, payload), "{framing:?}");
                assert!((1000 / RANGES_MAX..1000 / (RANGES_MAX / 2)).contains(&lists), "{lists} lists");
            }
        });
    }

    #[test]
    fn frames_that_bring_no_payload_are_looked_at_some_at_a_time() {
        run(async {
            let (source, from) = tunnel(Framing::Framed, Role::Gateway, Room::default());
            let (sink, _to) = tunnel(Framing::Framed, Role::Gateway, Room::default());
            let (source_end, sink_end) = (End::of(&source, SESSION), End::of(&sink, SESSION));
            from.say(&from.fragment(Opcode::Text, b" "));
            from.say(&from.fragment(Opcode::Continuation, b" ").repeat(EVENTS_MAX * 2));
            let mut chunk = Chunk::take(false).await;
            chunk.fill(source.wire(), usize::MAX).unwrap();
            // A sink of which nothing is wanted is not asked, whatever it is in the middle of.
            assert!(sink.begin_frame().unwrap());
            for _ in 0..2 {
                assert!(matches!(chunk.sort(&source_end, &sink_end), Found::More));
                assert!(chunk.push(&sink_end).unwrap());
            }
            assert!(matches!(chunk.sort(&source_end, &sink_end), Found::End));
        });
    }

    #[test]
    fn what_stands_in_front_of_an_end_or_a_fault_leaves_before_it() {
        type Behind = (fn(&FarEnd) -> Vec<u8>, fn(&Found) -> bool);
        let table: [Behind; 4] = [
            (|far| far.message(&fin(4)), |found| matches!(found, Found::Fin { bytes: 4 })),
            (|_| vec![0xFF], |found| matches!(found, Found::Fault(ConnError::Frame(_)))),
            (
                |far| far.frame(Opcode::Close, b""),
                |found| matches!(found, Found::Fault(ConnError::Closed { .. })),
            ),
            (
                |far| far.frame(Opcode::Text, b"{}"),
                |found| matches!(found, Found::Fault(ConnError::Message(_))),
            ),
        ];
        run(async {
            for (n, (behind, is_it)) in table.into_iter().enumerate() {
                let (source, from) = tunnel(Framing::Framed, Role::Gateway, Room::default());
                let (sink, to) = tunnel(Framing::Raw, Role::Gateway, Room::default());
                let (source_end, sink_end) = (End::of(&source, SESSION), End::of(&sink, SESSION));
                from.say(&[from.payload(b"last"), behind(&from)].concat());
                let mut chunk = Chunk::take(false).await;
                chunk.fill(source.wire(), usize::MAX).unwrap();
                let (found, bytes) = pass_on(&mut chunk, &source_end, &sink_end).await;
                assert!(is_it(&found), "{n}");
                assert_eq!((bytes, to.heard().0), (4, b"last".to_vec()), "{n}");
            }
        });
    }

    #[test]
    fn a_sink_that_is_gone_is_an_error_and_one_that_gets_nothing_is_not_asked() {
        run(async {
            for framing in FRAMINGS {
                let (source, from) = tunnel(Framing::Framed, Role::Gateway, Room::default());
                let (sink, to) = tunnel(framing, Role::Gateway, Room::default());
                let (source_end, sink_end) = (End::of(&source, SESSION), End::of(&sink, SESSION));
                drop(to);
                from.say(&from.frame(Opcode::Ping, b"hi"));
                let mut chunk = Chunk::take(false).await;
                chunk.fill(source.wire(), usize::MAX).unwrap();
                assert!(matches!(pass_on(&mut chunk, &source_end, &sink_end).await, (Found::End, 0)));
                from.say(&from.payload(b"hello"));
                let mut chunk = Chunk::take(false).await;
                chunk.fill(source.wire(), usize::MAX).unwrap();
                chunk.sort(&source_end, &sink_end);
                assert_eq!(chunk.push(&sink_end).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            }
        });
    }
}
