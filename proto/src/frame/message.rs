//! Role: how frames make messages: the order of fragments, and what a close frame says.
//! Invariants: a data frame belongs to exactly one message; a close code that may not be sent is neither
//! sent nor taken.
//! See: RFC 6455 sections 5.4, 5.5.1 and 7.4.

use super::{CONTROL_BYTES_MAX, FrameError, Header, Opcode};

/// The message that a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text message.
    Text,
    /// A binary message.
    Binary,
    /// None: the frame is a message of its own, and may stand between fragments.
    Control,
}

/// Keeps the order of fragments. How long a message grows over its fragments is the receiver's to
/// bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fragments {
    unfinished: Option<Kind>,
}

impl Fragments {
    /// Takes the next frame's header; tells which kind of message it belongs to.
    ///
    /// # Errors
    /// The peer's: a continuation of nothing, or a new message within an unfinished one.
    pub fn on_header(&mut self, header: &Header) -> Result<Kind, FrameError> {
        let kind = match (header.opcode, self.unfinished) {
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => return Ok(Kind::Control),
            (Opcode::Text, None) => Kind::Text,
            (Opcode::Binary, None) => Kind::Binary,
            (Opcode::Continuation, Some(kind)) => kind,
            (Opcode::Text | Opcode::Binary, Some(_)) | (Opcode::Continuation, None) => {
                return Err(FrameError::Fragment);
            }
        };
        self.unfinished = if header.fin { None } else { Some(kind) };
        Ok(kind)
    }

    /// Whether a message has begun and not ended.
    pub const fn within_message(&self) -> bool {
        self.unfinished.is_some()
    }
}

/// A close frame's payload. Of a reason that is too long for a control frame, what fits is taken.
///
/// # Panics
/// When the code is none that may be sent: our own fault.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    assert!(may_close_with(code), "close code {code} may not be sent");
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)];
    let mut out = Vec::with_capacity(2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
    out
}

/// Reads a close frame's unmasked payload: code and reason, or `None` when there is none.
///
/// # Errors
/// The peer's: half a code, a code that may not be sent, a reason that is not UTF-8.
pub fn parse_close(payload: &[u8]) -> Result<Option<(u16, &str)>, FrameError> {
    let Some((&code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(FrameError::Close) };
    };
    let code = u16::from_be_bytes(code);
    if payload.len() > CONTROL_BYTES_MAX || !may_close_with(code) {
        return Err(FrameError::Close);
    }
    let reason = str::from_utf8(reason).map_err(|_| FrameError::CloseReason)?;
    Ok(Some((code, reason)))
}

/// 1004 to 1006 and 1015 stand for things that are never sent; below 3000 the rest is unassigned.
const fn may_close_with(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tungstenite::protocol::frame::coding::CloseCode;

    use super::*;

    /// Feeds frames given as `T`, `B`, `C` (continuation), `P` (ping); small letters are unfinished.
    fn kinds(frames: &str) -> Result<String, FrameError> {
        let mut fragments = Fragments::default();
        let mut out = String::new();
        for frame in frames.chars() {
            let opcode = match frame.to_ascii_uppercase() {
                'T' => Opcode::Text,
                'B' => Opcode::Binary,
                'C' => Opcode::Continuation,
                _ => Opcode::Ping,
            };
            let header = Header { fin: frame.is_ascii_uppercase(), opcode, mask: None, payload_bytes: 0 };
            out.push(match fragments.on_header(&header)? {
                Kind::Text => 'T',
                Kind::Binary => 'B',
                Kind::Control => '.',
            });
        }
        out.push(if fragments.within_message() { '?' } else { '!' });
        Ok(out)
    }

    #[test]
    fn fragments_belong_to_the_message_that_began() {
        for (frames, want) in [
            ("", "!"),
            ("TBP", "TB.!"),
            ("tC", "TT!"),
            ("bcccC", "BBBBB!"),
            ("tPcPCB", "T.T.TB!"),
            ("tc", "TT?"),
            ("bCtC", "BBTT!"),
        ] {
            assert_eq!(kinds(frames).as_deref(), Ok(want), "{frames}");
        }
        for bad in ["C", "c", "TC", "tT", "tB", "bcB", "bt", "tCC", "PC"] {
            assert_eq!(kinds(bad), Err(FrameError::Fragment), "{bad}");
        }
    }

    #[test]
    fn a_close_frame_reads_back_and_says_what_fits() {
        assert_eq!(parse_close(&close_payload(1000, "")), Ok(Some((1000, ""))));
        assert_eq!(parse_close(&close_payload(4000, "bye \u{20ac}")), Ok(Some((4000, "bye \u{20ac}"))));
        assert_eq!(parse_close(b""), Ok(None));
        // 41 signs of three bytes each fill the 123 bytes; with one byte before them 40 fit.
        let euros = "\u{20ac}".repeat(60);
        assert_eq!(close_payload(1002, &euros).len(), 125);
        assert_eq!(
            parse_close(&close_payload(1002, &format!("x{euros}"))),
            Ok(Some((1002, &*format!("x{}", &euros[..120]))))
        );
    }

    #[test]
    fn close_frames_that_say_nothing_are_refused() {
        assert_eq!(parse_close(&[3]), Err(FrameError::Close));
        assert_eq!(parse_close(&[3, 0xe8, 0xff]), Err(FrameError::CloseReason));
        assert_eq!(FrameError::CloseReason.close_code(), 1007);
        let mut long = close_payload(1000, &"x".repeat(123));
        long.push(b'x');
        assert_eq!(parse_close(&long), Err(FrameError::Close));
    }

    #[test]
    fn the_codes_that_may_be_sent_are_those_of_tungstenite() {
        for code in 0..=u16::MAX {
            // 1014 (bad gateway) was registered after tungstenite's table was made.
            let theirs = CloseCode::from(code).is_allowed() || code == 1014;
            assert_eq!(parse_close(&code.to_be_bytes()).is_ok(), theirs, "{code}");
        }
    }

    proptest! {
        #[test]
        fn any_close_payload_is_read_without_panic(payload in prop::collection::vec(any::<u8>(), 0..140)) {
            if let Ok(Some((code, reason))) = parse_close(&payload) {
                prop_assert_eq!(close_payload(code, reason), payload);
            }
        }

        #[test]
        fn any_reason_fits(code in 3000u16..5000, reason: String) {
            let payload = close_payload(code, &reason);
            prop_assert!(payload.len() <= CONTROL_BYTES_MAX);
            let (back, text) = parse_close(&payload).unwrap().unwrap();
            prop_assert_eq!(back, code);
            prop_assert!(reason.starts_with(text));
        }
    }
}
