//! Role: what can be wrong with a file, and what is said about it.

use std::fs;

use crate::kit::{Site, UID, file, run};

#[test]
fn errors_name_file_path_line_and_column_and_what_is_valid() {
    let client =
        "secret: [1]\ntokens:\n  - !Client\n    uid: 00000000-0000-0000-0000-000000000001\n    name: c\n";
    let items = format!(
        "{client}    exp: 1d\n    policies:\n      permit: true\n      policies:\n        - !Any [a, true]\n"
    );
    let publish = client.replace("!Client", "!AgentPublish");
    for (yaml, says) in [
        (
            "secret: [1]\ntokens:\n  - !Agent { uid: 00000000-0000-0000-0000-000000000001, name: a, exp: 1d }\n  - !Clint {}\n".into(),
            "line 4 column 5: tokens[1]: unknown ",
        ),
        (
            format!("{items}        - !Ipp [a, 10.0.0.1, 22, TCP]\n"),
            "line 11 column 11: tokens[0].policies.policies[1]: unknown ",
        ),
        (
            format!("{items}        - !Ip [a, 10.0.0.1, 22, tcp]\n"),
            "line 11 column 33: tokens[0].policies.policies[1][3]: unknown ",
        ),
        (
            format!("{items}        - !Ip\n          - a\n          - 10.0.0.1000\n          - 22\n          - TCP\n"),
            "line 13 column 13: tokens[0].policies.policies[1][1]: this is neither an IP address nor a net such as 192.168.0.0/24",
        ),
        (
            format!("{items}        - !Domain [a, 10.0.0.1, 22, TCP]\n"),
            "line 11 column 23: tokens[0].policies.policies[1][1]: this is an address: use !Ip",
        ),
        (format!("{items}        - !Ip [a, 10.0.0.1, 70000, TCP]\n"), "tokens[0].policies.policies[1][2]: expected "),
        (format!("{items}        - Any\n"), "tokens[0].policies.policies[1]: expected a tag"),
        (format!("{client}    exp: 1d\n    policies:\n"), "tokens[0].policies: empty, which could mean everything or nothing: leave the key out for no restriction"),
        (format!("{client}    exp: 1d\n    policies: []\n"), "line 7 column 15: tokens[0].policies: empty, which could mean everything or nothing: leave the key out for no restriction"),
        (format!("{client}    exp: 1d\n    limits:\n"), "tokens[0].limits: expected a mapping with `sessions`, `streams`, `dials_per_s`, `bytes_per_s` or `bytes_per_month`"),
        (format!("{client}    exp: 1d\n    limits: {{ sesions: 1 }}\n"), "line 7 column 15: tokens[0].limits: unknown key, did you mean `sessions`?"),
        (format!("{client}    exp: 1d\n    limits: {{ sessions: 0 }}\n"), "tokens[0].limits.sessions: expected "),
        (format!("{client}    exp: 1d\n    limits: {{ bytes_per_s: 10Mb }}\n"), "tokens[0].limits.bytes_per_s: expected bytes, more than 0: a number, or a text such as 10MB"),
        (format!("{client}    exp: 1d\n    policies: {{ permit: yes please, policies: [] }}\n"), "tokens[0].policies.permit: "),
        (format!("{client}    exp: tomorrow\n"), "line 6 column 10: tokens[0].exp: expected seconds since 1970, a duration such as 30d or 12h (s, m, h, d, w), or a date such as 2027-01-31"),
        (format!("{client}    exp: 1710227806000\n"), "line 6 column 10: tokens[0].exp: beyond the year 9999: are these milliseconds?"),
        (format!("{client}    exp: -1\n"), "tokens[0].exp: expected "),
        (client.into(), "tokens[0]: `exp` is missing"),
        (format!("{client}    exp: 1d\n    expires: 1d\n"), "line 7 column 5: tokens[0]: unknown key; expected `uid`, `name`"),
        (client.replace("name: c", "name: ' c'") + "    exp: 1d\n", "line 5 column 11: tokens[0].name: expected 1 to 128 printable bytes without space at the ends"),
        (client.replace("0001", "1") + "    exp: 1d\n", "tokens[0].uid: expected a UUID, 8-4-4-4-12 hex digits (`uuidgen`"),
        (format!("{publish}    exp: 1d\n"), "line 3 column 5: tokens[0]: `publish_hosts` is missing, or `connect` in its place"),
        (format!("{publish}    exp: 1d\n    connect:\n      a.b: {{ addr: [x, 1], protocol: FTP }}\n"), "line 8 column 38: tokens[0].connect.….protocol: unknown "),
        (format!("{publish}    exp: 1d\n    connect:\n      a b: {{ addr: [x, 1], protocol: TLS }}\n"), "tokens[0].connect.…: this: a host can't contain ' '"),
        (format!("{publish}    exp: 1d\n    connect:\n      a: {{ addr: [x, 1], protocol: TLS }}\n      a: {{ addr: [y, 1], protocol: TLS }}\n"), "line 9 column 7: this key stands twice, first in line 8"),
        ("secret: hunter2\ntokens: []\n".into(), "line 1 column 9: secret: expected a list of bytes, \"hex:..\", \"base64:..\" or !File path"),
        ("secret: [1, 300]\ntokens: []\n".into(), "line 1 column 13: secret[1]: expected a whole number from 0 to 255"),
        ("secret: []\ntokens: []\n".into(), "secret: the secret is empty"),
        ("secret: [1]\n".into(), "`tokens` is missing"),
        ("secret: [1]\ntokens: [\n".into(), "line 3 column 1: not YAML"),
        ("".into(), "tokens.yaml: "),
    ] {
        let (stdout, stderr, code) = run(&yaml, &[]);
        assert_eq!((code, stdout.as_str()), (78, ""), "{yaml}");
        let place = format!("narrowlink-tokengen: tokens.yaml: {says}");
        let found = stderr.starts_with(&place) || (stderr.starts_with("narrowlink-tokengen: tokens.yaml: ") && stderr.contains(says));
        assert!(found && stderr.lines().count() == 1, "{yaml}\n{stderr}\nshould say {says}");
    }
}

