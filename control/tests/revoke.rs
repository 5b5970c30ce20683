//! `narrowlink-gateway revoke` as an operator meets it: the list, words and exit codes.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "kit/command.rs"]
mod command;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use command::{check, gateway, now, text, write};
use narrowlink_proto::{
    id::Uid,
    token::{Claims, Keys, Kind},
};

/// A whole one.
const ID: &str = "3f2a9c41d07b5e6682c1f0a94b7d3e58";
const UID: &str = "6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10";

fn config(more: &str) -> String {
    let secret = "07".repeat(32);
    format!(
        "name: a\nsecret: \"hex:{secret}\"\nservices: [!Ws {{ domains: [a], listen_addr: \"127.0.0.1:0\" }}]\n{more}"
    )
}

/// A directory with a config that names a list, one that doesn't, and tokens.
fn site() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let token = |name: &str, secret: u8, kind, jti| {
        let uid: Uid = UID.parse().unwrap();
        let claims = Claims { iat: Some(now() - 60), ..Claims::new(kind, uid, name, now() + 3600, jti) };
        let token = Keys::new(&[secret; 32]).sign(&claims).unwrap();
        write(&dir.path().join(format!("{name}.token")), &format!("{token}\n"));
    };
    token("laptop", 7, Kind::Client, "t1");
    token("home", 7, Kind::Agent, "t2");
    token("stranger", 9, Kind::Client, "t3");
    write(&dir.path().join("gw.yaml"), &config("revocations: revoked.yaml\n"));
    write(&dir.path().join("bare.yaml"), &config(""));
    dir
}

#[test]
fn each_form_puts_its_entry_on_the_list_once_and_says_what_it_did() {
    let dir = site();
    let all = "; a running gateway ends their links and sessions within 2 s\n";
    let forms = [
        (
            "--token laptop.token".to_owned(),
            format!(
                "revoked: jti t1 (client \"laptop\" of {UID}), in revoked.yaml; a running gateway ends its links \
                 and sessions within 2 s\n"
            ),
        ),
        (
            "--token home.token".to_owned(),
            format!("revoked: jti t2 (agent \"home\" of {UID}), in revoked.yaml"),
        ),
        (format!("--jti {ID}"), format!("revoked: jti {ID}, in revoked.yaml; ")),
        (
            format!("--uid {UID} --name laptop"),
            format!(
                "revoked: name \"laptop\" of {UID}, in revoked.yaml{all}note: that name is refused for ever, in \
                 new tokens too; to let new ones in, replace the entry by one with --issued-before now\n"
            ),
        ),
        (
            format!("--uid {UID} --issued-before 2026-01-31"),
            format!("revoked: uid {UID}, issued before 2026-01-31 00:00:00 UTC, in revoked.yaml{all}"),
        ),
        (
            format!("--uid {UID} --name laptop --issued-before 1700000000"),
            format!(
                "revoked: name \"laptop\" of {UID}, issued before 2023-11-14 22:13:20 UTC, in revoked.yaml{all}"
            ),
        ),
        (
            "--issued-before 1700000000".to_owned(),
            format!("revoked: issued before 2023-11-14 22:13:20 UTC, in revoked.yaml{all}"),
        ),
    ];
    for (form, says) in &forms {
        let out = check(dir.path(), &format!("revoke -c gw.yaml {form}"), 0, &[says]);
        // No book of tickets knows it.
        assert_eq!(text(&out.stderr).contains("knows no such id"), form.contains(ID), "{form}: {out:?}");
    }
    let list = fs::read_to_string(dir.path().join("revoked.yaml")).unwrap();
    assert_eq!(
        list,
        format!(
            "- jti: t1\n- jti: t2\n- jti: {ID}\n- uid: {UID}\n  name: laptop\n- uid: {UID}\n  issued_before: \
             1769817600\n- uid: {UID}\n  name: laptop\n  issued_before: 1700000000\n- issued_before: 1700000000\n"
        )
    );
    for (form, _) in &forms {
        let says = ["revoked already: ", ", in revoked.yaml; nothing was changed\n"];
        check(dir.path(), &format!("revoke -c gw.yaml {form}"), 0, &says);
    }
    assert_eq!(fs::read_to_string(dir.path().join("revoked.yaml")).unwrap(), list);
    check(dir.path(), "-c gw.yaml --check", 0, &["ok"]);
}

