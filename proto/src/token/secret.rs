//! Role: the operator's secret as a config file names it; gateway and token generator read it alike.
//! Invariants: the bytes are wiped when dropped and never show in `Debug`. No I/O: who reads the file
//! is the caller.

use std::{fmt, path::PathBuf};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use serde::{Deserialize, Deserializer, de};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    hex,
    secrecy::{self, Form},
};

/// A secret shorter than this is weak: whoever has one token can try guesses against it, offline.
pub const SECRET_BYTES_MIN: usize = 32;

/// A secret at the most; HKDF takes any length, config files need not.
pub const SECRET_BYTES_MAX: usize = 4096;

/// The bytes that tokens are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// Where a config file says the secret is: a list of bytes, `hex:..`, `base64:..`, or `!File path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In the config itself.
    Inline(Secret),
    /// In a file, relative to the config's directory; see [`Secret::from_file`].
    File(PathBuf),
}

/// A text or file that holds no secret. The operator's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Nothing there.
    #[error("the secret is empty")]
    Empty,
    /// A file that holds a signed token.
    #[error(
        "the file holds a token, which its bearer knows too; a secret is known to nobody else (narrowlink-tokengen keygen)"
    )]
    Token,
    /// A file that holds several lines of text.
    #[error(
        "the file holds several lines of text, as certificates, keys and configurations do; a secret is one (narrowlink-tokengen keygen)"
    )]
    Lines,
    /// Over [`SECRET_BYTES_MAX`].
    #[error("the secret is longer than {SECRET_BYTES_MAX} bytes")]
    TooLong,
    /// A text without a known prefix.
    #[error(
        "expected a list of bytes, \"hex:..\", \"base64:..\" or !File path (narrowlink-tokengen keygen makes a secret)"
    )]
    Form,
    /// A text without a known prefix that looks like a path.
    #[error("this looks like the path of a file: `!File` stands before one, as in `secret: !File path`")]
    Path,
    /// Hexadecimal digits alone.
    #[error("these look like hexadecimal digits: put `hex:` in front of them, as in \"hex:..\"")]
    BareHex,
    /// Base64 alone.
    #[error("this looks like base64: put `base64:` in front of it, as in \"base64:..\"")]
    BareBase64,
    /// After `hex:`.
    #[error("not hexadecimal: expected pairs of 0-9 and a-f after \"hex:\"")]
    Hex,
    /// After `base64:`.
    #[error("not base64 after \"base64:\"")]
    Base64,
}

impl Secret {
    /// Takes the bytes as they are.
    ///
    /// # Errors
    /// The operator's: none at all, or more than anybody means.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, SecretError> {
        let secret = Self(bytes);
        match secret.0.len() {
            0 => Err(SecretError::Empty),
            1..=SECRET_BYTES_MAX => Ok(secret),
            _ => Err(SecretError::TooLong),
        }
    }

    /// The secret of these bytes as config files write it, for [`parse`](Self::parse).
    pub fn spell(bytes: &[u8]) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex::encode(bytes));
        Zeroizing::new(format!("hex:{}", *digits))
    }

    /// Reads `hex:..` or `base64:..` (either alphabet, padding or none).
    ///
    /// # Errors
    /// The operator's: any other text.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        if let Some(digits) = text.strip_prefix("hex:") {
            return Self::from_bytes(hex::decode(digits).ok_or(SecretError::Hex)?);
        }
        let base64 = text.strip_prefix("base64:").ok_or_else(|| meant(text))?;
        Self::from_bytes(unbase64(base64).ok_or(SecretError::Base64)?)
    }

    /// Reads a secret file: `hex:..` or `base64:..`, or else its bytes as they are, without the line
    /// end that editors and `openssl rand` put behind it.
    ///
    /// # Errors
    /// The operator's: an empty file, a prefix whose text does not follow it, or a file of something else that
    /// others may know: a token, a certificate, a configuration.
    pub fn from_file(contents: &[u8]) -> Result<Self, SecretError> {
        let line = contents.strip_suffix(b"\n").unwrap_or(contents);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match std::str::from_utf8(line) {
            Ok(text) if text.starts_with("hex:") || text.starts_with("base64:") => Self::parse(text),
            Ok(text) if secrecy::recognise(text) == Some(Form::Token) => Err(SecretError::Token),
            Ok(text) if text.contains('\n') => Err(SecretError::Lines),
            _ => Self::from_bytes(line.to_vec()),
        }
    }

    /// The bytes, for deriving keys.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is shorter than [`SECRET_BYTES_MIN`].
    pub fn is_weak(&self) -> bool {
        self.0.len() < SECRET_BYTES_MIN
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What a text without a prefix was probably meant to be; a secret is as long as [`SECRET_BYTES_MIN`] says, or nearly.
fn meant(text: &str) -> SecretError {
    const DIGITS_MIN: usize = 16;
    if text.len() >= DIGITS_MIN && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return SecretError::BareHex;
    }
    if unbase64(text).is_some_and(|bytes| bytes.len() >= SECRET_BYTES_MIN) {
        return SecretError::BareBase64;
    }
    if secrecy::looks_like_path(text) { SecretError::Path } else { SecretError::Form }
}

