//! Role: what a peer can do wrong in TLS after the handshake, and the alert that tells it.
//! Invariants: each fault has the alert that RFC 8446 §6.2 gives it, or none where nobody listens.

use std::io;

use rustls::AlertDescription;

/// Why a TLS connection can't go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TlsError {
    /// A record's tag is wrong: it was bent on its way, or these are not its keys.
    #[error("a TLS record does not hold what it was sealed with")]
    BadRecord,
    /// A record is longer than any may be.
    #[error("a TLS record is longer than any may be")]
    TooLong,
    /// Something came that has no place after a handshake.
    #[error("TLS: {0} has no place here")]
    Unexpected(&'static str),
    /// Something came that can't be read.
    #[error("TLS: {0} can't be read")]
    Malformed(&'static str),
    /// Something came more often than anybody needs.
    #[error("TLS: the peer floods the connection with {0}")]
    Flood(&'static str),
    /// The peer gave up, and said why.
    #[error("the peer ended TLS with the alert {0:?}")]
    Alert(AlertDescription),
    /// A key has sealed as many records as it may, and there is no way to a new one.
    #[error("the keys of this TLS connection are used up")]
    UsedUp,
    /// The peer took a new key, and the kernel that has the connection can't.
    #[error("the peer changes the keys of a TLS connection that the kernel has, and this kernel can't")]
    FixedKey,
    /// The kernel took one direction and refused the other.
    #[error("the kernel took half of a TLS connection")]
    HalfTaken,
    /// The library that made the handshake refuses.
    #[error("TLS: {0}")]
    Library(#[from] rustls::Error),
}

impl TlsError {
    /// What the peer is told.
    pub fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::BadRecord => Some(AlertDescription::BadRecordMac),
            Self::TooLong => Some(AlertDescription::RecordOverflow),
            Self::Unexpected(_) | Self::Flood(_) => Some(AlertDescription::UnexpectedMessage),
            Self::Malformed(_) | Self::Library(rustls::Error::InvalidMessage(_)) => {
                Some(AlertDescription::DecodeError)
            }
            Self::Library(rustls::Error::PeerMisbehaved(_)) => Some(AlertDescription::IllegalParameter),
            Self::Library(_) | Self::FixedKey | Self::HalfTaken => Some(AlertDescription::InternalError),
            Self::Alert(_) => None,
            Self::UsedUp => Some(AlertDescription::CloseNotify),
        }
    }
}

impl From<TlsError> for io::Error {
    fn from(e: TlsError) -> Self {
        Self::new(io::ErrorKind::InvalidData, e)
    }
}