#[test]
fn now_is_the_second_in_which_it_was_said() {
    let dir = site();
    let before = now();
    check(
        dir.path(),
        "revoke --list list.yaml --issued-before now",
        0,
        &["a running gateway that has this list"],
    );
    let list: Vec<narrowlink_control::revocations::Entry> =
        serde_yaml::from_str(&fs::read_to_string(dir.path().join("list.yaml")).unwrap()).unwrap();
    assert!((before..=now()).contains(&list[0].issued_before.unwrap()), "{list:?}");
    let out = check(dir.path(), "revoke --list list.yaml --issued-before 9999-12-31", 0, &[]);
    assert!(text(&out.stderr).contains("tokens that you issue until then are refused, too"), "{out:?}");
}

#[test]
fn a_token_may_come_from_standard_input_and_one_of_nobody_is_warned_of() {
    let dir = site();
    let mut child = gateway(dir.path(), "revoke -c gw.yaml --token -")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let token = fs::read(dir.path().join("laptop.token")).unwrap();
    child.stdin.take().unwrap().write_all(&token).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && text(&out.stdout).starts_with("revoked: jti t1 "), "{out:?}");
    let out = check(dir.path(), "revoke -c gw.yaml --token stranger.token", 0, &["revoked: jti t3 "]);
    assert!(text(&out.stderr).contains("no secret of gw.yaml has signed this token"), "{out:?}");
    // Without a config nobody can tell.
    let out = check(dir.path(), "revoke --list list.yaml --token stranger.token", 0, &["revoked: jti t3 "]);
    assert_eq!(text(&out.stderr), "");
}

#[test]
fn the_config_is_looked_for_where_the_gateway_looks() {
    let dir = site();
    check(dir.path(), "revoke --jti a-token", 78, &["no gateway.yaml in ., ", "--list FILE names one"]);
    fs::create_dir(dir.path().join(".narrowlink")).unwrap();
    write(&dir.path().join(".narrowlink/gateway.yaml"), &config("revocations: lists/revoked.yaml\n"));
    fs::create_dir(dir.path().join(".narrowlink/lists")).unwrap();
    check(dir.path(), "revoke --jti a-token", 0, &["/.narrowlink/lists/revoked.yaml; "]);
    assert!(dir.path().join(".narrowlink/lists/revoked.yaml").exists());
}

#[test]
fn each_error_has_its_words_and_its_exit_code() {
    let dir = site();
    fs::create_dir(dir.path().join("dir.yaml")).unwrap();
    write(&dir.path().join("bad-list.yaml"), "- {jti: a, until: 9}\n");
    write(&dir.path().join("bad.yaml"), "name: 7\n");
    write(&dir.path().join("words"), "words\n");
    for (args, code, says) in [
        ("", 2, "required"),
        ("--uid 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10", 2, "--issued-before <WHEN>"),
        ("--name laptop", 2, "--user <USER>"),
        ("--jti a-token --issued-before now", 2, "cannot be used with"),
        ("--jti a-token --list b -c gw.yaml", 2, "cannot be used with"),
        ("--list l --issued-before 2026-02-30", 2, "there is no such day"),
        ("--list l --issued-before 1795132800000", 2, "are these milliseconds?"),
        ("--list l --jti 3f2a9c41", 2, "this is a part of an id"),
        ("--list l --jti \u{1}", 2, "no token has such a jti or name"),
        ("--list l --token no.token", 2, "neither a file that is there nor a token"),
        ("--list l --token words", 2, "--token: not a token"),
        ("--list no/where.yaml --jti a-token", 74, "no/where.yaml: No such file or directory"),
        ("--list dir.yaml --jti a-token", 74, "dir.yaml: it is a directory"),
        ("--list bad-list.yaml --jti a-token", 78, "[0]: unknown key; expected `jti`"),
        ("-c no.yaml --jti a-token", 78, "no.yaml: No such file"),
        ("-c bad.yaml --jti a-token", 78, "bad.yaml: "),
        (
            "-c bare.yaml --jti a-token",
            78,
            "bare.yaml: it names no list of revoked tokens: add the line \"revocations: ",
        ),
    ] {
        let out = check(dir.path(), &format!("revoke {args}"), code, &[says]);
        assert_eq!(text(&out.stdout), "", "{args}");
    }
    assert!(!dir.path().join("l").exists());
    assert_eq!(fs::read_to_string(dir.path().join("bad-list.yaml")).unwrap(), "- {jti: a, until: 9}\n");
}

