//! Role: a pin: the public key that an authority of one's own must have, by its SHA-256.
//! Invariants: a pin is no secret; it names a key, not a certificate, so a certificate that is renewed with its key keeps it.
//! See: RFC 7469 section 2.4, whose form it has; `dataplane::tls::pinned`, which holds certificates against it.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

/// What stands in front of the digest.
const PREFIX: &str = "sha256:";

/// The SHA-256 of a public key, as a certificate has it (SubjectPublicKeyInfo, DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; 32]);

/// A text that is no pin. The user's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a pin: sha256: and 43 characters of base64, as `narrowlink-gateway init` prints it")]
pub struct PinError;

impl Pin {
    /// Of this key: a SubjectPublicKeyInfo in DER.
    pub fn of(public_key: &[u8]) -> Self {
        Self(Sha256::digest(public_key).into())
    }

    /// From its 32 bytes.
    pub const fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether it is this key's.
    pub fn is_of(&self, public_key: &[u8]) -> bool {
        Self::of(public_key) == *self
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let digest = text.trim().strip_prefix(PREFIX).ok_or(PinError)?;
        let digest = STANDARD_NO_PAD.decode(digest.trim_end_matches('=')).map_err(|_| PinError)?;
        digest.try_into().map(Self).map_err(|_| PinError)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", STANDARD_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Pin {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pin {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_reads_what_it_writes_with_padding_or_without() {
        let pin = Pin::of(b"a key");
        let text = pin.to_string();
        assert_eq!(text.len(), PREFIX.len() + 43);
        assert_eq!(text.parse(), Ok(pin));
        assert_eq!(format!(" {text}=\n").parse(), Ok(pin));
        assert!(pin.is_of(b"a key") && !pin.is_of(b"another"));
    }

    #[test]
    fn what_is_no_pin_is_refused() {
        let pin = Pin::of(b"a key").to_string();
        for text in
            ["", "sha256:", &pin[..pin.len() - 1], &pin.replace("sha256", "sha512"), &format!("{pin}A")]
        {
            assert_eq!(text.parse::<Pin>(), Err(PinError), "{text}");
        }
    }
}
