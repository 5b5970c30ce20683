//! Role: the WebSocket frame's header.
//! Invariants: a header is refused at the first byte that makes it wrong, before any payload; a prefix
//! of the input never has another verdict than the whole; what is taken has one spelling.
//! See: RFC 6455 section 5.2.

mod mask;
mod message;

pub use self::{
    mask::mask,
    message::{Fragments, Kind, close_payload, parse_close},
};

/// The longest header: two bytes, eight of length, four of mask.
pub const HEADER_BYTES_MAX: usize = 14;

/// The longest payload of a control frame (RFC 6455 section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// More of the message that an earlier frame began.
    Continuation,
    /// Begins a text message: one of ours, as JSON.
    Text,
    /// Begins a binary message: data.
    Binary,
    /// The sender ends the connection.
    Close,
    /// To be answered by a pong with the same payload.
    Ping,
    /// The answer to a ping.
    Pong,
}

impl Opcode {
    /// Whether the frame may stand between those of a fragmented message.
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }

    const fn parse(nibble: u8) -> Option<Self> {
        match nibble {
            0x0 => Some(Self::Continuation),
            0x1 => Some(Self::Text),
            0x2 => Some(Self::Binary),
            0x8 => Some(Self::Close),
            0x9 => Some(Self::Ping),
            0xa => Some(Self::Pong),
            _ => None,
        }
    }

    const fn nibble(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xa,
        }
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whether the message ends with this frame.
    pub fin: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// The key that the payload is XORed with.
    pub mask: Option<[u8; 4]>,
    /// How many bytes follow the header.
    pub payload_bytes: u64,
}

/// What the peer's role demands of its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The peer opened the connection: a gateway expects this of agents and clients.
    Masked,
    /// The peer accepted the connection.
    Unmasked,
}

/// A frame that can't be taken; always the peer's fault, and the connection's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame without a mask from the side that must mask.
    #[error("an unmasked frame")]
    Unmasked,
    /// A masked frame from the side that must not mask.
    #[error("a masked frame")]
    Masked,
    /// A reserved bit; no extension was agreed on.
    #[error("a reserved bit is set")]
    Reserved,
    /// An opcode without meaning.
    #[error("opcode {0:#x} is not known")]
    Opcode(u8),
    /// A control frame that is not the whole of its message.
    #[error("a fragmented control frame")]
    FragmentedControl,
    /// A control frame above [`CONTROL_BYTES_MAX`].
    #[error("a control frame of more than {CONTROL_BYTES_MAX} bytes")]
    LongControl,
    /// A length that has a shorter form.
    #[error("a length not in its shortest form")]
    Length,
    /// More than the receiver takes.
    #[error("a frame of more than {payload_bytes_max} bytes")]
    TooLong {
        /// What the receiver takes.
        payload_bytes_max: u64,
    },
    /// A continuation of nothing, or a new message within an unfinished one.
    #[error("a fragment out of order")]
    Fragment,
    /// A close frame whose payload is not a code and a reason.
    #[error("a malformed close frame")]
    Close,
    /// A close frame whose reason is not UTF-8.
    #[error("a close reason that is not UTF-8")]
    CloseReason,
}

impl FrameError {
    /// The code to close the connection with (RFC 6455 section 7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            Self::TooLong { .. } => 1009,
            Self::CloseReason => 1007,
            _ => 1002,
        }
    }
}

/// Reads the header at the start of `buf`, with its length; `None` while it needs more bytes.
/// `payload_bytes_max` binds data frames; control frames have their own limit.
///
/// # Errors
/// The peer's, as early as the bytes show it.
pub fn decode(
    buf: &[u8],
    expect: Expect,
    payload_bytes_max: u64,
) -> Result<Option<(Header, usize)>, FrameError> {
    let Some(&first) = buf.first() else { return Ok(None) };
    let (fin, opcode) = decode_first(first)?;
    let Some(&second) = buf.get(1) else { return Ok(None) };
    match (second & 0x80 != 0, expect) {
        (false, Expect::Masked) => return Err(FrameError::Unmasked),
        (true, Expect::Unmasked) => return Err(FrameError::Masked),
        _ => {}
    }
    let short = second & 0x7f;
    let bytes_max = if opcode.is_control() {
        if short > 125 {
            return Err(FrameError::LongControl);
        }
        CONTROL_BYTES_MAX as u64
    } else {
        payload_bytes_max
    };
    let Some((payload_bytes, mask_at)) = decode_length(buf, short, bytes_max)? else { return Ok(None) };
    let (mask, header_len) = match expect {
        Expect::Unmasked => (None, mask_at),
        Expect::Masked => match buf.get(mask_at..).and_then(<[u8]>::first_chunk) {
            Some(&key) => (Some(key), mask_at + 4),
            None => return Ok(None),
        },
    };
    Ok(Some((Header { fin, opcode, mask, payload_bytes }, header_len)))
}

