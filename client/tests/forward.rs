//! Role: what `narrowlink forward` says when it begins, to programs and to people.
//! Invariants: one line on standard output; whoever asks for errors only hears nothing else.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use narrowlink_proto::{
    id::Uid,
    token::{Claims, Keys, Kind},
};

/// The first line of a forward whose gateway is away, and what else it said until it was ended.
fn start(words: &str) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let token =
        Keys::new(&[7; 32]).sign(&Claims::new(Kind::Client, Uid::nil(), "n", 9_999_999_999, "j")).unwrap();
    let config = dir.path().join("client.yaml");
    let text =
        format!("endpoints: [!SelfHosted {{ gateway: '127.0.0.1:1', token: {token}, protocol: Ws }}]\n");
    fs::write(&config, text).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_narrowlink"))
        .current_dir(dir.path())
        .env_remove("RUST_LOG")
        .arg("forward")
        .args(words.split(' '))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut said = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    // Its last word before it serves; whoever wants errors only gets none.
    while !words.contains("-q") && !said.contains("Ctrl-C ends") {
        assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    (line, said)
}

#[test]
fn a_program_reads_where_it_listens_as_one_object() {
    let (line, _) = start("--agent home 127.0.0.1:22 --json");
    let said: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
    let addr: SocketAddr = said["listening"].as_str().unwrap().parse().unwrap();
    assert!(addr.ip().is_loopback() && addr.port() != 0, "{line}");
    assert_eq!((&said["agent"], &said["target"]), (&"home".into(), &"tcp://127.0.0.1:22".into()));
    let (line, _) = start("-n home 127.0.0.1:22");
    assert!(line.trim_end().parse::<SocketAddr>().is_ok(), "{line}");
}

#[test]
fn who_opens_a_forward_to_others_is_warned_in_one_line_unless_errors_alone_are_wanted() {
    let warnings = |said: &str| said.lines().filter(|line| line.contains("warning: ")).count();
    let (_, said) = start("-n home -l 0.0.0.0:0 127.0.0.1:22");
    assert_eq!(warnings(&said), 1, "{said}");
    assert!(said.contains("write -l 127.0.0.1:0\n"), "{said}");
    let (_, quiet) = start("-q -n home -l 0.0.0.0:0 127.0.0.1:22");
    assert_eq!(warnings(&quiet), 0, "{quiet}");
    let (_, own) = start("-n home 127.0.0.1:22");
    assert_eq!(warnings(&own), 0, "{own}");
}
