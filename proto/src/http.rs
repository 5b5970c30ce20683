//! Role: HTTP/1.1 as a strict edge reads it from visitors and origins, and writes it anew towards the other side.
//! Invariants: what one side reads is never what the other wrote: each head is parsed, then written from what was parsed ·
//! a body has one length, or there is no request · nothing foreign begins a line · a prefix of the input never has
//! another verdict than the whole.
//! See: RFC 9110 (semantics), RFC 9112 (HTTP/1.1), RFC 9113 (HTTP/2), RFC 7239 (Forwarded).

pub mod chunked;
pub mod corpus;
pub mod forward;
pub mod forwarded;
pub(crate) mod head;
pub(crate) mod host;
pub(crate) mod length;
pub mod method;
pub(crate) mod names;
pub mod page;
pub mod reply;
pub mod request;
pub mod response;
pub mod rules;
pub mod status;

pub use self::{head::Field, length::Body, names::CLIENT_SUBJECT};

/// A head's bytes at the most, its closing empty line included.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A head's headers at the most.
pub const HEADERS_MAX: usize = 64;

/// The version that a head names, or that its connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// HTTP/1.0: no chunks, no interim answers, no upgrade; closes unless `keep-alive` was asked for.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2: never in a head of this module, only behind [`request::Request::from_parts`].
    Http2,
}

/// A head that can't be taken; always the fault of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Above [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`].
    #[error("a head of more than {HEAD_BYTES_MAX} bytes or {HEADERS_MAX} headers")]
    TooLong,
    /// Not HTTP as it is taken here.
    #[error("{0}")]
    Malformed(&'static str),
    /// HTTP, but a coding or a method that is not served here.
    #[error("{0}")]
    Unsupported(&'static str),
    /// Another version than 1.0 and 1.1.
    #[error("another version than HTTP/1.0 and HTTP/1.1")]
    Version,
    /// An expectation other than `100-continue` (RFC 9110 section 10.1.1).
    #[error("an expectation other than 100-continue")]
    Expectation,
    /// A length that does not fit into 64 bits.
    #[error("a body of more bytes than can be counted")]
    BodyTooLong,
}

impl HeadError {
    /// The status that answers a visitor's request. An origin's head with any error becomes 502.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::TooLong => 431,
            Self::Malformed(_) => 400,
            Self::Unsupported(_) => 501,
            Self::Version => 505,
            Self::Expectation => 417,
            Self::BodyTooLong => 413,
        }
    }
}
