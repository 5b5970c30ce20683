//! Role: WebSocket frames out of a byte stream, in place: payload is unmasked where it lies and
//! handed on as ranges of the caller's buffer.
//! Invariants: keeps at most one header, one control payload and one text message · the same
//! events for every way the input is cut · data payload is never copied.
//! See: RFC 6455 §5.

use std::ops::Range;

use narrowlink_proto::{
    frame::{self, Expect, Fragments, FrameError, HEADER_BYTES_MAX, Header, Kind, Opcode},
    message::MESSAGE_BYTES_MAX,
    printable::printable,
};

/// A data frame's payload at the most, both ways. Longer payload goes in several frames; nothing
/// is ever held until a frame is whole, so the bound is for a foreign sender's honesty.
pub const DATA_FRAME_BYTES_MAX: u64 = 128 * 1024;

/// What came out of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Payload of a data message.
    Data {
        /// This part of the buffer, unmasked; empty where a message, or what is left of one, is.
        range: Range<usize>,
        /// The message ends with it.
        ends: bool,
    },
    /// A frame without payload within a message.
    Empty,
    /// A piece of a text message whose rest has not come.
    Part,
    /// A whole text message.
    Text(Vec<u8>),
    /// To be answered with the same bytes.
    Ping(Vec<u8>),
    /// An answer to a ping of ours.
    Pong(Vec<u8>),
    /// The peer closes; its close code, and its words.
    Close(Option<(u16, String)>),
}

/// Headers out of a byte stream, wherever it is cut. The caller skips what stands between them.
pub(crate) struct Heads {
    expect: Expect,
    head: [u8; HEADER_BYTES_MAX],
    head_len: u8,
}

impl Heads {
    /// Starts at a frame boundary.
    pub(crate) fn new(expect: Expect) -> Self {
        Self { expect, head: [0; HEADER_BYTES_MAX], head_len: 0 }
    }

    /// The header that begins, or goes on, at `buf[*at..]`; `None` when it needs more bytes.
    /// `payload_bytes_max` binds data frames.
    ///
    /// # Errors
    /// The peer's: what is not WebSocket, or is too long.
    pub(crate) fn next(
        &mut self,
        buf: &[u8],
        at: &mut usize,
        payload_bytes_max: u64,
    ) -> Result<Option<Header>, FrameError> {
        if self.head_len == 0 {
            let rest = &buf[*at..];
            if let Some((header, len)) = frame::decode(rest, self.expect, payload_bytes_max)? {
                *at += len;
                return Ok(Some(header));
            }
            self.head[..rest.len()].copy_from_slice(rest);
            #[expect(clippy::cast_possible_truncation, reason = "shorter than a header")]
            let len = rest.len() as u8;
            self.head_len = len;
            *at = buf.len();
            return Ok(None);
        }
        loop {
            let Some(&byte) = buf.get(*at) else { return Ok(None) };
            self.head[usize::from(self.head_len)] = byte;
            self.head_len += 1;
            *at += 1;
            let head = &self.head[..self.head_len.into()];
            if let Some((header, _)) = frame::decode(head, self.expect, payload_bytes_max)? {
                self.head_len = 0;
                return Ok(Some(header));
            }
        }
    }

    /// Whether no part of a header has been taken.
    pub(crate) fn at_boundary(&self) -> bool {
        self.head_len == 0
    }
}

/// The state between two reads.
pub struct Deframer {
    heads: Heads,
    frame: Option<Frame>,
    fragments: Fragments,
    text: Vec<u8>,
    control: Vec<u8>,
}

struct Frame {
    header: Header,
    kind: Kind,
    left: u64,
}

impl Frame {
    /// Where in the mask's cycle the next byte is.
    fn phase(&self) -> usize {
        (self.header.payload_bytes - self.left) as usize & 3
    }
}

impl Deframer {
    /// Starts at a frame boundary.
    pub fn new(expect: Expect) -> Self {
        Self {
            heads: Heads::new(expect),
            frame: None,
            fragments: Fragments::default(),
            text: Vec::new(),
            control: Vec::new(),
        }
    }

    /// Takes bytes from `buf[*at..]` until something came out; `None` when all are taken.
    ///
    /// # Errors
    /// The peer's: what is not WebSocket, or is too long.
    pub fn next(&mut self, buf: &mut [u8], at: &mut usize) -> Result<Option<Event>, FrameError> {
        self.step(buf, at, false)
    }