#[test]
fn what_a_script_reads_comes_as_one_object_in_one_line() {
    let dir = site();
    let answer = |line: &str, code| {
        let out = check(dir.path(), line, code, &[]);
        assert_eq!(text(&out.stdout).lines().count(), 1, "{line}");
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()
    };
    let revoked = answer(&format!("revoke -c gw.yaml --jti {ID} --json"), 0);
    assert_eq!((&revoked["entry"]["jti"], &revoked["new"]), (&ID.into(), &true.into()));
    assert_eq!(answer(&format!("revoke -c gw.yaml --jti {ID} --json"), 0)["new"], false);
    let made = answer("init 127.0.0.1:8443 --dir made --yes --json", 0);
    assert!(made["agent"].as_str().unwrap().starts_with("nl1"), "{made}");
    assert!(made["client"].as_str().unwrap().starts_with("nl1") && made["agent"] != made["client"]);
    let user = answer("user add lab -c made/gateway.yaml --json", 0);
    let users = answer("user list -c made/gateway.yaml --json", 0);
    assert_eq!((&user["name"], &users[1]), (&"lab".into(), &user));
    let taken = answer("ticket revoke client laptop -c made/gateway.yaml --json", 0);
    assert_eq!(
        (&taken["kind"], &taken["name"], &taken["revoked"]),
        (&"client".into(), &"laptop".into(), &1.into())
    );
    assert_eq!(answer("ticket revoke client laptop -c made/gateway.yaml --json", 0)["revoked"], 0);
    let table = "tokens: { laptop: !File laptop.token }\nexpect: [[laptop, home, \"10.0.0.1:22\", deny]]\n";
    write(&dir.path().join("expected.yaml"), table);
    let outcome = answer("policy test expected.yaml --json", 1);
    assert_eq!((&outcome["count"], outcome["failures"].as_array().map(Vec::len)), (&1.into(), Some(1)));
    let tickets = answer("ticket list -c made/gateway.yaml --json", 0);
    assert!(tickets[0]["exp"].is_u64() && tickets[0]["expires_at"].as_str().unwrap().ends_with(" UTC"));
}

#[test]
fn a_user_is_meant_by_name_or_uid_and_older_spellings_hold() {
    let dir = site();
    check(dir.path(), "init 127.0.0.1:8443 --dir made --yes", 0, &[]);
    check(dir.path(), &format!("user add lab --uid {UID} -c made/gateway.yaml"), 0, &[]);
    let entry = format!("name \"laptop\" of {UID}");
    let by_name = "revoke -c made/gateway.yaml --user lab --name laptop";
    check(dir.path(), by_name, 0, &["revoked: ", &entry]);
    for user in [format!("--user {UID}"), format!("--uid {UID}"), "--uid lab".to_owned()] {
        let line = format!("revoke -c made/gateway.yaml {user} --name laptop");
        check(dir.path(), &line, 0, &["revoked already: ", &entry]);
    }
    for (line, says) in [
        ("-c made/gateway.yaml --user nobody", "--user: there is no user of this name; there are: main, lab"),
        ("-c gw.yaml --user lab", "--user: neither a uid nor a name of the book of tickets: "),
        ("--list l --user lab", "--user: a name is looked up in the book of tickets beside a config"),
    ] {
        check(dir.path(), &format!("revoke {line} --name laptop"), 2, &[says]);
    }
    check(dir.path(), &format!("revoke --list l --id {ID}"), 0, &["revoked: jti 3f2a"]);
    check(dir.path(), &format!("revoke --list l --jti {ID}"), 0, &["revoked already: jti 3f2a"]);
    let explain = "explain --token laptop.token --target 10.0.0.1:22";
    for agent in ["--agent home", "--name home", "-n home"] {
        check(dir.path(), &format!("{explain} {agent}"), 0, &["ALLOW "]);
    }
}

#[test]
fn init_from_an_old_file_says_what_was_taken_when_all_is_written_and_not_before() {
    let dir = site();
    let secret = vec!["7"; 32].join(",");
    write(
        &dir.path().join("old.yaml"),
        &format!(
            "name: g\nsecret: [{secret}]\nservices: [!Ws {{ domains: [a], listen_addr: '127.0.0.1:80' }}]\n"
        ),
    );
    fs::create_dir(dir.path().join("new")).unwrap();
    write(&dir.path().join("new/tickets.yaml"), "mine\n");
    let line = "init gw.example --from old.yaml --dir new --yes";
    let out = check(dir.path(), line, 73, &["tickets.yaml is there already"]);
    assert!(!text(&out.stderr).contains("taken, into"), "{out:?}");
    fs::remove_file(dir.path().join("new/tickets.yaml")).unwrap();
    let out = check(dir.path(), line, 0, &[]);
    assert!(text(&out.stderr).contains("taken, into new/gateway.secret"), "{out:?}");
}

