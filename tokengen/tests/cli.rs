//! Role: the real program: what it prints, where, and how it exits.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::{SystemTime, UNIX_EPOCH},
};

use narrowlink_proto::{
    id::Uid,
    policy::{Item, Verdict, permit},
    target::Target,
    token::{Claims, Keys, Kind, TokenError},
};
use tempfile::TempDir;

const SEED: &str = include_str!("seed.yaml");
const SEED_SECRET: [u8; 8] = [2, 0, 2, 3, 0, 8, 1, 8];
const SEED_EXP: u64 = 1_710_227_806;

fn tokengen(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_narrowlink-tokengen"));
    command.current_dir(dir).args(arguments).output().unwrap()
}

/// Runs it on one file; gives stdout, stderr and the exit code.
fn run(yaml: &str, arguments: &[&str]) -> (String, String, i32) {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("tokens.yaml"), yaml).unwrap();
    fs::write(dir.path().join("secret"), "base64:CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n").unwrap();
    let output = tokengen(dir.path(), &[&["tokens.yaml"], arguments].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

/// The tokens between their labels.
fn tokens(stdout: &str) -> Vec<&str> {
    stdout.lines().filter(|line| !line.starts_with('#')).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn the_published_example_runs_unchanged_and_its_tokens_hold() {
    let (stdout, stderr, code) = run(SEED, &[]);
    assert_eq!(code, 0, "{stderr}");
    let labels: Vec<_> = stdout.lines().filter(|line| line.starts_with('#')).collect();
    let uid = "00000000-0000-0000-0000-000000000000";
    for (label, want) in labels.iter().zip([
        format!("# Client {uid} client_name_1 "),
        format!("# Client {uid} client_name_2 "),
        format!("# Agent {uid} agent_name_3 "),
        format!("# AgentPublish {uid} agent_name_3 "),
    ]) {
        assert!(label.starts_with(&want), "{label}");
    }
    let keys = Keys::new(&SEED_SECRET);
    let kinds = [Kind::Client, Kind::Client, Kind::Agent, Kind::AgentPublish];
    let verify = |(token, kind): (&&str, _)| keys.verify(token, kind, SEED_EXP - 1).unwrap();
    let claims: Vec<Claims> = tokens(&stdout).iter().zip(kinds).map(verify).collect();
    assert_eq!(claims.len(), 4);
    assert!(claims.iter().all(|c| c.uid == Uid::nil() && c.exp == SEED_EXP && c.iat.is_some()));
    assert!(matches!(&claims[0].policies.as_ref().unwrap().policies[..], [Item::Any(None, true)]));
    let ssh = Target::Tcp { host: "192.168.0.9".into(), port: 22 };
    let policies = claims[1].policies.as_ref();
    assert_eq!(permit(policies, "whichever", &ssh).unwrap().verdict, Verdict::Allow);
    assert_eq!(claims[2].policies, None);
    let services = &claims[3].connect.as_ref().unwrap().0;
    assert_eq!(services["narrow.host"].addr, ("127.0.0.1".to_owned(), 8080));
    assert_eq!(services["me.narrow.host"].addr, ("narrow.host".to_owned(), 80));
}

#[test]
fn a_token_serves_as_its_own_kind_only_and_expires() {
    let (stdout, _, _) = run(SEED, &[]);
    let keys = Keys::new(&SEED_SECRET);
    let agent = tokens(&stdout)[2];
    for kind in [Kind::Client, Kind::AgentPublish] {
        assert!(matches!(keys.verify(agent, kind, SEED_EXP - 1), Err(TokenError::Signature)));
    }
    assert!(matches!(keys.verify(agent, Kind::Agent, now()), Err(TokenError::Expired { .. })));
}

#[test]
fn the_published_example_is_warned_about() {
    let (stdout, stderr, _) = run(SEED, &[]);
    assert!(stderr.contains("warning: secret: 8 bytes"), "{stderr}");
    assert_eq!(stderr.matches("exp is in the past (2024-03-12 07:16:46 UTC)").count(), 4, "{stderr}");
    assert!(stderr.contains("tokens[3] (AgentPublish agent_name_3): "), "{stderr}");
    assert!(!stdout.contains("warning"));
}

#[test]
fn json_has_the_same_tokens_with_their_labels() {
    let (stdout, _, code) = run(SEED, &["--json"]);
    assert_eq!(code, 0);
    let list: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    let field = |name: &str| list.iter().map(|one| one[name].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(field("kind"), ["Client", "Client", "Agent", "AgentPublish"]);
    assert_eq!(field("name"), ["client_name_1", "client_name_2", "agent_name_3", "agent_name_3"]);
    assert!(list.iter().all(|one| one["uid"] == Uid::nil().to_string() && one["exp"] == SEED_EXP));
    let claims = Keys::new(&SEED_SECRET).verify(field("token")[2], Kind::Agent, SEED_EXP - 1).unwrap();
    assert_eq!(claims.jti, field("jti")[2]);
}

#[test]
fn every_token_gets_a_name_of_its_own_unless_it_has_one() {
    let yaml = "
secret: !File secret
tokens:
  - !Agent { uid: 00000000-0000-0000-0000-000000000001, name: a, exp: 1d }
  - !Agent { uid: 00000000-0000-0000-0000-000000000001, name: a, exp: 1d }
  - !Agent { uid: 00000000-0000-0000-0000-000000000001, name: a, exp: 1d, jti: my own }";
    let (stdout, stderr, code) = run(yaml, &[]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let keys = Keys::new(&[9; 32]);
    let verify = |token: &&str| keys.verify(token, Kind::Agent, now()).unwrap().jti;
    let jtis: Vec<_> = tokens(&stdout).iter().map(verify).collect();
    assert_ne!(jtis[0], jtis[1]);
    assert_eq!((jtis[0].len(), jtis[2].as_str()), (32, "my own"));
}

#[test]
fn human_times_and_every_form_of_the_secret_are_taken() {
    let nines = vec!["9"; 32].join(",");
    let hex = "09".repeat(32);
    for secret in [&format!("[{nines}]"), &format!("hex:{hex}"), &format!("'hex:{hex}'"), "!File secret"] {
        let yaml = format!(
            "
secret: {secret}
tokens:
  - !Client
    uid: 00000000-0000-0000-0000-000000000001
    name: c
    exp: 9999-12-31
    nbf: 2020-01-01
  - !Agent {{ uid: 00000000-0000-0000-0000-000000000001, name: a, exp: 12h, nbf: 1h }}"
        );
        let (stdout, stderr, code) = run(&yaml, &[]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{secret}");
        let keys = Keys::new(&[9; 32]);
        let client = keys.verify(tokens(&stdout)[0], Kind::Client, now()).unwrap();
        assert_eq!((client.exp, client.nbf), (253_402_214_400, Some(1_577_836_800)));
        assert_eq!(client.policies, None);
        let agent = tokens(&stdout)[1];
        assert!(matches!(keys.verify(agent, Kind::Agent, now()), Err(TokenError::NotYet { .. })));
        let agent = keys.verify(agent, Kind::Agent, now() + 3600).unwrap();
        assert_eq!(agent.exp - agent.nbf.unwrap(), 11 * 3600);
    }
}

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
            "tokens[1]: unknown variant `Clint`, expected one of `Client`, `Agent`, `AgentPublish` at line 4 column 5",
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
        (format!("{client}    exp: 1d\n    policies:\n"), "tokens[0].policies: empty, which could mean everything or nothing"),
        (format!("{client}    exp: 1d\n    policies: {{ permit: yes please, policies: [] }}\n"), "tokens[0].policies.permit: "),
        (format!("{client}    exp: tomorrow\n"), "tokens[0].exp: expected seconds since 1970, a duration such as 30d or 12h (s, m, h, d, w), or a date such as 2027-01-31 at line 6 column 10"),
        (format!("{client}    exp: 1710227806000\n"), "tokens[0].exp: beyond the year 9999: are these milliseconds? at line 6 column 10"),
        (format!("{client}    exp: -1\n"), "tokens[0].exp: invalid type: integer `-1`"),
        (client.into(), "tokens[0]: missing field `exp`"),
        (format!("{client}    exp: 1d\n    expires: 1d\n"), "tokens[0]: unknown field `expires`, expected one of `uid`, `name`, `exp`, `nbf`, `jti`, `policies` at line 7 column 5"),
        (client.replace("name: c", "name: ' c'") + "    exp: 1d\n", "tokens[0].name: invalid value: string \" c\", expected 1 to 128 printable bytes without space at the ends at line 5 column 11"),
        (client.replace("0001", "1") + "    exp: 1d\n", "tokens[0].uid: UUID parsing failed"),
        (format!("{publish}    exp: 1d\n"), "tokens[0]: missing field `connect`"),
        (format!("{publish}    exp: 1d\n    connect:\n      a.b: {{ addr: [x, 1], protocol: FTP }}\n"), "tokens[0].connect.a.b.protocol: unknown variant `FTP`, expected one of `HTTP`, `HTTPS`, `TLS` at line 8 column 38"),
        (format!("{publish}    exp: 1d\n    connect:\n      a b: {{ addr: [x, 1], protocol: TLS }}\n"), "tokens[0].connect: connect: `a b`: a host can't contain ' '"),
        (format!("{publish}    exp: 1d\n    connect:\n      a: {{ addr: [x, 1], protocol: TLS }}\n      a: {{ addr: [y, 1], protocol: TLS }}\n"), "duplicate host \"a\""),
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
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("tokens.yaml"), "secret: !File keys/secret\ntokens: []\n").unwrap();
    let check = |says: &str| {
        let output = tokengen(Path::new("/"), &["-c", path("tokens.yaml").to_str().unwrap()]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        let secret = path("keys/secret");
        assert!(stderr.contains(&format!("{}: {says}", secret.display())), "{stderr}");
    };
    check("No such file");
    fs::create_dir(path("keys")).unwrap();
    fs::write(path("keys/secret"), "\n").unwrap();
    check("the secret is empty");
    fs::write(path("keys/secret"), "hex:0g").unwrap();
    check("not hexadecimal");
    let output = tokengen(dir.path(), &["nowhere.yaml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8(output.stderr).unwrap().contains("nowhere.yaml: No such file"));
}

#[test]
fn the_file_comes_once_bare_or_as_an_option() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("t.yaml"), SEED).unwrap();
    let code = |arguments: &[&str]| tokengen(dir.path(), arguments).status.code().unwrap();
    for good in [&["t.yaml"][..], &["-c", "t.yaml"], &["--config", "t.yaml"], &["--json", "-c", "t.yaml"]] {
        assert_eq!(code(good), 0, "{good:?}");
    }
    for bad in [&[][..], &["-c"], &["t.yaml", "-c", "t.yaml"], &["t.yaml", "t.yaml"], &["--yaml", "t.yaml"]] {
        assert_eq!(code(bad), 2, "{bad:?}");
    }
}

#[test]
fn help_shows_an_example_that_works() {
    let dir = TempDir::new().unwrap();
    let output = tokengen(dir.path(), &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    let yaml = help.split_once("tokens.yaml:\n").unwrap().1.split_once("\n\n").unwrap().0;
    let (stdout, stderr, code) = run(yaml, &[]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{yaml}");
    assert_eq!(tokens(&stdout).len(), 2);
}