#[test]
fn claims_that_are_too_long_are_named_by_token() {
    let item = "          - !Ip [a_rather_long_agent_name, 10.0.0.0/8, 22, TCP]\n".repeat(90);
    let yaml = format!(
        "secret: !File secret\ntokens:\n  - !Client\n    uid: 00000000-0000-0000-0000-000000000001\n    name: c\n    exp: 1d\n    policies:\n        permit: true\n        policies:\n{item}"
    );
    let (stdout, stderr, code) = run(&yaml, &[]);
    assert_eq!((code, stdout.as_str()), (78, ""));
    assert!(stderr.contains("tokens.yaml: tokens[0] (Client c, line 3): "), "{stderr}");
    assert!(stderr.contains("at most 4096 are taken"), "{stderr}");
}

#[test]
fn files_that_are_missing_or_hold_no_secret_are_named() {
    let site = Site::new();
    site.write("tokens.yaml", "secret: !File keys/secret\ntokens: []\n");
    let file = site.path("tokens.yaml");
    let check = |says: &str| {
        let ended = Site::new().run(&["-c", file.to_str().unwrap()]);
        assert_eq!(ended.code, 78, "{}", ended.stderr);
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
        assert!(ended.stderr.contains("tokens.yaml: line 1 column 9: secret: "), "{}", ended.stderr);
    };
    check("this file can't be read: No such file");
    fs::create_dir(site.path("keys")).unwrap();
    site.write("keys/secret", "\n");
    check("the secret is empty");
    site.write("keys/secret", "hex:0g");
    check("not hexadecimal");
    let ended = site.run(&["nowhere.yaml"]);
    assert_eq!(ended.code, 78);
    assert!(ended.stderr.contains("nowhere.yaml: No such file"));
}

/// An entry in block form, its keys on lines of their own from line 4 on.
fn entry(tag: &str, rest: &str) -> String {
    let rest: String = rest.lines().map(|line| format!("    {line}\n")).collect();
    format!("  - !{tag}\n    uid: {UID}\n    name: n\n    exp: 1d\n{rest}")
}

