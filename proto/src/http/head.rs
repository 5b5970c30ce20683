//! Role: where a head ends, and what its headers say, for requests and answers alike.
//! Invariants: lines end in CR LF and in nothing else; a prefix of the input never has another verdict
//! than the whole.
//! See: RFC 9112 sections 2.2 and 5.2.

use super::{HEAD_BYTES_MAX, HeadError};

/// A header: its name as it came, and its value without the blanks around it.
pub use httparse::Header as Field;

/// Where the head that begins at `start` ends; `None` while it is not whole. Heads before it count
/// towards [`HEAD_BYTES_MAX`].
pub(crate) fn end(buf: &[u8], start: usize) -> Result<Option<usize>, HeadError> {
    let window = &buf[..buf.len().min(HEAD_BYTES_MAX)];
    let mut at = start;
    for line in window[start..].split_inclusive(|&byte| byte == b'\n') {
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err(HeadError::Malformed("a folded line"));
        }
        let (text, ends) = match line.strip_suffix(b"\n") {
            Some(text) => (text, true),
            None => (line, false),
        };
        let (text, after_cr) = match text.strip_suffix(b"\r") {
            Some(text) => (text, true),
            None => (text, false),
        };
        if has_control(text) {
            return Err(HeadError::Malformed("a control character"));
        }
        if ends && !after_cr {
            return Err(HeadError::Malformed("a line that ends without CR"));
        }
        if ends && text.is_empty() {
            let first = at == start;
            return if first { Err(HeadError::Malformed("an empty first line")) } else { Ok(Some(at + 2)) };
        }
        at += line.len();
    }
    if window.len() == HEAD_BYTES_MAX { Err(HeadError::TooLong) } else { Ok(None) }
}

/// Without a way out of the loop, so that the compiler takes many bytes at a time: a head that comes in
/// segments of one byte is gone over 16,000 times.
fn has_control(text: &[u8]) -> bool {
    text.iter().fold(false, |found, &byte| found | ((byte < b' ' && byte != b'\t') | (byte == 0x7f)))
}

/// The headers of one head.
pub(crate) struct Headers<'h, 'a>(pub(crate) &'h [Field<'a>]);

impl<'a> Headers<'_, 'a> {
    /// Every value of that name.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// The one value of a header that may stand once.
    pub(crate) fn single(&self, name: &str) -> Result<Option<&'a str>, HeadError> {
        let mut values = self.all(name);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(HeadError::Malformed("a header stands twice"));
        }
        match str::from_utf8(value) {
            Ok(text) if text.is_ascii() => Ok(Some(text.trim_matches([' ', '\t']))),
            _ => Err(HeadError::Malformed("a header is not ASCII")),
        }
    }

    /// The elements of a header that is a list, over all its lines.
    pub(crate) fn list(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.all(name)
            .filter_map(|value| str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .map(|element| element.trim_matches([' ', '\t']))
    }

    /// Whether a list holds `word`, in any case.
    pub(crate) fn lists(&self, name: &str, word: &str) -> bool {
        self.list(name).any(|element| element.eq_ignore_ascii_case(word))
    }

    /// The first value of that name, whatever it holds.
    pub(crate) fn first(&self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// Whether there is such a header.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }
}

/// Appends `name: value`. Whatever can't stand in a header becomes `?`, which the receiver refuses
/// for what it is; it can never begin a line of its own.
pub(crate) fn push(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend(value.bytes().map(|byte| if matches!(byte, b' '..=0x7e) { byte } else { b'?' }));
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_at_its_first_empty_line() {
        let head = b"GET / HTTP/1.1\r\nA: b\r\n\r\n";
        assert_eq!(end(head, 0), Ok(Some(head.len())));
        for cut in 0..head.len() {
            assert_eq!(end(&head[..cut], 0), Ok(None), "{cut}");
        }
        assert_eq!(end(b"GET / HTTP/1.1\r\n\r\nGET", 0), Ok(Some(18)));
    }

    #[test]
    fn a_line_that_ends_otherwise_is_refused_at_once() {
        for bad in [
            "GET / HTTP/1.1\n",
            "GET /\rx",
            "A\r\n\n",
            "\r\n",
            "\n",
            "A\r\n ",
            "A\r\n\t",
            " ",
            "A\0",
            "A\x7f",
            "A\r\r",
        ] {
            let first = (0..bad.len()).find(|&cut| end(&bad.as_bytes()[..cut], 0) != Ok(None));
            assert!(matches!(end(bad.as_bytes(), 0), Err(HeadError::Malformed(_))), "{bad:?}");
            assert_eq!(first, None, "{bad:?} is refused at its last byte");
        }
    }

    #[test]
    fn a_head_may_be_so_long_and_no_longer() {
        let mut head = b"GET / HTTP/1.1\r\nA: ".to_vec();
        head.resize(HEAD_BYTES_MAX - 4, b'a');
        head.extend_from_slice(b"\r\n\r\n");
        assert_eq!(end(&head, 0), Ok(Some(HEAD_BYTES_MAX)));
        head.insert(20, b'a');
        assert_eq!(end(&head, 0), Err(HeadError::TooLong));
        assert_eq!(end(&head[..HEAD_BYTES_MAX], 0), Err(HeadError::TooLong));
        assert_eq!(end(&head[..HEAD_BYTES_MAX - 1], 0), Ok(None));
    }

    #[test]
    fn nothing_foreign_ends_a_line() {
        let mut out = Vec::new();
        push(&mut out, "A", "b\r\nC: d\n\0\u{e9}");
        assert_eq!(out, b"A: b??C: d????\r\n");
    }
}