fn decode_first(byte: u8) -> Result<(bool, Opcode), FrameError> {
    if byte & 0x70 != 0 {
        return Err(FrameError::Reserved);
    }
    let nibble = byte & 0x0f;
    let opcode = Opcode::parse(nibble).ok_or(FrameError::Opcode(nibble))?;
    let fin = byte & 0x80 != 0;
    if opcode.is_control() && !fin {
        return Err(FrameError::FragmentedControl);
    }
    Ok((fin, opcode))
}

/// The length, and where what follows it begins. Whatever its digits are, a longer form stands for
/// more than the shorter one can: a limit below that decides without them.
fn decode_length(buf: &[u8], short: u8, bytes_max: u64) -> Result<Option<(u64, usize)>, FrameError> {
    let (bytes, form_min, end) = match short {
        126 => {
            check_length(126, bytes_max)?;
            let Some(&digits) = buf.get(2..).and_then(<[u8]>::first_chunk::<2>) else { return Ok(None) };
            (u64::from(u16::from_be_bytes(digits)), 126, 4)
        }
        127 => {
            check_length(0x1_0000, bytes_max)?;
            let Some(&digits) = buf.get(2..).and_then(<[u8]>::first_chunk::<8>) else { return Ok(None) };
            (u64::from_be_bytes(digits), 0x1_0000, 10)
        }
        short => (u64::from(short), 0, 2),
    };
    // The top bit of 64 must be zero: such a length has no valid form at all.
    if bytes < form_min || bytes >> 63 != 0 {
        return Err(FrameError::Length);
    }
    check_length(bytes, bytes_max)?;
    Ok(Some((bytes, end)))
}

const fn check_length(bytes: u64, bytes_max: u64) -> Result<(), FrameError> {
    if bytes > bytes_max { Err(FrameError::TooLong { payload_bytes_max: bytes_max }) } else { Ok(()) }
}