    /// As [`Deframer::next`], but leaves data where it is: an empty range within a message says that data comes next.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn next_but_data(
        &mut self,
        buf: &mut [u8],
        at: &mut usize,
    ) -> Result<Option<Event>, FrameError> {
        self.step(buf, at, true)
    }

    fn step(
        &mut self,
        buf: &mut [u8],
        at: &mut usize,
        leave_data: bool,
    ) -> Result<Option<Event>, FrameError> {
        loop {
            if self.frame.is_none() && !self.read_head(buf, at)? {
                return Ok(None);
            }
            let Some(frame) = &mut self.frame else { return Ok(None) };
            if leave_data && frame.kind == Kind::Binary && frame.left > 0 {
                return Ok(Some(Event::Data { range: *at..*at, ends: false }));
            }
            let take = usize::try_from(frame.left).unwrap_or(usize::MAX).min(buf.len() - *at);
            if take == 0 && frame.left > 0 {
                return Ok(None);
            }
            let range = *at..*at + take;
            *at = range.end;
            if let Some(key) = frame.header.mask {
                frame::mask(&mut buf[range.clone()], key, frame.phase());
            }
            frame.left -= take as u64;
            let (kind, done) = (frame.kind, frame.left == 0);
            let Header { opcode, fin, payload_bytes: length, .. } = frame.header;
            if done {
                self.frame = None;
            }
            match kind {
                Kind::Binary if range.is_empty() && !fin => return Ok(Some(Event::Empty)),
                Kind::Binary => return Ok(Some(Event::Data { range, ends: done && fin })),
                Kind::Text => {
                    if self.text.len() + take > MESSAGE_BYTES_MAX {
                        return Err(FrameError::TooLong { payload_bytes_max: MESSAGE_BYTES_MAX as u64 });
                    }
                    self.text.extend_from_slice(&buf[range]);
                    if done && fin {
                        return Ok(Some(Event::Text(std::mem::take(&mut self.text))));
                    }
                    if done {
                        return Ok(Some(if length == 0 { Event::Empty } else { Event::Part }));
                    }
                }
                Kind::Control => {
                    self.control.extend_from_slice(&buf[range]);
                    if done {
                        let payload = std::mem::take(&mut self.control);
                        return Ok(Some(control_event(opcode, payload)?));
                    }
                }
            }
        }
    }

    /// Whether a frame's header is complete afterwards.
    fn read_head(&mut self, buf: &[u8], at: &mut usize) -> Result<bool, FrameError> {
        let Some(header) = self.heads.next(buf, at, DATA_FRAME_BYTES_MAX)? else { return Ok(false) };
        let kind = self.fragments.on_header(&header)?;
        self.frame = Some(Frame { left: header.payload_bytes, header, kind });
        Ok(true)
    }

    /// Whether nothing at all is under way.
    pub(crate) fn at_boundary(&self) -> bool {
        self.frame.is_none() && self.heads.at_boundary() && self.is_between_messages()
    }

    /// Whether no message is under way, data or text. A control frame may be, or the head of what comes next.
    pub(crate) fn is_between_messages(&self) -> bool {
        !self.fragments.within_message()
            && self.frame.as_ref().is_none_or(|frame| frame.kind == Kind::Control)
    }
}

