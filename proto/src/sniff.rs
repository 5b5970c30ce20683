//! Role: tells from the first bytes of a connection whether it is TLS, with which name, or HTTP.
//! Invariants: bytes are judged in their order, each record and message by what has come of it, so that
//! no split of the input, into segments or into records, changes the verdict.
//! See: RFC 8446 section 5.1.

#[cfg(test)]
mod fixture;
mod hello;

use std::borrow::Cow;

pub use self::hello::{Alpn, ClientHello};

/// The longest ClientHello taken, its four bytes of header aside.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;

/// The most bytes that can be needed for a verdict: the longest hello in records of one byte each.
pub const EARLY_BYTES_MAX: usize = (MESSAGE_HEADER_BYTES + HELLO_BYTES_MAX) * (RECORD_HEADER_BYTES + 1);

/// The longest method: UPDATEREDIRECTREF (RFC 4437), with room to spare.
const METHOD_BYTES_MAX: usize = 24;

const RECORD_HEADER_BYTES: usize = 5;
const RECORD_BYTES_MAX: usize = 16 * 1024;
const MESSAGE_HEADER_BYTES: usize = 4;

/// What a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sniffed {
    /// Nothing certain yet.
    NeedMore,
    /// TLS, with a whole ClientHello.
    Tls(ClientHello),
    /// A request of HTTP/1: a method and a space.
    Http,
}

/// Bytes that begin neither TLS nor HTTP as we take them; always the peer's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SniffError {
    /// Neither a TLS handshake nor a method.
    #[error("neither TLS nor HTTP")]
    Unknown,
    /// A ClientHello above [`HELLO_BYTES_MAX`].
    #[error("a ClientHello of more than {HELLO_BYTES_MAX} bytes")]
    TooLong,
    /// TLS, but not a ClientHello.
    #[error("a malformed ClientHello: {0}")]
    Malformed(&'static str),
}

/// Tells what a connection is from all the bytes that have come of it. Never needs more than
/// [`EARLY_BYTES_MAX`].
///
/// # Errors
/// The peer's.
pub fn sniff(early: &[u8]) -> Result<Sniffed, SniffError> {
    Sniffer::default().sniff(early)
}

/// Sniffs while bytes come in, and goes over none of them twice: a hello of 16 KiB in records and
/// segments of one byte would otherwise cost us 6 s of processor time.
#[derive(Debug, Clone, Default)]
pub struct Sniffer {
    /// Where the first record begins that was not whole; all before it is counted in `have`.
    at: usize,
    /// How many bytes of the message came in the records before.
    have: usize,
    /// The message's header, as far as it has come.
    header: [u8; MESSAGE_HEADER_BYTES],
}

impl Sniffer {
    /// Tells what a connection is; `early` is all that has come of it, at each call the bytes of the
    /// last one and more.
    ///
    /// # Errors
    /// The peer's.
    pub fn sniff(&mut self, early: &[u8]) -> Result<Sniffed, SniffError> {
        match early.first() {
            None => Ok(Sniffed::NeedMore),
            Some(&RECORD_HANDSHAKE) => Ok(match self.gather(early)? {
                Some(hello) => Sniffed::Tls(hello::parse(&hello)?),
                None => Sniffed::NeedMore,
            }),
            Some(_) => sniff_method(early),
        }
    }

    /// The body of the first handshake message, out of its records; `None` while it is not whole.
    /// Nothing is copied before there is something to parse.
    fn gather<'a>(&mut self, early: &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, SniffError> {
        while let Some(record) = Record::parse(early.get(self.at..).unwrap_or_default())? {
            for (slot, &byte) in self.header.iter_mut().skip(self.have).zip(record.piece) {
                *slot = byte;
            }
            let have = self.have + record.piece.len();
            if let Some(body) = body_bytes(&self.header, have)?
                && have >= MESSAGE_HEADER_BYTES + body
            {
                return Ok(Some(join(early, body)));
            }
            if !record.whole {
                break;
            }
            self.at += RECORD_HEADER_BYTES + record.piece.len();
            self.have = have;
        }
        Ok(None)
    }
}

/// A verdict only at the space: a name that merely begins like a method is not HTTP.
fn sniff_method(early: &[u8]) -> Result<Sniffed, SniffError> {
    for (at, &byte) in early.iter().take(METHOD_BYTES_MAX + 1).enumerate() {
        match byte {
            b'A'..=b'Z' if at < METHOD_BYTES_MAX => {}
            b'-' if (1..METHOD_BYTES_MAX).contains(&at) => {}
            b' ' if at > 0 => return Ok(Sniffed::Http),
            _ => return Err(SniffError::Unknown),
        }
    }
    Ok(Sniffed::NeedMore)
}

