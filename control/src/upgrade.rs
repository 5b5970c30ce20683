//! Role: `narrowlink-gateway upgrade`: a running gateway is replaced by one of the program that lies in its place now, without a gap.
//! Invariants: the running one goes on unless the new one serves · a link in the program's place stays one: what it leads to is
//! replaced.
//! See: `succession`, which does it in the running gateway; `run/program`, which puts it there; docs/service.md.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use narrowlink_dataplane::run::{file::Stamp, program};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    pid_file::{FILE, read, read_all},
    succession::PATIENCE,
};

const PROGRAM: &str = "narrowlink-gateway";
/// What Linux says behind the path of a program that was replaced.
const DELETED: &str = " (deleted)";
const TICK: Duration = Duration::from_millis(20);

/// Why nothing was replaced. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// Nobody says which process it is.
    #[error("which gateway? Its config names no state_dir, where its process would be noted: say --pid PID")]
    NoStateDir,
    /// None runs.
    #[error("{}: no gateway of this config runs ({source})", path.display())]
    NotRunning {
        /// Where its process would be noted.
        path: PathBuf,
        /// Why it can't be read.
        source: io::Error,
    },
    /// The process is another program's, or gone.
    #[error("process {0} is no {PROGRAM} that runs")]
    NoGateway(u32),
    /// systemd's.
    #[error(
        "process {0} is a service: put the new program in its place, and `systemctl restart {PROGRAM}` leaves no gap"
    )]
    Service(u32),
    /// The new program can't be put into place.
    #[error("{}: {source}", path.display())]
    Place {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It may not be told.
    #[error("process {pid} can't be told: {source}")]
    Signal {
        /// Which.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// The new one did not come to serve.
    #[error("process {0} goes on: the new one did not come to serve, and the gateway's log says why")]
    Stays(u32),
}

/// Has the gateway of `state_dir`, or of process `pid`, be replaced; `program` is put in the place of its own before, if there
/// is one. What was done, in words.
///
/// # Errors
/// See [`UpgradeError`]; the running gateway goes on then.
pub fn upgrade(
    state_dir: Option<&Path>,
    pid: Option<u32>,
    program: Option<&Path>,
) -> Result<String, UpgradeError> {
    let noted = state_dir.map(|dir| dir.join(FILE));
    let (pid, place) = match (pid, &noted) {
        (Some(pid), _) => (pid, program_of(pid).unwrap_or_default()),
        (None, Some(path)) => {
            read_all(path).map_err(|source| UpgradeError::NotRunning { path: path.clone(), source })?
        }
        (None, None) => return Err(UpgradeError::NoStateDir),
    };
    // A number that was written before this machine, or container, was begun anew may be anybody's.
    if pid == std::process::id() || !is_gateway(pid) {
        return Err(UpgradeError::NoGateway(pid));
    }
    if has_keeper(pid) {
        return Err(UpgradeError::Service(pid));
    }
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(UpgradeError::NoGateway(pid))?;
    let placed = program.map(|program| put(program, &place)).transpose()?;
    let before = noted.as_deref().and_then(Stamp::of);
    let told =
        kill_process(process, Signal::USR2).map_err(|e| UpgradeError::Signal { pid, source: e.into() });
    let done = told.and_then(|()| match &noted {
        Some(noted) => follow(noted, pid, before),
        None => Ok(format!(
            "process {pid} was told to have {} go on; its log says how that goes\n",
            place.display()
        )),
    });
    if let Some(placed) = placed {
        // What did not come to serve is not to be begun after the next boot.
        if done.is_err() { placed.undo() } else { placed.keep() }
    }
    done
}

/// Waits until another process than `pid` is noted, or that one says that it stays.
fn follow(noted: &Path, pid: u32, before: Option<Stamp>) -> Result<String, UpgradeError> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match read(noted) {
            Ok(new) if new != pid && is_gateway(new) => {
                return Ok(format!(
                    "process {new} serves in place of {pid}, which ends when its sessions have\n"
                ));
            }
            Ok(same) if same == pid && Stamp::of(noted) != before => break,
            // It left, and the other one could not write its number.
            _ if !is_gateway(pid) => {
                return Ok(format!(
                    "process {pid} has left; which one serves could not be noted in {}\n",
                    noted.display()
                ));
            }
            _ => thread::sleep(TICK),
        }
    }
    Err(UpgradeError::Stays(pid))
}

/// Where the program of this process lies, if this user may look.
fn program_of(pid: u32) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let path = path.to_string_lossy();
    Some(PathBuf::from(path.strip_suffix(DELETED).unwrap_or(&path)))
}

/// Whether this process is a gateway, by the name that everybody may see: of that, Linux has the beginning.
fn is_gateway(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    !name.trim().is_empty() && PROGRAM.starts_with(name.trim())
}

/// Whether a keeper stands in front of this process.
fn has_keeper(pid: u32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = arguments.split(|byte| *byte == 0).collect();
    words.windows(2).any(|pair| pair == [crate::keeper::OPTION.as_bytes(), crate::keeper::KEEPER.as_bytes()])
        || words.contains(&b"--keeper".as_slice())
}

/// Puts a program where `place` leads to.
fn put(new: &Path, place: &Path) -> Result<program::Placed, UpgradeError> {
    let place = fs::canonicalize(place).unwrap_or_else(|_| place.to_owned());
    program::put(new, &place, PROGRAM).map_err(|source| UpgradeError::Place { path: new.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_gateway_that_runs_is_told_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let said = |dir, pid| upgrade(dir, pid, None).unwrap_err().to_string();
        assert!(said(None, None).contains("--pid"));
        assert!(said(Some(dir.path()), None).contains("no gateway of this config runs"));
        // SIGUSR2 would end this process.
        let own = std::process::id();
        assert_eq!(said(None, Some(own)), format!("process {own} is no {PROGRAM} that runs"));
        fs::write(dir.path().join(FILE), format!("{own}\n")).unwrap();
        assert!(said(Some(dir.path()), None).contains("is no narrowlink-gateway"));
        fs::write(dir.path().join(FILE), "x").unwrap();
        assert!(said(Some(dir.path()), None).contains("it names no process"));
    }

    #[test]
    fn what_a_link_in_the_program_s_place_leads_to_is_replaced_and_the_link_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (new, real, link) = (dir.path().join("new"), dir.path().join("1.0"), dir.path().join(PROGRAM));
        let good = "#!/bin/sh\necho narrowlink-gateway 1.0\n";
        fs::write(&new, good).unwrap();
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        put(&new, &link).unwrap().keep();
        assert_eq!((fs::read_to_string(&real).unwrap().as_str(), link.is_symlink()), (good, true));
        let said = put(&dir.path().join("none"), &link).unwrap_err().to_string();
        assert!(said.contains("none: No such file"), "{said}");
    }
}
