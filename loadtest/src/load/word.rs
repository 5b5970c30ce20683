//! Role: what a load process says to whoever started it.

use std::io::{self, Write as _};

use anyhow::{Error, Result};

use super::plan::Word;

/// Says a word.
///
/// # Errors
/// Nobody listens any more.
pub fn say(word: &Word) -> Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    Ok(io::stdout().lock().write_all(&line)?)
}

/// Ends this load process with a sentence: a figure with a lost connection in it is none.
pub fn fail(error: &Error) -> ! {
    let _ = say(&Word::Failed(format!("{error:#}")));
    std::process::exit(1)
}
