//! Role: `-o DIR`: which files there are, what is in them, and who may read them.

use std::fs;

use narrowlink_proto::token::Kind;

use crate::kit::{Ended, Site, UID, agent, file, keys, mode, now};

/// A site with these entries in `tokens.yaml`.
fn site(entries: &[String]) -> Site {
    let site = Site::new();
    site.write("tokens.yaml", &file(&entries.concat()));
    site
}

#[test]
fn every_token_gets_a_file_that_only_its_owner_reads() {
    let client = format!("  - !Client {{ uid: {UID}, name: my laptop, exp: 2d }}\n");
    let site = site(&[agent("home", ""), client]);
    let Ended { stdout, stderr, code } = site.run(&["tokens.yaml", "-o", "out"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with(&format!("out/{UID}/agent-home.token: Agent home until 2")), "{stdout}");
    assert!(
        lines[1].starts_with(&format!("out/{UID}/client-my%20laptop.token: Client my laptop until 2")),
        "{stdout}"
    );
    for folder in ["out", &format!("out/{UID}")] {
        assert_eq!(mode(&site.path(folder)), 0o700, "{folder}");
    }
    for (name, kind) in [("agent-home", Kind::Agent), ("client-my%20laptop", Kind::Client)] {
        let path = format!("out/{UID}/{name}.token");
        assert_eq!(mode(&site.path(&path)), 0o600);
        let token = site.read(&path);
        keys().verify(token.strip_suffix('\n').unwrap(), kind, now()).unwrap();
        assert!(!stdout.contains(token.trim()));
    }
    assert_eq!(fs::read_dir(site.path(&format!("out/{UID}"))).unwrap().count(), 2);
}

#[test]
fn a_new_secret_replaces_every_file() {
    let site = site(&[agent("home", ""), agent("home", "")]);
    assert_eq!(site.run(&["tokens.yaml", "-o", "out"]).code, 0);
    let read = || ["home", "home-2"].map(|name| site.read(&format!("out/{UID}/agent-{name}.token")));
    let before = read();
    assert_ne!(before[0], before[1]);
    site.write("secret", &format!("hex:{}\n", "08".repeat(32)));
    assert_eq!(site.run(&["tokens.yaml", "-o", "out"]).code, 0);
    let after = read();
    for (old, new) in before.iter().zip(&after) {
        assert!(keys().verify(old.trim(), Kind::Agent, now()).is_ok());
        assert!(keys().verify(new.trim(), Kind::Agent, now()).is_err());
    }
}

#[test]
fn with_json_the_files_are_listed_instead_of_the_tokens() {
    let site = site(&[agent("../../etc/x", "")]);
    let Ended { stdout, code, .. } = site.run(&["tokens.yaml", "-o", "out", "--json"]);
    assert_eq!(code, 0);
    let list: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let one = list[0].as_object().unwrap();
    assert_eq!(one.keys().collect::<Vec<_>>().len(), 6);
    assert_eq!((&one["kind"], &one["name"]), (&"Agent".into(), &"../../etc/x".into()));
    let path = one["file"].as_str().unwrap();
    assert_eq!(path, format!("out/{UID}/agent-..%2F..%2Fetc%2Fx.token"));
    assert!(site.path(path).is_file() && !one.contains_key("token"));
}

#[test]
fn what_can_not_be_written_is_named_and_leaves_nothing_behind() {
    let site = site(&[agent("home", "")]);
    site.write("out", "in the way");
    let Ended { stdout, stderr, code } = site.run(&["tokens.yaml", "-o", "out"]);
    assert_eq!((code, stdout.as_str()), (74, ""));
    assert!(stderr.starts_with(&format!("narrowlink-tokengen: out/{UID}: ")), "{stderr}");
    fs::create_dir_all(site.path(&format!("dir/{UID}/agent-home.token"))).unwrap();
    let Ended { stderr, code, .. } = site.run(&["tokens.yaml", "-o", "dir"]);
    assert_eq!(code, 74);
    assert!(stderr.starts_with(&format!("narrowlink-tokengen: dir/{UID}/agent-home.token: ")), "{stderr}");
    assert_eq!(fs::read_dir(site.path(&format!("dir/{UID}"))).unwrap().count(), 1);
}

#[test]
fn a_file_with_an_error_writes_nothing() {
    let site = site(&[agent("home", ""), agent("' '", "")]);
    assert_eq!(site.run(&["tokens.yaml", "-o", "out"]).code, 78);
    assert!(!site.path("out").exists());
}
