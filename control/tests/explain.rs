//! `narrowlink-gateway explain` and `policy test` as an operator meets them: words and exit codes.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "kit/command.rs"]
mod command;

use std::{fs, io::Write as _, process::Stdio};

use command::{check, gateway, now, text, write};
use narrowlink_proto::{
    id::Uid,
    policy::Grant,
    token::{Claims, Keys, Kind},
};

const POLICIES: &str = "{ permit: true, policies: [!Ip [home, 10.0.0.0/8, 22, TCP], !Any [lab, true]] }";

fn client() -> Claims {
    let policies: Grant = serde_yaml::from_str(POLICIES).unwrap();
    let claims = Claims::new(Kind::Client, Uid::nil(), "laptop", now() + 30 * 86_400 - 3600, "t1");
    Claims { policies, ..claims }
}

/// A directory with tokens of all sorts and the config of their gateway, under a name that is not looked for.
fn site() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let token = |name: &str, secret: u8, claims: Claims| {
        let token = Keys::new(&[secret; 32]).sign(&claims).unwrap();
        write(&dir.path().join(format!("{name}.token")), &format!("{token}\n"));
    };
    token("laptop", 7, client());
    token("old", 8, client());
    token("stranger", 9, client());
    token("expired", 7, Claims { exp: now() - 7200, ..client() });
    token("agent", 7, Claims::new(Kind::Agent, Uid::nil(), "home", now() + 60, "t2"));
    let hex = |byte: &str| byte.repeat(32);
    let yaml = format!(
        "name: a\nsecret: \"hex:{}\"\nold_secrets: [\"hex:{}\"]\n\
         services: [!Ws {{ domains: [a], listen_addr: \"127.0.0.1:0\" }}]\n",
        hex("07"),
        hex("08")
    );
    write(&dir.path().join("gw.yaml"), &yaml);
    dir
}

#[test]
fn every_verdict_has_its_exit_code() {
    let dir = site();
    let explain = |args: &str, code, says: &[&str]| {
        check(dir.path(), &format!("explain -c gw.yaml {args}"), code, says);
    };
    let ssh = "--agent home --target";
    explain(
        &format!("--token laptop.token {ssh} nas.lan:22 --resolved 10.1.2.3"),
        0,
        &[
            "ALLOW  tcp://nas.lan:22 through home\nby     policies[0]: !Ip [home, 10.0.0.0/8, 22, TCP]   (10.1.2.3",
            "token  client \"laptop\" of 00000000-",
            "(in 29 days)\n       signed with the secret in force of gw.yaml (id ",
        ],
    );
    explain(&format!("--token old.token {ssh} 10.1.2.3:22"), 0, &["signed with old_secrets[0] of gw.yaml"]);
    explain(
        &format!("--token laptop.token {ssh} 192.0.2.1:22"),
        1,
        &["DENY ", "no item matches, and permit: true"],
    );
    explain(&format!("--token laptop.token {ssh} nas.lan:22"), 3, &["DEPENDS ", "resolves into 10.0.0.0/8"]);
    explain(
        &format!("--token expired.token {ssh} 10.1.2.3:22"),
        1,
        &["DENY ", "expired on ", "(2 hours ago)"],
    );
    explain(
        &format!("--token stranger.token {ssh} 10.1.2.3:22"),
        1,
        &["signed with none of the secrets of gw.yaml"],
    );
    explain(
        &format!("--token agent.token {ssh} 10.1.2.3:22"),
        1,
        &["only a client's token opens sessions; this one is of kind agent"],
    );
    explain(
        "--token laptop.token --agent lab --target udp://a:53",
        0,
        &["policies[1]: !Any [lab, true]", "note "],
    );
    let json = format!("--json --token laptop.token {ssh} 10.1.2.3:22");
    let out = check(dir.path(), &format!("explain -c gw.yaml {json}"), 0, &[]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&json["verdict"], &json["rule"]), (&"allow".into(), &"policies[0]".into()));
    assert_eq!((&json["verified"], &json["signed_by"]), (&true.into(), &"secret".into()));
}

#[test]
fn without_any_config_the_signature_is_said_to_be_unchecked() {
    let dir = site();
    let line = "explain --token stranger.token --agent home --target 10.0.0.1:22";
    check(dir.path(), line, 0, &["ALLOW ", "UNVERIFIED: "]);
    // One that is there is used without being named.
    fs::rename(dir.path().join("gw.yaml"), dir.path().join("gateway.yaml")).unwrap();
    check(dir.path(), line, 1, &["DENY ", "signed with none of the secrets of ./gateway.yaml"]);
}

