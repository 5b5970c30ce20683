//! Role: finds programs, runs them, keeps what they say, and ends them.
//! Invariants: a process lives no longer than its `Running`; what it said is shown when its test fails;
//! only process groups that were started here are ever signalled.

use std::{
    fs::{self, File},
    io::{self, PipeReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, prlimit, waitid,
};

use super::{PATIENCE, conditions, wait_for};

/// One of our own binaries, as built beside this test.
pub(crate) fn ours(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    // target/<profile>/deps/<test> → target/<profile>/<name>
    let profile_dir = test.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps");
    let path = profile_dir.join(name);
    assert!(path.is_file(), "{} is missing: run `cargo build --workspace`", path.display());
    path
}

/// A program of the system. A missing one fails the test: a test that is skipped proves nothing.
pub(crate) fn foreign(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/sbin".into(), "/sbin".into()]);
    // Debian keeps the servers' programs out of PATH, one directory a version.
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        dirs.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    dirs.into_iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: run `apt-get install -y {package}`"))
}

/// What becomes of what a program says on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ear {
    /// It is kept in a file.
    Log,
    /// The disk is full.
    Full,
    /// A pipe whose reader has left.
    Gone,
    /// A pipe whose reader reads nothing, and that is full.
    Stalled,
}

/// Every ear that hears nothing.
pub(crate) const DEAF: [Ear; 3] = [Ear::Full, Ear::Gone, Ear::Stalled];

impl Ear {
    /// Where a program is to write, and what must stand as long as it runs.
    fn open(self, log: &File) -> (Stdio, Option<PipeReader>) {
        match self {
            Self::Log => (log.try_clone().expect("a descriptor is free").into(), None),
            Self::Full => {
                let full = File::options().write(true).open("/dev/full");
                (full.expect("Linux has it").into(), None)
            }
            Self::Gone => (io::pipe().expect("a descriptor is free").1.into(), None),
            Self::Stalled => {
                let (reader, mut writer) = io::pipe().expect("a descriptor is free");
                rustix::io::ioctl_fionbio(&writer, true).expect("a pipe can be set so");
                while writer.write(&[b'\n'; 4096]).is_ok() {}
                rustix::io::ioctl_fionbio(&writer, false).expect("and back");
                (writer.into(), Some(reader))
            }
        }
    }
}

/// Runs a program that says something on standard error, where nobody hears it, to its end; the exit code.
pub(crate) fn run_unheard(mut command: Command, ear: Ear, patience: Duration) -> Option<i32> {
    let null = File::open("/dev/null").expect("Linux has it");
    let (stderr, _reader) = ear.open(&null);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?} can't be started: {e}"));
    drop(command);
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().expect("our own child can be asked") {
            return status.code();
        }
        if Instant::now() > deadline {
            signal_group(&child, Signal::KILL);
            let _ = child.wait();
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A process that runs until it is killed or dropped.
pub(crate) struct Running {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
    asked_to_end_by: Option<Signal>,
    /// Reads nothing.
    _ear: Option<PipeReader>,
}

impl Running {
    /// Starts `command` in a process group of its own; standard error goes to a log file in `dir`.
    /// Standard output goes there too, unless `lines` wants it.
    pub(crate) fn start(name: &str, dir: &Path, command: Command, lines: Option<Lines>) -> Self {
        Self::start_heard(name, dir, command, lines, Ear::Log)
    }

    /// The same, for what it says on standard error to come to this ear.
    pub(crate) fn start_heard(
        name: &str,
        dir: &Path,
        mut command: Command,
        lines: Option<Lines>,
        ear: Ear,
    ) -> Self {
        let log = (0..)
            .map(|n| dir.join(format!("{name}.{n}.log")))
            .find(|path| !path.exists())
            .expect("there is always a next number");
        let file = File::create(&log).expect("the test's directory can be written");
        let stdout = match lines {
            Some(_) => Stdio::piped(),
            None => file.try_clone().expect("a descriptor is free").into(),
        };
        let (stderr, ear) = ear.open(&file);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{name} can't be started: {e}"));
        // It has the only other end of a pipe now.
        drop(command);
        if let (Some(Lines(sender)), Some(stdout)) = (lines, child.stdout.take()) {
            thread::spawn(move || send_lines(stdout, &sender));
        }
        Self { name: name.to_owned(), child, log, ended: None, asked_to_end_by: None, _ear: ear }
    }

    /// Asks the process with this signal before it is killed: some must tidy up what outlives them.
    pub(crate) const fn ended_by(mut self, signal: Signal) -> Self {
        self.asked_to_end_by = Some(signal);
        self
    }

    /// kill -9, and nothing else of the process is left when this returns.
    pub(crate) fn kill_9(&mut self) {
        self.assert_running();
        self.child.kill().expect("our own child can be killed");
        let status = self.child.wait().expect("our own child can be waited for");
        assert_eq!(status.signal(), Some(9), "{} ended by itself: {status}\n{}", self.name, self.said());
        self.ended = Some(status);
    }

    /// Sends a signal that is not meant to end it. One that stops it has when this returns: one of its threads takes the
    /// signal, and on a busy machine the others go on until that one has had its turn.
    pub(crate) fn signal(&mut self, signal: Signal) {
        self.assert_running();
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child has a pid");
        kill_process(pid, signal).expect("our own child takes signals");
        if signal == Signal::STOP {
            wait_for(&format!("{} to stand still", self.name), PATIENCE, || {
                self.stands_still().then_some(())
            });
        }
    }

    /// Whether each of its threads is stopped.
    fn stands_still(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.id())).expect("our own child has threads");
        threads.flatten().all(|thread| {
            // The state stands behind the name, which may have anything in it.
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
    }

    /// No file that it writes becomes longer than this from now on.
    pub(crate) fn limit_files(&mut self, bytes: u64) {
        self.assert_running();
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        prlimit(self.pid(), Resource::Fsize, limit).expect("our own child can be limited");
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn end(&mut self, signal: Signal, patience: Duration) -> ExitStatus {
        self.signal(signal);
        self.wait_for_end(patience)
    }

    /// How it ended, after a signal before this.
    pub(crate) fn wait_for_end(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        let status =
            wait_for(&what, patience, || self.child.try_wait().expect("our own child can be waited for"));
        self.ended = Some(status);
        status
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How much CPU it has used.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        // Behind the name, which may hold anything: state is the first, utime the 12th, stime the 13th.
        let behind = stat.rsplit_once(')').expect("a name stands in brackets").1;
        let ticks = behind.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        // Linux tells everybody of ticks of 10 ms (USER_HZ).
        Duration::from_millis(ticks * 10)
    }

    /// How many lines of what it said contain `words`.
    pub(crate) fn said_times(&self, words: &str) -> usize {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().filter(|line| line.contains(words)).count()
    }

    /// Fails the test with what the process said, if it has ended.
    pub(crate) fn assert_running(&mut self) {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("our own child can be asked");
        }
        if let Some(status) = self.ended {
            panic!("{} has ended ({status}); it said:\n{}", self.name, self.said());
        }
    }

    /// Waits for something that this process is to bring about.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> T {
        wait_for(what, patience, || {
            let seen = look();
            if seen.is_none() {
                self.assert_running();
            }
            seen
        })
    }

    /// Waits for the end that `signal` asks for, but not for long, and never panics: this runs in `drop`.
    fn ask_to_end(&self, signal: Signal) {
        let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return };
        let _ = kill_process(pid, signal);
        let deadline = Instant::now() + Duration::from_secs(5);
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while Instant::now() < deadline && matches!(waitid(WaitId::Pid(pid), ended), Ok(None)) {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What the process has said so far, its last 60 lines.
    fn said(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_none() {
            if let Some(signal) = self.asked_to_end_by {
                self.ask_to_end(signal);
            }
            signal_group(&self.child, Signal::KILL);
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("--- {} said:\n{}\n---{}", self.name, self.said(), conditions::trouble());
        }
    }
}

/// Signals a child that was not waited for yet, and everything it started in its group.
fn signal_group(child: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended just now: then there is nothing to do.
        let _ = kill_process_group(pid, signal);
    }
}