/// Either alphabet, padding or none.
fn unbase64(text: &str) -> Option<Vec<u8>> {
    let engines = [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD];
    engines.iter().find_map(|engine| engine.decode(text).ok())
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_newtype_struct(crate::yaml::SECRET, SourceVisitor)
    }
}

struct SourceVisitor;

impl<'de> de::Visitor<'de> for SourceVisitor {
    type Value = SecretSource;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of bytes, \"hex:..\", \"base64:..\" or !File path")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<SecretSource, D::Error> {
        d.deserialize_any(self)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretSource, E> {
        Secret::parse(text).map(SecretSource::Inline).map_err(E::custom)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<SecretSource, A::Error> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(64));
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
        }
        Secret::from_bytes(bytes.to_vec()).map(SecretSource::Inline).map_err(de::Error::custom)
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, data: A) -> Result<SecretSource, A::Error> {
        #[derive(Deserialize)]
        enum Tag {
            File,
        }
        let (Tag::File, path) = data.variant()?;
        de::VariantAccess::newtype_variant(path).map(SecretSource::File)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(yaml: &str) -> Result<SecretSource, String> {
        crate::yaml::read(yaml).map_err(|e| e.to_string())
    }

    fn inline(bytes: &[u8]) -> SecretSource {
        SecretSource::Inline(Secret::from_bytes(bytes.to_vec()).unwrap())
    }

    #[test]
    fn every_spelling_of_a_secret_gives_its_bytes() {
        let spellings = ["[1, 2, 254]", "hex:0102fe", "\"hex:0102FE\"", "base64:AQL+", "base64:AQL-"];
        for yaml in spellings {
            assert_eq!(source(yaml), Ok(inline(&[1, 2, 254])), "{yaml}");
        }
        for yaml in ["base64:AQ==", "base64:AQ"] {
            assert_eq!(source(yaml), Ok(inline(&[1])), "{yaml}");
        }
        assert_eq!(source("!File keys/secret"), Ok(SecretSource::File("keys/secret".into())));
    }

    #[test]
    fn a_secret_reads_back_as_it_was_spelt() {
        let bytes = [0x00, 0x0f, 0xf0, 0xff];
        assert_eq!(*Secret::spell(&bytes), "hex:000ff0ff");
        assert_eq!(Secret::parse(&Secret::spell(&bytes)).unwrap().as_bytes(), bytes);
    }

    #[test]
    fn a_file_that_others_know_is_no_secret() {
        let refused = |contents: &str| Secret::from_file(contents.as_bytes()).err();
        let token = format!("eyJ{0}.{0}.{0}", "a".repeat(20));
        assert_eq!(refused(&format!("{token}\n")), Some(SecretError::Token));
        assert_eq!(
            refused("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"),
            Some(SecretError::Lines)
        );
        assert_eq!(refused("secret: x\ntokens: []\n"), Some(SecretError::Lines));
        assert_eq!(refused("correct horse battery staple\n"), None);
    }

    #[test]
    fn what_is_no_secret_is_named() {
        for (yaml, says) in [
            ("[]", "empty"),
            ("\"hex:\"", "empty"),
            ("swordfish", "expected a list of bytes"),
            ("swordfish", "(narrowlink-tokengen keygen makes a secret)"),
            ("../secret", "looks like the path of a file: `!File` stands before one"),
            ("secret.bin", "looks like the path of a file"),
            ("00112233445566778899aabbccddeeff", "look like hexadecimal digits: put `hex:` in front of them"),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "looks like base64: put `base64:` in front"),
            ("00112233445566778899", "look like hexadecimal digits"),
            ("hex:012", "not hexadecimal"),
            ("hex:+1", "not hexadecimal"),
            ("base64:A", "not base64"),
            ("[1, 256]", "[1]: expected a whole number from 0 to 255"),
            ("[1, -1]", "[1]: expected a whole number from 0 to 255"),
            ("12", "list of bytes"),
            ("!Fil x", "unknown tag, did you mean `!File`?"),
        ] {
            let got = source(yaml).unwrap_err();
            assert!(got.contains(says), "{yaml}: {got}");
        }
        assert_eq!(Secret::from_bytes(vec![0; SECRET_BYTES_MAX + 1]), Err(SecretError::TooLong));
    }

    #[test]
    fn a_secret_file_may_end_in_a_line_end_or_say_how_it_is_written() {
        for contents in ["abc", "abc\n", "abc\r\n", "hex:616263\n", "base64:YWJj"] {
            let secret = Secret::from_file(contents.as_bytes()).unwrap();
            assert_eq!(secret.as_bytes(), b"abc", "{contents:?}");
        }
        assert_eq!(Secret::from_file(&[0xff, b'\n', b'\n']).unwrap().as_bytes(), [0xff, b'\n']);
        assert_eq!(Secret::from_file(b"\n"), Err(SecretError::Empty));
        assert_eq!(Secret::from_file(b"hex:xy"), Err(SecretError::Hex));
    }

    #[test]
    fn a_short_secret_is_weak_and_none_shows_itself() {
        assert!(Secret::from_bytes(vec![7; 31]).unwrap().is_weak());
        assert!(!Secret::from_bytes(vec![7; 32]).unwrap().is_weak());
        assert_eq!(format!("{:?}", inline(&[7])), "Inline(Secret(..))");
    }
}
