//! Role: a process that was started here: where it runs, as whom, until when.
//! Invariants: it ends with its `Running`, by its pid, and its children before it · its directory goes with it.

use std::{
    fs::{self, File},
    net::TcpStream,
    os::unix::{fs::chown, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::{
    process::{Pid, Signal, kill_process, setpriority_process},
    thread::{CpuSet, sched_setaffinity},
};

use super::Setup;
use crate::load::{plan::Way, sample::family, urgency::URGENT_NICE};

/// How long a program may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked whether it does.
const TICK: Duration = Duration::from_millis(10);
/// The user and group that an unprivileged process runs as: nobody's, nogroup's.
const NOBODY: u32 = 65_534;

/// A process that was started here, and its directory.
pub(super) struct Running {
    child: Child,
    /// What it can't do without, and is not measured.
    companion: Option<Child>,
    dir: tempfile::TempDir,
}

impl Running {
    /// Starts `command` on `cores`; what it says goes to a file.
    pub(super) fn start(
        dir: tempfile::TempDir,
        mut command: Command,
        setup: &Setup,
        cores: &[usize],
    ) -> Result<Self> {
        let log = File::create(dir.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        if setup.unprivileged {
            give_to_nobody(dir.path())?;
            command.uid(NOBODY).gid(NOBODY);
        }
        Ok(Self { child: spawn_on(command, cores, setup.urgent)?, companion: None, dir })
    }

    /// Starts the other half of what this is, on `cores`, which isn't measured.
    pub(super) fn accompany(&mut self, mut command: Command, cores: &[usize]) -> Result<()> {
        let log = File::create(self.dir.path().join("companion.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.companion = Some(spawn_on(command, cores, false)?);
        Ok(())
    }

    pub(super) fn pids(&self) -> Vec<i32> {
        family(self.child.id().cast_signed())
    }

    /// Waits until `ready` finds something.
    pub(super) fn wait_for<T>(&mut self, mut ready: impl FnMut(&Path) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        loop {
            if let Some(found) = ready(self.dir.path()) {
                return Ok(found);
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                let how = ended.map_or("does not listen".to_owned(), |status| format!("ended ({status})"));
                bail!("it {how}: {}", said.trim());
            }
            std::thread::sleep(TICK);
        }
    }

    /// Waits until it accepts connections at all of `ways`.
    pub(super) fn wait_listening(&mut self, ways: &[Way]) -> Result<()> {
        for way in ways {
            let Way::Forwarder { listen, .. } = way else { continue };
            self.wait_for(|_| TcpStream::connect(listen).ok())?;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Children first: nginx's workers would outlive a master that is killed.
        for pid in self.pids().into_iter().rev() {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.child.wait();
        if let Some(companion) = &mut self.companion {
            let _ = companion.kill();
            let _ = companion.wait();
        }
    }
}

fn give_to_nobody(dir: &Path) -> Result<()> {
    chown(dir, Some(NOBODY), Some(NOBODY)).context("only root can start a process as nobody")?;
    for entry in fs::read_dir(dir)? {
        chown(entry?.path(), Some(NOBODY), Some(NOBODY))?;
    }
    Ok(())
}

/// Starts a process that stays on `cores` (none: anywhere), and goes before others if `urgent`, by a thread
/// that does so first: what it starts inherits both.
///
/// # Errors
/// The system's, with the program's name.
pub fn spawn_on(mut command: Command, cores: &[usize], urgent: bool) -> Result<Child> {
    let name = command.get_program().display().to_string();
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    let pinned = !cores.is_empty();
    let thread = std::thread::spawn(move || {
        if pinned {
            sched_setaffinity(None, &set)?;
        }
        if urgent {
            // Of this thread alone, as Linux has it.
            setpriority_process(None, URGENT_NICE)?;
        }
        command.spawn()
    });
    let child = thread.join().map_err(|_| anyhow!("the thread that starts {name} panicked"))?;
    child.with_context(|| format!("{name} can't be started"))
}

#[cfg(test)]
mod tests {
    use super::{super::only_core, *};
    use crate::load::subject::fixture::SETUP;

    #[test]
    fn a_process_stays_where_it_was_put_and_ends_with_its_owner() {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let core = (0..CpuSet::MAX_CPU).find(|&core| allowed.is_set(core)).unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000");
        let setup = Setup { core: Some(core), ..SETUP };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let mut running = Running::start(dir, command, &setup, &setup.cores(1)).unwrap();
        let mut companion = Command::new("sleep");
        companion.arg("1000");
        running.accompany(companion, &[]).unwrap();
        let beside = running.companion.as_ref().unwrap().id();
        let [pid] = running.pids()[..] else { panic!("the companion is measured") };
        assert_eq!(only_core(pid), [core]);
        drop(running);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert!(!Path::new(&format!("/proc/{beside}")).exists());
        assert!(!path.exists());
    }
}
