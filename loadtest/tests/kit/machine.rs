//! Role: throw-away machines: each a systemd of its own on an overlay of this machine's files.
//! Invariants: what a machine writes is gone with it, and so is every process of it, however its test ends · machines of one network reach each other at 127.0.0.1, and nobody
//! else · a script is one word for the machine: what it prints comes back.
//! See: systemd-nspawn(1).

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    PATIENCE,
    process::{foreign, ours},
};

const TICK: Duration = Duration::from_millis(20);

/// A gateway and an agent as services, and a client, as they are set up by what is printed.
pub(crate) const DEPLOYMENT: &str = "\
install -m 755 /run/shared/narrowlink* /usr/local/bin/
narrowlink-gateway init 127.0.0.1 --yes >/tmp/printed || exit 1
eval \"$(sed -n 's/^ *sudo \\(narrowlink-agent join .*\\)/\\1/p' /tmp/printed)\" || exit 2
eval \"$(sed -n 's/^ *\\(narrowlink login .*\\)/\\1/p' /tmp/printed)\" || exit 3
";

/// A network of its own, and a directory that its machines share as `/run/shared`.
pub(crate) struct Network {
    name: String,
    dir: TempDir,
}

impl Network {
    /// With all of our programs, where there is what boots machines.
    pub(crate) fn of_ours() -> Self {
        foreign("systemd-nspawn", "systemd-container");
        let names = ["narrowlink-gateway", "narrowlink-agent", "narrowlink", "narrowlink-visits"];
        Self::new(&names.map(ours))
    }

    /// With these programs in the shared directory.
    pub(crate) fn new(programs: &[PathBuf]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "machines are booted by root: run the tests as root");
        let dir = TempDir::with_prefix("narrowlink-machine-").expect("a temporary directory can be made");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        for program in programs {
            let name = program.file_name().expect("a program");
            fs::copy(program, dir.path().join(name)).expect("a program can be copied");
        }
        let name = format!("nl-{}-{}", std::process::id(), unique());
        let network = Self { name, dir };
        network.ip(&["netns", "add", &network.name]);
        network.ip(&["-n", &network.name, "link", "set", "lo", "up"]);
        network
    }

    fn ip(&self, words: &[&str]) {
        let output =
            Command::new("ip").args(words).output().expect("ip is there: apt-get install -y iproute2");
        assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The shared directory, as this side sees it.
    pub(crate) fn shared(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until the number of the processes in it is as it should be.
    pub(crate) fn wait_until(&self, is_so: impl Fn(usize) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(self.processes()) {
            assert!(Instant::now() < end, "{} processes are there", self.processes());
            thread::sleep(TICK);
        }
    }

    fn processes(&self) -> usize {
        let net = fs::metadata(format!("/run/netns/{}", self.name)).expect("it is there").ino();
        let all = fs::read_dir("/proc").expect("it can be listed").flatten();
        let nets = all.filter_map(|process| fs::metadata(process.path().join("ns/net")).ok());
        nets.filter(|of| of.ino() == net).count()
    }

    /// Boots a machine that runs `script` as root, and is gone when that has ended.
    pub(crate) fn boot(&self, machine: &str, script: &str) -> Machine {
        let file = |end: &str| self.dir.path().join(format!("{machine}.{end}"));
        let text = format!("set -u\n{script}\n");
        fs::write(file("sh"), text).expect("it is ours");
        fs::write(
            file("service"),
            format!(
                "[Unit]\nRequires=basic.target\nAfter=basic.target\n[Service]\nType=oneshot\nEnvironment=HOME=/root\nWorkingDirectory=/root\n\
                 ExecStart=/bin/bash -c 'bash /run/shared/{machine}.sh; echo \"ended with $?\"; systemctl --no-block exit 0'\n\
                 StandardOutput=append:/run/shared/{machine}.out\nStandardError=append:/run/shared/{machine}.out\n"
            ),
        )
        .expect("it is ours");
        let root = self.dir.path().join(format!("{machine}.root"));
        fs::create_dir(&root).expect("it is ours");
        // A machine's root can't be this one's itself: its own mount of it can.
        let boot = format!(
            "mount --make-rprivate / && mount --bind / {root} && exec systemd-nspawn -q -D {root} --volatile=overlay \
             --register=no --keep-unit --network-namespace-path=/run/netns/{net} --link-journal=no -M {machine} \
             --bind={shared}:/run/shared --bind-ro={unit}:/etc/systemd/system/probe.service --console=pipe \
             /lib/systemd/systemd systemd.unit=probe.service",
            root = root.display(),
            net = self.name,
            shared = self.dir.path().display(),
            unit = file("service").display(),
        );
        let console = fs::File::create(file("console")).expect("it is ours");
        // In a process namespace of its own, whose end is the end of all that is in it, however that comes: SIGKILL to
        // systemd-nspawn alone leaves the machine's systemd behind.
        let process = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "-m",
                "--pid",
                "--mount-proc",
                "--kill-child",
                "sh",
                "-c",
                &boot,
            ])
            .stdin(Stdio::null())
            .stdout(console.try_clone().expect("a descriptor"))
            .stderr(console)
            .spawn()
            .expect("setpriv is there: apt-get install -y util-linux");
        Machine { process, out: file("out"), console: file("console") }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if thread::panicking() {
            // What the others were at.
            for file in fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
                if file.path().extension().is_some_and(|end| end == "out" || end == "console") {
                    let text = fs::read_to_string(file.path()).unwrap_or_default();
                    println!("--- {}\n{text}", file.file_name().display());
                }
            }
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A machine that runs its script.
pub(crate) struct Machine {
    process: Child,
    out: PathBuf,
    console: PathBuf,
}

impl Machine {
    /// What the script printed, when it has ended well.
    pub(crate) fn finish(mut self, patience: Duration) -> String {
        let end = Instant::now() + patience;
        while matches!(self.process.try_wait(), Ok(None)) && !self.text().contains("\nended with ") {
            let console = || fs::read_to_string(&self.console).unwrap_or_default();
            assert!(Instant::now() < end, "the machine does not end: {}\n{}", self.text(), console());
            thread::sleep(TICK);
        }
        let text = self.text();
        let console = fs::read_to_string(&self.console).unwrap_or_default();
        let (said, code) = text.rsplit_once("ended with ").unwrap_or_else(|| panic!("{text}\n{console}"));
        assert_eq!(code.trim(), "0", "{text}");
        said.to_owned()
    }

    fn text(&self) -> String {
        format!("\n{}", fs::read_to_string(&self.out).unwrap_or_default())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its processes end with it: `--pid --kill-child`.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn unique() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
