//! Role: what every test needs: a directory, the program, and what came of it.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use narrowlink_proto::token::Keys;
use tempfile::TempDir;

pub(crate) const UID: &str = "00000000-0000-0000-0000-000000000001";

/// The bytes of the file `secret` in every site.
pub(crate) const SECRET: [u8; 32] = [9; 32];

/// A directory with `secret` in it, where the program runs.
pub(crate) struct Site(TempDir);

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: i32,
}

impl Site {
    pub(crate) fn new() -> Self {
        let site = Self(TempDir::new().unwrap());
        site.write("secret", "base64:CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n");
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        self.open_to(0o600, name);
    }

    /// Sets who may read a file.
    pub(crate) fn open_to(&self, mode: u32, name: &str) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with("", arguments)
    }

    /// With `stdin`.
    pub(crate) fn run_with(&self, stdin: &str, arguments: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_narrowlink-tokengen"));
        command.current_dir(self.0.path()).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Whoever does not read it may have ended already.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended {
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            code: output.status.code().unwrap(),
        }
    }
}

/// Runs it on one file; gives stdout, stderr and the exit code.
pub(crate) fn run(yaml: &str, arguments: &[&str]) -> (String, String, i32) {
    let site = Site::new();
    site.write("tokens.yaml", yaml);
    let Ended { stdout, stderr, code } = site.run(&[&["tokens.yaml"], arguments].concat());
    (stdout, stderr, code)
}

/// A file with these entries, to be signed with `secret`.
pub(crate) fn file(entries: &str) -> String {
    format!("secret: !File secret\ntokens:\n{entries}")
}

/// An agent's entry.
pub(crate) fn agent(name: &str, rest: &str) -> String {
    format!("  - !Agent {{ uid: {UID}, name: {name}, exp: 1d{rest} }}\n")
}

/// The tokens between their labels.
pub(crate) fn tokens(stdout: &str) -> Vec<&str> {
    stdout.lines().filter(|line| !line.starts_with('#')).collect()
}

pub(crate) fn keys() -> Keys {
    Keys::new(&SECRET)
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The permission bits of a file or folder.
pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}