fn control_event(opcode: Opcode, payload: Vec<u8>) -> Result<Event, FrameError> {
    Ok(match opcode {
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong(payload),
        _ => {
            Event::Close(frame::parse_close(&payload)?.map(|(code, why)| (code, printable(why, usize::MAX))))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(out: &mut Vec<u8>, opcode: Opcode, mask: Option<[u8; 4]>, fin: bool, payload: &[u8]) {
        let mut head = [0; HEADER_BYTES_MAX];
        let header = Header { fin, opcode, mask, payload_bytes: payload.len() as u64 };
        let len = frame::encode(&header, &mut head);
        out.extend_from_slice(&head[..len]);
        let start = out.len();
        out.extend_from_slice(payload);
        frame::mask(&mut out[start..], mask.unwrap_or_default(), 0);
    }

    /// The end of a data message.
    const END: Event = Event::Data { range: 0..0, ends: true };

    /// What came out, data joined, with the ends of its messages: the same for every way of cutting.
    fn read(mut bytes: Vec<u8>, cuts: &[usize]) -> Result<(Vec<u8>, Vec<Event>), FrameError> {
        let mut deframer = Deframer::new(Expect::Masked);
        let (mut data, mut events) = (Vec::new(), Vec::new());
        let mut start = 0;
        for cut in cuts.iter().copied().chain([bytes.len()]) {
            let cut = cut.clamp(start, bytes.len());
            let part = &mut bytes[start..cut];
            let mut at = 0;
            while let Some(event) = deframer.next(part, &mut at)? {
                match event {
                    Event::Data { range, ends } => {
                        data.extend_from_slice(&part[range]);
                        events.extend(ends.then_some(END));
                    }
                    other => events.push(other),
                }
            }
            assert_eq!(at, part.len());
            start = cut;
        }
        Ok((data, events))
    }

    fn sample(key: [u8; 4]) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, Opcode::Binary, Some(key), true, &[1, 2, 3, 4, 5]);
        write(&mut out, Opcode::Ping, Some(key), true, b"hi");
        write(&mut out, Opcode::Text, Some(key), false, b"hel");
        write(&mut out, Opcode::Pong, Some(key), true, b"");
        write(&mut out, Opcode::Continuation, Some(key), true, b"lo");
        write(&mut out, Opcode::Binary, Some(key), false, &[9; 200]);
        write(&mut out, Opcode::Continuation, Some(key), false, b"");
        write(&mut out, Opcode::Continuation, Some(key), false, &[9; 100]);
        write(&mut out, Opcode::Continuation, Some(key), true, b"");
        write(&mut out, Opcode::Binary, Some(key), true, b"");
        write(&mut out, Opcode::Close, Some(key), true, &frame::close_payload(1000, "bye"));
        out
    }

    #[test]
    fn every_single_cut_gives_the_same_events() {
        let bytes = sample([1, 2, 3, 4]);
        let whole = read(bytes.clone(), &[]).unwrap();
        assert_eq!(whole.0.len(), 305);
        assert_eq!(
            whole.1,
            [
                END,
                Event::Ping(b"hi".to_vec()),
                Event::Part,
                Event::Pong(vec![]),
                Event::Text(b"hello".to_vec()),
                Event::Empty,
                END,
                END,
                Event::Close(Some((1000, "bye".into()))),
            ]
        );
        for cut in 0..bytes.len() {
            assert_eq!(read(bytes.clone(), &[cut]).unwrap(), whole, "cut at {cut}");
        }
        let every: Vec<_> = (0..bytes.len()).collect();
        assert_eq!(read(bytes, &every).unwrap(), whole);
    }

    #[test]
    fn an_endless_text_message_is_refused() {
        let mut out = Vec::new();
        write(&mut out, Opcode::Text, Some([0; 4]), false, &vec![b' '; 60_000]);
        write(&mut out, Opcode::Continuation, Some([0; 4]), false, &vec![b' '; 60_000]);
        assert_eq!(read(out, &[]), Err(FrameError::TooLong { payload_bytes_max: 65_536 }));
    }

    #[test]
    fn data_that_is_left_where_it_is_comes_whole_afterwards_wherever_it_is_cut() {
        let bytes = sample([1, 2, 3, 4]);
        for cut in 0..bytes.len() {
            let mut deframer = Deframer::new(Expect::Masked);
            let (mut first, mut second) = (bytes.clone(), bytes[cut..].to_vec());
            let (first, mut at, mut data) = (&mut first[..cut], 0, Vec::new());
            while let Some(event) = deframer.next_but_data(first, &mut at).unwrap() {
                let Event::Data { range, ends: false } = event else { continue };
                assert!(range.is_empty());
                let Some(Event::Data { range, .. }) = deframer.next(first, &mut at).unwrap() else { break };
                data.extend_from_slice(&first[range]);
            }
            assert_eq!(at, cut);
            let mut at = 0;
            while let Some(event) = deframer.next(&mut second, &mut at).unwrap() {
                if let Event::Data { range, .. } = event {
                    data.extend_from_slice(&second[range]);
                }
            }
            assert_eq!(data, [&[1, 2, 3, 4, 5][..], &[9; 300]].concat(), "cut at {cut}");
        }
    }

    #[test]
    fn payload_is_unmasked_where_it_lies_and_nowhere_else_is_a_byte_changed() {
        let mut bytes = Vec::new();
        write(&mut bytes, Opcode::Binary, Some([1, 2, 3, 4]), false, b"hello");
        write(&mut bytes, Opcode::Continuation, Some([5, 6, 7, 8]), true, b"you");
        let before = bytes.clone();
        let (mut deframer, mut at, mut ranges) = (Deframer::new(Expect::Masked), 0, Vec::new());
        while let Some(event) = deframer.next(&mut bytes, &mut at).unwrap() {
            let Event::Data { range, .. } = event else { panic!("{event:?}") };
            ranges.push(range);
        }
        assert_eq!(ranges, [6..11, 17..20]);
        assert_eq!((&bytes[6..11], &bytes[17..20]), (&b"hello"[..], &b"you"[..]));
        assert_eq!((&bytes[..6], &bytes[11..17]), (&before[..6], &before[11..17]));
    }

    #[test]
    fn a_frame_is_refused_by_its_header_when_it_is_longer_than_is_taken() {
        let head = |payload_bytes| {
            let mut head = [0; HEADER_BYTES_MAX];
            let header = Header { fin: true, opcode: Opcode::Binary, mask: Some([0; 4]), payload_bytes };
            let len = frame::encode(&header, &mut head);
            head[..len].to_vec()
        };
        assert_eq!(read(head(DATA_FRAME_BYTES_MAX), &[]), Ok((vec![], vec![])));
        let refused = FrameError::TooLong { payload_bytes_max: DATA_FRAME_BYTES_MAX };
        assert_eq!(read(head(DATA_FRAME_BYTES_MAX + 1), &[]), Err(refused));
    }

    #[test]
    fn where_a_message_is_under_way_is_known_at_every_byte() {
        let mut bytes = Vec::new();
        let mut between = vec![true];
        // A header tells what its frame is when it is whole.
        let mut add = |opcode, fin, payload: &[u8], ended: [bool; 3]| {
            write(&mut bytes, opcode, Some([1, 2, 3, 4]), fin, payload);
            let [in_head, in_payload, behind] = ended;
            between.extend([in_head; 5]);
            between.extend(vec![in_payload; payload.len()]);
            between.push(behind);
        };
        add(Opcode::Ping, true, b"hi", [true, true, true]);
        add(Opcode::Text, true, b"{}", [true, false, true]);
        add(Opcode::Binary, false, b"a", [true, false, false]);
        add(Opcode::Pong, true, b"hi", [false, false, false]);
        add(Opcode::Continuation, false, b"b", [false, false, false]);
        add(Opcode::Continuation, true, b"c", [false, false, true]);
        let mut deframer = Deframer::new(Expect::Masked);
        let mut is_between = vec![deframer.is_between_messages()];
        let mut boundaries = usize::from(deframer.at_boundary());
        for byte in bytes.chunks_mut(1) {
            let mut at = 0;
            while deframer.next(byte, &mut at).unwrap().is_some() {}
            is_between.push(deframer.is_between_messages());
            boundaries += usize::from(deframer.at_boundary());
        }
        assert_eq!(is_between, between);
        assert_eq!(boundaries, 4, "at the start, behind the ping, and behind both messages");
    }

    #[test]
    fn headers_alone_are_the_same_wherever_they_are_cut() {
        let bytes = sample([1, 2, 3, 4]);
        let headers = |step: usize| {
            let (mut heads, mut left, mut found) = (Heads::new(Expect::Masked), 0, Vec::new());
            for part in bytes.chunks(step) {
                let mut at = 0;
                loop {
                    let skipped = left.min(part.len() - at);
                    (at, left) = (at + skipped, left - skipped);
                    let Some(header) = heads.next(part, &mut at, 1000).unwrap() else { break };
                    left = usize::try_from(header.payload_bytes).unwrap();
                    found.push(header);
                }
            }
            assert!(heads.at_boundary() && left == 0);
            found
        };
        let whole = headers(bytes.len());
        assert_eq!(whole.len(), 11);
        for step in 1..bytes.len() {
            assert_eq!(headers(step), whole, "{step} bytes at a time");
        }
    }

    proptest! {
        #[test]
        fn any_cuts_of_any_masks_give_the_same(key: [u8; 4], mut cuts: Vec<u16>) {
            cuts.sort_unstable();
            let bytes = sample(key);
            let cuts: Vec<_> = cuts.into_iter().map(|c| usize::from(c) % bytes.len()).collect();
            let mut sorted = cuts; sorted.sort_unstable();
            prop_assert_eq!(read(bytes.clone(), &sorted).unwrap(), read(bytes, &[]).unwrap());
        }

        #[test]
        fn bent_bytes_never_panic(bytes: Vec<u8>, cuts: Vec<u8>) {
            let mut cuts: Vec<_> = cuts.into_iter().map(usize::from).collect();
            cuts.sort_unstable();
            let _ = read(bytes, &cuts);
        }
    }
}
