//! Role: a running gateway begins the one that goes on in its place, of the program that lies where its own did.
//! Invariants: it goes on itself unless the new one serves · the new one has every socket before it begins, so that nobody is refused
//! in between · one at a time.
//! See: `keeper`, where a service manager does this; docs/service.md.

use std::{
    ffi::OsString,
    io,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread,
    time::Duration,
};

use narrowlink_dataplane::{
    net::inherited::{Giver, channel},
    run::{lock::lock, notify::Notifier, program::own_path},
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    gateway::Gateway,
    keeper::{KEEPER, OPTION},
    pid_file::PidFile,
    word::Word,
};

/// The value of [`OPTION`] for a gateway that goes on in another one's place.
pub const GATEWAY: &str = "gateway";
/// A new gateway that does not serve within this is ended.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Begins successors.
pub struct Succession {
    program: PathBuf,
    arguments: Vec<OsString>,
    word: Sender<Word>,
    notifier: Notifier,
    pid_file: Arc<PidFile>,
    is_under_way: Arc<AtomicBool>,
    /// The one that has begun and does not serve yet.
    child: Arc<Mutex<Option<Pid>>>,
}

impl Succession {
    /// Of this process, which is told by `word` to leave when the other one serves.
    ///
    /// # Errors
    /// The system does not say what program this is.
    pub fn new(word: Sender<Word>, notifier: Notifier, pid_file: Arc<PidFile>) -> io::Result<Self> {
        // As it was at the start; where a link leads is looked at when it is begun.
        let program = own_path()?;
        let arguments = without(OPTION, std::env::args_os().skip(1));
        Ok(Self {
            program,
            arguments,
            word,
            notifier,
            pid_file,
            is_under_way: Arc::default(),
            child: Arc::default(),
        })
    }

    /// Nobody is to go on: one that does not serve yet is ended.
    pub fn cancel(&self) {
        if let Some(child) = lock(&self.child).take() {
            tracing::info!("the gateway that was to go on is ended, too");
            let _ = kill_process(child, Signal::KILL);
        }
    }

    /// Begins one in place of `gateway`; what becomes of it is said in the log.
    pub fn begin(&self, gateway: &Gateway) {
        if self.is_under_way.swap(true, Ordering::Relaxed) {
            return tracing::warn!("another gateway is about to go on already");
        }
        match self.spawn(gateway) {
            Ok((giver, child)) => self.follow(giver, child),
            Err(e) => {
                self.is_under_way.store(false, Ordering::Relaxed);
                self.pid_file.renew();
                tracing::error!("{}: no gateway can be begun, this one goes on: {e}", self.program.display());
            }
        }
    }

    fn spawn(&self, gateway: &Gateway) -> io::Result<(Giver, Child)> {
        let (giver, taker) = channel()?;
        giver.set_patience(PATIENCE)?;
        // Sockets wait in the channel until it asks for them.
        gateway.with_sockets(|sockets| {
            giver.give(&sockets.into_iter().flat_map(|(_, fds)| fds).collect::<Vec<_>>())
        })?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .args([OPTION, GATEWAY])
            .env_remove("LISTEN_PID")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::from(taker.into_fd()))
            .spawn()?;
        tracing::info!("{} begins as process {}", self.program.display(), child.id());
        Ok((giver, child))
    }

    fn follow(&self, giver: Giver, mut child: Child) {
        let (word, notifier) = (self.word.clone(), self.notifier.clone());
        let (pid_file, is_under_way) = (self.pid_file.clone(), self.is_under_way.clone());
        let begun = self.child.clone();
        *lock(&begun) = Some(Pid::from_child(&child));
        // Without a thread nobody would hear it; it serves all the same, beside this one.
        let _ = thread::Builder::new().name("succession".to_owned()).spawn(move || {
            match giver.hear() {
                Ok(Some(_)) => {
                    // Else it was ended a moment ago.
                    if lock(&begun).take().is_some() {
                        notifier.succeeded_by(child.id());
                        pid_file.disown();
                        let _ = word.send(Word::Leave);
                    }
                    return;
                }
                Ok(None) => {}
                Err(e) => {
                    tracing::error!("the new gateway does not come to serve: {e}");
                    let _ = child.kill();
                }
            }
            lock(&begun).take();
            let how = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
            tracing::error!("the new gateway has ended ({how}), and said above why: this one goes on");
            is_under_way.store(false, Ordering::Relaxed);
            pid_file.renew();
        });
    }
}

/// `arguments` without this option and its value.
fn without(option: &str, arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut left = Vec::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        if argument == option {
            arguments.next();
        } else {
            left.push(argument);
        }
    }
    left
}

/// What stands on a gateway's standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Predecessor {
    /// A keeper, which stays.
    Keeper,
    /// A gateway, which leaves.
    Gateway,
}

impl std::str::FromStr for Predecessor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            KEEPER => Ok(Self::Keeper),
            GATEWAY => Ok(Self::Gateway),
            _ => Err("expected keeper or gateway"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_of_a_successor_is_told_so_once() {
        let line = ["-c", "gateway.yaml", OPTION, GATEWAY, "-v"].map(OsString::from);
        assert_eq!(without(OPTION, line.into_iter()), ["-c", "gateway.yaml", "-v"]);
    }
}
