//! Role: the small process in front of a gateway that is a service: it ends as soon as the service manager tells it to, while
//! the gateway behind it lets its sessions finish, so that the next one begins at once.
//! Invariants: it decides nothing and serves nobody · what the gateway says goes to the service manager as it is · a gateway that
//! is alive no more is ended, and its keeper with it · what the service manager kept of listening sockets goes to the gateway
//! before it begins · no signal that a gateway understands ends it by chance.
//! See: `net::inherited`; ARCHITECTURE.md "A restart without a gap"; docs/service.md.

use std::{
    env, io,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

use narrowlink_dataplane::{
    net::inherited::{Giver, Inherited, channel},
    run::notify::{Manager, Speaker as _, watchdog_interval},
};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2},
    iterator::Signals,
};

/// The option by which a gateway knows what stands on its standard input.
pub const OPTION: &str = "--succeed";
/// Its value for a gateway with a keeper.
pub const KEEPER: &str = "keeper";
/// Of the time after which the service manager gives up: a gateway that says nothing for so long is ended here, where its
/// process is known.
const PATIENCE_PERCENT: u32 = 80;
/// As shells say it: ended by this signal.
const BY_SIGNAL: i32 = 128;

/// Why no gateway runs behind this process.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// What the service manager hands over is of no use: the unit's author has to mend that.
    #[error("no socket can be taken over: {0}")]
    Sockets(io::Error),
    /// The system's.
    #[error("the gateway can't be begun: {0}")]
    System(#[from] io::Error),
}

/// Runs the gateway of these arguments behind this process, until either is to end; the exit code.
///
/// # Errors
/// The gateway can't be begun.
pub fn keep(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<u8, KeepError> {
    // Before any thread: a signal that comes now is heard below.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2])?;
    let inherited = Inherited::of_service_manager().map_err(KeepError::Sockets)?;
    let (giver, taker) = channel()?;
    let mut gateway = Command::new(env::current_exe()?)
        .args(arguments)
        .args([OPTION, KEEPER])
        // These are for this process; the watchdog is the gateway's to feed, through here.
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_FDNAMES")
        .env_remove("WATCHDOG_PID")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::from(taker.into_fd()))
        .spawn()?;
    giver.give(&inherited.fds())?;
    // The gateway has them: what it closes is to be closed.
    drop(inherited);
    let pid = Pid::from_child(&gateway);
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGHUP => {
                    let _ = kill_process(pid, Signal::HUP);
                }
                SIGUSR2 => tracing::warn!(
                    "SIGUSR2 replaces no service: put the new program into place, and `systemctl restart` leaves no gap"
                ),
                // The gateway hears of that by itself. Nothing here is in flight.
                _ => std::process::exit(0),
            }
        }
    })?;
    if let Some(every) = watchdog_interval() {
        giver.set_patience(every * PATIENCE_PERCENT / 100)?;
    }
    let status = pass_on(&giver, &mut gateway)?;
    Ok(code(status))
}

/// Passes on what the gateway says, until it has ended.
fn pass_on(giver: &Giver, gateway: &mut Child) -> io::Result<ExitStatus> {
    loop {
        match giver.hear() {
            Ok(Some(said)) => {
                let fds: Vec<_> = said.fds.iter().map(std::os::fd::AsFd::as_fd).collect();
                // That nobody hears it is no reason to end.
                let _ = Manager.say(&said.words, &fds);
            }
            Ok(None) => return gateway.wait(),
            Err(e) => {
                tracing::error!("the gateway is not alive any more ({e}): it is ended");
                gateway.kill()?;
                return gateway.wait();
            }
        }
    }
}

/// What this process ends with, as its gateway did.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| BY_SIGNAL + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_ends_as_its_gateway_did() {
        for (raw, wanted) in [(0, 0), (70 << 8, 70), (9, 137), (15, 143)] {
            assert_eq!(code(ExitStatus::from_raw(raw)), wanted);
        }
    }
}
