//! Role: what a listener is for.

/// What a listener is for.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its number in the configuration.
    pub index: usize,
    /// The port that visitors come to.
    pub port: u16,
    /// Whether TLS is spoken there.
    pub tls: bool,
}
