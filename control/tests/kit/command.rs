//! `narrowlink-gateway` as a command with an answer: run in a directory of its own, and held against what it says.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    time::{SystemTime, UNIX_EPOCH},
};

/// In seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Writes a file that only its owner may read, as one with a secret has to be.
pub(crate) fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The program in `dir`, where it finds nothing of whoever runs the test.
pub(crate) fn gateway(dir: &Path, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_narrowlink-gateway"));
    command.args(args.split_whitespace()).current_dir(dir);
    command.env_remove("RUST_LOG").env_remove("XDG_CONFIG_HOME").env("HOME", dir);
    command
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What a command line ends with, and what stands in what it says: on standard output for an answer, be it no (1)
/// or that it depends (3), on standard error for a failure.
pub(crate) fn check(dir: &Path, args: &str, code: i32, says: &[&str]) -> Output {
    let out = gateway(dir, args).output().unwrap();
    let said = text(if [0, 1, 3].contains(&code) { &out.stdout } else { &out.stderr });
    assert_eq!(out.status.code(), Some(code), "{args}: {out:?}");
    for words in says {
        assert!(said.contains(words), "{args}: {said} lacks {words}");
    }
    out
}