const RECORD_HANDSHAKE: u8 = 22;
const MESSAGE_CLIENT_HELLO: u8 = 1;

/// The length that a message's header announces, as far as the header has come.
fn body_bytes(header: &[u8; MESSAGE_HEADER_BYTES], have: usize) -> Result<Option<usize>, SniffError> {
    if have > 0 && header[0] != MESSAGE_CLIENT_HELLO {
        return Err(SniffError::Malformed("another handshake message comes first"));
    }
    if have < MESSAGE_HEADER_BYTES {
        return Ok(None);
    }
    let body = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
    if body > HELLO_BYTES_MAX { Err(SniffError::TooLong) } else { Ok(Some(body)) }
}

/// The message's body, which is known to be there. The usual one lies in one record.
fn join(early: &[u8], body: usize) -> Cow<'_, [u8]> {
    let message = MESSAGE_HEADER_BYTES + body;
    let (mut joined, mut rest) = (Vec::new(), early);
    while let Ok(Some(record)) = Record::parse(rest) {
        if joined.is_empty() && record.piece.len() >= message {
            return Cow::Borrowed(&record.piece[MESSAGE_HEADER_BYTES..message]);
        }
        joined.extend_from_slice(record.piece);
        if joined.len() >= message {
            break;
        }
        rest = &rest[RECORD_HEADER_BYTES + record.piece.len()..];
    }
    joined.truncate(message);
    Cow::Owned(joined.split_off(MESSAGE_HEADER_BYTES.min(joined.len())))
}

/// The record at the start of some bytes.
struct Record<'a> {
    /// What has come of its payload.
    piece: &'a [u8],
    /// Whether that is all of it.
    whole: bool,
}

impl<'a> Record<'a> {
    /// `None` while the record's header is not whole.
    fn parse(bytes: &'a [u8]) -> Result<Option<Self>, SniffError> {
        let Some(payload_bytes) = record_bytes(bytes)? else { return Ok(None) };
        let come = &bytes[RECORD_HEADER_BYTES..];
        let whole = come.len() >= payload_bytes;
        Ok(Some(Self { piece: if whole { &come[..payload_bytes] } else { come }, whole }))
    }
}