#[test]
fn a_token_may_come_from_standard_input_or_the_command_line() {
    let dir = site();
    let token = fs::read_to_string(dir.path().join("laptop.token")).unwrap();
    let rest = "--agent home --target 10.0.0.1:22 -c gw.yaml";
    check(dir.path(), &format!("explain --token {token} {rest}"), 0, &["ALLOW "]);
    let mut command = gateway(dir.path(), &format!("explain --token - {rest}"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && text(&out.stdout).starts_with("ALLOW "), "{out:?}");
}

#[test]
fn what_makes_no_sense_and_a_bad_config_have_their_own_exit_codes() {
    let dir = site();
    let ssh = "--agent home --target 10.0.0.1:22";
    check(
        dir.path(),
        &format!("explain --token laptop.token {ssh} --resolved 10.0.0.1"),
        2,
        &["only a name resolves"],
    );
    check(
        dir.path(),
        &format!("explain --token no.token {ssh}"),
        2,
        &["neither a file that is there nor a token"],
    );
    check(
        dir.path(),
        "explain --token laptop.token --agent home --target nas.lan",
        2,
        &["the port is missing"],
    );
    check(dir.path(), &format!("explain {ssh}"), 2, &["--token"]);
    check(
        dir.path(),
        &format!("explain --token laptop.token {ssh} -c no.yaml"),
        78,
        &["no.yaml: No such file"],
    );
    write(&dir.path().join("bad.yaml"), "name: 7\n");
    check(dir.path(), &format!("explain --token laptop.token {ssh} -c bad.yaml"), 78, &["bad.yaml: "]);
    check(dir.path(), "policy", 2, &["Usage"]);
}

#[test]
fn a_table_of_expectations_is_tested_with_a_line_for_each_that_fails() {
    let dir = site();
    let table = |rows: &str| {
        let text = format!(
            "tokens:\n  laptop: !File laptop.token\n  old: !File old.token\n  stranger: !File stranger.token\n  \
             intern: !Policies {POLICIES}\nexpect:\n{rows}"
        );
        write(&dir.path().join("expected.yaml"), &text);
    };
    table(
        "  - [laptop, home, \"tcp://10.0.0.1:22\", allow]\n  - [intern, home, nas.lan:22, depends]\n  \
         - { token: old, agent: home, target: nas.lan:22, resolved: 10.0.0.7, verdict: allow, rule: \"policies[0]\" }\n",
    );
    let out = check(dir.path(), "policy test expected.yaml", 0, &[]);
    assert_eq!(text(&out.stdout), "3 of 3 as expected\n");
    check(dir.path(), "policy test expected.yaml -c gw.yaml", 0, &["3 of 3 as expected\n"]);

    table(
        "  - [laptop, home, \"tcp://10.0.0.1:22\", deny]\n  - [stranger, home, 10.0.0.1:22, allow]\n  \
         - [intern, lab, 10.0.0.1:22, allow]\n",
    );
    let out = check(dir.path(), "policy test expected.yaml", 1, &[]);
    assert_eq!(
        text(&out.stdout),
        "expect[0]: laptop, tcp://10.0.0.1:22 through home: expected deny, is allow (policies[0]: \
         !Ip [home, 10.0.0.0/8, 22, TCP])\n2 of 3 as expected, 1 not\n"
    );
    let verified =
        ["expect[1]: stranger, tcp://10.0.0.1:22 through home: expected allow, is deny (its signature"];
    check(dir.path(), "policy test expected.yaml -c gw.yaml", 1, &verified);
}

#[test]
fn a_table_that_can_not_be_used_is_named_with_its_place() {
    let dir = site();
    write(&dir.path().join("words"), "words\n");
    for (text, says) in [
        (
            "tokens: {}\nexpect: []\n",
            "expected.yaml: line 2 column 9: expect: empty: a table that expects nothing",
        ),
        (
            "tokens: {}\nexpect: [[a, home, nas.lan:22, allow]]\n",
            "line 2 column 10: expect[0]: `tokens` has no token of this name; it has 0",
        ),
        (
            "tokens: { a: !File no.token }\nexpect: []\n",
            "tokens.…: this token file can't be read: No such file or directory",
        ),
        ("tokens: { a: !File words }\nexpect: []\n", "in this file: not a token: "),
    ] {
        write(&dir.path().join("expected.yaml"), text);
        check(dir.path(), "policy test expected.yaml", 78, &["narrowlink-gateway: expected.yaml: ", says]);
    }
    check(dir.path(), "policy test absent.yaml", 78, &["absent.yaml: No such file"]);
}