#[test]
fn a_ticket_is_said_to_hold_until_then_and_for_which_gateway() {
    let dir = site();
    check(dir.path(), "init 127.0.0.1:8443 --dir made --yes", 0, &[]);
    let line = "ticket client guest -c made/gateway.yaml --allow home";
    for more in ["--expires 1d", "--renew"] {
        let out = check(dir.path(), &format!("{line} {more}"), 0, &["nl1"]);
        let said = text(&out.stderr);
        assert!(
            said.contains(" is the client guest, until 20")
                && said.contains(" (in 24 hours), for 127.0.0.1:8443"),
            "{said}"
        );
    }
}

#[test]
fn twenty_at_once_lose_no_entry() {
    let dir = site();
    let revoke = |n: usize| {
        let mut command = gateway(dir.path(), &format!("revoke --list list.yaml --jti token-{n}"));
        command.stdout(Stdio::null()).spawn().unwrap()
    };
    let children: Vec<_> = (0..20).map(revoke).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let list = fs::read_to_string(dir.path().join("list.yaml")).unwrap();
    let mut lines: Vec<_> = list.lines().collect();
    lines.sort_unstable();
    let mut expected: Vec<_> = (0..20).map(|n| format!("- jti: token-{n}")).collect();
    expected.sort_unstable();
    assert_eq!(lines, expected);
    let left = fs::read_dir(dir.path())
        .unwrap()
        .filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().starts_with("list.yaml."));
    assert_eq!(left.count(), 0, "nothing else is left behind");
}

#[test]
fn explain_and_policy_test_know_what_is_revoked_and_by_what() {
    let dir = site();
    let explain = "explain -c gw.yaml --token laptop.token --agent home --target 10.0.0.1:22";
    let table = "tokens: { laptop: !File laptop.token }\nexpect: [[laptop, home, \"10.0.0.1:22\", allow]]\n";
    write(&dir.path().join("expected.yaml"), table);
    check(dir.path(), explain, 0, &["ALLOW "]);
    check(dir.path(), "policy test expected.yaml -c gw.yaml", 0, &["1 of 1"]);
    // Of everybody, up to now: the token is a minute old.
    check(dir.path(), "revoke -c gw.yaml --issued-before now", 0, &[]);
    check(dir.path(), explain, 1, &["DENY ", "by     revoked by revoked.yaml: issued before 20"]);
    check(dir.path(), "revoke -c gw.yaml --token laptop.token", 0, &[]);
    check(dir.path(), explain, 1, &["by     revoked by revoked.yaml: jti t1\ntoken  client \"laptop\" of "]);
    let says = ["expected allow, is deny (revoked by revoked.yaml: jti t1)\n0 of 1 as expected, 1 not\n"];
    check(dir.path(), "policy test expected.yaml -c gw.yaml", 1, &says);
    // Whoever names no config asks about the token alone.
    check(dir.path(), "policy test expected.yaml", 0, &["1 of 1"]);
    let json = check(dir.path(), &format!("{explain} --json"), 1, &[]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (&json["because"], &json["signed_by"]),
        (&"revoked by revoked.yaml: jti t1".into(), &"secret".into())
    );
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_running_gateway_takes_the_list_and_keeps_the_one_it_has_when_that_breaks() {
    let dir = site();
    let mut child = gateway(dir.path(), "-c gw.yaml").stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let _running = Running(child);
    let mut until = |words: &str| log.by_ref().find(|line| line.as_ref().unwrap().contains(words)).unwrap();
    until("listening on ").unwrap();
    let began = Instant::now();
    check(dir.path(), "revoke -c gw.yaml --token laptop.token", 0, &["revoked: "]);
    until("gw.yaml: taken").unwrap();
    // Two seconds, of which a machine that does something else meanwhile makes more.
    let took = began.elapsed();
    println!("taken after {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    write(&dir.path().join("revoked.yaml"), "- {jti: a, until: 9}\n");
    let said = until("was not taken, the old one stays").unwrap();
    assert!(said.contains("unknown key; expected `jti`"), "{said}");
    check(dir.path(), "revoke --list revoked.yaml --jti b-token", 78, &["unknown key; expected `jti`"]);
    // A list that has gone would let everybody in again.
    fs::remove_file(dir.path().join("revoked.yaml")).unwrap();
    until("revoked.yaml: gone, and with it what it revokes").unwrap();
    write(&dir.path().join("revoked.yaml"), "[]\n");
    until("gw.yaml: taken").unwrap();
}
