//! Role: what goes to standard output: tokens under their labels, as JSON, or what they would be.
//! Invariants: nothing but `plain` and `json` shows a token.

use std::io::{self, Write};

use narrowlink_proto::when::show_from;
use serde::Serialize;

use crate::{Labelled, files::Written, tag};

/// A label and the token below it, for each.
///
/// # Errors
/// The writer's.
pub fn plain(mut out: impl Write, tokens: &[Labelled], now: u64) -> io::Result<()> {
    for Labelled { kind, uid, name, exp, token, .. } in tokens {
        writeln!(out, "# {} {uid} {name} until {}", tag(*kind), show_from(*exp, now))?;
        writeln!(out, "{token}")?;
    }
    out.flush()
}

/// A line for each token, without it.
///
/// # Errors
/// The writer's.
pub fn check(mut out: impl Write, tokens: &[Labelled], now: u64) -> io::Result<()> {
    for Labelled { kind, uid, name, exp, .. } in tokens {
        writeln!(out, "{} {uid} {name} until {}", tag(*kind), show_from(*exp, now))?;
    }
    out.flush()
}

/// The files that were written, a line for each.
///
/// # Errors
/// The writer's.
pub fn written(mut out: impl Write, files: &[Written], now: u64) -> io::Result<()> {
    for Written { kind, name, exp, file, .. } in files {
        writeln!(out, "{}: {} {name} until {}", file.display(), tag(*kind), show_from(*exp, now))?;
    }
    out.flush()
}

/// An array of whatever it is.
///
/// # Errors
/// The writer's.
pub fn json(mut out: impl Write, list: &[impl Serialize]) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut out, list)?;
    writeln!(out)?;
    out.flush()
}
