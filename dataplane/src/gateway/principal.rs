//! Role: whose a connection is.

use std::{
    any::Any,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use narrowlink_proto::{id::Uid, message::Speaker};

use crate::gateway::usage::Usage;

/// A right that never ends, as far as one process is concerned.
pub const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Who a token says its bearer is.
pub struct Principal {
    /// An agent or a client.
    pub speaker: Speaker,
    /// The user's space.
    pub uid: Uid,
    /// The agent's or client's name within it.
    pub name: String,
    /// The token's own id.
    pub token_id: String,
    /// When the token's right ends.
    pub expires_at: Instant,
    /// Where what it does is counted.
    pub usage: Usage,
    /// What it grants, in the operator's own terms.
    pub grant: Arc<dyn Any + Send + Sync>,
    /// Set once its link got no answer any more although its connection stands: its process hangs, and all that
    /// it has here ends.
    pub vanished: AtomicBool,
}

impl Principal {
    /// One whose right never ends, and of whom the operator knows no more.
    pub fn new(speaker: Speaker, uid: Uid, name: &str) -> Self {
        Self {
            speaker,
            uid,
            name: name.to_owned(),
            token_id: String::new(),
            expires_at: Instant::now() + FOR_EVER,
            usage: Usage::default(),
            grant: Arc::new(()),
            vanished: AtomicBool::new(false),
        }
    }
}
