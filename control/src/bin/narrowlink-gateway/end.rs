//! Role: what a command of the gateway ends with: its answer on standard output, or why there is none, and an exit code.
//! Invariants: a code never changes its meaning.

use std::io;

use narrowlink_control::{config::ConfigError, upgrade::UpgradeError};
use narrowlink_dataplane::run::{
    log,
    process::{NoConfig, explain},
    service::ServiceError,
};
use narrowlink_proto::{
    answer::{self, UNWRITTEN, Unwritten},
    code::Code,
};

/// What was asked has the answer no.
pub(crate) const NO: u8 = 1;
/// What was asked for makes no sense; clap's code.
pub(crate) const USAGE: u8 = 2;
/// What was asked depends on what nobody here knows.
pub(crate) const DEPENDS: u8 = 3;
/// An address can't be listened on.
pub(crate) const UNAVAILABLE: u8 = 69;
/// Our own fault.
pub(crate) const INTERNAL: u8 = 70;
/// What was to be made is there already, or can't be written; sysexits.h has it so.
pub(crate) const CANT_CREATE: u8 = 73;
/// The list of revoked tokens can't be read or written; an answer that can't has the same.
pub(crate) const IO: u8 = UNWRITTEN;
/// The config, or a file it names.
pub(crate) const CONFIGURATION: u8 = 78;

/// What to say last, and the exit code.
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) error: anyhow::Error,
}

impl Failure {
    /// What is said: the error, its causes and its kind.
    pub(crate) fn said(&self) -> String {
        let why = explain(self.error.as_ref());
        self.kind().map_or(why.clone(), |kind| kind.mark(&why))
    }

    /// The kind of trouble; a no is none.
    fn kind(&self) -> Option<Code> {
        if let Some(e) = self.error.downcast_ref::<ConfigError>() {
            return Some(e.code());
        }
        if let Some(StartFault { kind, .. }) = self.error.downcast_ref() {
            return Some(*kind);
        }
        if let Some(e) = self.error.downcast_ref::<ServiceError>() {
            return Some(e.code());
        }
        if self.error.is::<UpgradeError>() {
            return Some(Code::NotReplaced);
        }
        Some(match self.code {
            NO | DEPENDS => return None,
            USAGE => Code::Usage,
            UNAVAILABLE => Code::Listen,
            CANT_CREATE => Code::Unmade,
            IO if self.error.is::<Unwritten>() => Code::Unwritten,
            IO => Code::Book,
            CONFIGURATION if self.error.chain().any(|e| e.is::<NoConfig>()) => Code::ConfigMissing,
            CONFIGURATION => Code::ConfigContent,
            _ => Code::Internal,
        })
    }
}

/// Why the gateway does not start, in words.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub(crate) struct StartFault {
    pub(crate) kind: Code,
    pub(crate) words: String,
}

/// Says which exit code an error means.
pub(crate) trait OrExit<T> {
    fn or_exit(self, code: u8) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, code: u8) -> Result<T, Failure> {
        self.map_err(|error| Failure { code, error: error.into() })
    }
}

pub(crate) fn say(message: &str) {
    log::say(&format!("narrowlink-gateway: {message}"));
}

pub(crate) fn print(text: &str) -> Result<(), Failure> {
    answer::write(io::stdout(), text).or_exit(UNWRITTEN)
}