/// Where the lines of a process's standard output go.
pub(crate) struct Lines(mpsc::Sender<String>);

impl Lines {
    pub(crate) fn channel() -> (Self, mpsc::Receiver<String>) {
        let (sender, receiver) = mpsc::channel();
        (Self(sender), receiver)
    }
}

/// Reads to the end even when nobody listens any more: a full pipe would stop the process.
fn send_lines(stdout: impl Read, sender: &mpsc::Sender<String>) {
    for line in io::BufRead::lines(io::BufReader::new(stdout)).map_while(Result::ok) {
        let _ = sender.send(line);
    }
}

/// What a program that ran to its end left behind.
pub(crate) struct Finished {
    what: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Finished {
    /// Its standard output, if it succeeded; fails the test otherwise.
    pub(crate) fn succeeded(self) -> Vec<u8> {
        let Self { what, status, stdout, stderr } = self;
        assert!(
            status.success(),
            "{what} failed ({status})\n--- stdout:\n{}\n--- stderr:\n{stderr}",
            String::from_utf8_lossy(&stdout)
        );
        stdout
    }

    /// The same, as text.
    pub(crate) fn succeeded_with_text(self) -> String {
        String::from_utf8_lossy(&self.succeeded()).into_owned()
    }
}

/// Runs a program to its end; fails the test when that takes longer than `patience`.
pub(crate) fn run(mut command: Command, stdin: &[u8], patience: Duration) -> Finished {
    let what = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{what} can't be started: {e}"));
    let mut pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(move || {
            // A program need not read all that it is given.
            let _ = pipes.0.take().map(|mut pipe| pipe.write_all(stdin));
        });
        let stdout = scope.spawn(move || read_all(pipes.1.take()));
        let stderr = scope.spawn(move || read_all(pipes.2.take()));
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = child.try_wait().expect("our own child can be asked") {
                break Some(status);
            }
            if Instant::now() > deadline {
                signal_group(&child, Signal::KILL);
                let _ = child.wait();
                break None;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let stdout = stdout.join().expect("reading a pipe does not panic");
        let stderr = String::from_utf8_lossy(&stderr.join().expect("nor does this")).into_owned();
        let Some(status) = status else {
            panic!(
                "{what} did not end in {patience:?}\n--- stdout:\n{}\n--- stderr:\n{stderr}",
                String::from_utf8_lossy(&stdout)
            );
        };
        Finished { what, status, stdout, stderr }
    })
}

fn read_all(pipe: Option<impl Read>) -> Vec<u8> {
    let mut all = Vec::new();
    // What was read before an error is what there is to show.
    let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut all));
    all
}
