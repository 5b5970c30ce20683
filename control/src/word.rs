//! Role: what the gateway's process is told while it runs, by signals and by others.
//! See: `supervise`, which obeys.

use std::{
    io,
    sync::mpsc::{self, Receiver, Sender},
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2},
    iterator::Signals,
};

/// What the gateway's process is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// End in good order; the second time, at once.
    Stop,
    /// Read the configuration anew.
    Reload,
    /// Another gateway is to go on in this one's place.
    Succeed,
    /// Another gateway goes on: end in good order, and leave it the sockets. However often.
    Leave,
}

/// SIGTERM and SIGINT, one word to stop each; SIGHUP, a word to reload; SIGUSR2, one to be succeeded. Others may have
/// something to say as well.
///
/// # Errors
/// The system's: the handlers can't be set, or no thread started.
pub fn signals() -> io::Result<(Sender<Word>, Receiver<Word>)> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2])?;
    let (others, heard) = mpsc::channel();
    let say = others.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let word = match signal {
                SIGHUP => Word::Reload,
                SIGUSR2 => Word::Succeed,
                _ => Word::Stop,
            };
            if say.send(word).is_err() {
                return;
            }
        }
    })?;
    Ok((others, heard))
}
