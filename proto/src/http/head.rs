//! Role: where a head ends, and what its headers say, for requests and answers alike.
//! Invariants: lines end in CR LF and in nothing else; a prefix of the input never has another verdict
//! than the whole.
//! See: RFC 9112 sections 2.2 and 5.2.

use super::{HEAD_BYTES_MAX, HEADERS_MAX, HeadError, Version};

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
pub(crate) fn has_control(text: &[u8]) -> bool {
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

/// Whether a byte may stand in a method, a header's name or another token.
pub(crate) const fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Whether it is one token.
pub(crate) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|&byte| TCHAR[byte as usize])
}

const TCHAR: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_tchar(byte as u8);
        byte += 1;
    }
    table
};

/// The first line and the headers of a head that [`end`] has found.
pub(crate) fn parse(head: &[u8]) -> Result<(&[u8], Vec<Field<'_>>), HeadError> {
    let lines = head.strip_suffix(b"\r\n\r\n").unwrap_or(head);
    let mut lines = lines.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().unwrap_or_default();
    // Most heads of browsers have no more.
    let mut fields = Vec::with_capacity(16);
    for line in lines {
        if fields.len() == HEADERS_MAX {
            return Err(HeadError::TooLong);
        }
        fields.push(parse_field(line)?);
    }
    Ok((first, fields))
}

/// One line without its end: `name: value`, no blank before the colon.
pub(crate) fn parse_field(line: &[u8]) -> Result<Field<'_>, HeadError> {
    let colon = line.iter().position(|&byte| byte == b':');
    let (name, value) = colon.map_or((line, &[][..]), |at| (&line[..at], &line[at + 1..]));
    if colon.is_none() || !is_token(name) {
        return Err(HeadError::Malformed("a malformed header name"));
    }
    let name = str::from_utf8(name).map_err(|_| HeadError::Malformed("a malformed header name"))?;
    Ok(Field { name, value: trim(value) })
}

/// Without the blanks around it: spaces and tabs, no others.
pub(crate) fn trim(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |at| at + 1);
    &value[start..end]
}

/// `HTTP/1.1` or `HTTP/1.0`.
pub(crate) fn parse_version(text: &[u8]) -> Result<Version, HeadError> {
    match text {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Err(HeadError::Version),
        _ => Err(HeadError::Malformed("not HTTP/1")),
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

/// Appends a header that came from elsewhere; bytes above 0x7f stay. A name that is no token leaves no line at all.
pub(crate) fn push_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    if is_token(name.as_bytes()) {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        push_text(out, value);
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends a part of a line; control characters become `?`.
pub(crate) fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    if has_control(text) {
        let shown = |&byte: &u8| if byte < b' ' && byte != b'\t' || byte == 0x7f { b'?' } else { byte };
        out.extend(text.iter().map(shown));
    } else {
        out.extend_from_slice(text);
    }
}

/// Appends a number in decimal.
pub(crate) fn push_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let (mut at, mut rest) = (digits.len(), number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
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

    #[test]
    fn a_line_is_one_name_and_one_value() {
        for (line, field) in [
            ("A: b", Some(("A", "b"))),
            ("A:b", Some(("A", "b"))),
            ("a-!#_:\t b c \t", Some(("a-!#_", "b c"))),
            ("A:", Some(("A", ""))),
            ("A: :b", Some(("A", ":b"))),
            ("A : b", None),
            (": b", None),
            ("A", None),
            ("", None),
            ("A(: b", None),
            ("\u{e9}: b", None),
        ] {
            let got = parse_field(line.as_bytes()).ok();
            assert_eq!(
                got.map(|field| (field.name, str::from_utf8(field.value).unwrap())),
                field,
                "{line:?}"
            );
        }
    }

    #[test]
    fn numbers_are_written_as_std_writes_them() {
        for number in [0, 9, 10, 12_345, u64::MAX] {
            let mut out = Vec::new();
            push_number(&mut out, number);
            assert_eq!(out, number.to_string().into_bytes());
        }
    }

    #[test]
    fn a_foreign_header_stays_on_its_line() {
        let mut out = Vec::new();
        push_field(&mut out, "A", b"\xc3\xa9\tb\r\nC: d\0");
        push_field(&mut out, "B\r\nC", b"x");
        push_field(&mut out, "", b"x");
        assert_eq!(out, b"A: \xc3\xa9\tb??C: d?\r\n");
    }
}
