//! Role: the key of one direction, as a handshake gives it.
//! See: RFC 8446 §7.3; RFC 5246 §6.3.

use aws_lc_rs::aead::NONCE_LEN;
use narrowlink_proto::id::ChannelBinding;
use rustls::ConnectionTrafficSecrets;

use super::fault::TlsError;

/// The version that was agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// The ciphers that both versions have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES-128-GCM.
    Aes128Gcm,
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

/// One direction's key.
pub struct Secret<'a> {
    cipher: Cipher,
    key: &'a [u8],
    iv: [u8; NONCE_LEN],
}

impl<'a> Secret<'a> {
    /// From its parts.
    pub fn new(cipher: Cipher, key: &'a [u8], iv: [u8; NONCE_LEN]) -> Self {
        Self { cipher, key, iv }
    }

    /// Whose key it is.
    pub(super) fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// The key itself.
    pub(super) fn key(&self) -> &'a [u8] {
        self.key
    }

    /// The initial vector.
    pub(super) fn iv(&self) -> [u8; NONCE_LEN] {
        self.iv
    }

    /// What shows to who has the same secret that it is the same.
    pub(super) fn binding(&self) -> ChannelBinding {
        ChannelBinding::new(self.key, &self.iv)
    }
}

impl<'a> TryFrom<&'a ConnectionTrafficSecrets> for Secret<'a> {
    type Error = TlsError;

    fn try_from(secrets: &'a ConnectionTrafficSecrets) -> Result<Self, TlsError> {
        let (cipher, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Cipher::ChaCha20Poly1305, key, iv),
            _ => return Err(rustls::Error::General("a cipher that nobody knows here".into()).into()),
        };
        let iv = iv.as_ref().try_into().map_err(|_| rustls::Error::General("an odd nonce".into()))?;
        Ok(Self { cipher, key: key.as_ref(), iv })
    }
}
