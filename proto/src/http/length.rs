//! Role: the one length of a body.
//! Invariants: two opinions about where a body ends are one too many: no such request is passed on, and no such answer.
//! See: RFC 9112 sections 6.1 to 6.3; RFC 9110 section 8.6.

use super::{HeadError, head::Headers};

/// How long the body behind a head is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// There is none, and the head names no length.
    None,
    /// So many bytes, as the head says.
    Length(u64),
    /// Chunks, which say themselves where they end: [`super::chunked`].
    Chunked,
    /// All until the connection ends; of answers alone.
    UntilClose,
}

/// What a head says of its body's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// Nothing.
    Nothing,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// The body's length of a request; a request that names none has none.
pub(crate) fn of_request(headers: &Headers<'_, '_>, version: u8) -> Result<Body, HeadError> {
    let length = match headers.single("Content-Length")? {
        Some(text) => Some(parse_length(text)?),
        None => None,
    };
    Ok(match said(headers, length, version)? {
        Said::Nothing => Body::None,
        Said::Length(bytes) => Body::Length(bytes),
        Said::Chunked => Body::Chunked,
    })
}

/// What an answer's head says of its body; what the request and the status make of it is not looked at. Lengths that
/// stand several times are one when they are equal.
pub(crate) fn of_response(headers: &Headers<'_, '_>, version: u8) -> Result<Said, HeadError> {
    let mut length = None;
    for value in headers.all("Content-Length") {
        let value = str::from_utf8(value).map_err(|_| BAD_LENGTH)?;
        for text in value.split(',') {
            let bytes = parse_length(text.trim_matches([' ', '\t']))?;
            if length.is_some_and(|before| before != bytes) {
                return Err(HeadError::Malformed("two different Content-Lengths"));
            }
            length = Some(bytes);
        }
    }
    said(headers, length, version)
}

const BAD_LENGTH: HeadError = HeadError::Malformed("a malformed Content-Length");

fn said(headers: &Headers<'_, '_>, length: Option<u64>, version: u8) -> Result<Said, HeadError> {
    let mut codings = headers.all("Transfer-Encoding");
    let Some(coding) = codings.next() else {
        return Ok(length.map_or(Said::Nothing, Said::Length));
    };
    if length.is_some() {
        return Err(HeadError::Malformed("a body with two lengths"));
    }
    if version == 0 {
        return Err(HeadError::Malformed("a Transfer-Encoding in HTTP/1.0"));
    }
    if codings.next().is_some() {
        return Err(HeadError::Malformed("a Transfer-Encoding stands twice"));
    }
    if coding.eq_ignore_ascii_case(b"chunked") {
        return Ok(Said::Chunked);
    }
    let named = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'-';
    if !coding.is_empty() && coding.iter().all(named) {
        return Err(HeadError::Unsupported("a transfer coding other than chunked"));
    }
    Err(HeadError::Malformed("a malformed Transfer-Encoding"))
}

/// Digits alone: no sign, no list, no blank.
pub(crate) fn parse_length(text: &str) -> Result<u64, HeadError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BAD_LENGTH);
    }
    text.parse().map_err(|_| HeadError::BodyTooLong)
}

#[cfg(test)]
mod tests {
    use super::{super::head::Field, *};

    fn fields<'a>(lines: &'a [(&'a str, &'a str)]) -> Vec<Field<'a>> {
        lines.iter().map(|(name, value)| Field { name, value: value.as_bytes() }).collect()
    }

    #[test]
    fn a_request_has_one_length_or_is_refused() {
        const CL: &str = "Content-Length";
        const TE: &str = "transfer-encoding";
        type Lines = &'static [(&'static str, &'static str)];
        let rows: &[(Lines, Result<Body, u16>)] = &[
            (&[], Ok(Body::None)),
            (&[(CL, "0")], Ok(Body::Length(0))),
            (&[(CL, "007")], Ok(Body::Length(7))),
            (&[(CL, "18446744073709551615")], Ok(Body::Length(u64::MAX))),
            (&[(CL, "18446744073709551616")], Err(413)),
            (&[(TE, "chunked")], Ok(Body::Chunked)),
            (&[(TE, "Chunked")], Ok(Body::Chunked)),
            (&[(TE, "gzip")], Err(501)),
            (&[(TE, "identity")], Err(501)),
            (&[(TE, "gzip, chunked")], Err(400)),
            (&[(TE, "chunked, chunked")], Err(400)),
            (&[(TE, "xchunked;q=1")], Err(400)),
            (&[(TE, "\"chunked\"")], Err(400)),
            (&[(TE, "")], Err(400)),
            (&[(TE, "chunked"), (TE, "chunked")], Err(400)),
            (&[(TE, "chunked"), (TE, "identity")], Err(400)),
            (&[(CL, "5"), (TE, "chunked")], Err(400)),
            (&[(TE, "gzip"), (CL, "5")], Err(400)),
            (&[(CL, "5"), (CL, "5")], Err(400)),
            (&[(CL, "5, 5")], Err(400)),
            (&[(CL, "+5")], Err(400)),
            (&[(CL, "-0")], Err(400)),
            (&[(CL, "0x5")], Err(400)),
            (&[(CL, "5 5")], Err(400)),
            (&[(CL, "")], Err(400)),
        ];
        for (lines, verdict) in rows {
            let fields = fields(lines);
            let got = of_request(&Headers(&fields), 1).map_err(HeadError::http_status);
            assert_eq!(got, *verdict, "{lines:?}");
        }
        assert!(of_request(&Headers(&fields(&[(TE, "chunked")])), 0).is_err());
    }

    #[test]
    fn an_answers_lengths_may_stand_twice_when_they_are_equal() {
        for (values, said) in [
            (&["5", "5"][..], Some(Said::Length(5))),
            (&["5, 5"], Some(Said::Length(5))),
            (&["5", "6"], None),
            (&["5,"], None),
            (&["5, 05"], Some(Said::Length(5))),
            (&[""], None),
        ] {
            let fields: Vec<_> = values
                .iter()
                .map(|value| Field { name: "Content-Length", value: value.as_bytes() })
                .collect();
            assert_eq!(of_response(&Headers(&fields), 1).ok(), said, "{values:?}");
        }
    }
}
