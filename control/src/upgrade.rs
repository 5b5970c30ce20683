//! Role: `narrowlink-gateway upgrade`: a running gateway is replaced by one of the program that lies in its place now, without a gap.
//! Invariants: the running one goes on unless the new one serves · a program is put into place as a whole: one that runs can't be
//! written into ("Text file busy").
//! See: `succession`, which does it in the running gateway; docs/service.md.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use narrowlink_dataplane::run::file::Stamp;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    pid_file::{FILE, read},
    succession::PATIENCE,
};

const EXECUTABLE: u32 = 0o755;
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
    let pid = match (pid, &noted) {
        (Some(pid), _) => pid,
        (None, Some(path)) => {
            read(path).map_err(|source| UpgradeError::NotRunning { path: path.clone(), source })?
        }
        (None, None) => return Err(UpgradeError::NoStateDir),
    };
    let place = program_of(pid).ok_or(UpgradeError::NoGateway(pid))?;
    if has_keeper(pid) {
        return Err(UpgradeError::Service(pid));
    }
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(UpgradeError::NoGateway(pid))?;
    if let Some(program) = program {
        put(program, &place).map_err(|source| UpgradeError::Place { path: place.clone(), source })?;
    }
    let before = noted.as_deref().and_then(Stamp::of);
    kill_process(process, Signal::USR2).map_err(|e| UpgradeError::Signal { pid, source: e.into() })?;
    let Some(noted) = noted else {
        return Ok(format!(
            "process {pid} was told to have {} go on; its log says how that goes\n",
            place.display()
        ));
    };
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match read(&noted) {
            Ok(new) if new != pid && program_of(new).is_some() => {
                return Ok(format!(
                    "process {new} serves in place of {pid}, which ends when its sessions have\n"
                ));
            }
            Ok(same) if same == pid && Stamp::of(&noted) != before => break,
            _ => thread::sleep(TICK),
        }
    }
    Err(UpgradeError::Stays(pid))
}

/// Where the program of this process lies, if it is a gateway.
fn program_of(pid: u32) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let path = path.to_string_lossy();
    let path = PathBuf::from(path.strip_suffix(DELETED).unwrap_or(&path));
    path.file_name().is_some_and(|name| name == PROGRAM).then_some(path)
}

/// Whether a keeper stands in front of this process.
fn has_keeper(pid: u32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = arguments.split(|byte| *byte == 0).collect();
    words.windows(2).any(|pair| pair == [crate::keeper::OPTION.as_bytes(), crate::keeper::KEEPER.as_bytes()])
        || words.contains(&b"--keeper".as_slice())
}

fn put(program: &Path, place: &Path) -> io::Result<()> {
    let mut new = place.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let done = fs::copy(program, &new)
        .and_then(|_| fs::set_permissions(&new, fs::Permissions::from_mode(EXECUTABLE)))
        .and_then(|()| fs::rename(&new, place));
    if done.is_err() {
        let _ = fs::remove_file(&new);
    }
    done
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
        // This is a test, which SIGUSR2 would end.
        let own = std::process::id();
        assert_eq!(said(None, Some(own)), format!("process {own} is no {PROGRAM} that runs"));
        fs::write(dir.path().join(FILE), format!("{own}\n")).unwrap();
        assert!(said(Some(dir.path()), None).contains("is no narrowlink-gateway"));
        fs::write(dir.path().join(FILE), "x").unwrap();
        assert!(said(Some(dir.path()), None).contains("it names no process"));
    }

    #[test]
    fn a_program_is_put_into_place_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (new, place) = (dir.path().join("new"), dir.path().join(PROGRAM));
        fs::write(&new, "new").unwrap();
        fs::write(&place, "old").unwrap();
        let old = fs::File::open(&place).unwrap();
        put(&new, &place).unwrap();
        assert_eq!(fs::read_to_string(&place).unwrap(), "new");
        assert_eq!(io::read_to_string(old).unwrap(), "old");
        assert!(put(&dir.path().join("none"), &place).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