#[test]
fn two_forms_in_one_entry_are_refused_with_both_their_names_and_the_one_to_keep() {
    let publish = "publish_hosts:\n- host: a.b\n  connect: { host: x, port: 1, protocol: TCP }\n";
    let both =
        "`connect` and `publish_hosts` are two forms of one thing: keep `publish_hosts`, leave `connect` out";
    let modes = "`permit` and `type` both say the mode: keep `permit`";
    let ids = "policy ids and items met in one `policies`: keep the ids, and move the items into the `policy` of a \
               !ClientPolicy with an id of its own";
    let agents = "agents are plain (null or a name) and tagged (!Any or !Agent name) in one list: keep the plain form: \
                  null for !Any, the name alone for !Agent name";
    let whole = "an item `!Any [agent, true or false]` belongs to the plain form, and this list has tagged agents \
                 (!Any or !Agent name): keep the plain form: null for !Any, the name alone for !Agent name";
    for (tag, rest, path, says) in [
        ("AgentPublish", format!("{publish}connect: {{ a.b: {{ addr: [x, 1], protocol: HTTP }} }}"), "", both),
        ("AgentPublish", format!("connect:\n{publish}"), "", both),
        ("Client", "policies: { permit: true, type: !WhiteList , policies: [] }".into(), ".policies", modes),
        ("ClientPolicy", "pid: 1\npolicy:\n  type: !BlackList\n  permit: false\n  policies: []".into(), ".policy", modes),
        ("Client", "policies:\n- 1025\n- !Any [null, true]".into(), ".policies[1]", ids),
        ("Client", "policies:\n- !Any [null, true]\n- 1025".into(), ".policies[0]", "items need a mode: write `{ permit: true"),
        ("Client", "policies: { permit: true, policies: [!Any [null, true], 1025] }".into(), ".policies.policies[1]", ids),
        ("ClientPolicy", "pid: 1\npolicy: !WhiteList [1026]".into(), ".policy[0]", ids),
        (
            "ClientPolicy",
            "pid: 1\npolicy:\n  type: !WhiteList\n  policies:\n  - !Ip [!Any, 10.0.0.1, 22, TCP]\n  - !Ip [null, 10.0.0.1, 23, TCP]".into(),
            ".policy.policies[1]",
            agents,
        ),
        ("Client", "policies: !WhiteList [!Ip [a, 10.0.0.1, 22, TCP], !Domain [!Agent a, x, 22, TCP]]".into(), ".policies[1]", agents),
        ("Client", "policies: !BlackList [!Ip [!Agent a, 10.0.0.1, 22, TCP], !Any [a, true]]".into(), ".policies[1]", whole),
        ("Client", "policies: !BlackList [!Any [!Any , true]]".into(), ".policies[0]", whole),
        ("ClientPolicy", "pid: 1\npolicy: [!Any [null, true]]".into(), ".policy", "items need a mode: write `{ permit: true"),
        ("ClientPolicy", "pid: 1\npolicies: [1]".into(), "", "`policies` does not belong here but to a !Client in tokens.yaml"),
        ("ClientPolicy", "pid: 4294967296\npolicy: !WhiteList []".into(), ".pid", "expected a policy id from 0 to 4294967295"),
        ("ClientPolicy", "policy: !WhiteList []".into(), "", "`pid` is missing"),
        ("ClientPolicy", "pid: 1\njti: x\npolicy: !WhiteList []".into(), "", "unknown key; expected `uid`"),
        ("Agent", "limits: { sessions: 1 }".into(), "", "unknown key; expected `uid`"),
    ] {
        let (stdout, stderr, code) = run(&file(&entry(tag, &rest)), &[]);
        assert_eq!((code, stdout.as_str()), (78, ""), "{rest}");
        let says = format!(": tokens[0]{path}: {says}");
        assert!(stderr.contains(&says) && stderr.starts_with("narrowlink-tokengen: tokens.yaml: line "), "{rest}\n{stderr}should say\n{says}");
    }
}

#[test]
fn ids_that_lead_nowhere_are_named_with_their_token() {
    let policy = |uid: &str, name: &str| {
        format!("  - !ClientPolicy {{ uid: {uid}, name: {name}, exp: 1d, pid: 7, policy: !WhiteList [] }}\n")
    };
    let client = format!("  - !Client {{ uid: {UID}, name: c, exp: 1d, policies: [7] }}\n");
    let other = "00000000-0000-0000-0000-000000000002";
    for (entries, says) in [
        (client.clone(), format!("tokens[0] (Client c, line 3): policies: no !ClientPolicy has pid 7; uid {UID} has none")),
        (
            format!("{}{client}", policy(other, "theirs")),
            format!("tokens[1] (Client c, line 4): policies: pid 7 is that of tokens[0] (ClientPolicy theirs, line 3), whose uid is {other}: a policy serves its own uid alone"),
        ),
        (
            format!("{}{client}{}", policy(UID, "p"), policy(UID, "q")),
            "tokens[2] (ClientPolicy q, line 5): pid 7 is that of tokens[0] (ClientPolicy p, line 3), too: within a uid every policy has an id of its own".into(),
        ),
    ] {
        for arguments in [&[][..], &["--check"]] {
            let (stdout, stderr, code) = run(&file(&entries), arguments);
            assert_eq!((code, stdout.as_str()), (78, ""));
            assert_eq!(stderr, format!("narrowlink-tokengen: tokens.yaml: {says} (NL-E0102)\n"));
        }
    }
}