/// The length in a record's header, as far as the header has come.
fn record_bytes(record: &[u8]) -> Result<Option<usize>, SniffError> {
    if record.first().is_some_and(|&kind| kind != RECORD_HANDSHAKE) {
        return Err(SniffError::Malformed("another record within it"));
    }
    if record.get(1).is_some_and(|&major| major != 3) || record.get(2).is_some_and(|&minor| minor > 4) {
        return Err(SniffError::Malformed("no version of TLS"));
    }
    let Some(header) = record.first_chunk::<RECORD_HEADER_BYTES>() else { return Ok(None) };
    match usize::from(u16::from_be_bytes([header[3], header[4]])) {
        0 => Err(SniffError::Malformed("an empty record")),
        bytes if bytes > RECORD_BYTES_MAX => Err(SniffError::Malformed("an over-long record")),
        bytes => Ok(Some(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        fixture::{alpn, check, expected, hello, hello_of, in_records, key_share, openssl, server_name},
        *,
    };

    #[test]
    fn records_of_any_size_and_segments_of_any_size_give_the_same_verdict() {
        let post_quantum =
            hello(&[key_share(), alpn(&["http/1.1"]), server_name(b"Gw.Example."), key_share()]);
        assert!(post_quantum.len() > 1800);
        let want = expected(Some("gw.example"), &["http/1.1"]);
        for bytes_max in
            (1..40).chain([100, 255, 256, 257, 1000, 1300, post_quantum.len() - 1, post_quantum.len()])
        {
            let early = in_records(&post_quantum, bytes_max);
            assert_eq!(sniff(&early), want, "records of {bytes_max}");
            assert_eq!(sniff(&early[..early.len() - 1]), Ok(Sniffed::NeedMore), "records of {bytes_max}");
            if bytes_max % 8 == 1 {
                assert_eq!(check(&early), want, "records of {bytes_max}");
            }
        }
    }

    #[test]
    fn what_follows_the_hello_is_not_looked_at() {
        let mut early = in_records(&hello(&[server_name(b"gw.example")]), 100);
        early.extend_from_slice(b"\x14\x03\x03\x00\x01\x01anything");
        assert_eq!(check(&early), expected(Some("gw.example"), &[]));
        let mut message = hello(&[server_name(b"gw.example")]);
        message.extend_from_slice(b"another message in the same record");
        assert_eq!(check(&in_records(&message, 16384)), expected(Some("gw.example"), &[]));
    }

    #[test]
    fn a_hello_may_be_so_long_and_no_longer() {
        let want = expected(Some("gw.example"), &[]);
        let longest = hello_of(HELLO_BYTES_MAX);
        let early = in_records(&longest, 1);
        assert_eq!(early.len(), EARLY_BYTES_MAX);
        assert_eq!(sniff(&early), want);
        let mut sniffer = Sniffer::default();
        for cut in 0..early.len() {
            assert_eq!(sniffer.sniff(&early[..cut]), Ok(Sniffed::NeedMore), "{cut}");
        }
        assert_eq!(sniffer.sniff(&early), want);
        assert_eq!(sniff(&early[..early.len() - 1]), Ok(Sniffed::NeedMore));
        assert_eq!(sniff(&in_records(&longest, RECORD_BYTES_MAX)), want);
        // One byte more is refused as soon as the message's header says so.
        let early = in_records(&hello_of(HELLO_BYTES_MAX + 1), 16384);
        assert_eq!(sniff(&early[..8]), Ok(Sniffed::NeedMore));
        assert_eq!(check(&early[..9]), Err(SniffError::TooLong));
    }

    #[test]
    fn malformed_records_are_refused_at_the_byte_that_shows_it() {
        for bad in [
            &[22, 2][..],
            &[22, 3, 5],
            &[22, 3, 1, 0, 0],
            &[22, 3, 1, 0x40, 1],
            &[22, 3, 1, 0, 1, 2],
            &[22, 3, 1, 0, 1, 1, 23],
            &[22, 3, 1, 0, 1, 1, 22, 3, 1, 0, 0],
        ] {
            assert!(matches!(check(bad), Err(SniffError::Malformed(_))), "{bad:x?}");
            assert_eq!(sniff(&bad[..bad.len() - 1]), Ok(Sniffed::NeedMore), "{bad:x?} but its last byte");
        }
    }

    #[test]
    fn http_is_a_method_and_a_space() {
        for request in ["GET / HTTP/1.1", "OPTIONS *", "M-SEARCH *", "PRI * HTTP/2.0", "UPDATEREDIRECTREF /"]
        {
            assert_eq!(check(request.as_bytes()), Ok(Sniffed::Http), "{request}");
        }
        for prefix in ["", "G", "GET", "OPTIONS", "VERSION-", &"A".repeat(METHOD_BYTES_MAX)] {
            assert_eq!(check(prefix.as_bytes()), Ok(Sniffed::NeedMore), "{prefix}");
        }
        let long = "A".repeat(METHOD_BYTES_MAX + 1);
        for other in [
            " GET",
            "get ",
            "GeT",
            "-A",
            "GET\t",
            "GET/",
            "G\0",
            "\0",
            "\r\nGET",
            "SSH-2.0-OpenSSH",
            "\x05\x01\0",
            &long,
        ] {
            assert_eq!(check(other.as_bytes()), Err(SniffError::Unknown), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn bent_hellos_never_panic_and_never_have_two_verdicts(
            bytes_max in 1usize..600,
            bends in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut early = in_records(&openssl()[5..], bytes_max);
            for (at, byte) in bends {
                let at = at.index(early.len());
                early[at] = byte;
            }
            let _ = check(&early);
        }

        #[test]
        fn any_records_give_the_verdict_of_one_record(
            bends in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..9),
        ) {
            let mut message = openssl().split_off(5);
            for (at, byte) in bends {
                // The message's header is left alone: a longer message is one that is not whole.
                let at = 4 + at.index(message.len() - 4);
                message[at] = byte;
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(message.len())).collect();
            cuts.extend([0, message.len()]);
            cuts.sort_unstable();
            cuts.dedup();
            let early: Vec<u8> =
                cuts.windows(2).flat_map(|cut| in_records(&message[cut[0]..cut[1]], RECORD_BYTES_MAX)).collect();
            prop_assert_eq!(check(&early), sniff(&in_records(&message, RECORD_BYTES_MAX)));
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), tls: bool) {
            let mut bytes = bytes;
            if tls {
                bytes.splice(0..0, [22, 3, 1, 0, 190, 1, 0, 0, 180, 3, 3]);
            }
            let _ = check(&bytes);
        }
    }
}
