//! Role: under what a round is measured.

use std::{path::PathBuf, time::Duration};

/// How long is measured, and where the load runs.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// This program.
    pub program: PathBuf,
    /// Before the window.
    pub warmup: Duration,
    /// The window.
    pub window: Duration,
    /// Of the load processes; none: anywhere.
    pub cores: Vec<usize>,
    /// Before everybody else's processes.
    pub urgent: bool,
}