/// Writes `header` to the start of `out`, its length in the shortest form; returns how many bytes
/// were written.
///
/// # Panics
/// When the header is one that [`decode`] refuses whatever the limit: our own fault.
pub fn encode(header: &Header, out: &mut [u8; HEADER_BYTES_MAX]) -> usize {
    assert!(header.payload_bytes >> 63 == 0, "a payload's length fits 63 bits");
    assert!(
        !header.opcode.is_control() || (header.fin && header.payload_bytes <= CONTROL_BYTES_MAX as u64),
        "a control frame is short and whole"
    );
    out[0] = header.opcode.nibble() | if header.fin { 0x80 } else { 0 };
    let (short, mask_at) = match header.payload_bytes {
        bytes @ 0..=125 => (bytes as u8, 2),
        bytes @ 126..=0xffff => {
            out[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
            (126, 4)
        }
        bytes => {
            out[2..10].copy_from_slice(&bytes.to_be_bytes());
            (127, 10)
        }
    };
    match header.mask {
        Some(key) => {
            out[1] = short | 0x80;
            out[mask_at..mask_at + 4].copy_from_slice(&key);
            mask_at + 4
        }
        None => {
            out[1] = short;
            mask_at
        }
    }
}

/// How long the header of a frame with this payload is.
pub const fn header_bytes(payload_bytes: u64, masked: bool) -> usize {
    let length = match payload_bytes {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    if masked { length + 4 } else { length }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use tungstenite::protocol::frame::{FrameHeader, coding as theirs};

    use super::*;

    const OPCODES: [(Opcode, theirs::OpCode); 6] = [
        (Opcode::Continuation, theirs::OpCode::Data(theirs::Data::Continue)),
        (Opcode::Text, theirs::OpCode::Data(theirs::Data::Text)),
        (Opcode::Binary, theirs::OpCode::Data(theirs::Data::Binary)),
        (Opcode::Close, theirs::OpCode::Control(theirs::Control::Close)),
        (Opcode::Ping, theirs::OpCode::Control(theirs::Control::Ping)),
        (Opcode::Pong, theirs::OpCode::Control(theirs::Control::Pong)),
    ];

    /// Where the forms of a length meet.
    const LENGTHS: [u64; 11] =
        [0, 1, 125, 126, 127, 0xffff, 0x1_0000, 0x1_0001, u32::MAX as u64, 1 << 32, u64::MAX >> 1];

    const KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

    /// Every header that may be sent, over the edges of its fields.
    fn every() -> impl Iterator<Item = (Header, theirs::OpCode)> {
        OPCODES.into_iter().flat_map(|(opcode, theirs)| {
            let headers = LENGTHS.into_iter().flat_map(move |payload_bytes| {
                [(true, None), (true, KEY), (false, None), (false, KEY)].map(|(fin, mask)| Header {
                    fin,
                    opcode,
                    mask,
                    payload_bytes,
                })
            });
            let may_be =
                |header: &Header| !header.opcode.is_control() || (header.fin && header.payload_bytes < 126);
            headers.filter(may_be).map(move |header| (header, theirs))
        })
    }

    fn expect(header: &Header) -> Expect {
        if header.mask.is_some() { Expect::Masked } else { Expect::Unmasked }
    }

    fn encoded(header: &Header) -> Vec<u8> {
        let mut out = [0; HEADER_BYTES_MAX];
        let len = encode(header, &mut out);
        out[..len].to_vec()
    }

    #[test]
    fn every_header_reads_back_whatever_follows_and_wherever_it_is_cut() {
        for (header, _) in every() {
            let mut bytes = encoded(&header);
            let len = bytes.len();
            assert_eq!(len, header_bytes(header.payload_bytes, header.mask.is_some()), "{header:?}");
            bytes.extend_from_slice(&[0xff; 3]);
            for cut in 0..=bytes.len() {
                let want = (cut >= len).then_some((header, len));
                assert_eq!(
                    decode(&bytes[..cut], expect(&header), u64::MAX),
                    Ok(want),
                    "{header:?} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn tungstenite_reads_our_headers_and_we_read_its() {
        for (header, opcode) in every() {
            let ours = encoded(&header);
            let (theirs, payload_bytes) = FrameHeader::parse(&mut Cursor::new(&ours)).unwrap().unwrap();
            assert_eq!(
                (theirs.is_final, theirs.opcode, theirs.mask, payload_bytes),
                (header.fin, opcode, header.mask, header.payload_bytes)
            );
            let mut bytes = Vec::new();
            theirs.format(payload_bytes, &mut bytes).unwrap();
            assert_eq!(bytes, ours);
        }
    }

    #[test]
    fn what_is_wrong_is_refused_at_the_byte_that_shows_it() {
        use Expect::{Masked, Unmasked};
        use FrameError as E;
        const MAX: u64 = 100_000;
        let long = E::TooLong { payload_bytes_max: MAX };
        #[rustfmt::skip]
        let table: &[(&[u8], Expect, E, u16)] = &[
            (&[0x82, 0x05], Masked, E::Unmasked, 1002),
            (&[0x82, 0x80], Unmasked, E::Masked, 1002),
            (&[0xc2], Masked, E::Reserved, 1002),
            (&[0xa2], Masked, E::Reserved, 1002),
            (&[0x92], Masked, E::Reserved, 1002),
            (&[0x83], Masked, E::Opcode(3), 1002),
            (&[0x87], Masked, E::Opcode(7), 1002),
            (&[0x8b], Masked, E::Opcode(11), 1002),
            (&[0x8f], Masked, E::Opcode(15), 1002),
            (&[0x08], Masked, E::FragmentedControl, 1002),
            (&[0x09], Masked, E::FragmentedControl, 1002),
            (&[0x0a], Masked, E::FragmentedControl, 1002),
            (&[0x89, 0xfe], Masked, E::LongControl, 1002),
            (&[0x88, 0x7f], Unmasked, E::LongControl, 1002),
            (&[0x82, 126, 0, 125], Unmasked, E::Length, 1002),
            (&[0x82, 126, 0, 0], Unmasked, E::Length, 1002),
            (&[0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], Unmasked, E::Length, 1002),
            (&[0x82, 127, 0x80, 0, 0, 0, 0, 1, 0, 0], Unmasked, E::Length, 1002),
            (&[0x82, 127, 0, 0, 0, 0, 0, 1, 0x86, 0xa1], Unmasked, long, 1009),
            (&[0x82, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0], Masked, long, 1009),
        ];
        for &(bytes, expect, error, close_code) in table {
            assert_eq!(decode(bytes, expect, MAX), Err(error), "{bytes:x?}");
            assert_eq!(
                decode(&bytes[..bytes.len() - 1], expect, MAX),
                Ok(None),
                "{bytes:x?} but its last byte"
            );
            assert_eq!(error.close_code(), close_code);
        }
    }

    #[test]
    fn a_limit_below_a_form_of_length_refuses_before_its_digits() {
        let long = |payload_bytes_max| Err(FrameError::TooLong { payload_bytes_max });
        assert_eq!(decode(&[0x82, 101], Expect::Unmasked, 100), long(100));
        assert_eq!(decode(&[0x82, 126], Expect::Unmasked, 125), long(125));
        assert_eq!(decode(&[0x82, 127], Expect::Unmasked, 0xffff), long(0xffff));
        assert_eq!(decode(&[0x82, 127], Expect::Unmasked, 0x1_0000), Ok(None));
        let exactly = Header { fin: true, opcode: Opcode::Binary, mask: None, payload_bytes: 100 };
        assert_eq!(decode(&[0x82, 100], Expect::Unmasked, 100), Ok(Some((exactly, 2))));
        // A ping is answered even where no data is taken.
        assert!(decode(&[0x89, 125], Expect::Unmasked, 0).is_ok_and(|header| header.is_some()));
    }

    /// What holds for any bytes: the verdict comes once and stays, and a header that is taken is
    /// the one that we would send.
    fn check(bytes: &[u8], expect: Expect, payload_bytes_max: u64) {
        let whole = decode(bytes, expect, payload_bytes_max);
        let first = (0..=bytes.len())
            .map(|cut| decode(&bytes[..cut], expect, payload_bytes_max))
            .find(|verdict| *verdict != Ok(None));
        assert_eq!(first.unwrap_or(Ok(None)), whole, "{bytes:x?}");
        if let Ok(Some((header, len))) = whole {
            assert_eq!(encoded(&header), bytes[..len], "{header:?}");
        }
    }

    #[test]
    fn every_two_bytes_have_one_verdict() {
        for first in 0..=255 {
            for second in 0..=255 {
                let bytes = [first, second, 0, 200, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
                check(&bytes, Expect::Masked, 150);
                check(&bytes, Expect::Unmasked, u64::MAX);
            }
        }
    }

    proptest! {
        #[test]
        fn bent_bytes_never_panic_and_never_have_two_verdicts(
            which: prop::sample::Index, at in 0usize..14, byte: u8, payload_bytes_max: u64
        ) {
            let headers: Vec<_> = every().collect();
            let header = headers[which.index(headers.len())].0;
            let mut bytes = encoded(&header);
            bytes.resize(HEADER_BYTES_MAX, 0x55);
            bytes[at] = byte;
            check(&bytes, expect(&header), payload_bytes_max);
            check(&bytes, expect(&header), u64::MAX);
        }

        #[test]
        fn any_bytes_never_panic_and_never_have_two_verdicts(
            bytes in prop::collection::vec(any::<u8>(), 0..20), masked: bool, bits in 0u32..64
        ) {
            let expect = if masked { Expect::Masked } else { Expect::Unmasked };
            check(&bytes, expect, u64::MAX >> bits);
        }
    }
}
