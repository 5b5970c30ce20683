//! `narrowlink whoami --offline` as its user meets it.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    time::{SystemTime, UNIX_EPOCH},
};

use narrowlink_proto::{
    id::Uid,
    token::{Claims, Keys, Kind},
};

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A directory with a client.yaml whose token ends in `left` seconds, or ended that long ago.
fn site(kind: Kind, left: i64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = Claims::new(kind, Uid::nil(), "laptop", now.saturating_add_signed(left), "t1");
    let token = Keys::new(&[7; 32]).sign(&claims).unwrap();
    write(&dir.path().join("t"), &token);
    let endpoint = "!SelfHosted { gateway: 'gw.invalid:80', protocol: Ws, token_file: t }";
    write(&dir.path().join("client.yaml"), &format!("endpoints: [{endpoint}]\n"));
    dir
}

fn whoami(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_narrowlink"));
    command.arg("whoami").args(args).current_dir(dir).env("HOME", dir);
    command.env_remove("RUST_LOG").env_remove("XDG_CONFIG_HOME").output().unwrap()
}

#[test]
fn who_one_is_can_be_read_without_a_gateway() {
    let dir = site(Kind::Client, 30 * 86_400 - 3600);
    let out = whoami(dir.path(), &["--offline"]);
    let said = String::from_utf8(out.stdout).unwrap();
    assert_eq!((out.status.code(), out.stderr.as_slice()), (Some(0), &b""[..]), "{said}");
    let lines =
        ["token   ./t, as it says itself", "name    laptop", "(in 29 days)", "gw.invalid:80 was not asked"];
    for words in lines {
        assert!(said.contains(words), "{said} lacks {words}");
    }
    let out = whoami(dir.path(), &["--offline", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&json[0]["token"]["jti"], &json[0]["gateway"]), (&"t1".into(), &"gw.invalid:80".into()));
    // Nothing that is shown would let anybody in.
    let token = fs::read_to_string(dir.path().join("t")).unwrap();
    let signature = token.rsplit('.').next().unwrap();
    assert!(!said.contains(signature) && !json.to_string().contains(signature));
}

#[test]
fn a_token_that_is_over_or_an_agents_ends_with_77() {
    let dir = site(Kind::Client, -7200);
    let out = whoami(dir.path(), &["--offline"]);
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.code() == Some(77) && said.contains("(2 hours ago): no gateway takes it"), "{said}");
    let dir = site(Kind::Agent, 60);
    let out = whoami(dir.path(), &["--offline"]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.code() == Some(77) && said.contains("is not a client's"), "{said}");
}

#[test]
fn a_missing_configuration_ends_with_78() {
    let dir = tempfile::tempdir().unwrap();
    let out = whoami(dir.path(), &["--offline", "-c", "absent.yaml"]);
    assert_eq!(out.status.code(), Some(78), "{out:?}");
}
