//! `narrowlink-agent --check` as its user meets it.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use narrowlink_proto::{
    id::Uid,
    token::{Claims, Keys, Kind},
};

/// A directory with an agent.yaml whose token holds, and whose state is kept there.
fn site(state_dir: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = Claims::new(Kind::Agent, Uid::nil(), "home", now + 99 * 86_400, "t1");
    let token = Keys::new(&[7; 32]).sign(&claims).unwrap();
    let endpoint = format!("!SelfHosted {{ gateway: 'ws://gw.invalid', token: {token} }}");
    let path = dir.path().join("agent.yaml");
    fs::write(&path, format!("endpoints: [{endpoint}]\nstate_dir: {state_dir}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    dir
}

/// Exit code, and what was said, of a check whose standard output is this.
fn check(dir: &Path, stdout: Stdio) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_narrowlink-agent"));
    command.args(["-c", "agent.yaml", "--check"]).current_dir(dir).env_remove("RUST_LOG");
    let done = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    (done.status.code(), String::from_utf8(done.stderr).unwrap() + &String::from_utf8(done.stdout).unwrap())
}

#[test]
fn a_good_configuration_is_said_to_be_good_and_nothing_is_made() {
    let dir = site("state");
    assert_eq!(check(dir.path(), Stdio::piped()), (Some(0), "agent.yaml: ok (1 gateway)\n".to_owned()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_state_dir_that_can_not_be_used_ends_with_78() {
    let (code, said) = check(site("agent.yaml").path(), Stdio::piped());
    assert!(code == Some(78) && said.contains("state_dir: instance.key can't be kept there: Not"), "{said}");
}

#[test]
fn a_reader_that_left_is_no_error() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    assert_eq!(check(site("state").path(), writer.into()), (Some(0), String::new()));
}
