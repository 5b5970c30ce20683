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
            "tokens[1]: unknown variant `Clint`, expected one of `Client`, `ClientPolicy`, `Agent`, `AgentPublish` at line 4 column 5",
        ),
        (
            format!("{items}        - !Ipp [a, 10.0.0.1, 22, TCP]\n"),
            "tokens[0].policies.policies[1]: unknown variant `Ipp`, expected one of `Ip`, `Domain`, `Any` at line 11 column 11",
        ),
        (
            format!("{items}        - !Ip [a, 10.0.0.1, 22, tcp]\n"),
            "tokens[0].policies.policies[1][3]: unknown variant `tcp`, expected one of `TCP`, `UDP`, `ANY`, `HTTP`, `HTTPS`, `TLS` at line 11 column 33",
        ),
        (
            format!("{items}        - !Ip\n          - a\n          - 10.0.0.1000\n          - 22\n          - TCP\n"),
            "tokens[0].policies.policies[1][1]: `10.0.0.1000` is neither an IP address nor a net such as 192.168.0.0/24 at line 13 column 13",
        ),
        (
            format!("{items}        - !Domain [a, 10.0.0.1, 22, TCP]\n"),
            "tokens[0].policies.policies[1][1]: `10.0.0.1` is an address: use !Ip at line 11 column 23",
        ),
        (format!("{items}        - !Ip [a, 10.0.0.1, 70000, TCP]\n"), "tokens[0].policies.policies[1][2]: invalid value: integer `70000`"),
        (format!("{items}        - Any\n"), "tokens[0].policies.policies[1]: invalid type: string \"Any\", expected a tag"),
        (format!("{client}    exp: 1d\n    policies:\n"), "tokens[0].policies: empty, which could mean everything or nothing: leave the key out for no restriction"),
        (format!("{client}    exp: 1d\n    policies: []\n"), "tokens[0].policies: empty, which could mean everything or nothing: leave the key out for no restriction at line 7 column 15"),
        (format!("{client}    exp: 1d\n    limits:\n"), "tokens[0].limits: invalid type: unit value, expected a mapping with `sessions`, `streams`, `dials_per_s`, `bytes_per_s` or `bytes_per_month`"),
        (format!("{client}    exp: 1d\n    limits: {{ sesions: 1 }}\n"), "tokens[0].limits: unknown field `sesions`, expected one of `sessions`, `streams`, `dials_per_s`, `bytes_per_s`, `bytes_per_month` at line 7 column 15"),
        (format!("{client}    exp: 1d\n    limits: {{ sessions: 0 }}\n"), "tokens[0].limits.sessions: invalid value: integer `0`"),
        (format!("{client}    exp: 1d\n    limits: {{ bytes_per_s: 10Mb }}\n"), "tokens[0].limits.bytes_per_s: invalid value: string \"10Mb\", expected bytes, more than 0: a number, or a text such as 10MB"),
        (format!("{client}    exp: 1d\n    policies: {{ permit: yes please, policies: [] }}\n"), "tokens[0].policies.permit: "),
        (format!("{client}    exp: tomorrow\n"), "tokens[0].exp: expected seconds since 1970, a duration such as 30d or 12h (s, m, h, d, w), or a date such as 2027-01-31 at line 6 column 10"),
        (format!("{client}    exp: 1710227806000\n"), "tokens[0].exp: beyond the year 9999: are these milliseconds? at line 6 column 10"),
        (format!("{client}    exp: -1\n"), "tokens[0].exp: invalid type: integer `-1`"),
        (client.into(), "tokens[0]: missing field `exp`"),
        (format!("{client}    exp: 1d\n    expires: 1d\n"), "tokens[0]: unknown field `expires`, expected one of `uid`, `name`, `exp`, `nbf`, `jti`, `policies`, `limits` at line 7 column 5"),
        (client.replace("name: c", "name: ' c'") + "    exp: 1d\n", "tokens[0].name: invalid value: string \" c\", expected 1 to 128 printable bytes without space at the ends at line 5 column 11"),
        (client.replace("0001", "1") + "    exp: 1d\n", "tokens[0].uid: UUID parsing failed"),
        (format!("{publish}    exp: 1d\n"), "tokens[0]: missing field `publish_hosts`, or `connect` in its place at line 3 column 5"),
        (format!("{publish}    exp: 1d\n    connect:\n      a.b: {{ addr: [x, 1], protocol: FTP }}\n"), "tokens[0].connect.a.b.protocol: unknown variant `FTP`, expected one of `HTTP`, `HTTPS`, `TLS`, `TCP` at line 8 column 38"),
        (format!("{publish}    exp: 1d\n    connect:\n      a b: {{ addr: [x, 1], protocol: TLS }}\n"), "tokens[0].connect.a b: `a b`: a host can't contain ' ' at line 8 column 12"),
        (format!("{publish}    exp: 1d\n    connect:\n      a: {{ addr: [x, 1], protocol: TLS }}\n      a: {{ addr: [y, 1], protocol: TLS }}\n"), "tokens[0].connect: `a` is published twice at line 8 column 7"),
        ("secret: hunter2\ntokens: []\n".into(), "secret: expected a list of bytes, \"hex:..\", \"base64:..\" or !File path at line 1 column 9"),
        ("secret: [1, 300]\ntokens: []\n".into(), "secret[1]: invalid value: integer `300`, expected u8 at line 1 column 13"),
        ("secret: []\ntokens: []\n".into(), "secret: the secret is empty"),
        ("secret: [1]\n".into(), "missing field `tokens`"),
        ("secret: [1]\ntokens: [\n".into(), "at line 3 column 1"),
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
    assert!(stderr.contains("tokens.yaml: tokens[0] (Client c): "), "{stderr}");
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
        let secret = site.path("keys/secret");
        assert!(ended.stderr.contains(&format!("{}: {says}", secret.display())), "{}", ended.stderr);
    };
    check("No such file");
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
    let both = "`connect` and `publish_hosts` are two forms of one thing: keep `publish_hosts`, leave `connect` out at \
                line 3 column 5";
    let modes = "`permit` and `type` both say the mode: keep `permit` (true for !WhiteList, false for !BlackList) at \
                 line ";
    let ids = "policy ids and items met in one `policies`: keep the ids, and move the items into the `policy` of a \
               !ClientPolicy with an id of its own at line ";
    let agents = "agents are plain (null or a name) and tagged (!Any or !Agent name) in one list: keep the plain form: \
                  null for !Any, the name alone for !Agent name at line ";
    let whole = "an item `!Any [agent, true or false]` belongs to the plain form, and this list has tagged agents \
                 (!Any or !Agent name): keep the plain form: null for !Any, the name alone for !Agent name at line ";
    for (tag, rest, path, says) in [
        ("AgentPublish", format!("{publish}connect: {{ a.b: {{ addr: [x, 1], protocol: HTTP }} }}"), "", both),
        ("AgentPublish", format!("connect:\n{publish}"), "", both),
        ("Client", "policies: { permit: true, type: !WhiteList , policies: [] }".into(), ".policies", modes),
        ("ClientPolicy", "pid: 1\npolicy:\n  type: !BlackList\n  permit: false\n  policies: []".into(), ".policy", modes),
        ("Client", "policies:\n- 1025\n- !Any [null, true]".into(), ".policies[1]", &format!("{ids}9 column 7")),
        ("Client", "policies:\n- !Any [null, true]\n- 1025".into(), ".policies[0]", "items need a mode: write `{ permit: true"),
        ("Client", "policies: { permit: true, policies: [!Any [null, true], 1025] }".into(), ".policies.policies[1]", ids),
        ("ClientPolicy", "pid: 1\npolicy: !WhiteList [1026]".into(), ".policy[0]", ids),
        (
            "ClientPolicy",
            "pid: 1\npolicy:\n  type: !WhiteList\n  policies:\n  - !Ip [!Any, 10.0.0.1, 22, TCP]\n  - !Ip [null, 10.0.0.1, 23, TCP]".into(),
            ".policy.policies[1]",
            &format!("{agents}12 column 9"),
        ),
        ("Client", "policies: !WhiteList [!Ip [a, 10.0.0.1, 22, TCP], !Domain [!Agent a, x, 22, TCP]]".into(), ".policies[1]", agents),
        ("Client", "policies: !BlackList [!Ip [!Agent a, 10.0.0.1, 22, TCP], !Any [a, true]]".into(), ".policies[1]", whole),
        ("Client", "policies: !BlackList [!Any [!Any , true]]".into(), ".policies[0]", whole),
        ("ClientPolicy", "pid: 1\npolicy: [!Any [null, true]]".into(), ".policy", "items need a mode: write `{ permit: true"),
        ("ClientPolicy", "pid: 1\npolicies: [1]".into(), "", "unknown field `policies`, expected one of `uid`, `name`, `exp`, `nbf`, `pid`, `policy`"),
        ("ClientPolicy", "pid: 4294967296\npolicy: !WhiteList []".into(), ".pid", "invalid value: integer `4294967296`, expected a policy id from 0 to 4294967295 at line 7 column 10"),
        ("ClientPolicy", "policy: !WhiteList []".into(), "", "missing field `pid`"),
        ("ClientPolicy", "pid: 1\njti: x\npolicy: !WhiteList []".into(), "", "unknown field `jti`"),
        ("Agent", "limits: { sessions: 1 }".into(), "", "unknown field `limits`"),
    ] {
        let (stdout, stderr, code) = run(&file(&entry(tag, &rest)), &[]);
        assert_eq!((code, stdout.as_str()), (78, ""), "{rest}");
        let says = format!("narrowlink-tokengen: tokens.yaml: tokens[0]{path}: {says}");
        assert!(stderr.starts_with(&says) && stderr.contains(" at line "), "{rest}\n{stderr}should say\n{says}");
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
        (client.clone(), format!("tokens[0] (Client c): policies: no !ClientPolicy has pid 7; uid {UID} has none")),
        (
            format!("{}{client}", policy(other, "theirs")),
            format!("tokens[1] (Client c): policies: pid 7 is that of tokens[0] (ClientPolicy theirs), whose uid is {other}: a policy serves its own uid alone"),
        ),
        (
            format!("{}{client}{}", policy(UID, "p"), policy(UID, "q")),
            "tokens[2] (ClientPolicy q): pid 7 is that of tokens[0] (ClientPolicy p), too: within a uid every policy has an id of its own".into(),
        ),
    ] {
        for arguments in [&[][..], &["--check"]] {
            let (stdout, stderr, code) = run(&file(&entries), arguments);
            assert_eq!((code, stdout.as_str()), (78, ""));
            assert_eq!(stderr, format!("narrowlink-tokengen: tokens.yaml: {says}\n"));
        }
    }
}
