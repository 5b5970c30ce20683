//! Role: bytes as hexadecimal digits, two each.

use std::fmt::Write as _;

/// In lower case.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// In either case; `None` for any other text.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?));
    if rest.is_empty() { bytes.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_nothing_else_does() {
        assert_eq!(encode(&[0, 15, 240, 255]), "000ff0ff");
        assert_eq!(decode("000FF0ff"), Some(vec![0, 15, 240, 255]));
        assert_eq!(decode(""), Some(vec![]));
        for text in ["0", "+1", "0x", "äa", "012"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
